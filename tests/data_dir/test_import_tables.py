"""Tables of your own become series, or are refused with the reason."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from own_tables import RNG, WORDS, L, N, X, long_table, wide_table

from data_dir.import_arrays import main, read_input
from data_dir.processing import own
from data_dir.processing.tables import Columns
from data_dir.storage import DataError

LONG = long_table()
ROW = int(np.flatnonzero(LONG.id == "s3")[4])
FIRST = int(np.flatnonzero(LONG.id == "s3")[0])


def changed(column, value, row=ROW):
    table = LONG.copy()
    table[column] = table[column].astype(object)
    table.loc[row, column] = value
    return table


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (changed("label", "swim"), rf"series 's3': the label 'label' is 'walk' in row {FIRST} and 'swim' in row {ROW}"),
        (changed("label", None), rf"the label 'label' is missing in row {ROW}"),
        (changed("id", None), rf"the column 'id' is empty in row {ROW}"),
        (changed("time", None), rf"the column 'time' is empty in row {ROW}"),
        (changed("time", 0.0), rf"series 's3', rows {FIRST} and {ROW}: the time 0.0 occurs twice"),
        (LONG.drop(ROW), r"series 's3', rows \d+ and \d+: the time goes from .* but a step is usually 0.1"),
        (changed("a", "broken"), rf"the column 'a' holds 'broken' in row {ROW}, which is no number. --ignore 'a'"),
        (changed("a", "1,5"), "Numbers need a decimal point, not a comma"),
        (LONG.assign(count=range(len(LONG))), "the column 'count' numbers the rows: it is no channel. --ignore"),
        (LONG.drop(columns="time"), "the column 'id', but no column 'time'"),
        (LONG.drop(columns="label"), "no column 'label'; the columns are id, time, a, b. --label names"),
        (
            pd.DataFrame(X[:, :, 0], columns=[str(v) for v in X[0, :, 1]]).assign(label=WORDS),
            "the first line holds num",
        ),
        (wide_table().assign(time=1.0), "the column 'time', but no column 'id'"),
        (
            LONG.assign(time=LONG.time * np.where(LONG.id == "s3", 1.4, 1)),
            "series 's3': a step is 0.14 on average, but 0.1 in most series",
        ),
        (
            LONG.set_axis(pd.MultiIndex.from_product([["x"], LONG.columns]), axis=1),
            "the columns have 2 levels of names",
        ),
    ],
)
def test_tables_that_are_no_series_are_refused(tmp_path, table, message):
    with pytest.raises(DataError, match=message):
        own.import_arrays("toy", table, data_dir=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_labels_in_a_table_belong_to_the_series_by_id(tmp_path):
    y = pd.DataFrame({"id": [f"s{i}" for i in range(N)], "label": WORDS})[::-1]
    x = wide_table().drop(columns="label")

    def stored(name, x, y, **options):
        info = own.import_arrays(name, x, y, **options, data_dir=tmp_path)
        return np.load(Path(info["folder"]) / "labels.npy")[:, 1] == 1

    np.testing.assert_array_equal(stored("wide", x.assign(id=y.id[::-1]), y, ignore=["id"]), WORDS == "walk")
    np.testing.assert_array_equal(stored("rows", X, y, ignore=["id"]), WORDS[::-1] == "walk")  # as the user asks for
    for series in (X, x):
        with pytest.raises(DataError, match=r"the column 'id', but the series have no ids to match.*--ignore 'id'"):
            own.import_arrays("toy", series, y, data_dir=tmp_path)
    with pytest.raises(DataError, match=r"^y: the id 's11' occurs twice. --label_axis steps"):
        own.import_arrays("toy", LONG, pd.concat([y, y]), data_dir=tmp_path)
    # Label steps: a row for each, in the order of their times.
    steps = pd.DataFrame(RNG.normal(size=(N, 5, 2)).reshape(-1, 2), columns=["heat", "angle"])
    steps = steps.assign(id=np.repeat([f"s{i}" for i in range(N)], 5), time=np.tile(np.arange(5), N))
    info = own.import_arrays(
        "steps", LONG.drop(columns="label"), steps.sample(frac=1, random_state=0), label_axis="steps", data_dir=tmp_path
    )
    np.testing.assert_array_equal(
        np.load(Path(info["folder"]) / "labels.npy").reshape(-1, 2), steps[["heat", "angle"]].astype(np.float32)
    )
    clock = steps.assign(time=[f"2024-01-01 {9 + step}:00" for step in steps.time])  # as texts, 10:00 is before 9:00
    info = own.import_arrays("clock", LONG.drop(columns="label"), clock, label_axis="steps", data_dir=tmp_path)
    np.testing.assert_array_equal(
        np.load(Path(info["folder"]) / "labels.npy").reshape(-1, 2), steps[["heat", "angle"]].astype(np.float32)
    )
    twice = steps.assign(time=np.where(steps.time == 1, 0, steps.time))
    with pytest.raises(DataError, match=r"^y: series 's0', rows 0 and 1: the time 0 occurs twice"):
        own.import_arrays("twice", LONG.drop(columns="label"), twice, label_axis="steps", data_dir=tmp_path)
    with pytest.raises(DataError, match=r"^y: 's11' has 4 label steps, the first id 5"):
        own.import_arrays("toy", LONG, steps[:-1], label_axis="steps", data_dir=tmp_path)
    for index in ("Unnamed: 0", "n"):
        with pytest.raises(DataError, match=f"the column '{index}' numbers the rows: it is no label. --ignore"):
            own.import_arrays("toy", X, pd.DataFrame({index: range(N), "label": RNG.normal(size=N)}), data_dir=tmp_path)


def test_a_later_table_has_the_columns_of_the_first(tmp_path):
    """Without it, longer series would be cut, and the columns of two label tables mixed."""
    with pytest.raises(DataError, match="the table that was imported has no column 't8', 't9'"):
        own.import_arrays("toy", wide_table(X[:, :8]), x_test=wide_table(), data_dir=tmp_path)
    with pytest.raises(DataError, match="no column 'c'"):
        own.import_arrays("toy", LONG, x_test=LONG.assign(c=LONG.a), data_dir=tmp_path)
    y = pd.DataFrame(RNG.normal(size=(N, 2)), columns=["heat", "angle"])
    with pytest.raises(DataError, match="the labels are heat, angle, but angle, heat in the test part"):
        own.import_arrays("toy", X, y, x_test=X, y_test=y[["angle", "heat"]], data_dir=tmp_path)
    with pytest.raises(DataError, match="names of the columns of its table are damaged"):
        Columns.of_record({"channels": ["a", 3]})


def test_columns_taken_as_time_steps_are_named(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    table = wide_table()
    table.insert(0, "age", RNG.integers(20, 80, N))
    table.to_csv("x.csv", index=False)
    assert main(["toy", "--x", "x.csv", "--data_dir", "."]) == 0
    out = capsys.readouterr().out
    assert "\n    time steps: the columns age to t9\n" in out
    assert "columns: not named as the other time steps: age. --ignore leaves columns out" in out
    LONG.to_csv("x.csv", index=False)
    assert main(["long", "--x", "x.csv", "--data_dir", "."]) == 0
    out = capsys.readouterr().out
    assert "\n    channels: a, b\n" in out
    assert "columns:" not in out


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0.1,0.5,0.5\n1,2,3\n", "the first line holds numbers"),  # pandas: 0.5.1, and the series is lost
        ("t0;t1;t1\n1;2;3\n", "the column 't1' occurs twice"),
        ("t0,t1\n1,2,3\n4,5,6\n", "Expected 2 fields in line 2, saw 3"),  # pandas: the first column is an index
    ],
)
def test_first_lines_that_are_no_names_are_refused(tmp_path, text, message):
    (tmp_path / "x.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        read_input(tmp_path / "x.csv", "x")


def test_times_may_be_dates_and_steps_may_have_labels(tmp_path):
    """Without it, a row a day is sorted as text, and 10.1. comes before 2.1."""
    table = LONG.assign(time=pd.Timestamp("2026-01-01") + pd.to_timedelta(LONG.time * 10, unit="D"), label=LONG.a * 100)
    info = own.import_arrays("toy", table.assign(time=table.time.astype(str)), label_axis="steps", data_dir=tmp_path)
    folder = Path(info["folder"])
    np.testing.assert_allclose(np.load(folder / "labels.npy"), 100 * X[:, :, 0], rtol=1e-6)
    assert (info["label_steps"], info["output_names"]) == (L, ["label"])
    with pytest.raises(DataError, match=r"has one label; --label_axis steps takes a number for every step"):
        own.import_arrays("two", table, data_dir=tmp_path)
