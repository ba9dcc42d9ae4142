"""How many steps are sent to the device at once.

The device is sent a stack of batches, and how many of them to use. One compiled program serves every number, and a
step computes the same bits wherever in a stack its batch lies; so the number can follow the clock.
"""

import itertools
from collections.abc import Iterator

import numpy as np

from training.prefetch import stack_batches

# What is sent to the device at once. Its time bounds how long Ctrl-C has to wait: while Python waits for the device it
# hears nothing, and one dispatch more is under way. Its bytes are held five times at most: drawn, queued, or in use.
# (On the CPU a dispatch has a price of its own: its working memory is new to the process, page by page.)
DISPATCH_SECONDS = 1.0
DISPATCH_BYTES = 32 * 2**20
DISPATCH_STEPS = 64  # by then the host's part of a dispatch, about a millisecond, is spread thin


class Pace:
    """How many steps to send at once. Written by the training loop, read by the thread that stacks the batches."""

    def __init__(self, steps_per_dispatch: int | None):
        self._fixed = steps_per_dispatch
        self._measured = 1

    def slots(self, batch: tuple) -> int:
        """The most steps that a dispatch may have with such batches."""
        if self._fixed is not None:
            return self._fixed
        return min(DISPATCH_STEPS, DISPATCH_BYTES // sum(array.nbytes for array in batch))

    def steps(self) -> int:
        """The most steps that the next dispatch should have."""
        return self._measured if self._fixed is None else self._fixed

    def measured(self, steps: int, seconds: float) -> None:
        """Note what a dispatch took. The number at most doubles, so that one which seemed short does no harm."""
        affordable = int(DISPATCH_SECONDS * steps / max(seconds, 1e-9))
        self._measured = max(1, min(affordable, 2 * self._measured, DISPATCH_STEPS))


def dispatches(
    batches: Iterator[tuple], done: int, num_steps: int, stations: tuple[int, ...], pace: Pace
) -> Iterator[tuple]:
    """(count, (x, y, count as an array)) for `train_steps`; no dispatch goes beyond a multiple of a station."""
    first = next(batches)
    batches = itertools.chain([first], batches)
    # Not one slot: selecting from it would be no operation, and the step around it would be compiled to other bits.
    slots = max(2, min(pace.slots(first), stations[0]))
    while done < num_steps:
        count = min(pace.steps(), slots, num_steps - done, *(station - done % station for station in stations))
        yield count, (*stack_batches(batches, count, slots), np.int32(count))
        done += count
