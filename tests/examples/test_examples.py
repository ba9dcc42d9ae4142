"""The examples run as their README lines say."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.physics.continuous import Discretised, Problem

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _examples_are_importable(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "examples"))


@pytest.mark.slow
def test_echo_draws_its_figure_and_finds_no_error(tmp_path, capsys):
    from echo import main

    error = main(["--output", str(tmp_path / "deep" / "echo.png")])
    assert (tmp_path / "deep" / "echo.png").read_bytes().startswith(b"\x89PNG")
    assert 0 < error < 1e-10
    assert f"float64: {error:.1e}" in capsys.readouterr().out


@pytest.mark.slow
def test_a_unit_of_ones_own_trains_and_has_the_right_gradient(tmp_path, capsys):
    from custom_hamiltonian import main

    accuracy, largest_error = main(["--num_steps", "100", "--data_dir", str(tmp_path)])
    assert accuracy >= 0.9
    assert largest_error < 1e-3
    assert "springs" in capsys.readouterr().out


@pytest.mark.slow
def test_continuous_time_agrees_at_every_instant_and_learns(tmp_path):
    from continuous_time import main

    main(["--quick", "--output_dir", str(tmp_path)])
    found = json.loads((tmp_path / "results.json").read_text())
    names = [name for group in found["instants"].values() for name in group]
    assert len(names) == len(set(names)) == 6 + 6 + 6 + 6 + 15
    assert all(error < 1e-6 for group in found["instants"].values() for error in group.values())
    assert len(found["gradients"]) == 3
    for errors in found["gradients"].values():
        assert all(error < 1e-6 for group in errors.values() for error in group.values())
    own_position, recorded = found["epsilon"]["errors"].values()
    assert max(own_position) > 1
    assert max(recorded) < 1e-6
    assert found["epsilon"]["orders"]["toy, error at the echo's own position"] == pytest.approx(2, abs=0.02)
    assert found["discrete"]["order"] == pytest.approx(2, abs=0.02)
    assert found["discrete"]["to_bptt"] < 1e-12
    losses = found["training"]["losses"]
    assert losses[-1] < losses[0] / 10
    figures = {"adjoint", "gradient", "epsilon", "convergence", "training"}
    assert {path.name for path in tmp_path.iterdir()} == {f"{x}.png" for x in figures} | {"results.json"}


def test_the_time_step_of_a_discretised_system_is_an_array(monkeypatch, x64):
    import continuous_time
    from oscillators import OSCILLATORS, PAIRS, Oscillators

    def discretised(hamiltonian, step):
        assert isinstance(step, jax.Array)
        return Discretised(hamiltonian, step)

    ones = jnp.ones(OSCILLATORS)
    oscillators = Oscillators(ones, ones, jnp.ones(len(PAIRS[0])))
    problem = Problem(oscillators, lambda t: t * ones, lambda q, t: q @ q, (0 * ones, 0 * ones), 1.0)
    monkeypatch.setattr(continuous_time, "Discretised", discretised)
    gradient = continuous_time.discrete_gradient(problem, 3, "BPTT")
    assert all(jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(gradient))


@pytest.mark.slow
def test_imperfect_echo_measures_every_imperfection(tmp_path, capsys):
    from imperfect_echo import SWEEPS, main

    main(["--quick", "--output_dir", str(tmp_path / "out"), "--data_dir", str(tmp_path)])
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"imperfect_echo.png", "results.json"}
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    assert set(found["tolerances"]) == set(SWEEPS)
    printed = capsys.readouterr().out
    assert all(sweep.title in printed for sweep in SWEEPS.values())
    for row in found["rows"]:
        errors = np.max([parameter["error"] for parameter in row["parameters"].values()], axis=0)
        assert len(errors) == 2  # of each seed
        if row["imperfection"] == "epsilon":
            assert np.all(errors < 1e-9), row  # both systems are linear
        else:
            assert np.all(errors > 1e-7), row
    tolerance = found["tolerances"]["damping"]["LinHRU, ε = 0.1"]
    assert 0.05 < tolerance["worst"] < tolerance["median"] < tolerance["best"] < 1


def test_tolerance_lies_between_the_points_where_the_cosine_is_lost():
    from imperfect_echo import tolerance

    assert tolerance([1, 10, 100], [0.9999, 0.999, 0.9]) == pytest.approx(10**1.5)
    assert tolerance([1, 10, 100], [1, 1, 1]) == 100
    assert tolerance([1, 10], [0.5, 1]) is None
    assert tolerance([1, 10], [0.999, float("nan")]) == pytest.approx(1)


def test_the_spread_of_tolerances_goes_from_the_worst_to_the_best_seed():
    from imperfect_echo import tolerances_of

    fine, poor, none = [0.9999, 0.999, 0.9], [0.9999, 0.9, 0.8], [0.5, 0.4, 0.3]
    falling = tolerances_of([1, 10, 100], np.transpose([fine, poor, fine, none]))
    assert falling == {
        "median": pytest.approx(10 ** ((2 / 3 + 1.5) / 2)),
        "worst": None,
        "best": pytest.approx(10**1.5),
    }
    bits = tolerances_of([16, 8, 4], np.transpose([fine, poor]))
    assert bits["worst"] > bits["median"] > bits["best"]


def test_the_panels_of_imperfect_echo_keep_their_text_inside_and_name_the_line():
    from imperfect_echo import EPSILONS, FLOOR, SWEEPS, draw

    curves = {
        part: {
            (name, epsilon): (sweep.strengths[:3], [[1.0, 1.0], [0.999, 0.99], [0.5, -0.5]])
            for name in ("LinHRU", "NonlinHRU", "six oscillators")
            for epsilon in EPSILONS
        }
        for part, sweep in SWEEPS.items()
    }
    figure = draw(curves)
    figure.draw_without_rendering()
    for axes, sweep in zip(figure.axes, SWEEPS.values(), strict=False):
        for text in (axes.title, axes.xaxis.label):
            box, frame = text.get_window_extent(), axes.get_window_extent()
            assert frame.x0 <= box.x0 <= box.x1 <= frame.x1, text.get_text()
        assert axes.get_yscale() == "log"
        assert axes.get_xscale() == ("linear" if sweep.more_is_better else "log")
        assert [text.get_text() for text in axes.texts] == ["cosine 0.99"]
        curve, line = axes.lines[0].get_ydata(), axes.lines[-1].get_ydata()
        np.testing.assert_allclose(curve, [FLOOR, 0.0055, 1.0])  # a loss of 0 is drawn on the floor
        np.testing.assert_allclose(line, 0.01)
        assert axes.get_ylim()[0] < FLOOR
        assert axes.yaxis.get_major_formatter()(FLOOR) == "≤ 10⁻¹²"
    assert len(figure.axes[-1].get_legend().get_texts()) == 6


def test_the_figures_of_continuous_time_show_both_gradients():
    from continuous_figures import draw_adjoint, draw_gradient, draw_law, draw_training
    from oscillators import NAMES

    times = np.linspace(0, 1, 3)
    of_group = {group: np.ones((3, len(names))) for group, names in NAMES.items()}
    figure = draw_adjoint(times, of_group, of_group)
    assert [len(axes.lines) for axes in figure.axes] == [2] * 12
    assert figure.axes[0].get_ylabel() == "λ of q₁"
    groups = ("mass", "spring", "coupling")
    parts = [{group: of_group[group] for group in groups}] * 2
    figure = draw_gradient(times, parts, parts, {group: np.ones(len(NAMES[group])) for group in groups})
    assert [axes.get_title() for axes in figure.axes[:3]] == [
        "mass (m₁ .. m₆)",
        "spring (k₁ .. k₆)",
        "coupling (k₁₂ .. k₅₆)",
    ]
    coloured = [line.get_color() for line in figure.axes[2].lines[:15]]
    assert len(set(coloured)) == 15
    (axes,) = draw_law([0.1, 0.01], {"toy": [1e-2, 1e-4]}, "ε").axes
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    loss, output = draw_training([1, 0.1], times, [times] * 3).axes
    assert (loss.get_yscale(), len(output.lines)) == ("log", 3)


@pytest.mark.slow
def test_a_machine_is_checked_by_a_command(tmp_path, capsys):
    from check_machine import PARTS, draw, main

    small = ["--oscillators", "2", "--steps", "8", "--batch", "1", "--passes", "45"]
    machine = ["--machine", '{"name": "simulated_device", "drift": 1e-3, "substeps": 2}']
    report = main([*machine, *small, "--output_dir", str(tmp_path)])
    assert {path.name for path in tmp_path.iterdir()} == {"check_machine.png", "results.json"}
    found = json.loads((tmp_path / "results.json").read_text())
    assert found["passes"] == report.passes <= 45
    assert found["budget"].keys() == report.arrays.keys()
    assert all(parts.keys() == PARTS.keys() for parts in found["budget"].values())
    assert len(found["measured"]["echo"]) == 8
    printed = capsys.readouterr().out
    assert all(rung.number in printed for rung in report.rungs())
    assert f"{report.passes} passes of the machine" in printed
    bars, sizes, passes = draw(report).axes
    assert len(bars.patches) == len(PARTS) * len(report.arrays)
    assert len(sizes.lines[0].get_xdata()) == len(report.nudges.changes)
    assert len(passes.lines) == 4
    for wrong, words in (
        (["--machine", '{"name": "abacus"}'], "allowed is one of numpy_leapfrog"),
        (["--passes", "9"], "above the bound of 9"),
    ):
        with pytest.raises(SystemExit):
            main([*machine, *small, *wrong, "--output_dir", str(tmp_path)])
        assert words in capsys.readouterr().err
    # A machine that fails gives one line.
    with pytest.raises(SystemExit, match=r"^check_machine: .*the program"):
        main([*small, "--machine", '{"name": "process", "command": ["false"]}', "--output_dir", str(tmp_path)])


@pytest.mark.long
def test_published_machines_are_compared():
    from published_machines import main

    drift, friction = main(["--quick"])
    assert drift[1][-1] == "146"
    assert len(drift) == 2 + 2 * 1 * 2 * 2
    assert [row[3] for row in friction[1:] if row[1] == "0"] == ["1.000"] * 6
