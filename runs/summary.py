"""The files of a comparison: Markdown, LaTeX, CSV and figures."""

# pandas types what a row or a group holds as anything; the checker then warns of each use.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportGeneralTypeIssues=false
# pyright: reportIndexIssue=false

import math
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from common import tables
from common.files import replacing
from runs.choosing import RULE, by_validation
from runs.comparison import ALGORITHMS, NOTE, SHORT, UNITS, compare, problems, read_curve
from runs.figures import save

COLOURS = {"BPTT": "tab:orange", "RHEL": "tab:blue"}


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
        names = dict(
            zip(of_key["algorithm"], of_key["taken"].str.replace(r" \(of \d+\)$", "", regex=True), strict=True)
        )
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
            return "-" if math.isnan(value) else f"{value:.{digits}f}"

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


def _drawable(name: str) -> str:
    """The name. Bytes of a file name that are no text are written as escapes, because matplotlib refuses them."""
    return name.encode(errors="backslashreplace").decode()


def draw_results(comparison: pd.DataFrame) -> Figure:
    """Mean and standard deviation by data set: a row of axes for each model, a column for each metric."""
    models = sorted(set(comparison["model"]))
    metrics = [metric for metric in UNITS if metric in set(comparison["metric"])]
    widths = [comparison.loc[comparison["metric"] == metric, "dataset"].nunique() for metric in metrics]
    figure = Figure(figsize=(3.5 + 1.2 * sum(widths), 3.2 * len(models)), layout="constrained")
    grid = figure.subplots(len(models), len(metrics), squeeze=False, width_ratios=widths)
    for model, of_model in zip(models, grid, strict=True):
        for metric, axes in zip(metrics, of_model, strict=True):
            rows = comparison[(comparison["model"] == model) & (comparison["metric"] == metric)]
            for offset, algorithm in zip((-0.12, 0.12), ALGORITHMS, strict=True):
                for source, shift, filled in (("", 0.0, True), ("paper_", 0.08, False)):
                    axes.errorbar(
                        [place + offset + shift for place in range(len(rows))],
                        rows[f"{algorithm}_{source}mean"],
                        rows[f"{algorithm}_{source}std"].fillna(0),
                        fmt="o",
                        capsize=3,
                        color=COLOURS[algorithm],
                        alpha=1.0 if filled else 0.5,
                        markerfacecolor=None if filled else "white",
                        label=algorithm if filled else f"{algorithm}, paper",
                    )
            axes.set_xticks(range(len(rows)), rows["dataset"].map(_drawable), rotation=20, ha="right", parse_math=False)
            axes.set_xlim(-0.5, max(len(rows), 1) - 0.5)
            axes.set_ylabel(f"test {UNITS[metric][0]}")
            axes.set_title(_drawable(model), parse_math=False)
    figure.legend(*grid[0][0].get_legend_handles_labels(), loc="outside upper center", ncols=4, frameon=False)
    return figure


def draw_learning_curves(dataset: str, runs: pd.DataFrame) -> Figure:
    """Training loss and validation metric against the step, a line per seed: a row of axes for each model."""
    models = sorted(set(runs["model"]))
    figure = Figure(figsize=(9, 3.2 * len(models)), layout="constrained")
    figure.suptitle(f"{_drawable(dataset)}, one line per seed", parse_math=False)
    grid = figure.subplots(len(models), 2, squeeze=False)
    for model, of_model in zip(models, grid, strict=True):
        for _, run in runs[runs["model"] == model].iterrows():
            curve = read_curve(Path(run["folder"]))
            for axes, quantity in zip(of_model, ("train_loss", "val_metric"), strict=True):
                # Dashes let the other algorithm be seen where the two coincide.
                style = {"color": COLOURS[run["algorithm"]], "linestyle": "--" if run["algorithm"] == "RHEL" else "-"}
                axes.plot(curve["step"], curve[quantity], **style, alpha=0.7, label=run["algorithm"])
        for axes, label in zip(of_model, ("training loss", f"validation {run['metric']}"), strict=True):
            axes.set_xlabel("step")
            axes.set_ylabel(label)
            axes.set_title(_drawable(model), parse_math=False)
            handles, labels = axes.get_legend_handles_labels()
            once = dict(zip(labels, handles, strict=True))
            axes.legend(once.values(), once.keys(), frameon=False, fontsize="small")
    return figure
