"""A Hamiltonian with its ports, and its free pass.

What a user writes, a Hamiltonian and its ports, acts on one sequence. What runs it acts on a batch, time first: inputs
(time, batch, in), drives and positions (time, batch, osc).
"""

from abc import abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from .batching import as_varying, batched_at_once
from .hamiltonian import AbstractHamiltonian, State, flow
from .requirements import position_like, require_admissible, require_linear_readout
from .stretches import SEGMENT, scan_stretches, segment_length, stretch_length

Scan = Literal["auto", "sequential", "associative"]
SCANS = ("auto", "sequential", "associative")


class AbstractSystem(eqx.Module):
    """A Hamiltonian with its ports: how inputs drive it and how its positions are read.

    `readout` must be linear in the positions. Both ports see stretches of a sequence and treat every step alike.
    """

    hamiltonian: eqx.AbstractVar[AbstractHamiltonian]

    def position_shape(self, drive_shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of a position, for a drive of this shape: the same, if each oscillator has a drive of its own."""
        return drive_shape

    @abstractmethod
    def drive(self, inputs: Float[Array, "time in"]) -> Float[Array, "time osc"]:
        """Drives v_t of the inputs u_t."""

    @abstractmethod
    def readout(self, positions: Float[Array, "time osc"], inputs: Float[Array, "time in"]) -> Float[Array, "time out"]:
        """Outputs o_t of the positions q_{t+1} and the inputs u_t."""


class BareSystem(AbstractSystem):
    """A Hamiltonian whose inputs are its drives and whose outputs are its positions.

    `n_osc`: the number of oscillators, if it is not the number of drives.
    """

    hamiltonian: AbstractHamiltonian
    n_osc: int | None = eqx.field(default=None, static=True)

    def position_shape(self, drive_shape):
        """The shape of a drive, or (n_osc,)."""
        return drive_shape if self.n_osc is None else (self.n_osc,)

    def drive(self, inputs):
        """The inputs."""
        return inputs

    def readout(self, positions, inputs):
        """The positions."""
        return positions


class AbstractLearningAlgorithm(eqx.Module):
    """How the response of a system is differentiated. The response is the same for all.

    A subclass writes `respond`, for a batch; it is called with one sequence, under `jax.vmap` with many.
    """

    @abstractmethod
    def respond(self, system: AbstractSystem, inputs: Float[Array, "time batch in"]) -> Float[Array, "time batch out"]:
        """Outputs of the system, from rest, to a batch of sequences."""

    def __call__(self, system: AbstractSystem, inputs: Float[Array, "time in"]) -> Float[Array, "time out"]:
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

    def widened(tree):
        return jax.tree.map(widened_leaf, tree)

    def widened_leaf(x):
        if not eqx.is_inexact_array(x):
            return x
        # A port may have a complex matrix; the states are real.
        return jnp.asarray(x, jnp.result_type(wide, jnp.complex64) if jnp.iscomplexobj(x) else wide)

    return widened(system), widened(inputs), dtype


def one_sequence(inputs: Float[Array, "time batch in"]) -> jax.ShapeDtypeStruct:
    """Shape and type of the inputs of one sequence of a batch."""
    return jax.ShapeDtypeStruct((len(inputs), *inputs.shape[2:]), inputs.dtype)


@batched_at_once
def _respond(algorithm_and_system, inputs):
    algorithm, system = algorithm_and_system
    return algorithm.respond(system, inputs)


def drives_of(system: AbstractSystem, inputs: Float[Array, "time batch in"]) -> Float[Array, "time batch osc"]:
    """`system.drive` of every sequence."""
    return jax.vmap(system.drive, 1, 1)(inputs)


def outputs_of(
    system: AbstractSystem, positions: Float[Array, "time batch osc"], inputs: Float[Array, "time batch in"]
) -> Float[Array, "time batch out"]:
    """`system.readout` of every sequence."""
    return jax.vmap(system.readout, 1, 1)(positions, inputs)


def rest_state(system: AbstractSystem, inputs: Float[Array, "time in"]) -> State:
    """Zero position and momentum of one sequence of inputs."""
    state = position_like(system, inputs)
    zeros = as_varying(jnp.zeros(state.shape, state.dtype), inputs)
    return zeros, zeros


def on_platform(scan: Scan, chunk: int | None, system: AbstractSystem, inputs: Array, run: Callable) -> PyTree:
    """`run(scan, length of a stretch)`, both as given or as the platform wants them.

    One step after the other in short stretches on a CPU; elsewhere long stretches, and the associative scan if the
    system is linear. If several platforms are present, `lax.platform_dependent` selects the scan at lowering time.
    """
    state = position_like(system, one_sequence(inputs))
    drives = jax.eval_shape(system.drive, one_sequence(inputs))
    linear = system.hamiltonian.linear and drives.shape[1:] == state.shape
    if chunk is not None and chunk < 1:
        raise ValueError(f"chunk must be at least 1 step, got {chunk!r}")
    if scan not in SCANS:
        raise ValueError(f"unknown scan {scan!r}; one of {', '.join(SCANS)}")
    if scan == "associative" and not linear:
        raise ValueError(
            "the associative scan needs a linear system with a drive for each oscillator; "
            f"{type(system.hamiltonian).__name__} is not"
        )
    short = stretch_length(inputs.shape[1] * state.size, SEGMENT)
    if scan == "associative":
        return run("associative", chunk or SEGMENT)
    if scan == "sequential" or all(device.platform == "cpu" for device in jax.devices()):
        return run("sequential", chunk or short)
    elsewhere = "associative" if linear else "sequential"
    return jax.lax.platform_dependent(
        cpu=lambda: run("sequential", chunk or short), default=lambda: run(elsewhere, chunk or SEGMENT)
    )


# The free pass


def free_pass(system: AbstractSystem, inputs: Float[Array, "time batch in"], scan: str, stretch: int):
    """Outputs; the states at the ends of the segments; the size of the states of every sequence.

    The size is the largest of all positions and of the momenta at the ends of the segments. The forward pass of every
    learning algorithm.
    """

    def advance(carry, inputs):
        state, size = carry
        run = jax.vmap(partial(flow, system.hamiltonian, scan=scan), (0, 1), (0, 1))
        state, positions = run(state, drives_of(system, inputs))
        return (state, jnp.maximum(size, _largest(positions, 1))), outputs_of(system, positions, inputs)

    def segment(carry, inputs):
        (state, size), outputs = scan_stretches(advance, carry, inputs, stretch)
        return (state, jnp.maximum(size, _largest(state[1], 0))), (outputs, jax.tree.map(lambda x: x[None], state))

    rest = jax.vmap(lambda x: rest_state(system, x), 1)(inputs)
    size = jnp.max(jnp.zeros_like(rest[0]), axis=range(1, rest[0].ndim))
    (_, size), (outputs, ends) = scan_stretches(segment, (rest, size), inputs, segment_length(stretch))
    return outputs, ends, size


def _largest(x, batch_axis):
    return jax.vmap(lambda x: jax.lax.stop_gradient(jnp.max(jnp.abs(x))), batch_axis)(x)


# Gradients found on the way back


def custom_gradient(gradient: Callable, system: AbstractSystem, inputs: Array, scan: str, stretch: int) -> Array:
    """The outputs of the free pass, with a gradient that walks back from its end.

    `gradient(system, inputs, (ends, size), outputs_grad, scan, stretch)` -> those of the system, summed over the batch,
    and of the inputs; `ends` and `size` as `free_pass` gives them.
    """
    require_linear_readout(system, one_sequence(inputs))
    parameters, rest = eqx.partition(system, eqx.is_inexact_array)
    constants, static = eqx.partition(rest, eqx.is_array)  # arrays of numbers that are no parameters, such as masks

    def free(parameters, constants, inputs):
        return free_pass(eqx.combine(parameters, constants, static), inputs, scan, stretch)

    @jax.custom_vjp
    def respond(*arguments):
        return free(*arguments)[0]

    def forwards(*arguments):
        outputs, *kept = free(*arguments)
        return outputs, (arguments, kept)

    def backwards(residuals, outputs_grad):
        (parameters, constants, inputs), kept = residuals
        system = eqx.combine(parameters, constants, static)
        system_grad, inputs_grad = gradient(system, inputs, kept, outputs_grad, scan, stretch)
        return system_grad, None, inputs_grad

    respond.defvjp(forwards, backwards)
    return respond(parameters, constants, inputs)


def positions_gradient(system, inputs, outputs_grad, *, like):
    """Gradient of the positions (time, batch, osc) through the readout; `like`: one position of every sequence."""
    nothing = jnp.broadcast_to(jnp.zeros_like(like), (len(inputs), *like.shape))
    _, pull_back = jax.vjp(lambda positions: outputs_of(system, positions, inputs), nothing)
    return pull_back(outputs_grad)[0]


def ports_gradient(system, inputs, positions, outputs_grad, drives_grad):
    """Gradients of the system and of the inputs through the ports, at given positions and gradient of the drives."""

    def through_ports(system, inputs):
        return outputs_of(system, positions, inputs), drives_of(system, inputs)

    _, pull_back = eqx.filter_vjp(through_ports, system, inputs)
    return pull_back((outputs_grad, drives_grad))


def with_hamiltonian_gradient(system_grad: PyTree, hamiltonian_grad: PyTree) -> PyTree:
    """Adds the gradient of the Hamiltonian to that of a system."""
    total = jax.tree.map(jnp.add, system_grad.hamiltonian, hamiltonian_grad)
    return eqx.tree_at(lambda system: system.hamiltonian, system_grad, total)


class BPTT(AbstractLearningAlgorithm):
    """Backpropagation through time: reverse mode of the integrator, all states kept.

    `scan` and `chunk` as in `models.rhel.RHEL`.
    """

    scan: Scan = eqx.field(default="auto", static=True)
    chunk: int | None = eqx.field(default=None, static=True)

    def respond(self, system, inputs):
        """Outputs of the system, from rest, to a batch of sequences."""
        return on_platform(self.scan, self.chunk, system, inputs, lambda *how: free_pass(system, inputs, *how)[0])
