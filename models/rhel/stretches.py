"""A scan over a long sequence, one stretch of steps at a time."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

SEGMENT = 128
"""The free pass keeps a state after so many steps, or after a stretch if a stretch is longer."""

CACHED = 2**18
"""On a CPU a stretch holds at most so many values of one quantity, so that the quantity stays in cache."""

ACCELERATED = 2**24
"""On other devices it holds about so many, 64 MiB in float32. Fewer stretches launch fewer kernels."""

UNROLLED = 32
"""On other devices one kernel computes so many steps. More steps would need fewer kernels, and longer to compile."""


def scan_stretches(
    body: Callable,
    carry: PyTree,
    steps: PyTree,
    length: int,
    *,
    per_stretch: PyTree = (),
    rows: Callable[[int], int] = lambda steps: 1,
    reverse: bool = False,
) -> tuple[PyTree, PyTree]:
    """`jax.lax.scan` over stretches of `length` steps. The remaining steps, if any, are one last, shorter stretch.

    `body(carry, steps of the stretch) -> carry, outputs`; with `per_stretch`, arrays with `rows(number of its steps)`
    rows for each stretch, `body(carry, steps of the stretch, its rows)`. The outputs of the stretches are concatenated
    along their first axis. With `reverse` the last stretch comes first, and the steps inside each keep their order.
    """
    time = jax.tree.leaves(steps)[0].shape[0]
    whole, rest = divmod(time, length)
    # start and number of steps, first row, number of stretches
    cuts = [(0, whole * length, 0, whole), (whole * length, rest, whole * rows(length), 1)]
    cuts = [cut for cut in cuts if cut[1] > 0]
    pieces = []
    for first, size, row, stretches in reversed(cuts) if reverse else cuts:

        def stacked(x, first=first, size=size, stretches=stretches):
            return x[first : first + size].reshape(stretches, size // stretches, *x.shape[1:])

        xs = (jax.tree.map(stacked, steps),)
        if jax.tree.leaves(per_stretch):
            count = stretches * rows(size // stretches)
            xs = (*xs, jax.tree.map(partial(stacked, first=row, size=count), per_stretch))
        carry, outputs = jax.lax.scan(lambda carry, xs: body(carry, *xs), carry, xs, reverse=reverse)
        pieces.append(jax.tree.map(lambda x: x.reshape(x.shape[0] * x.shape[1], *x.shape[2:]), outputs))
    return carry, jax.tree.map(lambda *xs: jnp.concatenate(xs), *(pieces[::-1] if reverse else pieces))


def stretch_length(values: Any, longest: int | None = None) -> int:
    """Steps of a stretch that stays in the cache of a CPU if a step has so many values: at least 8.

    With `longest`, that number or a power of 2 smaller. A batch of symbolic size, as `jax.export` takes it, has the
    shortest stretches.
    """
    if not isinstance(values, int):
        return 8
    if longest is None:
        return max(8, CACHED // max(1, values))
    while longest > 8 and longest * values > CACHED:
        longest //= 2
    return longest


def accelerated_length(values: Any) -> int:
    """Steps of a stretch on a device other than a CPU, if a step has so many values: a multiple of `UNROLLED`."""
    if not isinstance(values, int):
        return SEGMENT
    return UNROLLED * max(1, ACCELERATED // max(1, values) // UNROLLED)


def block_stretch(steps: int, values: Any) -> int:
    """Steps of a stretch of blocks of `UNROLLED` steps: half of the sequence, unless that is too long.

    With a single stretch, XLA fills the outputs of the loops of all layers with zeros in one kernel, at the start of
    the program, and keeps them.
    """
    return min(accelerated_length(values), UNROLLED * max(1, steps // (2 * UNROLLED)))


def segment_length(stretch: int) -> int:
    """Steps from one kept state to the next: `SEGMENT`, or a stretch if that is longer."""
    return max(SEGMENT, stretch)


def by_platform(run: Callable, cpu: Any, elsewhere: Any) -> Any:
    """`run(cpu)` in a program for a CPU, `run(elsewhere)` in a program for another device."""
    if cpu == elsewhere or all(device.platform == "cpu" for device in jax.devices()):
        return run(cpu)
    # If several platforms are present, the platform is known at lowering time.
    return jax.lax.platform_dependent(cpu=lambda: run(cpu), default=lambda: run(elsewhere))
