"""Batches drawn ahead by a thread, so that the next ones are on the device when the step asks for them."""

import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_END, _FAILED, _ITEM = range(3)
# How long the thread waits before it looks whether anybody still listens.
_POLL_S = 0.1


class Prefetched:
    """An iterator over the same batches in the same order, up to ``depth`` of them drawn ahead and put on the device.

    ``put`` says how a batch is put there, by the thread; what it returns is handed out.
    ``position`` is that of the batches handed out, not of those drawn ahead, where ``batches`` has one. An error while
    drawing is raised where the batch would have come. ``close()``, or leaving the ``with`` block, ends the thread.
    """

    def __init__(self, batches: Iterator[Any], depth: int = 2, put: Callable[[Any], Any] = jax.device_put):
        self._stop = threading.Event()
        if depth < 1:
            raise ValueError(f"depth {depth}: must be at least 1")
        self._position = getattr(batches, "position", None)
        self._queue: queue.Queue = queue.Queue(maxsize=depth)
        # The thread knows nothing of this object, which can therefore end and take the thread along.
        arguments = (batches, put, self._queue, self._stop)
        self._thread = threading.Thread(target=_draw, args=arguments, name="prefetch", daemon=True)
        self._thread.start()

    @property
    def position(self) -> dict[str, int] | None:
        """What has been handed out, as ``ShuffledBatches.position``; None if the batches have no position."""
        return self._position

    def __iter__(self) -> "Prefetched":
        return self

    def __next__(self) -> Any:
        if self._stop.is_set():
            raise StopIteration
        kind, value, position = self._queue.get()
        if kind == _ITEM:
            self._position = position
            return value
        self.close()
        if kind == _FAILED:
            raise value
        raise StopIteration

    def __enter__(self) -> "Prefetched":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def __del__(self):
        self._stop.set()

    def close(self) -> None:
        """Ends the thread. No batch comes after it; closing twice is fine."""
        self._stop.set()
        if self._thread is not threading.current_thread():
            self._thread.join()


def stack_batches(batches: Iterator[tuple], count: int, slots: int) -> tuple[np.ndarray | jax.Array, ...]:
    """Draws ``count`` batches and stacks them along a new leading axis of length ``slots``.

    What lies behind the first ``count`` is there for the shape alone. Batches that lie on the device are stacked there.
    """
    first = next(batches)
    if isinstance(first[0], jax.Array):
        drawn = [first, *(next(batches) for _ in range(count - 1))]
        drawn += drawn[-1:] * (slots - count)
        return tuple(map(jnp.stack, zip(*drawn, strict=True)))
    stacks = tuple(np.zeros((slots, *array.shape), array.dtype) for array in first)
    for slot in range(count):
        for stack, array in zip(stacks, next(batches) if slot else first, strict=True):
            stack[slot] = array
    return stacks


def _draw(batches: Iterator[Any], put: Callable[[Any], Any], drawn: queue.Queue, stop: threading.Event) -> None:
    def hand_over(item):
        while not stop.is_set():
            try:
                return drawn.put(item, timeout=_POLL_S)
            except queue.Full:
                continue

    try:
        for batch in batches:
            hand_over((_ITEM, put(batch), getattr(batches, "position", None)))
            if stop.is_set():
                return
    except BaseException as error:
        hand_over((_FAILED, error, None))
    else:
        hand_over((_END, None, None))
