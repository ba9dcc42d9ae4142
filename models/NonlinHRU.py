"""The nonlinear Hamiltonian recurrent unit (Eq. 18): independent oscillators with a saturating force, UnICORNN-like."""

from functools import partial, reduce
from typing import Annotated, Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
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
def saturation(W: Array, q: Array, c: Array) -> Array:
    """log cosh(W q + c) / W. Its slope by q is tanh(W q + c), without the factor W / W of the chain rule.

    With that factor, the derivative of the slope by W has two large terms that cancel, and a rest of order q: at a time
    step of 1e-4 the gradient of W had a relative error of 3e-4 in float32.
    """
    return log_cosh(W * q + c) / W


@partial(saturation.defjvp, symbolic_zeros=True)
def _saturation_jvp(primals, tangents):
    (W, q, c), (W_dot, q_dot, c_dot) = primals, tangents
    value, slope = saturation(W, q, c), jnp.tanh(W * q + c)
    terms = ((q_dot, slope), (c_dot, slope / W), (W_dot, (q * slope - value) / W))
    # The echo differentiates along q alone; products with zeros would stay in its loop.
    return value, reduce(jnp.add, (dot * by for dot, by in terms if not isinstance(dot, SymbolicZero)))


@jax.custom_jvp
def saturation_contrast(W: Array, q: Array, dq: Array, c: Array) -> Array:
    """saturation(W, q + dq, c) - saturation(W, q - dq, c), to full relative precision for small dq; always finite.

    With x = W q + c and y = W dq it is 2 artanh(tanh x tanh y) / W, which overflows where both tanh round to 1. For
    large y the subtraction loses no digits, with log cosh x = |x| - log(1 + tanh |x|). The slopes use the same two
    forms. Each form takes two tanh, of arguments chosen beforehand: value and slopes together take no more.
    """
    x, y = W * q + c, W * dq
    small, a, b = _tanh_of_pair(x, y)
    product = jnp.where(small, a * b, 0)
    closed, apart = 2 * product / (1 - product), (jnp.abs(b) - jnp.abs(a)) / (1 + jnp.abs(a))
    large = jnp.where(small, 0, jnp.abs(x + y) - jnp.abs(x - y))
    return (large + jnp.log1p(jnp.where(small, closed, apart))) / W


@saturation_contrast.defjvp
def _saturation_contrast_jvp(primals, tangents):
    (W, q, dq, c), (W_dot, q_dot, dq_dot, c_dot) = primals, tangents
    value, (x, y) = saturation_contrast(W, q, dq, c), (W * q + c, W * dq)
    small, a, b = _tanh_of_pair(x, y)
    product = jnp.where(small, a * b, 0)
    scale = 2 / (1 - product**2)
    difference = jnp.where(small, scale * b * (1 - a**2), a - b)  # tanh(x + y) - tanh(x - y)
    total = jnp.where(small, scale * a * (1 - b**2), a + b)  # tanh(x + y) + tanh(x - y)
    # y total - W value is of third order in y.
    closed = scale * a * (_excess(y, b) - b**2 * (y - a * product)) - 2 * _excess(0.5 * W * value, product)
    rest = jnp.where(small, closed, y * total - W * value)
    along = q_dot + (q * W_dot + c_dot) / W
    return value, difference * along + total * dq_dot + rest / W**2 * W_dot


def _tanh_of_pair(x, y):
    """Whether y is small. Then tanh x and tanh y, which give tanh(x +- y); otherwise tanh(x + y) and tanh(x - y)."""
    small = jnp.abs(y) < 1
    return small, jnp.tanh(jnp.where(small, x, x + y)), jnp.tanh(jnp.where(small, y, x - y))


def _excess(artanh, z):
    """artanh z - z, to full relative precision also for small z, where the given artanh z is not used."""
    square = z**2
    series = z * square * (1 / 3 + square * (1 / 5 + square * (1 / 7 + square * (1 / 9 + square / 11))))
    return jnp.where(square < 1e-3, series, artanh - z)


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
        return jnp.sum(self.step * (well + saturation(self.W_diag, q, drive + self.b)))

    @override
    def kinetic_contrast(self, p, dp):
        return 2 * jnp.sum(self.step * p * dp)

    @override
    def potential_contrast(self, q, dq, drive):
        saturated = saturation_contrast(self.W_diag, q, dq, drive + self.b)
        return jnp.sum(self.step * (2 * self.alpha * q * dq + saturated))


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
