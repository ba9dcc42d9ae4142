"""source.json, the record beside raw files: where they came from, and the hashes that they had then."""

from pathlib import Path

from common.files import sha256_of, write_json
from data_dir.storage import DataError, read_json

RECORD = "source.json"


def write_record(folder: Path, record: dict) -> None:
    """Records the origin of the files in ``folder``: "source", and "sha256" and "pinned_sha256" of what they lay in."""
    files = {path.name: sha256_of(path) for path in sorted(folder.iterdir())}
    accepted = record["sha256"] != record["pinned_sha256"]
    write_json(folder / RECORD, {**record, "accepted_changed": accepted, "files": files})


def files_changed(folder: Path) -> str | None:
    """What differs between the raw files in a folder and the record made when they were fetched; None if nothing does.

    None as well if there is no record. Raises DataError if it is damaged.
    """
    if not (folder / RECORD).exists():
        return None
    files = read_json(folder / RECORD).get("files")
    if not isinstance(files, dict):
        raise DataError(f"{folder / RECORD}: names no files.")
    for name, sha256 in files.items():
        found = sha256_of(folder / name) if (folder / name).is_file() else None
        if found is None:
            return f"{folder / name}: no such file, but {RECORD} beside it names it"
        if found != sha256:
            return f"{folder / name}: sha256 {found}, but {sha256} when it was fetched"
    return None
