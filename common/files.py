"""Files that appear in one piece, also after a power loss: they are on the disk before they have their name. Hashes."""

import errno
import functools
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give the path of a temporary file that takes the place of `path` once the block has ended well.

    **Raises:** `OSError` if `path` is there and no regular file (a folder, a device): such things are not replaced.
    """
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "is there and not a regular file; only files are replaced", str(path))
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        yield temporary
        sync(temporary)
        os.replace(temporary, path)
        sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def sync(file: Path) -> None:
    """Wait until what was written to a file is on the disk."""
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """The same for the names in a folder, as far as the file system can."""
    with suppress(OSError):
        sync(folder)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON value, indented, in one piece."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def sha256_of(path: Path) -> str:
    """The sha256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def once_per_file(compute: Callable[..., str]) -> Callable[..., str]:
    """Remember, while the process lives, what `compute(path, ...)` gives for a file that stays the same.

    A file is the same if path, inode, size and the times of its last changes are the same. Further arguments are what
    the caller has read of the file already; they are not part of the key.
    """
    known: dict[tuple, str] = {}

    @functools.wraps(compute)
    def of_file(path: Path, *read: Any) -> str:
        stat = path.stat()
        key = (path, stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
        if key not in known:
            known[key] = compute(path, *read)
        return known[key]

    return of_file


@once_per_file
def known_sha256(path: Path, content: bytes | None = None) -> str:
    """The sha256 of a file, computed once in a process; `content` saves reading the file."""
    return sha256_of(path) if content is None else hashlib.sha256(content).hexdigest()


def sha256_of_array(array: np.ndarray) -> str:
    """The sha256 of type, shape and values: the hash of the npy file of the array in C order."""
    digest = hashlib.sha256()
    # For an array in Fortran order, numpy would write another header and another order of the same values.
    np.lib.format.write_array(_Written(digest.update), np.asarray(array, order="C"), allow_pickle=False)
    return digest.hexdigest()


@once_per_file
def known_sha256_of_array(path: Path, array: np.ndarray) -> str:
    """`sha256_of_array` of the array in a file, computed once in a process."""
    is_npy_in_c_order = path.suffix == ".npy" and array.flags.c_contiguous
    return known_sha256(path) if is_npy_in_c_order else sha256_of_array(array)


class _Written:
    """A file that passes on what is written to it."""

    def __init__(self, write: Callable[[bytes], None]):
        self.write = write
