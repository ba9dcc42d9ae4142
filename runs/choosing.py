"""Chooses among the settings of a data set, model and algorithm by their validation results. Needs no jax."""

# pandas types what a row or a group holds as anything; the checker then warns of each use.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportGeneralTypeIssues=false
# pyright: reportIndexIssue=false

import math
from collections.abc import Callable

import pandas as pd

from common import tables
from runs.comparison import Unit, numbered, steps_text, unit_of

RULE = (
    "Selected by validation: of each data set, model and algorithm, the setting with the best mean over the seeds that "
    "more than half of its settings have: of the validation accuracy, or of the validation loss of a regression (of "
    "its mse if a run has no record of the loss). A setting without a completed run of each of these seeds takes no "
    "part. Of equal ones the first is taken. The test metric takes no part in the choice."
)


def by_validation(runs: pd.DataFrame) -> tuple[pd.DataFrame, list[str], list[str]]:
    """The runs of the chosen settings; a line for each choice (`RULE`); and those lines that say that none was made.

    `runs` are as from `read_runs`. The chosen runs have no "setting" any more, so that `compare` pairs RHEL and BPTT;
    "taken" says which one it was, and "of" of how many.
    """
    chosen, lines, failures = [runs.iloc[:0].assign(taken="", of=0)], [], []
    for key, of_key in runs.groupby(["dataset", "model", "algorithm"], sort=False):
        of_settings = {name or "the only setting": own for name, own in of_key.groupby("setting", sort=False)}
        counts = of_key.groupby("seed")["setting"].nunique()
        seeds = sorted(counts.index[counts > len(of_settings) / 2])
        shared = {name: own[own["seed"].isin(seeds)] for name, own in of_settings.items()}
        gaps = {name: text for name, own in of_settings.items() if (text := _gap(own, shared[name], seeds))}
        texts = [f"{name} takes no part: {text}" for name, text in gaps.items()]
        shared = {name: own for name, own in shared.items() if name not in gaps}
        if not seeds:
            owned = (f"{name} has {numbered('seed', own['seed'])}" for name, own in of_settings.items())
            texts = [f"none can be chosen: no seed belongs to more than half of the settings: {', '.join(owned)}"]
            texts.append("train the settings with the same --seeds, or name only the folders to compare")
        elif not shared:
            texts.insert(0, "none can be chosen; complete the runs, or name only the folders to compare")
        else:
            by, unit, best_of = _criterion(pd.concat(shared.values()))
            scores = {name: math.fsum(own[by]) / len(own) for name, own in shared.items()}
            best = best_of(scores.values())
            taken, *equal = [name for name, score in scores.items() if score == best]
            chosen.append(of_settings[taken].assign(setting="", taken=taken, of=len(of_settings)))
            steps = sorted({_steps(own) for own in shared.values()} - {""})
            texts = [
                f"{taken} (of {len(of_settings)}), validation {unit.name} {unit.text(unit.scale * best)} over "
                f"{numbered('seed', seeds)}",
                *([f"equal: {', '.join(equal)}"] if equal else []),
                *([f"the settings differ in steps: {' and '.join(steps)}"] if len(steps) > 1 else []),
                *texts,
            ]
        lines.append(f"{' '.join(key)}: {'; '.join(texts)}")
        if not (seeds and shared):
            failures.append(lines[-1])
    return pd.concat(chosen, ignore_index=True), lines, failures


def _steps(runs: pd.DataFrame) -> str:
    """The steps of the runs that num_steps ended; early stopping ends a run wherever its metric says so."""
    return steps_text(runs.loc[runs["stop_reason"] == "num_steps", "steps"])


def _gap(runs: pd.DataFrame, shared: pd.DataFrame, seeds: list[int]) -> str:
    """Why a setting takes no part: a seed that is missing, not completed, or without validation; "" without a gap."""
    missing = sorted(set(seeds) - set(runs["seed"]))
    if missing:
        return f"it has {numbered('seed', runs['seed'])}, not {', '.join(map(str, missing))}"
    for run in shared.to_dict("records"):
        if run["status"] != "completed":
            return f"seed {run['seed']} {run['status']}"
        if not tables.is_number(run["val_metric"]):
            return f"seed {run['seed']} has no finite val_metric"
    return ""


def _criterion(runs: pd.DataFrame) -> tuple[str, Unit, Callable]:
    """The column that decides, how its values are shown, and which of them is best.

    The training takes the model of the smallest validation loss. Of several outputs the mse may have another order.
    """
    dataset, metric = runs[["dataset", "metric"]].iloc[0]
    if metric == "mse" and all(map(tables.is_number, runs["val_loss"])):
        return "val_loss", Unit(1, "loss", ".4g"), min
    return "val_metric", unit_of(dataset, metric), min if metric == "mse" else max
