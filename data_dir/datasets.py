"""A processed data set, split by seed, as three loaders."""

import importlib.util
from collections.abc import Iterable, Iterator
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
    read_classes,
    read_cut,
    read_info,
    read_mask,
    read_original_idxs,
    read_samples,
    read_whole,
)
from data_dir.processing.audit import offset_channels, offsets_text
from data_dir.scaling import LabelMap, Standardisation, label_map_of, standardisation_of
from data_dir.splits import PARTS, Split, read_index_file, split_as_original, split_by_seed
from data_dir.storage import DataError, processed_folder, raw_folder, script_command

BY_SEED, ORIGINAL = "seed", "original"
# Series that are looked at for channels with an offset.
_LOOKED_AT = 64


@dataclass(frozen=True)
class Dataset:
    """A data set ready to train on.

    ``train``, ``validation`` and ``test`` serve x (n, length, data_dim) and y: in classification one-hot rows
    (n, label_dim), in regression (n, length // output_step), with label_dim 1. ``data_dim`` counts the time channel.
    A regression has one label for every ``output_step`` time steps. ``split`` maps "train", "validation" and "test" to
    rows of the ``stored`` samples; both are None if the set was cut into parts beforehand. ``class_names`` is None
    where the processed files do not tell them. ``mask`` (stored rows, length) says which time steps belong to a series,
    where series were padded. ``label_scale`` has for each sample of a part the units (beats per minute) that a
    difference of 1 between scaled labels stands for: a squared error times its square is in bpm^2. ``sha256`` is one
    hash of the arrays as the files hold them: type, shape and values.

    ``standardisation`` is the map that was applied to the channels of the files, ``label_map`` the one from the labels
    that are served to those of the files; None where the loaders serve what the files hold. ``notes`` are sentences
    about what a reader should know before training.
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
    output_step: int = 1
    standardisation: Standardisation | None = None
    label_map: LabelMap | None = None
    notes: tuple[str, ...] = ()
    sha256: str | None = None

    def describe(self) -> str:
        """The shape of the set in one line."""
        parts = {part: getattr(self, part).size for part in PARTS}
        channels = self.train.channels
        if self.classification:
            names = range(self.label_dim) if self.class_names is None else self.class_names
            labels = f"{self.label_dim} classes ({_first(names)})"
        else:
            labels = f"{self.length // self.output_step} labels a series, one every {self.output_step} time steps"
        if self.label_map is not None:
            centre, unit = self.label_map
            labels += f", mapped: label = {centre:g} + {unit:g} x output; mse in units of the files"
        return (
            f"{self.name}: {sum(parts.values())} series x {self.length} time steps x {channels} channel"
            f"{'s' if channels > 1 else ''}{', standardised' if self.standardisation is not None else ''}; {labels}; "
            + ", ".join(f"{part} {size}" for part, size in parts.items())
        )


def create_dataset(
    data_dir: str | Path,
    dataset_name: str,
    *,
    seed: int,
    time: bool,
    classification: bool = True,
    output_step: int | None = None,
    split: str | Path = BY_SEED,
    inmemory: bool = False,
    standardise: bool = False,
) -> Dataset:
    """Loads a processed set and splits it.

    ``data_dir`` holds raw/ and processed/. A folder processed/{collection}/{dataset_name} is read in either of two
    forms: data (n, L, C) with labels (n, K) one-hot or (n,) integers, split here; or, in regression only, already split
    as PPG-DaLiA is, {X,y}_{train,val,test} with X (n, L, C) and y (n, L // output_step). Each array is a pickle or an
    npy file; npy files are memory-mapped, pickles held in memory, once for all parts. The sets in ``BUNDLED`` are
    processed on first use. ``time`` puts the channel t/L, t = 0..L-1, in front of the others. In regression
    (``classification`` False) there must be one label for every ``output_step`` time steps, which the data tell if it
    is None; classification does not look at ``output_step``.

    ``standardise`` brings every channel to mean 0 and standard deviation 1 over the training part. Labels of a
    regression that do not all lie in [-1, 1] are mapped into the reach of tanh (see ``data_dir.scaling``).

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
    class_names = mask = rows = label_map = None
    if is_whole(folder):
        if classification:
            data, labels, class_names = read_classes(folder, info)
        else:
            data, labels = read_whole(folder, info)
        rows = _split(folder, dataset_name, len(data), seed, split)
        arrays = {part: (data, labels) for part in PARTS}
        mask = read_mask(folder, data.shape[:2])
    else:
        if classification:
            raise DataError(
                f"{folder}: sets that are already split are read for regression; it needs classification False."
            )
        if split != BY_SEED:
            raise DataError(f"{folder}: is already split; split {str(split)!r} cannot be had, only {BY_SEED!r}.")
        arrays = read_cut(folder, info)
        data, labels = arrays["train"]
    length, channels = data.shape[1:]
    outputs = labels.shape[1]
    train_rows = None if rows is None else rows["train"]
    if standardise and mask is not None:
        raise DataError(
            f"{folder}: its series are padded with zeros, which standardise would move. Set standardise to false."
        )
    if classification:
        output_step = 1
    else:
        output_step = _output_step(folder, length, outputs, output_step)
        try:
            label_map = label_map_of(labels for _, labels in arrays.values())
        except DataError as error:
            raise DataError(f"{folder}: {error}") from error
    standardisation = standardisation_of(data, train_rows) if standardise else None
    options = {"time": time, "inmemory": inmemory, "standardisation": standardisation}
    if label_map is not None:
        options["label_unit"] = label_map.unit
        arrays = {part: (data, label_map.to_outputs(labels)) for part, (data, labels) in arrays.items()}
    loaders = {part: Dataloader(*arrays[part], rows=None if rows is None else rows[part], **options) for part in PARTS}
    return Dataset(
        name=dataset_name,
        **loaders,
        data_dim=channels + bool(time),
        label_dim=outputs if classification else 1,
        length=length,
        classification=classification,
        split=rows,
        stored=None if rows is None else len(data),
        class_names=class_names,
        mask=mask,
        label_scale=_label_scale(folder, info, loaders),
        output_step=output_step,
        standardisation=standardisation,
        label_map=label_map,
        notes=tuple(_notes(data, labels, train_rows, seed, class_names, classification, standardise)),
        sha256=arrays_sha256(folder),
    )


def _output_step(folder: Path, length: int, outputs: int, asked: int | None) -> int:
    """How many time steps a label stands for."""
    found = length // outputs
    if found == 0 or length // found != outputs:
        raise DataError(f"{folder}: {length} time steps cannot carry {outputs} labels at equal distances.")
    if asked is not None and (asked < 1 or length // asked != outputs):
        raise DataError(
            f"{folder}: output_step {asked} does not fit: {length} time steps carry {outputs} labels, so it must be "
            f"{found}."
        )
    return found if asked is None else asked


def _notes(data, labels, rows, seed, class_names, classification, standardise) -> Iterator[str]:
    """What is odd about arrays that a network is to be trained on; ``rows`` are those of the training part."""
    rows = np.arange(len(data)) if rows is None else rows
    _, length, channels = data.shape
    if channels > length:
        yield (
            f"more channels ({channels}) than time steps ({length}): the axes must be (samples, time steps, channels)."
        )
    if classification:
        lost = np.flatnonzero(labels.any(axis=0) & ~labels[rows].any(axis=0))
        if len(lost):
            names = lost if class_names is None else [class_names[column] for column in lost]
            yield f"the training part of seed {seed} has no sample of class {_first(names)}."
    if not standardise:
        # Spread over the set, whose rows are sorted, and the same for every seed.
        looked_at = np.unique(np.linspace(0, len(data) - 1, _LOOKED_AT, dtype=int))
        offsets = offset_channels(np.asarray(data[looked_at]))
        if offsets:
            yield f'{offsets_text(offsets)}. "standardise": true in the config removes the offset (not of padded sets).'


def _first(names: Iterable, count: int = 10) -> str:
    names = [str(name) for name in names]
    return ", ".join(names[:count]) + (f" and {len(names) - count} more" if len(names) > count else "")


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
