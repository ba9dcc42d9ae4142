"""Loss, metric and outputs of a whole split, without dropout."""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from training.devices import divided, of_each, over_devices, own_part, replicated, whole
from training.steps import sample_loss


@eqx.filter_jit
def _evaluate_batch(model, state, x, y, weights, classification, devices):
    """Sums of loss and metric over the samples of weight 1 on each device, and the outputs of all samples.

    The metric of a regression with labels (batch, T, K) is one squared error for each of the K outputs.
    """

    def of_part(model_and_state, x, y, weights):
        model, state = model_and_state
        forward = jax.vmap(model, axis_name="batch", in_axes=(0, None, None), out_axes=(0, None))
        output, _ = forward(x, state, None)
        losses = jax.vmap(sample_loss, in_axes=(0, 0, None))(output, y, classification)
        metrics, weights_of = losses, weights
        if classification:
            right = jnp.argmax(output, axis=-1) == jnp.argmax(y, axis=-1)
            metrics = right if y.ndim == 2 else jnp.sum(right, axis=1)  # a count is exact, so equal shares are equal
        elif y.ndim == 3:
            metrics, weights_of = jnp.mean((output - y) ** 2, axis=1), weights[:, None]
        return of_each((jnp.sum(weights * losses), jnp.sum(weights_of * metrics, axis=0)), devices), output

    (loss, metric), output = over_devices(of_part, devices)((model, state), x, y, weights)
    return loss, metric, output


def _evaluate_batches(model, state, data, batch_size, classification, devices):
    """(number of samples, *result of `_evaluate_batch`) for every batch of a split."""
    model, state = replicated((eqx.nn.inference_mode(model), state), devices)
    data.position(0)  # raises DataError for a split without samples
    for start in range(0, data.size, batch_size):
        samples = start + np.arange(batch_size)
        present = samples < data.size
        loaded = data.batch(own_part(np.where(present, samples, start)))
        batch = divided((*loaded, own_part(present)), devices)
        yield np.sum(present), *_evaluate_batch(model, state, *batch, classification, devices)


def evaluate(
    model: eqx.Module, state: eqx.nn.State, data: Any, *, batch_size: int, classification: bool, devices: int = 1
) -> tuple[float, float]:
    """Mean loss and metric (accuracy, or mean squared error) over every sample of a split, without dropout.

    If several steps of a sample are classified, the accuracy is the share of right steps.

    The mean squared error is in the unit of the labels in the files: the loss times `data.label_unit`². The unit is 1
    unless the labels were mapped. Of several outputs, each has its own unit, and the metric is the mean of their mean
    squared errors: the mean over all numbers that `--predict` writes.

    `data` is a `Dataloader`. Its last batch is filled up with repeated samples of weight 0, so all splits share one
    compiled program. So many `devices`, which must divide the batch size, divide each batch. A loss that is not finite
    is returned, not raised.

    **Raises:** `DataError` for a split without samples.
    """
    losses, metrics, count = [], [], data.size
    for _, loss, metric, output in _evaluate_batches(model, state, data, batch_size, classification, devices):
        losses += np.asarray(loss).tolist()
        metrics += np.reshape(metric, (devices, -1)).tolist()
        count = data.size * (output.shape[1] if classification and output.ndim == 3 else 1)
    outputs = len(metrics[0])
    units = [1.0] if classification else np.broadcast_to(data.label_unit, outputs).tolist()
    columns = zip(*metrics, strict=True)
    of_outputs = [math.fsum(sums) / count * unit**2 for sums, unit in zip(columns, units, strict=True)]
    return math.fsum(losses) / data.size, math.fsum(of_outputs) / outputs


def predict(
    model: eqx.Module, state: eqx.nn.State, data: Any, *, batch_size: int, classification: bool, devices: int = 1
) -> Float[np.ndarray, "samples ..."]:
    """The outputs of a model for every sample of a split, in stored order, as `evaluate` computes them.

    All processes get the outputs of all samples.
    """
    batches = _evaluate_batches(model, state, data, batch_size, classification, devices)
    return np.concatenate([whole(output)[:count] for count, _, _, output in batches])
