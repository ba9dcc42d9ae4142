"""A trained model, from the folder that its run left. The one module of this package that reads files.

config.json names the sizes, the options and the maps of the data set, model.eqx holds the numbers, result.json the hash
of model.eqx. Nothing in these files is unpickled or evaluated. A unit of your own is Python code: only `load_unit`
imports it, and `load_run` never calls `load_unit`.
"""

import hashlib
import importlib
import importlib.util
import inspect
import io
import json
import math
import sys
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from .create import create_model, options_of_models
from .layer import AbstractHRULayer, unit_options
from .stack import HRU

CONFIG, MODEL, RESULT = "config.json", "model.eqx", "result.json"
PRECISIONS = ("float32", "float64")
_ARGUMENTS = inspect.signature(create_model).parameters
_COMMON = _ARGUMENTS.keys() - {"data_dim", "label_dim", "key", "options"}
_FLAGS = {name for name, argument in _ARGUMENTS.items() if argument.annotation is bool}


class RunError(ValueError):
    """A run folder that cannot be used. The message names the file and the way out."""


class UnitError(ValueError):
    """A unit of your own that cannot be imported. The message names it and what is missing."""


class OfRawSeries(eqx.Module):
    """A trained model between the maps of its data set: it takes series and gives labels in the units of the files.

    (x - mean) * scale for every channel (0 and 1 for the channel of time), then `trained`, then centre + unit * output.
    """

    trained: HRU
    mean: Float[Array, " data_dim"]
    scale: Float[Array, " data_dim"]
    label_centre: float
    label_unit: float

    def __call__(self, x: Float[Array, "L data_dim"], state: eqx.nn.State, key: PRNGKeyArray | None = None):
        """Output and state, as of the trained model."""
        output, state = self.trained((x - self.mean[None]) * self.scale[None], state, key)
        return self.label_centre + self.label_unit * output, state


def load_unit(name: str) -> type[AbstractHRULayer]:
    """Imports your own unit, "path/of/file.py:Class" or "package.module:Class". This runs the Python code of the file.

    A path is relative to the present directory.

    **Raises:** `UnitError`.
    """
    source, _, class_name = name.rpartition(":")
    try:
        path = Path(source).resolve() if source.endswith(".py") else None
        unit = getattr(importlib.import_module(source) if path is None else _module_of(path), class_name)
    except (OSError, ImportError, AttributeError, SyntaxError, ValueError) as error:
        raise UnitError(
            f"unit {name}: cannot be imported ({error}); it is the path of a file and a class, as in my_unit.py:MyLayer"
        ) from error
    if not (isinstance(unit, type) and issubclass(unit, AbstractHRULayer)):
        raise UnitError(f"unit {name}: is not a subclass of models.layer.AbstractHRULayer")
    return unit


@lru_cache
def _module_of(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"unit_{path.stem}", path)
    assert spec is not None  # it is None for a name that does not end in .py
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for it
    spec.loader.exec_module(module)
    return module


def read_record(folder: str | Path) -> dict[str, Any]:
    """The content of config.json of a run: "config", "data", "precision", "seed" and what else was recorded.

    **Raises:** `RunError` if it cannot be read, or lacks one of these.
    """
    path = Path(folder) / CONFIG
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise RunError(f"{path}: not JSON, line {error.lineno} column {error.colno}: {error.msg}") from None
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise RunError(f"{path}: cannot be read ({reason}); the folder of a run is DIR/seed_<n>") from None
    _require(path, record, config=dict, data=dict, precision=str, seed=int)
    _require(path, record["data"], data_dim=int, label_dim=int, length=int)
    if record["precision"] not in PRECISIONS:
        raise RunError(f"{path}: precision is {record['precision']!r}: allowed is {' or '.join(PRECISIONS)}")
    names, classes = record["data"].get("class_names"), record["data"]["label_dim"]
    if names is not None and not (
        isinstance(names, list) and len(names) == classes and all(isinstance(name, str) for name in names)
    ):
        raise RunError(f"{path}: class_names must be null or {classes} texts, one for each class")
    return record


def _require(path: Path, fields: Any, **kinds: type) -> None:
    for name, kind in kinds.items():
        value = fields.get(name) if isinstance(fields, dict) else None
        if not isinstance(value, kind) or isinstance(value, bool):
            raise RunError(f"{path}: {name} is missing or not of type {kind.__name__}: not the record of a run")


def load_run(
    folder: str | Path, *, unit: type[AbstractHRULayer] | None = None
) -> tuple[HRU | OfRawSeries, eqx.nn.State]:
    """The model that was best on the validation set of a run, and its BatchNorm state, for series as files have them.

    It is as `create_model` gives it, within `OfRawSeries` if the run standardised its channels or mapped its labels.
    For use without dropout call `equinox.nn.inference_mode` on it. Only config.json and model.eqx are needed. If
    result.json lies beside them, model.eqx must have the sha256 that it records.

    `unit`: the class, for a run with a unit of your own.

    **Raises:** as `load_trained`.
    """
    trained, state = load_trained(folder, unit=unit)
    return of_raw_series(trained, read_record(folder), Path(folder) / CONFIG), state


def of_raw_series(trained: HRU, record: dict[str, Any], path: Path) -> HRU | OfRawSeries:
    """The trained model within the maps of a record; the trained model alone, if the record has no maps.

    **Raises:** `RunError`, naming `path`, for maps that are damaged.
    """
    data, time = record["data"], bool(record["config"].get("time"))
    if data.get("standardisation") is None and data.get("label_map") is None:
        return trained
    channels = data["data_dim"] - time
    standardisation = data.get("standardisation") or {"mean": [0.0] * channels, "scale": [1.0] * channels}
    label_map = data.get("label_map") or {"centre": 0.0, "unit": 1.0}
    _require(path, standardisation, mean=list, scale=list)
    _require(path, label_map, centre=float, unit=float)
    mean, scale = standardisation["mean"], standardisation["scale"]
    numbers = [*mean, *scale, *label_map.values()]
    if not len(mean) == len(scale) == channels or not all(type(n) is float and math.isfinite(n) for n in numbers):
        raise RunError(f"{path}: standardisation or label_map are damaged: needed are {channels} finite numbers each")
    # The channel of time comes first.
    mean, scale = (jnp.array([first] * time + values, jnp.float32) for first, values in ((0.0, mean), (1.0, scale)))
    return OfRawSeries(trained, mean, scale, label_map["centre"], label_map["unit"])


def load_trained(folder: str | Path, *, unit: type[AbstractHRULayer] | None = None) -> tuple[HRU, eqx.nn.State]:
    """The model and state as they were trained, for what the loaders of `data_dir.datasets.create_dataset` serve.

    **Raises:** `RunError` if a file is missing or damaged, if they do not belong to each other, if jax is set to
    another precision than the run had, and if the run has a unit of its own that is not given.
    """
    folder = Path(folder)
    record = read_record(folder)
    precision = str(jax.dtypes.canonicalize_dtype(float))
    if record["precision"] != precision:
        raise RunError(
            f"{folder}: was trained in {record['precision']}, but jax is set to {precision}: load it within "
            f"jax.enable_x64({record['precision'] == 'float64'})"
        )
    like = _structure(folder / CONFIG, record, unit)
    path = folder / MODEL
    try:
        content = path.read_bytes()
    except OSError as error:
        raise RunError(
            f"{path}: cannot be read ({error.strerror}); a run that is unfinished or has failed has none: run it again"
        ) from None
    file = io.BytesIO(content)
    try:
        loaded = _read_leaves(file, like)
    except _Mismatch as error:
        raise RunError(
            f"{path}: {error}; the file is damaged, or belongs to another config than the {CONFIG} beside it"
        ) from None
    recorded = _recorded_sha256(folder / RESULT)
    if recorded is not None and recorded != hashlib.sha256(content).hexdigest():
        raise RunError(f"{path}: was changed since the run ended: its sha256 differs from the {RESULT} beside it")
    if file.read(1):
        raise RunError(f"{path}: holds more than the model of the {CONFIG} beside it: it belongs to another config")
    return loaded


class _Mismatch(ValueError):
    """The file does not hold what the config describes."""


def _recorded_sha256(path: Path) -> str | None:
    """The hash of model.eqx in result.json; None if there is no result.json, as for an unfinished run, or no hash."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))["model_sha256"]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError, TypeError) as error:
        raise RunError(f"{path}: cannot be read ({error}); run it again") from None
    except KeyError:  # a run of an earlier version
        return None


def _structure(path: Path, record: dict, unit: type[AbstractHRULayer] | None):
    """The model and state with shapes and types in place of the arrays."""
    config, table = record["config"], options_of_models()
    if config.get("unit") is not None and unit is None:
        raise RunError(
            f"{path}: the run has its own unit, {config['unit']}: this is Python code, which is not run unasked. Give "
            "the class, load_run(folder, unit=..); models.load.load_unit imports it by this name"
        )
    if config.get("unit") is None and unit is not None:
        raise RunError(f"{path}: the run has no own unit, but {config.get('model_name')!r}: leave unit out")
    own = {} if unit is None else unit_options(unit)
    options = {name: config[name] for name in _COMMON | table.keys() | own.keys() if name in config}
    flags = _FLAGS | {name for name, of in table.items() if any(option.kind is bool for option in of.values())}
    for name in flags & options.keys():
        if not isinstance(options[name], bool):
            raise RunError(f"{path}: {name} is {options[name]!r}: allowed is true or false")
    options |= {name: record["data"][name] for name in ("data_dim", "label_dim")}
    if unit is not None:
        options["model_name"] = unit
    try:
        return eqx.filter_eval_shape(lambda key: create_model(**options, key=key), jax.random.PRNGKey(0))
    except (TypeError, ValueError, OverflowError) as error:
        raise RunError(f"{path}: describes no model ({error})") from None


def _read_leaves(file: io.BytesIO, like):
    """The inverse of `equinox.tree_serialise_leaves`, which writes the leaves in their order, each as an npy file.

    `equinox.tree_deserialise_leaves` would take numbers that are no arrays from the file, whatever the config says. A
    file of an earlier version has B, C and D of a unit behind its other leaves.
    """
    leaves, structure = jax.tree_util.tree_flatten_with_path(like)
    names, present = [jax.tree_util.keystr(path) for path, _ in leaves], range(len(leaves))

    def earlier_place(i):
        unit = names[i].rpartition(".")[0]
        first = next(j for j in present if names[j].startswith(f"{unit}.")) if unit.endswith(".unit") else i
        return first, names[i].endswith((".B", ".C", ".D"))

    earlier = sorted(present, key=earlier_place)
    mismatches = {}
    for order in (present, earlier):
        file.seek(0)
        loaded: dict[int, Any] = {}
        try:
            for i in order:
                loaded[i] = _read_leaf(file, leaves[i][1])
        except Exception as error:  # numpy reads a damaged header with Python's parser, which can fail in any way
            mismatches.setdefault(len(loaded), f"{names[i]}: {str(error) or type(error).__name__}")
        else:
            return jax.tree.unflatten(structure, [loaded[i] for i in present])
    raise _Mismatch(mismatches[max(mismatches)])


def _read_leaf(file: io.BytesIO, leaf):
    """An array of the shape and type of `leaf`; or `leaf` itself, which has to be the same number in the file."""
    is_array = isinstance(leaf, jax.ShapeDtypeStruct)
    if not (is_array or eqx.is_array_like(leaf)):
        return leaf
    start = file.tell()
    np.lib.format.read_magic(file)
    shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    if is_array and (shape, dtype) != (leaf.shape, leaf.dtype):
        raise ValueError(f"{dtype} of shape {shape}, expected {leaf.dtype} of shape {leaf.shape}")
    if not is_array and (shape != () or dtype.kind not in "biuf"):
        raise ValueError(f"{dtype} of shape {shape}, expected the number {leaf}")
    file.seek(start)
    stored = np.lib.format.read_array(file, allow_pickle=False)
    if not is_array:
        if stored.item() != leaf:
            raise ValueError(f"{stored}, expected {leaf}")
        return leaf
    return jnp.asarray(stored)
