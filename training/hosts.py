"""Several processes that train together, usually on several hosts. Only this module knows how they talk.

All processes run the same program on the same commands, in step, each with its own devices (`training.devices`).
Process 0, the first, alone writes files. Where the others depend on what it reads or writes, they wait for it
(`from_first`). jax's distributed runtime connects the processes, and its key-value store carries every message here.

A killed process cannot say that it ends, and a collective that waits for it need not return. So every process counts
up a number in the store, its pulse, and a thread reads those of all. A process whose pulse stops is lost, and all
others end. A process that ends with an error tells the others, and they end with the same message (`leave`).

Without `join` the only process is the first, and no function here waits.
"""

import ctypes
import errno
import itertools
import json
import signal
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import jax
from jax._src import distributed

REFUSED, LOST = 2, 76  # exit status if the processes do not get together, and if another process was lost
START_S = 300  # for all processes to arrive
PULSE_S = 2.0  # between two pulses of a process
LOST_S = 30.0  # without a pulse: the process is lost
SUSPECTED_S = 6.0  # the same, after a computation of several processes failed
LINGER_S = 10.0  # that a process with an error waits for the others to read it
_KEPT = 100  # decisions that stay in the store; 3 would do
_EVER_MS = 10**9  # the watch ends a wait for a process that is lost

T = TypeVar("T")


class HostsError(RuntimeError):
    """The processes cannot work together. The message names the process, what is wrong, and the way out."""


class _World:
    """This process among the others."""

    def __init__(self, process: int = 0, processes: int = 1, client: Any = None):
        self.process, self.processes, self.client = process, processes, client
        self.address: tuple[str, int] = ("", 0)
        self.on_abort: Any = None  # a function of C lives as long as its object
        self.watch: _Watch | None = None
        self.calls, self.decisions, self.asked = itertools.count(), itertools.count(), False
        self.gathered: str | None = None  # the folder of the last `gathered`
        self.ending = threading.Lock()


_world = _World()


def join(
    address: str | None, process: int, processes: int, on_end: Callable[[int, str], None], *, slurm: bool = False
) -> None:
    """Connect this process with the others, before jax has devices.

    Process 0 serves at `address`, HOST:PORT. With `slurm`, jax takes address and local device from SLURM's variables.
    `on_end(status, message)` is called, from another thread, if not all processes arrive in `START_S`, or later if
    another process ends with an error or is lost. It must end the process.

    **Raises:** `HostsError` if the port is in use, the host is unknown, or no process 0 answers in `START_S`.
    """
    global _world
    if slurm:
        from jax._src.clusters.slurm_cluster import SlurmCluster

        address = SlurmCluster.get_coordinator_address(None, None)
    host, _, port = str(address).rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    (_require_free if process == 0 else _require_served)(host, int(port))
    # jax's service would take SIGTERM away from the handler of the command.
    jax.config.update("jax_enable_preemption_service", False)
    found = {} if slurm else {"coordinator_address": address, "num_processes": processes, "process_id": process}
    how = {"cluster_detection_method": "slurm" if slurm else "deactivate", "initialization_timeout": 2 * START_S}
    late = (
        f"process {process} at {address}: not all {processes} processes arrived in {START_S} s. Each needs the same "
        "address and number of processes, and its own number"
    )
    limit = threading.Timer(START_S, on_end, (REFUSED, late))  # jax would abort the process
    limit.start()
    try:
        jax.distributed.initialize(**found, **how)
    except (RuntimeError, ValueError) as error:
        raise HostsError(f"process {process} of {processes} at {address}: {str(error).splitlines()[0]}") from error
    finally:
        limit.cancel()
    _world = _World(process, processes, distributed.global_state.client)
    _world.address = host, int(port)
    _world.watch = watch = _Watch(on_end)
    watch.start()
    _world.on_abort = ctypes.CFUNCTYPE(None, ctypes.c_int)(lambda _: watch.aborted())
    ctypes.CDLL(None).signal(signal.SIGABRT, _world.on_abort)


def _require_free(host: str, port: int) -> None:
    """Process 0 serves at the port on all interfaces, as jax does."""
    both = socket.has_dualstack_ipv6()
    try:
        family = socket.AF_INET6 if both else socket.AF_INET
        socket.create_server(("", port), family=family, dualstack_ipv6=both).close()
    except OSError as error:
        used = "is in use" if error.errno == errno.EADDRINUSE else f"cannot be opened ({error.strerror})"
        raise HostsError(f"{host}:{port}: the port {used} on the host of process 0. Take another port") from error


def _require_served(host: str, port: int) -> None:
    """Wait until process 0 serves."""
    end = time.monotonic() + START_S
    while True:
        try:
            socket.create_connection((host, port), timeout=5).close()
            return
        except (socket.gaierror, UnicodeError) as error:
            raise HostsError(f"{host}:{port}: the host is not known ({error})") from error
        except OSError as error:
            if time.monotonic() > end:
                raise HostsError(
                    f"{host}:{port}: no process 0 answered in {START_S} s ({error.strerror or error}). It must run on "
                    "that host, and be started with the same address"
                ) from error
            time.sleep(0.2)


def processes() -> int:
    """The number of processes."""
    return _world.processes


def first() -> bool:
    """Whether this is process 0, which writes the files."""
    return _world.process == 0


def from_first(function: Callable[[], T]) -> T:
    """The result of `function`, a JSON value, in process 0. The others do not call it. They wait for the result."""
    if _world.client is None:
        return function()
    return _from_first(f"rhel/first/{next(_world.calls)}", function)


def _from_first(key: str, function: Callable[[], T]) -> T:
    if first():
        value = function()
        _world.client.key_value_set(key, json.dumps(value))
        return value
    return json.loads(_world.client.blocking_key_value_get(key, _EVER_MS))


def gathered(value: Any) -> list[Any]:
    """The JSON values of all processes, in the order of their numbers. All wait for the last."""
    if _world.client is None:
        return [value]
    key, client = f"rhel/all/{next(_world.calls)}/", _world.client
    client.key_value_set(f"{key}{_world.process}", json.dumps(value))
    client.wait_at_barrier(key, _EVER_MS)
    if first() and _world.gathered is not None:  # all have read the values before these
        client.key_value_delete(_world.gathered)
    _world.gathered = key
    values = {_process_of(name): json.loads(text) for name, text in client.key_value_dir_get(key)}
    return [values[process] for process in range(_world.processes)]


def require_same_number() -> None:
    """Raise `HostsError` if this process was started as one of another number of processes than process 0."""
    number = from_first(processes)
    if number != processes():
        raise HostsError(
            f"number of processes: process 0 has {number}, process {_world.process} has {processes()}. All processes "
            "need the same"
        )


def require_same(facts: dict[str, Any]) -> None:
    """Raise `HostsError`, in all processes, if JSON values differ between processes: their name, and both values."""
    own, *others = gathered(facts)
    for process, theirs in enumerate(others, start=1):
        for name in [*own, *(theirs.keys() - own.keys())]:
            if own.get(name) != theirs.get(name):
                values = [_short(each.get(name)) for each in (own, theirs)]
                raise HostsError(
                    f"{name}: process 0 has {values[0]}, process {process} has {values[1]}. All processes need the same"
                )


def decided(stop: bool, steps: int) -> tuple[bool, int]:
    """Before a dispatch: whether all processes stop now, and how many steps all send. Process 0 decides.

    All stop if `stop` of any process is true, or was true in an earlier call. A request of another process than 0 may
    arrive one dispatch late. The device is not asked, so that it works on.
    """
    client = _world.client
    if client is None:
        return stop, steps
    if stop and not (first() or _world.asked):
        _world.asked = True
        client.key_value_set(f"rhel/asked/{_world.process}", "")
    number = next(_world.decisions)

    def decide():
        if number >= _KEPT:  # all have read it, because the losses of a later dispatch were read
            client.key_value_delete(f"rhel/decided/{number - _KEPT}")
        return stop or bool(client.key_value_dir_get("rhel/asked/")), steps

    stop, steps = _from_first(f"rhel/decided/{number}", decide)
    return stop, steps


def leave(status: int, message: str | None = None, lost: int = 0) -> None:
    """Tell the others that this process ends, and wait for them to end, too.

    With a message about an error, the others end at once, with it and the same exit status. The caller must then end
    the process without `jax.distributed.shutdown`, which would wait for processes that are `lost` (a number). Process 0
    holds the messages, so it waits for the others, with a limit.
    """
    client, watch = _world.client, _world.watch
    if client is None or watch is None:
        return
    if message is not None:
        _world.ending.acquire()  # only one thread ends the process
    until = time.monotonic() + (float("inf") if message is None else LINGER_S * first())
    try:
        client.key_value_set(f"rhel/ended/{_world.process}", json.dumps([status, message]))
        while len(client.key_value_dir_get("rhel/ended/")) < _world.processes - lost and time.monotonic() < until:
            time.sleep(0.05)
    except jax.errors.JaxRuntimeError:  # process 0 is gone
        if message is None:
            raise
    if message is None:
        watch.over.set()
        watch.join()
    elif first():
        time.sleep(1)  # in which they end


def lost_after(error: BaseException) -> str | None:
    """The message about the process whose loss explains an error of a computation, or None. May wait for pulses."""
    watch, cause = _world.watch, error
    while cause is not None and not isinstance(cause, jax.errors.JaxRuntimeError):
        cause = cause.__cause__
    if watch is None or cause is None:
        return None
    until = time.monotonic() + SUSPECTED_S + 3 * PULSE_S
    while time.monotonic() < until:
        if (process := watch.silent(SUSPECTED_S)) is not None:
            return _lost(process)
        time.sleep(0.2)
    return None


def _lost(process: int) -> str:
    served = ", to which all others are connected," * (process == 0)
    return (
        f"process {process} of {_world.processes}{served} was lost: it gives no sign of life. The same command, in all "
        "processes, resumes from the last checkpoint"
    )


class _Watch(threading.Thread):
    """Gives the pulse of this process, and reads those of the others."""

    def __init__(self, on_end: Callable[[int, str], None]):
        super().__init__(name="watch", daemon=True)
        self._on_end, self.over = on_end, threading.Event()
        self._pulses: dict[int, tuple[str, float]] = {
            process: ("", time.monotonic()) for process in range(_world.processes)
        }

    def silent(self, seconds: float) -> int | None:
        """A process without a pulse for so long, or None."""
        now = time.monotonic()
        return next((process for process, (_, at) in self._pulses.items() if now - at > seconds), None)

    def run(self) -> None:
        with ThreadPoolExecutor(1) as calls:  # a call to a host without power may never return
            for pulse in itertools.count():
                try:
                    ended = calls.submit(self._exchange, pulse).result(LOST_S)
                except (jax.errors.JaxRuntimeError, TimeoutError):
                    ended, lost = {}, 0
                else:
                    lost = self.silent(LOST_S)
                for status, message in ended.values():
                    if message is not None:
                        self._end(status, message)
                if lost == 0:
                    self._on_end(LOST, _lost(0))  # it holds the store, so `leave` could wait for ever
                elif lost is not None and lost not in ended:
                    self._end(LOST, _lost(lost), lost=1)
                if self.over.wait(PULSE_S):
                    return

    def aborted(self) -> None:
        """jax aborts the process as soon as it loses the connection to process 0, without a word to Python.

        The handler of the system's signal says why, and returns if the abort has another reason.
        """
        if _world.ending.locked():  # another thread ends this process, for its own reason
            time.sleep(2 * LINGER_S)
        try:
            socket.create_connection(_world.address, timeout=5).close()
        except OSError:
            self._on_end(LOST, _lost(0))  # at once: jax's thread holds what `leave` would wait for

    def _exchange(self, pulse: int) -> dict[int, list]:
        """Give the pulse and read those of all; [status, message] of those that ended."""
        client = _world.client
        client.key_value_set(f"rhel/pulse/{_world.process}", str(pulse), allow_overwrite=True)
        now = dict(client.key_value_dir_get("rhel/pulse/"))
        for name, text in now.items():
            if self._pulses[process := _process_of(name)][0] != text:
                self._pulses[process] = text, time.monotonic()
        return {_process_of(name): json.loads(text) for name, text in client.key_value_dir_get("rhel/ended/")}

    def _end(self, status: int, message: str, lost: int = 0) -> None:
        leave(status, message, lost)
        self._on_end(status, message)


def _process_of(key: str) -> int:
    return int(key.rpartition("/")[2])


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 100 else f"{text[:97]}..."
