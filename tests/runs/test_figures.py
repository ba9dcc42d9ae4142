"""What the figures show: scales, labels, every number, and no text outside its place."""

import json
import runpy
from itertools import pairwise
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import pytest

import train
from benchmarks.step import draw_growth
from common import style
from runs.comparison import compare
from runs.figures import draw_confusion, draw_curves, draw_predictions
from runs.folder import clear
from runs.gradient_tables import draw_comparison, draw_sweep
from runs.summary import draw_learning_curves, draw_results

ROOT = Path(__file__).resolve().parents[2]
STRANGE = (r"$\frac$", "a_{$b", "\udcff", "two\nlines", "x" * 300)


def texts(axes):
    return [text.get_text() for text in axes.texts]


def ticks(axis):
    """The labels of an axis, as they are drawn."""
    axis.figure.draw_without_rendering()
    low, high = sorted(axis.get_view_interval())
    return [tick.label1.get_text() for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]


def legend(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


# The style


def test_the_style_holds_while_a_figure_is_drawn_and_at_no_other_time():
    before = dict(matplotlib.rcParams)
    runpy.run_path(str(ROOT / "common" / "style.py"))
    assert dict(matplotlib.rcParams) == before
    with matplotlib.rc_context({"font.size": 30, "axes.spines.top": True, "text.parse_math": True}):
        axes = draw_predictions(np.zeros((2, 1)), np.ones((2, 1)), title="x").axes[0]
        assert matplotlib.rcParams["font.size"] == 30
    assert axes.xaxis.label.get_fontsize() == 9
    assert not axes.spines["top"].get_visible()
    assert dict(matplotlib.rcParams) == before
    # pyplot needs a display, or chooses a backend.
    sources = [path for folder in ("common", "runs", "examples", "benchmarks") for path in (ROOT / folder).glob("*.py")]
    assert not [path for path in sources if "pyplot" in path.read_text(encoding="utf-8")]


def test_the_algorithms_differ_without_colour():
    """In grey, and by line and marker."""
    lines = style.ALGORITHMS.values()
    assert len({line["linestyle"] for line in lines}) == len({line["marker"] for line in lines}) == 3
    grey = {
        name: np.dot(matplotlib.colors.to_rgb(line["color"]), (0.3, 0.59, 0.11))
        for name, line in style.ALGORITHMS.items()
    }
    assert abs(grey["RHEL"] - grey["BPTT"]) > 0.25


@pytest.mark.parametrize(
    ("low", "high", "shown"),
    [
        (0.3, 0.7, ["0.3", "0.4", "0.5", "0.6", "0.7"]),
        (0.02, 0.4, ["0.02", "0.05", "0.1", "0.2"]),
        (20, 40_000, ["100", "1,000", "10,000"]),
        (1e-12, 1e-6, ["10⁻¹²", "10⁻¹¹", "10⁻¹⁰", "10⁻⁹", "10⁻⁸", "10⁻⁷", "10⁻⁶"]),
        (2e-6, 6e-6, ["2·10⁻⁶", "3·10⁻⁶", "4·10⁻⁶", "5·10⁻⁶", "6·10⁻⁶"]),
    ],
)
def test_the_ticks_of_a_logarithmic_axis_are_plain_numbers(low, high, shown):
    axes = matplotlib.figure.Figure().subplots()
    axes.set_ylim(low, high)
    style.log_scale(axes, "y")
    axes.set_ylim(low, high)
    assert ticks(axes.yaxis) == shown


# A run


def test_a_confusion_matrix_shows_names_counts_and_the_share_of_the_true_class():
    axes = draw_confusion([[3, 1, 0], [1, 299, 0], [0, 0, 0]], ["low", "high", "none"], title="Set").axes[0]
    assert texts(axes) == ["3\n75 %", "1\n25 %", "0\n0 %", "1\n<1 %", "299\n100 %", "0\n0 %"]
    assert (axes.get_ylabel(), axes.get_xlabel()) == ("true class", "predicted class")
    assert ticks(axes.xaxis) == ticks(axes.yaxis) == ["low", "high", "none"]
    np.testing.assert_allclose(axes.images[0].get_array()[0], [75, 25, 0])
    assert legend(axes.figure) == ["no test sample of this class"]
    assert axes.figure.get_suptitle() == "Set, test part"


def test_a_confusion_matrix_of_52_classes_is_readable():
    counts = 990 * np.eye(52, dtype=int) + np.eye(52, k=5, dtype=int)
    figure = draw_confusion(
        counts.tolist(), [f"a long name of the class {number}" for number in range(52)], title="Set"
    )
    axes, bar = figure.axes
    assert sorted(set(texts(axes))) == ["1", "990"]
    assert len(axes.texts) == 52 + 47
    assert bar.get_ylabel() == "share of the true class, %"
    assert len(set(ticks(axes.yaxis))) == 52  # what tells the names apart is at their end
    boxes = [label.get_window_extent() for label in axes.get_yticklabels()]
    assert all(above.y0 >= below.y1 - 0.5 for above, below in pairwise(boxes))
    cell = abs(np.diff(axes.transData.transform([(0, 0), (1, 0)])[:, 0])[0])
    assert max(text.get_window_extent().width for text in axes.texts) < cell
    assert min(text.get_fontsize() for text in axes.texts) >= 5
    assert max(figure.get_size_inches()) < 18


def test_one_label_per_series_is_a_scatter_with_equal_axes_and_the_diagonal():
    true = np.linspace(280, 310, 7)[:, None]
    (axes,) = draw_predictions(true + 1, true, title="Set", names=["temperature, K"]).axes
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("true temperature, K", "predicted temperature, K")
    assert axes.get_aspect() == 1
    assert axes.get_xlim() == axes.get_ylim()
    diagonal, points = axes.lines
    np.testing.assert_array_equal(*diagonal.get_data())
    np.testing.assert_array_equal(points.get_xdata(), true[:, 0])
    np.testing.assert_array_equal(points.get_ydata(), true[:, 0] + 1)
    assert points.get_linestyle() == "None"


def test_several_labels_per_series_are_traces_over_the_time_steps():
    true = np.arange(30.0).reshape(10, 3)
    figure = draw_predictions(-true, true, title="Set", output_step=50)
    assert [axes.get_title(loc="left") for axes in figure.axes] == [f"test sample {row}" for row in (0, 3, 6, 9)]
    for axes, row in zip(figure.axes, (0, 3, 6, 9), strict=True):
        of_true, of_predicted = axes.lines
        np.testing.assert_array_equal(of_true.get_data(), [[50, 100, 150], true[row]])
        np.testing.assert_array_equal(of_predicted.get_ydata(), -true[row])
        assert axes.get_ylabel() == "label"
    assert figure.axes[-1].get_xlabel() == "time step"
    assert legend(figure) == ["true", "predicted"]


@pytest.mark.parametrize("steps", [1, 4])
def test_every_output_has_axes_of_its_own(steps):
    true = np.arange(5.0 * steps * 2).reshape(5, steps, 2)
    figure = draw_predictions(true, 10 * true, title="Set", names=["length, m", "mass, kg"])
    labels = [axes.get_ylabel() for axes in figure.axes]
    if steps == 1:
        assert labels == ["predicted length, m", "predicted mass, kg"]
    else:
        assert labels == ["length, m", "", "", "mass, kg", "", ""]
        np.testing.assert_array_equal(figure.axes[5].lines[0].get_ydata(), 10 * true[4, :, 1])
    many = draw_predictions(np.ones((3, steps, 8)), np.ones((3, steps, 8)), title="Set")
    assert many.get_suptitle() == "Set, 6 of 8 outputs"


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300, 0.0])
def test_predictions_of_every_size_can_be_drawn(tmp_path, value):
    for steps in (1, 3):
        outputs = np.full((2, steps), value)
        style.save(draw_predictions(outputs, np.ones((2, steps)), title="Set"), tmp_path / "x.png")


@pytest.mark.parametrize("name", STRANGE)
def test_a_name_is_no_mathematics_and_never_leaves_the_figure(tmp_path, name):
    """A name that matplotlib cannot read as a formula would end a run that is trained."""
    history = [train.Evaluation(*[1.0] * len(train.Evaluation._fields))]
    for figure in (
        draw_curves(history, title=name, metric="accuracy", best_step=1),
        draw_predictions(np.zeros((2, 1)), np.ones((2, 1)), title=name, names=[name]),
        draw_confusion([[1, 0], [0, 1]], [name, "b"], title=name),
    ):
        style.save(figure, tmp_path / "x.png")
        title = figure._suptitle.get_window_extent()
        assert title.x0 >= 0
        assert title.x1 <= figure.bbox.x1


def test_the_curves_have_a_logarithmic_loss_only_if_it_falls_far():
    for last, scale in ((0.5, "linear"), (0.001, "log")):
        fields = dict.fromkeys(train.Evaluation._fields, 1.0)
        history = [
            train.Evaluation(**fields | {"step": 1}),
            train.Evaluation(**fields | {"step": 2, "train_loss": last}),
        ]
        figure = draw_curves(history, title="x", metric="accuracy", best_step=2)
        assert [axes.get_yscale() for axes in figure.axes] == [scale, "linear"]
        axes = draw_curves(history[:1], title="x", metric="accuracy", best_step=1).axes[0]
        assert "None" not in [line.get_marker() for line in axes.lines[:3]]  # a single evaluation is seen, too
        assert all(float(tick).is_integer() for tick in ticks(axes.xaxis))
        assert legend(figure) == [
            "batches, with dropout",
            "training set",
            "validation set",
            "best validation accuracy, step 2",
        ]


def test_a_run_that_is_removed_leaves_no_picture(tmp_path):
    for name in ("config.json", "curves.png", "confusion.png", "predictions.png", "notes.txt"):
        (tmp_path / name).write_text("")
    clear(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


# Many runs


def runs_of(datasets, models, algorithms, seeds, folder=""):
    """Finished runs, as `runs.comparison.read_runs` returns them."""
    rows = [
        {
            **{"dataset": dataset, "model": model, "algorithm": algorithm, "seed": seed, "status": "completed"},
            **{"metric": "mse" if dataset == "ppg" else "accuracy", "test_metric": 0.5 + seed / 100, "steps": 1},
            **{"setting": "", "folder": str(folder), "stop_reason": "num_steps"},
        }
        for dataset in datasets
        for model in models
        for algorithm in algorithms
        for seed in seeds
    ]
    return pd.DataFrame(rows).assign(answers=None)


def test_the_results_of_one_run_are_one_point_without_a_bar():
    (axes,) = draw_results(compare(runs_of(["Own"], ["LinHRU"], ["RHEL"], [1]))).axes
    (container,) = axes.containers
    assert legend(axes.figure) == ["RHEL"]
    (x,), (y,) = container.lines[0].get_data()
    assert abs(x) < 0.1
    assert y == pytest.approx(51)
    assert container.lines[2][0].get_segments()[0].size == 0
    assert ticks(axes.xaxis) == ["Own"]


def test_the_results_of_many_runs_have_axes_for_every_model_and_metric():
    runs = runs_of(["Heartbeat", "MotorImagery", "ppg"], ["LinHRU", "NonlinHRU"], ["RHEL", "BPTT"], [1, 2])
    runs = runs[(runs["dataset"] != "ppg") | (runs["model"] == "LinHRU")]
    figure = draw_results(compare(runs))
    assert [(axes.get_title(), axes.get_ylabel()) for axes in figure.axes] == [
        ("LinHRU", "test accuracy, %"),
        ("LinHRU", "test mse, 1e-2"),
        ("NonlinHRU", "test accuracy, %"),
        ("NonlinHRU", "test mse, 1e-2"),
    ]
    assert legend(figure) == ["BPTT", "BPTT, paper", "RHEL", "RHEL, paper"]
    assert texts(figure.axes[3]) == ["no runs"]
    assert ticks(figure.axes[2].xaxis) == ["Heartbeat", "MotorImagery", "average of 2 published sets"]
    shown = figure.legends[0].get_window_extent()
    assert 0 <= shown.x0 <= shown.x1 <= figure.bbox.x1


def test_settings_have_places_of_their_own_and_their_numbers_are_whole():
    table = compare(runs_of(["Own"], ["LinHRU"], ["RHEL", "BPTT"], [1, 2]))
    names = [f"hidden_dim=8,lr=0.0{digit}3,batch_size=32,num_blocks=6,damping=false,gate=true" for digit in (1, 2)]
    names = ["(as configured)", *names, names[0].replace("=8", "=16")]
    shuffled = pd.concat([table.assign(setting=name) for name in reversed(names)])
    (axes,) = draw_results(shuffled).axes
    assert ticks(axes.xaxis) == [f"Own\n{number}" for number in (1, 2, 3, 4)]
    bars, *key = axes.figure._supxlabel.get_text().splitlines()
    assert bars == "bars: ± one standard deviation over the seeds, cut at 0 and 100 %"
    assert " ".join(key).replace(", ", ",") == " ".join(f"{number}: {name}" for number, name in enumerate(names, 1))
    axes.figure.draw_without_rendering()
    assert axes.figure._supxlabel.get_window_extent().x1 < axes.figure.bbox.x1
    (axes,) = draw_results(table).axes
    assert ticks(axes.xaxis) == ["Own"]


def test_no_accuracy_above_100_is_shown_and_short_means_are_marked():
    table = compare(runs_of(["Heartbeat"], ["LinHRU"], ["RHEL"], [1, 2]))
    (axes,) = draw_results(table.assign(RHEL_mean=97.0, RHEL_std=8.0)).axes
    assert axes.get_ylim()[1] == 100
    of_run, _ = axes.containers
    np.testing.assert_allclose(of_run.lines[2][0].get_segments()[0][:, 1], [89, 100])
    assert texts(axes) == ["*"]
    assert axes.figure._supxlabel.get_text().endswith("\n*: fewer seeds or steps than the paper")


@pytest.mark.parametrize("seeds", [[2345], [1, 2, 3, 4, 5], list(range(9))])
def test_the_learning_curves_of_a_seed_share_a_colour(tmp_path, seeds):
    lines = [{"step": step, "train_loss": 1 / step, "val_metric": 0.5} for step in (2, 4)]
    (tmp_path / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    runs = runs_of(["Own"], ["LinHRU"], ["BPTT", "RHEL"], seeds, tmp_path)
    figure = draw_learning_curves("Own", runs)
    left, _ = figure.axes
    assert [axes.get_ylabel() for axes in figure.axes] == ["training loss", "validation accuracy"]
    bptt, rhel = left.lines[: len(seeds)], left.lines[len(seeds) :]
    assert [line.get_color() for line in bptt] == [line.get_color() for line in rhel]
    assert len({line.get_color() for line in rhel}) == len(seeds)
    assert {line.get_linewidth() for line in bptt} == {4.0}
    assert {line.get_linewidth() for line in rhel} == {1.4}
    assert legend(figure) == ["BPTT", "RHEL", *(f"seed {seed}" for seed in seeds)]
    only = draw_learning_curves("Own", runs[runs["algorithm"] == "RHEL"].assign(setting="lr=0.01"))
    assert legend(only) == ["RHEL", *(f"seed {seed}" for seed in seeds)]
    assert only.axes[0].get_title() == "LinHRU\nlr=0.01"
    if len(seeds) == 1:
        many = pd.concat([runs.assign(setting=f"lr={number}") for number in range(14)])
        figure = draw_learning_curves("Own", many)
        assert (len(figure.axes), figure.get_suptitle()) == (24, "Own, 12 of 14 settings")


# Gradients


def gradient_rows(errors, cosines):
    """Rows of RHEL and BPTT, in two blocks, as `runs.gradient_comparison.compare` makes them."""
    rows = []
    for (algorithm, dtype), error, cosine in zip(
        (("RHEL", "float32"), ("RHEL", "float64"), ("BPTT", "float32")), errors, cosines, strict=True
    ):
        about = {"model": "LinHRU", "learning_algorithm": algorithm, "dtype": dtype, "run": f"{algorithm} {dtype}"}
        for parameter, block in (("encoder", None), ("C", 0), ("C", 1)):
            numbers = {"relative_error": error, "cosine": cosine, "one_rounding": 1e-6, "finite_differences": 1e-6}
            rows.append(about | {"parameter": parameter, "block": block, "epsilon": None} | numbers)
    return pd.DataFrame(rows)


def test_the_gradients_are_compared_on_logarithmic_axes_and_zeros_are_kept():
    rows = gradient_rows((1e-5, 0.0, 2e-5), (1 - 1e-10, 1 + 2e-16, 1 - 1e-9))
    figure = draw_comparison(rows, "LinHRU, Own")
    assert figure.get_suptitle() == "LinHRU, Own"
    for axes, expected in zip(figure.axes, ((1e-10, 0, 1e-9), (1e-5, 0, 2e-5)), strict=True):
        assert axes.get_yscale() == "symlog"
        assert ticks(axes.yaxis)[0] == "0"
        points = [line for line in axes.lines if line.get_marker() != "None"]
        assert [len(line.get_xdata()) for line in points] == [3, 3, 3]
        for line, value in zip(points, expected, strict=True):
            np.testing.assert_allclose(line.get_ydata(), value, rtol=1e-5)
            low, high = axes.get_ylim()
            assert low < value < high
        x = np.concatenate([line.get_xdata() for line in points])
        assert len(set(np.round(x, 6))) == len(x)  # no point hides another
    assert legend(figure) == ["RHEL float32", "RHEL float64", "BPTT float32", "change by one rounding of float32"]
    plain = draw_comparison(gradient_rows((1e-5, 1e-15, 2e-5), (0.9, 0.99, 0.8)), "x")
    assert [axes.get_yscale() for axes in plain.axes] == ["log", "log"]


def test_the_sweep_has_slopes_and_keeps_zeros():
    rows = pd.concat(
        [
            gradient_rows((error, 0.0, 1e-6), (1, 1, 1)).assign(epsilon=epsilon)
            for epsilon, error in ((0.01, 1e-6), (0.1, 1e-4))
        ]
    )
    figure = draw_sweep(rows)
    assert legend(figure) == ["LinHRU float32, slope 2.00", "LinHRU float64"]
    (axes,) = figure.axes
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "symlog")
    np.testing.assert_array_equal(axes.lines[1].get_ydata(), [0, 0])


def test_rhel_is_seen_in_the_growth_where_it_coincides_with_reversible_bptt():
    rows = [
        {
            "model": model,
            "axis": axis,
            "value": value,
            "algorithm": algorithm,
            "step s": value,
            "temporaries MiB": value,
        }
        for model in ("LinHRU", "NonlinHRU")
        for axis in ("length", "ssm_dim")
        for value in (256, 4096)
        for algorithm in ("RHEL", "ReversibleBPTT", "BPTT")
    ]
    figure = draw_growth(rows)
    assert len(figure.axes) == 8
    for axes in figure.axes:
        lines = {line.get_label(): line for line in axes.lines}
        assert axes.lines[-1] is lines["RHEL"]
        assert lines["RHEL"].get_linewidth() < lines["ReversibleBPTT"].get_linewidth() / 2
        assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    assert ticks(figure.axes[-1].xaxis) == ["256", "4,096"]
    assert [axes.get_title() for axes in figure.axes[:4]] == ["LinHRU", "LinHRU", "NonlinHRU", "NonlinHRU"]
