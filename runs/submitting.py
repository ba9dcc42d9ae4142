"""--submit: give the runs to a cluster as tasks of one job array, by submitit. It writes no scheduler."""

import argparse
import os
import shlex
import shutil
import socket
import sys
from contextlib import ExitStack
from pathlib import Path

from experiment_configs.schema import ConfigError, ExperimentConfig
from runs.folder import locked, setting_of
from runs.many import ManyRuns
from runs.tasks import LOCAL, SCRIPT, SLURM, Record, read_record, write_record

FOLDER = "submitted"  # below the output folder: what submitit writes
DEFAULT_MINUTES = 240
# Before the time limit, a task is told to save and end. The steps that are sent to the device are finished first. SLURM
# may tell it a minute earlier, so that a limit must be longer than 3 minutes.
SECONDS_TO_SAVE = 120
MOST_TIME_LIMITS = 1000  # how often a task may reach its time limit


def submit(arguments: argparse.Namespace) -> int:
    """Submit all runs that are not finished and that no job has, and return the exit status.

    **Raises:** an error of `runs.train_all.KNOWN_ERRORS`, if no run is submitted.
    """
    cluster = getattr(arguments, "cluster", SLURM)
    _require_cluster(cluster)
    runs = ManyRuns(arguments, "--submit")
    if cluster == LOCAL:
        _require_cores(runs.unfinished())
    folders = sorted({_output_folder(config) / FOLDER for config in runs.selection.configs})
    with ExitStack() as locks:
        for folder in folders:
            # Its pickles are read by the jobs: whoever can write there can run programs.
            folder.mkdir(parents=True, exist_ok=True)
            folder.chmod(0o700)
            locks.enter_context(locked(folder))  # so that another command does not submit the same runs meanwhile
        runs.begin()
        jobs = _submitted(runs, _executor(cluster, folders[0], arguments)) if runs.tasks else []
        for task, job in zip(runs.tasks, jobs, strict=True):
            written = read_record(task.folder)
            if written is None or (written.cluster, written.job) != (cluster, job):  # else the job has begun
                write_record(task.folder, Record(cluster, job, socket.gethostname()))
        if runs.overwriting is not None:
            runs.overwriting.end()
    refused = sum(result["status"] == "refused" for result in runs.results.values())
    if jobs:
        ids = jobs[0] if len(jobs) == 1 else f"{jobs[0]} to {jobs[-1]}"
        print(
            f"{len(jobs)} run{'s' * (len(jobs) > 1)} submitted to {cluster}: job {ids}. The log of a run is log.txt in "
            f"its folder; that of a job is in {folders[0]}. The same command with --status shows how far they are."
        )
    else:
        print("No run was submitted.")
    return (1 if jobs else 2) if refused else 0


def _require_cluster(cluster: str) -> None:
    try:
        import submitit  # noqa: F401
    except ImportError:
        pinned = SCRIPT.with_name("requirements-cluster.txt")
        raise ConfigError(f"--submit needs a package that is not installed: pip install -r {pinned}") from None
    missing = [name for name in ("sbatch", "srun", "squeue") if shutil.which(name) is None]
    if cluster == SLURM and missing:
        raise ConfigError(
            f"--submit: this machine has no {' and no '.join(missing)}: submit from a host of the cluster. --jobs N "
            "trains N runs at a time here; --cluster local starts all of them in the background"
        )


def _require_cores(runs: int) -> None:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if runs > cores:
        raise ConfigError(
            f"--cluster local starts all runs at once: {runs} runs, and this machine has {cores} "
            f"core{'s' * (cores > 1)}. --jobs {cores} trains them {cores} at a time"
        )


def _output_folder(config: ExperimentConfig) -> Path:
    """The folder that the runs of all settings are below."""
    folder = Path(config.output_parent_dir)
    return folder.parent if setting_of(config) else folder


def _executor(cluster: str, folder: Path, arguments: argparse.Namespace):
    import submitit

    given = vars(arguments)
    minutes = given.get("time", DEFAULT_MINUTES)
    # The job imports `runs.job`, from wherever the command was started.
    path = os.pathsep.join(filter(None, (str(SCRIPT.parent), os.environ.get("PYTHONPATH"))))
    python = shlex.join(["env", f"PYTHONPATH={path}", sys.executable])
    options = {"max_num_timeout": MOST_TIME_LIMITS, "python": python}
    common = {"signal_delay_s": SECONDS_TO_SAVE, "stderr_to_stdout": True}
    if cluster == LOCAL:
        executor = submitit.LocalExecutor(folder, **options)
        executor.update_parameters(timeout_min=minutes, **common)
        return executor
    executor = submitit.SlurmExecutor(folder, **options)
    names = {"partition": "partition", "account": "account", "array_parallelism": "array_parallelism"}
    names |= {"gpus_per_run": "gpus_per_node", "cpus_per_run": "cpus_per_task"}
    executor.update_parameters(
        job_name="rhel",
        time=minutes,
        additional_parameters={"requeue": True},  # after the failure of a node, too
        mem=f"{given['mem']}GB" if "mem" in given else None,
        **common,
        **{name: given[flag] for flag, name in names.items() if given.get(flag)},
    )
    return executor


def _submitted(runs: ManyRuns, executor) -> list[str]:
    """Submit the tasks as one array. Returns the id of each job."""
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    from runs.job import RunCommand

    texts = [task.command for task in runs.tasks], [str(task.folder.absolute()) for task in runs.tasks]
    try:
        return [job.job_id for job in executor.map_array(RunCommand(), *texts)]
    except (FailedJobError, FailedSubmissionError) as error:
        raise ConfigError(f"--submit: sbatch refused the jobs: {' '.join(str(error).split())}") from error
