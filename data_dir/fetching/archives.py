"""Zip archives, unpacked without trusting them."""

import errno
import lzma
import shutil
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PureWindowsPath

from data_dir.storage import DataError

# Far above any set of the archive (EigenWorms unpacks to 0.4 GB), far below what fills a disk unnoticed.
MAX_UNPACKED_BYTES = 4 * 2**30
# What zipfile and the decoders raise at damage. ValueError: names that are no text, and sizes below 0.
_DAMAGE = (
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, EOFError, OSError),
    *(NotImplementedError, RuntimeError, ValueError, OverflowError),
)


@contextmanager
def opened_zip(archive: Path) -> Iterator[zipfile.ZipFile]:
    """Opens a zip archive of which no member is a link or would leave its folder.

    Raises DataError, naming the archive and the member, if a member is; and, in the block too, for a damaged archive.
    """
    try:
        with zipfile.ZipFile(archive) as zip_file:
            for member in zip_file.infolist():
                path = PureWindowsPath(member.filename)  # knows both kinds of slashes, and drives
                is_link = member.external_attr >> 16 & 0o170000 == 0o120000
                if path.drive or path.root or ".." in path.parts or is_link:
                    raise DataError(f"{archive}: member {member.filename!r} is a link or would leave its folder.")
            yield zip_file
    except _DAMAGE as error:
        # A full disk and an absent file have other numbers. EINVAL is a seek to a place before the file.
        if isinstance(error, DataError) or (isinstance(error, OSError) and error.errno not in (None, errno.EINVAL)):
            raise
        reason = f"{type(error).__name__}: {error}"
        raise DataError(f"{archive}: not a sound zip archive ({reason}). Fetch it again.") from error


def extract_files(archive: Path, members: dict[str, str], folder: Path) -> None:
    """Unpacks members of a zip archive into ``folder``; ``members`` maps file names to names in the archive.

    Raises DataError as ``opened_zip`` does, if a member is missing, or if together they unpack to over
    ``MAX_UNPACKED_BYTES``. The caller then removes ``folder``.
    """
    with opened_zip(archive) as zip_file:
        missing = sorted(set(members.values()) - set(zip_file.namelist()))
        if missing:
            raise DataError(f"{archive}: has no member {missing[0]!r}.")
        # zipfile never yields more bytes of a member than file_size announces.
        if sum(zip_file.getinfo(member).file_size for member in members.values()) > MAX_UNPACKED_BYTES:
            raise DataError(f"{archive}: the files wanted from it unpack to over {MAX_UNPACKED_BYTES} bytes.")
        for name, member in members.items():
            with zip_file.open(member) as source, open(folder / name, "wb") as target:
                shutil.copyfileobj(source, target, 2**20)


def series_members(archive: Path, name: str) -> dict[str, str]:
    """The members that hold the series of a set: NAME_TRAIN and NAME_TEST, ts and arff, in any folder.

    Raises DataError as ``opened_zip`` does, if the archive has a file twice, and if it has no train and test file of
    one format.
    """
    pairs = [{f"{name}_{part}{suffix}" for part in ("TRAIN", "TEST")} for suffix in (".ts", ".arff")]
    members: dict[str, str] = {}
    with opened_zip(archive) as zip_file:
        for member in zip_file.namelist():
            file = PureWindowsPath(member).name
            if file in set.union(*pairs):
                if file in members:
                    raise DataError(f"{archive}: holds {file} twice, as {members[file]!r} and {member!r}.")
                members[file] = member
    if not any(pair <= members.keys() for pair in pairs):
        raise DataError(f"{archive}: holds no {name}_TRAIN with {name}_TEST, both .ts or both .arff.")
    return members
