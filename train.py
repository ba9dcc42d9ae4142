"""Training: Adam on shuffled batches, regular evaluations, and one test of the model that is best on validation.

The loop is in `_run`, its parts are in `training/loop.py`. Nothing here prints or touches a file.

Everything random in a run derives from its seed:

    data, model, training, _ = split(PRNGKey(seed), 4)
    data         which samples belong to which split (drawn where the data set is made)
    model        the initial parameters
    training     loader, dropout = split(training): the order of the batches, and the dropout masks;
                 step n uses fold_in(dropout, n), split once more into a key for every sample of the batch

A step depends on the training state, its batch and its number alone, and the number gives its place in the order of
the batches. So a training that is resumed from a saved `Progress` gives the same result, to the last bit.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import equinox as eqx
import jax
import optax
from jaxtyping import PRNGKeyArray

from models.physics.in_the_loop import operators_of
from models.physics.operating import deferred_failures
from training import hosts
from training.devices import require_devices
from training.dispatch import StepsPerDispatch
from training.evaluation import evaluate, predict
from training.loop import Loop, MachineFailure, NonFiniteLoss, Wanting
from training.progress import Evaluation, Progress, Seconds
from training.steps import TrainingState, adam, copied, initial_state, sample_loss, train_step, train_steps
from training.together import NotTogether, alone, together

__all__ = [
    "Evaluation",
    "MachineFailure",
    "NonFiniteLoss",
    "NotTogether",
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
    "together",
    "train",
    "train_in_steps",
    "train_step",
    "train_steps",
]

PATIENCE = 10  # evaluations in a row that may pass without improvement; one more stops the training


class Stopped(Exception):
    """`stop()` asked the training to stop after `step` steps. `on_checkpoint` has been called."""

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
    """A finished training: the model that is best on the validation set, and its result on the test set."""

    model: eqx.Module
    state: eqx.nn.State
    best_step: int
    val_loss: float
    val_metric: float
    test_loss: float
    test_metric: float
    steps: int
    skipped: int  # steps whose loss or gradient was not finite
    stop_reason: str  # "num_steps" or "early_stopping"
    seconds: Seconds
    history: list[Evaluation] = field(repr=False)


def train_in_steps(
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
    devices: int = 1,
    resume: Callable[[Progress], Progress] | None = None,
    stop: Callable[[], bool] | None = None,
    on_step: Callable[[int, float], None] | None = None,
    on_evaluation: Callable[[Evaluation], None] | None = None,
    on_checkpoint: Callable[[Progress], None] | None = None,
) -> Wanting[TrainingResult]:
    """Train with Adam, keep the model that is best on the validation set, and test that model once.

    Training and validation set are evaluated every `print_steps` steps and after the last step. Only a strictly better
    validation accuracy, or validation loss of a regression, is an improvement. More than `patience` evaluations in a
    row without improvement stop it.

    `model` and `state` are left intact. `dataset` is a `Dataset`, `key` the training key of `seed_keys`. Gradients of a
    larger global norm than `grad_clip` are scaled down to it. `skip_nonfinite` steps whose loss or gradient is not
    finite are skipped and counted. With `retrace`, an evaluation records the largest of `models.check.retrace_errors`
    over the units in jax and the first `batch_size` training samples. `steps_per_dispatch` steps are sent to the device
    at once, fewer before an evaluation or a checkpoint; by default as many as take about a second and 32 MiB, at most
    64. The results do not depend on it. The first `devices` devices of jax divide each batch among them; the results
    are those of one device up to rounding. Several processes (`training.hosts`) call it with the same arguments, and
    get the same results. `train` returns the result. `train_in_steps` is a generator of the steps that it wants:
    `together` computes those of several trainings in one program, with the same results up to rounding.

    - `resume(progress)` gets the progress at the start, and returns the progress to start from.
    - `stop()` is asked before every dispatch. If any process says true, all call `on_checkpoint` and raise `Stopped`.
    - `on_step(step, loss)` is called for every step, in order, when the next dispatch has been sent.
    - `on_evaluation(evaluation)` is called after every evaluation.
    - `on_checkpoint(progress)` is called after every evaluation and every `checkpoint_steps` steps. It must copy what
      it keeps: the next step takes the memory of the arrays.

    **Raises:** `NonFiniteLoss` if the loss or gradient of a batch is not finite and may not be skipped, or if the loss
    of a whole split is not finite; `MachineFailure` if a machine in the loop fails, after the progress before a failed
    training step went to `on_checkpoint`; `Stopped`; `DataError` if the training set has fewer samples than a batch;
    `ValueError` for a `steps_per_dispatch` below 1, and for `devices` that jax does not see, that cannot divide a batch
    equally, or that are several for a machine in the loop.
    """
    require_devices(devices, batch_size)
    if devices > 1 and operators_of(model):
        raise ValueError(f"devices {devices}: a machine in the loop gets whole batches: it needs 1")
    pace = StepsPerDispatch(steps_per_dispatch)
    optimiser = adam(learning_rate, grad_clip)  # pyright: ignore[reportArgumentType] (a number or a schedule has a hash)
    progress = Progress(initial_state(model, state, optimiser, skip_nonfinite), copied((model, state)), key)
    if resume is not None:
        progress = resume(progress)
    progress.used(devices)
    loop = Loop(
        progress,
        dataset,
        optimiser,
        learning_rate=learning_rate,
        num_steps=num_steps,
        print_steps=print_steps,
        batch_size=batch_size,
        patience=patience,
        skip_nonfinite=skip_nonfinite,
        retrace=retrace,
        checkpoint_steps=checkpoint_steps,
        devices=devices,
        steps_per_dispatch=pace,
        on_step=on_step,
        on_evaluation=on_evaluation,
        on_checkpoint=on_checkpoint,
    )
    return (yield from _run(loop, stop))


train = alone(train_in_steps)


def _run(loop: Loop, stop: Callable[[], bool] | None) -> Wanting[TrainingResult]:
    """The training loop."""
    with loop.clock, deferred_failures(loop.operators):
        while loop.stop_reason() is None:
            stopping, most = hosts.decided(stop is not None and stop(), loop.steps_per_dispatch.next())
            if stopping:
                loop.save()
                raise Stopped(loop.progress.step)
            yield from loop.send_steps(most)
            if loop.evaluation_due():
                loop.evaluate()
            if loop.checkpoint_due():
                loop.save()
        return _tested(loop)


def _tested(loop: Loop) -> TrainingResult:
    """Test the best model."""
    progress = loop.progress
    (model, state), best = progress.best, progress.best_evaluation
    with loop.clock.timing("evaluation"):
        test_loss, test_metric = loop.measure("test set", loop.dataset.test, best.step, model, state)
    return TrainingResult(
        model=model,
        state=state,
        best_step=best.step,
        val_loss=best.val_loss,
        val_metric=best.val_metric,
        test_loss=test_loss,
        test_metric=test_metric,
        steps=progress.step,
        skipped=progress.skipped,
        stop_reason=str(loop.stop_reason()),
        seconds=progress.seconds,
        history=progress.history,
    )


def count_parameters(model: eqx.Module) -> int:
    """Number of trainable values in a model."""
    return sum(leaf.size for leaf in jax.tree.leaves(eqx.filter(model, eqx.is_inexact_array)))
