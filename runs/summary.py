"""The files of a comparison: Markdown, LaTeX, CSV and figures."""

# pandas types what a row or a group holds as anything; the checker then warns of each use.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportGeneralTypeIssues=false
# pyright: reportIndexIssue=false

import math
import re
import textwrap
from itertools import cycle
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from common import style, tables
from common.files import replacing
from common.style import (
    BROAD,
    GREY,
    MARKERS,
    drawable,
    log_if_wide,
    save,
    series_colours,
    set_title,
    styled,
    whole_ticks,
)
from runs.choosing import RULE, by_validation
from runs.comparison import (
    ALGORITHMS,
    MARGIN,
    SHORT,
    Unit,
    compare,
    problems,
    read_curve,
    setting_order,
    unit_of,
)
from runs.differences import OF_SEEDS, bracketed, by_seed, draw_differences, over

MOST_ROWS = 12  # of learning curves
WIDTH = 100  # of the terminal
VALUES = ("mean", "std", "paper_mean", "paper_std")


def write(runs: pd.DataFrame, folder: Path, *, select: bool = False) -> tuple[str, list[str]]:
    """Write everything into a folder. With `select`, of the settings chosen by validation.

    Returns a text for a terminal, and what prevents a comparison.
    """
    (folder / "curves").mkdir(parents=True, exist_ok=True)
    compared, choices, failures = by_validation(runs) if select else (runs, [], [])
    comparison = compare(compared)
    if comparison.empty and not failures:
        failures = ["no run is completed"]
    rows, text = cells(comparison), note(comparison)
    gaps = problems(compared)
    notes = [
        *([textwrap.fill(RULE, WIDTH), "", *(f"- {line}" for line in choices), ""] if choices else []),
        *(["Runs that are missing, failed or no pair:", "", *(f"- {line}" for line in gaps)] if gaps else []),
        *(
            []
            if gaps or failures
            else ["No run of these settings has failed." if select else "No run is missing, and none has failed."]
        ),
    ]
    sections = ["# RHEL and BPTT", tables.markdown(rows), *([text] if text else []), "\n".join(notes).rstrip()]
    if len(seeds := by_seed(compared[compared["status"] == "completed"])) > 1:
        sections += ["## Seed by seed", tables.markdown(seeds), OF_SEEDS]
    figures = {"results.png": draw_results, "differences.png": draw_differences}
    drawn = {name: each for name, draw in figures.items() if not comparison.empty and (each := draw(comparison))}
    titles = {"results.png": "Test metric by data set", "differences.png": "RHEL - BPTT with its interval"}
    sections += [f"![{titles[name]}]({name})" for name in drawn]
    all_runs = runs.assign(selected=runs["folder"].isin(compared["folder"])) if select else runs
    texts = {
        "results.md": "\n\n".join(sections) + "\n",
        "results.tex": f"% {text}\n{tables.latex(rows)}\n",
        "results.csv": _csv(_comparison_in_units(comparison)),
        "runs.csv": _csv(_runs_in_units(all_runs)),
    }
    for name, content in texts.items():
        with replacing(folder / name) as temporary:
            temporary.write_text(content, encoding="utf-8", errors="backslashreplace")
    for name, figure in drawn.items():
        save(figure, folder / name)
    for dataset, of_set in _titled(compared[compared["status"] == "completed"]).groupby("dataset"):
        save(draw_learning_curves(dataset, of_set), folder / "curves" / f"{dataset}.png")
    shown = [] if comparison.empty else [tables.aligned(narrow(comparison)), "", textwrap.fill(text, WIDTH), ""]
    return "\n".join([*shown, *notes]).rstrip(), failures


def note(comparison: pd.DataFrame) -> str:
    """What the numbers of the tables are, and the marks that occur."""
    if comparison.empty:
        return ""
    paper = _has_paper(comparison)
    short = comparison[[f"{name}_short" for name in ALGORITHMS]].any(axis=None)
    pairs, averages = comparison["pairs"] > 0, comparison["dataset"].str.startswith("average of ")
    text = "Test metric of the model that was best on the validation set: mean ± sample standard deviation over "
    text += f"the seeds{'; paper: mean ± std over five seeds' if paper else ''}."
    if pairs.any():
        text += " RHEL - BPTT: mean of the differences of the seeds that both have"
        text += ", with its 95 % interval by Student's t." if comparison["difference_low"].notna().any() else "."
    if (comparison["difference_samples"] > 0).any():
        text += " Where the samples are named, the interval is over them, too: it holds for new test samples."
    if ((comparison["difference_samples"] > 0) & (comparison["pairs"] == 1)).any():
        text += " Of a single seed, it holds for this seed alone."
    if (pairs & comparison["difference_low"].isna()).any():
        text += " A single pair without answers, or equal differences of all pairs, have no interval."
    if comparison["difference_within"].notna().any():
        text += f" Within ± {MARGIN:g}: by two one-sided tests of 5 %, which is whether the 90 % interval lies in"
        text += f" ± {MARGIN:g}; no: not shown."
    if averages.any():
        text += " Averages are over the sets that have both, seed by seed, with an interval over the seeds alone."
    if [row for row in zip(comparison["dataset"], comparison["metric"], strict=True) if unit_of(*row).name == "mse"]:
        text += " mse: in the squared unit of the labels."
    if short:
        text += (
            f" {SHORT}: the mean has fewer seeds or steps than the mean of the paper, so the two cannot be compared."
        )
    return text


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


def _csv(table: pd.DataFrame) -> str:
    """The table as CSV. A text that a spreadsheet would take for a formula gets a quote in front."""

    def cell(value: object) -> object:
        return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value

    return table.map(cell).to_csv(index=False)


def _by_metric(table: pd.DataFrame, names: list[str], factors: dict[str, float | pd.Series]) -> pd.DataFrame:
    """The table with a column for each metric that occurs in place of each of `names`: x_accuracy_percent, x_mse."""
    parts = []
    for name in table:
        metrics = [metric for metric in factors if (table["metric"] == metric).any()] if name in names else []
        parts += [
            (table[name].where(table["metric"] == metric).astype(float) * factors[metric]).rename(
                f"{name.removesuffix('_metric')}_{'accuracy_percent' if metric == 'accuracy' else metric}"
            )
            for metric in metrics
        ] or [table[name]]
    return pd.concat(parts, axis=1)


def _comparison_in_units(comparison: pd.DataFrame) -> pd.DataFrame:
    if comparison.empty:
        return comparison
    names = [f"{algorithm}_{name}" for algorithm in ALGORITHMS for name in VALUES]
    names += [f"difference_{name}" for name in ("mean", "low", "high")]
    scales = [unit_of(*row).scale for row in zip(comparison["dataset"], comparison["metric"], strict=True)]
    return _by_metric(comparison, names, {"accuracy": 1.0, "mse": 1 / pd.Series(scales)})


def _runs_in_units(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs; of several outputs, each has a column with its mse."""
    outputs = [value if isinstance(value, dict) else {} for value in runs["test_mse_of_outputs"]]
    outputs = pd.DataFrame(outputs, index=runs.index).add_prefix("test_mse_of_")
    runs = runs.drop(columns=["test_mse_of_outputs", "answers"])
    for name in ("test_metric", "val_metric"):
        runs[name] = [value if tables.is_number(value) else math.nan for value in runs[name]]
    return pd.concat(
        [_by_metric(runs, ["test_metric", "val_metric"], {"accuracy": 100.0, "mse": 1.0}), outputs], axis=1
    )


def cells(comparison: pd.DataFrame) -> list[tuple[str, ...]]:
    """The comparison as text, its header first. The columns of the paper are left out if it has none of the sets."""
    settings = not comparison.empty and bool(comparison["setting"].any())
    chosen = not comparison.empty and bool(comparison[[f"{name}_setting" for name in ALGORITHMS]].any(axis=None))
    paper = _has_paper(comparison)
    own = ("seeds", "steps", *["setting"] * chosen)
    head = [text for algorithm in ALGORITHMS for text in (algorithm, *own, *[f"{algorithm}, paper"] * paper)]
    names = ("data set", "model", *["setting"] * settings, "metric")
    cells = [(*names, *head, "RHEL - BPTT", "95 % interval", "over", f"within ± {MARGIN:g}")]
    for _, row in comparison.iterrows():
        unit = unit_of(row["dataset"], row["metric"])
        columns = [
            text
            for algorithm in ALGORITHMS
            for text in (
                _marked(row, algorithm, unit),
                str(row[f"{algorithm}_n"]),
                *(row[f"{algorithm}_{name}"] or "-" for name in own[1:]),
                *[_spread(row[f"{algorithm}_paper_mean"], row[f"{algorithm}_paper_std"], unit)] * paper,
            )
        ]
        names = (row["dataset"], row["model"], *[row["setting"]] * settings)
        difference = unit.text(row["difference_mean"]), bracketed(row["difference_low"], row["difference_high"], unit)
        difference = (*difference, over(row), {True: "yes", False: "no"}.get(row["difference_within"], "-"))
        cells.append((*names, unit.name, *columns, *difference))
    return cells


def _has_paper(comparison: pd.DataFrame) -> bool:
    """Whether any row has a value of the paper."""
    columns = [f"{name}_paper_mean" for name in ALGORITHMS]
    return not comparison.empty and bool(comparison[columns].notna().any(axis=None))


def narrow(comparison: pd.DataFrame) -> list[tuple[str, ...]]:
    """The comparison in fewer columns, for a terminal, its header first. Intervals that are too wide are left out."""
    settings = bool(comparison["setting"].any())
    for interval in (True, False):
        rows = [("data set", "model", *["setting"] * settings, "metric", *ALGORITHMS, "RHEL - BPTT", "steps", "seeds")]
        for _, row in comparison.iterrows():
            unit = unit_of(row["dataset"], row["metric"])
            difference = unit.text(row["difference_mean"])
            if interval and not math.isnan(row["difference_low"]):
                difference += f" {bracketed(row['difference_low'], row['difference_high'], unit)}"
            of_both = [
                " / ".join(dict.fromkeys(str(row[f"{name}_{column}"]) for name in ALGORITHMS if row[f"{name}_n"]))
                or "-"
                for column in ("steps", "n")
            ]
            names = (row["dataset"], row["model"], *[row["setting"]] * settings, unit.name.replace("accuracy, ", ""))
            rows.append((*names, *(_marked(row, name, unit) for name in ALGORITHMS), difference, *of_both))
        if max(map(len, tables.aligned(rows).splitlines())) <= WIDTH:
            break
    return rows


def _spread(mean: float, std: float, unit: Unit) -> str:
    return unit.text(mean) if math.isnan(std) else f"{unit.text(mean)} ± {unit.text(std)}"


def _marked(row: pd.Series, algorithm: str, unit: Unit) -> str:
    text = _spread(row[f"{algorithm}_mean"], row[f"{algorithm}_std"], unit)
    return f"{text} {SHORT}" if row[f"{algorithm}_short"] else text


@styled
def draw_results(comparison: pd.DataFrame) -> Figure:
    """Mean and standard deviation by data set: a row of axes for each model, a column for each metric.

    Where the table has settings, a data set has a place for each of them. Their numbers are explained below the axes.
    """
    table = comparison.assign(
        place=list(zip(comparison["dataset"], comparison["setting"], strict=True)),
        unit=[unit_of(*row).name for row in zip(comparison["dataset"], comparison["metric"], strict=True)],
    )
    models = sorted(set(table["model"]))
    units = sorted(set(table["unit"]))
    settings = {name: number for number, name in enumerate(sorted(set(table["setting"]), key=setting_order), 1)}
    order = list(dict.fromkeys(table["dataset"]))
    places = {
        unit: sorted(
            set(table.loc[table["unit"] == unit, "place"]),
            key=lambda place: (order.index(place[0]), settings[place[1]]),
        )
        for unit in units
    }
    widths = [max(len(of_unit), 2) for of_unit in places.values()]
    width = max(5.6, 1.4 * len(units) + 0.75 * sum(widths))
    key = _key(table, settings, int(14 * width))
    size = (width, 0.9 + 2.6 * len(models) + 0.16 * key.count("\n"))
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(len(models), len(units), squeeze=False, sharex="col", width_ratios=widths)
    drawn = {}
    for model, of_model in zip(models, grid, strict=True):
        for unit, axes in zip(units, of_model, strict=True):
            rows = table[(table["model"] == model) & (table["unit"] == unit)]
            drawn |= _draw_means(axes, rows, places[unit], settings)
            axes.set_ylabel(f"test {unit}")
            axes.set_title(drawable(model))
            if rows.empty:
                axes.set_yticks([])
                axes.text(0.5, 0.5, "no runs", transform=axes.transAxes, ha="center", va="center", color=GREY)
    names = [name for algorithm in ALGORITHMS for name in (algorithm, f"{algorithm}, paper") if name in drawn]
    figure.legend([drawn[name] for name in names], names, loc="outside upper center", ncols=4)
    figure.supxlabel(key, x=0.02, ha="left", fontsize=8)
    return figure


def _key(table: pd.DataFrame, settings: dict[str, int], width: int) -> str:
    """What the bars, marks and numbers of settings are, in lines of a width."""
    cut = ", cut at 0 and 100 %" if (table["metric"] == "accuracy").any() else ""
    lines = [f"bars: ± one standard deviation over the seeds{cut}"]
    if table[[f"{name}_short" for name in ALGORITHMS]].any(axis=None):
        lines.append(f"{SHORT}: fewer seeds or steps than the paper")
    lines += [f"{number}: {name}" for name, number in settings.items() if name]
    return "\n".join(_wrapped(line, width) for line in lines)


def _wrapped(text: str, width: int) -> str:
    """The text in lines. A line ends after a comma, never within a number."""
    spaced = re.sub(r",(?=\S)", ", ", drawable(text, 1000))
    return textwrap.fill(spaced, width, break_long_words=False, break_on_hyphens=False)


def _draw_means(axes: Axes, rows: pd.DataFrame, places: list[tuple[str, str]], settings: dict[str, int]) -> dict:
    """Draw the means and deviations of one model and metric. Returns {label: what the legend shows of it}."""
    drawn = {}
    percent = bool((rows["metric"] == "accuracy").any())
    present = [algorithm for algorithm in ALGORITHMS if rows[f"{algorithm}_mean"].notna().any()]
    for offset, algorithm in zip((-0.17, 0.13) if len(present) == 2 else (-0.05,), present, strict=False):
        line = style.ALGORITHMS[algorithm]
        for source, shift in (("", 0.0), ("paper_", 0.1)):
            means, stds = (rows[f"{algorithm}_{source}{name}"] for name in ("mean", "std"))
            if not means.notna().any():
                continue
            x = [places.index(place) + offset + shift for place in rows["place"]]
            down, up = (stds.clip(upper=means), stds.clip(upper=100 - means)) if percent else (stds, stds)
            drawn[f"{algorithm}, paper" if source else algorithm] = axes.errorbar(
                x,
                means,
                [down, up],  # nan, of a single seed, draws no bar
                **{"fmt": line["marker"], "color": line["color"], "markersize": 5, "elinewidth": 1, "capsize": 2},
                **({"markerfacecolor": "white", "alpha": 0.8} if source else {}),
                clip_on=False,
            )
            for at, mean, short in zip(x, means, rows[f"{algorithm}_short"], strict=True):
                if short and not source:
                    axes.annotate(SHORT, (at, mean), (4, 2), textcoords="offset points", color=line["color"])
    labels = [drawable(name, 32) + (f"\n{settings[setting]}" if setting else "") for name, setting in places]
    if max(len(line) for label in labels for line in label.splitlines()) <= 12:
        axes.set_xticks(range(len(places)), labels)
    else:
        axes.set_xticks(range(len(places)), labels, rotation=30, ha="right", rotation_mode="anchor")
    margin = 0.5 if len(places) > 1 else 1.0
    axes.set_xlim(-margin, len(places) - 1 + margin)
    if percent:
        low, high = axes.get_ylim()
        axes.set_ylim(max(low, 0), min(high, 100))
    elif not rows.empty:
        log_if_wide(axes, rows[[f"{name}_mean" for name in present]].to_numpy().ravel())
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
    every = sorted(runs.groupby(["model", "setting"]), key=lambda group: (group[0][0], setting_order(group[0][1])))
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
            axes.set(xlabel="step", ylabel=label, title=f"{drawable(model)}\n{_wrapped(setting, 56)}".strip())
            whole_ticks(axes)
    named = {name: line for name, line in lines.items() if name in set(runs["algorithm"])}
    named |= {f"seed {seed}": {**points, "linewidth": 2.5} for seed, points in seed_styles.items()}
    handles = [Line2D([], [], label=name, **line) for name, line in named.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 7))
    return figure
