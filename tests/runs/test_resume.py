"""A run that is stopped or killed, wherever, and started again ends with the very bits of one that was not."""

import contextlib
import dataclasses
import fcntl
import functools
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp
import pytest
from small_experiments import HERE, lines, timeless, write_config

import run_experiment
import train
from data_dir.dataloaders import Dataloader, ShuffledBatches
from data_dir.datasets import create_dataset
from experiment_configs.schema import validate
from runs.folder import AT_THE_END, RunRefused, run_folder
from runs.progress import RunProgress
from runs.run import run_seed
from runs.signals import StopSignals
from training import checkpoints

pytestmark = pytest.mark.usefixtures("empty_figures")

ROOT = Path(__file__).resolve().parents[2]
OPTIONS = {  # batches of 4 from 14: step 4 goes over the end of an epoch
    "dataset_name": "Tiny",
    "seeds": [1],
    "num_steps": 10,
    "print_steps": 4,
    "checkpoint_steps": 3,
    "complex_ssm": False,
    "dropout_rate": 0.25,
    "batchnorm": "ema",
    "grad_clip": 0.5,
}


def config_of(**changes):
    return validate({**HERE, **OPTIONS, **changes}, "test")


def run(config, **options):
    return run_seed(config, 1, **options)


def outcome(config):
    """Everything that a run computed, to the last bit: best model, last state of all, evaluations and result."""
    folder = run_folder(config, 1)
    steps = sorted((folder / "checkpoints").iterdir(), key=lambda path: int(path.name))
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as reader:
        items = ocp.args.Composite(arrays=ocp.args.StandardRestore(), facts=ocp.args.JsonRestore())
        saved = reader.restore(steps[-1].absolute(), args=items)
    facts = saved.facts["facts"]
    return (
        (folder / "model.eqx").read_bytes(),
        [(array.dtype, array.tobytes()) for array in map(np.asarray, saved.arrays)],
        {**timeless(facts), "history": [timeless(evaluation) for evaluation in facts["history"]]},
        [timeless(record) for record in lines(folder / "metrics.jsonl")],
        timeless(json.loads((folder / "result.json").read_text())),
    )


@functools.cache
def whole(**changes):
    """The outcome of a run that was not interrupted. All tests have the same data, and share it."""
    config = config_of(**changes, output_parent_dir="whole")
    run(config)
    return outcome(config)


class Killed(BaseException):
    """The process ends here: nothing that handles errors may notice."""


def die(*_, **__):
    raise Killed


def at(step):
    def on_step(number, _):
        if number == step:
            raise Killed

    return {"on_step": on_step}


def at_evaluation(step):
    return {"on_evaluation": lambda evaluation: die() if evaluation.step == step else None}


def second_call(function):
    """The function, but the process dies at its second call."""
    calls = itertools.count(1)
    return lambda *args, **options: die() if next(calls) == 2 else function(*args, **options)


def at_rename(patch):
    path = ocp.path.atomicity.AtomicRenameTemporaryPath
    finalize = path.finalize
    # The parts of a checkpoint are renamed first, then the whole.
    patch.setattr(path, "finalize", lambda self, **o: die() if self.get_final().name == "4" else finalize(self, **o))


def at_hashes(patch):
    patch.setattr(checkpoints, "_write_sums", second_call(checkpoints._write_sums))


def at_result(patch):
    patch.setattr("runs.run.draw_curves", die)


def nowhere_else(_):
    """The callbacks alone."""


# Where it dies: callbacks, what is patched, and the step that it then goes on from.
KILLS = {
    "before the first checkpoint": (at(2), nowhere_else, None),
    "inside an epoch": (at(8), nowhere_else, 6),
    "at an evaluation": (at_evaluation(8), nowhere_else, 6),
    "between write and rename": ({}, at_rename, 3),
    "between rename and hashes": ({}, at_hashes, 3),
    "before the result": ({}, at_result, 10),
}


@pytest.mark.parametrize(
    ("kills", "options"),
    [(KILLS, {}), (["inside an epoch"], {"model_name": "NonlinHRU", "learning_algorithm": "BPTT"})],
)
def test_a_run_that_was_killed_anywhere_ends_with_the_same_bits(workplace, kills, options):
    for name in kills:
        callbacks, patch, step = KILLS[name]
        broken = config_of(**options, output_parent_dir=name)
        with pytest.MonkeyPatch.context() as patched:
            patch(patched)
            with pytest.raises(Killed):
                run(broken, **callbacks)
        resumed = []
        run(broken, on_resume=lambda step, _, resumed=resumed: resumed.append(step))
        assert resumed == ([] if step is None else [step]), name
        assert outcome(broken) == whole(**options), name


def test_a_run_that_is_stopped_after_every_dispatch_ends_with_the_same_bits(workplace):
    broken = config_of(output_parent_dir="stopped")
    steps = []
    while True:
        asked = itertools.count()
        try:
            result = run(broken, stop=lambda asked=asked: next(asked) == 1)
            break
        except train.Stopped as stopped:
            steps.append(stopped.step)
    assert len(steps) >= 3
    assert steps == sorted(set(steps))
    assert result["steps"] == 10
    assert outcome(broken) == whole()


def test_early_stopping_counts_on_after_a_resume(workplace, monkeypatch):
    monkeypatch.setattr("training.loop.evaluate", lambda *_, **__: (0.5, 0.5))  # the validation metric stays as it is
    unbroken = config_of(num_steps=400, patience=2, output_parent_dir="unbroken")
    result = run(unbroken)
    assert (result["stop_reason"], result["steps"]) == ("early_stopping", 16)
    broken = config_of(num_steps=400, patience=2, output_parent_dir="killed")
    for step in (8, 12, 16):
        with pytest.raises(Killed):
            run(broken, **at_evaluation(step))
    run(broken)
    assert outcome(broken) == outcome(unbroken)


def test_a_damaged_checkpoint_is_reported_and_the_one_before_used(workplace):
    config = config_of()
    with pytest.raises(Killed):
        run(config, **at(10))
    folder = run_folder(config, 1) / "checkpoints"
    assert sorted(os.listdir(folder)) == ["8", "9"]
    os.truncate(folder / "9" / "arrays" / "_METADATA", 5)
    resumed = []
    run(config, on_resume=lambda *told: resumed.append(told))
    assert resumed == [(8, {9: "arrays/_METADATA is not what was saved"})]
    assert outcome(config) == whole()


def test_without_a_sound_checkpoint_nothing_is_removed_and_the_error_says_how_to_go_on(workplace):
    config = config_of()
    with pytest.raises(Killed):
        run(config, **at(10))
    folder = run_folder(config, 1)
    for step in ("8", "9"):
        (folder / "checkpoints" / step / "sha256.json").unlink()
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(checkpoints.CheckpointError, match="no checkpoint is sound"):
        run(config)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_a_checkpoint_of_another_config_is_refused_where_config_json_is_gone(workplace):
    with pytest.raises(Killed):
        run(config_of(), **at(5))
    (run_folder(config_of(), 1) / "config.json").unlink()
    with pytest.raises(checkpoints.CheckpointError, match="belongs to another config"):
        run(config_of(lr=0.02))
    assert run(config_of())["status"] == "completed"


def test_a_finished_run_whose_result_is_gone_is_finished_again_without_a_step(workplace):
    config = config_of()
    run(config)
    expected = outcome(config)
    (run_folder(config, 1) / "result.json").unlink()
    steps, resumed = [], []
    run(config, on_step=lambda step, _: steps.append(step), on_resume=lambda step, _: resumed.append(step))
    assert (steps, resumed) == ([], [10])
    assert outcome(config) == expected


def test_a_folder_is_for_one_process_at_a_time(workplace):
    config = config_of()
    folder = run_folder(config, 1)

    def second(*_):
        with pytest.raises(RunRefused, match=r"seed_1: another process is at work there"):
            run(config)

    assert run(config, on_evaluation=second)["status"] == "completed"
    # What a crash leaves is the file, and no lock on it.
    with open(folder / ".lock") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_clock_that_goes_back_changes_nothing(workplace, monkeypatch):
    broken = config_of(output_parent_dir="back")
    with pytest.raises(Killed):
        run(broken, **at(8))
    ticks = itertools.count(10**9, -1000)
    monkeypatch.setattr(time, "time", lambda: float(next(ticks)))
    run(broken)
    assert outcome(broken) == whole()
    seconds = [record["seconds"] for record in lines(run_folder(broken, 1) / "metrics.jsonl")]
    assert seconds == sorted(seconds)


def test_an_output_folder_that_cannot_be_written_is_named(workplace):
    with pytest.raises(OSError, match="/proc/nowhere"):
        run(config_of(output_parent_dir="/proc/nowhere"))


def test_a_full_disk_stops_the_run_and_it_goes_on_later(workplace, monkeypatch):
    config = config_of()

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        calls, write_sums = itertools.count(1), checkpoints._write_sums
        patched.setattr(checkpoints, "_write_sums", lambda *args: full() if next(calls) == 3 else write_sums(*args))
        with pytest.raises(checkpoints.CheckpointError, match=r"step 6 cannot be saved .*No space left"):
            run(config)
    resumed = []
    run(config, on_resume=lambda step, damaged: resumed.append((step, damaged)))
    assert resumed == [(4, {})]
    assert outcome(config) == whole()


# More steps


@pytest.mark.parametrize(("num_steps", "resumed"), [(8, 8), (10, 9), (3, 0)])
def test_a_finished_run_continues_to_more_steps_with_the_same_bits(workplace, num_steps, resumed):
    """The evaluation after step 10, or 3, is not in a run of 20 steps: it is dropped, and the steps are repeated."""
    short, long = (config_of(num_steps=number, output_parent_dir="continued") for number in (num_steps, 20))
    assert run(short)["steps"] == num_steps
    steps = []
    assert run(long, on_resume=lambda step, _: steps.append(step))["steps"] == 20
    assert steps == [resumed]
    assert outcome(long) == whole(num_steps=20)
    before = {path: path.read_bytes() for path in run_folder(long, 1).rglob("*") if path.is_file()}
    with pytest.raises(
        RunRefused, match=rf"more steps \(num_steps 20, now {num_steps}\): a run continues to more steps"
    ):
        run(short)
    with pytest.raises(RunRefused, match=r"another config \(lr 0.01, now 0.02; num_steps 20, now 30\)"):
        run(config_of(num_steps=30, lr=0.02, output_parent_dir="continued"))
    assert {path: path.read_bytes() for path in before} == before


def test_a_continuation_that_was_killed_has_the_old_result_or_none_and_ends_with_the_same_bits(workplace):
    short, long = (config_of(num_steps=number, output_parent_dir="continued") for number in (10, 20))
    run(short)
    folder = run_folder(short, 1)
    finished = {path: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    # Before the first new checkpoint, of step 12, and between the checkpoint and config.json the old run is intact.
    for callbacks, broken in ((at(10), "no_such_name"), ({}, "write_json"), (at(13), "no_such_name")):
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(f"runs.run.{broken}", die, raising=False)
            with pytest.raises(Killed):
                run(long, **callbacks)
        assert run(short)["steps"] == 10
        assert {path: path.read_bytes() for path in folder.iterdir() if path.is_file()} == finished
    for step in (16, 17):
        with pytest.raises(Killed):
            run(long, **at(step))
        assert not [name for name in AT_THE_END if (folder / name).exists()]
        with pytest.raises(RunRefused, match="num_steps 20, now 10"):
            run(short)
    run(long)
    assert outcome(long) == whole(num_steps=20)


def test_a_continuation_from_the_first_step_keeps_the_old_result_until_its_checkpoint(workplace):
    short, long = (config_of(num_steps=number, output_parent_dir="again") for number in (3, 20))
    result = run(short)
    with pytest.raises(Killed):
        run(long, **at(1))
    assert run(short) == result
    assert (run_folder(short, 1) / "model.eqx").exists()


def test_a_run_that_early_stopping_ended_is_finished_for_more_steps_too(workplace, monkeypatch):
    monkeypatch.setattr("training.loop.evaluate", lambda *_, **__: (0.5, 0.5))
    early = config_of(num_steps=400, patience=2, output_parent_dir="early")
    result = run(early)
    before = {path: path.read_bytes() for path in run_folder(early, 1).rglob("*") if path.is_file()}
    assert run(config_of(num_steps=500, patience=2, output_parent_dir="early")) == result
    assert {path: path.read_bytes() for path in before} == before
    # Its last step was allowed by num_steps; a longer run would have ended there by early stopping.
    assert run(config_of(num_steps=16, patience=2, output_parent_dir="last"))["stop_reason"] == "num_steps"
    longer = config_of(num_steps=400, patience=2, output_parent_dir="last")
    assert run(longer, **at(17))["stop_reason"] == "early_stopping"
    assert outcome(longer) == outcome(early)


def test_a_finished_run_without_checkpoints_is_not_continued(workplace):
    config = config_of(num_steps=8)
    run(config)
    folder = run_folder(config, 1)
    shutil.rmtree(folder / "checkpoints")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(checkpoints.CheckpointError, match=r"run of 8 steps cannot be continued to 20. --overwrite"):
        run(config_of(num_steps=20))
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


# Signals, and the real script


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR1"])
def test_a_signal_saves_and_ends_with_its_status(workplace, monkeypatch, capsys, name):
    write_config({**HERE, **OPTIONS, "num_steps": 20})
    step = RunProgress.step

    def signalled(self, number, loss):
        step(self, number, loss)
        if number == 5:
            os.kill(os.getpid(), signal.Signals[name])

    before = [signal.getsignal(number) for number in StopSignals.HEARD]
    with monkeypatch.context() as patched:
        patched.setattr(RunProgress, "step", signalled)
        assert run_experiment.main(["--config_dir", "configs", "--dataset_name", "Tiny"]) == 75
    saved = max(int(path.name) for path in (run_folder(config_of(), 1) / "checkpoints").iterdir())
    assert 5 <= saved < 20
    assert f"{name} received: stopped after step {saved}; the same command" in capsys.readouterr().err
    assert [signal.getsignal(number) for number in StopSignals.HEARD] == before

    assert run_experiment.main(["--config_dir", "configs", "--dataset_name", "Tiny"]) == 0
    assert f"resumes from step {saved}\n" in capsys.readouterr().err
    assert outcome(config_of()) == whole(num_steps=20)


SCRIPT = (sys.executable, str(ROOT / "run_experiment.py"), "--config_dir", "configs", "--dataset_name", "Tiny")


def wait_for(condition, process):
    until = time.monotonic() + 300
    while not condition():
        assert process.poll() is None
        assert time.monotonic() < until
        time.sleep(0.01)


ENDS = {signal.SIGKILL: -signal.SIGKILL, signal.SIGTERM: 75, signal.SIGINT: 75, signal.SIGUSR1: 75}


@pytest.mark.slow
@pytest.mark.parametrize("kills", [1, pytest.param(20, marks=pytest.mark.long)])
def test_the_script_killed_by_the_system_ends_with_the_same_bits(workplace, kills):
    """Half of the times after it has saved again, half while Python imports, compiles or takes up its work."""
    options = {"num_steps": 48} if kills == 1 else {"num_steps": 20_000, "print_steps": 500, "checkpoint_steps": 100}
    write_config({**HERE, **OPTIONS, **options})
    folder = run_folder(config_of(), 1) / "checkpoints"
    chance = random.Random(0)

    def saved():
        return max((int(path.parent.name) for path in folder.glob("[0-9]*/sha256.json")), default=0)

    for number in range(kills):
        before = saved()
        process = subprocess.Popen(SCRIPT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        if number % 2 == 0:
            wait_for(lambda before=before: saved() > before, process)
            time.sleep(chance.uniform(0, 0.01 if kills == 1 else 0.3))
        else:
            time.sleep(chance.uniform(1, 5))
        # At first SIGKILL, which nothing can hear.
        end = signal.SIGKILL if number < 2 else chance.choice(list(ENDS))
        process.send_signal(end)
        _, error = process.communicate(timeout=300)
        assert process.returncode == ENDS[end], error
        assert "Traceback" not in error
        assert not (folder.parent / "result.json").exists()
    done = subprocess.run(SCRIPT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert "resumes from step " in done.stderr
    assert outcome(config_of()) == whole(**options)


ENDLESS_STEP = """
import jax
from runs.signals import StopSignals

endless = jax.jit(lambda: jax.lax.while_loop(lambda n: n >= 0, lambda n: (n + 1) % 1000, 0)).lower().compile()
with StopSignals():
    print("at work", flush=True)
    jax.block_until_ready(endless())
"""


def test_a_second_interrupt_ends_a_process_inside_a_step_that_hears_nothing():
    command = [sys.executable, "-c", ENDLESS_STEP]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "at work\n"
            process.send_signal(signal.SIGINT)
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(timeout=1)
            # Of two that come at once the system may deliver one.
            for _ in range(100):
                process.send_signal(signal.SIGINT)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=0.2)
                    break
            assert process.returncode == 130
        finally:
            process.kill()


# Steps that are not finite


class SpoiltBatches(ShuffledBatches):
    """The batch of step 5 has a sample that is not finite."""

    def __next__(self):
        drawn = self.position["epoch"] * self._loader.size + self.position["offset"]
        x, y = super().__next__()
        if drawn == 4 * self._batch_size:
            x[1, 2, 1] = np.nan
        return x, y


class Spoilt(Dataloader):
    def loop(self, batch_size, *, key, position=None):
        return SpoiltBatches(self, batch_size, key, position)


def test_a_run_that_failed_can_go_on_with_the_step_skipped(workplace, monkeypatch):
    def create(*args, **options):
        data = create_dataset(*args, **options)
        spoilt = Spoilt(data.train.data, data.train.labels, rows=None)
        return dataclasses.replace(data, train=spoilt)

    monkeypatch.setattr("runs.run.create_dataset", create)
    folder = run_folder(config_of(), 1)
    run(config_of(num_steps=4))
    four = (folder / "model.eqx").read_bytes()
    result = run(config_of())
    assert (result["status"], result["steps"], result["skipped_steps"]) == ("failed", 5, 0)
    assert result["error"].startswith("the training loss is not finite at step 5 (largest parameter: ")
    assert len(result["rows"]) == 4
    # The files of the finished run are gone.
    assert {name for name in AT_THE_END if (folder / name).exists()} == {"result.json", "nonfinite.eqx", "curves.png"}

    # Kept for inspection: the model before the step, which is that of a run of four steps.
    assert (folder / "nonfinite.eqx").read_bytes() == four

    resumed = []
    again = run(config_of(skip_nonfinite=1), on_resume=lambda step, _: resumed.append(step))
    assert resumed == [4]
    assert (again["status"], again["steps"], again["skipped_steps"]) == ("completed", 10, 1)
    run(config_of(skip_nonfinite=1, output_parent_dir="whole"))
    assert outcome(config_of()) == outcome(config_of(output_parent_dir="whole"))
