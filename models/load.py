"""A trained model, from the folder of its run. No other module of this package reads files.

config.json holds the sizes, the options and the maps of the data set, model.eqx the numbers, result.json the hash of
model.eqx. No file is unpickled or evaluated. A unit of your own is Python code: only `load_unit` imports it, and
`load_run` never calls `load_unit`.
"""

import hashlib
import importlib
import importlib.util
import inspect
import io
import json
import math
import sys
import traceback
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from .create import create_model, options_of_models
from .layer import AbstractHRULayer, unit_options
from .stack import HRU
from .trained import OfRawSeries, TrainedModel

CONFIG, MODEL, RESULT, UNIT = "config.json", "model.eqx", "result.json", "unit.py"
PRECISIONS = ("float32", "float64")
_OF_DATA = ("data_dim", "label_dim", "last_steps")
_COMMON = inspect.signature(create_model).parameters.keys() - {*_OF_DATA, "key", "options"}
_SOURCES: dict[type, bytes] = {}  # the content that runs, for the units that `load_unit` imported
_FROM_MODELS = "; in a clone, import from models, not from rhel"


class RunError(ValueError):
    """A run folder that cannot be used. The message names the file and the way out."""


class UnitError(ValueError):
    """A unit of your own that cannot be imported. The message names it and what is missing."""


def load_unit(name: str) -> type[AbstractHRULayer]:
    """Imports your own unit, "path/of/file.py:Class" or "package.module:Class". This runs the Python code of the file.

    A path is relative to the present directory.

    **Raises:** `UnitError`.
    """
    return unit_and_sha256(name)[0]


def unit_and_sha256(name: str) -> tuple[type[AbstractHRULayer], str]:
    """As `load_unit`, with the sha256 of the file of the unit. It is the hash of the content that runs."""
    source, _, class_name = name.rpartition(":")
    try:
        module, content = _module_of(Path(source).resolve() if source.endswith(".py") else source)
        unit = getattr(module, class_name)
    except (Exception, SystemExit) as error:  # the file is code, and may raise anything
        hint = ""
        if not (source and class_name):
            hint = "; it is a file or module and a class, as in my_unit.py:MyLayer"
        elif isinstance(error, ModuleNotFoundError) and str(error.name).split(".")[0] == "rhel":
            hint = _FROM_MODELS
        elif isinstance(error, ModuleNotFoundError) and source.endswith(".py"):
            hint = f"; the folder {Path(source).resolve().parent} is not on Python's path: put it into PYTHONPATH"
            hint *= (Path(source).resolve().parent / f"{error.name}.py").exists()
        raise UnitError(f"unit {name}: cannot be imported ({_in_words(error)}){hint}") from error
    if not (isinstance(unit, type) and issubclass(unit, AbstractHRULayer)):
        of_rhel = isinstance(unit, type) and any(base.__module__.split(".")[0] == "rhel" for base in unit.__mro__)
        hint = _FROM_MODELS if of_rhel else ""
        raise UnitError(f"unit {name}: is not a subclass of models.layer.AbstractHRULayer{hint}")
    _SOURCES[unit] = content
    return unit, hashlib.sha256(content).hexdigest()


def source_of(unit: type[AbstractHRULayer]) -> bytes:
    """The content of the file of your own unit, as it was imported by `load_unit`. Raises `OSError`, `TypeError`."""
    return _SOURCES.get(unit) or Path(inspect.getfile(unit)).read_bytes()


def unit_of_run(folder: Path, record: dict[str, Any]) -> str | None:
    """The name by which the unit of a run can be imported: of its file, or of the copy in the folder of the run.

    The copy is named if the file of the unit is missing, or has another content than in the training.
    """
    name = record["config"].get("unit")
    source, _, class_name = str(name).rpartition(":")
    if source.endswith(".py") and (folder / UNIT).exists():
        file = Path(source)
        if not file.is_file() or hashlib.sha256(file.read_bytes()).hexdigest() != record.get("unit_sha256"):
            return f"{folder / UNIT}:{class_name}"
    return name


def error_in_unit(error: Exception, unit: type[AbstractHRULayer] | None) -> str | None:
    """An error that arose in the file of your own unit, in words: file, line, kind and text. None for other errors."""
    file = None if unit is None else vars(sys.modules[unit.__module__]).get("__file__")
    cause: BaseException | None = error
    while cause is not None and file is not None:
        lines = [frame.lineno for frame in traceback.extract_tb(cause.__traceback__) if frame.filename == file]
        if lines:
            return f"{file}, line {lines[-1]}: {type(error).__name__}: {error}"
        cause = cause.__cause__
    return None


def _in_words(error: BaseException) -> str:
    """An error while a module is imported: its text, and the line and kind if it arose in the module."""
    frames = traceback.extract_tb(error.__traceback__)
    modules = [frame.filename for frame in frames if frame.name == "<module>"]
    place = [f"{x.filename}, line {x.lineno}: " for x in frames if modules and x.filename == modules[-1]]
    return f"{place[-1]}{type(error).__name__}: {error}" if place else str(error)


@lru_cache
def _module_of(source: Path | str) -> tuple[ModuleType, bytes]:
    """The module of a file, or of a name, and the content of its file."""
    if isinstance(source, str):
        module = importlib.import_module(source)
        return module, Path(inspect.getfile(module)).read_bytes()
    place = hashlib.sha256(str(source).encode()).hexdigest()[:8]  # every run has a file unit.py
    spec = importlib.util.spec_from_file_location(f"unit_{source.stem}_{place}", source)
    assert spec is not None  # it is None for a name that does not end in .py
    content = source.read_bytes()
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for it
    # The loader of Python may run a compiled file in place of a source file that was changed within the same second.
    try:
        exec(compile(content, source, "exec"), module.__dict__)
    except BaseException:
        del sys.modules[spec.name]
        raise
    return module, content


def require_same_unit(folder: Path, record: dict[str, Any], unit: type[AbstractHRULayer]) -> None:
    """Compares your own unit, and the content of its file, with the ones that the run was trained with.

    **Raises:** `RunError` if they differ, or if the class has no file.
    """
    then, name = record.get("unit_sha256"), str(record["config"]["unit"])
    way_out = f"give unit=models.load.load_unit({name!r})"
    class_name = name.rpartition(":")[2]
    if unit.__name__ != class_name and getattr(sys.modules[unit.__module__], class_name, None) is not unit:
        raise RunError(f"{folder}: was trained with the unit {name}, not with {unit.__qualname__}: {way_out}")
    try:
        now = hashlib.sha256(source_of(unit)).hexdigest()
    except (OSError, TypeError):
        raise RunError(
            f"{folder}: was trained with the unit {name}, and {unit.__qualname__} has no file to compare: {way_out}"
        ) from None
    if then != now:
        raise RunError(
            f"{folder}: was made with {unit_difference(folder, name, then, now)}. A training with --overwrite makes "
            "the run again"
        )


def unit_difference(folder: Path, name: str, then: str | None, now: str | None) -> str:
    """The difference between two files of your own unit, in words, and where the old one is."""
    copy = folder / UNIT
    sound = copy.is_file() and hashlib.sha256(copy.read_bytes()).hexdigest() == then
    then, now = ("not recorded" if sha256 is None else f"{str(sha256)[:12]}.." for sha256 in (then, now))
    way_out = "put the old file back to use the run"
    if sound:
        way_out += f", a copy is {copy}; or open the run with load_unit('{copy}:{name.rpartition(':')[2]}')"
    return f"another content of the file of the unit {name} (sha256 {then}, now {now}; {way_out})"


def read_record(folder: str | Path) -> dict[str, Any]:
    """The content of config.json of a run: "config", "data", "precision", "seed" and more.

    **Raises:** `RunError` if the file cannot be read, or lacks one of these four.
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


def load_run(folder: str | Path, *, unit: type[AbstractHRULayer] | None = None) -> TrainedModel:
    """The model of a run with the best validation: predictions for raw series, and a look at its oscillators.

    `model, state = load_run(folder)` gives the model as from `create_model`, within `OfRawSeries` if the run
    standardised its channels or mapped its labels. For use without dropout call `equinox.nn.inference_mode` on it; the
    methods of `TrainedModel` do. The function needs config.json and model.eqx. If the folder has a result.json,
    model.eqx must have the sha256 that it records.

    `unit`: the class, for a run with a unit of your own. The folder holds a copy of its file, as in the training:
    `load_run(folder, unit=load_unit(f"{folder}/unit.py:MyLayer"))`.

    **Raises:** `RunError` if a file is missing or damaged, if the files do not belong together, if jax has another
    precision than the run, and if the run has a unit of its own that is not given, or whose file has another content.
    """
    folder = Path(folder)
    record = read_record(folder)
    trained, state = _load_trained(folder, record, unit)
    return TrainedModel(folder, record, trained, _of_raw_series(trained, record, folder / CONFIG), state)


def _of_raw_series(trained: HRU, record: dict[str, Any], path: Path) -> HRU | OfRawSeries:
    """The trained model with the maps of a record; the trained model alone, if the record has no maps."""
    data, time = record["data"], bool(record["config"].get("time"))
    if data.get("standardisation") is None and data.get("label_map") is None:
        return trained
    channels = data["data_dim"] - time
    standardisation = data.get("standardisation") or {"mean": [0.0] * channels, "scale": [1.0] * channels}
    label_map = data.get("label_map")
    _require(path, standardisation, mean=list, scale=list)
    mean, scale = (_numbers(path, standardisation[name], channels) for name in ("mean", "scale"))
    outputs = [0.0, 1.0]
    if label_map is not None:
        # A number for a single output of a step, lists for several.
        kind = float if data["label_dim"] == 1 else list
        _require(path, label_map, centre=kind, unit=kind)
        outputs = [_numbers(path, label_map[name], data["label_dim"]) for name in ("centre", "unit")]
    # The channel of time comes first.
    mean, scale = (jnp.array([first] * time + values, jnp.float32) for first, values in ((0.0, mean), (1.0, scale)))
    return OfRawSeries(trained, mean, scale, *(jnp.array([x]) if isinstance(x, list) else x for x in outputs))


def _numbers(path: Path, values: Any, size: int) -> Any:
    """A finite number, or a list of as many. Raises `RunError`."""
    listed = values if isinstance(values, list) else [values] * size
    if len(listed) != size or not all(type(x) is float and math.isfinite(x) for x in listed):
        raise RunError(f"{path}: standardisation or label_map are damaged: needed are {size} finite numbers each")
    return values


def _load_trained(folder: Path, record: dict[str, Any], unit: type[AbstractHRULayer] | None):
    """The model and state as they were trained. They take what the loaders of the data serve."""
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
            f"{path}: cannot be read ({error.strerror}); a run that is unfinished or has failed has no model: run it "
            "again"
        ) from None
    file = io.BytesIO(content)
    leaves, structure = jax.tree_util.tree_flatten_with_path(like)
    loaded = [_read_leaf(file, leaf, f"{path}: {jax.tree_util.keystr(name)}") for name, leaf in leaves]
    recorded = _recorded_sha256(folder / RESULT)
    if recorded is not None and recorded != hashlib.sha256(content).hexdigest():
        raise RunError(f"{path}: was changed since the run ended: its sha256 differs from the {RESULT} beside it")
    if file.read(1):
        raise RunError(f"{path}: holds more than the model of the {CONFIG} beside it: it belongs to another config")
    return jax.tree.unflatten(structure, loaded)


def _recorded_sha256(path: Path) -> str | None:
    """The hash of model.eqx in result.json; None without a result.json, as for an unfinished run, or without a hash."""
    try:
        return json.loads(path.read_text(encoding="utf-8")).get("model_sha256")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError, AttributeError) as error:
        raise RunError(f"{path}: cannot be read ({error}); run it again") from None


def _structure(path: Path, record: dict, unit: type[AbstractHRULayer] | None):
    """The model and state with shapes and types in place of the arrays."""
    config = record["config"]
    if config.get("unit") is not None and unit is None:
        raise RunError(
            f"{path}: the run has its own unit, {config['unit']}: this is Python code, which load_run does not run. "
            f"Give the class, load_run(folder, unit=load_unit({unit_of_run(path.parent, record)!r})), by load_unit of "
            "models.load"
        )
    if unit is not None and not isinstance(unit, type):
        raise RunError(f"{path}: unit is {unit!r}, but a class is needed: unit=models.load.load_unit({str(unit)!r})")
    if config.get("unit") is None and unit is not None:
        raise RunError(f"{path}: the run has no own unit, but {config.get('model_name')!r}: leave unit out")
    if unit is not None:
        require_same_unit(path.parent, record, unit)
    names = _COMMON | options_of_models().keys() | ({} if unit is None else unit_options(unit)).keys()
    options = {name: config[name] for name in names if name in config}
    # A run of before the field last_steps has 1.
    options |= {name: record["data"][name] for name in _OF_DATA if name in record["data"]}
    if unit is not None:
        options["model_name"] = unit
    try:
        return eqx.filter_eval_shape(lambda key: create_model(**options, key=key), jax.random.PRNGKey(0))
    except (TypeError, ValueError, OverflowError) as error:
        raise RunError(f"{path}: describes no model ({error})") from None


def _read_leaf(file: io.BytesIO, leaf: Any, where: str) -> Any:
    """The next leaf of a file of `equinox.tree_serialise_leaves`, which writes every number and array as an npy file.

    `equinox.tree_deserialise_leaves` takes a number that is no array from the file. Here the number is part of the
    config, and the file must agree.
    """
    try:
        return _same_kind(file, leaf)
    except Exception as error:  # numpy reads a damaged header with Python's parser, which can fail in any way
        raise RunError(
            f"{where}: {str(error) or type(error).__name__}; the file is damaged, or belongs to another config than "
            f"the {CONFIG} beside it"
        ) from None


def _same_kind(file: io.BytesIO, leaf: Any) -> Any:
    is_array = isinstance(leaf, jax.ShapeDtypeStruct)
    if not (is_array or eqx.is_array_like(leaf)):
        return leaf
    start = file.tell()
    np.lib.format.read_magic(file)
    # Before the array is read: a damaged shape may ask for any amount of memory.
    shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    if is_array and (shape, dtype) != (leaf.shape, leaf.dtype):
        raise ValueError(f"{dtype} of shape {shape}, expected {leaf.dtype} of shape {leaf.shape}")
    if not is_array and (shape != () or dtype.kind not in "biuf"):
        raise ValueError(f"{dtype} of shape {shape}, expected the number {leaf}")
    file.seek(start)
    stored = np.lib.format.read_array(file, allow_pickle=False)
    if is_array:
        return jnp.asarray(stored)
    if stored.item() != leaf:
        raise ValueError(f"{stored}, expected {leaf}")
    return leaf
