"""A unit of the user's own, through the command: trained, planned, evaluated, loaded, and never imported unasked."""

import re
from pathlib import Path

import numpy as np
import pytest
from small_experiments import HERE, read, refusal, run, write_config

import run_experiment
from common.files import sha256_of
from experiment_configs.schema import validate
from models import load, load_run
from models.load import RunError, UnitError, load_unit
from runs import actions
from runs.folder import RunRefused
from runs.identity import identity
from runs.overwriting import Overwriting

UNIT = """
from pathlib import Path
from typing import Annotated

import jax.numpy as jnp
from jaxtyping import Array, Float

from models.layer import AbstractHRULayer, Option
from models.LinHRU import LinearOscillators

Path("imported").touch()


class Springs(AbstractHRULayer):
    A: Float[Array, " P"]

    def __init__(self, hidden_dim, ssm_dim, *, first: Annotated[float, Option("", above=0)] = 1.0, key, **common):
        super().__init__(hidden_dim, ssm_dim, key=key, **common)
        self.A = jnp.full(ssm_dim, first)

    def hamiltonian(self):
        return LinearOscillators(A=self.A, step=jnp.full_like(self.A, 0.1))
"""


def test_a_unit_of_ones_own_through_the_command(workplace, monkeypatch, capsys):
    Path("my_unit.py").write_text(UNIT)
    fields = {**HERE, "model_name": "Springs", "unit": "my_unit.py:Springs", "dataset_name": "Tiny", "first": 2.0}
    del fields["complex_ssm"]
    write_config({**fields, "seeds": [1]}, "Springs")
    flags = ("--dataset_name", "Tiny", "--model_name", "Springs")
    error = refusal(capsys, f"--config_dir configs {' '.join(flags)}")
    assert "invalid choice: 'Springs'" in error
    assert "your own unit needs --own_units" in error
    with monkeypatch.context() as patched:
        patched.setattr(actions, "_print_plan", lambda cells, timing: None)
        assert run(*flags, "--own_units", "--plan") == 0
    assert run(*flags, "--own_units") == 0
    folder = Path("outputs", "Tiny", "Springs_RHEL", "seed_1")
    assert read(folder / "config.json")["config"]["first"] == 2.0
    assert run(*flags, "--own_units") == 0
    assert "Tiny Springs RHEL seed 1: kept" in capsys.readouterr().out

    # What is kept is used with the same permission, and not without it.
    Path("imported").unlink()
    load._module_of.cache_clear()
    np.save("new.npy", np.zeros((2, 8, 2)))
    predict = ("--predict", "new.npy", "--run", str(folder))
    for use in (("--evaluate", str(folder)), predict):
        assert run_experiment.main([*use]) == 2
        assert 'unit is "my_unit.py:Springs": this is Python code' in capsys.readouterr().err
    with pytest.raises(RunError, match=r"the run has its own unit, my_unit.py:Springs"):
        load_run(folder)
    assert not Path("imported").exists()
    assert run_experiment.main(["--evaluate", str(folder), "--own_units"]) == 0
    assert "equal" in capsys.readouterr().out
    assert run_experiment.main([*predict, "--own_units"]) == 0
    assert len(Path("new_predictions.csv").read_text().splitlines()) == 3
    model, _ = load_run(folder, unit=load_unit("my_unit.py:Springs"))
    assert type(model.blocks[0].unit).__name__ == "Springs"

    # Another energy of the same length, in the same second.
    Path("my_unit.py").write_text(UNIT.replace("self.A, 0.1", "self.A, 0.2"))
    load._module_of.cache_clear()
    capsys.readouterr()
    with pytest.raises(RunError, match=r"seed_1: was made with another content of the file .*; put the old file back"):
        load_run(folder, unit=load_unit("my_unit.py:Springs"))
    changed = r"Springs_RHEL/seed_1: was made with another content of the file of the unit my_unit.py:Springs \(sha256 "
    # The run has a copy of the file that it was trained with.
    copy = f"{folder / 'unit.py'}:Springs"
    assert run_experiment.main(["--evaluate", str(folder)]) == 2
    assert f'unit is "{copy}": this is Python code' in capsys.readouterr().err
    assert run_experiment.main(["--evaluate", str(folder), "--own_units"]) == 0
    told = capsys.readouterr()
    assert "equal" in told.out
    assert f"my_unit.py:Springs is gone or was changed after the training; {copy} is used" in told.err
    assert np.allclose(load_run(folder, unit=load_unit(copy)).units[0].hamiltonian().step, 0.1)
    for use in ([], ["--plan"]):
        assert run(*flags, *use, "--own_units") == 2
        assert re.search(
            changed + r".*; put the old file back .*, a copy is .*unit.py; .*\)\. --over", capsys.readouterr().err
        )
    (folder / "result.json").unlink()  # unfinished: to resume
    assert run(*flags, "--own_units") == 2
    assert re.search(changed, capsys.readouterr().err)
    assert run(*flags, "--own_units", "--overwrite") == 0
    step = load_run(folder, unit=load_unit("my_unit.py:Springs")).units[0].hamiltonian().step
    assert np.allclose(step, 0.2)
    assert (folder / "unit.py").read_bytes() == Path("my_unit.py").read_bytes()
    # --overwrite does not remove the file that it needs.
    with pytest.raises(RunRefused, match=r"unit.py:Springs: --overwrite would remove this file\. Copy it to another"):
        Overwriting({folder: {"unit": copy, "data": {}}}).begin()
    assert (folder / "unit.py").exists()


def test_the_hash_of_a_unit_in_a_module_is_the_hash_of_its_file(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "unit_in_a_module.py").write_text(UNIT.replace('Path("imported").touch()', ""))
    expected = sha256_of(tmp_path / "unit_in_a_module.py")
    config = {**HERE, "model_name": "Springs", "unit": "unit_in_a_module:Springs", "dataset_name": "Tiny"}
    del config["complex_ssm"]
    config = validate(config, "here", own_units=True)
    assert config.unit_sha256 == expected
    assert identity(config, 1, {})["unit_sha256"] == expected


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("from pathlib import Path", "undefined", r"my_unit.py, line 2: NameError: name 'undefined' is not defined\)"),
        ("from pathlib import Path", "raise SystemExit(3)", r"my_unit.py, line 2: SystemExit: 3\)"),
        ("from pathlib import Path", "def f(:", r"invalid syntax \(my_unit.py, line 2\)\)"),
        ("from pathlib import Path", "import absent", r"my_unit.py, line 2: ModuleNotFoundError: No module named 'ab"),
        (
            "from pathlib import Path",
            "import beside",
            r"No module named 'beside'\); the folder .* is not on Python's path",
        ),
    ],
)
def test_an_error_in_the_file_of_a_unit_is_told_with_its_line(tmp_path, monkeypatch, old, new, message):
    monkeypatch.chdir(tmp_path)
    Path("my_unit.py").write_text(UNIT.replace(old, new))
    Path("beside.py").touch()
    with pytest.raises(UnitError, match=rf"unit my_unit.py:Springs: cannot be imported \(.*{message}"):
        load_unit("my_unit.py:Springs")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("jnp.full(ssm_dim, first)", "undefined", ".*my_unit.py, line 19: NameError: name 'undefined' is not defined"),
        ("A=self.A, step", "A=undefined, step", ".*my_unit.py, line 22: NameError: name 'undefined' is not defined"),
        (
            "A=self.A,",
            "A=self.A[jnp.arange(1, 4)],",
            "an index in .* of LinearOscillators is beyond its array .*index 3 is out of",
        ),
    ],
)
def test_an_error_in_a_method_of_a_unit_is_told_with_its_cause(workplace, capsys, old, new, message):
    Path("my_unit.py").write_text(UNIT.replace(old, new))
    fields = {**HERE, "model_name": "Springs", "unit": "my_unit.py:Springs", "dataset_name": "Tiny", "seeds": [1]}
    del fields["complex_ssm"]
    write_config(fields, "Springs")
    assert run("--dataset_name", "Tiny", "--model_name", "Springs", "--own_units") == 1
    printed = capsys.readouterr()
    message = f"Springs on Tiny: {message}"
    assert re.search(f"FAILED, {message}", printed.out)
    assert "Traceback" not in printed.err
    for use in ("--plan", "--overwrite"):
        assert run("--dataset_name", "Tiny", "--model_name", "Springs", "--own_units", use) == 2
        error = capsys.readouterr().err
        assert re.search(f"error: {message}", error)
        assert "Traceback" not in error


def test_a_run_that_fails_at_once_names_an_echo_that_does_not_return(workplace, capsys):
    Path("my_unit.py").write_text(UNIT)
    fields = {**HERE, "model_name": "Springs", "unit": "my_unit.py:Springs", "dataset_name": "Tiny", "seeds": [1]}
    del fields["complex_ssm"]
    write_config({**fields, "first": 1e30, "num_blocks": 1}, "Springs")
    assert run("--dataset_name", "Tiny", "--model_name", "Springs", "--own_units") == 1
    error = read(Path("outputs", "Tiny", "Springs_RHEL", "seed_1", "result.json"))["error"]
    assert "not finite at step 1" in error
    assert error.endswith("its kinetic energy is not even in p: models.check.check_gradient tells")


def test_another_class_than_the_one_of_the_run_is_refused():
    record = {"unit_sha256": "1", "config": {"unit": "a.py:Unit"}}
    unit = type("Unit", (load.AbstractHRULayer,), {})
    unit.__module__ = "builtins"
    with pytest.raises(RunError, match=r"Unit has no file to compare: give unit=.*load_unit\('a.py:Unit'\)"):
        load.require_same_unit(Path("run"), record, unit)
    unit.__name__ = "Other"
    with pytest.raises(RunError, match=r"run: was trained with the unit a.py:Unit, not with Unit: give unit="):
        load.require_same_unit(Path("run"), record, unit)
