"""Where the data lie, how a folder is written in one piece, and the error that every user mistake ends in."""

import argparse
import errno
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from common.scratch import former_of, scratch_folder

DEFAULT_DATA_DIR = Path(__file__).resolve().parent


class DataError(ValueError):
    """Something is wrong with a data file, or with what was asked of it; the message names the file and the way out."""


def raw_folder(data_dir: str | Path, raw_dir: str | Path | None = None) -> Path:
    """The folder of the UEA archive's own files: ``UEA`` in ``raw_dir``, which is ``data_dir``/raw if not given."""
    return (Path(data_dir) / "raw" if raw_dir is None else Path(raw_dir)) / "UEA"


def processed_folder(data_dir: str | Path) -> Path:
    """The folder of the processed sets, ``processed/{collection}/{dataset_name}``."""
    return Path(data_dir) / "processed"


def script_command(script: str, data_dir: str | Path, *options: str, raw_dir: str | Path | None = None) -> str:
    """The command line that runs a script of this package on ``data_dir``, as error messages print it."""
    command = f"python data_dir/{script} {' '.join(options)}".rstrip()
    if Path(data_dir).resolve() != DEFAULT_DATA_DIR:
        command += f" --data_dir {data_dir}"
    if raw_dir is not None:
        command += f" --raw_dir {raw_dir}"
    return command


def add_folder_options(parser: argparse.ArgumentParser) -> None:
    """Adds --data_dir and --raw_dir, which the scripts that handle raw files share."""
    parser.add_argument("--data_dir", type=Path, default=DEFAULT_DATA_DIR, help="default: %(default)s")
    parser.add_argument("--raw_dir", type=Path, help="folder of the raw files; default: raw in the data_dir")


def read_json(path: Path) -> dict:
    """The JSON object in a file. Raises DataError if it cannot be read or is none."""
    if path.exists() and not path.is_file():
        raise DataError(f"{path}: is not a regular file.")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise DataError(f"{path}: cannot be read ({error}).") from error
    if not isinstance(value, dict):
        raise DataError(f"{path}: must hold a JSON object.")
    return value


@contextmanager
def new_folder(target: Path, *, keep: Callable[[Path], bool] | None = None) -> Iterator[Path]:
    """Yields a temporary folder beside ``target`` that takes its place once the block ends without an error.

    After an error, or if the process is killed, ``target`` is what it was before. Several processes may write the same
    target: the last one wins, or the first one where ``keep(target)`` says that what is there by now may stay. The
    temporary folder's name starts with a dot; see ``common.scratch``. Raises DataError if something cannot be written
    (a full disk).
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with scratch_folder(target) as fresh:
            yield fresh
            _put_in_place(fresh, target, keep)
    except OSError as error:
        # Failed writes carry no file name. A name that lies elsewhere is that of a file being read.
        if error.filename is None or Path(error.filename).is_relative_to(target.parent):
            raise DataError(
                f"{target}: cannot be written ({error.strerror or error}). Nothing of it was kept; what was there "
                "before still is."
            ) from error
        raise


def _put_in_place(fresh: Path, target: Path, keep: Callable[[Path], bool] | None) -> None:
    former = former_of(fresh)
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
    """Renames ``folder``; False if a folder that is not empty has the name already."""
    try:
        folder.rename(target)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        return False
    return True
