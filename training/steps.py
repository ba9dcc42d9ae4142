"""What the device computes in a step: the loss of a batch, its gradient, Adam's update, and whether to skip the step.

A step depends on the training state, the batch and the step's number, and on nothing else. A step whose loss or
gradient is not finite changes neither the model, nor its state, nor the optimiser. If no such step may be skipped any
more, the device does no later step. So it still holds the state in which the step went wrong.
"""

import functools
from dataclasses import field, replace

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from training.devices import average, over_devices

Batch = tuple[Float[Array, "batch time channels"], Float[Array, "batch *labels"], PRNGKeyArray]  # x, y, dropout key


class TrainingState(eqx.Module):
    """All that a step changes."""

    model: eqx.Module
    state: eqx.nn.State
    optimiser: optax.OptState
    step: Array  # number of steps, with the skipped ones
    skips_left: Array = field(default_factory=lambda: jnp.array(0))  # below 0 the training has failed


def initial_state(
    model: eqx.Module, state: eqx.nn.State, optimiser: optax.GradientTransformation, skip_nonfinite: int = 0
) -> TrainingState:
    """The state before the first step. It is a copy: the steps leave the model that is handed in intact."""
    optimiser_state = optimiser.init(eqx.filter(model, eqx.is_inexact_array))
    return copied(TrainingState(model, state, optimiser_state, jnp.array(0), jnp.array(skip_nonfinite)))


def sample_loss(output: Array, label: Array, classification: bool) -> Float[Array, ""]:
    """Loss of one sample: cross-entropy of logits (classes,), or the mean squared error of a regression's outputs.

    For logits (steps, classes) it is the mean over the steps.

    In a regression, `output` (T, K) has K outputs at each of T label steps. `label` is (T, K), or (T,) if K is 1. With
    K > 1 every output is in the unit of the loader, in which its range is about as wide as that of the others.
    """
    if classification:
        losses = optax.softmax_cross_entropy(output, label)
        return losses if losses.ndim == 0 else jnp.mean(losses)
    return jnp.mean((output.reshape(label.shape) - label) ** 2)


@functools.lru_cache
def adam(learning_rate: optax.ScalarOrSchedule, grad_clip: float | None = None) -> optax.GradientTransformation:
    """Adam. With `grad_clip`, gradients are first scaled down to this global norm.

    The same arguments give the same object. So all seeds share one compiled step.
    """
    if grad_clip is None:
        return optax.adam(learning_rate)
    return optax.chain(optax.clip_by_global_norm(grad_clip), optax.adam(learning_rate))


@eqx.filter_jit(donate="all-except-first")
def train_step(
    batch: Batch,
    training: TrainingState,
    optimiser: optax.GradientTransformation,
    classification: bool,
    devices: int = 1,
) -> tuple[TrainingState, Float[Array, ""]]:
    """One step of the optimiser on one batch (x, y, dropout key of the run).

    On several devices (`training.devices`), the samples of x and y are `divided`, and all else is `replicated`.

    The arrays of `training` are donated: the new state takes their memory.

    **Returns:** the new training state, and the loss of the batch before the step.
    """
    training, loss, _ = _step(batch, training, optimiser, classification, devices)
    return training, loss


def train_steps(
    batches: tuple[
        Float[Array, "slots batch time channels"], Float[Array, "slots batch *labels"], PRNGKeyArray, Int[Array, ""]
    ],
    training: TrainingState,
    optimiser: optax.GradientTransformation,
    classification: bool,
    devices: int = 1,
) -> tuple[TrainingState, Float[Array, " slots"], Float[Array, " slots"]]:
    """Several steps in one call. It returns while the device still computes. (A function of `eqx.filter_jit` waits.)

    **Arguments:** `batches` is (x, y, dropout key of the run, count). The first `count` batches of x and y are used.
    One compiled program serves every count. The arrays of `training` are donated.

    **Returns:** the training state after `count` steps, and the loss and global gradient norm of every step. Values of
    unused slots, and of steps after `skips_left` fell below 0, are nan.
    """
    arrays, rest = eqx.partition(training, eqx.is_array)
    leaves, structure = jax.tree.flatten(rest)
    static = (tuple(leaves), structure, optimiser, classification, devices)
    arrays, losses, norms = _compiled_steps(arrays, batches, *static)
    return eqx.combine(arrays, rest), losses, norms


@functools.partial(jax.jit, donate_argnums=0, static_argnums=(2, 3, 4, 5, 6))
def _compiled_steps(arrays, batches, leaves, structure, optimiser, classification, devices):
    return some_steps(arrays, batches, leaves, structure, optimiser, classification, devices)


def some_steps(arrays, batches, leaves, structure, optimiser, classification, devices=1):
    """`train_steps`, to be compiled. The training state comes in parts: arrays, other leaves, and their structure."""
    x, y, key, count = batches
    rest = jax.tree.unflatten(structure, leaves)
    pick = functools.partial(jax.lax.dynamic_index_in_dim, keepdims=False)

    def running(carry):
        slot, arrays, *_ = carry
        return (slot < count) & (arrays.skips_left >= 0)

    def step(carry):
        slot, arrays, losses, norms = carry
        batch = (pick(x, slot), pick(y, slot), key)
        training, loss, norm = _step(batch, eqx.combine(arrays, rest), optimiser, classification, devices)
        return slot + 1, eqx.filter(training, eqx.is_array), losses.at[slot].set(loss), norms.at[slot].set(norm)

    unset = jnp.full(len(x), jnp.nan)
    return jax.lax.while_loop(running, step, (jnp.int32(0), arrays, unset, unset))[1:]


def _step(batch, training, optimiser, classification, devices):
    (loss, state), gradient = batch_gradient(batch, training, classification, devices)
    updates, optimiser_state = optimiser.update(
        gradient, training.optimiser, eqx.filter(training.model, eqx.is_inexact_array)
    )
    model = eqx.apply_updates(training.model, updates)
    norm = optax.tree.norm(gradient)
    done = TrainingState(model, state, optimiser_state, training.step + 1, training.skips_left)
    skipped = replace(training, step=training.step + 1, skips_left=training.skips_left - 1)
    # `jnp.where` reads the parameters once. The step itself reads them batch x time times.
    take = jnp.isfinite(loss) & jnp.isfinite(norm)
    training = jax.tree.map(lambda new, old: jnp.where(take, new, old) if eqx.is_array(new) else new, done, skipped)
    return training, loss, norm


def batch_gradient(
    batch: Batch, training: TrainingState, classification: bool, devices: int = 1
) -> tuple[tuple[Float[Array, ""], eqx.nn.State], eqx.Module]:
    """The gradient of the mean loss of a batch (x, y, dropout key), by the learning algorithm of the model's units.

    **Returns:** (the loss, the model's state after the batch), and a model whose parameters are the gradients.
    """
    x, y, key = batch
    keys = jax.random.split(jax.random.fold_in(key, training.step), len(x))

    def of_part(model_and_state, x, y, keys):
        model, state = model_and_state

        def mean_loss(model):
            forward = jax.vmap(model, axis_name="batch", in_axes=(0, None, 0), out_axes=(0, None))
            output, new_state = forward(x, state, keys)
            losses = jax.vmap(sample_loss, in_axes=(0, 0, None))(output, y, classification)
            return jnp.mean(losses), new_state

        (loss, new_state), gradient = eqx.filter_value_and_grad(mean_loss, has_aux=True)(model)
        return (average((loss, gradient), devices), new_state), None

    whole = over_devices(of_part, devices)((training.model, training.state), x, y, keys)
    ((loss, gradient), state), _ = whole
    return (loss, state), gradient


def copied(tree: PyTree) -> PyTree:
    """A copy of every array. A step that donates the original leaves the copy alone.

    The copies have strong types. A parameter made from a Python number has a weak type, the result of a step has a
    strong one, and jax would compile the step for both.
    """
    return jax.tree.map(lambda leaf: jnp.array(leaf, dtype=leaf.dtype, copy=True) if eqx.is_array(leaf) else leaf, tree)
