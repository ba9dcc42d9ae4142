"""--status: a table of runs, from the files in their folders and one question to SLURM. It starts no device."""

import argparse
import json
import sys
from collections import Counter
from contextlib import suppress
from pathlib import Path

from common import tables
from data_dir.storage import DataError
from experiment_configs.schema import ConfigError, ExperimentConfig
from runs.folder import (
    CHECKPOINTS,
    CONFIG,
    LOG,
    METRICS,
    RESULT,
    TASK,
    at_work,
    finished_result,
    run_folder,
    setting_of,
)
from runs.selection import select_configs
from runs.signals import RESUMABLE
from runs.tasks import Record, read_record, states

STATES = ("done", "running", "waiting", "failed", "stopped", "not begun", "unknown")
NOTE = (
    "stopped: the same command resumes. unknown: the job or process that has the run cannot be asked here. hours left: "
    'at most, from the pace so far; "-" if there is none. log: of runs by --submit or --jobs.'
)


def print_status(arguments: argparse.Namespace) -> int:
    """Print the table of the runs that the command line names, and return the exit status."""
    try:
        configs = select_configs(arguments)
    except (ConfigError, DataError) as error:
        print(f"run_experiment.py: error: {error}", file=sys.stderr)
        return 2
    runs = [(config, seed, run_folder(config, seed)) for config in configs for seed in config.seeds]
    records = {folder: record for _, _, folder in runs if (record := read_record(folder)) is not None}
    jobs = states(records.values())
    settings = any(setting_of(config) for config in configs)
    head = ("data set", "model", "algorithm", *["setting"] * settings, "seed", "state", "steps", "hours left", "log")
    rows: list[tuple[str, ...]] = [head]
    counts = Counter()
    for config, seed, folder in runs:
        record = records.get(folder)
        state = state_of(folder, config.num_steps, record, None if record is None else jobs[record])
        counts[state] += 1
        names = (config.dataset_name, config.model_name, config.learning_algorithm)
        rows.append(
            (*names, *[setting_of(config) or "-"] * settings, str(seed), state, *_progress(config, folder, state))
        )
    print(tables.aligned(rows))
    counted = ", ".join(f"{counts[state]} {state}" for state in STATES if counts[state])
    print(f"{len(runs)} run{'s' * (len(runs) != 1)}: {counted}\n{NOTE}")
    return 0


def state_of(folder: Path, num_steps: int, record: Record | None, job: str | None) -> str:
    """One of `STATES`. `job` is the state of the job of the record, by `runs.tasks.states`."""
    if finished_result(folder, num_steps) is not None:
        return "done"
    if at_work(folder) or job == "running":
        return "running"
    if job in ("waiting", "unknown"):
        return job
    if record is not None and record.status not in (None, 0, RESUMABLE) and not _begun_after_record(folder):
        return "failed"
    if _status_of_result(folder) == "failed":
        return "failed"
    return "stopped" if (folder / CONFIG).exists() else "not begun"


def _begun_after_record(folder: Path) -> bool:
    """Whether a plain command has taken up the run since a job or process ended. A run writes its config first."""
    with suppress(OSError):
        return (folder / CONFIG).stat().st_mtime > (folder / TASK).stat().st_mtime
    return False


def _progress(config: ExperimentConfig, folder: Path, state: str) -> tuple[str, str, str]:
    """Steps, hours left, and the log of a run, as texts."""
    step, pace = steps_so_far(folder), seconds_per_step(folder)
    left = "-"
    if pace is not None and state not in ("done", "failed"):
        left = f"{max(config.num_steps - step, 0) * pace / 3600:.2f}"
    log = folder / LOG
    return f"{step}/{config.num_steps}", left, str(log) if log.exists() else "-"


def steps_so_far(folder: Path) -> int:
    """The step of the last evaluation or of the last checkpoint, whichever is later."""
    saved = (path.name for path in (folder / CHECKPOINTS).glob("[0-9]*"))
    evaluated = _last_evaluation(folder).get("step", 0)
    return max(evaluated, *(int(name) for name in saved if name.isdecimal()), 0)


def seconds_per_step(folder: Path) -> float | None:
    """The time of a step with its part of the evaluations, without compiling; None before the first evaluation."""
    last = _last_evaluation(folder)
    with suppress(KeyError, TypeError, ZeroDivisionError):
        return (last["seconds"] - last["seconds_compiling"]) / last["step"]
    return None


def _last_evaluation(folder: Path) -> dict:
    with suppress(OSError, ValueError, IndexError, RecursionError):
        last = json.loads((folder / METRICS).read_text(encoding="utf-8").splitlines()[-1])
        if isinstance(last, dict) and tables.is_number(last.get("step")):
            return last
    return {}


def _status_of_result(folder: Path) -> str | None:
    with suppress(OSError, ValueError, AttributeError, RecursionError):
        return json.loads((folder / RESULT).read_text(encoding="utf-8")).get("status")
    return None
