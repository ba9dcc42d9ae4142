"""Measures for gradients: agreement of arrays, rounding of float32, finite differences."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from ..layer import AbstractHRULayer
from ..normalisation import standardised


class Agreement(NamedTuple):
    """An array compared with its reference, in float64."""

    cosine: float
    norm_ratio: float
    relative_error: float


def agreement(value: ArrayLike | Sequence[float], reference: ArrayLike | Sequence[float]) -> Agreement:
    """Cosine, ratio of the norms, and norm of the difference over the norm of the reference. Two zeros agree."""
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


def to_float64(tree: PyTree) -> PyTree:
    """The same numbers in double precision; call it inside `jax.enable_x64(True)`."""
    return jax.tree.map(lambda x: x.astype(jnp.float64) if eqx.is_inexact_array(x) else x, tree)


def one_rounding(tree: PyTree, *, key: PRNGKeyArray) -> PyTree:
    """The tree with every floating-point number moved by one rounding of float32: 2^-24 of itself, up or down.

    The change of a result in float64 is the precision that float32 can reach for this result. Needs float64.
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
        """Outputs of the unit at the rounded parameters."""
        system = self.unit.system()
        hamiltonian = jax.tree.map(jnp.add, system.hamiltonian, self.rounding)
        system = eqx.tree_at(lambda s: s.hamiltonian, system, hamiltonian)
        return self.unit.learning_algorithm(standardised(system, standardisation), inputs)


def rounding_of_constraints(model: PyTree, *, key: PRNGKeyArray | None = None) -> list[PyTree]:
    """The rounding of the constraints of a float32 model: the constrained parameters of each unit minus the exact ones.

    With a key, the constrained parameters are moved by `one_rounding`. Call it inside `jax.enable_x64(True)`.
    `with_same_numbers` takes the result.
    """
    narrow, exact = ([unit.hamiltonian() for unit in _units(m)] for m in (model, to_float64(model)))
    narrow = to_float64(narrow) if key is None else one_rounding(to_float64(narrow), key=key)
    return jax.tree.map(jnp.subtract, narrow, exact)


def with_same_numbers(model: PyTree, rounding: list[PyTree]) -> PyTree:
    """A model in float64 (see `to_float64`) with the constrained parameters of its float32 original.

    Call it inside a loss: then the gradient has the leaves of the model, and the rounding is a constant.
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
    floor: float = 0.0,
) -> list[float]:
    """Checks a gradient of `function(tree)` by central differences along random directions, leaf by leaf.

    Returns the largest deviation over the directions for each floating-point leaf. It is relative to the typical
    derivative along a unit direction: the norm of the gradient, at least `floor`, over the root of its size. Needs
    float64.
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
            size = max(float(jnp.linalg.norm(slope)), floor) / slope.size**0.5
            largest = max(largest, float(deviation / size) if size > 0 else float(jnp.where(deviation > 0, jnp.inf, 0)))
        errors.append(largest)
    return errors
