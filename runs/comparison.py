"""Reads the results of runs by RHEL and BPTT, and compares them with each other and with the paper.

It reads only result.json and metrics.jsonl of each run. It needs no jax. A setting has the name of its folder: runs of
one data set, model, algorithm and seed in several folders have several settings.
"""

# pandas types what a row or a group holds as anything; the checker then warns of each use.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportGeneralTypeIssues=false
# pyright: reportIndexIssue=false

import json
import math
import os
import re
from collections.abc import Iterable
from itertools import chain, product
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import pandas as pd

from common import tables
from experiment_configs.published_results import DATASETS, PUBLISHED
from runs.paired import Answers, Pair, answers_of, difference

ALGORITHMS = ("BPTT", "RHEL")
MARGIN = 2.0  # of the test of equivalence, in % of accuracy
LARGEST = {"accuracy": 1, "mse": 1e30}  # a larger test metric means that the file is damaged
RESULT_FIELDS = (
    *("metric", "test_metric", "val_metric", "val_loss", "best_step", "steps", "stop_reason", "parameters", "seconds"),
    *("seconds_per_1000_steps", "peak_memory_host_bytes", "peak_memory_device_bytes", "error"),
    "test_mse_of_outputs",  # {name of the output: mse}
    "answers",  # `runs.paired.Answers` of the test part, or None
)
CURVE_FIELDS = ["step", "train_loss", "val_metric"]
# The published protocol: 5 seeds, and 100,000 steps unless early stopping ends the run. It cannot do so before the 11th
# evaluation after the first.
PUBLISHED_SEEDS, STEPS, EVALUATIONS_EVERY, PATIENCE = 5, 100_000, 1_000, 10
LEAST_STEPS = {"num_steps": STEPS, "early_stopping": EVALUATIONS_EVERY * (PATIENCE + 2)}
SHORT = "*"
CONFIGURED = "(as configured)"  # the setting of the runs beside the folders of --set
LONGEST_ERROR = 140


class Unit(NamedTuple):
    """How the values of a metric are shown."""

    scale: float
    name: str
    digits: str

    def text(self, value: float) -> str:
        """A scaled value; "-" for nan."""
        return "-" if math.isnan(value) else f"{value:z{self.digits}}"


def unit_of(dataset: str, metric: str) -> Unit:
    """Accuracies are shown in %; the error of the published regression in 1e-2, as in the paper, others as they are."""
    if metric == "accuracy":
        return Unit(100, "accuracy, %", ".1f")
    return Unit(100, "mse, 1e-2", ".2f") if dataset in DATASETS else Unit(1, "mse", ".4g")


def setting_order(name: str) -> list:
    """A key that sorts the names of settings by the numbers in them: 8 before 16, and 1e-4 before 0.001."""
    parts = re.split(r"((?:(?<==)-)?\d+(?:\.\d+)?(?:e[+-]?\d+)?)", name)
    return [float(part) if place % 2 else part for place, part in enumerate(parts)]


def numbered(name: str, numbers: Iterable[int]) -> str:
    """The name and its numbers: "seed 1", or "seeds 1, 2"."""
    numbers = sorted(numbers)
    return f"{name}{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))}"


def read_runs(*outputs: Path) -> pd.DataFrame:
    """The runs below folders, one per row: data set, model, algorithm, seed, setting, status, folder, `RESULT_FIELDS`.

    Below a folder, the folders that --set names (lr=0.003) are read, too, and those below them. "setting" is the path
    of the folder that holds the data sets, without what is common to all of them; "" if there is only one. The rows
    have the order of `setting_order`.

    The status is "completed", "failed", "unfinished" (no result.json) or "damaged" (no sound metric in result.json, or
    not the metric of the other runs of the data set).
    """
    parents = {parent.resolve(): parent for folder in outputs for parent in _parents(folder)}
    read = {path: rows for path, parent in parents.items() if (rows := _rows(parent))}
    settings = _settings(list(read))
    rows = [row | {"setting": settings[path]} for path, of_parent in read.items() for row in of_parent]
    rows.sort(key=lambda row: (_order(row)[:3], row["algorithm"], _order(row)[3], row["seed"]))
    names = ["dataset", "model", "algorithm", "setting", "seed", "status", "folder", *RESULT_FIELDS]
    return _of_one_metric(pd.DataFrame(rows, columns=names))


def _parents(folder: Path) -> list[Path]:
    """The folder, and the folders of settings below it."""
    return [folder, *chain.from_iterable(map(_parents, sorted(folder.glob("*=*"))))]


def _rows(parent: Path) -> list[dict]:
    rows = []
    for folder in parent.glob("*/*_*/seed_*"):
        model, _, algorithm = folder.parent.name.rpartition("_")
        # As run_experiment.py writes it: seed_1 and seed_01 would be two runs of one seed.
        seed = re.fullmatch(r"seed_(0|[1-9]\d*)", folder.name, re.ASCII)
        if seed is not None and algorithm in ALGORITHMS:
            names = {"dataset": folder.parent.parent.name, "model": model, "algorithm": algorithm, "seed": int(seed[1])}
            # The names of the folder win: a copied folder may hold another seed in its result.json.
            rows.append(_read_result(folder / "result.json") | names | {"folder": str(folder)})
    return rows


def _settings(parents: list[Path]) -> dict[Path, str]:
    """The name of each folder: its path below the folder that is common to all. That folder itself is `CONFIGURED`."""
    if len(parents) < 2:
        return dict.fromkeys(parents, "")
    common = Path(os.path.commonpath(parents))
    return {path: CONFIGURED if path == common else str(path.relative_to(common)) for path in parents}


def _of_one_metric(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs. If a data set has runs of two metrics, these runs count as damaged: they have no common mean."""
    completed = runs["status"] == "completed"
    metrics = runs["metric"].where(completed).groupby(runs["dataset"]).transform("nunique")
    mixed = completed & metrics.gt(1)
    why = ": other runs of this data set have another metric; keep them in another folder"
    error = runs["error"].mask(mixed, "metric " + runs["metric"].astype(str) + why)
    return runs.assign(status=runs["status"].mask(mixed, "damaged"), error=error)


def _order(row: dict) -> tuple:
    """The published sets come first, in the order of the paper."""
    dataset = row["dataset"]
    rank = DATASETS.index(dataset) if dataset in DATASETS else len(DATASETS)
    return rank, dataset, row["model"], setting_order(row["setting"])


def _read_result(path: Path) -> dict:
    """The status of a run, and the numbers and texts of its result."""
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        completed = result["status"] == "completed"
        value = result.get("test_metric")
        if completed and (isinstance(value, bool) or not 0 <= value <= LARGEST[result["metric"]]):
            raise ValueError(f"test_metric {value} is no {result['metric']}")
        memory = result.get("peak_memory_bytes")
        if isinstance(memory, dict):
            result |= {f"peak_memory_{kind}_bytes": size for kind, size in memory.items()}
        answers = answers_of(result) if completed else None
        return result | {"status": "completed" if completed else "failed", "answers": answers}
    except FileNotFoundError:
        return {"status": "unfinished"}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        return {"status": "damaged", "error": f"{path.name}: {error!r}"}


def read_curve(folder: Path) -> pd.DataFrame:
    """`CURVE_FIELDS` of the evaluations of a run; no evaluations if metrics.jsonl is damaged."""
    try:
        lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        return pd.DataFrame(map(json.loads, lines), columns=CURVE_FIELDS, dtype=float)
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return pd.DataFrame(columns=CURVE_FIELDS, dtype=float)


def compare(runs: pd.DataFrame) -> pd.DataFrame:
    """One row per data set, model and setting, then the averages of each model over the sets measured by accuracy.

    Columns of each algorithm: mean, std, n, steps, short, paper_mean and paper_std, and setting for `selected` runs; of
    RHEL - BPTT as in `runs.paired.Difference`: mean, low, high, pairs, samples, within. A value that does not exist is
    nan, None, or an empty text. "short" is true for a mean of fewer seeds or steps than the mean of the paper.
    """
    rows, averages = [], []
    for setting, of_setting in runs[runs["status"] == "completed"].groupby("setting", sort=False):
        own_rows, own_averages = _compare(of_setting)
        rows += [{**row, "setting": setting} for row in own_rows]
        averages += [{**row, "setting": setting} for row in own_averages]
    return pd.DataFrame(sorted(rows, key=_order) + sorted(averages, key=lambda row: _order(row)[2:]))


def _compare(completed: pd.DataFrame) -> tuple[list[dict], list[dict]]:
    """The rows of one setting, and the averages."""
    scales = [unit_of(*names).scale for names in zip(completed["dataset"], completed["metric"], strict=True)]
    completed = completed.assign(test_metric=completed["test_metric"].astype(float) * scales)
    # Rows: metric, data set, model and seed; a column for each algorithm.
    scores = completed.pivot(index=["metric", "dataset", "model", "seed"], columns="algorithm", values="test_metric")
    scores = scores.reindex(columns=ALGORITHMS)
    short, texts, answers = set(), {}, {}
    for key, of_key in completed.groupby(["dataset", "model", "algorithm"]):
        answers[key] = recorded(of_key, "seed")
        texts[key] = {
            "steps": steps_text(of_key["steps"]),
            "setting": "{taken} (of {of})".format(**of_key.iloc[0]) if "taken" in of_key else "",
        }
        whole = len(of_key) >= PUBLISHED_SEEDS and all(map(_is_whole, of_key.to_dict("records")))
        if key in PUBLISHED and not whole:
            short.add(key)
    rows, averages = [], []
    others = unpaired(completed)
    for (metric, dataset, model), values in scores.groupby(level=["metric", "dataset", "model"], sort=False):
        keys = {algorithm: (dataset, model, algorithm) for algorithm in ALGORITHMS}
        published = {algorithm: PUBLISHED.get(key) for algorithm, key in keys.items()}
        values = values.droplevel([0, 1, 2])
        of_both = {algorithm: answers.get(key, {}) for algorithm, key in keys.items()}
        pairs = _pairs(values.drop(index=others.get((dataset, model), [])), of_both)
        of_short = {name for name, key in keys.items() if key in short}
        row = _compared(dataset, model, metric, values, published, of_short, pairs)
        for algorithm, key in keys.items():
            row |= {f"{algorithm}_{name}": text for name, text in texts.get(key, {}).items()}
        rows.append(row)
    scores = scores.drop(index=[key for key in scores.index if key[3] in others.get(key[1:3], [])])
    if "accuracy" in scores.index.get_level_values("metric"):
        for model, values in scores.loc["accuracy"].groupby(level="model"):
            averages += _averages(model, values.droplevel("model"), short)
    return rows, averages


def recorded(runs: pd.DataFrame, by: str) -> dict[int | str, Answers]:
    """The answers of the runs that record them, by seed or by algorithm."""
    every = zip(runs[by], runs["answers"], strict=True)
    return {name: answers for name, answers in every if isinstance(answers, Answers)}


def steps_text(values: pd.Series) -> str:
    """The steps of some runs, as "240" or "120 to 240"; "" if there is none, or if one is no number."""
    sound = [tables.is_number(value) and 0 <= value < 1e15 for value in values]
    return tables.span([int(value) for value in values]) if sound and all(sound) else ""


def _is_whole(run: dict) -> bool:
    """Whether a run has the steps of the published protocol, as far as its result tells."""
    return isinstance(run["steps"], int | float) and run["steps"] >= LEAST_STEPS.get(run["stop_reason"], math.inf)


def _pairs(values: pd.DataFrame, answers: dict) -> list[Pair]:
    """The seeds that have both, one row of `values` for each; an average over data sets has no answers."""
    return [
        Pair(of_seed["RHEL"], of_seed["BPTT"], *(answers.get(name, {}).get(seed) for name in ("RHEL", "BPTT")))
        for seed, of_seed in values.dropna().iterrows()
    ]


def _compared(
    dataset: str, model: str, metric: str, values: pd.DataFrame, published: dict, short: set[str], pairs: list[Pair]
) -> dict:
    """A row of a comparison; `values` has a row for each seed."""
    row = {"dataset": dataset, "model": model, "metric": metric}
    for algorithm in ALGORITHMS:
        column = values[algorithm].dropna()
        mean, std = published[algorithm] or (math.nan, math.nan)
        own = {"mean": column.mean(), "std": column.std(ddof=1), "n": len(column), "short": algorithm in short}
        own |= {"steps": "", "setting": ""}  # an average has none
        row |= {f"{algorithm}_{name}": value for name, value in {**own, "paper_mean": mean, "paper_std": std}.items()}
    compared = difference(pairs, unit_of(dataset, metric).scale, MARGIN)._asdict()
    return row | {name if name == "pairs" else f"difference_{name}": value for name, value in compared.items()}


def _averages(model: str, values: pd.DataFrame, short: set[tuple[str, str, str]]) -> list[dict]:
    """The mean over the data sets that have runs of both algorithms, and the mean over the published ones among them.

    It is taken seed by seed, over the seeds that all these sets have. So the average has a paired difference, too.
    """
    by_set = values.unstack("dataset")
    both = [name for name in by_set["BPTT"].columns if by_set[[("BPTT", name), ("RHEL", name)]].notna().any().all()]
    published = [name for name in both if (name, model, "RHEL") in PUBLISHED]
    rows = []
    # If all sets are published, the two averages are the same.
    for names, kind in {tuple(both): "sets", tuple(published): "published sets"}.items():
        if len(names) < 2:
            continue
        chosen = by_set.loc[:, [(algorithm, name) for algorithm in ALGORITHMS for name in names]].dropna()
        if chosen.empty:  # no seed belongs to all
            continue
        means = pd.DataFrame({algorithm: chosen[algorithm].mean(axis=1) for algorithm in ALGORITHMS})
        paper, short_of_row = dict.fromkeys(ALGORITHMS), set()
        if kind == "published sets":
            for algorithm in ALGORITHMS:
                paper[algorithm] = (fmean(PUBLISHED[name, model, algorithm][0] for name in names), math.nan)
            short_of_row = {
                algorithm for name, algorithm in product(names, ALGORITHMS) if (name, model, algorithm) in short
            }
        name = f"average of {len(names)} {kind}"
        rows.append(_compared(name, model, "accuracy", means, paper, short_of_row, _pairs(means, {})))
    return rows


def problems(runs: pd.DataFrame) -> list[str]:
    """The seeds of each data set, model, algorithm and setting that failed, are unfinished, damaged or missing.

    Every model must have every seed that any run of the data set and setting has, by each algorithm that the model or
    the data set has runs of. Of settings chosen by validation (column "taken") none is missing: the choice says which
    seeds it compared. A line has the seeds with the same status and error. At the end stand the seeds that are no pair.
    """
    lines, chosen = [], "taken" in runs
    groups = list(runs.groupby(["dataset", "setting"], sort=False))
    for (dataset, setting), of_set in sorted(groups, key=lambda group: _order({**group[1].iloc[0], "model": ""})):
        for model, algorithm in product(sorted(set(runs.loc[runs["setting"] == setting, "model"])), ALGORITHMS):
            seeds = {}
            own = of_set[(of_set["model"] == model) & (of_set["algorithm"] == algorithm)]
            for run in own[own["status"] != "completed"].to_dict("records"):
                text = " ".join(run["error"].split()) if isinstance(run["error"], str) else ""
                text = text if len(text) <= LONGEST_ERROR else f"{text[:LONGEST_ERROR]} .."
                seeds.setdefault(f"{run['status']}: {text}" if text else run["status"], []).append(run["seed"])
            tried = (runs["algorithm"] == algorithm) & ((runs["model"] == model) | (runs["dataset"] == dataset))
            missing = sorted(set(of_set["seed"]) - set(own["seed"]))
            if tried.any() and missing and not chosen:
                seeds["missing"] = missing
            name = " ".join([dataset, model, algorithm, setting]).strip()
            lines += [f"{name}: {numbered('seed', numbers)} {text}" for text, numbers in seeds.items()]
    return lines + _without_pair(runs[runs["status"] == "completed"])


def _without_pair(completed: pd.DataFrame) -> list[str]:
    """The seeds whose runs by RHEL and BPTT were tested on different data or rows. They have no difference."""
    lines = []
    for setting, of_setting in completed.groupby("setting", sort=False):
        for names, seeds in unpaired(of_setting).items():
            name = " ".join([*names, setting]).strip()
            why = "RHEL and BPTT were tested on different data or rows, so they are no pair"
            lines.append(f"{name}: {numbered('seed', seeds)}: {why}")
    return lines


def unpaired(completed: pd.DataFrame) -> dict[tuple[str, str], list[int]]:
    """By data set and model, the seeds whose RHEL and BPTT were tested on different data or rows; of one setting."""
    seeds = {}
    for (dataset, model, seed), rows in completed.groupby(["dataset", "model", "seed"], sort=False):
        if len({each.part for each in recorded(rows, "algorithm").values()}) > 1:
            seeds.setdefault((dataset, model), []).append(seed)
    return seeds
