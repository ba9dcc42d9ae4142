"""The parts of the loop in `train.train`: send steps, read their losses, evaluate, save."""

import math
import time
import warnings
from collections.abc import Callable, Generator
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, NamedTuple, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, PyTree

from models.check import RetraceWarning, retrace_errors
from models.physics.in_the_loop import in_jax, operators_of
from models.physics.operating import failure_of
from training.devices import connect, divided, of_samples, own_batches, own_part, replicated
from training.dispatch import StepsPerDispatch, stack_batches, steps_until_multiple
from training.evaluation import evaluate
from training.progress import Clock, Evaluation, Progress
from training.steps import TrainingState, batch_gradient, train_steps


class NonFiniteLoss(ArithmeticError):
    """A loss or a gradient that is infinite or not a number.

    `step` is the number of the step, counted from 1. `where` names the loss: of a training batch, or of a split.
    `model` and `state` are the values that gave this loss. `rows` are the stored rows of the batch, None for a split.
    The message names the largest parameter, and for a batch its largest gradient.
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
        super().__init__(
            f"the {where} is not finite at step {step} ({'; '.join(details)}). A smaller learning rate (lr), grad_clip "
            "or skip_nonfinite may help, or a smaller time step of the unit"
        )


class MachineFailure(RuntimeError):
    """A machine failed in a training.

    `step` and `rows` as for `NonFiniteLoss`. `where` says what the pass was for, as text.
    """

    def __init__(self, step: int, where: str, cause: Exception, rows: list[int] | None = None):
        self.step, self.where, self.rows = step, where, rows
        of_rows = "" if rows is None else f"; rows {', '.join(map(str, rows))}"
        super().__init__(f"the machine failed in the {where} at step {step}: {cause}{of_rows}")
        self.__cause__ = cause


class Computed(NamedTuple):
    """What `train_steps` gave for a training: the state after `count` steps, the loss and norm of each.

    `started`: when the steps were sent. `seeds`: how many trainings the program computes.
    """

    training: TrainingState
    losses: Array
    norms: Array
    count: int
    started: float
    seeds: int = 1


@dataclass(frozen=True)
class Steps:
    """Steps that a training wants computed, at most `most`. `batches(count)` draws the batches of so many.

    `rest`: what else `train_steps` needs, the same for all steps of a training.
    """

    most: int
    batches: Callable[[int], tuple]
    training: TrainingState
    rest: tuple

    def compute(self) -> Computed:
        """Send the steps to the device."""
        batches, started = self.batches(self.most), time.perf_counter()
        return Computed(*train_steps(batches, self.training, *self.rest), self.most, started)


Result = TypeVar("Result")
Wanting = Generator[Steps, Callable[[], Computed], Result]
"""A generator of steps that are wanted. It gets a function that gives them computed."""


@dataclass
class Loop:
    """A training at work. The fields are the arguments of `train.train`, and its `progress`.

    Several steps are sent to the device at once, in a dispatch. The host works one dispatch ahead: it draws the next
    batches while the device computes, and reads the losses of a dispatch after it has sent the next one.
    """

    progress: Progress
    dataset: Any
    optimiser: optax.GradientTransformation
    learning_rate: optax.ScalarOrSchedule
    num_steps: int
    print_steps: int
    batch_size: int
    patience: int
    skip_nonfinite: int
    retrace: bool
    checkpoint_steps: int | None
    devices: int
    steps_per_dispatch: StepsPerDispatch
    on_step: Callable[[int, float], None] | None
    on_evaluation: Callable[[Evaluation], None] | None
    on_checkpoint: Callable[[Progress], None] | None

    def __post_init__(self):
        self.clock = Clock(self.progress.seconds)
        self.operators = operators_of(self.progress.training.model)
        for operator, record in zip(self.operators, self.progress.machines, strict=False):
            operator.resume(record)
        self._loader_key, self._dropout_key = jax.random.split(self.progress.key)
        connect(self.devices)
        self.progress.training = replicated(self.progress.training, self.devices)
        self._batches = own_batches(self._batches_after(self.progress.step), self.dataset.train)
        self._unread: tuple[int, Computed] | None = None  # the step before, and what was sent
        self._slots: int | None = None
        self._saved = self.progress.step
        self._read_at = time.perf_counter()

    def stop_reason(self) -> str | None:
        """ "num_steps" or "early_stopping"; None while the training continues."""
        if self.progress.step >= self.num_steps:
            return "num_steps"
        return "early_stopping" if self.progress.evaluations_since_best > self.patience else None

    def send_steps(self, most: int) -> Wanting[None]:
        """Yield some steps, up to the next evaluation or checkpoint, and read the losses of the steps before them.

        `most` may be larger than the dispatch can hold.
        """
        progress, multiples = self.progress, (self.print_steps, self.checkpoint_steps or self.print_steps)
        with self.clock.timing("steps"):
            if self.operators:
                self._read_losses()  # so that a failure belongs to the steps that are read next
            first = self._slots is None
            if self._slots is None:
                batch = next(self._batches_after(progress.step))
                # One slot needs no selection, and XLA would compile the step around it to other bits.
                self._slots = max(2, min(self.steps_per_dispatch.slots(batch), self.print_steps))
            most = min(
                most,
                self._slots,
                self.num_steps - progress.step,
                steps_until_multiple(progress.step, multiples),
            )
            rest = (self.optimiser, self.dataset.classification, self.devices)
            with self.clock.timing("compiling") if first else nullcontext():
                compute = yield Steps(most, partial(self._draw, self._slots), progress.training, rest)
                computed = compute()
            progress.training = computed.training
            progress.trained_with(computed.seeds)
            self._read_losses()
            self._unread = (progress.step, computed)
            progress.step += computed.count

    def _draw(self, slots: int, count: int) -> tuple:
        """The next batches as `train_steps` takes them."""
        x, y = divided(stack_batches(self._batches, count, slots), self.devices, axis=1)
        return x, y, *replicated((self._dropout_key, jnp.int32(count)), self.devices)

    def evaluation_due(self) -> bool:
        """Whether training and validation set are evaluated now."""
        return self.progress.step % self.print_steps == 0 or self.progress.step == self.num_steps

    def checkpoint_due(self) -> bool:
        """Whether the progress is saved now."""
        saving = self.checkpoint_steps is not None and self.progress.step % self.checkpoint_steps == 0
        return saving or self.evaluation_due()

    def evaluate(self) -> None:
        """Evaluate training and validation set, and keep the model if it is the best so far."""
        self._finish_steps()
        progress, data = self.progress, self.dataset
        model, state, step = progress.training.model, progress.training.state, progress.step
        with self.clock.timing("evaluation"):
            train_results = self.measure("training set", data.evaluated_train, step, model, state)
            val_results = self.measure("validation set", data.validation, step, model, state)
            error = self._retrace_error() if self.retrace else None
        rate = self.learning_rate
        updates_before = max(step - progress.skipped - 1, 0)
        seconds = self.clock.read()
        evaluation = Evaluation(
            step,
            _mean(progress.losses),
            *train_results,
            *val_results,
            float(np.asarray(rate(updates_before) if callable(rate) else rate)),
            _mean(progress.gradient_norms),
            error,
            *(seconds.total, seconds.steps, seconds.evaluation, seconds.compiling),
        )
        progress.add(evaluation, better=_more_accurate if data.classification else _of_smaller_loss)
        if self.on_evaluation is not None:
            self.on_evaluation(evaluation)

    def _retrace_error(self) -> float | None:
        """The largest of `retrace_errors` on the first training batch, in stored order; None if no unit runs in jax."""
        training = self.progress.training
        measured = in_jax(training.model)
        if not any(measured):
            return None
        x, _ = self.dataset.train.batch(np.arange(self.batch_size))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RetraceWarning)  # the evaluation records it instead
            model, over = eqx.nn.inference_mode(training.model), partial(of_samples, devices=self.devices)
            errors = retrace_errors(model, training.state, jnp.asarray(x), over)
            return float(np.max(np.asarray(errors)[:, measured]))

    def measure(self, name: str, split: Any, step: int, model: eqx.Module, state: eqx.nn.State) -> tuple[float, float]:
        """Loss and metric of a split. Raises `NonFiniteLoss` and `MachineFailure`."""
        loss, metric = evaluate(
            model,
            state,
            split,
            batch_size=self.batch_size,
            classification=self.dataset.classification,
            devices=self.devices,
        )
        if failure := failure_of(self.operators):
            raise MachineFailure(step, f"evaluation of the {name}", failure)
        if not math.isfinite(loss):
            raise NonFiniteLoss(step, f"{name} loss", model, state)
        return loss, metric

    def save(self) -> None:
        """Call `on_checkpoint`, unless it has been called after this step."""
        self._finish_steps()
        self._call_on_checkpoint()

    def _call_on_checkpoint(self) -> None:
        if self.on_checkpoint is not None and self._saved != self.progress.step:
            self.clock.read()
            self.progress.machines = [asdict(operator.record) for operator in self.operators]
            self.on_checkpoint(self.progress)
        self._saved = self.progress.step

    def _batches_after(self, step: int):
        train_set = self.dataset.train
        position = train_set.position(step * self.batch_size)
        return train_set.loop(self.batch_size, key=self._loader_key, position=position)

    def _finish_steps(self) -> None:
        with self.clock.timing("steps"):
            self._read_losses()

    def _read_losses(self) -> None:
        """Wait for the steps that are sent but not read, if there are any, and record their losses."""
        if self._unread is None:
            return
        (done, sent), self._unread = self._unread, None
        losses, norms = (np.asarray(values)[: sent.count].tolist() for values in (sent.losses, sent.norms))
        now = time.perf_counter()
        self.steps_per_dispatch.measured(sent.count, now - max(sent.started, self._read_at))
        self._read_at = now
        finite = np.isfinite(losses) & np.isfinite(norms)
        for step, (loss, norm) in enumerate(zip(losses, norms, strict=True), start=done + 1):
            if math.isfinite(loss) and math.isfinite(norm):
                self.progress.losses.append(loss)
                self.progress.gradient_norms.append(norm)
            elif (failure := failure_of(self.operators)) and not any(finite[step - done :]):
                raise self._stopped_by(failure, step)
            elif self.progress.skipped < self.skip_nonfinite:
                self.progress.skipped += 1
            else:
                raise self._failure(step, "gradient of the training loss" if math.isfinite(loss) else "training loss")
            if self.on_step is not None:
                self.on_step(step, loss)

    def _stopped_by(self, failure: Exception, step: int) -> MachineFailure:
        """The error of a training step whose machine failed. The progress before the step is saved."""
        self.progress.step = step - 1
        self.progress.training = self._before(step)
        self._call_on_checkpoint()
        rows = self.dataset.train.rows[self._batches_after(step - 1).draw()].tolist()
        return MachineFailure(step, "training", failure, rows)

    def _before(self, step: int) -> TrainingState:
        """The state before a step that failed. The device still holds it, with its number counted up."""
        return replace(self.progress.training, step=jnp.array(step - 1))

    def _failure(self, step: int, where: str) -> NonFiniteLoss:
        """The error of a training step."""
        samples = self._batches_after(step - 1).draw()
        x, y = divided(self.dataset.train.batch(own_part(samples)), self.devices)
        key, before = replicated((self._dropout_key, self._before(step)), self.devices)
        _, gradient = eqx.filter_jit(batch_gradient)((x, y, key), before, self.dataset.classification, self.devices)
        rows = self.dataset.train.rows[samples].tolist()
        return NonFiniteLoss(step, where, before.model, before.state, rows, gradient)


def _more_accurate(new: Evaluation, best: Evaluation) -> bool:
    return new.val_metric > best.val_metric


def _of_smaller_loss(new: Evaluation, best: Evaluation) -> bool:
    """The order of the mse of one output. Of several outputs, the mse would follow the one with the largest unit."""
    return new.val_loss < best.val_loss


def _mean(values: list[float]) -> float:
    """The mean, summed exactly; not a number if every step was skipped."""
    return math.fsum(values) / len(values) if values else math.nan


def _largest(tree: PyTree) -> str:
    """Value and path of the number with the largest size in a tree; nan counts as the largest."""
    sizes = {
        jax.tree_util.keystr(path): float(np.max(np.abs(leaf)))
        for path, leaf in jax.tree_util.tree_leaves_with_path(eqx.filter(tree, eqx.is_inexact_array))
    }
    path = max(sizes, key=lambda path: math.inf if math.isnan(sizes[path]) else sizes[path])
    return f"{sizes[path]:.3g} in {path}"
