"""Continuous time: Theorem 3.1 at every instant, its order, and the gradient by other means."""

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models import evolve
from models.LinHRU import LinearOscillators
from models.physics.continuous import AdjointMethod, Discretised, Echo, Integrator, Problem, free_pass, total_loss
from models.rhel import RHEL
from tests.systems import (
    assert_close,
    assert_directional_derivatives,
    leaf_errors,
    linear,
    pendulums,
    relative_error,
)

DURATION, SIZE = 4.0, 3
TIMES = np.linspace(0, DURATION, 101)
REST = (np.zeros(SIZE), np.zeros(SIZE))
INTEGRATOR = Integrator(1e-12)

run = eqx.filter_jit(free_pass)
go_back = eqx.filter_jit(lambda method, free, integrator=INTEGRATOR: method(free, integrator))


def drive(t):
    return jnp.sin(jnp.linspace(1, 2, SIZE) * t)


def loss(q, t):
    """Of every position, not quadratic, and dependent on time."""
    return 0.5 * (q[-1] - jnp.cos(2 * t)) ** 2 + 0.1 * jnp.sum(q**4)


def problem_of(hamiltonian):
    """From a start that is not rest."""
    start = (jnp.linspace(-0.3, 0.5, SIZE), jnp.linspace(0.4, -0.2, SIZE))
    return Problem(hamiltonian, drive, loss, start, DURATION)


@eqx.filter_jit
def in_time(way):
    """(time, ..) for the two halves of the adjoint state and each parameter's density."""
    return jax.vmap(lambda t: (way.adjoint(t), way.density(t)))(TIMES)


def worst(values, reference):
    """Over all functions of time: the largest difference at any instant, over the largest value of the reference."""

    def errors(x, y):
        return np.max(np.max(np.abs(x - y), axis=0) / np.max(np.abs(y), axis=0))

    return max(jax.tree.leaves(jax.tree.map(errors, values, reference)))


@pytest.fixture(scope="module")
def swinging():
    """Coupled pendulums on their way, and what the adjoint method finds."""
    with jax.enable_x64(True):
        free = run(problem_of(pendulums(SIZE, dt=1.0)), INTEGRATOR)
        return free, go_back(AdjointMethod(), free)


@pytest.mark.parametrize("recorded", [True, False])
def test_the_echoes_differ_by_the_adjoint_state_at_every_instant(x64, swinging, recorded):
    free, adjoint = swinging
    reference = in_time(adjoint)
    errors = {
        epsilon: worst(in_time(go_back(Echo(epsilon, recorded), free)), reference) for epsilon in (1e-4, 1e-2, 1e-1)
    }
    assert errors[1e-4] < 1e-6
    assert np.log10(errors[1e-1] / errors[1e-2]) == pytest.approx(2, abs=0.02)


def test_a_quadratic_energy_leaves_no_term_in_epsilon(x64):
    free = run(problem_of(linear(SIZE, dt=1.0)), INTEGRATOR)
    assert worst(in_time(go_back(Echo(10.0), free)), in_time(go_back(AdjointMethod(), free))) < 1e-8


def test_the_echoes_retrace_the_free_pass(x64, swinging):
    free, _ = swinging
    way = go_back(Echo(1e-5), free)
    q, p = jax.vmap(way.carried)(TIMES)
    positions, momenta = jax.vmap(free.state)(TIMES)
    assert relative_error(q.mean(axis=1), positions) < 1e-8
    assert relative_error(p.mean(axis=1), -momenta) < 1e-8


def test_what_has_been_accumulated_is_the_integral_of_the_density(x64, swinging):
    free, _ = swinging
    way = go_back(Echo(1e-4), free)
    _, density = in_time(way)
    half = len(TIMES) // 2
    simpson = np.ones(half + 1)
    simpson[1:-1:2], simpson[2:-1:2] = 4, 2
    weights = simpson * (TIMES[1] - TIMES[0]) / 3
    integral = jax.tree.map(lambda x: np.tensordot(weights, x[half:], 1), density)
    assert_close(way.accumulated(TIMES[half]), integral, 1e-5)
    assert_close(way.accumulated(0.0), way.gradient(), 1e-8)
    assert worst(way.accumulated(DURATION), way.gradient()) == 1


@pytest.mark.parametrize("name", ["RecursiveCheckpointAdjoint", "BacksolveAdjoint"])
def test_the_integral_is_the_gradient_of_diffrax(x64, swinging, name):
    free, adjoint = swinging
    problem, back = free.problem, {}
    if name == "BacksolveAdjoint":
        controller = diffrax.PIDController(rtol=INTEGRATOR.tolerance, atol=INTEGRATOR.tolerance)
        back = {"solver": INTEGRATOR.solver, "stepsize_controller": controller}
    method = getattr(diffrax, name)(**back)

    @eqx.filter_jit
    @eqx.filter_grad
    def gradient(hamiltonian_and_start):
        hamiltonian, start = hamiltonian_and_start
        there = Problem(hamiltonian, problem.drive, problem.loss, start, problem.duration)
        return total_loss(there, INTEGRATOR, method)

    by_parameter, by_start = gradient((problem.hamiltonian, problem.start))
    way = go_back(Echo(1e-4), free)
    assert_close(way.gradient(), by_parameter, 1e-7)
    assert_close(way.adjoint(0.0), by_start, 1e-7)
    assert_close(adjoint.gradient(), by_parameter, 1e-8)


def test_the_integral_is_the_slope_of_the_loss(x64, swinging):
    free, _ = swinging
    gradient = go_back(Echo(1e-4), free).gradient()
    assert_directional_derivatives(
        lambda hamiltonian: run(free.problem.at(hamiltonian), INTEGRATOR).loss(),
        free.problem.hamiltonian,
        gradient,
        tolerance=1e-6,
        step=1e-4,
    )


def test_the_discrete_echo_tends_to_the_continuous_gradient_and_is_exact_at_every_step(x64):
    hamiltonian = pendulums(SIZE, dt=1.0)
    rest = (jnp.zeros(SIZE), jnp.zeros(SIZE))
    free = run(Problem(hamiltonian, drive, loss, rest, DURATION), INTEGRATOR)
    continuous = go_back(AdjointMethod(), free).gradient()

    @eqx.filter_jit
    @eqx.filter_grad
    def gradient(hamiltonian, dt, ends, algorithm):
        weights = jnp.full(ends.shape, dt).at[-1].set(0.5 * dt)
        drives = jax.vmap(drive)(ends - 0.5 * dt)
        positions = evolve(Discretised(hamiltonian, dt), drives, learning_algorithm=algorithm)
        return weights @ jax.vmap(loss)(positions, ends)

    errors = []
    for steps in (100, 200):
        dt = jnp.asarray(DURATION / steps)
        ends = dt * jnp.arange(1, steps + 1)
        echo, backpropagation = (gradient(hamiltonian, dt, ends, which) for which in (RHEL(1e-4), "BPTT"))
        assert_close(echo, backpropagation, 1e-7)
        errors.append(leaf_errors(echo, continuous))
    for path, error in errors[0].items():
        assert np.log2(error / errors[1][path]) == pytest.approx(2, abs=0.05)


def test_single_precision_has_its_digits(swinging):
    double, adjoint = swinging
    hamiltonian = jax.tree.map(lambda x: jnp.asarray(np.asarray(x), jnp.float32), double.problem.hamiltonian)
    integrator = Integrator(1e-6)
    gradient = go_back(Echo(0.03), run(problem_of(hamiltonian), integrator), integrator).gradient()
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(gradient))
    assert_close(gradient, adjoint.gradient(), 1e-3)


class Uneven(LinearOscillators):
    def kinetic(self, p):
        return super().kinetic(p) + 0.1 * jnp.sum(p**3)


class Rubbing(LinearOscillators):
    def velocity(self, p):
        return 0.9 * self.step * p


@pytest.mark.parametrize(
    ("kind", "error", "message"),
    [(Uneven, RuntimeError, "Uneven.kinetic is not even in p"), (Rubbing, ValueError, "Rubbing overrides velocity")],
)
def test_a_system_whose_echo_does_not_return_is_refused(x64, kind, error, message):
    hamiltonian = kind(A=jnp.ones(SIZE), step=jnp.ones(SIZE))
    free = run(problem_of(hamiltonian), INTEGRATOR)
    with pytest.raises(error, match=message):
        go_back(Echo(1e-4), free)


@pytest.mark.parametrize("value", [0.0, -1.0, np.nan, np.inf])
@pytest.mark.parametrize("make", [Echo, Integrator, lambda value: Problem(linear(SIZE), drive, loss, REST, value)])
def test_sizes_must_be_positive(make, value):
    with pytest.raises(ValueError, match=r"(epsilon|tolerance|duration) must be positive and finite, got"):
        make(value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"start": jnp.zeros(SIZE)}, r"start must be two arrays \(q, p\) of one shape, got ArrayImpl"),
        ({"start": (jnp.zeros(SIZE), jnp.zeros(2))}, r"start must be two arrays .*, got \[\(\d,\), \(2,\)\]"),
        ({"drive": jnp.zeros(SIZE)}, r"a problem needs drive\(t\) -> v, .*not callable"),
        ({"drive": lambda t: jnp.zeros(2)}, r"at positions of shape \(3,\), the shape of the start: .* incompatible"),
        ({"loss": lambda q, t: q}, r"loss\(q, t\) -> a scalar, .*scalar-output functions"),
    ],
)
@pytest.mark.usefixtures("unchecked_types")
def test_parts_of_a_problem_that_do_not_fit_are_named(change, message):
    parts = {"hamiltonian": linear(SIZE), "drive": drive, "loss": loss, "start": REST, "duration": 1.0}
    with pytest.raises(ValueError, match=message):
        Problem(**{**parts, **change})


def test_a_tolerance_below_the_rounding_names_double_precision():
    with pytest.raises(ValueError, match=r"tolerance 1e-11 is below the rounding of float32: compute in float64"):
        free_pass(problem_of(linear(SIZE, dt=1.0)), Integrator())


def test_too_few_steps_are_an_error(x64):
    with pytest.raises(RuntimeError, match=r"maximum number of solver steps"):
        free_pass(problem_of(linear(SIZE, dt=1.0)), Integrator(max_steps=4))
