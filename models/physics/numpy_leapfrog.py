"""The ideal machine: the leapfrog of `rhel.hamiltonian` in plain numpy, in float64. It is the test double."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from .machine import Limits, MachineError, Trace

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Law:
    """The motion of oscillators: `velocity(parameters, p)` and `force(parameters, q, drive)`, change in one step.

    Both are derivatives of the declared energies, with the time step folded in, and act on (batch, osc).
    """

    parameters: tuple[str, ...]
    velocity: Callable[[Arrays, np.ndarray], np.ndarray]
    force: Callable[[Arrays, np.ndarray, np.ndarray], np.ndarray]


LAWS = {
    "LinHRU": Law(
        ("A", "step"),
        lambda x, p: x["step"] * p,
        lambda x, q, drive: x["step"] * (drive - x["A"] * q),
    ),
    "NonlinHRU": Law(
        ("W_diag", "b", "alpha", "step"),
        lambda x, p: x["step"] * p,
        lambda x, q, drive: -x["step"] * (x["alpha"] * q + np.tanh(x["W_diag"] * q + drive + x["b"])),
    ),
}
"""The units of the paper."""


def law_of(parameters: Arrays) -> Law:
    """The law of the unit that has parameters with these names. Raises `MachineError`."""
    for law in LAWS.values():
        if set(law.parameters) == set(parameters):
            return law
    raise MachineError(
        f"no known unit has the parameters {', '.join(parameters)}: give the machine the Law of your Hamiltonian"
    )


@dataclass
class NumpyLeapfrog:
    """A machine that is exactly the declared leapfrog. `law`: None for the units of the paper.

    `dtype`: numpy.longdouble gives more digits than float64 where the platform has them.
    """

    limits: Limits = field(default_factory=lambda: Limits(holds_state=True))
    law: Law | None = None
    dtype: type = np.float64
    _parameters: Arrays = field(default_factory=dict, init=False, repr=False)
    _end: tuple[np.ndarray, np.ndarray] | None = field(default=None, init=False, repr=False)

    def program(self, parameters: Arrays) -> None:
        """See `Machine`."""
        self._motion = law_of(parameters) if self.law is None else self.law
        self._parameters = {name: np.asarray(x, self.dtype) for name, x in parameters.items()}
        self._end = None

    def run(self, drives: np.ndarray) -> np.ndarray:
        """See `Machine`."""
        # Without a limit, each oscillator has its drive.
        rest = np.zeros((drives.shape[1], self.limits.oscillators or drives.shape[2]), self.dtype)
        positions, self._end = self._played((rest, rest), drives)[:2]
        return positions

    def echo(self, drives: np.ndarray, nudges: np.ndarray) -> Trace:
        """See `Machine`."""
        if self._end is None:
            raise MachineError("an echo needs a run before it")
        q, p = self._end
        if not self.limits.holds_state:
            self._end = None
        trace = self._played((q, -p), drives, nudges)[2]
        return trace if self.limits.momenta else Trace(trace.positions, starts=trace.starts)

    def _played(self, state, drives, nudges=None):
        """Positions after each step, the last state, and the trace."""
        q, p = state
        columns = positions, halves, before, after, starts = [], [], [], [], []
        for step, drive in enumerate(np.asarray(drives, self.dtype)):
            starts.append(q)
            p = p if nudges is None else p + nudges[step]
            before.append(p)
            q = q + 0.5 * self._motion.velocity(self._parameters, p)
            halves.append(q)
            p = p + self._motion.force(self._parameters, q, drive)
            after.append(p)
            q = q + 0.5 * self._motion.velocity(self._parameters, p)
            positions.append(q)
        positions, halves, before, after, starts = map(np.stack, columns)
        return positions, (q, p), Trace(halves, before, after, starts)
