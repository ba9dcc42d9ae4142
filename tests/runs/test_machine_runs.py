"""A run whose oscillators are in another program: the record, a failure, and resuming after the program died."""

import os
import sys
from pathlib import Path

import pytest
from small_experiments import HERE, read, run, write_config

import run_experiment

DEVICE = (Path(__file__).parents[2] / "examples" / "device.py").read_text()
FOLDER = Path("outputs", "machine=process", "Tiny", "NonlinHRU_RHEL", "seed_1")


def trained(*flags):
    """The exit status of a training, and its result."""
    status = run("--dataset_name", "Tiny", "--model_name", "NonlinHRU", "--own_units", *flags)
    return status, read(FOLDER / "result.json")


def device(*changes):
    """Writes the example device, with some texts replaced."""
    text = DEVICE
    for old, new in changes:
        assert text.count(old) == 1
        text = text.replace(old, new)
    Path("device.py").write_text(text)


@pytest.fixture
def configured(workplace):
    """The fields of the machine in a config of the present directory."""
    machine = {"name": "process", "command": [sys.executable, "device.py"], "time_limit": 20}
    fields = {**HERE, "dataset_name": "Tiny", "model_name": "NonlinHRU", "seeds": [1], "complex_ssm": False}
    write_config({**fields, "machine": machine}, "NonlinHRU")
    return machine


def test_killing_the_device_saves_the_step_before_and_the_same_command_resumes(configured, capsys):
    device(("import json\n", "import json\nimport os\nopen('pid', 'w').write(str(os.getpid()))\n"))
    assert run("--dataset_name", "Tiny", "--model_name", "NonlinHRU") == 2
    assert "this is a program, which is not run unasked" in capsys.readouterr().err
    status, result = trained()
    assert status == 0
    with pytest.raises(ProcessLookupError):  # the device has ended
        os.kill(int(Path("pid").read_text()), 0)
    # 4 steps; 2 evaluations of 4 batches and 1; the test part for its metric and for the hash of its outputs.
    record = {"seed": None, "free_passes": 4 + 10 + 2, "echoes": 8, "repeated": 0, "clipped_drives": 0}
    assert configured | record == {name: result["machine"][name] for name in configured | record}
    assert result["machine"]["seconds"] > 0
    model = (FOLDER / "model.eqx").read_bytes()
    assert run_experiment.main(["--evaluate", str(FOLDER), "--own_units"]) == 0
    assert ": equal" in capsys.readouterr().out
    device(("half = q + 0.5 * dt", "half = q + 0.51 * dt"))
    assert run_experiment.main(["--evaluate", str(FOLDER), "--own_units"]) == 0
    assert ": different, as the numbers of a machine may be (loss recorded " in capsys.readouterr().out

    counted = 'elif call == "echo":\n        echoes += 1\n        echoes == 7 and os._exit(9)\n'  # the first of step 4
    changes = ('elif call == "echo":\n', counted), ("import sys\n", "import os\nimport sys\n")
    device(*changes, ("parameters, end = {}, None", "parameters, end, echoes = {}, None, 0"))
    status, failed = trained("--overwrite")
    assert status == 1
    described = tuple(failed[name] for name in ("status", "stop_reason", "steps"))
    assert (*described, len(failed["rows"])) == ("failed", "machine", 4, 4)
    words = "the machine failed in the training at step 4: echo failed: the program ended (exit status 9) (pass "
    assert failed["error"].startswith(words)
    assert failed["error"].endswith("The same command resumes from the last checkpoint, at step 3")
    device(("import json\n", "import json, no_such_module\n"))
    assert run_experiment.main(["--evaluate", str(FOLDER), "--own_units"]) == 2  # no model, and no traceback

    # Step 4, five runs for its evaluation, the test part for its metric and for its outputs.
    counted = 'elif call == "run":\n        runs += 1\n        runs == 8 and os._exit(9)\n'
    changes = ('elif call == "run":\n', counted), ("import sys\n", "import os\nimport sys\n")
    device(*changes, ("parameters, end = {}, None", "parameters, end, runs = {}, None, 0"))
    capsys.readouterr()
    status, failed = trained()
    printed = capsys.readouterr()
    assert "step 3" in printed.err
    assert "Traceback" not in printed.err + printed.out
    assert (status, failed["status"], failed["stop_reason"]) == (1, "failed", "machine")
    assert "the machine failed in the prediction of the test set at step 2: run failed: the program" in failed["error"]

    device()
    status, resumed = trained()
    assert (status, resumed["steps"], resumed["machine"]["echoes"]) == (0, 4, 8)
    assert (FOLDER / "model.eqx").read_bytes() == model
