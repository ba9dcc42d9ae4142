"""What `check_machine` says: the numbers of the ladder, each with a verdict and the way out."""

import math
from dataclasses import dataclass

import numpy as np

from .machine_numbers import (
    FAR,
    GOOD_COSINE,
    TOLERATED,
    UNEXPLAINED,
    ArrayCheck,
    Nudges,
    Passes,
    end,
    percent,
    rms,
)

THRESHOLDS = (
    f"Limits: an error of {100 * TOLERATED:.0f} % of a gradient (as large as the error across one with a cosine of "
    f"{GOOD_COSINE}), {100 * FAR:.0f} % of the positions in 1 and 2."
)


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
    - `scaled`: the factor of the drives that keeps them below the limit of the machine.
    - `left_out`: the arrays whose gradients are not checked.
    """

    measured: Passes
    nudges: Nudges
    arrays: dict[str, ArrayCheck]
    tolerated_friction: float
    repetitions: int
    passes: int
    seconds: float
    scaled: float
    left_out: tuple[str, ...]

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
        header = ["gradient of", "cosine", "error", "± by noise", "factor", "noise of one", "nudge size", "friction"]
        return [
            [*header, "average"],
            *(
                [
                    name,
                    x.known_cosine,
                    *(percent(y) for y in (x.error, x.resolution)),
                    f"{x.factor:.3f}" if x.error > 2 * x.resolution and math.isfinite(x.factor) else "-",
                    *(percent(y) for y in (x.noise, x.curvature, x.friction)),
                    f"{x.repetitions:g}",
                ]
                for name, x in self.arrays.items()
            ),
        ]

    def budget(self) -> dict[str, dict[str, float]]:
        """The parts of the error of one gradient, for every array.

        `unexplained`: what nudges, friction and three times the noise of the comparison do not explain.
        """
        return {name: {"noise and drift": x.noise, **x.parts} for name, x in self.arrays.items()}

    def worst(self) -> tuple[str, ArrayCheck]:
        """The array with the largest error, and its name."""
        return max(self.arrays.items(), key=lambda x: x[1].error)

    def limit(self) -> str:
        """What to mend first, in words."""
        faults = [_nudge_fault(self), RESTLESS if self.measured.restless else ""]
        if any(faults):
            return " ".join(x for x in faults if x)
        name, worst = self.worst()
        part, size = max(worst.parts.items(), key=lambda x: x[1])
        noisy, noise = max(self.arrays.items(), key=lambda x: x[1].noise)
        if noise.noise > size:
            name, part, size = noisy, "noise and drift", noise.noise
        if size < TOLERATED and worst.uncertain:
            return "Noise hides the error of a gradient, see 4."
        if size < TOLERATED:
            return f"No part of the error of a gradient is above {percent(TOLERATED)}."
        part = "not explained by nudges, friction or noise" if part == UNEXPLAINED else part
        return f"The largest part of the error is {part}: {percent(size)} of the gradient of {name}."

    def remarks(self) -> list[str]:
        """What the check changed or left out, how it judges, and the limit."""
        lines = [THRESHOLDS, f"{self.passes} passes of the machine. In short: {self.limit()}"]
        if self.left_out:
            lines.insert(0, f"Not checked, because the machine measures no momenta: {', '.join(self.left_out)}.")
        if self.scaled < 1:
            lines.insert(0, f"The drives are scaled by {self.scaled:.2g}, to stay below the limit of the machine.")
        return lines

    def __str__(self) -> str:
        """The ladder with the ways out, and the table of the arrays, as text."""
        lines = [f"{n} {x.title}: {x.number} [{x.verdict}] {x.words}" for n, x in enumerate(self.rungs(), 1)]
        rows = self.array_rows()
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        table = ("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
        return "\n".join([*lines, "", *table, "", *self.remarks()])


RESTLESS = (
    "Free passes differ from their first steps on. The machine does not start every run from rest (zero positions and "
    "momenta), or its readout is noisy."
)


def _judged(good: bool) -> str:
    return "good" if good else "limits"


def _forward(report):
    curve = report.measured.forward
    whole, first, last = rms(curve), end(curve[::-1]), end(curve)
    number = f"{percent(whole)} of the positions ({percent(first)} in the first tenth, {percent(last)} in the last)"
    words = (
        "The machine moves as its declared energy says."
        if whole < FAR
        else "The machine differs from the declared energy. The training runs the machine, so this alone is no harm: "
        "rung 4 decides. To come closer, fit the declared parameters to free passes. A difference in the first steps "
        "is a wrong scale of drives or units; one that grows is a wrong frequency or friction."
    )
    return Rung("free pass against the declared energy", number, _judged(whole < FAR), words)


def _echo(report):
    curve, again = report.measured.echo, end(report.measured.echoes)
    missed, first = end(curve), float(curve[: max(2, len(curve) // 10)].max())
    passed = np.flatnonzero(curve > 0.01)
    where = f"above 1 % from row {passed[0]} of 0 to {len(curve) - 1} on" if len(passed) else "never above 1 %"
    if missed < FAR:
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
    return Rung("echo without nudges", f"misses by {percent(missed)}, {where}", _judged(missed < FAR), words)


def _nudge_fault(report) -> str:
    """What the echo does wrongly with a nudge in its own step; empty if nothing is seen."""
    momentum, position = report.measured.nudge
    seen = position if momentum is None else momentum
    unseen = seen is not None and abs(seen) < 0.3
    if all(map(math.isinf, report.nudges.changes)):
        if unseen or seen is None:
            return "The nudges have no effect: the gradient is 0. Add each nudge to the momenta before its step."
        return "The machine does not resolve the nudges: the gradient is 0. Nudge more, or measure more finely."
    if unseen:
        return "A nudge has no effect in its own step. Add it to the momenta before the step, not after it."
    if momentum is not None and abs(momentum - 1) > TOLERATED:
        return f"A nudge changes the momenta by {momentum:.2g} of its size. Mend the scale or the sign of the nudges."
    if position is not None and not 0.5 < position < 1.5:
        return (
            f"In its own step, a nudge moves the positions of the echo {position:.2g} times as far as it should in "
            "half a step. Measure them at the half of the step, where the force acts; or mend the scale of the nudges."
        )
    return ""


def _nudges(report):
    nudges = report.nudges
    worst = max(report.arrays.values(), key=lambda x: x.curvature).curvature
    change, fault = min(nudges.changes), _nudge_fault(report)
    near = [x for x, apart in zip(nudges.epsilons, nudges.from_best, strict=True) if apart < TOLERATED]
    noisy = max(x.noise for x in report.arrays.values()) > TOLERATED / 2
    cause = "average (see 6), or reduce what differs between passes" if noisy else "the machine resolves them badly"
    words = f"At every size, the gradient differs from that at the next: {cause}."
    if change < TOLERATED:
        sizes = f"sizes from {min(near):.2g} to {max(near):.2g}"
        words = f"For this loss, {sizes} give the same gradient to {percent(TOLERATED)}."
    if nudges.cut:
        words += f" The limit of the machine cuts all sizes above {max(nudges.epsilons):.2g}."
    momentum, position = report.measured.nudge
    seen = position if momentum is None else momentum
    number = f"epsilon {nudges.best:.2g}; the next size changes the gradient by {percent(change)}"
    number += "" if seen is None else f"; a nudge arrives with {seen:.3f} of its size"
    good = change < TOLERATED and worst < TOLERATED and not fault
    return Rung("nudges", number, _judged(good), fault or words)


def _gradient(report):
    title, (name, worst) = "gradient against finite differences", report.worst()
    error = f"{percent(worst.error)} ± {percent(worst.resolution)}"
    number = f"error {error}, cosine {worst.known_cosine} (largest error: {name})"
    fault = _nudge_fault(report)
    if fault:
        return Rung(title, number, "limits", "Mend the nudges first, see 3.")
    if worst.uncertain:
        words = (
            f"The comparison itself is uncertain by {percent(worst.resolution)}, because passes differ. Repeat with "
            "more repetitions and directions."
        )
        return Rung(title, number, "open", words)
    part, _ = max(worst.parts.items(), key=lambda x: x[1])
    causes = {"nudge size": "the nudges are too large (see 3)", "friction": "friction explains most of it (see 7)"}
    other = "it is not the declared energy (see 1), does not return (see 2), or measures badly (bits, clipping)"
    words = "The echoes give the gradient of the machine as it is."
    scaled = {
        name: x.factor
        for name, x in report.arrays.items()
        if x.cosine > GOOD_COSINE
        and abs(x.factor - 1) > max(0.01, 3 * x.resolution, 2 * math.sqrt(1 - min(1.0, x.cosine**2)))
    }
    if name in scaled:
        words = "The direction is right and the length is not."
    elif worst.error >= TOLERATED:
        words = f"The echoes do not give the gradient of the machine: {causes.get(part, other)}. Freeze this array, or "
        words += "mend that."
    if scaled:
        factors = ", ".join(f"{name} by {factor:.3g}" for name, factor in scaled.items())
        words += f" As if the machine scaled what is programmed: {factors}. Calibrate it, or leave it to the optimiser."
    return Rung(title, number, _judged(worst.error < TOLERATED), words)


def _drift(report):
    runs, echoes = end(report.measured.runs), end(report.measured.echoes)
    epsilon, drift = report.nudges.best, report.measured.drift
    number = f"free passes differ as if every parameter were off by {percent(drift)}; two echoes by {percent(echoes)}"
    good = max(runs, echoes) < TOLERATED * epsilon
    words = (
        "Little against the nudges."
        if good
        else f"The nudges move an echo by about {percent(epsilon)}. Run the two echoes closer in time, hold the "
        "temperature, or nudge more."
    )
    restless = report.measured.restless
    return Rung("the same pass twice", number, _judged(good and not restless), RESTLESS if restless else words)


def _noise(report):
    name, worst = max(report.arrays.items(), key=lambda x: x[1].noise)
    number = f"{percent(worst.noise)} in one gradient (largest: {name})"
    if math.isfinite(worst.repetitions):
        number += f"; average {worst.repetitions:g} gradient{'s' if worst.repetitions > 1 else ''}"
    if report.measured.restless:
        words = "It is not only noise: mend the start of the runs first, see 5."
    elif not math.isfinite(worst.noise):
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
