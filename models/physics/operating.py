"""The operator of a machine: it programs, runs and echoes a machine, checks what comes back, and keeps the record.

Plain numpy, no jax: these functions run inside callbacks of jax, in which a call of jax can wait for itself.
"""

import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from contextlib import contextmanager
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any

import numpy as np
from jaxtyping import Float

from .machine import MachineError, Trace


class MachineWarning(UserWarning):
    """The limits of a machine change what it is asked to do."""


@dataclass
class Record:
    """What a machine did, in numbers. Saved with a run.

    - `free_passes`, `echoes`: the passes that succeeded. `repeated`: the free passes among them that only brought an
      end state back.
    - `programmed`: how often parameters were sent.
    - `seconds`: time on the machine, programming included.
    - `clipped_drives` of `drives`: the numbers above the limit, and all.
    - `reduced_nudges`: the sequences whose nudges were scaled down to the limit.
    """

    free_passes: int = 0
    echoes: int = 0
    repeated: int = 0
    programmed: int = 0
    seconds: float = 0.0
    clipped_drives: int = 0
    drives: int = 0
    reduced_nudges: int = 0

    @property
    def passes(self) -> int:
        """All passes of the machine."""
        return self.free_passes + self.echoes


class _Machine:
    """What all operators of a machine share: the thread that calls it, and what it holds.

    One thread makes all calls, because a driver may be bound to the thread that opened it. It ends with the object.
    """

    def __init__(self, machine: Any):
        self.machine = machine  # so that its id belongs to no other
        self.lock = threading.Lock()
        self.last_ticket = 0
        self.held: int | None = None  # the ticket of the free pass whose end state the machine holds
        self.parameters: dict[str, np.ndarray] | None = None
        self._calls: SimpleQueue | None = None
        self._last: futures.Future | None = None

    def forget(self) -> None:
        """Send the parameters again, and run the free pass again."""
        self.held = self.parameters = None

    def require_idle(self) -> None:
        """Raises `MachineError` if a call that was late has not returned yet."""
        if self._last is not None and not self._last.done():
            raise MachineError("the machine has not returned from an earlier call, which was late")

    def result(self, name: str, call: Callable, time_limit: float) -> Any:
        """The result of a call. Raises `MachineError` if the call fails or is late."""
        self.require_idle()
        if self._calls is None:
            self._calls = SimpleQueue()
            threading.Thread(target=_make, args=(self._calls,), daemon=True, name="machine").start()
            weakref.finalize(self, self._calls.put, None)
        self._last = future = futures.Future()
        self._calls.put((call, future))
        try:
            error = future.exception(min(time_limit, threading.TIMEOUT_MAX))
        except futures.TimeoutError:
            raise MachineError(f"{name} took longer than the time limit of {time_limit:g} s") from None
        self._last = None  # which holds the arrays
        if error is not None:
            words = str(error) if isinstance(error, MachineError) else f"{type(error).__name__}: {error}"
            raise MachineError(f"{name} failed: {words}") from error
        return future.result()


def _make(calls: SimpleQueue) -> None:
    """Make the calls of a queue, until it holds None."""
    while (asked := calls.get()) is not None:
        call, future = asked
        try:
            future.set_result(call())
        except BaseException as error:  # also of a machine that calls sys.exit
            future.set_exception(error)
        del asked, call, future  # which hold the machine


_MACHINES: weakref.WeakValueDictionary[int, _Machine] = weakref.WeakValueDictionary()
"""By the id of a machine."""


@dataclass(eq=False)  # jax takes equal objects for the same: a compiled program would call another machine
class Operator:
    """One machine and its record. Calls are served one after the other, whoever makes them.

    `program`, `run` and `echo` of the machine are called from one thread. Another operator of the same machine calls it
    from the same thread. Parameters, drives or nudges that are not finite are not sent: the results are NaN, and no
    pass is made.

    - `time_limit`: seconds after which a call of the machine has failed.
    - `failure`: the first error. A machine that failed is not called again until `reset`.
    - `deferred`: if true, a failed call returns NaN instead of raising. The training loop reads `failure` afterwards,
      while the state before the failed step is still at hand.
    """

    machine: Any  # a Machine. A check by isinstance would read its limits, for which a program has to start.
    time_limit: float = 600.0
    record: Record = field(default_factory=Record)
    failure: MachineError | None = None
    deferred: bool = False

    def __post_init__(self):
        known = {*dir(type(self.machine)), *getattr(self.machine, "__dict__", ())}
        if not known >= {"limits", "program", "run", "echo"}:
            raise TypeError(
                f"{type(self.machine).__name__} is no machine: it needs limits, program, run and echo "
                "(models.physics.machine.Machine)"
            )
        if not self.time_limit > 0:
            raise ValueError(f"time_limit must be above 0 seconds, got {self.time_limit!r}")
        self._known: _Machine | None = None

    @property
    def _shared(self) -> _Machine:
        if self._known is None or self._known.machine is not self.machine:  # the field may be set to another machine
            self._known = _MACHINES.setdefault(id(self.machine), _Machine(self.machine))
        return self._known

    def reset(self) -> None:
        """Forget a failure, the parameters and the end state, for a machine that works again.

        Raises `MachineError` if the machine has not returned from a call that was late.
        """
        self._shared.require_idle()
        self._shared.forget()
        self.failure = None

    def resume(self, record: dict[str, Any]) -> None:
        """Continue a record. A simulated machine that numbers its passes (`passes`) continues its numbers, too."""
        self.record = Record(**record)
        if hasattr(self.machine, "passes"):
            self.machine.passes = self.record.passes

    def close(self) -> None:
        """Call `close` of the machine, if it has one. What the machine held is forgotten."""
        getattr(self.machine, "close", lambda: None)()
        self._shared.forget()  # it may start again

    def count_drives(self, clipped: int, drives: int) -> None:
        """Count the drives of a free pass. Warns the first time that some are clipped."""
        if clipped and not self.record.clipped_drives:
            warnings.warn(
                f"{clipped} of {drives} drives are above {self.machine.limits.drive:g}, the limit of the machine, and "
                "are clipped to it",
                MachineWarning,
                stacklevel=2,
            )
        self.record.clipped_drives += clipped
        self.record.drives += drives

    def count_reduced(self, sequences: int) -> None:
        """Count the sequences of a gradient whose nudges are scaled down. Warns the first time."""
        if sequences and not self.record.reduced_nudges:
            warnings.warn(
                f"the nudges of {sequences} sequences are above {self.machine.limits.nudge:g}, the limit of the "
                "machine, and are scaled down to it",
                MachineWarning,
                stacklevel=2,
            )
        self.record.reduced_nudges += sequences

    def run(
        self, parameters: dict[str, np.ndarray], drives: Float[np.ndarray, "time batch in"], oscillators: int
    ) -> tuple[int, np.ndarray]:
        """A free pass: its ticket, by which `echoes` knows it, and its positions (time, batch, osc)."""
        shape = (*drives.shape[:2], oscillators)
        return self._guarded(
            lambda: self._new_free_pass(parameters, drives, shape),
            (0, np.full(shape, np.nan)),
            (*parameters.values(), drives),
        )

    def echoes(
        self,
        ticket: int,
        parameters: dict[str, np.ndarray],
        drives: Float[np.ndarray, "time batch in"],
        nudges: Float[np.ndarray, "time batch osc"],
    ) -> tuple[Trace, Trace]:
        """The echoes with nudges added and subtracted, of the free pass with this ticket: mean and half-difference.

        Drives, nudges and traces are in the order of the free pass. If the machine does not hold the end state of that
        free pass, it is run again, with these parameters.
        """

        def both():
            plus = self._echo(ticket, parameters, drives, nudges)
            minus = self._echo(ticket, parameters, drives, -nudges)
            return _combined(np.add, plus, minus), _combined(np.subtract, plus, minus)

        lost = _lost(nudges.shape)
        return self._guarded(both, (lost, lost), (*parameters.values(), drives, nudges))

    def echo(
        self,
        ticket: int,
        parameters: dict[str, np.ndarray],
        drives: Float[np.ndarray, "time batch in"],
        nudges: Float[np.ndarray, "time batch osc"],
    ) -> Trace:
        """One echo, with `starts` if the machine measures them; otherwise as `echoes`."""
        return self._guarded(
            lambda: self._echo(ticket, parameters, drives, nudges),
            _lost(nudges.shape),
            (*parameters.values(), drives, nudges),
        )

    def _new_free_pass(self, parameters, drives, shape):
        self._shared.last_ticket += 1
        ticket = self._shared.last_ticket
        return ticket, self._free_pass(ticket, parameters, drives, shape)

    def _free_pass(self, ticket, parameters, drives, shape):
        self._program(parameters)
        positions = self._called("run", lambda: self.machine.run(drives.copy()))
        positions = _measured("run", "positions", positions, shape)
        self.record.free_passes += 1
        self._shared.held = ticket
        return positions

    def _program(self, parameters):
        last = self._shared.parameters
        if (
            last is not None
            and last.keys() == parameters.keys()
            and all(np.array_equal(last[name], value) for name, value in parameters.items())
        ):
            return
        self._called("program", lambda: self.machine.program({name: x.copy() for name, x in parameters.items()}))
        self._shared.parameters = parameters
        self.record.programmed += 1

    def _echo(self, ticket, parameters, drives, nudges) -> Trace:
        if self._shared.held != ticket:
            self._free_pass(ticket, parameters, drives, nudges.shape)
            self.record.repeated += 1
        self._shared.held = ticket if self.machine.limits.holds_state else None
        trace = self._called("echo", lambda: self.machine.echo(drives[::-1].copy(), nudges[::-1].copy()))
        if not isinstance(trace, Trace):
            raise MachineError(f"echo returned a {type(trace).__name__} instead of a Trace")
        named = {"positions": trace.positions}
        if self.machine.limits.momenta:
            named |= {"momenta_before": trace.momenta_before, "momenta_after": trace.momenta_after}
        if trace.starts is not None:
            named |= {"starts": trace.starts}
        measured = {name: _measured("echo", name, x, nudges.shape)[::-1] for name, x in named.items()}
        self.record.echoes += 1
        return Trace(**measured)

    def _called(self, name: str, call: Callable) -> Any:
        started = time.perf_counter()
        try:
            return self._shared.result(name, call, self.time_limit)
        finally:
            self.record.seconds += time.perf_counter() - started

    def _guarded(self, work: Callable, lost: Any, sent: Sequence[np.ndarray]) -> Any:
        """The result of the work; `lost` if what it sends is not finite, or if it fails and failures are deferred."""
        with self._shared.lock:
            if self.failure is None:
                if not all(np.all(np.isfinite(x)) for x in sent):
                    return lost
                try:
                    return work()
                except BaseException as error:
                    self._shared.forget()  # what it holds is unknown
                    if not isinstance(error, MachineError):
                        raise
                    self.failure = MachineError(f"{error} (pass {self.record.passes + 1} of the machine)")
                    self.failure.__cause__ = error.__cause__
            if self.deferred:
                return lost
            raise self.failure


def failure_of(operators: Sequence[Operator]) -> MachineError | None:
    """The first failure of these machines; None if all work."""
    return next((operator.failure for operator in operators if operator.failure is not None), None)


@contextmanager
def deferred_failures(operators: Sequence[Operator]) -> Iterator[None]:
    """Within the block, the failure of a machine is noted in `failure`, and its passes return NaN."""
    before = [operator.deferred for operator in operators]
    for operator in operators:
        operator.deferred = True
    try:
        yield
    finally:
        for operator, deferred in zip(operators, before, strict=True):
            operator.deferred = deferred


def _lost(shape: tuple[int, ...]) -> Trace:
    """A trace of NaN."""
    nan = np.full(shape, np.nan)
    return Trace(nan, nan, nan)


def _combined(operation: Callable, plus: Trace, minus: Trace) -> Trace:
    """Half of the sum or of the difference of two traces."""

    def half(x, y):
        return None if x is None else 0.5 * operation(x, y)

    positions = 0.5 * operation(plus.positions, minus.positions)
    before = half(plus.momenta_before, minus.momenta_before)
    return Trace(positions, before, half(plus.momenta_after, minus.momenta_after))


def _measured(call: str, name: str, x: Any, shape: tuple[int, ...]) -> np.ndarray:
    """A copy of the array, if it is one of this shape with finite numbers. Raises `MachineError`."""
    if not isinstance(x, np.ndarray) or not np.issubdtype(x.dtype, np.floating):
        got = f"an array of {x.dtype}" if isinstance(x, np.ndarray) else f"a {type(x).__name__}"
        raise MachineError(f"{call} returned {got} for {name} instead of floating-point numbers")
    if x.shape != shape:
        raise MachineError(f"{call} returned {name} of shape {x.shape}, expected {shape} (time, batch, oscillators)")
    if not np.all(np.isfinite(x)):
        time, batch, oscillator = np.argwhere(~np.isfinite(x))[0]
        raise MachineError(
            f"{call} returned {name} that are not finite, first at step {time}, sequence {batch} of the batch, "
            f"oscillator {oscillator}"
        )
    return x.copy()  # the machine may use its memory again
