"""The nonlinear Hamiltonian recurrent unit (Eq. 18): independent oscillators with a saturating force, UnICORNN-like."""

from functools import partial
from typing import Annotated, Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray
from typing_extensions import override

from .layer import AbstractHRULayer, Option
from .rhel.hamiltonian import AbstractHamiltonian
from .stack import HRU, HRUBlock


@jax.custom_jvp
def log_cosh(x: Array) -> Array:
    """log cosh x, finite for every finite x; its slope is tanh x to full relative precision, also near zero."""
    return jnp.logaddexp(x, -x) - jnp.asarray(jnp.log(2.0), x.dtype)


log_cosh.defjvps(lambda x_dot, _, x: x_dot * jnp.tanh(x))


@jax.custom_jvp
def log_cosh_contrast(x: Array, y: Array) -> Array:
    """log cosh(x + y) - log cosh(x - y), to full relative precision for small y and finite for every y.

    It is 2 artanh(tanh x tanh y), which overflows where both tanh round to 1. For large y the subtraction loses no
    digits, with log cosh x = |x| - log(1 + tanh |x|). The slopes, tanh(x + y) -+ tanh(x - y), use the same two forms.
    """
    product, small = jnp.tanh(x) * jnp.tanh(y), jnp.abs(y) < 1
    ahead, behind = jnp.abs(x + y), jnp.abs(x - y)
    tanh_ahead, tanh_behind = jnp.tanh(ahead), jnp.tanh(behind)
    closed = 2 * product / (1 - jnp.where(small, product, 0))
    apart = (tanh_behind - tanh_ahead) / (1 + tanh_ahead)
    return jnp.where(small, 0, ahead - behind) + jnp.log1p(jnp.where(small, closed, apart))


@log_cosh_contrast.defjvp
def _log_cosh_contrast_jvp(primals, tangents):
    (x, y), (x_dot, y_dot) = primals, tangents
    tanh_x, tanh_y, small = jnp.tanh(x), jnp.tanh(y), jnp.abs(y) < 1
    ahead, behind = jnp.tanh(x + y), jnp.tanh(x - y)
    scale = 2 / (1 - jnp.where(small, tanh_x * tanh_y, 0) ** 2)
    x_slope = jnp.where(small, scale * tanh_y * (1 - tanh_x**2), ahead - behind)
    y_slope = jnp.where(small, scale * tanh_x * (1 - tanh_y**2), ahead + behind)
    return log_cosh_contrast(x, y), x_slope * x_dot + y_slope * y_dot


class SaturatingOscillators(AbstractHamiltonian):
    """T = p^2 / 2,  V = alpha q^2 / 2 + log cosh(W q + v + b) / W  for each oscillator, times its own step.

    W is the paper's A (the published code's W_diag). Stable while step^2 (alpha + W) < 4.
    """

    W_diag: Float[Array, "*osc"]
    b: Float[Array, "*osc"]
    alpha: Float[Array, "*osc"]
    step: Float[Array, "*osc"]

    @override
    def kinetic(self, p):
        return 0.5 * jnp.sum(self.step * p**2)

    @override
    def potential(self, q, drive):
        well = 0.5 * self.alpha * q**2
        return jnp.sum(self.step * (well + log_cosh(self.W_diag * q + drive + self.b) / self.W_diag))

    @override
    def kinetic_contrast(self, p, dp):
        return 2 * jnp.sum(self.step * p * dp)

    @override
    def potential_contrast(self, q, dq, drive):
        saturated = log_cosh_contrast(self.W_diag * q + drive + self.b, self.W_diag * dq)
        return jnp.sum(self.step * (2 * self.alpha * q * dq + saturated / self.W_diag))


def _inverse_softplus(x):
    return jnp.log(jnp.expm1(x))


def _logit(x):
    return jnp.log(x) - jnp.log1p(-x)


class NonlinHRULayer(AbstractHRULayer):
    """Trainable nonlinear unit. W_diag, alpha > 0 through softplus, the step in (0, 1) through the logistic function.

    The step is one number for all oscillators, `step_init` at first. With `gate` each oscillator's step is multiplied
    by sigmoid(c), c of its own: the gate of the published code and of UnICORNN, which Eq. 18 does not have.
    """

    W_diag: Float[Array, " P"]
    b: Float[Array, " P"]
    c: Float[Array, " P"] | None
    alpha: Float[Array, " P"]
    step: Float[Array, ""]

    def __init__(
        self,
        hidden_dim: int,
        ssm_dim: int,
        *,
        step_init: Annotated[float, Option("first time step of all oscillators", above=0, below=1)] = 0.1,
        gate: Annotated[bool, Option("a gate for each oscillator, which multiplies its time step")] = False,
        key: PRNGKeyArray,
        **common: Any,
    ):
        if not 0 < step_init < 1:
            raise ValueError(f"step_init must be a number between 0 and 1, got {step_init!r}")
        W_key, c_key, alpha_key, ports_key = jax.random.split(key, 4)
        super().__init__(hidden_dim, ssm_dim, key=ports_key, **common)
        self.W_diag = _inverse_softplus(jax.random.uniform(W_key, (ssm_dim,), minval=0.5, maxval=1))
        self.b = jnp.zeros(ssm_dim)
        self.c = jax.random.uniform(c_key, (ssm_dim,), minval=-1, maxval=1) if gate else None
        self.alpha = _inverse_softplus(jax.random.uniform(alpha_key, (ssm_dim,), minval=0.1, maxval=1))
        self.step = _logit(jnp.asarray(step_init))

    @override
    def hamiltonian(self) -> SaturatingOscillators:
        step = self.trainable(jax.nn.sigmoid(self.step))
        gate = jnp.ones_like(self.b) if self.c is None else jax.nn.sigmoid(self.c)
        return SaturatingOscillators(
            W_diag=jax.nn.softplus(self.W_diag), b=self.b, alpha=jax.nn.softplus(self.alpha), step=step * gate
        )


NonlinHRU, NonlinHRUBlock = partial(HRU, NonlinHRULayer), HRUBlock
