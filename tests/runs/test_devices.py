"""`--devices`: a run on several devices, its record and its uses, the default, and what is refused."""

import argparse

import jax
import numpy as np
import pytest
from small_experiments import HERE, SEED_1, read, refusal, run, write_config

import run_experiment
from runs import devices, planning

TINY = ("--dataset_name", "Tiny", "--seeds", "1")


def test_a_run_on_several_devices_its_uses_and_its_record(workplace, capsys):
    assert run(*TINY, "--devices", "2", "--num_steps", "2") == 0
    assert "Tiny: each batch of 4 samples on 2 of 4 devices (cpu)\n" in capsys.readouterr().err
    assert read(SEED_1 / "config.json")["devices"] == 2
    assert read(SEED_1 / "result.json")["devices"] == [2]

    # By default on as many devices as in the training, which gives the same bits.
    assert run_experiment.main(["--evaluate", str(SEED_1)]) == 0
    assert "equal" in capsys.readouterr().out
    np.save("new.npy", np.random.default_rng(0).normal(size=(5, 8, 2)))
    for count in ("1", "all"):
        flags = ["--predict", "new.npy", "--run", str(SEED_1), "--devices", count, "--output", f"{count}.csv"]
        assert run_experiment.main(flags) == 0
    one, four = (np.genfromtxt(f"{count}.csv", delimiter=",", skip_header=1) for count in ("1", "all"))
    np.testing.assert_allclose(four, one, rtol=1e-5)

    # A run continues on another number of devices, and says so.
    capsys.readouterr()
    assert run(*TINY, "--num_steps", "4") == 0
    assert "begun on 2 devices, continues on 1: the results differ by rounding" in capsys.readouterr().err
    assert read(SEED_1 / "result.json")["devices"] == [2, 1]


def test_a_recomputation_on_another_number_of_devices_says_so(workplace, capsys, monkeypatch):
    """Here the other number gives the same bits, so the recorded metric is changed."""
    assert run(*TINY, "--devices", "2", "--num_steps", "2") == 0
    path = SEED_1 / "result.json"
    path.write_text(path.read_text().replace('"test_loss": ', '"test_loss": 1'))
    capsys.readouterr()
    assert run_experiment.main(["--evaluate", str(SEED_1), "--devices", "1"]) == 1
    err = capsys.readouterr().err
    assert "Recorded on 2 x cpu (cpu) with jax" in err
    assert ", recomputed on cpu with jax" in err


def test_a_plan_is_of_each_device(workplace, monkeypatch, capsys):
    measured, needs = [], planning.Planning.needs
    monkeypatch.setattr(planning.Planning, "needs", lambda self: measured.append(needs(self)) or measured[-1])
    for count in ("1", "4"):
        assert run(*TINY, "--plan", "--no_timing", "--devices", count) == 0
        assert ("of a step on each device by XLA" in capsys.readouterr().out) == (count == "4")
    one, four = measured
    batch = 4 * 4 * (8 * 3 + 2)  # bytes of 4 samples: 8 steps with the channel of time, and 2 classes
    assert one.arguments - four.arguments == batch * 3 / 4
    assert 0 < four.temporaries < one.temporaries
    assert four.disk == one.disk


def test_the_default_is_as_many_accelerators_as_divide_a_batch(workplace, monkeypatch, capsys):
    """The four devices on the CPU count as accelerators."""
    monkeypatch.setattr(devices, "usual", jax.device_count)
    monkeypatch.setattr("runs.actions._print_plan", lambda cells, timing: print(*(number for *_, number in cells)))
    told = {8: "4 of 4 devices (cpu)\n", 6: "3 of 4 devices (cpu); no larger number can divide it equally\n"}
    for batch_size, words in told.items():
        assert run(*TINY, "--plan", "--batch_size", str(batch_size)) == 0
        out, err = capsys.readouterr()
        assert out == f"{words[0]}\n"
        assert f"Tiny: each batch of {batch_size} samples on {words}" in err
    write_config({**HERE, "dataset_name": "Tiny", "machine": {"name": "numpy_leapfrog"}})
    assert run(*TINY, "--plan") == 0
    out, err = capsys.readouterr()
    assert out == "1\n"
    assert "devices" not in err


def test_numbers_of_devices_that_are_refused(workplace, capsys):
    for count, words in (
        ("3", "--devices 3: they cannot divide a batch of 4 samples (batch_size) equally. Of the 4 devices"),
        ("8", "--devices 8: jax sees 4 (cpu)"),
    ):
        assert run(*TINY, "--devices", count) == 2
        assert words in capsys.readouterr().err
    assert run(*TINY, "--devices", "all", "--batch_size", "6") == 2
    assert "--devices all: devices 4: they cannot divide a batch of 6 samples" in capsys.readouterr().err
    write_config({**HERE, "dataset_name": "Tiny", "machine": {"name": "numpy_leapfrog"}})
    assert run(*TINY, "--devices", "2") == 2
    assert "--devices 2: a machine in the loop gets whole batches: leave the flag out" in capsys.readouterr().err
    for value in ("0", "two"):
        assert f"'{value}' is not a whole number of at least 1, or all" in refusal(capsys, f"--devices {value}")


@pytest.mark.parametrize(
    ("flags", "expected"), [({"devices": 6}, 6), ({"devices": 10**6}, None), ({"devices": "all"}, None), ({}, None)]
)
def test_a_cpu_becomes_the_devices_that_the_flag_asks_for(monkeypatch, flags, expected):
    asked = []
    monkeypatch.setattr(jax.config, "update", lambda name, number: asked.append((name, number)))
    devices.make_devices(argparse.Namespace(**flags))
    assert asked == ([] if expected is None else [("jax_num_cpu_devices", expected)])
