"""Standard output and error that may be closed, full, or unable to show a letter, without ending the program."""

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


class _Forgiving:
    """A text stream. What cannot be written is lost, and from then on everything is."""

    def __init__(self, stream):
        self._stream = stream

    def write(self, text: str) -> int:
        """As that of a stream."""
        self._attempt(self._stream.write, text)
        return len(text)

    def flush(self) -> None:
        """As that of a stream."""
        self._attempt(self._stream.flush)

    def _attempt(self, do, *arguments):
        try:
            do(*arguments)
        except OSError as error:
            if error.errno != errno.EAGAIN:
                self._lose()
        except ValueError:  # it is closed
            pass

    def _lose(self):
        """Python keeps what it could not write, and tries again at its end: let it go."""
        try:
            descriptor = self._stream.fileno()
        except (OSError, ValueError):  # no file of the system, or a closed one
            return
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, descriptor)
        os.close(nowhere)

    def __getattr__(self, name):
        return getattr(self._stream, name)


@contextmanager
def forgiving() -> Iterator[None]:
    """Within the block, nothing that is printed raises; a letter that the encoding lacks is shown as its number."""
    _open_all()
    before = sys.stdout, sys.stderr
    for stream in before:
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    sys.stdout, sys.stderr = map(_Forgiving, before)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        sys.stdout, sys.stderr = before


def _open_all() -> None:
    """A descriptor that is closed would be given to the next file, and what a library prints would land there."""
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "r+", encoding="utf-8"))  # noqa: SIM115 (it stays open)
