"""A machine that is another program: the example devices, and programs that do not keep the protocol."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from models.physics.machine import Limits, Machine, MachineError, Trace
from models.physics.numpy_leapfrog import NumpyLeapfrog
from models.physics.operating import Operator
from models.physics.process_machine import ProcessMachine

EXAMPLES = Path(__file__).parents[2] / "examples"
COMPILER = shutil.which("cc")
DRIVES = np.random.default_rng(0).normal(size=(7, 2, 3))
NUDGES = 0.1 * DRIVES[::-1]
PARAMETERS = {
    "W_diag": np.array([0.5, 0.7, 0.9]),
    "b": np.array([0.1, 0.0, -0.1]),
    "alpha": np.array([0.2, 0.5, 1.0]),
    "step": np.array([0.1, 0.2, 0.3], np.float32),
}


@pytest.mark.parametrize("language", ["Python", *["C"] * (COMPILER is not None)])
def test_the_example_device_is_the_leapfrog(language, tmp_path):
    command = [sys.executable, str(EXAMPLES / "device.py")]
    if language == "C":
        command = [str(tmp_path / "device")]
        warnings = ("-Wall", "-Wextra", "-Werror")
        subprocess.run([str(COMPILER), *warnings, "-o", *command, str(EXAMPLES / "device.c"), "-lm"], check=True)
    device, ideal = ProcessMachine(command, time_limit=20), NumpyLeapfrog(Limits(holds_state=True))
    assert isinstance(device, Machine)
    assert (device.limits.passes, device.limits.momenta) == (3, True)
    for batch in (slice(0, 2), slice(0, 1)):
        for machine in (device, ideal):
            machine.program(PARAMETERS)
        np.testing.assert_allclose(device.run(DRIVES[:, batch]), ideal.run(DRIVES[:, batch]), atol=1e-14)
        for sign in (1, -1):
            measured, expected = (x.echo(DRIVES[::-1, batch], sign * NUDGES[:, batch]) for x in (device, ideal))
            assert vars(measured).keys() == vars(Trace(NUDGES)).keys()
            for name, x in vars(measured).items():
                np.testing.assert_allclose(x, getattr(expected, name), atol=1e-14)
    device.close()
    with pytest.raises(MachineError, match="the program is not running"):
        device.run(DRIVES)


PREAMBLE = """
import json, sys, time
def read():
    line = json.loads(sys.stdin.buffer.readline())
    return line, [sys.stdin.buffer.read(x["bytes"]) for x in line["arrays"]]
def say(text):
    sys.stdout.buffer.write(text if isinstance(text, bytes) else json.dumps(text).encode() + b"\\n")
    sys.stdout.buffer.flush()
read()
"""
HELLO = PREAMBLE + 'say({"version": 1, "limits": {"drive": 2}})\nread()\n'
TWO_ANSWERS = PREAMBLE + """say(b'{"version": 1, "limits": {"drive": 2}}\\n{}\\n')\nread()\n"""


def asked(program, time_limit=20.0):
    """A machine from the text of a program, which is asked to run. It gets the words of the failure."""
    machine = ProcessMachine([sys.executable, "-S", "-c", program], time_limit)
    try:
        assert machine.limits.drive == 2
        machine.run(DRIVES)
    except MachineError as error:
        return str(error)
    finally:
        machine.close()


def positions(shape=DRIVES.shape, length=9999, name="positions"):
    return json.dumps({"arrays": [{"name": name, "shape": shape, "bytes": length}]})


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("import sys; sys.exit('no board')", "the program ended (exit status 1) (it printed: no board)"),
        ("input(); print('Booting...')", "the program printed b'Booting...\\n' where a line of JSON was expected"),
        ("input(); print('[1]')", "the program printed b'[1]\\n' where a line of JSON"),
        ("input(); print('x' * 10**6)", "where a line of JSON was expected"),
        (PREAMBLE + 'say({"version": 2})', "the program speaks version 2 of the protocol, not 1"),
        (PREAMBLE + 'say({"version": 1, "limits": {"drive": -1}})', "impossible limits {\"drive\": -1} (limits: drive"),
        (PREAMBLE + 'say({"version": 1, "limits": {"momenta": 1}})', "impossible limits {\"momenta\": 1} (momenta"),
        (PREAMBLE + 'say({"version": 1, "limits": {"size": 1}})', "impossible limits {\"size\": 1} ('size')"),
        (TWO_ANSWERS, "the program printed b'{}\\n' before it was asked; one message answers each message"),
        (HELLO + "import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "the program ended (signal 9)"),
        (HELLO + "import os; os.close(1); time.sleep(9)", "the program ended its output"),
        (HELLO + f"say({positions([7, 3], 128)!r}.encode())", "announced the array {\"name\": \"positions\", \"shape"),
        (HELLO + f"say({positions(length=10**9)!r}.encode() + b'\\n')", "announced the array"),
        (HELLO + "say({})", "the program returned no positions"),
        (HELLO + f"say({positions(name='p')!r}.encode())", "expected are positions [7, 2, oscillators]"),
        (HELLO + f"say({positions(length=100)!r}.encode() + b'\\n' + b'x' * 100)", "the program sent no npy file"),
        (HELLO + f"say({positions(length=400)!r}.encode() + b'\\n' + b'x' * 10)", "the program ended"),
    ],
)  # fmt: skip
def test_a_program_that_does_not_keep_the_protocol_is_an_error_in_words(program, words):
    assert words in asked(program)


def test_a_program_that_is_late_or_does_not_read_is_killed_with_what_it_started():
    start = time.perf_counter()
    words = "no answer within the time limit of 0.3 s; the program was killed"
    assert words in asked(HELLO + "import os; os.fork(); time.sleep(9)", 0.3)
    machine = ProcessMachine([sys.executable, "-S", "-c", "import time; time.sleep(9)"], 0.3)
    machine._start()
    with pytest.raises(MachineError, match=words):  # the pipe to the program fills
        machine.run(np.zeros((1000, 10, 10)))
    machine.close()
    operator = Operator(ProcessMachine([sys.executable, "-S", "-c", HELLO + "time.sleep(9)"]), time_limit=0.3)
    process = started(operator.machine)
    assert os.getpgid(process.pid) == process.pid != os.getpgid(0)  # Ctrl-C does not reach it
    with pytest.raises(MachineError, match=r"program took longer than the time limit of 0\.3 s"):
        operator.run(PARAMETERS, DRIVES, 3)
    operator.close()  # while the call is in flight
    assert process.returncode == -signal.SIGKILL
    assert time.perf_counter() - start < 9


def started(machine):
    """The process of a machine that has told its limits."""
    assert machine.limits.drive == 2
    return machine._process


def test_a_program_that_reports_an_error_lives_on_and_one_that_leaves_the_protocol_is_killed():
    twice = 'say({"error": "too hot"})\nread()\nsay({"error": "too cold"})\nread()\nsay({"arrays": 1})\nread()'
    machine = ProcessMachine([sys.executable, "-S", "-c", HELLO + twice], 20.0)
    process = started(machine)
    for words in ("reports: too hot", "reports: too cold", "announced the array 1", "ended in an earlier call"):
        assert process.poll() is None or "ended" in words
        with pytest.raises(MachineError, match=f"the program {words}"):
            machine.run(DRIVES)
        if "announced" in words:
            assert process.wait(5) == -signal.SIGKILL
    machine.close()


def test_a_command_that_is_none_is_refused():
    with pytest.raises(MachineError, match="no_such_device: cannot be started"):
        _ = ProcessMachine(["no_such_device"]).limits
    for command in ([], [""]):
        with pytest.raises(ValueError, match="command must be a list of texts"):
            ProcessMachine(command)
    with pytest.raises(ValueError, match="time_limit must be above 0 seconds and finite, got 0"):
        ProcessMachine(["device"], 0.0)
