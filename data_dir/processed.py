"""The files of a processed set, read and checked against each other and against their description."""

import hashlib
from pathlib import Path

import numpy as np

from common.files import known_sha256, once_per_file, sha256_of_array
from data_dir.npy import read_npy
from data_dir.pickles import read_array, read_arrays
from data_dir.splits import PARTS
from data_dir.storage import DataError, read_json

# What makes a folder of processed/*/ a data set: all samples, to be split here, or three parts cut beforehand. Each
# array is a pickle, or an npy file, which is memory-mapped.
WHOLE = ("data", "labels")
CUT = {"train": ("X_train", "y_train"), "validation": ("X_val", "y_val"), "test": ("X_test", "y_test")}
_AGAIN = "Remove the folder and process the data set again."
_OWN = "Write it anew beside the others; the folder has no dataset.json, so that no command of this project makes it."


def array_file(folder: Path, stem: str) -> Path:
    """The file of an array: ``stem``.npy if it is there, else ``stem``.pkl."""
    npy = folder / f"{stem}.npy"
    return npy if npy.exists() else folder / f"{stem}.pkl"


def is_dataset(folder: Path) -> bool:
    """Whether the folder holds a processed set, of either kind."""
    return is_whole(folder) or array_file(folder, CUT["train"][0]).exists()


def is_whole(folder: Path) -> bool:
    """Whether the folder holds all samples in one array."""
    return array_file(folder, WHOLE[0]).exists()


def read_info(folder: Path) -> dict:
    """dataset.json; empty if there is none, as in folders that the published scripts wrote.

    Raises DataError if it is damaged, if the files of the folder are not those that it describes (all are compared by
    their sha256), and if an array lies there twice, as npy file and as pickle.
    """
    for stem in (*WHOLE, *(stem for stems in CUT.values() for stem in stems)):
        npy, pickled = folder / f"{stem}.npy", folder / f"{stem}.pkl"
        if npy.exists() and pickled.exists():
            raise DataError(f"{npy}: {pickled.name} lies beside it. Remove the one that is not of this data set.")
    path = folder / "dataset.json"
    if not path.exists():
        return {}
    try:
        info = read_json(path)
    except DataError as error:
        raise DataError(f"{error} {_AGAIN}") from error
    files = info.get("processed_files", {})
    if not isinstance(info.get("class_names", []), list) or not isinstance(files, dict):
        raise DataError(f"{path}: class_names must be a list and processed_files an object. {_AGAIN}")
    for name, described in files.items():
        file = folder / name
        if not file.is_file():
            raise DataError(f"{file}: no such file, but dataset.json beside it names it. {_AGAIN}")
        if not isinstance(described, dict) or file.stat().st_size != described.get("bytes"):
            raise DataError(f"{file}: has {file.stat().st_size} bytes, not those that dataset.json names. {_AGAIN}")
        if known_sha256(file) != described.get("sha256"):
            raise DataError(f"{file}: was changed since it was processed (sha256). {_AGAIN}")
    return info


def arrays_sha256(folder: Path) -> str:
    """One hash of all arrays of a set as its files hold them: type, shape and values, whatever the kind of file.

    A file is read once in a process; a set that was read before costs a look at its folder.
    """
    stems = WHOLE if is_whole(folder) else [stem for stems in CUT.values() for stem in stems]
    sums = [f"{stem} {_sha256_of_array_file(array_file(folder, stem))}" for stem in stems]
    return hashlib.sha256("\n".join(sums).encode()).hexdigest()


def _sha256_of_array_file(path: Path) -> str:
    return known_sha256(path) if path.suffix == ".npy" else _sha256_of_pickled_array(path)


@once_per_file
def _sha256_of_pickled_array(path: Path) -> str:
    return sha256_of_array(read_array(path))


def read_samples(folder: Path, info: dict, stem: str = WHOLE[0]) -> np.ndarray:
    """The samples (n, L, C) of one array, without labels."""
    path = array_file(folder, stem)
    data = _read_float32(path, info)
    if data.ndim != 3 or 0 in data.shape:
        raise DataError(f"{path}: shape {data.shape}; needed is (samples, time steps, channels), none of them 0.")
    return data


def read_whole(folder: Path, info: dict) -> tuple[np.ndarray, np.ndarray]:
    """All samples (n, L, C) and the labels (n, outputs) of a regression."""
    data, labels, path = _read_part(folder, WHOLE, info)
    return data, _checked_outputs(labels, path)


def read_classes(folder: Path, info: dict) -> tuple[np.ndarray, np.ndarray, list[str] | None]:
    """All samples (n, L, C), their classes as one-hot rows (n, K), and the names of the classes.

    The names are those of dataset.json, else the whole numbers that the file has for labels, in their order; None for
    one-hot rows that nobody named. Raises DataError for labels that name no classes, and if all are of one class.
    """
    data, labels, path = _read_part(folder, WHOLE, info)
    names = info.get("class_names")
    if names is not None and not (all(isinstance(name, str) for name in names) and len(set(names)) == len(names)):
        raise DataError(f"{folder / 'dataset.json'}: class_names must be distinct texts. {_AGAIN}")
    if labels.ndim == 1 or (labels.ndim == 2 and labels.shape[1] == 1):
        labels, names = _from_numbers(labels.reshape(-1), path, names)
    if labels.ndim != 2 or not (np.isin(labels, (0, 1)).all() and np.all(labels.sum(axis=1) == 1)):
        raise DataError(
            f"{path}: class labels of shape {labels.shape} must be integers (n,) or one-hot rows (n, K); a regression "
            "set needs classification False."
        )
    if names is not None and len(names) != labels.shape[1]:
        raise DataError(f"{path}: {labels.shape[1]} classes, but dataset.json beside it names {len(names)}.")
    used = np.flatnonzero(labels.any(axis=0))
    if len(used) == 1:
        name = used[0] if names is None else names[used[0]]
        raise DataError(f"{path}: all samples are of class {name}; a classification needs two classes at least.")
    return data, labels, names


def read_cut(folder: Path, info: dict) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Samples (n, L, C) and labels (n, outputs) of each part; raises DataError if the parts have different shapes."""
    parts = {}
    for part in PARTS:
        data, labels, path = _read_part(folder, CUT[part], info)
        parts[part] = data, _checked_outputs(labels, path)
    shape, outputs = parts["train"][0].shape[1:], parts["train"][1].shape[1]
    for part, (data, labels) in parts.items():
        if data.shape[1:] != shape or labels.shape[1] != outputs:
            raise DataError(
                f"{folder}: the {part} part has samples of shape {data.shape[1:]} and {labels.shape[1]} labels each, "
                f"the train part {shape} and {outputs}."
            )
    return parts


def read_original_idxs(folder: Path) -> list[np.ndarray]:
    """The lists of rows in original_idxs.pkl. Raises DataError if the file is missing or holds no such lists."""
    path = folder / "original_idxs.pkl"
    value = read_arrays(path)
    if not isinstance(value, list | tuple):
        raise DataError(f"{path}: holds no list of rows for each part. {_AGAIN}")
    return [np.asarray(rows) for rows in value]


def read_mask(folder: Path, shape: tuple[int, int]) -> np.ndarray | None:
    """mask.pkl (n, L) bool, which time steps belong to the series; None if the series were not padded."""
    path = folder / "mask.pkl"
    if not path.exists():
        return None
    mask = read_array(path)
    if mask.shape != shape or mask.dtype != bool:
        raise DataError(f"{path}: {mask.dtype} of shape {mask.shape}; needed is bool of shape {shape}. {_AGAIN}")
    return mask


def _read_part(folder: Path, stems: tuple[str, str], info: dict) -> tuple[np.ndarray, np.ndarray, Path]:
    """Samples (n, L, C) and labels (n, ..), of equal number, and the file of the labels."""
    data = read_samples(folder, info, stems[0])
    data_file, labels_file = (array_file(folder, stem) for stem in stems)
    labels = _read_float32(labels_file, info)
    if len(labels.shape) == 0 or len(labels) != len(data):
        raise DataError(
            f"{labels_file}: labels of shape {labels.shape} for the {len(data)} samples of {data_file.name}."
        )
    return data, labels, labels_file


def _checked_outputs(labels: np.ndarray, path: Path) -> np.ndarray:
    if labels.ndim != 2 or labels.shape[1] == 0:
        raise DataError(f"{path}: labels of shape {labels.shape}; needed is (samples, labels of a sample).")
    return labels


def _from_numbers(labels: np.ndarray, path: Path, names: list[str] | None) -> tuple[np.ndarray, list[str]]:
    """Whole numbers (n,) as one-hot rows (n, K), and the names of the classes.

    With ``names`` the numbers are the positions of the names, 0..K-1, or else the names themselves.
    """
    if np.any(labels != np.round(labels)) or np.any(np.abs(labels) >= 2**24):
        raise DataError(
            f"{path}: class labels must be integers below 2^24 or one-hot rows; a regression set needs classification "
            "False."
        )
    values, classes = np.unique(labels.astype(np.int64), return_inverse=True)
    if names is None:
        names = [str(value) for value in values]
        return np.eye(len(names), dtype=np.float32)[classes], names
    readings = {}
    if set(map(str, values)) <= set(names):
        readings["names"] = [names.index(str(value)) for value in values]
    if 0 <= values[0] <= values[-1] < len(names):
        readings["positions"] = values.tolist()
    if not readings or len({tuple(positions) for positions in readings.values()}) == 2:
        raise DataError(
            f"{path}: the labels {_listed(values)} must be among the {len(names)} class_names of dataset.json beside "
            f"it, or their positions from 0 to {len(names) - 1}; they are {'both' if readings else 'neither'}. "
            "Write one-hot rows (n, K)."
        )
    return np.eye(len(names), dtype=np.float32)[np.array(next(iter(readings.values())))[classes]], names


def _listed(values: np.ndarray) -> str:
    return ", ".join(map(str, values[:10])) + (" ..." if len(values) > 10 else "")


def _read_float32(path: Path, info: dict) -> np.ndarray:
    """The array as float32; refused if it holds values that are not finite, or are not as float32.

    Memory-mapped arrays that dataset.json describes were checked when they were written, and are not read here.
    """
    way_out = _AGAIN if info else _OWN
    if not path.exists():
        raise DataError(f"{path}: no such file, nor {path.with_suffix('.npy').name}. {way_out}")
    try:
        values = read_npy(path) if path.suffix == ".npy" else read_array(path)
    except DataError as error:
        raise DataError(f"{error} {way_out}") from error
    if path.name in info.get("processed_files", {}) and path.suffix == ".npy" and values.dtype == np.float32:
        return values
    if values.dtype.kind not in "biuf":
        raise DataError(f"{path}: holds no array of numbers.")
    with np.errstate(over="ignore"):
        values = values.astype(np.float32, copy=False)
    bad = int(np.count_nonzero(~np.isfinite(values)))
    if bad:
        raise DataError(f"{path}: {bad} values are not finite or beyond float32. {way_out}")
    return values
