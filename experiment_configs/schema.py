"""What an experiment config may say, and the one place where it is checked.

`load_config` reads a file, `ExperimentConfig.replace` lays the command line over it; both end in the same validation
and report every problem at once with file, field, value and what is allowed. Numbers and booleans may be written as
strings ("0.0001", "True"), as the published files do.
"""

import difflib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator

from data_dir.names import nearest_name

from . import LEARNING_ALGORITHMS, MODEL_NAMES, scheduler

DEFAULT_OUTPUT_DIR = "outputs"
# Names in use elsewhere for fields of this project.
_ALSO_CALLED = {
    "learning_rate": "lr",
    "scheduler": "lr_scheduler",
    "dataset": "dataset_name",
    "model": "model_name",
    "algorithm": "learning_algorithm",
    "seed": "seeds",
    "steps": "num_steps",
    "dropout": "dropout_rate",
    "standardize": "standardise",
    "normalise": "standardise",
    "normalize": "standardise",
}


class ConfigError(ValueError):
    """A config that cannot be used. The message names its source, each bad field, its value and what is allowed."""


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
_Flag = Annotated[bool, Field(strict=True, description="true or false"), _Unquoted]
_Count = Annotated[
    int, Field(strict=True, gt=0, lt=2**31, description="a positive whole number below 2147483648"), _Unquoted
]
_Size = Annotated[
    int, Field(strict=True, gt=0, le=2**20, description="a positive whole number, at most 1048576"), _Unquoted
]
_Blocks = Annotated[
    int, Field(strict=True, gt=0, le=1000, description="a positive whole number, at most 1000"), _Unquoted
]
_Seed = Annotated[int, Field(strict=True, ge=0, lt=2**32), _Unquoted]
_Positive = Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False, description="a positive number"), _Unquoted]
_NO_NUL = r"^[^\x00]*$"  # which no path can have
_Folder = Annotated[str, Field(strict=True, pattern=_NO_NUL, description="the path of a folder")]


class ExperimentConfig(BaseModel):
    """One experiment: a model, a data set, and how the one is trained on the other.

    A file must have the fields without a default: they are those of the published files. `defaults` tells which of the
    others it left out. The defaults of the whole project stand here.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model_name: Literal[MODEL_NAMES] = Field(description=f"one of {', '.join(MODEL_NAMES)}")
    dataset_name: str = Field(strict=True, min_length=1, pattern=_NO_NUL, description="the name of a data set")
    learning_algorithm: Literal[LEARNING_ALGORITHMS] = Field(
        LEARNING_ALGORITHMS[0], description=f"one of {', '.join(LEARNING_ALGORITHMS)}"
    )
    seeds: tuple[_Seed, ...] = Field(
        min_length=1, description="a list of different whole numbers from 0 to 4294967295, at least one"
    )
    data_dir: _Folder
    output_parent_dir: _Folder

    # training
    lr: _Positive
    lr_scheduler: str = Field(strict=True, description=scheduler.ALLOWED)
    num_steps: _Count
    print_steps: _Count
    batch_size: _Count
    metric: Literal["accuracy", "mse"] = Field(description="accuracy or mse")
    grad_clip: Annotated[
        _Positive | None, Field(description="a positive number, or null for gradients of any norm"), _Unquoted
    ] = None
    skip_nonfinite: Annotated[
        int, Field(strict=True, ge=0, lt=2**31, description="a whole number, 0 or more, below 2147483648"), _Unquoted
    ] = 0
    checkpoint_steps: Annotated[
        _Count | None, Field(description="a positive whole number, or null for evaluations alone"), _Unquoted
    ] = None

    # data
    classification: _Flag
    time: _Flag
    output_step: Annotated[
        _Count | None, Field(description="a positive whole number, or null for that of the data"), _Unquoted
    ] = Field(default_factory=lambda fields: 1 if fields["classification"] else None)
    split: str = Field(
        "seed",
        strict=True,
        min_length=1,
        pattern=_NO_NUL,
        description='"seed", "original", or the path of an index file',
    )
    inmemory: _Flag = False
    standardise: _Flag = False

    # model
    num_blocks: _Blocks
    hidden_dim: _Size
    ssm_dim: _Size
    complex_ssm: _Flag = Field(default_factory=lambda fields: fields["model_name"] == "LinHRU")
    train_steps: _Flag = True
    epsilon: Annotated[
        _Positive | None, Field(description="a positive number, or null for infinitesimal nudges"), _Unquoted
    ] = None
    step_init: Annotated[
        Annotated[float, Field(strict=True, gt=0, lt=1)] | None,
        Field(description="a number between 0 and 1, or null for the model's own choice"),
        _Unquoted,
    ] = None
    gate: _Flag = False
    damping: _Flag = False
    batchnorm: Literal["ema", "batch"] = Field("batch", description="ema or batch")
    dropout_rate: Annotated[
        float, Field(strict=True, ge=0, le=0.999, description="a number from 0 to 0.999"), _Unquoted
    ] = 0.05
    remat: _Flag = True

    @field_validator("seeds")
    @classmethod
    def _seeds_differ(cls, seeds):
        if len(set(seeds)) != len(seeds):
            raise ValueError("a seed is listed twice")
        return seeds

    @field_validator("lr_scheduler", mode="before")
    @classmethod
    def _scheduler_as_text(cls, rule):
        return scheduler.normalise(rule)

    @field_validator("output_parent_dir")
    @classmethod
    def _output_default(cls, folder):
        # The published files write "" and mean their own default.
        return folder or DEFAULT_OUTPUT_DIR

    @model_validator(mode="after")
    def _fields_agree(self):
        for clash, field, reason in (
            (self.classification and self.metric != "accuracy", "metric", "classification is measured by accuracy"),
            (not self.classification and self.metric != "mse", "metric", "a regression is measured by mse"),
            (
                self.classification and self.output_step != 1,
                "output_step",
                "a classification has one output per sequence: output_step is 1",
            ),
            (
                self.complex_ssm and self.model_name == "NonlinHRU",
                "complex_ssm",
                "NonlinHRU is real: complex_ssm is false there",
            ),
            (
                self.step_init is not None and self.model_name == "LinHRU",
                "step_init",
                "only NonlinHRU has it; LinHRU draws one step per oscillator: leave it out or null",
            ),
            (self.gate and self.model_name == "LinHRU", "gate", "only NonlinHRU has it: leave it out or false"),
            (
                self.damping and self.model_name == "NonlinHRU",
                "damping",
                "only LinHRU has it: leave it out or false",
            ),
            (
                self.damping and self.learning_algorithm == "ReversibleBPTT",
                "damping",
                "ReversibleBPTT does not differentiate it: false, or RHEL or BPTT",
            ),
        ):
            if clash:
                raise ValueError(_Clash(field, getattr(self, field), reason))
        try:
            self.learning_rate()
        except scheduler.SchedulerError as error:
            raise ValueError(
                _Clash("lr_scheduler", self.lr_scheduler, f"{error}; allowed is {scheduler.ALLOWED}")
            ) from error
        return self

    def learning_rate(self):
        """Give what an optax optimiser takes as its learning rate: a float or an optax schedule."""
        return scheduler.build(self.lr_scheduler, self.lr, self.num_steps)

    def model_options(self) -> dict:
        """Give the keyword arguments of `models.create_model` that the config decides."""
        names = (
            *("model_name", "hidden_dim", "num_blocks", "ssm_dim", "classification", "output_step"),
            *("learning_algorithm", "epsilon", "complex_ssm", "train_steps", "step_init", "gate", "damping"),
            *("batchnorm", "dropout_rate", "remat"),
        )
        return {name: getattr(self, name) for name in names}

    def data_options(self) -> dict:
        """Give the keyword arguments of `data_dir.datasets.create_dataset` but the seed."""
        names = ("data_dir", "dataset_name", "time", "classification", "output_step", "split", "inmemory")
        return {name: getattr(self, name) for name in (*names, "standardise")}

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
        return validate({**self.model_dump(exclude_unset=True), **changes}, source)


class _Clash(str):
    """Fields that do not fit each other: the message of a validator that looks at the whole config."""

    def __new__(cls, field, value, reason):
        return super().__new__(cls, f"{field} is {json.dumps(value)}: {reason}")


def validate(fields: Mapping[str, Any], source: str) -> ExperimentConfig:
    """Check the fields of a config; `source` says in messages where they come from.

    **Raises:** `ConfigError` with every problem found.
    """
    try:
        return ExperimentConfig.model_validate(dict(fields))
    except ValidationError as error:
        found = error.errors(include_url=False)
        # A default that depends on a bad field is no problem of its own.
        found = [problem for problem in found if problem["type"] != "default_factory_not_called"]
        problems = dict.fromkeys(_describe(problem, fields) for problem in found)
        raise ConfigError(f"{source}: " + "; ".join(problems)) from None


def load_config(path: str | Path, model_name: str | None = None) -> ExperimentConfig:
    """Read and check one config file.

    The model is `model_name`, or else the folder that the file lies in (`.../LinHRU/EigenWorms.json`); a file that
    names its model must name that one. A file that names no data set is for the set of its own name.

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
    if model_name is None and path.resolve().parent.name in MODEL_NAMES:
        model_name = path.resolve().parent.name
    if model_name is not None and fields.setdefault("model_name", model_name) != model_name:
        raise ConfigError(
            f"{path}: model_name is {json.dumps(fields['model_name'])}, but this is a file of {model_name}"
        )
    return validate({"dataset_name": path.stem, **fields}, str(path))


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


def _describe(problem: Mapping[str, Any], fields: Mapping[str, Any]) -> str:
    """Put one finding of pydantic into words: field, value as it was given, what is allowed."""
    if not problem["loc"]:
        return str(problem["ctx"]["error"])
    name, *items = problem["loc"]
    known = ExperimentConfig.model_fields
    if problem["type"] == "missing":
        return f"missing field {name}: {known[name].description}"
    value = fields[name]
    for item in items:
        value = value[item]
    if problem["type"] == "extra_forbidden":
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.7)
        near = _ALSO_CALLED.get(name) or (near[0] if near else None)
        hint = f"did you mean {near}?" if near else f"the fields are {', '.join(known)}"
        return f"unknown field {name} ({_shown(value)}): {hint}"
    detail = f" ({problem['ctx']['error']})" if problem["type"] == "value_error" else ""
    return f"{name} is {_shown(value)}{detail}: allowed is {known[name].description}"


def _shown(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 80 else text[:77] + "..."
