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
    of them: the energies are quadratic in q and p, and linear in the drive. Such a system can run by parallel scan.
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
    hamiltonian: AbstractHamiltonian, state: State, drives: Float[Array, "time *in"], unroll: int = 1
) -> tuple[State, Float[Array, "time *osc"]]:
    """Carries a state through a sequence of drives; returns the final state and the position after every step.

    `unroll` steps are one iteration of the loop. It changes only the program.
    """

    def step(state, drive):
        state, _ = leapfrog(hamiltonian.velocity, hamiltonian.force, state, drive)
        return state, state[0]

    return jax.lax.scan(step, state, drives, unroll=unroll)
