"""The parts of the loop in `train.train`: send a step, read its loss, evaluate, save."""

import math
import operator
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import PyTree

from models.check import RetraceWarning, retrace_errors
from training.evaluation import evaluate
from training.progress import Clock, Evaluation, Progress
from training.steps import TrainingState, batch_gradient, send_step


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
        super().__init__(f"the {where} is not finite at step {step} ({'; '.join(details)})")


@dataclass
class Loop:
    """A training at work. The fields are the arguments of `train.train`, and its `progress`.

    The host works one step ahead: it draws a batch and sends a step while the device computes the step before. It
    reads the loss of a step after it has sent the next one.
    """

    progress: Progress
    dataset: Any
    optimiser: optax.GradientTransformation
    clock: Clock
    learning_rate: optax.ScalarOrSchedule
    num_steps: int
    print_steps: int
    batch_size: int
    patience: int
    skip_nonfinite: int
    retrace: bool
    checkpoint_steps: int | None
    on_step: Callable[[int, float], None] | None
    on_evaluation: Callable[[Evaluation], None] | None
    on_checkpoint: Callable[[Progress], None] | None

    def __post_init__(self):
        self._loader_key, self._dropout_key = jax.random.split(self.progress.key)
        self._batches = self._batches_after(self.progress.step)
        self._unread: tuple | None = None
        self._saved = self.progress.step

    def stop_reason(self) -> str | None:
        """ "num_steps" or "early_stopping"; None while the training goes on."""
        if self.progress.step >= self.num_steps:
            return "num_steps"
        return "early_stopping" if self.progress.evaluations_since_best > self.patience else None

    def step(self) -> None:
        """Send a step to the device, and read the loss of the step before."""
        with self.clock.timing("steps"):
            x, y = jax.device_put(next(self._batches))
            batch = (x, y, self._dropout_key)
            self.progress.training, loss, norm = send_step(
                batch, self.progress.training, self.optimiser, self.dataset.classification
            )
            self._read_loss()
            self.progress.step += 1
            self._unread = (self.progress.step, loss, norm)

    def evaluation_due(self) -> bool:
        """Whether training and validation set are evaluated after this step."""
        return self.progress.step % self.print_steps == 0 or self.progress.step == self.num_steps

    def checkpoint_due(self) -> bool:
        """Whether the progress is saved after this step."""
        saving = self.checkpoint_steps is not None and self.progress.step % self.checkpoint_steps == 0
        return saving or self.evaluation_due()

    def evaluate(self) -> None:
        """Evaluate training and validation set, and keep the model if it is the best so far."""
        self._finish_steps()
        progress, data = self.progress, self.dataset
        model, state, step = progress.training.model, progress.training.state, progress.step
        with self.clock.timing("evaluation"):
            train_results = self.measure("training set", data.train, step, model, state)
            val_results = self.measure("validation set", data.validation, step, model, state)
            error = _retrace_error(progress.training, data.train, self.batch_size) if self.retrace else None
        rate = self.learning_rate
        updates_before = max(step - progress.skipped - 1, 0)
        seconds = self.clock.read()
        evaluation = Evaluation(
            step,
            _mean(progress.losses),
            *train_results,
            *val_results,
            float(rate(updates_before) if callable(rate) else rate),
            _mean(progress.gradient_norms),
            error,
            *(seconds.total, seconds.steps, seconds.evaluation, seconds.compiling),
        )
        progress.add(evaluation, better=operator.gt if data.classification else operator.lt)
        if self.on_evaluation is not None:
            self.on_evaluation(evaluation)

    def measure(self, name: str, split: Any, step: int, model: eqx.Module, state: eqx.nn.State) -> tuple[float, float]:
        """Loss and metric of a split. Raises `NonFiniteLoss`."""
        loss, metric = evaluate(
            model, state, split, batch_size=self.batch_size, classification=self.dataset.classification
        )
        if not math.isfinite(loss):
            raise NonFiniteLoss(step, f"{name} loss", model, state)
        return loss, metric

    def save(self) -> None:
        """Call `on_checkpoint`, unless it has been called after this step."""
        self._finish_steps()
        if self.on_checkpoint is not None and self._saved != self.progress.step:
            self.clock.read()
            self.on_checkpoint(self.progress)
        self._saved = self.progress.step

    def _batches_after(self, step: int):
        train_set = self.dataset.train
        position = train_set.position(step * self.batch_size)
        return train_set.loop(self.batch_size, key=self._loader_key, position=position)

    def _finish_steps(self) -> None:
        with self.clock.timing("steps"):
            self._read_loss()

    def _read_loss(self) -> None:
        """Wait for the step that is sent but not read, if there is one, and record its loss."""
        if self._unread is None:
            return
        (step, loss, norm), self._unread = self._unread, None
        loss, norm = float(loss), float(norm)
        if math.isfinite(loss) and math.isfinite(norm):
            self.progress.losses.append(loss)
            self.progress.gradient_norms.append(norm)
        elif self.progress.skipped < self.skip_nonfinite:
            self.progress.skipped += 1
        else:
            raise self._failure(step, "gradient of the training loss" if math.isfinite(loss) else "training loss")
        if self.on_step is not None:
            self.on_step(step, loss)

    def _failure(self, step: int, where: str) -> NonFiniteLoss:
        """The error of a training step. The device still holds the state before it, with its number counted up."""
        samples = self._batches_after(step - 1).draw()
        batch = (*map(jnp.asarray, self.dataset.train.batch(samples)), self._dropout_key)
        before = replace(self.progress.training, step=jnp.array(step - 1))
        _, gradient = eqx.filter_jit(batch_gradient)(batch, before, self.dataset.classification)
        rows = self.dataset.train.rows[samples].tolist()
        return NonFiniteLoss(step, where, before.model, before.state, rows, gradient)


def _mean(values: list[float]) -> float:
    """The mean, summed exactly; not a number if every step was skipped."""
    return math.fsum(values) / len(values) if values else math.nan


def _retrace_error(training: TrainingState, data: Any, batch_size: int) -> float:
    """The largest of `retrace_errors` on the first training batch, in stored order."""
    x, _ = data.batch(np.arange(min(batch_size, data.size)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RetraceWarning)  # the evaluation records it instead
        model = eqx.nn.inference_mode(training.model)
        return float(np.max(retrace_errors(model, training.state, jnp.asarray(x))))


def _largest(tree: PyTree) -> str:
    """Value and path of the number with the largest size in a tree; nan counts as the largest."""
    sizes = {
        jax.tree_util.keystr(path): float(np.max(np.abs(leaf)))
        for path, leaf in jax.tree_util.tree_leaves_with_path(eqx.filter(tree, eqx.is_inexact_array))
    }
    path = max(sizes, key=lambda path: math.inf if math.isnan(sizes[path]) else sizes[path])
    return f"{sizes[path]:.3g} in {path}"
