"""The echo pair in coordinates: the mean m and the half-difference d of the two echoes, m + d and m - d."""

from functools import partial

import equinox as eqx
import jax
from typing_extensions import override

from .hamiltonian import AbstractHamiltonian


class MeanAndHalfDifference(eqx.Module):
    """(m, d): the echoes are m + d and m - d. No digits are lost, however small d is."""

    hamiltonian: AbstractHamiltonian

    def kinetic_contrast(self, hamiltonian, p):
        """Kinetic energy of the plus echo minus kinetic energy of the minus echo."""
        return hamiltonian.kinetic_contrast(*p)

    def potential_contrast(self, hamiltonian, q, drive):
        """Potential energy of the plus echo minus potential energy of the minus echo."""
        return hamiltonian.potential_contrast(*q, drive)

    def velocity(self, p):
        """Mean and half-difference of the velocities of the echoes."""
        d_mean, d_half = jax.grad(partial(self.kinetic_contrast, self.hamiltonian))(p)
        return 0.5 * d_half, 0.5 * d_mean

    def force(self, q, drive):
        """Mean and half-difference of the forces on the echoes."""
        d_mean, d_half = jax.grad(partial(self.potential_contrast, self.hamiltonian))(q, drive)
        return -0.5 * d_half, -0.5 * d_mean

    def contrast(self, hamiltonian, drive, trace):
        """Energy of one echo minus the energy of the other in a step. Its gradient at a fixed trace, times the weight,
        is the gradient of the loss."""
        p_before, q_half, p_after = trace
        kinetic = 0.5 * self.kinetic_contrast(hamiltonian, p_before) + 0.5 * self.kinetic_contrast(hamiltonian, p_after)
        return kinetic + self.potential_contrast(hamiltonian, q_half, drive)


class MeanAndTangent(MeanAndHalfDifference):
    """(m, d) in the limit of infinitesimal nudges: m retraces the free pass, d is a tangent of it, of any size."""

    @override
    def kinetic_contrast(self, hamiltonian, p):
        return 2 * jax.jvp(hamiltonian.kinetic, p[:1], p[1:])[1]

    @override
    def potential_contrast(self, hamiltonian, q, drive):
        return 2 * jax.jvp(lambda q: hamiltonian.potential(q, drive), q[:1], q[1:])[1]

    @override
    def velocity(self, p):
        return self._tangent(self.hamiltonian.velocity, p)

    @override
    def force(self, q, drive):
        return self._tangent(lambda q: self.hamiltonian.force(q, drive), q)

    def _tangent(self, slope, x):
        try:
            return jax.jvp(slope, x[:1], x[1:])
        except (NotImplementedError, TypeError) as error:
            raise ValueError(
                f"infinitesimal nudges need the forward derivative of the slopes of {type(self.hamiltonian).__name__}, "
                f"which jax does not have ({error}). Write a derivative of your own as a jax.custom_jvp instead of a "
                "jax.custom_vjp, or use finite nudges, epsilon=1e-3, or BPTT"
            ) from error
