"""A processed data set, split by seed, as three loaders."""

import difflib
import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_dir.dataloaders import Dataloader
from data_dir.download_uea import FETCHABLE
from data_dir.pickles import read_array
from data_dir.process_uea import COLLECTION, process_dataset, raw_files
from data_dir.splits import PARTS, split_by_seed
from data_dir.storage import DataError, processed_folder, raw_folder, script_command

# Real sets of equal length that sktime ships inside its package: no download.
BUNDLED = ("BasicMotions", "ACSF1", "ArrowHead", "GunPoint", "ItalyPowerDemand", "OSULeaf")
# The sets of the published experiments, by the names of the archive; ppg is PPG-DaLiA.
PUBLISHED_UEA = (
    "EigenWorms",
    "SelfRegulationSCP1",
    "SelfRegulationSCP2",
    "EthanolConcentration",
    "Heartbeat",
    "MotorImagery",
)
PPG = "ppg"

# What makes a folder of processed/*/ a data set: all samples, to be split by seed, or three parts cut beforehand.
_WHOLE = ("data.pkl", "labels.pkl")
_CUT = {
    "train": ("X_train.pkl", "y_train.pkl"),
    "validation": ("X_val.pkl", "y_val.pkl"),
    "test": ("X_test.pkl", "y_test.pkl"),
}


@dataclass(frozen=True)
class Dataset:
    """A data set ready to train on.

    ``train``, ``validation`` and ``test`` serve x (n, length, data_dim) and y: in classification one-hot rows
    (n, label_dim), in regression (n, length // output_step), with label_dim 1. ``data_dim`` counts the time channel.
    ``split`` maps "train", "validation" and "test" to rows of the stored arrays; None if the set was cut into parts
    beforehand. ``class_names`` is None where the processed files do not tell them.
    """

    name: str
    train: Dataloader
    validation: Dataloader
    test: Dataloader
    data_dim: int
    label_dim: int
    length: int
    classification: bool
    split: dict[str, np.ndarray] | None
    class_names: list[str] | None


def create_dataset(
    data_dir: str | Path,
    dataset_name: str,
    *,
    seed: int,
    time: bool,
    classification: bool = True,
    output_step: int = 1,
) -> Dataset:
    """Loads a processed set and splits it by ``seed`` (see ``data_dir.splits``).

    ``data_dir`` holds raw/ and processed/. A folder processed/{collection}/{dataset_name} is read in either of two
    forms: data.pkl (n, L, C) with labels.pkl (n, K) one-hot or (n,) integers, split here; or, in regression only,
    already split as PPG-DaLiA is, {X,y}_{train,val,test}.pkl with X (n, L, C) and y (n, L // output_step). The sets in
    ``BUNDLED`` are processed on first use. ``time`` puts the channel t/L, t = 0..L-1, in front of the others. In
    regression (``classification`` False) there must be one label for every ``output_step`` time steps; classification
    does not look at ``output_step``.

    Everything is held in memory as float32. Raises DataError, naming the file and the way out, if the set is missing,
    a file is damaged, or the arrays do not fit together or to what was asked.
    """
    folder = _folder_of(data_dir, dataset_name)
    info = _read_info(folder)
    if not classification and "class_names" in info:
        raise DataError(f"{folder}: has class labels, according to dataset.json; it needs classification True.")
    if (folder / _WHOLE[0]).exists():
        data, labels = _read_part(folder, _WHOLE, info, classification)
        try:
            split = split_by_seed(len(data), seed)
        except DataError as error:
            raise DataError(f"{folder / _WHOLE[0]}: {error}") from error
        parts = {part: (data[rows], labels[rows]) for part, rows in split.items()}
    else:
        if classification:
            raise DataError(
                f"{folder}: sets that are already split are read for regression; it needs classification False."
            )
        split = None
        parts = {part: _read_part(folder, _CUT[part], info, classification) for part in PARTS}
    length, channels = parts["train"][0].shape[1:]
    outputs = parts["train"][1].shape[1]
    for part, (data, labels) in parts.items():
        if data.shape[1:] != (length, channels) or labels.shape[1] != outputs:
            raise DataError(
                f"{folder}: the {part} part has samples of shape {data.shape[1:]} and {labels.shape[1]} labels each, "
                f"the train part {(length, channels)} and {outputs}."
            )
    if not classification and (output_step < 1 or length // output_step != outputs):
        raise DataError(
            f"{folder}: output_step {output_step} does not fit: {length} time steps carry {outputs} labels, so it must "
            f"be {length // outputs}."
        )
    loaders = {part: Dataloader(_with_time(data) if time else data, labels) for part, (data, labels) in parts.items()}
    return Dataset(
        name=dataset_name,
        train=loaders["train"],
        validation=loaders["validation"],
        test=loaders["test"],
        data_dim=channels + bool(time),
        label_dim=outputs if classification else 1,
        length=length,
        classification=classification,
        split=split,
        class_names=info.get("class_names") if classification else None,
    )


def processed_datasets(data_dir: str | Path) -> list[str]:
    """The names of the sets in processed/*/, sorted."""
    return sorted({folder.name for folder in processed_folder(data_dir).glob("*/[!.]*") if _is_dataset(folder)})


def _is_dataset(folder: Path) -> bool:
    return (folder / _WHOLE[0]).exists() or (folder / _CUT["train"][0]).exists()


def _folder_of(data_dir: str | Path, name: str) -> Path:
    """The folder of a processed set; a bundled one is processed if it is not there yet."""
    processed = processed_folder(data_dir)
    if not name or Path(name).name != name or name.startswith("."):
        raise DataError(f"dataset_name {name!r}: must be the name of a folder in {processed}/*/.")
    found = [folder for folder in sorted(processed.glob(f"*/{name}")) if _is_dataset(folder)]
    if len(found) > 1:
        raise DataError(f"dataset_name {name!r}: found twice, as {found[0]} and {found[1]}. Rename or remove one.")
    if found:
        return found[0]
    if name in BUNDLED:
        # find_spec looks without importing.
        package = Path(importlib.util.find_spec("sktime").origin).parent
        train, test = (package / "datasets" / "data" / name / f"{name}_{part}.ts" for part in ("TRAIN", "TEST"))
        process_dataset(name, train, test, data_dir, keep=_is_dataset)
        return processed / COLLECTION / name
    raise DataError(_how_to_get(data_dir, name))


def _how_to_get(data_dir: str | Path, name: str) -> str:
    """Why a set is missing and what brings it."""
    processed = processed_folder(data_dir)
    known = {*BUNDLED, *PUBLISHED_UEA, PPG, *processed_datasets(data_dir)}
    message = f"dataset_name {name!r}: no folder {processed}/*/{name} holds {_WHOLE[0]} or {_CUT['train'][0]}."
    lowered = {candidate.lower(): candidate for candidate in known - {name}}
    nearest = difflib.get_close_matches(name.lower(), lowered, n=1, cutoff=0.75)
    if name not in known and nearest:
        return f"{message} Did you mean {lowered[nearest[0]]!r}?"
    if name == PPG:
        files = ", ".join(file for pair in _CUT.values() for file in pair)
        return f"{message} PPG-DaLiA is not fetched by a command: put {files} into {processed / 'PPG' / PPG}."
    process = script_command("process_uea.py", data_dir, "--datasets", name)
    if raw_files(data_dir, name):
        return f"{message} Its raw files are there; process them:\n    {process}"
    if name in FETCHABLE:
        fetch = script_command("download_uea.py", data_dir, "--datasets", name)
        return f"{message} Fetch and process it:\n    {fetch}\n    {process}"
    raw = raw_folder(data_dir) / "Multivariate_ts" / name
    return (
        f"{message} Put {name}_TRAIN.ts and {name}_TEST.ts of the UEA archive into {raw} and process them:\n"
        f"    {process}\nWithout a download there are {', '.join(BUNDLED)}."
    )


def _read_info(folder: Path) -> dict:
    """dataset.json; empty if there is none, as in folders that the published scripts wrote."""
    path = folder / "dataset.json"
    try:
        info = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (ValueError, OSError) as error:
        raise DataError(
            f"{path}: cannot be read ({error}). Remove the folder and process the data set again."
        ) from error
    if not isinstance(info, dict) or not isinstance(info.get("class_names", []), list):
        raise DataError(
            f"{path}: must hold a JSON object, class_names a list. Remove the folder and process the data set again."
        )
    return info


def _read_part(folder: Path, files: tuple[str, str], info: dict, classification: bool) -> tuple[np.ndarray, np.ndarray]:
    """Samples (n, L, C) and labels (n, outputs), checked against each other."""
    data_file, labels_file = (folder / file for file in files)
    data = _read_float32(data_file)
    if data.ndim != 3 or 0 in data.shape:
        raise DataError(f"{data_file}: shape {data.shape}; needed is (samples, time steps, channels), none of them 0.")
    labels = _read_float32(labels_file)
    if len(labels.shape) == 0 or len(labels) != len(data):
        raise DataError(
            f"{labels_file}: labels of shape {labels.shape} for the {len(data)} samples of {data_file.name}."
        )
    if classification:
        labels = _one_hot(labels, labels_file, info.get("class_names"))
    if labels.ndim != 2 or labels.shape[1] == 0:
        raise DataError(f"{labels_file}: labels of shape {labels.shape}; needed is (samples, labels of a sample).")
    return data, labels


def _one_hot(labels: np.ndarray, path: Path, class_names: list[str] | None) -> np.ndarray:
    """Class labels as one-hot rows (n, K): integers (n,) or (n, 1) are converted, one-hot rows (n, K > 1) checked."""
    if labels.ndim == 1 or (labels.ndim == 2 and labels.shape[1] == 1):
        if np.any(labels != np.round(labels)):
            raise DataError(
                f"{path}: class labels must be integers or one-hot rows; a regression set needs classification False."
            )
        values, classes = np.unique(labels.reshape(-1), return_inverse=True)
        labels = np.eye(len(values), dtype=np.float32)[classes]
    if labels.ndim != 2 or not (np.isin(labels, (0, 1)).all() and np.all(labels.sum(axis=1) == 1)):
        raise DataError(
            f"{path}: class labels of shape {labels.shape} must be integers (n,) or one-hot rows (n, K); a regression "
            "set needs classification False."
        )
    if class_names is not None and len(class_names) != labels.shape[1]:
        raise DataError(f"{path}: {labels.shape[1]} classes, but dataset.json beside it names {len(class_names)}.")
    return labels


def _read_float32(path: Path) -> np.ndarray:
    """The array in a pickle as float32; refused if it holds values that are not finite, or are not as float32."""
    with np.errstate(over="ignore"):
        values = read_array(path).astype(np.float32, copy=False)
    bad = int(np.count_nonzero(~np.isfinite(values)))
    if bad:
        raise DataError(f"{path}: {bad} values are not finite. Process the data set again from sound raw files.")
    return values


def _with_time(data: np.ndarray) -> np.ndarray:
    """Puts the channel t/L in front: (n, L, C) to (n, L, C + 1)."""
    n, length, channels = data.shape
    widened = np.empty((n, length, channels + 1), dtype=np.float32)
    widened[:, :, 0] = np.arange(length) / length
    widened[:, :, 1:] = data
    return widened
