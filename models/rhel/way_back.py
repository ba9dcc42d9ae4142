"""The way back: what the echo and reversible backpropagation share.

The free pass keeps the inputs, and a state after every `SEGMENT` steps, or after every stretch if a stretch is longer;
if the segments of a linear Hamiltonian run at the same time, after each of them (`rhel.linear`).
The way back begins at the final state. It computes the states again, backwards, one stretch of steps at a time, and
adds up the gradients of the stretches. Where it reaches a kept state it continues from that, so that rounding errors do
not grow over the whole sequence.
"""

from abc import abstractmethod
from collections.abc import Callable
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree
from typing_extensions import override

from .batching import as_varying
from .free_pass import AbstractScanned, Schedule, free_pass
from .hamiltonian import AbstractHamiltonian, State
from .linear import apart, cut, together, with_room
from .requirements import require_linear_readout
from .stretches import scan_stretches, segment_length
from .system import drives_of, one_sequence, outputs_of


class AbstractWayBack(eqx.Module):
    """Three methods, each for a batch. `moving`, any pytree, is what a way back carries from stretch to stretch.

    `in_segments`: `stretch` gets drives and `incoming` in segments, `with_room`, and `rejoin` the ends of all of them,
    (segments, batch, *osc), see `rhel.linear`.
    """

    @property
    def in_segments(self) -> bool:
        """Whether the segments of a stretch run at the same time."""
        return False

    @abstractmethod
    def begin(self, end: State) -> PyTree:
        """`moving` at the final state of the free pass."""

    @abstractmethod
    def rejoin(self, moving: PyTree, end: State) -> PyTree:
        """`moving` with its states replaced by the state of the free pass at this step, which was kept."""

    @abstractmethod
    def stretch(
        self, moving: PyTree, drives: Float[Array, "time batch *osc"], incoming: Float[Array, "time batch *osc"]
    ) -> tuple[PyTree, Float[Array, "time batch *osc"], AbstractHamiltonian, Float[Array, "time batch *osc"]]:
        """`moving` before the stretch; its positions q_{t+1}; the gradients of the Hamiltonian and of the drives."""


class AbstractRetracing(AbstractScanned):
    """A learning algorithm that computes the gradient on a way back."""

    @abstractmethod
    def way_back(
        self,
        hamiltonian: AbstractHamiltonian,
        positions_grad: Callable,
        steps: tuple[Float[Array, "time batch *in"], Float[Array, "time batch *out"]],
        size: Float[Array, " batch"],
        schedule: Schedule,
    ) -> tuple[AbstractWayBack, Callable]:
        """The way back, and the function of inputs and outputs_grad that gives the `incoming` of its stretches.

        `positions_grad(inputs, outputs_grad)` is dL/dq_{t+1}. `steps` are the inputs and the gradient of the outputs of
        the whole sequences, `size` is the largest state of each.
        """

    @override
    def run(self, system, inputs, schedule):
        require_linear_readout(system, one_sequence(inputs))
        parameters, rest = eqx.partition(system, eqx.is_inexact_array)
        constants, static = eqx.partition(rest, eqx.is_array)  # arrays of numbers that are no parameters, such as masks

        def free(parameters, constants, inputs):
            return free_pass(eqx.combine(parameters, constants, static), inputs, schedule)

        @jax.custom_vjp
        def custom_gradient(*arguments):
            return free(*arguments)[0]

        def forwards(*arguments):
            outputs, *kept = free(*arguments)
            return outputs, (arguments, kept)

        def backwards(residuals, outputs_grad):
            (parameters, constants, inputs), kept = residuals
            system = eqx.combine(parameters, constants, static)
            system_grad, inputs_grad = _gradients(self, system, (inputs, outputs_grad), *kept, schedule)
            return system_grad, None, inputs_grad

        custom_gradient.defvjp(forwards, backwards)
        return custom_gradient(parameters, constants, inputs)


def _gradients(algorithm, system, steps, ends, size, schedule):
    """Gradients of the system, summed over the batch, and of the inputs (time, batch, in)."""
    end = jax.tree.map(lambda x: x[-1], ends)
    positions_grad = partial(_positions_grad, system, jax.ShapeDtypeStruct(end[0].shape[1:], end[0].dtype))
    way, incoming_of = algorithm.way_back(system.hamiltonian, positions_grad, steps, size, schedule)

    def stretch(carry, steps, room=lambda x: x):
        moving, total = carry
        inputs, outputs_grad = steps
        drives, incoming = drives_of(system, room(inputs)), incoming_of(*map(room, steps))
        moving, positions, hamiltonian_grad, drives_grad = way.stretch(moving, drives, incoming)

        def ports(system, inputs):
            return outputs_of(system, positions, inputs), drives_of(system, inputs)

        _, pull_back = eqx.filter_vjp(ports, system, inputs)
        system_grad, inputs_grad = pull_back((outputs_grad, drives_grad))
        return (moving, jax.tree.map(jnp.add, total, (system_grad, hamiltonian_grad))), inputs_grad

    def segment(carry, steps, ends):
        moving, total = carry
        carry = (way.rejoin(moving, jax.tree.map(lambda x: x[-1], ends)), total)
        return scan_stretches(stretch, carry, steps, schedule.stretch, reverse=True)

    def segments(carry, steps, ends):
        inputs_grad = []
        for first, count, length in reversed(cut(len(steps[0]))):
            piece = [apart(x[first : first + count * length], count) for x in steps]
            ends, piece_ends = _split(ends, -count)
            carry, grad = stretch((way.rejoin(carry[0], piece_ends), carry[1]), piece, with_room)
            inputs_grad.insert(0, together(grad, count))
        return carry, jnp.concatenate(inputs_grad)

    if way.in_segments:
        # Without a loop over stretches, XLA merges the drives of both passes, and keeps them.
        steps = jax.lax.optimization_barrier(steps)
    parameters = eqx.filter(system, eqx.is_inexact_array)
    zero = jax.tree.map(jnp.zeros_like, (parameters, parameters.hamiltonian))
    (_, (system_grad, hamiltonian_grad)), inputs_grad = scan_stretches(
        segments if way.in_segments else segment,
        (way.begin(end), zero),
        steps,
        segment_length(schedule.stretch),
        per_stretch=ends,
        rows=schedule.kept,
        reverse=True,
    )
    hamiltonian_grad = jax.tree.map(jnp.add, system_grad.hamiltonian, hamiltonian_grad)
    return eqx.tree_at(lambda system: system.hamiltonian, system_grad, hamiltonian_grad), inputs_grad


def _split(tree, at):
    return jax.tree.map(lambda x: x[:at], tree), jax.tree.map(lambda x: x[at:], tree)


def _positions_grad(system, position, inputs, outputs_grad):
    """The gradient through the readout of the positions, (time, batch, osc). `position`: shape and type of one."""

    def at_rest(inputs):
        return as_varying(jnp.zeros((len(inputs), *position.shape), position.dtype), inputs)

    zeros = jax.vmap(at_rest, 1, 1)(inputs)
    _, pull_back = jax.vjp(lambda positions: outputs_of(system, positions, inputs), zeros)
    return pull_back(outputs_grad)[0]
