"""Batches of one part of a data set: an endless shuffled sequence to train on, one pass in order to evaluate."""

from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from data_dir.storage import DataError

Array = np.ndarray | jax.Array


class Dataloader:
    """The samples of one part of a data set.

    Served are ``rows`` of ``data`` (N, L, C) and ``labels`` (N, K) one-hot, or (N, n_outputs) in regression; all of
    them in their order if ``rows`` is None. ``standardisation`` maps the float32 samples of a batch. ``time`` puts the
    channel t/L, t = 0..L-1, in front of the others. ``label_unit`` is what a difference of 1 between labels stands for
    in the files of a regression; metrics are given in that unit. Batches are float32. The arrays are kept as they are,
    so that several loaders share them and memory-mapped ones are read batch by batch. With ``inmemory`` the samples are
    copied to the device once, and batches are jax arrays that are put together there.

    ``size`` counts the samples. Raises DataError on other ranks, on counts that differ, and on rows that are not there.
    """

    def __init__(
        self,
        data: np.ndarray,
        labels: np.ndarray,
        *,
        rows: np.ndarray | None = None,
        time: bool = False,
        inmemory: bool = False,
        standardisation: Callable[[np.ndarray], np.ndarray] | None = None,
        label_unit: float = 1.0,
    ):
        data, labels = np.asarray(data, dtype=np.float32), np.asarray(labels, dtype=np.float32)
        if data.ndim != 3 or labels.ndim != 2:
            raise DataError(
                "data must be (samples, time steps, channels) and labels (samples, outputs), not "
                f"{data.shape} and {labels.shape}."
            )
        if len(data) != len(labels):
            raise DataError(f"{len(data)} samples but {len(labels)} labels.")
        if rows is not None and len(rows) and not 0 <= np.min(rows) <= np.max(rows) < len(data):
            raise DataError(f"rows {np.min(rows)} to {np.max(rows)} of {len(data)} samples.")
        self._data, self._labels, self._time = data, labels, time
        self._standardisation, self.label_unit = standardisation, label_unit
        self._rows = np.arange(len(data)) if rows is None else np.asarray(rows, dtype=np.int64)
        self._served_whole = rows is None
        self._device = None
        if inmemory:
            self._device = tuple(jnp.asarray(array) for array in self._gather(self._rows))
        self.size = len(self._rows)

    @property
    def data(self) -> Array:
        """All samples (n, L, C), as batches serve them. A new copy on the host unless they are served as stored."""
        if self._device is not None:
            return self._device[0]
        as_stored = self._served_whole and not self._time and self._standardisation is None
        return self._data if as_stored else self._gather(self._rows)[0]

    @property
    def labels(self) -> Array:
        """All labels (n, K) or (n, n_outputs). A new copy on the host if there are ``rows``."""
        if self._device is not None:
            return self._device[1]
        return self._labels if self._served_whole else self._labels[self._rows]

    @property
    def channels(self) -> int:
        """The channels C of the stored samples, without that of time."""
        return self._data.shape[2]

    @property
    def rows(self) -> np.ndarray:
        """The row of each sample (n,) in the arrays that the loader was made of."""
        return self._rows

    def batch(self, samples: np.ndarray) -> tuple[Array, Array]:
        """Samples by their numbers in this part, 0..n-1, and their labels."""
        if self._device is not None:
            return self._device[0][samples], self._device[1][samples]
        return self._gather(self._rows[samples])

    def _gather(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        _, length, channels = self._data.shape
        samples = self._data[rows]
        if self._standardisation is not None:
            samples = self._standardisation(samples)
        if not self._time:
            return samples, self._labels[rows]
        data = np.empty((len(rows), length, channels + 1), dtype=np.float32)
        data[:, :, 0] = np.arange(length) / length
        data[:, :, 1:] = samples
        return data, self._labels[rows]

    def loop(self, batch_size: int, *, key: jax.Array, position: dict[str, int] | None = None) -> "ShuffledBatches":
        """Endless batches (x, y) of exactly ``batch_size`` samples, every sample once per epoch.

        Epoch e is the permutation drawn from ``fold_in(key, e)``; the epochs follow each other without a gap, so that
        the last samples of one share a batch with the first of the next where ``batch_size`` does not divide n.
        ``position``, taken from another loop's ``.position``, goes on where that loop stood; the batch size may differ.

        Raises DataError if there are no samples, if ``batch_size`` is not in [1, n], or if the position is not one of
        this set.
        """
        return ShuffledBatches(self, batch_size, key, position)

    def position(self, drawn: int) -> dict[str, int]:
        """The ``.position`` of a ``loop`` that began at the start, once ``drawn`` samples have been drawn from it.

        Raises DataError if there are no samples.
        """
        self._require_samples(batch_size=1)
        return {"epoch": drawn // self.size, "offset": drawn % self.size}

    def loop_epoch(self, batch_size: int) -> Iterator[tuple[Array, Array]]:
        """Batches (x, y) in stored order, every sample once; the last batch may be short.

        Raises DataError, at the call, if there are no samples or ``batch_size`` < 1.
        """
        self._require_samples(batch_size)
        return (
            self.batch(np.arange(start, min(start + batch_size, self.size)))
            for start in range(0, self.size, batch_size)
        )

    def _require_samples(self, batch_size: int) -> None:
        if self.size == 0:
            raise DataError("this part of the data set is empty: there are no samples to make batches of.")
        if batch_size < 1:
            raise DataError(f"batch_size {batch_size}: must be at least 1.")


class ShuffledBatches:
    """The iterator of ``Dataloader.loop``."""

    def __init__(self, loader: Dataloader, batch_size: int, key: jax.Array, position: dict[str, int] | None):
        loader._require_samples(batch_size)
        if batch_size > loader.size:
            raise DataError(
                f"batch_size {batch_size}: must not exceed the {loader.size} samples of this part of the data set."
            )
        self._loader = loader
        self._batch_size = batch_size
        self._key = key
        position = {"epoch": 0, "offset": 0} if position is None else position
        self._epoch, self._offset = position.get("epoch", -1), position.get("offset", -1)
        if self._epoch < 0 or not 0 <= self._offset < loader.size:
            raise DataError(f"position {position}: not one of a loop over {loader.size} samples.")
        self._order = self._permutation(self._epoch)

    @property
    def position(self) -> dict[str, int]:
        """What has been drawn: {"epoch": whole epochs, "offset": samples of the current one}. Fits into JSON."""
        return {"epoch": self._epoch, "offset": self._offset}

    def __iter__(self) -> "ShuffledBatches":
        return self

    def __next__(self) -> tuple[Array, Array]:
        return self._loader.batch(self.draw())

    def draw(self) -> np.ndarray:
        """The numbers of the samples of the next batch, for ``Dataloader.batch``; the loop goes on behind it."""
        samples = self._order[self._offset : self._offset + self._batch_size]
        self._offset += self._batch_size
        if self._offset >= self._loader.size:
            self._epoch += 1
            self._offset -= self._loader.size
            self._order = self._permutation(self._epoch)
            samples = np.concatenate([samples, self._order[: self._offset]])
        return samples

    def _permutation(self, epoch: int) -> np.ndarray:
        return np.asarray(jax.random.permutation(jax.random.fold_in(self._key, epoch), self._loader.size))
