"""Training: the loss, one step, one evaluation for every split, and the loop. Nothing here prints or touches a file.

Everything random in a run derives from its seed:

    data, model, training, _ = split(PRNGKey(seed), 4)
    data         which samples belong to which split (drawn where the data set is made)
    model        the initial parameters
    training     loader, dropout = split(training): the order of the batches, and the dropout masks;
                 step n uses fold_in(dropout, n), split once more so that every sample of the batch has its own key

A step is a function of the training state, its batch and its number alone, and the number says where in the order of
the batches it stands. So a training that goes on from a saved `Progress` walks the same path, to the last bit.

A step whose loss or gradient is not finite changes nothing: not the model, its state or the optimiser. Where no such
step is tolerated, or no more, the device stops there, and what it holds is the state in which the step went wrong.

The device is sent several steps at a time: a stack of batches, and how many of them to use. One compiled program serves
every number, and a step computes the same bits wherever in a stack its batch lies; so the number can follow the clock.
While the device works, a thread draws, stacks and transfers the batches that come next.
"""

import functools
import itertools
import math
import operator
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from data_dir.prefetch import Prefetched, stack_batches
from models.check import RetraceWarning, retrace_errors

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


class TrainingState(eqx.Module):
    """All that a step changes."""

    model: eqx.Module
    state: eqx.nn.State
    optimiser: optax.OptState
    step: Array  # steps done or skipped
    skips_left: Array = field(default_factory=lambda: jnp.array(0))  # below 0 no step is done any more


class Evaluation(NamedTuple):
    """What is known after `step` steps. The losses and metrics are means over whole splits, without dropout."""

    step: int
    loss: float  # mean loss of the training batches since the evaluation before, without the steps that were skipped
    train_loss: float
    train_metric: float
    val_loss: float
    val_metric: float
    learning_rate: float  # of the last step
    gradient_norm: float  # mean over the same steps as `loss`, before clipping
    retrace_error: float | None  # see `train`
    seconds: float  # since the start of the training, in all its sittings; those of the parts, and saving
    seconds_steps: float
    seconds_evaluation: float
    seconds_compiling: float


@dataclass
class Seconds:
    """Where the time of a training went. Tracing counts as what it was done for, lowering and compiling do not."""

    total: float = 0.0
    steps: float = 0.0
    evaluation: float = 0.0
    compiling: float = 0.0


@dataclass
class Progress:
    """Where a training stands: all that it needs to go on as if it had never stopped.

    The position in the order of the batches is that after `step` batches. `losses` and `gradient_norms` are those of
    the steps since the last evaluation. `arrays` and `facts` hold everything, for a file; `restored` is their inverse.
    """

    training: TrainingState
    best: tuple[eqx.Module, eqx.nn.State]
    key: PRNGKeyArray
    step: int = 0
    skipped: int = 0
    evaluations_since_best: int = 0
    losses: list[float] = field(default_factory=list)
    gradient_norms: list[float] = field(default_factory=list)
    history: list[Evaluation] = field(default_factory=list)
    seconds: Seconds = field(default_factory=Seconds)

    @property
    def best_evaluation(self) -> Evaluation:
        """The evaluation of the best model. Raises `IndexError` before the first one."""
        return self.history[-1 - self.evaluations_since_best]

    def judge(self, evaluation: Evaluation, better: Callable[[float, float], bool]) -> None:
        """Add the evaluation of the present model, and keep the model if its metric is the best so far."""
        improved = not self.history or better(evaluation.val_metric, self.best_evaluation.val_metric)
        self.history.append(evaluation)
        self.losses.clear()
        self.gradient_norms.clear()
        if improved:
            self.best = _copy((self.training.model, self.training.state))
            self.evaluations_since_best = 0
        else:
            self.evaluations_since_best += 1

    def arrays(self) -> list[Array]:
        """The numbers of the model, its state, the optimiser, the best model and the key."""
        return jax.tree.leaves(eqx.filter((self.training, self.best, self.key), eqx.is_array))

    def facts(self) -> dict:
        """The rest of it, which fits into JSON."""
        return {
            **{name: getattr(self, name) for name in _FACTS},
            "history": [evaluation._asdict() for evaluation in self.history],
            "seconds": asdict(self.seconds),
        }

    def restored(self, arrays: list[Array], facts: dict) -> "Progress":
        """The progress that `arrays` and `facts` were taken from, which began as this one did."""
        whole, rest = eqx.partition((self.training, self.best, self.key), eqx.is_array)
        arrays = jax.tree.unflatten(jax.tree.structure(whole), map(jnp.asarray, arrays))
        training, best, key = eqx.combine(arrays, rest)
        # How many skips are tolerated is not part of the progress: it may be another number this time.
        skips_left = jnp.maximum(self.training.skips_left - facts["skipped"], 0)
        return Progress(
            replace(training, skips_left=skips_left),
            best,
            key,
            history=[Evaluation(**evaluation) for evaluation in facts["history"]],
            seconds=Seconds(**facts["seconds"]),
            **{name: facts[name] for name in _FACTS},
        )


_FACTS = ("step", "skipped", "evaluations_since_best", "losses", "gradient_norms")


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
    (loss, state), gradient = _gradient(batch, training, classification)
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


def _gradient(batch, training, classification):
    x, y, key = batch
    keys = jax.random.split(jax.random.fold_in(key, training.step), len(x))

    def batch_loss(model):
        forward = jax.vmap(model, axis_name="batch", in_axes=(0, None, 0), out_axes=(0, None))
        output, state = forward(x, training.state, keys)
        losses = jax.vmap(sample_loss, in_axes=(0, 0, None))(output, y, classification)
        return jnp.mean(losses), state

    return eqx.filter_value_and_grad(batch_loss, has_aux=True)(training.model)


@eqx.filter_jit
def _evaluate_batch(model, state, x, y, weights, classification):
    """Sums of loss and metric over the samples whose weight is 1, and the outputs of all."""
    forward = jax.vmap(model, axis_name="batch", in_axes=(0, None, None), out_axes=(0, None))
    output, _ = forward(x, state, None)
    losses = jax.vmap(sample_loss, in_axes=(0, 0, None))(output, y, classification)
    metrics = jnp.argmax(output, axis=1) == jnp.argmax(y, axis=1) if classification else losses
    return jnp.sum(weights * losses), jnp.sum(weights * metrics), output


def _evaluate_batches(model, state, data, batch_size, classification):
    """What `_evaluate_batch` gives for each batch of a split, with the number of its samples in front."""
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

    `data` is a `Dataloader`. Its last batch is filled up with repeated samples of weight 0, so all splits share one
    compiled program. A loss that is not finite is returned, not raised.

    **Raises:** what the loader raises for a split without samples.
    """
    losses, metrics = [], []
    for _, loss, metric, _ in _evaluate_batches(model, state, data, batch_size, classification):
        losses.append(float(loss))
        metrics.append(float(metric))
    return math.fsum(losses) / data.size, math.fsum(metrics) / data.size


def predict(
    model: eqx.Module, state: eqx.nn.State, data: Any, *, batch_size: int, classification: bool
) -> Float[np.ndarray, "samples ..."]:
    """The outputs of a model for every sample of a split, in stored order, as `evaluate` computes them."""
    batches = _evaluate_batches(model, state, data, batch_size, classification)
    return np.concatenate([np.asarray(output)[:count] for count, _, _, output in batches])


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


def _dispatches(
    batches: Iterator[tuple], done: int, num_steps: int, stations: tuple[int, ...], pace: _Pace
) -> Iterator[tuple]:
    """(count, (x, y, count as an array)) for `train_steps`; no dispatch goes beyond a multiple of a station."""
    first = next(batches)
    batches = itertools.chain([first], batches)
    # Not one slot: selecting from it would be no operation, and the step around it would be compiled to other bits.
    slots = max(2, min(pace.slots(first), stations[0]))
    while done < num_steps:
        count = min(pace.steps(), slots, num_steps - done, *(station - done % station for station in stations))
        yield count, (*stack_batches(batches, count, slots), np.int32(count))
        done += count


class _Clock:
    """Adds to `Seconds`, from a clock that never goes back. To be used in a `with` block, by one thread."""

    def __init__(self, seconds: Seconds):
        self._seconds = seconds
        self._thread = threading.get_ident()

    def __enter__(self):
        self._now = time.perf_counter()
        jax.monitoring.register_event_duration_secs_listener(self._listen)
        return self

    def __exit__(self, *_):
        jax.monitoring.unregister_event_duration_listener(self._listen)
        self.read()

    def read(self) -> Seconds:
        """The seconds up to now."""
        now = time.perf_counter()
        self._seconds.total += now - self._now
        self._now = now
        return self._seconds

    @contextmanager
    def timing(self, work: str) -> Iterator[None]:
        """Count what the block takes as "steps" or "evaluation", without the compiling in it."""
        start, compiling = time.perf_counter(), self._seconds.compiling
        yield
        spent = time.perf_counter() - start - (self._seconds.compiling - compiling)
        setattr(self._seconds, work, getattr(self._seconds, work) + spent)

    def _listen(self, event: str, seconds: float, **_) -> None:
        if event in _COMPILING and threading.get_ident() == self._thread:
            self._seconds.compiling += seconds


_COMPILING = ("/jax/core/compile/jaxpr_to_mlir_module_duration", "/jax/core/compile/backend_compile_duration")


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
    progress = Progress(_copy(training), _copy((model, state)), key)
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
        _, gradient = eqx.filter_jit(_gradient)(batch, before, dataset.classification)
        rows = dataset.train.rows[samples].tolist()
        return NonFiniteLoss(step, what, before.model, before.state, rows, gradient)

    in_flight: deque = deque()
    pace = _Pace(steps_per_dispatch)
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
    dispatches = _dispatches(batches_after(progress.step), progress.step, num_steps, stations, pace)
    saved = progress.step

    def save():
        nonlocal saved
        if on_checkpoint is not None and saved != progress.step:
            clock.read()
            on_checkpoint(progress)
        saved = progress.step

    with (
        _Clock(progress.seconds) as clock,
        Prefetched(dispatches, depth=1, put=lambda item: (item[0], jax.device_put(item[1]))) as dispatches,
    ):
        while stop_reason() is None:
            stopping = stop is not None and stop()
            with clock.timing("steps"):
                if not stopping:
                    count, (x, y, count_on_device) = next(dispatches)
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


def _copy(tree):
    """Copy every array, so that a step that uses up the original leaves the copy alone.

    The copies have strong types: a parameter that was made of a bare number has a weak one, what a step returns has
    not, and the step would be compiled again for each such difference.
    """
    return jax.tree.map(lambda leaf: jnp.array(leaf, dtype=leaf.dtype, copy=True) if eqx.is_array(leaf) else leaf, tree)


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
