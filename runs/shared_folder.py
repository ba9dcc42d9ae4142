"""The folder of a run that several processes make together (`training.hosts`). Process 0 writes it, all must see it."""

import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from runs.folder import LOCK, RunRefused, locked
from training import hosts

SEEN_S = 60  # in which a file of process 0 must appear in the other processes: NFS keeps a folder in mind so long


@contextmanager
def locked_by_first(folder: Path) -> Iterator[None]:
    """Make and lock the folder, in process 0 of those that train together. The others must see it.

    **Raises:** `RunRefused`, as `locked`, and for a folder that is not that of process 0.
    """
    with ExitStack() as locks:

        def lock():
            folder.mkdir(parents=True, exist_ok=True)
            locks.enter_context(locked(folder))
            token = uuid.uuid4().hex
            if hosts.processes() > 1:
                (folder / LOCK).write_text(token, encoding="utf-8")
            return token

        token = hosts.from_first(lock)
        if not hosts.first():
            require_seen(folder, token)
        hosts.gathered(None)  # no process begins before all have seen it
        yield


def require_seen(folder: Path, token: str, seconds: float = SEEN_S) -> None:
    """Wait until the lock in the folder has the token of process 0. Raises `RunRefused` if it has not in time."""
    end = time.monotonic() + seconds
    while True:
        with suppress(OSError, ValueError):
            if (folder / LOCK).read_text(encoding="utf-8") == token:
                return
        if time.monotonic() > end:
            raise RunRefused(
                f"{folder.absolute()}: is not the folder in which process 0 works: its lock is not seen here in "
                f"{seconds:.0f} s. All processes need the same folder, on a file system that they share: see "
                "--output_parent_dir"
            )
        time.sleep(0.2)
