"""The distance by which the echo without nudges misses the start of the free pass. It shows unstable dynamics."""

import warnings
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from typing_extensions import override

from .backprop import BPTT
from .evolve import with_learning_algorithm
from .hamiltonian import AbstractHamiltonian, State, flow
from .system import AbstractLearningAlgorithm, AbstractSystem, rest_state

RETRACE_TOLERANCE = 1e-3


class RetraceWarning(UserWarning):
    """An echo without nudges misses the state that the free pass started from."""


def retrace_error(system: AbstractSystem, inputs: Float[Array | np.ndarray, "time *in"]) -> Float[Array, ""]:
    """How far the echo without nudges misses the rest state, relative to the largest position or momentum on the way.

    This echo runs the whole way back from the final state. The echo of `RHEL()` rejoins the kept states and is less
    sensitive; the literal echo is as sensitive as this one.
    """
    inputs = jnp.asarray(inputs)
    return miss(system.hamiltonian, rest_state(system, inputs), system.drive(inputs))


def miss(hamiltonian: AbstractHamiltonian, start: State, drives: Float[Array, "time *in"]) -> Float[Array, ""]:
    """How far the flow from `start` and back misses `start`, relative to the largest number on the way."""
    (q, p), positions = flow(hamiltonian, start, drives)
    scale = _largest(start, positions, p)
    (q, p), _ = flow(hamiltonian, (q, -p), drives[::-1])
    missed = _largest(q - start[0], p + start[1])
    return jnp.where(missed == 0, 0, missed / scale)


def _largest(*arrays):
    return jnp.max(jnp.stack([jnp.max(jnp.abs(x)) for x in jax.tree.leaves(arrays)]))


class RetraceProbe(AbstractLearningAlgorithm):
    """The free pass. It also hands the retrace error of the unit to `record`."""

    record: Callable = eqx.field(static=True)

    @override
    def respond(self, system, inputs):
        return BPTT().respond(system, inputs)

    @override
    def __call__(self, system, inputs):
        self.record(retrace_error(system, inputs))
        return super().__call__(system, inputs)


@eqx.filter_jit
def _retrace_errors(model, state, x):
    def of_one(x):
        errors: list[Array] = []
        with_learning_algorithm(model, RetraceProbe(errors.append))(x, state, None)
        return jnp.stack(errors)

    return jax.vmap(of_one, axis_name="batch")(x)


def retrace_errors(
    model: eqx.Module,
    state: eqx.nn.State,
    x: Float[Array, "batch time channels"],
    over: Callable[[Callable], Callable] = lambda function: function,
) -> Float[Array, "batch units"]:
    """`retrace_error` of every unit of a model without dropout, on a batch in training mode.

    The echo of a damped unit runs in its gauge (`physics.damping`), which starts again every few steps: the error is
    the largest of them. Warns with `RetraceWarning` where an error exceeds `RETRACE_TOLERANCE`. `over(function)` is a
    function(model, state, x) as several devices compute it; by default one computes it.
    """
    result = over(_retrace_errors)(model, state, x)
    for unit, error in enumerate(np.max(result, axis=0)):
        if not error <= RETRACE_TOLERANCE:
            warnings.warn(
                f"the echo of unit {unit} misses its initial state by {error:.1e} of the largest state: its dynamics "
                "are unstable or chaotic at this step and precision; make the step smaller or compute in float64",
                RetraceWarning,
                stacklevel=2,
            )
    return result
