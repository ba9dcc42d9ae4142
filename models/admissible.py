"""Does the echo apply to a Hamiltonian, or to a system? Whatever does not, every reason comes with a way out.

The form is read from the fields and from traces of the energies; what needs numbers is in `models.sampled_checks`.
"""

import inspect
from collections.abc import Iterator

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from models.hamiltonian import AbstractHamiltonian
from models.precision import to_float64
from models.sampled_checks import AGREES, CHECKS, first, not_finite, sampled, worst
from models.system import AbstractSystem, BareSystem, rest_state


class InadmissibleSystem(ValueError):
    """A system to which the echo does not apply. `reasons`: what fails, each with what to change."""

    def __init__(self, reasons: list[str]):
        self.reasons = list(reasons)
        many = len(self.reasons) > 1
        super().__init__("\n- ".join([f"{len(self.reasons)} violations:", *self.reasons]) if many else self.reasons[0])


class InadmissibleHamiltonian(InadmissibleSystem):
    """A Hamiltonian to which the echo does not apply. `reasons`: what fails, each with what to change."""


def check_hamiltonian(
    hamiltonian: AbstractHamiltonian, drives: Float[Array, "time osc"], *, key: PRNGKeyArray | None = None
) -> None:
    """Raises `InadmissibleHamiltonian` with every assumption of the echo that is violated, as far as samples can tell.

    First the form: parameters that would get no gradient (Python numbers, integers, arrays that the energies take from
    outside) or are complex, drives that are not floating-point, energies that cannot be evaluated or are not real
    scalars. Then energies, slopes and trajectory that are not finite. Then `CHECKS`. `key` draws the samples.
    """
    for look in (_fields, _drives, _energies, _captured):
        if reasons := list(look(hamiltonian, drives)):
            raise InadmissibleHamiltonian(reasons)
    key = jax.random.PRNGKey(0) if key is None else key
    with jax.enable_x64(True):
        samples, reasons = sampled(to_float64(hamiltonian), to_float64(drives), key)
        reasons += not_finite(samples) if samples else []
        if not reasons:
            reasons = [f"{reason}: {check.way_out}" for check in CHECKS for reason in check.violations(samples)]
    if reasons:
        raise InadmissibleHamiltonian(reasons)


# The form


def _name(owner: PyTree) -> str:
    return type(owner).__name__


def _fields(owner: PyTree, _=None) -> Iterator[str]:
    """Fields that look like parameters and would get no gradient."""
    if not isinstance(owner, AbstractHamiltonian | AbstractSystem):
        yield f"{_name(owner)} is no AbstractHamiltonian: make it a subclass of models.hamiltonian.AbstractHamiltonian"
        return
    for path, leaf in jax.tree_util.tree_leaves_with_path(owner):
        where = _name(owner) + jax.tree_util.keystr(path)
        if eqx.is_array(leaf):
            if jnp.issubdtype(leaf.dtype, jnp.integer):
                yield (
                    f"{where} is an array of {leaf.dtype} and would get no gradient: make it floating-point or, if it "
                    "is no parameter, a static field"
                )
            if jnp.issubdtype(leaf.dtype, jnp.complexfloating):
                yield (
                    f"{where} is an array of {leaf.dtype}, and energies and states are real: make it two real fields"
                )
        elif isinstance(leaf, int | float | complex) and not isinstance(leaf, bool):
            real = [leaf.real, leaf.imag] if isinstance(leaf, complex) else float(leaf)
            yield (
                f"{where} is a Python {type(leaf).__name__}, {leaf!r}, and would get no gradient: make it "
                f"jnp.asarray({real!r}) or, if it is no parameter, a static field"
            )


def _drives(hamiltonian: AbstractHamiltonian, drives: Array) -> Iterator[str]:
    if not eqx.is_array(drives) or drives.ndim == 0:
        yield f"the drives must be one array (time, ..), got {type(drives).__name__}"
    elif len(drives) == 0:
        yield "the sequence of drives is empty: it has no steps"
    elif not jnp.issubdtype(drives.dtype, jnp.floating):
        yield f"the drives must be floating-point, got {drives.dtype}: convert them with .astype(float)"
    elif not np.all(finite := np.isfinite(drives).reshape(len(drives), -1).all(1)):
        yield f"the drives hold numbers that are not finite, at first in step {first(~finite)}"


def _energies(hamiltonian: AbstractHamiltonian, drives: Array) -> Iterator[str]:
    """Energies that cannot be evaluated, or whose value is no real scalar."""
    state = jax.ShapeDtypeStruct(drives.shape[1:], drives.dtype)
    # Once more after the potential: each energy may be using what the other has left behind.
    for part, arguments in (("kinetic", "p"), ("potential", "q, drive"), ("kinetic", "p")):
        energy = getattr(hamiltonian, part)
        where = f"{_name(hamiltonian)}.{part}"
        try:
            value = jax.eval_shape(lambda *x, energy=energy: energy(*x), *[state] * len(arguments.split(",")))
            shape, dtype = value.shape, value.dtype
        except Exception as error:
            yield (
                f"{where}({arguments}) fails with {type(error).__name__} at {arguments} of shape {state.shape}: make "
                f"it a function of {arguments} and the fields alone, of the shape of the drives of one step. "
                f"The error: {str(error).splitlines()[0]}"
            )
            return
        if shape != ():
            yield f"{where} must return a scalar, got shape {shape}: sum over the oscillators"
        elif not jnp.issubdtype(dtype, jnp.floating):
            yield f"{where} must return a real floating-point number, got {dtype}: an energy is real and has a slope"
        else:
            continue
        return


def _captured(hamiltonian: AbstractHamiltonian, drives: Array) -> Iterator[str]:
    zeros, _ = rest_state(BareSystem(hamiltonian), drives)
    yield from _captured_by(hamiltonian, "kinetic", zeros)
    yield from _captured_by(hamiltonian, "potential", zeros, drives[0])


def _captured_by(owner: PyTree, method: str, *arguments: Array) -> Iterator[str]:
    """Floating-point jax arrays that a method uses although they are no leaf of its owner.

    Numbers and NumPy arrays are constants, and so is what the method makes itself: only what was a jax array before, or
    is being differentiated, was meant to have a gradient.
    """
    leaves, static = eqx.partition(owner, eqx.is_array)

    def of_leaves(leaves, *arguments):
        return getattr(eqx.combine(leaves, static), method)(*arguments)

    for array in jax.make_jaxpr(of_leaves)(leaves, *arguments).consts:
        if not isinstance(array, jax.Array) or not jnp.issubdtype(array.dtype, jnp.floating):
            continue
        what = f"{array.dtype} of shape {array.shape}"
        where = f"{_name(owner)}.{method} uses {_where_from(owner, method, array)}, {what}"
        if isinstance(array, jax.core.Tracer):
            yield (
                f"{where}, which jax is tracing elsewhere: a parameter closed over, which gets no gradient, or a state "
                "that another call left behind; make it a field, and use no states but the arguments"
            )
        else:
            yield (
                f"{where}, which is no field and gets no gradient: make it a field (of a callable that is an "
                "eqx.Module and not static, for instance) or, if it is no parameter, a NumPy array"
            )


def _where_from(owner: PyTree, method: str, array: Array) -> str:
    """The name by which a method, or a function in a field, knows an array."""
    functions = [getattr(type(owner), method), *(x for x in vars(owner).values() if inspect.isfunction(x))]
    for function in functions:
        scope = inspect.getclosurevars(inspect.unwrap(function))
        for name, value in {**scope.globals, **scope.nonlocals}.items():
            if value is array:
                return f"the array {name} from outside"
    return "an array from outside"


# Systems


def check_system(system: AbstractSystem, inputs: Float[Array, "time in"], *, key: PRNGKeyArray | None = None) -> None:
    """Raises `InadmissibleSystem` with every violated assumption about the ports and, as above, the Hamiltonian.

    About the ports: the readout is linear in the positions (plus what does not depend on them), both treat every step
    alike, and neither uses arrays that are no fields.
    """
    key, drives = jax.random.PRNGKey(0) if key is None else key, system.drive(inputs)
    reasons = list(_fields(eqx.tree_at(lambda s: s.hamiltonian, system, None)))
    try:
        check_hamiltonian(system.hamiltonian, drives, key=key)
    except InadmissibleHamiltonian as error:
        reasons += error.reasons
    reasons += [*_captured_by(system, "drive", inputs), *_captured_by(system, "readout", drives, inputs)]
    with jax.enable_x64(True):
        reasons += _wrong_ports(to_float64(system), to_float64(inputs), key)
    if reasons:
        raise InadmissibleSystem(reasons)


def _wrong_ports(system: AbstractSystem, inputs: Array, key: PRNGKeyArray) -> Iterator[str]:
    name, drives = _name(system), system.drive(inputs)
    x, y = jax.random.normal(key, (2, *drives.shape), drives.dtype)

    def readout(positions):
        return np.asarray(system.readout(positions, inputs))

    whole = readout(x)
    error, _ = worst((readout(x + y) + readout(0 * x))[None], (whole + readout(y))[None])
    if not error <= AGREES:
        yield (
            f"{name}.readout is not linear in the positions ({100 * error:.2g} % off), so that the nudges are not what "
            "the loss asks for: read the positions linearly, and do what is nonlinear after the system"
        )
    half = slice(len(inputs) // 2, None)
    ports = {
        "drive": (drives, lambda: system.drive(inputs[half])),
        "readout": (whole, lambda: system.readout(x[half], inputs[half])),
    }
    for port, (whole, of_stretch) in ports.items():
        of_whole = whole[half] if len(whole) == len(inputs) else None
        if of_whole is None or of_stretch().shape != of_whole.shape or not worst(of_stretch(), of_whole)[0] <= AGREES:
            yield (
                f"{name}.{port} does not treat every step alike: of a stretch of the sequence it gives other values "
                "than of the whole; do what looks along time outside the system"
            )
