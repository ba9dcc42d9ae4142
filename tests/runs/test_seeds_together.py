"""`--seeds_together`: each seed has the files and the result of its own run, however the others end."""

import dataclasses
import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
from small_experiments import HERE, SEED_1, lines, read, refusal, run, timeless, write_config

from data_dir.dataloaders import Dataloader
from data_dir.datasets import create_dataset
from runs.progress import RunProgress

pytestmark = pytest.mark.usefixtures("empty_figures")
SEEDS = ("--dataset_name", "Tiny", "--seeds", "1", "2")


def assert_close(one, other, name=""):
    """Two JSON values are equal, but for the rounding of their numbers."""
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for name in one.keys() - {"retrace_error"}:  # which is rounding alone
            assert_close(one[name], other[name], name)
    elif isinstance(one, list):
        assert len(one) == len(other)
        for pair in zip(one, other, strict=True):
            assert_close(*pair, name)
    else:
        assert one == (pytest.approx(other, rel=1e-3) if isinstance(one, float) else other), name


def of_run(folder):
    """The record, the evaluations and the result of a run, without what depends on the clock, and its files."""
    result = timeless(read(folder / "result.json"))
    hashes = ("model_sha256", "test_outputs_sha256", "seeds_together", "error")
    config = read(folder / "config.json")
    return [
        {name: value for name, value in result.items() if name not in hashes},
        [timeless(line) for line in lines(folder / "metrics.jsonl")],
        {name: config[name] for name in ("seed", "data", "precision", "defaults", "devices")},
        sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if "checkpoints" not in path.parts),
        sorted(os.listdir(folder / "checkpoints")) if (folder / "checkpoints").exists() else None,
    ]


def test_each_seed_has_the_files_and_the_result_of_its_own_run(workplace, monkeypatch, capsys):
    """The second seed fails at its first step."""

    def create(*args, seed, **options):
        data = create_dataset(*args, seed=seed, **options)
        if seed == 2:
            bad = Dataloader(np.full((20, 8, 3), np.nan), np.eye(2)[np.arange(20) % 2], rows=data.split["train"])
            data = dataclasses.replace(data, train=bad)
        return data

    monkeypatch.setattr("runs.run.create_dataset", create)
    assert run(*SEEDS, "--output_parent_dir", "alone") == 1
    capsys.readouterr()
    assert run(*SEEDS, "--seeds_together") == 1
    out, err = capsys.readouterr()
    assert "seed 2: FAILED, the training loss is not finite at step 1 (" in out
    assert "1 of 2 runs failed" in err
    for seed, together in ((1, [2, 1]), (2, [2])):
        folder = SEED_1.parent / f"seed_{seed}"
        alone = Path("alone", *folder.parts[1:])
        assert_close(of_run(folder), of_run(alone))
        assert read(folder / "result.json")["seeds_together"] == together
        assert read(alone / "result.json")["seeds_together"] == [1]


def test_a_signal_saves_all_seeds_and_they_resume_together_or_alone(workplace, monkeypatch, capsys):
    fields = {name: value for name, value in HERE.items() if name != "complex_ssm"}
    write_config({**fields, "model_name": "NonlinHRU", "dataset_name": "Tiny"}, "NonlinHRU")
    command = ("--dataset_name", "Tiny", "--model_name", "NonlinHRU", "--num_steps", "16", "--print_steps", "4")
    assert run(*command, "--output_parent_dir", "whole") == 0
    step = RunProgress.step

    def stopped(at, seed, *flags):
        def signalled(self, number, loss):
            step(self, number, loss)
            if number == at and self.name.endswith(seed):
                os.kill(os.getpid(), signal.SIGTERM)

        with monkeypatch.context() as patched:
            patched.setattr(RunProgress, "step", signalled)
            assert run(*command, *flags) == 75

    stopped(5, "seed 2", "--seeds_together")  # when seed 1 has been asked whether it stops
    assert "SIGTERM received: stopped after step" in capsys.readouterr().err
    folders = [Path("outputs", "Tiny", "NonlinHRU_RHEL", f"seed_{seed}") for seed in (1, 2)]

    def saved():
        return [max(int(path.name) for path in (folder / "checkpoints").iterdir()) for folder in folders]

    both = saved()
    assert both[0] == both[1]
    assert 5 <= both[0] < 13
    assert not any((folder / "result.json").exists() for folder in folders)
    stopped(13, "seed 1", "--seeds", "1")
    ahead, behind = saved()
    assert 13 <= ahead < 16
    assert behind == both[1]
    capsys.readouterr()
    assert run(*command, "--seeds_together") == 0
    err = capsys.readouterr().err
    assert f"seed 1: resumes from step {ahead}\n" in err
    assert f"seed 2: resumes from step {behind}\n" in err
    assert [read(folder / "result.json")["seeds_together"] for folder in folders] == [[2, 1, 2], [2, 1]]
    for folder in folders:
        whole = Path("whole", *folder.parts[1:])
        assert_close(*([timeless(line) for line in lines(place / "metrics.jsonl")] for place in (folder, whole)))


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--plan", "--seeds_together: --plan measures single runs: leave one of the two out"),
        ("--devices 2", "--seeds_together: the seeds of a config share one device: leave --devices out"),
        ("--evaluate outputs", "--seeds_together: it has no effect on --evaluate, which takes the settings of the run"),
    ],
)
def test_flags_that_the_flag_does_not_go_with(capsys, flags, words):
    assert words in refusal(capsys, f"--seeds_together {flags}")


def test_seeds_that_cannot_train_together_are_refused_before_a_run(workplace, monkeypatch, capsys):
    out_of = "--seeds_together: Tiny, LinHRU: "
    for changes, flags, words in (
        ({}, ("--seeds", "1"), "seeds is [1]: a single seed has no other to train with"),
        ({}, ("--devices", "all"), "--devices 4: the seeds share one device"),
        ({"machine": {"name": "numpy_leapfrog"}}, (), "a machine in the loop runs one training at a time"),
    ):
        write_config({**HERE, "dataset_name": "Tiny", **changes})
        assert run("--dataset_name", "Tiny", "--seeds_together", *flags) == 2
        assert f"{out_of}{words}. Leave --seeds_together out\n" in capsys.readouterr().err
    assert not Path("outputs").exists()
    # By default on one device, however many there are.
    monkeypatch.setattr("runs.devices.usual", lambda: 4)
    write_config({**HERE, "dataset_name": "Tiny"})
    monkeypatch.setattr("runs.train_all._attempts", lambda config, devices, *_: print(json.dumps(devices)) or [])
    run("--dataset_name", "Tiny", "--seeds_together")
    assert capsys.readouterr().out.startswith("1\n")
