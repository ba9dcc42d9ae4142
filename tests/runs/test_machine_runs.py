"""Runs whose oscillators are on a machine: the record, failures, and resuming after the machine died."""

import sys
from pathlib import Path

import pytest
from small_experiments import HERE, read, run, write_config

DEVICE = (Path(__file__).parents[2] / "examples" / "device.py").read_text()
FOLDER = Path("outputs", "Tiny", "NonlinHRU_RHEL", "seed_1")
FIELDS = {**HERE, "dataset_name": "Tiny", "model_name": "NonlinHRU", "seeds": [1], "complex_ssm": False}


def configured(machine, **changes):
    write_config({**FIELDS, "machine": machine, **changes}, "NonlinHRU")


def trained(*flags):
    """The exit status of a training, and its result."""
    status = run("--dataset_name", "Tiny", "--model_name", "NonlinHRU", *flags)
    return status, read(FOLDER / "result.json")


def device(*changes):
    """A process machine: the example device, with some texts replaced."""
    text = DEVICE
    for old, new in changes:
        assert text.count(old) == 1
        text = text.replace(old, new)
    Path("device.py").write_text(text)
    return {"name": "process", "command": [sys.executable, "device.py"], "time_limit": 20}


def test_a_run_on_the_ideal_machine_is_the_run_in_jax(workplace):
    configured(None, epsilon=1e-3)
    assert trained() == (0, plain := trained()[1])
    configured({"name": "numpy_leapfrog"}, epsilon=1e-3)
    status, result = trained("--overwrite")
    assert status == 0
    for name in ("val_loss", "test_loss"):
        assert result[name] == pytest.approx(plain[name], rel=1e-5)
    record = result["machine"]
    # Two evaluations of four and one batch (the training part has 14 rows), and the test of one.
    print(record)


def test_killing_the_device_saves_the_step_before_and_the_same_command_resumes(workplace, capsys):
    configured(device())
    assert trained("--own_units")[0] == 0
    model = (FOLDER / "model.eqx").read_bytes()
    # The first echo of step 4 kills the program: 3 steps and 2 evaluations are behind it.
    dies = (
        'elif call == "echo":\n',
        'elif call == "echo":\n        echoes += 1\n        echoes == 7 and os._exit(9)\n',
    )
    machine = device(dies, ("import sys\n", "import os\nimport sys\n"), ("{}, None", "{}, None\nechoes = 0"))
    configured(machine)
    status, failed = trained("--own_units", "--overwrite")
    assert status == 1
    assert (failed["status"], failed["stop_reason"], failed["steps"], len(failed["rows"])) == (
        "failed",
        "machine",
        4,
        4,
    )
    assert (
        "the machine failed in the training at step 4: echo failed: the program ended (exit status 9) (pass"
        in (failed["error"])
    )
    assert failed["error"].endswith("the steps before a failed step")
    device()
    capsys.readouterr()
    status, resumed = trained("--own_units")
    assert "step 3" in capsys.readouterr().err
    assert (status, resumed["steps"]) == (0, 4)
    assert (FOLDER / "model.eqx").read_bytes() == model
