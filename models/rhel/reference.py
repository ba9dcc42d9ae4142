"""Recurrent Hamiltonian Echo Learning as the paper states it, for one sequence. g_t is dL/dq_{t+1}, and a is small.

free pass     s_{t+1} = F(s_t, v_t), F the leapfrog; then the flip (q, p) -> (q, -p)
two echoes    F over v_L, .., v_1; when an echo passes q_{t+1}, its momentum gets the nudge +a g_t, or -a g_t
energy        E = sum_t  kinetic(p before the kick) / 2 + potential(q_half, v_t) + kinetic(p after the kick) / 2
gradient      dL/dx = -(dE/dx at the +a echo - dE/dx at the -a echo) / (2 a)
"""

import equinox as eqx
import jax
import jax.numpy as jnp

from .hamiltonian import flow, leapfrog


def echo(hamiltonian, state, drives, nudges, disturb=lambda state, _: state, disturbances=None):
    """The last state; the positions q_{t+1} on the way, and the trace (p before, q at, p after each kick)."""

    def step(state, at_step):
        drive, nudge, disturbance = at_step
        q, p_before = state[0], state[1] + nudge
        (q_next, p_after), q_half = leapfrog(hamiltonian.velocity, hamiltonian.force, (q, p_before), drive)
        return disturb((q_next, p_after), disturbance), (q, (p_before, q_half, p_after))

    return jax.lax.scan(step, state, (drives, nudges, disturbances), reverse=True)


def energy(hamiltonian, drives, trace):
    """E of an echo."""
    p_before, q_half, p_after = trace
    kinetic, potential = jax.vmap(hamiltonian.kinetic), jax.vmap(hamiltonian.potential)
    return jnp.sum(0.5 * kinetic(p_before) + potential(q_half, drives) + 0.5 * kinetic(p_after))


def gradient(hamiltonian, drives, positions_grad, a):
    """The gradient with respect to the Hamiltonian and the drives, from dL/dq_1, .., dL/dq_L and the nudge size a."""
    rest = jnp.zeros_like(drives[0])
    (q, p), _ = flow(hamiltonian, (rest, rest), drives)
    plus, minus = (echo(hamiltonian, (q, -p), drives, size * positions_grad)[1][1] for size in (a, -a))
    return eqx.filter_grad(lambda x: -(energy(*x, plus) - energy(*x, minus)) / (2 * a))((hamiltonian, drives))
