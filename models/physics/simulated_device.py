"""A device in continuous time, simulated in numpy and scipy, that is not what its trainer thinks.

In units of one step, with the velocity and the force of the declared unit (`physics.numpy_leapfrog.LAWS`),

    dq/dt = velocity(p),    dp/dt = force(q, v(t)) - damping p,    v(t) held over each step.

The declared leapfrog approaches this motion as the square of the time step. Nudges are kicks of the momenta between two
steps. Positions are measured at the half and at the end of each step, momenta at both ends.
"""

import zlib
from dataclasses import dataclass, field

import numpy as np

from .machine import Limits, MachineError, Trace
from .numpy_leapfrog import Arrays, Law, law_of


@dataclass
class SimulatedDevice:
    """A machine with flaws. Each is a number; 0 means none. "Drawn" means from a normal distribution.

    - `spread`: drawn logarithm of the factor by which each parameter differs from the programmed one. Drawn once.
    - `drift`: drawn relative difference of every parameter between any two passes.
    - `damping`: friction. In a step the momentum shrinks by exp(-damping).
    - `noise`: drawn kicks to position and momentum after every step of each echo, relative to the size: the largest
      position or final momentum of the free pass of a sequence.
    - `flip_amplitude`: the flip makes -(1 + x) p of the momentum p. `flip_phase`: the flipped state is turned by this
      angle.
    - `replay`: drawn errors of the drives of an echo, relative to the largest drive of the sequence.
    - `bits`: resolution of the converters of drives, nudges and measurements that have a range. The step of a converter
      is 2 range / 2^bits.
    - `drive_range`, `nudge_range`: the limits of the machine. `readout_range`: measurements are clipped to it.
    - `holds_state`, `momenta`: see `Limits`.
    - `substeps`: None solves the equations by scipy's `solve_ivp`, to `tolerance` (relative). An even number makes as
      many leapfrog steps of each step instead, without error control: about ten times faster.
    - `seed`: of all that is drawn. Each pass has random numbers of its own.

    `noise`, `drift`, `flip_amplitude`, `flip_phase`, `replay` and `damping` mean what they mean in
    `physics.imperfect.EchoImperfection`, but the drift differs from pass to pass, the free pass included.

    Raises `ValueError` for numbers outside their range.
    """

    spread: float = 0.0
    drift: float = 0.0
    damping: float = 0.0
    noise: float = 0.0
    flip_amplitude: float = 0.0
    flip_phase: float = 0.0
    replay: float = 0.0
    bits: int | None = None
    drive_range: float = np.inf
    nudge_range: float = np.inf
    readout_range: float = np.inf
    holds_state: bool = False
    momenta: bool = True
    substeps: int | None = None
    tolerance: float = 1e-8
    seed: int = 0
    law: Law | None = None
    passes: int = field(default=0, init=False)

    def __post_init__(self):
        for name in ("spread", "drift", "damping", "noise", "replay"):
            if not (np.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise ValueError(f"{name} must be finite and at least 0, got {getattr(self, name)!r}")
        if not (np.isfinite(self.flip_amplitude) and self.flip_amplitude > -1 and np.isfinite(self.flip_phase)):
            raise ValueError("flip_amplitude must be finite and above -1, and flip_phase finite")
        ranges = self.drive_range, self.nudge_range, self.readout_range
        if self.bits is not None and not (self.bits >= 1 and any(map(np.isfinite, ranges))):
            raise ValueError(
                f"bits must be at least 1, got {self.bits!r}, and need drive_range, nudge_range or readout_range"
            )
        if not self.readout_range > 0:
            raise ValueError(f"readout_range must be above 0, got {self.readout_range!r}")
        if self.substeps is not None and (self.substeps < 2 or self.substeps % 2):
            raise ValueError(f"substeps must be an even number of at least 2, got {self.substeps!r}")
        if not 0 < self.tolerance < 1:
            raise ValueError(f"tolerance must lie between 0 and 1, got {self.tolerance!r}")
        if self.seed < 0:
            raise ValueError(f"seed must be at least 0, got {self.seed!r}")
        self.limits = Limits(
            drive=self.drive_range, nudge=self.nudge_range, holds_state=self.holds_state, momenta=self.momenta
        )
        self._parameters: Arrays = {}
        self._end: tuple[np.ndarray, np.ndarray] | None = None

    def program(self, parameters: Arrays) -> None:
        """See `Machine`. The device makes other parameters of them, and nobody reads them back."""
        self._law = law_of(parameters) if self.law is None else self.law
        self._parameters = {}
        for name, x in parameters.items():
            own = np.random.default_rng([self.seed, 0, zlib.crc32(name.encode())])
            x = np.asarray(x, np.float64)
            self._parameters[name] = x * np.exp(self.spread * own.standard_normal(x.shape)) if self.spread else x
        self._end = None

    def run(self, drives: np.ndarray) -> np.ndarray:
        """See `Machine`."""
        rest = np.zeros(drives.shape[1:])
        parameters, _ = self._begin_pass()
        rows = self._played(parameters, (rest, rest), self._converted(drives, self.drive_range))
        positions = np.stack([q for *_, q, _ in rows])
        p = rows[-1][-1]
        self._end = positions[-1], p
        axes = (0, 2)
        self._size = np.maximum(np.abs(positions).max(axes), np.abs(p).max(1))[:, None]
        return self._converted(positions, self.readout_range)

    def echo(self, drives: np.ndarray, nudges: np.ndarray) -> Trace:
        """See `Machine`."""
        if self._end is None:
            raise MachineError("an echo needs a run before it")
        start, self._end = self._flipped(self._end), self._end if self.holds_state else None
        parameters, random = self._begin_pass()
        drives = self._converted(drives, self.drive_range)
        if self.replay:
            largest = np.abs(drives).max((0, 2))[None, :, None]
            drives = drives + self.replay * largest * random.standard_normal(drives.shape)
        nudges = self._converted(nudges, self.nudge_range)
        rows = self._played(parameters, start, drives, nudges, random)
        starts, before, halves, after, _, _ = map(np.stack, zip(*rows, strict=True))
        starts, before, halves, after = (
            self._converted(x, self.readout_range) for x in (starts, before, halves, after)
        )
        return Trace(halves, before, after, starts) if self.momenta else Trace(halves, starts=starts)

    def _begin_pass(self):
        """The parameters of a pass, and its random numbers."""
        if not self._parameters:
            raise MachineError("a run needs parameters: program the device first")
        self.passes += 1
        random = np.random.default_rng([self.seed, 1, self.passes])
        if not self.drift:
            return self._parameters, random
        # Two passes differ by `drift`, so each of them by 1 / sqrt(2) of it.
        part = self.drift / np.sqrt(2)
        return {name: x * (1 + part * random.standard_normal(x.shape)) for name, x in self._parameters.items()}, random

    def _flipped(self, state):
        q, p = state
        p = -(1 + self.flip_amplitude) * p
        cos, sin = np.cos(self.flip_phase), np.sin(self.flip_phase)
        return cos * q - sin * p, sin * q + cos * p

    def _converted(self, x, largest):
        if not np.isfinite(largest):
            return np.asarray(x, np.float64)
        x = np.clip(np.asarray(x, np.float64), -largest, largest)
        if self.bits is None:
            return x
        quantum = 2 * largest / 2.0**self.bits
        return quantum * np.round(x / quantum)

    def _played(self, parameters, state, drives, nudges=None, random=None):
        """For every step: q and p at its start, q at its half, p at its end, and the state after it."""
        q, p = state
        step = self._solved if self.substeps is None else self._stepped
        rows = []
        for row, drive in enumerate(drives):
            p = p if nudges is None else p + nudges[row]
            q_half, q_end, p_end = step(parameters, q, p, drive)
            before, (q, p) = (q, p, q_half, p_end), (q_end, p_end)
            if random is not None and self.noise:
                q, p = (x + self.noise * self._size * random.standard_normal(x.shape) for x in (q, p))
            rows.append((*before, q, p))
        return rows

    def _solved(self, parameters, q, p, drive):
        shape, half = q.shape, q.size

        from scipy.integrate import solve_ivp  # a fifth of what a command imports

        def slope(_, y):
            q, p = y[:half].reshape(shape), y[half:].reshape(shape)
            force = self._law.force(parameters, q, drive) - self.damping * p
            return np.concatenate([self._law.velocity(parameters, p).ravel(), force.ravel()])

        start = np.concatenate([q.ravel(), p.ravel()])
        options = {"rtol": self.tolerance, "atol": self.tolerance * max(np.abs(start).max(), 1e-3)}
        solution = solve_ivp(slope, (0, 1), start, "DOP853", t_eval=(0.5, 1.0), first_step=1.0, **options)
        if not solution.success:
            raise MachineError(f"the equations of the device cannot be solved: {solution.message}")
        middle, end = solution.y.T
        return middle[:half].reshape(shape), end[:half].reshape(shape), end[half:].reshape(shape)

    def _stepped(self, parameters, q, p, drive):
        assert self.substeps is not None
        part, shrink = 1 / self.substeps, np.exp(-self.damping / self.substeps)
        middle = q
        for substep in range(self.substeps):
            middle = q if substep == self.substeps // 2 else middle
            q = q + 0.5 * part * self._law.velocity(parameters, p)
            p = shrink * (p + part * self._law.force(parameters, q, drive))
            q = q + 0.5 * part * self._law.velocity(parameters, p)
        return middle, q, p
