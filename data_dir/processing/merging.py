"""From the raw series of a train and a test file to the rows that are stored."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from data_dir.processing.readers import RawSeries
from data_dir.storage import DataError

REFUSE, PAD, IMPUTE = "refuse", "pad", "impute"


@dataclass(frozen=True)
class MergedSet:
    """The rows of a set.

    ``data`` (n, L, C) float32, all finite; ``lengths`` (n,), the steps of a series before its padding with zeros;
    ``classes`` (n,) index ``class_names``. ``original`` holds the rows of the train and of the test file.
    ``duplicates`` counts the rows left out, ``in_both_files`` the series that occur in both files, ``missing`` the
    missing values; ``conflicts`` lists the class names of each series that has several.
    """

    data: np.ndarray
    lengths: np.ndarray
    classes: np.ndarray
    class_names: list[str]
    original: tuple[np.ndarray, np.ndarray]
    duplicates: int
    in_both_files: int
    conflicts: list[list[str]]
    missing: int

    @property
    def mask(self) -> np.ndarray:
        """(n, L) bool: which time steps belong to the series."""
        return np.arange(self.data.shape[1]) < self.lengths[:, None]


def merge(train: RawSeries, test: RawSeries, *, unequal_length: str = REFUSE, missing: str = REFUSE) -> MergedSet:
    """Puts the rows of both files together, drops repeated rows, and sorts them as ``numpy.unique(axis=0)`` does.

    Of equal series the first stays, with its label; a series in both files counts as train. Series of unequal length
    are refused or padded with zeros at the end. Missing values are refused or imputed: by linear interpolation within
    the channel, and by the nearest value at its ends. Raises DataError if anything is refused, if a channel has no
    value at all, and if there are fewer than two classes. Classes are numbered in the order of their names.
    """
    rows, lengths, n_missing = join((train, test), unequal_length=unequal_length, missing=missing)
    names, classes = np.unique(np.concatenate([train.labels, test.labels]), return_inverse=True)
    class_names = names.tolist()
    if len(class_names) < 2:
        raise DataError(f"all series have the label {class_names[0]!r}; a set needs two classes at least.")

    first, in_train, in_test, conflicts = compare_rows(rows, len(train.data), classes, class_names)
    merged = MergedSet(
        data=rows[first],
        lengths=lengths[first],
        classes=classes[first],
        class_names=class_names,
        original=(np.flatnonzero(in_train), np.flatnonzero(~in_train)),
        duplicates=len(rows) - len(first),
        in_both_files=int((in_train & in_test).sum()),
        conflicts=conflicts,
        missing=n_missing,
    )
    if lengths.min() < lengths.max():
        merged.data[~merged.mask] = 0
    return merged


def compare_rows(
    rows: np.ndarray, n_train: int, classes: np.ndarray, class_names: list[str]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[list[str]]]:
    """Which of the rows are equal; the first ``n_train`` are of the train file.

    Returns the first of each distinct row, in their lexicographic order; for each distinct row, whether the train file
    and whether the test file has it; and the class names of each distinct row that has several.
    """
    first, inverse = sorted_unique_rows(rows)
    in_train = np.bincount(inverse[:n_train], minlength=len(first)) > 0
    in_test = np.bincount(inverse[n_train:], minlength=len(first)) > 0
    seen = np.zeros((len(first), len(class_names)), dtype=bool)
    seen[inverse, classes] = True
    conflicts = [[class_names[column] for column in np.flatnonzero(row)] for row in seen if row.sum() > 1]
    return first, in_train, in_test, conflicts


def join(
    parts: Sequence[RawSeries], *, unequal_length: str = REFUSE, missing: str = REFUSE
) -> tuple[np.ndarray, np.ndarray, int]:
    """The rows of a train and, if there is one, a test file: (n, L, C), NaN after the end of a series.

    Returns them with their lengths (n,), and the number of missing values that were imputed. Raises DataError as
    ``merge`` does.
    """
    if parts[0].data.shape[2] != parts[-1].data.shape[2]:
        train, test = (part.data.shape[2] for part in parts)
        raise DataError(f"series of {test} channels, but the train file has {train}.")
    lengths = np.concatenate([part.lengths for part in parts])
    if lengths.min() < lengths.max() and unequal_length != PAD:
        ranges = [f"{part.lengths.min()} to {part.lengths.max()}" for part in parts]
        where = f"{ranges[0]} time steps"
        if len(parts) == 2:
            where += f" in the train file, {ranges[1]} in the test file"
        raise DataError(f"series of unequal length: {where}. --unequal_length pad appends zeros.")
    rows = np.full((len(lengths), lengths.max(), parts[0].data.shape[2]), np.nan, dtype=np.float32)
    start = 0
    for part in parts:
        rows[start : start + len(part.data), : part.data.shape[1]] = part.data
        start += len(part.data)
    n_missing = sum(part.missing for part in parts)
    if n_missing and missing != IMPUTE:
        raise DataError(f"missing values: {n_missing}. --missing impute interpolates them.")
    if n_missing:
        _impute(rows, lengths)
    return rows, lengths, n_missing


def _impute(rows: np.ndarray, lengths: np.ndarray) -> None:
    """Fills the missing values within the series of ``rows`` (n, L, C), in place."""
    for row, channel in np.argwhere(np.isnan(rows).any(axis=1)):
        values = rows[row, : lengths[row], channel]
        present = np.flatnonzero(~np.isnan(values))
        if not len(present):
            raise DataError(f"series {row + 1} of both files has no value in channel {channel} to interpolate from.")
        values[:] = np.interp(np.arange(len(values)), present, values[present])


def sorted_unique_rows(data: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """``return_index`` and ``return_inverse`` of ``numpy.unique(axis=0)`` for float32 data, with fewer copies.

    They are the position of the first occurrence of each distinct row, in the lexicographic order of the values, and
    for every row the number of its distinct row. NaN is equal to itself and larger than any number.
    """
    # The bits of a float, its sign bit flipped if positive and all flipped if negative, sort as the float does; written
    # most significant byte first, so do the bytes of a whole row. Adding 0 turns -0 into 0.
    keys = []
    for row in data.reshape(len(data), -1):
        bits = (row.astype(np.float32, copy=False) + np.float32(0)).view(np.uint32)
        bits = np.where(np.isnan(row), np.uint32(0x7FC00000), bits)
        negative = bits >> 31 == 1
        keys.append(np.where(negative, ~bits, bits | np.uint32(1 << 31)).astype(">u4").tobytes())
    first, inverse = [], np.empty(len(keys), dtype=np.int64)
    for row in sorted(range(len(keys)), key=keys.__getitem__):  # stable: equal rows stay in their order
        if not first or keys[row] != keys[first[-1]]:
            first.append(row)
        inverse[row] = len(first) - 1
    return np.asarray(first, dtype=np.int64), inverse
