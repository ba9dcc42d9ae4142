"""The signals that ask a training to save and end: SIGTERM, SIGINT, SIGUSR1 and SIGUSR2."""

import os
import signal
import socket
import threading

RESUMABLE = 75  # EX_TEMPFAIL of sysexits.h


class StopSignals:
    """Within the block, `received` holds the name of the last signal. A second SIGINT ends the process with status 130.

    Use it in the main thread.
    """

    HEARD = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)

    def __init__(self):
        self.received: str | None = None

    def __enter__(self):
        self._before = {number: signal.signal(number, self._note) for number in self.HEARD}
        numbers, self._wakeup = socket.socketpair()
        self._wakeup.setblocking(False)
        signal.set_wakeup_fd(self._wakeup.fileno())
        threading.Thread(target=self._end_at_second_interrupt, args=(numbers,), name="signals", daemon=True).start()
        return self

    def __exit__(self, *_):
        signal.set_wakeup_fd(-1)
        self._wakeup.close()  # this ends the thread
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number, _):
        self.received = signal.Signals(number).name

    @staticmethod
    def _end_at_second_interrupt(numbers: socket.socket):
        """Python runs its handlers when jax is done. This thread runs at once. Every file is whole at any moment."""
        interrupts = 0
        with numbers:
            while number := numbers.recv(1):
                interrupts += number[0] == signal.SIGINT
                if interrupts == 2:
                    os._exit(128 + signal.SIGINT)
