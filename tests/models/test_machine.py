"""A machine in the loop: its gradient against reverse mode, what it is asked to do, and what its failures do."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from systems import assert_close

from models import create_model
from models.physics.in_the_loop import MachineInTheLoop
from models.physics.machine import Limits, Machine
from models.physics.numpy_leapfrog import NumpyLeapfrog
from models.rhel import BPTT, with_learning_algorithm

BATCH, STEPS, CHANNELS, CLASSES = 3, 6, 2, 2


def stack(name="NonlinHRU", blocks=1, **options):
    """A small stack differentiated by BPTT, and its state."""
    sizes = {"data_dim": CHANNELS, "label_dim": CLASSES, "hidden_dim": 4, "num_blocks": blocks, "ssm_dim": 3}
    options = {"classification": True, "dropout_rate": 0.1, "learning_algorithm": "BPTT"} | options
    return create_model(name, **sizes, **options, key=jax.random.PRNGKey(0))


def batch_loss(state):
    """The loss of a model on one batch."""
    x = jax.random.normal(jax.random.PRNGKey(1), (BATCH, STEPS, CHANNELS))
    keys = jax.random.split(jax.random.PRNGKey(2), BATCH)

    def loss(model):
        forward = jax.vmap(model, axis_name="batch", in_axes=(0, None, 0), out_axes=(0, None))
        logits, _ = forward(x, state, keys)
        return -jnp.mean(jax.nn.log_softmax(logits)[:, 0])

    return loss


def value_and_gradient(model, state, algorithm):
    """Loss and the gradient of every array leaf."""
    model = with_learning_algorithm(model, algorithm)
    value, gradient = eqx.filter_jit(eqx.filter_value_and_grad(batch_loss(state)))(model)
    return value, eqx.filter(gradient, eqx.is_inexact_array)


@pytest.mark.parametrize(("name", "epsilon"), [("LinHRU", 1.0), ("NonlinHRU", 1e-6)])
def test_the_gradient_of_a_stack_on_a_machine_is_that_of_reverse_mode(x64, name, epsilon):
    model, state = stack(name)
    machine = NumpyLeapfrog(dtype=np.longdouble)
    assert isinstance(machine, Machine)
    assert_close(
        value_and_gradient(model, state, MachineInTheLoop(machine, epsilon)),
        value_and_gradient(model, state, BPTT()),
        1e-10,
    )


@pytest.mark.parametrize(("holds_state", "free_passes"), [(True, 1), (False, 2)])
def test_a_gradient_takes_three_passes_or_four(holds_state, free_passes):
    model, state = stack()
    algorithm = MachineInTheLoop(NumpyLeapfrog(Limits(holds_state=holds_state)), 1e-3)
    got = value_and_gradient(model, state, algorithm)
    record = algorithm.operator.record
    assert (record.free_passes, record.echoes, record.repeated) == (free_passes, 2, free_passes - 1)
    assert record.passes == algorithm.operator.machine.limits.passes
    assert_close(got, value_and_gradient(model, state, BPTT()), 1e-4)
