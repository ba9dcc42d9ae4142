"""The echo on a machine that is not ideal: what each imperfection does to the gradient.

A machine has no adjoint, no kept states and no coordinates without cancellation. It runs one system three times: the
free pass, and from its flipped final state the two echoes, here over the whole sequence and one trajectory each. What
is measured of an echo is its trace: the momenta before and after each kick and the position between. The gradient is
read from the energies of the two traces (`models.rhel`, Eqs. 13-14), in the machine's nominal parameters.

Every imperfection has one number, its strength. At 0 it changes no bit of any operation (where a whole program is
compiled, the compiler may fuse, and so round, one with the part and one without it differently). The ideal machine
without a simulation of its flaws is `models.rhel.RHEL`.
"""

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from models.hamiltonian import AbstractHamiltonian, State, leapfrog
from models.nudges import relative_amplitude
from models.system import AbstractLearningAlgorithm, rest_state

Strength = Float[Array, ""] | float | None


class EchoImperfection(eqx.Module):
    """The strengths of all imperfections. None: the machine has no such part. 0: it has, and it works.

    "Size" is the largest position or final momentum of the free pass of a sequence, "drawn" is from a normal
    distribution of that standard deviation, anew for every sequence and every incoming gradient.

    - `noise`: drawn kicks to position and momentum after every step of each echo, relative to the size. The free pass
      is taken as measured: its own noise would be common to the echoes, which changes their difference at second order.
    - `flip_amplitude`: the flip makes -(1 + x) p of the momentum p.
    - `flip_phase`: the flipped state (q, -p) is turned by this angle.
    - `drift`: drawn relative difference of every parameter between the two echoes, half of it in each.
    - `replay`: drawn errors of the drives, in each echo its own, relative to the largest drive of the sequence.
    - `recording`: the same, but common to both echoes.
    - `readout_quantum`: the trace is rounded to multiples of this part of the size.
    - `nudge_quantum`: the nudges are rounded to multiples of this part of the largest.
    - `damping`: friction. After every step, in the free pass and in the echoes, the momentum is multiplied by exp(-x).
    - `asymmetry`: the second echo is nudged by -(1 - x) instead of -1. 1: the nudges are one-sided.
    """

    noise: Strength = None
    flip_amplitude: Strength = None
    flip_phase: Strength = None
    drift: Strength = None
    replay: Strength = None
    recording: Strength = None
    readout_quantum: Strength = None
    nudge_quantum: Strength = None
    damping: Strength = None
    asymmetry: Strength = None

    def damped(self, state: State) -> State:
        """The state after friction."""
        q, p = state
        return state if self.damping is None else (q, jnp.exp(-self.damping) * p)

    def flipped(self, state: State) -> State:
        """Where the echoes start."""
        q, p = state
        p = -p if self.flip_amplitude is None else -(1 + self.flip_amplitude) * p
        if self.flip_phase is None:
            return q, p
        cos, sin = jnp.cos(self.flip_phase), jnp.sin(self.flip_phase)
        return cos * q - sin * p, sin * q + cos * p

    def draws(self, key: PRNGKeyArray, hamiltonian: AbstractHamiltonian, drives: Float[Array, "time osc"]) -> dict:
        """Standard normal numbers for each of the two echoes, stacked, by the name of what they are for.

        All are drawn at once: a call of the generator is long to compile.
        """
        pair = jnp.stack([drives, drives])
        like = {
            "noise": (pair, pair),
            "drift": eqx.filter(hamiltonian, eqx.is_inexact_array),
            "replay": pair,
            "recording": drives,
        }
        flat, unravel = ravel_pytree({name: x for name, x in like.items() if getattr(self, name) is not None})
        drawn = unravel(jax.random.normal(key, flat.shape, flat.dtype))
        for name, second in (("drift", -1), ("recording", 1)):
            if name in drawn:
                drawn[name] = jax.tree.map(lambda x, second=second: jnp.stack([x, second * x]), drawn[name])
        return drawn

    def drifted(self, hamiltonian: AbstractHamiltonian, drawn: dict) -> AbstractHamiltonian:
        """The system that an echo runs in."""
        if self.drift is None:
            return hamiltonian
        parameters, static = eqx.partition(hamiltonian, eqx.is_inexact_array)
        moved = jax.tree.map(lambda x, number: x * (1 + 0.5 * self.drift * number), parameters, drawn["drift"])
        return eqx.combine(moved, static)

    def replayed(self, drives: Float[Array, "time osc"], drawn: dict) -> Float[Array, "time osc"]:
        """The drives of an echo."""
        largest = jnp.max(jnp.abs(drives))
        for name in ("replay", "recording"):
            if name in drawn:
                drives = drives + getattr(self, name) * largest * drawn[name]
        return drives


class ImperfectRHEL(AbstractLearningAlgorithm):
    """RHEL on a machine that runs two plain trajectories and has imperfections.

    - `imperfection`: see `EchoImperfection`. Arrays as strengths serve one compiled program for all their values.
    - `epsilon`: size of the nudges, as in `models.rhel.RHEL`.
    - `seed`: of what is drawn, a whole number.

    Without imperfections it is RHEL(epsilon, literal=True) over one stretch, to rounding. The outputs are those of
    `ImperfectBPTT` with the same imperfection. It does not train the strengths.
    """

    imperfection: EchoImperfection = EchoImperfection()
    epsilon: Float[Array, ""] | float = 1e-2
    seed: Array | int = 0

    def respond(self, system, inputs):
        """Outputs of the system, from rest, to a batch of sequences."""
        machine = jax.lax.stop_gradient(self)
        return jax.vmap(lambda x: _respond((system, x), machine), 1, 1)(inputs)


class ImperfectBPTT(AbstractLearningAlgorithm):
    """What `ImperfectRHEL` is to be compared with: reverse mode of its free pass, friction included."""

    imperfection: EchoImperfection = EchoImperfection()

    def respond(self, system, inputs):
        """Outputs of the system, from rest, to a batch of sequences."""
        imperfection = jax.lax.stop_gradient(self.imperfection)
        return jax.vmap(lambda x: _free_pass(imperfection, system, x)[0], 1, 1)(inputs)


def _free_pass(imperfection, system, inputs):
    """Outputs, positions and final state of one sequence."""
    hamiltonian = system.hamiltonian

    def step(state, drive):
        state, _ = leapfrog(hamiltonian.velocity, hamiltonian.force, state, drive)
        state = imperfection.damped(state)
        return state, state[0]

    end, positions = jax.lax.scan(step, rest_state(system, inputs), system.drive(inputs))
    return system.readout(positions, inputs), positions, end


@eqx.filter_custom_vjp
def _respond(system_and_inputs, machine):
    return _free_pass(machine.imperfection, *system_and_inputs)[0]


@_respond.def_fwd
def _forwards(_, system_and_inputs, machine):
    outputs, positions, end = _free_pass(machine.imperfection, *system_and_inputs)
    return outputs, (positions, end)


@_respond.def_bwd
def _backwards(residuals, outputs_grad, _, system_and_inputs, machine):
    """The gradient of one scalar: the traces of the two echoes, the positions and the nudges are held fixed."""
    (positions, end), (system, inputs) = residuals, system_and_inputs
    imperfection = machine.imperfection
    size = jnp.maximum(jnp.max(jnp.abs(positions)), jnp.max(jnp.abs(end[1])))
    (nudges,) = jax.vjp(lambda x: system.readout(x, inputs), positions)[1](outputs_grad)
    amplitude = relative_amplitude(machine.epsilon, size, jnp.sum(nudges**2, axis=0), jnp.sum(nudges, axis=0))
    nudges = _quantised(amplitude * nudges, imperfection.nudge_quantum)

    second = -1.0 if imperfection.asymmetry is None else -(1 - imperfection.asymmetry)
    sides = jnp.stack([jnp.ones_like(amplitude), second * jnp.ones_like(amplitude)])
    apart = amplitude * (sides[0] - sides[1])
    weight = jnp.where(apart == 0, 0, -1 / jnp.where(apart == 0, 1, apart))

    # A run that differs in any bit has other noise: no key has to reach the backward pass of a training step.
    bits = jax.lax.bitcast_convert_type(jnp.linalg.norm(outputs_grad).astype(jnp.float32), jnp.uint32)
    key = jax.random.fold_in(jax.random.PRNGKey(machine.seed), bits)
    drives = system.drive(inputs)
    echo = partial(_echo, imperfection, system.hamiltonian, end, drives, nudges, size)
    replayed, trace = jax.vmap(echo)(sides, imperfection.draws(key, system.hamiltonian, drives))
    errors = replayed - drives[None]
    trace = _quantised(trace, imperfection.readout_quantum, size)

    def response(system_and_inputs):
        system, inputs = system_and_inputs
        drives = system.drive(inputs)
        energies = jax.vmap(lambda error, trace: jax.vmap(partial(_energy, system.hamiltonian))(drives + error, trace))
        plus, minus = energies(errors, trace)
        return jnp.vdot(outputs_grad, system.readout(positions, inputs)) + weight * jnp.sum(plus - minus)

    return eqx.filter_grad(response)((system, inputs))


def _echo(imperfection, hamiltonian, end, drives, nudges, size, side, drawn):
    """The drives of one echo, nudged by `side` times the nudges, and its trace, each (time, osc)."""
    hamiltonian, drives = imperfection.drifted(hamiltonian, drawn), imperfection.replayed(drives, drawn)

    def step(state, at_step):
        drive, nudge, noise = at_step
        q, p = state
        p_before = p + side * nudge
        (q, p_after), q_half = leapfrog(hamiltonian.velocity, hamiltonian.force, (q, p_before), drive)
        state = imperfection.damped((q, p_after))
        if noise is not None:
            state = jax.tree.map(lambda x, number: x + imperfection.noise * size * number, state, noise)
        return state, (p_before, q_half, p_after)

    at_steps = (drives, nudges, drawn.get("noise"))
    _, trace = jax.lax.scan(step, imperfection.flipped(end), at_steps, reverse=True)
    return drives, trace


def _energy(hamiltonian, drive, trace):
    """Eq. 14 of one step."""
    p_before, q_half, p_after = trace
    kinetic = 0.5 * hamiltonian.kinetic(p_before) + 0.5 * hamiltonian.kinetic(p_after)
    return kinetic + hamiltonian.potential(q_half, drive)


def _quantised(x: PyTree, quantum: Strength, size: Array | None = None) -> PyTree:
    """Rounded to multiples of `quantum` times `size`, by default the largest value."""
    if quantum is None:
        return x
    step = quantum * (jnp.max(jnp.abs(x)) if size is None else size)
    return jax.tree.map(lambda x: jnp.where(step == 0, x, step * jnp.round(x / jnp.where(step == 0, 1, step))), x)


def quantum(bits: int | Array) -> Array:
    """The quantum of a signed converter of so many bits whose range is ± the size."""
    return 2.0 ** (1 - bits)
