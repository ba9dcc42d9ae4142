"""Hamiltonian dynamics in discrete time: the energy, the leapfrog, the flow.

The paper's symbols and the names used here (Pourcel & Ernoult 2025, arXiv 2506.05259):

    phi          q, position      state of the unit that its readout sees
    pi           p, momentum      flipped (p -> -p) to turn time around
    H(Phi, u)    kinetic(p) + potential(q, drive), separable, kinetic even in p
    delta        folded in: `kinetic` is dt * T and `potential` is dt * V, so that every oscillator may
                 have a time step of its own and the step is differentiated like any other parameter
    F = B u      drive, what the outside adds to the potential at each step

Axes in shape annotations: "time" steps of a sequence, "osc" oscillators, "in" and "out" features. Everything here acts
on one sequence; batches are made by `jax.vmap`.
"""

from abc import abstractmethod
from collections.abc import Callable
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

State = tuple[PyTree, PyTree]
"""Position and momentum (q, p), arrays of one shape or matching trees of them."""


class AbstractHamiltonian(eqx.Module):
    """A separable energy H(q, p, drive) = kinetic(p) + potential(q, drive), time step folded in.

    A new system is the two methods `kinetic` and `potential`, both returning a scalar; its parameters are the array
    fields of the module. An admissible energy is smooth, and its kinetic part is even in p.

    The two contrasts are the energy of one echo minus the energy of the other, in the coordinates (mean,
    half-difference). Only finite nudges use them. The defaults subtract two evaluations, which is right for every
    system but loses digits when the half-difference is small; a closed form without that subtraction keeps them.

    `velocity` and `force` are derivatives of the energies. Do not override them: RHEL refuses it.

    `linear` says that the oscillators are independent and harmonic, so that a step is one linear map of (q, p) for each
    of them: the energies are quadratic in q and p, and linear in the drive. Such a system can run by associative scan.
    """

    linear: ClassVar[bool] = False

    @abstractmethod
    def kinetic(self, p: Float[Array, "*osc"]) -> Float[Array, ""]:
        """dt * T(p), even in p."""

    @abstractmethod
    def potential(self, q: Float[Array, "*osc"], drive: Float[Array, "*in"]) -> Float[Array, ""]:
        """dt * V(q, drive)."""

    def kinetic_contrast(self, p: Float[Array, "*osc"], dp: Float[Array, "*osc"]) -> Float[Array, ""]:
        """kinetic(p + dp) - kinetic(p - dp)."""
        return self.kinetic(p + dp) - self.kinetic(p - dp)

    def potential_contrast(
        self, q: Float[Array, "*osc"], dq: Float[Array, "*osc"], drive: Float[Array, "*in"]
    ) -> Float[Array, ""]:
        """potential(q + dq, drive) - potential(q - dq, drive)."""
        return self.potential(q + dq, drive) - self.potential(q - dq, drive)

    def velocity(self, p: Float[Array, "*osc"]) -> Float[Array, "*osc"]:
        """Displacement of q in one step at momentum p: dt * dT/dp."""
        return jax.grad(self.kinetic)(p)

    def force(self, q: Float[Array, "*osc"], drive: Float[Array, "*in"]) -> Float[Array, "*osc"]:
        """Change of p in one step at position q: -dt * dV/dq."""
        return jax.tree.map(lambda slope: -slope, jax.grad(self.potential)(q, drive))


def leapfrog(velocity: Callable, force: Callable, state: State, drive: PyTree) -> tuple[State, PyTree]:
    """One drift-kick-drift step; returns the next state and the half-step position at which it was kicked.

        q_half = q + velocity(p) / 2
        p'     = p + force(q_half, drive)
        q'     = q_half + velocity(p') / 2

    Symplectic, of second order, and exactly reversible: from (q', -p') with the same drive it returns to (q, -p).
    """
    q, p = state
    q_half = jax.tree.map(lambda x, v: x + 0.5 * v, q, velocity(p))
    p = jax.tree.map(lambda x, f: x + f, p, force(q_half, drive))
    q = jax.tree.map(lambda x, v: x + 0.5 * v, q_half, velocity(p))
    return (q, p), q_half


def flow(
    hamiltonian: AbstractHamiltonian, state: State, drives: Float[Array, "time *in"], scan: str = "sequential"
) -> tuple[State, Float[Array, "time *osc"]]:
    """Carries a state through a sequence of drives; returns the final state and the position after every step.

    `scan` is "sequential", or, for a linear Hamiltonian, "associative".
    """
    if scan == "associative":
        step_map = linear_step(hamiltonian, state)
        q, p = linear_recurrence(step_map[0], state, tuple(column[None] * drives for column in step_map[1]))
        return (q[-1], p[-1]), q

    def step(state, drive):
        state, _ = leapfrog(hamiltonian.velocity, hamiltonian.force, state, drive)
        return state, state[0]

    return jax.lax.scan(step, state, drives)


def linear_step(hamiltonian: AbstractHamiltonian, like: State) -> tuple[tuple, tuple]:
    """The map ((qq, qp), (pq, pp)), (qv, pv) of one step of a linear Hamiltonian, each of the shape of a position.

    q' = qq q + qp p + qv v and p' = pq q + pp p + pv v, oscillator by oscillator.
    """

    def image(q, p, drive):
        at = [jnp.full_like(like[0], value) for value in (q, p, drive)]
        (q, p), _ = leapfrog(hamiltonian.velocity, hamiltonian.force, (at[0], at[1]), at[2])
        return q, p

    by_q, by_p, by_drive = image(1, 0, 0), image(0, 1, 0), image(0, 0, 1)
    return tuple(zip(by_q, by_p, strict=True)), by_drive


@jax.custom_jvp
def linear_recurrence(step_map: tuple, state: State, forces: State) -> State:
    """States x_1, .., x_L of x_{t+1} = M x_t + f_t, M = `step_map` a 2x2 matrix per oscillator, constant in time.

    An associative scan by doubling. A pass adds to every state M^n times the state n steps before, n = 1, 2, 4, .. So
    log2(L) passes suffice, and M is squared instead of being copied for every step.
    """

    first = _apply(step_map, state)
    x = tuple(force.at[0].add(start) for force, start in zip(forces, first, strict=True))
    length, reach = len(x[0]), 1
    while reach < length:
        carried = _apply(_at_every_step(step_map), tuple(component[:-reach] for component in x))
        x = tuple(component.at[reach:].add(more) for component, more in zip(x, carried, strict=True))
        columns = [_apply(step_map, (step_map[0][i], step_map[1][i])) for i in range(2)]
        step_map = tuple(zip(*columns, strict=True))
        reach *= 2
    return x


def _apply(m, x):
    return m[0][0] * x[0] + m[0][1] * x[1], m[1][0] * x[0] + m[1][1] * x[1]


def _at_every_step(m):
    return jax.tree.map(lambda entry: entry[None], m)


@linear_recurrence.defjvp
def _recurrence_jvp(primals, tangents):
    """The tangent obeys the same recurrence, driven by f_dot + M_dot x. Its transpose keeps x, not the passes."""
    (step_map, state, forces), (step_map_dot, state_dot, forces_dot) = primals, tangents
    x = linear_recurrence(step_map, state, forces)
    before = tuple(jnp.concatenate([start[None], later[:-1]]) for start, later in zip(state, x, strict=True))
    driven = jax.tree.map(jnp.add, forces_dot, _apply(_at_every_step(step_map_dot), before))
    return x, linear_recurrence(step_map, state_dot, driven)
