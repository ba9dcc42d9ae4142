"""Processes that talk: what they agree on, how they find each other, and how all end if one does."""

import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import jax
import pytest

from training import hosts

ROOT = Path(__file__).resolve().parents[2]
PAIR = """
import os, sys, time
from training import hosts

own, port = int(sys.argv[1]), sys.argv[2]

def on_end(status, message):
    print(f"END {status} {message}", flush=True)
    os._exit(status)

hosts.join(f"127.0.0.1:{port}", own, 2, on_end)
assert (hosts.processes(), hosts.first()) == (2, own == 0)
assert hosts.from_first(lambda: {"from": own}) == {"from": 0}
assert hosts.gathered(own) == [0, 1]
hosts.require_same({"size": 1, "name": None})
try:
    hosts.require_same({"size": 1, "name": own})
except hosts.HostsError as error:
    print(error, flush=True)
for number in range(5):  # process 0 decides
    assert hosts.decided(False, 10 * own + number) == (False, number)
hosts.decided(own == 1, 1)  # one process is asked to stop, once
hosts.gathered(None)
assert hosts.decided(False, 1) == (True, 1)
if own == 0:
    os.kill(os.getpid(), 9)
time.sleep(60)
"""


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


DIFFERENCE = "name: process 0 has 0, process 1 has 1. All processes need the same\n"


def test_two_processes_agree_and_the_loss_of_process_0_ends_the_other():
    """jax itself would abort the other, without a word about what it means."""
    command = [sys.executable, "-c", PAIR]
    options = {"cwd": ROOT, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    port = str(free_port())
    started = [subprocess.Popen([*command, own, port], **options) for own in "01"]
    try:
        (out_0, err_0), (out_1, err_1) = (process.communicate(timeout=60) for process in started)
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [-signal.SIGKILL, hosts.LOST], err_0 + err_1
    assert out_0 == DIFFERENCE
    assert out_1.startswith(f"{DIFFERENCE}END 76 process 0 of 2, to which all others are connected, was lost: ")


class Store:
    """jax's key-value store, in memory."""

    def __init__(self):
        self.values = {}

    def key_value_set(self, key, value, allow_overwrite=False):
        assert allow_overwrite or key not in self.values
        self.values[key] = value

    def key_value_dir_get(self, folder):
        return [(key, value) for key, value in self.values.items() if key.startswith(folder)]


@pytest.fixture
def ends(monkeypatch):
    """How process 0 of two was ended by its watch; the store is in `hosts._world.client`."""
    monkeypatch.setattr(hosts, "PULSE_S", 0.01)
    monkeypatch.setattr(hosts, "_world", hosts._World(0, 2, Store()))
    monkeypatch.setattr("time.sleep", lambda _: None)

    class Ended(BaseException):
        pass

    def on_end(*how):
        ends.append(how)
        raise Ended

    ends, hosts._world.watch = [], hosts._Watch(on_end)

    def watched():
        with pytest.raises(Ended):
            hosts._world.watch.run()
        return ends

    return watched


def test_an_error_of_one_process_ends_the_other_with_its_message_and_status(ends):
    store = hosts._world.client
    store.key_value_set("rhel/ended/1", '[3, "process 1 ended: the disk is full"]')
    assert ends() == [(3, "process 1 ended: the disk is full")]
    assert store.values["rhel/ended/0"] == store.values["rhel/ended/1"]  # for the third


def test_a_process_without_a_pulse_is_lost(ends, monkeypatch):
    monkeypatch.setattr(hosts, "LOST_S", 0.2)
    ((status, message),) = ends()
    assert status == hosts.LOST
    assert message.startswith("process 1 of 2 was lost: it gives no sign of life")


def test_alone_no_function_waits():
    assert (hosts.processes(), hosts.first(), hosts.gathered("own")) == (1, True, ["own"])
    assert hosts.from_first(lambda: (1, 2)) == (1, 2)
    assert hosts.decided(True, 5) == (True, 5)
    assert hosts.lost_after(OSError()) is None
    hosts.require_same({"anything": object})
    hosts.leave(1, "an error")


def test_a_port_in_use_is_refused():
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(hosts.HostsError, match=f"{address}: the port is in use on the host of process 0"):
            hosts.join(address, 0, 2, print)


def test_a_wrong_address_is_refused_in_time(monkeypatch):
    monkeypatch.setattr(hosts, "START_S", 0.3)
    with pytest.raises(hosts.HostsError, match=r"no process 0 answered in 0.3 s \(Connection refused\)"):
        hosts.join(f"127.0.0.1:{free_port()}", 1, 2, print)
    with pytest.raises(hosts.HostsError, match=r"no..host:1234: the host is not known"):
        hosts.join("no..host:1234", 1, 2, print)


def test_a_process_that_does_not_arrive_is_missed_in_time(monkeypatch):
    ended = threading.Event()
    told = []

    def initialize(**_):  # jax itself would abort the process, later
        ended.wait(10)
        raise RuntimeError("Deadline Exceeded")

    def on_end(*how):
        told.append(how)
        ended.set()

    monkeypatch.setattr(hosts, "START_S", 0.05)
    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    monkeypatch.setattr(jax.config, "update", lambda *_: None)
    with pytest.raises(hosts.HostsError, match="Deadline Exceeded"):
        hosts.join(f"127.0.0.1:{free_port()}", 0, 2, on_end)
    ((status, message),) = told
    assert status == hosts.REFUSED
    assert "not all 2 processes arrived in 0.05 s. Each needs the same address and number of processes" in message


def test_another_number_of_processes_is_refused(monkeypatch):
    monkeypatch.setattr(hosts, "from_first", lambda _: 2)
    monkeypatch.setattr(hosts, "_world", hosts._World(1, 3))
    with pytest.raises(hosts.HostsError, match="number of processes: process 0 has 2, process 1 has 3"):
        hosts.require_same_number()


def test_a_loss_explains_the_error_of_a_computation(monkeypatch):
    """The error may come first: then the pulses tell, a little later."""

    class Silent:
        @staticmethod
        def silent(seconds):
            return 1 if seconds == hosts.SUSPECTED_S else None

    world = hosts._World(0, 2)
    world.watch = Silent()
    monkeypatch.setattr(hosts, "_world", world)
    error = RuntimeError("a checkpoint cannot be saved")
    assert hosts.lost_after(error) is None
    error.__cause__ = jax.errors.JaxRuntimeError("Connection closed by peer")
    assert hosts.lost_after(error).startswith("process 1 of 2 was lost: ")
