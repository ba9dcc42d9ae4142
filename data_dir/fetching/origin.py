"""source.json, the record beside raw files: where they came from, and their hashes at that time."""

from pathlib import Path

from common.files import sha256_of, write_json
from data_dir.storage import DataError, read_json

RECORD = "source.json"


def write_record(folder: Path, record: dict) -> None:
    """Records the origin of the files in ``folder``: "source", and "sha256" and "pinned_sha256" of their archive."""
    files = {path.name: sha256_of(path) for path in sorted(folder.iterdir())}
    accepted = record["sha256"] != record["pinned_sha256"]
    write_json(folder / RECORD, {**record, "accepted_changed": accepted, "files": files})


def files_changed(folder: Path) -> str | None:
    """How the raw files in a folder differ from the record; None if they do not, or if the folder has no record.

    Raises DataError if the record is damaged.
    """
    if not (folder / RECORD).exists():
        return None
    files = read_json(folder / RECORD).get("files")
    if not isinstance(files, dict):
        raise DataError(f"{folder / RECORD}: names no files.")
    for name, sha256 in files.items():
        if not (folder / name).is_file():
            return f"{folder / name}: no such file, but {RECORD} names it"
        if (now := sha256_of(folder / name)) != sha256:
            return f"{folder / name}: sha256 {now}, but {sha256} when it was fetched"
    return None
