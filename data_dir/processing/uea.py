"""From a train and a test file of the UEA archive to one processed set."""

import platform
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np

from common.files import sha256_of, write_json
from data_dir.fetching.origin import RECORD, files_changed
from data_dir.folders import new_folder
from data_dir.pickles import write_arrays
from data_dir.processing.audit import audit_rows, audit_series
from data_dir.processing.merging import REFUSE, merge
from data_dir.processing.readers import read_raw
from data_dir.storage import DataError, processed_folder, raw_folder, read_json

COLLECTION = "UEA"


def raw_datasets(data_dir: str | Path, raw_dir: str | Path | None = None) -> list[str]:
    """The names of the sets that have a folder in raw/UEA/*/."""
    raw = raw_folder(data_dir, raw_dir)
    return sorted({folder.name for folder in raw.glob("[!.]*/[!.]*") if folder.is_dir()})


def raw_files(data_dir: str | Path, name: str, raw_dir: str | Path | None = None) -> tuple[Path, Path] | None:
    """The train and test file of a set in raw/UEA/*/NAME/, ts before arff; None if no folder holds both."""
    for suffix in (".ts", ".arff"):
        for folder in sorted(raw_folder(data_dir, raw_dir).glob("*")):
            train, test = (folder / name / f"{name}_{part}{suffix}" for part in ("TRAIN", "TEST"))
            if train.is_file() and test.is_file():
                return train, test
    return None


def process_dataset(
    name: str,
    train_file: Path,
    test_file: Path,
    data_dir: str | Path,
    *,
    unequal_length: str = REFUSE,
    missing: str = REFUSE,
    keep: Callable[[Path], bool] | None = None,
) -> dict:
    """Processes one set into processed/UEA/``name`` and returns the content of dataset.json.

    ``merging.merge`` merges train and test file. original_idxs holds three arrays of stored rows: train, validation
    (empty, as the archive has none) and test; a series in both files counts as train.

    The folder appears in one piece. It replaces an existing one, unless ``keep(folder)`` is true. Raises DataError as
    ``read_raw`` and ``merge`` do, if a raw file changed since it was fetched, and if the folder cannot be written.
    """
    changed = files_changed(train_file.parent)
    if changed:
        raise DataError(f"{changed}. Move the folder away and fetch it again.")
    train, test = read_raw(train_file), read_raw(test_file)
    try:
        merged = merge(train, test, unequal_length=unequal_length, missing=missing)
    except DataError as error:
        # The test file is to blame if the train file alone would have passed.
        blamed = test_file if train.of_equal_length and not train.missing else train_file
        raise DataError(f"{blamed}: {error}") from error
    differs = [
        f"{file.name}: {text}" for file, raw in ((train_file, train), (test_file, test)) for text in raw.header_differs
    ]
    del train, test  # Their memory is needed below.
    padded = bool(merged.lengths.min() < merged.data.shape[1])
    counts = np.bincount(merged.classes, minlength=len(merged.class_names)).tolist()
    arrays = {
        "data.pkl": merged.data,
        "labels.pkl": np.eye(len(counts), dtype=np.float32)[merged.classes],
        "original_idxs.pkl": (merged.original[0], np.empty(0, dtype=np.int64), merged.original[1]),
    }
    if padded:
        arrays["mask.pkl"] = merged.mask
    with new_folder(processed_folder(data_dir) / COLLECTION / name, keep=keep) as folder:
        for file, array in arrays.items():
            write_arrays(folder / file, array)
        info = {
            "name": name,
            "source": _source(train_file),
            "raw_files": {file.name: _identity(file) for file in (train_file, test_file)},
            "processed_files": {file: _identity(folder / file) for file in arrays},
            **dict(zip(("n_samples", "length", "channels"), merged.data.shape, strict=True)),
            "class_names": merged.class_names,
            "class_counts": counts,
            "duplicates_removed": merged.duplicates,
            "missing_values_imputed": merged.missing,
            "padded": padded,
            "findings": [
                *audit_series(merged.data, merged.mask if padded else None),
                *audit_rows(merged, counts, differs),
            ],
            "versions": {
                "python": platform.python_version(),
                **{package: version(package) for package in ("numpy", "sktime")},
            },
        }
        write_json(folder / "dataset.json", info)
    return info


def _source(file: Path) -> str:
    record = file.parent / RECORD
    return str(read_json(record).get("source")) if record.exists() else f"placed by hand in {file.parent}"


def _identity(file: Path) -> dict:
    return {"sha256": sha256_of(file), "bytes": file.stat().st_size}
