"""Batch normalisation without gain and bias, and a system that standardises its inputs.

Legend: L steps, H features.
"""

from typing import Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
from typing_extensions import override

from .rhel.batching import batched_at_once
from .rhel.system import AbstractSystem


class Standardisation(NamedTuple):
    """The map x -> (x - mean) * scale of every feature."""

    mean: Float[Array, " H"]
    scale: Float[Array, " H"]

    def __call__(self, x: Float[Array, "L H"]) -> Float[Array, "L H"]:
        """The standardised features of every step."""
        return _standardise(self, x)


@batched_at_once
def _standardise(standardisation, x):
    return (x - standardisation.mean[None, None]) * standardisation.scale[None, None]


class Standardised(AbstractSystem):
    """A system with standardised inputs. It computes them a stretch at a time, and never keeps them all."""

    system: AbstractSystem
    standardisation: Standardisation

    @property
    @override
    def hamiltonian(self):
        return self.system.hamiltonian

    @override
    def position_shape(self, drive_shape):
        return self.system.position_shape(drive_shape)

    @override
    def drive(self, inputs):
        return self.system.drive(self.standardisation(inputs))

    @override
    def readout(self, positions, inputs):
        return self.system.readout(positions, self.standardisation(inputs))


def standardised(system: AbstractSystem, standardisation: Standardisation | None) -> AbstractSystem:
    """The system with standardised inputs, or the same system if there is no standardisation."""
    return system if standardisation is None else Standardised(system, standardisation)


class BatchNorm(eqx.Module):
    """Mean and scale of every feature, over the steps of all sequences of a batch; in inference, over past batches.

    - "batch": in training the moments of the current batch; in inference their running average, corrected for its
      start at zero. (`equinox.nn.BatchNorm` starts the variance at one and divides by the same factor, which leaves it
      too large for the first few hundred steps.)
    - "ema": the running average in training and in inference, started with the first batch, as in
      `equinox.nn.BatchNorm`. In training it includes the current batch, and the gradient passes through this part.

    In inference before any training, mean 0 and variance 1.
    """

    inference: bool
    count: eqx.nn.StateIndex
    moments: eqx.nn.StateIndex
    mode: Literal["ema", "batch"] = eqx.field(static=True)
    axis_name: str = eqx.field(static=True)
    momentum: float = eqx.field(static=True)
    eps: float = eqx.field(static=True)

    def __init__(
        self,
        size: int,
        *,
        mode: Literal["ema", "batch"] = "batch",
        axis_name: str = "batch",
        momentum: float = 0.99,
        eps: float = 1e-5,
    ):
        self.inference = False
        self.count = eqx.nn.StateIndex(jnp.array(0))
        self.moments = eqx.nn.StateIndex((jnp.zeros(size), jnp.zeros(size)))
        self.mode, self.axis_name, self.momentum, self.eps = mode, axis_name, momentum, eps

    def __call__(self, x: Float[Array, "L H"], state: eqx.nn.State) -> tuple[Standardisation, eqx.nn.State]:
        """The standardisation of the features, and the state updated with the moments of this batch."""
        count, past = state.get(self.count), state.get(self.moments)
        if self.inference:
            known = 1 - self.momentum**count if self.mode == "batch" else 1
            mean, variance = (moment / known for moment in past)
            variance = jnp.where(count == 0, 1, variance)
            return self._standardisation(jnp.where(count == 0, 0, mean), variance), state
        now = _moments(x, self.axis_name)
        momentum = jnp.where(count == 0, 0, self.momentum) if self.mode == "ema" else self.momentum
        running = tuple(momentum * old + (1 - momentum) * new for old, new in zip(past, now, strict=True))
        state = state.set(self.count, count + 1).set(self.moments, jax.lax.stop_gradient(running))
        return self._standardisation(*(running if self.mode == "ema" else now)), state

    def _standardisation(self, mean, variance):
        return Standardisation(mean, jax.lax.rsqrt(variance + self.eps))


def _moments(x, axis_name):
    """Mean and variance of every feature over the steps of all sequences under the axis.

    Inside `jax.shard_map`, over those of all devices.
    """

    def average(x):
        x = jax.lax.pmean(x, axis_name)
        # Not in one `pmean`: its derivative would send an array of the size of the batch to the other devices.
        devices = jax.sharding.get_abstract_mesh().manual_axes
        return jax.lax.pmean(x, devices) if devices else x

    means, variances = _moments_of_sequence(None, x)
    mean = average(means)
    return mean, average(variances + (means - mean) ** 2)


@batched_at_once
def _moments_of_sequence(_, x: Float[Array, "L batch H"]) -> Float[Array, "2 batch H"]:
    mean = jnp.mean(x, axis=0)
    return jnp.stack([mean, jnp.mean((x - mean[None]) ** 2, axis=0)])
