"""Tables as series: with a row for each series (wide), or with a row for each time step of a series (long).

pandas is imported only when a table is read.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data_dir.storage import DataError

Frame = Any  # a DataFrame or a Series of pandas
SUFFIXES = (".csv", ".tsv", ".parquet")
# Time steps of a series may differ by these factors from the usual one: clocks jitter.
_LEAST_STEP, _LARGEST_STEP = 0.5, 1.5


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
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def of_record(cls, record: Any) -> "Columns":
        """The inverse of ``record``. Raises DataError if the record is damaged."""
        try:
            fields: dict[str, Any] = {
                name: tuple(value) if isinstance(value, list) else value for name, value in record.items()
            }
            columns = cls(**fields)
            texts = (*columns.labels, *columns.ignored, *columns.channels, columns.id, columns.time)
            if columns.channels and all(isinstance(text, str) for text in texts):
                return columns
        except (TypeError, AttributeError):
            pass
        raise DataError("the names of the columns of its table are damaged.")


class Table(NamedTuple):
    """The series of a table, (L, C) each, in the order in which they begin in the table.

    ``labels`` are (n,), (n, m) for m label columns, or (n, L, m) if there is a label for each step; None without
    labels. ``ids`` name the series of a long table. ``columns`` holds the names of the channels.
    """

    series: list[np.ndarray]
    labels: np.ndarray | None
    ids: list | None
    columns: Columns


@dataclass
class _Rows:
    """The rows of a long table in the order of series and time; ``code`` numbers the series."""

    order: np.ndarray
    code: np.ndarray
    ids: list
    starts: np.ndarray = field(init=False)

    def __post_init__(self):
        self.starts = np.flatnonzero(np.diff(self.code[self.order], prepend=-1))

    def split(self, values: np.ndarray) -> list[np.ndarray]:
        """The values of every series."""
        return np.split(values[self.order], self.starts[1:])


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
        frame = pandas.read_csv(path, sep="\t" if path.suffix == ".tsv" else ",", encoding="utf-8-sig")
        other = next((mark for mark in ";\t" if mark in str(frame.columns[0])), None)
        return pandas.read_csv(path, sep=other, encoding="utf-8-sig") if other and frame.shape[1] == 1 else frame
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
    frame = frame.rename(columns=str)
    names = list(frame.columns)
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(f"the column {twice[0]!r} occurs twice.")
    long = columns.long or (columns.id in names and columns.time in names)
    if not long and not columns.channels:
        _require_wide(names, columns)
    wanted = (*columns.channels, *((columns.id, columns.time) if long else ()), *(columns.labels if labelled else ()))
    for name in wanted:
        if name not in names:
            raise DataError(f"no column {name!r}; the columns are {_first(names)}.{_way_out(name, columns)}")
    keys = {columns.id, columns.time} if long else set()
    others = [name for name in names if name not in {*columns.labels, *columns.ignored, *keys}]
    channels = list(columns.channels) or others
    if not channels:
        raise DataError(f"no columns of values are left; the columns are {_first(names)}.")
    values = np.stack([_numbers(frame[name], name) for name in channels], axis=1)
    if not columns.channels:
        _refuse_row_numbers(values, channels)
    rows = _rows_of(frame, columns) if long else None
    labels = _labels(frame, columns, rows, by_step) if labelled else None
    columns = Columns(columns.labels, columns.id, columns.time, columns.ignored, tuple(channels), long)
    if rows is None:
        return Table(list(values[:, :, None]), labels, None, columns)
    return Table(rows.split(values), labels, rows.ids, columns)


def labels_of(frame: Frame, columns: Columns, ids: list | None) -> tuple[np.ndarray, tuple[str, ...]]:
    """Labels (n,) or (n, m) in a table of their own, and the names of their columns.

    All columns are labels, but the id and the ignored ones. With a column of ids the rows are matched with ``ids``; a
    long table needs it. Raises DataError for ids that are missing, surplus or repeated.
    """
    frame = frame.rename(columns=str)
    names = [name for name in frame.columns if name not in {columns.id, *columns.ignored}]
    if not names:
        raise DataError(f"no columns of labels; the columns are {_first(list(frame.columns))}.")
    if ids is not None:
        if columns.id not in frame.columns:
            raise DataError(f"no column {columns.id!r} that says which series of the long table has which label.")
        repeated = frame[columns.id][frame[columns.id].duplicated()]
        if len(repeated):
            raise DataError(f"the id {_shown(repeated.iloc[0])} occurs twice.")
        indexed = frame.set_index(columns.id)
        missing, surplus = set(ids) - set(indexed.index), set(indexed.index) - set(ids)
        if missing or surplus:
            which = f"no label for series {_shown(min(missing, key=str))}" if missing else "no series"
            raise DataError(f"{which}{'' if missing else f' {_shown(min(surplus, key=str))}, which has a label here'}.")
        frame = indexed.loc[ids].reset_index()
    return _labels(frame, Columns(labels=tuple(names)), None, False), tuple(names)


def stacked(series: Iterable[Any]) -> np.ndarray:
    """Arrays (L_i, C) or (L_i,) as (n, L, C), NaN after the end of a series. Raises DataError for unequal channels."""
    series = [np.asarray(values, dtype=float) for values in series]
    series = [values[:, None] if values.ndim == 1 else values for values in series]
    shapes = {values.shape[1:] for values in series}
    if len(shapes) > 1 or len(next(iter(shapes))) != 1:
        raise DataError(f"series of shapes {sorted(shapes)} after the time steps: all must have the same channels.")
    data = np.full((len(series), max(map(len, series)), *shapes.pop()), np.nan)
    for row, values in zip(data, series, strict=True):
        row[: len(values)] = values
    return data


def _way_out(name: str, columns: Columns) -> str:
    if name in columns.labels:
        return " --label names the columns of labels, --y a file of labels."
    return " They are needed by name, as in the table that was imported." if name in columns.channels else ""


def _require_wide(names: list[str], columns: Columns) -> None:
    """Refuses what is no table with a row for each series."""
    for name, other in ((columns.id, columns.time), (columns.time, columns.id)):
        if name in names and name not in columns.ignored:
            raise DataError(
                f"the column {name!r}, but no column {other!r}. A table with a row for each time step has both (--id "
                f"and --time name them); in a table with a row for each series, --ignore {name} leaves it out."
            )
    steps = [name for name in names if name not in {*columns.labels, *columns.ignored}]
    numbers = np.array([float(name) for name in steps if _is_number(name)])
    if len(numbers) > 1 and len(numbers) == len(steps) and np.any(np.diff(numbers) <= 0):
        raise DataError("the first line holds numbers, not the names of columns. Add a line of names.")


def _refuse_row_numbers(values: np.ndarray, channels: list[str]) -> None:
    """Refuses a column that an index was written to: trained on, it tells the order of the series."""
    count = np.arange(len(values))
    for column, name in enumerate(channels):
        counts = len(values) > 2 and any(np.array_equal(values[:, column], count + first) for first in (0, 1))
        if counts or name.startswith("Unnamed: "):
            raise DataError(f"the column {name!r} numbers the rows: it is no channel. --ignore {name!r} leaves it out.")


def _rows_of(frame: Frame, columns: Columns) -> _Rows:
    """The order of the rows of a long table, whose times are checked."""
    import pandas

    for name in (columns.id, columns.time):
        missing = np.flatnonzero(frame[name].isna())
        if len(missing):
            raise DataError(f"the column {name!r} is empty in row {missing[0]}.")
    times: Frame = frame[columns.time]
    if not pandas.api.types.is_datetime64_any_dtype(times):
        try:
            times = pandas.to_numeric(times)
        except (ValueError, TypeError):
            try:
                times = pandas.to_datetime(times)
            except (ValueError, TypeError) as error:
                raise DataError(f"the column {columns.time!r} holds no numbers and no times ({error}).") from error
    if not pandas.api.types.is_numeric_dtype(times):
        times = (times - times.min()) / pandas.Timedelta(seconds=1)
    time = times.to_numpy(dtype=float)
    codes, ids = pandas.factorize(frame[columns.id])  # numbered as they appear
    rows = _Rows(np.lexsort((time, codes)), codes, np.asarray(ids).tolist())
    sorted_codes, sorted_times = codes[rows.order], time[rows.order]
    steps = np.diff(sorted_times)
    within = np.diff(sorted_codes) == 0
    if not within.any():
        return rows
    usual = float(np.median(steps[within & (steps > 0)])) if np.any(steps[within] > 0) else 0.0
    bad = np.flatnonzero(within & ((steps < _LEAST_STEP * usual) | (steps > _LARGEST_STEP * usual) | (steps == 0)))
    if len(bad):
        first, second = rows.order[bad[0]], rows.order[bad[0] + 1]
        which = f"series {_shown(ids[codes[first]])}, rows {first} and {second}"
        shown = frame[columns.time]
        if steps[bad[0]] == 0:
            raise DataError(f"{which}: the time {shown.iloc[first]} occurs twice.")
        raise DataError(
            f"{which}: the time goes from {shown.iloc[first]} to {shown.iloc[second]}, but a step is usually "
            f"{usual:g}. The model takes equal steps. Add the missing rows with empty values (--missing impute fills "
            "them), or number the rows of each series in the column of time."
        )
    return rows


def _labels(frame: Frame, columns: Columns, rows: _Rows | None, by_step: bool) -> np.ndarray:
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


def _first_rows(rows: _Rows | None, frame: Frame) -> np.ndarray:
    return np.arange(len(frame)) if rows is None else rows.order[rows.starts]


def _constant(column: np.ndarray, name: str, rows: _Rows) -> np.ndarray:
    """The label of each series (n,), which must not change within a series."""
    first = column[rows.order[rows.starts]]
    differs = np.flatnonzero(column[rows.order] != first[rows.code[rows.order]])
    if len(differs):
        row = rows.order[differs[0]]
        begin = rows.order[rows.starts[rows.code[row]]]
        raise DataError(
            f"series {rows.ids[rows.code[row]]!r}: the label {name!r} is {_shown(column[begin])} in row {begin} and "
            f"{_shown(column[row])} in row {row}. A series has one label; --label_axis steps takes a number for every "
            "step."
        )
    return first


def _numbers(column: Frame, name: str) -> np.ndarray:
    """A column as float64, NaN where it is empty."""
    import pandas

    numbers: Frame = pandas.to_numeric(column, errors="coerce")
    numbers = numbers.to_numpy(dtype=float, na_value=np.nan)
    bad = np.flatnonzero(np.isnan(numbers) & ~column.isna().to_numpy())
    if len(bad):
        value = _shown(column.iloc[bad[0]])
        hint = (
            "Numbers need a decimal point, not a comma." if "," in value else f"--ignore {name} leaves the column out."
        )
        raise DataError(f"the column {name!r} holds {value} in row {bad[0]}, which is no number. {hint}")
    return numbers


def _shown(value: Any) -> str:
    return repr(value.item() if isinstance(value, np.generic) else value)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _first(names: list[str], count: int = 8) -> str:
    return ", ".join(names[:count]) + (f" and {len(names) - count} more" if len(names) > count else "")
