"""Two published simulations of imperfect machines beside ours. python examples/published_machines.py

1. Drift: the parameters differ between the two echoes. Published: one cosine of the gradient at each of five strengths.
   Here: the cosine for the units at their initial parameters, all parameters together, the median of 8 seeds (of
   parameters, inputs, loss and drift). The cosine is about 1 / sqrt(1 + (c drift)^2); c is fitted.
2. Friction: a photonic study, in which learning by echoes fails at a loss of about 27 (rate times duration) in 8 of 8
   seeds, and succeeds with a perfect conjugator. Here: the cosine at gamma T = 27, and 8 trainings of the parameters of
   a unit to the motion of another one with the same friction, by echoes and by the exact gradient.
"""

import argparse
import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import jax
import jax.numpy as jnp
import numpy as np
import optax
from check_machine import unit_and_drives

from common.tables import aligned
from models import evolve
from models.check import agreement, to_float64
from models.physics.imperfect import EchoImperfection, ImperfectBPTT, ImperfectRHEL

DRIFTS = np.array([0.0005, 0.001, 0.002, 0.005, 0.01])
PUBLISHED = np.array([0.996, 0.987, 0.943, 0.801, 0.572])
SEEDS, OSCILLATORS, BATCH = 8, 8, 4
FRICTION = 27.0


def problems(unit, steps):
    """Energies, drives (time, batch, osc) and weights of a linear loss of all seeds, stacked."""
    made = []
    for seed in range(SEEDS):
        hamiltonian, drives = unit_and_drives(unit, OSCILLATORS, steps, BATCH, seed)
        random = np.random.default_rng(seed)
        same, free = (random.standard_normal((n, *drives.shape[1:])) for n in (1, steps))
        made.append(
            (
                to_float64(hamiltonian),
                jnp.asarray(drives, float),
                jnp.asarray(same + np.zeros_like(free)),
                jnp.asarray(free),
            )
        )
    return jax.tree.map(lambda *x: jnp.stack(x), *made)


def positions(hamiltonian, drives, algorithm):
    """The positions of a batch (time, batch, osc)."""
    return jax.vmap(partial(evolve, hamiltonian, learning_algorithm=algorithm), 1, 1)(drives)


@jax.jit
def gradients(problem, epsilon, drift, damping):
    """By echoes and exactly, of two losses: a mean over time, and random weights at all steps. First axis: seeds."""

    def of_one(problem, seed):
        hamiltonian, drives, *weights = problem
        friction = EchoImperfection(damping=damping)
        algorithms = (
            ImperfectRHEL(EchoImperfection(drift=drift, damping=damping), epsilon, seed),
            ImperfectBPTT(friction),
        )
        return [
            [jax.grad(lambda x, w=w, a=a: jnp.vdot(w, positions(x, drives, a)))(hamiltonian) for a in algorithms]
            for w in weights
        ]

    return jax.vmap(of_one)(problem, jnp.arange(SEEDS))


def cosines(echo, exact):
    """The cosine of every seed, all arrays together."""
    echo, exact = (np.concatenate([np.reshape(x, (SEEDS, -1)) for x in jax.tree.leaves(y)], 1) for y in (echo, exact))
    return [agreement(*pair).cosine for pair in zip(echo, exact, strict=True)]


def fitted(found):
    """The c whose 1 / sqrt(1 + (c drift)^2) is nearest to the cosines."""
    c = np.geomspace(1, 1e4, 4000)
    return c[np.argmin(np.sum((1 / np.sqrt(1 + np.outer(c, DRIFTS) ** 2) - found) ** 2, axis=1))]


def drift_rows(lengths):
    """The table of cosines against drift."""
    rows = [["unit", "steps", "loss", "ε", *(f"{100 * x:g} %" for x in DRIFTS), "c"]]
    rows.append(["published", "", "", "", *map(str, PUBLISHED), f"{fitted(PUBLISHED):.0f}"])
    for unit in ("LinHRU", "NonlinHRU"):
        for steps in lengths:
            problem = problems(unit, steps)
            for epsilon in (0.1, 1.0):
                found = [gradients(problem, epsilon, x, 0.0) for x in DRIFTS]
                for number, loss in enumerate(("mean", "random")):
                    medians = [np.median(cosines(*x[number])) for x in found]
                    about = [unit, str(steps), loss, f"{epsilon:g}"]
                    rows.append([*about, *(f"{x:.3f}" for x in medians), f"{fitted(medians):.0f}"])
    return rows


@partial(jax.jit, static_argnames=("exact", "iterations"))
def losses(problem, damping, exact, iterations):
    """The loss of trainings, before and after, (2, seeds). Parameters are those of the unit times exp(trained)."""
    algorithm = ImperfectBPTT if exact else partial(ImperfectRHEL, epsilon=0.1)
    algorithm, optimiser = algorithm(EchoImperfection(damping=damping)), optax.adam(0.02)

    def of_one(problem, key):
        hamiltonian, drives = problem[:2]
        leaves, structure = jax.tree.flatten(hamiltonian)

        def with_factors(logs):
            return jax.tree.unflatten(structure, [x * jnp.exp(y) for x, y in zip(leaves, logs, strict=True)])

        off = [0.3 * jax.random.normal(jax.random.fold_in(key, n), x.shape) for n, x in enumerate(leaves)]
        target = positions(with_factors(off), drives, ImperfectBPTT(EchoImperfection(damping=damping)))

        def loss(logs):
            return jnp.mean((positions(with_factors(logs), drives, algorithm) - target) ** 2) / jnp.mean(target**2)

        def step(carry, _):
            logs, state = carry
            value, gradient = jax.value_and_grad(loss)(logs)
            updates, state = optimiser.update(gradient, state)
            return (optax.apply_updates(logs, updates), state), value

        start = [jnp.zeros_like(x) for x in leaves]
        values = jax.lax.scan(step, (start, optimiser.init(start)), length=iterations)[1]
        return jnp.stack([values[0], jnp.mean(values[-10:])])

    return jax.vmap(of_one, out_axes=1)(problem, jax.random.split(jax.random.PRNGKey(0), SEEDS))


def friction_rows(steps, iterations):
    """The table of friction."""
    columns = "cosine, loss mean", "cosine, loss random"
    rows = [["unit", "γT", "array", *columns, *(f"loss falls to, {x} (seeds below 0.1)" for x in ("echoes", "exact"))]]
    for unit in ("LinHRU", "NonlinHRU"):
        problem = problems(unit, steps)
        for friction in (0.0, FRICTION):
            by_loss = gradients(problem, 0.1, 0.0, friction / steps)
            trained = []
            for exact in (False, True):
                before, after = np.asarray(losses(problem, friction / steps, exact, iterations))
                ratio = np.nan_to_num(after / before, nan=np.inf)
                trained.append(f"{np.median(ratio):.2g} ({np.sum(ratio < 0.1)} of {SEEDS})")
            for name in vars(problem[0]):
                cells = [f"{np.median(cosines(*(getattr(x, name) for x in by_one))):.3f}" for by_one in by_loss]
                rows.append([unit, f"{friction:g}", name, *cells, *trained])
    return rows


def main(arguments=None):
    """Prints both tables; returns their rows."""
    parser = argparse.ArgumentParser(description="Published simulations of imperfect machines, beside ours.")
    parser.add_argument("--quick", action="store_true", help="the short form: fewer of everything")
    options = parser.parse_args(arguments)
    with jax.enable_x64(True):
        drift = drift_rows((20,) if options.quick else (100, 300))
        print(aligned(drift), flush=True)
        friction = friction_rows(*((20, 5) if options.quick else (100, 200)))
        print("", aligned(friction), sep="\n")
    return drift, friction


if __name__ == "__main__":
    main()
