"""What limits a machine that learns by echoes? `check_machine` measures it on the machine itself, pass by pass."""

import math
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..physics.imperfect import EchoImperfection, ImperfectBPTT, ImperfectRHEL
from ..physics.machine import Machine, Trace
from ..physics.operating import Operator
from ..rhel import AbstractHamiltonian
from .machine_bench import Bench, Loss, require, size_of
from .machine_numbers import DRIVES, FAR, GOOD_COSINE, ArrayCheck, Nudges, Passes
from .machine_report import MachineReport
from .precision import agreement

EPSILONS = (1e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0)
RUNS = 3
"""Free passes of the first rungs, each with an echo. The first echo has a nudge in its first step, then no drives."""
KICK = 0.1
"""The nudge of that echo, as a part of the largest position of a sequence."""
FRICTIONS = np.logspace(-2, 1, 7)
"""gamma T for which the declared energy predicts the gradient."""


def check_machine(
    machine: Machine | Operator,
    hamiltonian: AbstractHamiltonian,
    drives: Float[Array | np.ndarray, "time *batch in"],
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
    3. What a nudge in the first step of an echo does. The gradient at all `epsilons`: the best is the smaller of the
       two neighbours whose gradients differ least.
    4. The gradient against central differences of the loss on the machine itself. For every array, the first of
       `directions` is along the gradient, the others are random and orthogonal. They give cosine and error: exactly, if
       an array has no more numbers than directions; otherwise as an estimate, by as many degrees of freedom. If the
       machine is near the declared energy, that gives the error of the finite step, which is subtracted.
    5. The same pass twice, after echoes that leave the machine in different states.
    6. The spread of `repetitions` gradients, and how many to average.
    7. Friction: the energy of an echo without drives and nudges. What the declared energy tolerates is computed.

    `drives`: sequences like those of the training, (L, B, V), or one sequence, (L, V). Above 0.9 of the limit of the
    machine they are scaled down to it. `loss`: of the positions (L, B, P), as in the training; by default a linear one
    with random weights, a part of them the same at all steps. The best size of the nudges depends on the loss. `n_osc`
    as in `evolve`. It works in float64, whether or not jax is in 64-bit mode.

    Passes: 6, and 3 or 4 (`Limits.passes`) for each epsilon and repetition after the first, and 2 for each direction of
    each array, the drives among the arrays. `passes` is a bound: epsilons, repetitions and directions are left out
    until it is kept. The arrays of a kinetic energy are left out if the machine does not measure momenta.

    Raises `ValueError` for drives of another shape, not finite or all 0, a loss that is not finite or does not depend
    on the positions, too few epsilons (2), repetitions (2) or directions (2), a bound that cannot be kept, another
    number of oscillators than the machine has, and a machine that does not move; `MachineError` for a machine that
    fails.
    """
    drives = np.asarray(drives, np.float64)
    drives = drives[:, None] if drives.ndim == 2 else drives
    require(drives.ndim == 3, f"drives must have the shape (steps, sequences, drives), got {drives.shape}")
    epsilons = tuple(sorted(set(epsilons)))
    for name, count in (("epsilons", len(epsilons)), ("repetitions", repetitions), ("directions", directions)):
        require(count >= 2, f"{name}: at least 2 are needed, got {count}")
    with jax.enable_x64(True):
        bench = Bench(machine, hamiltonian, drives, loss, n_osc, seed)
        epsilons, repetitions, directions = _plan(bench, (epsilons, repetitions, directions), passes)
        before = bench.operator.record.passes, bench.operator.record.seconds
        measured = _plain_passes(bench)
        wanted, epsilons = epsilons, _within(bench, epsilons)
        gradients = [bench.gradient(epsilon) for epsilon in epsilons]
        nudges, place = _nudges(epsilons, gradients, cut=max(wanted) > max(epsilons))
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
    left_out = tuple(name for name in bench.parameters if name not in bench.arguments)
    return MachineReport(measured, nudges, arrays, tolerated, repetitions, *used, bench.scaled, left_out)


def _plan(bench, wanted, passes):
    """Epsilons, repetitions and directions that keep the bound on the passes."""
    each, arrays = bench.operator.machine.limits.passes, [x.size for x in bench.arguments.values()]

    def costs(counts):
        epsilons, repetitions, directions = counts
        return each * epsilons, each * (repetitions - 1), 2 * sum(min(directions, size) for size in arrays)

    counts = [len(wanted[0]), *wanted[1:]]
    while passes is not None and (total := 2 * RUNS + sum(costs(counts))) > passes:
        free = [place for place in range(3) if counts[place] > 2]
        require(bool(free), f"the check needs at least {total} passes of the machine, above the bound of {passes}")
        counts[max(free, key=lambda place: costs(counts)[place])] -= 1
    dropped = len(wanted[0]) - counts[0]  # from both ends, the smallest first
    return wanted[0][(dropped + 1) // 2 : len(wanted[0]) - dropped // 2], *counts[1:]


def _within(bench, epsilons):
    """The epsilons whose nudges are below the limit of the machine, and the largest possible instead of the others."""
    limit, positions = bench.operator.machine.limits.nudge, bench.positions
    slopes = np.asarray(bench.slopes(jnp.asarray(positions)))
    require(bool(np.all(np.isfinite(slopes))), "the gradient of the loss by the positions is not finite")
    size, largest = (np.abs(x).max((0, 2)) for x in (positions, slopes))
    moving = (size > 0) & (largest > 0)
    require(bool(np.any(moving)), "the loss does not depend on the positions: its gradient is 0")
    slopes = slopes[:, moving] / largest[moving][:, None]
    together = np.maximum(np.sqrt(np.sum(slopes**2, 0)), np.abs(np.sum(slopes, 0))).max(1)
    most = 0.9 * limit * float(np.min(together / size[moving]))
    if max(epsilons) <= most:
        return epsilons
    return *([epsilon for epsilon in epsilons if epsilon < most / 2] or [most / 3]), most


def _plain_passes(bench) -> Passes:
    """Free passes, each with an echo. Only the first echo has a nudge, in its first step, and no drives after this.

    Without drives it does not return to rest. A machine that does not start from rest shows it in the next free pass.
    """
    runs, echoes, none = [], [], np.zeros((bench.steps, bench.batch, bench.rest.size))
    first_drive = np.zeros_like(bench.drives)
    first_drive[-1] = bench.drives[-1]
    for number in range(RUNS):
        ticket, positions = bench.run()
        require(bool(np.any(positions)), "the machine does not move: all positions of its free pass are 0")
        runs.append(positions)
        bench.losses.append(float(bench.loss(jnp.asarray(positions))))
        require(math.isfinite(bench.losses[-1]), f"the loss of a free pass is {bench.losses[-1]}")
        drives, nudges = (bench.drives, none) if number else (first_drive, _kick(bench, positions))
        echoes.append(bench.operator.echo(ticket, bench.parameters, drives, nudges))
    scale = size_of(runs[0])
    declared = np.asarray(jax.jit(bench.declared)(bench.arguments))

    def curve(difference):
        return np.sqrt(np.mean(np.square(difference), axis=(1, 2))) / scale

    apart = np.sqrt(np.mean([curve(x - y) ** 2 for x, y in pairwise(runs)], axis=0))
    returned = [_starts(trace, positions) for trace, positions in zip(echoes[1:], runs[1:], strict=True)]
    bench.positions, forward = runs[0], curve(runs[0] - declared)
    bench.near = size_of(forward) < FAR
    return Passes(
        forward,
        curve(returned[0] - runs[1])[::-1],
        apart,
        curve(returned[0] - returned[1])[::-1],
        size_of(apart) * scale / (_sensitivity(bench) or math.inf),
        _friction(bench, echoes[0]),
        _response(bench, _kick(bench, runs[0])[-1], *echoes),
    )


def _kick(bench, positions) -> np.ndarray:
    """Nudges of alternating signs in the first step of the echo, which is the last row."""
    size = np.minimum(KICK * np.abs(positions).max((0, 2)), 0.9 * bench.operator.machine.limits.nudge)
    nudges = np.zeros_like(positions)
    nudges[-1] = size[:, None] * (-1.0) ** np.add.outer(*map(np.arange, positions.shape[1:]))
    return nudges


def _response(bench, kick, kicked: Trace, *plain: Trace) -> tuple[float | None, float | None]:
    """The change of momentum and position by a nudge in its own step, as parts of what they should be.

    A half step moves the positions by velocity(p) / 2. None: not measured, or passes differ too much to tell.
    """
    before = plain[0].momenta_before
    before = np.zeros_like(kick) if before is None else before[-1]
    velocity = jax.vmap(bench.hamiltonian.velocity)
    moved = np.asarray(velocity(jnp.asarray(before + kick)) - velocity(jnp.asarray(before))) / 2
    parts = []
    for name, expected in (("momenta_before", kick), ("positions", moved)):
        nudged, first, second = (getattr(trace, name) for trace in (kicked, *plain))
        if nudged is None or size_of(first[-1] - second[-1]) > size_of(expected) / 4:
            parts.append(None)
        else:
            parts.append(float(np.vdot(nudged[-1] - first[-1], expected) / np.vdot(expected, expected)))
    return parts[0], parts[1]


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
        sizes.append(size_of(bench.pushed(bench.arguments, tangents)[1]))
    return size_of(np.asarray(sizes))


def _friction(bench, trace: Trace) -> float | None:
    """gamma T of an echo without drives after its first step. The energy falls by gamma times the sum of p velocity(p).

    Without momenta, they follow from the differences of the positions and the mass near rest.
    """
    hamiltonian, order = bench.hamiltonian, slice(-2, None, -1)  # the order of the echo, without its first step
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


def _nudges(epsilons, gradients, cut):
    """The sizes of the nudges, and the place of the best."""
    names = [name for name in gradients[0] if any(np.any(x[name]) for x in gradients)]

    def apart(one, other):
        norms = [min(np.linalg.norm(x[name]) for x in (one, other)) for name in names]
        changes = [np.linalg.norm(other[name] - one[name]) for name in names]
        # A gradient of zero where another is not: the nudges are below the resolution of the machine.
        relative = (x / norm if norm else math.inf for x, norm in zip(changes, norms, strict=True))
        return float(max(relative, default=math.inf))

    changes = tuple(apart(*pair) for pair in pairwise(gradients))
    place = int(np.argmin(changes))
    from_best = tuple(apart(gradients[place], x) for x in gradients)
    return Nudges(epsilons, changes, from_best, epsilons[place], cut), place


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
    factor = along / norm if norm else math.nan
    agrees = missed == 0
    return {
        "cosine": 1.0 if agrees else 0.0 if 0 in (exact, norm) else along / exact,
        "error": 0.0 if agrees else missed / exact if exact else math.inf,
        "resolution": math.sqrt(hidden + measured[0][1]) / exact if exact else math.inf,
        "factor": factor,
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
