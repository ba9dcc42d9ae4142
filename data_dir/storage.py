"""Where the data lie, how a folder is written in one piece, and the error that every user mistake ends in."""

import errno
import hashlib
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

DEFAULT_DATA_DIR = Path(__file__).resolve().parent


class DataError(ValueError):
    """Something is wrong with a data file, or with what was asked of it; the message names the file and the way out."""


def raw_folder(data_dir: str | Path) -> Path:
    """The folder of the UEA archive's own files: ``raw/UEA``."""
    return Path(data_dir) / "raw" / "UEA"


def processed_folder(data_dir: str | Path) -> Path:
    """The folder of the processed sets, ``processed/{collection}/{dataset_name}``."""
    return Path(data_dir) / "processed"


def script_command(script: str, data_dir: str | Path, *options: str) -> str:
    """The command line that runs a script of this package on ``data_dir``, as error messages print it."""
    command = f"python data_dir/{script} {' '.join(options)}".rstrip()
    if Path(data_dir).resolve() != DEFAULT_DATA_DIR:
        command += f" --data_dir {data_dir}"
    return command


def sha256_of(path: Path) -> str:
    """The sha256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def new_folder(target: Path, *, keep: Callable[[Path], bool] | None = None) -> Iterator[Path]:
    """Yields a temporary folder beside ``target`` that takes its place once the block ends without an error.

    After an error, or if the process is killed, ``target`` is what it was before. Several processes may write the same
    target: the last one wins, or the first one where ``keep(target)`` says that what is there by now may stay. The
    temporary folder's name starts with a dot.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    mark = uuid.uuid4().hex[:12]
    fresh = target.parent / f".{target.name}.{mark}.new"
    former = target.parent / f".{target.name}.{mark}.old"
    fresh.mkdir()
    try:
        yield fresh
        while not _moved(fresh, target):
            if keep is not None and keep(target):
                break
            shutil.rmtree(former, ignore_errors=True)
            with suppress(FileNotFoundError):  # Another process may have just moved it away.
                target.rename(former)
    finally:
        if former.exists() and not target.exists():
            former.rename(target)
        shutil.rmtree(fresh, ignore_errors=True)
        shutil.rmtree(former, ignore_errors=True)


def _moved(folder: Path, target: Path) -> bool:
    """Renames ``folder``; False if a folder that is not empty has the name already."""
    try:
        folder.rename(target)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        return False
    return True
