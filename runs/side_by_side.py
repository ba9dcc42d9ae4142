"""--jobs N: N runs at a time, each in a process of its own with its own share of the cores and of the GPUs."""

import argparse
import importlib.util
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from experiment_configs.schema import ConfigError, ExperimentConfig
from runs.folder import LOG, RESULT, finished_result
from runs.many import ManyRuns
from runs.overwriting import OF_COMMAND
from runs.signals import RESUMABLE, StopSignals
from runs.tasks import JOBS, Record, Task, how_ended, start, was_stopped, write_record
from runs.train_all import print_result, reported

REFUSED = 2  # the exit status of a command that is refused
_PAUSE = 0.1  # seconds between two looks at the processes


class Place(NamedTuple):
    """What a process gets: the numbers of its cores and the names of its GPUs. None leaves it as it is."""

    cores: tuple[int, ...] | None
    gpus: tuple[str, ...] | None


def train_side_by_side(arguments: argparse.Namespace, signals: StopSignals) -> int:
    """Train all runs that the command line names, `arguments.jobs` at a time, and return the exit status.

    **Raises:** an error of `runs.train_all.KNOWN_ERRORS` before the first run starts.
    """
    places = make_places(arguments.jobs, getattr(arguments, "gpus_per_run", None), visible_gpus())
    if places[0].gpus is not None:
        arguments.gpus_per_run = len(places[0].gpus)
    runs = ManyRuns(arguments, f"--jobs {arguments.jobs}")
    runs.begin()
    environment = {} if runs.overwriting is None else {OF_COMMAND: runs.overwriting.key}
    record = Record(JOBS, str(os.getpid()), socket.gethostname())
    for task in runs.tasks:
        write_record(task.folder, record)

    def ended(task: Task, status: int) -> None:
        stopped = signals.received is not None and was_stopped(status)
        write_record(task.folder, record._replace(status=RESUMABLE if stopped else status))
        if not stopped:
            runs.results[task.folder] = _result(task, runs.configs[task.folder], status)

    run_tasks(runs.tasks, places, environment, lambda: signals.received is not None, ended)
    if left := sum(task.folder not in runs.results for task in runs.tasks):
        print(f"{signals.received} received: {left} runs are left; the same command resumes.", file=sys.stderr)
        return RESUMABLE
    return reported(runs.by_config(), runs.overwriting)


def run_tasks(
    tasks: Sequence[Task],
    places: Sequence[Place],
    environment: dict[str, str],
    stop: Callable[[], bool],
    ended: Callable[[Task, int], None],
) -> None:
    """Run each task in one of the places. `ended(task, exit status)` is called for each that was started.

    When `stop()` is true, no further task is started, and the processes are told to end (SIGTERM). So they are after an
    error.
    """
    waiting, free = deque(tasks), deque(places)
    running: dict[subprocess.Popen, tuple[Task, Place]] = {}
    told = False
    try:
        while running or (waiting and not stop()):
            while waiting and free and not stop():
                task, place = waiting.popleft(), free.popleft()
                running[_start(task, place, environment)] = task, place
            if stop() and not told:
                told = True
                for process in running:
                    process.terminate()
            for process in [process for process in running if process.poll() is not None]:
                task, place = running.pop(process)
                free.append(place)
                ended(task, process.returncode)
            time.sleep(_PAUSE)
    finally:
        for process in running:
            process.terminate()
        for process in running:
            process.wait()


def make_places(jobs: int, gpus_per_run: int | None, gpus: Sequence[str]) -> list[Place]:
    """A place for each process. All have the same number of cores, so that each run rounds in the same way.

    Without `gpus_per_run`, the GPUs are divided equally.

    **Raises:** `ConfigError` if there are fewer cores or GPUs than needed.
    """
    pinned = hasattr(os, "sched_setaffinity")
    cores = sorted(os.sched_getaffinity(0)) if pinned else range(os.cpu_count() or 1)
    if jobs > len(cores):
        few = f"{len(cores)} core{'s' * (len(cores) > 1)}"
        raise ConfigError(
            f"--jobs {jobs}: this command may use {few}, and a run needs at least one: at most {len(cores)}"
        )
    each = len(gpus) // jobs if gpus_per_run is None else gpus_per_run
    if gpus and each == 0 and gpus_per_run is None:
        raise ConfigError(
            f"--jobs {jobs}: only {len(gpus)} GPUs are visible: at most --jobs {len(gpus)}; --gpus_per_run 0 trains on "
            "the CPU"
        )
    if jobs * each > len(gpus):
        raise ConfigError(
            f"--gpus_per_run {each}: {jobs} runs at a time need {jobs * each} GPUs; {len(gpus)} are visible"
        )
    share = len(cores) // jobs
    return [
        Place(
            tuple(cores[number * share : (number + 1) * share]) if pinned else None,
            tuple(gpus[number * each : (number + 1) * each]) if gpus or gpus_per_run == 0 else None,
        )
        for number in range(jobs)
    ]


def visible_gpus() -> list[str]:
    """The GPUs that a process of jax would see, by the names that CUDA_VISIBLE_DEVICES takes. Starts no GPU."""
    if not any(importlib.util.find_spec(f"jax_cuda{version}_plugin") for version in (12, 13)):
        return []
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is None:
        numbers = (re.fullmatch(r"nvidia(\d+)", path.name) for path in Path("/dev").glob("nvidia*"))
        return sorted((number[1] for number in numbers if number), key=int)
    names = [name.strip() for name in named.split(",")]
    return [name for name in names if name and not name.startswith("-") and name != "NoDevFiles"]


def _start(task: Task, place: Place, environment: dict[str, str]) -> subprocess.Popen:
    environment = {**os.environ, **environment}
    if place.gpus is not None:
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(place.gpus)
        if not place.gpus:
            environment["JAX_PLATFORMS"] = "cpu"
    if place.cores is None:
        return start(task.command, task.folder, environment)
    before = os.sched_getaffinity(0)
    # Of this thread. The process inherits it, and XLA makes a thread for each core.
    os.sched_setaffinity(0, place.cores)
    try:
        return start(task.command, task.folder, environment)
    finally:
        os.sched_setaffinity(0, before)


def _result(task: Task, config: ExperimentConfig, status: int) -> dict:
    """The result of a task that has ended, which is printed."""
    finished = finished_result(task.folder, config.num_steps)
    log = task.folder / LOG
    if status == 0 and finished is not None:
        print_result(config, task.folder, task.name, finished)
        return finished
    if status == REFUSED:
        print(f"{task.name}: REFUSED, see {log}")
        return {"status": "refused", "error": f"see {log}"}
    error = f"{how_ended(status)}, see {log}"
    with suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
        result = json.loads((task.folder / RESULT).read_text(encoding="utf-8"))
        if status == 1 and result["status"] == "failed":
            error = str(result["error"])
    failed = {"status": "failed", "error": error}
    print_result(config, task.folder, task.name, failed)
    return failed
