"""What the device computes in a step: the loss of a batch, its gradient, the optimiser, and the choice to skip it.

A step is a function of the training state, its batch and its number alone. One whose loss or gradient is not finite
changes nothing: not the model, its state or the optimiser. Where no such step is tolerated, or no more, the device
stops there, and what it holds is the state in which the step went wrong.
"""

import functools
from dataclasses import field, replace

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree


class TrainingState(eqx.Module):
    """All that a step changes."""

    model: eqx.Module
    state: eqx.nn.State
    optimiser: optax.OptState
    step: Array  # steps done or skipped
    skips_left: Array = field(default_factory=lambda: jnp.array(0))  # below 0 no step is done any more


def sample_loss(output: Array, label: Array, classification: bool) -> Float[Array, ""]:
    """Loss of one sample: cross-entropy of logits (classes,), or the mean squared error of a regression's outputs.

    A regression's `output` (n_outputs, 1) and `label` (n_outputs,) hold the same number of values; other sizes raise.
    """
    if classification:
        return optax.softmax_cross_entropy(output, label)
    return jnp.mean((output.reshape(label.shape) - label) ** 2)


@functools.lru_cache
def adam(learning_rate: optax.ScalarOrSchedule, grad_clip: float | None = None) -> optax.GradientTransformation:
    """Adam, on gradients whose global norm is cut to `grad_clip` where one is given.

    The same arguments give the same object, so that the step compiled for one seed serves the next.
    """
    if grad_clip is None:
        return optax.adam(learning_rate)
    return optax.chain(optax.clip_by_global_norm(grad_clip), optax.adam(learning_rate))


@eqx.filter_jit(donate="all-except-first")
def train_step(
    batch: tuple[Float[Array, "batch time channels"], Float[Array, "batch labels"], PRNGKeyArray],
    training: TrainingState,
    optimiser: optax.GradientTransformation,
    classification: bool,
) -> tuple[TrainingState, Float[Array, ""]]:
    """One step of the optimiser on one batch. The old training state is used up: its buffers hold the new one.

    **Arguments:** `batch` is (x, y, dropout key of the run).

    **Returns:** the new training state, and the loss of the batch before the step.
    """
    training, loss, _ = _step(batch, training, optimiser, classification)
    return training, loss


def train_steps(
    batches: tuple[
        Float[Array, "slots batch time channels"], Float[Array, "slots batch labels"], PRNGKeyArray, Int[Array, ""]
    ],
    training: TrainingState,
    optimiser: optax.GradientTransformation,
    classification: bool,
) -> tuple[TrainingState, Float[Array, " slots"], Float[Array, " slots"]]:
    """Steps as `train_step` does them, one after the other in one call; the old training state is used up.

    It returns while the device still works. (A function of `eqx.filter_jit` waits for the device.)

    **Arguments:** `batches` is (x, y, dropout key of the run, count); of x and y the first `count` batches are used.
    Every count is served by one compiled program.

    **Returns:** the training state after `count` steps, and the losses and global gradient norms of the steps in their
    order; those behind the first `count`, and behind a step with which `skips_left` fell below 0, are nan.
    """
    arrays, rest = eqx.partition(training, eqx.is_array)
    leaves, structure = jax.tree.flatten(rest)
    arrays, losses, norms = _compiled_steps(arrays, batches, tuple(leaves), structure, optimiser, classification)
    return eqx.combine(arrays, rest), losses, norms


@functools.partial(jax.jit, donate_argnums=0, static_argnums=(2, 3, 4, 5))
def _compiled_steps(arrays, batches, leaves, structure, optimiser, classification):
    x, y, key, count = batches
    rest = jax.tree.unflatten(structure, leaves)
    pick = functools.partial(jax.lax.dynamic_index_in_dim, keepdims=False)

    def go_on(carry):
        slot, arrays, *_ = carry
        return (slot < count) & (arrays.skips_left >= 0)

    def step(carry):
        slot, arrays, losses, norms = carry
        batch = (pick(x, slot), pick(y, slot), key)
        training, loss, norm = _step(batch, eqx.combine(arrays, rest), optimiser, classification)
        return slot + 1, eqx.filter(training, eqx.is_array), losses.at[slot].set(loss), norms.at[slot].set(norm)

    nothing = jnp.full(len(x), jnp.nan)
    return jax.lax.while_loop(go_on, step, (jnp.int32(0), arrays, nothing, nothing))[1:]


def _step(batch, training, optimiser, classification):
    (loss, state), gradient = batch_gradient(batch, training, classification)
    updates, optimiser_state = optimiser.update(
        gradient, training.optimiser, eqx.filter(training.model, eqx.is_inexact_array)
    )
    model = eqx.apply_updates(training.model, updates)
    done = TrainingState(model, state, optimiser_state, training.step + 1, training.skips_left)
    skipped = replace(training, step=training.step + 1, skips_left=training.skips_left - 1)
    # Choosing costs a pass over the parameters, of which a step makes one for every sample and time step.
    norm = optax.tree.norm(gradient)
    finite = jnp.isfinite(loss) & jnp.isfinite(norm)
    training = jax.tree.map(lambda new, old: jnp.where(finite, new, old) if eqx.is_array(new) else new, done, skipped)
    return training, loss, norm


def batch_gradient(
    batch: tuple[Float[Array, "batch time channels"], Float[Array, "batch labels"], PRNGKeyArray],
    training: TrainingState,
    classification: bool,
) -> tuple[tuple[Float[Array, ""], eqx.nn.State], eqx.Module]:
    """The gradient of the mean loss of a batch, by the learning algorithm of the model's units.

    **Arguments:** as of `train_step`.

    **Returns:** (the loss, the model's state after the batch), and a model that has the gradients for parameters.
    """
    x, y, key = batch
    keys = jax.random.split(jax.random.fold_in(key, training.step), len(x))

    def batch_loss(model):
        forward = jax.vmap(model, axis_name="batch", in_axes=(0, None, 0), out_axes=(0, None))
        output, state = forward(x, training.state, keys)
        losses = jax.vmap(sample_loss, in_axes=(0, 0, None))(output, y, classification)
        return jnp.mean(losses), state

    return eqx.filter_value_and_grad(batch_loss, has_aux=True)(training.model)


def copied(tree: PyTree) -> PyTree:
    """A copy of every array, so that a step that uses up the original leaves the copy alone.

    The copies have strong types: a parameter that was made of a bare number has a weak one, what a step returns has
    not, and the step would be compiled again for each such difference.
    """
    return jax.tree.map(lambda leaf: jnp.array(leaf, dtype=leaf.dtype, copy=True) if eqx.is_array(leaf) else leaf, tree)
