"""Backpropagation through time, and its reversible form, whose states are computed again instead of being kept.

The leapfrog is exactly reversible, so the state before a step follows from the state after it. On the way back each
step is differentiated on its own: exact for any Hamiltonian, with no nudge, and with as little memory as the echo. It
is the right comparison for the echo; but it needs the derivative of the step, which no machine gives.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from typing_extensions import override

from .free_pass import AbstractScanned, free_pass
from .hamiltonian import AbstractHamiltonian, leapfrog
from .way_back import AbstractRetracing, AbstractWayBack


class BPTT(AbstractScanned):
    """Backpropagation through time: reverse mode of the integrator. It keeps all states."""

    @override
    def run(self, system, inputs, schedule):
        return free_pass(system, inputs, schedule)[0]


class ReversibleBPTT(AbstractRetracing):
    """Backpropagation through time with the states reconstructed step by step from the last one.

    `scan` concerns the free pass; the way back is sequential.
    """

    @override
    def way_back(self, hamiltonian, positions_grad, steps, size, schedule):
        return _ReverseMode(hamiltonian, schedule.unroll), positions_grad


class _ReverseMode(AbstractWayBack):
    """It carries the adjoint state."""

    hamiltonian: AbstractHamiltonian
    unroll: int = eqx.field(static=True)

    @override
    def begin(self, end):
        return jax.tree.map(jnp.zeros_like, end)

    @override
    def stretch(self, end, carried, drives, incoming):
        parameters, static = eqx.partition(self.hamiltonian, eqx.is_inexact_array)

        def forward_step(parameters, state, drive):
            hamiltonian = eqx.combine(parameters, static)
            return jax.vmap(lambda *x: leapfrog(hamiltonian.velocity, hamiltonian.force, *x)[0])(state, drive)

        def step(carry, drive_and_incoming):
            ((q, p), adjoint), total = carry
            drive, incoming = drive_and_incoming
            q_before, p_before = forward_step(parameters, (q, -p), drive)
            before = (q_before, -p_before)
            _, pull_back = jax.vjp(forward_step, parameters, before, drive)
            more, adjoint, drive_grad = pull_back((adjoint[0] + incoming, adjoint[1]))
            return ((before, adjoint), jax.tree.map(jnp.add, total, more)), (q, drive_grad)

        zero = jax.tree.map(jnp.zeros_like, parameters)
        (moved, total), (positions, drives_grad) = jax.lax.scan(
            step, ((end, carried), zero), (drives, incoming), reverse=True, unroll=self.unroll
        )
        return *moved, positions, total, drives_grad
