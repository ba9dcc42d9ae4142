"""What a job of submitit runs: the plain command of one run. It passes signals on, and asks for another start.

submitit writes an object into its folder as a pickle, and the job reads it. The object is a `RunCommand`, which the
pickle names and does not contain, with a list of texts: the command line and the folder of the run.
"""

import os
import signal
import socket
import subprocess
from pathlib import Path

import submitit
from submitit.helpers import DelayedSubmission

from runs.signals import RESUMABLE, StopSignals
from runs.tasks import SLURM, Record, how_ended, start, was_stopped, write_record


class RunCommand:
    """Call it with a command line and the folder of its run."""

    def __call__(self, command: list[str], folder: str) -> int:
        """Run the command. If a signal stopped it, ask submitit to queue the job again: the same command resumes.

        Raises `RuntimeError` if the command fails, so that the job counts as failed, too.
        """
        environment = submitit.JobEnvironment()
        record = Record(environment.cluster, environment.job_id, socket.gethostname())
        write_record(Path(folder), record)
        status = _passing_signals_on(command, Path(folder))
        if status == RESUMABLE and _may_start_again(record):
            # At this signal submitit calls `checkpoint`, queues the job again and ends the process.
            signal.raise_signal(getattr(signal, f"SIG{submitit.JobEnvironment.USR_SIG}"))
        write_record(Path(folder), record._replace(status=status))
        if status:
            raise RuntimeError(f"{how_ended(status)}; its log is in {folder}")
        return status

    def checkpoint(self, command: list[str], folder: str) -> DelayedSubmission:
        """What submitit submits again: the same."""
        return DelayedSubmission(self, command, folder)


def _passing_signals_on(command: list[str], folder: Path) -> int:
    """The exit status of the command; 75 if a signal ended it. Signals that ask for a stop reach it as SIGTERM.

    SLURM sends its signals to all processes of a job, so that the command may hear them twice.
    """
    received: list[int] = []
    process: subprocess.Popen | None = None

    def pass_on(number, _):
        received.append(number)
        if process is not None:
            process.terminate()

    before = {number: signal.signal(number, pass_on) for number in StopSignals.HEARD}
    try:
        process = start(command, folder)
        if received:
            process.terminate()
        status = process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return RESUMABLE if received and was_stopped(status) else status


def _may_start_again(record: Record) -> bool:
    """Whether a stopped job is to be queued again: not if SLURM has already cancelled it or queued it again itself."""
    if record.cluster != SLURM:
        return True
    squeue = ["squeue", "--noheader", "--format=%T", f"--jobs={os.environ['SLURM_JOB_ID']}"]
    states = subprocess.run(squeue, capture_output=True, text=True).stdout.split()
    return "RUNNING" in states
