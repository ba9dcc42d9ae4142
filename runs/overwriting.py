"""--overwrite: remove the earlier runs of a command, but not the runs that the same command made before it was stopped.

A job on a cluster is started again with the same command line. When the command clears a run, it therefore writes its
key into the folder, as .overwrite. It does not clear a folder that has its key. The keys are removed when all runs of
the command are done, or when a command without --overwrite takes the runs over.
"""

from collections.abc import Iterable
from contextlib import ExitStack, suppress
from pathlib import Path

from common.files import replacing
from runs.folder import OVERWRITE, RESULT, clear, locked
from runs.identity import sha256_of_json
from runs.record import commit


class Overwriting:
    """One --overwrite command. `to_clear` are the folders that this command has not cleared yet."""

    def __init__(self, identities: dict[Path, dict]):
        """`identities` of the runs, by folder. Together with the commit of the program, they identify the command."""
        self.folders = list(identities)
        self.key = sha256_of_json([*identities.values(), commit()])
        self.to_clear = [folder for folder in self.folders if self.key != _key_in(folder)]

    def begin(self) -> None:
        """Remove the earlier runs. If another process is at work in any of their folders, no file is removed."""
        with ExitStack() as locks:
            for folder in self.to_clear:
                folder.mkdir(parents=True, exist_ok=True)
                locks.enter_context(locked(folder))
            for folder in self.to_clear:
                clear(folder)
                with replacing(folder / OVERWRITE) as temporary:
                    temporary.write_text(self.key, encoding="utf-8")

    def end(self) -> None:
        """If all runs are done, the next --overwrite command removes them."""
        if all((folder / RESULT).exists() for folder in self.folders):
            forget(self.folders)


def forget(folders: Iterable[Path]) -> None:
    """Remove the keys from the folders."""
    for path in (folder / OVERWRITE for folder in folders):
        if path.exists():  # finished runs may lie in a file system that is read-only
            path.unlink()


def _key_in(folder: Path) -> str | None:
    with suppress(OSError, ValueError):
        return (folder / OVERWRITE).read_text(encoding="utf-8")
    return None
