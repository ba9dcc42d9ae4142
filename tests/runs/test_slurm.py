"""--submit to a real SLURM of one node, which the test starts: tests/one_node_slurm.py."""

import contextlib
import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

with contextlib.suppress(ImportError):
    # Here, not in a test: it closes the handlers of logging, and absl's handler then closes the stderr of pytest.
    import submitit  # noqa: F401
from one_node_slurm import missing, one_node_slurm
from small_experiments import HERE, run, write_config

pytestmark = pytest.mark.long

ROOT = Path(__file__).resolve().parents[2]
SEEDS = ("1", "2", "3", "4")
FLAGS = ("--dataset_name", "Tiny", "--seeds", *SEEDS)


def folder(seed, output="outputs"):
    return Path(output, "Tiny", "LinHRU_RHEL", f"seed_{seed}")


def wait_for(condition, seconds=300):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.2)


def said(*command):
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def table(capsys):
    """What --status says: the text, and the state of each seed."""
    capsys.readouterr()
    assert run(*FLAGS, "--status") == 0
    text = capsys.readouterr().out
    return text, dict(re.findall(r"^Tiny +LinHRU +RHEL +(\d) +(\w+)", text, re.M))


def job_of(seed):
    return json.loads((folder(seed) / ".task").read_text())["job"]


def steps_of(seed):
    return max((int(path.parent.name) for path in folder(seed).glob("checkpoints/[0-9]*/sha256.json")), default=0)


@pytest.mark.skipif(bool(missing()), reason=missing() or "SLURM is here")
def test_jobs_that_end_early_in_any_way_and_are_queued_again_end_with_the_models_of_plain_runs(workplace, capsys):
    pytest.importorskip("submitit")
    with tempfile.TemporaryDirectory(prefix="slurm_") as place:  # its name must be short: it holds a socket
        options = {"num_steps": 8_000, "print_steps": 500, "checkpoint_steps": 250, "patience": 1000, "seeds": [1]}
        write_config({**HERE, **options, "dataset_name": "Tiny"})

        shown = []

        def show():
            text, states = table(capsys)
            shown.append(f"after {time.monotonic() - start:.0f} s\n{text}")
            return states

        with one_node_slurm(Path(place), cpus=2):
            start = time.monotonic()
            assert run(*FLAGS, "--submit", "--time", "0:30:00", "--cpus_per_run", "1", "--partition", "all") == 0
            assert "4 runs submitted to slurm: job" in capsys.readouterr().out
            wait_for(lambda: all(steps_of(seed) > 250 for seed in (1, 2)))
            assert show() == {"1": "running", "2": "running", "3": "waiting", "4": "waiting"}

            # Two submissions of one run.
            assert run(*FLAGS, "--submit") == 2
            assert f"job {job_of(3)} of SLURM (waiting) has this run; scancel" in capsys.readouterr().out

            # A job that is cancelled saves its run, and is not queued again by itself.
            said("scancel", job_of(1))
            wait_for(lambda: table(capsys)[1]["1"] == "stopped")
            assert steps_of(1) > 250
            # Jobs that are preempted are queued again.
            said("sbatch", "--partition=urgent", "--ntasks=2", "--output=/dev/null", "--wrap=sleep 1")
            wait_for(lambda: table(capsys)[1]["2"] == "waiting")
            said("scontrol", "requeue", job_of(1))
            wait_for(lambda: table(capsys)[1]["1"] == "waiting")
            show()

            # The signal that SLURM sends before the time limit, to all processes of a job.
            wait_for(lambda: steps_of(3) > 250)
            subprocess.run(["scancel", "--signal=USR2", job_of(3)])  # it complains if the job is gone so soon
            wait_for(lambda: table(capsys)[1]["3"] == "waiting")

            wait_for(lambda: set(table(capsys)[1].values()) == {"done"}, seconds=900)
            show()
            for seed in (1, 2):
                log = (folder(seed) / "log.txt").read_text()
                assert "SIGTERM received: stopped after step" in log
                assert "resumes from step" in log
            assert re.search(r"SIG(USR2|TERM) received: stopped", (folder(3) / "log.txt").read_text())
            assert run(*FLAGS, "--submit") == 0
            assert "No run was submitted." in capsys.readouterr().out

            # A submission that SLURM refuses leaves no record.
            assert run("--dataset_name", "Tiny", "--seeds", "5", "--submit", "--partition", "none") == 2
            assert "sbatch refused the jobs" in capsys.readouterr().err
            assert not (folder(5) / ".task").exists()
        plain = [sys.executable, str(ROOT / "run_experiment.py"), "--config_dir", "configs", *FLAGS]
        said(*plain, "--output_parent_dir", "plain")
        for seed in SEEDS:
            for name in ("model.eqx", "split.json"):
                assert (folder(seed) / name).read_bytes() == (folder(seed, "plain") / name).read_bytes()
    print(*shown, sep="\n")  # pytest -rP shows it
