"""Corners of the echo: both kinds of contrasts, any size, one sample of a batch that is unlike the others, no steps."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from systems import assert_close, linear, pendulums, plain_saturating, saturating

from models import create_model, evolve
from models.LinHRU import LinearOscillators
from models.rhel import BPTT, LEARNING_ALGORITHMS, RHEL
from models.rhel.hamiltonian import AbstractHamiltonian


@eqx.filter_jit
@eqx.filter_grad
def gradient(hamiltonian_and_drives, incoming, algorithm):
    """Over a batch (batch, time, osc) of drives."""
    hamiltonian, drives = hamiltonian_and_drives
    return jnp.vdot(jax.vmap(lambda v: evolve(hamiltonian, v, learning_algorithm=algorithm))(drives), incoming)


def drawn(size, length, batch=1, seed=3):
    keys = jax.random.split(jax.random.PRNGKey(seed))
    return [jax.random.normal(key, (batch, length, size)) for key in keys]


class PlainLinear(LinearOscillators):
    """The same energies without their closed contrasts."""

    kinetic_contrast = AbstractHamiltonian.kinetic_contrast
    potential_contrast = AbstractHamiltonian.potential_contrast


@pytest.mark.parametrize("literal", [False, True])
@pytest.mark.parametrize(
    ("closed", "plain"), [(saturating, plain_saturating), (linear, lambda: PlainLinear(**vars(linear())))]
)
def test_closed_and_plain_contrasts_give_the_same_gradient(x64, closed, plain, literal):
    drives, incoming = drawn(8, 60)
    # At a nudge that both can resolve; its own error, of the order of its square, is common to them.
    algorithm = RHEL(1e-3, literal)
    values = [gradient((system(), drives), incoming, algorithm) for system in (plain, closed)]
    assert_close(*map(jax.tree.leaves, values), 1e-9)


@pytest.mark.slow
@settings(max_examples=3, deadline=None, derandomize=True)
@given(
    system=st.sampled_from([linear, saturating, pendulums]),
    size=st.integers(1, 40),
    batch=st.integers(1, 4),
    length=st.integers(1, 150),
    dt=st.floats(1e-2, 0.5),
    seed=st.integers(0, 2**31 - 1),
)
def test_any_size_batch_and_length(system, size, batch, length, dt, seed):
    with jax.enable_x64(True):
        drives, incoming = drawn(size, length, batch, seed)
        value, reference = (gradient((system(size, dt), drives), incoming, method) for method in (RHEL(), BPTT()))
        # In a single step nothing has moved before the kick: some gradients are zero, and have no digits.
        assert_close(value, reference, 1e-8, floor=1e-3 * batch * dt**2)


PAIRS = [(linear, True), (saturating, False), (pendulums, False)]


@pytest.mark.parametrize(("system", "literal"), PAIRS)
def test_a_sample_without_gradient_leaves_the_others_as_they_are(x64, system, literal):
    drives, incoming = drawn(8, 60, batch=3)
    value = gradient((system(), drives), incoming.at[1].set(0), RHEL(literal=literal))
    others = jnp.asarray([0, 2])
    alone = gradient((system(), drives[others]), incoming[others], RHEL(literal=literal))
    assert np.all(value[1][1] == 0)
    assert_close((value[0], value[1][others]), alone, 1e-8)


@pytest.mark.parametrize(("system", "literal"), PAIRS)
def test_nan_in_one_sample_surfaces_in_the_parameters_and_in_that_sample_alone(x64, system, literal):
    drives, incoming = drawn(8, 60, batch=3)
    hamiltonian_grad, drives_grad = gradient(
        (system(), drives), incoming.at[1, 30, 3].set(jnp.nan), RHEL(literal=literal)
    )
    assert all(np.any(np.isnan(leaf)) for leaf in jax.tree.leaves(hamiltonian_grad))
    assert np.any(np.isnan(drives_grad[1]))
    assert np.all(np.isfinite(drives_grad[jnp.asarray([0, 2])]))


@pytest.mark.parametrize("algorithm", LEARNING_ALGORITHMS)
def test_no_steps_are_refused_by_every_algorithm_and_by_models(algorithm):
    with pytest.raises(ValueError, match="the sequence is empty: it has no steps"):
        evolve(linear(), jnp.zeros((0, 8)), learning_algorithm=algorithm)
    model, state = create_model(
        "NonlinHRU", 3, 2, 4, 1, 5, classification=True, learning_algorithm=algorithm, key=jax.random.PRNGKey(0)
    )
    with pytest.raises(ValueError, match="the sequence is empty: it has no steps"):
        jax.vmap(eqx.nn.inference_mode(model), axis_name="batch", in_axes=(0, None))(jnp.zeros((2, 0, 3)), state)


@pytest.mark.parametrize("model_name", ["LinHRU", "NonlinHRU"])
def test_a_model_of_one_step_has_the_gradient_of_bptt(x64, model_name):
    x = jax.random.normal(jax.random.PRNGKey(1), (4, 1, 3))

    @eqx.filter_jit
    @eqx.filter_grad
    def model_gradient(model, state):
        outputs, _ = jax.vmap(model, axis_name="batch", in_axes=(0, None), out_axes=(0, None))(x, state)
        return jnp.sum(outputs**2)

    values = [
        model_gradient(
            *create_model(
                *(model_name, 3, 2, 4, 1, 5),
                classification=True,
                dropout_rate=0.0,
                learning_algorithm=algorithm,
                key=jax.random.PRNGKey(0),
            )
        )
        for algorithm in ("RHEL", "BPTT")
    ]
    assert_close(*values, 1e-9, floor=1e-6)
