"""Models by name."""

import math
from typing import Literal

import equinox as eqx
import numpy as np
from jaxtyping import PRNGKeyArray

from .LinHRU import LinHRU
from .NonlinHRU import NonlinHRU
from .rhel import make_learning_algorithm
from .stack import HRU

MODELS: dict[str, type[HRU]] = {"LinHRU": LinHRU, "NonlinHRU": NonlinHRU}
BATCHNORM_MODES = ("ema", "batch")
DAMPED_ALGORITHMS = ("RHEL", "BPTT")


def create_model(
    model_name: str,
    data_dim: int,
    label_dim: int,
    hidden_dim: int,
    num_blocks: int,
    ssm_dim: int,
    *,
    classification: bool,
    output_step: int = 1,
    learning_algorithm: str = "RHEL",
    epsilon: float | None = None,
    complex_ssm: bool = True,
    train_steps: bool = True,
    step_init: float | None = None,
    gate: bool = False,
    damping: bool = False,
    batchnorm: Literal["ema", "batch"] = "batch",
    dropout_rate: float = 0.05,
    remat: bool = True,
    key: PRNGKeyArray,
) -> tuple[HRU, eqx.nn.State]:
    """A model and its initial BatchNorm state.

    Call it on one sequence x (L, data_dim), under `jax.vmap(model, axis_name="batch", in_axes=(0, None, 0),
    out_axes=(0, None))`, as model(x, state, key) -> (output, state): logits (label_dim,) for classification, else
    (L // output_step, label_dim) through tanh.

    - `learning_algorithm`, `epsilon`: see `models.rhel`. The forward pass is the same for all algorithms.
    - `complex_ssm` concerns LinHRU alone: Eq. 18 of NonlinHRU is real.
    - `damping` concerns LinHRU alone: a damping of its own for each oscillator, differentiated by RHEL or BPTT.
    - `step_init` (default 0.1) and `gate` concern NonlinHRU alone.
    - `train_steps=False` freezes the time steps, whatever the algorithm.
    - `remat`: compute the feed-forward part of a block again in the backward pass instead of keeping it.
    - `batchnorm`: "ema" reproduces the published code, "batch" normalises by the batch at hand while training.

    Raises `ValueError` for unknown names and impossible sizes.
    """
    if model_name not in MODELS:
        raise ValueError(f"unknown model_name {model_name!r}; one of {', '.join(MODELS)}")
    if batchnorm not in BATCHNORM_MODES:
        raise ValueError(f"unknown batchnorm {batchnorm!r}; one of {', '.join(BATCHNORM_MODES)}")
    sizes = {
        "data_dim": data_dim,
        "label_dim": label_dim,
        "hidden_dim": hidden_dim,
        "num_blocks": num_blocks,
        "ssm_dim": ssm_dim,
        "output_step": output_step,
    }
    for name, size in sizes.items():
        if isinstance(size, bool) or not isinstance(size, int | np.integer) or size < 1:
            raise ValueError(f"{name} must be a whole number of at least 1, got {size!r}")
        sizes[name] = int(size)
    if classification and output_step != 1:
        raise ValueError(
            f"output_step is {output_step}, but a classification has one output per sequence: it must be 1"
        )
    if not (0 <= dropout_rate < 1 and math.isfinite(dropout_rate)):
        raise ValueError(f"dropout_rate must lie in [0, 1), got {dropout_rate!r}")
    if damping and (model_name != "LinHRU" or learning_algorithm not in DAMPED_ALGORITHMS):
        raise ValueError(
            f"damping is an option of LinHRU, trained by {' or '.join(DAMPED_ALGORITHMS)}, "
            f"not of {model_name} by {learning_algorithm}"
        )
    if model_name == "NonlinHRU":
        unit_options = {"gate": gate} | ({} if step_init is None else {"step_init": step_init})
    elif step_init is not None or gate:
        raise ValueError(f"step_init and gate are options of NonlinHRU, not of {model_name}")
    else:
        unit_options = {"complex_ssm": complex_ssm, "damping": damping}
    return eqx.nn.make_with_state(MODELS[model_name])(
        sizes["hidden_dim"],
        sizes["ssm_dim"],
        **unit_options,
        train_steps=train_steps,
        learning_algorithm=make_learning_algorithm(learning_algorithm, epsilon),
        data_dim=sizes["data_dim"],
        label_dim=sizes["label_dim"],
        num_blocks=sizes["num_blocks"],
        classification=classification,
        output_step=sizes["output_step"],
        batchnorm=batchnorm,
        dropout_rate=dropout_rate,
        remat=remat,
        key=key,
    )
