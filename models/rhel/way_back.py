"""The way back: what the echo and reversible backpropagation share.

The free pass keeps the inputs, and a state after every `SEGMENT` steps, or after every stretch if a stretch is longer.
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

from .free_pass import AbstractScanned, Schedule, free_pass
from .hamiltonian import AbstractHamiltonian, State
from .requirements import require_linear_readout
from .stretches import scan_stretches, segment_length
from .system import drives_of, one_sequence, outputs_of


class AbstractWayBack(eqx.Module):
    """Three methods, each for a batch. `moving`, any pytree, is what a way back carries from stretch to stretch."""

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
    positions_grad = partial(_positions_grad, system, end[0])
    way, incoming_of = algorithm.way_back(system.hamiltonian, positions_grad, steps, size, schedule)

    def stretch(carry, steps):
        moving, total = carry
        inputs, outputs_grad = steps
        drives, incoming = drives_of(system, inputs), incoming_of(inputs, outputs_grad)
        moving, positions, hamiltonian_grad, drives_grad = way.stretch(moving, drives, incoming)

        def ports(system, inputs):
            return outputs_of(system, positions, inputs), drives_of(system, inputs)

        _, pull_back = eqx.filter_vjp(ports, system, inputs)
        system_grad, inputs_grad = pull_back((outputs_grad, drives_grad))
        return (moving, jax.tree.map(jnp.add, total, (system_grad, hamiltonian_grad))), inputs_grad

    def segment(carry, steps, end):
        moving, total = carry
        return scan_stretches(stretch, (way.rejoin(moving, end), total), steps, schedule.stretch, reverse=True)

    parameters = eqx.filter(system, eqx.is_inexact_array)
    zero = jax.tree.map(jnp.zeros_like, (parameters, parameters.hamiltonian))
    (_, (system_grad, hamiltonian_grad)), inputs_grad = scan_stretches(
        segment, (way.begin(end), zero), steps, segment_length(schedule.stretch), per_stretch=ends, reverse=True
    )
    hamiltonian_grad = jax.tree.map(jnp.add, system_grad.hamiltonian, hamiltonian_grad)
    return eqx.tree_at(lambda system: system.hamiltonian, system_grad, hamiltonian_grad), inputs_grad


def _positions_grad(system, position, inputs, outputs_grad):
    """The gradient through the readout of the positions, (time, batch, osc). `position`: one of every sequence."""
    zeros = jnp.broadcast_to(jnp.zeros_like(position), (len(inputs), *position.shape))
    _, pull_back = jax.vjp(lambda positions: outputs_of(system, positions, inputs), zeros)
    return pull_back(outputs_grad)[0]
