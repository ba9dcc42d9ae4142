"""What decides the results of a run: config, seed, precision, data, split, maps and the file of your own unit.

Only this module compares two runs.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np

from data_dir.datasets import Dataset
from experiment_configs.schema import ExperimentConfig
from models.load import unit_difference
from runs.folder import CONFIG, RunRefused

# Fields that say where files lie, which runs to make, and when to save or give up. They do not change what a run
# computes.
_INCIDENTAL = ("seeds", "data_dir", "output_parent_dir", "inmemory", "checkpoint_steps", "skip_nonfinite")
# Fields that were added later, with the value that all earlier runs have: at this value they do not count.
_ADDED = {"machine": None, "pooling": "mean", "task": None, "evaluate_train": None}
_ADDED |= {"shortest_period": None, "longest_period": None}
# The hashes of the data in config.json, and their names in messages.
_HASHES = {"sha256": "the arrays of the data set", "split_sha256": "the rows of its parts"}
# What else config.json holds of the data.
_NAMES_AND_MAPS = ("class_names", "output_names", "label_map", "standardisation")


def precision() -> str:
    """The floating-point type that jax is set to: float32 or float64."""
    return str(jax.dtypes.canonicalize_dtype(float))


def data_identity(dataset: Dataset) -> dict[str, Any]:
    """As JSON values the hash of the arrays, the hash of the rows of each part, the names, and the maps of the data.

    A set that is cut into parts has no rows. A value that does not exist is None.
    """
    rows = None if dataset.split is None else {part: rows.tolist() for part, rows in dataset.split.items()}
    return {
        "sha256": dataset.sha256,
        "split_sha256": None if rows is None else sha256_of_json(rows),
        "class_names": None if dataset.class_names is None else [str(name) for name in dataset.class_names],
        "output_names": dataset.output_names,
        # A tuple becomes a list, as in a file.
        "label_map": None if dataset.label_map is None else json.loads(json.dumps(dataset.label_map._asdict())),
        "standardisation": None if dataset.standardisation is None else dataset.standardisation.record(),
    }


def test_part(dataset: Dataset) -> dict[str, Any]:
    """The number of test samples, the answers of each, and a hash of the data set and the test rows in their order."""
    rows = None if dataset.split is None else dataset.split["test"].tolist()
    known = {"sha256": dataset.sha256, "rows": rows}
    return {
        "samples": dataset.test.size,
        "answers_per_sample": dataset.test.labels.shape[1] if dataset.test.labels.ndim == 3 else 1,
        "sha256": None if dataset.sha256 is None else sha256_of_json(known),
    }


def identity(config: ExperimentConfig, seed: int, data: dict[str, Any]) -> dict[str, Any]:
    """Everything that decides what a run computes, as JSON values; `data` is the `data_identity`."""
    fields = _counting(config.model_dump(mode="json", exclude=set(_INCIDENTAL)))
    own = {} if config.unit_sha256 is None else {"unit_sha256": config.unit_sha256}
    return {**fields, "precision": precision(), "seed": seed, "data": data, **own}


def _counting(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields without those of `_ADDED` that have the value of before, so that earlier runs keep their key."""
    return {name: value for name, value in fields.items() if name not in _ADDED or value != _ADDED[name]}


def key(identity: dict[str, Any]) -> str:
    """The hash of an identity, without the standardisation: another machine may round its last digit differently."""
    return sha256_of_json({**identity, "data": {**identity["data"], "standardisation": None}})


def checkpoint_key(identity: dict[str, Any]) -> str:
    """The key of checkpoints. No step depends on num_steps, so a run of 20 steps can continue to 30."""
    return key({**identity, "num_steps": None})


def sha256_of_json(value: Any) -> str:
    """The sha256 of a JSON value, which does not depend on the order of names."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def require_same_run(folder: Path, now: dict[str, Any]) -> None:
    """Compare the run in a folder with the `identity` of the run to make; a folder without config.json is fine.

    The run to make may have more steps: the run in the folder then continues.

    **Raises:** `RunRefused` with all differences.
    """
    try:
        saved = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        earlier = {"patience": 10}  # which was fixed
        then = earlier | _counting(saved["config"]) | {"precision": saved["precision"], "seed": saved["seed"]}
        data = data_differences(saved["data"], now["data"])
        unit = saved.get("unit_sha256")
    except (FileNotFoundError, NotADirectoryError):
        return
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise _refused(folder, [f"with another config ({CONFIG} is unreadable)"]) from None
    names = sorted((then.keys() | now.keys()) - {"data", "unit_sha256", *_INCIDENTAL})
    names = [name for name in names if then.get(name) != now.get(name)]
    fields = [f"{name} {then.get(name)!r}, now {now.get(name)!r}" for name in names]
    reasons = [f"with another config ({'; '.join(fields)})"] if fields else []
    if names == ["num_steps"] and isinstance(then["num_steps"], int):
        more = now["num_steps"] > then["num_steps"]
        reasons = [] if more else [f"with more steps ({fields[0]}): a run continues to more steps, never to fewer"]
    reasons += data
    if now.get("unit") is not None and then.get("unit") == now["unit"] and unit != now["unit_sha256"]:
        reasons.append(f"with {unit_difference(folder, now['unit'], unit, now['unit_sha256'])}")
    if reasons:
        raise _refused(folder, reasons)


def data_differences(then: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """How the `data_identity` of a run differs from the present one, in words. Names and maps count on equal data."""
    hashes = [
        f"sha256 of {text} {_short(then.get(name))}, now {_short(now[name])}"
        for name, text in _HASHES.items()
        if then.get(name) != now[name]
    ]
    if hashes:
        return [f"on other data ({'; '.join(hashes)})"]
    others = [
        f"{name} {json.dumps(then.get(name))[:100]}, now {json.dumps(now[name])[:100]}"
        for name in _NAMES_AND_MAPS
        if not _same(then.get(name), now[name])
    ]
    if not others:
        return []
    return [f"with other names or maps of the data, or by another version of this program ({'; '.join(others)})"]


def _same(then: Any, now: Any) -> bool:
    if not (isinstance(then, dict) and isinstance(now, dict) and "scale" in now):
        return then == now
    maps = [tuple(np.asarray(each[name], float) for name in ("mean", "scale")) for each in (then, now)]
    then, now = (np.stack([mean * scale, scale]) for mean, scale in maps)
    return then.shape == now.shape and np.allclose(then, now, rtol=1e-5, atol=[[1e-5], [0]])


def _refused(folder: Path, reasons: list[str]) -> RunRefused:
    return RunRefused(
        f"{folder}: was made {' and '.join(reasons)}. --overwrite removes the run and starts again, "
        "--output_parent_dir names another place"
    )


def _short(sha256: str | None) -> str:
    return "not recorded" if sha256 is None else f"{str(sha256)[:12]}.."
