"""--jobs: runs side by side, each in a process of its own with its share of cores and GPUs."""

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
from small_experiments import SEED_1, read, run, snapshot

from experiment_configs.schema import ConfigError
from runs import side_by_side, tasks
from runs.side_by_side import Place, make_places, run_tasks
from runs.tasks import JOBS, Record, Task, read_record, write_record

TINY = ("--dataset_name", "Tiny")


def test_a_run_of_its_own_process_has_the_bits_of_a_plain_run(workplace, capsys):
    flags = (*TINY, "--seeds", "1")
    assert run(*flags, "--jobs", "1") == 0
    output = capsys.readouterr()
    assert re.search(r"^Tiny +LinHRU +RHEL +1 +0 +4 +accuracy", output.out, re.M)
    assert re.search("^Tiny LinHRU RHEL seed 1: test accuracy", output.out, re.M)
    assert run(*flags, "--output_parent_dir", "plain") == 0
    assert (SEED_1 / "model.eqx").read_bytes() == Path("plain", *SEED_1.parts[1:], "model.eqx").read_bytes()
    assert "4 steps, 14 training series" in (SEED_1 / "log.txt").read_text()
    assert read(SEED_1 / "config.json")["command"].endswith("--seeds 1 --config_dir configs")
    before = snapshot(Path("outputs"))
    assert run(*flags, "--jobs", "1") == 0
    assert snapshot(Path("outputs")) == before


@pytest.fixture
def stub(workplace, monkeypatch):
    """A script in the place of run_experiment.py: it waits for the file go, ends as the file end_<seed> says, and keeps
    the rules of --overwrite."""
    path = workplace / "run_experiment.py"
    path.write_text(
        "import json, os, signal, sys, time\nfrom pathlib import Path\n"
        "seed = sys.argv[sys.argv.index('--seeds') + 1]\n"
        "if not Path(f'early_{seed}').exists(): signal.signal(signal.SIGTERM, lambda *_: os._exit(75))\n"
        "folder = Path('outputs/Tiny/LinHRU_RHEL') / f'seed_{seed}'\n"
        "Path(f'begun_{seed}').write_text(json.dumps([*os.sched_getaffinity(0)]))\n"
        "while not Path('go').exists() and not Path(f'go_{seed}').exists(): time.sleep(0.01)\n"
        "end = Path(f'end_{seed}')\n"
        "if end.exists(): os.kill(os.getpid(), 9) if end.read_text() == 'kill' else os._exit(int(end.read_text()))\n"
        "key = folder / '.overwrite'\n"  # as runs.overwriting.take_over
        "if key.exists() and key.read_text() != os.environ.get('RHEL_OVERWRITE_KEY'): key.unlink()\n"
        "numbers = dict(best_step=2, steps=4, val_metric=0.5, test_metric=0.5, seconds=1.0)\n"
        "(folder / 'result.json').write_text(json.dumps(dict(status='completed', **numbers)))\n"
    )
    monkeypatch.setattr(tasks, "SCRIPT", path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    monkeypatch.setattr(os, "sched_setaffinity", lambda *_: None)
    monkeypatch.setattr(side_by_side, "_PAUSE", 0.01)
    return workplace


def test_the_key_of_the_overwriting_command_stays_in_the_folders_of_its_processes(tmp_path, monkeypatch):
    from runs.overwriting import OF_COMMAND, take_over

    monkeypatch.setenv(OF_COMMAND, "ours")
    for key, left in (("ours", True), ("another", False)):
        (tmp_path / ".overwrite").write_text(key)
        take_over([tmp_path])
        assert (tmp_path / ".overwrite").exists() == left
    assert OF_COMMAND == "RHEL_OVERWRITE_KEY"


def begun():
    return sorted(path.name for path in Path().glob("begun_*"))


@pytest.mark.parametrize(
    ("status", "stopped"),
    [(75, True), (-signal.SIGTERM, True), (-signal.SIGUSR2, True), (0, False), (-9, False), (1, False)],
)
def test_a_command_that_a_signal_ends_before_or_after_it_listens_was_stopped(status, stopped):
    assert tasks.was_stopped(status) == stopped


def test_a_worker_that_is_killed_is_a_failed_run_and_stops_no_other(stub, capsys):
    Path("go").touch()
    Path("end_1").write_text("kill")
    Path("end_3").write_text("2")
    assert run(*TINY, "--seeds", "1", "2", "3", "4", "--jobs", "2") == 1
    output = capsys.readouterr()
    assert f"seed 1: FAILED, killed by SIGKILL, see {SEED_1}/log.txt" in output.out
    assert "seed 3: REFUSED, see " in output.out
    assert "2 of 4 runs failed." in output.err
    assert [read_record(SEED_1.with_name(f"seed_{n}")).status for n in (1, 2, 3, 4)] == [-9, 0, 2, 0]
    capsys.readouterr()
    assert run(*TINY, "--seeds", "1", "2", "3", "4", "5", "--status") == 0
    states = re.findall(r"RHEL +\d +(not begun|\w+) +(\d)/4", capsys.readouterr().out)
    assert states == [("failed", "0"), ("done", "0"), ("failed", "0"), ("done", "0"), ("not begun", "0")]


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_signal_stops_all_and_the_same_command_makes_the_rest(stub, capsys, overwrite):
    flags = (*TINY, "--seeds", "1", "2", "3", "--jobs", "2", *["--overwrite"] * overwrite)
    if overwrite:
        SEED_1.mkdir(parents=True)
        (SEED_1 / "metrics.jsonl").write_text("of before")
    Path("go_1").touch()
    Path("early_2").touch()  # the signal ends it, as while Python starts

    def interrupt():
        while begun() != ["begun_1", "begun_2", "begun_3"]:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=interrupt).start()
    assert run(*flags) == 75
    assert "SIGTERM received: 2 runs are left; the same command resumes." in capsys.readouterr().err
    assert [read_record(SEED_1.with_name(f"seed_{n}")).status for n in (1, 2, 3)] == [0, 75, 75]
    assert not (SEED_1 / "metrics.jsonl").exists() or not overwrite
    for path in Path().glob("begun_*"):
        path.unlink()
    Path("go").touch()
    assert run(*flags) == 0
    assert begun() == ["begun_2", "begun_3"]  # the first is kept, also by --overwrite
    assert not list(Path("outputs").rglob(".overwrite"))
    assert run(*flags) == 0
    assert begun() == ["begun_1", "begun_2", "begun_3"] if overwrite else ["begun_2", "begun_3"]


def test_a_run_that_waits_for_jobs_is_shown_and_not_started_twice(stub, capsys):
    waiting = subprocess.Popen(["bash", "-c", "read", "run_experiment.py"], stdin=subprocess.PIPE)
    with waiting:
        SEED_1.mkdir(parents=True)
        write_record(SEED_1, Record(JOBS, str(waiting.pid), socket.gethostname()))
        Path("go").touch()
        assert run(*TINY, "--jobs", "2") == 1
        assert f"seed 1: REFUSED, {SEED_1}: process {waiting.pid} on " in capsys.readouterr().out
        assert begun() == ["begun_2"]
        assert run(*TINY, "--status") == 0
        assert re.search(r"RHEL +1 +waiting +0/4 +- +-\n", capsys.readouterr().out)
        waiting.stdin.close()


def test_no_more_run_at_a_time_than_asked_for_each_on_its_cores(tmp_path):
    cores = sorted(os.sched_getaffinity(0))
    places = [Place((core,), None) for core in cores[:2]]
    code = (
        "import os, sys, time; from pathlib import Path; p = Path(sys.argv[1]); (p / 'now').touch(); time.sleep(0.1)\n"
        "print(sorted(os.sched_getaffinity(0)), len(list(p.parent.glob('*/now')))); (p / 'now').unlink()"
    )
    work = []
    for number in range(4):
        folder = tmp_path / str(number)
        folder.mkdir()
        work.append(Task(str(number), [sys.executable, "-S", "-c", code, str(folder)], folder))
    ended = []
    run_tasks(work, places, {}, lambda: False, lambda task, status: ended.append((task.name, status)))
    assert sorted(ended) == [(str(number), 0) for number in range(4)]
    assert sorted(os.sched_getaffinity(0)) == cores
    said = [re.search(r"^\[(\d+)\] (\d)$", (task.folder / "log.txt").read_text(), re.M) for task in work]
    assert {int(match[1]) for match in said} == set(cores[:2])
    assert all(int(match[2]) <= len(places) for match in said)


def test_an_error_leaves_no_process_behind(tmp_path):
    sleeping = Task("sleeping", ["sleep", "60"], tmp_path)
    absent = Task("absent", ["sleep", "60"], tmp_path / "absent")
    start = time.monotonic()
    with pytest.raises(FileNotFoundError):
        run_tasks([sleeping, absent], [Place(None, None)] * 2, {}, lambda: False, lambda *_: None)
    assert time.monotonic() - start < 30


def test_places_have_equal_shares_of_cores_and_gpus(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(5)))
    assert make_places(2, None, []) == [Place((0, 1), None), Place((2, 3), None)]
    assert make_places(2, None, ["0", "3", "4"]) == [Place((0, 1), ("0",)), Place((2, 3), ("3",))]
    assert make_places(1, 2, ["0", "3", "4"]) == [Place((0, 1, 2, 3, 4), ("0", "3"))]
    assert [place.gpus for place in make_places(2, 0, ["0", "3"])] == [(), ()]
    with pytest.raises(ConfigError, match="--jobs 6: this command may use 5 cores, and a run needs at least one"):
        make_places(6, None, [])
    with pytest.raises(ConfigError, match="--jobs 4: only 3 GPUs are visible: at most --jobs 3; --gpus_per_run 0"):
        make_places(4, None, ["0", "1", "2"])
    with pytest.raises(ConfigError, match="--gpus_per_run 2: 2 runs at a time need 4 GPUs; 3 are visible"):
        make_places(2, 2, ["0", "1", "2"])


def test_the_gpus_are_those_that_the_command_may_use(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name == "jax_cuda12_plugin" or None)
    for named, gpus in (("2, GPU-5", ["2", "GPU-5"]), ("", []), ("-1", []), ("NoDevFiles", [])):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
        assert side_by_side.visible_gpus() == gpus
