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

Nothing of size time x oscillators outlives a chunk of steps: the free pass keeps the inputs and the state at the end of
every chunk; the echo walks back chunk by chunk and adds up the gradients. The mean of the pair goes on from the kept
state at each chunk, so that rounding errors, which a chaotic system multiplies, do not add up over the whole way back:
float32 gradients are then those of float32 backpropagation. The literal pair has no such help; nor has a machine.
"""

import math
from abc import abstractmethod
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from models.hamiltonian import AbstractHamiltonian, State, flow, leapfrog

CHUNK = 128
"""Steps walked at a time: what is kept per step is kept for this many."""


class AbstractSystem(eqx.Module):
    """A Hamiltonian with its ports: how inputs drive it and how its positions are read.

    `readout` must be linear in the positions. Both ports see stretches of a sequence and treat every step alike.
    """

    hamiltonian: eqx.AbstractVar[AbstractHamiltonian]

    @abstractmethod
    def drive(self, inputs: Float[Array, "time in"]) -> Float[Array, "time osc"]:
        """Drives v_t of the inputs u_t."""

    @abstractmethod
    def readout(self, positions: Float[Array, "time osc"], inputs: Float[Array, "time in"]) -> Float[Array, "time out"]:
        """Outputs o_t of the positions q_{t+1} and the inputs u_t."""


class BareSystem(AbstractSystem):
    """A Hamiltonian whose inputs are its drives and whose outputs are its positions."""

    hamiltonian: AbstractHamiltonian

    def drive(self, inputs):
        """The inputs."""
        return inputs

    def readout(self, positions, inputs):
        """The positions."""
        return positions


class AbstractLearningAlgorithm(eqx.Module):
    """How the response of a system is differentiated. The response is the same for all."""

    @abstractmethod
    def __call__(self, system: AbstractSystem, inputs: Float[Array, "time in"]) -> Float[Array, "time out"]:
        """Outputs of the system, from rest, to a sequence of at least one input."""


class BPTT(AbstractLearningAlgorithm):
    """Backpropagation through time: reverse mode of the integrator, all states kept."""

    def __call__(self, system, inputs):
        """Outputs of the system, from rest, to a sequence of at least one input."""
        outputs, _ = _free_pass(system, inputs)
        return outputs


class RHEL(AbstractLearningAlgorithm):
    """Recurrent Hamiltonian Echo Learning.

    - `epsilon`: size of the nudges. 1 means that all the nudges of a sequence together, added up as if they were
      uncorrelated, are as large as the state; by default 1e-8 for a Hamiltonian with closed contrasts, where smaller is
      better, else 1e-2, where O(epsilon^2) and cancellation balance in float32.
    - `literal`: run two trajectories, as a physical machine would, instead of their mean and half-difference.
    """

    epsilon: float | None = eqx.field(default=None, static=True)
    literal: bool = eqx.field(default=False, static=True)

    def __check_init__(self):
        number = isinstance(self.epsilon, int | float) and not isinstance(self.epsilon, bool)
        if self.epsilon is not None and not (number and math.isfinite(self.epsilon) and self.epsilon > 0):
            raise ValueError(
                f"epsilon must be a positive number or None for the automatic choice, got {self.epsilon!r}"
            )

    def __call__(self, system, inputs):
        """Outputs of the system, from rest, to a sequence of at least one input."""
        return _echoed((system, inputs), self)


LEARNING_ALGORITHMS = ("RHEL", "BPTT")


def make_learning_algorithm(name: str, epsilon: float | None = None) -> AbstractLearningAlgorithm:
    """A learning algorithm by name. `epsilon` concerns RHEL alone. Raises `ValueError` for another name."""
    if name == "RHEL":
        return RHEL(epsilon)
    if name == "BPTT":
        return BPTT()
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


# The free pass


def _chunked(xs: PyTree) -> list[PyTree]:
    """Cuts the leading axis into stacks of chunks, (count, CHUNK, ..) and, where steps are left over, (1, rest, ..)."""
    length = jax.tree.leaves(xs)[0].shape[0]
    if length == 0:
        raise ValueError("the sequence is empty: it has no steps")
    whole = length - length % CHUNK
    cuts = [(0, whole, CHUNK), (whole, length, length - whole)]
    return [
        jax.tree.map(lambda x, i=start, j=stop, n=size: x[i:j].reshape(-1, n, *x.shape[1:]), xs)
        for start, stop, size in cuts
        if start < stop
    ]


def _joined(stacks: list[PyTree]) -> PyTree:
    """The inverse of `_chunked`."""
    return jax.tree.map(lambda *xs: jnp.concatenate([x.reshape(-1, *x.shape[2:]) for x in xs]), *stacks)


def _scan_chunks(body: Callable, carry: PyTree, stacks: list[PyTree], *, reverse: bool = False):
    """As `jax.lax.scan` over all chunks of all stacks; the outputs come stacked in the same way."""
    order = slice(None, None, -1) if reverse else slice(None)
    outputs = []
    for stack in stacks[order]:
        carry, output = jax.lax.scan(body, carry, stack, reverse=reverse)
        outputs.append(output)
    return carry, outputs[order]


def rest_state(system: AbstractSystem, inputs: Float[Array, "time in"]) -> State:
    """Zero position and momentum, of the shape of a drive.

    Raises `TypeError` for drives that are not floating-point and `ValueError` for energies that are not scalars.
    """
    hamiltonian = system.hamiltonian
    drives = jax.eval_shape(system.drive, inputs[:1])
    if not jnp.issubdtype(drives.dtype, jnp.floating):
        raise TypeError(f"the drives must be floating-point, got {drives.dtype}: convert them with .astype(float)")
    parameters = jax.tree.leaves(eqx.filter(hamiltonian, eqx.is_inexact_array))
    state = jax.ShapeDtypeStruct(drives.shape[1:], jnp.result_type(drives.dtype, *(x.dtype for x in parameters)))
    drive = jax.ShapeDtypeStruct(drives.shape[1:], drives.dtype)
    for energy, arguments in ((hamiltonian.kinetic, (state,)), (hamiltonian.potential, (state, drive))):
        value = jax.eval_shape(energy, *arguments)
        if value.shape != ():
            name = f"{type(hamiltonian).__name__}.{energy.__name__}"
            raise ValueError(f"{name} must return a scalar, got shape {value.shape}: sum over the oscillators")
    zeros = jnp.zeros(state.shape, state.dtype)
    return zeros, zeros


def _free_pass(system: AbstractSystem, inputs: Float[Array, "time in"]) -> tuple[Float[Array, "time out"], tuple]:
    """Outputs; the states at the ends of the chunks, stacked; the size of the state: its largest value on the way.

    The forward pass of every learning algorithm.
    """

    def body(state, inputs):
        state, positions = flow(system.hamiltonian, state, system.drive(inputs))
        size = jnp.maximum(jnp.max(jnp.abs(positions)), jnp.max(jnp.abs(state[1])))
        return state, (system.readout(positions, inputs), state, size)

    _, stacks = _scan_chunks(body, rest_state(system, inputs), _chunked(inputs))
    outputs, ends, sizes = zip(*stacks, strict=True)
    return _joined(list(outputs)), (list(ends), jnp.max(jnp.concatenate(sizes)))


# The echo pair, in either of two coordinates


class _MeanAndHalfDifference(eqx.Module):
    """(m, d): the echoes are m + d and m - d. No digits are lost however small d is."""

    hamiltonian: AbstractHamiltonian

    def start(self, x):
        return x, jnp.zeros_like(x)

    def restart(self, x, end):
        return end, x[1]

    def nudge(self, p, nudge):
        return p[0], p[1] + nudge

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

    def velocity(self, p):
        return jax.vmap(self.hamiltonian.velocity)(p)

    def force(self, q, drive):
        return jax.vmap(self.hamiltonian.force, in_axes=(0, None))(q, drive)

    def mean_and_half_difference(self, x):
        return 0.5 * (x[0] + x[1]), 0.5 * (x[0] - x[1])


# The custom gradient


@eqx.filter_custom_vjp
def _echoed(system_and_inputs, algorithm):
    outputs, _ = _free_pass(*system_and_inputs)
    return outputs


@_echoed.def_fwd
def _echoed_fwd(perturbed, system_and_inputs, algorithm):
    return _free_pass(*system_and_inputs)


@_echoed.def_bwd
def _echoed_bwd(residuals, outputs_grad, perturbed, system_and_inputs, algorithm):
    ends, size = residuals
    system, inputs = system_and_inputs
    hamiltonian = system.hamiltonian
    q, p = jax.tree.map(lambda x: x[-1], ends[-1])
    pair = (_TwoTrajectories if algorithm.literal else _MeanAndHalfDifference)(hamiltonian)
    amplitude = _nudge_amplitude(system, inputs, q, size, outputs_grad, algorithm)
    weight = jnp.where(amplitude == 0, 0, 0.5 / jnp.where(amplitude == 0, 1, amplitude))

    def echo_step(state, drive_and_nudge):
        drive, nudge = drive_and_nudge
        q_end, p_end = state
        p_nudged = pair.nudge(p_end, nudge)
        state, q_half = leapfrog(pair.velocity, pair.force, (q_end, p_nudged), drive)
        # Of a pair of arrays each is mapped by itself, of a stack both together.
        return state, jax.tree.map(pair.mean_and_half_difference, (q_end, p_nudged, q_half, state[1]))

    def response(system_and_inputs, trace, outputs_grad):
        """Its gradient at a fixed trace is the answer: readout times incoming gradient, minus the energy contrast."""
        system, inputs = system_and_inputs
        (q_end, _), p_before, q_half, p_after = trace
        kinetic_contrast = jax.vmap(system.hamiltonian.kinetic_contrast)
        potential_contrast = jax.vmap(system.hamiltonian.potential_contrast)
        contrast = (
            0.5 * kinetic_contrast(*p_before)
            + potential_contrast(*q_half, system.drive(inputs))
            + 0.5 * kinetic_contrast(*p_after)
        )
        return jnp.vdot(outputs_grad, system.readout(q_end, inputs)) - weight * jnp.sum(contrast)

    def body(carry, chunk):
        (q_pair, p_pair), total = carry
        inputs, outputs_grad, (q_end, p_end) = chunk
        _, readout_vjp = jax.vjp(lambda q: system.readout(q, inputs), jnp.zeros((inputs.shape[0], *q.shape), q.dtype))
        (nudges,) = readout_vjp(outputs_grad)
        state = (pair.restart(q_pair, q_end), pair.restart(p_pair, -p_end))
        state, trace = jax.lax.scan(echo_step, state, (system.drive(inputs), amplitude * nudges), reverse=True)
        system_grad, inputs_grad = eqx.filter_grad(response)((system, inputs), trace, outputs_grad)
        return (state, jax.tree.map(jnp.add, total, system_grad)), inputs_grad

    echo = (pair.start(q), pair.start(-p))
    nothing = jax.tree.map(jnp.zeros_like, eqx.filter(system, eqx.is_inexact_array))
    chunks = [(*chunk, end) for chunk, end in zip(_chunked((inputs, outputs_grad)), ends, strict=True)]
    (_, system_grad), inputs_grad = _scan_chunks(body, (echo, nothing), chunks, reverse=True)
    return system_grad, _joined(inputs_grad)


def _nudge_amplitude(system, inputs, q, size, outputs_grad, algorithm):
    """The factor a between incoming gradient and nudge: epsilon, relative to the state and to the whole of the nudges.

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
    largest = jnp.max(jnp.abs(outputs_grad))
    gain = jax.jacobian(lambda q: system.readout(q[None], inputs[:1])[0])(jnp.zeros_like(q))
    gain = jnp.max(jnp.linalg.norm(gain, axis=0))
    total = largest * gain * jnp.linalg.norm(outputs_grad / jnp.where(largest > 0, largest, 1))
    return jnp.where(total == 0, 0, epsilon * jnp.where(size > 0, size, 1) / total)
