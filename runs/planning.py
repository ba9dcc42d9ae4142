"""The memory, disk and time that a training needs. Prints and writes nothing."""

import io
import math
import time
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp

import train
from data_dir.dataloaders import Dataloader
from data_dir.datasets import Dataset, create_dataset
from experiment_configs.schema import ExperimentConfig
from runs.run import make_model
from training import dispatch
from training.checkpoints import KEPT
from training.devices import divided, replicated
from training.dispatch import stack_batches
from training.steps import copied

TIMED_STEPS = 20
TIMING_SECONDS = 60  # no further step is timed if it would end later than this; one step is always timed

# Files of a run except model.eqx and checkpoints: a line of metrics.jsonl; all other files together.
BYTES_PER_EVALUATION = 300
BYTES_OF_OTHER_FILES = 120_000
# What a checkpoint holds beside its arrays; orbax needs some bytes for each array.
BYTES_PER_CHECKPOINT, BYTES_PER_ARRAY = 30_000, 300


class Needs(NamedTuple):
    """What the runs of a config need, in bytes; of memory, on each device."""

    parameters: int  # a number
    temporaries: int  # working memory of a step, by XLA's own analysis
    arguments: int  # the arguments of a step: model, state, optimiser and batch
    disk: int  # for all runs


class Times(NamedTuple):
    """Seconds, and the number of steps that were timed."""

    per_1000_steps: float
    longest: float  # for all runs without early stopping
    steps: int


class Planning:
    """A step of the training of a config on so many devices, to be measured. `runs`: how many runs are to be made."""

    def __init__(self, config: ExperimentConfig, runs: int, devices: int = 1):
        """Load the data and make the model. Raises `DataError` and `ConfigError` as a run does."""
        seed = config.seeds[0]
        self.dataset = create_dataset(seed=seed, **config.data_options())
        self.config, self.runs, self.devices = config.completed(self.dataset.output_step), runs, devices
        keys = train.seed_keys(seed)
        dims = {"data_dim": self.dataset.data_dim, "label_dim": self.dataset.label_dim}
        self.model, self.state = make_model(self.config, **dims, key=keys.model)
        self.key = replicated(keys.training, devices)
        self.optimiser = train.adam(config.learning_rate())
        self.evaluations = math.ceil(config.num_steps / config.print_steps)

    def _start(self):
        """The training state, which a step takes, and the batches."""
        optimiser_state = self.optimiser.init(eqx.filter(self.model, eqx.is_inexact_array))
        training = copied(train.TrainingState(self.model, self.state, optimiser_state, jnp.array(0)))
        return replicated(training, self.devices), self.dataset.train.loop(self.config.batch_size, key=self.key)

    def needs(self) -> Needs:
        """Compile a step. Memory by XLA's own analysis; the disk holds model, checkpoints, metrics and figures."""
        training, batches = self._start()
        batch = (*divided(next(batches), self.devices), self.key)
        step = train.train_step.lower(batch, training, self.optimiser, self.config.classification, self.devices)
        memory = step.compile().compiled.memory_analysis()
        saved = io.BytesIO()
        eqx.tree_serialise_leaves(saved, (self.model, self.state))
        arrays = train.Progress(training, (self.model, self.state), self.key).arrays()
        checkpoint = sum(array.nbytes for array in arrays) + BYTES_PER_ARRAY * len(arrays) + BYTES_PER_CHECKPOINT
        lines = self.evaluations * BYTES_PER_EVALUATION  # in metrics.jsonl, and in every checkpoint
        disk = saved.tell() + lines + KEPT * (checkpoint + lines) + BYTES_OF_OTHER_FILES
        return Needs(
            parameters=train.count_parameters(self.model),
            temporaries=memory.temp_size_in_bytes,
            arguments=memory.argument_size_in_bytes,
            disk=self.runs * disk,
        )

    def times(self) -> Times:
        """Time `TIMED_STEPS` steps, sent as the training sends them, and an evaluation.

        Fewer steps, but at least one, if they take more than `TIMING_SECONDS`.
        """
        per_step, timed = self._seconds_per_step()
        evaluation = _seconds_per_evaluation(self.config, self.dataset, self.model, self.state, self.devices)
        longest = self.config.num_steps * per_step + self.evaluations * evaluation
        return Times(1000 * per_step, self.runs * longest, timed)

    def _seconds_per_step(self) -> tuple[float, int]:
        training, batches = self._start()
        x, y = next(batches)
        slots = max(2, min(TIMED_STEPS, dispatch.DISPATCH_BYTES // (x.nbytes + y.nbytes)))
        stack = divided(stack_batches(batches, slots, slots), self.devices, axis=1)

        def send(count):
            nonlocal training
            dispatched = (*stack, self.key, replicated(jnp.int32(count), self.devices))
            static = (self.optimiser, self.config.classification, self.devices)
            training, losses, _ = train.train_steps(dispatched, training, *static)
            return losses

        def seconds(counts):
            start = time.perf_counter()
            for count in counts:
                losses = send(count)
            jax.block_until_ready(losses)
            return time.perf_counter() - start

        seconds([1])  # compiles
        single = seconds([1])
        most = min(TIMED_STEPS, int(TIMING_SECONDS / max(single, 1e-9)) - 1)
        if most < 2:
            return single, 1
        return seconds([min(slots, most - done) for done in range(0, most, slots)]) / most, most


def _seconds_per_evaluation(config: ExperimentConfig, dataset: Dataset, model, state, devices: int) -> float:
    """The time for the training and the validation part, from the time of one batch."""
    x, y = next(dataset.train.loop_epoch(config.batch_size))
    batch = Dataloader(x, y)  # pyright: ignore[reportArgumentType] (arrays on the device serve, too)
    options = {"batch_size": config.batch_size, "classification": config.classification, "devices": devices}
    for _ in range(2):  # the first call compiles
        start = time.perf_counter()
        train.evaluate(model, state, batch, **options)
        seconds = time.perf_counter() - start
    parts = (dataset.evaluated_train, dataset.validation)
    batches = sum(math.ceil(part.size / config.batch_size) for part in parts)
    return batches * seconds
