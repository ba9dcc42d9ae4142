"""Checks of a system by its shapes, types and traced methods, before it runs.

The methods are traced at the shapes of one step; no number is computed. Checks with numbers are in `models.check`.
"""

from typing import Any

import equinox as eqx
import jax
import jax.core
import jax.numpy as jnp
from jax.interpreters import partial_eval
from jaxtyping import Array, Float

from .hamiltonian import AbstractHamiltonian

System = Any
"""An `AbstractSystem`, whose module imports this one."""


def position_like(system: System, inputs: Float[Array | jax.ShapeDtypeStruct, "time *in"]) -> jax.ShapeDtypeStruct:
    """Shape and type of a position, and of a momentum, of one sequence."""
    drives = jax.eval_shape(system.drive, _one_step(inputs))
    parameters = jax.tree.leaves(eqx.filter(system.hamiltonian, eqx.is_inexact_array))
    dtype = jnp.result_type(drives.dtype, *(x.dtype for x in parameters))
    return jax.ShapeDtypeStruct(system.position_shape(drives.shape[1:]), dtype)


def _one_step(inputs):
    return jax.ShapeDtypeStruct((1, *inputs.shape[1:]), inputs.dtype)


def require_admissible(system: System, inputs: Float[Array | jax.ShapeDtypeStruct, "time *in"]) -> None:
    """Raises if the shapes and types of a system do not allow it to run or to be differentiated.

    `TypeError` for drives that are not floating-point, a Hamiltonian that is no `AbstractHamiltonian`, and parameters
    that are no fields (`CapturedTracer`); `ValueError` for energies that are not scalars or cannot be evaluated.
    """
    hamiltonian = system.hamiltonian
    require_hamiltonian(hamiltonian)
    inputs = _one_step(inputs)
    (drives,) = _traced(type(system).drive, system, inputs)
    if not jnp.issubdtype(drives.dtype, jnp.floating):
        raise TypeError(f"the drives must be floating-point, got {drives.dtype}: convert them with .astype(float)")
    state, drive = position_like(system, inputs), jax.ShapeDtypeStruct(drives.shape[1:], drives.dtype)
    for name, arguments in (("kinetic", (state,)), ("potential", (state, drive))):
        where = f"{type(hamiltonian).__name__}.{name}"
        try:
            energies = _traced(getattr(type(hamiltonian), name), hamiltonian, *arguments)
        except CapturedTracer:
            raise
        except (TypeError, ValueError, IndexError) as error:
            raise ValueError(
                f"{where} cannot be evaluated at positions and momenta of shape {state.shape} and a drive of shape "
                f"{drive.shape}: {str(error).rstrip('. ')}. {_way_out(system, error)}"
            ) from error
        shapes = [energy.shape for energy in energies]
        if shapes != [()]:
            got = f"shape {shapes[0]}" if len(shapes) == 1 else f"{len(shapes)} arrays"
            raise ValueError(f"{where} must return a scalar, got {got}: sum over the oscillators")
    _traced(type(system).readout, system, jax.ShapeDtypeStruct((1, *state.shape), state.dtype), inputs)


def _way_out(system: System, error: Exception) -> str:
    """What may mend an energy that cannot be evaluated."""
    if "int32" in str(error) and "int64" in str(error):  # jax remembers the type that it gave to an array
        return "An index of whole numbers works in both precisions as a NumPy array of int32"
    if getattr(system, "n_osc", None) is not None:
        return f"Positions have the shape ({system.n_osc},), from n_osc; drives are (time, number of drives)"
    if hasattr(system, "n_osc"):
        return "A position has the shape of a drive; for another number of oscillators, give it as n_osc"
    return "A position has the shape of a drive, unless position_shape of the ports of the unit says another one"


def require_hamiltonian(hamiltonian: object) -> None:
    """Raises `TypeError` if it is no `AbstractHamiltonian`."""
    if not isinstance(hamiltonian, AbstractHamiltonian):
        name = type(hamiltonian).__name__
        raise TypeError(
            f"{name} is not an AbstractHamiltonian: write class {name}(AbstractHamiltonian), with the class of "
            "models.hamiltonian, and declare its parameters as fields"
        )


class CapturedTracer(TypeError):
    """A method uses an array that jax is tracing and that is no field. Its gradient would be missing or wrong."""


def _traced(method, module, *arguments):
    """Shapes and types that a method of a module returns. Raises `CapturedTracer`."""
    arrays, static = eqx.partition(module, eqx.is_array)
    jaxpr = jax.make_jaxpr(lambda arrays, *x: method(eqx.combine(arrays, static), *x))(arrays, *arguments)
    captured = [x for x in jaxpr.consts if isinstance(x, jax.core.Tracer)]
    if captured:
        raise CapturedTracer(
            f"{method.__qualname__} uses {', '.join(jax.typeof(x).str_short() for x in captured)} from outside, which "
            "jax is differentiating, batching or compiling: the gradient would miss it. Make it an array field of "
            f"{type(module).__name__}, and pass it to the constructor"
        )
    return jaxpr.out_avals


def require_linear_readout(system: System, inputs: Float[Array | jax.ShapeDtypeStruct, "time *in"]) -> None:
    """Raises `ValueError` if the derivative of the readout by the positions depends on the positions."""
    inputs, state = _one_step(inputs), position_like(system, inputs)
    positions = jax.ShapeDtypeStruct((1, *state.shape), state.dtype)

    def derivative(positions, change, inputs):
        return jax.jvp(lambda positions: system.readout(positions, inputs), (positions,), (change,))[1]

    jaxpr = jax.make_jaxpr(derivative)(positions, positions, inputs).jaxpr
    # An equation without outputs, such as a print of the positions, does not matter.
    jaxpr = jaxpr.replace(eqns=[equation for equation in jaxpr.eqns if equation.outvars])
    _, used = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    if used[0]:
        raise ValueError(
            f"{type(system).__name__}.readout is not linear in the positions, so that the echo is nudged wrongly: "
            "apply the nonlinear part to the outputs of the system instead, or use BPTT"
        )


def require_force_of_energies(hamiltonian: AbstractHamiltonian) -> None:
    """Raises `ValueError` for a Hamiltonian that overrides `velocity` or `force`."""
    kind = type(hamiltonian)
    for name, energy in (("velocity", "kinetic"), ("force", "potential")):
        if getattr(kind, name) is not getattr(AbstractHamiltonian, name):
            raise ValueError(
                f"{kind.__name__} overrides {name}, but the echo follows from the energies alone: delete the override, "
                f"{name} is the derivative of {energy}. RHEL(literal=True) runs the override as it is, as a physical "
                "machine does; models.check.check_hamiltonian compares it with the energy"
            )
