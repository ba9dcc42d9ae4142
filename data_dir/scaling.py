"""Maps that bring a data set into the range that a network works in, from the numbers in its files and back.

Inputs are standardised where a config asks for it. Labels of a regression are mapped where its network, which ends in
tanh, could not reach them.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from data_dir.storage import DataError

# tanh reaches its ends -1 and 1 for infinite arguments alone.
REACH = 0.9
# Of the data that are read at once.
_CHUNK_BYTES = 2**26


class Standardisation(NamedTuple):
    """The map x -> (x - mean) * scale of every channel; both float32."""

    mean: Float[np.ndarray, " C"]
    scale: Float[np.ndarray, " C"]

    def __call__(self, data: Float[np.ndarray, "n L C"]) -> Float[np.ndarray, "n L C"]:
        """The standardised channels of float32 data."""
        return (data - self.mean) * self.scale

    def record(self) -> dict[str, list[float]]:
        """As config.json of a run keeps it: the same numbers come out of it."""
        return {name: values.tolist() for name, values in self._asdict().items()}


def standardisation_of(data: Float[np.ndarray, "n L C"], rows: np.ndarray | None = None) -> Standardisation:
    """Mean 0 and standard deviation 1 for every channel, over the time steps of some rows; of all if None.

    Memory-mapped data are read in chunks, twice. A channel that varies by no more than the rounding of its mean is
    constant: its scale is 1.
    """
    rows = np.arange(len(data)) if rows is None else np.asarray(rows)
    step = max(1, _CHUNK_BYTES // (8 * data[0].size))

    def mean_of(function):
        sums = (
            function(data[rows[start : start + step]].astype(np.float64)).sum(axis=(0, 1))
            for start in range(0, len(rows), step)
        )
        return sum(sums) / (len(rows) * data.shape[1])

    mean = mean_of(lambda x: x)
    deviation = np.sqrt(mean_of(lambda x: (x - mean) ** 2))
    constant = deviation <= np.finfo(np.float32).eps * np.abs(mean)
    scale = 1 / np.where(constant, 1, deviation)
    return Standardisation(mean.astype(np.float32), scale.astype(np.float32))


class LabelMap(NamedTuple):
    """label = centre + unit * output: a squared error of outputs times unit^2 is one of labels."""

    centre: float
    unit: float

    def to_outputs(self, labels: np.ndarray) -> np.ndarray:
        """What the network should give for labels."""
        return (np.asarray(labels, dtype=np.float64) - self.centre) / self.unit

    def to_labels(self, outputs: np.ndarray) -> np.ndarray:
        """The labels that outputs stand for."""
        return self.centre + self.unit * outputs


def label_map_of(parts: Iterable[np.ndarray]) -> LabelMap | None:
    """The map of the range of all labels to [-REACH, REACH]; None if all of them lie in [-1, 1] already.

    The range is that of the whole set, as in PPG-DaLiA, so that it is the same for every seed. Raises DataError for
    labels that are all the same.
    """
    bounds = [bound for labels in parts for bound in (float(labels.min()), float(labels.max()))]
    low, high = min(bounds), max(bounds)
    if low == high:
        raise DataError(f"all labels are {low:g}: a regression needs labels that differ.")
    if low >= -1 and high <= 1:
        return None
    return LabelMap(centre=(low + high) / 2, unit=(high - low) / (2 * REACH))
