"""The echo against reverse mode over drawn sizes, steps, lengths and incoming gradients."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from systems import assert_close, linear, saturating

from models import evolve
from models.rhel import BPTT, RHEL

strict = settings(
    max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@eqx.filter_jit
@eqx.filter_grad
def gradient(hamiltonian_and_drives, incoming, algorithm):
    return jnp.vdot(evolve(*hamiltonian_and_drives, learning_algorithm=algorithm), incoming)


positions = eqx.filter_jit(lambda *arguments: evolve(*arguments, learning_algorithm=BPTT()))


def zero(incoming, at):
    return jnp.zeros_like(incoming)


def one_hot_in_time(incoming, at):
    step = int(at * len(incoming))
    return jnp.zeros_like(incoming).at[step].set(incoming[step])


def scaled(incoming, at):
    return incoming * 10.0 ** (24 * at - 12)


def one_channel_nan(incoming, at):
    return incoming.at[:, int(at * incoming.shape[1])].set(jnp.nan)


drawn = given(
    system=st.sampled_from([linear, saturating]),
    # Each size and length is three programs for each system.
    size_and_length=st.sampled_from([(1, 3), (3, 1), (3, 200)]),
    dt=st.floats(1e-4, 0.5),
    seed=st.integers(0, 2**31 - 1),
    pattern=st.sampled_from([zero, one_hot_in_time, scaled, one_channel_nan]),
    at=st.floats(0, 1, exclude_max=True),
)


@strict
@drawn
def test_float64_gradient_is_that_of_reverse_mode(system, size_and_length, dt, seed, pattern, at):
    with jax.enable_x64(True):
        check(system, *size_and_length, dt, seed, pattern, at, tolerance=1e-8)


@strict
@drawn
def test_float32_gradient_is_close_to_that_of_reverse_mode(system, size_and_length, dt, seed, pattern, at):
    # At steps of 1e-4 the gradient of W_diag cancels: float32 backpropagation is half a percent off, too.
    check(system, *size_and_length, max(dt, 1e-3), seed, pattern, at, tolerance=1e-2 if system is saturating else 1e-3)


def check(system, size, length, dt, seed, pattern, at, tolerance):
    drives_key, incoming_key = jax.random.split(jax.random.PRNGKey(seed))
    hamiltonian, drives = system(size, dt=dt), jax.random.normal(drives_key, (length, size))
    incoming = pattern(jax.random.normal(incoming_key, (length, size)), at)
    value = gradient((hamiltonian, drives), incoming, RHEL())
    if pattern is zero:
        assert all(np.all(leaf == 0) for leaf in jax.tree.leaves(value))
    elif pattern is one_channel_nan:
        assert all(np.any(np.isnan(leaf)) for leaf in jax.tree.leaves(value))
    else:
        with jax.enable_x64(True):
            wide = jax.tree.map(lambda x: x.astype(jnp.float64), ((hamiltonian, drives), incoming))
            reference = gradient(*wide, BPTT())
            largest = float(jnp.max(jnp.abs(positions(*wide[0]))))
            scale = max(1, largest) * float(jnp.max(jnp.abs(wide[1])))
        # A leaf that is tiny beside what it is made of has no digits: at the first step A acts on q = 0, which the echo
        # meets again up to the rounding of the largest q.
        assert_close(value, reference, tolerance, floor=1e-3 * scale * dt**2)
