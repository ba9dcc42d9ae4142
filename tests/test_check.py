import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from systems import linear, pendulums, plain_saturating, saturating

from models import create_model, evolve
from models.check import (
    InadmissibleHamiltonian,
    RetraceWarning,
    agreement,
    agreement_by_leaf,
    check_gradient,
    check_hamiltonian,
    one_rounding,
    retrace_error,
    retrace_errors,
    rounding_of_constraints,
    to_float64,
    with_same_numbers,
)
from models.hamiltonian import AbstractHamiltonian
from models.NonlinHRU import NonlinHRULayer
from models.rhel import BareSystem

DRIVES = jax.random.normal(jax.random.PRNGKey(3), (60, 8))


class Springs(AbstractHamiltonian):
    """Harmonic oscillators whose energies a test replaces."""

    k: jax.Array

    def kinetic(self, p):
        return 0.05 * jnp.sum(p**2)

    def potential(self, q, drive):
        return jnp.sum(0.1 * (0.5 * self.k * q**2 - q * drive))


class UnevenKinetic(Springs):
    def kinetic(self, p):
        return 0.05 * jnp.sum(p**2 + 0.1 * p)


class VectorKinetic(Springs):
    def kinetic(self, p):
        return 0.05 * p**2


class RootKinetic(Springs):
    def kinetic(self, p):
        return jnp.sum(jnp.sqrt(jnp.abs(p)))


class LogPotential(Springs):
    """Finite at rest, not at every state."""

    def potential(self, q, drive):
        return jnp.sum(self.k * jnp.log1p(q - 0.5) - q * drive)


class RootParameter(Springs):
    def potential(self, q, drive):
        return jnp.sum(jnp.sqrt(self.k) * q**2 - q * drive)


class VectorPotential(Springs):
    def potential(self, q, drive):
        return 0.1 * (0.5 * self.k * q**2 - q * drive)


class RootPotential(Springs):
    def potential(self, q, drive):
        return jnp.sum(jnp.sqrt(q))


class CornerPotential(Springs):
    def potential(self, q, drive):
        return jnp.linalg.norm(q) * jnp.sum(self.k)


class WrongKineticContrast(Springs):
    def kinetic_contrast(self, p, dp):
        return 0.05 * jnp.sum(p * dp)


class Stretched(Springs):
    """A number that is a field of its own, or part of one."""

    scale: float | complex | tuple

    def potential(self, q, drive):
        return jnp.sum(0.1 * (0.5 * self.k * jnp.real(jnp.asarray(self.scale)) * q**2 - q * drive))


class WrongContrast(Springs):
    def potential_contrast(self, q, dq, drive):
        return jnp.sum(self.k * q * dq)


@pytest.mark.parametrize("system", [linear, saturating, plain_saturating, pendulums])
def test_admissible_hamiltonians_pass(system):
    check_hamiltonian(system(), DRIVES)


@pytest.mark.parametrize(
    ("hamiltonian", "drives", "message"),
    [
        (UnevenKinetic(jnp.ones(8)), DRIVES, r"UnevenKinetic.kinetic is not even: .* at p, .* at -p"),
        (VectorKinetic(jnp.ones(8)), DRIVES, r"VectorKinetic.kinetic must return a scalar, got shape \(8,\)"),
        (VectorPotential(jnp.ones(8)), DRIVES, r"VectorPotential.potential must return a scalar, got shape \(8,\)"),
        (RootKinetic(jnp.ones(8)), DRIVES, r"the gradient of RootKinetic.kinetic by p is not finite at rest"),
        (LogPotential(jnp.ones(8)), DRIVES, r"LogPotential.potential is nan at a random state"),
        (RootParameter(jnp.zeros(8)), DRIVES, r"the gradient of RootParameter.potential by RootParameter.k is not fin"),
        (RootPotential(jnp.ones(8)), DRIVES, r"the gradient of RootPotential.potential by q is not finite at rest"),
        (CornerPotential(jnp.ones(8)), DRIVES, r"the gradient of CornerPotential.potential by q is not finite at rest"),
        (Springs(jnp.full(8, jnp.nan)), DRIVES, r"Springs.potential is nan at rest"),
        (Springs(jnp.arange(8)), DRIVES, r"Springs.k is an array of int32 and would get no gradient: make it"),
        (
            Springs(jnp.ones(8, complex)),
            DRIVES,
            r"Springs.k is an array of complex64, and energies and states are real: make it two real fields",
        ),
        (
            Stretched(jnp.ones(8), 0.3),
            DRIVES,
            r"Stretched.scale is a Python float, 0.3, and would get no gradient: make it jnp.asarray\(0.3\) or, if it",
        ),
        (Stretched(jnp.ones(8), (0.3, 1.0)), DRIVES, r"Stretched.scale\[0\] is a Python float, 0.3, .* a static field"),
        (
            Stretched(jnp.ones(8), 1 + 2j),
            DRIVES,
            r"Stretched.scale is a Python complex, .* jnp.asarray\(\[1.0, 2.0\]\)",
        ),
        (WrongContrast(jnp.ones(8)), DRIVES, r"WrongContrast.potential_contrast is .*, but .* differs by"),
        (WrongKineticContrast(jnp.ones(8)), DRIVES, r"WrongKineticContrast.kinetic_contrast is .*, but .* differs by"),
        (Springs(jnp.ones(8)), DRIVES[:0], "the sequence of drives is empty"),
        (Springs(jnp.ones(8)), jnp.ones((5, 8), int), r"the drives must be floating-point, got int32"),
    ],
)
def test_violated_assumptions_are_named(hamiltonian, drives, message):
    with pytest.raises(InadmissibleHamiltonian, match=message):
        check_gradient(hamiltonian, drives)


def test_a_number_that_gets_a_gradient_or_wants_none_is_admitted():
    class Fixed(Springs):
        scale: float = eqx.field(static=True)

    for number in (jnp.asarray(0.3), np.float32(0.3), np.full(8, 0.3, np.float32)):
        check_hamiltonian(Stretched(jnp.ones(8), number), DRIVES)
        assert check_gradient(Stretched(jnp.ones(8), number), DRIVES)["scale"].rhel < 1e-3
    check_hamiltonian(Fixed(jnp.ones(8), 0.3), DRIVES)


def test_evolve_names_what_it_can_see_without_a_check():
    with pytest.raises(ValueError, match=r"VectorPotential.potential must return a scalar, got shape \(8,\)"):
        evolve(VectorPotential(jnp.ones(8)), DRIVES)
    with pytest.raises(TypeError, match="the drives must be floating-point, got int32"):
        evolve(Springs(jnp.ones(8)), jnp.ones((5, 8), int))


@pytest.mark.parametrize(("system", "float32", "float64"), [(saturating, 1e-5, 1e-11), (pendulums, 2e-3, 1e-3)])
def test_check_gradient_finds_the_errors_of_every_leaf(system, float32, float64):
    errors = check_gradient(system(), DRIVES)
    names = {field for field in vars(system())} | {"drives"}
    assert set(errors) == names
    for error in errors.values():
        assert 0 < error.rhel <= float32
        assert 0 < error.rhel_float64 <= float64
        assert 0 < error.finite_differences <= 1e-6


def test_check_gradient_sees_a_wrong_gradient():
    """A contrast that is right in value but detached from one parameter gives that parameter a wrong gradient."""

    class Detached(Springs):
        def potential_contrast(self, q, dq, drive):
            stopped = eqx.tree_at(lambda h: h.k, self, jax.lax.stop_gradient(self.k))
            return stopped.potential(q + dq, drive) - stopped.potential(q - dq, drive)

    errors = check_gradient(Detached(jnp.ones(8)), DRIVES)
    assert errors["k"].rhel_float64 == 1
    assert errors["drives"].rhel_float64 < 1e-6
    assert errors["k"].finite_differences < 1e-6


def test_agreement():
    assert agreement([3.0, 4.0], [3.0, 4.0]) == (1, 1, 0)
    assert agreement([0.0], [0.0]) == (1, 1, 0)
    assert agreement([0.0, 0.0], [3.0, 4.0]) == (0, 0, 1)
    assert agreement([1.0], [0.0]) == (0, np.inf, np.inf)
    assert agreement([6.0, 8.0], [3.0, 4.0]) == pytest.approx((1, 2, 1))
    assert agreement([-4.0, 3.0], [3.0, 4.0]) == pytest.approx((0, 1, 2**0.5))
    assert np.isnan(agreement([np.nan, 1.0], [3.0, 4.0]).relative_error)
    assert agreement([np.inf, 1.0], [3.0, 4.0]).relative_error == np.inf
    assert np.isnan(agreement([np.inf, 1.0], [3.0, 4.0]).cosine)
    assert list(agreement_by_leaf({"a": [1.0], "b": [2.0]}, {"a": [1.0], "b": [1.0]})) == ["['a'][0]", "['b'][0]"]
    with pytest.raises(ValueError, match="shorter"):
        agreement_by_leaf([1.0, 2.0], [1.0])


@pytest.mark.parametrize("system", [linear, saturating, pendulums])
def test_echo_retraces_the_free_pass(system):
    assert 0 < retrace_error(BareSystem(system()), DRIVES) < 1e-4
    with jax.enable_x64(True):
        drives = DRIVES.astype(jnp.float64)
        wide = jax.tree.map(lambda x: x.astype(jnp.float64), system())
        assert 0 < retrace_error(BareSystem(wide), drives) < 1e-12
    assert retrace_error(BareSystem(linear()), 0 * DRIVES) == 0


def test_retrace_errors_of_a_model():
    model, state = create_model(
        "NonlinHRU", 8, 3, 6, 2, 5, classification=True, dropout_rate=0.0, key=jax.random.PRNGKey(0)
    )
    x = jnp.stack([DRIVES, 2 * DRIVES, 3 * DRIVES])
    errors = retrace_errors(model, state, x)
    assert errors.shape == (3, 2)
    assert np.all((errors > 0) & (errors < 1e-4))


def test_an_echo_that_misses_is_warned_of():
    model, state = create_model(
        "NonlinHRU", 8, 3, 6, 2, 5, classification=True, dropout_rate=0.0, step_init=0.9, key=jax.random.PRNGKey(0)
    )
    x = jnp.tile(jnp.stack([DRIVES]), (1, 50, 1))
    with pytest.warns(
        RetraceWarning, match=r"the echo of unit \d misses its initial state by .* make the step smaller"
    ):
        assert np.any(retrace_errors(model, state, x) > 1e-3)


def test_a_float64_unit_takes_the_constrained_parameters_of_the_float32_one(x64):
    def narrow(tree):
        return jax.tree.map(lambda x: x.astype(jnp.float32) if eqx.is_inexact_array(x) else x, tree)

    unit = narrow(NonlinHRULayer(3, 5, key=jax.random.PRNGKey(0)))
    wide, rounding = to_float64(unit), rounding_of_constraints(unit)
    same = with_same_numbers(wide, rounding)
    exact = jax.tree.map(lambda x: x.astype(jnp.float64), unit.hamiltonian())
    shifted = jax.tree.map(jnp.add, wide.hamiltonian(), rounding[0])
    for found, own, wanted in zip(*map(jax.tree.leaves, (shifted, wide.hamiltonian(), exact)), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-15)
        np.testing.assert_allclose(own, wanted, rtol=1e-6)
    assert np.any(wide.hamiltonian().alpha != exact.alpha)

    # Its outputs are those of the shifted system, and its gradient has the leaves of the unit.
    inputs = jax.random.normal(jax.random.PRNGKey(1), (50, 3))
    expected = wide.learning_algorithm(eqx.tree_at(lambda s: s.hamiltonian, wide.system(), shifted), inputs)
    np.testing.assert_array_equal(same(inputs), expected)
    assert np.any(same(inputs) != wide(inputs))
    gradient = eqx.filter_grad(lambda unit: jnp.sum(with_same_numbers(unit, rounding)(inputs)))(wide)
    assert set(agreement_by_leaf(gradient, gradient)) == set(agreement_by_leaf(unit, unit))
    assert all(np.any(leaf != 0) for leaf in jax.tree.leaves(gradient))

    # One rounding further off, every constrained parameter is.
    moved = jax.tree.map(jnp.add, wide.hamiltonian(), rounding_of_constraints(unit, key=jax.random.PRNGKey(2))[0])
    for found, wanted in zip(*map(jax.tree.leaves, (moved, exact)), strict=True):
        np.testing.assert_allclose(np.abs(found - wanted), 2.0**-24 * np.abs(wanted), rtol=1e-6)


def test_one_rounding_moves_every_number_up_or_down(x64):
    tree = {"a": jnp.linspace(-1.0, 1.0, 101), "n": jnp.arange(3), "name": "b"}
    moved = one_rounding(tree, key=jax.random.PRNGKey(0))
    change = moved["a"] - tree["a"]
    np.testing.assert_allclose(np.abs(change), 2.0**-24 * np.abs(tree["a"]), rtol=1e-6)
    assert 30 < np.sum(change > 0) < 70
    assert moved["n"] is tree["n"]
    assert moved["name"] == "b"
