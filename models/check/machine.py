"""What limits a machine that learns by echoes? `check_machine` measures it on the machine itself, pass by pass."""

import math
from collections.abc import Callable
from functools import partial
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..physics.imperfect import EchoImperfection, ImperfectBPTT, ImperfectRHEL
from ..physics.in_the_loop import MachineInTheLoop, kinetic_parameters, name_of, named
from ..physics.machine import Machine, Trace
from ..physics.operating import Operator
from ..rhel import AbstractHamiltonian, BareSystem, evolve
from ..rhel.hamiltonian import flow
from .machine_report import DRIVES, GOOD_COSINE, ArrayCheck, MachineReport, Nudges, Passes
from .precision import agreement, to_float64

EPSILONS = (1e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0)
RUNS = 3
"""Free passes of the first rungs, each with an echo. The last echo has no drives."""
MOVED = 0.02
"""A finite difference moves the declared positions to both sides by this part of their root mean square."""
FRICTIONS = np.logspace(-2, 1, 7)
"""gamma T for which the declared energy predicts the gradient."""

Loss = Callable[[Float[Array, "time batch osc"]], Float[Array, ""]]
Arrays = dict[str, np.ndarray]


def check_machine(
    machine: Machine | Operator,
    hamiltonian: AbstractHamiltonian,
    drives: Float[Array | np.ndarray, "time batch in"],
    *,
    loss: Loss | None = None,
    epsilons: tuple[float, ...] = EPSILONS,
    repetitions: int = 3,
    directions: int = 4,
    passes: int | None = None,
    n_osc: int | None = None,
    seed: int = 0,
) -> MachineReport:
    """Measures a machine against the declared energy and against itself; says what limits its gradient.

    1. A free pass, against the declared leapfrog.
    2. An echo without nudges: does it return?
    3. The gradient at all `epsilons`. The best is the smaller of the two neighbours whose gradients differ least.
    4. The gradient against central differences of the loss on the machine itself. For every array, the first of
       `directions` is along the gradient, the others are random and orthogonal. They give cosine and error: exactly, if
       an array has no more numbers than directions; otherwise as an estimate, by as many degrees of freedom.
    5. The same pass twice.
    6. The spread of `repetitions` gradients, and how many to average.
    7. Friction: the energy of an echo without drives and nudges. What the declared energy tolerates is computed.

    `drives`: sequences like those of the training. `loss`: of the positions; by default a linear one with random
    weights, a part of them the same at all steps. `n_osc` as in `evolve`. It works in float64, whether or not jax is in
    64-bit mode.

    Passes: 6, and 3 or 4 (`Limits.passes`) for each epsilon and repetition after the first, and 2 for each direction of
    each array, the drives among the arrays. `passes` is a bound: epsilons, repetitions and directions are left out
    until it is kept. The arrays of a kinetic energy are left out if the machine does not measure momenta.

    Raises `ValueError` for drives of another shape, drives without room below the limit of the machine, too few
    epsilons (2), repetitions (2) or directions (2), a bound that cannot be kept, and a machine that does not move;
    `MachineError` for a machine that fails.
    """
    _require(np.ndim(drives) == 3, f"drives must have the axes time, batch and in, got the shape {np.shape(drives)}")
    epsilons = tuple(sorted(set(epsilons)))
    for name, count in (("epsilons", len(epsilons)), ("repetitions", repetitions), ("directions", directions)):
        _require(count >= 2, f"{name}: at least 2 are needed, got {count}")
    with jax.enable_x64(True):
        bench = _Bench(machine, hamiltonian, np.asarray(drives, np.float64), loss, n_osc, seed)
        epsilons, repetitions, directions = _plan(bench, (epsilons, repetitions, directions), passes)
        before = bench.operator.record.passes, bench.operator.record.seconds
        measured = _plain_passes(bench)
        epsilons = _within(bench, epsilons)
        gradients = [bench.gradient(epsilon) for epsilon in epsilons]
        nudges, place = _nudges(epsilons, gradients)
        repeated = [gradients[place], *(bench.gradient(nudges.best) for _ in range(repetitions - 1))]
        tolerated, by_friction = _frictions(bench, nudges.best, measured.friction)
        growth = epsilons[place + 1] / epsilons[place]
        arrays = {
            name: _array_check(bench, name, [x[name] for x in repeated], gradients[place + 1][name], growth, directions)
            for name in bench.arguments
        }
    arrays = {name: ArrayCheck(**x, friction=by_friction[name]) for name, x in arrays.items()}
    record = bench.operator.record
    used = record.passes - before[0], record.seconds - before[1]
    return MachineReport(measured, nudges, arrays, tolerated, repetitions, *used)


class _Bench:
    """The machine and what it is asked to do. `arguments`: the arrays whose gradients are checked, by their names."""

    def __init__(self, machine, hamiltonian, drives, loss, n_osc, seed):
        self.operator = machine if isinstance(machine, Operator) else Operator(machine)
        self.hamiltonian, self.n_osc, self.random = to_float64(hamiltonian), n_osc, np.random.default_rng(seed)
        self.parameters = {name: np.asarray(x) for name, x in named(self.hamiltonian).items()}
        self.drives, (self.steps, self.batch, _) = drives, drives.shape
        limit, largest = self.operator.machine.limits.drive, float(np.abs(drives).max())
        _require(
            largest <= 0.9 * limit,
            f"the drives reach {largest:.3g}; the check needs room below {limit:g}, the limit of the machine: scale "
            "them",
        )
        shape = BareSystem(self.hamiltonian, n_osc).position_shape(drives.shape[2:])
        _require(len(shape) == 1, f"a machine has one axis of oscillators, but a position has the shape {shape}")
        self.rest = jnp.zeros(shape)
        same, free = (self.random.standard_normal((n, self.batch, *shape)) for n in (1, self.steps))
        weights = jnp.asarray(same + free) / (self.steps * self.batch)
        self.loss: Loss = jax.jit((lambda q: jnp.vdot(q, weights)) if loss is None else loss)
        self.losses: list[float] = []  # of free passes that should be equal
        self.positions = drives  # of the first of them
        trained = {name: x for name, x in self.parameters.items() if np.issubdtype(x.dtype, np.inexact)}
        if not self.operator.machine.limits.momenta:
            kinetic = kinetic_parameters(self.hamiltonian, self.rest)
            trained = {name: x for name, x in trained.items() if name not in kinetic}
        self.arguments: Arrays = {**trained, DRIVES: drives}
        self.pushed = jax.jit(lambda x, tangents: jax.jvp(self.declared, (x,), (tangents,)))

    def with_arrays(self, arrays):
        """The declared energy with other parameters."""
        leaves, structure = jax.tree_util.tree_flatten_with_path(self.hamiltonian)
        names = (name_of(path) for path, _ in leaves)
        return jax.tree.unflatten(structure, [arrays.get(name, x) for name, (_, x) in zip(names, leaves, strict=True)])

    def declared(self, arguments):
        """The positions of the declared energy."""
        hamiltonian, start = self.with_arrays(arguments), (self.rest, self.rest)
        return jax.vmap(lambda x: flow(hamiltonian, start, x)[1], 1, 1)(arguments[DRIVES])

    def value(self, arguments, algorithm):
        """The loss, differentiated by a learning algorithm."""
        hamiltonian = self.with_arrays(arguments)
        positions = partial(evolve, hamiltonian, learning_algorithm=algorithm, n_osc=self.n_osc)
        return self.loss(jax.vmap(positions, 1, 1)(arguments[DRIVES]))

    def run(self, **changed):
        """Ticket and positions of a free pass on the machine."""
        arrays = {**self.parameters, DRIVES: self.drives, **changed}
        return self.operator.run(arrays, arrays.pop(DRIVES), self.rest.size)

    def gradient(self, epsilon):
        """The gradient by echoes on the machine, by the names of the arrays."""
        arguments, algorithm = jax.tree.map(jnp.asarray, self.arguments), MachineInTheLoop(self.operator, epsilon)
        try:
            value, gradient = jax.value_and_grad(self.value)(arguments, algorithm)
        except jax.errors.JaxRuntimeError as error:
            raise (self.operator.failure or error) from None
        self.losses.append(float(value))
        return {name: np.asarray(x) for name, x in gradient.items()}

    def slope(self, name, direction):
        """The slope of the loss on the machine along a direction of an array, and its variance by noise."""
        step = self._step(name, direction)
        moved = (self.arguments[name] + sign * step * direction for sign in (1, -1))
        ahead, behind = (float(self.loss(jnp.asarray(self.run(**{name: x})[1]))) for x in moved)
        noise = np.mean(np.diff(self.losses) ** 2) / 2
        return (ahead - behind) / (2 * step), noise / (2 * step**2)

    def _step(self, name, direction):
        """A step that keeps the sign of an array whose numbers all have one, and drives below the limit."""
        x, largest = self.arguments[name], np.abs(direction).max()
        tangents = {other: np.zeros_like(y) for other, y in self.arguments.items()} | {name: direction}
        positions, change = self.pushed(self.arguments, tangents)
        most = max(_size(x), 1e-3) / largest
        if np.all(x > 0) or np.all(x < 0):
            most = np.min(np.abs(x)[direction != 0] / np.abs(direction[direction != 0])) / 2
        if name == DRIVES:
            most = min(most, (self.operator.machine.limits.drive - np.abs(x).max()) / largest)
        moved = MOVED * _size(positions)
        return float(min(most, moved / _size(change))) if moved and _size(change) else float(most)


def _plan(bench, wanted, passes):
    """Epsilons, repetitions and directions that keep the bound on the passes."""
    each, arrays = bench.operator.machine.limits.passes, [x.size for x in bench.arguments.values()]

    def costs(counts):
        epsilons, repetitions, directions = counts
        return each * epsilons, each * (repetitions - 1), 2 * sum(min(directions, size) for size in arrays)

    counts = [len(wanted[0]), *wanted[1:]]
    while passes is not None and (total := 2 * RUNS + sum(costs(counts))) > passes:
        free = [place for place in range(3) if counts[place] > 2]
        _require(bool(free), f"the check needs at least {total} passes of the machine, above the bound of {passes}")
        counts[max(free, key=lambda place: costs(counts)[place])] -= 1
    dropped = len(wanted[0]) - counts[0]  # from both ends, the smallest first
    return wanted[0][(dropped + 1) // 2 : len(wanted[0]) - dropped // 2], *counts[1:]


def _within(bench, epsilons):
    """The epsilons whose nudges are below the limit of the machine, and the largest possible instead of the others."""
    limit, positions = bench.operator.machine.limits.nudge, bench.positions
    if math.isinf(limit):
        return epsilons
    slopes = np.asarray(jax.grad(bench.loss)(jnp.asarray(positions)))
    together = np.maximum(np.sqrt(np.sum(slopes**2, 0)), np.abs(np.sum(slopes, 0))).max(1)
    size, largest = (np.abs(x).max((0, 2)) for x in (positions, slopes))
    moving = (size > 0) & (largest > 0)
    _require(bool(np.any(moving)), "the loss does not depend on the positions: its slope is 0")
    most = 0.9 * limit * float(np.min(together[moving] / (size * largest)[moving]))
    epsilons = tuple(sorted({min(epsilon, most) for epsilon in epsilons}))
    return epsilons if len(epsilons) > 1 else (most / 3, most)


def _plain_passes(bench) -> Passes:
    """Free passes and echoes without nudges. The last echo has no drives, for friction."""
    runs, echoes, none = [], [], np.zeros((bench.steps, bench.batch, bench.rest.size))
    for number in range(RUNS):
        ticket, positions = bench.run()
        _require(bool(np.any(positions)), "the machine does not move: all positions of its free pass are 0")
        runs.append(positions)
        bench.losses.append(float(bench.loss(jnp.asarray(positions))))
        drives = bench.drives if number < RUNS - 1 else np.zeros_like(bench.drives)
        trace = bench.operator.echo(ticket, bench.parameters, drives, none)
        echoes.append(_starts(trace, positions)[::-1])
    scale = _size(runs[0])
    declared = np.asarray(jax.jit(bench.declared)(bench.arguments))

    def curve(difference):
        return np.sqrt(np.mean(np.square(difference), axis=(1, 2))) / scale

    apart = np.sqrt(np.mean([curve(x - y) ** 2 for x, y in pairwise(runs)], axis=0))
    bench.positions = runs[0]
    return Passes(
        curve(runs[0] - declared),
        curve(echoes[0] - runs[0][::-1]),
        apart,
        curve(echoes[0] - echoes[1]),
        _size(apart) * scale / (_sensitivity(bench) or math.inf),
        _friction(bench, trace),
    )


def _starts(trace: Trace, positions: np.ndarray) -> np.ndarray:
    """Positions at the starts of the steps of an echo without nudges: measured, or the mean of the half steps."""
    if trace.starts is not None:
        return trace.starts
    halves = trace.positions
    return np.concatenate([(halves[:-1] + halves[1:]) / 2, positions[-1:]])


def _sensitivity(bench):
    """Root mean square of the change of the declared positions, for a random relative change of every parameter."""
    sizes = []
    for _ in range(4):
        tangents = {name: x * bench.random.standard_normal(x.shape) for name, x in bench.arguments.items()}
        tangents[DRIVES] = np.zeros_like(bench.drives)
        sizes.append(_size(bench.pushed(bench.arguments, tangents)[1]))
    return _size(np.asarray(sizes))


def _friction(bench, trace: Trace) -> float | None:
    """gamma T of an echo without drives: the energy falls by gamma times the sum of p velocity(p).

    Without momenta, they follow from the differences of the positions and the mass near rest.
    """
    hamiltonian, order = bench.hamiltonian, slice(None, None, -1)  # the order of the echo
    halves = trace.positions[order]
    velocity, kinetic = (jax.vmap(jax.vmap(x)) for x in (hamiltonian.velocity, hamiltonian.kinetic))
    potential = jax.vmap(jax.vmap(lambda q: hamiltonian.potential(q, jnp.zeros(bench.drives.shape[2]))))
    if trace.momenta_before is None or trace.momenta_after is None:
        mass = np.linalg.inv(jax.hessian(hamiltonian.kinetic)(bench.rest))
        between = np.diff(halves, axis=0) @ mass.T
        halves, before, after = halves[1:-1], between[:-1], between[1:]
    else:
        before, after = trace.momenta_before[order], trace.momenta_after[order]
    energies = (kinetic(before) + kinetic(after)) / 2 + potential(halves)
    lost = (jnp.sum(before * velocity(before), 2) + jnp.sum(after * velocity(after), 2)) / 2
    energies, lost = (np.sum(np.asarray(x), axis=1) for x in (energies, np.cumsum(lost, axis=0) - lost / 2))
    if len(lost) < 2 or not np.ptp(lost) > 0:
        return None
    return float(-np.polyfit(lost / lost[-1], energies, 1)[0] / lost[-1] * bench.steps)


def _nudges(epsilons, gradients):
    """The sizes of the nudges, and the place of the best."""
    changes, names = [], [name for name in gradients[0] if any(np.any(x[name]) for x in gradients)]
    for pair in pairwise(gradients):
        norms = [min(np.linalg.norm(x[name]) for x in pair) for name in names]
        apart = [np.linalg.norm(pair[1][name] - pair[0][name]) for name in names]
        # A gradient of zero where another is not: the nudges are below the resolution of the machine.
        changes.append(_size([x / norm if norm else math.inf for x, norm in zip(apart, norms, strict=True)] or [0.0]))
    place = int(np.argmin(changes))
    return Nudges(epsilons, tuple(changes), epsilons[place]), place


def _array_check(bench, name, gradients, at_next, growth, directions) -> dict:
    """The numbers of `ArrayCheck` but friction. `at_next`: the gradient at an epsilon that is larger by `growth`."""
    count, mean = len(gradients), np.mean(gradients, axis=0)
    variance = np.sum((np.asarray(gradients) - mean) ** 2) / (count - 1)
    squared = np.sum(mean**2) - variance / count
    noise = 0.0 if variance == 0 else math.sqrt(variance / squared) if squared > 0 else math.inf
    change = agreement(at_next, gradients[0]).relative_error
    curvature = math.sqrt(max(0.0, change**2 - noise**2 * (1 + growth**-2))) / (growth**2 - 1)

    size, norm = mean.size, float(np.linalg.norm(mean))
    count = min(directions, size)
    first = mean.ravel()[:, None] / norm if norm else bench.random.standard_normal((size, 1))
    basis = np.linalg.qr(np.concatenate([first, bench.random.standard_normal((size, count - 1))], axis=1))[0]
    basis[:, 0] *= np.sign(basis[:, 0] @ first[:, 0])
    measured = [bench.slope(name, direction.reshape(mean.shape)) for direction in basis.T]
    (along, *across), (_, *unsure) = zip(*measured, strict=True)
    # The directions across stand for all others.
    share = (size - 1) / max(1, count - 1)
    # A direction across differs from zero by noise, too: of the differences, and of the gradient that it is across to.
    hidden = share * sum(unsure) + variance / len(gradients)
    sideways = max(0.0, share * sum(x**2 for x in across) - hidden)
    exact = math.hypot(along, math.sqrt(sideways))
    missed = math.hypot(norm - along, math.sqrt(sideways))
    agrees = missed == 0
    return {
        "cosine": 1.0 if agrees else 0.0 if 0 in (exact, norm) else along / exact,
        "error": 0.0 if agrees else missed / exact if exact else math.inf,
        "resolution": math.sqrt(hidden + measured[0][1]) / exact if exact else math.inf,
        "noise": noise,
        "curvature": curvature,
    }


def _frictions(bench, epsilon, measured) -> tuple[float, dict[str, float]]:
    """The gamma T at which the declared energy predicts the cosine 0.99, and the errors at the measured gamma T."""

    @jax.jit
    @jax.vmap
    def both(gamma):
        friction = EchoImperfection(damping=gamma)
        algorithms = ImperfectRHEL(friction, epsilon), ImperfectBPTT(friction)
        return [jax.grad(bench.value)(bench.arguments, algorithm) for algorithm in algorithms]

    gammas = np.append(FRICTIONS, max(0.0, measured or 0.0))
    echoes, exact = (jax.tree.map(np.asarray, x) for x in both(jnp.asarray(gammas / bench.steps)))
    agreements = {name: [agreement(*pair) for pair in zip(echoes[name], exact[name], strict=True)] for name in exact}
    lost = 1 - np.min([[x.cosine for x in of_array[:-1]] for of_array in agreements.values()], axis=0)
    bad = np.flatnonzero(~(lost <= 1 - GOOD_COSINE))
    tolerated = math.inf
    if len(bad):
        place = max(1, bad[0])
        logs = np.log(np.maximum(lost[place - 1 : place + 1], 1e-12))
        tolerated = float(np.exp(np.interp(np.log(1 - GOOD_COSINE), logs, np.log(FRICTIONS[place - 1 : place + 1]))))
    errors = {name: of_array[-1].relative_error for name, of_array in agreements.items()}
    return tolerated, errors if measured and measured > 0 else dict.fromkeys(errors, 0.0)


def _size(x) -> float:
    """The root mean square."""
    return float(np.sqrt(np.mean(np.square(x))))


def _require(good: bool, words: str) -> None:
    if not good:
        raise ValueError(words)
