"""The default gradient, without a knob, where nudges of a fixed size are wrong; and the range and types of numbers."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from systems import assert_close, pendulums, plain_saturating, saturating

from models import evolve
from models.rhel import BPTT, RHEL, AbstractSystem, ReversibleBPTT
from models.rhel.hamiltonian import AbstractHamiltonian
from models.rhel.nudges import relative_amplitude


class Pendulums(AbstractHamiltonian):
    k: jax.Array
    step: jax.Array

    def kinetic(self, p):
        return jnp.sum(self.step * p**2) / 2

    def potential(self, q, drive):
        return jnp.sum(self.step * (self.k * (1 - jnp.cos(q)) - q * drive))


@eqx.filter_jit
@eqx.filter_grad
def gradient(hamiltonian_and_drives, incoming, algorithm):
    return jnp.vdot(evolve(*hamiltonian_and_drives, learning_algorithm=algorithm), incoming)


def widened(tree):
    return jax.tree.map(lambda x: x.astype(jnp.float64), tree)


def noise(length, size):
    return jax.random.normal(jax.random.PRNGKey(1), (length, size))


def pooled(length, size):
    """The incoming gradient of a mean over time: one sign at all steps."""
    return jnp.full((length, size), 1 / length)


def winding_up(length):
    return Pendulums(jnp.array([1.0, 0.8]), jnp.array([0.1, 0.1])), jnp.full((length, 2), 1.5), pooled(length, 2)


def two_scales():
    size = jnp.array([[1.0, 1e-3]])
    return Pendulums(jnp.array([1.0, 0.8]), jnp.array([0.1, 0.1])), noise(200, 2) * size, pooled(200, 2)


CASES = {
    "mean pooling, step 0.1": lambda: (plain_saturating(3, 0.1), noise(2000, 3), pooled(2000, 3)),
    "mean pooling, step 0.01": lambda: (plain_saturating(3, 0.01), noise(10_000, 3), pooled(10_000, 3)),
    "pendulums that wind up, 50 steps": lambda: winding_up(50),
    "pendulums that wind up, 100 steps": lambda: winding_up(100),
    "two scales in one system": two_scales,
    "small amplitudes": lambda: (pendulums(3), 1e-2 * noise(200, 3), pooled(200, 3)),
}


@pytest.mark.parametrize("case", CASES)
def test_the_default_is_exact_for_energies_alone(case):
    hamiltonian, drives, incoming = CASES[case]()
    single = gradient((hamiltonian, drives), incoming, RHEL())
    with jax.enable_x64(True):
        wide = widened(((hamiltonian, drives), incoming))
        reference = gradient(*wide, BPTT())
        assert_close(gradient(*wide, RHEL()), reference, 1e-9)
    assert_close(single, reference, 1e-3)


@pytest.mark.parametrize(("incoming_scale", "drive_scale"), [(1e32, 1.0), (1e-30, 1.0), (1.0, 1e-18)])
def test_the_range_of_single_precision(incoming_scale, drive_scale):
    arguments, incoming = (saturating(4), drive_scale * noise(100, 4)), incoming_scale * pooled(100, 4)
    single = gradient(arguments, incoming, RHEL())
    with jax.enable_x64(True):
        reference = gradient(*widened((arguments, incoming)), BPTT())
    assert_close(single, reference, 1e-4)


@pytest.mark.parametrize("literal", [False, True])
def test_finite_nudges_out_of_range_are_not_a_number(literal):
    drives, incoming = noise(50, 3), pooled(50, 3)
    value = gradient((saturating(3), 1e-30 * drives), 1e30 * incoming, RHEL(1e-9, literal))
    assert all(not np.any(leaf == 0) for leaf in jax.tree.leaves(value)), value
    beyond = gradient((saturating(3), drives), incoming.at[3, 1].set(jnp.inf), RHEL(1e-2, literal))
    assert all(np.any(np.isnan(leaf)) for leaf in jax.tree.leaves(beyond))
    assert jnp.isnan(relative_amplitude(1e-30, jnp.float32(1e-20), jnp.ones(2), jnp.ones(2)))
    assert relative_amplitude(1e-2, jnp.float32(1.0), jnp.zeros(2), jnp.zeros(2)) == 0


def test_finite_nudges_have_the_size_that_is_asked_for(x64):
    """As a root of squares if they differ in sign, as a sum if they do not; the state at rest counts as 1."""
    nudges = jnp.array([[3.0, 1.0], [-4.0, 1.0]])
    for x, together in ((nudges, 5.0), (pooled(400, 2), 1.0)):
        amplitude = relative_amplitude(0.1, 2.0, jnp.sum(x**2, 0), jnp.sum(x, 0))
        assert amplitude * together == pytest.approx(0.2)
    assert relative_amplitude(0.1, 0.0, jnp.array([4.0]), jnp.array([0.0])) == pytest.approx(0.05)


ALGORITHMS = [RHEL(), RHEL(1e-2), ReversibleBPTT(), BPTT()]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_half_precision_computes_in_single(dtype, algorithm):
    """Outputs and gradients are the single-precision ones of the same numbers, rounded once."""
    arguments = jax.tree.map(lambda x: x.astype(dtype), (saturating(3), noise(200, 3)))
    incoming = pooled(200, 3)
    halves = gradient(arguments, incoming, algorithm)
    assert all(x.dtype == dtype for x in jax.tree.leaves((halves, evolve(*arguments))))
    single = gradient(jax.tree.map(lambda x: x.astype(jnp.float32), arguments), incoming, algorithm)
    for half, whole in zip(*map(jax.tree.leaves, (halves, single)), strict=True):
        np.testing.assert_allclose(half.astype(jnp.float32), whole, rtol=float(jnp.finfo(dtype).eps), atol=1e-5)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_mixed_types_compute_in_the_widest(x64, algorithm):
    hamiltonian, drives = saturating(3), noise(60, 3)
    narrow = eqx.tree_at(lambda h: h.alpha, hamiltonian, hamiltonian.alpha.astype(jnp.float32))
    value = gradient((narrow, drives.astype(jnp.bfloat16)), pooled(60, 3), algorithm)
    same = jax.tree.map(lambda x: x.astype(jnp.float64), (narrow, drives.astype(jnp.bfloat16)))
    assert value[0].alpha.dtype == jnp.float32
    assert value[1].dtype == jnp.bfloat16
    assert value[0].b.dtype == jnp.float64
    reference = gradient(same, pooled(60, 3), BPTT())
    tolerance = 1e-9 if algorithm.__class__ is not RHEL or algorithm.epsilon is None else 1e-3
    assert_close(value[0].b, reference[0].b, tolerance)
    assert evolve(narrow, drives.astype(jnp.bfloat16)).dtype == jnp.float64


class Gated(AbstractSystem):
    """A readout whose gain is the input: linear in the positions."""

    hamiltonian: AbstractHamiltonian

    def drive(self, inputs):
        return inputs

    def readout(self, positions, inputs):
        return positions * inputs


@pytest.mark.parametrize("first", [0.0, 1e-9, jnp.nan])
@pytest.mark.parametrize("algorithm", [RHEL(), RHEL(1e-4), RHEL(1e-3, literal=True)])
def test_a_gain_that_depends_on_the_input(x64, first, algorithm):
    """The first step of the first sequence says nothing about the gain of the others."""
    inputs = jnp.stack([noise(40, 3), noise(40, 3)[::-1]]).at[0, 0].set(first)

    @eqx.filter_jit
    @eqx.filter_grad
    def through_gate(hamiltonian, inputs, algorithm):
        return jnp.sum(jax.vmap(lambda u: algorithm(Gated(hamiltonian), u))(inputs) ** 2)

    alone = jnp.isnan(first)
    if alone:
        each = eqx.filter_jit(jax.vmap(lambda u: through_gate(saturating(3), u[None], algorithm)))(inputs)
        assert all(np.all(np.isnan(leaf[0])) and np.all(np.isfinite(leaf[1])) for leaf in jax.tree.leaves(each))
    else:
        value, reference = (through_gate(saturating(3), inputs, x) for x in (algorithm, BPTT()))
        assert_close(value, reference, 1e-9 if algorithm.epsilon is None else 1e-5)
