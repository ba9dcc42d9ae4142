"""Models by name."""

import inspect
import math
from typing import Any, Literal

import equinox as eqx
import jax
import numpy as np
from jaxtyping import PRNGKeyArray

from .layer import AbstractHRULayer, Option, unit_options
from .LinHRU import LinHRULayer
from .NonlinHRU import NonlinHRULayer
from .rhel import make_learning_algorithm
from .stack import HRU

MODELS: dict[str, type[AbstractHRULayer]] = {"LinHRU": LinHRULayer, "NonlinHRU": NonlinHRULayer}
"""The unit of every model. A new model is one row here."""

BATCHNORM_MODES = ("ema", "batch")
POOLINGS = ("mean", "last")
Size = int | np.integer


def create_model(
    model_name: str | type[AbstractHRULayer],
    data_dim: Size,
    label_dim: Size,
    hidden_dim: Size,
    num_blocks: Size,
    ssm_dim: Size,
    *,
    classification: bool,
    output_step: Size = 1,
    pooling: Literal["mean", "last"] = "mean",
    last_steps: Size = 1,
    learning_algorithm: str = "RHEL",
    epsilon: float | None = None,
    train_steps: bool = True,
    batchnorm: Literal["ema", "batch"] = "batch",
    dropout_rate: float = 0.05,
    remat: bool = True,
    key: PRNGKeyArray,
    **options: Any,
) -> tuple[HRU, eqx.nn.State]:
    """A model and its initial BatchNorm state.

    Call it on one sequence x (L, data_dim), under `jax.vmap(model, axis_name="batch", in_axes=(0, None, 0),
    out_axes=(0, None))`, as model(x, state, key) -> (output, state): logits (label_dim,) for classification, else
    (L // output_step, label_dim) through tanh.

    - `model_name`: a name of `MODELS`, or the class of your own unit.
    - `pooling`: what a classification reads, the "mean" over time or the "last" step; or with "last" so many
      `last_steps`, each as a classification of its own, with logits (last_steps, label_dim).
    - `learning_algorithm`, `epsilon`: see `models.rhel`. The forward pass is the same for all algorithms.
    - `train_steps=False` freezes the time steps, whatever the algorithm.
    - `remat`: compute the feed-forward part of a block again in the backward pass instead of keeping it.
    - `batchnorm`: "ema" reproduces the published code, "batch" normalises by the current batch in training.
    - `options`: those that the `__init__` of the unit declares. LinHRU has complex_ssm (true by default), damping,
      shortest_period and longest_period; NonlinHRU has step_init (0.1) and gate. None stands for the default.

    Raises `ValueError` for unknown names, impossible sizes, options that the unit does not have, and a unit that drops
    the learning algorithm or `train_steps` or has an integer array, which would not be trained.
    """
    if isinstance(model_name, str) and model_name not in MODELS:
        raise ValueError(
            f"unknown model_name {model_name!r}; one of {', '.join(MODELS)}, or the class of your own unit"
        )
    if batchnorm not in BATCHNORM_MODES:
        raise ValueError(f"unknown batchnorm {batchnorm!r}; one of {', '.join(BATCHNORM_MODES)}")
    sizes = {"data_dim": data_dim, "label_dim": label_dim, "hidden_dim": hidden_dim, "num_blocks": num_blocks}
    sizes |= {"ssm_dim": ssm_dim, "output_step": output_step, "last_steps": last_steps}
    for name, size in sizes.items():
        if isinstance(size, bool) or not isinstance(size, int | np.integer) or size < 1:
            raise ValueError(f"{name} must be a whole number of at least 1, got {size!r}")
        sizes[name] = int(size)
    for name, flag in {"classification": classification, "train_steps": train_steps, "remat": remat}.items():
        if not isinstance(flag, bool | np.bool_):
            raise ValueError(f"{name} must be true or false, got {flag!r}")
    _require_reading(classification, output_step, pooling, last_steps)
    if not (0 <= dropout_rate < 1 and math.isfinite(dropout_rate)):
        raise ValueError(f"dropout_rate must lie in [0, 1), got {dropout_rate!r}")
    algorithm = make_learning_algorithm(learning_algorithm, epsilon)
    unit = MODELS[model_name] if isinstance(model_name, str) else model_name
    model, state = eqx.nn.make_with_state(HRU)(
        unit,
        **sizes,
        classification=classification,
        pooling=pooling,
        batchnorm=batchnorm,
        dropout_rate=dropout_rate,
        remat=remat,
        learning_algorithm=algorithm,
        train_steps=train_steps,
        **_checked(options, unit, learning_algorithm),
        key=key,
    )
    for block in model.blocks:
        _require_common(block.unit, learning_algorithm=algorithm, train_steps=train_steps)
        _require_trainable(block.unit)
    return model, state


def _require_reading(classification: bool, output_step: Size, pooling: str, last_steps: Size) -> None:
    """Raise `ValueError` for a way to read the outputs that does not fit the task."""
    if classification and output_step != 1:
        raise ValueError(
            f"output_step is {output_step}, but a classification has one output per sequence: it must be 1"
        )
    if pooling not in POOLINGS:
        raise ValueError(f"unknown pooling {pooling!r}; one of {', '.join(POOLINGS)}")
    if not classification and pooling != "mean":
        raise ValueError(f"pooling is {pooling!r}, but a regression reads every output_step-th step and pools none")
    if last_steps != 1 and pooling != "last":
        raise ValueError(f"last_steps is {last_steps}, but pooling is {pooling!r}: several steps need pooling 'last'")


def options_of_models() -> dict[str, dict[str, Option]]:
    """The options of every unit of `MODELS`: name of the option -> name of the model -> option."""
    table: dict[str, dict[str, Option]] = {}
    for model_name, unit in MODELS.items():
        for name, option in unit_options(unit).items():
            table.setdefault(name, {})[model_name] = option
    return table


def _checked(options: dict[str, Any], unit: type[AbstractHRULayer], algorithm: str) -> dict[str, Any]:
    """The given options, without None and without the options of other units that are False. Raises `ValueError`."""
    declared, others = unit_options(unit), options_of_models()
    unit_name = next((name for name, known in MODELS.items() if known is unit), unit.__name__)
    for name in declared.keys() & inspect.signature(create_model).parameters.keys():
        raise ValueError(f"{unit_name}: the option {name} is an argument of create_model: choose another name")
    given = {}
    for name, value in options.items():
        option, owners = declared.get(name), others.get(name, {})
        if option is None and not owners:
            raise ValueError(f"unknown option {name}: {unit_name} has {', '.join(declared) or 'no options'}")
        if value is None or (option is None and value is False):
            continue
        if option is None:
            raise ValueError(f"{name} is an option of {' and '.join(owners)}, not of {unit_name}")
        if value is not False and option.algorithms and algorithm not in option.algorithms:
            raise ValueError(f"{name} works with {' or '.join(option.algorithms)}, not with {algorithm}")
        if not option.allows(value):
            raise ValueError(f"{name} must be {option.allowed()}, got {value!r}")
        given[name] = value
    return given


def _require_common(unit: AbstractHRULayer, **asked: Any) -> None:
    """Raise `ValueError` if the `__init__` of a unit does not pass on what every unit gets."""
    for name, value in asked.items():
        if getattr(unit, name) != value:
            raise ValueError(
                f"{type(unit).__name__}: {name} is {getattr(unit, name)}, but {value} was asked for: pass **common to "
                "super().__init__"
            )


def _require_trainable(unit: AbstractHRULayer) -> None:
    """Raise `ValueError` for an array of a unit that is not floating-point: no optimiser changes it."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(unit):
        if isinstance(leaf, jax.Array) and not eqx.is_inexact_array(leaf):
            raise ValueError(
                f"{type(unit).__name__}{jax.tree_util.keystr(path)} is an array of {leaf.dtype} and would never be "
                "trained: make it jnp.asarray(.., float) or, if it is no parameter but an index, a NumPy array of int32"
            )
