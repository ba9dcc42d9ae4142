"""Pixel sequences and PigCVP, on small made files of the same formats: fetched, checked, processed and split."""

import gzip
import io
import struct
import tarfile
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from raw_files import contents, files_below, full_disk

from data_dir import process_sequential, write_splits
from data_dir.datasets import create_dataset
from data_dir.fetching import sequential
from data_dir.fetching.sequential import CONTENTS, DebianSource, SiteSource, extract_from_deb, fetch_sequential
from data_dir.names import SEQUENTIAL
from data_dir.processing.sequential import KINDS, pixel_order
from data_dir.processing.sequential import process_sequential as processed
from data_dir.splits import read_index_file, write_index_file
from data_dir.storage import DEFAULT_DATA_DIR, DataError, read_json

TRAIN, TEST, SIDE = 34, 10, 3
RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.integers(256, size=(TRAIN + TEST, SIDE, SIDE), dtype=np.uint8)
IMAGES[-1] = IMAGES[0]  # a row in both parts
LABELS = (np.arange(TRAIN + TEST) % 10).astype(np.uint8)
PIG_SERIES = RANDOM.normal(3, 1, size=(12, 5))


def idx(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def table(rows, form="   {:.7e}") -> bytes:
    return "".join("".join(form.format(value) for value in row) + "\n" for row in rows).encode()


PIG_ROWS = np.column_stack([np.repeat([1, 2, 10], 4), PIG_SERIES])
FILES = {
    "FashionMNIST": {
        "train-images-idx3-ubyte.gz": idx(IMAGES[:TRAIN]),
        "train-labels-idx1-ubyte.gz": idx(LABELS[:TRAIN]),
        "t10k-images-idx3-ubyte.gz": idx(IMAGES[TRAIN:]),
        "t10k-labels-idx1-ubyte.gz": idx(LABELS[TRAIN:]),
    },
    "MNIST5k": {
        "mnist_5k.csv.gz": "".join(
            ",".join(map(str, [*image.ravel(), label])) + "\n" for image, label in zip(IMAGES, LABELS, strict=True)
        ).encode()
    },
    "PigCVP": {"PigCVP_TRAIN.txt": table(PIG_ROWS[::2]), "PigCVP_TEST.txt": table(PIG_ROWS[1::2])},
}


@pytest.fixture(autouse=True)
def pinned(monkeypatch):
    """The hashes of the made files take the place of those of the real ones."""
    for name, files in FILES.items():
        monkeypatch.setitem(CONTENTS, name, {file: sha256(content).hexdigest() for file, content in files.items()})


def put(data_dir: Path, name: str, **changes: bytes) -> Path:
    """The raw files of a set, placed by hand; a change names a file by its first letters."""
    folder = data_dir / "raw" / "sequential" / name
    folder.mkdir(parents=True, exist_ok=True)
    for file, content in FILES[name].items():
        content = next((new for start, new in changes.items() if file.startswith(start)), content)
        (folder / file).write_bytes(gzip.compress(content) if file.endswith(".gz") else content)
    return folder


def main(data_dir: Path, *flags: str, sources=()) -> int:
    return process_sequential.main(["--data_dir", str(data_dir), *flags], sources)


def folder_of(data_dir: Path, name: str) -> Path:
    return data_dir / "processed" / "sequential" / name


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A data folder with all sets, from files that were placed by hand."""
    root = tmp_path_factory.mktemp("sequential")
    with pytest.MonkeyPatch.context() as patch:
        for name, files in FILES.items():
            patch.setitem(CONTENTS, name, {file: sha256(content).hexdigest() for file, content in files.items()})
            put(root, name)
        assert main(root) == 0
    return root


def test_images_become_pixel_sequences_in_the_published_order(made):
    data = create_dataset(made, "FashionMNISTRows", seed=1, time=False, split="original")
    pixels = np.load(folder_of(made, "FashionMNISTRows") / "data.npy")
    np.testing.assert_array_equal(pixels[:, :, 0], IMAGES.reshape(44, 9).astype(np.float32) / np.float32(255))
    assert data.class_names[:2] == ["T-shirt/top", "Trouser"]
    np.testing.assert_array_equal(data.split["test"], np.arange(34, 44))
    np.testing.assert_array_equal(data.test.data, pixels[34:])
    np.testing.assert_array_equal(data.test.labels.argmax(axis=1), LABELS[34:])
    assert (data.train.size, data.validation.size, data.length, data.data_dim) == (28, 6, 9, 1)
    other = create_dataset(made, "FashionMNISTRows", seed=2, time=False, split="original")
    np.testing.assert_array_equal(other.split["test"], np.arange(34, 44))
    assert set(other.split["validation"]) != set(data.split["validation"])


def test_all_images_are_permuted_alike_and_lie_row_after_row_in_the_file(made):
    rows, permuted = (np.load(folder_of(made, name) / "data.npy") for name in SEQUENTIAL[:2])
    order = pixel_order(9)
    assert sorted(order) == list(range(9))
    assert list(order) != list(range(9))
    np.testing.assert_array_equal(permuted, rows[:, order])
    assert permuted.flags.c_contiguous


def test_the_order_of_the_pixels_never_changes():
    assert pixel_order(784)[:6].tolist() == [162, 670, 664, 185, 322, 431]
    assert sha256(pixel_order(784).astype("<i8").tobytes()).hexdigest()[:16] == "7e2a45120b0b71f3"


def test_digits_have_no_test_part_and_are_split_by_seed(made):
    data = create_dataset(made, "MNIST5k", seed=1, time=False)
    np.testing.assert_array_equal(
        data.train.data[:, :, 0], IMAGES.reshape(44, 9)[data.split["train"]] / np.float32(255)
    )
    assert (data.train.size, data.validation.size, data.test.size) == (30, 7, 7)
    assert not read_json(folder_of(made, "MNIST5k") / "dataset.json")["fixed_test"]


def test_pigs_are_classes_in_the_order_of_their_numbers(made):
    data = create_dataset(made, "PigCVP", seed=1, time=False, split="original")
    assert data.class_names == ["1", "2", "10"]
    np.testing.assert_allclose(data.test.data[:, :, 0], PIG_SERIES[1::2], rtol=1e-6)
    assert data.test.labels.argmax(axis=1).tolist() == [0, 0, 1, 1, 2, 2]


def test_dataset_json_says_where_the_files_came_from_and_what_was_found(made):
    info = read_json(folder_of(made, "FashionMNISTPermuted") / "dataset.json")
    assert info["source"] == f"files in {made / 'raw' / 'sequential' / 'FashionMNIST'}"
    assert info["raw_files"].keys() == FILES["FashionMNIST"].keys()
    assert info["processed_files"].keys() == {"data.npy", "labels.npy", "original_idxs.pkl"}
    (finding,) = [finding for finding in info["findings"] if finding["kind"] == "duplicate_rows"]
    assert (finding["rows"], finding["in_both_files"]) == (1, 1)
    assert finding["text"].endswith("all are kept, as published")
    assert info["class_counts"] == [5, 5, 5, 5, 4, 4, 4, 4, 4, 4]
    assert info["pixel_order"] == "drawn, seed 0"


def test_the_published_test_part_is_never_trained_on(made, tmp_path):
    name = "FashionMNISTRows"
    with pytest.raises(DataError, match=r'test part of 10 series, .* Write "split": "original"'):
        create_dataset(made, name, seed=1, time=False)
    rows = create_dataset(made, name, seed=1, time=False, split="original").split
    write_index_file(
        tmp_path / "mine.json", name, 44, {1: rows | {"validation": np.arange(3), "train": np.arange(3, 30)}}
    )
    assert create_dataset(made, name, seed=1, time=False, split=tmp_path / "mine.json").validation.size == 3
    mixed = rows | {"train": np.append(rows["train"], 40), "test": rows["test"][rows["test"] != 40]}
    write_index_file(tmp_path / "mixed.json", name, 44, {1: mixed})
    with pytest.raises(DataError, match=r"mixed.json: seed 1: rows of the published test part of FashionMNISTRows"):
        create_dataset(made, name, seed=1, time=False, split=tmp_path / "mixed.json")


def test_index_files_keep_the_published_test_part(made, tmp_path, capsys):
    names = ["FashionMNISTRows", "MNIST5k"]
    flags = ["--data_dir", str(made), "--output_dir", str(tmp_path), "--seeds", "1", "2", "--datasets", *names]
    assert write_splits.main(flags) == 0
    assert "FashionMNISTRows: 44 samples, seeds 1, 2" in capsys.readouterr().out
    for seed in (1, 2):
        split = read_index_file(tmp_path / "FashionMNISTRows.json", "FashionMNISTRows", 44, seed)
        asked = create_dataset(made, "FashionMNISTRows", seed=seed, time=False, split="original").split
        assert all(np.array_equal(split[part], asked[part]) for part in asked)
    by_seed = create_dataset(made, "MNIST5k", seed=1, time=False).split
    np.testing.assert_array_equal(read_index_file(tmp_path / "MNIST5k.json", "MNIST5k", 44, 1)["test"], by_seed["test"])


# Sources


def deb(files: dict[str, bytes], folder="usr/share/datasets/fashion-mnist", compression="xz") -> bytes:
    """A Debian package: an ar archive of three members. The second has an odd size, so that a byte fills it."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode=f"w:{compression}") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(f"./{folder}/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    members = {"debian-binary": b"2.0\n", "control.tar.xz": b"odd", f"data.tar.{compression}": packed.getvalue()}
    archive = b"!<arch>\n"
    for name, content in members.items():
        archive += f"{name:<16}{0:<12}{0:<6}{0:<6}{0o100644:<8o}{len(content):<10}`\n".encode()
        archive += content + b"\n" * (len(content) % 2)
    return archive


PACKED = {name: gzip.compress(content, mtime=0) for name, content in FILES["FashionMNIST"].items()}
DEB = deb(PACKED)


class Package(DebianSource):
    """The package, as apt-get would leave it."""

    def _apt_get(self, arguments, folder, show_progress):
        ASKED.append(arguments)
        if len(ASKED) == 3:  # the lists of the system do not have it, lists of its own do
            (folder / "fashion_1_all.deb").write_bytes(DEB)
        return type(
            "Done",
            (),
            {"returncode": int(arguments[-1] == "dataset-fashion-mnist" and len(ASKED) < 3), "stderr": "E: no"},
        )()


ASKED: list = []


def package(kind=Package, content=DEB):
    ASKED.clear()
    return kind(
        "dataset-fashion-mnist", "FashionMNIST", "usr/share/datasets/fashion-mnist", sha256(content).hexdigest()
    )


def test_a_debian_package_is_fetched_without_root_and_unpacked(tmp_path):
    assert main(tmp_path, "--datasets", "FashionMNISTRows", sources=[package()]) == 0
    lists, cache = ASKED[1][:2]
    assert ASKED[0] == ["download", "dataset-fashion-mnist"]
    assert lists.startswith("-oDir::State::Lists=/")
    assert cache.startswith("-oDir::Cache=/")
    assert [ASKED[1][2:], ASKED[2][2:]] == [["update"], ["download", "dataset-fashion-mnist"]]
    raw = tmp_path / "raw" / "sequential"
    assert [name for name in files_below(raw) if "." in name] == sorted(
        f"FashionMNIST/{x}" for x in [*PACKED, "source.json"]
    )
    assert {name: (raw / "FashionMNIST" / name).read_bytes() for name in PACKED} == PACKED
    assert read_json(raw / "FashionMNIST" / "source.json")["source"] == "fashion_1_all.deb"
    assert read_json(folder_of(tmp_path, "FashionMNISTRows") / "dataset.json")["source"] == "fashion_1_all.deb"
    asked = len(ASKED)
    assert main(tmp_path, "--datasets", "FashionMNISTPermuted", sources=[package(DebianSource)]) == 0, asked


def test_without_a_network_the_message_says_what_to_do_elsewhere(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sequential.shutil, "which", lambda _: None)
    site = SiteSource("the site", "FashionMNIST", "http://127.0.0.1:9", attempts=1)
    assert main(tmp_path, "--datasets", *SEQUENTIAL[:2], sources=[package(DebianSource), site]) == 1
    error = capsys.readouterr().err
    assert "the Debian package dataset-fashion-mnist: dataset-fashion-mnist: this machine has no apt-get." in error
    assert "the site: http://127.0.0.1:9/train-images-idx3-ubyte.gz: no connection (" in error
    folder = tmp_path / "raw" / "sequential" / "FashionMNIST"
    assert f"By hand: put {', '.join(PACKED)} into {folder}\n  and run this command again." in error
    assert "not tried again after" in error
    assert [name for name in files_below(tmp_path) if name not in ("raw", "raw/sequential")] == []


def test_a_package_with_another_hash_is_not_kept(tmp_path, capsys):
    assert main(tmp_path, "--datasets", "FashionMNISTRows", sources=[package(content=b"other")]) == 1
    assert "fashion_1_all.deb: sha256" in (error := capsys.readouterr().err)
    assert "--accept_changed_files takes it" in error
    assert not (tmp_path / "raw" / "sequential" / "FashionMNIST").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"PK", "not a sound Debian package .it is no ar archive"),
        (b"!<arch>\n", "it has no data.tar"),
        (DEB[:-200], "not a sound Debian package"),
        (deb({"other": b""}), "train-images-idx3-ubyte.gz' not found"),
    ],
)
def test_a_damaged_package_is_refused(tmp_path, content, message):
    path = tmp_path / "x.deb"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as error:
        extract_from_deb(path, {name: f"usr/share/datasets/fashion-mnist/{name}" for name in PACKED}, tmp_path)
    assert str(path) in str(error.value)


def test_files_placed_by_hand_are_compared_with_the_pinned_hashes(tmp_path, capsys):
    folder = put(tmp_path, "PigCVP", PigCVP_TEST=table(PIG_ROWS[1:]))
    assert main(tmp_path, "--datasets", "PigCVP") == 1
    assert f"{folder / 'PigCVP_TEST.txt'}: the content has the sha256 " in capsys.readouterr().err
    assert main(tmp_path, "--datasets", "PigCVP", "--accept_changed_files") == 0
    (folder / "PigCVP_TEST.txt").unlink()
    assert main(tmp_path, "--datasets", "PigCVP") == 1
    assert "PigCVP_TEST.txt: no such file. The raw files of PigCVP are PigCVP_TRAIN.txt, PigCVP_TEST.txt" in (
        capsys.readouterr().err
    )


def test_fetched_files_that_changed_are_refused(tmp_path):
    assert main(tmp_path, "--datasets", "FashionMNISTRows", sources=[package()]) == 0
    file = tmp_path / "raw" / "sequential" / "FashionMNIST" / "t10k-labels-idx1-ubyte.gz"
    file.write_bytes(gzip.compress(idx(LABELS[:TEST])))
    with pytest.raises(DataError, match=r"t10k-labels-idx1-ubyte.gz: sha256 .* Move the folder away"):
        fetch_sequential("FashionMNIST", tmp_path / "raw", sources=[])


# Damaged files


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        (
            "FashionMNISTRows",
            {"train-images": b"\0\0\x0d\3" + bytes(20)},
            "is no idx file of unsigned bytes with 3 axes",
        ),
        ("FashionMNISTRows", {"t10k-images": idx(IMAGES[TRAIN:])[:-1]}, "has 89 bytes of values, but its header says"),
        ("FashionMNISTRows", {"t10k-labels": idx(LABELS[:9])}, r"t10k has images \(10, 3, 3\) and labels \(9,\)"),
        ("FashionMNISTRows", {"t10k-labels": idx(LABELS[TRAIN:] + 1)}, "label 10 is not one of the 10 classes"),
        ("MNIST5k", {"mnist": b"1,2,3\n4,5\n"}, "is no table of numbers, with as many in each line"),
        ("MNIST5k", {"mnist": b"1,256,3\n4,5,6\n"}, "needed are pixels from 0 to 255 and a label from 0 to 9"),
        ("MNIST5k", {"mnist": b""}, "needed are lines of at least two finite numbers"),
        ("PigCVP", {"PigCVP_TEST": b"1 2 x\n"}, "PigCVP_TEST.txt: is no table of numbers"),
        ("PigCVP", {"PigCVP_TEST": b"1 2 nan\n"}, "PigCVP_TEST.txt: needed are lines of at least two finite numbers"),
        ("PigCVP", {"PigCVP_TEST": b"1 2 3\n"}, "lines of 6 numbers to train and 3 to test"),
        (
            "PigCVP",
            {"PigCVP_TEST": table(PIG_ROWS[1::2] + 0.5)},
            "the first number of a line, its class, must be whole",
        ),
    ],
)
def test_damaged_files_are_refused(tmp_path, name, changes, message):
    folder = put(tmp_path, KINDS[name].raw, **changes)
    with pytest.raises(DataError, match=message):
        processed(name, folder, tmp_path)
    assert not (tmp_path / "processed").exists()


def test_a_file_that_is_cut_is_named(tmp_path):
    folder = put(tmp_path, "MNIST5k")
    path = folder / "mnist_5k.csv.gz"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"mnist_5k.csv.gz: cannot be read .*Fetch the file again"):
        fetch_sequential("MNIST5k", tmp_path / "raw", sources=[])


def test_a_full_disk_keeps_what_was_there(made, capsys):
    before = contents(folder_of(made, "PigCVP"))
    with full_disk(100):
        assert main(made, "--datasets", "PigCVP") == 1
    assert contents(folder_of(made, "PigCVP")) == before
    assert "cannot be written" in capsys.readouterr().err


def test_names_are_known(tmp_path, capsys):
    assert tuple(KINDS) == SEQUENTIAL
    assert main(tmp_path, "--datasets", "fashionmnist rows") == 1
    assert "Did you mean 'FashionMNISTRows'?" in capsys.readouterr().err
    with pytest.raises(DataError, match=r"process_sequential.py --datasets PigCVP --data_dir"):
        create_dataset(tmp_path, "PigCVP", seed=1, time=False)


REAL = DEFAULT_DATA_DIR / "processed" / "sequential" / "FashionMNISTRows"


@pytest.mark.skipif(not REAL.exists(), reason="python data_dir/process_sequential.py --datasets FashionMNISTRows")
def test_the_real_images():
    data = create_dataset(DEFAULT_DATA_DIR, "FashionMNISTRows", seed=2345, time=False, split="original")
    assert (data.train.size, data.validation.size, data.test.size, data.length) == (49412, 10588, 10000, 784)
    assert data.test.labels.sum(axis=0).tolist() == [1000] * 10
    assert data.test.data[0, :, 0].sum() == pytest.approx(33456 / 255, rel=1e-4)
