"""Does the echo apply to a Hamiltonian, or to a system? Every reason against it comes with a way out.

This file reads the form from the fields and from traces of the energies. `models.check.sampled` checks with numbers.
"""

import inspect
import warnings
from collections.abc import Callable, Iterator

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import checkify
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from ..layer import AbstractHRULayer
from ..rhel.hamiltonian import AbstractHamiltonian
from ..rhel.system import AbstractSystem, BareSystem, position_like, require_admissible, rest_state
from .precision import to_float64
from .sampled import AGREES, CHECKS, first, not_finite, sampled, worst


class InadmissibleSystem(ValueError):
    """A system to which the echo does not apply. `reasons`: every violation, with the change that mends it."""

    def __init__(self, reasons: list[str]):
        self.reasons = list(reasons)
        many = len(self.reasons) > 1
        super().__init__("\n- ".join([f"{len(self.reasons)} violations:", *self.reasons]) if many else self.reasons[0])


class InadmissibleHamiltonian(InadmissibleSystem):
    """A Hamiltonian to which the echo does not apply."""


def check_hamiltonian(
    hamiltonian: AbstractHamiltonian,
    drives: Float[Array, "time *in"],
    *,
    n_osc: int | None = None,
    key: PRNGKeyArray | None = None,
) -> None:
    """Raises `InadmissibleHamiltonian` with every assumption of the echo that is violated, as far as samples can tell.

    First the form: parameters that would get no gradient (Python numbers, integers, arrays that the energies take from
    outside) or are complex, drives that are not floating-point, energies that cannot be evaluated or are not real
    scalars, indices beyond an array. Then energies, slopes and trajectory that are not finite. Then
    `models.check.sampled.CHECKS`. `n_osc` as in `models.evolve`; `key` draws the samples.
    """
    system, key = BareSystem(hamiltonian, n_osc), jax.random.PRNGKey(0) if key is None else key
    if reasons := _wrong_form(system, drives) or _wrong_numbers(system, drives, key):
        raise InadmissibleHamiltonian(reasons)


def _wrong_form(system: AbstractSystem, inputs: Array) -> list[str]:
    """The violations of the first check that fails. The later checks rely on the earlier ones."""
    for look in (_fields, _drives, _energies, _indices, _captured, _finite_drives):
        if reasons := list(look(system.hamiltonian, system, inputs)):
            return reasons
    return []


def _wrong_numbers(system: AbstractSystem, inputs: Array, key: PRNGKeyArray) -> list[str]:
    shape = rest_state(system, inputs)[0].shape
    with jax.enable_x64(True):
        system, inputs = to_float64((system, inputs))
        samples, reasons = sampled(system.hamiltonian, system.drive(inputs), shape, key)
        if samples is None:
            return reasons
        reasons += not_finite(samples)
        return reasons or [f"{reason}: {check.way_out}" for check in CHECKS for reason in check.violations(samples)]


# The form


def _name(owner: PyTree) -> str:
    return type(owner).__name__


def _fields(owner: AbstractHamiltonian | AbstractSystem, *_) -> Iterator[str]:
    """Fields that look like parameters but would get no gradient."""
    if not isinstance(owner, AbstractHamiltonian | AbstractSystem):
        yield f"{_name(owner)} is not an AbstractHamiltonian: subclass models.hamiltonian.AbstractHamiltonian"
        return
    for path, leaf in jax.tree_util.tree_leaves_with_path(owner):
        where = _name(owner) + jax.tree_util.keystr(path)
        if eqx.is_array(leaf):
            if jnp.issubdtype(leaf.dtype, jnp.integer) and isinstance(leaf, jax.Array):
                yield (
                    f"{where} is an array of {leaf.dtype} and would get no gradient: make it floating-point or, if it "
                    "is no parameter but an index, a NumPy array of int32"
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


def _drives(_: AbstractHamiltonian, system: AbstractSystem, inputs: Array) -> Iterator[str]:
    if not isinstance(inputs, jax.Array | np.ndarray) or inputs.ndim == 0:
        yield f"the drives must be one array (time, ..), got {type(inputs).__name__}: stack its arrays"
    elif len(inputs) == 0:
        yield "the sequence of drives is empty: it has no steps"


def _finite_drives(_: AbstractHamiltonian, system: AbstractSystem, inputs: Array) -> Iterator[str]:
    finite = np.all(np.isfinite(system.drive(inputs)).reshape(len(inputs), -1), axis=1)
    if not np.all(finite):
        yield f"the drives hold numbers that are not finite, at first in step {first(~finite)}"


def _energies(hamiltonian: AbstractHamiltonian, system: AbstractSystem, inputs: Array) -> Iterator[str]:
    """Energies that cannot be evaluated, or that are not real numbers."""
    try:
        require_admissible(system, inputs)
    except (TypeError, ValueError) as error:
        yield str(error)
        return
    state, drive = rest_state(system, inputs)[0], system.drive(inputs)[0]
    for part, arguments in (("kinetic", (state,)), ("potential", (state, drive))):
        dtype = jax.eval_shape(lambda *x, part=part: getattr(hamiltonian, part)(*x), *arguments).dtype
        if not jnp.issubdtype(dtype, jnp.floating):
            where = f"{_name(hamiltonian)}.{part}"
            yield f"{where} must return a real floating-point number, got {dtype}: an energy is real and has a slope"


def _indices(_: AbstractHamiltonian, system: AbstractSystem, inputs: Array) -> Iterator[str]:
    try:
        _require_indices(lambda system: system, system, inputs)
    except ValueError as error:
        yield str(error)


def _require_indices(system_of: Callable, module: PyTree, inputs: Array | jax.ShapeDtypeStruct) -> None:
    """Raises `ValueError` if the system of a module uses an index beyond an array, in its energies or ports.

    jax itself reads another element, and drops the gradient. Needs the shapes only: every parameter and input is 0.
    """

    def evaluated(arrays, inputs, position):
        system = system_of(eqx.combine(arrays, static))
        hamiltonian, drives = system.hamiltonian, system.drive(inputs)
        energies = hamiltonian.kinetic(position), hamiltonian.potential(position, drives[0])
        return energies, system.readout(position[None], inputs)

    arrays, static = eqx.partition(module, eqx.is_array)
    inputs = jax.ShapeDtypeStruct((1, *inputs.shape[1:]), inputs.dtype)
    name, position = _name(system_of(module).hamiltonian), position_like(system_of(module), inputs)
    # A model may be made for its shapes alone. checkify warns of indices of int64.
    with jax.ensure_compile_time_eval(), warnings.catch_warnings(action="ignore"):
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (arrays, inputs, position))
        error, _ = jax.jit(checkify.checkify(evaluated, errors=checkify.index_checks))(*zeros)
        message = error.get()
    if message is not None:
        raise ValueError(
            f"an index in the energies or ports of {name} is beyond its array "
            f"({message.strip().rstrip('.')}). jax does not stop there: it reads another element and drops its "
            "gradient. Mend the index, or the number of oscillators. At the ends of a chain use jnp.pad or jnp.clip: a "
            "mode of the indexing is not seen"
        )


def try_unit(unit: AbstractHRULayer, hidden_dim: int) -> None:
    """Traces a unit at one step, and raises what its methods raise; `ValueError` for an index beyond an array."""
    inputs = jax.ShapeDtypeStruct((1, hidden_dim), float)
    eqx.filter_eval_shape(unit, inputs)
    _require_indices(lambda unit: unit.system(), unit, inputs)


def _captured(hamiltonian: AbstractHamiltonian, system: AbstractSystem, inputs: Array) -> Iterator[str]:
    state, _ = rest_state(system, inputs)
    yield from _captured_by(hamiltonian, "kinetic", state)
    yield from _captured_by(hamiltonian, "potential", state, system.drive(inputs)[0])


def _captured_by(owner: PyTree, method: str, *arguments: Array) -> Iterator[str]:
    """Floating-point jax arrays that a method uses although they are not fields of its owner.

    Numbers, NumPy arrays and arrays that the method makes itself are constants. A jax array from outside was meant to
    have a gradient. `models.rhel.requirements.require_admissible` refuses arrays that jax is tracing.
    """
    leaves, static = eqx.partition(owner, eqx.is_array)

    def of_leaves(leaves, *arguments):
        return getattr(eqx.combine(leaves, static), method)(*arguments)

    for array in jax.make_jaxpr(of_leaves)(leaves, *arguments).consts:
        if isinstance(array, jax.Array) and jnp.issubdtype(array.dtype, jnp.floating):
            what = f"{array.dtype} of shape {array.shape}"
            yield (
                f"{_name(owner)}.{method} uses {_where_from(owner, method, array)}, {what}, which is no field and gets "
                "no gradient: make it a field (of a callable that is an eqx.Module and not static, for instance) or, "
                "if it is no parameter, a NumPy array"
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


def check_system(system: AbstractSystem, inputs: Float[Array, "time *in"], *, key: PRNGKeyArray | None = None) -> None:
    """Raises `InadmissibleSystem` with every violated assumption about the ports and about the Hamiltonian.

    The assumptions about the ports: the readout is affine in the positions, both ports treat every step alike, and
    neither uses arrays that are not fields.
    """
    key = jax.random.PRNGKey(0) if key is None else key
    ports = eqx.tree_at(lambda s: s.hamiltonian, system, None)
    reasons = [*_fields(ports), *_wrong_form(system, inputs)]
    if not reasons:
        positions = jnp.zeros((len(inputs), *rest_state(system, inputs)[0].shape), inputs.dtype)
        reasons = [*_captured_by(system, "drive", inputs), *_captured_by(system, "readout", positions, inputs)]
        reasons += _wrong_numbers(system, inputs, key)
        with jax.enable_x64(True):
            reasons += _wrong_ports(*to_float64((system, inputs, positions)), key)
    if reasons:
        raise InadmissibleSystem(reasons)


def _wrong_ports(system: AbstractSystem, inputs: Array, positions: Array, key: PRNGKeyArray) -> Iterator[str]:
    name, drives = _name(system), system.drive(inputs)
    x, y = jax.random.normal(key, (2, *positions.shape), positions.dtype)

    def readout(positions):
        return np.asarray(system.readout(positions, inputs))

    whole = readout(x)
    error, _ = worst((readout(x + y) + readout(0 * x))[None], (whole + readout(y))[None])
    if not error <= AGREES:
        yield (
            f"{name}.readout is not linear in the positions ({100 * error:.2g} % off), so that the nudges are not what "
            "the loss asks for: read the positions linearly, and apply nonlinear functions after the system"
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
