"""How many steps are sent to the device at once, and the stack of their batches.

Every dispatch allocates the temporaries of a step. On the CPU their memory is new to the process, page by page. Several
steps of one dispatch share it. Measured with the loop of `train.train` on two busy CPU cores, LinHRU by RHEL, against a
loop that sends every step alone (alternating runs, median of the CPU time of a step):

- Heartbeat (batch 32, 405 time steps, 62 channels, 48 MiB of temporaries): 61 ms and 2,500 page faults a step; alone
  78 ms (28 % more, 4 pairs) and 12,500 page faults.
- BasicMotions: 2.5 ms a step; alone 4.2 ms (3 pairs).

One compiled program serves every number of steps, and the bits of a step do not depend on its place in a stack. So
the number may follow the clock.
"""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

# The time bounds how long Ctrl-C has to wait: two dispatches are under way, and Python hears nothing while it waits for
# the device. Up to three stacks of batches are alive at once.
DISPATCH_SECONDS = 1.0
DISPATCH_BYTES = 32 * 2**20
DISPATCH_STEPS = 64  # the host's part of a dispatch, about a millisecond, is then negligible


class StepsPerDispatch:
    """The number of steps to send at once: `fixed`, or as many as `DISPATCH_SECONDS` allow."""

    def __init__(self, fixed: int | None):
        if fixed is not None and fixed < 1:
            raise ValueError(f"steps_per_dispatch {fixed}: must be at least 1")
        self._fixed = fixed
        self._affordable = 1

    def slots(self, batch: tuple) -> int:
        """The largest number for such batches."""
        if self._fixed is not None:
            return self._fixed
        return min(DISPATCH_STEPS, DISPATCH_BYTES // sum(array.nbytes for array in batch))

    def next(self) -> int:
        """The largest number for the next dispatch."""
        return self._affordable if self._fixed is None else self._fixed

    def measured(self, steps: int, seconds: float) -> None:
        """Note the time of a dispatch. The number at most doubles: one short time may be an accident."""
        affordable = int(DISPATCH_SECONDS * steps / max(seconds, 1e-9))
        self._affordable = max(1, min(affordable, 2 * self._affordable, DISPATCH_STEPS))


def steps_until_multiple(step: int, multiples: tuple[int, ...]) -> int:
    """The number of steps after `step` to the next multiple of any of these numbers."""
    return min(multiple - step % multiple for multiple in multiples)


def stack_batches(batches: Iterator[tuple], count: int, slots: int) -> tuple[np.ndarray | jax.Array, ...]:
    """Draw `count` batches and stack them along a new first axis of length `slots`.

    The content of the other slots is never used. Batches that are on the device are stacked there.
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
