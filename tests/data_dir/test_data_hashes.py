"""The hash of a set's arrays, and arrays that are not those which the set was processed to."""

import json
import os

import numpy as np
import pytest
from small_experiments import write_dataset

from common import files
from common.files import known_sha256, sha256_of, sha256_of_array
from data_dir.datasets import create_dataset
from data_dir.pickles import read_array, write_arrays
from data_dir.storage import DataError


@pytest.fixture
def folder(tmp_path):
    write_dataset(tmp_path, "Tiny")
    return tmp_path / "data" / "processed" / "UEA" / "Tiny"


def load(folder, seed=1, **options):
    return create_dataset(folder.parents[2], folder.name, seed=seed, time=False, **options)


def as_npy(folder, stem):
    array = np.load(folder / f"{stem}.pkl", allow_pickle=True)
    np.save(folder / f"{stem}.npy", array)
    (folder / f"{stem}.pkl").unlink()
    return array


def describe(folder, *names):
    files = {
        name: {"sha256": sha256_of(folder / name), "bytes": (folder / name).stat().st_size}
        for name in (names or sorted(path.name for path in folder.iterdir()))
    }
    (folder / "dataset.json").write_text(json.dumps({"processed_files": files}))


def test_the_hash_is_that_of_the_arrays_whatever_file_seed_or_option(folder):
    first = load(folder).sha256
    assert len(first) == 64
    assert {load(folder, seed, split=split).sha256 for seed, split in ((2, "seed"), (1, "original"))} == {first}
    as_npy(folder, "data")
    assert load(folder).sha256 == first
    labels = as_npy(folder, "labels")
    assert load(folder).sha256 == first
    np.save(folder / "labels.npy", labels[::-1])
    assert load(folder).sha256 != first
    np.save(folder / "labels.npy", labels.astype(np.float32))  # another type: other roundings may follow
    assert load(folder).sha256 != first


def test_the_order_in_memory_is_not_part_of_the_hash(folder):
    first = load(folder).sha256
    array = read_array(folder / "data.pkl")
    assert sha256_of_array(np.asfortranarray(array)) == sha256_of_array(array)
    write_arrays(folder / "data.pkl", np.asfortranarray(array))
    assert load(folder).sha256 == first
    (folder / "data.pkl").unlink()
    np.save(folder / "data.npy", np.asfortranarray(array))
    assert sha256_of(folder / "data.npy") != sha256_of_array(array), "the file has the other order"
    assert load(folder).sha256 == first


def test_one_bit_more_or_less_is_another_hash(folder):
    first = load(folder).sha256
    array = np.array(as_npy(folder, "data"))
    array[7, 3, 1] = np.nextafter(array[7, 3, 1], 1)
    np.save(folder / "data.npy", array)
    assert load(folder).sha256 != first


def test_a_file_is_hashed_once_until_it_changes(folder, monkeypatch):
    read = []
    digest = files.hashlib.file_digest
    monkeypatch.setattr(files.hashlib, "file_digest", lambda file, kind: read.append(file.name) or digest(file, kind))
    path = folder / "more"
    path.write_bytes(b"one")
    assert known_sha256(path) == known_sha256(path) != ""
    assert len(read) == 1
    stat = path.stat()
    path.write_bytes(b"two")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # of the same size and the same time, as cp -p leaves it
    assert known_sha256(path) == sha256_of(path)


def test_a_described_npy_file_that_was_changed_is_refused(folder):
    data = as_npy(folder, "data").astype(np.float32)
    np.save(folder / "data.npy", data)
    describe(folder)
    assert load(folder).train.size == 14
    data = np.array(data)
    data[3, 2, 1] = np.nan
    np.save(folder / "data.npy", data)
    with pytest.raises(DataError, match=r"data\.npy: was changed since it was processed \(sha256\)"):
        load(folder)


def test_an_array_that_lies_there_twice_is_refused(folder):
    describe(folder)
    np.save(folder / "data.npy", np.zeros((20, 8, 2), np.float32))
    with pytest.raises(DataError, match=r"data\.npy: data\.pkl is beside it\. Remove the one"):
        load(folder)
    (folder / "data.npy").unlink()
    write_arrays(folder / "labels.pkl", np.eye(2)[np.arange(20) % 2][::-1].copy())
    with pytest.raises(DataError, match=r"labels\.pkl: was changed"):
        load(folder)
