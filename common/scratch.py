"""Temporary folders that do not outlive a killed process for long.

A folder is named .NAME.MARK.new and is locked while its process lives; the system lifts the lock when the process ends,
however it ends. Who makes the next one beside it removes those that nobody holds. A folder that had to make room for a
new one is named .NAME.MARK.old in between.
"""

import fcntl
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_LEFTOVER = re.compile(r"\.(.+)\.([0-9a-f]{12})\.(new|old)")


@contextmanager
def scratch_folder(target: Path) -> Iterator[Path]:
    """Yields a new folder beside ``target`` and removes it at the end; first it removes what killed processes left."""
    remove_leftovers(target.parent)
    mark = uuid.uuid4().hex[:12]
    unlocked = target.parent / f".{target.name}.{mark}"
    unlocked.mkdir()
    held = os.open(unlocked, os.O_RDONLY)
    try:
        _lock(held)
        fresh = unlocked.rename(unlocked.with_name(f"{unlocked.name}.new"))
        yield fresh
    finally:
        shutil.rmtree(unlocked.with_name(f"{unlocked.name}.new"), ignore_errors=True)
        shutil.rmtree(unlocked, ignore_errors=True)
        os.close(held)


def former_of(fresh: Path) -> Path:
    """Where the folder goes that makes room for ``fresh``."""
    return fresh.with_suffix(".old")


def remove_leftovers(parent: Path) -> None:
    """Removes the temporary folders of processes that were killed, and puts back what one had moved away."""
    folders = {path: found for path in parent.glob(".*") if (found := _LEFTOVER.fullmatch(path.name))}
    for path, found in sorted(folders.items(), key=lambda item: item[1][3], reverse=True):  # .old before .new
        name, _, kind = found.groups()
        if _is_held(path if kind == "new" else path.with_suffix(".new")):
            continue
        if kind == "old" and not (parent / name).exists():
            with suppress(OSError):
                path.rename(parent / name)
        shutil.rmtree(path, ignore_errors=True)


def _is_held(folder: Path) -> bool:
    try:
        held = os.open(folder, os.O_RDONLY)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    try:
        return not _lock(held)
    finally:
        os.close(held)


def _lock(descriptor: int) -> bool:
    """Whether the lock was free. False too on a file system without locks: then nothing is ever removed there."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
