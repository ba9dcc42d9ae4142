"""The memory, disk and time that a training needs. Prints and writes nothing."""

import io
import math
import time
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

import train
from data_dir.dataloaders import Dataloader
from data_dir.datasets import Dataset, create_dataset
from experiment_configs.schema import ExperimentConfig
from runs.run import make_model
from training import dispatch
from training.dispatch import stack_batches
from training.steps import copied

TIMED_STEPS = 20

# Files of a run except model.eqx: a line of metrics.jsonl; all other files together.
BYTES_PER_EVALUATION = 300
BYTES_OF_OTHER_FILES = 120_000


class Plan(NamedTuple):
    """The needs of the runs of a config. Times are in seconds, sizes in bytes."""

    config: ExperimentConfig
    runs: int  # without finished ones
    parameters: int
    temporaries: int  # working memory of a step, by XLA's own analysis
    arguments: int  # the arguments of a step: model, state, optimiser and batch
    disk: int  # for all these runs
    per_1000_steps: float
    longest: float  # for all these runs without early stopping


def plan(config: ExperimentConfig, *, runs: int) -> Plan:
    """Compile a step, time some steps, and estimate the needs of `runs` runs of the config.

    **Raises:** `DataError` and `ConfigError` as a run does.
    """
    seed = config.seeds[0]
    dataset = create_dataset(seed=seed, **config.data_options())
    config = config.completed(dataset.output_step)
    keys = train.seed_keys(seed)
    dims = {"data_dim": dataset.data_dim, "label_dim": dataset.label_dim}
    model, state = make_model(config, **dims, key=keys.model)
    memory, per_step = _measure_step(config, dataset, model, state, keys.training)
    evaluations = math.ceil(config.num_steps / config.print_steps)
    longest = config.num_steps * per_step + evaluations * _seconds_per_evaluation(config, dataset, model, state)
    saved = io.BytesIO()
    eqx.tree_serialise_leaves(saved, (model, state))
    disk = saved.tell() + evaluations * BYTES_PER_EVALUATION + BYTES_OF_OTHER_FILES
    return Plan(
        config=config,
        runs=runs,
        parameters=train.count_parameters(model),
        temporaries=memory.temp_size_in_bytes,
        arguments=memory.argument_size_in_bytes,
        disk=runs * disk,
        per_1000_steps=1000 * per_step,
        longest=runs * longest,
    )


def _measure_step(config: ExperimentConfig, dataset: Dataset, model, state, key: PRNGKeyArray):
    """XLA's memory analysis of a step, and the mean seconds of `TIMED_STEPS` steps, sent as the training sends them."""
    optimiser = train.adam(config.learning_rate())
    optimiser_state = optimiser.init(eqx.filter(model, eqx.is_inexact_array))
    training = copied(train.TrainingState(model, state, optimiser_state, jnp.array(0)))
    batches = dataset.train.loop(config.batch_size, key=key)
    x, y = next(batches)
    step = train.train_step.lower((x, y, key), training, optimiser, config.classification)
    memory = step.compile().compiled.memory_analysis()

    slots = max(2, min(TIMED_STEPS, dispatch.DISPATCH_BYTES // (x.nbytes + y.nbytes)))
    stack = jax.device_put(stack_batches(batches, slots, slots))

    def send(count):
        nonlocal training
        dispatched = (*stack, key, jnp.int32(count))
        training, losses, _ = train.train_steps(dispatched, training, optimiser, config.classification)
        return losses

    jax.block_until_ready(send(1))  # compiles
    start = time.perf_counter()
    for done in range(0, TIMED_STEPS, slots):
        losses = send(min(slots, TIMED_STEPS - done))
    jax.block_until_ready(losses)
    return memory, (time.perf_counter() - start) / TIMED_STEPS


def _seconds_per_evaluation(config: ExperimentConfig, dataset: Dataset, model, state) -> float:
    """The time for the training and the validation part, from the time of one batch."""
    x, y = next(dataset.train.loop_epoch(config.batch_size))
    batch = Dataloader(x, y)  # pyright: ignore[reportArgumentType] (arrays on the device serve, too)
    for _ in range(2):  # the first call compiles
        start = time.perf_counter()
        train.evaluate(model, state, batch, batch_size=config.batch_size, classification=config.classification)
        seconds = time.perf_counter() - start
    batches = sum(math.ceil(part.size / config.batch_size) for part in (dataset.train, dataset.validation))
    return batches * seconds
