"""How far the echo without nudges misses where the free pass started: unstable or chaotic dynamics show there."""

import warnings
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .backprop import BPTT
from .evolve import with_learning_algorithm
from .hamiltonian import AbstractHamiltonian, State, flow
from .system import AbstractLearningAlgorithm, AbstractSystem, rest_state

RETRACE_TOLERANCE = 1e-3


class RetraceWarning(UserWarning):
    """An echo without nudges misses the state that the free pass started from."""


def retrace_error(system: AbstractSystem, inputs: Float[Array, "time in"]) -> Float[Array, ""]:
    """How far the echo without nudges misses the rest state, relative to the largest position or momentum on the way.

    It runs the whole way back from the final state. The gradient in mean and half-difference restarts at every chunk
    and is less sensitive; the literal pair is as sensitive as this.
    """
    return miss(system.hamiltonian, rest_state(system, inputs), system.drive(inputs))


def miss(hamiltonian: AbstractHamiltonian, start: State, drives: Float[Array, "time osc"]) -> Float[Array, ""]:
    """How far the flow from `start` and back misses it, relative to the largest number on the way. 0: exactly back."""
    (q, p), positions = flow(hamiltonian, start, drives)
    scale = _largest(start, positions, p)
    (q, p), _ = flow(hamiltonian, (q, -p), drives[::-1])
    missed = _largest(q - start[0], p + start[1])
    return jnp.where(missed == 0, 0, missed / scale)


def _largest(*arrays):
    return jnp.max(jnp.stack([jnp.max(jnp.abs(x)) for x in jax.tree.leaves(arrays)]))


class RetraceProbe(AbstractLearningAlgorithm):
    """The free pass. On the way it hands the retrace error of the unit to `record`."""

    record: Callable = eqx.field(static=True)

    def respond(self, system, inputs):
        """Outputs of the system, from rest, to a batch of sequences."""
        return BPTT().respond(system, inputs)

    def __call__(self, system, inputs):
        """Outputs of the system, from rest, to a sequence."""
        self.record(retrace_error(system, inputs))
        return super().__call__(system, inputs)


@eqx.filter_jit
def _retrace_errors(model, state, x):
    def of_one(x):
        found: list[Array] = []
        with_learning_algorithm(model, RetraceProbe(found.append))(x, state, None)
        return jnp.stack(found)

    return jax.vmap(of_one, axis_name="batch")(x)


def retrace_errors(
    model: eqx.Module, state: eqx.nn.State, x: Float[Array, "batch time channels"]
) -> Float[Array, "batch units"]:
    """`retrace_error` of every unit of a model without dropout, on a batch in training mode.

    The echo of a damped unit runs in its gauge (`physics.damping`), which begins anew every few steps: the error is
    the largest over these. Warns with `RetraceWarning` where an error exceeds `RETRACE_TOLERANCE`.
    """
    result = _retrace_errors(model, state, x)
    for unit, error in enumerate(np.max(result, axis=0)):
        if not error <= RETRACE_TOLERANCE:
            warnings.warn(
                f"the echo of unit {unit} misses its initial state by {error:.1e} of the largest state: its dynamics "
                "are unstable or chaotic at this step and precision; make the step smaller or compute in float64",
                RetraceWarning,
                stacklevel=2,
            )
    return result
