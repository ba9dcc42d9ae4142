"""What decides a run: config, data, split and seed are those of the folder's run, or the command refuses."""

import itertools
import json
import os
import signal
from pathlib import Path

import jax
import numpy as np
import pytest
from small_experiments import HERE, SEED_1, lines, read, run, snapshot, write_config

import run_experiment
import train
from data_dir.pickles import write_arrays
from data_dir.splits import split_by_seed, write_index_file
from experiment_configs.schema import validate
from runs import actions, overwriting, train_all
from runs.command import parse
from runs.folder import locked
from runs.run import run_seed
from runs.selection import Selection

pytestmark = pytest.mark.usefixtures("empty_figures")

FOLDER = Path("data", "processed", "UEA", "Tiny")


def write_data(seed):
    write_arrays(FOLDER / "data.pkl", np.random.default_rng(seed).normal(size=(20, 8, 2)))


def stop_a_run(**changes):
    """A run of seed 1 that was stopped after its first dispatch."""
    asked = itertools.count()
    config = validate({**HERE, "dataset_name": "Tiny", **changes}, "test")
    with pytest.raises(train.Stopped):
        run_seed(config, 1, stop=lambda: next(asked) == 1)


def refused(capsys, *flags):
    capsys.readouterr()
    assert run("--dataset_name", "Tiny", "--seeds", "1", *flags) == 2
    return capsys.readouterr().err


@pytest.mark.parametrize("finished", [False, True])
def test_data_that_changed_since_are_refused(workplace, capsys, finished):
    if finished:
        assert run("--dataset_name", "Tiny", "--seeds", "1") == 0
    else:
        stop_a_run()
    before = snapshot(SEED_1)
    write_data(1)
    for flags in ((), ("--plan",)):
        message = refused(capsys, *flags)
        assert f"{SEED_1}: was made on other data (sha256 of the arrays of the data set " in message
        assert ". --overwrite removes the run" in message
    if finished:
        assert run_experiment.main(["--evaluate", str(SEED_1)]) == 2
        assert "was trained on other data (sha256 of the arrays" in capsys.readouterr().err
    assert snapshot(SEED_1) == before
    write_data(0)  # the arrays of before, in a file that was written again
    assert run("--dataset_name", "Tiny", "--seeds", "1") == 0
    if finished:
        assert run_experiment.main(["--evaluate", str(SEED_1)]) == 0


def test_a_checkpoint_of_other_data_is_refused_where_config_json_is_gone(workplace, capsys):
    stop_a_run()
    (SEED_1 / "config.json").unlink()
    write_data(1)
    assert run("--dataset_name", "Tiny", "--seeds", "1") == 1
    assert "belongs to another config" in capsys.readouterr().out


def test_an_index_file_that_changed_since_is_refused(workplace, capsys):
    split = split_by_seed(20, 1)
    write_index_file(Path("mine.json"), "Tiny", 20, {1: split})
    write_config({**HERE, "dataset_name": "Tiny", "split": "mine.json"})
    stop_a_run(split="mine.json")
    rows = (SEED_1 / "split.json").read_bytes()
    swapped = {**split, "train": split["test"], "test": split["train"]}
    swapped["train"] = np.concatenate([swapped["train"], swapped["test"][:11]])
    swapped["test"] = swapped["test"][11:]
    write_index_file(Path("mine.json"), "Tiny", 20, {1: swapped})
    assert f"{SEED_1}: was made on other data (sha256 of the rows of its parts " in refused(capsys)
    assert (SEED_1 / "split.json").read_bytes() == rows


def test_a_run_of_another_seed_is_refused(workplace, capsys):
    assert run("--dataset_name", "Tiny", "--seeds", "2") == 0
    SEED_1.with_name("seed_2").rename(SEED_1)
    assert "was made with another config (seed 2, now 1) and on other data" in refused(capsys)


# --overwrite over several seeds


COMMAND = ("--dataset_name", "Tiny", "--seeds", "1", "2")
SEED_2 = SEED_1.with_name("seed_2")
FINISHED = {"status": "completed", "seconds": 1.0, "steps": 4, "best_step": 4, "val_metric": 0.5, "test_metric": 0.5}


@pytest.fixture
def stopped_before_the_last(monkeypatch):
    """SIGTERM comes when the last of the seeds begins, as long as the list holds True."""
    stops = [True]
    original = train_all.run_seed

    def signalled(config, seed, **options):
        if stops[0] and seed == config.seeds[-1]:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(config, seed, **options)

    monkeypatch.setattr(train_all, "run_seed", signalled)
    return stops


def test_the_same_overwriting_command_keeps_what_it_made(workplace, stopped_before_the_last, monkeypatch, capsys):
    stopped_before_the_last[0] = False
    assert run(*COMMAND) == 0
    old = snapshot(SEED_1)
    stopped_before_the_last[0] = True
    assert run(*COMMAND, "--overwrite") == 75
    assert "the same command resumes from there" in capsys.readouterr().err
    made = snapshot(SEED_1)
    assert made != old
    assert not (SEED_2 / "result.json").exists()  # no earlier result is left that could be taken for a new one
    for _ in range(2):  # as on a cluster that ends a job and starts it again
        assert run(*COMMAND, "--overwrite") == 75
        assert snapshot(SEED_1) == made
    assert "--overwrite: 2 runs that this command began before it was stopped" in capsys.readouterr().err
    planned = []
    monkeypatch.setattr(actions, "_print_plan", lambda cells, timing: planned.extend(runs for _, runs, *_ in cells))
    assert run(*COMMAND, "--overwrite", "--plan") == 0
    assert planned == [1]
    assert snapshot(SEED_1) == made
    stopped_before_the_last[0] = False
    assert run(*COMMAND, "--overwrite") == 0
    assert snapshot(SEED_1).items() < made.items()
    assert read(SEED_2 / "result.json")["status"] == "completed"
    assert not list(Path("outputs").glob("**/.overwrite*"))
    # The command has ended. The next one starts from the beginning.
    assert run(*COMMAND, "--overwrite") == 0
    assert snapshot(SEED_1) != made


def test_an_overwriting_command_clears_what_another_command_other_data_or_another_commit_made(
    workplace, stopped_before_the_last, monkeypatch
):
    def stopped(*flags):
        assert run(*COMMAND, "--overwrite", *flags) == 75
        return snapshot(SEED_1)

    first = stopped()
    stopped("--num_steps", "6")
    assert [line["step"] for line in lines(SEED_1 / "metrics.jsonl")] == [2, 4, 6]
    again = stopped()
    assert again != first
    assert read(SEED_1 / "config.json")["config"]["num_steps"] == 4
    with monkeypatch.context() as patched:
        patched.setattr("runs.overwriting.commit", lambda: "another")
        assert stopped() != again
    before = stopped()
    # A command without --overwrite takes the runs over: they are no longer those of the stopped command.
    assert run(*COMMAND) == 75
    assert stopped() != before
    write_data(1)
    data = read(SEED_1 / "config.json")["data"]["sha256"]
    stopped()
    assert read(SEED_1 / "config.json")["data"]["sha256"] != data


def test_an_overwriting_command_that_dies_while_it_removes_runs_removes_the_others_later(workplace, monkeypatch):
    assert run(*COMMAND) == 0
    old = (SEED_2 / "result.json").read_bytes()
    original = overwriting.clear

    def dying(folder):
        if folder.name == "seed_2":
            raise KeyboardInterrupt
        original(folder)

    with monkeypatch.context() as patched:
        patched.setattr(overwriting, "clear", dying)
        assert run(*COMMAND, "--overwrite") == 130
    assert (SEED_2 / "result.json").read_bytes() == old
    assert run(*COMMAND, "--overwrite") == 0
    assert (SEED_2 / "result.json").read_bytes() != old  # it holds the seconds that the run took


def test_overwrite_removes_no_run_if_another_process_is_at_work_in_one(workplace, capsys):
    assert run(*COMMAND) == 0
    before = snapshot(Path("outputs")).keys()
    with locked(SEED_2):
        assert run(*COMMAND, "--overwrite") == 2
    assert "another process is at work there" in capsys.readouterr().err
    assert snapshot(Path("outputs")).keys() == before


@pytest.mark.parametrize(("status", "kept"), [(1, False), (75, True)])
def test_an_overwriting_command_in_which_a_run_failed_has_ended(workplace, monkeypatch, status, kept):
    """Its error may be mended in the code, which also changes the runs that were completed."""

    def failing(config, seed, **options):
        if seed == 2:
            raise ValueError("a defect") if status == 1 else train.Stopped(2)
        (SEED_1 / "result.json").write_text(json.dumps(FINISHED))
        return FINISHED

    monkeypatch.setattr(train_all, "run_seed", failing)
    assert run(*COMMAND, "--overwrite") == status
    again = overwriting.Overwriting(Selection(parse(["--config_dir", "configs", *COMMAND])).identities)
    assert again.to_clear == ([] if kept else [SEED_1, SEED_2])


def test_a_command_leaves_the_keys_of_an_overwriting_process_at_work(workplace, monkeypatch):
    keys = [folder / ".overwrite" for folder in (SEED_1, SEED_2)]

    def stopped(config, seed, **options):
        raise train.Stopped(2)

    monkeypatch.setattr(train_all, "run_seed", stopped)
    assert run(*COMMAND, "--overwrite") == 75
    with locked(SEED_2):
        assert run(*COMMAND) == 75
    assert all(key.exists() for key in keys)
    assert run(*COMMAND) == 75
    assert not any(key.exists() for key in keys)


@pytest.mark.parametrize("error", [ValueError("too stiff"), AttributeError("too stiff")])
def test_overwrite_removes_no_run_if_a_model_cannot_be_made(workplace, monkeypatch, capsys, error):
    def refusing(**options):
        raise error

    monkeypatch.setattr("runs.run.create_model", refusing)
    SEED_2.mkdir(parents=True)
    (SEED_2 / "result.json").write_text('{"status": "completed"}')
    before = snapshot(Path("outputs"))
    assert run(*COMMAND, "--overwrite") == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("run_experiment.py: error: LinHRU on Tiny: ")
    assert last.endswith("too stiff")
    assert snapshot(Path("outputs")) == before


def test_a_model_that_needs_values_can_be_made_before_overwriting(workplace, monkeypatch):
    """Its shapes cannot be had without them."""

    def valued(*, key, **options):
        return float(jax.random.uniform(key)), None

    monkeypatch.setattr("runs.run.create_model", valued)
    Selection(parse(["--config_dir", "configs", *COMMAND])).require_models()


def test_two_processes_of_one_overwriting_command_never_remove_what_the_other_made(workplace, monkeypatch):
    original, made = train_all.run_seed, {}

    def other_process_first(config, seed, **options):
        """While this process trains seed 1, the other one makes seed 2, is refused seed 1, and ends."""
        if seed == 1 and not made:
            with locked(SEED_1):
                made["other"] = {}
                assert run(*COMMAND, "--overwrite") == 1
                made["other"] = snapshot(SEED_2)
        return original(config, seed, **options)

    monkeypatch.setattr(train_all, "run_seed", other_process_first)
    assert run(*COMMAND, "--overwrite") == 0
    assert made["other"].items() >= snapshot(SEED_2).items()
    assert not list(Path("outputs").glob("**/.overwrite"))


def test_a_class_that_the_training_part_lost_is_recorded(workplace):
    split = {"train": np.arange(0, 20, 2), "validation": np.arange(1, 9, 2), "test": np.arange(9, 20, 2)}
    write_index_file(Path("mine.json"), "Tiny", 20, {1: split})
    write_config({**HERE, "dataset_name": "Tiny", "split": "mine.json"})
    assert run("--dataset_name", "Tiny", "--seeds", "1") == 0
    assert read(SEED_1 / "config.json")["data"]["lost_classes"] == ["1"]


# Options


def test_a_damped_model_trains_by_echoes_and_is_evaluated_again(workplace):
    write_config({**HERE, "dataset_name": "Tiny", "damping": True})
    assert run("--dataset_name", "Tiny", "--seeds", "1") == 0
    assert all(0 < line["retrace_error"] < 1e-5 for line in lines(SEED_1 / "metrics.jsonl"))
    assert run_experiment.main(["--evaluate", str(SEED_1)]) == 0
