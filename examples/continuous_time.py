"""RHEL in continuous time: python examples/continuous_time.py [--quick] [--animate]

The toy of the paper's Fig. 2, six oscillators, each tied to a wall and to every other:

    H = sum_i p_i^2 / (2 m_i) + sum_i k_i q_i^2 / 2 + sum_{i<j} k_ij (q_j - q_i)^2 / 2 + u(t) q_1
    L = ∫ (q_4 - y(t))^2 / 2 dt

The input u is the recording of a van der Pol oscillator, the target y that of oscillator 4 in a system with the same
masses and other springs. Shown, in float64: the difference of the echoes is the adjoint state, at every instant
(Theorem 3.1); its integral is the gradient that diffrax's own adjoints find; the discrete echo of `models.rhel` tends
to it as dt^2; and the springs are learnt by it. Writes seven figures and results.json, with --animate an animation.
"""

import argparse
import dataclasses
import os
import platform
import sys
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float
from matplotlib.animation import FuncAnimation, PillowWriter
from matplotlib.figure import Figure

from common.files import write_json
from models import evolve
from models.physics.continuous import AdjointMethod, Discretised, Echo, Integrator, Problem, free_pass, total_loss
from models.rhel.hamiltonian import AbstractHamiltonian
from runs import compilation_cache

OSCILLATORS, INPUT, OUTPUT = 6, 0, 3
PAIRS = np.triu_indices(OSCILLATORS, 1)
DURATION = 20.0
ANHARMONIC = 0.3  # stiffening of the anharmonic variant: at q = 1, the quartic spring is a third of the linear one
EPSILON = 0.01
EPSILONS = np.logspace(-6, 0, 13)
VISIBLE_EPSILON = 0.2  # far larger than is needed, so that the echoes part visibly
PLUS, MINUS = "tab:red", "tab:blue"


class Oscillators(AbstractHamiltonian):
    """The energies of the toy, and, for its anharmonic variant, quartic springs: stiffening * sum_i q_i^4 / 4."""

    mass: Float[Array, " osc"]
    spring: Float[Array, " osc"]
    coupling: Float[Array, " pairs"]
    stiffening: float = eqx.field(default=0.0, static=True)

    def kinetic(self, p):
        """T."""
        return jnp.sum(p**2 / (2 * self.mass))

    def potential(self, q, drive):
        """V; the drive is (u, 0, .., 0), and the force on oscillator 1 is -u (it is +v in the units of models/)."""
        first, second = PAIRS
        stretch = q[second] - q[first]
        springs = jnp.sum(self.spring * q**2) + jnp.sum(self.coupling * stretch**2)
        return 0.5 * springs + 0.25 * self.stiffening * jnp.sum(q**4) + q @ drive


NAMES = {
    "position": [f"q_{i + 1}" for i in range(OSCILLATORS)],
    "momentum": [f"p_{i + 1}" for i in range(OSCILLATORS)],
    "mass": [f"m_{i + 1}" for i in range(OSCILLATORS)],
    "spring": [f"k_{i + 1}" for i in range(OSCILLATORS)],
    "coupling": [f"k_{i + 1}{j + 1}" for i, j in zip(*PAIRS, strict=True)],
}

# Compiled once for all systems, methods and sizes of the nudge.
run = eqx.filter_jit(free_pass)
go_back = eqx.filter_jit(lambda method, free, integrator: method(free, integrator))


def make_problem(seed: int, integrator: Integrator) -> tuple[Problem, Oscillators]:
    """The untrained system with its input and target, and the system that the target was recorded from."""
    source_key, mass_key, spring_key, coupling_key, *other_keys = jax.random.split(jax.random.PRNGKey(seed), 6)
    teacher = Oscillators(
        mass=jax.random.uniform(mass_key, (OSCILLATORS,), minval=0.5, maxval=2),
        spring=jax.random.uniform(spring_key, (OSCILLATORS,), minval=0.5, maxval=2),
        coupling=jax.random.uniform(coupling_key, (len(PAIRS[0]),), minval=0.1, maxval=0.5),
    )
    others = [
        x * jnp.exp(0.4 * jax.random.normal(key, x.shape))
        for x, key in zip(springs_of(teacher), other_keys, strict=True)
    ]
    untrained = eqx.tree_at(springs_of, teacher, others)
    rest = (jnp.zeros(OSCILLATORS), jnp.zeros(OSCILLATORS))

    def record(t, states, _):
        (x, y), state = states
        source = jnp.stack([y, (1 - x**2) * y - x])  # van der Pol
        return source, (teacher.velocity(state[1]), teacher.force(state[0], force_on_input(x)))

    def force_on_input(u):
        return jnp.zeros(OSCILLATORS).at[INPUT].set(u)

    recording = eqx.filter_jit(integrator.trajectory)(record, (jax.random.normal(source_key, (2,)), rest), DURATION)

    def drive(t):
        return force_on_input(recording.evaluate(t)[0][0])

    def loss(q, t):
        _, (target, _) = recording.evaluate(t)
        return 0.5 * (q[OUTPUT] - target[OUTPUT]) ** 2

    return Problem(untrained, drive, loss, rest, DURATION), teacher


def springs_of(oscillators: Oscillators) -> tuple[Array, Array]:
    """What is learnt."""
    return oscillators.spring, oscillators.coupling


# What is measured


@eqx.filter_jit
def in_time(way, times):
    """The adjoint state and the gradient's density, {group: (time, elements)}."""
    position, momentum = jax.vmap(way.adjoint)(times)
    return {"position": position, "momentum": momentum} | parameters_of(jax.vmap(way.density)(times))


def parameters_of(oscillators):
    """{group: elements}."""
    return {"mass": oscillators.mass, "spring": oscillators.spring, "coupling": oscillators.coupling}


def relative_errors(values, reference):
    """{group: of every element}: the largest difference over time, over the largest value of the reference."""
    return {
        group: np.max(np.abs(values[group] - reference[group]), axis=0) / np.max(np.abs(reference[group]), axis=0)
        for group in NAMES
        if group in reference
    }


def worst(errors: dict) -> float:
    """The largest of all."""
    return max(float(np.max(error)) for error in errors.values())


def diffrax_adjoints(integrator):
    """The second goes back with the same solver at the same tolerance."""
    controller = diffrax.PIDController(rtol=integrator.tolerance, atol=integrator.tolerance)
    back = diffrax.BacksolveAdjoint(
        solver=integrator.solver, stepsize_controller=controller, max_steps=integrator.max_steps
    )
    return diffrax.RecursiveCheckpointAdjoint(), back


def gradients_by_other_means(problem, integrator, adjoints):
    """{method: gradient}: by diffrax's adjoints and by differences of fourth order, element by element."""
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
    """The worst error of any function of time, for each epsilon."""
    free = run(problem, integrator)
    reference = in_time(go_back(AdjointMethod(), free, integrator), times)
    return [
        worst(relative_errors(in_time(go_back(Echo(epsilon, recorded), free, integrator), times), reference))
        for epsilon in EPSILONS
    ]


def order(sizes, errors):
    """The slope of a straight line through the errors, on logarithmic axes."""
    return float(np.polyfit(np.log(sizes), np.log(errors), 1)[0])


@eqx.filter_jit
def discrete_gradient(problem, steps, algorithm):
    """The gradient of the trapezoidal rule of the loss, through the leapfrog from rest.

    The first term of the rule is missing: the start depends on nothing.
    """
    dt = problem.duration / steps
    ends = dt * jnp.arange(1, steps + 1)
    weights = jnp.full(steps, dt).at[-1].set(0.5 * dt)
    drives = jax.vmap(problem.drive)(ends - 0.5 * dt)

    def loss(hamiltonian):
        positions = evolve(Discretised(hamiltonian, dt), drives, learning_algorithm=algorithm)
        return weights @ jax.vmap(problem.loss)(positions, ends)

    return eqx.filter_grad(loss)(problem.hamiltonian)


def convergence(problem, gradient, ladder):
    """For each number of steps: dt, the error of the discrete gradient, and that of its echo against BPTT."""
    rows = []
    for steps in ladder:
        echo, backpropagation = (discrete_gradient(problem, steps, algorithm) for algorithm in ("RHEL", "BPTT"))
        rows.append(
            {
                "dt": DURATION / steps,
                "to_continuous": agreement(echo, gradient),
                "to_bptt": agreement(echo, backpropagation),
            }
        )
    return rows


def agreement(value, reference):
    """Norm of the difference of two gradients, over that of the reference."""
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


# Figures


def ring(displacement=0):
    """Places on a circle, oscillator 1 on the left; a displacement moves outwards. (2, osc)."""
    angle = np.pi - 2 * np.pi * np.arange(OSCILLATORS) / OSCILLATORS
    return (1 + displacement) * np.stack([np.cos(angle), np.sin(angle)])


def draw_springs(axes, oscillators):
    """Every oscillator on its ring, springs as lines as wide as they are stiff; returns the lines and the circles."""
    x, y = ring()
    axes.set(xlim=(-2.1, 2.1), ylim=(-1.8, 1.8), aspect="equal")
    axes.axis("off")
    lines = [
        axes.plot(x[[i, j]], y[[i, j]], color="0.6", lw=6 * k, zorder=1)[0]
        for i, j, k in zip(*PAIRS, oscillators.coupling, strict=True)
    ]
    walls = 1.5 * ring()
    for i, k in enumerate(oscillators.spring):
        lines += axes.plot([x[i], walls[0, i]], [y[i], walls[1, i]], color="tab:brown", lw=2 * k, zorder=1)
        axes.plot(*walls[:, i], marker="s", color="black", ms=5)
    colors = ["white"] * OSCILLATORS
    colors[INPUT], colors[OUTPUT] = "tab:green", "tab:orange"
    sizes = 500 * np.asarray(oscillators.mass)
    return lines, axes.scatter(x, y, s=sizes, c=colors, edgecolors="black", zorder=2)


def draw_system(oscillators):
    """Masses, springs, input and output."""
    figure = Figure(figsize=(6, 5), layout="constrained")
    axes = figure.subplots()
    draw_springs(axes, oscillators)
    for i, (x, y) in enumerate(ring().T):
        axes.text(x, y, f"$m_{i + 1}$", ha="center", va="center", zorder=3)
    axes.annotate("input u(t)", (-1.1, 0.08), (-2.05, 0.55), color="tab:green", arrowprops={"arrowstyle": "->"})
    axes.annotate("output, target y(t)", (1.12, 0.1), (1.3, 0.55), color="tab:orange", arrowprops={"arrowstyle": "->"})
    axes.set_title("areas: masses; widths: springs to the wall (brown), couplings (grey)", fontsize="small")
    return figure


def draw_trajectories(problem, integrator, times):
    """Every position of the free pass with the echoes laid over it."""
    free = run(problem, integrator)
    way = go_back(Echo(VISIBLE_EPSILON), free, integrator)
    positions = jax.vmap(lambda t: free.state(t)[0])(times)
    echoes, _ = jax.vmap(way.carried)(times)
    figure = Figure(figsize=(10, 6), layout="constrained")
    figure.suptitle("the echoes run from right to left, nudged by the error of oscillator 4")
    for i, axes in enumerate(figure.subplots(3, 2, sharex=True).ravel()):
        axes.plot(times, positions[:, i], color="black", lw=4, alpha=0.25, label="free pass")
        for sign, color in enumerate((PLUS, MINUS)):
            axes.plot(times, echoes[:, sign, i], color=color, lw=1, label=f"echo, {'+-'[sign]}ε")
        axes.set_ylabel(f"$q_{i + 1}$")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    for axes in figure.axes[-2:]:
        axes.set_xlabel("time t of the free pass")
    return figure


def draw_adjoint(times, echo, adjoint):
    """The difference of the echoes over the adjoint state, twelve functions of time."""
    figure = Figure(figsize=(10, 10), layout="constrained")
    panels = figure.subplots(OSCILLATORS, 2, sharex=True)
    for column, group in zip(panels.T, ("position", "momentum"), strict=True):
        for i, axes in enumerate(column):
            axes.plot(times, adjoint[group][:, i], color="black", lw=4, alpha=0.25, label="adjoint state λ(t)")
            axes.plot(times, echo[group][:, i], color="tab:purple", lw=1, label="echoes, Δ(t)")
            axes.set_ylabel(rf"$\lambda$ of ${NAMES[group][i]}$")
        column[-1].set_xlabel("time t of the free pass")
    panels[0, 0].legend(fontsize="small", ncols=2)
    return figure


def draw_gradient(times, way, adjoint, density, adjoint_density, gradient):
    """The density of the gradient, and its integral while the echo runs, towards diffrax's own gradient."""
    totals, adjoint_totals = (parameters_of(jax.vmap(x.accumulated)(times)) for x in (way, adjoint))
    figure = Figure(figsize=(11, 6), layout="constrained")
    figure.suptitle("time runs from right to left; coloured: echoes, black dashes: adjoint method")
    groups = ("mass", "spring", "coupling")
    panels = figure.subplots(2, 3, sharex=True)
    for column, group in zip(panels.T, groups, strict=True):
        for axes, found, reference in zip(column, (density, totals), (adjoint_density, adjoint_totals), strict=True):
            axes.plot(times, found[group], lw=1.5)
            axes.plot(times, reference[group], color="black", lw=0.7, ls=(0, (4, 6)))
        values = np.asarray(getattr(gradient, group))
        column[1].plot(np.zeros_like(values), values, "k.", clip_on=False, label="RecursiveCheckpointAdjoint")
        column[0].set_title(f"{group} ({NAMES[group][0]} .. {NAMES[group][-1]})", fontsize="medium")
        column[1].set_xlabel("time t of the free pass")
    panels[0, 0].set_ylabel("Δ of θ, per unit of time")
    panels[1, 0].set_ylabel("accumulated from T to t")
    panels[1, 0].legend(fontsize="small")
    return figure


def draw_law(sizes, curves, label):
    """Errors over a size, on logarithmic axes, with a line of slope 2 below the first curve."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for name, errors in curves.items():
        axes.loglog(sizes, errors, marker=".", label=name)
    sizes, errors = np.asarray(sizes), np.asarray(next(iter(curves.values())))
    middle = len(sizes) // 2
    axes.loglog(sizes, 0.3 * errors[middle] * (sizes / sizes[middle]) ** 2, "k:", lw=1, label="slope 2")
    axes.set(xlabel=label, ylabel="relative error")
    axes.legend(fontsize="small")
    return figure


def draw_training(losses, untrained, trained, teacher, integrator, times):
    """The loss, and the output before and after over the target."""
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 2))
    left.semilogy(losses)
    left.set(xlabel="step", ylabel="loss")
    shown = ((teacher, "target y"), (untrained.hamiltonian, "untrained"), (trained.hamiltonian, "trained by echoes"))
    styles = ({"color": "black", "lw": 4, "alpha": 0.25}, {"color": "tab:orange", "lw": 1}, {"color": "tab:purple"})
    for (oscillators, name), style in zip(shown, styles, strict=True):
        free = run(untrained.at(oscillators), integrator)
        right.plot(times, jax.vmap(lambda t, free=free: free.state(t)[0][OUTPUT])(times), label=name, **style)
    right.set(xlabel="time t", ylabel="$q_4$")
    right.legend(fontsize="small", ncols=3)
    return figure


def animate(problem, integrator, frames):
    """The system on its way out and the + echo on its way back, with the gradient that the echo gathers."""
    free = run(problem, integrator)
    way = go_back(Echo(VISIBLE_EPSILON), free, integrator)
    times = np.linspace(0, DURATION, frames)
    positions = np.asarray(jax.vmap(lambda t: free.state(t)[0])(times))
    echoes = np.asarray(jax.vmap(way.carried)(times)[0])
    gathered = np.asarray(jax.vmap(way.accumulated)(times).spring)
    scale = 0.3 / np.max(np.abs(positions))

    figure = Figure(figsize=(9, 4), layout="constrained")
    panels = figure.subplot_mosaic([["ring", "trace"], ["ring", "gradient"]], height_ratios=(3, 1))
    left, right, bars = panels.values()
    lines, circles = draw_springs(left, problem.hamiltonian)
    (out,) = right.plot([], [], color="black", lw=4, alpha=0.25, label="free pass, $q_4$")
    back = [right.plot([], [], color=c, lw=1, label=f"echo, {s}ε")[0] for c, s in ((PLUS, "+"), (MINUS, "-"))]
    size = 1.1 * np.max(np.abs(echoes[:, :, OUTPUT]))
    right.set(xlim=(0, DURATION), ylim=(-size, size), xlabel="time t of the free pass", ylabel="$q_4$")
    right.legend(fontsize="small", loc="upper left")
    gradient = bars.bar(NAMES["spring"], np.zeros(OSCILLATORS), color="tab:purple")
    bars.set(ylim=(1.1 * min(gathered.min(), 0), 1.1 * max(gathered.max(), 0)), ylabel="dL/d$k_i$ so far")

    def show(frame):
        returning = frame >= frames
        now = 2 * frames - 1 - frame if returning else frame
        displaced = ring(scale * (echoes[now, 0] if returning else positions[now]))
        circles.set_offsets(displaced.T)
        ends = [displaced[:, [i, j]] for i, j in zip(*PAIRS, strict=True)]
        ends += [np.stack([displaced[:, i], 1.5 * ring()[:, i]], axis=1) for i in range(OSCILLATORS)]
        for line, (x, y) in zip(lines, ends, strict=True):
            line.set_data(x, y)
        until = frames if returning else now + 1
        out.set_data(times[:until], positions[:until, OUTPUT])
        for sign, line in enumerate(back):
            line.set_data(*((times[now:], echoes[now:, sign, OUTPUT]) if returning else ([], [])))
        for bar, height in zip(gradient, gathered[now] if returning else np.zeros(OSCILLATORS), strict=True):
            bar.set_height(height)
        left.set_title(f"{'echo' if returning else 'free pass'}, t = {times[now]:.1f}")

    return FuncAnimation(figure, show, frames=2 * frames, interval=50)


# The command


@contextmanager
def replacing(path):
    """Gives the path of a temporary file, of the same suffix, that takes the place of `path` after the block."""
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def print_table(instants, integrals):
    """The worst error of every group, at every instant and of the integral."""
    print(f"{'largest relative error':24}{'at any instant':>16}" + "".join(f"{name:>28}" for name in integrals))
    for group, errors in instants.items():
        cells = [f"{np.max(found[group]):28.1e}" if group in found else "" for found in integrals.values()]
        print(f"{group:24}{np.max(errors):16.1e}" + "".join(cells))


def measure(options, integrator):
    """Everything but the animation: the results and the figures by name."""
    problem, teacher = make_problem(options.seed, integrator)
    times = jnp.linspace(0, DURATION, 201 if options.quick else 1001)
    free = run(problem, integrator)
    adjoint, way = (go_back(method, free, integrator) for method in (AdjointMethod(), Echo(EPSILON)))
    reference, found = in_time(adjoint, times), in_time(way, times)
    instants = relative_errors(found, reference)
    others = gradients_by_other_means(problem, integrator, diffrax_adjoints(integrator)[: 1 if options.quick else 2])
    gradient = way.gradient()
    integrals = {}
    for name, other in {"adjoint method": adjoint.gradient(), **others}.items():
        one_instant = [
            {group: np.asarray(x)[None] for group, x in parameters_of(tree).items()} for tree in (gradient, other)
        ]
        integrals[name] = relative_errors(*one_instant)
    print(f"loss {free.loss():.3f}; relative errors of the echoes with epsilon {EPSILON}, float64")
    print_table(instants, integrals)

    anharmonic = dataclasses.replace(problem.hamiltonian, stiffening=ANHARMONIC)
    curves = {
        "toy, error at the echo's own position": sweep(problem, integrator, times, recorded=False),
        "toy, recorded error": sweep(problem, integrator, times, recorded=True),
    }
    if not options.quick:
        curves["quartic springs, recorded error"] = sweep(problem.at(anharmonic), integrator, times, recorded=True)
    print("\nlargest error at any instant, at the best epsilon, and its order in epsilon (0: does not depend on it)")
    straight = (EPSILONS > 0.9e-3) & (EPSILONS < 1.1e-2)
    orders = {}
    for name, errors in curves.items():
        orders[name] = order(EPSILONS[straight], np.asarray(errors)[straight])
        print(f"{name:40}{min(errors):10.1e}{orders[name]:8.2f}")

    rows = convergence(problem, gradient, [200 * 2**n for n in range(2 if options.quick else 5)])
    dt, to_continuous, to_bptt = ([row[key] for row in rows] for key in rows[0])
    print(f"discrete gradient: order {order(dt, to_continuous):.2f} in dt; to BPTT {max(to_bptt):.1e} at any dt")

    losses, trained = learn(problem, integrator, 20 if options.quick else options.num_steps, options.learning_rate)
    print(f"training: loss {losses[0]:.3g} to {losses[-1]:.3g}, {losses[0] / losses[-1]:.0f} times smaller")

    figures = {
        "system": draw_system(problem.hamiltonian),
        "trajectories": draw_trajectories(problem, integrator, times),
        "adjoint": draw_adjoint(times, found, reference),
        "gradient": draw_gradient(times, way, adjoint, found, reference, others["RecursiveCheckpointAdjoint"]),
        "epsilon": draw_law(EPSILONS, curves, "ε"),
        "convergence": draw_law(dt, {"to the continuous gradient": to_continuous, "RHEL to BPTT": to_bptt}, "dt"),
        "training": draw_training(losses, problem, trained, teacher, integrator, times),
    }
    results = {
        "loss": float(free.loss()),
        "instants": named(instants),
        "gradients": {name: named(errors) for name, errors in integrals.items()},
        "epsilon": {"values": EPSILONS.tolist(), "errors": curves, "orders": orders},
        "discrete": {"order": order(dt, to_continuous), "rows": rows},
        "training": {"losses": losses},
        "parameters": named(parameters_of(problem.hamiltonian)),
    }
    return results, figures, problem


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
    parser.add_argument("--animate", action="store_true", help="write oscillators.gif as well")
    compilation_cache.add_flag(parser)
    options = parser.parse_args(arguments)
    if options.num_steps < 1:
        parser.error(f"--num_steps must be at least 1, got {options.num_steps}")
    try:
        integrator = Integrator(options.tolerance)
    except ValueError as error:
        parser.error(f"--{error}")
    options.output_dir.mkdir(parents=True, exist_ok=True)
    with compilation_cache.enabled(options.compilation_cache), jax.enable_x64(True):
        results, figures, problem = measure(options, integrator)
        for name, figure in figures.items():
            with replacing(options.output_dir / f"{name}.png") as path:
                figure.savefig(path, dpi=110)
        if options.animate:
            with replacing(options.output_dir / "oscillators.gif") as path:
                animate(problem, integrator, 6 if options.quick else 60).save(path, PillowWriter(fps=20))
    settings = {key: str(value) if isinstance(value, Path) else value for key, value in vars(options).items()}
    versions = {name: version(name) for name in ("jax", "equinox", "diffrax", "optax", "numpy")}
    results = {"options": settings, "versions": {"python": platform.python_version(), **versions}} | results
    with replacing(options.output_dir / "results.json") as path:
        write_json(path, results)
    print(f"written: {options.output_dir}")
    return results


if __name__ == "__main__":
    main()
