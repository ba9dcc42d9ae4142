"""The machine of a config around a model."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import jax
from jaxtyping import PyTree

from experiment_configs.machines import operator_of
from experiment_configs.schema import ConfigError, ExperimentConfig
from models.physics.in_the_loop import MachineInTheLoop, on_machine, require_fitting


@contextmanager
def run_on_machine(config: ExperimentConfig) -> Iterator[Callable[[PyTree], PyTree]]:
    """A function that puts units of a model on the machine of the config, or leaves a config without a machine alone.

    The machine ends with the block. The function raises `ConfigError` for a unit that does not fit the machine, and
    `MachineError` if the machine does not answer.
    """
    machine = config.machine
    if machine is None:
        yield lambda model: model
        return
    operator = operator_of(machine)

    def place(model):
        try:
            model = on_machine(model, MachineInTheLoop(operator, config.epsilon), machine.get("units"))
            require_fitting(model, config.hidden_dim)
            return model
        except ValueError as error:
            raise ConfigError(f"machine {machine['name']}: {error}") from error

    try:
        yield place
    except jax.errors.JaxRuntimeError:
        if operator.failure is not None:
            raise operator.failure from None
        raise
    finally:
        operator.close()
