"""--overwrite over several runs: a second start of the same command keeps the runs that the first start has made.

When a run is cleared, the key of the command is written into its folder, as .overwrite. The files are removed when the
command ends; they stay if it is stopped or killed. They are read and written under the lock of the run, so that
two processes of one command never clear each other's runs.
"""

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from common.files import replacing
from runs.folder import OVERWRITE, clear
from runs.identity import sha256_of_json


class Overwriting:
    """One --overwrite command. Its key is the hash of `identities`, one for each run, and of the program's commit."""

    def __init__(self, identities: Iterable[dict], commit: str | None):
        self.key = sha256_of_json({"runs": list(identities), "commit": commit})

    def has_begun(self, folder: Path) -> bool:
        """Whether this command has cleared the folder already, now or in an earlier process."""
        with suppress(OSError, ValueError):
            return (folder / OVERWRITE).read_text(encoding="utf-8") == self.key
        return False

    def begin(self, folder: Path) -> None:
        """Clear a folder, once. The caller holds the lock of the folder."""
        if not self.has_begun(folder):
            clear(folder)
            with replacing(folder / OVERWRITE) as temporary:
                temporary.write_text(self.key, encoding="utf-8")

    def end(self, folders: Iterable[Path]) -> None:
        """The command has ended: the next one starts all its runs anew."""
        for folder in folders:
            if self.has_begun(folder):
                (folder / OVERWRITE).unlink(missing_ok=True)
