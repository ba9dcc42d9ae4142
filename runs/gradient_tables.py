"""Tables and figures of a comparison of gradients."""

# pandas types what a row or a group holds as anything; the checker then warns of each use.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportGeneralTypeIssues=false
# pyright: reportIndexIssue=false

from itertools import cycle

import numpy as np
import pandas as pd
from matplotlib.figure import Figure


def _runs(rows: pd.DataFrame) -> list[str]:
    """The columns of the tables: float32 before float64."""
    return list(dict.fromkeys(rows.sort_values("dtype", kind="stable").run))


def by_parameter(rows: pd.DataFrame) -> pd.DataFrame:
    """Largest relative error of each parameter over the blocks, and the errors of its reference."""
    order = list(dict.fromkeys(rows.parameter))
    table = rows.pivot_table(index="parameter", columns="run", values="relative_error", aggfunc="max", dropna=False)
    table = table.loc[order, _runs(rows)]
    table["1 - cosine"] = 1 - rows.groupby("parameter").cosine.min()
    table["one rounding"] = rows.groupby("parameter").one_rounding.max()
    table["finite differences"] = rows.groupby("parameter").finite_differences.max()
    return table


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


def draw_comparison(rows: pd.DataFrame, title: str) -> Figure:
    """Bars of cosine and norm ratio as in the paper, and the relative errors, which are too small for such bars."""
    order = list(dict.fromkeys(rows.parameter))
    blocks = sorted(rows.block.dropna().unique())
    figure = Figure(figsize=(1.5 + 0.62 * len(order), 8), layout="constrained")
    bars = figure.subplots(3, 1, sharex=True, height_ratios=(1, 1, 1.6))
    bars[0].set_title(title)
    first = rows[rows.run == rows.run.iloc[0]]
    for axis, column, label in ((bars[0], "cosine", "cosine"), (bars[1], "norm_ratio", "ratio of norms")):
        for parameter, group in first.groupby("parameter"):
            width = 0.8 / len(group)
            for i, (_, row) in enumerate(group.iterrows()):
                color = "0.5" if row.block != row.block else f"C{int(row.block) % 10}"
                axis.bar(order.index(parameter) - 0.4 + width * (i + 0.5), row[column], width, color=color)
        axis.axhline(1, color="black", lw=0.5)
        axis.set(ylim=(0.3, 1.1), ylabel=f"{label}\n{first.run.iloc[0]}")
    for block in blocks:
        bars[0].bar(0, 0, color=f"C{int(block) % 10}", label=f"block {int(block)}")
    if blocks:
        bars[0].legend(ncols=min(len(blocks), 6), fontsize="x-small", loc="lower left")
    runs = rows.groupby("run", sort=False)
    for (run, group), marker, shift in zip(runs, cycle("osv^D<>"), np.linspace(-0.3, 0.3, len(runs)), strict=False):
        x = [order.index(parameter) + shift for parameter in group.parameter]
        bars[2].semilogy(x, np.maximum(group.relative_error, 1e-17), marker, ms=4, label=run)
    bars[2].set(ylabel="relative error\nagainst BPTT float64", xlim=(-0.6, len(order) - 0.4))
    bars[2].set_xticks(range(len(order)), order, rotation=60, ha="right")
    bars[2].grid(axis="y", alpha=0.3)
    bars[2].legend(fontsize="small", loc="center right")
    return figure


def draw_sweep(rows: pd.DataFrame) -> Figure:
    """Largest relative error of a parameter against epsilon, with the slope between the two largest epsilons."""
    figure = Figure(figsize=(5.5, 4), layout="constrained")
    axis = figure.subplots()
    for (model, dtype), group in rows[rows.learning_algorithm == "RHEL"].groupby(["model", "dtype"]):
        errors = group.groupby("epsilon").relative_error.max().clip(lower=1e-17)
        slope = np.diff(np.log(errors.iloc[-2:]))[0] / np.diff(np.log(errors.index[-2:]))[0]
        axis.loglog(errors.index, errors, "o-", label=f"{model} {dtype}, slope {slope:.2f}")
    axis.set(xlabel="epsilon", ylabel="largest relative error of a parameter")
    axis.grid(alpha=0.3)
    axis.legend(fontsize="small")
    return figure
