"""Training: the loss, one step, one evaluation for every split, and the loop. Nothing here prints or touches a file.

Everything random in a run derives from its seed:

    data, model, training, _ = split(PRNGKey(seed), 4)
    data         which samples belong to which split (drawn where the data set is made)
    model        the initial parameters
    training     loader, dropout = split(training): the order of the batches, and the dropout masks;
                 step n uses fold_in(dropout, n), split once more so that every sample of the batch has its own key

A step is a function of the training state, its batch and its number alone, so a loop that starts again from a saved
state and loader position walks the same path.

The device is sent several steps at a time: a stack of batches, and how many of them to use. One compiled program serves
every number, and a step computes the same bits wherever in a stack its batch lies; so the number can follow the clock.
While the device works, a thread draws, stacks and transfers the batches that come next.
"""

import functools
import itertools
import math
import operator
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from data_dir.prefetch import Prefetched, stack_batches

PATIENCE = 10  # evaluations without improvement that are forgiven; one more stops the run

# What is sent to the device at once. Its time bounds how long Ctrl-C has to wait: while Python waits for the device it
# hears nothing, and one dispatch more is under way. Its bytes are held five times at most: drawn, queued, or in use.
# (On the CPU a dispatch has a price of its own: its working memory is new to the process, page by page.)
DISPATCH_SECONDS = 1.0
DISPATCH_BYTES = 32 * 2**20
DISPATCH_STEPS = 64  # by then the host's part of a dispatch, about a millisecond, is spread thin

# Dispatches sent to the device before the losses of an earlier one are read. At 0 the device would wait for the host
# after each; the more, the later a run notices that it has diverged.
DISPATCHES_IN_FLIGHT = 1


class NonFiniteLoss(ArithmeticError):
    """A loss that is infinite or not a number.

    `step` is the step it was met at, counted from 1; `where` names the loss: that of a training batch or of a split.
    """

    def __init__(self, step: int, where: str):
        self.step = step
        self.where = where
        super().__init__(f"the {where} loss is not finite at step {step}")


class SeedKeys(NamedTuple):
    """The independent random keys of one seed."""

    data: PRNGKeyArray
    model: PRNGKeyArray
    training: PRNGKeyArray


def seed_keys(seed: int) -> SeedKeys:
    """Derive the keys of a seed, as the published experiments do: the first three of four."""
    return SeedKeys(*jax.random.split(jax.random.PRNGKey(seed), 4)[:3])


class TrainingState(eqx.Module):
    """All that a step changes."""

    model: eqx.Module
    state: eqx.nn.State
    optimiser: optax.OptState
    step: Array  # steps done


class Evaluation(NamedTuple):
    """What is known after `step` steps. The losses and metrics are means over whole splits, without dropout."""

    step: int
    loss: float  # mean loss of the training batches since the evaluation before
    train_loss: float
    train_metric: float
    val_loss: float
    val_metric: float
    seconds: float  # since the start of the training


@dataclass(frozen=True)
class TrainingResult:
    """A finished training: the best model by validation, and its one look at the test set."""

    model: eqx.Module
    state: eqx.nn.State
    best_step: int
    val_metric: float
    test_loss: float
    test_metric: float
    steps: int
    stop_reason: str  # "num_steps" or "early_stopping"
    history: list[Evaluation] = field(repr=False)


def sample_loss(output: Array, label: Array, classification: bool) -> Float[Array, ""]:
    """Loss of one sample: cross-entropy of logits (classes,), or the mean squared error of a regression's outputs.

    A regression's `output` (n_outputs, 1) and `label` (n_outputs,) hold the same number of values; other sizes raise.
    """
    if classification:
        return optax.softmax_cross_entropy(output, label)
    return jnp.mean((output.reshape(label.shape) - label) ** 2)


@functools.lru_cache
def adam(learning_rate: optax.ScalarOrSchedule) -> optax.GradientTransformation:
    """Adam. The same rate gives the same object, so that the step compiled for one seed serves the next."""
    return optax.adam(learning_rate)


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
    return _step(batch, training, optimiser, classification)


def train_steps(
    batches: tuple[
        Float[Array, "slots batch time channels"], Float[Array, "slots batch labels"], PRNGKeyArray, Int[Array, ""]
    ],
    training: TrainingState,
    optimiser: optax.GradientTransformation,
    classification: bool,
) -> tuple[TrainingState, Float[Array, " slots"]]:
    """Steps as `train_step` does them, one after the other in one call; the old training state is used up.

    It returns while the device still works. (A function of `eqx.filter_jit` waits for the device.)

    **Arguments:** `batches` is (x, y, dropout key of the run, count); of x and y the first `count` batches are used.
    Every count is served by one compiled program.

    **Returns:** the training state after `count` steps, and the losses of the steps in their order; those behind the
    first `count` are nan.
    """
    arrays, rest = eqx.partition(training, eqx.is_array)
    leaves, structure = jax.tree.flatten(rest)
    arrays, losses = _compiled_steps(arrays, batches, tuple(leaves), structure, optimiser, classification)
    return eqx.combine(arrays, rest), losses


@functools.partial(jax.jit, donate_argnums=0, static_argnums=(2, 3, 4, 5))
def _compiled_steps(arrays, batches, leaves, structure, optimiser, classification):
    x, y, key, count = batches
    rest = jax.tree.unflatten(structure, leaves)
    pick = functools.partial(jax.lax.dynamic_index_in_dim, keepdims=False)

    def step(slot, carry):
        arrays, losses = carry
        batch = (pick(x, slot), pick(y, slot), key)
        training, loss = _step(batch, eqx.combine(arrays, rest), optimiser, classification)
        return eqx.filter(training, eqx.is_array), losses.at[slot].set(loss)

    return jax.lax.fori_loop(0, count, step, (arrays, jnp.full(len(x), jnp.nan)))


def _step(batch, training, optimiser, classification):
    x, y, key = batch
    keys = jax.random.split(jax.random.fold_in(key, training.step), len(x))

    def batch_loss(model):
        forward = jax.vmap(model, axis_name="batch", in_axes=(0, None, 0), out_axes=(0, None))
        output, state = forward(x, training.state, keys)
        losses = jax.vmap(sample_loss, in_axes=(0, 0, None))(output, y, classification)
        return jnp.mean(losses), state

    (loss, state), gradient = eqx.filter_value_and_grad(batch_loss, has_aux=True)(training.model)
    updates, optimiser_state = optimiser.update(
        gradient, training.optimiser, eqx.filter(training.model, eqx.is_inexact_array)
    )
    model = eqx.apply_updates(training.model, updates)
    return TrainingState(model, state, optimiser_state, training.step + 1), loss


@eqx.filter_jit
def _evaluate_batch(model, state, x, y, weights, classification):
    """Sums of loss and metric over the samples whose weight is 1."""
    forward = jax.vmap(model, axis_name="batch", in_axes=(0, None, None), out_axes=(0, None))
    output, _ = forward(x, state, None)
    losses = jax.vmap(sample_loss, in_axes=(0, 0, None))(output, y, classification)
    metrics = jnp.argmax(output, axis=1) == jnp.argmax(y, axis=1) if classification else losses
    return jnp.sum(weights * losses), jnp.sum(weights * metrics)


def evaluate(
    model: eqx.Module, state: eqx.nn.State, data: Any, *, batch_size: int, classification: bool
) -> tuple[float, float]:
    """Mean loss and metric (accuracy, or mean squared error) over every sample of a split, without dropout.

    `data` is a `Dataloader`. Its last batch is filled up with repeated samples of weight 0, so all splits share one
    compiled program. A loss that is not finite is returned, not raised.

    **Raises:** what the loader raises for a split without samples.
    """
    model = eqx.nn.inference_mode(model)
    rows = np.arange(batch_size)
    losses, metrics = [], []
    for x, y in data.loop_epoch(batch_size):
        filled = np.where(rows < len(x), rows, 0)
        batch = (jnp.asarray(values) for values in (x[filled], y[filled], rows < len(x)))
        loss, metric = _evaluate_batch(model, state, *batch, classification)
        losses.append(float(loss))
        metrics.append(float(metric))
    return math.fsum(losses) / data.size, math.fsum(metrics) / data.size


class _Pace:
    """How many steps to send at once. Written by the training loop, read by the thread that stacks the batches."""

    def __init__(self, steps_per_dispatch: int | None):
        self._fixed = steps_per_dispatch
        self._measured = 1

    def slots(self, batch: tuple) -> int:
        """The most steps that a dispatch may have with such batches."""
        if self._fixed is not None:
            return self._fixed
        return min(DISPATCH_STEPS, DISPATCH_BYTES // sum(array.nbytes for array in batch))

    def steps(self) -> int:
        """The most steps that the next dispatch should have."""
        return self._measured if self._fixed is None else self._fixed

    def measured(self, steps: int, seconds: float) -> None:
        """Note what a dispatch took. The number at most doubles, so that one which seemed short does no harm."""
        affordable = int(DISPATCH_SECONDS * steps / max(seconds, 1e-9))
        self._measured = max(1, min(affordable, 2 * self._measured, DISPATCH_STEPS))


def _dispatches(batches: Iterator[tuple], num_steps: int, print_steps: int, pace: _Pace) -> Iterator[tuple]:
    """(count, (x, y, count as an array)) for `train_steps`; no dispatch goes beyond an evaluation."""
    first = next(batches)
    batches = itertools.chain([first], batches)
    # Not one slot: selecting from it would be no operation, and the step around it would be compiled to other bits.
    slots = max(2, min(pace.slots(first), print_steps))
    done = 0
    while done < num_steps:
        count = min(pace.steps(), slots, print_steps - done % print_steps, num_steps - done)
        yield count, (*stack_batches(batches, count, slots), np.int32(count))
        done += count


def train(
    model: eqx.Module,
    state: eqx.nn.State,
    dataset: Any,
    *,
    learning_rate: optax.ScalarOrSchedule,
    num_steps: int,
    print_steps: int,
    batch_size: int,
    key: PRNGKeyArray,
    patience: int = PATIENCE,
    steps_per_dispatch: int | None = None,
    on_step: Callable[[int, float], None] | None = None,
    on_evaluation: Callable[[Evaluation], None] | None = None,
) -> TrainingResult:
    """Train with Adam, keep the model that is best on the validation set, and test that one, once.

    Evaluates train and validation set every `print_steps` steps and after the last step. Only a strictly better
    validation metric counts as an improvement: the first of equals is kept. More than `patience` evaluations in a row
    without one stop the training.

    **Arguments:** the model and its state as `models.create_model` gives them (left intact); a `Dataset`; `key`, the
    training key of `seed_keys`. `steps_per_dispatch` steps are sent to the device at once, fewer before an evaluation;
    without it, as many as take about a second and 32 MiB, and at most 64. The results do not depend on it.
    `on_step(step, loss)` is called for every step, in order, once the device is done with all that were sent with it;
    `on_evaluation(evaluation)` after every evaluation.

    **Raises:** `NonFiniteLoss` when the loss of a batch or of a whole split is not finite; what the loader raises when
    the training set has fewer samples than one batch; `ValueError` for a `steps_per_dispatch` below 1.
    """
    start = time.perf_counter()
    if steps_per_dispatch is not None and steps_per_dispatch < 1:
        raise ValueError(f"steps_per_dispatch {steps_per_dispatch}: must be at least 1")
    better = operator.gt if dataset.classification else operator.lt
    loader_key, dropout_key = jax.random.split(key)
    optimiser = adam(learning_rate)
    optimiser_state = optimiser.init(eqx.filter(model, eqx.is_inexact_array))
    training = _copy(TrainingState(model, state, optimiser_state, jnp.array(0)))

    def measure(name, split, step, model, state):
        loss, metric = evaluate(model, state, split, batch_size=batch_size, classification=dataset.classification)
        if not math.isfinite(loss):
            raise NonFiniteLoss(step, name)
        return loss, metric

    history: list[Evaluation] = []
    losses: list[float] = []
    in_flight: deque = deque()
    pace = _Pace(steps_per_dispatch)
    read_before = start

    def read_losses(leave):
        nonlocal read_before
        while len(in_flight) > leave or (in_flight and in_flight[0][2].is_ready()):
            done, count, of_dispatch, sent = in_flight.popleft()
            of_dispatch = np.asarray(of_dispatch)[:count].tolist()
            now = time.perf_counter()
            pace.measured(count, now - max(sent, read_before))
            read_before = now
            for number, loss in enumerate(of_dispatch, start=done + 1):
                if not math.isfinite(loss):
                    raise NonFiniteLoss(number, "training")
                losses.append(loss)
                if on_step is not None:
                    on_step(number, loss)

    best, best_evaluation = None, None
    evaluations_since_best = 0
    stop_reason = "num_steps"
    step = 0
    batches = dataset.train.loop(batch_size, key=loader_key)
    dispatches = _dispatches(batches, num_steps, print_steps, pace)
    with Prefetched(dispatches, depth=1, put=lambda item: (item[0], jax.device_put(item[1]))) as dispatches:
        for count, (x, y, count_on_device) in dispatches:
            sent = time.perf_counter()
            stack = (x, y, dropout_key, count_on_device)
            training, of_dispatch = train_steps(stack, training, optimiser, dataset.classification)
            in_flight.append((step, count, of_dispatch, sent))
            step += count
            read_losses(leave=DISPATCHES_IN_FLIGHT)
            if step % print_steps and step != num_steps:
                continue

            read_losses(leave=0)
            evaluation = Evaluation(
                step,
                math.fsum(losses) / len(losses),
                *measure("training set", dataset.train, step, training.model, training.state),
                *measure("validation set", dataset.validation, step, training.model, training.state),
                time.perf_counter() - start,
            )
            losses.clear()
            history.append(evaluation)
            if on_evaluation is not None:
                on_evaluation(evaluation)
            if best_evaluation is None or better(evaluation.val_metric, best_evaluation.val_metric):
                best, best_evaluation = _copy((training.model, training.state)), evaluation
                evaluations_since_best = 0
            else:
                evaluations_since_best += 1
            if evaluations_since_best > patience and step < num_steps:
                stop_reason = "early_stopping"
                break

    test_loss, test_metric = measure("test set", dataset.test, best_evaluation.step, *best)
    model, state = best
    return TrainingResult(
        model=model,
        state=state,
        best_step=best_evaluation.step,
        val_metric=best_evaluation.val_metric,
        test_loss=test_loss,
        test_metric=test_metric,
        steps=step,
        stop_reason=stop_reason,
        history=history,
    )


def count_parameters(model: eqx.Module) -> int:
    """Number of trainable values in a model."""
    return sum(leaf.size for leaf in jax.tree.leaves(eqx.filter(model, eqx.is_inexact_array)))


def _copy(tree):
    """Copy every array, so that a step that uses up the original leaves the copy alone.

    The copies have strong types: a parameter that was made of a bare number has a weak one, what a step returns has
    not, and the step would be compiled again for each such difference.
    """
    return jax.tree.map(lambda leaf: jnp.array(leaf, dtype=leaf.dtype, copy=True) if eqx.is_array(leaf) else leaf, tree)
