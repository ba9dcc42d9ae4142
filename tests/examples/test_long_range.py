"""The examples of long sequences: a run of many steps, and the gradient by the input."""

import json
from types import SimpleNamespace

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_examples import ROOT

SMALL = ["--length", "128", "--num_steps", "2", "--print_steps", "1", "--validation", "2", "--test", "4"]


@pytest.fixture(autouse=True)
def _examples_are_importable(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "examples"))


@pytest.mark.slow
def test_a_long_sequence_is_trained_as_a_run_and_counted(tmp_path, capsys, monkeypatch):
    import million_steps
    from million_steps import MIB, main

    counted = []

    def temporaries(config, changes):
        counted.append((config.task["length"], changes))
        return {"RHEL": MIB, "BPTT": 3 * MIB, "ReversibleBPTT": MIB}

    monkeypatch.setattr(million_steps, "BLOCKS", 1)
    monkeypatch.setattr(million_steps, "LENGTHS", [128, 256])
    monkeypatch.setattr(million_steps, "temporaries", temporaries)
    result = main([*SMALL, "--learning_algorithm", "BPTT", "--growth", "--output_dir", str(tmp_path)])
    run = tmp_path / "runs" / "First128" / "LinHRU_BPTT" / "seed_2345"
    assert json.loads((run / "result.json").read_text()) == result
    config = json.loads((run / "config.json").read_text())["config"]
    assert (config["shortest_period"], config["longest_period"], config["task"]["range"]) == (8, 512, 1)
    shapes = [(128, {}), (128, {"task": config["task"]}), *((128, {"ssm_dim": n}) for n in (16, 64, 256, 1024))]
    assert counted == shapes
    assert [row["value"] for row in json.loads((tmp_path / "growth.json").read_text())] == [128, 16, 64, 256, 1024]
    assert (tmp_path / "million_steps.png").read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert f"test accuracy: {100 * result['test_metric']:.1f} % of 4 sequences (95 % interval" in printed
    assert f"peak memory of the process: {result['peak_memory_bytes']['host'] / 2**20:,.0f} MiB" in printed


def test_temporaries_are_counted_for_each_learning_algorithm(monkeypatch):
    import million_steps
    from million_steps import temporaries, validate

    class Counted:
        def __init__(self, config, runs):
            self.config = config

        def needs(self):
            return SimpleNamespace(temporaries=(self.config.learning_algorithm, self.config.ssm_dim))

    monkeypatch.setattr(million_steps, "Planning", Counted)
    found = temporaries(validate(options_of(), source="test"), {"ssm_dim": 4})
    assert found == {name: (name, 4) for name in ("RHEL", "BPTT", "ReversibleBPTT")}


def options_of(*arguments):
    from million_steps import fields_of, parser

    return fields_of(parser().parse_args(["--output_dir", "out", *arguments]))


def test_the_first_periods_follow_the_length_unless_told():
    fields = options_of()
    assert (fields["task"]["length"], fields["batchnorm"]) == (2**20, "ema")
    assert (fields["shortest_period"], fields["longest_period"]) == (8192, 2**22)
    fields = options_of("--shortest_period", "16")
    assert (fields["shortest_period"], fields["output_parent_dir"]) == (16, "out/shortest_period=16")
    fields = options_of("--published_periods")
    assert not fields.keys() & {"shortest_period", "longest_period"}
    assert fields["output_parent_dir"] == "out/published_periods"
    assert options_of("--model_name", "NonlinHRU", "--length", "3000")["step_init"] == pytest.approx(0.01)


def test_a_sequence_that_is_too_short_is_refused(capsys):
    from million_steps import main

    with pytest.raises(SystemExit):
        main(["--length", "99"])
    assert "--length is 99: the first 1 % of a sequence decides, so it needs 100 at least" in capsys.readouterr().err


def test_the_figure_shows_memory_and_learning():
    from million_steps import draw

    rows = [
        {
            "axis": axis,
            "value": value,
            "RHEL": value * 2**20,
            "BPTT": 3 * value * 2**20,
            "ReversibleBPTT": value * 2**20,
        }
        for axis in ("length", "ssm_dim")
        for value in (1024, 4096)
    ]
    figure = draw(rows, {"L = 4": [{"step": 5, "val_metric": 0.5}, {"step": 10, "val_metric": 1.0}]}, "title")
    lengths, _, accuracy = figure.axes
    assert {line.get_label(): line.get_ydata()[0] for line in lengths.lines}["BPTT"] == 3 * 1024
    assert (lengths.get_xscale(), lengths.get_yscale()) == ("log", "log")
    np.testing.assert_array_equal(accuracy.lines[0].get_ydata(), [50, 100])


@pytest.mark.slow
def test_gradients_by_the_input_are_measured_before_and_after_a_training(tmp_path, capsys):
    from input_gradients import main

    small = ["--length", "40", "--num_steps", "2", "--seeds", "1", "--series", "2"]
    rows = main(["--network", "GRU", *small, "--output_dir", str(tmp_path)])
    assert [(row["network"], row["stage"]) for row in rows] == [("GRU", "untrained"), ("GRU", "trained")]
    assert json.loads((tmp_path / "results.json").read_text()) == rows
    assert (tmp_path / "input_gradients.png").read_bytes().startswith(b"\x89PNG")
    assert all(np.all(np.diff(row["quartiles"], axis=0) >= 0) for row in rows)
    assert rows[0]["quartiles"] != rows[1]["quartiles"]
    assert (rows[0]["accuracies"], len(rows[1]["accuracies"])) == ([None], 1)
    assert capsys.readouterr().out.count("GRU") == 4


@pytest.mark.slow
def test_gradients_by_the_input_are_those_of_rhel_and_agree_with_bptt(monkeypatch):
    import input_gradients
    from input_gradients import First, GeneratedSeries, labels_of, made, measured

    monkeypatch.setattr(input_gradients, "BLOCKS", 1)
    task = First(40, range=2, train=2)
    x, y = GeneratedSeries(task, "train")[:], labels_of(task, "train")
    model, state = made("LinHRU, published periods", 40, jax.random.PRNGKey(0))
    found, difference = measured(model, state, x, y)
    assert found.shape == x.shape
    assert 0 < difference < 1e-13
    # The margin of the other class over the right one, by a finite difference at the first step.
    with jax.enable_x64(True):
        model, state = input_gradients.in_float64((eqx.nn.inference_mode(model), state))

        def margin(first):
            moved = np.array(x[0], np.float64)
            moved[0] = first
            logits = model(jnp.asarray(moved), state, None)[0]
            return float(((1 - 2 * y[0]) * logits).sum()) / np.sqrt(2)

        at = float(x[0, 0, 0])
        slope = (margin(at + 1e-5) - margin(at - 1e-5)) / 2e-5
    np.testing.assert_allclose(found[0, 0, 0], slope, rtol=1e-6)


def test_distance_counts_from_the_last_step():
    from input_gradients import by_distance, edges_of

    edges = edges_of(2000)
    assert (edges[0], edges[1], edges[-1]) == (0, 1, 2000)
    norms = np.arange(2000, 0, -1.0)[None]  # the distance of each step, plus 1
    means = by_distance(norms, edges)[0]
    np.testing.assert_allclose(means, (edges[:-1] + edges[1:] + 1) / 2)
