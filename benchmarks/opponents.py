"""Other learning algorithms, with which RHEL is compared. Each can be put into any model."""

import jax
import jax.numpy as jnp

from models.rhel.hamiltonian import leapfrog
from models.rhel.linear import step_map
from models.rhel.system import AbstractLearningAlgorithm, drives_of, outputs_of, rest_state


class Floor(AbstractLearningAlgorithm):
    """The readout of the drives, without dynamics: the network around the unit, and the two products of its ports."""

    def respond(self, system, inputs):
        """Outputs of the system if its positions were its drives."""
        return outputs_of(system, drives_of(system, inputs), inputs)


class CheckpointedBPTT(AbstractLearningAlgorithm):
    """Backpropagation through time with `jax.checkpoint` around every step: it keeps the states only."""

    def respond(self, system, inputs):
        """Outputs of the system, from rest, to a batch of sequences."""
        hamiltonian = system.hamiltonian

        @jax.checkpoint
        def step(state, drive):
            state, _ = leapfrog(hamiltonian.velocity, hamiltonian.force, state, drive)
            return state, state[0]

        rest = rest_state(system, inputs[:, 0])
        flow = jax.vmap(lambda drives: jax.lax.scan(step, rest, drives)[1], 1, 1)
        return outputs_of(system, flow(drives_of(system, inputs)), inputs)


class Straightforward(AbstractLearningAlgorithm):
    """The common way to write LinOSS: an associative scan over one matrix per step, differentiated by jax.

    For linear systems. The scan needs a copy of the constant matrix for every step and oscillator.
    """

    def respond(self, system, inputs):
        """Outputs of the system, from rest, to a batch of sequences."""

        def combine(earlier, later):
            (a, b), (c, d) = earlier, later
            return jnp.einsum("tijp,tjkp->tikp", c, a), jnp.einsum("tijp,tjp->tip", c, b) + d

        def flow(drives):
            matrix, by_drive = step_map(system.hamiltonian, rest_state(system, inputs[:, 0])[0])
            matrices = jnp.broadcast_to(jnp.moveaxis(matrix, 0, 2), (len(drives), 2, 2, drives.shape[1]))
            forces = by_drive.T * drives[:, None]
            return jax.lax.associative_scan(combine, (matrices, forces))[1][:, 0]

        return outputs_of(system, jax.vmap(flow, 1, 1)(drives_of(system, inputs)), inputs)
