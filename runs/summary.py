"""The files of a comparison: Markdown, LaTeX, CSV and figures."""

# pandas types what a row or a group holds as anything; the checker then warns of each use.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportGeneralTypeIssues=false
# pyright: reportIndexIssue=false

import math
from itertools import cycle
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from common import style, tables
from common.files import replacing
from common.style import BROAD, GREY, MARKERS, drawable, log_if_wide, save, series_colours, set_title, styled
from runs.choosing import RULE, by_validation
from runs.comparison import ALGORITHMS, NOTE, SHORT, UNITS, compare, problems, read_curve

MOST_ROWS = 12  # of learning curves


def write(runs: pd.DataFrame, folder: Path, *, select: bool = False) -> str:
    """Write everything into a folder and return the Markdown. With `select`, of the settings chosen by validation."""
    (folder / "curves").mkdir(parents=True, exist_ok=True)
    compared, choices = by_validation(runs) if select else (runs, [])
    comparison = compare(compared)
    rows = cells(comparison)
    gaps = problems(compared)
    report = "\n".join(
        [
            *("# RHEL and BPTT", "", tables.markdown(rows), "", NOTE, ""),
            *([RULE, "", *(f"- {line}" for line in choices), ""] if select else []),
            *("Runs that are missing or failed:" if gaps else "No run is missing and none has failed.", ""),
            *(f"- {line}" for line in gaps),
        ]
    )
    all_runs = runs.assign(selected=runs["folder"].isin(compared["folder"])) if select else runs
    texts = {
        "results.md": f"{report.rstrip()}\n\n![Test metric by data set](results.png)\n",
        "results.tex": f"% {NOTE}\n{tables.latex(rows)}\n",
        "results.csv": comparison.map(_as_cell).to_csv(index=False),
        "runs.csv": all_runs.map(_as_cell).to_csv(index=False),
    }
    for name, text in texts.items():
        with replacing(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
    if not comparison.empty:
        save(draw_results(comparison), folder / "results.png")
    for dataset, of_set in _titled(compared[compared["status"] == "completed"]).groupby("dataset"):
        save(draw_learning_curves(dataset, of_set), folder / "curves" / f"{dataset}.png")
    return report.rstrip()


def _titled(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs. Chosen ones get back a setting: the one that both algorithms have, or both settings in one text."""
    if "taken" not in runs:
        return runs
    texts = {}
    for key, of_key in runs.groupby(["dataset", "model"]):
        names = dict(zip(of_key["algorithm"], of_key["taken"], strict=True))
        each = ", ".join(f"{algorithm} {name}" for algorithm, name in names.items())
        texts[key] = next(iter(names.values())) if len(set(names.values())) == 1 else each
    return runs.assign(setting=[texts[key] for key in zip(runs["dataset"], runs["model"], strict=True)])


def _as_cell(value: object) -> object:
    """The value. A text that a spreadsheet would take for a formula gets a quote in front."""
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value


def cells(comparison: pd.DataFrame) -> list[tuple[str, ...]]:
    """The comparison as text, its header first."""
    settings = not comparison.empty and bool(comparison["setting"].any())
    chosen = not comparison.empty and bool(comparison[[f"{name}_setting" for name in ALGORITHMS]].any(axis=None))
    own = ("seeds", "steps", *["setting"] * chosen)
    head = [text for algorithm in ALGORITHMS for text in (algorithm, *own, f"{algorithm}, paper")]
    names = ("data set", "model", *["setting"] * settings, "metric")
    cells = [(*names, *head, "RHEL - BPTT", "95 % interval", "pairs")]
    for _, row in comparison.iterrows():
        unit, digits = UNITS[row["metric"]]

        def number(value, digits=digits):
            return "-" if math.isnan(value) else f"{value:{digits}}"

        def spread(mean, std, number=number):
            return "-" if math.isnan(mean) else number(mean) if math.isnan(std) else f"{number(mean)} ± {number(std)}"

        columns = [
            text
            for algorithm in ALGORITHMS
            for text in (
                spread(row[f"{algorithm}_mean"], row[f"{algorithm}_std"])
                + (f" {SHORT}" if row[f"{algorithm}_short"] else ""),
                str(row[f"{algorithm}_n"]),
                *(row[f"{algorithm}_{name}"] or "-" for name in own[1:]),
                spread(row[f"{algorithm}_paper_mean"], row[f"{algorithm}_paper_std"]),
            )
        ]
        low, high = number(row["difference_low"]), number(row["difference_high"])
        interval = "-" if low == "-" else f"[{low}, {high}]"
        difference = number(row["difference_mean"])
        names = (row["dataset"], row["model"], *[row["setting"]] * settings)
        cells.append((*names, unit, *columns, difference, interval, str(row["pairs"])))
    return cells


@styled
def draw_results(comparison: pd.DataFrame) -> Figure:
    """Mean and standard deviation by data set: a row of axes for each model, a column for each metric.

    Where there is a column "setting", a data set has a place for each of its settings.
    """
    table = _with_setting(comparison)
    table = table.assign(place=list(zip(table["dataset"], table["setting"], strict=True)))
    models = sorted(set(table["model"]))
    metrics = [metric for metric in UNITS if metric in set(table["metric"])]
    places = {metric: list(dict.fromkeys(table.loc[table["metric"] == metric, "place"])) for metric in metrics}
    widths = [max(len(of_metric), 2) for of_metric in places.values()]
    figure = Figure(
        figsize=(max(5.6, 1.4 * len(metrics) + 0.75 * sum(widths)), 0.9 + 2.6 * len(models)), layout="constrained"
    )
    grid = figure.subplots(len(models), len(metrics), squeeze=False, sharex="col", width_ratios=widths)
    drawn = {}
    for model, of_model in zip(models, grid, strict=True):
        for metric, axes in zip(metrics, of_model, strict=True):
            rows = table[(table["model"] == model) & (table["metric"] == metric)]
            drawn |= _draw_means(axes, rows, places[metric])
            axes.set_ylabel(f"test {UNITS[metric][0]}")
            axes.set_title(drawable(model))
            if rows.empty:
                axes.set_yticks([])
                axes.text(0.5, 0.5, "no runs", transform=axes.transAxes, ha="center", va="center", color=GREY)
    order = [name for algorithm in ALGORITHMS for name in (algorithm, f"{algorithm}, paper") if name in drawn]
    figure.legend([drawn[name] for name in order], order, loc="outside upper center", ncols=4)
    return figure


def _with_setting(table: pd.DataFrame) -> pd.DataFrame:
    """The table with a column "setting", which is empty where there is none."""
    return table.assign(setting=table["setting"].fillna("") if "setting" in table else "")


def _label(name: str, setting: str, most: int) -> str:
    """The name, and below it the setting if there is one."""
    return drawable(name, most) + (f"\n{drawable(setting, most)}" if setting else "")


def _draw_means(axes: Axes, rows: pd.DataFrame, places: list[tuple[str, str]]) -> dict:
    """Draw the means and deviations of one model and metric. Returns {label: what the legend shows of it}."""
    drawn = {}
    present = [algorithm for algorithm in ALGORITHMS if rows[f"{algorithm}_mean"].notna().any()]
    for offset, algorithm in zip((-0.17, 0.13) if len(present) == 2 else (-0.05,), present, strict=False):
        line = style.ALGORITHMS[algorithm]
        for source, shift in (("", 0.0), ("paper_", 0.1)):
            means = rows[f"{algorithm}_{source}mean"]
            if not means.notna().any():
                continue
            drawn[f"{algorithm}, paper" if source else algorithm] = axes.errorbar(
                [places.index(place) + offset + shift for place in rows["place"]],
                means,
                rows[f"{algorithm}_{source}std"],  # nan, of a single seed, draws no bar
                **{"fmt": line["marker"], "color": line["color"], "markersize": 5, "elinewidth": 1, "capsize": 2},
                **({"markerfacecolor": "white", "alpha": 0.8} if source else {}),
            )
    labels = [_label(*place, 32) for place in places]
    if max(len(line) for label in labels for line in label.splitlines()) <= 12:
        axes.set_xticks(range(len(places)), labels)
    else:
        axes.set_xticks(range(len(places)), labels, rotation=30, ha="right", rotation_mode="anchor")
    margin = 0.5 if len(places) > 1 else 1.0
    axes.set_xlim(-margin, len(places) - 1 + margin)
    axes.grid(axis="y", color="0.9")
    axes.set_axisbelow(True)
    return drawn


@styled
def draw_learning_curves(dataset: str, runs: pd.DataFrame) -> Figure:
    """Training loss and validation metric against the step: a row of axes for each model, or for each of its settings.

    A seed has a colour and a marker. Broad lines are BPTT, thin ones RHEL, so that both are seen where they coincide.
    """
    lines = {"BPTT": {"color": "black", **BROAD}, "RHEL": {"color": "black"}}
    seeds = sorted(set(runs["seed"]))
    points = zip(seeds, series_colours(len(seeds)), cycle(MARKERS), strict=False)
    seed_styles = {seed: {"color": colour, "marker": marker} for seed, colour, marker in points}
    every = list(_with_setting(runs).groupby(["model", "setting"]))
    shown = every[:MOST_ROWS]
    figure = Figure(figsize=(9, 0.9 + 2.5 * len(shown)), layout="constrained")
    set_title(figure, dataset + (f", {MOST_ROWS} of {len(every)} settings" if len(every) > MOST_ROWS else ""))
    grid = figure.subplots(len(shown), 2, squeeze=False)
    for ((model, setting), rows), of_setting in zip(shown, grid, strict=True):
        losses = []
        for algorithm, line in lines.items():
            for _, run in rows[rows["algorithm"] == algorithm].iterrows():
                curve = read_curve(Path(run["folder"]))
                losses += curve["train_loss"].to_list()
                drawn = {**line, **seed_styles[run["seed"]], "markevery": max(1, len(curve) // 8)}
                for axes, quantity in zip(of_setting, ("train_loss", "val_metric"), strict=True):
                    axes.plot(curve["step"], curve[quantity], **drawn)
        log_if_wide(of_setting[0], losses)
        for axes, label in zip(of_setting, ("training loss", f"validation {rows['metric'].iloc[0]}"), strict=True):
            axes.set(xlabel="step", ylabel=label, title=_label(model, setting, 56))
    named = {name: line for name, line in lines.items() if name in set(runs["algorithm"])}
    named |= {f"seed {seed}": {**points, "linewidth": 2.5} for seed, points in seed_styles.items()}
    handles = [Line2D([], [], label=name, **line) for name, line in named.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 7))
    return figure
