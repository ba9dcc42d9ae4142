"""Which rows train, validate and test, other than by seed: the archive's own parts and index files."""

import json

import jax
import numpy as np
import pytest
from raw_files import contents, files_below, full_disk, put_raw, series_text, store

from data_dir import write_splits
from data_dir.datasets import create_dataset
from data_dir.pickles import write_arrays
from data_dir.splits import (
    PUBLISHED_SEEDS,
    checked_split,
    read_index_file,
    split_as_original,
    split_by_seed,
    write_index_file,
)
from data_dir.storage import DataError

PARTS = ("train", "validation", "test")


def toy_set(data_dir, name: str = "Toy", original=None):
    data = np.random.default_rng(0).normal(size=(20, 6, 2)).astype(np.float32)
    more = {} if original is None else {"original_idxs": original}
    return store(data_dir, name, data=data, labels=np.arange(20) % 2, **more)


def lists(split) -> dict[str, list[int]]:
    return {part: rows.tolist() for part, rows in split.items()}


# The archive's own parts


def test_the_archives_own_parts_are_kept():
    original = (np.array([4, 1]), np.array([0]), np.array([3, 2]))
    assert lists(split_as_original(original, 5, seed=1)) == {"train": [4, 1], "validation": [0], "test": [3, 2]}


def test_validation_rows_are_drawn_from_the_train_rows_where_there_are_none():
    original = (np.arange(34) * 2, np.empty(0), np.arange(1, 20, 2))
    split = split_as_original(original, 68, seed=1)
    assert [len(rows) for rows in split.values()] == [28, 6, 10]
    assert split["test"].tolist() == original[2].tolist()
    assert sorted([*split["train"], *split["validation"]]) == original[0].tolist()
    assert lists(split_as_original(original, 68, seed=1)) == lists(split)
    assert lists(split_as_original(original, 68, seed=2)) != lists(split)
    with jax.threefry_partitionable(False):
        assert lists(split_as_original(original, 68, seed=1)) == lists(split)


@pytest.mark.parametrize(
    ("original", "message"),
    [
        (([0], [1]), "2 lists of rows"),
        (([0, 1, 2, 3, 4, 5], [], []), "no rows for test"),
        (([], [], [0]), "no rows for train"),
        (([0], [], [1]), "no rows for validation"),
        (([0, 1], [2], [2]), "row 2 occurs more than once"),
        (([0, 1], [2], [20]), "row 20 is not one of the 20 samples"),
        (([0, 1], [2], [-1]), "row -1 is not one of the 20 samples"),
        (([0.0, 1.0], [2], [3]), "the train rows are not a list of whole numbers"),
    ],
)
def test_original_parts_that_are_none_are_refused(tmp_path, original, message):
    folder = toy_set(tmp_path, original=tuple(np.array(rows) for rows in original))
    with pytest.raises(DataError, match=message) as caught:
        create_dataset(tmp_path, "Toy", seed=1, time=False, split="original")
    assert str(caught.value).startswith(f"{folder / 'original_idxs.pkl'}: ")


def test_a_set_without_original_parts_says_so(tmp_path):
    folder = toy_set(tmp_path)
    with pytest.raises(DataError, match=r"original_idxs\.pkl: cannot be read"):
        create_dataset(tmp_path, "Toy", seed=1, time=False, split="original")
    write_arrays(folder / "original_idxs.pkl", np.float64(2))
    with pytest.raises(DataError, match=r"original_idxs\.pkl: holds no list of rows"):
        create_dataset(tmp_path, "Toy", seed=1, time=False, split="original")


def test_the_original_parts_of_a_set_are_those_of_its_files(tmp_path):
    """Train values are even, test values odd; so must be what the loaders serve."""
    header = "@problemName toy\n@timeStamps false\n@univariate false\n@classLabel true a b\n@data\n"
    texts = [
        header + series_text(*(([[value, value]], "ab"[value // 2 % 2]) for value in range(start, 40, 2)))
        for start in (0, 1)
    ]
    put_raw(tmp_path, train=texts[0], test=texts[1])
    from data_dir.process_uea import main

    assert main(["--data_dir", str(tmp_path)]) == 0
    dataset = create_dataset(tmp_path, "Toy", seed=1, time=False, split="original")
    assert {value % 2 for part in ("train", "validation") for value in getattr(dataset, part).data.ravel()} == {0}
    assert {value % 2 for value in dataset.test.data.ravel()} == {1}
    assert (dataset.train.size, dataset.validation.size, dataset.test.size) == (16, 4, 20)


# Index files


def test_an_index_file_comes_back_and_is_the_same_every_time(tmp_path):
    splits = {seed: split_by_seed(20, seed) for seed in PUBLISHED_SEEDS}
    for name in ("a.json", "b.json"):
        write_index_file(tmp_path / name, "Toy", 20, splits)
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    for seed in PUBLISHED_SEEDS:
        assert lists(read_index_file(tmp_path / "a.json", "Toy", 20, seed)) == lists(splits[seed])
    assert files_below(tmp_path) == ["a.json", "b.json"]


def test_create_dataset_takes_its_rows_from_an_index_file(tmp_path):
    toy_set(tmp_path)
    rows = {"train": [5, 3], "validation": [1], "test": [0]}
    write_index_file(tmp_path / "my.json", "Toy", 20, {7: {part: np.array(rows[part]) for part in PARTS}})
    for path in (tmp_path / "my.json", str(tmp_path / "my.json")):
        dataset = create_dataset(tmp_path, "Toy", seed=7, time=False, split=path)
        assert lists(dataset.split) == rows
    everything = create_dataset(tmp_path, "Toy", seed=7, time=False)
    assert dataset.train.size == 2
    stored = {sample.tobytes() for part in PARTS for sample in getattr(everything, part).data}
    assert {sample.tobytes() for sample in dataset.train.data} < stored


def test_index_files_that_do_not_fit_are_refused(tmp_path):
    path = tmp_path / "a.json"
    write_index_file(path, "Toy", 20, {1: split_by_seed(20, 1), 2: split_by_seed(20, 2)})
    good = json.loads(path.read_text())
    for arguments, message in [
        (("Other", 20, 1), "is for 20 samples of 'Toy', not for the 20 of 'Other'"),
        (("Toy", 21, 1), "is for 20 samples of 'Toy', not for the 21"),
        (("Toy", 20, 3), "names no rows for seed 3; it has 1, 2"),
    ]:
        with pytest.raises(DataError, match=rf"a\.json: {message}"):
            read_index_file(path, *arguments)
    for change, message in [
        ({"train": [0, 0]}, "row 0 occurs more than once"),
        ({"test": []}, "no rows for test"),
        ({"test": [[1], [2]]}, "the test rows are not a list"),
        ({"test": [[1], [2, 3]]}, "inhomogeneous"),
        ({"test": ["1"]}, "the test rows are not a list of whole numbers"),
        ({"more": []}, "parts .*needed are train, validation, test"),
    ]:
        path.write_text(json.dumps({**good, "seeds": {"1": {**good["seeds"]["1"], **change}}}))
        with pytest.raises(DataError, match=rf"a\.json: seed 1: .*{message}"):
            read_index_file(path, "Toy", 20, 1)
    path.write_text(json.dumps({**good, "seeds": []}))
    with pytest.raises(DataError, match="names no rows for seed 1; it has none"):
        read_index_file(path, "Toy", 20, 1)
    path.write_text("{")
    with pytest.raises(DataError, match=r"a\.json: cannot be read"):
        read_index_file(path, "Toy", 20, 1)
    with pytest.raises(DataError, match=r"absent\.json: cannot be read"):
        read_index_file(tmp_path / "absent.json", "Toy", 20, 1)


def test_a_split_is_checked():
    assert lists(checked_split({"train": [2], "validation": [0], "test": (1,)}, 3))["test"] == [1]


# The command


def test_the_command_writes_the_published_seeds(tmp_path, capsys):
    folder = toy_set(tmp_path)
    toy_set(tmp_path, "Second")
    assert write_splits.main(["--data_dir", str(tmp_path)]) == 0
    assert "Toy: 20 samples, seeds 2345, 3456, 4567, 5678, 6789" in capsys.readouterr().out
    for seed in PUBLISHED_SEEDS:
        assert lists(read_index_file(folder / "splits.json", "Toy", 20, seed)) == lists(split_by_seed(20, seed))
    before = contents(tmp_path)
    assert write_splits.main(["--data_dir", str(tmp_path)]) == 0
    assert contents(tmp_path) == before
    options = ["--datasets", "Toy", "--seeds", "3", "--output_dir", str(tmp_path / "out"), "--data_dir", str(tmp_path)]
    assert write_splits.main(options) == 0
    assert lists(read_index_file(tmp_path / "out" / "Toy.json", "Toy", 20, 3)) == lists(split_by_seed(20, 3))


def test_the_command_reports_what_it_cannot_write(tmp_path, capsys):
    folder = toy_set(tmp_path)
    arguments = ["--data_dir", str(tmp_path), "--datasets", "Toy"]
    assert write_splits.main([*arguments, "Absent"]) == 1
    assert "Absent" in capsys.readouterr().err
    before = contents(tmp_path)
    with full_disk(100):
        assert write_splits.main(arguments) == 1
    assert contents(tmp_path) == before
    assert (folder / "splits.json").exists()
