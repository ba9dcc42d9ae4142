"""Files that appear in one piece, also after a power loss: they are on the disk before they have their name."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


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
