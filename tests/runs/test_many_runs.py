"""--submit and --status: one plain command for each run, checked before the first; scripts play SLURM."""

import contextlib
import fcntl
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

with contextlib.suppress(ImportError):
    # Here, not in a test: it closes the handlers of logging, and absl's handler then closes the stderr of pytest.
    import submitit  # noqa: F401
from small_experiments import HERE, SEED_1, refusal, run, write_config

from runs import settings
from runs.command import parse
from runs.selection import select_configs
from runs.status import state_of
from runs.tasks import JOBS, LOCAL, SLURM, Record, command_of, read_record, states, write_record

ROOT = Path(__file__).resolve().parents[2]
SEED_2 = SEED_1.with_name("seed_2")
TINY = ("--dataset_name", "Tiny")


def script(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/bash\n{text}")
    path.chmod(0o755)


@pytest.fixture
def slurm(workplace, monkeypatch):
    """Scripts in the place of SLURM. sbatch keeps what it gets, and queues the jobs 7_0, 7_1, .. in the file queue."""
    pytest.importorskip("submitit")
    place = workplace / "slurm"
    script(place / "srun", "exit 1")
    script(
        place / "squeue", f'[ -e {place}/down ] && exit 1; echo "$@" > {place}/asked; cat {place}/queue 2> /dev/null'
    )
    script(
        place / "sbatch",
        f"[ -e {place}/refusing ] && {{ echo 'invalid partition specified: none' >&2; exit 1; }}\n"
        f"cp $1 {place}/batch; printf '7_0 PENDING\\n7_1 RUNNING\\n' > {place}/queue; echo Submitted batch job 7",
    )
    monkeypatch.setenv("PATH", f"{place}:{os.environ['PATH']}")
    return place


# The command of one run


@pytest.mark.parametrize(
    "flags",
    [
        "",
        "--num_steps 6 --output_parent_dir elsewhere --seeds 3 4 --learning_algorithm all --devices 2 --tensorboard",
        "--set lr=0.010,1e-5 time=true,false",
        "--set epsilon=null,1e-3 split=seed,original --double_precision --skip_nonfinite 0",
        '--set "lr_scheduler=lr,cosine_decay_schedule(lr, 1000),0.5 * lr"',
        """--set 'split="a,b(","true"'""",
    ],
)
def test_the_commands_of_the_tasks_make_the_runs_of_the_whole_command(workplace, flags):
    import shlex

    split = ["--config_dir", "configs", "--dataset_name", "Tiny", "Pulse", *shlex.split(flags)]
    arguments = parse([*split, "--submit", "--time", "4:00:00", "--partition", "p", "--overwrite"])
    runs = [(config, seed) for config in select_configs(arguments) for seed in config.seeds]
    assert len(runs) == len(settings.grid(arguments.set)) * (8 if "all" in flags else 4)
    plain = vars(parse(["--config_dir", "configs", *flags.partition("--set")[0].split()]))
    for config, seed in runs:
        python, path, *command = command_of(arguments, config, seed)
        assert (python, path) == (sys.executable, str(ROOT / "run_experiment.py"))
        task = parse(command)
        [alone] = select_configs(task)
        assert alone == config.model_copy(update={"seeds": (seed,)})
        # All other flags are as they were, and none of the submission is left.
        of_runs = {"set", "seeds", "learning_algorithm", "dataset_name", "model_name"}
        left = {name: value for name, value in vars(task).items() if name not in of_runs}
        assert left == {**{name: value for name, value in plain.items() if name not in of_runs}, **left}
        assert left.keys() <= vars(parse(split)).keys()


def test_a_settings_file_stands_for_its_lines(tmp_path, capsys):
    path = tmp_path / "space.txt"
    path.write_text("# a comment\n\nlr=0.1,0.2\n lr_scheduler=cosine_decay_schedule(lr, 10) \n")
    assert settings.parse([f"@{path}", "time=true"]) == {
        "lr": [0.1, 0.2],
        "lr_scheduler": ["cosine_decay_schedule(lr, 10)"],
        "time": [True],
    }
    path.write_text("lr=0.1\nlr\n")
    assert f"--set: {path} line 2: 'lr' is not FIELD=VALUE" in refusal(capsys, f"--set @{path}")
    assert "@absent.txt: absent.txt is no file" in refusal(capsys, "--set @absent.txt")


def test_the_published_configs_are_points_of_the_published_search_space():
    space = settings.parse([f"@{ROOT}/experiment_configs/search/published.txt"])
    assert len(settings.grid(space)) == 162
    names = ["EigenWorms", "SelfRegulationSCP1", "SelfRegulationSCP2", "EthanolConcentration", "Heartbeat"]
    flags = ["--model_name", "all", "--dataset_name", *names, "MotorImagery", "ppg"]
    configs = select_configs(parse(flags))
    assert len(configs) == 14
    assert all(getattr(config, name) in values for config in configs for name, values in space.items())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--partition p", "--partition: it goes with --submit"),
        ("--gpus_per_run 1", "--gpus_per_run: it goes with --submit or --jobs"),
        ("--jobs 2 --mem 4", "--mem: it goes with --submit"),
        ("--jobs 2 --submit", "--jobs: it trains on this machine, --submit on a cluster: give one of them"),
        ("--submit --cluster local --mem 4", "--mem: it goes with --cluster slurm"),
        ("--plan --jobs 2", "--jobs: it has no effect on --plan"),
        ("--evaluate x --submit", "--submit: it has no effect on --evaluate"),
        ("--status --plan", "--plan: not allowed with argument --status"),
        ("--status --no_timing", "--no_timing: it goes with --plan"),
        ("--jobs 0", "--jobs: '0' is not a whole number of at least 1"),
        ("--submit --time true", "'true' is not a time limit: minutes, HH:MM:SS or D-HH:MM:SS (the field time"),
        ("--submit --time 4:00", "'4:00': the limit must be at least 5 minutes: a task is saved up to 3"),
    ],
)
def test_a_flag_for_many_runs_that_has_no_effect_is_refused(capsys, flags, message):
    assert message in refusal(capsys, flags)


@pytest.mark.parametrize(
    ("text", "minutes"),
    [("90", 90), ("10:00", 10), ("4:30", 5), ("4:00:00", 240), ("1-0", 1440), ("1-02:30", 1590), ("1-0:0:1", 1441)],
)
def test_a_time_limit_is_read_as_sbatch_reads_it(text, minutes):
    assert parse(["--submit", "--time", text]).time == minutes


# Who has a run


def test_a_record_counts_as_long_as_its_job_or_process_lives(slurm):
    here = socket.gethostname()
    (slurm / "queue").write_text("7_0 PENDING\n7_1 RUNNING\n7_2 COMPLETING\n17_0 RUNNING\n")
    alive = subprocess.Popen(["bash", "-c", "read", "run_experiment.py"], stdin=subprocess.PIPE)
    other = subprocess.Popen(["bash", "-c", "read"], stdin=subprocess.PIPE)
    with alive, other:
        expected = {
            Record(SLURM, "7_0", "login"): "waiting",
            Record(SLURM, "7_1", "login"): "running",
            Record(SLURM, "7_2", "login"): "running",
            Record(SLURM, "7_3", "login"): "ended",
            Record(SLURM, "7_1", "login", 1): "ended",
            Record(SLURM, "7_0", "login", 75): "waiting",  # SLURM has queued it again
            Record(JOBS, str(alive.pid), here): "waiting",
            Record(LOCAL, str(alive.pid), here): "ended",  # not a process of submitit
            Record(JOBS, str(other.pid), here): "ended",  # another process has its number
            Record(JOBS, str(alive.pid), "elsewhere"): "unknown",
            Record(JOBS, "99999999", here): "ended",
            Record(JOBS, "", here): "ended",
        }
        assert states(expected) == expected
        assert (slurm / "asked").read_text().split()[-1] == "--jobs=7"
        (slurm / "down").touch()
        assert [states(expected)[Record(SLURM, "7_0", "login", end)] for end in (None, 75)] == ["unknown"] * 2
        assert states(expected)[Record(SLURM, "7_1", "login", 1)] == "ended"
        for process in (alive, other):
            process.stdin.close()
    # SLURM has forgotten the job.
    script(slurm / "squeue", "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1")
    assert states([Record(SLURM, "7_0", "login")]) == {Record(SLURM, "7_0", "login"): "ended"}


@pytest.mark.parametrize("text", ["", "{}", '["slurm"]', '{"cluster": 1, "job": "2", "host": "a", "status": null}'])
def test_a_damaged_record_is_none(tmp_path, text):
    (tmp_path / ".task").write_text(text)
    assert read_record(tmp_path) is None
    write_record(tmp_path, Record(SLURM, "7_0", "login"))
    assert read_record(tmp_path) == Record(SLURM, "7_0", "login")


def test_a_look_at_the_lock_refuses_no_run(tmp_path):
    """`at_work` holds the lock for a moment. A run that starts at this moment waits for it."""
    from runs.folder import LOCK, at_work, locked

    assert not at_work(tmp_path)
    with locked(tmp_path):
        assert at_work(tmp_path)
    with open(tmp_path / LOCK) as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        threading.Timer(0.05, fcntl.flock, (file, fcntl.LOCK_UN)).start()
        with locked(tmp_path):
            pass


# --submit


def test_a_submission_is_one_array_and_no_run_is_submitted_twice(slurm, capsys):
    flags = ("--submit", "--time", "1:30:00", "--partition", "gpu", "--account", "me", "--gpus_per_run", "2")
    assert run(*TINY, *flags, "--cpus_per_run", "8", "--mem", "16", "--array_parallelism", "3") == 0
    assert "2 runs submitted to slurm: job 7_0 to 7_1. " in capsys.readouterr().out
    batch = (slurm / "batch").read_text()
    given = dict(re.findall(r"^#SBATCH --([\w-]+)(?:=(.*))?$", batch, re.M))
    expected = {
        "array": "0-1%2",
        "time": "90",
        "partition": "gpu",
        "account": "me",
        "gpus-per-node": "2",
        "requeue": "",
    }
    expected |= {"cpus-per-task": "8", "mem": "16GB", "signal": "USR2@120", "job-name": "rhel"}
    assert given == {**given, **expected}
    assert [read_record(folder).job for folder in (SEED_1, SEED_2)] == ["7_0", "7_1"]

    assert run(*TINY, "--submit") == 2
    output = capsys.readouterr().out
    assert f"Tiny LinHRU RHEL seed 1: REFUSED, {SEED_1}: job 7_0 of SLURM (waiting) has this run; scancel 7_0" in output
    assert "No run was submitted." in output
    assert run(*TINY, "--submit", "--overwrite") == 2
    assert "--overwrite: " in capsys.readouterr().err
    (slurm / "down").touch()
    assert run(*TINY, "--submit") == 2
    assert (
        f"squeue cannot be asked here. If that job has ended, remove the file {SEED_1}/.task" in capsys.readouterr().out
    )
    (slurm / "down").unlink()

    # A job that is gone does not hold its run, and a finished run is not submitted.
    finished = {"status": "completed", "best_step": 2, "steps": 4, "val_metric": 0.5, "test_metric": 0.5}
    (SEED_2 / "result.json").write_text(json.dumps(finished))
    (slurm / "queue").write_text("")
    assert run(*TINY, "--submit") == 0
    output = capsys.readouterr().out
    assert "seed 2: kept, test accuracy 0.5" in output
    assert "1 run submitted to slurm: job 7. " in output
    assert "#SBATCH --time=240\n" in (slurm / "batch").read_text()


def test_what_is_submitted_names_our_function_and_holds_texts(slurm):
    import pickletools

    assert run(*TINY, "--seeds", "1", "--submit") == 0
    [pickle] = Path("outputs", "submitted").glob("*.pkl")
    assert pickle.parent.stat().st_mode & 0o077 == 0
    texts = [argument for _, argument, _ in pickletools.genops(pickle.read_bytes()) if isinstance(argument, str)]
    assert {"runs.job", "RunCommand", "--seeds", str(SEED_1.absolute())} <= set(texts)
    modules = {text for text in texts if re.fullmatch(r"[a-z_]+(\.[a-z_]+)*", text) and "." in text}
    assert modules <= {"runs.job", "submitit.core.utils", "run_experiment.py"}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--batch_size 15", "batch_size 15: must not exceed the 14 samples"),
        ("--set lr=0.1,-1", "lr is -1: allowed is a positive number"),
        ("--dataset_name Tiny Absent", "no config for the data set 'Absent'"),
        (
            "--devices 3",
            "--devices 3: they cannot divide a batch of 4 samples (batch_size) equally. These numbers can: 1, 2",
        ),
        ("--devices 4 --gpus_per_run 2", "--devices 4: a run has 2 GPUs (--gpus_per_run)"),
        ("--partition none", "--submit: sbatch refused the jobs: "),
    ],
)
def test_a_wrong_command_is_refused_where_it_is_submitted(slurm, capsys, flags, message):
    (slurm / "refusing").touch()
    assert run(*TINY, "--submit", *flags.split()) == 2
    assert message in capsys.readouterr().err
    assert not (slurm / "batch").exists()
    assert not list(Path().glob("outputs/**/.task"))


@pytest.mark.parametrize("flags", [["--submit"], ["--jobs", "1"]])
def test_a_model_that_cannot_be_made_is_refused_before_the_first_run(slurm, monkeypatch, capsys, flags):
    def refusing(**_):
        raise ValueError("too stiff")

    monkeypatch.setattr("runs.run.create_model", refusing)
    assert run(*TINY, *flags) == 2
    assert "LinHRU on Tiny: too stiff" in capsys.readouterr().err
    assert not list(Path().glob("outputs/**/.task"))


def test_without_a_cluster_the_ways_out_are_named(workplace, monkeypatch, capsys):
    monkeypatch.setenv("PATH", "")
    assert run(*TINY, "--submit") == 2
    assert "this machine has no sbatch and no srun and no squeue: submit from a host" in capsys.readouterr().err
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    assert run(*TINY, "--submit", "--cluster", "local") == 2
    assert "starts all runs at once: 2 runs, and this machine has 1 core. --jobs 1" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "submitit", None)
    assert run(*TINY, "--submit") == 2
    assert f"pip install -r {ROOT}/requirements-cluster.txt" in capsys.readouterr().err


def test_a_machine_has_one_run_at_a_time(workplace, capsys):
    machine = {"name": "numpy_leapfrog"}
    write_config(
        {**HERE, "dataset_name": "Tiny", "model_name": "NonlinHRU", "complex_ssm": False, "machine": machine},
        "NonlinHRU",
    )
    assert run(*TINY, "--model_name", "NonlinHRU", "--jobs", "1") == 2
    assert "runs on a machine are made one after the other" in capsys.readouterr().err


# submitit leaves the process of a local job to itself.
@pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning")
def test_a_local_job_that_is_preempted_resumes_and_ends_with_the_bits_of_a_plain_run(workplace):
    pytest.importorskip("submitit")
    flags = (*TINY, "--seeds", "1", "--num_steps", "1000", "--print_steps", "1000", "--checkpoint_steps", "50")
    assert run(*flags, "--submit", "--cluster", "local", "--time", "10") == 0
    until = time.monotonic() + 600
    with contextlib.suppress(IndexError):
        while not list(SEED_1.glob("checkpoints/*/sha256.json")):
            time.sleep(0.01)
            assert time.monotonic() < until
    os.kill(int(read_record(SEED_1).job), signal.SIGTERM)  # submitit passes it on to the job
    while read_record(SEED_1).status is None:
        time.sleep(0.05)
        assert time.monotonic() < until
    assert read_record(SEED_1).status == 0
    log = (SEED_1 / "log.txt").read_text()
    assert log.count(f"$ {sys.executable}") == 2
    assert re.search(r"SIGTERM received: stopped after step (\d+)", log)[1] in log.partition("resumes from step")[2]
    assert run(*flags, "--output_parent_dir", "plain") == 0
    assert (SEED_1 / "model.eqx").read_bytes() == Path("plain", *SEED_1.parts[1:], "model.eqx").read_bytes()
    assert run(*flags, "--submit", "--cluster", "local") == 0  # it is finished


# --status


def test_the_table_shows_steps_and_hours_left_of_plain_runs_too(slurm, capsys):
    assert run(*TINY, "--seeds", "1") == 0
    capsys.readouterr()
    flags = ("--status", "--num_steps", "3604", "--submit", "--partition", "x")  # as when it was submitted
    (SEED_2 / "checkpoints" / "6").mkdir(parents=True)
    (SEED_2 / "metrics.jsonl").write_text('{"step": 4, "seconds": 50.0, "seconds_compiling": 10.0}\n')
    write_record(SEED_2, Record(SLURM, "7_1", "login"))
    (slurm / "queue").write_text("7_1 RUNNING\n7_2 PENDING\n")
    write_record(SEED_1, Record(SLURM, "7_2", "login"))
    (SEED_1 / "log.txt").touch()
    assert run(*TINY, *flags) == 0
    output = capsys.readouterr().out
    assert re.search(rf"Tiny +LinHRU +RHEL +1 +waiting +4/3604 +[\d.]+ +{SEED_1}/log.txt\n", output)
    assert re.search(r"Tiny +LinHRU +RHEL +2 +running +6/3604 +9.99 +-\n", output)  # 3,598 steps of 10 s
    assert "2 runs: 1 running, 1 waiting\n" in output
    (slurm / "queue").write_text("")
    with open(SEED_2 / ".lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert run(*TINY, *flags) == 0
    assert re.search(r" 1 +stopped .*\n.* 2 +running ", capsys.readouterr().out)
    (SEED_2 / "result.json").write_text('{"status": "failed"}')
    assert run(*TINY, "--status") == 0
    assert re.search(r" 1 +done +4/4 .*\n.* 2 +failed ", capsys.readouterr().out)
    assert run("--dataset_name", "Absent", "--status") == 2
    assert "no config for the data set 'Absent'" in capsys.readouterr().err


def test_a_job_that_failed_counts_until_the_run_is_begun_again(tmp_path):
    record = Record(JOBS, "1", "host", 1)
    (tmp_path / "config.json").touch()
    write_record(tmp_path, record)
    assert state_of(tmp_path, 4, record, "ended") == "failed"
    os.utime(tmp_path / "config.json", (time.time() + 10,) * 2)
    assert state_of(tmp_path, 4, record, "ended") == "stopped"


def test_a_task_that_waits_imports_no_jax():
    code = "import sys, runs.tasks; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
