"""--overwrite: remove the earlier runs of a command, but not the runs that the same command made before it was stopped.

A job on a cluster is started again with the same command line. When the command clears a run, it therefore writes its
key into the folder, as .overwrite. It does not clear a folder that has its key. The keys are removed when the command
ends, or when a command without --overwrite takes the runs over.

The processes of --jobs make one run each, without --overwrite. They learn the key of their command from the environment
(`OF_COMMAND`), and leave it in the folders.
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from common.files import replacing
from runs.folder import OVERWRITE, RunRefused, clear, locked
from runs.identity import key, sha256_of_json
from runs.record import commit

OF_COMMAND = "RHEL_OVERWRITE_KEY"


class Overwriting:
    """One --overwrite command. `to_clear` are the folders that this command has not cleared yet."""

    def __init__(self, identities: dict[Path, dict]):
        """`identities` of the runs, by folder. Together with the commit of the program, they identify the command."""
        self.folders, self._identities = list(identities), list(identities.values())
        self.key = sha256_of_json([*map(key, identities.values()), commit()])
        self.to_clear = [folder for folder in self.folders if self.key != _key_in(folder)]

    def begin(self) -> None:
        """Remove the earlier runs. If another process is at work in any of their folders, no file is removed.

        **Raises:** `RunRefused`, also if the file of your own unit is one that would be removed.
        """
        for unit in filter(None, {identity.get("unit") for identity in self._identities}):
            if Path(unit.rpartition(":")[0]).resolve().parent in {folder.resolve() for folder in self.to_clear}:
                raise RunRefused(f"unit {unit}: --overwrite would remove this file. Copy it to another folder first")
        for folder in self.to_clear:
            folder.mkdir(parents=True, exist_ok=True)
        with _all_locked(self.to_clear):
            for folder in self.to_clear:
                clear(folder)
                with replacing(folder / OVERWRITE) as temporary:
                    temporary.write_text(self.key, encoding="utf-8")

    def end(self) -> None:
        """Remove the keys of this command: the next --overwrite command starts every run again."""
        for folder in self.folders:
            if _key_in(folder) == self.key:
                (folder / OVERWRITE).unlink(missing_ok=True)


def take_over(folders: Iterable[Path]) -> None:
    """Remove the keys from the folders. If another process is at work in any of them, no key is removed.

    The key of the command that started this process stays.
    """
    own = os.environ.get(OF_COMMAND)
    keyed = [folder for folder in folders if (folder / OVERWRITE).exists() and _key_in(folder) != own]
    with suppress(RunRefused), _all_locked(keyed):
        for folder in keyed:
            (folder / OVERWRITE).unlink(missing_ok=True)


@contextmanager
def _all_locked(folders: Iterable[Path]) -> Iterator[None]:
    with ExitStack() as locks:
        for folder in folders:
            locks.enter_context(locked(folder))
        yield


def _key_in(folder: Path) -> str | None:
    with suppress(OSError, ValueError):
        return (folder / OVERWRITE).read_text(encoding="utf-8")
    return None
