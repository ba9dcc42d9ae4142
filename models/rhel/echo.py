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

The pair is carried as mean m and half-difference d (plus = m + d, minus = m - d): the same two trajectories in
coordinates that do not cancel. With the contrast Vc(m, d) = V(m + d) - V(m - d), the mean force is -dVc/dd / 2, half
the difference of the forces is -dVc/dm / 2, and the difference of the energy gradients is dVc/dtheta: one scalar
function carries the echo and its readout.

Three kinds of nudges:
- infinitesimal, the default. As a -> 0 the contrast is Vc = 2 V'(m) d, the derivative of V along d, which `jax.jvp`
  computes for any energy without a subtraction. Then d is linear in the nudges, a divides out, and the gradient has no
  error but rounding. The mean retraces the free pass and d is its tangent.
- finite (`epsilon`). The error is O(epsilon^2), and zero for a linear system.
- `literal`. Two trajectories and no mean: what a physical machine runs. The difference loses digits as rounding / a.

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

from .backprop import ReversibleBPTT
from .hamiltonian import AbstractHamiltonian, leapfrog, linear_recurrence, linear_step
from .nudges import finite_nudges, per_sequence
from .requirements import position_like, require_force_of_energies, require_hamiltonian
from .stretches import scan_stretches, segment_length
from .system import (
    BPTT,
    SCANS,
    AbstractLearningAlgorithm,
    AbstractSystem,
    BareSystem,
    Scan,
    custom_gradient,
    drives_of,
    on_platform,
    one_sequence,
    ports_gradient,
    positions_gradient,
    rest_state,
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

    - `epsilon`: size of the nudges, relative to the state, see `models.rhel.nudges`. None, the default, means
      infinitesimal nudges: the gradient is exact for every energy. A linear system, for which every size gives the same
      gradient, has infinitesimal nudges in any case. If `literal`, None means 1e-2.
    - `literal`: run two trajectories, as a physical machine does, instead of their mean and half-difference.
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
                f"epsilon must be a positive number or None for infinitesimal nudges, got {self.epsilon!r}"
            )

    def respond(self, system, inputs):
        """Outputs of the system, from rest, to a batch of sequences."""
        if not self.literal:
            require_force_of_energies(system.hamiltonian)
        run = partial(custom_gradient, partial(_echo, self), system, inputs)
        return on_platform(self.scan, self.chunk, system, inputs, run)

    def _infinitesimal(self, system):
        return not self.literal and (self.epsilon is None or system.hamiltonian.linear)


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
    n_osc: int | None = None,
) -> Float[Array, "time osc"]:
    """Positions q_1, .., q_L of a Hamiltonian, from rest, under a sequence of drives.

    Differentiable in reverse mode, by the learning algorithm, with respect to every floating-point array of the
    Hamiltonian and to the drives. A position has the shape of a drive, or (n_osc,): then the potential says how a drive
    of another shape acts on the oscillators. Raises `ValueError` for an empty sequence, an unknown algorithm and
    energies that are not scalars or cannot be evaluated; `TypeError` for a Hamiltonian that is no
    `AbstractHamiltonian`, for drives that are not one floating-point array, and for a parameter that is no field.
    """
    require_hamiltonian(hamiltonian)
    if isinstance(learning_algorithm, str):
        learning_algorithm = make_learning_algorithm(learning_algorithm, epsilon)
    elif epsilon is not None:
        raise ValueError("epsilon belongs to the learning algorithm that was given: RHEL(epsilon)")
    return learning_algorithm(BareSystem(hamiltonian, n_osc), drives)


# The echo pair


class MeanAndHalfDifference(eqx.Module):
    """(m, d): the echoes are m + d and m - d. No digits are lost however small d is."""

    hamiltonian: AbstractHamiltonian

    def kinetic_contrast(self, hamiltonian, p):
        return hamiltonian.kinetic_contrast(*p)

    def potential_contrast(self, hamiltonian, q, drive):
        return hamiltonian.potential_contrast(*q, drive)

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
        d_mean, d_half = jax.grad(partial(self.kinetic_contrast, self.hamiltonian))(p)
        return 0.5 * d_half, 0.5 * d_mean

    def force(self, q, drive):
        d_mean, d_half = jax.grad(partial(self.potential_contrast, self.hamiltonian))(q, drive)
        return -0.5 * d_half, -0.5 * d_mean

    def mean_and_half_difference(self, x):
        return x


class MeanAndTangent(MeanAndHalfDifference):
    """(m, d) in the limit of infinitesimal nudges: m retraces the free pass, d is a tangent of it, of any size."""

    def kinetic_contrast(self, hamiltonian, p):
        return 2 * jax.jvp(hamiltonian.kinetic, p[:1], p[1:])[1]

    def potential_contrast(self, hamiltonian, q, drive):
        return 2 * jax.jvp(lambda q: hamiltonian.potential(q, drive), q[:1], q[1:])[1]

    def velocity(self, p):
        return self._tangent(self.hamiltonian.velocity, p)

    def force(self, q, drive):
        return self._tangent(lambda q: self.hamiltonian.force(q, drive), q)

    def _tangent(self, slope, x):
        try:
            return jax.jvp(slope, x[:1], x[1:])
        except (NotImplementedError, TypeError) as error:
            raise ValueError(
                f"infinitesimal nudges need the forward derivative of the slopes of {type(self.hamiltonian).__name__}, "
                f"which jax does not have ({error}). Write a derivative of your own as a jax.custom_jvp instead of a "
                "jax.custom_vjp, or use finite nudges, epsilon=1e-3, or BPTT"
            ) from error


class TwoTrajectories(MeanAndHalfDifference):
    """Both echoes as they are, stacked: what a physical machine runs."""

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


def _echo(algorithm, system, inputs, kept, outputs_grad, scan, stretch):
    """Gradients of the system, summed over the batch, and of the inputs (time, batch, in), from the echo."""
    ends, size = kept
    q, p = jax.tree.map(lambda x: x[-1], ends)
    to_positions = partial(positions_gradient, system, like=q)
    if algorithm._infinitesimal(system):
        pair, nudges_of, weight = MeanAndTangent(system.hamiltonian), to_positions, jnp.full_like(size, -0.5)
    else:
        pair = (TwoTrajectories if algorithm.literal else MeanAndHalfDifference)(system.hamiltonian)
        epsilon = 1e-2 if algorithm.epsilon is None else algorithm.epsilon
        nudges_of, weight = finite_nudges(to_positions, inputs, outputs_grad, size, epsilon, stretch)
    if scan == "associative":
        walk_back = partial(_walk_back_contracting, pair, weight, _states_by_associative_scan)
    elif _few_parameters(system, inputs):
        walk_back = partial(walk_back_accumulating, pair, weight)
    else:
        walk_back = partial(_walk_back_contracting, pair, weight, _states_by_sequential_scan)

    def back(carry, steps):
        state, (system_grad, hamiltonian_grad) = carry
        inputs, outputs_grad = steps
        drives, nudges = drives_of(system, inputs), nudges_of(inputs, outputs_grad)
        state, positions, more_hamiltonian_grad, drives_grad = walk_back(state, drives, nudges)
        more_system_grad, inputs_grad = ports_gradient(system, inputs, positions, outputs_grad, drives_grad)
        more = (more_system_grad, more_hamiltonian_grad)
        return (state, jax.tree.map(jnp.add, (system_grad, hamiltonian_grad), more)), inputs_grad

    def segment(carry, steps, end):
        (q_pair, p_pair), total = carry
        restarted = (pair.restart(q_pair, end[0]), pair.restart(p_pair, -end[1]))
        carry, inputs_grad = scan_stretches(back, (restarted, total), steps, stretch, reverse=True)
        return carry, inputs_grad

    echo = (jax.vmap(pair.start)(q), jax.vmap(pair.start)(-p))
    parameters = eqx.filter(system, eqx.is_inexact_array)
    nothing = jax.tree.map(jnp.zeros_like, (parameters, parameters.hamiltonian))
    (_, (system_grad, hamiltonian_grad)), inputs_grad = scan_stretches(
        segment, (echo, nothing), (inputs, outputs_grad), segment_length(stretch), per_stretch=ends, reverse=True
    )
    return with_hamiltonian_gradient(system_grad, hamiltonian_grad), inputs_grad


# One stretch of the echo. Given the state that it starts from, drives and nudges (time, batch, osc), it returns the
# state it ends in, the positions that the readout sees, and the gradients of the Hamiltonian and of the drives.


def _contrast(pair, hamiltonian, drive, p_before, q_half, p_after):
    """Energy of one echo minus the energy of the other in a step. Its gradient at a fixed trace, times the weight, is
    the gradient of the loss."""
    return (
        0.5 * pair.kinetic_contrast(hamiltonian, p_before)
        + pair.potential_contrast(hamiltonian, q_half, drive)
        + 0.5 * pair.kinetic_contrast(hamiltonian, p_after)
    )


def _few_parameters(system, inputs):
    """Whether the gradient of the Hamiltonian is not much larger than a state, and may be carried along."""
    size = sum(leaf.size for leaf in jax.tree.leaves(eqx.filter(system.hamiltonian, eqx.is_inexact_array)))
    return size <= 8 * inputs.shape[1] * position_like(system, one_sequence(inputs)).size


def walk_back_accumulating(pair, weight, state, drives, nudges):
    """The gradient of the Hamiltonian is added up step by step, for every sequence: nothing else is kept."""

    def step(carry, drive_and_nudge):
        (q, p), total = carry
        drive, nudge = drive_and_nudge
        p_before = pair.nudge(p, nudge)
        state, q_half = leapfrog(pair.velocity, pair.force, (q, p_before), drive)
        trace = map(pair.mean_and_half_difference, (p_before, q_half, state[1]))
        grad, drive_grad = eqx.filter_grad(lambda x: _contrast(pair, *x, *trace))((pair.hamiltonian, drive))
        position, _ = pair.mean_and_half_difference(q)
        return (state, jax.tree.map(jnp.add, total, grad)), (position, drive_grad)

    parameters = eqx.filter(pair.hamiltonian, eqx.is_inexact_array)
    total = jax.vmap(lambda _: jax.tree.map(jnp.zeros_like, parameters))(weight)
    (state, total), (positions, drives_grad) = jax.lax.scan(
        jax.vmap(step), (state, total), (drives, nudges), reverse=True
    )
    hamiltonian_grad = jax.tree.map(lambda x: jnp.sum(jax.vmap(jnp.multiply)(weight, x), axis=0), total)
    return state, positions, hamiltonian_grad, per_sequence(jnp.multiply)(drives_grad, weight)


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
        contrasts = each_step(partial(_contrast, pair, hamiltonian))(drives, *trace)
        return jnp.sum(per_sequence(jnp.multiply)(contrasts, weight))

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
