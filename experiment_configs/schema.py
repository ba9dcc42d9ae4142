"""The fields of an experiment config, and the one place where they are checked.

`load_config` reads a file, `ExperimentConfig.replace` lays the command line over it. Both end in the same validation,
which reports every problem at once with file, field, value and what is allowed. Numbers and booleans may be written as
strings ("0.0001", "True"), as the published files do. The options of a unit are the ones that the unit declares.
"""

import json
import math
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    Strict,
    StringConstraints,
    ValidationError,
    create_model,
    field_validator,
    model_validator,
)

from data_dir.names import nearest_name
from models.create import MODELS, options_of_models
from models.layer import AbstractHRULayer, Option, unit_options
from models.load import UnitError, unit_and_sha256

from . import LEARNING_ALGORITHMS, ConfigError, machines, scheduler, tasks
from .wording import described, shown

DEFAULT_OUTPUT_DIR = "outputs"


def _unquote(value: Any) -> Any:
    """Read "True", "none", "64" and "1e-4" as what they spell; leave any other value alone."""
    if not isinstance(value, str):
        return value
    text = value.strip().lower()
    if text in ("true", "false"):
        return text == "true"
    if text in ("none", "null"):
        return None
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            continue
    return value


_Unquoted = BeforeValidator(_unquote)
_Flag = Annotated[bool, Strict(), _Unquoted]
_Int = Annotated[int, Strict(), _Unquoted]
_Float = Annotated[float, Strict(), _Unquoted]
_IntOrNull = Annotated[Annotated[int, Strict()] | None, _Unquoted]
_FloatOrNull = Annotated[Annotated[float, Strict()] | None, _Unquoted]
_Path = Annotated[str, Strict(), StringConstraints(pattern=r"^[^\x00]*$")]  # a path has no NUL


def _flag(*default: bool) -> Any:
    return Field(*default, description="true or false")


def _count(*default: int | None, most: int = 2**31 - 1, otherwise: str = "") -> Any:
    below = "below 2147483648" if most == 2**31 - 1 else f"at most {most}"
    described = "a positive whole number" + (otherwise or f"{' ' if most == 2**31 - 1 else ', '}{below}")
    return Field(*default, gt=0, le=most, description=described)


def _positive(*default: float | None, otherwise: str = "") -> Any:
    return Field(*default, gt=0, allow_inf_nan=False, description=f"a positive number{otherwise}")


class ExperimentConfig(BaseModel):
    """One experiment: a model, a data set, and how the model is trained on the data set.

    A file must have the fields without a default: they are the fields of the published files. `defaults` tells which of
    the others it left out. The defaults of the whole project stand here. `config_class` adds the options of the units.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    unit_class: ClassVar[type[AbstractHRULayer] | None] = None  # your own unit, imported
    unit_sha256: ClassVar[str | None] = None  # of its file

    unit: Annotated[str | None, Strict()] = Field(
        None,
        description="null, or the Python file and the class of your own unit, as my_unit.py:MyLayer or "
        "my_package.my_unit:MyLayer",
    )
    model_name: str = Field(
        strict=True, pattern=r"^[\w-]+$", description=f"one of {', '.join(MODELS)}, or with unit a name of your own"
    )
    dataset_name: _Path = Field(min_length=1, description="the name of a data set")
    task: tasks.Fields = None
    learning_algorithm: str = Field(
        LEARNING_ALGORITHMS[0],
        pattern=f"^({'|'.join(LEARNING_ALGORITHMS)})$",
        description=f"one of {', '.join(LEARNING_ALGORITHMS)}",
    )
    seeds: tuple[Annotated[_Int, Field(ge=0, lt=2**32)], ...] = Field(
        min_length=1, description="a list of different whole numbers from 0 to 4294967295, at least one"
    )
    data_dir: _Path = Field(description="the path of a folder")
    output_parent_dir: _Path = Field(description="the path of a folder")

    # training
    lr: _Float = _positive()
    lr_scheduler: str = Field(strict=True, description=scheduler.ALLOWED)
    num_steps: _Int = _count()
    print_steps: _Int = _count()
    batch_size: _Int = _count()
    patience: _Int = _count(10)
    evaluate_train: _IntOrNull = _count(None, otherwise=", or null for the whole training part")
    metric: Literal["accuracy", "mse"] = Field(description="accuracy or mse")
    grad_clip: _FloatOrNull = _positive(None, otherwise=", or null for gradients of any norm")
    skip_nonfinite: _Int = Field(0, ge=0, lt=2**31, description="a whole number, 0 or more, below 2147483648")
    checkpoint_steps: _IntOrNull = _count(None, otherwise=", or null for evaluations alone")

    # data
    classification: _Flag = _flag()
    time: _Flag = _flag()
    output_step: _IntOrNull = Field(
        default_factory=lambda fields: 1 if fields["classification"] else None,
        gt=0,
        lt=2**31,
        description="a positive whole number, or null for the value of the data",
    )
    split: _Path = Field("seed", min_length=1, description='"seed", "original", or the path of an index file')
    inmemory: _Flag = _flag(False)
    standardise: _Flag = _flag(False)

    # model
    pooling: Literal["mean", "last"] = Field("mean", description="mean or last")
    num_blocks: _Int = _count(most=1000)
    hidden_dim: _Int = _count(most=2**20)
    ssm_dim: _Int = _count(most=2**20)
    train_steps: _Flag = _flag(True)
    epsilon: _FloatOrNull = _positive(None, otherwise=", or null for infinitesimal nudges")
    batchnorm: Literal["ema", "batch"] = Field("batch", description="ema or batch")
    dropout_rate: _Float = Field(0.05, ge=0, le=0.999, description="a number from 0 to 0.999")
    remat: _Flag = _flag(True)
    machine: machines.Fields = None

    @field_validator("model_name")
    @classmethod
    def _model_exists(cls, name, info):
        own = info.data.get("unit") is not None
        if (name in MODELS) == own:
            raise ValueError("a model of this project, and not of your own unit" if own else "no such model")
        return name

    @field_validator("seeds")
    @classmethod
    def _seeds_differ(cls, seeds):
        if len(set(seeds)) != len(seeds):
            raise ValueError("a seed is listed twice")
        return seeds

    @field_validator("output_parent_dir")
    @classmethod
    def _output_default(cls, folder):
        # The published files write "" and mean their own default.
        return folder or DEFAULT_OUTPUT_DIR

    @model_validator(mode="after")
    def _fields_agree(self):
        if self.classification and self.metric != "accuracy":
            raise self._clash("metric", "classification is measured by accuracy")
        if not self.classification and self.metric != "mse":
            raise self._clash("metric", "a regression is measured by mse")
        if self.classification and self.output_step != 1:
            raise self._clash("output_step", "a classification has one output per sequence: output_step is 1")
        for name, reason in tasks.clashes(self):
            raise self._clash(name, reason)
        own = self._unit_options()
        for name, owners in options_of_models().items():
            if name not in own and getattr(self, name) not in (None, False):
                raise self._clash(name, f"only {' and '.join(owners)} has it: leave it out, null or false")
        for name, option in own.items():
            way = "a machine" if self.machine else self.learning_algorithm
            if getattr(self, name) and option.algorithms and way not in option.algorithms:
                ways = " or ".join(option.algorithms)
                raise self._clash(name, f"{way} does not differentiate it: false, or {ways}")
        for name, reason in machines.clashes(self.machine, self.num_blocks, self.learning_algorithm):
            raise self._clash(name, reason)
        try:
            self.learning_rate()
        except scheduler.SchedulerError as error:
            raise self._clash("lr_scheduler", f"{error}; allowed is {scheduler.ALLOWED}") from error
        return self

    def _clash(self, field: str, reason: str) -> ValueError:
        return ValueError(f"{field} is {json.dumps(getattr(self, field))}: {reason}")

    def _unit_options(self) -> dict[str, Option]:
        unit = self.unit_class or MODELS.get(self.model_name)
        return {} if unit is None else unit_options(unit)

    def learning_rate(self):
        """Give what an optax optimiser takes as its learning rate: a float or an optax schedule."""
        return scheduler.build(self.lr_scheduler, self.lr, self.num_steps)

    def model_options(self) -> dict:
        """Give the keyword arguments of `models.create_model` that the config decides."""
        task = tasks.task_of(self.task)
        given = {"model_name": self.unit_class or self.model_name, "last_steps": 1 if task is None else task.last_steps}
        names = (
            *("hidden_dim", "num_blocks", "ssm_dim", "classification", "output_step", "learning_algorithm", "epsilon"),
            *("pooling", "train_steps", "batchnorm", "dropout_rate", "remat", *self._unit_options()),
        )
        return given | {name: getattr(self, name) for name in names}

    def data_options(self) -> dict:
        """Give the keyword arguments of `data_dir.datasets.create_dataset` but the seed."""
        names = ("data_dir", "dataset_name", "time", "classification", "output_step", "split", "inmemory")
        given = {name: getattr(self, name) for name in (*names, "standardise", "evaluate_train")}
        return given | {"task": tasks.task_of(self.task)}

    def defaults(self) -> dict[str, Any]:
        """Give the fields that nobody set, with the values that they took."""
        fields = self.model_dump(mode="json")
        return {name: value for name, value in fields.items() if name not in self.model_fields_set}

    def completed(self, output_step: int) -> "ExperimentConfig":
        """Give a copy that has the output_step of the data set if the config leaves it out."""
        if self.output_step is not None:
            return self
        copy = self.model_copy(update={"output_step": output_step})
        copy.model_fields_set.discard("output_step")  # it still counts as a default
        return copy

    def replace(self, changes: Mapping[str, Any], source: str = "command line") -> "ExperimentConfig":
        """Give a copy with some fields changed, checked as a whole.

        **Raises:** `ConfigError`, naming `source`, if the changed config is not valid.
        """
        fields = {**self.model_dump(exclude_unset=True), **changes}
        same = all(fields.get(name) == getattr(self, name) for name in ("unit", "machine"))
        allowed = self.unit is not None or machines.command_of(self.machine) is not None
        return validate(fields, source, own_units=same and allowed)


@lru_cache
def config_class(unit: type[AbstractHRULayer] | None, sha256: str | None = None) -> type[ExperimentConfig]:
    """The config of a unit: `ExperimentConfig` with the options of all models and of this unit as fields.

    The options of other units are null or false. A number that is left out is null, and the unit has its own default.
    `sha256`: of the file of your own unit.

    **Raises:** `UnitError` for an option of the unit that has the name of a field or method of every config.
    """
    own = {} if unit is None else _options_with_free_names(unit)
    options = {name: next(iter(owners.values())) for name, owners in options_of_models().items()} | own
    fields: dict[str, Any] = {name: _option_field(option, name in own) for name, option in options.items()}
    known = create_model("ExperimentConfig", __base__=ExperimentConfig, **fields)
    known.unit_class = None if unit in MODELS.values() else unit
    known.unit_sha256 = sha256
    return known


def _options_with_free_names(unit: type[AbstractHRULayer]) -> dict[str, Option]:
    options = unit_options(unit)
    for name in options:
        if name in ExperimentConfig.model_fields or hasattr(ExperimentConfig, name):
            raise UnitError(
                f"{unit.__name__}: the option {name} has a name that every config uses: choose another name"
            )
    return options


def _option_field(option: Option, own: bool) -> tuple[Any, Any]:
    if option.kind is bool:
        return _Flag, _flag(own and option.default)
    limits = {"gt": option.above, "lt": option.below, "allow_inf_nan": False}
    limits = {name: limit for name, limit in limits.items() if abs(limit) < math.inf}
    described = f"{option.allowed()}, or null for the default of the unit"
    return _IntOrNull if option.kind is int else _FloatOrNull, Field(None, description=described, **limits)


def validate(fields: Mapping[str, Any], source: str, *, own_units: bool = False) -> ExperimentConfig:
    """Check the fields of a config; `source` says in messages where they come from.

    A config may name a unit of the user's own, which is Python code, or a program as its machine. Only with `own_units`
    it is run.

    **Raises:** `ConfigError` with every problem.
    """
    unit, name, sha256 = MODELS.get(str(fields.get("model_name"))), fields.get("unit"), None
    command = machines.command_of(fields.get("machine"))
    for field, given, kind in (("unit", name, "Python code"), ("command of machine", command, "a program")):
        if isinstance(given, str | list) and not own_units:
            raise ConfigError(
                f"{source}: {field} is {shown(given)}: this is {kind}, which is not run unasked: read it, then allow "
                "it with --own_units"
            )
    try:
        if isinstance(name, str):
            unit, sha256 = unit_and_sha256(name)
        known = config_class(unit, sha256)
    except (UnitError, TypeError) as error:
        raise ConfigError(f"{source}: {error}") from error
    try:
        return known.model_validate(dict(fields))
    except ValidationError as error:
        problems = error.errors(include_url=False)
        # A default that depends on a bad field is no problem of its own.
        problems = [problem for problem in problems if problem["type"] != "default_factory_not_called"]
        texts = dict.fromkeys(described(problem, fields, known.model_fields) for problem in problems)
        raise ConfigError(f"{source}: " + "; ".join(texts)) from None


def load_config(path: str | Path, model_name: str | None = None, *, own_units: bool = False) -> ExperimentConfig:
    """Read and check one config file.

    The model is `model_name`, or else the folder of the file (`.../LinHRU/EigenWorms.json`). If the file has the field
    model_name, it must be the same. A file without dataset_name is for the set with the name of the file. `own_units`
    as for `validate`.

    **Raises:** `ConfigError` for a file that is missing, is not JSON (with line and column), repeats a field, lacks
    one, or holds one that is unknown, of the wrong type or impossible.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        raise ConfigError(f"{path}: is not a regular file")  # reading a pipe would wait for ever
    try:
        fields = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_without_repeats)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path}: not JSON, line {error.lineno} column {error.colno}: {error.msg}") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not a config: {error}") from None
    if not isinstance(fields, dict):
        raise ConfigError(f"{path}: a config is a JSON object of fields, not {json.dumps(fields)[:60]}")
    folder = path.resolve().parent.name
    if model_name is None and (folder in MODELS or fields.get("unit") is not None):
        model_name = folder
    if model_name is not None and fields.setdefault("model_name", model_name) != model_name:
        raise ConfigError(
            f"{path}: model_name is {json.dumps(fields['model_name'])}, but this is a file of {model_name}"
        )
    return validate({"dataset_name": path.stem, **fields}, str(path), own_units=own_units)


def config_path(config_dir: str | Path, model_name: str, dataset_name: str) -> Path:
    """Find the config of a model and a data set in a group of configs.

    **Raises:** `ConfigError` that lists the data sets of the group (and the nearest name) if there is none.
    """
    folder = Path(config_dir) / model_name
    names = sorted(path.stem for path in folder.glob("*.json"))
    if dataset_name in names:
        return folder / f"{dataset_name}.json"
    if not names:
        raise ConfigError(f"{folder}: no configs here; they are files GROUP/<model_name>/<dataset_name>.json")
    near = nearest_name(dataset_name, names)
    hint = f" Did you mean {near}?" if near else ""
    raise ConfigError(f"{folder}: no config for the data set {dataset_name!r}.{hint} There are: {', '.join(names)}")


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        repeated = sorted({name for name in names if names.count(name) > 1})
        raise ValueError(f"the field {', '.join(repeated)} is given twice")
    return fields
