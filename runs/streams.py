"""Standard output and error that may be closed, full, or unable to show a letter, without ending the program."""

import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from typing import TextIO


class _Forgiving:
    """A text stream that never raises. `lost` is True after a write that failed."""

    def __init__(self, stream: TextIO | None):
        self.lost = self._closed = stream is None  # Python starts so if the descriptor is closed
        self._stream = stream or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 (`end` closes it)

    def write(self, text: str) -> int:
        encoding = self._stream.encoding or "utf-8"
        self._try(self._stream.write, text.encode(encoding, "backslashreplace").decode(encoding))
        return len(text)

    def writelines(self, texts: Iterable[str]) -> None:
        for text in texts:
            self.write(text)

    def flush(self) -> None:
        self._try(self._stream.flush)

    def end(self) -> None:
        """Flush. If text was lost, Python would try to write it again at exit: the null device takes it."""
        self.flush()
        if self._closed:
            self._stream.close()
        elif self.lost:
            with suppress(OSError, ValueError), open(os.devnull, "wb") as null:
                os.dup2(null.fileno(), self._stream.fileno())

    def _try(self, do, *arguments):
        try:
            do(*arguments)
        except (OSError, ValueError):  # ValueError: the stream is closed
            self.lost = True

    def __getattr__(self, name):
        return getattr(self._stream, name)


@contextmanager
def forgiving() -> Iterator[None]:
    """Within the block, printing never raises. A letter that the encoding lacks is shown as its number."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:  # else the next file gets this number, and with it what libraries print
            os.open(os.devnull, os.O_RDWR)
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = streams = [_Forgiving(stream) for stream in before]
    try:
        yield
    finally:
        for stream in streams:
            stream.end()
        sys.stdout, sys.stderr = before


@contextmanager
def silent() -> Iterator[None]:
    """Within the block, the null device takes what is printed."""
    with open(os.devnull, "w", encoding="utf-8") as null, redirect_stdout(null), redirect_stderr(null):
        yield


def output_is_lost() -> bool:
    """Whether a print to stdout within `forgiving` failed."""
    sys.stdout.flush()
    return getattr(sys.stdout, "lost", False)
