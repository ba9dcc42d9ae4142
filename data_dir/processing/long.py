"""The rows of a long table in the order of series and time. The times are checked."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from data_dir.storage import DataError

# Time steps of a series may differ by these factors from the usual one: clocks jitter.
_LEAST_STEP, _LARGEST_STEP = 0.5, 1.5
# The mean steps of two series may differ by this share, or by one step over the whole series: jitter averages out,
# another clock does not.
_CLOCKS_DIFFER = 0.05


@dataclass
class Rows:
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


def rows_of(frame: Any, id: str, time: str) -> Rows:
    """The order of the rows of a table with the columns ``id`` and ``time``.

    Raises DataError for empty cells in them, for a time that occurs twice, and for steps that are not all equal.
    """
    import pandas

    for name in (id, time):
        missing = np.flatnonzero(frame[name].isna())
        if len(missing):
            raise DataError(f"the column {name!r} is empty in row {missing[0]}.")
    times = _times(frame[time], time)
    codes, ids = pandas.factorize(frame[id])  # numbered as they appear
    rows = Rows(np.lexsort((times, codes)), codes, ids.tolist())
    within = np.diff(codes[rows.order]) == 0
    if within.any():
        _require_equal_steps(rows, times, within, frame[time])
        _require_one_clock(rows, times)
    return rows


def _times(column: Any, name: str) -> np.ndarray:
    """Times as numbers, dates in seconds."""
    import pandas

    times: Any = column
    if not pandas.api.types.is_datetime64_any_dtype(times):
        try:
            times = pandas.to_numeric(times)
        except (ValueError, TypeError):
            try:
                times = pandas.to_datetime(times)
            except (ValueError, TypeError) as error:
                raise DataError(f"the column {name!r} holds no numbers and no times ({error}).") from error
    if not pandas.api.types.is_numeric_dtype(times):
        times = (times - times.min()) / pandas.Timedelta(seconds=1)
    return times.to_numpy(dtype=float)


def _require_equal_steps(rows: Rows, times: np.ndarray, within: np.ndarray, given: Any) -> None:
    """``within`` says whether a row is of the series of the row before; ``given`` are the times of the table."""
    steps = np.diff(times[rows.order])
    usual = float(np.median(steps[within & (steps > 0)])) if np.any(steps[within] > 0) else 0.0
    bad = np.flatnonzero(within & ((steps < _LEAST_STEP * usual) | (steps > _LARGEST_STEP * usual) | (steps == 0)))
    if not len(bad):
        return
    first, second = rows.order[bad[0]], rows.order[bad[0] + 1]
    which = f"series {shown(rows.ids[rows.code[first]])}, rows {first} and {second}"
    if steps[bad[0]] == 0:
        raise DataError(f"{which}: the time {given.iloc[first]} occurs twice.")
    raise DataError(
        f"{which}: the time goes from {given.iloc[first]} to {given.iloc[second]}, but a step is usually "
        f"{usual:g}. The model takes equal steps. Add the missing rows with empty values (--missing impute fills "
        "them), or number the rows of each series in the column of time."
    )


def _require_one_clock(rows: Rows, times: np.ndarray) -> None:
    """Compares the mean steps of the series. They are more exact than medians if the times are rounded."""
    series = [values for values in enumerate(rows.split(times)) if len(values[1]) > 1]
    means = np.array([(values[-1] - values[0]) / (len(values) - 1) for _, values in series])
    usual = np.median(means)
    lengths = np.array([len(values) - 1 for _, values in series])
    bad = np.flatnonzero(np.abs(means - usual) > usual * np.maximum(_CLOCKS_DIFFER, 1 / lengths))
    if len(bad):
        raise DataError(
            f"series {shown(rows.ids[series[bad[0]][0]])}: a step is {means[bad[0]]:g} on average, but {usual:g} in "
            "most series. The model takes equal steps. Resample the series, or number the rows of each series in the "
            "column of time."
        )


def shown(value: Any) -> str:
    """A value of a table in a message."""
    return repr(value.item() if isinstance(value, np.generic) else value)
