"""Train all runs of a command, one after the other. A run that fails does not stop the others."""

import argparse
import importlib.util
import sys
import traceback
from pathlib import Path

import jax

from common import tables
from data_dir.storage import DataError
from experiment_configs.schema import ConfigError, ExperimentConfig
from runs.folder import EVENTS, RunRefused, finished_result, run_folder
from runs.overwriting import Overwriting
from runs.progress import RunProgress
from runs.record import commit
from runs.run import run_seed
from runs.selection import Selection
from runs.signals import RESUMABLE, StopSignals
from train import Stopped
from training.checkpoints import CheckpointError

# Errors with a message of their own; all others are defects and are printed with their traceback.
KNOWN_ERRORS = (CheckpointError, ConfigError, DataError, OSError, jax.errors.JaxRuntimeError)


def title(config: ExperimentConfig) -> str:
    """The name of a config in messages and tables."""
    return f"{config.dataset_name} {config.model_name} {config.learning_algorithm}"


def message_of(error: Exception) -> str:
    """The message of an error; for an `OSError` the file and the reason."""
    return f"{error.filename}: {error.strerror}" if isinstance(error, OSError) and error.filename else str(error)


def overwriting_of(selection: Selection, arguments: argparse.Namespace) -> Overwriting | None:
    """With --overwrite, the command that starts the runs anew; without it, refuse folders that hold other runs."""
    if arguments.overwrite:
        return Overwriting(selection.identities.values(), commit())
    selection.require_same_runs()
    return None


def kept_result(folder: Path, overwriting: Overwriting | None) -> dict | None:
    """The result of a finished run that the command keeps; None for a run that it makes."""
    return None if overwriting is not None and not overwriting.has_begun(folder) else finished_result(folder)


def train_all(arguments: argparse.Namespace, signals: StopSignals) -> int:
    """Train all runs that the command line names, and return the exit status."""
    if arguments.tensorboard and importlib.util.find_spec("tensorboardX") is None:
        raise ConfigError("--tensorboard needs a package that is not installed: pip install tensorboardX")
    selection = Selection(arguments)
    overwriting = overwriting_of(selection, arguments)
    for folder in selection.identities:
        folder.parent.mkdir(parents=True, exist_ok=True)
    if overwriting is not None and (begun := sum(map(overwriting.has_begun, selection.identities))):
        print(
            f"--overwrite: {begun} runs that this command began before it was stopped are resumed or kept. Remove the "
            "file .overwrite from the folder of a run to start it anew too.",
            file=sys.stderr,
        )
    print(*selection.lines, sep="\n", file=sys.stderr)
    results = []
    try:
        for config in selection.configs:
            of_seeds = [_attempt(config, seed, arguments, signals, overwriting) for seed in config.seeds]
            results.append((config, of_seeds))
    except Stopped as stopped:
        print(f"{signals.received} received: {stopped}; the same command resumes from there.", file=sys.stderr)
        return RESUMABLE
    print(f"\n{results_table(results)}")
    results = [result for _, of_seeds in results for result in of_seeds]
    refused = sum(result["status"] == "refused" for result in results)
    if overwriting is not None and not refused:  # else another process of this command may be at work
        overwriting.end(selection.identities)
    failed = sum(result["status"] != "completed" for result in results)
    if failed:
        print(f"{failed} of {len(results)} runs failed.", file=sys.stderr)
    kept = sum("kept" in result for result in results)
    return 2 if refused and refused + kept == len(results) else int(failed > 0)


def _attempt(config: ExperimentConfig, seed: int, arguments, signals, overwriting) -> dict:
    """The result of one run; an error becomes a result too, so that the other runs are made."""
    try:
        return _run(config, seed, arguments, signals, overwriting)
    except Stopped:
        raise
    except RunRefused as error:
        print(f"{title(config)} seed {seed}: REFUSED, {error}")
        return {"status": "refused", "error": str(error)}
    except Exception as error:
        if not isinstance(error, (*KNOWN_ERRORS, MemoryError)):
            traceback.print_exc()
        message = message_of(error) or type(error).__name__
        print(f"{title(config)} seed {seed}: FAILED, {message} ({run_folder(config, seed)})")
        return {"status": "failed", "error": message}


def _run(config: ExperimentConfig, seed: int, arguments, signals, overwriting) -> dict:
    """Make one run, with its progress on stderr and a line on stdout; a finished run is only reported."""
    folder = run_folder(config, seed)
    name = f"{title(config)} seed {seed}"
    finished = kept_result(folder, overwriting)
    if finished is not None:
        print(f"{name}: kept, {_outcome(config, finished)} ({folder})")
        return {**finished, "kept": True}
    with RunProgress(name, config, folder / EVENTS if arguments.tensorboard else None) as progress:
        result = run_seed(
            config,
            seed,
            overwrite=overwriting or False,
            stop=lambda: signals.received is not None,
            on_step=progress.step,
            on_evaluation=progress.evaluation,
            on_resume=progress.resume,
        )
    if result["status"] == "completed":
        print(f"{name}: {_outcome(config, result)}, {result['seconds']:.1f} s ({folder})")
    else:
        print(f"{name}: FAILED, {result['error']} ({folder})")
    return result


def _outcome(config: ExperimentConfig, result: dict) -> str:
    return (
        f"test {config.metric} {result['test_metric']:.4f}, validation {result['val_metric']:.4f} at step"
        f" {result['best_step']} of {result['steps']}"
    )


def results_table(results: list[tuple[ExperimentConfig, list[dict]]]) -> str:
    """Mean and sample standard deviation over the completed seeds, one line per config."""
    rows: list[tuple[str, ...]] = [
        ("data set", "model", "algorithm", "seeds", "failed", "metric", "test", "validation")
    ]
    for config, of_seeds in results:
        completed = [result for result in of_seeds if result["status"] == "completed"]
        scale, metric, digits = (100, "accuracy, %", 1) if config.classification else (1, "mse", 4)
        columns = [[scale * result[f"{split}_metric"] for result in completed] for split in ("test", "val")]
        rows.append(
            (
                *(config.dataset_name, config.model_name, config.learning_algorithm),
                *(str(len(completed)), str(len(of_seeds) - len(completed)), metric),
                *(tables.mean_and_std(column, digits) for column in columns),
            )
        )
    note = "test and validation: mean ± sample standard deviation over the seeds, best model by validation"
    return f"{tables.aligned(rows)}\n{note}"
