"""benchmarks/devices.py: the step that it compiles divides its batch, and its counts make a table."""

import jax
import pytest

from benchmarks import devices
from benchmarks.accelerator import TINY
from benchmarks.step import problem
from models.rhel import RHEL


def test_the_step_is_compiled_for_several_devices():
    """On the devices of the tests instead of described GPUs: each gets half of the batch, and they sum the gradient."""
    options = problem("LinHRU", "SelfRegulationSCP1", **TINY | {"num_blocks": 1})
    compiled = devices.compiled_for_several(jax.devices()[:2], options, RHEL())
    program = compiled.as_text()
    assert "all-reduce" in program
    x = jax.tree.leaves(compiled.args_info[0])[-3]
    assert x.shape == (2, 40, options["data_dim"])
    assert "f32[1,40," in program


def test_the_counts_of_the_numbers_of_devices_make_a_table(monkeypatch, capsys):
    monkeypatch.setattr(devices, "counted", lambda *asked: {"kernels": str(asked[2:4])})
    assert devices.main(["--model_name", "LinHRU", "--devices", "1", "4"]) == 0
    table = capsys.readouterr().out.split("\n\n")[1].splitlines()
    assert table[0] == "| model | devices | kernels |"
    assert table[2:] == ["| LinHRU | 1 | (1, 'H100') |", "| LinHRU | 4 | (4, 'H100') |"]
    with pytest.raises(SystemExit, match="--devices 5: cannot divide a batch of 32 samples equally"):
        devices.main(["--devices", "5"])
