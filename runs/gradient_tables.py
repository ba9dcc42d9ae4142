"""Tables and figures of a comparison of gradients."""

# pandas types what a row or a group holds as anything; the checker then warns of each use.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportGeneralTypeIssues=false
# pyright: reportIndexIssue=false

from itertools import cycle

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from common import style
from common.style import MARKERS, log_scale, log_scale_with_zero, set_title, styled

YARDSTICK = "change by one rounding of float32"


def _runs(rows: pd.DataFrame) -> list[str]:
    """The columns of the tables: float32 before float64."""
    return list(dict.fromkeys(rows.sort_values("dtype", kind="stable").run))


def by_parameter(rows: pd.DataFrame) -> pd.DataFrame:
    """Largest relative error of each parameter over the blocks, and the errors of its reference."""
    order = list(dict.fromkeys(rows.parameter))
    table = rows.pivot_table(index="parameter", columns="run", values="relative_error", aggfunc="max", dropna=False)
    table = table.loc[order, _runs(rows)]
    table["1 - cosine, worst run"] = 1 - rows.groupby("parameter").cosine.min()
    table["one rounding"] = rows.groupby("parameter").one_rounding.max()
    table["finite differences"] = rows.groupby("parameter").finite_differences.max()
    return table.rename_axis(index=None, columns=None)


def by_model(rows: pd.DataFrame) -> pd.DataFrame:
    """The largest relative error and the smallest cosine of each model and run, over all parameters and blocks."""
    grouped = rows.groupby(["model", "run"], sort=False)
    measures = {
        "largest relative error": grouped.relative_error.max(),
        "1 - smallest cosine": 1 - grouped.cosine.min(),
    }
    table = (
        pd.concat({name: values.unstack() for name, values in measures.items()})
        .swaplevel()
        .sort_index(level=0, sort_remaining=False)
    )
    table = table[_runs(rows)]
    table["one rounding"] = [
        rows[rows.model == model].one_rounding.max() if measure == "largest relative error" else np.nan
        for model, measure in table.index
    ]
    return table.rename_axis(index=[None, None], columns=None)


@styled
def draw_comparison(rows: pd.DataFrame, title: str) -> Figure:
    """1 - cosine and relative error of every parameter and block on logarithmic axes, a marker for each run.

    Within a run, the blocks stand side by side. A line shows the largest effect of one rounding of float32.
    """
    order = list(dict.fromkeys(rows.parameter))
    figure = Figure(figsize=(2 + 0.55 * len(order), 6.6), layout="constrained")
    set_title(figure, title)
    panels = figure.subplots(2, 1, sharex=True)
    names = list(dict.fromkeys(rows.run))
    slot = 0.8 / len(names)
    for number, (name, marker) in enumerate(zip(names, cycle(MARKERS), strict=False)):
        group = rows[rows.run == name]
        color = style.ALGORITHMS[group.learning_algorithm.iloc[0]]["color"]
        face = color if group.dtype.iloc[0] == "float32" else "white"
        blocks = group.block.max() + 1 if group.block.notna().any() else 1
        inside = ((group.block.fillna((blocks - 1) / 2) + 0.5) / blocks - 0.5) * 0.8 * slot
        x = group.parameter.map(order.index) - 0.4 + slot * (number + 0.5) + inside
        # A cosine above 1 is a rounding error.
        for axes, values in zip(panels, ((1 - group.cosine).clip(lower=0), group.relative_error), strict=True):
            axes.plot(x, values, marker, color=color, mfc=face, ms=3.5, mew=0.8, label=name)
    rounding = rows.groupby("parameter").one_rounding.max()[order]
    panels[1].hlines(
        rounding, *(np.arange(len(order)) + end for end in (-0.4, 0.4)), color="black", lw=1, label=YARDSTICK
    )
    for axes, values, label in zip(
        panels,
        ((1 - rows.cosine).clip(lower=0), [*rows.relative_error, *rounding]),
        ("1 - cosine", "relative error"),
        strict=True,
    ):
        axes.set_ylabel(f"{label}\nagainst BPTT float64")
        log_scale_with_zero(axes, values)
        axes.grid(axis="y", color="0.9")
        axes.set_axisbelow(True)
        for between in range(len(order) - 1):
            axes.axvline(between + 0.5, color="0.9", lw=0.8, zorder=0)
    panels[1].set_xlim(-0.5, len(order) - 0.5)
    panels[1].set_xticks(range(len(order)), order, rotation=45, ha="right", rotation_mode="anchor")
    figure.legend(*panels[1].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure


@styled
def draw_sweep(rows: pd.DataFrame) -> Figure:
    """Largest relative error of a parameter against epsilon, with the slope between the two largest epsilons."""
    figure = Figure(figsize=(5.5, 4), layout="constrained")
    axes = figure.subplots()
    drawn = []
    groups = rows[rows.learning_algorithm == "RHEL"].groupby(["model", "dtype"])
    for ((model, dtype), group), marker in zip(groups, cycle(MARKERS), strict=False):
        errors = group.groupby("epsilon").relative_error.max()
        last = errors.iloc[-2:]
        slope = f", slope {(np.diff(np.log(last)) / np.diff(np.log(last.index)))[0]:.2f}" if last.all() else ""
        axes.plot(
            errors.index, errors, marker=marker, ls="-" if dtype == "float32" else "--", label=f"{model} {dtype}{slope}"
        )
        drawn += errors.to_list()
    axes.set(xlabel="epsilon", ylabel="largest relative error of a parameter")
    log_scale(axes, "x")
    log_scale_with_zero(axes, drawn)
    axes.grid(color="0.9")
    figure.legend(loc="outside lower center", ncols=2)
    return figure
