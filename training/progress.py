"""An evaluation as it is recorded, the progress of a training, and where its time went."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray

from training.steps import TrainingState, copied


class Evaluation(NamedTuple):
    """The results after `step` steps. Losses and metrics are means over whole splits, without dropout."""

    step: int
    loss: float  # mean loss of the training batches since the last evaluation, without skipped steps
    train_loss: float
    train_metric: float
    val_loss: float
    val_metric: float
    learning_rate: float  # of the last step
    gradient_norm: float  # mean over the same steps as `loss`, before clipping
    retrace_error: float | None  # see `train.train`
    seconds: float  # since the start of the training, without pauses: the three parts below, and saving
    seconds_steps: float
    seconds_evaluation: float
    seconds_compiling: float


@dataclass
class Seconds:
    """Where the time of a training went. `compiling` includes the whole first call of the step, which traces it.

    The tracing of an evaluation counts as `evaluation`.
    """

    total: float = 0.0
    steps: float = 0.0
    evaluation: float = 0.0
    compiling: float = 0.0


@dataclass
class Progress:
    """Everything that a training needs to be resumed as if it had never stopped.

    `losses` and `gradient_norms` are from the steps since the last evaluation. `arrays` and `json_part` give the
    content for a file; `restored` is their inverse.
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
    devices: list[int] = field(default_factory=list)  # the numbers of devices that the training had, in their order
    seeds: list[int] = field(default_factory=list)  # the same of the seeds that its program computed
    machines: list[dict] = field(default_factory=list)  # the record of each machine, see `models.physics.operating`

    @property
    def best_evaluation(self) -> Evaluation:
        """The evaluation of the best model. Raises `IndexError` before the first one."""
        return self.history[-1 - self.evaluations_since_best]

    def used(self, devices: int) -> None:
        """Record the number of devices of the steps that follow."""
        if self.devices[-1:] != [devices]:
            self.devices.append(devices)

    def trained_with(self, seeds: int) -> None:
        """Record the number of seeds in the program of the last steps."""
        if self.seeds[-1:] != [seeds]:
            self.seeds.append(seeds)

    def add(self, evaluation: Evaluation, better: Callable[[Evaluation, Evaluation], bool]) -> None:
        """Add the evaluation of the present model, and keep the model if it is `better` than the best so far."""
        improved = not self.history or better(evaluation, self.best_evaluation)
        self.evaluations_since_best = 0 if improved else self.evaluations_since_best + 1
        if improved:
            self.best = copied((self.training.model, self.training.state))
        self.history.append(evaluation)
        self.losses.clear()
        self.gradient_norms.clear()

    def arrays(self) -> list[Array]:
        """The arrays of the training state, the best model and the key."""
        return jax.tree.leaves(eqx.filter((self.training, self.best, self.key), eqx.is_array))

    def json_part(self) -> dict:
        """Everything else. It fits into JSON."""
        return {
            **{name: getattr(self, name) for name in _JSON_FIELDS},
            "history": [evaluation._asdict() for evaluation in self.history],
            "seconds": asdict(self.seconds),
            "devices": self.devices,
            "seeds": self.seeds,
            "machines": self.machines,
        }

    def restored(self, arrays: list[Array] | list[np.ndarray], json_part: dict) -> "Progress":
        """The progress that `arrays` and `json_part` were taken from. `self` is the start of the same training."""
        own, rest = eqx.partition((self.training, self.best, self.key), eqx.is_array)
        saved = jax.tree.unflatten(jax.tree.structure(own), map(jnp.asarray, arrays))
        training, best, key = eqx.combine(saved, rest)
        # The number of skips allowed is an option, not a part of the progress: it may have changed.
        skips_left = jnp.maximum(self.training.skips_left - json_part["skipped"], 0)
        return Progress(
            replace(training, skips_left=skips_left),
            best,
            key,
            history=[Evaluation(**evaluation) for evaluation in json_part["history"]],
            seconds=Seconds(**json_part["seconds"]),
            devices=json_part.get("devices", [1]),  # which was fixed
            seeds=json_part.get("seeds", [1]),  # so was this
            machines=json_part.get("machines", []),
            **{name: json_part[name] for name in _JSON_FIELDS},
        )


_JSON_FIELDS = ("step", "skipped", "evaluations_since_best", "losses", "gradient_norms")
_COMPILING = ("/jax/core/compile/jaxpr_to_mlir_module_duration", "/jax/core/compile/backend_compile_duration")


class Clock:
    """Adds times to `Seconds`, without the compiling of other threads. Use it in a `with` block, from one thread."""

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
    def timing(self, part: str) -> Iterator[None]:
        """Count the time of the block as a part of `Seconds`. What a block within it compiles counts as compiling."""
        start, compiling = time.perf_counter(), self._seconds.compiling
        yield
        spent = time.perf_counter() - start - (self._seconds.compiling - compiling)
        setattr(self._seconds, part, getattr(self._seconds, part) + spent)

    def _listen(self, event: str, duration_secs: float, **_) -> None:
        if event in _COMPILING and threading.get_ident() == self._thread:
            self._seconds.compiling += duration_secs
