"""Chooses among the settings of a data set, model and algorithm by their validation metric. Needs no jax."""

# pandas types what a row or a group holds as anything; the checker then warns of each use.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportGeneralTypeIssues=false
# pyright: reportIndexIssue=false

import math

import pandas as pd

from runs.comparison import SCALE, UNITS, steps_text

RULE = (
    "Selected by validation: of each data set, model and algorithm, the setting with the best mean validation metric "
    "over the seeds that all its settings have begun. A setting without a completed run of each of these seeds takes "
    "no part. Of equal ones the first by name is taken. The test metric takes no part in the choice."
)


def by_validation(runs: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """The runs of the chosen settings, and a line for each choice (`RULE`). `runs` are as from `read_runs`.

    The chosen runs have no "setting" any more, so that `compare` pairs RHEL and BPTT; "taken" says which one it was,
    and of how many.
    """
    chosen, lines = [runs.iloc[:0].assign(taken="")], []
    for (dataset, model, algorithm), of_key in runs.groupby(["dataset", "model", "algorithm"], sort=False):
        of_settings = dict(list(of_key.groupby("setting", sort=False)))
        common = set.intersection(*(set(of_setting["seed"]) for of_setting in of_settings.values()))
        scores = {name: score for name, own in of_settings.items() if (score := _score(own, common)) is not None}
        texts = [f"{name or 'the only setting'} takes no part: it lacks a seed" for name in of_settings.keys() - scores]
        if scores:
            unit, digits = UNITS[metric := of_key.loc[of_key["status"] == "completed", "metric"].iloc[0]]
            best = (min if metric == "mse" else max)(scores.values())
            equal = [name for name, score in scores.items() if score == best]
            taken = f"{equal[0] or 'the only setting'} (of {len(of_settings)})"
            chosen.append(of_settings[equal[0]].assign(setting="", taken=taken))
            seeds = ", ".join(map(str, sorted(common)))
            counts = sorted({_steps(of_settings[name]) for name in scores} - {""})
            unequal = [f"the settings differ in steps: {' and '.join(counts)}"] if len(counts) > 1 else []
            tie = [f"equal: {', '.join(equal[1:])}"] if len(equal) > 1 else []
            texts = [
                f"{taken}, validation {unit} {SCALE * best:.{digits}f} over seeds {seeds}",
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


def _score(runs: pd.DataFrame, seeds: set[int]) -> float | None:
    """The mean validation metric of a setting; None if a seed has no completed run with a finite metric."""
    values = []
    for run in runs[runs["seed"].isin(seeds)].to_dict("records"):
        value = run["val_metric"]
        if run["status"] != "completed" or isinstance(value, bool) or not isinstance(value, int | float):
            return None
        values.append(value)
    return math.fsum(values) / len(values) if values and all(map(math.isfinite, values)) else None
