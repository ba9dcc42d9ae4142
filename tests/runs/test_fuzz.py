"""Damaged files of every kind: read as something sound, or refused with their name; never a traceback or a hang.

Short here; `make test-all` spoils 1,000 files of each kind.
"""

import io
import json
import pickle
import random
import signal
import zipfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from raw_files import ARFF_HEADER, ARFF_TRAIN, HEADER, TRAIN
from small_experiments import FIELDS

from data_dir.fetching.archives import extract_files, series_members
from data_dir.npy import read_npy
from data_dir.pickles import read_array
from data_dir.processing.readers import read_raw
from data_dir.storage import DataError
from experiment_configs.schema import ConfigError, load_config

SECONDS = 10  # for one file


def npy_bytes() -> bytes:
    file = io.BytesIO()
    np.save(file, np.arange(24, dtype=np.float32).reshape(2, 3, 4))
    return file.getvalue()


def zip_bytes() -> bytes:
    file = io.BytesIO()
    kinds = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
    with zipfile.ZipFile(file, "w") as archive:
        for number, kind in enumerate(kinds):
            archive.writestr(f"Toy/ü{number}.txt", b"word " * 20, kind)
        for part, kind in (("TRAIN", kinds[2]), ("TEST", kinds[3])):
            archive.writestr(f"Toy/Toy_{part}.ts", HEADER + TRAIN, kind)
    return file.getvalue()


def pickles() -> list[bytes]:
    array = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    values = (array, [array.T, array[0]], (np.arange(3), np.empty(0, np.int64)), np.float64(1.5), [1, [2.5, True]])
    return [pickle.dumps(value, protocol) for value in values for protocol in (0, 2, 4, 5)]


def configs() -> list[bytes]:
    fields = {**FIELDS, "dataset_name": "Toy", "data_dir": "data", "output_parent_dir": ""}
    texts = {name: value if isinstance(value, list) else str(value) for name, value in fields.items()}
    return [json.dumps(content, indent=2).encode() for content in (fields, texts)]


def unpack(path: Path) -> None:
    extract_files(path, series_members(path, "Toy"), path.parent)


def both_ways(path: Path) -> None:
    for labelled in (False, True):
        raw = read_raw(path, labelled=labelled)
        assert np.isfinite(raw.data).sum() + raw.missing <= raw.data.size


# What is spoiled, under which name, and who reads it.
KINDS = {
    "npy": ([npy_bytes()], "a.npy", read_npy),
    "zip": ([zip_bytes()], "a.zip", unpack),
    "pickle": (pickles(), "a.pkl", read_array),
    "ts": (
        [(HEADER + TRAIN).encode(), (HEADER.replace("true a b", "false") + "1,2:3,4\n").encode()],
        "a.ts",
        both_ways,
    ),
    "arff": ([(ARFF_HEADER + ARFF_TRAIN).encode()], "a.arff", both_ways),
    "config": (configs(), "a.json", lambda path: load_config(path, "LinHRU")),
}


def spoiled(content: bytes, rng: random.Random) -> bytes:
    """A copy with up to four flips, cuts, repeats, insertions and exchanges."""
    for _ in range(rng.randint(1, 4)):
        at, length = rng.randrange(len(content) + 1), rng.choice((1, 1, 2, 4, 8, 30))
        head, middle, tail = content[:at], content[at : at + length], content[at + length :]
        change = rng.choice(("flip", "cut", "repeat", "insert", "end", "number"))
        if change == "flip" and middle:
            middle = bytes([middle[0] ^ (1 << rng.randrange(8))]) + middle[1:]
        elif change == "cut":
            middle = b""
        elif change == "repeat":
            middle = middle * rng.choice((2, 3, 50))
        elif change == "insert":
            middle = rng.randbytes(length) + middle
        elif change == "end" and rng.random() < 0.3:
            middle, tail = b"", b""
        elif change == "number":
            middle = rng.choice(
                (b"\xff\xff\xff\x7f", b"\x00" * 4, b"-1", b"9" * 30, b"1e999", b"nan", b"(", b"'", b"{")
            )
        content = head + middle + tail
    return content


@contextmanager
def time_limit(seconds: int):
    def out_of_time(*_):
        raise AssertionError(f"took over {seconds} s")

    before = signal.signal(signal.SIGALRM, out_of_time)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [60, pytest.param(1000, marks=pytest.mark.long)])
def test_spoiled_files_are_read_or_refused_by_name(tmp_path, kind, count):
    contents, name, read = KINDS[kind]
    rng, refused = random.Random(f"{kind} {count}"), 0
    path = tmp_path / name
    for number in range(count):
        content = spoiled(contents[number % len(contents)], rng)
        path.write_bytes(content)
        try:
            with time_limit(SECONDS):
                read(path)
        except (DataError, ConfigError) as error:
            message = str(error)
        except Exception as error:
            raise AssertionError(f"{type(error).__name__}: {error}, from {content!r}") from error
        else:
            continue
        refused += 1
        assert message.startswith(str(path)), content
        assert "\n" not in message, content
    assert refused > count / 10
