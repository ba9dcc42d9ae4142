"""The way back: what the echo and reversible backpropagation share.

The free pass keeps the inputs, and a state after every `SEGMENT` steps, or after every stretch if a stretch is longer;
on devices other than a CPU, a state after every block of unrolled steps, or every segment of `rhel.linear`.
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
from jax.flatten_util import ravel_pytree
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
    """Three methods, each for a batch. `carried`, any pytree, is what a way back carries from stretch to stretch.

    `in_segments`: `stretch` gets drives and `incoming` in segments, `with_room`, and the states at the ends of all of
    them, (segments, batch, *osc), see `rhel.linear`.
    """

    @property
    def in_segments(self) -> bool:
        """Whether the segments of a stretch run at the same time."""
        return False

    @abstractmethod
    def begin(self, end: State) -> PyTree:
        """`carried` at the final state of the free pass."""

    @abstractmethod
    def stretch(
        self,
        end: State,
        carried: PyTree,
        drives: Float[Array, "time batch *osc"],
        incoming: Float[Array, "time batch *osc"],
    ) -> tuple[State, PyTree, Float[Array, "time batch *osc"], PyTree, Float[Array, "time batch *osc"]]:
        """From the state of the free pass after a stretch: the state and `carried` before it; its positions q_{t+1};
        `total`, of which `hamiltonian_grad` makes a gradient; the gradient of the drives."""

    def hamiltonian_grad(self, total: PyTree) -> AbstractHamiltonian:
        """The gradient of the Hamiltonian, of the `total` of a stretch or the sum of several."""
        return total


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
    end = _last(ends)
    positions_grad = partial(_positions_grad, system, jax.ShapeDtypeStruct(end[0].shape[1:], end[0].dtype))
    way, incoming_of = algorithm.way_back(system.hamiltonian, positions_grad, steps, size, schedule)

    def stretch(run, total, steps, room=lambda x: x):
        """What `run` carries on, and the gradients."""
        inputs, outputs_grad = steps
        drives, incoming = drives_of(system, room(inputs)), incoming_of(*map(room, steps))
        state, carried, positions, of_run, drives_grad = run(drives, incoming)

        def ports(system, inputs):
            return outputs_of(system, positions, inputs), drives_of(system, inputs)

        _, pull_back = eqx.filter_vjp(ports, system, inputs)
        system_grad, inputs_grad = pull_back((outputs_grad, drives_grad))
        total = jax.tree.map(jnp.add, total, (system_grad, way.hamiltonian_grad(of_run)))
        return (state, carried, total), inputs_grad

    def segment(carry, steps, ends):
        def one(carry, steps):
            state, carried, total = carry
            return stretch(partial(way.stretch, state, carried), total, steps)

        carry, inputs_grad = scan_stretches(one, (_last(ends), *carry), steps, schedule.stretch, reverse=True)
        return carry[1:], inputs_grad

    def blocks(carry, steps, ends):
        carried, total = carry
        carry, inputs_grad = stretch(partial(_in_blocks, way, schedule.unroll, ends, carried), total, steps)
        return carry[1:], inputs_grad

    def segments(carry, steps, ends):
        inputs_grad = []
        for first, count, length in reversed(cut(len(steps[0]))):
            piece = [apart(x[first : first + count * length], count) for x in steps]
            ends, piece_ends = _split(ends, -count)
            carried, total = carry
            (_, *carry), grad = stretch(partial(way.stretch, piece_ends, carried), total, piece, with_room)
            inputs_grad.insert(0, together(grad, count))
        return tuple(carry), jnp.concatenate(inputs_grad)

    of_stretch = segments if way.in_segments else blocks if schedule.scan == "unrolled" else segment
    if schedule.scan != "sequential":
        # Without a loop over stretches, XLA merges the drives of both passes, and keeps them.
        steps = jax.lax.optimization_barrier(steps)
    parameters = eqx.filter(system, eqx.is_inexact_array)
    zero = jax.tree.map(jnp.zeros_like, (parameters, parameters.hamiltonian))
    (_, (system_grad, hamiltonian_grad)), inputs_grad = scan_stretches(
        of_stretch,
        (way.begin(end), zero),
        steps,
        segment_length(schedule.stretch),
        per_stretch=ends,
        rows=schedule.kept,
        reverse=True,
    )
    hamiltonian_grad = jax.tree.map(jnp.add, system_grad.hamiltonian, hamiltonian_grad)
    return eqx.tree_at(lambda system: system.hamiltonian, system_grad, hamiltonian_grad), inputs_grad


def _in_blocks(way, length, ends, carried, drives, incoming):
    """`way.stretch` in blocks of unrolled steps, each from a state that the free pass kept."""

    def block(carried, steps, ends):
        _, carried, positions, total, drives_grad = way.stretch(_last(ends), carried, *steps)
        return carried, (positions, drives_grad, ravel_pytree(total)[0][None])  # one array: a kernel writes one

    carried, (positions, drives_grad, totals) = scan_stretches(
        block, carried, (drives, incoming), length, per_stretch=ends, reverse=True
    )
    total = eqx.filter_eval_shape(way.stretch, _last(ends), carried, drives[:1], incoming[:1])[3]
    _, unravel = ravel_pytree(jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), total))
    return _last(ends), carried, positions, unravel(jnp.sum(totals, axis=0)), drives_grad


def _last(tree):
    return jax.tree.map(lambda x: x[-1], tree)


def _split(tree, at):
    return jax.tree.map(lambda x: x[:at], tree), jax.tree.map(lambda x: x[at:], tree)


def _positions_grad(system, position, inputs, outputs_grad):
    """The gradient through the readout of the positions, (time, batch, osc). `position`: shape and type of one."""

    def at_rest(inputs):
        return as_varying(jnp.zeros((len(inputs), *position.shape), position.dtype), inputs)

    zeros = jax.vmap(at_rest, 1, 1)(inputs)
    _, pull_back = jax.vjp(lambda positions: outputs_of(system, positions, inputs), zeros)
    return pull_back(outputs_grad)[0]
