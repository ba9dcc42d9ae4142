"""What `check_machine` says: the numbers of the ladder, each with a verdict and the way out."""

import math
from dataclasses import dataclass

import numpy as np

GOOD_COSINE = 0.99
TOLERATED = math.sqrt(GOOD_COSINE**-2 - 1)
"""The relative error across a gradient that turns it to a cosine of 0.99: 0.142."""
DRIVES = "the drives"
"""The name of the gradient by the drives, beside the names of the parameters."""


@dataclass(frozen=True)
class Passes:
    """What plain passes show. Curves have a number for each step, relative to the root mean square of the positions.

    - `forward`: the first free pass minus the declared one, from the first step to the last.
    - `echo`: the echo without nudges minus its free pass, from the flip on. `runs`, `echoes`: the difference of two
      free passes, and of two echoes without nudges, in the same orders. All are root mean squares over batch and
      oscillators.
    - `drift`: the relative change of every parameter that would move the declared positions as far as two free passes
      differ.
    - `friction`: gamma T, the part of the momentum that is lost over a sequence, measured without drives. None if the
      machine does not move.
    """

    forward: np.ndarray
    echo: np.ndarray
    runs: np.ndarray
    echoes: np.ndarray
    drift: float
    friction: float | None


@dataclass(frozen=True)
class Nudges:
    """The gradient at several sizes of the nudges.

    - `changes`: relative change of the gradient from each epsilon to the next; the root mean square over the arrays.
    - `best`: the smaller epsilon of the two that differ least.
    """

    epsilons: tuple[float, ...]
    changes: tuple[float, ...]
    best: float


@dataclass(frozen=True)
class ArrayCheck:
    """The gradient of one array at the best epsilon. Errors are relative to the norm of the gradient.

    - `cosine`, `error`: of the mean of all repetitions with finite differences on the machine, as far as neither is
      noise. `resolution`: the error that noise hides from this comparison.
    - `noise`: what differs between repetitions, of one gradient. `curvature`: nudges too large.
    - `friction`: the error that the declared energy predicts for the measured friction.
    """

    cosine: float
    error: float
    resolution: float
    noise: float
    curvature: float
    friction: float

    @property
    def repetitions(self) -> float:
        """Gradients to average for a cosine of 0.99, as far as noise is the limit."""
        return max(1.0, math.ceil((self.noise / TOLERATED) ** 2)) if math.isfinite(self.noise) else math.inf


@dataclass(frozen=True)
class Rung:
    """A line of the report. `verdict`: "good", "limits" or "open" (the check cannot tell)."""

    title: str
    number: str
    verdict: str
    words: str


@dataclass(frozen=True)
class MachineReport:
    """The result of `check_machine`.

    - `tolerated_friction`: gamma T at which the declared energy predicts a cosine of 0.99; infinite above 10.
    - `passes`, `seconds`: of the machine.
    """

    measured: Passes
    nudges: Nudges
    arrays: dict[str, ArrayCheck]
    tolerated_friction: float
    repetitions: int
    passes: int
    seconds: float

    def rungs(self) -> list[Rung]:
        """The ladder, in order."""
        ways = (_forward, _echo, _nudges, _gradient, _drift, _noise, _friction)
        return [way(self) for way in ways]

    def rows(self) -> list[list[str]]:
        """The ladder as a table: the header first."""
        rungs = enumerate(self.rungs(), 1)
        return [["", "rung", "measured", "verdict"], *([str(n), x.title, x.number, x.verdict] for n, x in rungs)]

    def array_rows(self) -> list[list[str]]:
        """The gradient of every array as a table: the header first."""
        header = ["gradient of", "cosine", "error", "± by noise", "noise of one", "nudge size", "friction", "average"]
        return [
            header,
            *(
                [
                    name,
                    f"{x.cosine:.4f}",
                    *(percent(y) for y in (x.error, x.resolution, x.noise, x.curvature, x.friction)),
                    f"{x.repetitions:g}",
                ]
                for name, x in self.arrays.items()
            ),
        ]

    def budget(self) -> dict[str, dict[str, float]]:
        """The parts of the error of one gradient, for every array.

        `rest`: what the nudges, friction and twice the noise of the comparison do not explain.
        """
        return {
            name: {
                "noise and drift": x.noise,
                "nudge size": x.curvature,
                "friction": x.friction,
                "rest": _without(x.error, x.curvature, x.friction, 2 * x.resolution),
            }
            for name, x in self.arrays.items()
        }

    def limit(self) -> str:
        """The largest part of the budget, in words."""
        name, part, size = max(
            ((name, part, size) for name, parts in self.budget().items() for part, size in parts.items()),
            key=lambda x: x[2],
        )
        if size < TOLERATED:
            return f"no part of the error of a gradient is above {percent(TOLERATED)} (cosine {GOOD_COSINE})"
        return f"the largest part of the error is {part}: {percent(size)} of the gradient of {name}"

    def __str__(self) -> str:
        """The ladder with the ways out, as text."""
        lines = [f"{n} {x.title}: {x.number} [{x.verdict}] {x.words}" for n, x in enumerate(self.rungs(), 1)]
        return "\n".join([*lines, f"{self.passes} passes of the machine. In short: {self.limit()}."])


def percent(x: float) -> str:
    """A relative number in percent."""
    if not math.isfinite(x):
        return "∞"
    return "0 %" if abs(x) < 1e-8 else f"{100 * x:.2g} %" if abs(x) < 0.995 else f"{100 * x:.0f} %"


def _without(whole: float, *parts: float) -> float:
    """What is left of an error without independent parts."""
    rest = whole**2 - sum(x**2 for x in parts)
    return math.sqrt(rest) if rest > 0 else 0.0


def _judged(good: bool) -> str:
    return "good" if good else "limits"


def _end(curve: np.ndarray) -> float:
    """The root mean square over the last tenth."""
    return float(np.sqrt(np.mean(curve[-max(1, len(curve) // 10) :] ** 2)))


def _forward(report):
    curve = report.measured.forward
    whole, first, last = float(np.sqrt(np.mean(curve**2))), _end(curve[::-1]), _end(curve)
    number = f"{percent(whole)} of the positions ({percent(first)} in the first tenth, {percent(last)} in the last)"
    words = (
        "The machine moves as its declared energy says."
        if whole < 0.1
        else "The machine differs from the declared energy. The training runs the machine, so this alone is no harm: "
        "rung 4 decides. To come closer, fit the declared parameters to free passes. A difference in the first steps "
        "is a wrong scale of drives or units; one that grows is a wrong frequency or friction."
    )
    return Rung("free pass against the declared energy", number, _judged(whole < 0.1), words)


def _echo(report):
    curve, again = report.measured.echo, _end(report.measured.echoes)
    missed, first = _end(curve), float(curve[: max(2, len(curve) // 10)].max())
    passed = np.flatnonzero(curve > 0.01)
    where = f"above 1 % from step {passed[0]} of {len(curve)} after the flip" if len(passed) else "never above 1 %"
    if missed < 0.1:
        words = "The machine returns."
    elif missed < 2 * again:
        words = "It does not return, and each echo differs: noise or drift. See 5 and 6."
    elif first > missed / 2:
        words = "Most is lost at the flip: mend the inversion of the momenta."
    else:
        words = (
            "It is lost on the way: friction (see 7), drives that are replayed wrongly, or an unstable motion. Shorter "
            "sequences return better."
        )
    return Rung("echo without nudges", f"misses by {percent(missed)}, {where}", _judged(missed < 0.1), words)


def _nudges(report):
    nudges = report.nudges
    worst = max(report.arrays.values(), key=lambda x: x.curvature).curvature
    change = min(nudges.changes)
    pairs = zip(nudges.epsilons, nudges.epsilons[1:], nudges.changes, strict=False)
    near = [x for *pair, x_change in pairs if x_change < TOLERATED for x in pair]
    noisy = max(x.noise for x in report.arrays.values()) > TOLERATED / 2
    cause = "average (see 6), or reduce what differs between passes" if noisy else "the machine resolves them badly"
    words = f"At every size, the gradient differs from that at the next: {cause}."
    if near:
        words = f"Sizes from {min(near):g} to {max(near):g} give about the same gradient."
    number = f"epsilon {nudges.best:g}; the next size changes the gradient by {percent(change)}"
    return Rung("size of the nudges", number, _judged(change < TOLERATED and worst < TOLERATED), words)


def _gradient(report):
    name, worst = min(report.arrays.items(), key=lambda x: x[1].cosine)
    number = f"cosine {worst.cosine:.4f}, error {percent(worst.error)} (worst: {name})"
    if worst.resolution > TOLERATED or (worst.cosine < GOOD_COSINE and worst.error < 3 * worst.resolution):
        words = (
            f"The comparison itself is uncertain by {percent(worst.resolution)}, because passes differ. Repeat with "
            "more repetitions and directions."
        )
        return Rung("gradient against finite differences", number, "open", words)
    words = "The echoes give the gradient of the machine as it is."
    if worst.cosine < GOOD_COSINE:
        cause = "it is not the declared energy (see 1), does not return (see 2), or measures badly (bits, clipping)"
        cause = "friction explains it (see 7)" if worst.friction > worst.error / 2 else cause
        words = f"The echoes do not give the gradient of the machine: {cause}. Freeze this array, or mend that."
    elif worst.error > TOLERATED:
        words = "The direction is right and the length is not: a scale of nudges, readout or parameters."
    return Rung("gradient against finite differences", number, _judged(worst.cosine >= GOOD_COSINE), words)


def _drift(report):
    runs, echoes = _end(report.measured.runs), _end(report.measured.echoes)
    epsilon, drift = report.nudges.best, report.measured.drift
    number = f"two free passes differ as by {percent(drift)} in every parameter; two echoes by {percent(echoes)}"
    good = max(runs, echoes) < TOLERATED * epsilon
    words = (
        "Little against the nudges."
        if good
        else f"The nudges move an echo by about {percent(epsilon)}. Run the two echoes closer in time, hold the "
        "temperature, or nudge more."
    )
    return Rung("the same pass twice", number, _judged(good), words)


def _noise(report):
    name, worst = max(report.arrays.items(), key=lambda x: x[1].noise)
    number = f"{percent(worst.noise)} in one gradient (worst: {name}); average {worst.repetitions:g}"
    if not math.isfinite(worst.noise):
        words = f"{report.repetitions} repetitions are not enough to see a gradient. Nudge more, or repeat more."
    elif worst.repetitions == 1:
        words = f"One gradient has a cosine above {GOOD_COSINE} with its mean."
    else:
        words = f"Average {worst.repetitions:g} gradients, or take a batch that is larger by so much."
    return Rung("noise of a gradient", number, _judged(worst.repetitions == 1), words)


def _friction(report):
    measured, most = report.measured.friction, report.tolerated_friction
    limit = "more than 10" if math.isinf(most) else f"{most:.2g}"
    if measured is None:
        return Rung("friction", f"tolerated γT {limit}", "open", "The machine does not move without drives.")
    number = f"γT {measured:.2g}; tolerated {limit}"
    good = measured < most
    words = (
        "The energy stays."
        if good
        else f"The echo dies. Shorten the sequences {measured / most:.2g} times, or reduce friction so much; for "
        "linear oscillators see Friction in docs/machines.md."
    )
    return Rung("friction", number, _judged(good), words)
