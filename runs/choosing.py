"""Chooses among the settings of a data set, model and algorithm by their validation results. Needs no jax."""

# pandas types what a row or a group holds as anything; the checker then warns of each use.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportGeneralTypeIssues=false
# pyright: reportIndexIssue=false

import math
from collections.abc import Callable

import pandas as pd

from runs.comparison import SCALE, UNITS, steps_text

RULE = (
    "Selected by validation: of each data set, model and algorithm, the setting with the best mean over the seeds that "
    "all its settings have begun: of the validation accuracy, or of the validation loss of a regression (of its mse if "
    "a run has no record of the loss). A setting without a completed run of each of these seeds takes no part. Of "
    "equal ones the first by name is taken. The test metric takes no part in the choice."
)


def by_validation(runs: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """The runs of the chosen settings, and a line for each choice (`RULE`). `runs` are as from `read_runs`.

    The chosen runs have no "setting" any more, so that `compare` pairs RHEL and BPTT; "taken" says which one it was,
    and "of" of how many.
    """
    chosen, lines = [runs.iloc[:0].assign(taken="", of=0)], []
    for (dataset, model, algorithm), of_key in runs.groupby(["dataset", "model", "algorithm"], sort=False):
        of_settings = dict(list(of_key.groupby("setting", sort=False)))
        common = set.intersection(*(set(of_setting["seed"]) for of_setting in of_settings.values()))
        shared = {name: own[own["seed"].isin(common)] for name, own in of_settings.items()}
        gaps = {name: text for name, own in shared.items() if (text := _gap(own))}
        texts = [f"{name or 'the only setting'} takes no part: {text}" for name, text in gaps.items()]
        shared = {name: own for name, own in shared.items() if name not in gaps}
        if common and shared:
            by, unit, best_of, digits = _criterion(pd.concat(shared.values()))
            scores = {name: math.fsum(own[by]) / len(own) for name, own in shared.items()}
            best = best_of(scores.values())
            equal = [name for name, score in scores.items() if score == best]
            taken = equal[0] or "the only setting"
            chosen.append(of_settings[equal[0]].assign(setting="", taken=taken, of=len(of_settings)))
            seeds = ", ".join(map(str, sorted(common)))
            counts = sorted({_steps(of_settings[name]) for name in scores} - {""})
            unequal = [f"the settings differ in steps: {' and '.join(counts)}"] if len(counts) > 1 else []
            tie = [f"equal: {', '.join(equal[1:])}"] if len(equal) > 1 else []
            texts = [
                f"{taken} (of {len(of_settings)}), validation {unit} {SCALE * best:{digits}} over seeds {seeds}",
                *tie,
                *unequal,
                *sorted(texts),
            ]
        elif not common:
            texts = ["none: the settings have no seed in common"]
        lines.append(f"{dataset} {model} {algorithm}: {'; '.join(texts)}")
    return pd.concat(chosen, ignore_index=True), lines


def _steps(runs: pd.DataFrame) -> str:
    """The steps of the runs that num_steps ended; early stopping ends a run wherever its metric says so."""
    return steps_text(runs.loc[runs["stop_reason"] == "num_steps", "steps"])


def _gap(runs: pd.DataFrame) -> str:
    """Why a setting takes no part: a seed that is not completed, or has no finite validation metric; "" without one."""
    for run in runs.to_dict("records"):
        if run["status"] != "completed":
            return f"seed {run['seed']} {run['status']}"
        if not _is_finite(run["val_metric"]):
            return f"seed {run['seed']} has no finite val_metric"
    return ""


def _criterion(runs: pd.DataFrame) -> tuple[str, str, Callable, str]:
    """The column that decides, its name in messages, which value is best, and the format of a value.

    The training takes the model of the smallest validation loss. Of several outputs the mse may have another order.
    """
    metric = runs["metric"].iloc[0]
    unit, digits = UNITS[metric]
    if metric == "mse" and all(map(_is_finite, runs["val_loss"])):
        return "val_loss", "loss, 1e-2", min, digits
    return "val_metric", unit, min if metric == "mse" else max, digits


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
