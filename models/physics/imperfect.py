"""The echo on a machine that is not ideal: how each imperfection changes the gradient.

A machine has no adjoint, no kept states and no coordinates without cancellation. It runs one system three times: the
free pass, and the two echoes of `rhel.reference`, here with flaws. The machine measures the trace of each echo: the
momenta before and after each kick and the position between. The gradient is computed from the energies of the two
traces, with the nominal parameters of the machine.

Every imperfection has one number, its strength. Each draws its own random numbers, which do not depend on the other
imperfections. At strength 0 it changes no bit of any operation; in a compiled program the compiler may fuse, and so
round, differently. The ideal machine without a simulation of its flaws is `rhel.RHEL(literal=True)`.
"""

from functools import partial

import equinox as eqx
import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PRNGKeyArray, PyTree, UInt32
from typing_extensions import override

from ..rhel import reference
from ..rhel.hamiltonian import AbstractHamiltonian, State, leapfrog
from ..rhel.nudges import relative_amplitude
from ..rhel.requirements import require_linear_readout
from ..rhel.system import AbstractLearningAlgorithm, rest_state

Strength = Float[Array, "..."] | float | None
"""A number, or an array of numbers that `jax.vmap` maps over."""

DRAWN = ("noise", "drift", "replay", "recording")
"""The parts that draw random numbers. The place of a part in this list goes into its key."""


_ALLOWED = {
    "flip_amplitude": (lambda x: x > -1, "finite and above -1, so that the flip turns the momentum around"),
    "flip_phase": (lambda x: True, "finite"),
    "asymmetry": (lambda x: (x >= 0) & (x <= 1), "between 0 (both nudges alike) and 1 (the second echo has none)"),
}


def _require(what, value, allowed, range_in_words):
    """Raises `ValueError` if a value, or one of several to be mapped over, is known and not allowed."""
    if not isinstance(value, jax.core.Tracer) and not np.all(allowed(np.asarray(value))):
        raise ValueError(f"{what} must be {range_in_words}, got {value}")


class EchoImperfection(eqx.Module):
    """The strengths of all imperfections. None: the machine has no such part. 0: the part works perfectly.

    "Size" is the largest position or final momentum of the free pass of a sequence. "Drawn" means from a normal
    distribution with this standard deviation. The numbers differ if any bit of the inputs or of the incoming gradient
    differs.

    - `noise`: drawn kicks to position and momentum after every step of each echo, relative to the size. The free pass
      has no noise: its noise would be common to the echoes, and change their difference at second order.
    - `flip_amplitude`: the flip makes -(1 + x) p of the momentum p.
    - `flip_phase`: the flipped state (q, -p) is turned by this angle.
    - `drift`: drawn relative difference of every parameter between the two echoes, half of it in each.
    - `replay`: drawn errors of the drives, in each echo its own, relative to the largest drive of the sequence.
    - `recording`: the same, but common to both echoes.
    - `readout_quantum`: the trace is rounded to multiples of this part of the size.
    - `nudge_quantum`: the nudges are rounded to multiples of this part of the largest.
    - `damping`: friction. After every step, in the free pass and in the echoes, the momentum is multiplied by exp(-x).
    - `asymmetry`: the second echo is nudged by -(1 - x) instead of -1. 1: the nudges are one-sided.

    Raises `ValueError` for a strength that is not finite or negative (the two of the flip may be negative, but the flip
    must turn the momentum: `flip_amplitude` > -1), and for an asymmetry above 1. Strengths that jax is tracing are not
    checked.
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

    def __check_init__(self):
        for name, value in vars(self).items():
            if value is not None:
                allowed, in_words = _ALLOWED.get(name, (lambda x: x >= 0, "finite and at least 0"))
                _require(
                    f"the strength {name}", value, lambda x, allowed=allowed: allowed(x) & np.isfinite(x), in_words
                )

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

    def draws(
        self,
        key: PRNGKeyArray,
        hamiltonian: AbstractHamiltonian,
        drives: Float[Array, "time *in"],
        positions: Float[Array, "time *osc"],
    ) -> dict:
        """Standard normal numbers for the two echoes, stacked, by the name of the part that uses them.

        All are drawn at once, because every call of the generator takes long to compile. They are drawn in rows of the
        size of the drives, each from a key of its own, so that no part changes the numbers of another.
        """
        parameters, unravel = ravel_pytree(eqx.filter(hamiltonian, eqx.is_inexact_array))
        rows = {
            "noise": 4 * -(-positions.size // drives.size),
            "drift": -(-parameters.size // drives.size),
            "replay": 2,
            "recording": 1,
        }
        present = [name for name in DRAWN if getattr(self, name) is not None]
        keys = [(DRAWN.index(name), row) for name in present for row in range(rows[name])]
        if not keys:
            return {}
        keys = jax.vmap(lambda x: jax.random.fold_in(jax.random.fold_in(key, x[0]), x[1]))(jnp.asarray(keys))
        numbers = jax.vmap(lambda key: jax.random.normal(key, drives.shape, drives.dtype))(keys)
        drawn: dict[str, PyTree] = dict(
            zip(present, jnp.split(numbers, np.cumsum([rows[name] for name in present])[:-1]), strict=True)
        )
        if "noise" in drawn:
            noise = drawn["noise"].reshape(4, -1)[:, : positions.size].reshape(4, *positions.shape)
            drawn["noise"] = (noise[:2], noise[2:])
        if "drift" in drawn:
            one = unravel(drawn["drift"].ravel()[: parameters.size].astype(parameters.dtype))
            drawn["drift"] = jax.tree.map(lambda x: jnp.stack([x, -x]), one)
        if "recording" in drawn:
            drawn["recording"] = jnp.concatenate([drawn["recording"], drawn["recording"]])
        return drawn

    def drifted(self, hamiltonian: AbstractHamiltonian, drawn: dict) -> AbstractHamiltonian:
        """The system that an echo runs in."""
        if self.drift is None:
            return hamiltonian
        parameters, static = eqx.partition(hamiltonian, eqx.is_inexact_array)
        half = 0.5 * jnp.asarray(self.drift)
        moved = jax.tree.map(lambda x, number: x * (1 + half * number), parameters, drawn["drift"])
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
    - `seed`: a whole number, for the random numbers.

    Without imperfections it is RHEL(epsilon, literal=True) over one stretch, to rounding. The outputs are those of
    `ImperfectBPTT` with the same imperfection. The strengths are not trained. Seeds, epsilons and strengths can be
    mapped over by `jax.vmap`, inside or outside of a gradient.

    Raises `ValueError` for an epsilon that is not positive and finite, a seed that is no whole number, and a readout
    that is not linear in the positions.
    """

    imperfection: EchoImperfection = EchoImperfection()
    epsilon: Float[Array, "..."] | float = 1e-2
    seed: Array | int = 0

    def __check_init__(self):
        _require("epsilon", self.epsilon, lambda x: (x > 0) & np.isfinite(x), "positive and finite")
        _require("the seed", self.seed, lambda x: np.issubdtype(x.dtype, np.integer), "a whole number")

    @override
    def respond(self, system, inputs):
        require_linear_readout(system, inputs[:, 0])
        machine = jax.lax.stop_gradient(self)
        return jax.vmap(lambda x: _respond((system, x), machine), 1, 1)(inputs)


class ImperfectBPTT(AbstractLearningAlgorithm):
    """The comparison for `ImperfectRHEL`: reverse mode of its free pass, friction included."""

    imperfection: EchoImperfection = EchoImperfection()

    @override
    def respond(self, system, inputs):
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
    return _tied(machine, _free_pass(machine.imperfection, *system_and_inputs)[0])


@_respond.def_fwd
def _forwards(_, system_and_inputs, machine):
    outputs, positions, end = _free_pass(machine.imperfection, *system_and_inputs)
    return _tied(machine, outputs), (positions, end)


def _tied(machine, outputs):
    """The outputs, as a function of every array of the machine, although no bit of them depends on most.

    Under a vmap over seeds the way back differs from seed to seed. If the outputs did not depend on the seed, jax would
    hand the sum of all incoming gradients to the way back of each seed.
    """
    for leaf in jax.tree.leaves(eqx.filter(machine, eqx.is_array)):
        outputs = jnp.where(leaf == leaf, outputs, outputs)
    return outputs


@_respond.def_bwd
def _backwards(residuals, outputs_grad, _, system_and_inputs, machine):
    """The gradient of one scalar: the traces of the two echoes, the positions and the nudges are held fixed."""
    (positions, end), (system, inputs) = residuals, system_and_inputs
    imperfection = machine.imperfection
    key = _key(machine.seed, (inputs, outputs_grad))
    size = jnp.maximum(jnp.max(jnp.abs(positions)), jnp.max(jnp.abs(end[1])))
    largest = jnp.max(jnp.abs(outputs_grad))
    largest = jnp.where(largest == 0, 1, largest)
    (nudges,) = jax.vjp(lambda x: system.readout(x, inputs), positions)[1](outputs_grad / largest)
    amplitude = relative_amplitude(machine.epsilon, size, jnp.sum(nudges**2, axis=0), jnp.sum(nudges, axis=0))
    nudges = _quantised(amplitude * nudges, imperfection.nudge_quantum)

    second = -1.0 if imperfection.asymmetry is None else -(1 - imperfection.asymmetry)
    sides = jnp.stack([jnp.ones_like(amplitude), second * jnp.ones_like(amplitude)])
    apart = amplitude * (sides[0] - sides[1])
    weight = jnp.where(apart == 0, 0, -largest / jnp.where(apart == 0, 1, apart))

    drives = system.drive(inputs)
    echo = partial(_echo, imperfection, system.hamiltonian, end, drives, nudges, size)
    replayed, trace = jax.vmap(echo)(sides, imperfection.draws(key, system.hamiltonian, drives, positions))
    errors = replayed - drives[None]
    trace = _quantised(trace, imperfection.readout_quantum, size)

    def response(system_and_inputs):
        system, inputs = system_and_inputs
        drives = system.drive(inputs)
        plus, minus = jax.vmap(partial(reference.energy, system.hamiltonian))(drives[None] + errors, trace)
        return jnp.vdot(outputs_grad, system.readout(positions, inputs)) + weight * (plus - minus)

    return eqx.filter_grad(response)((system, inputs))


def _key(seed: Array | int, tree: PyTree) -> PRNGKeyArray:
    """A key for the backward pass of these arrays, so that no key has to reach it. It differs if any bit of them does.

    Each word of 32 bits is mixed with its place, twice over and differently, and the mixed words are added up.
    """
    words = [jax.lax.bitcast_convert_type(x, jnp.uint32).ravel() for x in jax.tree.leaves(tree)]
    words = jnp.concatenate(words)
    places = jnp.arange(len(words), dtype=jnp.uint32)
    key = jax.random.PRNGKey(seed)
    for salt in (0x9E3779B9, 0x7F4A7C15):
        key = jax.random.fold_in(key, jnp.sum(_mixed(words ^ _mixed(places + jnp.uint32(salt))), dtype=jnp.uint32))
    return key


def _mixed(x: UInt32[Array, " n"]) -> UInt32[Array, " n"]:
    """Every bit of the result depends on every bit of the word: the finaliser of MurmurHash3."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)


def _echo(imperfection, hamiltonian, end, drives, nudges, size, side, drawn):
    """The drives of one echo, nudged by `side` times the nudges, and its trace."""

    def disturb(state, noise):
        state = imperfection.damped(state)
        if noise is None:
            return state
        return jax.tree.map(lambda x, number: x + imperfection.noise * size * number, state, noise)

    hamiltonian, drives = imperfection.drifted(hamiltonian, drawn), imperfection.replayed(drives, drawn)
    start, noise = imperfection.flipped(end), drawn.get("noise")
    _, (_, trace) = reference.echo(hamiltonian, start, drives, side * nudges, disturb, noise)
    return drives, trace


def _quantised(x: PyTree, quantum: Strength, size: Array | None = None) -> PyTree:
    """Rounded to multiples of `quantum` times `size`, by default the largest value."""
    if quantum is None:
        return x
    step = quantum * (jnp.max(jnp.abs(x)) if size is None else size)
    return jax.tree.map(lambda x: jnp.where(step == 0, x, step * jnp.round(x / jnp.where(step == 0, 1, step))), x)


def quantum(bits: float | np.floating | Array) -> Array:
    """The quantum of a signed converter of so many bits whose range is ± the size."""
    return jnp.asarray(2.0 ** (1 - bits))
