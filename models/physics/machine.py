"""What a machine in the loop must do: the protocol, in plain numpy. docs/machines.md explains it from the bench's side.

A machine is a set of oscillators with positions and momenta, which run from rest under drives, can be turned around,
and return under the same drives. It runs a whole batch of sequences. All arrays are numpy arrays, time first:

    drives, nudges      (time, batch, in) and (time, batch, osc)
    positions, momenta  (time, batch, osc)

The time unit is one step. Energies have the time step folded in (`rhel.hamiltonian`): dt * T and dt * V.
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float


class MachineError(RuntimeError):
    """A machine failed: it is late, it died, or it returned something else than a measured trace."""


@dataclass(frozen=True)
class Limits:
    """What a machine can do.

    - `oscillators`: their number; None for a machine that takes the number from its parameters.
    - `drive`, `nudge`: the largest absolute value. Drives are clipped to it, the nudges of a sequence scaled down.
    - `holds_state`: whether the machine keeps or clones the end state of `run`, so that several echoes start from it. A
      gradient then takes three passes; otherwise four, with a second `run` before the second echo.
    - `momenta`: whether the trace of an echo has the momenta.

    Raises `ValueError` for numbers that are not positive.
    """

    oscillators: int | None = None
    drive: float = np.inf
    nudge: float = np.inf
    holds_state: bool = False
    momenta: bool = True

    def __post_init__(self):
        for name in ("oscillators", "drive", "nudge"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"limits: {name} must be above 0, got {value!r}")

    @property
    def passes(self) -> int:
        """Passes of the machine for one gradient."""
        return 3 if self.holds_state else 4


@dataclass(frozen=True)
class Trace:
    """What a machine measured in an echo, in the order of the echo: row 0 is its first step, the last of the sequence.

    Arrays (time, batch, osc) of floating-point numbers.

    - `positions`: at the half of each step, where the force acts.
    - `momenta_before`, `momenta_after`: at the start of each step, after the nudge; and at its end. None if the machine
      does not measure momenta.
    - `starts`: the positions at the start of each step. No gradient needs them. `check_machine` does, to say where in
      time an echo leaves the free pass. None if they are not measured.
    """

    positions: np.ndarray
    momenta_before: np.ndarray | None = None
    momenta_after: np.ndarray | None = None
    starts: np.ndarray | None = None


@runtime_checkable
class Machine(Protocol):
    """A machine. Any class with these members is one; it need not be a subclass.

    `program`, `run` and `echo` are called from one thread, which is not that of the caller. A machine may keep and
    change its arguments, and use the memory of its results again. It may raise any exception. The training then ends
    with a `MachineError` that repeats its words.
    """

    @property
    def limits(self) -> Limits:
        """The limits, which stay the same for the life of the machine."""
        ...

    def program(self, parameters: dict[str, np.ndarray]) -> None:
        """Set the parameters of the oscillators. The names are the fields of the declared Hamiltonian.

        The end state of a run before this call is not used any more.
        """
        ...

    def run(self, drives: Float[np.ndarray, "time batch in"]) -> Float[np.ndarray, "time batch osc"]:
        """The free pass: from rest (zero positions and momenta), the positions at the end of each step."""
        ...

    def echo(self, drives: Float[np.ndarray, "time batch in"], nudges: Float[np.ndarray, "time batch osc"]) -> Trace:
        """One echo: from the end state of the last `run`, flip all momenta, then play the rows in the given order.

        Row 0 of `drives` is the last drive of the free pass. In each step: first add the nudge to the momenta, then let
        one step pass under the drive.
        """
        ...
