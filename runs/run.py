"""One run: a config and a seed, trained in a folder of its own (`runs.folder` lists the files)."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import equinox as eqx
import numpy as np
from jaxtyping import PRNGKeyArray

import train
from common.files import replacing, sha256_of, sha256_of_array, write_json
from common.style import save
from data_dir.datasets import Dataset, create_dataset
from data_dir.scaling import output_names
from data_dir.splits import write_index_file
from experiment_configs.schema import ConfigError, ExperimentConfig
from models import create_model
from models.check import try_unit
from models.load import error_in_unit, source_of
from models.physics.in_the_loop import operators_of
from models.physics.operating import deferred_failures, failure_of
from models.stack import HRU
from runs import folder as files
from runs.figures import draw_confusion, draw_curves, draw_predictions
from runs.folder import finished_result, run_folder, setting_of
from runs.identity import checkpoint_key, data_identity, identity, require_same_run, test_part
from runs.machines import run_on_machine
from runs.record import peak_memory, run_record
from runs.shared_folder import locked_by_first
from training import hosts
from training.checkpoints import CheckpointError, Checkpoints
from training.loop import Wanting
from training.together import alone

_MEASURES = ("val_loss", "val_metric", "test_metric", "test_loss")


def require_batch(config: ExperimentConfig, dataset: Dataset) -> None:
    """Raise `ConfigError` if a batch is larger than the training part."""
    if config.batch_size > dataset.train.size:
        raise ConfigError(
            f"batch_size {config.batch_size}: must not exceed the {dataset.train.size} samples of the training part of "
            f"{config.dataset_name}"
        )


def make_model(config: ExperimentConfig, data_dim: int, label_dim: int, key: PRNGKeyArray) -> tuple[HRU, eqx.nn.State]:
    """The model of a config and its state.

    Raises `ConfigError` for sizes that the model refuses, and for any error in the file of your own unit.
    """
    try:
        model, state = create_model(data_dim=data_dim, label_dim=label_dim, key=key, **config.model_options())
        if config.unit_class is not None:
            try_unit(model.blocks[0].unit, config.hidden_dim)
        return model, state
    except Exception as error:
        words = error_in_unit(error, config.unit_class) or (str(error) if isinstance(error, ValueError) else None)
        if words is None:
            raise
        raise ConfigError(f"{config.model_name} on {config.dataset_name}: {words}") from error


def run_seed_in_steps(
    config: ExperimentConfig,
    seed: int,
    *,
    devices: int = 1,
    stop: Callable[[], bool] | None = None,
    on_step: Callable[[int, float], None] | None = None,
    on_evaluation: Callable[[train.Evaluation], None] | None = None,
    on_start: Callable[[Dataset, int], None] | None = None,
    on_resume: Callable[[int, dict[int, str]], None] | None = None,
) -> Wanting[dict]:
    """Train and test one seed, write its files into its folder, and return the content of result.json.

    An unfinished run is resumed from its newest sound checkpoint, and ends as if it had never stopped. So does a run of
    fewer steps, finished or not; its result, model and figures are removed after the first new checkpoint, or when the
    run fails.
    `on_start(dataset, parameters)` gets the data and the number of parameters, `on_resume(step, damaged)` the step of
    the checkpoint, and the problems of the checkpoints after it. A loss or
    gradient that is not finite ends the run; it is not raised, and result.json has the status "failed". `train.train`
    describes the other callbacks. Several processes (`training.hosts`) make the run together; process 0 writes.

    `run_seed` returns the content. `run_seed_in_steps` is a generator, with which `train.together` makes several runs
    at the same time.

    **Raises:** `train.Stopped`; `RunRefused` for a folder that another process works in or whose run was made with
    another config or on other data; `checkpoints.CheckpointError`; `data_dir.storage.DataError` for a data set that
    is missing or cannot be used; `ConfigError` for sizes that the model refuses; `OSError` for a folder that cannot be
    written.
    """
    with run_on_machine(config) as place:
        of_seed = _run_seed(config, seed, devices, place, stop, on_step, on_evaluation, on_start, on_resume)
        return (yield from of_seed)


run_seed = alone(run_seed_in_steps)


def _run_seed(config, seed, devices, place, stop, on_step, on_evaluation, on_start, on_resume) -> Wanting[dict]:
    dataset = create_dataset(seed=seed, **config.data_options())
    config = config.completed(dataset.output_step)
    require_batch(config, dataset)
    keys = train.seed_keys(seed)
    model, state = make_model(config, dataset.data_dim, dataset.label_dim, keys.model)
    model = place(model)
    folder = run_folder(config, seed)
    with locked_by_first(folder):
        run = _Run(config, seed, dataset, folder, devices, on_evaluation, on_resume)
        require_same_run(folder, run.identity)
        finished = hosts.from_first(lambda: finished_result(folder, config.num_steps))
        if finished is not None:
            return finished
        if on_start is not None:
            on_start(dataset, train.count_parameters(model))
        result = yield from run.execute(model, state, keys.training, stop, on_step)
        if hosts.first():
            write_json(folder / files.RESULT, result)
        return result


@dataclass
class _Run:
    """A run at work in its folder."""

    config: ExperimentConfig
    seed: int
    dataset: Dataset
    folder: Path
    devices: int
    on_evaluation: Callable | None
    on_resume: Callable | None
    progress: train.Progress = field(init=False)  # `_begin` sets it
    begun: bool = False  # whether the files of the folder belong to this run, and not to a finished one of fewer steps

    def __post_init__(self):
        self.identity = identity(self.config, self.seed, data_identity(self.dataset))
        self.checkpoints = Checkpoints(self.folder / files.CHECKPOINTS, checkpoint_key(self.identity))

    @property
    def title(self) -> str:
        config = self.config
        setting = f", {setting_of(config)}" if setting_of(config) else ""
        return f"{config.dataset_name}, {config.model_name} by {config.learning_algorithm}{setting}, seed {self.seed}"

    def execute(self, model, state, key, stop, on_step) -> Wanting[dict]:
        """The result of the training; every file but result.json is written."""
        config = self.config
        try:
            trained = yield from train.train_in_steps(
                model,
                state,
                self.dataset,
                learning_rate=config.learning_rate(),
                num_steps=config.num_steps,
                print_steps=config.print_steps,
                batch_size=config.batch_size,
                patience=config.patience,
                key=key,
                grad_clip=config.grad_clip,
                skip_nonfinite=config.skip_nonfinite,
                retrace=config.learning_algorithm != "BPTT",
                checkpoint_steps=config.checkpoint_steps,
                devices=self.devices,
                resume=self._begin,
                stop=stop,
                on_step=on_step,
                on_evaluation=self._record,
                on_checkpoint=self._save,
            )
            self._replace_files()
            result = self._completed(trained)
        except (train.NonFiniteLoss, train.MachineFailure) as failure:
            self._replace_files()
            result = self._failed(failure)
        seconds = self.progress.seconds
        result |= {
            "skipped_steps": self.progress.skipped,
            "devices": self.progress.devices,
            "seeds_together": self.progress.seeds,
            "parameters": train.count_parameters(model),
            "seconds": round(seconds.total, 3),
            "seconds_per_1000_steps": round(1000 * seconds.steps / result["steps"], 3),
            "peak_memory_bytes": peak_memory(),
        }
        for operator in operators_of(model):
            seed = getattr(operator.machine, "seed", None)
            result["machine"] = {**(config.machine or {}), "seed": seed, **asdict(operator.record)}
        if self.progress.history and hosts.first():
            options = {"title": self.title, "metric": config.metric, "best_step": result["best_step"]}
            save(draw_curves(self.progress.history, **options), self.folder / files.CURVES)
        return result

    def _begin(self, fresh: train.Progress) -> train.Progress:
        """The progress to continue from: the newest usable checkpoint, or `fresh`.

        Writes the files of the start, if no finished run would be lost by it.
        """
        saved = hosts.from_first(self.checkpoints.steps)
        earlier = hosts.from_first(lambda: finished_result(self.folder))
        if earlier is not None and not saved:
            raise CheckpointError(
                f"{self.folder / files.CHECKPOINTS}: no checkpoint here, so the finished run of {earlier['steps']} "
                f"steps cannot be continued to {self.config.num_steps}. --overwrite trains it from the beginning"
            )
        restored = self.checkpoints.restore(fresh.arrays(), self._usable)
        self.progress = fresh if restored is None else fresh.restored(restored.arrays, restored.json_part)
        if earlier is None:
            self._replace_files()
        if saved and self.on_resume is not None:
            self.on_resume(self.progress.step, {} if restored is None else restored.damaged)
        return self.progress

    def _replace_files(self) -> None:
        """Once, remove what a run of fewer steps left, and write the files that a run has from its start.

        The order matters if the process ends halfway: with the new config.json, the earlier result.json is unfinished.
        """
        if self.begun or not hosts.first():
            return
        self.begun = True
        if self.config.unit_class is not None:
            with replacing(self.folder / files.UNIT) as path:
                path.write_bytes(source_of(self.config.unit_class))
        write_json(self.folder / files.CONFIG, run_record(self.config, self.seed, self.dataset, self.devices))
        for name in files.AT_THE_END:
            (self.folder / name).unlink(missing_ok=True)
        if self.dataset.split is not None and self.dataset.stored is not None:
            rows = {self.seed: self.dataset.split}
            write_index_file(self.folder / files.SPLIT, self.dataset.name, self.dataset.stored, rows)
        # Evaluations after the checkpoint are repeated.
        with replacing(self.folder / files.METRICS) as path:
            path.write_text("".join(map(_metrics_line, self.progress.history)), encoding="utf-8")

    def _usable(self, json_part: dict) -> bool:
        """Whether this run would have the progress of a checkpoint. It may belong to a run of other num_steps.

        A run is also evaluated after its last step. Between two multiples of print_steps a longer run is not.
        """
        steps = [evaluation["step"] for evaluation in json_part["history"][-1:]]
        return json_part["step"] <= self.config.num_steps and all(
            step % self.config.print_steps == 0 or step == self.config.num_steps for step in steps
        )

    def _save(self, progress: train.Progress) -> None:
        self.checkpoints.save(progress.step, progress.arrays(), progress.json_part())
        self._replace_files()

    def _record(self, evaluation: train.Evaluation) -> None:
        if self.begun:
            with open(self.folder / files.METRICS, "a", encoding="utf-8") as metrics:
                metrics.write(_metrics_line(evaluation))
        if self.on_evaluation is not None:
            self.on_evaluation(evaluation)

    def _completed(self, trained: train.TrainingResult) -> dict:
        config, dataset, path = self.config, self.dataset, self.folder / files.MODEL
        options = {"batch_size": config.batch_size, "classification": config.classification, "devices": self.devices}
        operators = operators_of(trained.model)
        with deferred_failures(operators):
            outputs = train.predict(trained.model, trained.state, dataset.test, **options)
        if failure := failure_of(operators):
            raise train.MachineFailure(trained.best_step, "prediction of the test set", failure)
        result = {
            **{"status": "completed", "seed": self.seed, "metric": config.metric},
            **{name: getattr(trained, name) for name in ("best_step", *_MEASURES, "steps", "stop_reason")},
            "test_outputs_sha256": sha256_of_array(outputs),
            "test_baseline": float(np.mean(without_model := baseline(dataset))),
        }
        labels = np.asarray(dataset.test.labels)
        if config.classification:
            result["test_confusion"] = confusion(outputs, labels)
            result["test_right"] = packed(np.argmax(outputs, axis=-1) == np.argmax(labels, axis=-1))
            result["test_part"] = test_part(dataset)
            names = range(dataset.label_dim) if dataset.class_names is None else dataset.class_names
            draw = partial(draw_confusion, result["test_confusion"], names, title=self.title)
            drawn = files.CONFUSION
        else:
            shown = (outputs.reshape(labels.shape), labels)
            if dataset.label_map is not None:
                shown = tuple(map(dataset.label_map.to_labels, shown))
            if dataset.label_dim > 1:
                errors = np.mean((shown[0] - shown[1]) ** 2, axis=(0, 1), dtype=float).tolist()
                names = dataset.output_names or output_names(dataset.label_dim)
                result["test_mse_of_outputs"] = dict(zip(names, errors, strict=True))
                result["test_baseline_of_outputs"] = dict(zip(names, without_model.tolist(), strict=True))
            options = {"title": self.title, "names": dataset.output_names, "output_step": dataset.output_step}
            draw, drawn = partial(draw_predictions, *shown, **options), files.PREDICTIONS
        if not hosts.first():
            return result
        save(draw(), self.folder / drawn)
        _save_model(path, trained.model, trained.state)
        return result | {"model_sha256": sha256_of(path)}

    def _failed(self, failure: train.NonFiniteLoss | train.MachineFailure) -> dict:
        saved = max(self.checkpoints.steps(), default=0)
        resumes = f"resumes from the last checkpoint, at step {saved}" if saved else "starts the run again"
        reason, words = "machine", f"{failure}. The same command {resumes}"
        if isinstance(failure, train.NonFiniteLoss):
            if hosts.first():
                _save_model(self.folder / files.NONFINITE, failure.model, failure.state)
            reason, words = "non_finite_loss", str(failure) + self._hint_on_echo()
        return {
            **{"status": "failed", "seed": self.seed, "metric": self.config.metric},
            **dict.fromkeys(("best_step", *_MEASURES)),
            "steps": failure.step,
            "stop_reason": reason,
            "error": words,
            "rows": failure.rows,
        }

    def _hint_on_echo(self) -> str:
        """What else may end a run with your own unit before its first evaluation."""
        if self.config.unit_class is None or self.config.learning_algorithm == "BPTT" or self.progress.history:
            return ""
        return (
            ". Or the echo of the unit does not return, for instance because its kinetic energy is not even in p: "
            "models.check.check_gradient tells"
        )


def baseline(dataset: Dataset) -> np.ndarray:
    """The test metric without a model: predicting the largest class, or the mean label, of the training part.

    The mse of each output of a regression, with its own mean over all label steps; their mean is the metric as in
    `train.evaluate`. Of a classification one number.
    """
    labels, test = (np.asarray(part.labels, dtype=float) for part in (dataset.train, dataset.test))
    if dataset.classification:
        labels, test = (rows.reshape(-1, rows.shape[-1]) for rows in (labels, test))
        return np.asarray(np.mean(test[:, labels.sum(axis=0).argmax()]))
    errors = np.mean((test - labels.mean(axis=(0, 1))) ** 2, axis=(0, 1))
    return errors * np.square(dataset.test.label_unit)


def confusion(outputs: np.ndarray, labels: np.ndarray) -> list[list[int]]:
    """How many samples of each class (row) were taken for each class (column); both arguments (samples, classes).

    If several steps of a sample are classified, (samples, steps, classes), each step counts.
    """
    classes = labels.shape[-1]
    pairs = np.argmax(labels, axis=-1) * classes + np.argmax(outputs, axis=-1)
    return np.bincount(pairs.ravel(), minlength=classes**2).reshape(classes, classes).tolist()


def packed(right: np.ndarray) -> str:
    """Whether each answer is right, in hexadecimal: four answers in a digit, the last byte filled up with zeros.

    `right` (samples,) or (samples, steps) is in the order of the test part. Runs on the same test part, which
    test_part in result.json identifies, can so be compared answer by answer.
    """
    return np.packbits(right).tobytes().hex()


def _metrics_line(evaluation: train.Evaluation) -> str:
    return json.dumps(evaluation._asdict()) + "\n"


def _save_model(path: Path, model: eqx.Module, state: eqx.nn.State) -> None:
    with replacing(path) as temporary:
        eqx.tree_serialise_leaves(temporary, (model, state))
