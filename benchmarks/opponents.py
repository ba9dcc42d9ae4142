"""What the learning algorithms are compared with: as learning algorithms themselves, to be put into any model."""

import jax
import jax.numpy as jnp

from models.rhel.hamiltonian import leapfrog, linear_step
from models.rhel.system import AbstractLearningAlgorithm, drives_of, outputs_of, rest_state


class Floor(AbstractLearningAlgorithm):
    """No dynamics: the readout of the drives. What is left is the network around the unit, with its two products."""

    def respond(self, system, inputs):
        """Outputs of the system, were its positions its drives."""
        return outputs_of(system, drives_of(system, inputs), inputs)


class CheckpointedBPTT(AbstractLearningAlgorithm):
    """Backpropagation through time with `jax.checkpoint` around every step: it keeps the states and nothing inside."""

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
    """As LinOSS and its kin are commonly written: an associative scan over a matrix a step, differentiated by jax.

    For linear systems. Every step and oscillator carries a copy of the constant matrix, as the scan wants it.
    """

    def respond(self, system, inputs):
        """Outputs of the system, from rest, to a batch of sequences."""

        def combine(earlier, later):
            (a, b), (c, d) = earlier, later
            return jnp.einsum("tijp,tjkp->tikp", c, a), jnp.einsum("tijp,tjp->tip", c, b) + d

        def flow(drives):
            step_map, by_drive = linear_step(system.hamiltonian, rest_state(system, inputs[:, 0]))
            matrices = jnp.broadcast_to(jnp.array(step_map), (len(drives), 2, 2, drives.shape[1]))
            forces = jnp.stack([column[None] * drives for column in by_drive], axis=1)
            return jax.lax.associative_scan(combine, (matrices, forces))[1][:, 0]

        return outputs_of(system, jax.vmap(flow, 1, 1)(drives_of(system, inputs)), inputs)
