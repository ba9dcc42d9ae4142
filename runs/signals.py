"""How the command hears that it should end: SIGTERM, SIGINT and SIGUSR1."""

import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

RESUMABLE = 75  # EX_TEMPFAIL of sysexits.h
_HEARD = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


def end_at_signals() -> None:
    """From now on a signal that asks for an end ends the process with the status `RESUMABLE`.

    For the time in which nothing is begun that could be lost. (Python's own way, an exception, can get lost in an
    import.)
    """
    for number in _HEARD:
        signal.signal(number, _end)


def _end(number, _):
    with suppress(OSError):
        os.write(2, f"{signal.Signals(number).name} received: nothing was begun yet.\n".encode())
    os._exit(RESUMABLE)


def ignore_signals() -> None:
    """From now on: the status is known, and nothing is left that could be ended."""
    for number in _HEARD:
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def ending_at_signals() -> Iterator[None]:
    """`end_at_signals` within the block. It also ends what a call outside of the block has begun."""
    before = {number: signal.getsignal(number) for number in _HEARD}
    end_at_signals()
    try:
        yield
    finally:
        for number, handler in before.items():
            default = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
            signal.signal(number, default if handler is _end else handler)


class StopSignals:
    """Notes a signal that asks for an end; a second SIGINT ends the process, with status 130. For the main thread."""

    _HEARD = _HEARD

    def __init__(self):
        self.received: str | None = None

    def __enter__(self):
        self._before = {number: signal.signal(number, self._note) for number in self._HEARD}
        self._heard, self._hears = socket.socketpair()
        self._hears.setblocking(False)
        signal.set_wakeup_fd(self._hears.fileno())
        threading.Thread(target=self._count, args=(self._heard,), name="signals", daemon=True).start()
        return self

    def __exit__(self, *_):
        signal.set_wakeup_fd(-1)
        self._hears.close()  # which ends the thread
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number, _):
        self.received = signal.Signals(number).name

    @staticmethod
    def _count(heard):
        """A thread of its own, because Python's handlers wait until jax is done. Files are whole at any moment."""
        interrupts = 0
        with heard:
            while number := heard.recv(1):
                interrupts += number[0] == signal.SIGINT
                if interrupts == 2:
                    os._exit(128 + signal.SIGINT)
