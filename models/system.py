"""A Hamiltonian with its ports, its free pass, and the walk through a sequence in stretches.

What a user writes, a Hamiltonian and its ports, acts on one sequence. What runs it acts on a batch, time first: inputs
(time, batch, in), drives and positions (time, batch, osc).
"""

from abc import abstractmethod
from collections.abc import Callable
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from models.batching import sees_whole_batch
from models.hamiltonian import AbstractHamiltonian, State, flow

Scan = Literal["auto", "sequential", "associative"]
SCANS = ("auto", "sequential", "associative")

SEGMENT = 128
"""The free pass keeps one state in so many steps."""

CACHED = 2**18
"""On a CPU a stretch is no longer than to hold so many values of one quantity, which then stays in cache."""


class AbstractSystem(eqx.Module):
    """A Hamiltonian with its ports: how inputs drive it and how its positions are read.

    `readout` must be linear in the positions. Both ports see stretches of a sequence and treat every step alike.
    """

    hamiltonian: eqx.AbstractVar[AbstractHamiltonian]

    @abstractmethod
    def drive(self, inputs: Float[Array, "time in"]) -> Float[Array, "time osc"]:
        """Drives v_t of the inputs u_t."""

    @abstractmethod
    def readout(self, positions: Float[Array, "time osc"], inputs: Float[Array, "time in"]) -> Float[Array, "time out"]:
        """Outputs o_t of the positions q_{t+1} and the inputs u_t."""


class BareSystem(AbstractSystem):
    """A Hamiltonian whose inputs are its drives and whose outputs are its positions."""

    hamiltonian: AbstractHamiltonian

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
        """Outputs of the system, from rest, to a sequence. Raises `ValueError` for an empty one."""
        if len(inputs) == 0:
            raise ValueError("the sequence is empty: it has no steps")
        return _respond((self, system), inputs)


@sees_whole_batch
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
    """Zero position and momentum, of the shape of a drive of one sequence.

    Raises `TypeError` for drives that are not floating-point and `ValueError` for energies that are not scalars.
    """
    hamiltonian = system.hamiltonian
    drives = jax.eval_shape(system.drive, inputs[:1])
    if not jnp.issubdtype(drives.dtype, jnp.floating):
        raise TypeError(f"the drives must be floating-point, got {drives.dtype}: convert them with .astype(float)")
    parameters = jax.tree.leaves(eqx.filter(hamiltonian, eqx.is_inexact_array))
    state = jax.ShapeDtypeStruct(drives.shape[1:], jnp.result_type(drives.dtype, *(x.dtype for x in parameters)))
    drive = jax.ShapeDtypeStruct(drives.shape[1:], drives.dtype)
    for energy, arguments in ((hamiltonian.kinetic, (state,)), (hamiltonian.potential, (state, drive))):
        value = jax.eval_shape(energy, *arguments)
        if value.shape != ():
            name = f"{type(hamiltonian).__name__}.{energy.__name__}"
            raise ValueError(f"{name} must return a scalar, got shape {value.shape}: sum over the oscillators")
    zeros = jnp.zeros(state.shape, state.dtype)
    return zeros, zeros


# Stretches


def walk(body: Callable, carry: PyTree, steps: PyTree, length: int, *, marks: list | None = None, reverse=False):
    """Walks through `steps` (time, ..) in stretches of `length`; what is left over is a stretch of its own, the last.

    `body(carry, stretch of steps, mark) -> carry, outputs of the stretch, mark`. The outputs come joined along time,
    the marks as a list that can be given, as `marks`, to another walk over as many steps. With `reverse` the last
    stretch comes first, each with its steps in their order.
    """
    time = jax.tree.leaves(steps)[0].shape[0]
    whole = time - time % length
    cuts = [cut for cut in ((0, whole, length), (whole, time, time - whole)) if cut[0] < cut[1]]
    marks = [None] * len(cuts) if marks is None else marks
    found = []
    for (start, stop, size), mark in list(zip(cuts, marks, strict=True))[:: -1 if reverse else 1]:
        stacked = jax.tree.map(lambda x, i=start, j=stop, n=size: x[i:j].reshape(-1, n, *x.shape[1:]), steps)

        def stretch(carry, xs):
            carry, outputs, mark = body(carry, *xs)
            return carry, (outputs, mark)

        carry, results = jax.lax.scan(stretch, carry, (stacked, mark), reverse=reverse)
        found.append(results)
    outputs, marks = zip(*found[:: -1 if reverse else 1], strict=True)
    outputs = jax.tree.map(lambda *xs: jnp.concatenate([x.reshape(-1, *x.shape[2:]) for x in xs]), *outputs)
    return carry, outputs, list(marks)


def segment_length(stretch: int) -> int:
    """Steps from one kept state to the next: `SEGMENT`, or a stretch if that is longer."""
    return max(SEGMENT, stretch)


def on_platform(scan: Scan, chunk: int | None, system: AbstractSystem, inputs: Array, run: Callable) -> PyTree:
    """`run(scan, length of a stretch)`, both as given or as the platform wants them.

    One step after the other in short stretches on a CPU; elsewhere long stretches, and the associative scan if the
    system is linear. Where there is more than a CPU, it is settled when the program is lowered, which serves them all.
    """
    linear = system.hamiltonian.linear
    if chunk is not None and chunk < 1:
        raise ValueError(f"chunk must be at least 1 step, got {chunk!r}")
    if scan not in SCANS:
        raise ValueError(f"unknown scan {scan!r}; one of {', '.join(SCANS)}")
    if scan == "associative" and not linear:
        raise ValueError(f"the associative scan needs a linear system; {type(system.hamiltonian).__name__} is not")
    state = jax.eval_shape(lambda x: rest_state(system, x[:, 0])[0], inputs)
    short = SEGMENT
    while short > 8 and short * inputs.shape[1] * state.size > CACHED:
        short //= 2
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

    def advance(carry, inputs, _):
        state, size = carry
        state, positions = jax.vmap(flow, (None, 0, 1, None), (0, 1))(
            system.hamiltonian, state, drives_of(system, inputs), scan
        )
        return (state, jnp.maximum(size, _largest(positions, 1))), outputs_of(system, positions, inputs), None

    def segment(carry, inputs, _):
        (state, size), outputs, _ = walk(advance, carry, inputs, stretch)
        return (state, jnp.maximum(size, _largest(state[1], 0))), outputs, state

    batch = inputs.shape[1]
    rest = jax.tree.map(lambda x: jnp.zeros((batch, *x.shape), x.dtype), rest_state(system, inputs[:, 0]))
    (_, size), outputs, ends = walk(segment, (rest, jnp.zeros(batch, rest[0].dtype)), inputs, segment_length(stretch))
    return outputs, ends, size


def _largest(x, batch_axis):
    return jax.vmap(lambda x: jax.lax.stop_gradient(jnp.max(jnp.abs(x))), batch_axis)(x)


# Gradients found on the way back


def retracing(gradient: Callable, system: AbstractSystem, inputs: Array, scan: str, stretch: int) -> Array:
    """The outputs of the free pass, with a gradient that walks back from its end.

    `gradient(system, inputs, (ends, size), outputs_grad, scan, stretch)` -> those of the system, summed over the batch,
    and of the inputs; `ends` and `size` as `free_pass` gives them.
    """
    arrays, static = eqx.partition(system, eqx.is_inexact_array)

    @jax.custom_vjp
    def respond(arrays, inputs):
        return free_pass(eqx.combine(arrays, static), inputs, scan, stretch)[0]

    def forwards(arrays, inputs):
        outputs, *kept = free_pass(eqx.combine(arrays, static), inputs, scan, stretch)
        return outputs, (arrays, inputs, kept)

    def backwards(residuals, outputs_grad):
        arrays, inputs, kept = residuals
        return gradient(eqx.combine(arrays, static), inputs, kept, outputs_grad, scan, stretch)

    respond.defvjp(forwards, backwards)
    return respond(arrays, inputs)


def positions_gradient(system, inputs, outputs_grad, *, like):
    """Gradient of the positions (time, batch, osc) through the readout; `like`: one position of every sequence."""
    nothing = jnp.zeros((len(inputs), *like.shape), like.dtype)
    _, pull_back = jax.vjp(lambda positions: outputs_of(system, positions, inputs), nothing)
    return pull_back(outputs_grad)[0]


def ports_gradient(system, inputs, positions, outputs_grad, drives_grad):
    """Gradients of the system and of the inputs through the ports, at given positions and gradient of the drives."""

    def through_ports(system_and_inputs):
        system, inputs = system_and_inputs
        outputs, drives = outputs_of(system, positions, inputs), drives_of(system, inputs)
        return jnp.vdot(outputs_grad, outputs) + jnp.vdot(drives_grad, drives)

    return eqx.filter_grad(through_ports)((system, inputs))


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
