"""Reads what runs of RHEL and BPTT reached, and compares both with each other and with the paper.

Only result.json and metrics.jsonl of each run are read. Needs no jax.
"""

# pandas types what a row or a group holds as anything; the checker then warns of each use.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportGeneralTypeIssues=false
# pyright: reportIndexIssue=false

import json
import math
import re
from itertools import product
from pathlib import Path
from statistics import fmean

import pandas as pd
from scipy.stats import t as student_t

from experiment_configs.published_results import DATASETS, PUBLISHED

ALGORITHMS = ("BPTT", "RHEL")
CONFIDENCE = 0.95
# Accuracies are shown in %, errors in 1e-2, as in the paper.
SCALE = 100
UNITS = {"accuracy": ("accuracy, %", 1), "mse": ("mse, 1e-2", 2)}  # name and digits
RESULT_FIELDS = (
    *("metric", "test_metric", "val_metric", "best_step", "steps", "stop_reason", "parameters", "seconds"),
    *("seconds_per_1000_steps", "peak_memory_host_bytes", "peak_memory_device_bytes", "error"),
)
# Of the published protocol: runs of so many steps, unless they stop early, which they cannot before the 11th evaluation
# after the first.
PUBLISHED_SEEDS, STEPS, EVALUATIONS_EVERY, PATIENCE = 5, 100_000, 1_000, 10
FIRST_EARLY_STOP = EVALUATIONS_EVERY * (PATIENCE + 2)
LARGEST = 1e30  # nothing larger is drawn or taken for a result
SHORT = "*"  # marks such a mean
NOTE = (
    "Test metric of the model that was best on the validation set: mean ± sample standard deviation (n - 1) over n "
    "seeds; paper: mean ± std over five seeds. RHEL - BPTT: mean of the differences of the seeds that both have, with "
    "its 95 % interval by Student's t. Averages are over the sets that have both, seed by seed. "
    f"{SHORT}: fewer seeds or steps than those of the paper, to which the mean is no counterpart."
)


# Reading


def read_runs(outputs: Path) -> pd.DataFrame:
    """The runs below a folder, one per row: data set, model, algorithm, seed, status, folder and `RESULT_FIELDS`.

    The status is "completed", "failed", "unfinished" (no result yet) or "damaged" (a result that tells no metric).
    """
    rows = []
    for folder in outputs.glob("*/*_*/seed_*"):
        model, _, algorithm = folder.parent.name.rpartition("_")
        # Written as run_experiment.py writes it: seed_1 and seed_01 would be two runs of one seed.
        seed = re.fullmatch(r"seed_(0|[1-9][0-9]{0,9})", folder.name)
        if seed is None or algorithm not in ALGORITHMS or not folder.is_dir():
            continue
        result = _read_result(folder / "result.json")
        rows.append(
            {
                **{"dataset": folder.parent.parent.name, "model": model, "algorithm": algorithm},
                **{"seed": int(seed[1]), "status": result["status"], "folder": str(folder)},
                **{name: result.get(name) for name in RESULT_FIELDS},
            }
        )
    names = ["dataset", "model", "algorithm", "seed", "status", "folder", *RESULT_FIELDS]
    runs = pd.DataFrame(_of_one_metric(rows), columns=names)
    return runs.sort_values(names[:4], key=lambda column: column.map(_rank), ignore_index=True)


def _rank(name):
    """The published sets come first, in the paper's order."""
    if not isinstance(name, str):
        return name
    return f"{DATASETS.index(name) if name in DATASETS else len(DATASETS)} {name}"


def _read_result(path: Path) -> dict:
    if path.exists() and not path.is_file():  # reading a pipe would wait for ever
        return {"status": "damaged", "error": f"{path.name}: is not a regular file"}
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        completed = result["status"] == "completed"
        if completed:
            metric, value = result["metric"], result["test_metric"]
            if isinstance(value, bool) or not 0 <= value <= {"accuracy": 1, "mse": LARGEST}[metric]:
                raise ValueError(f"test_metric {_short(value)} is no {metric}")
        memory = result.get("peak_memory_bytes")
        if isinstance(memory, dict):
            result |= {f"peak_memory_{kind}_bytes": size for kind, size in memory.items()}
        # Numbers and texts alone, as runs.csv takes them.
        fields = {name: value for name, value in result.items() if isinstance(value, int | float | str)}
        return {**fields, "status": "completed" if completed else "failed"}
    except FileNotFoundError:
        return {"status": "unfinished"}
    # Any file may lie there.
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        return {"status": "damaged", "error": _short(f"{path.name}: {error!r}")}


def _short(value: object) -> str:
    text = repr(value) if not isinstance(value, str) else value
    return text if len(text) <= 200 else f"{text[:200]}.."


def _of_one_metric(rows: list[dict]) -> list[dict]:
    """The runs; those of a data set in which some are measured by accuracy and some by mse count as damaged."""
    metrics = {}
    for row in rows:
        if row["status"] == "completed":
            metrics.setdefault(row["dataset"], set()).add(row["metric"])
    return [
        {**row, "status": "damaged", "error": f"metric {row['metric']}: the runs of this set have two metrics"}
        if row["status"] == "completed" and len(metrics[row["dataset"]]) > 1
        else row
        for row in rows
    ]


def read_curve(folder: Path) -> pd.DataFrame:
    """The evaluations of a run: step, train_loss and val_metric. Lines that cannot be read are left out."""
    evaluations, names = [], ["step", "train_loss", "val_metric"]
    path = folder / "metrics.jsonl"
    try:
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
    except (OSError, ValueError):
        text = ""
    for line in text.splitlines():
        try:
            evaluation = dict(json.loads(line))
        except (ValueError, TypeError, RecursionError):
            continue
        evaluations.append([_number(evaluation.get(name)) for name in names])
    return pd.DataFrame(evaluations, columns=names, dtype=float)


def _number(value: object) -> float:
    """The value, or nan for what is no number or too large to be drawn."""
    return float(value) if isinstance(value, int | float) and abs(value) < LARGEST else math.nan


# Comparing


def compare(runs: pd.DataFrame) -> pd.DataFrame:
    """One row per data set and model, then the averages of each model over sets measured by accuracy.

    For each algorithm mean, std, n, short, paper_mean and paper_std; of RHEL - BPTT mean, low, high and pairs. What
    cannot be said is nan. "short" tells that a mean stands beside one of the paper and has fewer seeds or steps.
    """
    completed = runs[runs["status"] == "completed"]
    # Rows: metric, data set, model and seed; a column for each algorithm.
    scores = completed.pivot(index=["metric", "dataset", "model", "seed"], columns="algorithm", values="test_metric")
    scores = SCALE * scores.reindex(columns=ALGORITHMS).astype(float)
    short = {
        key
        for key, of_key in completed.groupby(["dataset", "model", "algorithm"])
        if key in PUBLISHED and (len(of_key) < PUBLISHED_SEEDS or not all(map(_is_whole, of_key.to_dict("records"))))
    }
    rows = []
    for (metric, dataset, model), values in scores.groupby(level=["metric", "dataset", "model"], sort=False):
        published = {algorithm: PUBLISHED.get((dataset, model, algorithm)) for algorithm in ALGORITHMS}
        of_row = {algorithm for algorithm in ALGORITHMS if (dataset, model, algorithm) in short}
        rows.append(_compared(dataset, model, metric, values, published, of_row))
    rows.sort(key=lambda row: (_rank(row["dataset"]), row["model"]))
    if "accuracy" in scores.index.levels[0]:
        for model, values in scores.loc["accuracy"].groupby(level="model"):
            rows += _averages(model, values.droplevel("model"), short)
    return pd.DataFrame(rows)


def _is_whole(run: dict) -> bool:
    """Whether a run has the steps of the published protocol, as far as its result tells."""
    least = {"num_steps": STEPS, "early_stopping": FIRST_EARLY_STOP}.get(run["stop_reason"], math.inf)
    return isinstance(run["steps"], int | float) and run["steps"] >= least


def _compared(dataset: str, model: str, metric: str, values: pd.DataFrame, published: dict, short: set[str]) -> dict:
    row = {"dataset": dataset, "model": model, "metric": metric}
    for algorithm in ALGORITHMS:
        column = values[algorithm].dropna()
        mean, std = published[algorithm] or (math.nan, math.nan)
        own = {"mean": column.mean(), "std": column.std(ddof=1), "n": len(column), "short": algorithm in short}
        row |= {f"{algorithm}_{name}": value for name, value in {**own, "paper_mean": mean, "paper_std": std}.items()}
    differences = (values["RHEL"] - values["BPTT"]).dropna()
    pairs, mean = len(differences), differences.mean()
    # nan for a single pair, which has no interval
    half = student_t.ppf((1 + CONFIDENCE) / 2, pairs - 1) * differences.std(ddof=1) / math.sqrt(max(pairs, 1))
    return row | {
        "difference_mean": mean,
        "difference_low": mean - half,
        "difference_high": mean + half,
        "pairs": pairs,
    }


def _averages(model: str, values: pd.DataFrame, short: set[tuple[str, str, str]]) -> list[dict]:
    """The mean over the data sets that have runs of both algorithms, and over the published ones among them.

    It is taken seed by seed, over the seeds that all these sets have, so that it has a paired difference too.
    """
    by_set = values.unstack("dataset")
    both = [name for name in by_set["BPTT"].columns if by_set[[("BPTT", name), ("RHEL", name)]].notna().any().all()]
    published = [name for name in both if (name, model, "RHEL") in PUBLISHED]
    rows = []
    # Where all sets are published, the two are one.
    for names, kind in {tuple(both): "sets", tuple(published): "published sets"}.items():
        if len(names) < 2:
            continue
        chosen = by_set.loc[:, [(algorithm, name) for algorithm in ALGORITHMS for name in names]].dropna()
        means = pd.DataFrame({algorithm: chosen[algorithm].mean(axis=1) for algorithm in ALGORITHMS})
        paper, of_row = dict.fromkeys(ALGORITHMS), set()
        if kind == "published sets":
            for algorithm in ALGORITHMS:
                paper[algorithm] = (fmean(PUBLISHED[name, model, algorithm][0] for name in names), math.nan)
            of_row = {algorithm for name, algorithm in product(names, ALGORITHMS) if (name, model, algorithm) in short}
        rows.append(_compared(f"average of {len(names)} {kind}", model, "accuracy", means, paper, of_row))
    return rows


def problems(runs: pd.DataFrame) -> list[str]:
    """A line for each data set, model and algorithm with runs that failed, are unfinished, damaged or missing.

    A seed that any run of a data set has is expected of both algorithms of every model found.
    """
    lines = []
    for dataset, of_set in runs.groupby("dataset", sort=False):
        for model in sorted(set(runs["model"])):
            for algorithm in ALGORITHMS:
                there = of_set[(of_set["model"] == model) & (of_set["algorithm"] == algorithm)].set_index("seed")
                found = [
                    f"seed {seed} {run['status']}" + (f" ({run['error']})" if isinstance(run["error"], str) else "")
                    for seed, run in there[there["status"] != "completed"].iterrows()
                ]
                missing = sorted(set(of_set["seed"]) - set(there.index))
                if missing:
                    found.append(f"missing: {', '.join(map(str, missing))}")
                if found:
                    lines.append(f"{dataset} {model} {algorithm}: {'; '.join(found)}")
    return lines
