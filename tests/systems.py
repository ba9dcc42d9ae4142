"""Systems, oracles and measures that several tests use."""

import jax
import jax.numpy as jnp
import numpy as np

from models.check import finite_difference_errors
from models.LinHRU import LinearOscillators
from models.NonlinHRU import SaturatingOscillators
from models.rhel.hamiltonian import AbstractHamiltonian


class CoupledPendulums(AbstractHamiltonian):
    """Pendulums with an inertia each, coupled all to all by springs; no closed contrast."""

    inertia: jax.Array
    coupling: jax.Array
    step: jax.Array

    def kinetic(self, p):
        return jnp.sum(self.step * p**2 / (2 * self.inertia))

    def potential(self, q, drive):
        stiffness = self.coupling @ self.coupling.T
        return jnp.mean(self.step) * (jnp.sum(1 - jnp.cos(q)) + 0.5 * q @ stiffness @ q - q @ drive)


class Springs(AbstractHamiltonian):
    """Harmonic oscillators whose energies a test replaces or adds to."""

    k: jax.Array

    def kinetic(self, p):
        return 0.05 * jnp.sum(p**2)

    def potential(self, q, drive):
        return jnp.sum(0.1 * (0.5 * self.k * q**2 - q * drive))


class PlainSaturatingOscillators(AbstractHamiltonian):
    """The oscillators of Eq. 18 written by their energies alone."""

    W_diag: jax.Array
    b: jax.Array
    alpha: jax.Array
    step: jax.Array

    kinetic = SaturatingOscillators.kinetic
    potential = SaturatingOscillators.potential


def linear(size=8, dt=None, seed=0):
    A_key, step_key = jax.random.split(jax.random.PRNGKey(seed))
    step = 0.1 + 0.4 * jax.random.uniform(step_key, (size,)) if dt is None else jnp.full(size, dt)
    return LinearOscillators(A=jax.random.uniform(A_key, (size,), minval=0.1), step=step)


def saturating(size=8, dt=0.1, seed=0, kind=SaturatingOscillators):
    W_key, b_key, alpha_key = jax.random.split(jax.random.PRNGKey(seed), 3)
    return kind(
        W_diag=jax.random.uniform(W_key, (size,), minval=0.5, maxval=1),
        b=0.3 * jax.random.normal(b_key, (size,)),
        alpha=jax.random.uniform(alpha_key, (size,), minval=0.1, maxval=1),
        step=dt * jnp.linspace(0.8, 1.2, size),
    )


def plain_saturating(size=8, dt=0.1, seed=0):
    return saturating(size, dt, seed, kind=PlainSaturatingOscillators)


def pendulums(size=8, dt=0.1, seed=0):
    inertia_key, coupling_key = jax.random.split(jax.random.PRNGKey(seed))
    return CoupledPendulums(
        inertia=jax.random.uniform(inertia_key, (size,), minval=0.5, maxval=2),
        coupling=0.3 * jax.random.normal(coupling_key, (size, size)),
        step=dt * jnp.linspace(0.8, 1.2, size),
    )


def relative_error(value, reference, floor=0.0):
    """Norm of the difference over that of the reference (or `floor`), in double precision; a zero wants a zero."""
    value, reference = np.asarray(value, np.float64), np.asarray(reference, np.float64)
    error, size = np.linalg.norm(value - reference), np.linalg.norm(reference)
    size = size if np.isnan(size) else max(size, floor)
    return error / size if size != 0 else (0.0 if error == 0 else np.inf)


def leaf_errors(tree, reference, floor=0.0):
    """Relative error of every array leaf, by its path."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    references = jax.tree.leaves(reference)
    assert len(leaves) == len(references)
    return {
        jax.tree_util.keystr(path): relative_error(leaf, reference, floor)
        for (path, leaf), reference in zip(leaves, references, strict=True)
    }


def assert_close(tree, reference, tolerance, floor=0.0):
    """Every array leaf within the relative tolerance; says which are not."""
    errors = leaf_errors(tree, reference, floor)
    assert errors
    assert not {path: error for path, error in errors.items() if not error <= tolerance}


def assert_directional_derivatives(function, tree, gradient, tolerance, step=1e-6):
    """The gradient of `function(tree)` against central differences, for every array leaf."""
    errors = finite_difference_errors(function, tree, gradient, key=jax.random.PRNGKey(0), step=step)
    assert errors
    assert max(errors) <= tolerance, errors
