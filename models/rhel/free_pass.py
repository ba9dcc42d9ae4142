"""The free pass: how every learning algorithm computes the outputs of a system.

All arrays here hold a batch, time first: inputs (time, batch, in), drives and positions (time, batch, osc).
"""

from abc import abstractmethod
from functools import partial
from typing import Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
from typing_extensions import override

from .hamiltonian import State, flow
from .requirements import position_like
from .stretches import SEGMENT, scan_stretches, segment_length, stretch_length
from .system import AbstractLearningAlgorithm, AbstractSystem, drives_of, one_sequence, outputs_of, rest_state

Scan = Literal["auto", "sequential", "associative"]
SCANS = ("auto", "sequential", "associative")


class Schedule(NamedTuple):
    """How a sequence is computed: `scan` is "sequential" or "associative", `stretch` the steps computed at a time."""

    scan: str
    stretch: int


class AbstractScanned(AbstractLearningAlgorithm):
    """A learning algorithm that scans over the steps of a sequence.

    - `scan`: "sequential", "associative" (linear Hamiltonians only), or "auto", by platform.
    - `chunk`: steps computed at a time. By default the sizes and the platform decide. It changes results by rounding.
    """

    scan: Scan = eqx.field(default="auto", static=True, kw_only=True)
    chunk: int | None = eqx.field(default=None, static=True, kw_only=True)

    @abstractmethod
    def run(
        self, system: AbstractSystem, inputs: Float[Array, "time batch *in"], schedule: Schedule
    ) -> Float[Array, "time batch *out"]:
        """Outputs of the system, from rest, to a batch of sequences."""

    @override
    def respond(self, system, inputs):
        cpu, elsewhere = _schedules(self.scan, self.chunk, system, inputs)
        if cpu == elsewhere or all(device.platform == "cpu" for device in jax.devices()):
            return self.run(system, inputs, cpu)
        # If several platforms are present, the platform is known at lowering time.
        return jax.lax.platform_dependent(
            cpu=lambda: self.run(system, inputs, cpu), default=lambda: self.run(system, inputs, elsewhere)
        )


def _schedules(scan, chunk, system, inputs) -> tuple[Schedule, Schedule]:
    """The schedule on a CPU and elsewhere. "auto" is sequential on a CPU, and associative elsewhere if it can be."""
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
    short = Schedule("sequential", chunk or stretch_length(inputs.shape[1] * state.size, SEGMENT))
    long = Schedule("associative" if linear else "sequential", chunk or SEGMENT)
    if scan == "auto":
        return short, long
    return (short, short) if scan == "sequential" else (long, long)


def free_pass(
    system: AbstractSystem, inputs: Float[Array, "time batch *in"], schedule: Schedule
) -> tuple[Float[Array, "time batch *out"], State, Float[Array, " batch"]]:
    """Outputs; the states at the ends of the segments (segment, batch, osc); the size of the states of each sequence.

    The size is the largest of all positions and of the momenta at the ends of the segments.
    """

    def stretch(carry, inputs):
        state, size = carry
        run = jax.vmap(partial(flow, system.hamiltonian, scan=schedule.scan), (0, 1), (0, 1))
        state, positions = run(state, drives_of(system, inputs))
        return (state, jnp.maximum(size, _largest(positions, 1))), outputs_of(system, positions, inputs)

    def segment(carry, inputs):
        (state, size), outputs = scan_stretches(stretch, carry, inputs, schedule.stretch)
        return (state, jnp.maximum(size, _largest(state[1], 0))), (outputs, jax.tree.map(lambda x: x[None], state))

    rest = jax.vmap(lambda x: rest_state(system, x), 1)(inputs)
    size = jnp.max(jnp.zeros_like(rest[0]), axis=range(1, rest[0].ndim))
    (_, size), (outputs, ends) = scan_stretches(segment, (rest, size), inputs, segment_length(schedule.stretch))
    return outputs, ends, size


def _largest(x, batch_axis):
    return jax.vmap(lambda x: jax.lax.stop_gradient(jnp.max(jnp.abs(x))), batch_axis)(x)
