"""The assumptions of the echo about a Hamiltonian, checked at sampled states. Every check has its way out.

The samples, in float64: the rest state, the trajectory from rest over the given drives, and random states of 0.1, 1 and
3 times the size of that trajectory. A Hamiltonian that passes can still fail at other states.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray

from ..rhel.hamiltonian import AbstractHamiltonian, leapfrog
from ..rhel.linear import step_map

STATES = 32
"""Samples in each group of states."""

SCALES = (0.1, 1.0, 3.0)
"""Sizes of the random states, relative to the largest position and momentum of the trajectory."""

GROUPS = ("at rest", "on the trajectory", *(f"at random states of {x:g} times the trajectory's size" for x in SCALES))

AGREES = 1e-6
"""Two numbers are the same up to this relative error in float64. A wrong number differs by much more."""

TERM = 1.0
"""Size of the terms of an energy, as the 1 of 1 - cos q. Their rounding stays when the energy itself is small."""

CELLS, CORNER = 2048, 1e-3
"""A path is cut into so many cells, and the worst cell is cut again. In every cell of the second cut the energy must
change as its slopes say, up to this part of the largest slope. A corner misses by up to half of the jump of its slope,
in cells of any size. A smooth energy misses by the square of the size.
"""


# The samples


class Samples:
    """States (sample, osc) with a drive each, `STATES` of every group, differences of the same sizes, and the energies.

    Only the energies use jax; the rest is NumPy, because jax compiles every operation for its shape.
    """

    def __init__(self, hamiltonian: AbstractHamiltonian, drives: np.ndarray, trajectory: np.ndarray, draw):
        self.hamiltonian, self.name, self.draw = hamiltonian, type(hamiltonian).__name__, draw
        sizes = [np.max(np.abs(x)) or 1.0 for x in trajectory]
        steps = np.linspace(0, len(trajectory[0]) - 1, STATES).astype(int)
        steps[1:3] = [np.argmax(np.max(np.abs(x.reshape(len(x), -1)), axis=1)) for x in trajectory]
        shape = (STATES, *trajectory.shape[2:])

        def states(way, size):
            random = [size * scale * draw.standard_normal(shape) for scale in SCALES]
            return np.concatenate([np.zeros(shape), way[steps], *random])

        def differences(size):
            return size * np.concatenate([scale * draw.standard_normal(shape) for scale in (1.0, 1.0, *SCALES)])

        self.q, self.p = (states(*pair) for pair in zip(trajectory, sizes, strict=True))
        self.half_q, self.half_p = map(differences, sizes)
        self.drive = drives[draw.integers(len(drives), size=len(self.q))]
        self.states = {"kinetic": (self.p,), "potential": (self.q, self.drive)}
        self.half = {"kinetic": self.half_p, "potential": self.half_q}
        self.value = {part: self.energy(part) for part in self.states}
        self.slope = {part: self.gradient(part) for part in self.states}

    def energy(
        self, part: str, shift: float | np.ndarray = 0.0, hamiltonian: AbstractHamiltonian | None = None
    ) -> np.ndarray:
        """The energy of every sample at its state plus `shift`, of this Hamiltonian or of another one."""
        x, *rest = self.states[part]
        energy = getattr(self.hamiltonian if hamiltonian is None else hamiltonian, part)
        return np.asarray(jax.vmap(energy)(x + shift, *rest))

    def gradient(self, part: str) -> tuple:
        """Gradients: of the sum of the energies by the Hamiltonian, and of each energy by its arguments."""

        def total(hamiltonian_and_states):
            hamiltonian, states = hamiltonian_and_states
            return jnp.sum(jax.vmap(getattr(hamiltonian, part))(*states))

        states = tuple(map(jnp.asarray, self.states[part]))
        return jax.tree.map(np.asarray, eqx.filter_grad(total)((self.hamiltonian, states)))

    def stepped(self, q, p) -> tuple[np.ndarray, np.ndarray]:
        """A leapfrog step of every sample."""
        step = self.hamiltonian.velocity, self.hamiltonian.force
        (q, p), _ = jax.vmap(lambda q, p, drive: leapfrog(*step, (q, p), drive))(q, p, self.drive)
        return np.asarray(q), np.asarray(p)


def _trajectory(hamiltonian: AbstractHamiltonian, drives: Array, shape: tuple[int, ...]) -> np.ndarray:
    """Positions and momenta (2, time, osc) from rest."""

    def step(state, drive):
        state, _ = leapfrog(hamiltonian.velocity, hamiltonian.force, state, drive)
        return state, state

    rest = jnp.zeros(shape, drives.dtype)
    return np.stack(jax.lax.scan(step, (rest, rest), drives)[1])


def sampled(
    hamiltonian: AbstractHamiltonian, drives: Array, shape: tuple[int, ...], key: PRNGKeyArray
) -> tuple[Samples | None, list[str]]:
    """The samples for positions of this shape, and the faults of the trajectory.

    The samples use the finite part of the trajectory. If a step cannot be run, there are no samples.
    """
    name, reasons = type(hamiltonian).__name__, []
    try:
        trajectory = _trajectory(hamiltonian, drives, shape)
    except Exception as error:
        return None, [
            f"a step of {name} cannot be run in float64: let energies (and overrides) take and give the dtype of their "
            f"arguments. The error: {type(error).__name__}: {error}"
        ]
    finite = np.all(np.isfinite(trajectory).reshape(2, len(drives), -1), axis=(0, 2))
    if not np.all(finite):
        lost = first(~finite)
        reasons.append(
            f"the trajectory of {name} over these drives is not finite from step {lost} on: make the "
            "time step or the drives smaller, or the energies finite wherever it goes"
        )
        trajectory = np.concatenate([np.zeros_like(trajectory[:, :1]), trajectory[:, :lost]], axis=1)
    draw = np.random.default_rng(np.asarray(jax.random.key_data(key)).ravel())
    return Samples(hamiltonian, np.asarray(drives), trajectory, draw), reasons


def not_finite(samples: Samples) -> Iterator[str]:
    """Energies and gradients that are not finite: for each energy, the first group of samples that fails."""
    for part, value in samples.value.items():
        if not np.all(np.isfinite(value)):
            at = first(~np.isfinite(value))
            yield (
                f"{samples.name}.{part} is {value[at]} {_group(at)}: give it a finite value at every state that the "
                "dynamics may reach, or make drives and step smaller"
            )
            continue
        for path, leaf in jax.tree_util.tree_leaves_with_path(samples.slope[part]):
            if not np.all(np.isfinite(leaf)):
                state = ("q" if part == "potential" else "p", "the drive")
                of_parameter = path[0].idx == 0
                by = samples.name + jax.tree_util.keystr(path[1:]) if of_parameter else state[path[1].idx]
                at = "" if of_parameter else f" {_group(first(~np.isfinite(_largest(leaf))))}"
                yield (
                    f"the gradient of {samples.name}.{part} by {by} is not finite{at}: write it without the division "
                    "or root of zero (two jnp.where, one of them inside the root)"
                )
                break


def first(flags: np.ndarray) -> int:
    """The index of the first flag that is set."""
    return int(np.argmax(np.asarray(flags)))


def _group(sample: int | np.integer) -> str:
    return GROUPS[sample // STATES]


def worst(
    value: Array | np.ndarray, reference: Array | np.ndarray, scale: np.ndarray | None = None
) -> tuple[float, int]:
    """The largest error of a sample relative to the size of its reference (or to `scale`), and the sample."""
    value, reference = (np.asarray(x).reshape(len(x), -1) for x in (value, reference))
    error = np.max(np.abs(value - reference), axis=1)
    sizes = np.max(np.abs(reference), axis=1) if scale is None else scale
    ratio = np.where(error == 0, 0, error / np.maximum(sizes, np.finfo(float).tiny))
    worst = int(np.argmax(np.where(np.isnan(ratio), np.inf, ratio)))
    return float(ratio[worst]), worst


def _largest(x: np.ndarray) -> np.ndarray:
    """The largest absolute value of every sample."""
    return np.max(np.abs(x).reshape(len(x), -1), axis=1)


# The checks: each yields its violations


def _uneven_kinetic(samples: Samples) -> Iterator[str]:
    there, back = samples.value["kinetic"], samples.energy("kinetic", shift=-2 * samples.p)
    error, at = worst(there, back, np.abs(there) + np.abs(back))
    if not error <= 1e-3 * AGREES:
        yield f"{samples.name}.kinetic is not even: {there[at]:.9g} at p, {back[at]:.9g} at -p, {_group(at)}"


def _other_dynamics(samples: Samples) -> Iterator[str]:
    """An overridden velocity or force that is not the slope of the energy."""
    for method, part, sign in (("velocity", "kinetic", 1), ("force", "potential", -1)):
        if not _overrides(samples.hamiltonian, method):
            continue
        value = jax.vmap(getattr(samples.hamiltonian, method))(*samples.states[part])
        error, at = worst(value, sign * samples.slope[part][1][0])
        if not error <= AGREES:
            of = f"{'' if sign > 0 else 'minus '}the gradient of {samples.name}.{part}"
            yield f"{samples.name}.{method} is not {of}: {100 * error:.2g} % off, {_group(at)}"


def _overrides(hamiltonian: AbstractHamiltonian, method: str) -> bool:
    return getattr(type(hamiltonian), method) is not getattr(AbstractHamiltonian, method)


def _corners(samples: Samples) -> Iterator[str]:
    """Energies that do not change as `jax.grad` says, on straight paths through states of every size."""
    picks = np.arange(1, len(GROUPS)) * STATES + 1  # of the trajectory the largest position
    kinetic, potential = samples.hamiltonian.kinetic, samples.hamiltonian.potential
    q, p, drive = (x[picks] for x in (samples.q, samples.p, samples.drive))
    for where, energy, start, fixed in (
        ("kinetic by p", lambda x, _: kinetic(x), p, p),
        ("potential by q", potential, q, drive),
        ("potential by the drive", lambda x, q: potential(q, x), drive, q),
    ):
        error, at = _corner(energy, start, fixed)
        if not error <= CORNER:
            yield f"{samples.name}.{where} does not change as its gradient says, {_group(picks[at])}"


def _corner(energy: Callable, start: np.ndarray, fixed: np.ndarray) -> tuple[float, int]:
    """The largest difference between an energy and its slopes in a cell, relative to the largest slope; its path."""
    # The path crosses zero, where corners are common, and ends at -0.9, so that zero is not in the middle of a cell.
    first_defect, size, cell = _cells(energy, start, -1.9 * start, fixed)
    way = -1.9 * start / CELLS
    defect, _, _ = _cells(energy, start + way * cell.reshape(-1, *[1] * (start.ndim - 1)), way, fixed)
    defect = np.minimum(first_defect, CELLS * defect)
    return worst(defect, np.zeros_like(defect), size)


def _cells(energy, start, way, fixed):
    """For each path: the largest error of a slope and the largest slope, both for the whole of `way`; the cell."""
    points = start[:, None] + np.linspace(0, 1, CELLS + 1).reshape(1, -1, *[1] * (start.ndim - 1)) * way[:, None]
    values, slopes = map(np.asarray, jax.vmap(jax.vmap(jax.value_and_grad(energy), (0, None)))(points, fixed))
    slopes = np.sum((slopes * way[:, None]).reshape(*values.shape, -1), axis=-1)
    secants = CELLS * np.diff(values, axis=1)
    rounding = 100 * CELLS * np.finfo(float).eps * (_largest(values) + TERM)
    defects = np.abs(secants - 0.5 * (slopes[:, 1:] + slopes[:, :-1])) - rounding[:, None]
    size = np.maximum(_largest(slopes), np.mean(np.abs(secants), axis=1))
    return np.maximum(np.max(defects, axis=1), 0), size, np.argmax(defects, axis=1)


def _wrong_parameter_slopes(samples: Samples, step: float = 1e-6) -> Iterator[str]:
    """Central differences of the energies by each parameter, along a random direction."""
    arrays, static = eqx.partition(samples.hamiltonian, eqx.is_inexact_array)
    leaves, structure = jax.tree.flatten(arrays)
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(arrays)]
    for part, value in samples.value.items():
        slopes = jax.tree.leaves(samples.slope[part][0])
        for i, (path, leaf, slope) in enumerate(zip(paths, map(np.asarray, leaves), slopes, strict=True)):
            size = np.where(leaf == 0, np.max(np.abs(leaf)), np.abs(leaf))
            direction = np.where(size == 0, 1, size) * samples.draw.standard_normal(leaf.shape)

            def moved(by, i=i, leaf=leaf, direction=direction, part=part):
                changed = [*leaves[:i], jnp.asarray(leaf + by * direction), *leaves[i + 1 :]]
                return samples.energy(part, hamiltonian=eqx.combine(jax.tree.unflatten(structure, changed), static))

            measured, claimed = np.sum(moved(step) - moved(-step)) / (2 * step), np.sum(slope * direction)
            rounding = 1e-8 * np.sum(np.abs(value)) + 100 * np.finfo(float).eps * TERM / step * np.sqrt(value.size)
            if not abs(measured - claimed) <= 1e-3 * max(abs(measured), abs(claimed)) + rounding:
                yield (
                    f"{samples.name}.{part} does not change with {samples.name}{jax.tree_util.keystr(path)} as its "
                    f"gradient says: by {measured:.3g}, not {claimed:.3g}, along a random direction"
                )


def _wrong_contrasts(samples: Samples) -> Iterator[str]:
    """Overridden contrasts, by their gradients: the echo uses no value of a contrast."""
    for part in samples.states:
        if _overrides(samples.hamiltonian, f"{part}_contrast"):
            wrong = (_wrong_contrast_gradient(samples, part, size) for size in (1.0, 1e-3, 1e-8))
            yield from [message for message in wrong if message][:1]


def _wrong_contrast_gradient(samples: Samples, part: str, size: float) -> str | None:
    def contrast(hamiltonian, x, half, *rest):
        return getattr(hamiltonian, f"{part}_contrast")(x, half, *rest)

    def difference(hamiltonian, x, half, *rest):
        energy = getattr(hamiltonian, part)
        return energy(x + half, *rest) - energy(x - half, *rest)

    x, *rest = map(jnp.asarray, samples.states[part])
    arguments = (samples.hamiltonian, x, jnp.asarray(size * samples.half[part]), *rest)

    def gradient(function):
        axes = (None, *[0] * (len(arguments) - 1))
        total = eqx.filter_grad(lambda arguments: jnp.sum(jax.vmap(function, axes)(*arguments)))(arguments)
        return jax.tree_util.tree_leaves_with_path(total)

    names = (samples.name, "the mean", "the half-difference", "the drive")
    for (path, of_contrast), (_, of_difference) in zip(gradient(contrast), gradient(difference), strict=True):
        # Of a small difference, only the gradient by the half-difference keeps its digits: it is a sum of two slopes.
        if size < 1 and path[0].idx != 2:
            continue
        error, _ = worst(of_contrast.reshape(1, -1), of_difference.reshape(1, -1))
        if not error <= AGREES:
            by = names[path[0].idx] + jax.tree_util.keystr(path[1:])
            of = f"the gradient of {samples.name}.{part}_contrast by {by}"
            return f"{of} is {100 * error:.2g} % off, at {size:g} of a random half-difference"
    return None


def _no_return(samples: Samples) -> Iterator[str]:
    """A step and, with the momentum flipped, a step back, from states that are no larger than the trajectory.

    From larger states a step may be unstable and lose all digits, although the trajectory never visits them.
    """
    start = samples.q, samples.p
    q, p = samples.stepped(*start)
    q_back, p_back = samples.stepped(q, -p)
    size, size_after = (np.maximum(*map(_largest, state)) for state in (start, (q, p)))
    size, visited = np.where(size > 0, size, size_after), slice(3 * STATES)
    error, at = worst(np.stack([q_back, -p_back], 1)[visited], np.stack(start, 1)[visited], size[visited])
    if not error <= AGREES:
        yield f"a step of {samples.name} there and back misses its start by {100 * error:.2g} %, {_group(at)}"


def _not_linear(samples: Samples) -> Iterator[str]:
    if not samples.hamiltonian.linear or samples.drive.shape != samples.q.shape:
        return  # without a drive for each oscillator the scan is sequential
    q, p, drive = samples.q, samples.p, samples.drive
    matrix, by_drive = step_map(samples.hamiltonian, jnp.asarray(q[0]))
    state = np.stack([q, p], -1).reshape(len(q), -1, 2)
    by_map = np.einsum("pab,npb->nap", matrix, state) + np.asarray(by_drive).T * drive.reshape(len(q), 1, -1)
    by_map = by_map.reshape(len(q), 2, *q.shape[1:])
    error, at = worst(by_map, np.stack(samples.stepped(q, p), 1))
    if not error <= AGREES:
        yield (
            f"{samples.name} says linear = True, but a step is not one linear map of (q, p) for each oscillator: the "
            f"map is {100 * error:.2g} % off, {_group(at)}"
        )


class Check(NamedTuple):
    """A check, and the way out for its violations."""

    violations: Callable[[Samples], Iterator[str]]
    way_out: str


CHECKS = (
    Check(_uneven_kinetic, "an echo returns only if T(p) = T(-p); build T from even functions of p"),
    Check(
        _other_dynamics,
        "the echo reads its gradient from the energies; remove the override, or write the energy that it belongs to "
        "(friction: models.physics.damping, a machine: models.physics.imperfect)",
    ),
    Check(
        _corners,
        "it has a corner or jump (abs, round, where), a stop_gradient, or a derivative rule of its own that is wrong; "
        "make it smooth, for instance sqrt(q**2 + c**2) for |q|, and let jax differentiate it",
    ),
    Check(
        _wrong_parameter_slopes,
        "a stop_gradient or a wrong derivative rule; stop gradients where the Hamiltonian is made, not in its energies",
    ),
    Check(
        _wrong_contrasts,
        "a contrast is energy(x + d) - energy(x - d), for d of every size; mend it, or remove it for the default",
    ),
    Check(_no_return, "the step must be reversible: energies without memory or chance, and a time step that is stable"),
    Check(
        _not_linear,
        "the parallel scan would give other results than the sequential one; remove `linear`, which is for "
        "independent oscillators with energies quadratic in q and p and linear in the drive",
    ),
)
