"""Many runs as tasks. A task is one run: a command line as a user would type it, its log, and a record in its folder.

--jobs and --submit differ only in what starts the tasks. The record, .task, says who has the run: a job of SLURM, a
background process of submitit, or the process of --jobs. So a run that waits is not started twice. A record whose job
or process is gone counts for nothing.
"""

import argparse
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from common.files import write_json
from runs import settings
from runs.command import CLUSTER_FLAGS, parser
from runs.folder import LOG, TASK
from runs.signals import RESUMABLE, StopSignals

SCRIPT = Path(__file__).resolve().parents[1] / "run_experiment.py"
JOBS, LOCAL, SLURM = "jobs", "local", "slurm"  # who may have a run: --jobs, or the cluster of --submit
# Flags that choose the runs. The command of a task names a single one.
_OF_ONE_RUN = {"model_name", "dataset_name", "seeds", "set"}
# Flags that say how many runs are made. A task is plain; --overwrite has removed its earlier run before it starts.
_OF_MANY_RUNS = {"jobs", "submit", "status", "overwrite", *CLUSTER_FLAGS}
# The states of SLURM in which a job waits. In all others that squeue lists it is at work.
_WAITING = ("PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "SUSPENDED")


class Task(NamedTuple):
    """A run: its name in messages, its command line, and its folder."""

    name: str
    command: list[str]
    folder: Path


class Record(NamedTuple):
    """Who has a run. `job` is the id of a SLURM job, as 12_3, or of a process on `host`."""

    cluster: str
    job: str
    host: str
    status: int | None = None  # the exit status of its command, when it has ended


def command_of(arguments: argparse.Namespace, config: Any, seed: int) -> list[str]:
    """The plain command of one run. `config` is as `runs.selection` makes it from the `arguments`."""
    known = parser()
    flags = ["--model_name", config.model_name, "--dataset_name", config.dataset_name, "--seeds", str(seed)]
    for action in known._actions:
        name = action.dest
        value = getattr(arguments, name, None)
        if name in _OF_ONE_RUN | _OF_MANY_RUNS or value is None or value == known.get_default(name):
            continue
        if name == "learning_algorithm":  # one of those that the flag names
            value = config.learning_algorithm
        flags += [f"--{name}"] if action.nargs == 0 else [f"--{name}", str(value)]
    fields = config.model_dump(mode="json")
    if arguments.set:
        flags += ["--set", *(settings.written(name, fields[name]) for name in arguments.set)]
    return [sys.executable, str(SCRIPT), *flags]


def start(command: list[str], folder: Path, environment: dict[str, str] | None = None) -> subprocess.Popen:
    """Start a command. The command and all that it prints are appended to the log in the folder of the run."""
    with open(folder / LOG, "a", encoding="utf-8") as log:
        print(f"$ {shlex.join(command)}", file=log, flush=True)
        streams = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": subprocess.STDOUT}
        return subprocess.Popen(command, env=environment, **streams)


def was_stopped(status: int) -> bool:
    """Whether a command ended as a signal asked for: with 75, or by the signal, while Python starts or ends."""
    return status == RESUMABLE or -status in StopSignals.HEARD


def how_ended(status: int) -> str:
    """The end of a command whose exit status is not 0, in words."""
    if status < 0:
        with suppress(ValueError):
            return f"killed by {signal.Signals(-status).name}"
    return "stopped by a signal; the same command resumes" if status == RESUMABLE else f"ended with status {status}"


def write_record(folder: Path, record: Record) -> None:
    """Write the record into the folder, which must exist."""
    write_json(folder / TASK, record._asdict())


def read_record(folder: Path) -> Record | None:
    """The record in a folder; None without one, or if it is damaged."""
    try:
        record = Record(**json.loads((folder / TASK).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, RecursionError):
        return None
    texts = all(isinstance(text, str) for text in record[:3])
    return record if texts and (record.status is None or type(record.status) is int) else None


def states(records: Iterable[Record]) -> dict[Record, str]:
    """Each record with the state of its job: "waiting", "running", "ended", or "unknown".

    One call of squeue answers for all jobs of SLURM. Unknown are the jobs of SLURM where squeue cannot be asked, and
    the processes of other hosts. A process of --jobs or of submitit that lives is "waiting": the lock of a run says
    whether the run is at work.
    """
    found = {record: "ended" for record in records}
    jobs = _squeue({record.job for record in found if record.cluster == SLURM})
    for record in found:
        ended = record.status is not None
        if record.cluster == SLURM and jobs is None:
            found[record] = "ended" if ended and record.status != RESUMABLE else "unknown"
        elif record.cluster == SLURM:
            state = (jobs or {}).get(record.job, "ended")
            found[record] = "ended" if ended and state == "running" else state  # SLURM may have queued it again
        elif not ended and record.host != socket.gethostname():
            found[record] = "unknown"
        elif not ended and _lives(record):
            found[record] = "waiting"
    return found


def held(folders: Iterable[Path]) -> dict[Path, str]:
    """The folders whose run is a task that has not ended, each with a sentence about it."""
    records = {folder: record for folder in folders if (record := read_record(folder)) is not None}
    found, holders = states(records.values()), {}
    for folder, record in records.items():
        job = f"job {record.job} of SLURM" if record.cluster == SLURM else f"process {record.job} on {record.host}"
        state = found[record]
        if state == "unknown":
            asked = "squeue" if record.cluster == SLURM else "that host"
            holders[folder] = (
                f"{folder}: was given to {job}, and {asked} cannot be asked here. If that job has ended, remove the "
                f"file {folder / TASK}"
            )
        elif state != "ended":
            job, way_out = (f"{job} ({state})", "scancel") if record.cluster == SLURM else (job, "kill -INT")
            holders[folder] = f"{folder}: {job} has this run; {way_out} {record.job} ends it"
    return holders


def _squeue(jobs: set[str]) -> dict[str, str] | None:
    """The state of each job that SLURM still has: waiting or running. None if squeue cannot be asked."""
    if not jobs:
        return {}
    if shutil.which("squeue") is None:
        return None
    ids = ",".join(sorted({job.partition("_")[0] for job in jobs}))
    command = ["squeue", "--noheader", "--array", "--format=%i %T", f"--jobs={ids}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    if done.returncode and "Invalid job id" not in done.stderr:  # so it says of a job that it has forgotten
        return None
    pairs = [line.split(maxsplit=1) for line in done.stdout.splitlines()]
    return {pair[0]: "waiting" if pair[1] in _WAITING else "running" for pair in pairs if len(pair) == 2}


def _lives(record: Record) -> bool:
    """Whether the process of a record is at work on this host. Another process may have its number by now."""
    try:
        with suppress(PermissionError):  # a process of another user
            os.kill(int(record.job), 0)
        expected = "submitit" if record.cluster == LOCAL else SCRIPT.name
        words = Path(f"/proc/{int(record.job)}/cmdline")
        return expected.encode() in words.read_bytes() if Path("/proc/self").exists() else True
    except (OSError, ValueError, OverflowError):
        return False
