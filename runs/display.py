"""What a run shows while it goes on, and how it hears that it should end."""

import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

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


class RunProgress:
    """A bar with loss and metric on a terminal; one line per evaluation where stderr goes elsewhere.

    With a folder for `events` there are event files for TensorBoard in it.
    """

    def __init__(self, name: str, config, events: Path | None):
        from tqdm import tqdm

        self.name, self.config = name, config
        self.interactive = sys.stderr.isatty()
        self.bar = tqdm(
            total=config.num_steps,
            desc=name,
            unit="step",
            disable=not self.interactive,
            leave=False,
            dynamic_ncols=True,
        )
        self.validation = ""
        self.events, self.writer = events, None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.bar.close()
        if self.writer is not None:
            self.writer.close()

    def resume(self, step: int, damaged: dict[int, str]) -> None:
        """The run goes on from a step; `damaged` are the checkpoints that were passed over, and why."""
        for number, problem in damaged.items():
            print(f"{self.name}: the checkpoint of step {number} is damaged: {problem}", file=sys.stderr)
        print(f"{self.name}: goes on from step {step}", file=sys.stderr)
        self.bar.update(step)

    def step(self, _, loss: float) -> None:
        """A step is done."""
        self.bar.set_postfix_str(f"loss {loss:.4f}{self.validation}", refresh=False)
        self.bar.update()

    def evaluation(self, evaluation) -> None:
        """An evaluation is done; `evaluation` is a `train.Evaluation`."""
        metric = self.config.metric
        self.validation = f", validation {metric} {evaluation.val_metric:.4f}"
        if not self.interactive:
            print(
                f"{self.name} step {evaluation.step}/{self.config.num_steps}: loss {evaluation.loss:.4f}, {metric} "
                f"{evaluation.train_metric:.4f} (validation {evaluation.val_metric:.4f}), {evaluation.seconds:.1f} s",
                file=sys.stderr,
            )
        if self.events is None:
            return
        if self.writer is None:
            from tensorboardX import SummaryWriter

            # What an earlier process wrote of this step and later ones counts no more.
            self.writer = SummaryWriter(str(self.events), purge_step=evaluation.step)
        for field, value in evaluation._asdict().items():
            if value is not None and field != "step":
                self.writer.add_scalar(field, value, evaluation.step)
        self.writer.flush()
