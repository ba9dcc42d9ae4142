"""Standard output and error that may be closed, full, or unable to show a letter, without ending the program."""

import errno
import io
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import TextIO


class _Forgiving:
    """A text stream whose writes never raise. Once a write has failed, `lost` is True and later writes are dropped."""

    def __init__(self, stream: TextIO, *, lost: bool = False):
        self._stream = stream
        self.lost = lost

    def write(self, text: str) -> int:
        self._attempt(self._stream.write, text)
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        self._attempt(self._stream.writelines, lines)

    def flush(self) -> None:
        self._attempt(self._stream.flush)

    def _attempt(self, do, *arguments):
        try:
            do(*arguments)
        except OSError as error:
            if error.errno != errno.EAGAIN:
                self._drop_the_rest()
        except ValueError:  # the stream is closed
            self.lost = True

    def _drop_the_rest(self):
        """Python keeps what it could not write, and writes it again at exit: send it to the null device."""
        self.lost = True
        with suppress(OSError, ValueError):  # a stream without a descriptor, or a closed one
            descriptor = self._stream.fileno()
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, descriptor)
            os.close(null)

    def __getattr__(self, name):
        return getattr(self._stream, name)


@contextmanager
def forgiving() -> Iterator[None]:
    """Within the block, printing never raises; a letter that the encoding lacks is shown as its number."""
    closed = {name for name in ("stdout", "stderr") if getattr(sys, name) is None}
    _open_all()
    before = sys.stdout, sys.stderr
    errors = {stream: stream.errors for stream in before if isinstance(stream, io.TextIOWrapper)}
    for stream in errors:
        stream.reconfigure(errors="backslashreplace")
    sys.stdout, sys.stderr = (
        _Forgiving(stream, lost=name in closed) for name, stream in zip(("stdout", "stderr"), before, strict=True)
    )
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        sys.stdout, sys.stderr = before
        for stream, setting in errors.items():
            with suppress(ValueError):  # the stream was closed in the meantime
                stream.reconfigure(errors=setting)


def output_is_lost() -> bool:
    """Whether anything printed to stdout within `forgiving` was lost."""
    sys.stdout.flush()
    return getattr(sys.stdout, "lost", False)


def _open_all() -> None:
    """Open the null device in place of a closed descriptor, or the next file would get it and what libraries print."""
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the system takes the lowest free number
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "r+", encoding="utf-8"))  # noqa: SIM115 (it stays open)
