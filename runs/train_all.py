"""Train all runs of a command, one after the other. A run that fails does not stop the others."""

import argparse
import importlib.util
import sys
import traceback
from collections.abc import Callable
from functools import partial
from itertools import tee
from pathlib import Path

import jax

from common import tables
from data_dir.storage import DataError
from experiment_configs.schema import ConfigError, ExperimentConfig
from models.load import error_in_unit
from models.physics.machine import MachineError
from runs.devices import devices_before
from runs.folder import EVENTS, RESULT, UNCHECKED, RunRefused, finished_result, run_folder, setting_of
from runs.overwriting import Overwriting, take_over
from runs.progress import RunProgress
from runs.run import run_seed, run_seed_in_steps
from runs.selection import Selection
from runs.signals import RESUMABLE, StopSignals
from train import NotTogether, Stopped
from training import hosts
from training.checkpoints import CheckpointError
from training.loop import Wanting
from training.together import alone, together

# Errors with a message of their own; all others are defects and are printed with their traceback.
KNOWN_ERRORS = (
    *(CheckpointError, ConfigError, DataError, MachineError, NotTogether, OSError, hosts.HostsError),
    jax.errors.JaxRuntimeError,
)


def title(config: ExperimentConfig) -> str:
    """The name of a config in messages: data set, model, algorithm, and the folder that --set gave to it."""
    return f"{config.dataset_name} {config.model_name} {config.learning_algorithm} {setting_of(config)}".rstrip()


def message_of(error: BaseException) -> str:
    """The message of an error; for an `OSError` the file and the reason."""
    return f"{error.filename}: {error.strerror}" if isinstance(error, OSError) and error.filename else str(error)


def prepared(arguments: argparse.Namespace) -> tuple[Selection, Overwriting | None]:
    """The runs that the command line names, checked, and its --overwrite, which has not begun.

    **Raises:** an error of `KNOWN_ERRORS` if any run cannot be made.
    """
    if arguments.tensorboard and importlib.util.find_spec("tensorboardX") is None:
        raise ConfigError("--tensorboard needs a package that is not installed: pip install tensorboardX")
    selection = Selection(arguments)
    hosts.require_same({**selection.facts(), "--overwrite": arguments.overwrite})
    if arguments.seeds_together:
        selection.require_together()
    overwriting = Overwriting(selection.identities) if arguments.overwrite else None
    if overwriting is None:
        selection.require_same_runs()
    else:
        selection.require_models()  # no earlier run is removed for a model that cannot be made
    return selection, overwriting


def begin(selection: Selection, overwriting: Overwriting | None) -> None:
    """Remove the earlier runs of --overwrite, make the folders above the runs, and print about the data sets."""
    if overwriting is None:
        hosts.from_first(lambda: take_over(selection.identities))
    else:
        hosts.from_first(overwriting.begin)
        if kept := len(overwriting.folders) - len(overwriting.to_clear):
            print(
                f"--overwrite: {kept} runs that this command began before it was stopped are kept or resumed. To start "
                "a run again, remove the file .overwrite from its folder.",
                file=sys.stderr,
            )
    hosts.from_first(selection.make_folders)
    print(*selection.lines, sep="\n", file=sys.stderr)


def train_all(arguments: argparse.Namespace, signals: StopSignals) -> int:
    """Train all runs that the command line names, and return the exit status."""
    selection, overwriting = prepared(arguments)
    begin(selection, overwriting)
    results = []
    try:
        for config, devices in zip(selection.configs, selection.devices, strict=True):
            results.append((config, _attempts(config, devices, arguments, signals)))
    except Stopped as stopped:
        received = signals.received or "A signal to another process"
        print(f"{received} received: {stopped}; the same command resumes from there.", file=sys.stderr)
        return RESUMABLE
    return reported(results, overwriting)


def reported(results: list[tuple[ExperimentConfig, list[dict]]], overwriting: Overwriting | None) -> int:
    """Print the table of all runs, end --overwrite, and return the exit status."""
    print(f"\n{results_table(results)}")
    of_runs = [result for _, of_seeds in results for result in of_seeds]
    refused = sum(result["status"] == "refused" for result in of_runs)
    # A refused run may be at work in another process of this command.
    if overwriting is not None and not refused and hosts.first():
        overwriting.end()
    failed = sum(result["status"] != "completed" for result in of_runs)
    if failed:
        print(f"{failed} of {len(of_runs)} runs failed.", file=sys.stderr)
    kept = sum("kept" in result for result in of_runs)
    return 2 if refused and refused + kept == len(of_runs) else int(failed > 0)


def _attempts(
    config: ExperimentConfig, devices: int, arguments: argparse.Namespace, signals: StopSignals
) -> list[dict]:
    """The results of the runs of a config."""

    def stop() -> bool:
        return signals.received is not None

    if arguments.seeds_together:
        # Each seed asks once before each dispatch, and all get the same answer: a signal between two seeds would
        # otherwise leave some of them to a smaller program, which is first compiled.
        answers = tee(iter(stop, None), len(config.seeds))
        pairs = zip(config.seeds, answers, strict=True)
        return together([_attempt(config, seed, devices, arguments, partial(next, each)) for seed, each in pairs])
    return [alone(_attempt)(config, seed, devices, arguments, stop) for seed in config.seeds]


def _attempt(
    config: ExperimentConfig, seed: int, devices: int, arguments: argparse.Namespace, stop: Callable[[], bool]
) -> Wanting[dict]:
    """Make one run, with its progress on stderr and a line on stdout. A finished run is only reported.

    An error becomes a result too, so that the other runs are made.
    """
    folder, name = run_folder(config, seed), f"{title(config)} seed {seed}"
    if (kept := kept_result(config, folder, name)) is not None:
        return kept
    if (earlier := finished_result(folder)) is not None:
        kept = "its result and model are kept until the first new checkpoint or a failure"
        print(f"{name}: continues the finished run of {earlier['steps']} steps; {kept}", file=sys.stderr)
    if (before := devices_before(folder)) not in (None, devices):
        also = f"begun on {before} device{'s' * (before != 1)}, continues on {devices}"
        print(f"{name}: {also}: the results differ by rounding from those of one number of devices", file=sys.stderr)
    try:
        events = folder / EVENTS if arguments.tensorboard and hosts.first() else None
        with RunProgress(name, config, events) as progress:
            options = {
                "devices": devices,
                "stop": stop,
                "on_step": progress.step,
                "on_evaluation": progress.evaluation,
                "on_start": progress.start,
                "on_resume": progress.resume,
            }
            if arguments.seeds_together:
                result = yield from run_seed_in_steps(config, seed, **options)
            else:
                result = run_seed(config, seed, **options)
    except Stopped:
        raise
    except Exception as error:
        if hosts.processes() > 1:  # the processes may no longer be in step
            raise
        if isinstance(error, RunRefused):
            print(f"{name}: REFUSED, {error}")
            return {"status": "refused", "error": str(error)}
        known = isinstance(error, (*KNOWN_ERRORS, MemoryError))
        in_unit = None if known else error_in_unit(error, config.unit_class)
        if in_unit is None and not known:
            traceback.print_exc()
        result = {"status": "failed", "error": in_unit or message_of(error) or type(error).__name__}
    print_result(config, folder, name, result)
    return result


def kept_result(config: ExperimentConfig, folder: Path, name: str) -> dict | None:
    """The result of a finished run, which is reported; None if the run is to be made."""
    finished = hosts.from_first(lambda: finished_result(folder, config.num_steps))
    if finished is None:
        return None
    unsure = "" if "model_sha256" in finished else f"; {RESULT} {UNCHECKED}"
    print(f"{name}: kept, {_outcome(config, finished)} ({folder}){unsure}")
    return {**finished, "kept": True}


def print_result(config: ExperimentConfig, folder: Path, name: str, result: dict) -> None:
    """Print the line of a run that has ended."""
    if result["status"] == "completed":
        print(f"{name}: {_outcome(config, result)}, {result['seconds']:.1f} s ({folder})")
    else:
        print(f"{name}: FAILED, {result['error']} ({folder})")


def _outcome(config: ExperimentConfig, result: dict) -> str:
    of_outputs, of_means = result.get("test_mse_of_outputs", {}), result.get("test_baseline_of_outputs", {})
    beside = [
        f"{name} {mse:.4g}" + (f", predicting its mean: {of_means[name]:.4g}" if name in of_means else "")
        for name, mse in of_outputs.items()
    ]
    if "test_baseline" in result and not of_means:
        what = "the largest class" if config.metric == "accuracy" else "the mean"
        beside.append(f"predicting {what}: {tables.metric_text(result['test_baseline'], config.metric)}")
    test, validation = (tables.metric_text(result[f"{part}_metric"], config.metric) for part in ("test", "val"))
    of_test = f" ({'; '.join(beside) if of_means else ', '.join(beside)})" * bool(beside)
    return (
        f"test {config.metric} {test}{of_test}, validation {validation} at step {result['best_step']} of"
        f" {result['steps']}"
        f"{', early stopping' * (result.get('stop_reason') == 'early_stopping')}"
    )


def results_table(results: list[tuple[ExperimentConfig, list[dict]]]) -> str:
    """Mean and sample standard deviation over the completed seeds, one line per config."""
    settings = any(setting_of(config) for config, _ in results)
    head = ("data set", "model", "algorithm", *["setting"] * settings, "seeds", "failed", "steps", "metric")
    rows: list[tuple[str, ...]] = [(*head, "test", "validation")]
    for config, of_seeds in results:
        completed = [result for result in of_seeds if result["status"] == "completed"]
        scale, metric, digits = (100, "accuracy, %", ".1f") if config.classification else (1, "mse", ".4g")
        columns = [[scale * result[f"{split}_metric"] for result in completed] for split in ("test", "val")]
        steps = tables.span([result["steps"] for result in completed])
        rows.append(
            (
                *(config.dataset_name, config.model_name, config.learning_algorithm),
                *([setting_of(config) or "-"] * settings),
                *(str(len(completed)), str(len(of_seeds) - len(completed)), steps, metric),
                *(tables.mean_and_std(column, digits) for column in columns),
            )
        )
    note = "test and validation: mean ± sample standard deviation over the seeds, best model by validation"
    return f"{tables.aligned(rows)}\n{note}"
