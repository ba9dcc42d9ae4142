"""Batches of one part of a data set: an endless shuffled sequence to train on, one pass in order to evaluate."""

from collections.abc import Iterator

import jax
import numpy as np

from data_dir.storage import DataError


class Dataloader:
    """The samples of one part of a data set.

    ``data`` (n, L, C) and ``labels`` (n, K) one-hot, or (n, n_outputs) in regression, are kept as float32 numpy arrays.
    ``size`` is n. Raises DataError on other ranks and on counts that differ.
    """

    def __init__(self, data: np.ndarray, labels: np.ndarray):
        self.data = np.asarray(data, dtype=np.float32)
        self.labels = np.asarray(labels, dtype=np.float32)
        if self.data.ndim != 3 or self.labels.ndim != 2:
            raise DataError(
                "data must be (samples, time steps, channels) and labels (samples, outputs), not "
                f"{self.data.shape} and {self.labels.shape}."
            )
        if len(self.data) != len(self.labels):
            raise DataError(f"{len(self.data)} samples but {len(self.labels)} labels.")
        self.size = len(self.data)

    def loop(self, batch_size: int, *, key: jax.Array, position: dict[str, int] | None = None) -> "ShuffledBatches":
        """Endless batches (x, y) of exactly ``batch_size`` samples, every sample once per epoch.

        Epoch e is the permutation drawn from ``fold_in(key, e)``; the epochs follow each other without a gap, so that
        the last samples of one share a batch with the first of the next where ``batch_size`` does not divide n.
        ``position``, taken from another loop's ``.position``, goes on where that loop stood; the batch size may differ.

        Raises DataError if there are no samples, if ``batch_size`` is not in [1, n], or if the position is not one of
        this set.
        """
        return ShuffledBatches(self, batch_size, key, position)

    def loop_epoch(self, batch_size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Batches (x, y) in stored order, every sample once; the last batch may be short.

        Raises DataError, at the call, if there are no samples or ``batch_size`` < 1.
        """
        self._require_samples(batch_size)
        return (
            (self.data[start : start + batch_size], self.labels[start : start + batch_size])
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

    def __next__(self) -> tuple[np.ndarray, np.ndarray]:
        rows = self._order[self._offset : self._offset + self._batch_size]
        self._offset += self._batch_size
        if self._offset >= self._loader.size:
            self._epoch += 1
            self._offset -= self._loader.size
            self._order = self._permutation(self._epoch)
            rows = np.concatenate([rows, self._order[: self._offset]])
        return self._loader.data[rows], self._loader.labels[rows]

    def _permutation(self, epoch: int) -> np.ndarray:
        return np.asarray(jax.random.permutation(jax.random.fold_in(self._key, epoch), self._loader.size))
