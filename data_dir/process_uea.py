"""From the UEA archive's files to processed arrays.

    python data_dir/process_uea.py [--datasets NAME ...] [--data_dir DIR] [--raw_dir DIR]
                                   [--unequal_length refuse|pad] [--missing refuse|impute]

reads raw/UEA/*/NAME/NAME_{TRAIN,TEST}.ts (or .arff) of the named sets, or of every set found, and writes
processed/UEA/NAME/data.pkl (n, L, C) float32, labels.pkl (n, K) one-hot float32, original_idxs.pkl (the rows of the
archive's own train, validation and test parts) and dataset.json, which says where they came from, their hashes and what
is odd about them; mask.pkl (n, L) bool too where series were padded. Train and test are merged, exact duplicates
removed, and the rows sorted, as in the published experiments. A set that fails does not stop the others.
"""

import argparse
import platform
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

if not __package__:  # Run as a script: Python put this folder on the path, the imports below want the one above.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import numpy as np
from tqdm import tqdm

from common.files import sha256_of, write_json
from data_dir.fetching.origin import RECORD, files_changed
from data_dir.names import nearest_name
from data_dir.pickles import write_arrays
from data_dir.processing.audit import audit_rows, audit_series
from data_dir.processing.merging import IMPUTE, PAD, REFUSE, merge
from data_dir.processing.readers import read_raw
from data_dir.storage import (
    DataError,
    add_folder_options,
    new_folder,
    processed_folder,
    raw_folder,
    read_json,
    script_command,
)

COLLECTION = "UEA"
DESCRIPTION = "dataset.json"


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
    """Processes one set into processed/UEA/``name`` and returns what dataset.json says of it.

    Train and test file are merged as ``processing.merging`` says. original_idxs holds three arrays of stored rows:
    train, validation (empty, as the archive has none) and test; a series that occurs in both files counts as train.

    The folder appears in one piece, in place of what was there, unless ``keep(folder)`` says that this may stay. Raises
    DataError as ``read_raw`` and ``merge`` do, if a raw file changed since it was fetched, and if the processed files
    cannot be written.
    """
    changed = files_changed(train_file.parent)
    if changed:
        raise DataError(f"{changed}. Move the folder away and fetch it again.")
    train, test = read_raw(train_file), read_raw(test_file)
    try:
        merged = merge(train, test, unequal_length=unequal_length, missing=missing)
    except DataError as error:
        # The test file is to blame where the train file alone would have passed.
        raise DataError(
            f"{test_file if train.of_equal_length and not train.missing else train_file}: {error}"
        ) from error
    differs = [
        f"{file.name}: {text}" for file, raw in ((train_file, train), (test_file, test)) for text in raw.header_differs
    ]
    del train, test  # Their memory is needed for what follows.
    data = merged.data
    padded = bool(merged.lengths.min() < data.shape[1])
    counts = np.bincount(merged.classes, minlength=len(merged.class_names)).tolist()
    findings = [
        *audit_series(data[:, : merged.lengths.min()]),
        *audit_rows(
            dict(zip(merged.class_names, counts, strict=True)),
            duplicates=merged.duplicates,
            in_both_files=merged.in_both_files,
            conflicts=merged.conflicts,
            missing=merged.missing,
            lengths=merged.lengths,
            header_differs=differs,
        ),
    ]
    arrays = {
        "data.pkl": data,
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
            "n_samples": len(data),
            "length": data.shape[1],
            "channels": data.shape[2],
            "class_names": merged.class_names,
            "class_counts": counts,
            "duplicates_removed": merged.duplicates,
            "missing_values_imputed": merged.missing,
            "padded": padded,
            "findings": findings,
            "versions": {
                "python": platform.python_version(),
                **{package: version(package) for package in ("numpy", "sktime", "scikit-learn")},
            },
        }
        write_json(folder / DESCRIPTION, info)
    return info


def _source(file: Path) -> str:
    record = file.parent / RECORD
    return str(read_json(record).get("source")) if record.exists() else f"placed by hand in {file.parent}"


def _identity(file: Path) -> dict:
    return {"sha256": sha256_of(file), "bytes": file.stat().st_size}


def _summary(info: dict) -> str:
    shape = " x ".join(str(info[key]) for key in ("n_samples", "length", "channels"))
    return f"{shape}, {len(info['class_names'])} classes, {info['duplicates_removed']} duplicates removed"


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status, 1 if any set failed."""
    parser = argparse.ArgumentParser(description="Process raw UEA files (ts, arff) for training.")
    parser.add_argument("--datasets", nargs="+", metavar="NAME", help="default: every set found in raw/UEA")
    parser.add_argument("--unequal_length", choices=(REFUSE, PAD), default=REFUSE, help="default: %(default)s")
    parser.add_argument("--missing", choices=(REFUSE, IMPUTE), default=REFUSE, help="default: %(default)s")
    add_folder_options(parser)
    options = parser.parse_args(arguments)
    there = raw_datasets(options.data_dir, options.raw_dir)
    names = options.datasets or there
    raw = raw_folder(options.data_dir, options.raw_dir)
    if not names:
        command = script_command("download_uea.py", options.data_dir, raw_dir=options.raw_dir)
        print(f"No raw sets in {raw}. Fetch some first:\n    {command}", file=sys.stderr)
        return 1
    outcomes: dict[str, dict | str] = {}
    for name in tqdm(dict.fromkeys(names), desc="processing", unit="set", disable=None):
        try:
            files = raw_files(options.data_dir, name, options.raw_dir)
            if files is None:
                nearest = nearest_name(name, set(there) - {name})
                raise DataError(
                    f"{name}: no folder in {raw}/*/{name} holds {name}_TRAIN and {name}_TEST, both .ts or both .arff."
                    + (f" Did you mean {nearest!r}?" if nearest else "")
                )
            outcomes[name] = process_dataset(
                name, *files, options.data_dir, unequal_length=options.unequal_length, missing=options.missing
            )
        except (DataError, OSError) as error:
            outcomes[name] = str(error)
    for name, outcome in outcomes.items():
        if isinstance(outcome, str):
            print(f"{name}: FAILED  {outcome}", file=sys.stderr)
            continue
        print(f"{name}: {_summary(outcome)}")
        for finding in outcome["findings"]:
            print(f"    {finding['kind']}: {finding['text']}")
    return int(any(isinstance(outcome, str) for outcome in outcomes.values()))


if __name__ == "__main__":
    sys.exit(main())
