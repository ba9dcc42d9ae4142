"""Generated tasks: the answer is in the series, where the task says, and the same series come out again."""

import json

import numpy as np
import pytest

from data_dir.datasets import create_dataset
from data_dir.storage import DataError
from data_dir.tasks import GeneratedSeries, labels_of, record_of, sha256_of_task, task_of_fields

SIZES = {"train": 40, "validation": 5, "test": 6}


def task(name, length=50, **fields):
    return task_of_fields({"name": name, "length": length, **SIZES, **fields})


def dataset(given, **options):
    return create_dataset(
        "no_such_folder", "Made", seed=1, time=False, classification=given.classification, task=given, **options
    )


def series_and_labels(given, part="train"):
    return GeneratedSeries(given, part)[:], labels_of(given, part)


def test_adding_marks_a_number_of_each_half_and_adds_them():
    x, y = series_and_labels(task("adding", length=51))
    assert x.shape == (40, 51, 2)
    assert y.shape == (40, 1)
    assert x.dtype == y.dtype == np.float32
    numbers, marks = x[:, :, 0], x[:, :, 1]
    assert 0 <= numbers.min() < 0.01 < 0.99 < numbers.max() < 1
    assert set(np.unique(marks)) == {0, 1}
    for part in (marks[:, :25], marks[:, 25:]):
        assert np.all(part.sum(axis=1) == 1)
        assert len({*part.argmax(axis=1)}) > 10
    np.testing.assert_array_equal((numbers * marks).sum(axis=1, keepdims=True), y)


def test_the_labels_of_adding_are_mapped_to_the_range_of_tanh_and_guessing_has_the_error_of_the_docs():
    given = task("adding", train=3000, test=3000)
    data = dataset(given)
    np.testing.assert_allclose(data.label_map.to_labels(data.train.labels), labels_of(given, "train"), atol=1e-6)
    assert np.abs(data.train.labels).max() <= 0.9
    assert (data.output_step, data.label_dim, data.data_dim) == (50, 1, 2)
    assert np.var(labels_of(given, "test")) == pytest.approx(1 / 6, rel=0.1)


def recalled(x, symbols):
    """The symbols that a series of a copy task shows, in their order."""
    steps, shown = np.nonzero(x[: len(x) - symbols - 1, :-1])
    return steps, shown


@pytest.mark.parametrize("name", ["copy", "selective_copy"])
def test_copies_show_the_symbols_once_and_ask_for_them_at_the_end(name):
    given = task(name, symbols=4, classes=3)
    x, y = series_and_labels(given)
    assert x.shape == (40, 50, 4)
    assert y.shape == (40, 4, 3)
    firsts = set()
    for series, labels in zip(x, y, strict=True):
        steps, shown = recalled(series, 4)
        np.testing.assert_array_equal(np.eye(3)[shown], labels)
        firsts.add(tuple(steps))
        assert series[45, 3] == 1  # the mark, before the first answer
        assert series.sum() == 5
        assert not series[46:].any()
    assert firsts == {(0, 1, 2, 3)} if name == "copy" else len(firsts) > 30
    assert set(np.unique(y.argmax(axis=-1))) == {0, 1, 2}


def test_the_shortest_selective_copy_uses_every_step():
    x, _ = series_and_labels(task("selective_copy", length=9, symbols=4, classes=3))
    assert {tuple(recalled(series, 4)[0]) for series in x} == {(0, 1, 2, 3)}


@pytest.mark.parametrize("noise", [0.0, 0.5])
def test_the_first_steps_alone_tell_the_class(noise):
    x, y = series_and_labels(task("first", range=3, classes=4, noise=noise, train=200))
    cells = np.floor((x[:, :3, 0] + 1) * 2).astype(int)
    np.testing.assert_array_equal(cells, np.repeat(y.argmax(axis=1)[:, None], 3, axis=1))
    assert np.abs(x[:, :3, 0]).max() > 0.9
    rest = x[:, 3:, 0]
    assert np.abs(rest).max() == pytest.approx(noise, rel=0.01)
    assert abs(np.corrcoef(rest.mean(axis=1), y.argmax(axis=1))[0, 1]) < 0.3 if noise else not rest.any()
    assert y.sum(axis=0).min() > 30


GIVEN = [task("adding"), task("copy"), task("selective_copy"), task("first", range=5)]


def test_the_series_are_those_that_a_task_always_had():
    """A change of any bit needs a new VERSION: runs on other data must not look alike."""
    assert {given.name: sha256_of_task(given)[:16] for given in GIVEN} == {
        "adding": "0553dc52f6d2a6c2",
        "copy": "3a8e7e6b42757985",
        "selective_copy": "26f2954484242247",
        "first": "9d06c44ef16e6d1a",
    }


@pytest.mark.parametrize("given", GIVEN, ids=lambda given: given.name)
def test_a_series_depends_on_its_number_part_and_seed_alone(given):
    all_series = GeneratedSeries(given, "train")[:]
    rows = np.array([7, 0, 39])
    np.testing.assert_array_equal(GeneratedSeries(given, "train")[rows], all_series[rows])
    batch, labels = dataset(given).train.batch(rows)
    np.testing.assert_array_equal(batch, all_series[rows])
    assert len(labels) == 3
    assert len(np.unique(all_series.reshape(40, -1), axis=0)) == 40
    fields = record_of(given)
    others = [GeneratedSeries(given, "test")[:5], GeneratedSeries(task_of_fields(fields | {"seed": 1}), "train")[:5]]
    assert all(not np.array_equal(other, all_series[:5]) for other in others)
    longer = GeneratedSeries(task_of_fields(fields | {"train": 60}), "train")[:40]
    np.testing.assert_array_equal(longer, all_series)
    with pytest.raises(IndexError):
        GeneratedSeries(given, "train")[np.array([40])]
    assert task_of_fields(json.loads(json.dumps(fields))) == given


def test_a_large_set_of_long_series_takes_no_memory():
    series = GeneratedSeries(task("first", length=10**6, range=10**4, train=10**6), "train")
    assert series.shape == (10**6, 10**6, 1)
    assert series[np.array([999_999])].shape == (1, 10**6, 1)


def test_a_set_says_what_it_is():
    data = dataset(task("copy", symbols=4, classes=3), inmemory=True)
    assert data.describe() == (
        "Made: 51 series x 50 time steps x 4 channels; 3 classes (0, 1, 2), one at each of the last 4 time steps; "
        "train 40, validation 5, test 6"
    )
    assert (data.last_steps, data.label_dim, data.split, data.class_names) == (4, 3, None, ["0", "1", "2"])
    assert data.train.batch(np.arange(2))[1].shape == (2, 4, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classification": False}, "task copy: needs classification True"),
        ({"split": "original"}, "task copy: has its own parts and channels: split and standardise must be left out"),
        ({"standardise": True}, "split and standardise must be left out"),
        ({"output_step": 7}, "output_step 7 does not fit: it must be 1"),
    ],
)
def test_a_request_that_does_not_fit_the_task_is_refused(options, message):
    options = {"classification": True, "task": task("copy")} | options
    with pytest.raises(DataError, match=message):
        create_dataset("no_such_folder", "Made", seed=1, time=False, **options)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "add"}, 'name is "add": allowed is one of adding, copy, selective_copy, first'),
        ({"name": ["copy"]}, "allowed is one of adding"),
        ({"name": "adding"}, "adding needs length"),
        ({"name": "first", "length": 10}, "first needs range"),
        ({"name": "adding", "length": 1}, "length is 1: with these sizes adding needs 2 steps at least"),
        ({"name": "copy", "length": 20}, "copy needs 21 steps at least"),
        ({"name": "first", "length": 10, "range": 10}, "first needs 11 steps at least"),
        ({"name": "adding", "length": 9, "symbols": 3}, "unknown field symbols: those of adding are length, seed"),
        ({"name": "adding", "length": 9.0}, "length is 9.0: allowed is a whole number from 1"),
        ({"name": "adding", "length": True}, "length is true: allowed is a whole number"),
        ({"name": "adding", "length": 9, "train": 0}, "train is 0: allowed is a whole number from 1"),
        ({"name": "copy", "length": 99, "classes": 1}, "classes is 1: allowed is a whole number from 2 to 1000"),
        ({"name": "adding", "length": 9, "seed": -1}, "seed is -1: allowed is a whole number from 0 to 4294967295"),
        ({"name": "first", "length": 9, "range": 2, "noise": "1"}, 'noise is "1": allowed is a number from 0'),
        ({"name": "first", "length": 9, "range": 2, "noise": float("nan")}, "noise is NaN: allowed is a number"),
    ],
)
def test_fields_that_make_no_task_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        task_of_fields(fields)
