"""A Hamiltonian with its ports, and what differentiates its response.

What a user writes, a Hamiltonian and its ports, acts on one sequence. What runs it acts on a batch, time first: inputs
(time, batch, in), drives and positions (time, batch, osc).
"""

from abc import abstractmethod
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from typing_extensions import override

from .batching import as_varying, batched_at_once
from .hamiltonian import AbstractHamiltonian, State
from .requirements import position_like, require_admissible


class AbstractSystem(eqx.Module):
    """A Hamiltonian with its ports: how inputs drive it and how its positions are read.

    `readout` must be linear in the positions. Both ports see stretches of a sequence and treat every step alike.
    """

    hamiltonian: eqx.AbstractVar[AbstractHamiltonian]

    def position_shape(self, drive_shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of a position, for a drive of this shape: the same, if each oscillator has a drive of its own."""
        return drive_shape

    @abstractmethod
    def drive(self, inputs: Float[Array, "time *in"]) -> Float[Array, "time *osc"]:
        """Drives v_t of the inputs u_t."""

    @abstractmethod
    def readout(
        self, positions: Float[Array, "time *osc"], inputs: Float[Array, "time *in"]
    ) -> Float[Array, "time *out"]:
        """Outputs o_t of the positions q_{t+1} and the inputs u_t."""


class BareSystem(AbstractSystem):
    """A Hamiltonian whose inputs are its drives and whose outputs are its positions.

    `n_osc`: the number of oscillators, if it is not the number of drives.
    """

    hamiltonian: AbstractHamiltonian
    n_osc: int | None = eqx.field(default=None, static=True)

    def __check_init__(self):
        n_osc = self.n_osc
        if n_osc is None or (isinstance(n_osc, int | np.integer) and not isinstance(n_osc, bool) and n_osc > 0):
            return
        raise ValueError(f"n_osc must be a whole number of at least 1, the number of oscillators, got {n_osc!r}")

    @override
    def position_shape(self, drive_shape):
        return drive_shape if self.n_osc is None else (self.n_osc,)

    @override
    def drive(self, inputs):
        return inputs

    @override
    def readout(self, positions, inputs):
        return positions


class AbstractLearningAlgorithm(eqx.Module):
    """How the response of a system is differentiated. The response is the same for all.

    A subclass writes `respond`, for a batch; it is called with one sequence, under `jax.vmap` with many.
    """

    @abstractmethod
    def respond(
        self, system: AbstractSystem, inputs: Float[Array, "time batch *in"]
    ) -> Float[Array, "time batch *out"]:
        """Outputs of the system, from rest, to a batch of sequences."""

    def outputs(
        self, system: AbstractSystem, inputs: Float[Array, "time batch *in"]
    ) -> Float[Array, "time batch *out"]:
        """Outputs of the system, where no derivative is taken."""
        return self.respond(system, inputs)

    def __call__(
        self, system: AbstractSystem, inputs: Float[Array | np.ndarray, "time *in"]
    ) -> Float[Array, "time *out"]:
        """Outputs of the system, from rest, to a sequence.

        All arithmetic is in the widest floating-point type of the system and the inputs, and in float32 at least. The
        outputs are in the widest type of the system and the inputs. Raises `ValueError` for an empty sequence and
        `TypeError` for inputs that are not one array.
        """
        if not isinstance(inputs, jax.Array | np.ndarray):
            raise TypeError(f"the inputs must be one array (time, ..), got a {type(inputs).__name__}: stack its arrays")
        if len(inputs) == 0:
            raise ValueError("the sequence is empty: it has no steps")
        inputs = jnp.asarray(inputs)
        require_admissible(system, inputs)
        system, inputs, dtype = in_one_precision(system, inputs)
        outputs = _respond((self, system), inputs)
        return outputs if jnp.iscomplexobj(outputs) else outputs.astype(dtype)


def in_one_precision(system: AbstractSystem, inputs: Array) -> tuple[AbstractSystem, Array, jnp.dtype]:
    """System and inputs in the widest of their floating-point types and float32; and the widest without float32.

    Half precision resolves neither the recurrence of many steps nor its way back, and a state has one type.
    """
    leaves = [x for x in (*jax.tree.leaves(system), inputs) if eqx.is_inexact_array(x)]
    dtype = jnp.result_type(*(jnp.finfo(x.dtype).dtype for x in leaves)) if leaves else jnp.dtype(jnp.float32)
    wide = jnp.promote_types(dtype, jnp.float32)

    def widened(x):
        if not eqx.is_inexact_array(x):
            return x
        # A port may have a complex matrix; the states are real.
        return jnp.asarray(x, jnp.result_type(wide, jnp.complex64) if jnp.iscomplexobj(x) else wide)

    return *jax.tree.map(widened, (system, inputs)), dtype


def one_sequence(inputs: Float[Array, "time batch *in"]) -> jax.ShapeDtypeStruct:
    """Shape and type of the inputs of one sequence of a batch."""
    return jax.ShapeDtypeStruct((len(inputs), *inputs.shape[2:]), inputs.dtype)


def _outputs(algorithm_and_system, inputs):
    algorithm, system = algorithm_and_system
    return algorithm.outputs(system, inputs)


@partial(batched_at_once, plain=_outputs)
def _respond(algorithm_and_system, inputs):
    algorithm, system = algorithm_and_system
    return algorithm.respond(system, inputs)


def drives_of(system: AbstractSystem, inputs: Float[Array, "time batch *in"]) -> Float[Array, "time batch *osc"]:
    """`system.drive` of every sequence."""
    return jax.vmap(system.drive, 1, 1)(inputs)


def outputs_of(
    system: AbstractSystem, positions: Float[Array, "time batch *osc"], inputs: Float[Array, "time batch *in"]
) -> Float[Array, "time batch *out"]:
    """`system.readout` of every sequence."""
    return jax.vmap(system.readout, 1, 1)(positions, inputs)


def rest_state(system: AbstractSystem, inputs: Float[Array, "time *in"]) -> State:
    """Zero position and momentum of one sequence of inputs."""
    state = position_like(system, inputs)
    zeros = as_varying(jnp.zeros(state.shape, state.dtype), inputs)
    return zeros, zeros
