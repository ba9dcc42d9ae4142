"""RHEL - BPTT in words, seed by seed, and in one figure of all data sets."""

# pandas types what a row or a group holds as anything; the checker then warns of each use.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportGeneralTypeIssues=false
# pyright: reportIndexIssue=false

import math

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from common.style import BLUE, GREY, drawable, styled
from runs.comparison import MARGIN, Unit, recorded, unit_of
from runs.paired import Answers, mcnemar, over_samples, wilson

OF_SEEDS = (
    "In brackets, the 95 % intervals: of an accuracy by Wilson, of RHEL - BPTT over the test samples. They hold for "
    "this seed alone. Only RHEL, only BPTT: samples that one of the two has right, and the other wrong; p: McNemar's "
    "exact test of these, of one row, not corrected for the number of rows."
)


def over(row: pd.Series) -> str:
    """What the interval of a comparison counts: "3 seeds", or "3 seeds, 10,000 samples"."""
    if not row["pairs"]:
        return "-"
    seeds = f"{row['pairs']} seed{'' if row['pairs'] == 1 else 's'}"
    return seeds + (f", {row['difference_samples']:,} samples" if row["difference_samples"] else "")


def bracketed(low: float, high: float, unit: Unit) -> str:
    """An interval, "-" without one."""
    return "-" if math.isnan(low) else f"[{unit.text(low)}, {unit.text(high)}]"


def p_text(p: float) -> str:
    """A p value with two digits; one below 0.001 as such."""
    return "< 0.001" if p < 0.001 else f"{p:.2g}"


def by_seed(completed: pd.DataFrame) -> list[tuple[str, ...]]:
    """A row for each pair of runs that record their answers on the same test part, the header first."""
    settings = bool(completed["setting"].any())
    head = ("data set", "model", *["setting"] * settings, "seed", "samples", "BPTT, %", "RHEL, %", "RHEL - BPTT")
    rows = [(*head, "only RHEL", "only BPTT", "p")]
    keys = ["dataset", "model", "setting", "seed"]
    for (dataset, model, setting, seed), runs in completed.groupby(keys, sort=False):
        answers = recorded(runs, "algorithm")
        rhel, bptt = answers.get("RHEL"), answers.get("BPTT")
        if rhel is not None and bptt is not None and rhel.part == bptt.part:
            names = (dataset, model, *[setting] * settings, str(seed))
            rows.append((*names, f"{len(rhel.right):,}", *_pair_cells(rhel, bptt, unit_of(dataset, "accuracy"))))
    return rows


def _pair_cells(rhel: Answers, bptt: Answers, unit: Unit) -> tuple[str, ...]:
    samples, accuracies = len(rhel.right), []
    for each in (bptt, rhel):
        text = unit.text(unit.scale * each.right.mean())
        # The answers of one sample are not independent, so they are no trials of their own.
        if each.per_sample == 1:
            low, high = wilson(int(each.right.sum()), samples)
            text += " " + bracketed(unit.scale * low, unit.scale * high, unit)
        accuracies.append(text)
    estimate = over_samples(rhel.right - bptt.right).scaled(unit.scale)
    difference = f"{unit.text(estimate.mean)} {bracketed(*estimate.interval(), unit)}"
    if rhel.per_sample > 1:
        return (*accuracies, difference, "-", "-", "-")
    alone = [int((one.right > other.right).sum()) for one, other in ((rhel, bptt), (bptt, rhel))]
    return (*accuracies, difference, *map(str, alone), p_text(mcnemar(*alone)))


@styled
def draw_differences(comparison: pd.DataFrame) -> Figure | None:
    """RHEL - BPTT of every data set with a pair, and of averages with an interval; each metric has axes of its own.

    Errors are shown in % of the mean of BPTT, because their units differ. None without a pair.
    """
    averages = comparison["dataset"].str.startswith("average of ")
    shown = comparison[(comparison["pairs"] > 0) & ~(averages & comparison["difference_low"].isna())]
    kinds = [kind for kind in ("accuracy", "mse") if (shown["metric"] == kind).any()]
    if not kinds:
        return None
    counts = [int((shown["metric"] == kind).sum()) for kind in kinds]
    figure = Figure(figsize=(7.5, 0.5 + 0.62 * len(kinds) + 0.3 * sum(counts)), layout="constrained")
    grid = figure.subplots(len(kinds), 1, squeeze=False, height_ratios=[count + 1 for count in counts])[:, 0]
    for kind, axes in zip(kinds, grid, strict=True):
        _draw_intervals(axes, shown[shown["metric"] == kind], kind)
    return figure


def _draw_intervals(axes: Axes, rows: pd.DataFrame, kind: str) -> None:
    scale = 100 / rows["BPTT_mean"].where(rows["BPTT_mean"] > 0) if kind == "mse" else pd.Series(1.0, rows.index)
    mean, low, high = (scale * rows[f"difference_{name}"] for name in ("mean", "low", "high"))
    places = pd.Series(range(len(rows), 0, -1), rows.index)
    if kind == "accuracy":
        axes.axvspan(-MARGIN, MARGIN, color="0.93", linewidth=0)
    axes.axvline(0, color=GREY, linewidth=0.8)
    alone = low.isna()
    axes.errorbar(
        mean[~alone],
        places[~alone],
        xerr=[(mean - low)[~alone], (high - mean)[~alone]],
        **{"fmt": "o", "color": BLUE, "capsize": 2, "elinewidth": 1.2},
    )
    axes.plot(mean[alone], places[alone], "o", color=BLUE, markerfacecolor="white")
    # What all settings have in common is left out, so that the rest is not cut.
    fields = [row.replace("/", ",").split(",") for row in rows["setting"]]
    own = [" ".join(field for field in each if not all(field in other for other in fields)) for each in fields]
    names = (f"{row['dataset']} {row['model']}" for _, row in rows.iterrows())
    texts = [f"{drawable(name, 32)} {drawable(setting, 32)}".strip() for name, setting in zip(names, own, strict=True)]
    axes.set_yticks(places, texts)
    axes.set_ylim(0.3, len(rows) + 0.7)
    right = axes.secondary_yaxis("right")
    right.set_yticks(places, [over(row) for _, row in rows.iterrows()])
    right.tick_params(length=0)
    right.spines["right"].set_visible(False)
    unit = "% of the mse of BPTT" if kind == "mse" else f"percentage points of accuracy (grey: ± {MARGIN:g})"
    axes.set_xlabel(f"RHEL - BPTT, {unit}; bars: 95 % interval{'; hollow: none' if alone.any() else ''}")
