"""Checks for a Hamiltonian or a model of one's own: is it admissible, is its gradient right, does its echo return?"""

from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from models.hamiltonian import AbstractHamiltonian
from models.layer import AbstractHRULayer
from models.normalisation import standardised
from models.retrace import RetraceWarning, retrace_error, retrace_errors
from models.rhel import BPTT, RHEL, BareSystem, evolve, rest_state

__all__ = [
    "Agreement",
    "GradientCheck",
    "InadmissibleHamiltonian",
    "RetraceWarning",
    "agreement",
    "agreement_by_leaf",
    "check_gradient",
    "check_hamiltonian",
    "finite_difference_errors",
    "one_rounding",
    "retrace_error",
    "retrace_errors",
    "rounding_of_constraints",
    "to_float64",
    "with_same_numbers",
]


class InadmissibleHamiltonian(ValueError):
    """A Hamiltonian to which the echo does not apply; the message says why and what to change."""


class Agreement(NamedTuple):
    """How an array compares with its reference, in float64."""

    cosine: float
    norm_ratio: float
    relative_error: float


def agreement(value: Array, reference: Array) -> Agreement:
    """Cosine, ratio of norms, and norm of the difference over that of the reference. Two zeros agree."""
    value, reference = (np.asarray(x, np.float64).ravel() for x in (value, reference))
    with np.errstate(over="ignore", invalid="ignore"):
        size, reference_size = np.linalg.norm(value), np.linalg.norm(reference)
        error = np.linalg.norm(value - reference)
        if error == 0:
            return Agreement(1.0, 1.0, 0.0)
        if reference_size == 0:
            return Agreement(0.0, np.inf, np.inf)
        cosine = value @ reference / (size * reference_size) if size > 0 else 0.0
        return Agreement(float(cosine), float(size / reference_size), float(error / reference_size))


def agreement_by_leaf(tree: PyTree, reference: PyTree) -> dict[str, Agreement]:
    """`agreement` of every array leaf, by its path. Raises `ValueError` for trees with different leaves."""
    leaves, references = (jax.tree_util.tree_leaves_with_path(t) for t in (tree, reference))
    return {
        jax.tree_util.keystr(path): agreement(leaf, reference)
        for (path, leaf), (_, reference) in zip(leaves, references, strict=True)
    }


def check_hamiltonian(
    hamiltonian: AbstractHamiltonian, drives: Float[Array, "time osc"], *, key: PRNGKeyArray | None = None
) -> None:
    """Raises `InadmissibleHamiltonian` where an assumption of the echo is violated, as far as samples can tell.

    Looked at: parameters that would get no gradient (arrays of integers, Python floats) or are complex, an empty
    sequence, drives that are not floating-point, energies that are not scalar, not finite or without finite gradient, a
    kinetic energy that is not even, and contrasts that are not the difference of the energies they stand for. That the
    energy is separable and conserved is so by construction.
    """
    name = type(hamiltonian).__name__
    for path, leaf in jax.tree_util.tree_leaves_with_path(hamiltonian):
        where = name + jax.tree_util.keystr(path)
        if eqx.is_array(leaf):
            if jnp.issubdtype(leaf.dtype, jnp.integer):
                raise InadmissibleHamiltonian(
                    f"{where} is an array of {leaf.dtype} and would get no gradient: make it floating-point or, if it "
                    "is no parameter, a static field"
                )
            if jnp.issubdtype(leaf.dtype, jnp.complexfloating):
                raise InadmissibleHamiltonian(
                    f"{where} is an array of {leaf.dtype}, and energies and states are real: make it two real fields"
                )
        elif isinstance(leaf, float | complex):
            real = leaf if isinstance(leaf, float) else [leaf.real, leaf.imag]
            raise InadmissibleHamiltonian(
                f"{where} is a Python {type(leaf).__name__}, {leaf!r}, and would get no gradient: make it "
                f"jnp.asarray({real!r}) or, if it is no parameter, a static field"
            )
    if len(drives) == 0:
        raise InadmissibleHamiltonian("the sequence of drives is empty: it has no steps")
    try:
        zeros, _ = rest_state(BareSystem(hamiltonian), drives)
    except (TypeError, ValueError) as error:
        raise InadmissibleHamiltonian(str(error)) from error

    keys = jax.random.split(jax.random.PRNGKey(0) if key is None else key, 3)
    q, p, half = (jax.random.normal(k, zeros.shape, zeros.dtype) for k in keys)
    drive = drives[0]
    for at, state in (("at rest", (zeros, zeros)), ("at a random state", (q, p))):
        energies = {"potential": lambda h, s: h.potential(s[0], drive), "kinetic": lambda h, s: h.kinetic(s[1])}
        for part, energy in energies.items():
            value = energy(hamiltonian, state)
            if not np.isfinite(value):
                raise InadmissibleHamiltonian(f"{name}.{part} is {value} {at}")
            gradient = eqx.filter_grad(lambda x, energy=energy: energy(*x))((hamiltonian, state))
            for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
                if not np.all(np.isfinite(leaf)):
                    where = name + jax.tree_util.keystr(path[1:]) if path[0].idx == 0 else "qp"[path[1].idx]
                    raise InadmissibleHamiltonian(f"the gradient of {name}.{part} by {where} is not finite {at}")

    there, back = hamiltonian.kinetic(p), hamiltonian.kinetic(-p)
    tolerance = 100 * float(jnp.finfo(zeros.dtype).eps)
    if not np.isclose(there, back, rtol=tolerance, atol=tolerance):
        raise InadmissibleHamiltonian(
            f"{name}.kinetic is not even: {there} at p, {back} at -p; an echo returns only if T(p) = T(-p)"
        )
    pairs = {
        "kinetic": (hamiltonian.kinetic_contrast(p, half), hamiltonian.kinetic, p, ()),
        "potential": (hamiltonian.potential_contrast(q, half, drive), hamiltonian.potential, q, (drive,)),
    }
    for part, (contrast, energy, x, rest) in pairs.items():
        ahead, behind = energy(x + half, *rest), energy(x - half, *rest)
        if not np.isclose(contrast, ahead - behind, rtol=tolerance, atol=tolerance * float(abs(ahead) + abs(behind))):
            raise InadmissibleHamiltonian(
                f"{name}.{part}_contrast is {contrast}, but {name}.{part} differs by {ahead - behind} between the "
                "same two states"
            )


class GradientCheck(NamedTuple):
    """Relative errors of the gradient of one leaf."""

    rhel: float
    """RHEL in the precision of the arguments, against reverse mode in float64."""
    rhel_float64: float
    """RHEL in float64, against reverse mode in float64."""
    finite_differences: float
    """Central differences in float64 along random directions, against reverse mode in float64; the largest."""


def check_gradient(
    hamiltonian: AbstractHamiltonian,
    drives: Float[Array, "time osc"],
    *,
    epsilon: float | None = None,
    literal: bool = False,
    key: PRNGKeyArray | None = None,
) -> dict[str, GradientCheck]:
    """Compares RHEL, reverse mode and finite differences on a random linear loss of all positions.

    Returns the errors by leaf: the arrays of the Hamiltonian, and "drives". Works whether or not jax is in 64-bit mode.
    Raises `InadmissibleHamiltonian` first, where `check_hamiltonian` does.
    """
    check_hamiltonian(hamiltonian, drives)
    incoming_key, direction_key = jax.random.split(jax.random.PRNGKey(0) if key is None else key)
    incoming = jax.random.normal(incoming_key, drives.shape, drives.dtype)
    arguments = (hamiltonian, drives)

    @eqx.filter_jit
    @eqx.filter_grad
    def gradient(arguments, incoming, algorithm):
        return jnp.vdot(evolve(*arguments, learning_algorithm=algorithm), incoming)

    rhel = RHEL(epsilon, literal)
    narrow = gradient(arguments, incoming, rhel)
    with jax.enable_x64(True):
        arguments, incoming = to_float64((arguments, incoming))
        wide, reference = (gradient(arguments, incoming, algorithm) for algorithm in (rhel, BPTT()))
        differences = finite_difference_errors(
            lambda x: jnp.vdot(evolve(*x, learning_algorithm=BPTT()), incoming), arguments, reference, key=direction_key
        )
    rows = zip(
        agreement_by_leaf(narrow, reference).items(),
        agreement_by_leaf(wide, reference).values(),
        differences,
        strict=True,
    )
    return {
        path.replace("[0].", "", 1).replace("[1]", "drives"): GradientCheck(
            value.relative_error, value64.relative_error, difference
        )
        for (path, value), value64, difference in rows
    }


def to_float64(tree: PyTree) -> PyTree:
    """The same numbers in double precision; call it inside `jax.enable_x64(True)`."""
    return jax.tree.map(lambda x: x.astype(jnp.float64) if eqx.is_inexact_array(x) else x, tree)


def one_rounding(tree: PyTree, *, key: PRNGKeyArray) -> PyTree:
    """The tree with every floating-point number moved by one rounding of float32: 2^-24 of itself, up or down.

    How far this moves a result in float64 says how far float32 can determine that result at all. Needs float64.
    """
    arrays, rest = eqx.partition(tree, eqx.is_inexact_array)
    leaves, structure = jax.tree.flatten(arrays)
    moved = [
        leaf * (1 + 2.0**-24 * jax.random.rademacher(leaf_key, leaf.shape, leaf.dtype))
        for leaf, leaf_key in zip(leaves, jax.random.split(key, len(leaves)), strict=True)
    ]
    return eqx.combine(jax.tree.unflatten(structure, moved), rest)


class SameNumbers(eqx.Module):
    """A unit in float64 whose Hamiltonian has the constrained parameters of its float32 original.

    A constraint such as a softplus rounds, and the rounding of a frequency grows with the length of the sequence:
    without this, float32 and float64 would be compared at two different Hamiltonians.
    """

    unit: AbstractHRULayer
    rounding: PyTree

    def __call__(self, inputs, standardisation=None):
        """As the unit's own."""
        system = self.unit.system()
        hamiltonian = jax.tree.map(jnp.add, system.hamiltonian, self.rounding)
        system = eqx.tree_at(lambda s: s.hamiltonian, system, hamiltonian)
        return self.unit.learning_algorithm(standardised(system, standardisation), inputs)


def rounding_of_constraints(model: PyTree, *, key: PRNGKeyArray | None = None) -> list[PyTree]:
    """What the constraints of each unit of a float32 model round off: its constrained parameters minus the exact ones.

    With a key the constrained parameters are taken `one_rounding` away. In double precision; call it inside
    `jax.enable_x64(True)`. The second argument of `with_same_numbers`.
    """
    narrow, exact = ([unit.hamiltonian() for unit in _units(m)] for m in (model, to_float64(model)))
    narrow = to_float64(narrow) if key is None else one_rounding(to_float64(narrow), key=key)
    return jax.tree.map(jnp.subtract, narrow, exact)


def with_same_numbers(model: PyTree, rounding: list[PyTree]) -> PyTree:
    """A model in float64 (see `to_float64`) with the constrained parameters of its float32 original.

    To be called inside a loss, so that its gradient has the leaves of the model and the rounding is a constant.
    """
    units = [SameNumbers(*pair) for pair in zip(_units(model), rounding, strict=True)]
    return eqx.tree_at(_units, model, units)


def _units(model: PyTree) -> list[AbstractHRULayer]:
    def is_unit(node):
        return isinstance(node, AbstractHRULayer)

    return [node for node in jax.tree.leaves(model, is_leaf=is_unit) if is_unit(node)]


def finite_difference_errors(
    function: Callable[[PyTree], Float[Array, ""]],
    tree: PyTree,
    gradient: PyTree,
    *,
    key: PRNGKeyArray,
    directions: int = 2,
    step: float = 1e-6,
) -> list[float]:
    """Checks a gradient of `function(tree)` by central differences along random directions, leaf by leaf.

    Returns for each inexact array leaf the largest deviation over the directions, relative to the size that the
    derivative along a random unit direction has: the norm of the gradient over the root of its size. Needs float64.
    """
    arrays, static = eqx.partition(tree, eqx.is_inexact_array)
    leaves, structure = jax.tree.flatten(arrays)

    @jax.jit
    def value(leaves):
        return function(eqx.combine(jax.tree.unflatten(structure, leaves), static))

    errors = []
    for i, (leaf, slope) in enumerate(zip(leaves, jax.tree.leaves(gradient), strict=True)):
        largest = 0.0
        for direction_key in jax.random.split(jax.random.fold_in(key, i), directions):
            direction = jax.random.normal(direction_key, leaf.shape, leaf.dtype)
            direction /= jnp.linalg.norm(direction)
            ahead, behind = (value([*leaves[:i], leaf + h * direction, *leaves[i + 1 :]]) for h in (step, -step))
            deviation = abs(jnp.vdot(slope, direction) - (ahead - behind) / (2 * step))
            size = jnp.linalg.norm(slope) / slope.size**0.5
            largest = max(largest, float(deviation / size) if size > 0 else float(jnp.where(deviation > 0, jnp.inf, 0)))
        errors.append(largest)
    return errors
