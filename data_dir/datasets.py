"""A processed data set, split by seed, as three loaders."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_dir.dataloaders import Dataloader
from data_dir.finding import folder_of
from data_dir.names import listed
from data_dir.processed import WHOLE, ProcessedSet, array_file
from data_dir.scaling import (
    REACH,
    LabelMap,
    Standardisation,
    label_map_of,
    offset_channels,
    offsets_text,
    output_names,
    standardisation_of,
)
from data_dir.splits import PARTS, Split, read_index_file, split_as_original, split_by_seed
from data_dir.storage import DataError
from data_dir.tasks import GeneratedSeries, Task, labels_of, sha256_of_task

Arrays = tuple[np.ndarray, np.ndarray]
BY_SEED, ORIGINAL = "seed", "original"
# Series that are looked at for channels with an offset.
_LOOKED_AT = 64


@dataclass(frozen=True)
class Dataset:
    """A data set ready to train on.

    ``train``, ``validation`` and ``test`` serve x (n, length, data_dim) and y: in classification one-hot rows
    (n, label_dim), or (n, last_steps, label_dim) if last_steps is above 1; in regression (n, length // output_step)
    with label_dim 1, or (n, length // output_step, label_dim) if there are several outputs. ``data_dim`` counts the
    time channel. A regression has one label of each output for every ``output_step`` time steps. ``class_names`` and
    ``output_names`` are None if the processed files do not have them. ``table`` says which columns of a table became
    this set (``data_dir.processing.tables.Columns``), or is None.

    ``split`` maps "train", "validation" and "test" to rows of the ``stored`` samples; both are None if the files hold
    three parts. ``mask`` (stored rows, length) says which time steps belong to a series; None without padding.

    ``standardisation`` is the map from the files' channels to the served ones, ``label_map`` from the served labels to
    the files' ones; None if the loaders serve the numbers of the files.

    ``evaluated_train`` serves the first ``evaluate_train`` samples of the training part, or all: those that a training
    evaluates.

    ``notes`` are sentences to read before training. ``sha256`` is one hash of the arrays in the files: type, shape and
    values.
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
    output_names: list[str] | None = None
    table: dict | None = None
    mask: np.ndarray | None = None
    stored: int | None = None
    output_step: int = 1
    standardisation: Standardisation | None = None
    label_map: LabelMap | None = None
    last_steps: int = 1
    notes: tuple[str, ...] = ()
    sha256: str | None = None
    evaluate_train: int | None = None

    @property
    def evaluated_train(self) -> Dataloader:
        """The samples of the training part that a training evaluates."""
        return self.train.first(self.evaluate_train)

    def describe(self) -> str:
        """The shape of the set in one line."""
        parts = {part: getattr(self, part).size for part in PARTS}
        channels = self.train.channels
        if self.classification:
            names = range(self.label_dim) if self.class_names is None else self.class_names
            labels = f"{self.label_dim} classes ({listed(names)})"
            if self.last_steps > 1:
                labels += f", one at each of the last {self.last_steps} time steps"
        else:
            steps = self.length // self.output_step
            labels = "one label a series"
            if steps > 1:
                labels = f"{steps} labels a series, one every {self.output_step} time steps"
            if self.label_dim > 1:
                names = output_names(self.label_dim) if self.output_names is None else self.output_names
                labels = f"{self.label_dim} outputs ({listed(names)}), {labels} of each"
        if self.label_map is not None:
            labels += f", mapped: {self.label_map.describe(self.output_names)}; mse in units of the files"
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
    evaluate_train: int | None = None,
    task: Task | None = None,
) -> Dataset:
    """Loads a processed set (see ``data_dir.processed`` for its files) and splits it.

    With ``task``, the set is generated, with the parts of the task, and only named ``dataset_name``; no file is read.

    ``data_dir`` holds raw/ and processed/. The sets in ``BUNDLED`` are processed on first use. ``split`` is "seed", the
    published split of ``seed``; "original", the archive's own parts, with validation rows drawn by ``seed`` if it has
    none; or the path of an index file (see ``data_dir.splits``) with rows for ``seed``.

    ``time`` puts the channel t/L, t = 0..L-1, before the others. ``standardise`` brings every channel to mean 0 and
    standard deviation 1 over the training part. In regression (``classification`` False) there must be one label for
    every ``output_step`` time steps; None takes the number from the data. Labels of a regression that do not all lie in
    [-1, 1], or that span only a small part of it, are mapped to the range of tanh (see ``data_dir.scaling``).
    ``inmemory`` copies every part to the device; otherwise batches are numpy arrays. A training evaluates the first
    ``evaluate_train`` training samples, by default all.

    Raises DataError, naming the file and what to do, if the set is missing, if a file is damaged or was changed, or if
    the arrays do not fit together or to the arguments.
    """
    if task is not None:
        _check_task(task, classification, output_step, split, standardise)
        return _generated(task, dataset_name, time, inmemory, evaluate_train)
    stored = ProcessedSet(folder_of(data_dir, dataset_name))
    _check_request(stored, classification, split)
    form = (seed, classification, output_step, split)
    return _served(stored, dataset_name, *form, time, inmemory, standardise, evaluate_train)


def _served(
    stored: ProcessedSet,
    dataset_name: str,
    seed: int,
    classification: bool,
    output_step: int | None,
    split: str | Path,
    time: bool,
    inmemory: bool,
    standardise: bool,
    evaluate_train: int | None,
) -> Dataset:
    """A processed set, with the arguments of ``create_dataset``."""
    class_names = label_map = names = mask = rows = None
    step = outputs = 1
    if classification:
        data, labels, class_names = stored.classes()
        arrays = {"": (data, labels)}
    else:
        arrays = stored.outputs()
        data, labels = next(iter(arrays.values()))
    if stored.is_whole:
        rows = _split(stored, dataset_name, len(data), seed, split)
        mask = stored.mask(data.shape[:2])
    if not classification:
        outputs = labels.shape[2] if labels.ndim == 3 else 1
        names = stored.output_names(outputs)
        step = _output_step(stored.folder, data.shape[1], labels.shape[1], output_step)
        arrays, label_map = _reachable(stored.folder, arrays)
    if standardise and mask is not None:
        raise DataError(
            f"{stored.folder}: standardise would move the zeros that pad its series. Set standardise to false."
        )
    train_rows = None if rows is None else rows["train"]
    standardisation = standardisation_of(data, train_rows) if standardise else None
    options = {"time": time, "inmemory": inmemory, "standardisation": standardisation}
    options["label_unit"] = 1.0 if label_map is None else label_map.unit
    loaders = {
        part: Dataloader(*arrays[part if rows is None else ""], rows=None if rows is None else rows[part], **options)
        for part in PARTS
    }
    return Dataset(
        name=dataset_name,
        **loaders,
        data_dim=data.shape[2] + bool(time),
        label_dim=labels.shape[1] if classification else outputs,
        length=data.shape[1],
        classification=classification,
        split=rows,
        stored=None if rows is None else len(data),
        class_names=class_names,
        output_names=names,
        table=stored.info.get("table"),
        mask=mask,
        output_step=step,
        standardisation=standardisation,
        label_map=label_map,
        last_steps=1,
        notes=tuple(_notes(data, labels if classification else None, mask, train_rows, seed, class_names, standardise)),
        sha256=stored.sha256(),
        evaluate_train=evaluate_train,
    )


def _check_task(task: Task, classification: bool, output_step: int | None, split: str | Path, standardise: bool):
    """Whether a task has the form that is asked for."""
    if classification != task.classification:
        raise DataError(f"task {task.name}: needs classification {task.classification}.")
    if split != BY_SEED or standardise:
        raise DataError(f"task {task.name}: has its own parts and channels: split and standardise must be left out.")
    fitting = 1 if classification else task.length
    if output_step not in (None, fitting):
        raise DataError(f"task {task.name}: output_step {output_step} does not fit: it must be {fitting}.")


def _generated(task: Task, name: str, time: bool, inmemory: bool, evaluate_train: int | None) -> Dataset:
    """The set of a task. The labels of a regression lie in [0, 2), and are mapped to the range of tanh."""
    label_map = None if task.classification else LabelMap(centre=1.0, unit=1 / REACH)
    labels = {part: labels_of(task, part) for part in PARTS}
    if label_map is not None:
        labels = {part: label_map.to_outputs(values) for part, values in labels.items()}
    options = {"time": time, "inmemory": inmemory, "label_unit": 1.0 if label_map is None else label_map.unit}
    train, validation, test = (Dataloader(GeneratedSeries(task, part), labels[part], **options) for part in PARTS)
    classes = labels["train"].shape[-1]
    return Dataset(
        name=name,
        train=train,
        validation=validation,
        test=test,
        data_dim=task.channels + bool(time),
        label_dim=classes,
        length=task.length,
        classification=task.classification,
        split=None,
        class_names=list(map(str, range(classes))) if task.classification else None,
        output_step=1 if task.classification else task.length,
        label_map=label_map,
        last_steps=task.last_steps,
        sha256=sha256_of_task(task),
        evaluate_train=evaluate_train,
    )


def _check_request(stored: ProcessedSet, classification: bool, split: str | Path) -> None:
    """Whether the folder has the form that is asked for."""
    folder = stored.folder
    if not classification and "class_names" in stored.info:
        raise DataError(f"{folder}: has class labels, according to dataset.json; it needs classification True.")
    if stored.is_whole:
        return
    if classification:
        raise DataError(f"{folder}: holds three parts, which are for regression; it needs classification False.")
    if split != BY_SEED:
        raise DataError(f"{folder}: holds three parts; split {str(split)!r} is not possible, only {BY_SEED!r}.")


def _reachable(folder: Path, arrays: dict[str, Arrays]) -> tuple[dict[str, Arrays], LabelMap | None]:
    """The arrays with labels that tanh can reach, and the map back to the labels of the files."""
    try:
        label_map = label_map_of(labels for _, labels in arrays.values())
    except DataError as error:
        raise DataError(f"{folder}: {error}") from error
    if label_map is None:
        return arrays, None
    return {part: (data, label_map.to_outputs(labels)) for part, (data, labels) in arrays.items()}, label_map


def _output_step(folder: Path, length: int, outputs: int, asked: int | None) -> int:
    """How many time steps a label stands for."""
    fitting = length // outputs
    if fitting == 0 or length // fitting != outputs:
        raise DataError(f"{folder}: {length} time steps cannot carry {outputs} labels at equal distances.")
    if asked is not None and (asked < 1 or length // asked != outputs):
        raise DataError(
            f"{folder}: output_step {asked} does not fit: {length} time steps carry {outputs} labels, so it must be "
            f"{fitting}."
        )
    return fitting if asked is None else asked


def _notes(data: np.ndarray, labels, mask, rows, seed: int, class_names, standardise: bool) -> Iterator[str]:
    """What a reader should know about arrays before training; ``rows`` are the rows of the training part."""
    _, length, channels = data.shape
    if channels > length:
        yield (
            f"more channels ({channels}) than time steps ({length}): the axes must be (samples, time steps, channels)."
        )
    if labels is not None:
        missing = np.flatnonzero(labels.any(axis=0) & ~labels[rows].any(axis=0))
        if len(missing):
            names = missing if class_names is None else [class_names[column] for column in missing]
            yield f"the training part of seed {seed} has no sample of class {listed(names)}."
    if not standardise:
        # Spread over the set, whose rows are sorted, and the same for every seed.
        looked_at = np.unique(np.linspace(0, len(data) - 1, _LOOKED_AT, dtype=int))
        offsets = offset_channels(np.asarray(data[looked_at]), None if mask is None else mask[looked_at])
        if offsets:
            way_out = ' "standardise": true in the config removes the offset.' if mask is None else ""
            yield f"{offsets_text(offsets)}.{way_out}"


def _split(stored: ProcessedSet, dataset_name: str, n: int, seed: int, split: str | Path) -> Split:
    """The stored rows of each part."""
    fixed = stored.has_fixed_test
    if split not in (BY_SEED, ORIGINAL):
        rows = read_index_file(split, dataset_name, n, seed)
        if fixed and np.isin(stored.original_idxs()[2], np.concatenate([rows["train"], rows["validation"]])).any():
            raise DataError(f"{split}: seed {seed}: rows of the published test part of {dataset_name} are not in test.")
        return rows
    if fixed and split == BY_SEED:
        raise DataError(
            f"{stored.folder}: has a published test part of {len(stored.original_idxs()[2])} series, of which a split "
            'by seed would take some for the training. Write "split": "original": only the validation part is drawn '
            "by seed."
        )
    original = stored.original_idxs() if split == ORIGINAL else None
    try:
        return split_by_seed(n, seed) if original is None else split_as_original(original, n, seed)
    except DataError as error:
        file = array_file(stored.folder, WHOLE[0] if original is None else "original_idxs")
        raise DataError(f"{file}: {error}") from error


def rows_by_seed(data_dir: str | Path, dataset_name: str, seeds: Iterable[int]) -> tuple[Path, int, dict[int, Split]]:
    """The folder of a processed set, the number of its samples, and the rows of each part for each seed.

    The split is the published one by seed; of a set with a published test part, the original one. A set that holds
    three parts has no rows: the number is 0, and the splits are empty. Raises DataError as ``create_dataset`` does.
    """
    stored = ProcessedSet(folder_of(data_dir, dataset_name))
    if not stored.is_whole:
        return stored.folder, 0, {}
    n = len(stored.samples())
    split = ORIGINAL if stored.has_fixed_test else BY_SEED
    return stored.folder, n, {seed: _split(stored, dataset_name, n, seed, split) for seed in seeds}
