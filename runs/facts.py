"""What decides what a run computes: config, seed, precision, data and split. The one place that compares two runs."""

import hashlib
import json
from pathlib import Path
from typing import Any

import jax

from data_dir.datasets import Dataset
from data_dir.splits import Split
from experiment_configs.schema import ConfigError, ExperimentConfig
from models.load import CONFIG

# Fields that say where things lie, which runs there are, or when to save or give up, and nothing about what a run
# computes on its way.
_INCIDENTAL = ("seeds", "data_dir", "output_parent_dir", "inmemory", "checkpoint_steps", "skip_nonfinite")
# What config.json records of the data beside their shape, and how messages call it.
_DATA = {"sha256": "the arrays of the data set", "split_sha256": "the rows of its parts"}


class RunRefused(ConfigError):
    """A run that cannot be had in its folder: another process is at work there, or it was made otherwise."""


def precision() -> str:
    """The floating-point type that jax is set to: float32 or float64."""
    return str(jax.dtypes.canonicalize_dtype(float))


def data_facts(dataset: Dataset) -> dict[str, str | None]:
    """The hash of the arrays, and that of the rows of each part (None for a set that comes already cut)."""
    return {"sha256": dataset.sha256, "split_sha256": None if dataset.split is None else _split_sha256(dataset.split)}


def decisive_facts(config: ExperimentConfig, seed: int, data: dict[str, str | None]) -> dict[str, Any]:
    """All that decides what the run of a seed computes, as JSON values; `data` are the `data_facts`."""
    fields = config.model_dump(mode="json", exclude=set(_INCIDENTAL))
    return {**fields, "precision": precision(), "seed": seed, "data": data}


def hash_of(facts: dict[str, Any]) -> str:
    """The sha256 of JSON values."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def require_same_run(folder: Path, facts: dict[str, Any]) -> None:
    """Raise `RunRefused`, with all that differs, if the run in this folder was made from other decisive facts."""
    try:
        saved = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        # A run of an earlier version has not the fields that came later.
        there = {"standardise": False, **saved["config"], "precision": saved["precision"], "seed": saved["seed"]}
        data = {name: saved["data"].get(name) for name in _DATA}
    except FileNotFoundError:
        return
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise _refused(folder, [f"with another config ({CONFIG} is unreadable)"]) from None
    names = sorted((there.keys() | facts.keys()) - {"data", *_INCIDENTAL})
    fields = [
        f"{name} {there.get(name)!r}, now {facts.get(name)!r}" for name in names if there.get(name) != facts.get(name)
    ]
    ways = [f"with another config ({'; '.join(fields)})"] if fields else []
    if data["sha256"] is None:
        raise _refused(folder, ["by an earlier version, which recorded no hash of its data (--evaluate still works)"])
    found = data_differences(data, facts["data"])
    ways += [f"on other data ({'; '.join(found)})"] if found else []
    if ways:
        raise _refused(folder, ways)


def data_differences(there: dict[str, str | None], now: dict[str, str | None]) -> list[str]:
    """In words, which of two `data_facts` differ."""
    return [
        f"sha256 of {text} {_short(there[name])}, now {_short(now[name])}"
        for name, text in _DATA.items()
        if there[name] != now[name]
    ]


def _refused(folder: Path, ways: list[str]) -> RunRefused:
    return RunRefused(
        f"{folder}: was made {' and '.join(ways)}. --overwrite starts anew, --output_parent_dir names another place"
    )


def _short(sha256: Any) -> str:
    return "not recorded" if sha256 is None else f"{str(sha256)[:12]}.."


def _split_sha256(split: Split) -> str:
    return hash_of({part: rows.tolist() for part, rows in split.items()})
