import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from systems import (
    assert_close,
    assert_directional_derivatives,
    leaf_errors,
    linear,
    pendulums,
    plain_saturating,
    relative_error,
    saturating,
)

from models import evolve
from models.layer import LinearPorts, init_ports
from models.LinHRU import LinearOscillators
from models.rhel import BPTT, RHEL, make_learning_algorithm
from models.rhel.hamiltonian import flow
from models.rhel.stretches import SEGMENT

SYSTEMS = [linear, saturating, pendulums]


def problem(system, length=300, size=8, seed=3, **options):
    """A Hamiltonian, drives, and the gradient with respect to its positions."""
    drives_key, incoming_key = jax.random.split(jax.random.PRNGKey(seed))
    drives = jax.random.normal(drives_key, (length, size))
    return system(size, **options), drives, jax.random.normal(incoming_key, (length, size))


def loss(hamiltonian_and_drives, incoming, algorithm):
    return jnp.vdot(evolve(*hamiltonian_and_drives, learning_algorithm=algorithm), incoming)


gradient = eqx.filter_jit(eqx.filter_grad(loss))


value_of = eqx.filter_jit(loss)


def gradient_of(system, algorithm, incoming=lambda drawn: drawn, **options):
    hamiltonian, drives, drawn = problem(system, **options)
    return gradient((hamiltonian, drives), incoming(drawn), algorithm)


def compare(system, algorithm, incoming=lambda drawn: drawn, **options):
    return [gradient_of(system, method, incoming, **options) for method in (algorithm, BPTT())]


@pytest.mark.parametrize("system", SYSTEMS)
def test_free_pass_is_bitwise_that_of_bptt(system):
    hamiltonian, drives, _ = problem(system)
    outputs = [
        eqx.filter_jit(evolve)(hamiltonian, drives, learning_algorithm=algorithm) for algorithm in ("RHEL", "BPTT")
    ]
    np.testing.assert_array_equal(*outputs)
    assert np.any(outputs[0] != 0)


@pytest.mark.parametrize(
    ("length", "literal"),
    [(1, False), (SEGMENT, False), (SEGMENT + 1, False), (2, True), (SEGMENT - 1, True), (2 * SEGMENT, True)],
)
def test_linear_gradient_is_exact_at_any_nudge(x64, literal, length):
    # At length 1 nothing has moved at the half step: the gradient of A is zero.
    assert_close(*compare(linear, RHEL(1.0, literal), length=length), 1e-9, floor=1e-3)


# Each epsilon is a program of its own. That plain and closed contrasts agree is a test of `test_rhel_corners`.
@pytest.mark.parametrize(("system", "literal"), [(saturating, False), (plain_saturating, True), (pendulums, False)])
def test_nonlinear_error_falls_as_epsilon_squared(x64, system, literal):
    errors = [leaf_errors(*compare(system, RHEL(epsilon, literal), length=100)) for epsilon in (3e-3, 3e-2)]
    assert len(errors[0]) >= 4
    for path in errors[0]:
        assert 1.9 <= np.log10(errors[1][path] / errors[0][path]) <= 2.1, path
    assert_close(*compare(system, RHEL(1e-5, literal), length=100), 1e-6)


@pytest.mark.parametrize("system", [saturating, pendulums])
def test_the_default_is_exact(x64, system):
    assert_close(*compare(system, RHEL()), 1e-10)


@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize("step", [0, 150, 299])
def test_incoming_gradient_at_one_step_only(x64, system, step):
    def at_one_step(incoming):
        return jnp.zeros_like(incoming).at[step].set(incoming[step])

    value, reference = compare(system, RHEL(), at_one_step)
    assert_close(value, reference, 1e-6, floor=1e-3)
    np.testing.assert_array_equal(value[1][step + 1 :], 0)


@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize("algorithm", [RHEL(1e-4), BPTT()])
def test_gradient_against_finite_differences(x64, system, algorithm):
    hamiltonian, drives, incoming = problem(system, length=60)
    value = gradient((hamiltonian, drives), incoming, algorithm)
    assert_directional_derivatives(lambda x: value_of(x, incoming, BPTT()), (hamiltonian, drives), value, 1e-5)


@pytest.mark.parametrize("system", [linear, saturating, pendulums])
def test_float32_with_default_settings(system):
    hamiltonian, drives, incoming = problem(system)
    value = gradient((hamiltonian, drives), incoming, RHEL())
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda x: x.astype(jnp.float64), ((hamiltonian, drives), incoming))
        reference = gradient(*wide, BPTT())
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(value))
    assert_close(value, reference, 1e-3)


@pytest.mark.parametrize("algorithm", [RHEL(), BPTT()])
def test_float32_at_small_steps(algorithm):
    """No term of the gradient of W is large and cancels: 2e-4 of W_diag if log cosh(W q + c) / W is differentiated."""
    hamiltonian, drives, incoming = problem(saturating, dt=1e-4)
    value = gradient((hamiltonian, drives), incoming, algorithm)
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda x: x.astype(jnp.float64), ((hamiltonian, drives), incoming))
        reference = gradient(*wide, BPTT())
    assert_close(value, reference, 1e-5)


@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize("scale", [1e-12, 1e-6, 1e6, 1e12])
def test_scale_of_the_loss_cancels(system, scale):
    hamiltonian, drives, incoming = problem(system)
    plain, scaled = (gradient((hamiltonian, drives), s * incoming, RHEL()) for s in (1, scale))
    assert_close(jax.tree.map(lambda x: x / scale, scaled), plain, 1e-5)


@pytest.mark.parametrize(("system", "literal"), [*((system, False) for system in SYSTEMS), (saturating, True)])
def test_no_incoming_gradient_gives_exactly_none(system, literal):
    value = gradient_of(system, RHEL(literal=literal), jnp.zeros_like)
    assert all(np.all(leaf == 0) for leaf in jax.tree.leaves(value))


@pytest.mark.parametrize("system", SYSTEMS)
def test_nan_in_one_channel_surfaces(system):
    value = gradient_of(system, RHEL(), lambda incoming: incoming.at[200, 3].set(jnp.nan))
    assert all(np.any(np.isnan(leaf)) for leaf in jax.tree.leaves(value))


def test_rest_without_drives_has_a_gradient(x64):
    """The state is zero throughout, so that nothing sets the scale of the nudges."""
    hamiltonian, drives, incoming = problem(saturating)
    hamiltonian = eqx.tree_at(lambda h: h.b, hamiltonian, jnp.zeros(8))
    value, reference = (gradient((hamiltonian, 0 * drives), incoming, method) for method in (RHEL(), BPTT()))
    assert relative_error(value[1], reference[1]) < 1e-9


def test_the_echo_restarts_from_every_kept_state(x64):
    """Unstable oscillators multiply rounding errors by 1e3 in a segment. Over all steps the factor would be 1e9."""
    step = jnp.full(3, 0.5)
    hamiltonian = LinearOscillators(A=jnp.full(3, 4.003) / step**2, step=step)
    drives, incoming = (jax.random.normal(jax.random.PRNGKey(seed), (3 * SEGMENT, 3)) for seed in (1, 2))
    assert_close(*(gradient((hamiltonian, drives), incoming, method) for method in (RHEL(), BPTT())), 1e-6)


def test_saturation_at_a_large_nudge_stays_finite():
    hamiltonian, drives, incoming = problem(saturating, dt=0.3)
    value = gradient((hamiltonian, 1000 * drives), incoming, RHEL(1.0))
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(value))


def test_nudges_are_relative_to_the_largest_state_not_to_the_last():
    """A pulse of one period leaves the oscillators at rest, long before the sequence ends."""

    # Leapfrog turns by 2 arcsin(w step / 2) a step: 2 pi / 60 of a turn here.
    step = jnp.full(3, 2 * np.sin(np.pi / 60))
    drives = jnp.where(jnp.arange(160)[:, None] < 60, jnp.ones((1, 3)), 0)
    incoming = jax.random.normal(jax.random.PRNGKey(0), (160, 3))
    (q, p), _ = flow(LinearOscillators(A=jnp.ones(3), step=step), (jnp.zeros(3), jnp.zeros(3)), drives)
    assert max(np.max(np.abs(q)), np.max(np.abs(p))) < 1e-3
    literal, default = (
        gradient((LinearOscillators(A=jnp.ones(3), step=step), drives), incoming, algorithm)
        for algorithm in (RHEL(literal=True), RHEL())
    )
    assert_close(literal, default, 1e-3)


def ported(length=300, features=3, size=8):
    """A system with inputs and outputs of its own size, its inputs, and an incoming gradient."""
    keys = jax.random.split(jax.random.PRNGKey(5), 3)
    system = LinearPorts(saturating(size), *init_ports(features, size, key=keys[0]))
    return system, jax.random.normal(keys[1], (length, features)), jax.random.normal(keys[2], (length, features))


def test_ports_get_their_gradients_from_the_echo(x64):
    system, inputs, incoming = ported()
    ported_gradient = eqx.filter_jit(eqx.filter_grad(lambda x, method: jnp.vdot(method(*x), incoming)))
    value, reference = (ported_gradient((system, inputs), method) for method in (RHEL(), BPTT()))
    assert len(jax.tree.leaves(value)) == 8
    assert_close(value, reference, 1e-9)


def test_free_pass_keeps_inputs_and_one_state_a_chunk():
    system, inputs, _ = ported(length=1000, features=3, size=50)
    states = 2 * 50 * -(-1000 // SEGMENT)
    _, pullback = eqx.filter_vjp(lambda *x: RHEL()(*x), system, inputs)
    kept = sum(leaf.size for leaf in jax.tree.leaves(pullback) if eqx.is_array(leaf))
    parameters = sum(leaf.size for leaf in jax.tree.leaves(system))
    assert kept <= 2 * inputs.size + parameters + states
    _, pullback = eqx.filter_vjp(lambda *x: BPTT()(*x), system, inputs)
    assert sum(leaf.size for leaf in jax.tree.leaves(pullback) if eqx.is_array(leaf)) > 1000 * 50


def test_vmap_and_jit_give_the_numbers_of_one_by_one(x64):
    hamiltonian, _, _ = problem(saturating)
    drives = jax.random.normal(jax.random.PRNGKey(7), (2, 3, 150, 8))
    incoming = jax.random.normal(jax.random.PRNGKey(8), drives.shape)
    nested = jax.vmap(jax.vmap(lambda d, g: gradient((hamiltonian, d), g, RHEL())))(drives, incoming)
    for i in range(2):
        for j in range(3):
            alone = gradient((hamiltonian, drives[i, j]), incoming[i, j], RHEL())
            assert_close(jax.tree.map(lambda x, i=i, j=j: x[i, j], nested), alone, 1e-10)

    @eqx.filter_jit
    @eqx.filter_grad
    def shared(hamiltonian):
        return jnp.sum(jax.vmap(jax.vmap(lambda d, g: loss((hamiltonian, d), g, RHEL())))(drives, incoming))

    assert_close(shared(hamiltonian), jax.tree.map(lambda x: jnp.sum(x, (0, 1)), nested[0]), 1e-10)


@pytest.mark.usefixtures("unchecked_types")
def test_bad_arguments_are_named():
    hamiltonian, drives, _ = problem(linear)
    with pytest.raises(ValueError, match="the sequence is empty"):
        evolve(hamiltonian, drives[:0])
    with pytest.raises(ValueError, match=r"unknown learning_algorithm 'rhel'; one of RHEL, BPTT"):
        evolve(hamiltonian, drives, learning_algorithm="rhel")
    with pytest.raises(ValueError, match="epsilon belongs to the learning algorithm"):
        evolve(hamiltonian, drives, learning_algorithm=RHEL(), epsilon=0.1)
    for epsilon in (0, -0.1, float("nan"), float("inf"), "a", True):
        with pytest.raises(ValueError, match=f"epsilon must be a positive number .* got {epsilon!r}"):
            make_learning_algorithm("RHEL", epsilon)
