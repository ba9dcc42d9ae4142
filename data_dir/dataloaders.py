"""Batches of one part of a data set: endless and shuffled for training, or one pass in order for evaluation."""

from collections.abc import Callable, Iterator
from copy import copy

import jax
import jax.numpy as jnp
import numpy as np

from data_dir.storage import DataError
from data_dir.tasks import GeneratedSeries

Array = np.ndarray | jax.Array


class Dataloader:
    """The samples of one part of a data set.

    The loader serves the ``rows`` of ``data`` (N, L, C) and ``labels``, by default all rows in order. Labels are
    one-hot (N, K), or (N, T, K) for T steps of a sample, or in regression (N, T), or (N, T, K) with K outputs at each
    of T label steps. Series of a task are generated when they are served. ``standardisation``
    maps the samples of a batch. ``time`` puts the channel t/L, t = 0..L-1, before the others. ``label_unit`` is how
    much a difference of 1 between labels means in the files of a regression, one number or one for each of the K
    outputs; metrics are in that unit. Batches are float32.

    Float32 arrays are not copied: several loaders share them, and memory-mapped arrays are read batch by batch.
    ``inmemory`` copies the samples to the device once, and batches are jax arrays.

    ``size`` counts the samples, ``channels`` the channels without time. ``rows`` (n,) are the rows of the samples in
    ``data``. Raises DataError for other ranks, for unequal numbers of samples and labels, and for rows out of range.
    """

    def __init__(
        self,
        data: np.ndarray | GeneratedSeries,
        labels: np.ndarray,
        *,
        rows: np.ndarray | None = None,
        time: bool = False,
        inmemory: bool = False,
        standardisation: Callable[[np.ndarray], np.ndarray] | None = None,
        label_unit: float | tuple[float, ...] = 1.0,
    ):
        data = data if isinstance(data, GeneratedSeries) else np.asarray(data, dtype=np.float32)
        labels = np.asarray(labels, dtype=np.float32)
        if data.ndim != 3 or labels.ndim not in (2, 3):
            raise DataError(
                "data must be (samples, time steps, channels) and labels (samples, outputs) or "
                "(samples, label steps, outputs), not "
                f"{data.shape} and {labels.shape}."
            )
        if len(data) != len(labels):
            raise DataError(f"{len(data)} samples but {len(labels)} labels.")
        if rows is not None and len(rows) and not 0 <= np.min(rows) <= np.max(rows) < len(data):
            raise DataError(f"rows {np.min(rows)} to {np.max(rows)} of {len(data)} samples.")
        self._data, self._labels, self._time, self._standardisation = data, labels, time, standardisation
        self.rows = np.arange(len(data)) if rows is None else np.asarray(rows, dtype=np.int64)
        self._served = slice(None) if rows is None else self.rows  # A slice gives views of the arrays.
        self.size, self.channels, self.label_unit = len(self.rows), data.shape[2], label_unit
        self._device = tuple(map(jnp.asarray, self._gather(self._served))) if inmemory else None

    @property
    def data(self) -> Array:
        """All samples (n, L, C) as batches serve them. On the host a copy, unless all are served as they are stored."""
        return self._gather(self._served)[0] if self._device is None else self._device[0]

    @property
    def labels(self) -> Array:
        """All labels (n, K), (n, T) or (n, T, K). On the host a copy if only some rows are served."""
        return self._labels[self._served] if self._device is None else self._device[1]

    def first(self, count: int | None) -> "Dataloader":
        """A loader of the first ``count`` samples of this part; of all of them with None, or if there are no more."""
        if count is None or count >= self.size:
            return self
        part = copy(self)
        part.rows, part.size, part._served = self.rows[:count], count, self.rows[:count]
        part._device = None if self._device is None else tuple(array[:count] for array in self._device)
        return part

    def batch(self, samples: np.ndarray) -> tuple[Array, Array]:
        """Samples by their numbers in this part, 0..n-1, and their labels."""
        if self._device is not None:
            return self._device[0][samples], self._device[1][samples]
        return self._gather(self.rows[samples])

    def _gather(self, rows: np.ndarray | slice) -> tuple[np.ndarray, np.ndarray]:
        samples = self._data[rows]
        if self._standardisation is not None:
            samples = self._standardisation(samples)
        if self._time:
            n, length, channels = samples.shape
            timed = np.empty((n, length, channels + 1), dtype=np.float32)
            timed[:, :, 0], timed[:, :, 1:] = np.arange(length) / length, samples
            samples = timed
        return samples, self._labels[rows]

    def loop(self, batch_size: int, *, key: jax.Array, position: dict[str, int] | None = None) -> "ShuffledBatches":
        """Endless batches (x, y) of exactly ``batch_size`` samples, every sample once per epoch.

        Epoch e is the permutation drawn from ``fold_in(key, e)``. If ``batch_size`` does not divide n, the last samples
        of an epoch share a batch with the first ones of the next. ``position``, the ``.position`` of another loop,
        continues that loop; the batch size may differ.

        Raises DataError if there are no samples, if ``batch_size`` is not in [1, n], and for a position out of range.
        """
        return ShuffledBatches(self, batch_size, key, self.position(0) if position is None else position)

    def position(self, drawn: int) -> dict[str, int]:
        """The ``.position`` of a ``loop`` after its first ``drawn`` samples. Raises DataError without samples."""
        self._check(batch_size=1)
        return {"epoch": drawn // self.size, "offset": drawn % self.size}

    def loop_epoch(self, batch_size: int) -> Iterator[tuple[Array, Array]]:
        """Batches (x, y) in stored order, every sample once; the last batch may be short.

        Raises DataError, at the call, if there are no samples or ``batch_size`` < 1.
        """
        self._check(batch_size)
        samples = np.arange(self.size)
        return (self.batch(samples[start : start + batch_size]) for start in range(0, self.size, batch_size))

    def _check(self, batch_size: int) -> None:
        if self.size == 0:
            raise DataError("this part of the data set is empty: there are no samples to make batches of.")
        if batch_size < 1:
            raise DataError(f"batch_size {batch_size}: must be at least 1.")


class ShuffledBatches:
    """The iterator of ``Dataloader.loop``."""

    def __init__(self, loader: Dataloader, batch_size: int, key: jax.Array, position: dict[str, int]):
        loader._check(batch_size)
        if batch_size > loader.size:
            raise DataError(
                f"batch_size {batch_size}: must not exceed the {loader.size} samples of this part of the data set."
            )
        self._epoch, self._offset = position.get("epoch", -1), position.get("offset", -1)
        if self._epoch < 0 or not 0 <= self._offset < loader.size:
            raise DataError(f"position {position}: not one of a loop over {loader.size} samples.")
        self._loader, self._batch_size, self._key = loader, batch_size, key
        self._order = self._permutation()

    @property
    def position(self) -> dict[str, int]:
        """How much was drawn: {"epoch": whole epochs, "offset": samples of the current epoch}. Fits into JSON."""
        return {"epoch": self._epoch, "offset": self._offset}

    def __iter__(self) -> "ShuffledBatches":
        return self

    def __next__(self) -> tuple[Array, Array]:
        return self._loader.batch(self.draw())

    def draw(self) -> np.ndarray:
        """The numbers of the samples of the next batch, for ``Dataloader.batch``; moves the position behind it."""
        samples = self._order[self._offset : self._offset + self._batch_size]
        self._offset += self._batch_size
        if self._offset >= self._loader.size:
            self._epoch += 1
            self._offset -= self._loader.size
            self._order = self._permutation()
            samples = np.concatenate([samples, self._order[: self._offset]])
        return samples

    def _permutation(self) -> np.ndarray:
        return np.asarray(jax.random.permutation(jax.random.fold_in(self._key, self._epoch), self._loader.size))
