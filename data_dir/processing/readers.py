"""The UEA archive's text files, ts and arff, read and checked.

Read are series of equal time steps: after @data one line a series. A message names the row and the cause. (sktime's
readers lower-case a ts file, compare no label with the header, refuse tabs, comments and byte order marks, and report
damage by whatever exception it leads to.)
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from data_dir.storage import DataError


@dataclass(frozen=True)
class RawSeries:
    """The series of one file.

    ``data`` (n, L, C) float32, with NaN for missing values and for the time steps after the end of a series;
    ``lengths`` (n,) counts the steps of each; ``labels`` (n,) are the class names as text, None if they were not asked
    for; ``missing`` counts the missing values within the series; ``header_differs`` says where the counts in the header
    are not those of the series.
    """

    data: np.ndarray
    lengths: np.ndarray
    labels: np.ndarray | None
    missing: int
    header_differs: list[str] = field(default_factory=list)

    @property
    def of_equal_length(self) -> bool:
        """Whether all series have L steps."""
        return bool(np.all(self.lengths == self.data.shape[1]))


@dataclass
class _Header:
    """What a header says: the class names, whether rows end in a label, and the tags of a ts file in small letters."""

    names: list[str] = field(default_factory=list)
    labelled: bool = False
    relational: bool = False
    tags: dict[str, str] = field(default_factory=dict)


def read_raw(path: Path, *, labelled: bool = True) -> RawSeries:
    """Reads one ts or arff file.

    Where all channels of an arff series end in missing values, the series ends before them: that format has no other
    way to say it. Without ``labelled`` the file may have class labels or not, and they are not looked at. Raises
    DataError, naming the file, the row and the cause, if it cannot be parsed, has no series, no labels or a label that
    its header does not list, if channels are missing or of different length, and for infinite values or values that
    float32 cannot hold.
    """
    is_arff = path.suffix == ".arff"
    header, series, labels = _Header(), [], []
    try:
        for row, line in _body(path):
            if row is None:
                (_read_arff_tag if is_arff else _read_ts_tag)(header, line, path)
                continue
            if labelled and not header.names:
                raise DataError(f"{path}: has no class labels; only classification sets are processed.")
            fields, label = (_arff_row if is_arff else _ts_row)(header, line, row, path)
            if header.labelled and not labelled and "," in label:
                raise DataError(
                    f"{path}: series {row} ends in numbers where the header announces a label. If the series have no "
                    "labels, write @classLabel false."
                )
            if not fields:
                raise DataError(f"{path}: series {row} has no channels. Fetch the file again.")
            if series and len(fields) != len(series[0]):
                raise DataError(
                    f"{path}: series {row} has {len(fields)} channels, the first {len(series[0])}. Fetch the file "
                    "again."
                )
            series.append([_values(text) for text in fields])
            labels.append(label)
    except DataError:
        raise
    except (ValueError, OSError) as error:  # Text that is not UTF-8, words where numbers are needed.
        row = f"series {len(series) + 1}: " if series else ""
        raise DataError(f"{path}: cannot be parsed ({row}{error}). Fetch the file again.") from error
    names = {_plain(name): name for name in header.names}
    if len(names) < len(header.names):
        raise DataError(f"{path}: the labels of the header, {header.names}, are not distinct.")
    if labelled:
        unknown = sorted({_plain(label) for label in labels} - set(names))
        if unknown:
            raise DataError(
                f"{path}: label {unknown[0]!r} is not among those of the header, {header.names}. Fetch it again."
            )
    data, lengths = _stacked(series, path)
    if is_arff and data.shape[1]:
        present = ~np.isnan(data).all(axis=2)
        lengths = np.where(present.any(axis=1), data.shape[1] - present[:, ::-1].argmax(axis=1), 0)
        data = data[:, : lengths.max()]
    if lengths.min() == 0:
        raise DataError(f"{path}: series {int(lengths.argmin()) + 1} has no values. Fetch the file again.")
    infinite = int(np.isinf(data).sum())
    if infinite:
        raise DataError(f"{path}: {infinite} values are infinite or beyond the range of float32; that is not handled.")
    missing = int(np.isnan(data).sum() - data.shape[2] * (data.shape[1] - lengths).sum())
    return RawSeries(
        data,
        lengths,
        np.array([names[_plain(label)] for label in labels]) if labelled else None,
        missing,
        list(_header_differs(header, data, lengths)),
    )


def _plain(label: str) -> str:
    return label.strip().strip("'\"").lower()


def _values(text: str) -> np.ndarray:
    """The numbers of a channel; NaN for those that are missing."""
    text = text.strip()
    return np.array([float("nan" if value.strip() == "?" else value) for value in text.split(",")] if text else [])


def _stacked(series: list[list[np.ndarray]], path: Path) -> tuple[np.ndarray, np.ndarray]:
    """The channels of each series as an array (n, L, C), NaN after the end of a series, and the lengths (n,)."""
    lengths = np.array([[len(channel) for channel in channels] for channels in series])
    uneven = np.flatnonzero(np.any(lengths != lengths[:, :1], axis=1))
    if len(uneven):
        row = int(uneven[0])
        raise DataError(
            f"{path}: the channels of series {row + 1} have {lengths[row].min()} to {lengths[row].max()} time "
            "steps. Fetch the file again."
        )
    data = np.full((len(series), lengths.max(), lengths.shape[1]), np.nan, dtype=np.float32)
    with np.errstate(over="ignore"):  # What float32 cannot hold becomes infinite, and is reported.
        for row, channels in enumerate(series):
            for channel, values in enumerate(channels):
                data[row, : len(values), channel] = values
    return data, lengths[:, 0]


def _body(path: Path) -> Iterator[tuple[int | None, str]]:
    """The lines that are not empty or comments: those of the header with None, those after @data counted from 1."""
    row = None
    with open(path, encoding="utf-8-sig") as file:  # The archive's own files have no byte order mark, others do.
        for line in file:
            line = line.strip()
            if not line or line[0] in "#%":
                continue
            if row is None:
                if line.lower().startswith("@data"):
                    row = 0
                else:
                    yield None, line
            else:
                row += 1
                yield row, line
    if row is None:
        raise DataError(f"{path}: cannot be parsed (it has no line @data). Fetch the file again.")
    if row == 0:
        raise DataError(f"{path}: has a header but no series. Fetch the file again.")


def _read_ts_tag(header: _Header, line: str, path: Path) -> None:
    tag, *words = line.split()
    tag = tag.lower()
    value = words[0].lower() if words else ""
    header.tags[tag] = value
    if tag == "@classlabel" and value == "true":
        header.names, header.labelled = words[1:], True
    elif tag == "@targetlabel" and value == "true":
        header.labelled = True
    elif tag == "@timestamps" and value == "true":
        raise DataError(f"{path}: has time stamps; only series of equal time steps are read.")


def _read_arff_tag(header: _Header, line: str, path: Path) -> None:
    lowered = line.lower()
    if lowered.startswith("@attribute"):
        header.relational |= "relational" in lowered
        if line.endswith("}") and "{" in line:
            names = line[line.index("{") + 1 : -1].split(",")
            header.names, header.labelled = [name.strip().strip("'\"") for name in names], True


def _ts_row(header: _Header, line: str, row: int, path: Path) -> tuple[list[str], str]:
    """The text of every channel of a series, and its label, "" if the file has none."""
    fields = line.split(":")
    return (fields[:-1], fields[-1].strip()) if header.labelled else (fields, "")


def _arff_row(header: _Header, line: str, row: int, path: Path) -> tuple[list[str], str]:
    """As ``_ts_row``: the channels stand between quotes, with \\n between them."""
    separator = "'," if header.relational else ","
    if not header.labelled:
        return line.replace("'", "").split("\\n"), ""
    channels, found, label = line.rpartition(separator)
    if not found or not label.strip():
        raise DataError(f"{path}: series {row} has no label. Fetch the file again.")
    return channels.replace("'", "").split("\\n"), label.strip()


def _header_differs(header: _Header, data: np.ndarray, lengths: np.ndarray) -> Iterator[str]:
    """Where the counts of a ts header are not those of the series."""
    steps = str(lengths.min()) if lengths.min() == lengths.max() else f"{lengths.min()} to {lengths.max()}"
    for tag, said, found, what in (
        ("@dimensions", "dimensions", str(data.shape[2]), "channels"),
        ("@dimension", "dimension", str(data.shape[2]), "channels"),
        ("@serieslength", "seriesLength", steps, "time steps"),
    ):
        value = header.tags.get(tag, found)
        if value not in (found, "0", ""):
            yield f"the header says {said} {value}, the series have {found} {what}"
    if header.tags.get("@univariate") == "true" and data.shape[2] > 1:
        yield f"the header says univariate true, the series have {data.shape[2]} channels"
