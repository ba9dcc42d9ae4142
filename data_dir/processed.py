"""The files of a processed set, read and checked against each other and against dataset.json.

A folder processed/{collection}/{dataset_name} has one of two forms: all samples, data (n, L, C) with labels (n, K)
one-hot or (n,) integers or, in regression, (n, T) for T label steps, or (n, T, K) with K outputs at each; or, in
regression only, three parts as PPG-DaLiA has, {X,y}_{train,val,test} with X (n, L, C) and y (n, T). Each array is a
pickle or an npy file.
"""

import hashlib
from pathlib import Path

import numpy as np

from common.files import known_sha256, sha256_of_array
from data_dir.npy import read_npy
from data_dir.pickles import read_array, read_arrays
from data_dir.storage import DataError, read_json

WHOLE = ("data", "labels")
CUT = {"train": ("X_train", "y_train"), "validation": ("X_val", "y_val"), "test": ("X_test", "y_test")}
_AGAIN = "Remove the folder and process the data set again."
_OWN = "Write the file again. The folder has no dataset.json, so no command of this project can make it."


def array_file(folder: Path, stem: str) -> Path:
    """The file of an array: ``stem``.npy if it exists, else ``stem``.pkl."""
    npy = folder / f"{stem}.npy"
    return npy if npy.exists() else folder / f"{stem}.pkl"


def is_dataset(folder: Path) -> bool:
    """Whether the folder holds a processed set, of either form."""
    return any(array_file(folder, stem).exists() for stem in (WHOLE[0], CUT["train"][0]))


class ProcessedSet:
    """The files of one processed set. npy files are memory-mapped. Each described file is hashed once in a process.

    ``info`` is dataset.json, or empty without that file, as in folders that the published scripts wrote. Raises
    DataError if dataset.json is damaged, if a file that it names is missing or has another sha256, and if the folder
    has an array as npy file and as pickle. All methods raise DataError for arrays that do not fit.
    """

    def __init__(self, folder: Path):
        self.folder, self.is_whole = folder, array_file(folder, WHOLE[0]).exists()
        self._description = folder / "dataset.json"
        self._sums: dict[str, str] = {}
        for stem in (*WHOLE, *(stem for stems in CUT.values() for stem in stems)):
            npy, pickled = folder / f"{stem}.npy", folder / f"{stem}.pkl"
            if npy.exists() and pickled.exists():
                raise DataError(f"{npy}: {pickled.name} is beside it. Remove the one that is not of this data set.")
        self.info = self._checked_info() if self._description.exists() else {}

    @property
    def has_fixed_test(self) -> bool:
        """Whether the set was published with a test part that no split may take for anything else."""
        return self.info.get("fixed_test") is True

    def _checked_info(self) -> dict:
        try:
            info = read_json(self._description)
        except DataError as error:
            raise DataError(f"{error} {_AGAIN}") from error
        files, names = info.get("processed_files", {}), info.get("class_names", [])
        if not isinstance(files, dict) or not all(isinstance(described, dict) for described in files.values()):
            raise DataError(f"{self._description}: processed_files must describe each file by an object. {_AGAIN}")
        if not isinstance(names, list) or not _are_texts(names):
            raise DataError(f"{self._description}: class_names must be a list of distinct texts. {_AGAIN}")
        for name, described in files.items():
            file = self.folder / name
            if not file.is_file():
                raise DataError(f"{file}: no such file, but dataset.json names it. {_AGAIN}")
            if known_sha256(file) != described.get("sha256"):
                raise DataError(f"{file}: was changed since it was processed (sha256). {_AGAIN}")
        return info

    def sha256(self) -> str:
        """One hash of the arrays that were read, as their files hold them: type, shape and values."""
        return hashlib.sha256("\n".join(f"{stem} {sha256}" for stem, sha256 in self._sums.items()).encode()).hexdigest()

    def samples(self, stem: str = WHOLE[0]) -> np.ndarray:
        """The samples (n, L, C) of one array."""
        data = self._read(stem)
        if data.ndim != 3 or 0 in data.shape:
            raise DataError(
                f"{array_file(self.folder, stem)}: shape {data.shape}; needed is (samples, time steps, channels), none "
                "of them 0."
            )
        return data

    def classes(self) -> tuple[np.ndarray, np.ndarray, list[str] | None]:
        """All samples (n, L, C), their classes as one-hot rows (n, K), and the names of the classes.

        The names come from dataset.json, or are the whole numbers that the file has for labels; None for one-hot
        rows without names. Raises DataError for labels that are no classes, and if all samples are of one class.
        """
        data, labels, path = self._part(WHOLE)
        names = self.info.get("class_names")
        if labels.ndim == 1 or (labels.ndim == 2 and labels.shape[1] == 1):
            if names is not None:
                raise DataError(f"{path}: dataset.json has class_names, so the labels must be one-hot rows (n, K).")
            labels, names = _from_numbers(labels.reshape(-1), path)
        if labels.ndim != 2 or not (np.isin(labels, (0, 1)).all() and np.all(labels.sum(axis=1) == 1)):
            raise DataError(
                f"{path}: class labels of shape {labels.shape} must be integers (n,) or one-hot rows (n, K); a "
                "regression set needs classification False."
            )
        if names is not None and len(names) != labels.shape[1]:
            raise DataError(f"{path}: {labels.shape[1]} classes, but dataset.json names {len(names)}.")
        used = np.flatnonzero(labels.any(axis=0))
        if len(used) == 1:
            name = used[0] if names is None else names[used[0]]
            raise DataError(f"{path}: all samples are of class {name}; a classification needs two classes at least.")
        return data, labels, names

    def outputs(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Samples (n, L, C) and labels (n, T) or (n, T, K) of a regression, as {"": all} or {part: its samples}.

        T counts the label steps of a sample, K > 1 the outputs at each. dataset.json may name the outputs.
        """
        arrays = {}
        for part, stems in {"": WHOLE}.items() if self.is_whole else CUT.items():
            data, labels, path = self._part(stems)
            if labels.ndim not in (2, 3) or 0 in labels.shape:
                raise DataError(
                    f"{path}: labels of shape {labels.shape}; needed is (samples, labels of a sample) or "
                    "(samples, label steps, outputs)."
                )
            if labels.ndim == 3 and labels.shape[2] == 1:
                labels = labels[..., 0]
            arrays[part] = data, labels
            (first_data, first_labels), *_ = arrays.values()
            if data.shape[1:] != first_data.shape[1:] or labels.shape[1:] != first_labels.shape[1:]:
                raise DataError(
                    f"{self.folder}: the {part} part has samples of shape {data.shape[1:]} and {labels.shape[1]} "
                    f"labels each, the train part {first_data.shape[1:]} and {first_labels.shape[1]}."
                )
        return arrays

    def output_names(self, outputs: int) -> list[str] | None:
        """The names of a regression's outputs in dataset.json, or None. Raises DataError if their number differs."""
        names = self.info.get("output_names")
        if names is not None and (not isinstance(names, list) or len(names) != outputs or not _are_texts(names)):
            raise DataError(f"{self._description}: output_names must be {outputs} distinct texts. {_AGAIN}")
        return names

    def original_idxs(self) -> list[np.ndarray]:
        """The lists of rows in original_idxs.pkl. Raises DataError if the file is missing or holds no lists."""
        path = self.folder / "original_idxs.pkl"
        value = read_arrays(path)
        if not isinstance(value, list | tuple):
            raise DataError(f"{path}: holds no list of rows for each part. {_AGAIN}")
        return [np.asarray(rows) for rows in value]

    def mask(self, shape: tuple[int, int]) -> np.ndarray | None:
        """mask.pkl (n, L) bool, which time steps belong to the series; None if the series were not padded."""
        path = self.folder / "mask.pkl"
        if not path.exists():
            return None
        mask = read_array(path)
        if mask.shape != shape or mask.dtype != bool:
            raise DataError(f"{path}: {mask.dtype} of shape {mask.shape}; needed is bool of shape {shape}. {_AGAIN}")
        return mask

    def _part(self, stems: tuple[str, str]) -> tuple[np.ndarray, np.ndarray, Path]:
        """Samples (n, L, C) and labels (n, ..), of equal number, and the file of the labels."""
        data, labels = self.samples(stems[0]), self._read(stems[1])
        data_file, labels_file = (array_file(self.folder, stem) for stem in stems)
        if labels.ndim == 0 or len(labels) != len(data):
            raise DataError(
                f"{labels_file}: labels of shape {labels.shape} for the {len(data)} samples of {data_file.name}."
            )
        return data, labels, labels_file

    def _read(self, stem: str) -> np.ndarray:
        """The array as float32. Raises DataError for values that are not finite in float32.

        The values of a memory-mapped array that dataset.json describes are not checked: they were, when it was written.
        """
        path = array_file(self.folder, stem)
        way_out = _AGAIN if self.info else _OWN
        if not path.exists():
            raise DataError(f"{path}: no such file, nor {path.with_suffix('.npy').name}. {way_out}")
        is_npy = path.suffix == ".npy"
        try:
            values = read_npy(path) if is_npy else read_array(path)
        except DataError as error:
            raise DataError(f"{error} {way_out}") from error
        if values.dtype.kind not in "biuf":
            raise DataError(f"{path}: holds no array of numbers.")
        hashed_as_file = is_npy and values.flags.c_contiguous
        self._sums[stem] = known_sha256(path) if hashed_as_file else sha256_of_array(values)
        if is_npy and path.name in self.info.get("processed_files", {}) and values.dtype == np.float32:
            return values
        with np.errstate(over="ignore"):
            values = values.astype(np.float32, copy=False)
        bad = int(np.count_nonzero(~np.isfinite(values)))
        if bad:
            raise DataError(f"{path}: {bad} values are not finite or beyond float32. {way_out}")
        return values


def _are_texts(names: list) -> bool:
    """Whether all are texts, and distinct."""
    return all(isinstance(name, str) for name in names) and len({*names}) == len(names)


def _from_numbers(labels: np.ndarray, path: Path) -> tuple[np.ndarray, list[str]]:
    """Whole numbers (n,) as one-hot rows (n, K), and the numbers as names of the classes."""
    if np.any(labels != np.round(labels)) or np.any(np.abs(labels) >= 2**24):
        raise DataError(
            f"{path}: class labels must be integers below 2^24 or one-hot rows; a regression set needs classification "
            "False."
        )
    values, classes = np.unique(labels.astype(np.int64), return_inverse=True)
    return np.eye(len(values), dtype=np.float32)[classes], list(map(str, values))
