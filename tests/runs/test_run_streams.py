"""What is unimportant ends no training: lost streams, letters that cannot be shown, signals while Python imports."""

import fcntl
import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from small_experiments import SEED_1, read, run

import postprocess_results
from runs import streams
from runs.folder import finished_result

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = f"{sys.executable} {ROOT / 'run_experiment.py'} --config_dir configs --dataset_name Tiny --seeds 1"


def lost(kind):
    if kind == "full":
        return os.fdopen(os.open("/dev/full", os.O_WRONLY), "w")
    reading, writing = os.pipe()
    os.close(reading)
    return os.fdopen(writing, "w")


def test_a_run_whose_output_goes_nowhere_is_whole(workplace, monkeypatch):
    for number, kinds in enumerate([("full", "pipe"), ("pipe", "full")]):
        with monkeypatch.context() as patched:
            for name, kind in zip(("stdout", "stderr"), kinds, strict=True):
                patched.setattr(sys, name, lost(kind))
            assert run("--dataset_name", "Tiny", "--seeds", "1", "--output_parent_dir", str(number)) == 0
            sys.stdout.close()  # as Python does at its end: nothing is left that raises
            sys.stderr.close()
        assert read(Path(str(number), *SEED_1.parts[1:], "result.json"))["status"] == "completed"


@pytest.mark.parametrize("kind", ["full", "pipe", "closed"])
def test_output_that_is_all_a_command_gives_must_not_be_lost(workplace, monkeypatch, capsys, kind):
    """A plan or an evaluation that nobody can read has failed; a training has its files."""
    monkeypatch.setattr("runs.actions._plan", lambda _: print("the plan") or 0)
    with monkeypatch.context() as patched:
        patched.setattr(sys, "stdout", None if kind == "closed" else lost(kind))
        assert run("--plan") == 2
        if kind != "closed":
            sys.stdout.close()
    assert "--plan: the output was lost: stdout is closed or full" in capsys.readouterr().err
    assert run("--plan") == 0


def test_the_streams_are_given_back_as_they_were():
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="strict")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sys, "stdout", stream)
        with streams.forgiving():
            print("±")
        assert sys.stdout is stream
        assert stream.buffer.getvalue() == b"\\xb1\n"
        patched.setattr(sys, "stdout", lost("full"))
        with streams.forgiving():
            sys.stdout.writelines(["x", "y"])
            assert streams.output_is_lost()
        sys.stdout.close()


def test_letters_that_cannot_be_shown_are_numbers(workplace, monkeypatch):
    shown = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    with monkeypatch.context() as patched:
        patched.setattr(sys, "stdout", shown)
        assert run("--dataset_name", "Tiny", "--seeds", "1") == 0
        assert postprocess_results.main(["outputs"]) == 0
    assert r"mean \xb1 sample" in shown.buffer.getvalue().decode("ascii")


IMPORTING = """
import sys
print("importing", flush=True)
sys.stdin.readline()
sys.path.remove({folder!r})
del sys.modules["jax"]
import jax
"""


@pytest.mark.slow
def test_a_signal_during_the_imports_is_heard_and_closed_descriptors_take_no_file_along(workplace):
    """The signal ends the command before the first step. Then the same command trains, without any open stream."""
    fake = Path("fake")
    fake.mkdir()
    (fake / "jax.py").write_text(IMPORTING.format(folder=str(fake.resolve())))
    environment = {**os.environ, "PYTHONPATH": str(fake.resolve())}
    streams = {"stdin": -1, "stdout": -1, "stderr": -1, "text": True}
    with subprocess.Popen(SCRIPT.split(), env=environment, **streams) as process:
        assert process.stdout.readline() == "importing\n"
        process.send_signal(signal.SIGTERM)
        _, error = process.communicate("\n", timeout=300)
    assert process.returncode == 75, error
    assert "SIGTERM received: stopped after step 0; the same command resumes from there." in error
    assert (SEED_1 / "metrics.jsonl").read_text() == ""
    # A file that is opened in the place of a closed descriptor would get what libraries print.
    done = subprocess.run(["bash", "-c", f"exec {SCRIPT} <&- >&- 2>&-"], timeout=600)
    assert done.returncode == 0
    assert read(SEED_1 / "result.json")["status"] == "completed"
    assert run("--dataset_name", "Tiny", "--seeds", "1", "--output_parent_dir", "whole") == 0
    assert (SEED_1 / "model.eqx").read_bytes() == Path("whole", *SEED_1.parts[1:], "model.eqx").read_bytes()


def test_the_handlers_of_others_are_given_back(workplace):
    heard = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
    before = [signal.getsignal(number) for number in heard]
    run("--dataset_name", "Absent")
    assert [signal.getsignal(number) for number in heard] == before


def test_a_process_that_is_refused_everything_ends_with_2(workplace, capsys):
    SEED_1.mkdir(parents=True)
    with open(SEED_1 / ".lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert run("--dataset_name", "Tiny", "--seeds", "1") == 2
        assert "seed 1: REFUSED, " in capsys.readouterr().out
        # A run is trained, so the command is not refused as a whole.
        assert run("--dataset_name", "Tiny", "--seeds", "1", "2") == 1
        assert run("--dataset_name", "Tiny", "--seeds", "1", "2") == 2


@pytest.mark.parametrize("changes", [{"test_metric": None}, {"val_metric": "x"}, {"steps": True}, {"best_step": 1e400}])
def test_a_result_without_numbers_is_not_a_finished_one(tmp_path, changes):
    sound = {"status": "completed", "best_step": 2, "steps": 4, "val_metric": 0.5, "test_metric": 0.5}
    (tmp_path / "result.json").write_text(json.dumps(sound))
    assert finished_result(tmp_path) == sound
    (tmp_path / "result.json").write_text(json.dumps({**sound, **changes}))
    assert finished_result(tmp_path) is None
