import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from systems import Springs, linear, pendulums, saturating

from models import check, create_model
from models.check import (
    InadmissibleHamiltonian,
    RetraceWarning,
    WrongGradient,
    agreement,
    agreement_by_leaf,
    check_gradient,
    one_rounding,
    retrace_error,
    retrace_errors,
    rounding_of_constraints,
    to_float64,
    with_same_numbers,
)
from models.NonlinHRU import NonlinHRULayer
from models.rhel import BareSystem

DRIVES = jax.random.normal(jax.random.PRNGKey(3), (60, 8))
LONG = jax.random.normal(jax.random.PRNGKey(3), (120, 8))


class Detached(Springs):
    """A contrast that is right in value, but detached from a parameter, gives it a wrong gradient."""

    def potential_contrast(self, q, dq, drive):
        return 0.2 * jnp.sum(dq * (jax.lax.stop_gradient(self.k) * q - drive))


class Stopped(Springs):
    """Reverse mode itself is not the slope of the loss."""

    def potential(self, q, drive):
        return Springs.potential(self, q, drive) + 0.05 * jnp.sum(jax.lax.stop_gradient(self.k) * q**2)


@jax.custom_jvp
def square(x):
    return x**2


square.defjvp(lambda primals, tangents: (square(*primals), 2.5 * primals[0] * tangents[0]))


class Lying(Springs):
    """A parameter with a derivative rule that is wrong."""

    def potential(self, q, drive):
        return Springs.potential(self, q, drive) + 0.05 * jnp.sum(square(self.k) * q**2)


class Round(Springs):
    """The parameter `angle` has a gradient of zero, up to rounding; `unused` has none."""

    angle: jax.Array
    unused: jax.Array

    def potential(self, q, drive):
        one = jnp.cos(self.angle) ** 2 + jnp.sin(self.angle) ** 2
        return one * Springs.potential(self, q, drive)


@pytest.mark.parametrize(("system", "float32", "float64"), [(saturating, 1e-5, 1e-11), (pendulums, 1e-5, 1e-11)])
def test_check_gradient_finds_the_errors_of_every_leaf(system, float32, float64):
    errors = check_gradient(system(), DRIVES)
    names = {field for field in vars(system())} | {"drives"}
    assert set(errors) == names
    for error in errors.values():
        assert 0 < error.rhel <= float32
        assert 0 < error.rhel_float64 <= float64
        assert 0 < error.finite_differences <= 1e-6


@pytest.mark.parametrize(
    ("kind", "epsilon", "number", "message"),
    [
        (Detached, 1e-4, "rhel_float64", "the gradient of Detached.potential_contrast by Detached.k is"),
        (Stopped, None, "finite_differences", r"with Stopped.k as its"),
        (Lying, None, "finite_differences", r"with Lying.k as its"),
    ],
)
def test_a_wrong_gradient_is_refused_or_returned(monkeypatch, kind, epsilon, number, message):
    hamiltonian = kind(jnp.ones(8))
    with pytest.raises(InadmissibleHamiltonian, match=message):
        check_gradient(hamiltonian, DRIVES)
    # Without the check of the Hamiltonian the errors of the gradient tell.
    monkeypatch.setattr(check, "check_hamiltonian", lambda *_, **__: None)
    with pytest.raises(WrongGradient, match=rf"{number}\) above .*, k "):
        check_gradient(hamiltonian, DRIVES, epsilon=epsilon)
    errors = check_gradient(hamiltonian, DRIVES, epsilon=epsilon, strict=False)
    assert getattr(errors["k"], number) > 0.1
    assert errors["drives"].rhel_float64 < 1e-6


@pytest.mark.parametrize(
    ("system", "how", "number", "message"),
    [
        (
            pendulums(),
            {"epsilon": 3.0},
            "rhel_float64",
            r"\(rhel_float64\) above 0.01, .*: .* nudge with a smaller eps",
        ),
        (saturating(dt=1.6), {"drives": 3 * LONG}, "rhel", r"\(rhel\) above 0.01, .*: in this precision rounding is"),
    ],
)
def test_numbers_that_say_no_are_an_error(system, how, number, message):
    how = {"drives": DRIVES, **how}
    with pytest.raises(WrongGradient, match=f"the gradient of .* has an error {message}") as caught:
        check_gradient(system, **how)
    assert max(getattr(error, number) for error in caught.value.errors.values()) > 1e-2


def test_a_gradient_of_rounding_alone_is_no_error():
    """Of one drive for all oscillators."""
    errors = check_gradient(Round(jnp.ones(8), jnp.asarray(0.3), jnp.asarray(1.0)), DRIVES[:, 0], n_osc=8)
    assert errors["unused"] == (0, 0, 0)
    assert 0 < errors["angle"].rhel_float64 < 1e-2
    # How the gradient of the drives rounds depends on the compiler. In float64 it may not differ at all.
    assert 0 < errors["drives"].rhel < 1e-5
    assert errors["drives"].rhel_float64 < 1e-12


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
