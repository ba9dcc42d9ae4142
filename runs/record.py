"""config.json of a run: config, data, precision, versions, commit, device and command. Peak memory for result.json."""

import platform
import resource
import shlex
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np

from data_dir.datasets import Dataset
from data_dir.splits import PARTS
from experiment_configs.schema import ExperimentConfig
from runs.identity import data_identity, precision
from training import hosts

_PACKAGES = ("jax", "jaxlib", "equinox", "optax", "orbax-checkpoint", "numpy")


def run_record(config: ExperimentConfig, seed: int, dataset: Dataset, devices: int = 1) -> dict[str, Any]:
    """The content of config.json."""
    device = jax.devices()[0]
    return {
        "config": config.model_dump(mode="json"),
        "defaults": config.defaults(),
        "seed": seed,
        "precision": precision(),
        "unit_sha256": config.unit_sha256,
        "data": data_record(dataset),
        "versions": versions(),
        "commit": commit(),
        "device": f"{device.platform} ({device.device_kind})",
        "devices": devices,
        **({"processes": hosts.processes()} if hosts.processes() > 1 else {}),
        "command": shlex.join(sys.orig_argv),
    }


def versions() -> dict[str, str]:
    """The versions of Python and of the packages that compute or save."""
    return {"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}}


def data_record(dataset: Dataset) -> dict[str, Any]:
    """Sizes, hashes and names of the data, and the maps from the units of the files to the units of the model."""
    return {
        "data_dim": dataset.data_dim,
        "label_dim": dataset.label_dim,
        "length": dataset.length,
        "last_steps": dataset.last_steps,
        "padded": dataset.mask is not None,
        **data_identity(dataset),
        "lost_classes": _lost_classes(dataset) if dataset.classification else None,
        "table": dataset.table,
        "samples": {part: getattr(dataset, part).size for part in PARTS},
    }


def _lost_classes(dataset: Dataset) -> list[str]:
    """The classes without samples in the training part and with samples in another part, by name or number."""
    labels = [np.asarray(getattr(dataset, part).labels).reshape(-1, dataset.label_dim) for part in PARTS]
    has_samples = [rows.any(axis=0) for rows in labels]
    lost = np.flatnonzero(np.any(has_samples, axis=0) & ~has_samples[0])
    return [str(number if dataset.class_names is None else dataset.class_names[number]) for number in lost]


def commit() -> str | None:
    """The git commit of this program, with "-dirty" if files differ from it; None outside of a git repository."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--abbrev=40", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def peak_memory() -> dict[str, int | None]:
    """The largest memory of this process until now, in bytes: on the host, and on any device; None if none tells it."""
    host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    peaks = [(device.memory_stats() or {}).get("peak_bytes_in_use") for device in jax.local_devices()]
    return {"host": host, "device": max((peak for peak in peaks if peak is not None), default=None)}
