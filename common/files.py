"""Files that appear in one piece, and hashes. The content is on the disk before the file has its name."""

import errno
import functools
import hashlib
import io
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give the path of a temporary file. It replaces `path` when the block ends without an error.

    **Raises:** `OSError` if `path` exists and is not a regular file (a folder, a device).
    """
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "exists and is not a regular file, so it is not replaced", str(path))
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        yield temporary
        sync(temporary)
        os.replace(temporary, path)
        sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def sync(file: Path) -> None:
    """Wait until the content of a file is on the disk."""
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on the disk, if the file system can do this."""
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


def known_sha256(path: Path) -> str:
    """The sha256 of a file. A process computes it once, as long as inode, size and times of the file stay the same."""
    stat = path.stat()
    return _sha256_of(path, stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)


@functools.cache
def _sha256_of(path: Path, *_: int) -> str:
    return sha256_of(path)


def sha256_of_array(array: np.ndarray) -> str:
    """The sha256 of type, shape and values. It equals the sha256 of the npy file of the array in C order."""
    array = np.asarray(array, order="C")
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(array))
    digest = hashlib.sha256(header.getvalue())
    digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()
