"""From raw files to processed sequential sets: images as sequences of pixels, and PigCVP.

All rows stay, in the published order: the train part, then the test part. Rows that repeat are reported and kept, so
that results compare with published ones.
"""

import platform
import struct
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from common.files import sha256_of, write_json
from data_dir.fetching.origin import RECORD
from data_dir.fetching.sequential import CONTENTS, DIGITS, FASHION, PIGS, read_content
from data_dir.folders import new_folder
from data_dir.pickles import write_arrays
from data_dir.processing.audit import audit_rows, audit_series
from data_dir.processing.merging import MergedSet, compare_rows
from data_dir.storage import DataError, processed_folder, read_json

COLLECTION = "sequential"
PERMUTATION_SEED = 0
# In the order of the labels 0 to 9, from the paper of Fashion-MNIST.
_CLOTHES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
_IDX_UNSIGNED_BYTE = 0x08


class Series(NamedTuple):
    """The rows of a set, train first: values (n, L) float32, classes (n,) into class_names, and the train rows."""

    values: Float[np.ndarray, "n L"]
    classes: Int[np.ndarray, " n"]
    class_names: list[str]
    n_train: int


def read_idx(path: Path, axes: int) -> np.ndarray:
    """The array of unsigned bytes in an idx file, packed by gzip. Raises DataError, naming the file."""
    content = read_content(path)
    start = 4 + 4 * axes
    if len(content) < start or content[:4] != bytes([0, 0, _IDX_UNSIGNED_BYTE, axes]):
        raise DataError(f"{path}: is no idx file of unsigned bytes with {axes} axes.")
    shape = struct.unpack(f">{axes}I", content[4:start])
    if len(content) - start != np.prod(shape, dtype=object):
        raise DataError(f"{path}: has {len(content) - start} bytes of values, but its header says {shape}.")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def read_fashion(folder: Path) -> Series:
    """Fashion-MNIST: 60,000 and 10,000 images of 28 x 28 pixels, row after row, in [0, 1]."""
    images, labels = [], []
    for part in ("train", "t10k"):
        images.append(read_idx(folder / f"{part}-images-idx3-ubyte.gz", 3))
        labels.append(read_idx(folder / f"{part}-labels-idx1-ubyte.gz", 1))
        if len(images[-1]) != len(labels[-1]) or images[-1].shape[1:] != images[0].shape[1:]:
            raise DataError(f"{folder}: {part} has images {images[-1].shape} and labels {labels[-1].shape}.")
    classes = np.concatenate(labels).astype(np.int64)
    if classes.max(initial=0) >= len(_CLOTHES):
        raise DataError(f"{folder}: label {classes.max()} is not one of the {len(_CLOTHES)} classes.")
    return Series(_pixels(np.concatenate(images)), classes, list(_CLOTHES), len(images[0]))


def read_permuted_fashion(folder: Path) -> Series:
    """As ``read_fashion``, the pixels of every image in one and the same drawn order."""
    series = read_fashion(folder)
    return series._replace(values=series.values[:, pixel_order(series.values.shape[1])])


def pixel_order(pixels: int) -> Int[np.ndarray, " pixels"]:
    """The fixed order of the permuted sets: raw words of Philox, sorted. No version of numpy changes it."""
    words = np.random.Philox(key=PERMUTATION_SEED).random_raw(pixels)
    return np.argsort(words, kind="stable")


def read_digits(folder: Path) -> Series:
    """5,000 digits of MNIST: a line for each image, 784 pixels and the label. There is no test part."""
    path = folder / "mnist_5k.csv.gz"
    table = _numbers(path, ",")
    if np.any(table != np.round(table)) or table.min() < 0 or table.max() > 255 or table[:, -1].max() > 9:
        raise DataError(f"{path}: needed are pixels from 0 to 255 and a label from 0 to 9 in each line.")
    classes = table[:, -1].astype(np.int64)
    return Series(_pixels(table[:, :-1]), classes, [str(digit) for digit in range(10)], len(table))


def read_pigs(folder: Path) -> Series:
    """PigCVP: a line for each series, the number of the pig and 2,000 values of its central venous pressure."""
    tables = [_numbers(folder / f"PigCVP_{part}.txt", None) for part in ("TRAIN", "TEST")]
    if tables[0].shape[1] != tables[1].shape[1]:
        raise DataError(f"{folder}: lines of {tables[0].shape[1]} numbers to train and {tables[1].shape[1]} to test.")
    table = np.concatenate(tables)
    names, classes = np.unique(table[:, 0], return_inverse=True)
    if np.any(names != np.round(names)):
        raise DataError(f"{folder}: the first number of a line, its class, must be whole.")
    return Series(table[:, 1:].astype(np.float32), classes, [f"{name:.0f}" for name in names], len(tables[0]))


def _pixels(bytes_of_images: np.ndarray) -> Float[np.ndarray, "n L"]:
    return bytes_of_images.reshape(len(bytes_of_images), -1).astype(np.float32) / np.float32(255)


def _numbers(path: Path, separator: str | None) -> np.ndarray:
    """The numbers of a text file, a row for each line. Raises DataError, naming the file."""
    try:
        lines = read_content(path).decode("ascii").splitlines()
        table = np.array([line.split(separator) for line in lines], dtype=np.float64)
    except ValueError as error:  # also lines of different lengths, and what is no ASCII
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path}: is no table of numbers, with as many in each line ({error}).") from error
    if table.ndim != 2 or table.shape[1] < 2 or not np.isfinite(table).all():
        raise DataError(f"{path}: needed are lines of at least two finite numbers.")
    return table


class _Kind(NamedTuple):
    """How a set is made: the name of its raw files, their reader, and the order of its pixels in words."""

    raw: str
    read: Callable[[Path], Series]
    order: str | None = None


KINDS = {
    "FashionMNISTRows": _Kind(FASHION, read_fashion, "row after row"),
    "FashionMNISTPermuted": _Kind(FASHION, read_permuted_fashion, f"drawn, seed {PERMUTATION_SEED}"),
    "MNIST5k": _Kind(DIGITS, read_digits, "row after row"),
    "PigCVP": _Kind(PIGS, read_pigs),
}


def process_sequential(name: str, folder: Path, data_dir: str | Path) -> dict:
    """Processes the raw files in ``folder`` into processed/sequential/``name``; returns the content of dataset.json.

    data.npy (n, L, 1) float32, labels.npy (n, K) one-hot float32; original_idxs.pkl if the set has a test part, which
    then is fixed ("fixed_test"). The folder appears in one piece. Raises DataError, naming the file.
    """
    kind = KINDS[name]
    series = kind.read(folder)
    n, length = series.values.shape
    rows = np.ascontiguousarray(series.values)[:, :, None]  # so that a batch is read from few places of the file
    counts = np.bincount(series.classes, minlength=len(series.class_names)).tolist()
    first, in_train, in_test, conflicts = compare_rows(rows, series.n_train, series.classes, series.class_names)
    merged = MergedSet(
        data=rows,
        lengths=np.full(n, length),
        classes=series.classes,
        class_names=series.class_names,
        original=(np.arange(series.n_train), np.arange(series.n_train, n)),
        duplicates=n - len(first),
        in_both_files=int((in_train & in_test).sum()),
        conflicts=conflicts,
        missing=0,
    )
    findings = [*audit_series(rows), *audit_rows(merged, counts)]
    for finding in findings:
        if finding["kind"] == "duplicate_rows":
            finding["text"] += "; all are kept, as published"
    info = {
        "name": name,
        "source": str(read_json(folder / RECORD).get("source")) if (folder / RECORD).exists() else f"files in {folder}",
        "raw_files": {file: _identity(folder / file) for file in CONTENTS[kind.raw]},
        **{"n_samples": n, "length": length, "channels": 1},
        "class_names": series.class_names,
        "class_counts": counts,
        "fixed_test": series.n_train < n,
        **({} if kind.order is None else {"pixel_order": kind.order}),
        "duplicates_removed": 0,
        "findings": findings,
        "versions": {"python": platform.python_version(), "numpy": version("numpy")},
    }
    with new_folder(processed_folder(data_dir) / COLLECTION / name) as fresh:
        np.save(fresh / "data.npy", rows)
        np.save(fresh / "labels.npy", np.eye(len(counts), dtype=np.float32)[series.classes])
        files = ["data.npy", "labels.npy"]
        if info["fixed_test"]:
            files.append("original_idxs.pkl")
            write_arrays(fresh / files[-1], (merged.original[0], np.empty(0, dtype=np.int64), merged.original[1]))
        info["processed_files"] = {file: _identity(fresh / file) for file in files}
        write_json(fresh / "dataset.json", info)
    return info


def _identity(file: Path) -> dict:
    return {"sha256": sha256_of(file), "bytes": file.stat().st_size}
