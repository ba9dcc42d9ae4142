"""The free pass: how every learning algorithm computes the outputs of a system.

All arrays here hold a batch, time first: inputs (time, batch, in), drives and positions (time, batch, osc).
"""

from abc import abstractmethod
from functools import partial
from typing import Literal, NamedTuple, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
from typing_extensions import override

from .hamiltonian import State, flow
from .linear import apart, cut, even_stretch, flow_in_segments, together, with_room
from .requirements import position_like
from .stretches import (
    SEGMENT,
    UNROLLED,
    accelerated_length,
    block_stretch,
    by_platform,
    scan_stretches,
    segment_length,
    stretch_length,
)
from .system import AbstractLearningAlgorithm, AbstractSystem, drives_of, one_sequence, outputs_of, rest_state

Scan = Literal["auto", "sequential", "unrolled", "parallel"]
SCANS = get_args(Scan)


class Schedule(NamedTuple):
    """How a sequence is computed: `scan` is one of `SCANS` but "auto", `stretch` the steps computed at a time."""

    scan: str
    stretch: int

    @property
    def unroll(self) -> int:
        """The steps in one iteration of a loop over the steps."""
        return 1 if self.scan == "sequential" else UNROLLED

    def kept(self, steps: int) -> int:
        """States that the free pass keeps of a stretch of so many steps."""
        if self.scan == "parallel":
            return sum(segments for _, segments, _ in cut(steps))
        return 1 if self.scan == "sequential" else -(-steps // self.unroll)


class AbstractScanned(AbstractLearningAlgorithm):
    """A learning algorithm that scans over the steps of a sequence.

    - `scan`: how the steps are computed. "sequential": one after the other. "unrolled": the same, with `UNROLLED` steps
      in an iteration of the loop, which a GPU computes in a few kernels. "parallel": many steps at the same time,
      linear Hamiltonians only. "auto", the default: sequential on a CPU; elsewhere parallel for a linear
      Hamiltonian, and unrolled for others.
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
        return by_platform(
            lambda schedule: self.run(system, inputs, schedule), *_schedules(self.scan, self.chunk, system, inputs)
        )


def _schedules(scan, chunk, system, inputs) -> tuple[Schedule, Schedule]:
    """The schedule on a CPU and elsewhere. They differ only if the scan is "auto"."""
    state = position_like(system, one_sequence(inputs))
    drives = jax.eval_shape(system.drive, one_sequence(inputs))
    linear = system.hamiltonian.linear and drives.shape[1:] == state.shape
    if chunk is not None and chunk < 1:
        raise ValueError(f"chunk must be at least 1 step, got {chunk!r}")
    if scan not in SCANS:
        raise ValueError(f"unknown scan {scan!r}; one of {', '.join(SCANS)}")
    if scan == "parallel" and not linear:
        raise ValueError(
            "the parallel scan needs a linear system with a drive for each oscillator; "
            f"{type(system.hamiltonian).__name__} is not"
        )
    values = inputs.shape[1] * state.size
    by_scan = {
        "sequential": Schedule("sequential", chunk or stretch_length(values, SEGMENT)),
        "unrolled": Schedule("unrolled", chunk or block_stretch(len(inputs), values)),
        "parallel": Schedule("parallel", chunk or even_stretch(len(inputs), accelerated_length(values))),
    }
    if scan == "auto":
        return by_scan["sequential"], by_scan["parallel" if linear else "unrolled"]
    return by_scan[scan], by_scan[scan]


def free_pass(
    system: AbstractSystem, inputs: Float[Array, "time batch *in"], schedule: Schedule
) -> tuple[Float[Array, "time batch *out"], State, Float[Array, " batch"]]:
    """Outputs; the states at the ends of the segments (segment, batch, osc); the size of the states of each sequence.

    The size is the largest of all positions and of the momenta at the ends of the segments.
    """

    def sequential(carry, inputs):
        state, size = carry
        state, positions = flow_of_batch(state, drives_of(system, inputs))
        return (state, jnp.maximum(size, _largest(positions, 1))), outputs_of(system, positions, inputs)

    def segment(carry, inputs):
        (state, size), outputs = scan_stretches(sequential, carry, inputs, schedule.stretch)
        return (state, jnp.maximum(size, _largest(state[1], 0))), (outputs, jax.tree.map(lambda x: x[None], state))

    def block(state, drives):
        state, positions = flow_of_batch(state, drives, unroll=len(drives))
        return state, (positions, state[1][None])

    def blocks(carry, inputs):
        """One block of unrolled steps after the other."""
        (state, size), drives = carry, drives_of(system, inputs)
        state, (positions, momenta) = scan_stretches(block, state, drives, schedule.unroll)
        ends = jnp.concatenate([positions[schedule.unroll - 1 : -1 : schedule.unroll], positions[-1:]]), momenta
        size = jnp.maximum(size, jnp.maximum(_largest(positions, 1), _largest(momenta, 1)))
        return (state, size), (outputs_of(system, positions, inputs), ends)

    def segments(carry, inputs):
        """All segments of a stretch at the same time."""
        (state, size), pieces = carry, []
        for first, count, steps in cut(len(inputs)):
            piece = apart(inputs[first : first + count * steps], count)
            state, positions, ends = flow_in_segments(
                system.hamiltonian, state, drives_of(system, with_room(piece)), count
            )
            size = jnp.maximum(size, jnp.max(_largest(positions, 1).reshape(count, size.shape[0]), axis=0))
            pieces.append((together(outputs_of(system, positions, piece), count), ends))
        return (state, jnp.maximum(size, _largest(state[1], 0))), jax.tree.map(lambda *x: jnp.concatenate(x), *pieces)

    def flow_of_batch(state, drives, unroll=1):
        return jax.vmap(partial(flow, system.hamiltonian, unroll=unroll), (0, 1), (0, 1))(state, drives)

    rest = jax.vmap(lambda x: rest_state(system, x), 1)(inputs)
    size = jnp.max(jnp.zeros_like(rest[0]), axis=range(1, rest[0].ndim))
    of_stretch = {"sequential": segment, "unrolled": blocks, "parallel": segments}[schedule.scan]
    (_, size), (outputs, ends) = scan_stretches(of_stretch, (rest, size), inputs, segment_length(schedule.stretch))
    return outputs, ends, size


def _largest(x, batch_axis):
    return jax.vmap(lambda x: jax.lax.stop_gradient(jnp.max(jnp.abs(x))), batch_axis)(x)
