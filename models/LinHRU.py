"""The linear Hamiltonian recurrent unit (Eq. 17): independent harmonic oscillators, a leapfrog LinOSS."""

from functools import partial
from typing import Annotated, Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray
from typing_extensions import override

from .layer import AbstractHRULayer, Option
from .normalisation import standardised
from .physics.damping import respond_damped
from .rhel.hamiltonian import AbstractHamiltonian
from .stack import HRU, HRUBlock


class LinearOscillators(AbstractHamiltonian):
    """T = p^2 / 2,  V = A q^2 / 2 - q v  for each oscillator, times its own step.

    Stable while step^2 A < 4.
    """

    linear: ClassVar[bool] = True

    A: Float[Array, "*osc"]
    step: Float[Array, "*osc"]

    @override
    def kinetic(self, p):
        return 0.5 * jnp.sum(self.step * p**2)

    @override
    def potential(self, q, drive):
        return jnp.sum(self.step * q * (0.5 * self.A * q - drive))

    @override
    def kinetic_contrast(self, p, dp):
        return 2 * jnp.sum(self.step * p * dp)

    @override
    def potential_contrast(self, q, dq, drive):
        return 2 * jnp.sum(self.step * dq * (self.A * q - drive))


class LinHRULayer(AbstractHRULayer):
    """Trainable linear unit. A >= 0 through relu, a step per oscillator in (0, 1) through the logistic function.

    A complex unit of ssm_dim oscillators is a real one of twice as many: A and step are real and shared by the two
    parts, B = [Re B; Im B] and C = [Re C, -Im C] (the sign is part of the stored C).

    With `damping`, each oscillator has a gamma >= 0, by which its position and momentum shrink: by
    exp(-gamma step / 2) in a step. See `physics.damping`. A stored gamma below 0 counts as 0. It has no gradient, as an
    A at or below 0 has none; a gamma of exactly 0 still has one, for units that start undamped.

    The published draws of A and step give first periods of 8 to some hundred steps. With `shortest_period` and
    `longest_period`, in steps, the oscillators have first periods in equal ratios between the two, the longest first:
    A = 1 and step = 2 sin(pi / period). Raises `ValueError` for one without the other, and for a wrong order.
    """

    A: Float[Array, " ssm_dim"]
    step: Float[Array, " ssm_dim"]
    gamma: Float[Array, " ssm_dim"] | None

    def __init__(
        self,
        hidden_dim: int,
        ssm_dim: int,
        *,
        complex_ssm: Annotated[bool, Option("complex oscillators: two real ones with one A and one step")] = True,
        damping: Annotated[bool, Option("a damping for each oscillator", algorithms=("RHEL", "BPTT"))] = False,
        # Below 6 steps, step = 2 sin(pi / period) is above 1.
        shortest_period: Annotated[float, Option("shortest first period, in steps", above=6)] = 0.0,
        longest_period: Annotated[float, Option("longest first period, in steps", above=6)] = 0.0,
        key: PRNGKeyArray,
        **common: Any,
    ):
        A_key, step_key, ports_key = jax.random.split(key, 3)
        super().__init__(hidden_dim, ssm_dim, copies=2 if complex_ssm else 1, key=ports_key, **common)
        if shortest_period or longest_period:
            periods = _spread_periods(ssm_dim, shortest_period, longest_period)
            step = 2 * np.sin(np.pi / periods)
            self.A, self.step = jnp.ones(ssm_dim), jnp.asarray(np.log(step) - np.log1p(-step), float)
        else:
            self.A = jax.random.uniform(A_key, (ssm_dim,))
            self.step = jax.random.uniform(step_key, (ssm_dim,))
        # gamma has its own key, so that damping leaves the initial values of the other parameters as they are.
        self.gamma = jax.random.uniform(jax.random.fold_in(key, 1), (ssm_dim,), maxval=0.1) if damping else None

    @override
    def hamiltonian(self) -> LinearOscillators:
        A, step = jax.nn.relu(self.A), self.trainable(jax.nn.sigmoid(self.step))
        return LinearOscillators(A=self._for_both_parts(A), step=self._for_both_parts(step))

    @override
    def damping_rate(self):
        if self.gamma is None:
            return None
        gamma = self._for_both_parts(jnp.where(self.gamma >= 0, self.gamma, 0))
        return 0.5 * gamma * self.hamiltonian().step

    @override
    def __call__(self, inputs, standardisation=None):
        rate = self.damping_rate()
        if rate is None:
            return super().__call__(inputs, standardisation)
        return respond_damped(self.learning_algorithm, standardised(self.system(), standardisation), rate, inputs)

    def _for_both_parts(self, x: Float[Array, " ssm_dim"]) -> Float[Array, " P"]:
        """Repeated for the imaginary part, if the unit is complex."""
        return jnp.tile(x, self.B.shape[0] // x.shape[0])


def _spread_periods(number: int, shortest: float, longest: float) -> Float[np.ndarray, " number"]:
    """Periods in equal ratios, the longest first; a single one is the longest."""
    given = f"shortest_period is {shortest:g} and longest_period {longest:g}"
    if not (shortest and longest):
        raise ValueError(f"{given}: give both, or none for the published draws")
    if not 6 < shortest <= longest:
        raise ValueError(f"{given}: they must be above 6 and in this order")
    return np.geomspace(longest, shortest, number)


LinHRU, LinHRUBlock = partial(HRU, LinHRULayer), HRUBlock
