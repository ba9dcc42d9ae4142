"""One run: a config and a seed, trained in a folder of its own.

<output_parent_dir>/<dataset>/<model>_<algorithm>/seed_<n>/
    config.json      the effective config, the shape of the data, precision, versions and device
    split.json       the stored rows of each part, as an index file (not for sets that come already cut)
    metrics.jsonl    one line per evaluation (the fields of `train.Evaluation`)
    model.eqx        the model and its state that were best on the validation set
    curves.png       loss and metric against the step
    result.json      how it ended; written last, in one piece: a folder without it is unfinished
"""

import json
import os
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
from matplotlib.figure import Figure

import train
from data_dir.datasets import create_dataset
from data_dir.splits import write_index_file
from experiment_configs.schema import ConfigError, ExperimentConfig
from models import create_model

CONFIG, SPLIT, METRICS = "config.json", "split.json", "metrics.jsonl"
MODEL, CURVES, RESULT = "model.eqx", "curves.png", "result.json"

# Fields that say where things lie or which runs there are, and nothing about what one run computes.
_PLACES = ("seeds", "data_dir", "output_parent_dir", "inmemory")
_PACKAGES = ("jax", "jaxlib", "equinox", "optax", "numpy")


def run_folder(config: ExperimentConfig, seed: int) -> Path:
    """The folder of the run of one seed."""
    unit = f"{config.model_name}_{config.learning_algorithm}"
    return Path(config.output_parent_dir) / config.dataset_name / unit / f"seed_{seed}"


def finished_result(folder: Path) -> dict | None:
    """The result of a run that was completed in this folder; None for one that is unfinished, failed or damaged."""
    try:
        result = json.loads((folder / RESULT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return result if isinstance(result, dict) and result.get("status") == "completed" else None


def changed_fields(config: ExperimentConfig, folder: Path) -> dict[str, tuple[Any, Any]]:
    """Fields that decide what a run computes and in which the run in this folder differs: name -> (there, now)."""
    try:
        saved = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        there = {**saved["config"], "precision": saved["precision"]}
    except (OSError, ValueError, KeyError, TypeError):
        return {"config.json": ("unreadable", "the present one")}
    now = {**config.model_dump(mode="json"), "precision": precision()}
    names = sorted((there.keys() | now.keys()) - set(_PLACES))
    return {name: (there.get(name), now.get(name)) for name in names if there.get(name) != now.get(name)}


def precision() -> str:
    """The floating-point type that jax is set to: float32 or float64."""
    return str(jax.dtypes.canonicalize_dtype(float))


def run_seed(
    config: ExperimentConfig,
    seed: int,
    *,
    on_step: Callable[[int, float], None] | None = None,
    on_evaluation: Callable[[train.Evaluation], None] | None = None,
) -> dict:
    """Train and test one seed, leave its files in its folder, and return what result.json says.

    What an earlier run left in the folder is removed first. A loss that is not finite ends the run with the status
    "failed"; it is recorded like any other result and not raised. The callbacks are those of `train.train`.

    **Raises:** `data_dir.storage.DataError` for a data set that cannot be had or used, `ConfigError` for sizes that the
    model refuses, `OSError` for a folder that cannot be written.
    """
    dataset = create_dataset(
        config.data_dir,
        config.dataset_name,
        seed=seed,
        time=config.time,
        classification=config.classification,
        output_step=config.output_step,
        split=config.split,
        inmemory=config.inmemory,
    )
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
    # The result goes first: if the run ends here, its folder is unfinished and not half old, half new.
    for name in (RESULT, CONFIG, SPLIT, METRICS, MODEL, CURVES):
        (folder / name).unlink(missing_ok=True)
    _write_json(folder / CONFIG, _effective_config(config, seed, dataset))
    if dataset.split is not None:
        write_index_file(folder / SPLIT, dataset.name, dataset.stored, {seed: dataset.split})

    history: list[train.Evaluation] = []
    start = time.perf_counter()
    with open(folder / METRICS, "w", encoding="utf-8") as metrics:

        def record(evaluation):
            history.append(evaluation)
            metrics.write(json.dumps(evaluation._asdict()) + "\n")
            metrics.flush()
            if on_evaluation is not None:
                on_evaluation(evaluation)

        try:
            trained = train.train(
                model,
                state,
                dataset,
                learning_rate=config.learning_rate(),
                num_steps=config.num_steps,
                print_steps=config.print_steps,
                batch_size=config.batch_size,
                key=keys.training,
                on_step=on_step,
                on_evaluation=record,
            )
        except train.NonFiniteLoss as error:
            trained, failure = None, error

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
        with _replacing(folder / MODEL) as path:
            eqx.tree_serialise_leaves(path, (trained.model, trained.state))
    else:
        result |= {
            "best_step": None,
            "val_metric": None,
            "test_metric": None,
            "test_loss": None,
            "steps": failure.step,
            "stop_reason": "non_finite_loss",
            "error": str(failure),
        }
    result |= {"parameters": train.count_parameters(model), "seconds": round(time.perf_counter() - start, 3)}
    if history:
        title = f"{config.dataset_name}, {config.model_name} by {config.learning_algorithm}, seed {seed}"
        draw_curves(history, folder / CURVES, title=title, metric=config.metric, best_step=result["best_step"])
    _write_json(folder / RESULT, result)
    return result


def draw_curves(history: list[train.Evaluation], path: Path, *, title: str, metric: str, best_step: int | None) -> None:
    """Draw the loss and the metric of the training and validation set against the step into a PNG file."""
    steps = [evaluation.step for evaluation in history]
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    figure.suptitle(title)
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
    with _replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)


def _effective_config(config: ExperimentConfig, seed: int, dataset: Any) -> dict:
    device = jax.devices()[0]
    return {
        "config": config.model_dump(mode="json"),
        "seed": seed,
        "precision": precision(),
        "data": {
            "data_dim": dataset.data_dim,
            "label_dim": dataset.label_dim,
            "length": dataset.length,
            "class_names": None if dataset.class_names is None else [str(name) for name in dataset.class_names],
            "samples": {
                "train": dataset.train.size,
                "validation": dataset.validation.size,
                "test": dataset.test.size,
            },
        },
        "versions": {"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}},
        "device": f"{device.platform} ({device.device_kind})",
    }


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """Give the path of a temporary file that takes the place of `path` once the block has ended well."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _write_json(path: Path, content: dict) -> None:
    with _replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
