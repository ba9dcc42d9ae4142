"""The operator of a machine: what it sends, what it takes, and what a failure does."""

import sys
import threading

import numpy as np
import pytest

from models.physics.in_the_loop import MachineInTheLoop
from models.physics.machine import Limits, MachineError, Trace
from models.physics.operating import Operator, deferred_failures

PARAMETERS = {"k": np.ones(2)}


class Scripted:
    """A machine that returns what a test says."""

    limits = Limits(holds_state=True)

    def __init__(self, positions=np.zeros((4, 1, 2)), trace=None):  # noqa: B008 (it is only read)
        self.positions, self.trace = positions, trace

    def program(self, parameters):
        pass

    def run(self, drives):
        return self.positions() if callable(self.positions) else self.positions

    def echo(self, drives, nudges):
        return self.trace


ZEROS = np.zeros((4, 1, 2))
LATE = threading.Event()
NOT_FINITE = np.where(np.arange(8).reshape(4, 1, 2) == 5, np.nan, 0.0)


@pytest.mark.parametrize(
    ("positions", "trace", "words"),
    [
        (ZEROS[:, 0], None, r"run returned positions of shape \(4, 2\), expected \(4, 1, 2\)"),
        (NOT_FINITE, None, "run returned positions that are not finite, first at step 2, sequence 0 of the batch, osc"),
        ([[0.0]], None, "run returned a list for positions instead of floating-point numbers"),
        (ZEROS.astype(int), None, "run returned an array of int64 for positions"),
        (lambda: 1 / 0, None, "run failed: ZeroDivisionError: division by zero"),
        (lambda: sys.exit("no board"), None, "run failed: SystemExit: no board"),
        (lambda: LATE.wait(9), None, "run took longer than the time limit of 0.2 s"),
        (ZEROS, ZEROS, "echo returned a ndarray instead of a Trace"),
        (ZEROS, Trace(ZEROS), "echo returned a NoneType for momenta_before"),
        (ZEROS, Trace(ZEROS, ZEROS, NOT_FINITE), "echo returned momenta_after that are not finite"),
        (ZEROS, Trace(ZEROS[1:], ZEROS, ZEROS), r"echo returned positions of shape \(3, 1, 2\)"),
    ],
)
def test_a_machine_that_fails_is_named_and_not_called_again(positions, trace, words):
    operator = Operator(Scripted(positions, trace), time_limit=0.2)

    def gradient():
        ticket, _ = operator.run(PARAMETERS, ZEROS, 2)
        operator.echoes(ticket, PARAMETERS, ZEROS, ZEROS)

    for _ in range(2):
        with pytest.raises(MachineError, match=f"{words}.*pass {1 if trace is None else 2} of the machine"):
            gradient()
    with deferred_failures([operator]):
        assert np.isnan(operator.run(PARAMETERS, ZEROS, 2)[1]).all()
        mean, half_difference = operator.echoes(1, PARAMETERS, ZEROS, ZEROS)
        assert np.isnan([mean.positions, half_difference.momenta_after]).all()
    assert not operator.deferred
    if "longer" in words:
        with pytest.raises(MachineError, match="has not returned from an earlier call, which was late"):
            operator.reset()
        LATE.set()
        operator._shared._last.exception()  # pyright: ignore[reportOptionalMemberAccess]
    operator.reset()
    operator.machine.positions, operator.machine.trace = ZEROS, Trace(ZEROS, ZEROS, ZEROS)
    gradient()
    assert operator.record.echoes == 2


def test_an_object_that_is_no_machine_is_refused(unchecked_types):
    with pytest.raises(TypeError, match="str is no machine: it needs limits, program, run and echo"):
        MachineInTheLoop("board")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="time_limit must be above 0 seconds, got 0"):
        Operator(Scripted(), time_limit=0)


class Remembers(Scripted):
    """A machine whose numbers are its parameter. It uses its memory again, may fail, and notes its thread."""

    def __init__(self):
        self.threads, self.fails, self.memory = [], None, np.zeros((4, 1, 2))

    def called(self, name):
        self.threads.append(threading.current_thread())
        if self.fails == name:
            raise OSError("the cable is out")

    def program(self, parameters):
        self.called("program")
        self.parameters = parameters

    def run(self, drives):
        self.called("run")
        (self.end,) = self.parameters.values()
        self.memory[:] = self.end + drives
        drives += 1
        return self.memory

    def echo(self, drives, nudges):
        self.called("echo")
        self.memory[:] = self.end + nudges
        return Trace(*[self.memory] * 3)


UNITS = [{"k": np.array(1.0)}, {"k": np.array(2.0)}, {"stiffness": np.array(3.0)}]


def test_an_echo_starts_from_its_own_free_pass_whatever_ran_in_between():
    """Three free passes with other parameters each, and their echoes in any order, by one operator or by two."""
    machine = Remembers()
    for operators in ([Operator(machine)], [Operator(machine), Operator(machine)]):
        one, two = operators[0], operators[-1]
        tickets = [operator.run(unit, ZEROS, 2)[0] for operator, unit in zip((one, two), UNITS, strict=False)]

        def echoed(operator, number, tickets=tickets):
            mean, _ = operator.echoes(tickets[number], UNITS[number], ZEROS, ZEROS)
            return mean.positions[0, 0, 0]

        assert [echoed(one, 0), echoed(one, 0)] == [1.0, 1.0]
        tickets.append(two.run(UNITS[2], ZEROS, 2)[0])
        assert [echoed(one, 1), echoed(two, 2), echoed(one, 0), echoed(one, 0)] == [2.0, 3.0, 1.0, 1.0]
        assert sum(operator.record.repeated for operator in {one, two}) == 4
    assert len(set(machine.threads)) == 1
    assert machine.threads[0] is not threading.current_thread()


def test_arguments_and_numbers_of_a_machine_are_copied():
    operator = Operator(Remembers(), time_limit=np.inf)
    ticket, positions = operator.run(UNITS[0], ZEROS, 2)
    mean, half_difference = operator.echoes(ticket, UNITS[0], ZEROS, ZEROS + 0.5)
    assert not ZEROS.any()
    assert (positions[0, 0, 0], mean.positions[0, 0, 0], half_difference.positions[0, 0, 0]) == (1.0, 1.0, 0.5)


@pytest.mark.parametrize("after", ["failed program", "failed run", "reset", "close", "exchange"])
def test_a_machine_is_programmed_and_run_again_after(after):
    operator, unit = Operator(Remembers()), UNITS[0]
    ticket, _ = operator.run(unit, ZEROS, 2)
    if after.startswith("failed"):
        operator.machine.fails = after.split()[1]
        with pytest.raises(MachineError, match="the cable is out"):
            operator.run(UNITS[1], ZEROS, 2)
        operator.failure = operator.machine.fails = None
    elif after == "exchange":
        operator.machine = Remembers()
    else:
        getattr(operator, after)()
    operator.echoes(ticket, unit, ZEROS, ZEROS)
    counted = operator.record.programmed, operator.record.free_passes
    assert counted == (3 if after == "failed run" else 2, 2)


def test_numbers_that_are_not_finite_are_not_sent_and_are_no_failure():
    operator = Operator(Remembers())
    for x, y in ((ZEROS + np.inf, UNITS[0]), (ZEROS, {"k": np.array(np.nan)})):
        assert np.isnan(operator.run(y, x, 2)[1]).all()
    ticket, _ = operator.run(UNITS[0], ZEROS, 2)
    for trace in (*operator.echoes(ticket, UNITS[0], ZEROS, NOT_FINITE), operator.echo(1, UNITS[0], NOT_FINITE, ZEROS)):
        assert np.isnan([trace.positions, trace.momenta_before, trace.momenta_after]).all()
    assert (operator.record.passes, operator.failure) == (1, None)


def test_the_rows_of_an_echo_go_back_in_time():
    """A machine plays row 0 first. What it measured comes back in the order of the free pass."""

    class Order(Scripted):
        def echo(self, drives, nudges):
            assert drives[:, 0, 0].tolist() == [3.0, 2.0, 1.0, 0.0]
            return Trace(drives, nudges, nudges)

    drives = np.arange(4.0)[:, None, None] * np.ones((1, 1, 2))
    operator = Operator(Order())
    ticket, _ = operator.run(PARAMETERS, drives, 2)
    mean, half_difference = operator.echoes(ticket, PARAMETERS, drives, 2 * drives)
    np.testing.assert_array_equal(mean.positions, drives)
    np.testing.assert_array_equal(half_difference.momenta_before, 2 * drives)
