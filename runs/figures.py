"""The figures of one run. Needs no jax."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from common.style import BLUE, BROAD, GREY, ORANGE, drawable, log_if_wide, set_title, styled, whole_ticks

_SAMPLES, _OUTPUTS = 4, 6  # drawn at most
_LARGE_CELLS = 12  # so many classes at most get cells with counts and percentages
_LONGEST_NAME = 24


@styled
def draw_predictions(
    outputs: np.ndarray,
    labels: np.ndarray,
    *,
    title: str,
    names: Sequence[str] | None = None,
    output_step: int = 1,
) -> Figure:
    """Predicted against true labels, if a series has one label step; else both over the time steps of a few series.

    `outputs` and `labels`, in the units of the files of the data set, are (samples, T) or (samples, T, K) with K
    outputs at each of T label steps, `output_step` time steps apart. `names`: of the K outputs, with their units. Six
    outputs are drawn at most.
    """
    outputs, labels = (array.reshape(*array.shape[:2], -1) for array in (outputs, labels))
    count = labels.shape[2]
    if names is None:
        names = ["label"] if count == 1 else [f"output {number}" for number in range(count)]
    names = [drawable(name) for name in names]
    draw = _draw_scatter if labels.shape[1] == 1 else _draw_traces
    shown = min(count, _OUTPUTS)
    figure = draw(outputs[:, :, :shown], labels[:, :, :shown], names, output_step)
    set_title(figure, f"{title}, {shown} of {count} outputs" if shown < count else title)
    return figure


def _draw_scatter(outputs: np.ndarray, labels: np.ndarray, names: list[str], _: int) -> Figure:
    """One point for each series, a panel for each output."""
    panels = labels.shape[2]
    columns = min(panels, 3)
    rows = -(-panels // columns)
    figure = Figure(figsize=(max(3.8, 3.4 * columns), 0.4 + 3.4 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for number, axes in enumerate(grid):
        if number >= panels:
            axes.set_axis_off()
            continue
        true, predicted = labels[:, 0, number], outputs[:, 0, number]
        both = np.concatenate([true, predicted])
        both = both[np.isfinite(both)] if np.isfinite(both).any() else np.zeros(1)
        margin = 0.05 * (np.ptp(both) or max(abs(both[0]), 1.0))
        limits = (float(both.min() - margin), float(both.max() + margin))
        axes.plot(limits, limits, color="0.6", lw=1, zorder=1, label="predicted = true")
        axes.plot(true, predicted, "o", color=BLUE, alpha=0.7, mew=0, label=f"{len(true)} test samples")
        axes.set(xlim=limits, ylim=limits, aspect="equal")
        axes.set_xlabel(f"true {names[number]}")
        axes.set_ylabel(f"predicted {names[number]}")
    grid[0].legend(loc="upper left")
    return figure


def _draw_traces(outputs: np.ndarray, labels: np.ndarray, names: list[str], output_step: int) -> Figure:
    """Both over time: one output has a row for each series, several have a row each and a column for each series."""
    several = labels.shape[2] > 1
    shown = np.unique(np.linspace(0, len(labels) - 1, 3 if several else _SAMPLES, dtype=int))
    # A label stands for the steps up to its own time.
    steps = output_step * np.arange(1, labels.shape[1] + 1)
    rows, columns = (labels.shape[2], len(shown)) if several else (len(shown), 1)
    size = (max(4.5, 3.2 * columns), 0.9 + 1.6 * rows) if several else (9, 0.9 + 1.6 * rows)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey="row" if several else False)
    for place, axes in enumerate(grid.ravel()):
        row, column = divmod(place, columns)
        sample, output = (shown[column], row) if several else (shown[row], 0)
        marker = "." if len(steps) < 30 else ""
        axes.plot(steps, labels[sample, :, output], color=GREY, marker=marker, **BROAD, label="true")
        axes.plot(steps, outputs[sample, :, output], color=BLUE, marker=marker, label="predicted")
        if column == 0:
            axes.set_ylabel(names[output])
        if place < columns or not several:
            axes.set_title(f"test sample {sample}", loc="left")
    for axes in grid[-1]:
        axes.set_xlabel("time step")
    figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


@styled
def draw_confusion(counts: Sequence[Sequence[int]], names: Sequence[object], *, title: str) -> Figure:
    """The confusion matrix of the test part: a row for each true class, a column for each predicted class.

    `counts` (classes, classes) are numbers of samples. The colour is the share of the true class; up to 12 classes, the
    cells have it in %, too. A class without samples has a grey row.
    """
    table = np.asarray(counts)
    of_class = table.sum(axis=1, keepdims=True)
    share = np.divide(100.0 * table, of_class, out=np.full(table.shape, np.nan), where=of_class > 0)
    number = len(table)
    cell = float(np.clip(6.5 / number, 0.24 if number <= 60 else 14 / number, 0.85))  # inches
    large = number <= _LARGE_CELLS
    labels = [drawable(name, _LONGEST_NAME) for name in names]
    font = min(8.0, 72 * cell * 0.75)
    margin = min(2.2, 0.4 + 0.011 * font * max(map(len, labels)))
    figure = Figure(
        figsize=(max(4.2, number * cell + margin + 1.2), number * cell + margin + 0.9), layout="constrained"
    )
    set_title(figure, f"{title}, test part")
    axes = figure.subplots()
    axes.set_anchor("N")  # near the title
    colours = axes.imshow(np.ma.masked_invalid(share), cmap="Blues", vmin=0, vmax=100)
    axes.set_facecolor("0.9")
    digits = len(str(table.max()))
    cell_font = min(9.0, 72 * cell * (0.3 if large else 1.0 / max(digits, 2)))
    for row, column in np.argwhere(table > 0 if not large else of_class.repeat(number, 1) > 0):
        text = f"{table[row, column]:,}"
        if large:
            rare = 0 < share[row, column] < 0.5
            text += "\n<1 %" if rare else f"\n{share[row, column]:.0f} %"
        colour = "white" if share[row, column] > 60 else "black"
        axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=cell_font)
    flat = number <= _LARGE_CELLS and max(map(len, labels)) * font * 0.6 < 72 * cell
    axes.set_xticks(range(number), labels, rotation=0 if flat else 90, fontsize=font)
    axes.set_yticks(range(number), labels, fontsize=font)
    axes.set(xlabel="predicted class", ylabel="true class")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_xticks(np.arange(number - 1) + 0.5, minor=True)
    axes.set_yticks(np.arange(number - 1) + 0.5, minor=True)
    axes.grid(which="minor", color="white", lw=1.5 if large else 0.5)
    axes.tick_params(which="minor", length=0)
    if not large:
        figure.colorbar(colours, ax=axes, shrink=0.5, label="share of the true class, %")
    if not of_class.all():
        empty = Patch(color="0.9", label="no test sample of this class")
        figure.legend(handles=[empty], loc="outside lower right")
    return figure


@styled
def draw_curves(history: list, *, title: str, metric: str, best_step: int | None) -> Figure:
    """The loss and the metric of the training and validation set against the step.

    `history` is a list of `train.Evaluation`.
    """
    steps = [evaluation.step for evaluation in history]
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    set_title(figure, title)
    left, right = figure.subplots(1, 2)
    batches = [evaluation.loss for evaluation in history]
    left.plot(steps, batches, "-" if len(steps) > 1 else ".", color="0.7", label="batches, with dropout")
    losses = list(batches)
    for axes, quantity, name in ((left, "loss", "loss"), (right, "metric", metric)):
        for split, label, style in (("train", "training set", "o-"), ("val", "validation set", "s--")):
            values = [getattr(evaluation, f"{split}_{quantity}") for evaluation in history]
            losses += values if quantity == "loss" else []
            axes.plot(steps, values, style, color=BLUE if split == "train" else ORANGE, label=label)
        if best_step is not None:
            by = "loss" if metric == "mse" else metric
            label = f"best validation {by}, step {best_step}"
            axes.axvline(best_step, color="0.4", linestyle=":", lw=1, label=label)
        axes.set(xlabel="step", ylabel=name)
        whole_ticks(axes)
    log_if_wide(left, losses)
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure
