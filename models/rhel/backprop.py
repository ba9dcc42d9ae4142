"""Reversible backpropagation: reverse mode whose states are computed again, backwards, instead of being kept.

The leapfrog is exactly reversible, so the state before a step follows from the state after it. On the way back each
step is differentiated on its own: exact for any Hamiltonian, with no nudge, and with as little memory as the echo. It
is what the echo is to be compared with; but it needs the derivative of the step, which no machine gives.
"""

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp

from .hamiltonian import leapfrog
from .stretches import scan_stretches, segment_length
from .system import (
    AbstractLearningAlgorithm,
    custom_gradient,
    drives_of,
    on_platform,
    ports_gradient,
    positions_gradient,
    with_hamiltonian_gradient,
)


class ReversibleBPTT(AbstractLearningAlgorithm):
    """Backpropagation through time with the states reconstructed step by step from the last one.

    `chunk`, `scan` as in `models.rhel.RHEL`; the way back is sequential in either case.
    """

    scan: str = eqx.field(default="auto", static=True)
    chunk: int | None = eqx.field(default=None, static=True)

    def respond(self, system, inputs):
        """Outputs of the system, from rest, to a batch of sequences."""
        return on_platform(self.scan, self.chunk, system, inputs, partial(custom_gradient, _walk_back, system, inputs))


def _walk_back(system, inputs, kept, outputs_grad, scan, stretch):
    """Gradients of the system, summed over the batch, and of the inputs (time, batch, in)."""
    ends, _ = kept
    parameters, static = eqx.partition(system.hamiltonian, eqx.is_inexact_array)

    def forward_step(parameters, state, drive):
        hamiltonian = eqx.combine(parameters, static)
        return jax.vmap(lambda *x: leapfrog(hamiltonian.velocity, hamiltonian.force, *x)[0])(state, drive)

    def step(carry, drive_and_grad):
        (q, p), adjoint, total = carry
        drive, position_grad = drive_and_grad
        q_before, p_before = forward_step(parameters, (q, -p), drive)
        before = (q_before, -p_before)
        _, pull_back = jax.vjp(forward_step, parameters, before, drive)
        more, adjoint, drive_grad = pull_back((adjoint[0] + position_grad, adjoint[1]))
        return (before, adjoint, jax.tree.map(jnp.add, total, more)), (q, drive_grad)

    def back(carry, steps):
        (state, adjoint, total), system_grad = carry
        inputs, outputs_grad = steps
        drives, positions_grad = drives_of(system, inputs), positions_gradient(system, inputs, outputs_grad, like=q)
        carry, (positions, drives_grad) = jax.lax.scan(
            step, (state, adjoint, total), (drives, positions_grad), reverse=True
        )
        more, inputs_grad = ports_gradient(system, inputs, positions, outputs_grad, drives_grad)
        return (carry, jax.tree.map(jnp.add, system_grad, more)), inputs_grad

    def segment(carry, steps, end):
        (_, adjoint, total), system_grad = carry
        carry, inputs_grad = scan_stretches(back, ((end, adjoint, total), system_grad), steps, stretch, reverse=True)
        return carry, inputs_grad

    q, p = jax.tree.map(lambda x: x[-1], ends)
    start = ((q, p), jax.tree.map(jnp.zeros_like, (q, p)), jax.tree.map(jnp.zeros_like, parameters))
    nothing = jax.tree.map(jnp.zeros_like, eqx.filter(system, eqx.is_inexact_array))
    ((_, _, total), system_grad), inputs_grad = scan_stretches(
        segment, (start, nothing), (inputs, outputs_grad), segment_length(stretch), per_stretch=ends, reverse=True
    )
    return with_hamiltonian_gradient(system_grad, total), inputs_grad
