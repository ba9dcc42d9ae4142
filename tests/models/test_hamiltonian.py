from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from systems import linear, pendulums, plain_saturating, relative_error, saturating

from models.LinHRU import LinearOscillators
from models.NonlinHRU import log_cosh, saturation, saturation_contrast
from models.rhel.echo import MeanAndHalfDifference, MeanAndTangent
from models.rhel.hamiltonian import flow, leapfrog

SYSTEMS = [linear, saturating, pendulums]


def random_state(size, seed=1):
    q_key, p_key = jax.random.split(jax.random.PRNGKey(seed))
    return jax.random.normal(q_key, (size,)), jax.random.normal(p_key, (size,))


def one_step(hamiltonian, state, drive):
    return leapfrog(hamiltonian.velocity, hamiltonian.force, state, drive)[0]


@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize("dt", [1e-3, 0.1, 0.5])
def test_flow_returns_after_a_momentum_flip(x64, system, dt):
    hamiltonian = system(dt=dt)
    start = random_state(8)
    drives = jax.random.normal(jax.random.PRNGKey(2), (100, 8))
    (q, p), _ = flow(hamiltonian, start, drives)
    (q, p), _ = flow(hamiltonian, (q, -p), drives[::-1])
    np.testing.assert_allclose(q, start[0], atol=1e-12)
    np.testing.assert_allclose(-p, start[1], atol=1e-12)


@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize("dt", [0.1, 0.5])
def test_step_is_symplectic(x64, system, dt):
    hamiltonian, size = system(dt=dt), 8
    drive = jax.random.normal(jax.random.PRNGKey(2), (size,))

    def step(s):
        return jnp.concatenate(one_step(hamiltonian, (s[:size], s[size:]), drive))

    jacobian = jax.jacobian(step)(jnp.concatenate(random_state(size)))
    omega = np.block([[np.zeros((size, size)), np.eye(size)], [-np.eye(size), np.zeros((size, size))]])
    np.testing.assert_allclose(jacobian.T @ omega @ jacobian, omega, atol=1e-13)


@pytest.mark.parametrize("system", SYSTEMS)
def test_leapfrog_is_of_second_order(x64, system):
    def end(steps):
        drives = jnp.ones((steps, 8))
        (q, p), _ = flow(system(dt=2.0 / steps), random_state(8), drives)
        return jnp.concatenate([q, p])

    reference = end(100_000)
    steps = np.array([20, 40, 80, 160])
    errors = [np.linalg.norm(end(int(n)) - reference) for n in steps]
    slope = np.polyfit(np.log(1 / steps), np.log(errors), 1)[0]
    assert 1.9 <= slope <= 2.1


@pytest.mark.parametrize("system", SYSTEMS)
def test_energy_stays_bounded_over_1e5_steps(x64, system):
    hamiltonian, dt, drive = system(dt=0.1), 0.1, jnp.full(8, 0.5)

    def energy(state):
        return (hamiltonian.kinetic(state[1]) + hamiltonian.potential(state[0], drive)) / dt

    @jax.jit
    def energies(state):
        def step(state, _):
            state = one_step(hamiltonian, state, drive)
            return state, energy(state)

        return jax.lax.scan(step, state, length=100_000)[1]

    start = random_state(8)
    drift = energies(start) - energy(start)
    scale = abs(hamiltonian.kinetic(start[1])) / dt
    assert np.max(np.abs(drift)) < 0.1 * scale
    # It oscillates, and does not grow: the last tenth is no worse than the first.
    assert np.max(np.abs(drift[-10_000:])) < 1.5 * np.max(np.abs(drift[:10_000]))


def test_harmonic_oscillator_follows_the_analytic_solution(x64):
    # Leapfrog turns a phase of w' = 2 arcsin(w dt / 2) a step, exactly.
    A, dt, steps = 0.7, 0.3, 500
    hamiltonian = LinearOscillators(A=jnp.array([A]), step=jnp.array([dt]))
    _, positions = flow(hamiltonian, (jnp.ones(1), jnp.zeros(1)), jnp.zeros((steps, 1)))
    turn = 2 * np.arcsin(np.sqrt(A) * dt / 2)
    np.testing.assert_allclose(positions[:, 0], np.cos(turn * np.arange(1, steps + 1)), atol=1e-12)


def test_flow_follows_a_plain_loop(x64):
    """Kick at the half step: the recurrences of the two units, written out in numpy."""
    drives = np.asarray(jax.random.normal(jax.random.PRNGKey(2), (50, 8)))
    lin, non = linear(), saturating(dt=0.3)
    slopes = [
        (lin, lambda q, v: lin.A * q - v),
        (non, lambda q, v: non.alpha * q + np.tanh(non.W_diag * q + v + non.b)),
    ]
    for hamiltonian, slope in slopes:
        q, p, expected = np.zeros(8), np.zeros(8), []
        for drive in drives:
            q = q + 0.5 * hamiltonian.step * p
            p = p - hamiltonian.step * slope(q, drive)
            q = q + 0.5 * hamiltonian.step * p
            expected.append(q)
        _, positions = flow(hamiltonian, (jnp.zeros(8), jnp.zeros(8)), jnp.asarray(drives))
        np.testing.assert_allclose(positions, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("system", [linear, saturating])
def test_closed_contrasts_are_the_difference_of_two_energies(x64, system):
    hamiltonian = system()
    (q, dq), drive = random_state(8), jax.random.normal(jax.random.PRNGKey(3), (8,))
    pairs = [
        (hamiltonian.kinetic_contrast, hamiltonian.kinetic, ()),
        (hamiltonian.potential_contrast, hamiltonian.potential, (drive,)),
    ]
    for contrast, energy, rest in pairs:
        value = contrast(q, dq, *rest)
        assert relative_error(value, energy(q + dq, *rest) - energy(q - dq, *rest)) < 1e-12
    # ... and so for the parameters and the drive, through which the gradient is read.
    closed = jax.grad(lambda h, v: h.potential_contrast(q, dq, v), (0, 1))(hamiltonian, drive)
    plain = jax.grad(lambda h, v: h.potential(q + dq, v) - h.potential(q - dq, v), (0, 1))(hamiltonian, drive)
    for a, b in zip(jax.tree.leaves(closed), jax.tree.leaves(plain), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)


def test_closed_contrast_keeps_its_digits_where_the_plain_difference_has_none():
    """In its value, and in its slope by W near rest, from which terms 1e3 times larger cancel."""
    (q, dq), drive = random_state(8), jnp.ones(8)
    hamiltonians = saturating(), plain_saturating()

    def contrast_and_slope(hamiltonian, q, dq, drive):
        slope = jax.grad(lambda h: h.potential_contrast(1e-3 * q, 1e-6 * dq, drive))(hamiltonian).W_diag
        return hamiltonian.potential_contrast(q, 1e-6 * dq, drive), slope

    closed, plain = (contrast_and_slope(hamiltonian, q, dq, drive) for hamiltonian in hamiltonians)
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda x: x.astype(jnp.float64), (hamiltonians[1], q, dq, drive))
        exact = contrast_and_slope(*wide)
    for of_closed, of_plain, reference in zip(closed, plain, exact, strict=True):
        assert relative_error(of_closed, reference) < 1e-5
        assert relative_error(of_plain, reference) > 1e-3


def test_saturation_contrast_and_its_slopes_in_saturation(x64):
    x = jnp.array([0.0, 0.3, -5.0, 20.0, 100.0, 1e4])
    y = jnp.array([1e-8, 0.02, 0.04, 0.5, 0.999, 1.0, -3.0, 20.0, 100.0])
    x, y = (grid.ravel() for grid in jnp.meshgrid(x, y))
    W, q = jnp.full_like(x, 0.5), jnp.full_like(x, 0.3)

    def plain(W, q, dq, c):
        return saturation(W, q + dq, c) - saturation(W, q - dq, c)

    def slope(at, function, *arguments):
        return jax.grad(lambda *x: jnp.sum(function(*x)), at)(*arguments)

    arguments = W, q, y / W, x - W * q
    for function in (lambda f, *x: f(*x), *(partial(slope, at) for at in range(4))):
        value, reference = function(saturation_contrast, *arguments), function(plain, *arguments)
        np.testing.assert_array_less(np.abs(value - reference), 1e-6 * np.abs(reference) + 4e-15 * (1 + np.abs(x)))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_log_cosh(x64, dtype):
    x = jnp.asarray([-1e4, -100.0, -1.0, -1e-6, 0.0, 1e-6, 1.0, 100.0, 1e4], dtype)
    exact = np.abs(x) + np.log1p(np.exp(-2 * np.abs(np.asarray(x, np.float64)))) - np.log(2)
    eps = jnp.finfo(dtype).eps
    assert log_cosh(x).dtype == dtype
    np.testing.assert_allclose(log_cosh(x), exact, rtol=4 * eps, atol=4 * eps)
    np.testing.assert_allclose(jax.vmap(jax.grad(log_cosh))(x), np.tanh(np.asarray(x, np.float64)), rtol=4 * eps)
    assert np.all(np.isfinite(jax.vmap(jax.grad(jax.grad(log_cosh)))(x)))


@pytest.mark.parametrize(("kind", "number"), [(MeanAndTangent, 1), (MeanAndHalfDifference, 2)])
def test_a_step_of_the_echo_pair_takes_few_tanh(kind, number):
    """Force and readout share the tanh of the half step, the most expensive operation of the unit."""

    def step(hamiltonian, q, dq, drive):
        pair, trace = kind(hamiltonian), ((q, dq), (q, dq), (q, dq))
        readout = jax.grad(lambda h, v: pair.contrast(h, v, trace), (0, 1))(hamiltonian, drive)
        return pair.force((q, dq), drive), readout

    program = jax.jit(step).lower(saturating(), *random_state(8), jnp.ones(8)).compile().as_text()
    assert program.count(" tanh(") == number
