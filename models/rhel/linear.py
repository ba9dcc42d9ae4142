"""The flow of a linear Hamiltonian with many steps at the same time, for devices other than a CPU.

A step of a linear Hamiltonian is one affine map for each oscillator, the same at every step: x_{t+1} = M x_t + f v_t,
with x = (q, p), a 2x2 matrix M and a vector f. So the states of a segment of K steps are a product of two matrices:

    x_k = M^k x_0 + sum_{s < k} M^(k - 1 - s) f v_s

One matrix holds the powers of M (`Responses`), the other one, (K + 2, sequences), the drives of the steps and, in two
more rows, the state at the start. The sequences of a batch and the segments of each are the columns. The starts of the
segments follow from what every segment does from rest (`linked`).
"""

import math
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .batching import as_varying
from .hamiltonian import AbstractHamiltonian, State, leapfrog

ROOM = 2
"""Rows of a segment beside its steps: position and momentum at its start."""

LONGEST, LINKED = 32, 64
"""Steps of a segment, and segments that one product links, at most."""


def cut(steps: int) -> list[tuple[int, int, int]]:
    """The pieces of a sequence: first step, number of segments, steps of a segment.

    One piece if a number from 16 to 32 divides the steps into segments of which equal stretches can be made. If none
    does, the remaining steps are a second piece.
    """
    lengths = range(LONGEST, LONGEST // 2 - 1, -1)
    length = next((n for n in lengths if steps % n == 0 and not _prime(steps // n)), min(LONGEST, steps))
    whole = steps // length * length
    return [(0, whole // length, length), *([(whole, 1, steps - whole)] if whole < steps else [])]


def _prime(segments):
    return segments > 3 and all(segments % n for n in range(2, math.isqrt(segments) + 1))


def even_stretch(steps: int, longest: int) -> int:
    """Steps of a stretch of whole segments: all stretches have the same number, if about `longest` allows it."""
    _, segments, length = cut(steps)[0]
    fewest = max(1, -(-segments * length // longest))
    stretches = next((n for n in range(fewest, 2 * fewest) if segments % n == 0), fewest)
    return -(-segments // stretches) * length


def apart(x: Float[Array, "time batch ..."], segments: int) -> Float[Array, "steps sequences ..."]:
    """The segments of a batch as further sequences. The sequences of the first segment come first."""
    x = jnp.moveaxis(x.reshape(segments, len(x) // segments, *x.shape[1:]), 0, 1)
    return x.reshape(len(x), segments * x.shape[2], *x.shape[3:])


def together(x: Float[Array, "steps sequences ..."], segments: int) -> Float[Array, "time batch ..."]:
    """The inverse of `apart`."""
    x = jnp.moveaxis(x.reshape(len(x), segments, x.shape[1] // segments, *x.shape[2:]), 0, 1)
    return x.reshape(segments * x.shape[1], *x.shape[2:])


def with_room(x: Float[Array, "steps ..."]) -> Float[Array, "rows ..."]:
    """The steps of a segment, and room for the state at its start."""
    return jnp.pad(x, ((0, ROOM), *[(0, 0)] * (x.ndim - 1)))


class Responses(NamedTuple):
    """What a segment of K steps answers to its rows: the drive of every step, and position and momentum at its start.

    In float64, also where jax is set to float32, and rounded then: a rounded M has another frequency, so that the
    states drift in phase from step to step and from segment to segment.
    """

    driven: Float[Array, "osc 2 states rows"]
    """(q, p) before every step, and after the last one: K + 1 states, by K + 2 rows."""
    kicked: Float[Array, "osc 2 states rows"]
    """The same, if the rows are kicks of the momentum before every step; the states of the steps follow the kick."""
    links: list[Float[Array, "osc n 2 2"]]
    """For every level of `linked`: the maps of 0, 1, .., n - 1 segments, or groups of segments."""


def responses(hamiltonian: AbstractHamiltonian, like: Array, steps: int, segments: int) -> Responses:
    """`like`: a position, which varies over the devices of `jax.shard_map` as the drives do."""
    with jax.enable_x64(True):

        def wide(x):
            return x.astype(jnp.float64) if eqx.is_inexact_array(x) else x

        precise = jax.tree.map(wide, hamiltonian)
        step, drive = step_map(precise, wide(like))
        # Without this, a Hamiltonian that is not linear would have wrong states in silence.
        moved = jnp.any(_image(precise, wide(like), 0, 0, 0) != 0, axis=-1)
        step = jnp.where(moved[:, None, None], jnp.nan, step)
        powers = _powers(step, steps + 1)
        driven = _times(powers, drive[:, None, :, None])[..., 0]
        before = jnp.concatenate([jnp.zeros_like(drive)[:, None], driven], axis=1)
        links, count, link = [], segments + 1, powers[:, steps]
        while count > LINKED:
            size = _group(count)
            maps = _powers(link, size + 1)
            links.append(maps)
            count, link = -(-count // size), maps[:, size]
        links.append(_powers(link, count))
        by_drive, by_kick = (_rows_to_states(x, powers) for x in (before[:, : steps + 1], powers[..., 1]))
        return jax.tree.map(lambda x: x.astype(like.dtype), Responses(by_drive, by_kick, links))


def step_map(hamiltonian: AbstractHamiltonian, like: Array) -> tuple[Float[Array, "osc 2 2"], Float[Array, "osc 2"]]:
    """M and f of one step x' = M x + f v, for each oscillator. `like`: an array of the shape and type of a position."""
    by_q, by_p, by_drive = (_image(hamiltonian, like, *of) for of in ((1, 0, 0), (0, 1, 0), (0, 0, 1)))
    return jnp.stack([by_q, by_p], axis=-1), by_drive


def _image(hamiltonian: AbstractHamiltonian, like: Array, *q_p_drive: float) -> Float[Array, "osc 2"]:
    """(q, p) after a step from these numbers, the same for all oscillators."""
    q, p, drive = (jnp.full_like(like, value) for value in q_p_drive)
    (q, p), _ = leapfrog(hamiltonian.velocity, hamiltonian.force, (q, p), drive)
    return jnp.stack([q.ravel(), p.ravel()], axis=-1)


def _powers(step: Float[Array, "osc 2 2"], count: int) -> Float[Array, "osc count 2 2"]:
    """M^0, M^1, .."""
    powers = jnp.broadcast_to(jnp.eye(2, dtype=step.dtype), step.shape)[:, None]
    while powers.shape[1] < count:
        powers = jnp.concatenate([powers, _times(powers, step[:, None])], axis=1)
        step = _times(step, step)
    return powers[:, :count]


def _times(a, b):
    """The product of small matrices, without a kernel of its own."""
    return jnp.sum(a[..., :, :, None] * b[..., None, :, :], axis=-2)


def _rows_to_states(by_lag: Float[Array, "osc lags 2"], powers: Float[Array, "osc lags 2 2"]):
    """(q, p) before step k, for k = 0 .. K: `by_lag[k - s]` of row s, and `powers[k]` of the start."""
    rows = _toeplitz(jnp.moveaxis(by_lag, 2, 1))[..., :-1]
    return jnp.concatenate([rows, jnp.moveaxis(powers, 2, 1)], axis=-1)


def _toeplitz(x: Float[Array, "... n"]) -> Float[Array, "... n n"]:
    """The lower triangular matrix with x_{i - j} at row i and column j.

    Written without a gather, whose derivative would add up in no fixed order on a GPU.
    """
    n = x.shape[-1]
    x = jnp.concatenate([jnp.zeros_like(x), x, jnp.zeros_like(x[..., :1])], axis=-1)
    width = x.shape[-1]
    x = jnp.broadcast_to(x[..., None, :], (*x.shape[:-1], n + 1, width)).reshape(*x.shape[:-1], -1)
    x = x[..., : n * (width + 1)].reshape(*x.shape[:-1], n, width + 1)  # row i begins i elements later
    return x[..., 1 : n + 1][..., ::-1]


def product(how: str, a: Array, b: Array) -> Array:
    """An `einsum` in full precision: no TF32, which has 10 bits."""
    return jnp.einsum(how, a, b, precision=jax.lax.Precision.HIGHEST)


def rows_of(x: Float[Array, "rows sequences *osc"]) -> Float[Array, "osc rows sequences"]:
    """Oscillators first: each has a product of its own."""
    return jnp.moveaxis(x.reshape(*x.shape[:2], math.prod(x.shape[2:])), 2, 0)


def with_start(rows: Float[Array, "osc rows sequences"], start: Float[Array, "osc 2 segments batch"]) -> Array:
    """The rows of a segment, with the state that it starts from."""
    return rows.at[:, -ROOM:].set(start.reshape(*start.shape[:2], rows.shape[2]))


def states_of(
    responses: Float[Array, "osc steps rows"], rows: Float[Array, "osc rows sequences"], shape: tuple[int, ...]
) -> Array:
    """(steps, sequences, *shape), with the shape of a position."""
    return product("pks,psb->kbp", responses, rows).reshape(responses.shape[1], rows.shape[2], *shape)


def ends_from_rest(
    responses: Float[Array, "osc 2 rows"], rows: Float[Array, "osc rows sequences"], segments: int
) -> Float[Array, "osc 2 segments batch"]:
    """Where segments end that start from rest. What the rows of the start hold does not matter."""
    ends = product("pcs,psb->pcb", responses.at[..., -ROOM:].set(0), rows)
    return ends.reshape(*ends.shape[:2], segments, ends.shape[2] // segments)


def linked(links: list[Array], first: Float[Array, "osc 2 batch"], ends: Float[Array, "osc 2 segments batch"]) -> Array:
    """The states (osc, 2, segments + 1, batch) between the segments, from their ends from rest and the first start."""
    return _accumulated(links, jnp.concatenate([first[:, :, None], ends], axis=2))


def _accumulated(links, x):
    """s_0 = x_0 and s_{i+1} = M s_i + x_{i+1}."""
    (oscillators, _, count, batch), (maps, *farther) = x.shape, links
    if not farther:
        return product("pabij,pbjn->pain", _toeplitz(jnp.moveaxis(maps, 1, 3)), x)
    size = maps.shape[1] - 1
    groups = -(-count // size)
    x = jnp.pad(x, ((0, 0), (0, 0), (0, groups * size - count), (0, 0))).reshape(oscillators, 2, groups, size, batch)
    inside = product("pabij,pbgjn->pagin", _toeplitz(jnp.moveaxis(maps[:, :size], 1, 3)), x)
    before = jnp.pad(_accumulated(farther, inside[:, :, :, -1])[:, :, :-1], ((0, 0), (0, 0), (1, 0), (0, 0)))
    inside = inside + product("piab,pbgn->pagin", maps[:, 1:], before)
    return inside.reshape(oscillators, 2, groups * size, batch)[:, :, :count]


def _group(count: int) -> int:
    """Neighbours that are linked first, so that at most `LINKED` groups remain where that is possible."""
    return min(LINKED, -(-count // LINKED))


def stacked(state: State, axes: int) -> Float[Array, "osc 2 ..."]:
    """Position and momentum, whose first `axes` axes are not those of the oscillators, as rows."""
    q, p = (jnp.moveaxis(x.reshape(*x.shape[:axes], math.prod(x.shape[axes:])), -1, 0) for x in state)
    return jnp.stack([q, p], axis=1)


def unstacked(x: Float[Array, "osc 2 ..."], shape: tuple[int, ...]) -> State:
    """The inverse of `stacked`, for positions of this shape."""
    q, p = (jnp.moveaxis(x[:, i], 0, -1).reshape(*x.shape[2:], *shape) for i in (0, 1))
    return q, p


def flow_in_segments(
    hamiltonian: AbstractHamiltonian, state: State, drives: Float[Array, "rows sequences *osc"], segments: int
) -> tuple[State, Float[Array, "steps sequences *osc"], State]:
    """`rhel.hamiltonian.flow` of a linear Hamiltonian for a batch, from states (batch, *osc).

    The drives are in segments (`apart`), `with_room`. Returns the final states, the position after every step, and the
    states at the ends of the segments, (segments, batch, *osc). If an oscillator diverges so far that the map of a
    segment is beyond the range of the numbers, its states are NaN, also where the sequential scan would stay at rest.
    The states are NaN, too, where a constant force acts: such a Hamiltonian is not linear.
    """
    like = as_varying(jnp.zeros(state[0].shape[1:], state[0].dtype), drives)
    by = responses(hamiltonian, like, len(drives) - ROOM, segments)
    rows = rows_of(drives)
    between = linked(by.links, stacked(state, 1), ends_from_rest(by.driven[:, :, -1], rows, segments))
    rows = with_start(rows, between[:, :, :-1])
    end, ends = (unstacked(x, like.shape) for x in (between[:, :, -1], between[:, :, 1:]))
    return end, states_of(by.driven[:, 0, 1:], rows, like.shape), ends
