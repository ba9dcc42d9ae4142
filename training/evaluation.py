"""Loss, metric and outputs of a whole split, without dropout."""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from training.steps import sample_loss


@eqx.filter_jit
def _evaluate_batch(model, state, x, y, weights, classification):
    """Sums of loss and metric over the samples of weight 1, and the outputs of all samples."""
    forward = jax.vmap(model, axis_name="batch", in_axes=(0, None, None), out_axes=(0, None))
    output, _ = forward(x, state, None)
    losses = jax.vmap(sample_loss, in_axes=(0, 0, None))(output, y, classification)
    metrics = jnp.argmax(output, axis=1) == jnp.argmax(y, axis=1) if classification else losses
    return jnp.sum(weights * losses), jnp.sum(weights * metrics), output


def _evaluate_batches(model, state, data, batch_size, classification):
    """(number of samples, *result of `_evaluate_batch`) for every batch of a split."""
    model = eqx.nn.inference_mode(model)
    rows = np.arange(batch_size)
    for x, y in data.loop_epoch(batch_size):
        filled = np.where(rows < len(x), rows, 0)
        batch = (jnp.asarray(values) for values in (x[filled], y[filled], rows < len(x)))
        yield len(x), *_evaluate_batch(model, state, *batch, classification)


def evaluate(
    model: eqx.Module, state: eqx.nn.State, data: Any, *, batch_size: int, classification: bool
) -> tuple[float, float]:
    """Mean loss and metric (accuracy, or mean squared error) over every sample of a split, without dropout.

    The mean squared error is in the unit of the labels in the files: the loss times `data.label_unit`². The unit is 1
    unless the labels were mapped.

    `data` is a `Dataloader`. Its last batch is filled up with repeated samples of weight 0, so all splits share one
    compiled program. A loss that is not finite is returned, not raised.

    **Raises:** `DataError` for a split without samples.
    """
    losses, metrics = [], []
    for _, loss, metric, _ in _evaluate_batches(model, state, data, batch_size, classification):
        losses.append(float(loss))
        metrics.append(float(metric))
    unit = 1 if classification else data.label_unit**2
    return math.fsum(losses) / data.size, math.fsum(metrics) / data.size * unit


def predict(
    model: eqx.Module, state: eqx.nn.State, data: Any, *, batch_size: int, classification: bool
) -> Float[np.ndarray, "samples ..."]:
    """The outputs of a model for every sample of a split, in stored order, as `evaluate` computes them."""
    batches = _evaluate_batches(model, state, data, batch_size, classification)
    return np.concatenate([np.asarray(output)[:count] for count, _, _, output in batches])
