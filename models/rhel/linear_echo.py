"""The echo of a linear Hamiltonian with many steps at the same time, see `rhel.linear`."""

import equinox as eqx
import jax
import jax.numpy as jnp
from typing_extensions import override

from .batching import as_varying
from .hamiltonian import leapfrog
from .linear import (
    ROOM,
    ends_from_rest,
    linked,
    product,
    responses,
    rows_of,
    stacked,
    states_of,
    unstacked,
    with_start,
)
from .pair import MeanAndTangent
from .way_back import AbstractWayBack


class LinearEcho(AbstractWayBack):
    """The echo pair in segments. It carries the half-difference.

    The contrast of a linear Hamiltonian is bilinear: in the mean and the drive, and in the half-difference. So its sum
    over all steps needs of the trace only the moments, the sums of the products of both, for each oscillator.
    """

    pair: MeanAndTangent

    @property
    @override
    def in_segments(self):
        return True

    @override
    def begin(self, end):
        return jax.tree.map(jnp.zeros_like, end)

    @override
    def stretch(self, end, carried, drives, nudges):
        half, (q, p) = carried, end
        steps, segments, shape = len(drives) - ROOM, len(q), q.shape[2:]
        like = as_varying(jnp.zeros(shape, q.dtype), drives)
        by = responses(self.pair.hamiltonian, like, steps, segments)
        means, kicks = with_start(rows_of(drives), stacked((q, -p), 2)), rows_of(nudges)
        # The echo meets the last segment first, and in a segment the last step.
        ends = ends_from_rest(_backwards(by.kicked[:, :, -1:])[:, :, 0], kicks, segments)
        between = linked(by.links, stacked(half, 1), ends[:, :, ::-1])[:, :, ::-1]
        kicks = with_start(kicks, between[:, :, 1:])
        mean, half = _backwards(by.driven[:, :, :-1]), _backwards(by.kicked[:, :, :-1])

        drive = jnp.broadcast_to(jnp.eye(steps, steps + ROOM, dtype=q.dtype), mean[:, :1].shape)
        reached = product(
            "paki,pij->pakj", jnp.concatenate([mean, drive], axis=1), product("pib,pjb->pij", means, kicks)
        )
        moments = product("pakj,pckj->acp", reached, half).reshape(3, 2, *shape)
        hamiltonian_grad, by_half = self._read(moments)
        by_half = jnp.sum(jnp.moveaxis(by_half.reshape(2, len(half)), 1, 0)[:, :, None, None] * half, axis=1)
        first = unstacked(between[:, :, 0], shape)
        return end, first, states_of(mean[:, 0], means, shape), hamiltonian_grad, states_of(by_half, kicks, shape)

    def _read(self, moments):
        """Gradient of the Hamiltonian; and of the drives, by q and p of the half-difference, (2, *osc)."""
        pair = self.pair
        osc = (None,) * (moments.ndim - 2)
        mean = jnp.eye(3, dtype=moments.dtype)[:, None, :, *osc] * moments[:, :, None]
        half = jnp.eye(2, dtype=moments.dtype)[None, :, :, *osc] * jnp.ones_like(moments)[:, :, None]

        def gradient(mean, half):
            (q, p, drive), (dq, dp) = mean, half
            after, q_half = leapfrog(pair.velocity, pair.force, ((q, dq), (p, dp)), drive)
            trace = ((p, dp), q_half, after[1])
            return eqx.filter_grad(lambda x: pair.contrast(*x, trace))((pair.hamiltonian, drive))

        by_parameters, by_drive = jax.vmap(jax.vmap(gradient))(mean, half)
        return jax.tree.map(lambda x: -0.5 * jnp.sum(x, axis=(0, 1)), by_parameters), -0.5 * by_drive[0]


def _backwards(responses):
    """Of (osc, 2, K, K + 2): the first row and the first column belong to the last step."""
    steps = responses[..., :-ROOM][..., ::-1]
    return jnp.concatenate([steps, responses[..., -ROOM:]], axis=-1)[:, :, ::-1]
