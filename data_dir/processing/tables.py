"""Tables as series: with a row for each series (wide), or with a row for each time step of a series (long).

pandas is imported only when a table is read.
"""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pydantic import TypeAdapter, ValidationError

from data_dir.names import listed
from data_dir.processing.long import Rows, rows_of, shown
from data_dir.storage import DataError

Frame = Any  # a DataFrame or a Series of pandas
SUFFIXES = (".csv", ".tsv", ".parquet")
# Of a csv file, as they are written: pandas renames a name that occurs twice, and makes an index of surplus fields.
_FIRST_LINES: dict[str, Any] = {"header": None, "nrows": 2, "dtype": str, "keep_default_na": False}


@dataclass(frozen=True)
class Columns:
    """Which columns of a table are what. A table with the columns ``id`` and ``time`` is long.

    All columns but these are channels (long) or the time steps of the only channel (wide), in the order of the table.
    ``channels`` are their names, once a table is read.
    """

    labels: tuple[str, ...] = ("label",)
    id: str = "id"
    time: str = "time"
    ignored: tuple[str, ...] = ()
    channels: tuple[str, ...] = ()
    long: bool = False

    def record(self) -> dict[str, Any]:
        """The fields as JSON keeps them."""
        return TypeAdapter(Columns).dump_python(self, mode="json")

    @classmethod
    def of_record(cls, record: Any) -> "Columns":
        """The inverse of ``record``. Raises DataError if the record is damaged."""
        try:
            columns = TypeAdapter(cls).validate_python(record)
        except ValidationError:
            columns = cls()
        if not columns.channels:
            raise DataError("the names of the columns of its table are damaged.")
        return columns


class Table(NamedTuple):
    """The series of a table, (L, C) each, in the order in which they begin in the table.

    ``labels`` are (n,), (n, m) for m label columns, or (n, L, m) if there is a label for each step; None without
    labels. ``ids`` name the series; None for a wide table without that column. ``columns`` holds the names of the
    channels.
    """

    series: list[np.ndarray]
    labels: np.ndarray | None
    ids: list | None
    columns: Columns


def is_table(value: Any) -> bool:
    """Whether this is a DataFrame of pandas."""
    return hasattr(value, "columns") and hasattr(value, "iloc")


def read_table(path: Path) -> Frame:
    """The table in a csv, tsv or parquet file, its columns named by texts. Raises DataError, naming the file."""
    import pandas

    if not path.is_file():
        raise DataError(f"{path}: no such file.")
    try:
        if path.suffix == ".parquet":
            return pandas.read_parquet(path)
        options: dict[str, Any] = {"sep": "\t" if path.suffix == ".tsv" else ",", "encoding": "utf-8-sig"}
        first = pandas.read_csv(path, **_FIRST_LINES, **options)
        other = next((mark for mark in ";\t" if mark in first.iloc[0, 0]), None)
        if other and first.shape[1] == 1:
            options["sep"] = other
            first = pandas.read_csv(path, **_FIRST_LINES, **options)
        _refuse_as_names(first.iloc[0].tolist())
        return pandas.read_csv(path, **options)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    except ImportError as error:
        raise DataError(
            f"{path}: pandas needs another package for parquet files. Install it, pip install pyarrow, or save the "
            "table as csv."
        ) from error
    except (ValueError, OSError) as error:  # also pandas' errors of parsing, and text that is not UTF-8
        raise DataError(f"{path}: cannot be read as a table ({error}).") from error


def table_of(frame: Frame, columns: Columns, *, labelled: bool = True, by_step: bool = False) -> Table:
    """The series and labels of a table. Columns that ``columns.channels`` names are taken in that order.

    ``labelled`` reads the label columns; otherwise they may be missing. ``by_step`` takes one label for each row of a
    long table. Rows in messages count from 0, without the header. Raises DataError for missing columns and values that
    are no numbers; in a long table for rows without id or time, for times that occur twice or are missing, and for
    labels that change within a series.
    """
    frame = _named(frame)
    names = list(frame.columns)
    keys = {columns.id, columns.time}
    if columns.channels:
        long = columns.long
        new = [name for name in names if name not in {*columns.channels, *columns.labels, *columns.ignored, *keys}]
        if new:
            raise DataError(
                f"the table that was imported has no column {listed(map(repr, new))}. Its channels are "
                f"{listed(columns.channels)}. Leave the other columns out."
            )
    else:
        long = keys <= {*names} - {*columns.ignored}
        if not long:
            _require_wide(names, columns)
    wanted = (*columns.channels, *((columns.id, columns.time) if long else ()), *(columns.labels if labelled else ()))
    for name in wanted:
        if name not in names:
            raise DataError(f"no column {name!r}; the columns are {listed(names)}.{_way_out(name, columns)}")
    others = [name for name in names if name not in {*columns.labels, *columns.ignored, *keys}]
    channels = list(columns.channels) or others
    if not channels:
        raise DataError(f"no columns of values are left; the columns are {listed(names)}.")
    values = np.stack([_numbers(frame[name], name) for name in channels], axis=1)
    if not columns.channels:
        _refuse_row_numbers(values, channels, "channel")
    rows = rows_of(frame, columns.id, columns.time) if long else None
    labels = _labels(frame, columns, rows, by_step) if labelled else None
    columns = replace(columns, channels=tuple(channels), long=long)
    if rows is None:  # an ignored column of ids still names the series
        ids = frame[columns.id].tolist() if columns.id in names else None
        return Table(list(values[:, :, None]), labels, ids, columns)
    return Table(rows.split(values), labels, rows.ids, columns)


def labels_of(
    frame: Frame, columns: Columns, ids: list | None, *, by_step: bool = False
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Labels (n,) or (n, m) in a table of their own, and the names of their columns.

    All columns are labels, but the id and the ignored ones. With a column of ids the rows are matched with ``ids``, the
    ids of the series; a long table needs it. ``by_step`` takes all rows of an id as its label steps, (n, T, m), in the
    order of the column of times, or of the table. Raises DataError for ids that are missing, surplus or repeated, and
    for ids of labels alone.
    """
    frame = _named(frame)
    by_step = by_step and ids is not None and columns.id in frame.columns
    if by_step and columns.time in frame.columns:
        frame = frame.iloc[rows_of(frame, columns.id, columns.time).order]
    names = [name for name in frame.columns if name not in {columns.id, *columns.ignored}]
    names = [name for name in names if not (by_step and name == columns.time)]
    if not names:
        raise DataError(f"no columns of labels; the columns are {listed(frame.columns)}.")
    if len(names) > 1:
        _refuse_row_numbers(np.stack([_numbers_in(frame[name]) for name in names], axis=1), names, "label")
    matched = columns.id in frame.columns
    if columns.long and not matched:
        raise DataError(f"no column {columns.id!r} that says which series of the long table has which label.")
    if matched and ids is None and columns.id not in columns.ignored:
        raise DataError(
            f"the labels have the column {columns.id!r}, but the series have no ids to match. Give the table of the "
            f"series that column; or say that both have the same order: --ignore {columns.id!r}."
        )
    if matched and ids is not None:
        counts = frame[columns.id].value_counts(sort=False)
        wrong = counts[counts != (counts.iloc[0] if by_step else 1)]
        if len(wrong) and by_step:
            raise DataError(f"{shown(wrong.index[0])} has {wrong.iloc[0]} label steps, the first id {counts.iloc[0]}.")
        if len(wrong):
            raise DataError(
                f"the id {shown(wrong.index[0])} occurs twice. --label_axis steps takes a label at each step."
            )
        indexed = frame.set_index(columns.id)
        missing, surplus = set(ids) - set(indexed.index), set(indexed.index) - set(ids)
        if missing or surplus:
            which = f"no label for series {shown(min(missing, key=str))}" if missing else "no series"
            raise DataError(f"{which}{'' if missing else f' {shown(min(surplus, key=str))}, which has a label here'}.")
        frame = indexed.loc[ids].reset_index()
    labels = _labels(frame, Columns(labels=tuple(names)), None, False)
    return labels.reshape(len(ids), -1, len(names)) if by_step and ids else labels, tuple(names)


def stacked(series: Iterable[Any]) -> np.ndarray:
    """Arrays (L_i, C) or (L_i,) as (n, L, C), NaN after the end of a series. Raises DataError for unequal channels."""
    series = [_floats(values, f"series {row} (from 0)") for row, values in enumerate(series)]
    series = [values[:, None] if values.ndim == 1 else values for values in series]
    shapes = {values.shape[1:] for values in series}
    if len(shapes) > 1 or len(next(iter(shapes))) != 1:
        raise DataError(f"series of shapes {sorted(shapes)} after the time steps: all must have the same channels.")
    data = np.full((len(series), max(map(len, series)), *shapes.pop()), np.nan)
    for row, values in zip(data, series, strict=True):
        row[: len(values)] = values
    return data


def _floats(values: Any, what: str) -> np.ndarray:
    try:
        return np.asarray(values, dtype=float)
    except (ValueError, TypeError) as error:
        raise DataError(f"{what} is no array of numbers ({error}).") from error


def _way_out(name: str, columns: Columns) -> str:
    if name in columns.labels:
        return " --label names the columns of labels, --y a file of labels."
    return " They are needed by name, as in the table that was imported." if name in columns.channels else ""


def unlike_columns(columns: Columns) -> list[str]:
    """The time steps of a wide table whose names differ in more than a number from most of the names."""
    if columns.long:
        return []
    patterns = ["0" if _is_number(name) else re.sub(r"[\d.]+", "0", name) for name in columns.channels]
    usual = Counter(patterns).most_common(1)[0][0]
    return [name for name, pattern in zip(columns.channels, patterns, strict=True) if pattern != usual]


def _named(frame: Frame) -> Frame:
    """The table with texts as the names of its columns."""
    if frame.columns.nlevels > 1:
        raise DataError(f"the columns have {frame.columns.nlevels} levels of names, and must have one.")
    frame = frame.rename(columns=str)
    twice = frame.columns[frame.columns.duplicated()]
    if len(twice):
        raise DataError(f"the column {twice[0]!r} occurs twice.")
    return frame


def _refuse_as_names(fields: list[str]) -> None:
    """Refuses a first line that holds the first series, which would be lost."""
    if len(fields) > 1 and all(map(_is_number, fields)) and not np.all(np.diff(np.array(fields, dtype=float)) > 0):
        raise DataError("the first line holds numbers, not the names of columns. Add a line of names.")
    twice = [name for name, count in Counter(fields).items() if name and count > 1]
    if twice:
        raise DataError(f"the column {twice[0]!r} occurs twice.")


def _require_wide(names: list[str], columns: Columns) -> None:
    """Refuses what is no table with a row for each series."""
    for name, other in ((columns.id, columns.time), (columns.time, columns.id)):
        if name in names and name not in columns.ignored:
            raise DataError(
                f"the column {name!r}, but no column {other!r}. A table with a row for each time step has both (--id "
                f"and --time name them); in a table with a row for each series, --ignore {name!r} leaves it out."
            )
    _refuse_as_names([name for name in names if name not in {*columns.labels, *columns.ignored}])


def _refuse_row_numbers(values: np.ndarray, names: list[str], role: str) -> None:
    """Refuses a column that an index was written to: trained on, it tells the order of the series."""
    count = np.arange(len(values))
    for column, name in enumerate(names):
        counts = len(values) > 2 and any(np.array_equal(values[:, column], count + first) for first in (0, 1))
        if counts or name.startswith("Unnamed: "):
            raise DataError(f"the column {name!r} numbers the rows: it is no {role}. --ignore {name!r} leaves it out.")


def _labels(frame: Frame, columns: Columns, rows: Rows | None, by_step: bool) -> np.ndarray:
    """The label columns, checked, as (n,), (n, m) or (n, L, m)."""
    for name in columns.labels:
        missing = np.flatnonzero(frame[name].isna())
        if len(missing):
            raise DataError(f"the label {name!r} is missing in row {missing[0]} (empty, or a text such as NA).")
    values = [frame[name].to_numpy() for name in columns.labels]
    if rows is not None and by_step:
        values = [rows.split(_numbers(frame[name], name)) for name in columns.labels]
        if len({len(series) for series in values[0]}) > 1:
            raise DataError("a label for each time step needs series of equal length.")
        return np.stack([np.stack(series) for series in values], axis=2)
    if rows is not None:
        values = [_constant(column, name, rows) for column, name in zip(values, columns.labels, strict=True)]
    if len(values) == 1:
        return values[0]
    return np.stack([_numbers(frame[name], name)[_first_rows(rows, frame)] for name in columns.labels], axis=1)


def _first_rows(rows: Rows | None, frame: Frame) -> np.ndarray:
    return np.arange(len(frame)) if rows is None else rows.order[rows.starts]


def _constant(column: np.ndarray, name: str, rows: Rows) -> np.ndarray:
    """The label of each series (n,), which must not change within a series."""
    first = column[rows.order[rows.starts]]
    differs = np.flatnonzero(column[rows.order] != first[rows.code[rows.order]])
    if len(differs):
        row = rows.order[differs[0]]
        begin = rows.order[rows.starts[rows.code[row]]]
        raise DataError(
            f"series {rows.ids[rows.code[row]]!r}: the label {name!r} is {shown(column[begin])} in row {begin} and "
            f"{shown(column[row])} in row {row}. A series has one label; --label_axis steps takes a number for every "
            "step."
        )
    return first


def _numbers(column: Frame, name: str) -> np.ndarray:
    """A column as float64, NaN where it is empty."""
    numbers = _numbers_in(column)
    bad = np.flatnonzero(np.isnan(numbers) & ~column.isna().to_numpy())
    if len(bad):
        value = shown(column.iloc[bad[0]])
        hint = (
            "Numbers need a decimal point, not a comma."
            if "," in value
            else f"--ignore {name!r} leaves the column out."
        )
        raise DataError(f"the column {name!r} holds {value} in row {bad[0]}, which is no number. {hint}")
    return numbers


def _numbers_in(column: Frame) -> np.ndarray:
    """A column as float64, NaN where it holds no number."""
    import pandas

    numbers: Frame = pandas.to_numeric(column, errors="coerce")
    return numbers.to_numpy(dtype=float, na_value=np.nan)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
