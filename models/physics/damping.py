"""Uniform damping of linear oscillators, and its exact gradient by echoes.

The echo of a damped system is not its adjoint: it loses what the way back should regain (the paper's A.3.1). But where
position and momentum of an oscillator shrink alike, by r = exp(-gamma dt / 2) a step, damping is a matter of units.
With F the leapfrog of linear oscillators, which is linear in state and drive,

    s_{t+1} = r F(s_t, v_t)      and      s_t = r^t x_t      give      x_{t+1} = F(x_t, r^-t v_t):

in the gauge x the oscillators are conservative, driven by r^-t v_t and read by q_t = r^t x_t. There the echo is exact,
in discrete time too, and gamma is differentiated through the two factors. In continuous time this is the oscillator
q'' + gamma q' + (A + gamma^2 / 4) q = v: A is the square of the frequency that the damped oscillator rings at.

Within one gauge an echo that begins at x_L, r^-L times as large as x_0 may be, comes back to x_0 with the rounding of
x_L: r^-L times one rounding is lost, long before r^-L leaves the range of the numbers. So the gauge begins anew every
`CHUNK` steps, with the state reached, and only a chunk counts. The adjoint state passes on by the same factor.

A machine that is damped alike on its way back needs no gain for this. In the units of its echo, n steps after the flip,
it is the same to replay the drive as r^(2n + 1) v_t, to nudge by a g_t as ever, and to weigh the difference of the
energies by r^(-2n).
"""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..rhel.backprop import BPTT
from ..rhel.echo import RHEL, Echo, MeanAndTangent
from ..rhel.hamiltonian import AbstractHamiltonian, State, flow
from ..rhel.retrace import RetraceProbe, miss
from ..rhel.stretches import scan_stretches
from ..rhel.system import AbstractLearningAlgorithm, AbstractSystem, rest_state

CHUNK = 8
"""Steps from one restart of the gauge to the next: few, for the digits; more than a few, for speed."""


def respond_damped(
    algorithm: AbstractLearningAlgorithm,
    system: AbstractSystem,
    rate: Float[Array, " osc"],
    inputs: Float[Array, "time in"],
) -> Float[Array, "time out"]:
    """Outputs, from rest, of a system whose position and momentum shrink by exp(-rate) after every step.

    `rate` (gamma dt / 2) has the shape of a position, or is one number for all, and is differentiated like any
    parameter. Of the sequence the drives and positions are kept. The echoes are carried as mean and half-difference and
    the system is linear, so that `epsilon` has no part in it.

    Raises `ValueError` for an empty sequence, a nonlinear system, and algorithms other than BPTT and RHEL as mean and
    half-difference; `RuntimeError` where exp(rate * CHUNK) would cost more than half of the digits.
    """
    if len(inputs) == 0:
        raise ValueError("the sequence is empty: it has no steps")
    if not system.hamiltonian.linear:
        raise ValueError(f"the gauge of damping needs a linear system; {type(system.hamiltonian).__name__} is not")
    probe = algorithm if isinstance(algorithm, RetraceProbe) else None
    if not (probe or isinstance(algorithm, BPTT) or (isinstance(algorithm, RHEL) and not algorithm.literal)):
        raise ValueError(f"damping is differentiated by RHEL (not literal) and BPTT, not by {algorithm}")
    carry_on = _flow_by_echo if isinstance(algorithm, RHEL) else flow
    limit = -0.5 * math.log(float(jnp.finfo(rate.dtype).eps)) / CHUNK
    rate = eqx.error_if(
        rate,
        rate > limit,
        f"gamma * step is above {2 * limit:.3g}: so strong a damping leaves less than half of the digits of "
        f"{rate.dtype}; bound the damping, or take a smaller step",
    )
    rest = rest_state(system, inputs)
    rate = jnp.broadcast_to(rate, rest[0].shape)

    def chunk(state, drives):
        steps = jnp.arange(len(drives), dtype=rate.dtype).reshape(-1, *[1] * rate.ndim)
        drives = drives * jnp.exp(rate[None] * steps)
        end, x = carry_on(system.hamiltonian, state, drives)
        missed = miss(system.hamiltonian, state, drives)[None] if probe else None
        state = jax.tree.map(lambda x: x * jnp.exp(-rate * len(drives)), end)
        return state, (x * jnp.exp(-rate[None] * (steps + 1)), missed)

    _, (positions, missed) = scan_stretches(chunk, rest, system.drive(inputs), CHUNK)
    if probe:
        probe.record(jnp.max(missed))
    return system.readout(positions, inputs)


def _flow_by_echo(hamiltonian: AbstractHamiltonian, state: State, drives: Array) -> tuple[State, Array]:
    """`flow`, differentiated by an echo from its end, also in the states it starts from and ends in.

    The echo of (q, -p) moves with the roles exchanged: the half-difference of its momenta is the adjoint of q, that of
    its positions the adjoint of p. So it begins with the gradient of the final state, and ends with that of the first.
    """
    return _flow((hamiltonian, state, drives))


@eqx.filter_custom_vjp
def _flow(hamiltonian_state_drives):
    return flow(*hamiltonian_state_drives)


@_flow.def_fwd
def _forwards(_, hamiltonian_state_drives):
    end, positions = flow(*hamiltonian_state_drives)
    return (end, positions), end


@_flow.def_bwd
def _backwards(end, gradients, _, hamiltonian_state_drives):
    hamiltonian, _, drives = hamiltonian_state_drives
    (q_grad, p_grad), positions_grad = gradients
    q, p = end
    moving = jax.tree.map(lambda x: x[None], ((q, p_grad), (-p, q_grad)))
    echo = Echo(MeanAndTangent(hamiltonian), jnp.full(1, -0.5, q.dtype), "sequential")
    ((_, p_grad), (_, q_grad)), _, hamiltonian_grad, drives_grad = echo.stretch(
        moving, drives[:, None], positions_grad[:, None]
    )
    return hamiltonian_grad, (q_grad[0], p_grad[0]), drives_grad[:, 0]
