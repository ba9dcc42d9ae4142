"""A machine that is another program: it answers on its standard input and output. docs/machines.md is its manual.

A message, in both directions, is one line of JSON and then the arrays that the line announces, each as the bytes of an
npy file (little-endian float64, C order):

    {"call": "run", "arrays": [{"name": "drives", "shape": [100, 8, 4], "bytes": 25728}]}
    <25728 bytes of npy>

The first message asks for the version and the limits. The program answers every message with one message, or with
{"error": "words"}. It must not print anything else to its standard output.
"""

import io
import json
import math
import os
import signal
import subprocess
import tempfile
import threading
import weakref
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import IO, Any

import numpy as np

from .machine import Limits, MachineError, Trace

VERSION = 1
LONGEST_LINE = 2**16
LONGEST_HEADER = 4096  # bytes of an npy file before its numbers
_KINDS = {"oscillators": (int,), "holds_state": (bool,), "momenta": (bool,)}
_KINDS |= dict.fromkeys(("drive", "nudge"), (int, float))
_TRACE = ("positions", "momenta_before", "momenta_after", "starts")


@dataclass
class ProcessMachine:
    """The program `command`, started without a shell at the first call.

    `time_limit`: seconds for an answer. `close` ends the program.

    Every call raises `MachineError` if the program cannot be started, ends, is late, reports an error, or answers
    something else than the protocol asks for; with the end of what the program printed to its standard error. The
    program, and all programs that it started, are then killed, unless it reports an error: the next answer could be
    that to an earlier message. Ctrl-C in a terminal does not reach the program.
    """

    command: list[str]
    time_limit: float = 60.0
    _process: subprocess.Popen | None = field(default=None, init=False, repr=False)
    _asking: threading.Event = field(default_factory=threading.Event, init=False, repr=False)  # a call is in flight

    def __post_init__(self):
        if not self.command or not all(isinstance(x, str) and x for x in self.command):
            raise ValueError(f"command must be a list of texts, the program and its arguments, got {self.command!r}")
        if not (self.time_limit > 0 and math.isfinite(self.time_limit)):
            raise ValueError(f"time_limit must be above 0 seconds and finite, got {self.time_limit!r}")
        self._limits: Limits | None = None

    @property
    def limits(self) -> Limits:
        """What the program says of itself. Starts the program."""
        if self._limits is None:
            self._start()
            self._limits = _limits_of(self._asked("hello", {}, {}, version=VERSION)[0])
        return self._limits

    def program(self, parameters: dict[str, np.ndarray]) -> None:
        """See `Machine`."""
        self._asked("program", parameters, {})

    def run(self, drives: np.ndarray) -> np.ndarray:
        """See `Machine`."""
        return _with_positions(self._asked("run", {"drives": drives}, {"positions": drives.shape[:2]})[1])["positions"]

    def echo(self, drives: np.ndarray, nudges: np.ndarray) -> Trace:
        """See `Machine`."""
        wanted = dict.fromkeys(_TRACE if self.limits.momenta else ("positions", "starts"), drives.shape[:2])
        return Trace(**_with_positions(self._asked("echo", {"drives": drives, "nudges": nudges}, wanted)[1]))

    def close(self) -> None:
        """End the program: close its input, and kill it if it has not ended after five seconds.

        A program that still owes an answer is killed at once.
        """
        if self._process is not None:
            self._finalize()
        self._process = self._limits = None

    def _start(self):
        if self._process is None:
            self._errors = tempfile.TemporaryFile()  # noqa: SIM115 (it lives as long as the program)
            pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self._errors}
            try:
                self._process = subprocess.Popen(self.command, start_new_session=True, **pipes)
            except OSError as error:
                self._errors.close()
                raise MachineError(f"{self.command[0]}: cannot be started ({error.strerror})") from error
            self._finalize = weakref.finalize(self, _end, self._process, self._errors, self._asking)

    def _asked(self, call: str, arrays: Mapping[str, np.ndarray], wanted: dict, **more: Any) -> tuple[dict, dict]:
        """The line and the arrays of the answer. `wanted`: the first two axes of the arrays that may come back."""
        if self._process is None:
            raise MachineError("the program is not running: it starts when it is asked for its limits")
        if self._process.returncode is not None:  # its number may belong to another process, which is not to be killed
            raise MachineError(f"the program ended in an earlier call{self._said()}")
        process, late = self._process, threading.Event()
        assert process.stdin is not None
        assert process.stdout is not None

        def kill():
            late.set()
            _kill(process)

        watch = threading.Timer(self.time_limit, kill)
        watch.daemon = True
        watch.start()
        self._asking.set()
        try:
            _require_silence(process.stdout)
            _send(process.stdin, {"call": call, **more}, arrays)
            return _received(process.stdout, wanted)
        except _Reported as error:
            raise MachineError(f"{error}{self._said()}") from None
        except (MachineError, OSError, EOFError) as error:
            if late.is_set():
                words = f"no answer within the time limit of {self.time_limit:g} s; the program was killed"
            elif isinstance(error, MachineError):
                words = str(error)
            else:
                words = f"the program ended{_status(process)}"
            _kill(process)  # its next answer could belong to an earlier message
            raise MachineError(f"{words}{self._said()}") from error
        finally:
            watch.cancel()
            self._asking.clear()

    def _said(self) -> str:
        """The last line that the program printed to its standard error."""
        # The program shares the position in the file.
        size = os.fstat(self._errors.fileno()).st_size
        text = os.pread(self._errors.fileno(), 2000, max(0, size - 2000)).decode(errors="replace").strip()
        return f" (it printed: {text.splitlines()[-1][-300:]})" if text else ""


def _with_positions(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    if "positions" not in arrays:
        raise MachineError("the program returned no positions")
    return arrays


class _Reported(MachineError):
    """The program reports an error. It keeps the protocol."""


def _require_silence(stream: Any) -> None:
    """Raises `MachineError` if the program has printed something before it is asked."""
    os.set_blocking(stream.fileno(), False)
    try:
        early = stream.peek(1)
    finally:
        os.set_blocking(stream.fileno(), True)
    if early:
        raise MachineError(
            f"the program printed {early[:60]!r} before it was asked; one message answers each message, and messages "
            "for people belong on the standard error"
        )


def _send(stream: IO[bytes], line: dict, arrays: Mapping[str, np.ndarray]) -> None:
    contents = {}
    for name, x in arrays.items():
        file = io.BytesIO()
        np.lib.format.write_array(file, np.ascontiguousarray(x, "<f8"), version=(1, 0), allow_pickle=False)
        contents[name] = file.getvalue()
    listed = [{"name": name, "shape": list(arrays[name].shape), "bytes": len(x)} for name, x in contents.items()]
    stream.write(json.dumps({**line, "arrays": listed}).encode() + b"\n")
    for content in contents.values():
        stream.write(content)
    stream.flush()


def _received(stream: IO[bytes], wanted: dict[str, tuple[int, ...]]) -> tuple[dict, dict[str, np.ndarray]]:
    """An answer. Raises `MachineError` for anything but the protocol, `EOFError` for a stream that ended."""
    text = stream.readline(LONGEST_LINE)
    if not text:
        raise EOFError
    try:
        line = json.loads(text)
    except (ValueError, RecursionError):
        line = None
    if not isinstance(line, dict):
        raise MachineError(
            f"the program printed {text[:60]!r} where a line of JSON was expected; messages for people belong on the "
            "standard error"
        )
    if "error" in line:
        raise _Reported(f"the program reports: {str(line['error'])[:500]}")
    arrays, announced = {}, line.get("arrays", [])
    for one in announced if isinstance(announced, list) else [announced]:
        if not _is_announcement(one, wanted):
            shapes = ", ".join(f"{name} [{axes[0]}, {axes[1]}, oscillators]" for name, axes in wanted.items())
            raise MachineError(
                f"the program announced the array {json.dumps(one)[:120]}; expected are {shapes or 'no arrays'}, each "
                "with its name, shape and bytes"
            )
        arrays[one["name"]] = _array(stream, one["bytes"])
    return line, arrays


def _is_announcement(one: Any, wanted: dict[str, tuple[int, ...]]) -> bool:
    """Whether an answer announces an array that may come back, of the right size, in so many bytes."""
    if not (isinstance(one, dict) and one.get("name") in wanted and isinstance(one.get("shape"), list)):
        return False
    shape, length = tuple(one["shape"]), one.get("bytes", 0)
    numbers = all(type(x) is int and x > 0 for x in (*shape, length))
    return numbers and len(shape) == 3 and shape[:2] == wanted[one["name"]] and length <= _room(shape)


def _room(shape: tuple[int, ...]) -> int:
    return 8 * math.prod(shape) + LONGEST_HEADER


def _array(stream: IO[bytes], length: int) -> np.ndarray:
    content = stream.read(length)
    if len(content) < length:
        raise EOFError
    try:
        return np.lib.format.read_array(io.BytesIO(content), allow_pickle=False)
    except Exception as error:  # numpy reads a damaged header with Python's parser, which can fail in any way
        raise MachineError(f"the program sent no npy file: {error}") from None


def _limits_of(line: dict) -> Limits:
    if line.get("version") != VERSION:
        raise MachineError(f"the program speaks version {line.get('version')!r} of the protocol, not {VERSION}")
    given = line.get("limits", {})
    try:
        given = {name: value for name, value in given.items() if value is not None}
        for name, value in given.items():
            if type(value) not in _KINDS[name]:
                raise ValueError(f"{name} is {value!r}")
        return Limits(**given)
    except (AttributeError, KeyError, ValueError) as error:
        raise MachineError(f"the program has impossible limits {json.dumps(given)[:200]} ({error})") from None


def _status(process: subprocess.Popen) -> str:
    try:
        code = process.wait(1.0)
    except subprocess.TimeoutExpired:
        return " its output"
    return f" (signal {-code})" if code < 0 else f" (exit status {code})"


def _kill(process: subprocess.Popen) -> None:
    """Kill the program and what it started: a process that keeps its output open would keep the answer waiting."""
    with suppress(ProcessLookupError):  # they have ended
        os.killpg(process.pid, signal.SIGKILL)


def _end(process: subprocess.Popen, errors: IO[bytes], asking: threading.Event) -> None:
    if asking.is_set():  # to close a stream waits for the call that reads it
        _kill(process)
    for stream in (process.stdin, process.stdout, errors):
        try:
            if stream is not None:
                stream.close()
        except OSError:  # what was not sent is lost
            pass
    try:
        process.wait(5.0)
    except subprocess.TimeoutExpired:
        _kill(process)
        process.wait()
