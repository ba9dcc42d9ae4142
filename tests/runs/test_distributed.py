"""`--distributed`: two processes train as one with two devices, all stop, end and resume together; what is refused."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from small_experiments import HERE, SEED_1, lines, read, refusal, run, timeless, write_config, write_dataset

import run_experiment
from runs import devices, distributed
from runs.command import parse
from runs.folder import LOCK, RunRefused
from runs.selection import Selection
from runs.shared_folder import require_seen
from training import hosts

ROOT = Path(__file__).resolve().parents[2]
# The command, with a shorter time until a process is lost.
COMMAND = """
import sys
from training import hosts
hosts.PULSE_S, hosts.LOST_S = 0.5, float(sys.argv.pop(1))
import run_experiment
sys.exit(run_experiment.main())
"""
FLAGS = ("--config_dir", "configs", "--dataset_name", "Tiny", "--num_steps", "15", "--print_steps", "3")
SEED_2 = SEED_1.with_name("seed_2")
BY_HAND = "--distributed --coordinator host:1234 --num_processes 2"


class Pair:
    """Two processes of a command in a folder."""

    def __init__(self, folder, *flags, lost_s=60):
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{taken.getsockname()[1]}"
        command = [sys.executable, "-c", COMMAND, str(lost_s), *FLAGS, "--seeds", "1", "2", "--distributed", *flags]
        command += ["--coordinator", address, "--num_processes", "2", "--process_id"]
        options = {"cwd": folder, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        options["env"] = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
        self.processes = [subprocess.Popen([*command, str(number)], **options) for number in (0, 1)]

    def wait_for_checkpoint(self, folder):
        """Until the run of this folder has saved its third step."""
        while not (folder / "checkpoints" / "3" / "sha256.json").exists():
            assert all(process.poll() is None for process in self.processes), self.end()
            time.sleep(0.02)

    def end(self):
        """The exit status, stdout and stderr of each."""
        try:
            outputs = [process.communicate(timeout=180) for process in self.processes]
        finally:
            for process in self.processes:
                process.kill()
        return [(process.returncode, *text) for process, text in zip(self.processes, outputs, strict=True)]


def outcome(folder):
    """All that a run computed, to the last bit."""
    metrics = [timeless(line) for line in lines(folder / "metrics.jsonl")]
    return (folder / "model.eqx").read_bytes(), metrics, timeless(read(folder / "result.json"))


def small_set(folder):
    """A data set and its config, in the folder."""
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        write_dataset(folder, "Tiny")
        write_config({**HERE, "dataset_name": "Tiny", "dropout_rate": 0.25})
    return folder


@pytest.fixture(scope="module")
def story(tmp_path_factory):
    """The folder, and how two pairs of processes ended that train seeds 1 and 2.

    Of the first pair, one process is killed in seed 1. The second pair ends seed 1 and gets a signal in seed 2.
    """
    folder = small_set(tmp_path_factory.mktemp("hosts"))
    killed = Pair(folder, lost_s=5)
    killed.wait_for_checkpoint(folder / SEED_1)
    killed.processes[1].kill()
    ends = [killed.end()]
    stopped = Pair(folder)
    stopped.wait_for_checkpoint(folder / SEED_2)
    stopped.processes[1].send_signal(signal.SIGTERM)
    return folder, *ends, stopped.end()


def test_a_killed_process_is_named_by_the_other(story):
    _, ((status_0, _, err_0), (status_1, _, _)), _ = story
    assert (status_0, status_1) == (hosts.LOST, -signal.SIGKILL), err_0
    assert "error: process 1 of 2 was lost: " in err_0
    assert "The same command, in all processes, resumes from the last checkpoint" in err_0


def test_a_signal_at_one_process_stops_all_after_the_same_step(story):
    folder, _, ((status_0, _, err_0), (status_1, _, _)) = story
    assert (status_0, status_1) == (75, 75), err_0
    step = re.search(r"A signal to another process received: stopped after step (\d+); the same command resumes", err_0)
    assert (folder / SEED_2 / "checkpoints" / step[1] / "sha256.json").exists()


def test_a_resumed_run_has_the_bits_of_one_process_with_two_devices(story, monkeypatch):
    folder, _, ((_, out_0, err_0), (_, out_1, err_1)) = story
    assert "seed 1: resumes from step 3\n" in err_0
    assert "Tiny LinHRU RHEL seed 1: test accuracy" in out_0
    assert "Tiny" not in out_1 + err_1  # process 0 alone prints
    monkeypatch.chdir(folder)
    assert run(*FLAGS[2:], "--seeds", "1", "--devices", "2", "--output_parent_dir", "one") == 0
    assert outcome(SEED_1) == outcome(Path("one", *SEED_1.parts[1:]))
    record = read(SEED_1 / "config.json")
    assert (record["devices"], record["processes"]) == (2, 2)
    assert "processes" not in read(Path("one", *SEED_1.parts[1:], "config.json"))


@pytest.mark.long
def test_four_devices_of_two_processes_resume_after_the_loss_of_process_0(tmp_path, monkeypatch):
    """The sums of a step have another order than in one process, but always the same. Those of --evaluate do not."""
    outcomes = []
    for name in ("whole", "killed"):
        folder = tmp_path / name
        folder.mkdir()
        flags = (small_set(folder), "--devices", "4")
        if name == "killed":
            pair = Pair(*flags)
            pair.wait_for_checkpoint(folder / SEED_1)
            pair.processes[0].kill()
            (_, _, _), (status, _, err) = pair.end()
            assert status == hosts.LOST
            assert "error: process 0 of 2, to which all others are connected, was lost: " in err
        assert [status for status, *_ in Pair(*flags).end()] == [0, 0]
        outcomes.append([outcome(folder / seed) for seed in (SEED_1, SEED_2)])
    monkeypatch.chdir(folder)
    assert run_experiment.main(["--evaluate", str(SEED_1)]) == 0
    assert outcomes[0] == outcomes[1]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--coordinator host:1234", "--coordinator: it goes with --distributed"),
        (BY_HAND, "--distributed: --process_id is missing: give all of --coordinator, --num_processes, --process_id, "),
        (f"{BY_HAND} --process_id 2", "--process_id 2: must be from 0 to 1, as there are 2 processes"),
        ("--distributed --coordinator 1234 --num_processes 2 --process_id 0", "--coordinator 1234: is not HOST:PORT"),
        ("--distributed --coordinator h:0 --num_processes 2 --process_id 0", "--coordinator h:0: is not HOST:PORT"),
        (f"{BY_HAND} --process_id -1", "'-1' is not a whole number of at least 0"),
        (f"{BY_HAND} --process_id 0 --plan", "--distributed: --plan works in one process. Leave the flag out: plan "),
        (f"{BY_HAND} --process_id 0 --evaluate run", "--distributed: --evaluate works in one process."),
        (f"{BY_HAND} --process_id 0 --predict x.npy --run run", "--distributed: --predict works in one process."),
    ],
)
def test_flags_that_do_not_fit_are_refused(capsys, flags, words):
    assert words in refusal(capsys, flags)


def test_slurm_names_the_process_and_nothing_is_guessed(capsys, monkeypatch):
    for name in distributed.SLURM:
        monkeypatch.delenv(name, raising=False)
    assert "no srun started this process (SLURM_JOB_ID is not set)" in refusal(capsys, "--distributed")
    for name, value in zip(distributed.SLURM, ("77", "node[3-4]", "8", "5", "1"), strict=True):
        monkeypatch.setenv(name, value)
    assert distributed.place_of(parse([])) is None
    assert distributed.place_of(parse(["--distributed"])) == (5, 8, None)
    monkeypatch.setenv("SLURM_PROCID", "8")
    assert "must be from 0 to 7" in refusal(capsys, "--distributed")
    monkeypatch.setenv("SLURM_NTASKS", "")
    assert "SLURM's variables are not numbers: SLURM_PROCID '8', SLURM_NTASKS ''" in refusal(capsys, "--distributed")


def test_processes_that_differ_are_refused_with_the_field_and_both_values(workplace, monkeypatch):
    def refused(facts, other):
        monkeypatch.setattr(hosts, "gathered", lambda own: [own, other])
        with pytest.raises(hosts.HostsError) as error:
            hosts.require_same(facts)
        return str(error.value)

    def facts(*flags):
        return Selection(parse(["--config_dir", "configs", "--dataset_name", "Tiny", *flags])).facts()

    own = distributed.versions()
    assert {"version of jax", "version of jaxlib", "sha256 of the program", "XLA_FLAGS"} <= own.keys()
    told = refused(own, {**own, "version of jaxlib": "0.1"})
    assert told.startswith(f'version of jaxlib: process 0 has "{own["version of jaxlib"]}", process 1 has "0.1". All ')
    own, write = facts(), ("--checkpoint_steps", "3")
    assert refused(own, facts(*write)).startswith("checkpoint_steps of config 1: process 0 has null, process 1 has 3. ")
    assert refused(own, facts("--seeds", "1")).startswith("runs: process 0 has [")
    write_dataset(workplace / "elsewhere", "Tiny", channels=3)
    elsewhere = facts("--data_dir", "elsewhere/data")
    assert refused(own, elsewhere).startswith(f"sha256 of the data of {SEED_1}: process 0 has ")
    monkeypatch.setattr(hosts, "gathered", lambda own: [own, facts()])
    hosts.require_same(own)


def test_a_folder_that_is_not_that_of_process_0_is_refused(tmp_path):
    with pytest.raises(RunRefused, match="is not the folder in which process 0 works"):
        require_seen(tmp_path, "token", seconds=0)
    (tmp_path / LOCK).write_text("token")
    require_seen(tmp_path, "token", seconds=0)


def test_batches_that_the_processes_cannot_divide_are_refused(workplace, monkeypatch, capsys):
    """Three processes with a device each; the devices are those of one process here."""
    monkeypatch.setattr("jax.process_count", lambda: 3)
    monkeypatch.setattr(hosts, "processes", lambda: 3)
    assert devices.usual() == 3
    assert run("--dataset_name", "Tiny", "--seeds", "1") == 2
    words = "--distributed: 3 processes cannot divide a batch of 4 samples equally: batch_size must be a multiple of 3"
    assert words in capsys.readouterr().err
    assert run("--dataset_name", "Tiny", "--seeds", "1", "--devices", "2") == 2
    assert (
        "equally, as many on each of 3 processes. Of the 4 devices, these numbers can: none" in capsys.readouterr().err
    )
    write_config({**HERE, "dataset_name": "Tiny", "machine": {"name": "numpy_leapfrog"}})
    assert run("--dataset_name", "Tiny", "--seeds", "1") == 2
    assert "--distributed: 3 processes cannot share the machine numpy_leapfrog" in capsys.readouterr().err
