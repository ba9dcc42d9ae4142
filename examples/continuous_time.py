"""RHEL in continuous time: python examples/continuous_time.py [--quick]

The system is the paper's toy of six oscillators (oscillators.py). The command shows, in float64:

- The difference of the echoes is the adjoint state, at every instant (Theorem 3.1).
- Its integral is the gradient that diffrax's own adjoints compute.
- The discrete echo of `models.rhel` tends to it as dt^2.
- Echoes can train the springs.

It writes five figures and results.json.
"""

import argparse
import dataclasses
import platform
import sys
from importlib.metadata import version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from continuous_figures import draw_adjoint, draw_gradient, draw_law, draw_training
from jax.flatten_util import ravel_pytree
from oscillators import DURATION, NAMES, OUTPUT, make_problem, parameters_of, springs_of

from common.files import write_json
from common.style import save
from models import evolve
from models.physics.continuous import AdjointMethod, Discretised, Echo, Integrator, free_pass, total_loss

ANHARMONIC = 0.3  # stiffening of the anharmonic variant: at q = 1, the quartic spring is a third of the linear one
EPSILON = 0.01
EPSILONS = np.logspace(-6, 0, 13)

# Compiled once for all systems, methods and sizes of the nudge.
run = eqx.filter_jit(free_pass)
go_back = eqx.filter_jit(lambda method, free, integrator: method(free, integrator))


@eqx.filter_jit
def in_time(way, times):
    """The adjoint state and the density of the gradient, {group: (time, elements)}."""
    position, momentum = jax.vmap(way.adjoint)(times)
    return {"position": position, "momentum": momentum} | parameters_of(jax.vmap(way.density)(times))


def relative_errors(values, reference):
    """{group: one number per element}: the largest difference over time, divided by the largest reference value."""
    return {
        group: np.max(np.abs(values[group] - reference[group]), axis=0) / np.max(np.abs(reference[group]), axis=0)
        for group in NAMES
        if group in reference
    }


def diffrax_adjoints(integrator):
    """Two of diffrax's adjoints. The second solves backwards with the same solver at the same tolerance."""
    controller = diffrax.PIDController(rtol=integrator.tolerance, atol=integrator.tolerance)
    back = diffrax.BacksolveAdjoint(
        solver=integrator.solver, stepsize_controller=controller, max_steps=integrator.max_steps
    )
    return diffrax.RecursiveCheckpointAdjoint(), back


def gradients_by_other_means(problem, integrator, adjoints):
    """{method: gradient}: by diffrax's adjoints, and by differences of fourth order, element by element."""
    gradients = {}
    for adjoint in adjoints:
        gradient = eqx.filter_jit(
            eqx.filter_grad(lambda x, adjoint=adjoint: total_loss(problem.at(x), integrator, adjoint))
        )
        gradients[type(adjoint).__name__] = gradient(problem.hamiltonian)

    flat, unflatten = ravel_pytree(problem.hamiltonian)
    h = 1e-3

    def loss(moved):
        return run(problem.at(unflatten(moved)), integrator).loss()

    slopes = []
    for unit in np.eye(len(flat)):
        once, twice = ((loss(flat + n * h * unit) - loss(flat - n * h * unit)) / (2 * n * h) for n in (1, 2))
        slopes.append((4 * once - twice) / 3)
    gradients["finite differences"] = unflatten(jnp.stack(slopes))
    return gradients


def sweep(problem, integrator, times, recorded):
    """For each epsilon, the largest error of any function of time."""
    free = run(problem, integrator)
    reference = in_time(go_back(AdjointMethod(), free, integrator), times)
    ways = (go_back(Echo(epsilon, recorded), free, integrator) for epsilon in EPSILONS)
    return [max(float(x.max()) for x in relative_errors(in_time(way, times), reference).values()) for way in ways]


def order(sizes, errors):
    """The slope of a straight line through the errors, on logarithmic axes."""
    return float(np.polyfit(np.log(sizes), np.log(errors), 1)[0])


@eqx.filter_jit
def discrete_gradient(problem, steps, algorithm):
    """The gradient of the trapezoidal rule of the loss, through the leapfrog from rest.

    The rule's first term is missing: the start does not depend on the parameters.
    """
    dt = problem.duration / steps
    ends = dt * jnp.arange(1, steps + 1)
    weights = jnp.full(steps, dt).at[-1].set(0.5 * dt)
    drives = jax.vmap(problem.drive)(ends - 0.5 * dt)

    def loss(hamiltonian):
        positions = evolve(Discretised(hamiltonian, jnp.asarray(dt)), drives, learning_algorithm=algorithm)
        return weights @ jax.vmap(problem.loss)(positions, ends)

    return eqx.filter_grad(loss)(problem.hamiltonian)


def convergence(problem, gradient, ladder):
    """The error of the discrete echo for each number of steps, its order in dt, and its error against BPTT."""
    echoes = [discrete_gradient(problem, steps, "RHEL") for steps in ladder]
    dt, errors = [DURATION / steps for steps in ladder], [difference(echo, gradient) for echo in echoes]
    to_bptt = difference(echoes[0], discrete_gradient(problem, ladder[0], "BPTT"))
    return {"order": order(dt, errors), "dt": dt, "errors": errors, "to_bptt": to_bptt}


def difference(value, reference):
    """Norm of the difference of two gradients, divided by the norm of the reference."""
    value, reference = ravel_pytree(value)[0], ravel_pytree(reference)[0]
    return float(jnp.linalg.norm(value - reference) / jnp.linalg.norm(reference))


def learn(problem, integrator, num_steps, learning_rate):
    """Trains the springs, positive as exponentials, by echoes; returns the losses and the trained problem."""
    optimizer = optax.adam(optax.cosine_decay_schedule(learning_rate, num_steps))
    logarithms = jax.tree.map(jnp.log, springs_of(problem.hamiltonian))
    state = optimizer.init(logarithms)

    @jax.jit
    def update(logarithms, state, gradient):
        by_logarithm = jax.tree.map(lambda x, slope: jnp.exp(x) * slope, logarithms, gradient)
        updates, state = optimizer.update(by_logarithm, state)
        return optax.apply_updates(logarithms, updates), state

    losses = []
    for step in range(num_steps + 1):
        problem = problem.at(eqx.tree_at(springs_of, problem.hamiltonian, jax.tree.map(jnp.exp, logarithms)))
        free = run(problem, integrator)
        losses.append(float(free.loss()))
        if step < num_steps:
            gradient = go_back(Echo(EPSILON), free, integrator).gradient()
            logarithms, state = update(logarithms, state, springs_of(gradient))
    return losses, problem


def print_table(instants, integrals):
    """The largest error of every group: at any instant, and of the integral."""
    print(f"{'largest relative error':24}{'at any instant':>16}" + "".join(f"{name:>28}" for name in integrals))
    for group, errors in instants.items():
        cells = [f"{np.max(other[group]):28.1e}" if group in other else "" for other in integrals.values()]
        print(f"{group:24}{np.max(errors):16.1e}" + "".join(cells))


def measure(options, integrator):
    """The results, and the figures by name."""
    problem, teacher = make_problem(options.seed, integrator)
    times = jnp.linspace(0, DURATION, 201 if options.quick else 1001)
    free = run(problem, integrator)
    adjoint, way = (go_back(method, free, integrator) for method in (AdjointMethod(), Echo(EPSILON)))
    reference, echoed = in_time(adjoint, times), in_time(way, times)
    instants = relative_errors(echoed, reference)
    others = gradients_by_other_means(problem, integrator, diffrax_adjoints(integrator)[: 1 if options.quick else 2])
    gradient = way.gradient()
    integrals = {}
    for name, other in {"adjoint method": adjoint.gradient(), **others}.items():
        # As functions of time with one instant.
        pair = [{group: np.asarray(x)[None] for group, x in parameters_of(tree).items()} for tree in (gradient, other)]
        integrals[name] = relative_errors(*pair)
    print(f"loss {free.loss():.3f}; relative errors of the echoes with epsilon {EPSILON}, float64")
    print_table(instants, integrals)

    curves, orders = epsilon_curves(problem, integrator, times, options.quick)
    discrete = convergence(problem, gradient, [200 * 2**n for n in range(2 if options.quick else 5)])
    print(f"discrete gradient: order {discrete['order']:.2f} in dt; error against BPTT {discrete['to_bptt']:.1e}")

    losses, trained = learn(problem, integrator, 20 if options.quick else options.num_steps, options.learning_rate)
    print(f"training: loss {losses[0]:.3g} to {losses[-1]:.3g}, {losses[0] / losses[-1]:.0f} times smaller")
    frees = (run(problem.at(x), integrator) for x in (teacher, problem.hamiltonian, trained.hamiltonian))
    outputs = [jax.vmap(lambda t, free=free: free.state(t)[0][OUTPUT])(times) for free in frees]

    densities_and_totals = [
        (density, parameters_of(jax.vmap(x.accumulated)(times))) for x, density in ((way, echoed), (adjoint, reference))
    ]
    figures = {
        "adjoint": draw_adjoint(times, echoed, reference),
        "gradient": draw_gradient(times, *densities_and_totals, parameters_of(others["RecursiveCheckpointAdjoint"])),
        "epsilon": draw_law(EPSILONS, curves, "ε"),
        "convergence": draw_law(discrete["dt"], {"discrete echo": discrete["errors"]}, "dt"),
        "training": draw_training(losses, times, outputs),
    }
    results = {
        "loss": float(free.loss()),
        "instants": named(instants),
        "gradients": {name: named(errors) for name, errors in integrals.items()},
        "epsilon": {"values": EPSILONS.tolist(), "errors": curves, "orders": orders},
        "discrete": discrete,
        "training": {"losses": losses},
        "parameters": named(parameters_of(problem.hamiltonian)),
    }
    return results, figures


def epsilon_curves(problem, integrator, times, quick):
    """{system: the largest error for each epsilon} and {system: its order in epsilon}; prints both."""
    curves = {
        "toy, error at the echo's own position": sweep(problem, integrator, times, recorded=False),
        "toy, recorded error": sweep(problem, integrator, times, recorded=True),
    }
    if not quick:
        anharmonic = problem.at(dataclasses.replace(problem.hamiltonian, stiffening=ANHARMONIC))
        curves["quartic springs, recorded error"] = sweep(anharmonic, integrator, times, recorded=True)
    straight = (EPSILONS > 0.9e-3) & (EPSILONS < 1.1e-2)
    orders = {name: order(EPSILONS[straight], np.asarray(errors)[straight]) for name, errors in curves.items()}
    print("\nlargest error at any instant, at the best epsilon, and its order in epsilon (0: independent of epsilon)")
    for name, errors in curves.items():
        print(f"{name:40}{min(errors):10.1e}{orders[name]:8.2f}")
    return curves, orders


def named(groups):
    """{group: {element: number}}."""
    return {group: dict(zip(NAMES[group], np.asarray(x).tolist(), strict=True)) for group, x in groups.items()}


def main(arguments=None):
    """Measures, prints, writes the figures and results.json; returns the results."""
    parser = argparse.ArgumentParser(description="RHEL on six coupled oscillators, in continuous time.")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/continuous_time"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tolerance", type=float, default=1e-11, help="of every solve, absolute and relative")
    parser.add_argument("--num_steps", type=int, default=300, help="of the training")
    parser.add_argument("--learning_rate", type=float, default=0.05)
    parser.add_argument("--quick", action="store_true", help="the short form: fewer of everything")
    options = parser.parse_args(arguments)
    if options.num_steps < 1:
        parser.error(f"--num_steps must be at least 1, got {options.num_steps}")
    try:
        integrator = Integrator(options.tolerance)
    except ValueError as error:
        parser.error(f"--{error}")
    options.output_dir.mkdir(parents=True, exist_ok=True)
    with jax.enable_x64(True):
        results, figures = measure(options, integrator)
        for name, figure in figures.items():
            save(figure, options.output_dir / f"{name}.png")
    settings = {key: str(value) if isinstance(value, Path) else value for key, value in vars(options).items()}
    versions = {name: version(name) for name in ("jax", "equinox", "diffrax", "optax", "numpy")}
    results = {"options": settings, "versions": {"python": platform.python_version(), **versions}} | results
    write_json(options.output_dir / "results.json", results)
    print(f"written: {options.output_dir}")
    return results


if __name__ == "__main__":
    main()
