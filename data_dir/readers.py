"""The UEA archive's text files, ts and arff, read by sktime and checked.

sktime's readers lower-case a ts file, compare no label with the header, let an arff row have any number of channels,
and report damage by whatever exception it leads to. Here every file is looked through first, so that a message can
name the row and the cause.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_dir.storage import DataError


@dataclass(frozen=True)
class RawSeries:
    """The series of one file.

    ``data`` (n, L, C) float32, with NaN for missing values and for the time steps after the end of a series;
    ``lengths`` (n,) counts the steps of each; ``labels`` (n,) are the class names as text; ``missing`` counts the
    missing values within the series.
    """

    data: np.ndarray
    lengths: np.ndarray
    labels: np.ndarray
    missing: int

    @property
    def of_equal_length(self) -> bool:
        """Whether all series have L steps."""
        return bool(np.all(self.lengths == self.data.shape[1]))


def read_raw(path: Path) -> RawSeries:
    """Reads one ts or arff file.

    Where all channels of an arff series end in missing values, the series ends before them: that format has no other
    way to say it. Raises DataError, naming the file, the row and the cause, if it cannot be parsed, has no series, no
    labels or a label that its header does not list, if channels are missing or of different length, and for infinite
    values or values that float32 cannot hold.
    """
    # sktime takes seconds to import, and only files that are read for the first time need it.
    from sktime.datasets import load_from_arff_to_dataframe, load_from_tsfile_to_dataframe

    is_arff = path.suffix == ".arff"
    read = load_from_arff_to_dataframe if is_arff else load_from_tsfile_to_dataframe
    try:
        declared = (_checked_arff if is_arff else _checked_ts)(path)
        frame, labels = read(str(path))
    except DataError:
        raise
    except Exception as error:  # The readers fail in any way on damaged text.
        raise DataError(f"{path}: cannot be parsed ({error}). Fetch the file again.") from error
    names = {_plain(label): label for label in declared}
    unknown = sorted({_plain(str(label)) for label in labels} - set(names))
    if unknown:
        raise DataError(f"{path}: label {unknown[0]!r} is not among those of the header, {declared}. Fetch it again.")
    labels = np.array([names[_plain(str(label))] for label in labels])
    data, lengths = _stacked(frame, path)
    if is_arff:
        present = ~np.isnan(data).all(axis=2)
        lengths = np.where(present.any(axis=1), data.shape[1] - present[:, ::-1].argmax(axis=1), 0)
        data = data[:, : lengths.max()]
    if lengths.min() == 0:
        raise DataError(f"{path}: series {int(lengths.argmin()) + 1} has no values. Fetch the file again.")
    infinite = int(np.isinf(data).sum())
    if infinite:
        raise DataError(f"{path}: {infinite} values are infinite or beyond the range of float32; that is not handled.")
    missing = int(np.isnan(data).sum() - data.shape[2] * (data.shape[1] - lengths).sum())
    return RawSeries(data, lengths, labels, missing)


def _plain(label: str) -> str:
    return label.strip().strip("'\"").lower()


def _stacked(frame, path: Path) -> tuple[np.ndarray, np.ndarray]:
    """sktime's frame of series as an array (n, L, C), NaN after the end of a series, and the lengths (n,)."""
    columns = [frame[column] for column in frame.columns]
    lengths = np.array([[len(series) for series in column] for column in columns])
    uneven = np.flatnonzero(np.any(lengths != lengths[0], axis=0))
    if len(uneven):
        row = int(uneven[0])
        raise DataError(
            f"{path}: the channels of series {row + 1} have {lengths[:, row].min()} to {lengths[:, row].max()} time "
            "steps. Fetch the file again."
        )
    data = np.full((len(frame), lengths.max(), len(columns)), np.nan, dtype=np.float32)
    with np.errstate(over="ignore"):  # What float32 cannot hold becomes infinite, and is reported.
        for channel, column in enumerate(columns):
            for row, series in enumerate(column):
                data[row, : len(series), channel] = series.to_numpy()
    return data, lengths[0]


def _body(path: Path) -> Iterator[tuple[int | None, str]]:
    """The lines that are not empty: those of the header with None, those after @data counted from 1."""
    row = None
    with open(path, encoding="utf-8") as file:
        for line in file:
            line = line.strip()
            if not line or line[0] in "#%":
                continue
            if row is not None:
                row += 1
            yield row, line
            if row is None and line.lower().startswith("@data"):
                row = 0
    if row == 0:
        raise DataError(f"{path}: has a header but no series. Fetch the file again.")


def _checked_ts(path: Path) -> list[str]:
    """Looks through a ts file and returns the class names of its header."""
    labels: list[str] = []
    channels = None
    for row, line in _body(path):
        words = line.split()
        if row is None:
            if words[0].lower() == "@classlabel" and len(words) > 1 and words[1].lower() == "true":
                labels = words[2:]
            elif words[0].lower() == "@timestamps" and words[-1].lower() == "true":
                raise DataError(f"{path}: has time stamps; only series of equal time steps are read.")
            continue
        if not labels:
            raise DataError(f"{path}: has no class labels; only classification sets are processed.")
        found = line.count(":")
        channels = found if channels is None else channels
        if found != channels or not found:
            raise DataError(f"{path}: series {row} has {found} channels, the first {channels}. Fetch the file again.")
    return _distinct(labels, path)


def _checked_arff(path: Path) -> list[str]:
    """Looks through an arff file and returns the class names of its header."""
    labels: list[str] = []
    relational, channels = False, None
    for row, line in _body(path):
        if row is None:
            lowered = line.lower()
            relational |= lowered.startswith("@attribute") and "relational" in lowered
            if lowered.startswith("@attribute") and line.endswith("}"):
                labels = [label.strip().strip("'\"") for label in line[line.index("{") + 1 : -1].split(",")]
            continue
        if not labels:
            raise DataError(f"{path}: has no class labels; only classification sets are processed.")
        series, quote, label = line.rpartition("',") if relational else line.rpartition(",")
        if not quote or not label.strip():
            raise DataError(f"{path}: series {row} has no label. Fetch the file again.")
        found = series.count("\\n") + 1
        channels = found if channels is None else channels
        if found != channels:
            raise DataError(f"{path}: series {row} has {found} channels, the first {channels}. Fetch the file again.")
    return _distinct(labels, path)


def _distinct(labels: list[str], path: Path) -> list[str]:
    if len({_plain(label) for label in labels}) < len(labels):
        raise DataError(f"{path}: the labels of the header, {labels}, are not distinct.")
    return labels
