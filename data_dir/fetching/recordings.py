"""PPG-DaLiA's recordings: the pickles S{i}/S{i}.pkl in a folder, in a zip, or in a zip in a zip."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple
from zipfile import ZipFile

from data_dir.fetching.archives import opened_zip
from data_dir.folders import scratch_folder
from data_dir.storage import DataError

FOLDER = "PPG_FieldStudy"
SUBJECTS = tuple(range(1, 16))
# The largest pickle of the data set has 1 GB.
MAX_PICKLE_BYTES = 4 * 2**30
# The zip in the zip of UCI has 2.7 GB.
MAX_INNER_BYTES = 8 * 2**30
BY_HAND = (
    "PPG-DaLiA is fetched by hand: data set 495 of archive.ics.uci.edu (2.7 GB). Put its zip, or the folder "
    f"{FOLDER} in it, into {{raw}}, or name either with --source."
)


class Pickle(NamedTuple):
    """The pickle of a subject: its name in messages, and the context that opens it."""

    label: str
    opened: Callable


def find_source(raw_dir: Path) -> Path:
    """PPG_FieldStudy in ``raw_dir``, or a zip in it with ppg in its name. Raises DataError if both are missing."""
    candidates = [raw_dir / FOLDER] if (raw_dir / FOLDER).is_dir() else []
    candidates += sorted(path for path in raw_dir.glob("*.zip") if "ppg" in path.name.lower())
    if not candidates:
        raise DataError(f"{raw_dir}: holds no {FOLDER}. " + BY_HAND.format(raw=raw_dir))
    return candidates[0]


@contextmanager
def opened_source(path: Path) -> Iterator[dict[int, Pickle]]:
    """The pickle of each subject in a folder or a zip; a zip may hold one other zip that holds them."""
    if path.is_dir():
        folder = path / FOLDER if (path / FOLDER).is_dir() else path
        files = {i: folder / f"S{i}" / f"S{i}.pkl" for i in SUBJECTS}
        yield {i: Pickle(str(file), partial(open, file, "rb")) for i, file in files.items() if file.is_file()}
        return
    if not path.is_file():
        raise DataError(f"{path}: no such file or folder.")
    with ExitStack() as stack:
        zip_file = stack.enter_context(opened_zip(path))
        pickles = _members(path, zip_file)
        inner = [member for member in zip_file.infolist() if member.filename.lower().endswith(".zip")]
        if not pickles and len(inner) == 1:
            (member,) = inner
            if member.file_size > MAX_INNER_BYTES:
                raise DataError(f"{path}, member {member.filename!r}: unpacks to over {MAX_INNER_BYTES} bytes.")
            unpacked = stack.enter_context(scratch_folder(path.parent / "ppg")) / "inner.zip"
            with zip_file.open(member) as source, open(unpacked, "wb") as target:
                shutil.copyfileobj(source, target, 2**20)
            pickles = _members(path / member.filename, stack.enter_context(opened_zip(unpacked)))
        yield pickles


def _members(path: Path, zip_file: ZipFile) -> dict[int, Pickle]:
    ends: dict[tuple[str, ...], int] = {(f"S{i}", f"S{i}.pkl"): i for i in SUBJECTS}
    members = {ends.get(PurePosixPath(member).parts[-2:]): member for member in zip_file.namelist()}
    labels = {i: f"{path}, member {member}" for i, member in members.items() if i is not None}
    return {i: Pickle(label, partial(_opened_member, zip_file, members[i], label)) for i, label in labels.items()}


@contextmanager
def _opened_member(zip_file: ZipFile, member: str, label: str) -> Iterator[IO[bytes]]:
    if zip_file.getinfo(member).file_size > MAX_PICKLE_BYTES:
        raise DataError(f"{label}: unpacks to over {MAX_PICKLE_BYTES} bytes.")
    with zip_file.open(member) as file:
        yield file
        while file.read(2**20):  # The checksum is compared at the end.
            pass
