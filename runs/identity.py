"""What decides the results of a run: config, seed, precision, data, split and the file of your own unit.

Only this module compares two runs.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import jax

from data_dir.datasets import Dataset
from experiment_configs.schema import ExperimentConfig
from models.load import unit_difference
from runs.folder import CONFIG, RunRefused

# Fields that say where files lie, which runs to make, and when to save or give up. They do not change what a run
# computes.
_INCIDENTAL = ("seeds", "data_dir", "output_parent_dir", "inmemory", "checkpoint_steps", "skip_nonfinite")
# The hashes of the data in config.json, and their names in messages.
_HASHES = {"sha256": "the arrays of the data set", "split_sha256": "the rows of its parts"}


def precision() -> str:
    """The floating-point type that jax is set to: float32 or float64."""
    return str(jax.dtypes.canonicalize_dtype(float))


def data_hashes(dataset: Dataset) -> dict[str, str | None]:
    """The hash of the arrays, and the hash of the rows of each part (None for a set that is cut into parts)."""
    rows = None if dataset.split is None else {part: rows.tolist() for part, rows in dataset.split.items()}
    return {"sha256": dataset.sha256, "split_sha256": None if rows is None else sha256_of_json(rows)}


def identity(config: ExperimentConfig, seed: int, hashes: dict[str, str | None]) -> dict[str, Any]:
    """Everything that decides what a run computes, as JSON values; `hashes` are the `data_hashes`."""
    fields = config.model_dump(mode="json", exclude=set(_INCIDENTAL))
    own = {} if config.unit_sha256 is None else {"unit_sha256": config.unit_sha256}
    return {**fields, "precision": precision(), "seed": seed, "data": hashes, **own}


def checkpoint_keys(identity: dict[str, Any]) -> tuple[str, str]:
    """The keys of the checkpoints that a run may resume: without num_steps, and as earlier versions wrote it, with it.

    No step depends on num_steps, so a run of 20 steps can continue to 30.
    """
    return sha256_of_json({**identity, "num_steps": None}), sha256_of_json(identity)


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
        then = saved["config"] | {"precision": saved["precision"], "seed": saved["seed"]}
        data = hash_differences(saved["data"], now["data"])
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
    reasons += [f"on other data ({'; '.join(data)})"] if data else []
    if now.get("unit") is not None and then.get("unit") == now["unit"] and unit != now["unit_sha256"]:
        reasons.append(f"with {unit_difference(folder, now['unit'], unit, now['unit_sha256'])}")
    if reasons:
        raise _refused(folder, reasons)


def hash_differences(then: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """The differences between two `data_hashes`, in words."""
    return [
        f"sha256 of {text} {_short(then.get(name))}, now {_short(now[name])}"
        for name, text in _HASHES.items()
        if then.get(name) != now[name]
    ]


def _refused(folder: Path, reasons: list[str]) -> RunRefused:
    return RunRefused(
        f"{folder}: was made {' and '.join(reasons)}. --overwrite removes the run and starts again, "
        "--output_parent_dir names another place"
    )


def _short(sha256: str | None) -> str:
    return "not recorded" if sha256 is None else f"{str(sha256)[:12]}.."
