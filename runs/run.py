"""One run: a config and a seed, trained in a folder of its own.

<output_parent_dir>/<dataset>/<model>_<algorithm>/seed_<n>/
    config.json      the effective config, shape and hash of the data, precision, versions, commit, device and command
    split.json       the stored rows of each part, as an index file (not for sets that come already cut)
    metrics.jsonl    one line per evaluation (the fields of `train.Evaluation`)
    checkpoints/     where the training stands, see `checkpoints`: an unfinished run goes on from there
    model.eqx        the model and its state that were best on the validation set
    curves.png       loss and metric against the step
    predictions.png  of a regression: predicted and true labels of some test samples
    nonfinite.eqx    the model and its state before the step that was not finite, if one ended the run
    result.json      how it ended, and the hashes of model.eqx and of its outputs for the test part; written last, in
                     one piece: a folder without it is unfinished
    events/          for TensorBoard, where asked for
    .lock            held by the process at work
"""

import fcntl
import json
import platform
import resource
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import numpy as np
from matplotlib.figure import Figure

import train
from common.files import replacing, sha256_of, sha256_of_array, write_json
from data_dir.datasets import Dataset, create_dataset
from data_dir.splits import write_index_file
from experiment_configs.schema import ConfigError, ExperimentConfig
from models import create_model
from models.load import CONFIG, MODEL, RESULT
from runs.facts import RunRefused, data_facts, decisive_facts, hash_of, precision, require_same_run
from training.checkpoints import Checkpoints

SPLIT, METRICS, CURVES = "split.json", "metrics.jsonl", "curves.png"
CHECKPOINTS, PREDICTIONS, NONFINITE, LOCK = "checkpoints", "predictions.png", "nonfinite.eqx", ".lock"
EVENTS = "events"

_PACKAGES = ("jax", "jaxlib", "equinox", "optax", "orbax-checkpoint", "numpy")


def run_folder(config: ExperimentConfig, seed: int) -> Path:
    """The folder of the run of one seed."""
    unit = f"{config.model_name}_{config.learning_algorithm}"
    return Path(config.output_parent_dir) / config.dataset_name / unit / f"seed_{seed}"


def finished_result(folder: Path) -> dict | None:
    """The result of a run that was completed in this folder; None for one that is unfinished, failed or damaged."""
    try:
        result = json.loads((folder / RESULT).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(result, dict) or result.get("status") != "completed":
        return None
    numbers = (result.get(name) for name in ("best_step", "steps", "val_metric", "test_metric"))
    return result if all(_is_number(number) for number in numbers) else None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


def facts_of_data(config: ExperimentConfig, seed: int) -> dict[str, str | None]:
    """The `run_facts.data_facts` of the data as they lie there now. Raises `DataError`."""
    return data_facts(create_dataset(seed=seed, **config.data_options() | {"inmemory": False}))


def run_seed(
    config: ExperimentConfig,
    seed: int,
    *,
    overwrite: bool = False,
    on_overwrite: Callable[[], None] | None = None,
    stop: Callable[[], bool] | None = None,
    on_step: Callable[[int, float], None] | None = None,
    on_evaluation: Callable[[train.Evaluation], None] | None = None,
    on_resume: Callable[[int, dict[int, str]], None] | None = None,
) -> dict:
    """Train and test one seed, leave its files in its folder, and return what result.json says.

    A run that is unfinished there goes on from its newest sound checkpoint, and ends as if it had never stopped;
    `on_resume(step, damaged)` is told from which, and what is wrong with those after it. With `overwrite` it starts
    anew: what an earlier run left in the folder is removed first, and `on_overwrite()` is called. A loss or gradient
    that is not finite ends the run with the status "failed"; it is recorded like any other result and not raised. The
    other callbacks are those of `train.train`.

    **Raises:** `train.Stopped`; `RunRefused` for a folder that another process works in or whose run was made with
    another config or on other data; `checkpoints.CheckpointError`; `data_dir.storage.DataError` for a data set that
    cannot be had or used; `ConfigError` for sizes that the model refuses; `OSError` for a folder that cannot be
    written.
    """
    dataset = create_dataset(seed=seed, **config.data_options())
    config = config.completed(dataset.output_step)
    # Whatever can be refused is refused before anything of an earlier run is removed.
    if config.batch_size > dataset.train.size:
        raise ConfigError(
            f"batch_size {config.batch_size}: must not exceed the {dataset.train.size} samples of the training part of "
            f"{config.dataset_name}"
        )
    keys = train.seed_keys(seed)
    try:
        model, state = create_model(
            data_dim=dataset.data_dim, label_dim=dataset.label_dim, key=keys.model, **config.model_options()
        )
    except ValueError as error:
        raise ConfigError(f"{config.model_name} on {config.dataset_name}: {error}") from error

    folder = run_folder(config, seed)
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder):
        if overwrite:
            _clear(folder)
            if on_overwrite is not None:
                on_overwrite()
        facts = decisive_facts(config, seed, data_facts(dataset))
        require_same_run(folder, facts)
        finished = finished_result(folder)
        if finished is not None:  # by a process that held the lock until now
            return finished
        checkpoints = Checkpoints(folder / CHECKPOINTS, hash_of(facts))
        progress = None

        def begin(fresh):
            nonlocal progress
            restored = checkpoints.restore(fresh.arrays())
            progress = fresh if restored is None else fresh.restored(restored.arrays, restored.json_part)
            (folder / RESULT).unlink(missing_ok=True)
            write_json(folder / CONFIG, _effective_config(config, seed, dataset))
            if dataset.split is not None:
                write_index_file(folder / SPLIT, dataset.name, dataset.stored, {seed: dataset.split})
            # What was evaluated after the checkpoint is evaluated again.
            with replacing(folder / METRICS) as path:
                path.write_text("".join(map(_metrics_line, progress.history)), encoding="utf-8")
            if restored is not None and on_resume is not None:
                on_resume(progress.step, restored.damaged)
            return progress

        def record(evaluation):
            with open(folder / METRICS, "a", encoding="utf-8") as metrics:
                metrics.write(_metrics_line(evaluation))
            if on_evaluation is not None:
                on_evaluation(evaluation)

        try:
            trained, failure = None, None
            trained = train.train(
                model,
                state,
                dataset,
                learning_rate=config.learning_rate(),
                num_steps=config.num_steps,
                print_steps=config.print_steps,
                batch_size=config.batch_size,
                key=keys.training,
                grad_clip=config.grad_clip,
                skip_nonfinite=config.skip_nonfinite,
                retrace=config.learning_algorithm != "BPTT",
                checkpoint_steps=config.checkpoint_steps,
                resume=begin,
                stop=stop,
                on_step=on_step,
                on_evaluation=record,
                on_checkpoint=lambda progress: checkpoints.save(progress.step, progress.arrays(), progress.json_part()),
            )
        except train.NonFiniteLoss as error:
            failure = error

        title = f"{config.dataset_name}, {config.model_name} by {config.learning_algorithm}, seed {seed}"
        result = {"status": "failed", "seed": seed, "metric": config.metric}
        if trained is not None:
            result |= {
                "status": "completed",
                "best_step": trained.best_step,
                "val_metric": trained.val_metric,
                "test_metric": trained.test_metric,
                "test_loss": trained.test_loss,
                "steps": trained.steps,
                "stop_reason": trained.stop_reason,
            }
            outputs = train.predict(
                trained.model,
                trained.state,
                dataset.test,
                batch_size=config.batch_size,
                classification=config.classification,
            )
            result["test_outputs_sha256"] = sha256_of_array(outputs)
            if config.classification:
                result["test_confusion"] = confusion(outputs, dataset.test.labels)
            else:
                shown = (outputs[..., 0], dataset.test.labels)
                if dataset.label_map is not None:
                    shown = map(dataset.label_map.to_labels, shown)
                draw_predictions(*shown, folder / PREDICTIONS, title=title)
            _save_model(folder / MODEL, trained.model, trained.state)
            result["model_sha256"] = sha256_of(folder / MODEL)
        else:
            result |= {
                "best_step": None,
                "val_metric": None,
                "test_metric": None,
                "test_loss": None,
                "steps": failure.step,
                "stop_reason": "non_finite_loss",
                "error": str(failure),
                "rows": failure.rows,
            }
            _save_model(folder / NONFINITE, failure.model, failure.state)
        seconds = progress.seconds
        result |= {
            "skipped_steps": progress.skipped,
            "parameters": train.count_parameters(model),
            "seconds": round(seconds.total, 3),
            "seconds_per_1000_steps": round(1000 * seconds.steps / result["steps"], 3),
            "peak_memory_bytes": _peak_memory(),
        }
        if progress.history:
            curves = folder / CURVES
            draw_curves(progress.history, curves, title=title, metric=config.metric, best_step=result["best_step"])
        write_json(folder / RESULT, result)
        return result


def confusion(outputs: np.ndarray, labels: np.ndarray) -> list[list[int]]:
    """How many samples of each class (row) were taken for each class (column); both arguments (samples, classes)."""
    classes = labels.shape[1]
    pairs = np.argmax(labels, axis=1) * classes + np.argmax(outputs, axis=1)
    return np.bincount(pairs, minlength=classes**2).reshape(classes, classes).tolist()


def draw_predictions(outputs: np.ndarray, labels: np.ndarray, path: Path, *, title: str) -> None:
    """Draw predicted and true labels, both (samples, outputs), of up to four samples spread over a set, into a PNG.

    Both are in the units of the data set's files.
    """
    shown = np.unique(np.linspace(0, len(labels) - 1, 4, dtype=int))
    figure = Figure(figsize=(9, 1 + 1.6 * len(shown)), layout="constrained")
    figure.suptitle(title, parse_math=False)
    for axes, sample in zip(figure.subplots(len(shown), squeeze=False)[:, 0], shown, strict=True):
        axes.plot(labels[sample], color="0.4", label="true")
        axes.plot(outputs[sample], label="predicted")
        axes.set_ylabel(f"test sample {sample}")
    axes.set_xlabel("label, in units of the files (of PPG-DaLiA: heart rate every 2 s, scaled to [-1, 1] by subject)")
    axes.legend(frameon=False, fontsize="small")
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)


def draw_curves(history: list[train.Evaluation], path: Path, *, title: str, metric: str, best_step: int | None) -> None:
    """Draw the loss and the metric of the training and validation set against the step into a PNG file."""
    steps = [evaluation.step for evaluation in history]
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    figure.suptitle(title, parse_math=False)
    left, right = figure.subplots(1, 2)
    left.plot(steps, [evaluation.loss for evaluation in history], color="0.7", label="batches, with dropout")
    for axes, quantity, name in ((left, "loss", "loss"), (right, "metric", metric)):
        for split, label in (("train", "training set"), ("val", "validation set")):
            values = [getattr(evaluation, f"{split}_{quantity}") for evaluation in history]
            axes.plot(steps, values, marker=".", label=label)
        if best_step is not None:
            axes.axvline(best_step, color="0.4", linestyle=":", label=f"best, step {best_step}")
        axes.set_xlabel("step")
        axes.set_ylabel(name)
        axes.legend(frameon=False, fontsize="small")
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)


def _effective_config(config: ExperimentConfig, seed: int, dataset: Any) -> dict:
    device = jax.devices()[0]
    return {
        "config": config.model_dump(mode="json"),
        "defaults": config.defaults(),
        "seed": seed,
        "precision": precision(),
        "data": data_record(dataset),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}},
        "commit": _commit(),
        "device": f"{device.platform} ({device.device_kind})",
        "command": shlex.join(sys.orig_argv),
    }


def data_record(dataset: Dataset) -> dict[str, Any]:
    """What config.json says of the data: sizes, classes, and the maps between the files and what the model sees."""
    return {
        "data_dim": dataset.data_dim,
        "label_dim": dataset.label_dim,
        "length": dataset.length,
        **data_facts(dataset),
        "class_names": None if dataset.class_names is None else [str(name) for name in dataset.class_names],
        "standardisation": None if dataset.standardisation is None else dataset.standardisation.record(),
        "label_map": None if dataset.label_map is None else dataset.label_map._asdict(),
        "samples": {
            "train": dataset.train.size,
            "validation": dataset.validation.size,
            "test": dataset.test.size,
        },
    }


def _commit() -> str | None:
    """The git commit of this program, with "-dirty" if files differ from it; None if it is not under git."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--abbrev=40", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _peak_memory() -> dict[str, int | None]:
    """The most memory that this process has held up to now, in bytes; None for a device that does not tell."""
    host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    device = jax.devices()[0].memory_stats() or {}
    return {"host": host, "device": device.get("peak_bytes_in_use")}


def _metrics_line(evaluation: train.Evaluation) -> str:
    return json.dumps(evaluation._asdict()) + "\n"


def _clear(folder: Path) -> None:
    """Remove what a run left. The result goes first: if this ends halfway, the folder is unfinished."""
    (folder / RESULT).unlink(missing_ok=True)
    for name in (CHECKPOINTS, EVENTS):
        if (folder / name).exists():
            shutil.rmtree(folder / name)
    for name in (CONFIG, SPLIT, METRICS, MODEL, CURVES, PREDICTIONS, NONFINITE):
        (folder / name).unlink(missing_ok=True)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep other processes out of the folder. The system lifts the lock when the process ends, however it ends."""
    with open(folder / LOCK, "w", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunRefused(f"{folder}: another process is at work there; wait for it, or end it") from None
        yield


def _save_model(path: Path, model: eqx.Module, state: eqx.nn.State) -> None:
    with replacing(path) as temporary:
        eqx.tree_serialise_leaves(temporary, (model, state))
