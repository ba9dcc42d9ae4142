"""The UEA archive's text files, ts and arff, read and checked.

After @data each line is one series of equal time steps. Messages name the row and the cause. sktime's readers are not
used: they change the case of labels, do not compare labels with the header, refuse tabs, comments and byte order marks,
and raise exceptions that do not name the file or the row.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from data_dir.storage import DataError

_AGAIN = "Fetch the file again."


@dataclass(frozen=True)
class RawSeries:
    """The series of one file.

    ``data`` (n, L, C) float32, with NaN for missing values and for the time steps after the end of a series;
    ``lengths`` (n,) counts the steps of each; ``labels`` (n,) are the class names as text, (0,) if they were not asked
    for; ``missing`` counts the missing values within the series; ``header_differs`` are sentences about wrong counts in
    the header.
    """

    data: np.ndarray
    lengths: np.ndarray
    labels: np.ndarray
    missing: int
    header_differs: list[str] = field(default_factory=list)

    @property
    def of_equal_length(self) -> bool:
        """Whether all series have L steps."""
        return bool(np.all(self.lengths == self.data.shape[1]))


@dataclass
class _Header:
    """The class names, whether rows end in a label, whether an arff is relational, and the tags in small letters."""

    names: list[str] = field(default_factory=list)
    labelled: bool = False
    relational: bool = False
    tags: dict[str, str] = field(default_factory=dict)

    def add(self, line: str) -> None:
        """Reads one line of the header, of either format."""
        tag, *words = line.split()
        tag, value = tag.lower(), words[0].lower() if words else ""
        self.tags[tag] = value
        if tag == "@timestamps" and value == "true":
            raise DataError("has time stamps; only series of equal time steps are read.")
        if tag in ("@classlabel", "@targetlabel") and value == "true":
            self.labelled = True
            self.names = words[1:] if tag == "@classlabel" else []
        if tag == "@attribute":
            self.relational |= "relational" in line.lower()
            if line.endswith("}") and "{" in line:
                names = line[line.index("{") + 1 : -1].split(",")
                self.names, self.labelled = [name.strip().strip("'\"") for name in names], True


def read_raw(path: Path, *, labelled: bool = True) -> RawSeries:
    """Reads one ts or arff file.

    An arff series ends before the last missing values of all its channels: the format has no other way to say it.
    Without ``labelled`` the file may have class labels, which are ignored. Raises DataError, naming the file, the row
    and the cause, if it cannot be parsed, has no series, no labels or a label that its header does not list, if
    channels are missing or of different length, and for infinite values or values that float32 cannot hold.
    """
    is_arff = path.suffix == ".arff"
    header, series, labels = _Header(), [], []
    try:
        for row, line in _body(path):
            if row == 0:
                header.add(line)
                continue
            if labelled and not header.names:
                raise DataError("has no class labels; only classification sets are processed.")
            fields, label = (_arff_row if is_arff else _ts_row)(header, line, row)
            if header.labelled and not labelled and "," in label:
                raise DataError(
                    f"series {row} ends in numbers where the header announces a label. If the series have no labels, "
                    "write @classLabel false."
                )
            if not fields:
                raise DataError(f"series {row} has no channels. {_AGAIN}")
            if series and len(fields) != len(series[0]):
                raise DataError(f"series {row} has {len(fields)} channels, the first {len(series[0])}. {_AGAIN}")
            series.append([_values(text) for text in fields])
            labels.append(label)
        data, lengths = _stacked(series)
        if is_arff:
            data, lengths = without_end(data)
        missing = _checked(data, lengths)
        names = _class_names(labels, header.names) if labelled else np.empty(0, dtype=str)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    except (ValueError, OSError) as error:  # Text that is not UTF-8, words where numbers are needed.
        row = f"series {len(series) + 1}: " if series else ""
        raise DataError(f"{path}: cannot be parsed ({row}{error}). {_AGAIN}") from error
    return RawSeries(data, lengths, names, missing, list(_header_differs(header, data, lengths)))


def _body(path: Path) -> Iterator[tuple[int, str]]:
    """The lines that are not empty or comments: the header's with 0, those after @data counted from 1."""
    row = None
    with open(path, encoding="utf-8-sig") as file:  # Some programs write a byte order mark.
        for line in map(str.strip, file):
            if not line or line[0] in "#%":
                continue
            if row is not None:
                row += 1
                yield row, line
            elif line.lower().startswith("@data"):
                row = 0
            else:
                yield 0, line
    if not row:
        raise DataError(
            f"has a header but no series. {_AGAIN}" if row == 0 else f"cannot be parsed (no line @data). {_AGAIN}"
        )


def _ts_row(header: _Header, line: str, row: int) -> tuple[list[str], str]:
    """The text of every channel of a series, and its label, "" if the file has none."""
    fields = line.split(":")
    return (fields[:-1], fields[-1].strip()) if header.labelled else (fields, "")


def _arff_row(header: _Header, line: str, row: int) -> tuple[list[str], str]:
    """As ``_ts_row``: the channels stand between quotes, with \\n between them."""
    label = ""
    if header.labelled:
        line, comma, label = line.rpartition("'," if header.relational else ",")
        if not comma or not label.strip():
            raise DataError(f"series {row} has no label. {_AGAIN}")
    return line.replace("'", "").split("\\n"), label.strip()


def _values(text: str) -> np.ndarray:
    """The numbers of a channel; NaN for missing ones."""
    text = text.strip()
    return np.array([float("nan" if value.strip() == "?" else value) for value in text.split(",")] if text else [])


def _class_names(labels: list[str], names: list[str]) -> np.ndarray:
    """The labels as the header spells them."""
    spelled = {_plain(name): name for name in names}
    if len(spelled) < len(names):
        raise DataError(f"the labels of the header, {names}, are not distinct.")
    unknown = sorted({_plain(label) for label in labels} - set(spelled))
    if unknown:
        raise DataError(f"label {unknown[0]!r} is not among the labels of the header, {names}. {_AGAIN}")
    return np.array([spelled[_plain(label)] for label in labels])


def _plain(label: str) -> str:
    return label.strip().strip("'\"").lower()


def _stacked(series: list[list[np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """The channels of each series as an array (n, L, C), NaN after the end of a series, and the lengths (n,)."""
    lengths = np.array([[len(channel) for channel in channels] for channels in series])
    uneven = np.flatnonzero(np.any(lengths != lengths[:, :1], axis=1))
    if len(uneven):
        low, high = lengths[uneven[0]].min(), lengths[uneven[0]].max()
        raise DataError(f"the channels of series {uneven[0] + 1} have {low} to {high} time steps. {_AGAIN}")
    data = np.full((len(series), lengths.max(), lengths.shape[1]), np.nan, dtype=np.float32)
    with np.errstate(over="ignore"):  # Values beyond float32 become infinite, which is reported later.
        for row, channels in enumerate(series):
            for channel, values in enumerate(channels):
                data[row, : len(values), channel] = values
    return data, lengths[:, 0]


def without_end(data: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The series (n, L, C) without the missing values at the end of all channels, and their lengths (n,)."""
    present = ~np.isnan(data).all(axis=2)
    steps = np.arange(1, data.shape[1] + 1)
    lengths = (present * steps).max(axis=1, initial=0)
    return data[:, : lengths.max()], lengths


def _checked(data: np.ndarray, lengths: np.ndarray) -> int:
    """The number of missing values within the series."""
    if lengths.min() == 0:
        raise DataError(f"series {int(lengths.argmin()) + 1} has no values. {_AGAIN}")
    infinite = int(np.isinf(data).sum())
    if infinite:
        raise DataError(f"{infinite} values are infinite or beyond the range of float32; that is not handled.")
    return int(np.isnan(data).sum() - data.shape[2] * (data.shape[1] - lengths).sum())


def _header_differs(header: _Header, data: np.ndarray, lengths: np.ndarray) -> Iterator[str]:
    """Sentences about counts in a ts header that differ from the series."""
    steps = str(lengths.min()) if lengths.min() == lengths.max() else f"{lengths.min()} to {lengths.max()}"
    channels = str(data.shape[2])
    for name, count, what in (
        ("dimensions", channels, "channels"),
        ("dimension", channels, "channels"),
        ("seriesLength", steps, "time steps"),
    ):
        value = header.tags.get(f"@{name.lower()}", count)
        if value not in (count, "0", ""):
            yield f"the header says {name} {value}, the series have {count} {what}"
    if header.tags.get("@univariate") == "true" and data.shape[2] > 1:
        yield f"the header says univariate true, the series have {channels} channels"
