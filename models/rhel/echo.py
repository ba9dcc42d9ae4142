"""Recurrent Hamiltonian Echo Learning: the gradient of a driven Hamiltonian system from forward passes alone.

Pourcel & Ernoult, "Learning long range dependencies through time reversal symmetry breaking", NeurIPS 2025,
arXiv 2506.05259. Symbols as in `rhel.hamiltonian`; the same in 40 lines, for one sequence, in `rhel.reference`.

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
- `literal`. Two trajectories and no mean, as in `rhel.reference`: what a physical machine runs. The difference loses
  digits as rounding / a.

No array of size time x oscillators outlives a short stretch of steps: see `rhel.way_back`. Where the free pass kept a
state, the mean of the pair continues from that. So rounding errors, which a chaotic system multiplies, do not add up
over the whole way back: float32 gradients are as good as those of float32 backpropagation. The literal pair has no such
help; nor has a machine.
"""

import math
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
from typing_extensions import override

from . import reference
from .hamiltonian import AbstractHamiltonian, leapfrog
from .linear_echo import LinearEcho
from .nudges import finite_nudges, per_sequence
from .pair import MeanAndHalfDifference, MeanAndTangent
from .requirements import require_force_of_energies
from .way_back import AbstractRetracing, AbstractWayBack


class RHEL(AbstractRetracing):
    """Recurrent Hamiltonian Echo Learning.

    - `epsilon`: size of the nudges, relative to the state, see `rhel.nudges`. None, the default, means infinitesimal
      nudges: the gradient is exact for every energy. A linear system, for which every size gives the same gradient, has
      infinitesimal nudges in any case. If `literal`, None means 1e-2.
    - `literal`: run two trajectories, as a physical machine does, one step after the other.
    - `scan`, `chunk`: see `AbstractScanned`.
    """

    epsilon: float | None = eqx.field(default=None, static=True)
    literal: bool = eqx.field(default=False, static=True)

    def __check_init__(self):
        number = isinstance(self.epsilon, int | float) and not isinstance(self.epsilon, bool)
        if self.epsilon is not None and not (number and math.isfinite(self.epsilon) and self.epsilon > 0):
            raise ValueError(
                f"epsilon must be a positive number or None for infinitesimal nudges, got {self.epsilon!r}"
            )

    @override
    def respond(self, system, inputs):
        if not self.literal:
            require_force_of_energies(system.hamiltonian)
        return super().respond(system, inputs)

    @override
    def way_back(self, hamiltonian, positions_grad, steps, size, schedule):
        parameters = jax.tree.leaves(eqx.filter(hamiltonian, eqx.is_inexact_array))
        position = jax.eval_shape(positions_grad, *steps).shape[2:]
        has_matrices = sum(x.size for x in parameters) > 8 * math.prod(position)
        if not self.literal and (self.epsilon is None or hamiltonian.linear):
            pair = MeanAndTangent(hamiltonian)
            if schedule.scan == "parallel":
                return LinearEcho(pair), positions_grad
            return Echo(pair, jnp.full_like(size, -0.5), has_matrices, schedule.unroll), positions_grad
        epsilon = 1e-2 if self.epsilon is None else self.epsilon
        nudges, weight = finite_nudges(positions_grad, steps, size, epsilon, schedule.stretch)
        if self.literal:
            return LiteralEcho(hamiltonian, weight), nudges
        return Echo(MeanAndHalfDifference(hamiltonian), weight, has_matrices, schedule.unroll), nudges


class Echo(AbstractWayBack):
    """The echo pair of a batch of sequences, ((m, d) of the positions, (m, d) of the momenta), each (batch, osc).

    It carries d. The flip of m is the state of the free pass.

    - `weight`: what the gradient of the contrast is multiplied by, for every sequence.
    - `has_matrices`: the parameters outnumber the state of a sequence, so that a gradient for every sequence is large.
      Measured with 128 oscillators coupled by W W^T, batch 8: one reading for a stretch takes a third of the time.
    """

    pair: MeanAndHalfDifference
    weight: Float[Array, " batch"]
    has_matrices: bool = eqx.field(static=True)
    unroll: int = eqx.field(static=True)

    @override
    def begin(self, end):
        return jax.tree.map(jnp.zeros_like, end)

    @override
    def stretch(self, end, carried, drives, nudges):
        (q, p), (dq, dp) = end, carried
        run = self._states_first if self.has_matrices else self._step_by_step
        ((q, dq), (p, dp)), *results = run(((q, dq), (-p, dp)), drives, nudges)
        return (q, -p), (dq, dp), *results

    def _step_by_step(self, moving, drives, nudges):
        """The trace of a step is read at once and not kept. Every sequence adds up its own gradient.

        A sum over the batch in every step would be a kernel of its own: measured at EthanolConcentration, LinHRU, 1.24
        times the time of a training step.
        """

        def step(carry, drive_and_nudge):
            (q, p), total = carry
            drive, nudge = drive_and_nudge
            p_before = (p[0], p[1] + nudge)
            after, q_half = self._leapfrog((q, p_before), drive)
            trace = (p_before, q_half, after[1])
            more, drive_grad = eqx.filter_grad(lambda x: self.pair.contrast(*x, trace))((self.pair.hamiltonian, drive))
            return (after, jax.tree.map(jnp.add, total, more)), (q[0], drive_grad)

        parameters = eqx.filter(self.pair.hamiltonian, eqx.is_inexact_array)
        zero = jax.vmap(lambda _: jax.tree.map(jnp.zeros_like, parameters))(self.weight)
        (moving, total), (positions, drives_grad) = jax.lax.scan(
            jax.vmap(step), (moving, zero), (drives, nudges), reverse=True, unroll=self.unroll
        )
        return moving, positions, total, per_sequence(jnp.multiply)(drives_grad, self.weight)

    @override
    def hamiltonian_grad(self, total):
        if self.has_matrices:
            return total
        return jax.tree.map(lambda x: jnp.sum(jax.vmap(jnp.multiply)(self.weight, x), axis=0), total)

    def _states_first(self, moving, drives, nudges):
        """All states of the stretch first, then the trace of all steps is read at once."""
        q_after, p_after = jax.vmap(self._states, (0, 1, 1), 1)(moving, drives, nudges)

        def each_before(after, first):
            return jax.tree.map(lambda x, start: jnp.concatenate([x[1:], start[None]]), after, first)

        q, p = each_before(q_after, moving[0]), each_before(p_after, moving[1])
        p_before = (p[0], p[1] + nudges)
        q_half = jax.tree.map(lambda x, v: x + 0.5 * v, q, _each_step(self.pair.velocity)(p_before))
        hamiltonian_grad, drives_grad = self._readout(drives, (p_before, q_half, p_after))
        first = jax.tree.map(lambda x: x[0], (q_after, p_after))
        return first, q[0], hamiltonian_grad, drives_grad

    def _leapfrog(self, state, drive):
        return leapfrog(self.pair.velocity, self.pair.force, state, drive)

    def _readout(self, drives, trace):
        """Gradients of the Hamiltonian, summed, and of the drives, from the trace of many steps."""

        def contrasts(hamiltonian, drives):
            return _each_step(partial(self.pair.contrast, hamiltonian))(drives, trace)

        value, pull_back = eqx.filter_vjp(contrasts, self.pair.hamiltonian, drives)
        return pull_back(jnp.broadcast_to(self.weight, value.shape))

    def _step(self, state, drive_and_nudge):
        (q, p), (drive, nudge) = state, drive_and_nudge
        return self._leapfrog((q, (p[0], p[1] + nudge)), drive)[0]

    def _states(self, state, drives, nudges):
        """The states of one sequence after every step back, in the order of time."""

        def step(state, drive_and_nudge):
            state = self._step(state, drive_and_nudge)
            return state, state

        return jax.lax.scan(step, state, (drives, nudges), reverse=True, unroll=self.unroll)[1]


def _each_step(function):
    """Maps a function of one sequence and step over (time, batch, ..)."""
    return jax.vmap(jax.vmap(function))


class LiteralEcho(AbstractWayBack):
    """The echoes of `rhel.reference` for a batch: two trajectories, (2, batch, osc). They rejoin no kept state."""

    hamiltonian: AbstractHamiltonian
    weight: Float[Array, " batch"]

    @override
    def begin(self, end):
        q, p = end
        return jax.tree.map(lambda x: jnp.stack([x, x]), (q, -p))

    @override
    def stretch(self, end, carried, drives, nudges):
        def echoes(states, drives, nudges):
            nudges = jnp.stack([nudges, -nudges])
            return jax.vmap(partial(reference.echo, self.hamiltonian), (0, None, 0))(states, drives, nudges)

        def contrasts(hamiltonian, drives):
            energies = jax.vmap(partial(reference.energy, hamiltonian), (None, 0))
            plus, minus = jax.vmap(energies, (1, 2), 1)(drives, trace)
            return plus - minus

        carried, (positions, trace) = jax.vmap(echoes, 1, (1, 2))(carried, drives, nudges)
        _, pull_back = eqx.filter_vjp(contrasts, self.hamiltonian, drives)
        hamiltonian_grad, drives_grad = pull_back(self.weight)
        return end, carried, 0.5 * (positions[0] + positions[1]), hamiltonian_grad, drives_grad
