"""The linear Hamiltonian recurrent unit (Eq. 17): independent harmonic oscillators, a leapfrog LinOSS."""

from functools import partial
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from .layer import AbstractHRULayer, init_ports
from .normalisation import standardised
from .physics.damping import respond_damped
from .rhel import RHEL, AbstractLearningAlgorithm
from .rhel.hamiltonian import AbstractHamiltonian
from .stack import HRU, HRUBlock


class LinearOscillators(AbstractHamiltonian):
    """T = p^2 / 2,  V = A q^2 / 2 - q v  for each oscillator, times its own step.

    Stable while step^2 A < 4.
    """

    linear: ClassVar[bool] = True

    A: Float[Array, " P"]
    step: Float[Array, " P"]

    def kinetic(self, p):
        """step * p^2 / 2, summed."""
        return 0.5 * jnp.sum(self.step * p**2)

    def potential(self, q, drive):
        """step * (A q^2 / 2 - q v), summed."""
        return jnp.sum(self.step * q * (0.5 * self.A * q - drive))

    def kinetic_contrast(self, p, dp):
        """2 step p dp, summed."""
        return 2 * jnp.sum(self.step * p * dp)

    def potential_contrast(self, q, dq, drive):
        """2 step dq (A q - v), summed."""
        return 2 * jnp.sum(self.step * dq * (self.A * q - drive))


class LinHRULayer(AbstractHRULayer):
    """Trainable linear unit. A >= 0 through relu, a step per oscillator in (0, 1) through the logistic function.

    A complex unit of ssm_dim oscillators is a real one of twice as many: A and step are real and shared by the two
    parts, B = [Re B; Im B] and C = [Re C, -Im C] (the sign is part of the stored C).

    With `damping`, each oscillator has a gamma >= 0, by which its position and momentum shrink: by
    exp(-gamma step / 2) in a step. See `physics.damping`. It needs RHEL or BPTT. A stored gamma below 0 counts as 0. It
    has no gradient, as an A at or below 0 has none; a gamma of exactly 0 still has one, for units that start undamped.
    """

    A: Float[Array, " ssm_dim"]
    step: Float[Array, " ssm_dim"]
    gamma: Float[Array, " ssm_dim"] | None
    B: Float[Array, "P H"]
    C: Float[Array, "H P"]
    D: Float[Array, " H"]
    learning_algorithm: AbstractLearningAlgorithm
    train_steps: bool = eqx.field(static=True)

    def __init__(
        self,
        hidden_dim: int,
        ssm_dim: int,
        *,
        complex_ssm: bool = True,
        train_steps: bool = True,
        damping: bool = False,
        learning_algorithm: AbstractLearningAlgorithm | None = None,
        key: PRNGKeyArray,
    ):
        A_key, step_key, ports_key = jax.random.split(key, 3)
        self.A = jax.random.uniform(A_key, (ssm_dim,))
        self.step = jax.random.uniform(step_key, (ssm_dim,))
        # A key of its own, so that the other parameters are those of the undamped unit.
        self.gamma = jax.random.uniform(jax.random.fold_in(key, 1), (ssm_dim,), maxval=0.1) if damping else None
        self.B, self.C, self.D = init_ports(hidden_dim, ssm_dim, copies=2 if complex_ssm else 1, key=ports_key)
        self.learning_algorithm = RHEL() if learning_algorithm is None else learning_algorithm
        self.train_steps = train_steps

    def hamiltonian(self) -> LinearOscillators:
        """A through relu, step through the logistic function, both repeated for the imaginary part."""
        A, step = jax.nn.relu(self.A), jax.nn.sigmoid(self.step)
        if not self.train_steps:
            step = jax.lax.stop_gradient(step)
        copies = self.B.shape[0] // A.shape[0]
        return LinearOscillators(A=jnp.tile(A, copies), step=jnp.tile(step, copies))

    def __call__(self, inputs, standardisation=None):
        """Outputs of the unit, from rest, to the inputs, or to what the standardisation makes of them."""
        if self.gamma is None:
            return super().__call__(inputs, standardisation)
        system = standardised(self.system(), standardisation)
        gamma = jnp.where(self.gamma >= 0, self.gamma, 0)
        gamma = jnp.tile(gamma, self.B.shape[0] // self.gamma.shape[0])
        return respond_damped(self.learning_algorithm, system, 0.5 * gamma * system.hamiltonian.step, inputs)


class LinHRUBlock(HRUBlock):
    """The shared block around a `LinHRULayer`."""

    unit: LinHRULayer


class LinHRU(HRU):
    """The shared stack of `LinHRUBlock`s. `options` are those of `models.stack.HRU`."""

    def __init__(
        self,
        hidden_dim: int,
        ssm_dim: int,
        *,
        complex_ssm=True,
        train_steps=True,
        damping=False,
        learning_algorithm=None,
        **options,
    ):
        unit = partial(
            LinHRULayer,
            hidden_dim,
            ssm_dim,
            complex_ssm=complex_ssm,
            train_steps=train_steps,
            damping=damping,
            learning_algorithm=learning_algorithm,
        )
        super().__init__(unit, hidden_dim, block=LinHRUBlock, **options)
