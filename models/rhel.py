"""Recurrent Hamiltonian Echo Learning: the gradient of a driven Hamiltonian system from forward passes alone.

Pourcel & Ernoult, "Learning long range dependencies through time reversal symmetry breaking", NeurIPS 2025,
arXiv 2506.05259. Symbols as in `models.hamiltonian`.

Derivation. Let s = (q, p), the free pass s_{t+1} = F(s_t, v_t; theta) with the leapfrog F, the loss L(q_1, .., q_L),
and g_t = dL/dq_{t+1}. F is reversible: with the momentum flip R (p -> -p), R F R is the inverse of F, so the flow from
the flipped final state over the drives in reverse order retraces the free pass. Whenever the echo is at q_{t+1}, add
the nudge +a g_t to its momentum, and -a g_t in a second echo. Because F is symplectic, the half-difference of the two
echoes divided by a is, up to the flip, the adjoint state of the free pass (Theorem 3.2), and the gradient is the
response of the energy with the trajectories held fixed (Eqs. 13-14, Algorithm 1):

    E     = sum_t  kinetic(p before the kick) / 2 + potential(q_half, v_t) + kinetic(p after the kick) / 2
    dL/dx = -(dE/dx at the +a echo - dE/dx at the -a echo) / (2 a)       x: parameters, time steps, drives

up to O(a^2), and without error where the energy is quadratic. The two halves of the kinetic energy are the two drifts
of a step. It is at the half step, not at its end, that the parameters act.

Numbers. (1) Scaling the nudges scales nothing in the result, so the amplitude a is chosen relative to the state and to
the incoming gradient: the scale of the loss cancels. (2) The pair is carried as mean m and half-difference d (plus =
m + d, minus = m - d): the same two trajectories in coordinates that do not cancel. With the contrast
Vc(m, d) = V(m + d) - V(m - d), the mean force is -dVc/dd / 2, half the difference of the forces is -dVc/dm / 2, and the
difference of the energy gradients is dVc/dtheta: one scalar function carries the echo and its readout.

Nothing of size time x oscillators outlives a short stretch of steps: the free pass keeps the inputs and one state in
many; the echo walks back stretch by stretch and adds up the gradients. The mean of the pair goes on from a kept state
wherever there is one, so that rounding errors, which a chaotic system multiplies, do not add up over the whole way
back: float32 gradients are then those of float32 backpropagation. The literal pair has no such help; nor has a machine.
"""

import math
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from models.hamiltonian import AbstractHamiltonian, leapfrog, linear_recurrence, linear_step
from models.reversible import ReversibleBPTT
from models.system import (
    BPTT,
    SCANS,
    AbstractLearningAlgorithm,
    AbstractSystem,
    BareSystem,
    Scan,
    drives_of,
    on_platform,
    ports_gradient,
    positions_gradient,
    rest_state,
    retracing,
    segment_length,
    walk,
    with_hamiltonian_gradient,
)

__all__ = [
    "BPTT",
    "LEARNING_ALGORITHMS",
    "RHEL",
    "SCANS",
    "AbstractLearningAlgorithm",
    "AbstractSystem",
    "BareSystem",
    "ReversibleBPTT",
    "evolve",
    "make_learning_algorithm",
    "rest_state",
    "with_learning_algorithm",
]


class RHEL(AbstractLearningAlgorithm):
    """Recurrent Hamiltonian Echo Learning.

    - `epsilon`: size of the nudges. 1 means that all the nudges of a sequence together, added up as if they were
      uncorrelated, are as large as the state; by default 1e-8 for a Hamiltonian with closed contrasts, where smaller is
      better, else 1e-2, where O(epsilon^2) and cancellation balance in float32.
    - `literal`: run two trajectories, as a physical machine would, instead of their mean and half-difference.
    - `scan`: "sequential", "associative" (linear Hamiltonians only), or "auto", by platform.
    - `chunk`: steps walked at a time, by default as the sizes and the platform want it. It moves results by rounding.
    """

    epsilon: float | None = eqx.field(default=None, static=True)
    literal: bool = eqx.field(default=False, static=True)
    scan: Scan = eqx.field(default="auto", static=True)
    chunk: int | None = eqx.field(default=None, static=True)

    def __check_init__(self):
        number = isinstance(self.epsilon, int | float) and not isinstance(self.epsilon, bool)
        if self.epsilon is not None and not (number and math.isfinite(self.epsilon) and self.epsilon > 0):
            raise ValueError(
                f"epsilon must be a positive number or None for the automatic choice, got {self.epsilon!r}"
            )

    def respond(self, system, inputs):
        """Outputs of the system, from rest, to a batch of sequences."""
        run = partial(retracing, partial(_echo, self), system, inputs)
        return on_platform(self.scan, self.chunk, system, inputs, run)


LEARNING_ALGORITHMS = ("RHEL", "BPTT", "ReversibleBPTT")


def make_learning_algorithm(name: str, epsilon: float | None = None) -> AbstractLearningAlgorithm:
    """A learning algorithm by name. `epsilon` concerns RHEL alone. Raises `ValueError` for another name."""
    if name == "RHEL":
        return RHEL(epsilon)
    if name == "BPTT":
        return BPTT()
    if name == "ReversibleBPTT":
        return ReversibleBPTT()
    raise ValueError(f"unknown learning_algorithm {name!r}; one of {', '.join(LEARNING_ALGORITHMS)}")


def with_learning_algorithm(model: PyTree, algorithm: AbstractLearningAlgorithm) -> PyTree:
    """The model with this learning algorithm in every unit; parameters and forward pass stay."""

    def is_algorithm(node):
        return isinstance(node, AbstractLearningAlgorithm)

    return jax.tree.map(lambda node: algorithm if is_algorithm(node) else node, model, is_leaf=is_algorithm)


def evolve(
    hamiltonian: AbstractHamiltonian,
    drives: Float[Array, "time osc"],
    *,
    learning_algorithm: str | AbstractLearningAlgorithm = "RHEL",
    epsilon: float | None = None,
) -> Float[Array, "time osc"]:
    """Positions q_1, .., q_L of a Hamiltonian, from rest, under a sequence of drives.

    Differentiable in reverse mode, by the learning algorithm, with respect to every floating-point array of the
    Hamiltonian and to the drives. The positions have the shape of the drives. Raises `ValueError` for an empty
    sequence, an unknown algorithm and energies that are not scalars, `TypeError` for drives not floating-point.
    """
    if isinstance(learning_algorithm, str):
        learning_algorithm = make_learning_algorithm(learning_algorithm, epsilon)
    elif epsilon is not None:
        raise ValueError("epsilon belongs to the learning algorithm that was given: RHEL(epsilon)")
    return learning_algorithm(BareSystem(hamiltonian), drives)


# The echo pair, in either of two coordinates


class MeanAndHalfDifference(eqx.Module):
    """(m, d): the echoes are m + d and m - d. No digits are lost however small d is."""

    hamiltonian: AbstractHamiltonian

    def start(self, x):
        return x, jnp.zeros_like(x)

    def restart(self, x, end):
        return end, x[1]

    def nudge(self, p, nudge):
        return p[0], p[1] + nudge

    def components(self, q, p, drives, nudges):
        nothing = jnp.zeros_like(drives)
        return [(q[0], p[0], drives, nothing), (q[1], p[1], nothing, nudges)]

    def assembled(self, components):
        return tuple(components)

    def velocity(self, p):
        d_mean, d_half = jax.grad(self.hamiltonian.kinetic_contrast, (0, 1))(*p)
        return 0.5 * d_half, 0.5 * d_mean

    def force(self, q, drive):
        d_mean, d_half = jax.grad(self.hamiltonian.potential_contrast, (0, 1))(*q, drive)
        return -0.5 * d_half, -0.5 * d_mean

    def mean_and_half_difference(self, x):
        return x


class _TwoTrajectories(eqx.Module):
    """Both echoes as they are, stacked: what a physical machine runs."""

    hamiltonian: AbstractHamiltonian

    def start(self, x):
        return jnp.stack([x, x])

    def restart(self, x, end):
        return x

    def nudge(self, p, nudge):
        return p + jnp.stack([nudge, -nudge])

    def components(self, q, p, drives, nudges):
        return [(q[0], p[0], drives, nudges), (q[1], p[1], drives, -nudges)]

    def assembled(self, components):
        return jnp.stack(components, axis=1)

    def velocity(self, p):
        return jax.vmap(self.hamiltonian.velocity)(p)

    def force(self, q, drive):
        return jax.vmap(self.hamiltonian.force, in_axes=(0, None))(q, drive)

    def mean_and_half_difference(self, x):
        return 0.5 * (x[0] + x[1]), 0.5 * (x[0] - x[1])


# The echo


_per_sequence = jax.vmap(jnp.multiply, (0, 1), 1)  # (batch,) times (time, batch, ..)


def _echo(algorithm, system, inputs, kept, outputs_grad, scan, stretch):
    """Gradients of the system, summed over the batch, and of the inputs (time, batch, in), from the echo."""
    ends, size = kept
    pair = (_TwoTrajectories if algorithm.literal else MeanAndHalfDifference)(system.hamiltonian)
    amplitude = nudge_amplitude(algorithm, system, inputs, size, outputs_grad)
    weight = jnp.where(amplitude == 0, 0, -0.5 / jnp.where(amplitude == 0, 1, amplitude))
    if scan == "associative":
        walk_back = partial(_walk_back_contracting, pair, weight, _states_by_associative_scan)
    elif _few_parameters(system, inputs):
        walk_back = partial(walk_back_accumulating, pair, weight)
    else:
        walk_back = partial(_walk_back_contracting, pair, weight, _states_by_sequential_scan)

    def back(carry, steps, _):
        state, (system_grad, hamiltonian_grad) = carry
        inputs, outputs_grad = steps
        nudges = _per_sequence(amplitude, positions_gradient(system, inputs, outputs_grad, like=q))
        state, positions, more_hamiltonian_grad, drives_grad = walk_back(state, drives_of(system, inputs), nudges)
        more_system_grad, inputs_grad = ports_gradient(system, inputs, positions, outputs_grad, drives_grad)
        more = (more_system_grad, more_hamiltonian_grad)
        return (state, jax.tree.map(jnp.add, (system_grad, hamiltonian_grad), more)), inputs_grad, None

    def segment(carry, steps, end):
        (q_pair, p_pair), total = carry
        restarted = (pair.restart(q_pair, end[0]), pair.restart(p_pair, -end[1]))
        carry, inputs_grad, _ = walk(back, (restarted, total), steps, stretch, reverse=True)
        return carry, inputs_grad, None

    q, p = jax.tree.map(lambda x: x[-1], ends[-1])
    echo = (jax.vmap(pair.start)(q), jax.vmap(pair.start)(-p))
    parameters = eqx.filter(system, eqx.is_inexact_array)
    nothing = jax.tree.map(jnp.zeros_like, (parameters, parameters.hamiltonian))
    (_, (system_grad, hamiltonian_grad)), inputs_grad, _ = walk(
        segment, (echo, nothing), (inputs, outputs_grad), segment_length(stretch), marks=ends, reverse=True
    )
    return with_hamiltonian_gradient(system_grad, hamiltonian_grad), inputs_grad


# One stretch of the echo. Given the state that it starts from, drives and nudges (time, batch, osc), it returns the
# state it ends in, the positions that the readout sees, and the gradients of the Hamiltonian and of the drives.


def _contrast(hamiltonian, drive, p_before, q_half, p_after):
    """Energy of one echo minus that of the other in a step; times the weight, its gradient at a fixed trace is ours."""
    return (
        0.5 * hamiltonian.kinetic_contrast(*p_before)
        + hamiltonian.potential_contrast(*q_half, drive)
        + 0.5 * hamiltonian.kinetic_contrast(*p_after)
    )


def _few_parameters(system, inputs):
    """Whether the gradient of the Hamiltonian is not much larger than a state, and may be carried along."""
    size = sum(leaf.size for leaf in jax.tree.leaves(eqx.filter(system.hamiltonian, eqx.is_inexact_array)))
    return size <= 8 * jax.eval_shape(lambda x: rest_state(system, x[:, 0])[0], inputs).size


def walk_back_accumulating(pair, weight, state, drives, nudges):
    """The gradient of the Hamiltonian is added up step by step, for every sequence: nothing else is kept."""

    def step(carry, drive_and_nudge):
        (q, p), total = carry
        drive, nudge = drive_and_nudge
        p_before = pair.nudge(p, nudge)
        state, q_half = leapfrog(pair.velocity, pair.force, (q, p_before), drive)
        trace = map(pair.mean_and_half_difference, (p_before, q_half, state[1]))
        grad, drive_grad = eqx.filter_grad(lambda x: _contrast(*x, *trace))((pair.hamiltonian, drive))
        position, _ = pair.mean_and_half_difference(q)
        return (state, jax.tree.map(jnp.add, total, grad)), (position, drive_grad)

    batch = weight.shape[0]
    parameters = eqx.filter(pair.hamiltonian, eqx.is_inexact_array)
    total = jax.tree.map(lambda x: jnp.zeros((batch, *x.shape), x.dtype), parameters)
    (state, total), (positions, drives_grad) = jax.lax.scan(
        jax.vmap(step), (state, total), (drives, nudges), reverse=True
    )
    hamiltonian_grad = jax.tree.map(lambda x: jnp.tensordot(weight, x, 1), total)
    return state, positions, hamiltonian_grad, _per_sequence(weight, drives_grad)


def _walk_back_contracting(pair, weight, states_of, state, drives, nudges):
    """The trace of the stretch is kept and contracted at once: right for matrices, and for machines with many cores."""
    q_after, p_after = jax.vmap(partial(states_of, pair), (0, 1, 1), 1)(state, drives, nudges)

    def each_before(after, first):
        return jax.tree.map(lambda x, start: jnp.concatenate([x[1:], start[None]]), after, first)

    q, p_before = each_before(q_after, state[0]), each_step(pair.nudge)(each_before(p_after, state[1]), nudges)
    q_half = jax.tree.map(lambda x, v: x + 0.5 * v, q, each_step(pair.velocity)(p_before))
    trace = [each_step(pair.mean_and_half_difference)(x) for x in (p_before, q_half, p_after)]

    def weighted(hamiltonian_and_drives):
        hamiltonian, drives = hamiltonian_and_drives
        return jnp.vdot(weight, jnp.sum(each_step(partial(_contrast, hamiltonian))(drives, *trace), axis=0))

    hamiltonian_grad, drives_grad = eqx.filter_grad(weighted)((pair.hamiltonian, drives))
    positions, _ = each_step(pair.mean_and_half_difference)(q)
    first = jax.tree.map(lambda x: x[0], (q_after, p_after))
    return first, positions, hamiltonian_grad, drives_grad


def each_step(function):
    """Maps a function of one sequence and step over (time, batch, ..)."""
    return jax.vmap(jax.vmap(function))


def _states_by_sequential_scan(pair, state, drives, nudges):
    """The states of one sequence after every step back, in the order of time."""

    def step(state, drive_and_nudge):
        q, p = state
        drive, nudge = drive_and_nudge
        state, _ = leapfrog(pair.velocity, pair.force, (q, pair.nudge(p, nudge)), drive)
        return state, state

    return jax.lax.scan(step, state, (drives, nudges), reverse=True)[1]


def _states_by_associative_scan(pair, state, drives, nudges):
    """The same for a linear Hamiltonian: each member of the pair obeys the same linear map."""
    (((_, qp), (_, pp)), (qv, pv)) = step_map, _ = linear_step(pair.hamiltonian, (drives[0], drives[0]))
    qp, pp, qv, pv = (entry[None] for entry in (qp, pp, qv, pv))
    found = []
    for q, p, drive, nudge in pair.components(*state, drives[::-1], nudges[::-1]):
        forces = (qp * nudge + qv * drive, pp * nudge + pv * drive)
        found.append(jax.tree.map(lambda x: x[::-1], linear_recurrence(step_map, (q, p), forces)))
    return tuple(pair.assembled(components) for components in zip(*found, strict=True))


def nudge_amplitude(algorithm, system, inputs, size, outputs_grad):
    """The factor a between incoming gradient and nudge, (batch,): epsilon, relative to the state and to all the nudges.

    The nudges of a sequence are bounded, in root-sum-square over time, by the gain of the readout times the incoming
    gradient. The factor is 0 for a zero incoming gradient, and NaN for one that is not finite.
    """
    epsilon = algorithm.epsilon
    if epsilon is None:
        kind = type(system.hamiltonian)
        closed = all(
            getattr(kind, name) is not getattr(AbstractHamiltonian, name)
            for name in ("kinetic_contrast", "potential_contrast")
        )
        epsilon = 1e-8 if closed and not algorithm.literal else 1e-2
    first = inputs[:1, 0]
    rest, _ = rest_state(system, first)
    gain = jax.jacobian(lambda q: system.readout(q[None], first)[0])(rest)
    gain = jnp.max(jnp.linalg.norm(gain, axis=0))

    def over_sequences(reduce, x):
        return reduce(x, axis=(0, *range(2, x.ndim)), keepdims=True)

    largest = over_sequences(jnp.max, jnp.abs(outputs_grad))
    scaled = outputs_grad / jnp.where(largest > 0, largest, 1)
    total = gain * (largest * jnp.sqrt(over_sequences(jnp.sum, scaled**2))).ravel()
    return jnp.where(total == 0, 0, epsilon * jnp.where(size > 0, size, 1) / jnp.where(total == 0, 1, total))
