"""Uniform damping of linear oscillators, and its exact gradient by echoes.

The echo of a damped system is not its adjoint: it shrinks on the way back, where the adjoint grows (the paper's A.3.1).
But if position and momentum of an oscillator shrink alike, by r = exp(-gamma dt / 2) a step, damping is a change of
units. With F the leapfrog of linear oscillators, which is linear in state and drive,

    s_{t+1} = r F(s_t, v_t)      and      s_t = r^t x_t      give      x_{t+1} = F(x_t, r^-t v_t):

in the gauge x the oscillators are conservative, driven by r^-t v_t and read by q_t = r^t x_t. In this gauge the echo is
exact, also in discrete time, and gamma is differentiated through the two factors. In continuous time this is the
oscillator q'' + gamma q' + (A + gamma^2 / 4) q = v: A is the square of the frequency of the damped oscillation.

An echo in one gauge starts at x_L, which may be r^-L times as large as x_0, and returns to x_0 with the rounding error
of x_L. So the error grows by r^-L, long before r^-L leaves the range of the numbers. Therefore the gauge starts again
every `CHUNK` steps, from the current state. The adjoint state is scaled by the same factor there.

A machine whose echo is damped in the same way needs no gain. In the units of its echo, n steps after the flip, it
replays the drive as r^(2n + 1) v_t, nudges by a g_t as before, and multiplies the difference of the energies by
r^(-2n).
"""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..rhel.backprop import BPTT
from ..rhel.echo import RHEL, Echo, MeanAndTangent
from ..rhel.hamiltonian import flow
from ..rhel.retrace import RetraceProbe, miss
from ..rhel.stretches import scan_stretches
from ..rhel.system import AbstractLearningAlgorithm, AbstractSystem, rest_state

CHUNK = 8
"""Steps from one restart of the gauge to the next. Fewer steps keep more digits; more steps are faster."""


def respond_damped(
    algorithm: AbstractLearningAlgorithm,
    system: AbstractSystem,
    rate: Float[Array, "..."],
    inputs: Float[Array, "time *in"],
) -> Float[Array, "time *out"]:
    """Outputs, from rest, of a system whose position and momentum shrink by exp(-rate) after every step.

    `rate` (gamma dt / 2) has the shape of a position, or is one number for all, and is differentiated like any
    parameter. The drives and positions of the whole sequence are kept. `epsilon` is not used: the system is linear, and
    every size of the nudges gives the same gradient.

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
    by_echo = isinstance(algorithm, RHEL)
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
        run = (system.hamiltonian, state, drives)
        end, x = _flow_by_echo(run) if by_echo else flow(*run)
        missed = miss(*run)[None] if probe else None
        state = jax.tree.map(lambda x: x * jnp.exp(-rate * len(drives)), end)
        return state, (x * jnp.exp(-rate[None] * (steps + 1)), missed)

    _, (positions, missed) = scan_stretches(chunk, rest, system.drive(inputs), CHUNK)
    if probe:
        probe.record(jnp.max(missed))
    return system.readout(positions, inputs)


@eqx.filter_custom_vjp
def _flow_by_echo(hamiltonian_state_drives):
    """`flow`, differentiated by an echo from its end, also in the states it starts from and ends in.

    In the echo of (q, -p) the roles are exchanged: the half-difference of the momenta is the adjoint of q, and the
    half-difference of the positions the adjoint of p. It starts from the gradient of the final state, and ends with the
    gradient of the first.
    """
    return flow(*hamiltonian_state_drives)


@_flow_by_echo.def_fwd
def _forwards(_, hamiltonian_state_drives):
    end, positions = flow(*hamiltonian_state_drives)
    return (end, positions), end


@_flow_by_echo.def_bwd
def _backwards(end, gradients, _, hamiltonian_state_drives):
    hamiltonian, _, drives = hamiltonian_state_drives
    (q_grad, p_grad), positions_grad = gradients
    q, p = end
    end, halves = jax.tree.map(lambda x: x[None], ((q, p), (p_grad, q_grad)))
    echo = Echo(MeanAndTangent(hamiltonian), jnp.full(1, -0.5, q.dtype), has_matrices=False, unroll=1)
    _, (p_grad, q_grad), _, total, drives_grad = echo.stretch(end, halves, drives[:, None], positions_grad[:, None])
    return echo.hamiltonian_grad(total), (q_grad[0], p_grad[0]), drives_grad[:, 0]
