"""Training: the loop, around the steps and evaluations of `training/`. Nothing here prints or touches a file.

Everything random in a run derives from its seed:

    data, model, training, _ = split(PRNGKey(seed), 4)
    data         which samples belong to which split (drawn where the data set is made)
    model        the initial parameters
    training     loader, dropout = split(training): the order of the batches, and the dropout masks;
                 step n uses fold_in(dropout, n), split once more so that every sample of the batch has its own key

A step is a function of the training state, its batch and its number alone, and the number says where in the order of
the batches it stands. So a training that goes on from a saved `Progress` walks the same path, to the last bit.

The device is sent several steps at a time; while it works, a thread draws, stacks and transfers the batches that come
next.
"""

import math
import operator
import time
import warnings
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import PRNGKeyArray, PyTree

from models.check import RetraceWarning, retrace_errors
from training.dispatch import Pace, dispatches
from training.evaluation import evaluate, predict
from training.prefetch import Prefetched
from training.progress import Clock, Evaluation, Progress, Seconds
from training.steps import TrainingState, adam, batch_gradient, copied, sample_loss, train_step, train_steps

__all__ = [
    "Evaluation",
    "NonFiniteLoss",
    "Progress",
    "Seconds",
    "SeedKeys",
    "Stopped",
    "TrainingResult",
    "TrainingState",
    "adam",
    "count_parameters",
    "evaluate",
    "predict",
    "sample_loss",
    "seed_keys",
    "train",
    "train_step",
    "train_steps",
]

PATIENCE = 10  # evaluations without improvement that are forgiven; one more stops the run

# Dispatches sent to the device before the losses of an earlier one are read. At 0 the device would wait for the host
# after each; the more, the later a run notices that it has diverged.
DISPATCHES_IN_FLIGHT = 1


class NonFiniteLoss(ArithmeticError):
    """A loss, or the gradient of one, that is infinite or not a number.

    `step` is the step it was met at, counted from 1; `where` names the loss: that of a training batch or of a split.
    `model` and `state` are those it was met with. `rows` are the stored rows of the batch, None for a split.
    The message names the largest parameter too, and for a batch its largest gradient.
    """

    def __init__(
        self,
        step: int,
        where: str,
        model: eqx.Module,
        state: eqx.nn.State,
        rows: list[int] | None = None,
        gradient: PyTree | None = None,
    ):
        self.step, self.where, self.model, self.state, self.rows = step, where, model, state, rows
        details = [f"largest parameter: {_largest(model)}"]
        if rows is not None:
            details += [f"largest gradient: {_largest(gradient)}", f"rows {', '.join(map(str, rows))}"]
        super().__init__(f"the {where} is not finite at step {step} ({'; '.join(details)})")


class Stopped(Exception):
    """A training that was asked to stop, and whose progress has been handed to `on_checkpoint`."""

    def __init__(self, step: int):
        self.step = step
        super().__init__(f"stopped after step {step}")


class SeedKeys(NamedTuple):
    """The independent random keys of one seed."""

    data: PRNGKeyArray
    model: PRNGKeyArray
    training: PRNGKeyArray


def seed_keys(seed: int) -> SeedKeys:
    """Derive the keys of a seed, as the published experiments do: the first three of four."""
    return SeedKeys(*jax.random.split(jax.random.PRNGKey(seed), 4)[:3])


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
    skipped: int  # steps among them whose loss or gradient was not finite
    stop_reason: str  # "num_steps" or "early_stopping"
    seconds: Seconds
    history: list[Evaluation] = field(repr=False)


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
    grad_clip: float | None = None,
    skip_nonfinite: int = 0,
    retrace: bool = False,
    steps_per_dispatch: int | None = None,
    checkpoint_steps: int | None = None,
    resume: Callable[[Progress], Progress] | None = None,
    stop: Callable[[], bool] | None = None,
    on_step: Callable[[int, float], None] | None = None,
    on_evaluation: Callable[[Evaluation], None] | None = None,
    on_checkpoint: Callable[[Progress], None] | None = None,
) -> TrainingResult:
    """Train with Adam, keep the model that is best on the validation set, and test that one, once.

    Evaluates train and validation set every `print_steps` steps and after the last step. Only a strictly better
    validation metric counts as an improvement: the first of equals is kept. More than `patience` evaluations in a row
    without one stop the training.

    **Arguments:** the model and its state as `models.create_model` gives them (left intact); a `Dataset`; `key`, the
    training key of `seed_keys`. `grad_clip` is the largest global norm that a gradient may keep; None keeps all.
    `skip_nonfinite` steps whose loss or gradient is not finite are skipped, and counted. With `retrace` an evaluation
    records the largest of `models.check.retrace_errors` over units and the first `batch_size` training samples.
    `steps_per_dispatch` steps are sent to the device at once, fewer before an evaluation or a checkpoint; without it,
    as many as take about a second and 32 MiB, and at most 64. The results do not depend on it.
    `on_step(step, loss)` is called for every step, in order, once the device is done with all that were sent with it;
    `on_evaluation(evaluation)` after every evaluation.

    `on_checkpoint(progress)` is called after every evaluation and every `checkpoint_steps` steps. It may keep the
    progress only by copying it: the next step uses its arrays up. `resume` takes the progress at the start and gives
    the one to go on from. `stop()` is asked between dispatches; once it is true, the steps that are sent are finished,
    `on_checkpoint` is called, and `Stopped` is raised.

    **Raises:** `NonFiniteLoss` when the loss or gradient of a batch, past those to be skipped, or the loss of a whole
    split is not finite; `Stopped`; what the loader raises when the training set has fewer samples than one batch;
    `ValueError` for a `steps_per_dispatch` below 1.
    """
    if steps_per_dispatch is not None and steps_per_dispatch < 1:
        raise ValueError(f"steps_per_dispatch {steps_per_dispatch}: must be at least 1")
    better = operator.gt if dataset.classification else operator.lt
    optimiser = adam(learning_rate, grad_clip)
    optimiser_state = optimiser.init(eqx.filter(model, eqx.is_inexact_array))
    training = TrainingState(model, state, optimiser_state, jnp.array(0), jnp.array(skip_nonfinite))
    progress = Progress(copied(training), copied((model, state)), key)
    if resume is not None:
        progress = resume(progress)
    loader_key, dropout_key = jax.random.split(progress.key)

    def batches_after(step):
        return dataset.train.loop(batch_size, key=loader_key, position=dataset.train.position(step * batch_size))

    def measure(name, split, step, model, state):
        loss, metric = evaluate(model, state, split, batch_size=batch_size, classification=dataset.classification)
        if not math.isfinite(loss):
            raise NonFiniteLoss(step, f"{name} loss", model, state)
        return loss, metric

    def evaluation():
        training, step = progress.training, progress.step
        with clock.timing("evaluation"):
            of_train = measure("training set", dataset.train, step, training.model, training.state)
            of_validation = measure("validation set", dataset.validation, step, training.model, training.state)
            error = _retrace_error(training, dataset.train, batch_size) if retrace else None
        updates_before = max(step - progress.skipped - 1, 0)
        seconds = clock.read()
        return Evaluation(
            step,
            _mean(progress.losses),
            *of_train,
            *of_validation,
            float(learning_rate(updates_before) if callable(learning_rate) else learning_rate),
            _mean(progress.gradient_norms),
            error,
            *(seconds.total, seconds.steps, seconds.evaluation, seconds.compiling),
        )

    def failed(step, what):
        samples = batches_after(step - 1).draw()
        batch = (*map(jnp.asarray, dataset.train.batch(samples)), dropout_key)
        # The device stopped at this step: its number is the only thing that it changed.
        before = replace(progress.training, step=jnp.array(step - 1))
        _, gradient = eqx.filter_jit(batch_gradient)(batch, before, dataset.classification)
        rows = dataset.train.rows[samples].tolist()
        return NonFiniteLoss(step, what, before.model, before.state, rows, gradient)

    in_flight: deque = deque()
    pace = Pace(steps_per_dispatch)
    read_before = time.perf_counter()

    def read_losses(leave):
        nonlocal read_before
        while len(in_flight) > leave or (in_flight and in_flight[0][2].is_ready()):
            done, count, losses, norms, sent = in_flight.popleft()
            losses, norms = (np.asarray(values)[:count].tolist() for values in (losses, norms))
            now = time.perf_counter()
            pace.measured(count, now - max(sent, read_before))
            read_before = now
            for number, (loss, norm) in enumerate(zip(losses, norms, strict=True), start=done + 1):
                if math.isfinite(loss) and math.isfinite(norm):
                    progress.losses.append(loss)
                    progress.gradient_norms.append(norm)
                elif progress.skipped < skip_nonfinite:
                    progress.skipped += 1
                else:
                    raise failed(
                        number, "training loss" if not math.isfinite(loss) else "gradient of the training loss"
                    )
                if on_step is not None:
                    on_step(number, loss)

    def stop_reason():
        if progress.step >= num_steps:
            return "num_steps"
        return "early_stopping" if progress.evaluations_since_best > patience else None

    stations = (print_steps,) if checkpoint_steps is None else (print_steps, checkpoint_steps)
    stacks = dispatches(batches_after(progress.step), progress.step, num_steps, stations, pace)
    saved = progress.step

    def save():
        nonlocal saved
        if on_checkpoint is not None and saved != progress.step:
            clock.read()
            on_checkpoint(progress)
        saved = progress.step

    with (
        Clock(progress.seconds) as clock,
        Prefetched(stacks, depth=1, put=lambda item: (item[0], jax.device_put(item[1]))) as stacks,
    ):
        while stop_reason() is None:
            stopping = stop is not None and stop()
            with clock.timing("steps"):
                if not stopping:
                    count, (x, y, count_on_device) = next(stacks)
                    sent = time.perf_counter()
                    stack = (x, y, dropout_key, count_on_device)
                    progress.training, *of_steps = train_steps(
                        stack, progress.training, optimiser, dataset.classification
                    )
                    in_flight.append((progress.step, count, *of_steps, sent))
                    progress.step += count
                evaluating = not stopping and (progress.step % print_steps == 0 or progress.step == num_steps)
                saving = stopping or evaluating or any(progress.step % station == 0 for station in stations)
                read_losses(leave=0 if saving else DISPATCHES_IN_FLIGHT)
            if evaluating:
                progress.judge(evaluation(), better)
                if on_evaluation is not None:
                    on_evaluation(progress.history[-1])
            if saving:
                save()
            if stopping:
                raise Stopped(progress.step)

        best, best_evaluation = progress.best, progress.best_evaluation
        with clock.timing("evaluation"):
            test_loss, test_metric = measure("test set", dataset.test, best_evaluation.step, *best)

    model, state = best
    return TrainingResult(
        model=model,
        state=state,
        best_step=best_evaluation.step,
        val_metric=best_evaluation.val_metric,
        test_loss=test_loss,
        test_metric=test_metric,
        steps=progress.step,
        skipped=progress.skipped,
        stop_reason=stop_reason(),
        seconds=progress.seconds,
        history=progress.history,
    )


def count_parameters(model: eqx.Module) -> int:
    """Number of trainable values in a model."""
    return sum(leaf.size for leaf in jax.tree.leaves(eqx.filter(model, eqx.is_inexact_array)))


def _mean(values: list[float]) -> float:
    """The mean, summed exactly; not a number if every step was skipped."""
    return math.fsum(values) / len(values) if values else math.nan


def _retrace_error(training: TrainingState, data: Any, batch_size: int) -> float:
    """The largest of `retrace_errors` on the first training batch, in stored order."""
    x, _ = data.batch(np.arange(min(batch_size, data.size)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RetraceWarning)  # it is recorded instead
        model = eqx.nn.inference_mode(training.model)
        return float(np.max(retrace_errors(model, training.state, jnp.asarray(x))))


def _largest(tree: PyTree) -> str:
    """Value and path of the largest number of a tree by size; one that is not a number counts as the largest."""
    sizes = {
        jax.tree_util.keystr(path): float(np.max(np.abs(leaf)))
        for path, leaf in jax.tree_util.tree_leaves_with_path(eqx.filter(tree, eqx.is_inexact_array))
    }
    path = max(sizes, key=lambda path: math.inf if math.isnan(sizes[path]) else sizes[path])
    return f"{sizes[path]:.3g} in {path}"
