"""Scans, stretches and batches: ways of computing one and the same thing, and what they cost in memory."""

import re
from functools import cache

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params
from systems import assert_close, assert_directional_derivatives, linear, pendulums, saturating

from models import create_model, evolve
from models.layer import LinearPorts, init_ports
from models.LinHRU import LinHRULayer
from models.NonlinHRU import NonlinHRULayer
from models.rhel import BPTT, RHEL, ReversibleBPTT

SYSTEMS = [linear, saturating, pendulums]
LENGTH = 150


def problem(system, length=LENGTH, size=5):
    drives_key, incoming_key = jax.random.split(jax.random.PRNGKey(3))
    drives = jax.random.normal(drives_key, (length, size))
    return (system(size), drives), jax.random.normal(incoming_key, (length, size))


@eqx.filter_jit
def positions_and_gradient(hamiltonian_and_drives, incoming, algorithm):
    def loss(arguments):
        positions = evolve(*arguments, learning_algorithm=algorithm)
        return jnp.vdot(positions, incoming), positions

    gradient, positions = eqx.filter_grad(loss, has_aux=True)(hamiltonian_and_drives)
    return positions, gradient


def finite(**options):
    return RHEL(1e-6, **options)


# One step; a segment; a prime number of steps: segments and a remainder; 600: segments in one group, and, with few that
# a product links, in groups of groups; two stretches and a shorter one.
@pytest.mark.parametrize(
    ("kind", "length", "chunk", "together"),
    [
        (RHEL, 1, None, 64),
        (RHEL, 151, None, 64),
        (RHEL, 600, None, 2),
        (RHEL, 600, 256, 64),
        (BPTT, 151, None, 2),
        (ReversibleBPTT, 151, None, 64),
    ],
)
def test_parallel_scan_is_the_sequential_one(x64, monkeypatch, kind, length, chunk, together):
    monkeypatch.setattr("models.rhel.linear.LINKED", together)
    arguments, incoming = problem(linear, length)
    sequential, parallel = (
        positions_and_gradient(arguments, incoming, algorithm)
        for algorithm in (kind(scan="sequential"), kind(scan="parallel", chunk=chunk))
    )
    assert_close(parallel, sequential, 1e-11, floor=1e-3)


class Leaning(type(linear())):
    """It says that it is linear, but a constant force acts."""

    def potential(self, q, drive):
        return super().potential(q, drive) + 1e-3 * jnp.sum(q)


def test_a_constant_force_is_not_wrong_in_silence():
    (hamiltonian, drives), _ = problem(linear, 40)
    positions = evolve(Leaning(**vars(hamiltonian)), drives, learning_algorithm=BPTT(scan="parallel"))
    assert jnp.all(jnp.isnan(positions))


@pytest.mark.parametrize(
    ("kind", "system"), [(RHEL, pendulums), (RHEL, saturating), (BPTT, saturating), (ReversibleBPTT, saturating)]
)
def test_unrolled_scan_is_the_sequential_one(x64, monkeypatch, kind, system):
    monkeypatch.setattr("models.rhel.free_pass.UNROLLED", 8)  # compiles faster; 150 steps have a remainder, too
    arguments, incoming = problem(system)
    sequential, unrolled = (
        positions_and_gradient(arguments, incoming, kind(scan=scan)) for scan in ("sequential", "unrolled")
    )
    assert_close(unrolled, sequential, 1e-11, floor=1e-3)


def test_parallel_scan_rounds_as_the_sequential_one():
    """Errors in float32 against float64 backpropagation, of the positions and of every array."""
    arguments, incoming = problem(linear, 896)
    values = [positions_and_gradient(arguments, incoming, RHEL(scan=scan)) for scan in ("sequential", "parallel")]
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda x: x.astype(jnp.float64), (arguments, incoming))
        reference = list(map(np.asarray, jax.tree.leaves(positions_and_gradient(*wide, BPTT()))))

    def errors(value):
        leaves = zip(map(np.asarray, jax.tree.leaves(value)), reference, strict=True)
        return np.array([np.linalg.norm(x - exact) / np.linalg.norm(exact) for x, exact in leaves])

    sequential, parallel = map(errors, values)
    print(f"sequential {sequential}, parallel {parallel}")
    np.testing.assert_array_less(parallel, 2 * sequential + 2e-6)


# One step, a remainder, no remainder, and one stretch for all. Pendulums have a matrix of parameters, which the echo
# reads once for a stretch.
@pytest.mark.parametrize(
    ("kind", "system", "chunk"),
    [
        *((finite, linear, 1), (finite, saturating, 7), (finite, saturating, LENGTH)),
        *((RHEL, pendulums, 7), (RHEL, saturating, 1000)),
        *((ReversibleBPTT, saturating, 7), (BPTT, saturating, 7)),
    ],
)
def test_length_of_the_stretches_does_not_matter(x64, kind, system, chunk):
    arguments, incoming = problem(system)
    default, chunked = (positions_and_gradient(arguments, incoming, kind(**o)) for o in ({}, {"chunk": chunk}))
    # Rounding errors are multiplied by up to 1 / epsilon where the contrast is the plain difference.
    assert_close(chunked, default, 1e-10 if system is not pendulums else 1e-8)


@pytest.mark.parametrize("system", SYSTEMS)
def test_reversible_backpropagation_is_backpropagation(x64, system):
    arguments, incoming = problem(system, length=300)
    (positions, value), (same, reference) = (
        positions_and_gradient(arguments, incoming, algorithm) for algorithm in (ReversibleBPTT(), BPTT())
    )
    np.testing.assert_array_equal(positions, same)
    assert_close(value, reference, 1e-10)


def test_reversible_backpropagation_against_finite_differences(x64):
    arguments, incoming = problem(pendulums, length=60)
    _, gradient = positions_and_gradient(arguments, incoming, ReversibleBPTT())
    assert_directional_derivatives(
        lambda x: jnp.vdot(evolve(*x, learning_algorithm=BPTT()), incoming), arguments, gradient, 1e-5
    )


def test_reversible_backpropagation_in_float32():
    arguments, incoming = problem(saturating, length=300)
    _, value = positions_and_gradient(arguments, incoming, ReversibleBPTT())
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda x: x.astype(jnp.float64), (arguments, incoming))
        _, reference = positions_and_gradient(*wide, BPTT())
    assert_close(value, reference, 1e-4)


@pytest.mark.parametrize(("system", "chosen"), [(linear, "parallel"), (saturating, "unrolled")])
def test_auto_is_sequential_on_a_cpu_and_settled_when_lowering_elsewhere(monkeypatch, system, chosen):
    arguments, incoming = problem(system, length=200)

    def program(scan, platforms):
        def gradient(arguments, incoming):
            return positions_and_gradient.__wrapped__(arguments, incoming, RHEL(scan=scan))

        return jax.jit(gradient).trace(arguments, incoming).lower(lowering_platforms=platforms).as_text()

    alone = program("auto", ("cpu",))
    assert alone == program("sequential", ("cpu",))
    monkeypatch.setattr(jax, "devices", lambda: [type("Device", (), {"platform": "cuda"})])
    assert size(program("auto", ("cpu",))) == size(alone)
    on_gpu = size(program("auto", ("cuda",)))
    of_gpu = program(chosen, ("cuda",))
    assert on_gpu == size(of_gpu) > size(alone)
    # XLA would compute products of lower precision in TF32.
    products = re.findall(r"stablehlo.dot_general.*batching_dims.*", of_gpu)
    assert all("precision = [HIGHEST, HIGHEST]" in product for product in products)
    assert bool(products) == (chosen == "parallel")
    assert size(program("auto", ("cpu", "cuda"))) == size(alone) + on_gpu


def size(program):
    """The number of products and calls in a program: an unrolled loop calls its step many times."""
    return program.count("stablehlo.multiply") + program.count(" call @closed_call")


@pytest.mark.usefixtures("unchecked_types")
def test_bad_choices_are_named():
    (hamiltonian, drives), _ = problem(saturating)
    with pytest.raises(ValueError, match=r"unknown scan 'fast'; one of auto, sequential, unrolled, parallel"):
        evolve(hamiltonian, drives, learning_algorithm=RHEL(scan="fast"))
    with pytest.raises(
        ValueError, match=r"parallel scan needs a linear system with a drive .*; SaturatingOscillators is not"
    ):
        evolve(hamiltonian, drives, learning_algorithm=BPTT(scan="parallel"))
    with pytest.raises(ValueError, match=r"chunk must be at least 1 step, got 0"):
        evolve(hamiltonian, drives, learning_algorithm=RHEL(chunk=0))


# Batches


class Masked(type(saturating())):
    """With an array that is no parameter."""

    mask: jax.Array

    def kinetic(self, p):
        return super().kinetic(p * self.mask)

    def kinetic_contrast(self, p, dp):
        return super().kinetic_contrast(p * self.mask, dp * self.mask)


@pytest.mark.parametrize("algorithm", [RHEL(1e-4), BPTT(), ReversibleBPTT()])
def test_every_order_of_vmap_and_grad(x64, algorithm):
    size, features = 6, 2
    fields = vars(saturating(size))
    masked = Masked(**fields, mask=jnp.arange(size) % 2)
    system = LinearPorts(masked, *init_ports(features, size, key=jax.random.PRNGKey(1)))
    inputs = jax.random.normal(jax.random.PRNGKey(2), (2, 3, 20, features))
    incoming = jax.random.normal(jax.random.PRNGKey(4), inputs.shape)

    @eqx.filter_jit
    @eqx.filter_grad
    def alone(system_and_inputs, incoming):
        return jnp.vdot(algorithm(*system_and_inputs), incoming)

    each = [[alone((system, inputs[i, j]), incoming[i, j]) for j in range(3)] for i in range(2)]
    stacked = jax.tree.map(lambda *x: jnp.stack(x).reshape(2, 3, *x[0].shape), *each[0], *each[1])

    per_sequence = jax.jit(jax.vmap(jax.vmap(lambda x, g: alone((system, x), g))))(inputs, incoming)
    assert_close(per_sequence, stacked, 1e-10)

    @eqx.filter_jit
    @eqx.filter_grad
    def together(system_and_inputs):
        system, inputs = system_and_inputs
        return jnp.vdot(jax.vmap(jax.vmap(lambda x: algorithm(system, x)))(inputs), incoming)

    system_grad, inputs_grad = together((system, inputs))
    assert_close(system_grad, jax.tree.map(lambda x: jnp.sum(x, (0, 1)), stacked[0]), 1e-10)
    assert_close(inputs_grad, stacked[1], 1e-10)

    # Several models at once, each with a batch of its own.
    arrays, static = eqx.partition(system, eqx.is_inexact_array)
    ensemble = jax.tree.map(lambda x: jnp.stack([x, 1.1 * x]), arrays)

    def of_one(arrays, inputs, incoming):
        def loss(arrays):
            return jnp.vdot(jax.vmap(lambda x: algorithm(eqx.combine(arrays, static), x))(inputs), incoming)

        return jax.grad(loss)(arrays)

    of_member, both = jax.jit(of_one), jax.jit(jax.vmap(of_one))(ensemble, inputs, incoming)
    for i in range(2):
        member = jax.tree.map(lambda x, i=i: x[i], ensemble)
        assert_close(jax.tree.map(lambda x, i=i: x[i], both), of_member(member, inputs[i], incoming[i]), 1e-10)


# What it costs


def equations(jaxpr):
    """All equations of a jaxpr and of those inside it."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jaxprs_in_params(equation.params):
            yield from equations(inner)


@cache
def layer_gradient(kind, length, ssm_dim, algorithm, batch=2, hidden_dim=8):
    """The equations of the gradient of a layer."""
    layer = kind(hidden_dim, ssm_dim, learning_algorithm=algorithm, key=jax.random.PRNGKey(0))
    arrays, static = eqx.partition(layer, eqx.is_inexact_array)

    def gradient(arrays, inputs):
        return jax.grad(lambda a: jnp.sum(jax.vmap(eqx.combine(a, static))(inputs) ** 2))(arrays)

    return list(equations(jax.make_jaxpr(gradient)(arrays, jnp.zeros((batch, length, hidden_dim))).jaxpr))


def largest_array(equations):
    return max(var.aval.size for equation in equations for var in equation.outvars)


KINDS = [LinHRULayer, NonlinHRULayer]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("algorithm", [RHEL(), RHEL(literal=True), ReversibleBPTT()])
def test_a_program_grows_with_neither_length_nor_oscillators_and_has_no_array_of_all(kind, algorithm):
    length, batch, ssm_dim = 1280, 2, 64
    small, large = layer_gradient(kind, 256, 4, algorithm), layer_gradient(kind, length, ssm_dim, algorithm)
    assert len(small) == len(large)
    assert largest_array(large) < length * batch * ssm_dim
    # Backpropagation has an array of all steps and oscillators.
    assert largest_array(layer_gradient(kind, length, ssm_dim, BPTT())) >= length * batch * ssm_dim


@pytest.mark.parametrize("algorithm", [RHEL(), RHEL(1e-3), ReversibleBPTT()])
def test_the_gradient_of_a_matrix_is_not_carried_once_for_every_sequence(algorithm):
    length, batch, size = 8, 64, 16

    def gradient(hamiltonian, drives):
        def loss(hamiltonian):
            return jnp.sum(jax.vmap(lambda v: evolve(hamiltonian, v, learning_algorithm=algorithm))(drives) ** 2)

        return jax.grad(loss)(hamiltonian)

    jaxpr = jax.make_jaxpr(gradient)(pendulums(size), jnp.zeros((batch, length, size))).jaxpr
    assert largest_array(equations(jaxpr)) < batch * size**2


@cache
def temporaries(model_name, algorithm, *, length=896, ssm_dim=64, batch=32, hidden_dim=64):
    """Bytes of temporaries of the gradient of a whole network."""
    model, state = create_model(
        *(model_name, 7, 2, hidden_dim, 2, ssm_dim),
        classification=True,
        learning_algorithm=algorithm,
        key=jax.random.PRNGKey(0),
    )
    arrays, static = eqx.partition(model, eqx.is_inexact_array)

    @jax.jit
    @jax.grad
    def gradient(arrays, x, key):
        forward = jax.vmap(eqx.combine(arrays, static), axis_name="batch", in_axes=(0, None, 0), out_axes=(0, None))
        return jnp.sum(forward(x, state, jax.random.split(key, batch))[0] ** 2)

    compiled = gradient.lower(arrays, jnp.zeros((batch, length, 7)), jax.random.PRNGKey(1)).compile()
    return compiled.memory_analysis().temp_size_in_bytes


@pytest.mark.slow
@pytest.mark.parametrize("model_name", ["LinHRU", "NonlinHRU"])
def test_temporaries_do_not_grow_with_the_oscillators_and_no_faster_than_the_sequence(model_name):
    size = temporaries(model_name, "RHEL")
    assert temporaries(model_name, "RHEL", ssm_dim=1024) <= 1.3 * size
    assert temporaries(model_name, "RHEL", length=3584) <= 4.1 * size
    assert size <= 0.5 * temporaries(model_name, "BPTT", ssm_dim=256)
