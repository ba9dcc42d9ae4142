"""Channels and labels in the range that a network works in.

A config can ask for standardised channels. The network of a regression ends in tanh: labels outside the range of tanh,
or in a small part of it, are mapped to it.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from data_dir.storage import DataError

# tanh reaches -1 and 1 only for infinite arguments.
REACH = 0.9
# Labels that span less are widened: the first outputs of a network would be far from all of them.
LEAST_SPAN = 0.5
# A channel lies off zero if its mean is more than so many of its standard deviations.
OFFSET_RATIO = 3
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
        """The numbers as JSON keeps them, for config.json of a run."""
        return {name: values.tolist() for name, values in self._asdict().items()}


def standardisation_of(data: Float[np.ndarray, "n L C"], rows: np.ndarray | None = None) -> Standardisation:
    """Mean 0 and standard deviation 1 for every channel over the time steps of ``rows``, by default of all.

    Reads memory-mapped data twice, in chunks. A channel that varies by no more than the rounding of its mean counts as
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


def constant_channels(data: Float[np.ndarray, "n L C"], mask: Bool[np.ndarray, "n L"] | None = None) -> list[int]:
    """The channels that do not change within any series; ``mask`` says which time steps belong to a series."""
    where = True if mask is None else mask[:, :, None]
    low, high = (find(data, axis=1, where=where, initial=end) for find, end in ((np.min, np.inf), (np.max, -np.inf)))
    return np.flatnonzero((low == high).all(axis=0)).tolist()


def offset_channels(
    data: Float[np.ndarray, "n L C"], mask: Bool[np.ndarray, "n L"] | None = None
) -> dict[int, tuple[float, float]]:
    """Mean and standard deviation of the channels that lie off zero by ``OFFSET_RATIO``; ``mask`` as above.

    Channels that are constant in every series are left out.
    """
    off = {}
    for channel in sorted(set(range(data.shape[2])) - set(constant_channels(data, mask))):
        values = data[:, :, channel] if mask is None else data[:, :, channel][mask]
        mean, deviation = float(values.mean(dtype=np.float64)), float(values.std(dtype=np.float64))
        if abs(mean) > OFFSET_RATIO * deviation:
            off[channel] = mean, deviation
    return off


def offsets_text(offsets: dict[int, tuple[float, float]]) -> str:
    """The channels of ``offset_channels`` in words: the farthest one with its numbers."""
    channel = max(offsets, key=lambda channel: abs(offsets[channel][0]) / max(offsets[channel][1], 1e-300))
    mean, deviation = offsets[channel]
    listed = f"channel{'s' if len(offsets) > 1 else ''} {', '.join(map(str, offsets))}"
    return f"{listed} far off zero: channel {channel} lies at {mean:.4g} ± {deviation:.2g}"


class LabelMap(NamedTuple):
    """label = centre + unit * output. A squared error of outputs times unit^2 is a squared error of labels.

    Both are numbers, or, for labels (n, T, K) of K outputs, one number for each output.
    """

    centre: float | tuple[float, ...]
    unit: float | tuple[float, ...]

    def to_outputs(self, labels: np.ndarray) -> np.ndarray:
        """The outputs (float32) that the network should give for labels."""
        return ((np.asarray(labels, dtype=np.float64) - self.centre) / self.unit).astype(np.float32)

    def to_labels(self, outputs: np.ndarray) -> np.ndarray:
        """The labels that outputs mean."""
        return np.asarray(self.centre) + np.asarray(self.unit) * outputs

    def describe(self, names: Sequence[str] | None = None) -> str:
        """The map in words, for each output by its name."""
        if not isinstance(self.centre, tuple):
            return f"label = {self.centre:g} + {self.unit:g} x output"
        names = output_names(len(self.centre)) if names is None else names
        maps = zip(names, self.centre, self.unit, strict=True)  # pyright: ignore[reportArgumentType] (both tuples)
        return "; ".join(f"{name} = {centre:g} + {unit:g} x output" for name, centre, unit in maps)


def output_names(outputs: int) -> list[str]:
    """The names of outputs without names of their own."""
    return [f"output_{number}" for number in range(outputs)]


def label_map_of(parts: Iterable[np.ndarray]) -> LabelMap | None:
    """The map from the range of all labels to [-REACH, REACH]; None if no label needs it.

    Labels need it if they do not all lie in [-1, 1], or if they span less than ``LEAST_SPAN``. Each of the K outputs of
    labels (n, T, K) has its own range. The ranges are taken over the whole set, as in PPG-DaLiA, so that every seed has
    the same map. Raises DataError if all labels of an output are equal.
    """
    parts = list(parts)
    if parts[0].ndim < 3:
        return _map_of(parts, "")
    maps = [_map_of([labels[..., k] for labels in parts], f" of output {k}") for k in range(parts[0].shape[2])]
    if not any(maps):
        return None
    return LabelMap(*zip(*(LabelMap(0.0, 1.0) if one is None else one for one in maps), strict=True))


def _map_of(parts: Sequence[np.ndarray], which: str) -> LabelMap | None:
    bounds = [bound for labels in parts for bound in (float(labels.min()), float(labels.max()))]
    low, high = min(bounds), max(bounds)
    if low == high:
        raise DataError(f"all labels{which} are {low:g}: a regression needs labels that differ.")
    if low >= -1 and high <= 1 and high - low >= LEAST_SPAN:
        return None
    return LabelMap(centre=(low + high) / 2, unit=(high - low) / (2 * REACH))
