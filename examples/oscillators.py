"""The toy of the paper's Fig. 2: six oscillators, each tied to a wall and to every other by springs.

    H = sum_i p_i^2 / (2 m_i) + sum_i k_i q_i^2 / 2 + sum_{i<j} k_ij (q_j - q_i)^2 / 2 + u(t) q_1
    L = ∫ (q_4 - y(t))^2 / 2 dt

The input u is the recording of a van der Pol oscillator. The target y is the recording of oscillator 4 in a system with
the same masses and other springs.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from typing_extensions import override

from models.physics.continuous import Integrator, Problem
from models.rhel.hamiltonian import AbstractHamiltonian

OSCILLATORS, INPUT, OUTPUT = 6, 0, 3
PAIRS = np.triu_indices(OSCILLATORS, 1)
DURATION = 20.0
NAMES = {
    "position": [f"q_{i + 1}" for i in range(OSCILLATORS)],
    "momentum": [f"p_{i + 1}" for i in range(OSCILLATORS)],
    "mass": [f"m_{i + 1}" for i in range(OSCILLATORS)],
    "spring": [f"k_{i + 1}" for i in range(OSCILLATORS)],
    "coupling": [f"k_{i + 1}{j + 1}" for i, j in zip(*PAIRS, strict=True)],
}


class Oscillators(AbstractHamiltonian):
    """The energies of the toy. The anharmonic variant adds quartic springs: stiffening * sum_i q_i^4 / 4."""

    mass: Float[Array, " osc"]
    spring: Float[Array, " osc"]
    coupling: Float[Array, " pairs"]
    stiffening: float = eqx.field(default=0.0, static=True)

    @override
    def kinetic(self, p):
        return jnp.sum(p**2 / (2 * self.mass))

    @override
    def potential(self, q, drive):
        # The drive is (u, 0, .., 0). The force on oscillator 1 is -u; in the units of models/ it is +v.
        first, second = PAIRS
        stretch = q[second] - q[first]
        springs = jnp.sum(self.spring * q**2) + jnp.sum(self.coupling * stretch**2)
        return 0.5 * springs + 0.25 * self.stiffening * jnp.sum(q**4) + q @ drive


def springs_of(oscillators: Oscillators) -> tuple[Array, Array]:
    """The trained parameters."""
    return oscillators.spring, oscillators.coupling


def parameters_of(oscillators: Oscillators) -> dict[str, Array]:
    """{group: elements}."""
    return {"mass": oscillators.mass, "spring": oscillators.spring, "coupling": oscillators.coupling}


def make_problem(seed: int, integrator: Integrator) -> tuple[Problem, Oscillators]:
    """The untrained system with its input and target, and the system from which the target was recorded."""
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
