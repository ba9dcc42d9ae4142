"""The example of a device in the loop: what it measures, counts and writes."""

import json

import numpy as np
import pytest
from test_examples import ROOT


@pytest.fixture(autouse=True)
def _examples_are_importable(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "examples"))


@pytest.mark.slow
def test_the_quick_example_compares_five_ways_and_leaves_out_missing_data(tmp_path, capsys):
    from machine_in_the_loop import METHODS, SMOOTHED, main

    main(
        [
            "--quick",
            "--tasks",
            "SelfRegulationSCP1",
            "tones",
            "--output_dir",
            str(tmp_path),
            "--data_dir",
            str(tmp_path),
        ]
    )
    results = json.loads((tmp_path / "results.json").read_text())
    assert (tmp_path / "machine_in_the_loop.png").read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert "SelfRegulationSCP1 is left out: " in printed
    assert "download" in printed
    assert [(row["sigma"], row["method"]) for row in results["trainings"]] == [
        (sigma, method) for sigma in (0.0, 0.2) for method in METHODS
    ]
    assert {row["method"]: row.get("passes") for row in results["trainings"]} == {
        "echoes": 4 * SMOOTHED,
        "jax": None,
        "twin": SMOOTHED,
        "twin, states": 2 * SMOOTHED,
        "readout": SMOOTHED,
    }
    solved = [abs(row["loss_solved"] - row["loss"]) for row in results["trainings"] if row["method"] == "echoes"]
    assert len(solved) == 2
    assert 0 < max(solved) < 0.05
    found = {(row["sigma"], row["method"]): row["cosine"] for row in results["cosines"]}
    # The twin of a device without errors is right, too. It is finite nudges and a coarser step that remain.
    assert all(found[0.0, method] > 0.99 for method in ("echoes", "twin", "twin, states"))
    assert found[0.2, "echoes"] > 0.99
    assert found[0.2, "twin"] < found[0.2, "twin, states"] < 0.5


def test_the_target_is_reached_where_the_mean_of_ten_losses_is_below_it():
    from machine_in_the_loop import SMOOTHED, passes_to

    losses, passes = [*np.ones(20), *np.zeros(20)], list(range(4, 164, 4))
    step = 20 + SMOOTHED // 2  # five of the last ten losses are 0
    assert passes_to(0.5, losses, passes) == passes[step - 1]
    assert passes_to(1.0, losses, passes) == passes[SMOOTHED - 1]
    assert passes_to(-0.1, losses, passes) is None
