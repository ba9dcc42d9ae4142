"""Uses of a kept run: its metric again, to the last bit, and predictions for new series. Prints nothing.

Both compute as the training did: in the recorded precision, with its channel of time and its batch size.
"""

import csv
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float

import train
from common.files import replacing, sha256_of_array
from data_dir.datasets import Dataset, create_dataset
from data_dir.npy import read_npy
from data_dir.processing.readers import read_raw
from data_dir.processing.tables import SUFFIXES, Columns, read_table, stacked, table_of
from data_dir.scaling import output_names
from data_dir.storage import DataError
from experiment_configs.schema import ExperimentConfig, validate
from models.load import RunError, load_run, read_record, unit_of_run
from models.trained import SeriesError, TrainedModel
from runs import folder as files
from runs.devices import Asked, devices_for, recorded
from runs.identity import data_differences, data_identity
from runs.machines import run_on_machine
from training.devices import of_samples, replicated


@dataclass(frozen=True, eq=False, repr=False)
class KeptRun(TrainedModel):
    """A finished run: its model, its config, and how many devices divide each batch now."""

    config: ExperimentConfig
    devices: int


class Measured(NamedTuple):
    """The results of a model for a part of the data. The hash of the outputs is recorded for the test part only."""

    metric: float
    loss: float
    outputs_sha256: str | None


class Reproduction(NamedTuple):
    """The recorded results of a run for a part of the data, and the results now."""

    run: KeptRun
    part: str
    recorded: Measured
    recomputed: Measured

    def differences(self) -> list[str]:
        """In words, the differences other than the metric."""
        then, now = self.recorded, self.recomputed
        lines = [] if then.loss == now.loss else [f"loss recorded {then.loss}, recomputed {now.loss}"]
        return lines + ([] if then.outputs_sha256 == now.outputs_sha256 else ["the outputs have other bits"])


class Predictions(NamedTuple):
    """A CSV file with one row per series, and the label columns of the input, which were not read."""

    run: KeptRun
    path: Path
    series: int
    ignored: tuple[str, ...] = ()


def evaluate_run(
    folder: str | Path,
    *,
    part: str = "test",
    data_dir: str | None = None,
    own_units: bool = False,
    devices: Asked = None,
) -> Reproduction:
    """Compute the metric, the loss and the outputs for one part of the data again, on the rows that the run used.

    `part` is "train", "validation" or "test". `data_dir` replaces the recorded folder of the data. `own_units` allows
    to import the Python file that the run names as its unit. `devices` divide each batch among them, by default as many
    as the run had, or fewer if the machine has fewer.

    **Raises:** `RunError` for a folder without a finished run; `DataError` if the data are missing, or are not the data
    of the run.
    """
    with _kept_run(folder, own_units, devices) as run:
        then = _recorded(run.folder, part)
        dataset = _dataset(run, data_dir)
        arguments = (run.trained, run.state, getattr(dataset, "evaluated_train" if part == "train" else part))
        options = {"batch_size": run.config.batch_size, "classification": run.config.classification}
        options["devices"] = run.devices
        loss, metric = train.evaluate(*arguments, **options)
        outputs = None if then.outputs_sha256 is None else sha256_of_array(train.predict(*arguments, **options))
        return Reproduction(run, part, then, Measured(metric, loss, outputs))


def predict_file(
    folder: str | Path,
    file: str | Path,
    output: str | Path | None = None,
    *,
    overwrite: bool = False,
    own_units: bool = False,
    devices: Asked = None,
) -> Predictions:
    """Predict for every series of a file, and write the predictions as CSV.

    `file` is an npy array (N, L, C), which is read batch by batch, a ts file, or a table (csv, tsv, parquet) with the
    columns that the run was trained on. Labels in it are ignored. The channel of time is added here. The columns of a
    classification are index (from 0), predicted, and one probability per class; of a regression index and one column
    per label step and output, in the units of the labels. If a table has ids, they follow the index. The default of
    `output` is <file>_predictions.csv beside the input. It appears in one piece. `devices` as for `evaluate_run`.

    **Raises:** `RunError` for a folder without a finished run; `DataError` for a file of another kind or shape than the
    data of the run, for values or predictions that are not finite, and for an output that cannot be written, or that
    exists and may not be replaced (`overwrite`).
    """
    file = Path(file)
    if not file.is_file():
        raise DataError(f"{file}: no such file.")
    output = file.with_name(f"{file.stem}_predictions.csv") if output is None else Path(output)
    if not output.parent.is_dir():
        raise DataError(f"{output}: there is no folder {output.parent}.")
    if output.exists() and (not overwrite or output.samefile(file)):
        raise DataError(f"{output}: exists already. --output names another file, --overwrite replaces it.")
    with _kept_run(folder, own_units, devices) as run:
        series, ids, ignored = _opened_series(file, run)
        with replacing(output) as temporary, open(temporary, "w", encoding="utf-8", newline="") as table:
            csv.writer(table, lineterminator="\n").writerows(_with_ids(_rows(run, predictions(run, series, file)), ids))
    return Predictions(run, output, len(series), ignored)


def predictions(run: KeptRun, series: np.ndarray, file: Path) -> Iterator[Float[np.ndarray, " outputs"]]:
    """Logits of the classes, or the outputs of a regression, for each of the series (n, L, C) without the time channel.

    Holds one batch at a time. Raises DataError, naming `file`, for values or outputs that are not finite.
    """
    try:
        for outputs in run.outputs(series):
            yield from outputs.reshape(len(outputs), -1)
    except SeriesError as error:
        raise DataError(f"{file}: {error}") from error


@contextmanager
def _kept_run(folder: str | Path, own_units: bool = False, asked: Asked = None) -> Iterator[KeptRun]:
    """Within the block jax has the precision of the run."""
    folder = Path(folder)
    record = read_record(folder)
    fields = record["config"] | {"unit": unit_of_run(folder, record)}
    config = validate(fields, source=str(folder / files.CONFIG), own_units=own_units)
    with jax.enable_x64(record["precision"] == "float64"):
        loaded = vars(load_run(folder, unit=config.unit_class))
        with run_on_machine(config) as place:
            devices = devices_for(config, asked, recorded(record))
            placed = {name: replicated(place(loaded[name]), devices) for name in ("trained", "model")}
            placed |= {"state": replicated(loaded["state"], devices), "over": partial(of_samples, devices=devices)}
            yield KeptRun(**loaded | placed, config=config, devices=devices)


def _recorded(folder: Path, part: str) -> Measured:
    """The test part from result.json, the other parts from the line of metrics.jsonl of the best step."""
    result = files.finished_result(folder)
    if result is None:
        raise RunError(f"{folder / files.RESULT}: no result of a completed run; run it again")
    prefix = {"train": "train", "validation": "val", "test": "test"}[part]
    try:
        if part == "test":
            return Measured(result["test_metric"], result["test_loss"], result["test_outputs_sha256"])
        lines = map(json.loads, (folder / files.METRICS).read_text(encoding="utf-8").splitlines())
        best = next(line for line in lines if line["step"] == result["best_step"])
        return Measured(best[f"{prefix}_metric"], best[f"{prefix}_loss"], None)
    except (OSError, ValueError, TypeError, KeyError, StopIteration, RecursionError):
        raise RunError(
            f"{folder}: {files.RESULT} or {files.METRICS} lacks {prefix}_metric or {prefix}_loss of the best step"
        ) from None


def _dataset(run: KeptRun, data_dir: str | None) -> Dataset:
    """The data of a run, with the rows of each part that it saved."""
    options = run.config.data_options()
    if data_dir is not None:
        options["data_dir"] = data_dir
    way_out = "--data_dir names another folder."
    # A set that needs no download would be processed into it. A task has no files.
    if options["task"] is None and not Path(options["data_dir"]).is_dir():
        raise DataError(f"{options['data_dir']}: no such folder; {run.folder} was trained on data there. {way_out}")
    saved_rows = run.folder / files.SPLIT
    if saved_rows.exists():
        options["split"] = str(saved_rows)
    dataset = create_dataset(seed=run.record["seed"], **options)
    then, now = run.record["data"], data_identity(dataset)
    if saved_rows.exists() and then.get("split_sha256") != now["split_sha256"]:
        raise RunError(f"{saved_rows}: was changed: the run used other rows")
    if different := data_differences(then, now):
        raise DataError(
            f"{dataset.name} in {options['data_dir']}: the run {run.folder} was trained {' and '.join(different)}. "
            f"{way_out}"
        )
    return dataset


def _opened_series(file: Path, run: KeptRun) -> tuple[np.ndarray, list, tuple[str, ...]]:
    """The series (n, L, C) of the channels of the run; the column of their ids, its name first; the label columns.

    An npy file is memory-mapped. A file without ids gives [].
    """
    ids, ignored = [], ()
    if file.suffix == ".ts":
        series = read_raw(file, labelled=False).data  # shorter series end in NaN
    elif file.suffix == ".npy":
        series = read_npy(file)
    elif file.suffix in SUFFIXES:
        series, ids, ignored = _series_of_table(file, run)
    else:
        raise DataError(f"{file}: is none of .npy, .ts, {', '.join(SUFFIXES)}.")
    try:
        run.require(series)
    except SeriesError as error:
        raise DataError(f"{file}: {error}") from error
    return series, ids, ignored


def _series_of_table(file: Path, run: KeptRun) -> tuple[np.ndarray, list, tuple[str, ...]]:
    """As above, of a table with the columns of the table that the run was trained on; shorter series end in NaN."""
    if run.record["data"].get("table") is None:
        raise DataError(f"{file}: is a table, but {run.folder} was not trained on one. Give .npy or .ts.")
    try:
        columns = Columns.of_record(run.record["data"]["table"])
        frame = read_table(file)
        table = table_of(frame, columns, labelled=False)
        ids = [] if table.ids is None else [columns.id, *table.ids]
        return stacked(table.series), ids, tuple(name for name in columns.labels if name in frame.columns)
    except DataError as error:
        raise error if str(error).startswith(str(file)) else DataError(f"{file}: {error}") from error


def _with_ids(rows: Iterable[list], ids: list) -> Iterable[list]:
    """The lines of the table with the column of ids after the index."""
    return ([row[0], each, *row[1:]] for row, each in zip(rows, ids, strict=True)) if ids else rows


def _rows(run: KeptRun, outputs: Iterable[Float[np.ndarray, " outputs"]]):
    """The lines of the table, its header first. Numbers are written so that reading them gives them back."""
    data = run.record["data"]
    if not run.config.classification:
        yield ["index", *_output_columns(data, data["length"] // run.config.output_step)]
        yield from ([index, *row] for index, row in enumerate(outputs))
        return
    columns = ["predicted", *(f"probability_{name}" for name in run.class_names)]
    steps = run.trained.last_steps
    if steps > 1:
        columns = [f"{name}_{step}" for step in range(steps) for name in columns]
    yield ["index", *columns]
    for index, logits in enumerate(outputs):
        of_steps = zip(*run.classes(logits.reshape(steps, -1)), strict=True)
        yield [index, *(value for name, probabilities in of_steps for value in (name, *probabilities))]


def _output_columns(data: dict, steps: int) -> list[str]:
    """A name for each of the outputs at each label step, the outputs of a step side by side."""
    if data["label_dim"] == 1 and not data.get("output_names"):
        return [f"output_{step}" for step in range(steps)]
    names = data.get("output_names") or output_names(data["label_dim"])
    return names if steps == 1 else [f"{name}_{step}" for step in range(steps) for name in names]
