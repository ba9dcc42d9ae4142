import json
import re
from pathlib import Path

import jax
import pandas as pd
import pytest

from gradient_comparison_bptt_rhel import main, parse
from runs.gradient_comparison import doubts

TINY = ["--num_blocks", "2", "--hidden_dim", "4", "--ssm_dim", "3", "--sequence_length", "40", "--batch_size", "2"]


def columns_of(line):
    """The titles of a table whose titles have single spaces."""
    return [title.strip() for title in line.split("  ") if title.strip()]


@pytest.mark.slow
def test_sweep_on_the_bundled_set_end_to_end(tmp_path, capsys):
    arguments = [*TINY, "--data_dir", str(tmp_path), "--output_dir", str(tmp_path / "out")]
    assert main([*arguments, "--epsilon", "0.01", "0.1"]) == 0
    captured = capsys.readouterr()
    assert "epsilon.pdf" in captured.out
    assert "SelfRegulationSCP1 is not processed" in captured.err
    for stem in ("LinHRU", "NonlinHRU", "epsilon"):
        assert (tmp_path / "out" / f"{stem}.png").read_bytes().startswith(b"\x89PNG")
        assert (tmp_path / "out" / f"{stem}.pdf").read_bytes().startswith(b"%PDF")
    report = json.loads((tmp_path / "out" / "gradient_comparison.json").read_text())
    assert report["dataset"] == "BasicMotions"
    for row in report["rows"]:
        exact = row["dtype"] == "float64" and row["model"] == "LinHRU"
        nudged = row["learning_algorithm"] == "RHEL" and row["model"] == "NonlinHRU"
        assert row["relative_error"] < (1e-12 if exact else 0.1 if nudged else 1e-4), row
        assert row["finite_differences"] < 1e-3, row
        assert 0 < row["one_rounding"] < 1e-5, row
    names = {(row["parameter"], row["block"]) for row in report["rows"] if row["model"] == "NonlinHRU"}
    assert {("W_diag", 0), ("step", 1), ("encoder.weight", None), ("feed_forward.glu.w2.bias", 1)} <= names

    # Every epsilon has a column of its own, in the tables as in the report.
    runs = ["RHEL float32 0.01", "RHEL float32 0.1", "BPTT float32", "RHEL float64 0.01", "RHEL float64 0.1"]
    lines = captured.out.splitlines()
    (heading,) = (
        i
        for i, line in enumerate(lines)
        if line.startswith("NonlinHRU, 2 blocks, BasicMotions, 2 series x 40 steps x 7 channels")
    )
    errors_of_reference = ["one rounding", "finite differences"]
    assert columns_of(lines[heading + 1]) == [*runs, "1 - cosine, worst run", *errors_of_reference]
    errors = report["models"]["NonlinHRU"]["largest_relative_error"]
    assert set(errors) == set(runs)
    assert errors["RHEL float64 0.1"] == pytest.approx(100 * errors["RHEL float64 0.01"], rel=0.1)

    # The last table: of both models the largest error and the smallest cosine, run by run.
    (last,) = (i for i, line in enumerate(lines) if line.startswith("Over all parameters and blocks"))
    assert columns_of(lines[last + 1]) == [*runs, "one rounding"]
    rows = [line.rsplit(maxsplit=6) for line in lines[last + 2 : last + 6]]
    assert [row[0].split()[0] for row in rows] == ["LinHRU", "1", "NonlinHRU", "1"]
    assert rows[2][1:6] == [f"{errors[run]:.1e}" for run in runs]
    of_nonlinear = [row for row in report["rows"] if row["model"] == "NonlinHRU"]
    smallest = {run: min(row["cosine"] for row in of_nonlinear if row["run"] == run) for run in runs}
    assert report["models"]["NonlinHRU"]["smallest_cosine"] == smallest
    assert lines[last + 5].split()[-5:] == [f"{1 - smallest[run]:.1e}" for run in runs]


@pytest.mark.slow
def test_one_model_at_the_default_nudge_and_an_echo_that_does_not_return(tmp_path, capsys):
    arguments = [*TINY, "--data_dir", str(tmp_path), "--output_dir", str(tmp_path / "out")]
    long = ["--dataset_name", "ACSF1", "--sequence_length", "400", "--num_blocks", "1", "--learning_algorithm", "RHEL"]
    assert main([*arguments, *long, "--model_name", "NonlinHRU", "--step_init", "0.9"]) == 0
    captured = capsys.readouterr()
    assert "warning: the echo of unit 0 misses its initial state by" in captured.err
    assert "LinHRU" not in captured.out.replace("NonlinHRU", "")
    report = json.loads((tmp_path / "out" / "gradient_comparison.json").read_text())
    assert max(report["models"]["NonlinHRU"]["retrace_error_float32"]) > 1e-3
    assert list(report["models"]["NonlinHRU"]["largest_relative_error"]) == ["RHEL float32", "RHEL float64"]


def test_an_error_in_an_energy_of_your_own_unit_is_told_with_its_line(tmp_path, capsys):
    path = Path(__file__).parents[2] / "examples" / "custom_hamiltonian.py"
    (tmp_path / "unit.py").write_text(path.read_text().replace("jnp.sum(1 - jnp.cos(q)", "absent(1 - jnp.cos(q)"))
    arguments = [*TINY, "--dataset_name", "ACSF1", "--data_dir", str(tmp_path), "--output_dir", str(tmp_path / "out")]
    assert main([*arguments, "--unit", f"{tmp_path}/unit.py:PendulumLayer"]) == 2
    assert re.search(r"error: .*unit.py, line \d+: NameError: name 'absent' is not defined", capsys.readouterr().err)


def test_a_doubtful_reference_and_an_echo_that_does_not_return_have_a_sentence():
    def sentences(differences, retrace):
        rows = pd.DataFrame({"parameter": ["a", "b"], "finite_differences": [1e-6, differences]})
        return "\n".join(doubts(rows, [1e-7, retrace]))

    assert sentences(2e-3, 1e-4) == ""
    assert "finite differences of b differ by 3 %. An index beyond an array" in sentences(0.03, 1e-4)
    assert "misses its start by 5.0e-01 of the largest state: the kinetic energy is not even" in sentences(1e-6, 0.5)


def test_the_default_is_a_batch_of_four_and_the_automatic_nudge():
    options = parse([])
    assert options.batch_size == 4
    assert options.epsilon is None


def test_unknown_data_set_is_one_clear_line(tmp_path, capsys):
    assert main(["--dataset_name", "BasicMotion", "--data_dir", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert "BasicMotions" in error


def test_your_own_unit_is_compared_in_place_of_the_models(tmp_path, capsys, monkeypatch):
    compared = []

    def compare(options, problem, notice):
        assert float(jax.nn.softplus(problem.model.blocks[0].unit.step)) == pytest.approx(0.3)
        compared.extend(type(block.unit).__name__ for block in problem.model.blocks)
        raise ValueError("enough")

    monkeypatch.setattr("gradient_comparison_bptt_rhel.compare", compare)
    unit = f"{Path(__file__).parents[2] / 'examples' / 'custom_hamiltonian.py'}:PendulumLayer"
    arguments = [*TINY, "--dataset_name", "ACSF1", "--data_dir", str(tmp_path), "--output_dir", str(tmp_path / "out")]
    assert main([*arguments, "--unit", unit, "--set", "step_init=0.3"]) == 2
    assert compared == ["PendulumLayer"] * 2
    assert capsys.readouterr().err == "PendulumLayer on ACSF1\nerror: enough\n"
    for wrong, message in (
        (("--set", "dt=0.1"), "dt is no option of PendulumLayer: the options are step_init; sizes have flags"),
        (("--set", "step_init=0.1,0.2"), "--set step_init=0.1,0.2: one value for each option, not a list"),
        (("--set", "step_init=-1"), "step_init must be a number above 0, got -1"),
        (("--model_name", "LinHRU", "--step_init", "0.1"), "step_init is no option of LinHRU"),
    ):
        unit_too = [] if "LinHRU" in wrong else ["--unit", unit]
        assert main([*arguments, *unit_too, *wrong]) == 2
        assert f"error: {message}" in capsys.readouterr().err
    assert main([*arguments, "--unit", "absent.py:Unit"]) == 2
    assert "error: unit absent.py:Unit: cannot be imported" in capsys.readouterr().err
