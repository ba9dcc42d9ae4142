"""Checks for your own Hamiltonian or model: is it admissible, is its gradient right, does its echo return?"""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from ..rhel import BPTT, RHEL, BareSystem, evolve
from ..rhel.hamiltonian import AbstractHamiltonian
from ..rhel.retrace import RETRACE_TOLERANCE, RetraceWarning, retrace_error, retrace_errors
from .admissible import (
    InadmissibleHamiltonian,
    InadmissibleSystem,
    check_hamiltonian,
    check_system,
    try_unit,
)
from .precision import (
    Agreement,
    agreement,
    agreement_by_leaf,
    finite_difference_errors,
    one_rounding,
    rounding_of_constraints,
    to_float64,
    with_same_numbers,
)

__all__ = [
    "RETRACE_TOLERANCE",
    "Agreement",
    "GradientCheck",
    "InadmissibleHamiltonian",
    "InadmissibleSystem",
    "RetraceWarning",
    "WrongGradient",
    "agreement",
    "agreement_by_leaf",
    "check_gradient",
    "check_hamiltonian",
    "check_system",
    "finite_difference_errors",
    "one_rounding",
    "retrace_error",
    "retrace_errors",
    "rounding_of_constraints",
    "to_float64",
    "try_unit",
    "with_same_numbers",
]


class GradientCheck(NamedTuple):
    """Relative errors of the gradient of one leaf, the larger of two losses."""

    rhel: float
    """RHEL in the precision of the arguments, against reverse mode in float64."""
    rhel_float64: float
    """RHEL in float64, against reverse mode in float64."""
    finite_differences: float
    """Central differences in float64 along random directions, against reverse mode in float64; the largest."""


LIMITS = GradientCheck(rhel=1e-2, rhel_float64=1e-5, finite_differences=1e-3)
"""The errors up to which `check_gradient` accepts a gradient. With finite nudges the limit in float64 is 1e-2, too."""

WAYS_OUT = dict(
    rhel="in this precision rounding is amplified: make the time step smaller, or compute in float64",
    rhel_float64="the echoes do not give the gradient: nudge with a smaller epsilon, or write the contrasts in closed "
    "form; mend those whose derivatives differ from those of the energies",
    finite_differences="reverse mode itself is not the slope of the loss: the energies have corners, a stop_gradient "
    "(stop gradients where the Hamiltonian is made) or a wrong derivative rule, or the dynamics are chaotic",
)


class WrongGradient(ValueError):
    """A gradient that disagrees with its reference. `errors`: what `check_gradient(strict=False)` returns."""

    def __init__(self, message: str, errors: dict[str, GradientCheck]):
        self.errors = errors
        super().__init__(message)


def check_gradient(
    hamiltonian: AbstractHamiltonian,
    drives: Float[Array, "time *in"],
    *,
    epsilon: float | None = None,
    literal: bool = False,
    n_osc: int | None = None,
    strict: bool = True,
    key: PRNGKeyArray | None = None,
) -> dict[str, GradientCheck]:
    """Compares RHEL, reverse mode and finite differences on two linear losses of all positions.

    The incoming gradients of one loss are random in time. The incoming gradients of the other are the same at every
    step, as for a mean over time. Returns the errors by leaf: the arrays of the Hamiltonian, and "drives". They are
    relative to the norm of the leaf, or to 1e3 roundings of the whole gradient (1e6 in float64) if these are larger.
    Works whether or not jax is in 64-bit mode.

    `n_osc` as in `models.evolve`. Raises `InadmissibleHamiltonian` where `check_hamiltonian` does, and `WrongGradient`
    where an error exceeds `LIMITS`. `strict=False` raises neither and returns the numbers.
    """
    key = jax.random.PRNGKey(0) if key is None else key
    incoming_key, coherent_key, direction_key = jax.random.split(key, 3)
    if strict:
        check_hamiltonian(hamiltonian, drives, n_osc=n_osc, key=key)
    shape = (len(drives), *BareSystem(hamiltonian, n_osc).position_shape(drives.shape[1:]))
    random = jax.random.normal(incoming_key, shape, drives.dtype)
    same = jnp.abs(jax.random.normal(coherent_key, shape[1:], drives.dtype))
    losses = (random, jnp.broadcast_to(same, shape))
    arguments = (hamiltonian, drives)

    @eqx.filter_jit
    @eqx.filter_grad
    def gradient(arguments, incoming, algorithm):
        return jnp.vdot(evolve(*arguments, learning_algorithm=algorithm, n_osc=n_osc), incoming)

    rhel, resolution = RHEL(epsilon, literal), float(jnp.finfo(drives.dtype).eps)
    narrow = [gradient(arguments, incoming, rhel) for incoming in losses]
    with jax.enable_x64(True):
        arguments, losses = to_float64((arguments, losses))
        wide, reference = ([gradient(arguments, x, algorithm) for x in losses] for algorithm in (rhel, BPTT()))
        both, total = sum(losses), jax.tree.map(jnp.add, *reference)
        differences = finite_difference_errors(
            lambda x: jnp.vdot(evolve(*x, learning_algorithm=BPTT(), n_osc=n_osc), both),
            arguments,
            total,
            key=direction_key,
            floor=1e-6 * _norm(total),
        )
    errors = [
        np.max([_errors(*pair, share) for pair in zip(gradients, reference, strict=True)], axis=0)
        for gradients, share in ((narrow, 1e3 * resolution), (wide, 1e6 * 2.0**-52))
    ]
    names = [
        jax.tree_util.keystr(path).replace("[0].", "", 1).replace("[1]", "drives")
        for path, _ in jax.tree_util.tree_leaves_with_path(total)
    ]
    rows = zip(*errors, differences, strict=True)
    result = {name: GradientCheck(*map(float, row)) for name, row in zip(names, rows, strict=True)}
    limits = LIMITS if epsilon is None and not literal else LIMITS._replace(rhel_float64=LIMITS.rhel)
    if strict and (reasons := _refused(type(hamiltonian).__name__, result, limits)):
        raise WrongGradient("\n- ".join(reasons), result)
    return result


def _norm(tree):
    return float(np.sqrt(sum(np.sum(np.square(np.asarray(x, np.float64))) for x in jax.tree.leaves(tree))))


def _errors(tree, reference, share):
    """Relative error of every leaf. The floor is for leaves whose gradient is zero up to rounding."""
    floor = share * _norm(reference)
    errors = []
    for leaf, wanted in zip(jax.tree.leaves(tree), jax.tree.leaves(reference), strict=True):
        missed = _norm(np.asarray(leaf, np.float64) - np.asarray(wanted, np.float64))
        errors.append(0.0 if missed == 0 else missed / max(_norm(wanted), floor))
    return errors


def _refused(name, errors, limits):
    """Errors above the limits: for every kind of error the leaves, and the way out."""
    reasons = []
    for kind, limit in limits._asdict().items():
        bad = {leaf: getattr(error, kind) for leaf, error in errors.items() if not getattr(error, kind) <= limit}
        # An echo that is wrong in float64 is wrong in every precision.
        if bad and not (kind == "rhel" and any(not error.rhel_float64 <= limit for error in errors.values())):
            leaves = ", ".join(f"{leaf} {error:.1e}" for leaf, error in bad.items())
            reasons.append(f"the gradient of {name} has an error ({kind}) above {limit:g}, {leaves}: {WAYS_OUT[kind]}")
    return reasons
