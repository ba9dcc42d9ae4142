"""Batch normalisation, without a gain or a bias of its own, and a system whose inputs are standardised on their way in.

Legend: L steps, H features.
"""

from typing import Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

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
    """A system that sees standardised inputs. They are made where they are used, a stretch at a time, never kept."""

    system: AbstractSystem
    standardisation: Standardisation

    @property
    def hamiltonian(self):
        """The Hamiltonian of the system."""
        return self.system.hamiltonian

    def position_shape(self, drive_shape):
        """As of the system."""
        return self.system.position_shape(drive_shape)

    def drive(self, inputs):
        """Drives of the standardised inputs."""
        return self.system.drive(self.standardisation(inputs))

    def readout(self, positions, inputs):
        """Outputs of the positions and the standardised inputs."""
        return self.system.readout(positions, self.standardisation(inputs))


def standardised(system: AbstractSystem, standardisation: Standardisation | None) -> AbstractSystem:
    """The system as it is, or `Standardised` where there is a standardisation."""
    return system if standardisation is None else Standardised(system, standardisation)


class BatchNorm(eqx.Module):
    """Mean and scale of every feature, over the steps of all sequences of a batch; in inference, over past batches.

    - "batch": in training the moments of the batch at hand; in inference their running average, free of the bias that
      its start would give it. (`equinox.nn.BatchNorm` starts the variance at one and divides by the same factor, which
      leaves it too large for the first few hundred steps.)
    - "ema": the running average in both, begun with the first batch, as `equinox.nn.BatchNorm` has it. In training the
      batch at hand is part of it, and the gradient passes through that part.

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
        """What standardises the features, and the state with the moments of this batch in it."""
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
    """Mean and variance of every feature over the steps of all sequences under the axis."""
    means, variances = _moments_of_sequence(None, x)
    mean = jax.lax.pmean(means, axis_name)
    return mean, jax.lax.pmean(variances + (means - mean) ** 2, axis_name)


@batched_at_once
def _moments_of_sequence(_, x: Float[Array, "L batch H"]) -> Float[Array, "2 batch H"]:
    mean = jnp.mean(x, axis=0)
    return jnp.stack([mean, jnp.mean((x - mean[None]) ** 2, axis=0)])
