"""Small oscillations of a Hamiltonian: the frequencies and periods of its leapfrog near a position of rest."""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..rhel.hamiltonian import AbstractHamiltonian
from ..rhel.requirements import require_admissible
from ..rhel.system import BareSystem

_ITERATIONS, _HALVINGS = 100, 40


class Oscillators(NamedTuple):
    """Small oscillations, one number for each. Times count the steps of the series.

    - `frequency`: cycles per step, from 0 to 1/2.
    - `period`: steps per cycle, 1 / frequency. Infinite for a frequency of 0.
    - `time_constant`: steps in which the amplitude falls to 1/e. Infinite without friction. Negative: the amplitude
      grows, because the position of rest or the leapfrog is unstable.
    """

    frequency: Float[np.ndarray, " modes"]
    period: Float[np.ndarray, " modes"]
    time_constant: Float[np.ndarray, " modes"]


def small_oscillations(
    hamiltonian: AbstractHamiltonian,
    drive: Float[Array | np.ndarray, "*in"],
    *,
    n_osc: int | None = None,
    damping_rate: Float[Array | np.ndarray, "..."] | float = 0.0,
) -> Oscillators:
    """The small oscillations under a constant drive, around the position of rest that is reached from q = 0.

    With the second derivatives M of `kinetic` at p = 0 and K of `potential` at rest, both with the time step folded in,
    a leapfrog step near rest has the eigenvalues exp(+-i w), 2 sin(w / 2) = sqrt(eigenvalue of M K). This is the
    frequency of the discrete motion, exact for a linear system at any time step. In a nonlinear system a larger
    amplitude has another frequency.

    Independent oscillators keep their order. The normal modes of coupled ones have rising frequencies. `n_osc` as for
    `evolve`. `damping_rate`: the rate per step at which position and momentum of each oscillator shrink, see
    `physics.damping`; different rates need independent oscillators. All arithmetic is in float64.

    Raises `ValueError` if the energies cannot be evaluated, if no position of rest is found, and for different damping
    rates of coupled oscillators.
    """
    with jax.enable_x64(True):
        hamiltonian = jax.tree.map(lambda x: jnp.asarray(x, float) if eqx.is_inexact_array(x) else x, hamiltonian)
        constant = jnp.asarray(drive, float)
        require_admissible(BareSystem(hamiltonian, n_osc), constant[None])
        shape = constant.shape if n_osc is None else (n_osc,)
        K, M = (np.asarray(x) for x in _curvatures(hamiltonian, _rest(hamiltonian, constant, shape), constant))
    rate = np.broadcast_to(np.asarray(damping_rate, float), shape).ravel()
    if _is_diagonal(K) and _is_diagonal(M):
        squares = np.diag(M) * np.diag(K)
    elif np.any(rate != rate[0]):
        raise ValueError(
            f"{type(hamiltonian).__name__}: coupled oscillators with different damping rates have no modes"
        )
    else:
        squares = _eigenvalues(M, K)
    w = 2 * np.arcsin(np.sqrt(squares.astype(complex)) / 2)
    frequency = np.abs(np.real(w)) / (2 * np.pi)
    with np.errstate(divide="ignore"):
        return Oscillators(frequency, 1 / frequency, 1 / (rate - np.abs(np.imag(w))))


def _rest(hamiltonian, drive, shape):
    """A position without force, from q = 0 by Newton's method; a step is halved until the force is smaller."""
    q = jnp.zeros(shape)
    slope = np.asarray(_slope(hamiltonian, q, drive))
    for _ in range(_ITERATIONS):
        K = np.asarray(_curvatures(hamiltonian, q, drive)[0])
        if np.linalg.norm(slope) <= 1e-12 * np.max(np.abs(K), initial=0):
            return q
        change = np.linalg.lstsq(K, -slope)[0]
        for halvings in range(_HALVINGS):
            there = q + (0.5**halvings * change).reshape(shape)
            slope_there = np.asarray(_slope(hamiltonian, there, drive))
            if np.linalg.norm(slope_there) < np.linalg.norm(slope):
                break
        else:
            break
        q, slope = there, slope_there
    raise ValueError(
        f"{type(hamiltonian).__name__}: no position of rest near q = 0: the search ends at a force of "
        f"{np.linalg.norm(slope):.3g}. Small oscillations need a potential with a minimum"
    )


@eqx.filter_jit
def _slope(hamiltonian, q, drive):
    """dV/dq, flat."""
    return jax.grad(hamiltonian.potential)(q, drive).ravel()


@eqx.filter_jit
def _curvatures(hamiltonian, q, drive):
    """The second derivatives of the potential at q, and of the kinetic energy at 0, as matrices."""
    square = (q.size, q.size)
    K = jax.hessian(hamiltonian.potential)(q, drive).reshape(square)
    return K, jax.hessian(hamiltonian.kinetic)(jnp.zeros_like(q)).reshape(square)


def _is_diagonal(matrix):
    return not np.any(matrix - np.diag(np.diag(matrix)))


def _eigenvalues(M, K):
    """The eigenvalues of M K, rising. They are real if M has no negative eigenvalue."""
    masses, modes = np.linalg.eigh(M)
    if np.min(masses) < -1e-12 * np.max(np.abs(masses)):
        return np.sort(np.linalg.eigvals(M @ K))
    root = modes * np.sqrt(np.maximum(masses, 0))
    squares = np.linalg.eigvalsh(root.T @ K @ root)
    return np.where(np.abs(squares) < 1e-12 * np.max(np.abs(squares)), 0, squares)  # the rounding of a free motion
