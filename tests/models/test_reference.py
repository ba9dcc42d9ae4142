"""The echo, fast or literal, is the reference of 40 lines."""

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest
from systems import assert_close, linear, pendulums, saturating

from models import evolve
from models.rhel import RHEL, reference
from models.rhel.hamiltonian import flow
from models.rhel.nudges import relative_amplitude


@eqx.filter_jit
@eqx.filter_grad
def gradient(hamiltonian_and_drives, incoming, algorithm):
    return jnp.vdot(evolve(*hamiltonian_and_drives, learning_algorithm=algorithm), incoming)


@pytest.mark.parametrize("system", [linear, saturating, pendulums])
def test_the_echo_is_the_reference(x64, system):
    epsilon = 1e-2
    hamiltonian = system(5)
    drives, incoming = (jax.random.normal(jax.random.PRNGKey(seed), (40, 5)) for seed in (1, 2))
    reference_gradient = eqx.filter_jit(reference.gradient)

    # The size of the nudges that RHEL chooses, so that the nudged trajectories are the same.
    rest = jnp.zeros(5)
    (_, p), positions = flow(hamiltonian, (rest, rest), drives)
    size, largest = jnp.maximum(jnp.max(jnp.abs(positions)), jnp.max(jnp.abs(p))), jnp.max(jnp.abs(incoming))
    nudges = incoming / largest
    a = relative_amplitude(epsilon, size, jnp.sum(nudges**2, axis=0), jnp.sum(nudges, axis=0)) / largest

    expected = reference_gradient(hamiltonian, drives, incoming, a)
    for algorithm in (RHEL(epsilon), RHEL(epsilon, literal=True, chunk=16)):
        assert_close(gradient((hamiltonian, drives), incoming, algorithm), expected, 1e-10)

    small = reference_gradient(hamiltonian, drives, incoming, 1e-4)
    assert_close(gradient((hamiltonian, drives), incoming, RHEL()), small, 1e-6)
