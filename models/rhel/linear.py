"""The flow of a linear Hamiltonian with many steps at the same time, for devices other than a CPU."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .hamiltonian import AbstractHamiltonian, State, leapfrog
from .stretches import UNROLLED


def linear_flow(
    hamiltonian: AbstractHamiltonian, state: State, drives: Float[Array, "time osc"]
) -> tuple[State, Float[Array, "time osc"]]:
    """`rhel.hamiltonian.flow` of a linear Hamiltonian."""
    step_map, by_drive = linear_step(hamiltonian, state)
    q, p = linear_recurrence(step_map, state, tuple(column[None] * drives for column in by_drive))
    return (q[-1], p[-1]), q


def linear_step(hamiltonian: AbstractHamiltonian, like: State) -> tuple[tuple, tuple]:
    """The map ((qq, qp), (pq, pp)), (qv, pv) of one step of a linear Hamiltonian, each of the shape of a position.

    q' = qq q + qp p + qv v and p' = pq q + pp p + pv v, oscillator by oscillator.
    """

    def image(q, p, drive):
        at = [jnp.full_like(like[0], value) for value in (q, p, drive)]
        (q, p), _ = leapfrog(hamiltonian.velocity, hamiltonian.force, (at[0], at[1]), at[2])
        return q, p

    by_q, by_p, by_drive = image(1, 0, 0), image(0, 1, 0), image(0, 0, 1)
    return tuple(zip(by_q, by_p, strict=True)), by_drive


@jax.custom_jvp
def linear_recurrence(step_map: tuple, state: State, forces: State) -> State:
    """States x_1, .., x_L of x_{t+1} = M x_t + f_t, M = `step_map` a 2x2 matrix per oscillator, constant in time.

    An associative scan in chunks of `UNROLLED` steps, for devices on which many oscillators at once take the time of a
    few. The end of every chunk from rest, all chunks at the same time; from these the starts of the chunks, by the same
    recurrence with M^UNROLLED; from the starts all states. It reads the forces twice and writes every state once. The
    steps inside a chunk are the steps of the sequential scan, and so are their rounding errors.
    """
    length = len(forces[0])
    chunks = length // UNROLLED
    if chunks < 2:
        return _sequence(step_map, state, forces)[1]
    inside = chunks * UNROLLED

    def chunked(x):
        return jnp.moveaxis(x[:inside].reshape(chunks, UNROLLED, *x.shape[1:]), 1, 0)

    chunked_forces, each = jax.tree.map(chunked, forces), jax.tree.map(lambda entry: entry[None], step_map)
    rest = jax.tree.map(lambda force: jnp.zeros_like(force[0]), chunked_forces)
    ends, _ = _sequence(each, rest, chunked_forces)
    starts = linear_recurrence(_power(step_map), state, jax.tree.map(lambda end: end[:-1], ends))
    starts = jax.tree.map(lambda first, more: jnp.concatenate([first[None], more]), state, starts)
    ends, states = _sequence(each, starts, chunked_forces)
    states = jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1).reshape(inside, *x.shape[2:]), states)
    if inside == length:
        return states
    _, more = _sequence(step_map, jax.tree.map(lambda x: x[-1], ends), jax.tree.map(lambda x: x[inside:], forces))
    return jax.tree.map(lambda *parts: jnp.concatenate(parts), states, more)


def _sequence(step_map, state, forces):
    """The last state, and the state after every step, one after the other without a loop on the device."""

    def step(x, force):
        x = jax.tree.map(jnp.add, _apply(step_map, x), force)
        return x, x

    return jax.lax.scan(step, state, forces, unroll=True)


def _power(step_map):
    """M^UNROLLED, one factor after the other: squaring would lose digits."""
    power = step_map
    for _ in range(UNROLLED - 1):
        columns = [_apply(step_map, column) for column in zip(*power, strict=True)]
        power = tuple(zip(*columns, strict=True))
    return power


def _apply(m, x):
    return m[0][0] * x[0] + m[0][1] * x[1], m[1][0] * x[0] + m[1][1] * x[1]


@linear_recurrence.defjvp
def _recurrence_jvp(primals, tangents):
    """The tangent obeys the same recurrence, driven by f_dot + M_dot x. Its transpose keeps x, not the passes."""
    (step_map, state, forces), (step_map_dot, state_dot, forces_dot) = primals, tangents
    x = linear_recurrence(step_map, state, forces)
    before = tuple(jnp.concatenate([start[None], later[:-1]]) for start, later in zip(state, x, strict=True))
    each = jax.tree.map(lambda entry: entry[None], step_map_dot)
    driven = jax.tree.map(jnp.add, forces_dot, _apply(each, before))
    return x, linear_recurrence(step_map, state_dot, driven)
