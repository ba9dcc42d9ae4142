"""The numbers of `check_machine`."""

import math
from dataclasses import dataclass

import numpy as np

GOOD_COSINE = 0.99
TOLERATED = math.sqrt(GOOD_COSINE**-2 - 1)
"""The relative error across a gradient that turns it to a cosine of 0.99: 0.142."""
FAR = 0.1
"""The part of the positions by which a free pass may differ from the declared one, and an echo from its free pass."""
DRIVES = "the drives"
"""The name of the gradient by the drives, beside the names of the parameters."""
UNEXPLAINED = "unexplained"


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
      machine does not move. gamma is that of dp/dt = -gamma p.
    - `nudge`: by how much a nudge changes the momentum and the position of an echo in its own step, as parts of what it
      should be: 1 and 1. None if it is not measured, or if passes differ too much to tell.
    """

    forward: np.ndarray
    echo: np.ndarray
    runs: np.ndarray
    echoes: np.ndarray
    drift: float
    friction: float | None
    nudge: tuple[float | None, float | None]

    @property
    def restless(self) -> bool:
        """Whether free passes differ from the first steps on, which drift does not explain."""
        first = end(self.runs[::-1])
        return first > max(0.02, rms(self.runs) / 2)


@dataclass(frozen=True)
class Nudges:
    """The gradient at several sizes of the nudges.

    - `changes`: relative change of the gradient from each epsilon to the next, for the array that changes most;
      infinite if a gradient is 0. `from_best`: the same from the best epsilon to each.
    - `best`: the smaller epsilon of the two that differ least.
    - `cut`: whether the limit of the machine cuts the larger sizes.
    """

    epsilons: tuple[float, ...]
    changes: tuple[float, ...]
    from_best: tuple[float, ...]
    best: float
    cut: bool


@dataclass(frozen=True)
class ArrayCheck:
    """The gradient of one array at the best epsilon. Errors are relative to the norm of the gradient.

    - `cosine`, `error`: of the mean of all repetitions with finite differences on the machine, as far as neither is
      noise. `resolution`: the error that noise hides from this comparison.
    - `factor`: the slope on the machine along the gradient, by that of the echoes. If the cosine is near 1, the machine
      has the array times this factor.
    - `noise`: what differs between repetitions, of one gradient. `curvature`: nudges too large.
    - `friction`: the error that the declared energy predicts for the measured friction.
    """

    cosine: float
    error: float
    resolution: float
    factor: float
    noise: float
    curvature: float
    friction: float

    @property
    def repetitions(self) -> float:
        """Gradients to average for a cosine of 0.99, as far as noise is the limit."""
        return max(1.0, math.ceil((self.noise / TOLERATED) ** 2)) if math.isfinite(self.noise) else math.inf

    @property
    def uncertain(self) -> bool:
        """Whether noise may explain the error, or hide a large one."""
        return self.resolution > TOLERATED or TOLERATED < self.error < 3 * self.resolution

    @property
    def parts(self) -> dict[str, float]:
        """The parts of the error; what is predicted is at most what can be there."""
        most = self.error + 3 * self.resolution
        curvature, friction = min(self.curvature, most), min(self.friction, most)
        rest = self.error**2 - curvature**2 - friction**2 - (3 * self.resolution) ** 2
        return {"nudge size": curvature, "friction": friction, UNEXPLAINED: math.sqrt(rest) if rest > 0 else 0.0}

    @property
    def known_cosine(self) -> str:
        """The cosine as far as noise lets it be known."""
        most = self.error + self.resolution
        if self.resolution < self.error or self.resolution == 0:
            return f"{self.cosine:.4f}"
        return f"> {math.floor(100 * math.sqrt(1 - most**2)) / 100:.2f}" if most < 1 else "-"


def percent(x: float) -> str:
    """A relative number in percent."""
    if not math.isfinite(x):
        return "∞"
    if abs(x) < 1e-5:
        return "0 %" if abs(x) < 1e-8 else "< 0.001 %"
    return f"{100 * x:.2g} %" if abs(x) < 0.995 else f"{100 * x:.0f} %"


def rms(curve: np.ndarray) -> float:
    """The root mean square."""
    return float(np.sqrt(np.mean(curve**2)))


def end(curve: np.ndarray) -> float:
    """The root mean square over the last tenth."""
    return rms(curve[-max(1, len(curve) // 10) :])
