"""From the UEA archive's files to processed arrays.

    python data_dir/process_uea.py [--datasets NAME ...] [--data_dir DIR]

reads raw/UEA/*/NAME/NAME_{TRAIN,TEST}.ts (or .arff) of the named sets, or of every set found, and writes
processed/UEA/NAME/data.pkl (n, L, C) float32, labels.pkl (n, K) one-hot float32, original_idxs.pkl (the rows of the
archive's own train, validation and test parts) and dataset.json. Train and test are merged, exact duplicates removed,
and the rows sorted, as in the published experiments. A set that fails does not stop the others.
"""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

if not __package__:  # Run as a script: Python put this folder on the path, the imports below want the one above.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import numpy as np
from tqdm import tqdm

from data_dir.pickles import write_arrays
from data_dir.storage import (
    DEFAULT_DATA_DIR,
    DataError,
    new_folder,
    processed_folder,
    raw_folder,
    script_command,
    sha256_of,
)

COLLECTION = "UEA"


def raw_datasets(data_dir: str | Path) -> list[str]:
    """The names of the sets that have a folder in raw/UEA/*/."""
    return sorted({folder.name for folder in raw_folder(data_dir).glob("*/[!.]*") if folder.is_dir()})


def raw_files(data_dir: str | Path, name: str) -> tuple[Path, Path] | None:
    """The train and test file of a set in raw/UEA/*/NAME/, ts before arff; None if no folder holds both."""
    for suffix in (".ts", ".arff"):
        for folder in sorted(raw_folder(data_dir).glob("*")):
            train, test = (folder / name / f"{name}_{part}{suffix}" for part in ("TRAIN", "TEST"))
            if train.is_file() and test.is_file():
                return train, test
    return None


def _labels_of_header(path: Path) -> list[str] | None:
    # sktime compares neither the labels of a series with those that the header lists, nor the case of letters.
    with open(path, encoding="utf-8") as file:
        for line in file:
            words = line.lower().split()
            if words and words[0] == "@classlabel":
                return words[2:]
            if words and words[0] == "@data":
                break
    return None


def read_raw(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """The series (n, L, C) float32 and the class labels (n,) as text of one ts or arff file.

    Raises DataError, naming the file, if it cannot be parsed, has no series or no labels, holds missing or non-finite
    values, or series of unequal length: those are not handled.
    """
    # sktime takes seconds to import, and only files that are read for the first time need it.
    from sktime.datasets import load_from_arff_to_dataframe, load_from_tsfile_to_dataframe

    read = load_from_arff_to_dataframe if path.suffix == ".arff" else load_from_tsfile_to_dataframe
    try:
        parsed = read(str(path))
        declared = None if path.suffix == ".arff" else _labels_of_header(path)
    except Exception as error:  # The readers fail in any way on damaged text.
        raise DataError(f"{path}: cannot be parsed ({error}). Fetch the file again.") from error
    if not isinstance(parsed, tuple):
        raise DataError(f"{path}: has no class labels; only classification sets are processed.")
    frame, labels = parsed
    if len(frame) == 0:
        raise DataError(f"{path}: has a header but no series. Fetch the file again.")
    lengths = sorted({len(series) for column in frame.columns for series in frame[column]})
    if len(lengths) > 1:
        raise DataError(
            f"{path}: the series have {lengths[0]} to {lengths[-1]} time steps; unequal length is not handled."
        )
    unknown = [] if declared is None else sorted({str(label) for label in labels} - set(declared))
    if unknown:
        raise DataError(f"{path}: label {unknown[0]!r} is not among those of the header, {declared}. Fetch it again.")
    data = np.empty((len(frame), lengths[0], frame.shape[1]), dtype=np.float32)
    with np.errstate(over="ignore"):  # What float32 cannot hold becomes infinite, and is reported.
        for channel, column in enumerate(frame.columns):
            for row, series in enumerate(frame[column]):
                data[row, :, channel] = series.to_numpy()
    bad = int(np.count_nonzero(~np.isfinite(data)))
    if bad:
        raise DataError(f"{path}: {bad} values are missing or not finite; such sets are not handled.")
    return data, np.asarray(labels, dtype=str)


def sorted_unique_rows(data: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What ``numpy.unique(data, axis=0)`` finds in finite float32 ``data`` (n, ...), without its copies of the data.

    Returns the position of the first occurrence of each distinct row, in the lexicographic order of their values, and
    for every row the number of its distinct row: ``return_index`` and ``return_inverse`` of numpy.unique.
    """
    # The bits of a float, its sign bit flipped if positive and all flipped if negative, sort as the float does; written
    # most significant byte first, so do the bytes of a whole row. Adding 0 turns -0 into 0.
    keys = []
    for row in data.reshape(len(data), -1):
        bits = (row.astype(np.float32, copy=False) + np.float32(0)).view(np.uint32)
        negative = bits >> 31 == 1
        keys.append(np.where(negative, ~bits, bits | np.uint32(1 << 31)).astype(">u4").tobytes())
    first, inverse = [], np.empty(len(keys), dtype=np.int64)
    for row in sorted(range(len(keys)), key=keys.__getitem__):  # stable: equal rows stay in their order
        if not first or keys[row] != keys[first[-1]]:
            first.append(row)
        inverse[row] = len(first) - 1
    return np.asarray(first, dtype=np.int64), inverse


def process_dataset(
    name: str,
    train_file: Path,
    test_file: Path,
    data_dir: str | Path,
    *,
    keep: Callable[[Path], bool] | None = None,
) -> dict:
    """Processes one set into processed/UEA/``name`` and returns what dataset.json says of it.

    Train and test file are merged and duplicate rows removed (the label of the first occurrence stays); the rows are in
    the order of ``numpy.unique(axis=0)``. original_idxs holds three arrays of stored rows: train, validation (empty, as
    the archive has none) and test; a series that occurs in both files counts as train.

    The folder appears in one piece, in place of what was there, unless ``keep(folder)`` says that this may stay. Raises
    DataError as ``read_raw`` does, and if the two files do not fit together.
    """
    (train, train_labels), (test, test_labels) = read_raw(train_file), read_raw(test_file)
    if train.shape[1:] != test.shape[1:]:
        raise DataError(
            f"{test_file}: series of {test.shape[1]} steps and {test.shape[2]} channels, but {train_file.name} has "
            f"{train.shape[1]} and {train.shape[2]}."
        )
    merged = np.concatenate([train, test])
    first, inverse = sorted_unique_rows(merged)
    class_names, classes = np.unique(np.concatenate([train_labels, test_labels]), return_inverse=True)
    if len(class_names) < 2:
        raise DataError(
            f"{train_file}: all series have the label {str(class_names[0])!r}; a set needs two classes at least."
        )
    data, classes = merged[first], classes[first]
    original_idxs = (
        np.flatnonzero(first < len(train)),
        np.empty(0, dtype=np.int64),
        np.flatnonzero(first >= len(train)),
    )
    info = {
        "name": name,
        "raw_files": {file.name: {"sha256": sha256_of(file)} for file in (train_file, test_file)},
        "n_samples": len(data),
        "length": data.shape[1],
        "channels": data.shape[2],
        "class_names": class_names.tolist(),
        "class_counts": np.bincount(classes, minlength=len(class_names)).tolist(),
        "duplicates_removed": len(inverse) - len(first),
    }
    with new_folder(processed_folder(data_dir) / COLLECTION / name, keep=keep) as folder:
        write_arrays(folder / "data.pkl", data)
        write_arrays(folder / "labels.pkl", np.eye(len(class_names), dtype=np.float32)[classes])
        write_arrays(folder / "original_idxs.pkl", original_idxs)
        (folder / "dataset.json").write_text(json.dumps(info, indent=2) + "\n", encoding="utf-8")
    return info


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status, 1 if any set failed."""
    parser = argparse.ArgumentParser(description="Process raw UEA files (ts, arff) for training.")
    parser.add_argument("--datasets", nargs="+", metavar="NAME", help="default: every set found in raw/UEA")
    parser.add_argument("--data_dir", type=Path, default=DEFAULT_DATA_DIR, help="default: %(default)s")
    options = parser.parse_args(arguments)
    names = options.datasets or raw_datasets(options.data_dir)
    if not names:
        command = script_command("download_uea.py", options.data_dir)
        print(f"No raw sets in {raw_folder(options.data_dir)}. Fetch some first:\n    {command}", file=sys.stderr)
        return 1
    outcomes = {}
    for name in tqdm(names, desc="processing", unit="set", disable=None):
        try:
            files = raw_files(options.data_dir, name)
            if files is None:
                raise DataError(
                    f"{name}: no folder in {raw_folder(options.data_dir)}/*/{name} holds {name}_TRAIN and "
                    f"{name}_TEST, both .ts or both .arff."
                )
            info = process_dataset(name, *files, options.data_dir)
        except (DataError, OSError) as error:
            outcomes[name] = f"FAILED  {error}"
        else:
            outcomes[name] = (
                f"{info['n_samples']} x {info['length']} x {info['channels']}, {len(info['class_names'])} classes, "
                f"{info['duplicates_removed']} duplicates removed"
            )
    for name, outcome in outcomes.items():
        print(f"{name}: {outcome}", file=sys.stderr if outcome.startswith("FAILED") else sys.stdout)
    return int(any(outcome.startswith("FAILED") for outcome in outcomes.values()))


if __name__ == "__main__":
    sys.exit(main())
