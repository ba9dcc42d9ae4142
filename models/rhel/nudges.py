"""The size of finite nudges, chosen relative to the state of every sequence.

The size changes only the error of the gradient: the error of the method grows as the square of the size, the rounding
error as its inverse. The default of `rhel.RHEL`, infinitesimal nudges, needs none of this.
"""

from functools import partial

import jax
import jax.numpy as jnp

from .stretches import scan_stretches


def per_sequence(operation):
    """The operation on (time, batch, ..) and one number for every sequence, (batch,)."""
    return jax.vmap(operation, (1, 0), 1)


def relative_amplitude(epsilon, size, squares, total):
    """The factor that makes nudges as large as `epsilon` times the state of a sequence.

    `size`: the largest position or momentum of the sequence, `squares` and `total` (osc): the sums over time of the
    nudges, squared and plain. All nudges together move the state by the root of `squares` if they are uncorrelated in
    time, and by `total` if they have one sign, as the nudges of a mean over time have; the larger of the two counts. A
    state at rest counts as 1. The factor is 0 if all nudges are 0, and NaN if it is outside the range of the numbers.
    """
    together = jnp.max(jnp.maximum(jnp.sqrt(squares), jnp.abs(total)))
    amplitude = epsilon * jnp.where(size > 0, size, 1) / jnp.where(together == 0, 1, together)
    return jnp.where(together == 0, 0, jnp.where(amplitude == 0, jnp.nan, amplitude))


def finite_nudges(positions_grad, steps, size, epsilon, stretch):
    """The function of inputs and incoming gradient that gives the nudges, and the weight (batch,) of the contrast.

    The largest incoming gradient of a sequence is divided out first, so that its scale cancels. It and the amplitude
    are constants of a second derivative: the gradient depends on them by O(epsilon^2) only.
    """
    largest = jax.vmap(lambda x: jnp.max(jnp.abs(x)), 1)(steps[1])
    largest = jnp.where(largest == 0, 1, largest)

    def unscaled(inputs, outputs_grad):
        return positions_grad(inputs, per_sequence(jnp.divide)(outputs_grad, largest))

    def add(sums, steps):
        nudges = unscaled(*steps)
        return jax.tree.map(lambda x, y: x + jnp.sum(y, axis=0), sums, (nudges**2, nudges)), None

    zero = jnp.zeros_like(positions_grad(*(x[:1] for x in steps))[0])
    (squares, total), _ = scan_stretches(add, (zero, zero), steps, stretch)
    amplitude = jax.vmap(partial(relative_amplitude, epsilon))(size, squares, total)
    largest, amplitude = jax.lax.stop_gradient((largest, amplitude))
    weight = jnp.where(amplitude == 0, 0, -0.5 * largest / jnp.where(amplitude == 0, 1, amplitude))
    return lambda *steps: per_sequence(jnp.multiply)(unscaled(*steps), amplitude), weight
