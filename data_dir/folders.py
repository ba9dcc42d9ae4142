"""Folders that appear in one piece, and temporary folders that do not outlive a killed process for long.

A temporary folder is named .NAME.MARK.new. The process that writes it holds a lock on it, which the system lifts when
the process ends. The next process that makes a temporary folder beside it removes those without a lock. While a new
folder replaces an old one, the old one is named .NAME.MARK.old.
"""

import errno
import fcntl
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from data_dir.storage import DataError

_LEFTOVER = re.compile(r"\.(.+)\.([0-9a-f]{12})\.(new|old)")


@contextmanager
def new_folder(target: Path, *, keep: Callable[[Path], bool] | None = None) -> Iterator[Path]:
    """Yields a temporary folder beside ``target``, which replaces ``target`` when the block ends without an error.

    After an error, or if the process is killed, ``target`` is what it was before. Several processes may write the same
    target. The last one wins; if ``keep(target)`` is true for the existing folder, the first one wins. Raises DataError
    if a file or folder cannot be written (a full disk).
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with scratch_folder(target) as fresh:
            yield fresh
            _put(fresh, target, keep)
    except OSError as error:
        # A failed write carries no file name. A name outside of the folder belongs to a file that was read.
        if error.filename is None or Path(error.filename).is_relative_to(target.parent):
            raise DataError(
                f"{target}: cannot be written ({error.strerror or error}). The folder is as it was before."
            ) from error
        raise


@contextmanager
def scratch_folder(target: Path) -> Iterator[Path]:
    """Yields a new folder beside ``target`` and removes it at the end. First removes what killed processes left."""
    _remove_leftovers(target.parent)
    unlocked = target.parent / f".{target.name}.{uuid.uuid4().hex[:12]}"
    fresh = unlocked.with_name(f"{unlocked.name}.new")
    unlocked.mkdir()
    descriptor = os.open(unlocked, os.O_RDONLY)
    try:
        _lock(descriptor)
        yield unlocked.rename(fresh)  # It has the name of a leftover only after it is locked.
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
        shutil.rmtree(unlocked, ignore_errors=True)
        os.close(descriptor)


def _put(fresh: Path, target: Path, keep: Callable[[Path], bool] | None) -> None:
    """Gives ``fresh`` the name ``target``. If this fails, the existing folder gets its name back."""
    former = fresh.with_suffix(".old")
    try:
        while not _moved(fresh, target):
            if keep is not None and keep(target):
                break
            shutil.rmtree(former, ignore_errors=True)
            with suppress(FileNotFoundError):  # Another process may have just moved it away.
                target.rename(former)
    finally:
        if former.exists() and not target.exists():
            former.rename(target)
        shutil.rmtree(former, ignore_errors=True)


def _moved(folder: Path, target: Path) -> bool:
    """Renames ``folder``. False if ``target`` is a folder that is not empty."""
    try:
        folder.rename(target)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        return False
    return True


def _remove_leftovers(parent: Path) -> None:
    """Removes the temporary folders of killed processes, and moves an old folder back if its place is empty."""
    folders = {path: match for path in parent.glob(".*") if (match := _LEFTOVER.fullmatch(path.name))}
    for path, match in sorted(folders.items(), key=lambda item: item[1][3], reverse=True):  # .old before .new
        if _is_held(path.with_suffix(".new")):
            continue
        if match[3] == "old" and not (parent / match[1]).exists():
            with suppress(OSError):
                path.rename(parent / match[1])
        shutil.rmtree(path, ignore_errors=True)


def _is_held(folder: Path) -> bool:
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    try:
        return not _lock(descriptor)
    finally:
        os.close(descriptor)


def _lock(descriptor: int) -> bool:
    """Whether the lock was free. False on a file system without locks, so that leftovers stay there."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
