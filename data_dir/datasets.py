"""A processed data set, split by seed, as three loaders."""

import importlib.util
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_dir.dataloaders import Dataloader
from data_dir.names import BUNDLED, PPG, PUBLISHED_UEA, UEA_MULTIVARIATE, nearest_name
from data_dir.process_uea import COLLECTION, process_dataset, raw_files
from data_dir.processed import (
    CUT,
    WHOLE,
    array_file,
    arrays_sha256,
    is_dataset,
    is_whole,
    read_cut,
    read_info,
    read_mask,
    read_original_idxs,
    read_samples,
    read_whole,
)
from data_dir.splits import PARTS, Split, read_index_file, split_as_original, split_by_seed
from data_dir.storage import DataError, processed_folder, raw_folder, script_command

BY_SEED, ORIGINAL = "seed", "original"


@dataclass(frozen=True)
class Dataset:
    """A data set ready to train on.

    ``train``, ``validation`` and ``test`` serve x (n, length, data_dim) and y: in classification one-hot rows
    (n, label_dim), in regression (n, length // output_step), with label_dim 1. ``data_dim`` counts the time channel.
    ``split`` maps "train", "validation" and "test" to rows of the ``stored`` samples; both are None if the set was cut
    into parts beforehand. ``class_names`` is None where the processed files do not tell them. ``mask`` (stored rows,
    length) says which time steps belong to a series, where series were padded. ``label_scale`` has for each sample of a
    part the units (beats per minute) that a difference of 1 between scaled labels stands for: a squared error times its
    square is in bpm^2. ``sha256`` is one hash of the arrays as the files hold them: type, shape and values.
    """

    name: str
    train: Dataloader
    validation: Dataloader
    test: Dataloader
    data_dim: int
    label_dim: int
    length: int
    classification: bool
    split: Split | None
    class_names: list[str] | None
    mask: np.ndarray | None = None
    stored: int | None = None
    label_scale: dict[str, np.ndarray] | None = None
    sha256: str | None = None


def create_dataset(
    data_dir: str | Path,
    dataset_name: str,
    *,
    seed: int,
    time: bool,
    classification: bool = True,
    output_step: int = 1,
    split: str | Path = BY_SEED,
    inmemory: bool = False,
) -> Dataset:
    """Loads a processed set and splits it.

    ``data_dir`` holds raw/ and processed/. A folder processed/{collection}/{dataset_name} is read in either of two
    forms: data (n, L, C) with labels (n, K) one-hot or (n,) integers, split here; or, in regression only, already split
    as PPG-DaLiA is, {X,y}_{train,val,test} with X (n, L, C) and y (n, L // output_step). Each array is a pickle or an
    npy file; npy files are memory-mapped, pickles held in memory, once for all parts. The sets in ``BUNDLED`` are
    processed on first use. ``time`` puts the channel t/L, t = 0..L-1, in front of the others. In regression
    (``classification`` False) there must be one label for every ``output_step`` time steps; classification does not
    look at ``output_step``.

    ``split`` is "seed", the published split of ``seed``; "original", the archive's own parts, with validation rows
    drawn by ``seed`` where it has none; or the path of an index file (see ``data_dir.splits``), of which the rows for
    ``seed`` are taken. ``inmemory`` copies every part to the device; otherwise batches are numpy arrays.

    Raises DataError, naming the file and the way out, if the set is missing, a file is damaged or not the one that was
    processed, or the arrays do not fit together or to what was asked.
    """
    folder = _folder_of(data_dir, dataset_name)
    info = read_info(folder)
    if not classification and "class_names" in info:
        raise DataError(f"{folder}: has class labels, according to dataset.json; it needs classification True.")
    options = {"time": time, "inmemory": inmemory}
    if is_whole(folder):
        data, labels = read_whole(folder, info, classification)
        rows = _split(folder, dataset_name, len(data), seed, split)
        loaders = {part: Dataloader(data, labels, rows=rows[part], **options) for part in PARTS}
        mask = read_mask(folder, data.shape[:2])
    else:
        if classification:
            raise DataError(
                f"{folder}: sets that are already split are read for regression; it needs classification False."
            )
        if split != BY_SEED:
            raise DataError(f"{folder}: is already split; split {str(split)!r} cannot be had, only {BY_SEED!r}.")
        parts = read_cut(folder, info)
        data, labels = parts["train"]
        rows = mask = None
        loaders = {part: Dataloader(*arrays, **options) for part, arrays in parts.items()}
    length, channels = data.shape[1:]
    outputs = labels.shape[1]
    if not classification and (output_step < 1 or length // output_step != outputs):
        raise DataError(
            f"{folder}: output_step {output_step} does not fit: {length} time steps carry {outputs} labels, so it must "
            f"be {length // outputs}."
        )
    return Dataset(
        name=dataset_name,
        **loaders,
        data_dim=channels + bool(time),
        label_dim=outputs if classification else 1,
        length=length,
        classification=classification,
        split=rows,
        stored=None if rows is None else len(data),
        class_names=info.get("class_names") if classification else None,
        mask=mask,
        label_scale=_label_scale(folder, info, loaders),
        sha256=arrays_sha256(folder),
    )


def _split(folder: Path, dataset_name: str, n: int, seed: int, split: str | Path) -> Split:
    """The stored rows of each part."""
    if split not in (BY_SEED, ORIGINAL):
        return read_index_file(split, dataset_name, n, seed)
    file = folder / "original_idxs.pkl" if split == ORIGINAL else array_file(folder, WHOLE[0])
    try:
        return split_as_original(read_original_idxs(folder), n, seed) if split == ORIGINAL else split_by_seed(n, seed)
    except DataError as error:
        raise DataError(str(error) if str(error).startswith(str(file)) else f"{file}: {error}") from error


def _label_scale(folder: Path, info: dict, loaders: dict[str, Dataloader]) -> dict[str, np.ndarray] | None:
    """Beats per minute per unit of the scaled labels, for each sample; None if dataset.json tells of no subjects."""
    if "subjects" not in info:
        return None
    try:
        half_range = {
            int(name[1:]): (facts["ranges"]["heart_rate"][1] - facts["ranges"]["heart_rate"][0]) / 2
            for name, facts in info["subjects"].items()
        }
        scale = {
            part: np.array([half_range[subject] for subject in info["windows"][part]["subject"]]) for part in PARTS
        }
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise DataError(f"{folder / 'dataset.json'}: subjects and windows are not told soundly ({error!r}).") from error
    for part, values in scale.items():
        if len(values) != loaders[part].size:
            raise DataError(
                f"{folder / 'dataset.json'}: tells of {len(values)} windows in the {part} part, which has "
                f"{loaders[part].size}."
            )
    return scale


def processed_datasets(data_dir: str | Path) -> list[str]:
    """The names of the sets in processed/*/, sorted."""
    return sorted({folder.name for folder in processed_folder(data_dir).glob("*/[!.]*") if is_dataset(folder)})


def count_samples(data_dir: str | Path, dataset_name: str) -> tuple[Path, int | None]:
    """The folder of a processed set and the number of its samples, None if it was cut into parts beforehand.

    Raises DataError as ``create_dataset`` does.
    """
    folder = _folder_of(data_dir, dataset_name)
    return folder, len(read_samples(folder, read_info(folder))) if is_whole(folder) else None


def _folder_of(data_dir: str | Path, name: str) -> Path:
    """The folder of a processed set; a bundled one is processed if it is not there yet."""
    processed = processed_folder(data_dir)
    if not name or Path(name).name != name or name.startswith("."):
        raise DataError(f"dataset_name {name!r}: must be the name of a folder in {processed}/*/.")
    found = [folder for folder in sorted(processed.glob(f"*/{name}")) if is_dataset(folder)]
    if len(found) > 1:
        raise DataError(f"dataset_name {name!r}: found twice, as {found[0]} and {found[1]}. Rename or remove one.")
    if found:
        return found[0]
    if name in BUNDLED:
        # find_spec looks without importing.
        package = Path(importlib.util.find_spec("sktime").origin).parent
        train, test = (package / "datasets" / "data" / name / f"{name}_{part}.ts" for part in ("TRAIN", "TEST"))
        process_dataset(name, train, test, data_dir, keep=is_dataset)
        return processed / COLLECTION / name
    raise DataError(_how_to_get(data_dir, name))


def _how_to_get(data_dir: str | Path, name: str) -> str:
    """Why a set is missing and what brings it."""
    processed = processed_folder(data_dir)
    known = {*BUNDLED, *PUBLISHED_UEA, *UEA_MULTIVARIATE, PPG, *processed_datasets(data_dir)}
    message = f"dataset_name {name!r}: no folder {processed}/*/{name} holds {WHOLE[0]}.pkl or {CUT['train'][0]}.npy."
    nearest = nearest_name(name, known)
    if name not in known and nearest:
        return f"{message} Did you mean {nearest!r}?"
    if name == PPG:
        process = script_command("process_ppg.py", data_dir)
        return f"{message} PPG-DaLiA is fetched by hand and processed; this says how:\n    {process}"
    process = script_command("process_uea.py", data_dir, "--datasets", name)
    if raw_files(data_dir, name):
        return f"{message} Its raw files are there; process them:\n    {process}"
    if name in UEA_MULTIVARIATE:
        fetch = script_command("download_uea.py", data_dir, "--datasets", name)
        return f"{message} Fetch and process it:\n    {fetch}\n    {process}"
    raw = raw_folder(data_dir) / "Multivariate_ts" / name
    return (
        f"{message} Put {name}_TRAIN.ts and {name}_TEST.ts into {raw} and process them:\n    {process}\n"
        f"Without a download there are {', '.join(BUNDLED)}."
    )
