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


def once_per_file(compute: Callable[[Path], str]) -> Callable[[Path], str]:
    """Remembers, while the process lives, what ``compute`` gives for a file, as long as the file stays the same.

    A file is the same if path, inode, size and the times of its last changes are.
    """

    @functools.lru_cache(maxsize=1024)
    def of_identity(path, *identity):
        return compute(path)

    @functools.wraps(compute)
    def of_file(path: Path) -> str:
        stat = path.stat()
        return of_identity(path, stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)

    return of_file


known_sha256 = once_per_file(sha256_of)


def sha256_of_array(array: np.ndarray) -> str:
    """The sha256 of type, shape and values: that of the npy file which holds the array."""
    digest = hashlib.sha256()
    np.lib.format.write_array(_Written(digest.update), array, allow_pickle=False)
    return digest.hexdigest()


class _Written:
    """A file that hands on what is written."""

    def __init__(self, write: Callable[[bytes], None]):
        self.write = write
