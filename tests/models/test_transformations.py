"""The gradient inside the transformations of jax, and what a system may be made of."""

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from systems import assert_close, linear, pendulums, saturating

from models import evolve
from models.layer import LinearPorts
from models.LinHRU import LinearOscillators, LinHRULayer
from models.physics.imperfect import EchoImperfection
from models.rhel import BPTT, RHEL, AbstractSystem, BareSystem, ReversibleBPTT, with_learning_algorithm
from models.rhel.hamiltonian import AbstractHamiltonian
from models.rhel.requirements import CapturedTracer

ALGORITHMS = [RHEL(), ReversibleBPTT(), BPTT()]
SIZE, FEATURES, LENGTH = 3, 2, 12


def layer():
    return LinHRULayer(FEATURES, SIZE, key=jax.random.PRNGKey(0))


def batch(size=SIZE, number=4):
    return jax.random.normal(jax.random.PRNGKey(1), (number, LENGTH, size))


def energy_of_positions(hamiltonian, drives, algorithm):
    return jnp.sum(jax.vmap(lambda v: evolve(hamiltonian, v, learning_algorithm=algorithm))(drives) ** 2)


def energy_of_outputs(layer, inputs, algorithm):
    return jnp.sum(jax.vmap(with_learning_algorithm(layer, algorithm))(inputs) ** 2)


def case(name):
    """A loss, its module, and the number of its inputs: oscillators alone, or a layer around them."""
    if name == "layer":
        return energy_of_outputs, layer(), batch(FEATURES)
    return energy_of_positions, {"linear": linear, "pendulums": pendulums}[name](SIZE), batch()


SHARDED = [(RHEL(), "pendulums"), (RHEL(), "layer"), (ReversibleBPTT(), "layer"), (BPTT(), "layer")]


@pytest.mark.parametrize(("algorithm", "name"), [*SHARDED, (RHEL(scan="parallel"), "linear")])
def test_shard_map_with_and_without_its_check(x64, algorithm, name):
    loss, module, x = case(name)
    mesh = jax.make_mesh((2,), ("device",), axis_types=(AxisType.Auto,))
    arrays, static = eqx.partition(module, eqx.is_inexact_array)

    def of_device(arrays, x, checked):
        value, gradient = jax.value_and_grad(lambda a: loss(eqx.combine(a, static), x, algorithm))(arrays)
        # With the check, jax sums the gradient of an array that is the same on all devices by itself.
        return jax.lax.psum(value, "device"), gradient if checked else jax.lax.psum(gradient, "device")

    shard_map = partial(jax.shard_map, mesh=mesh, in_specs=(PartitionSpec(), PartitionSpec("device")))
    reference = jax.jit(jax.value_and_grad(lambda a: loss(eqx.combine(a, static), x, BPTT())))(arrays)
    for checked in (True, False):
        sharded = shard_map(partial(of_device, checked=checked), out_specs=PartitionSpec(), check_vma=checked)
        assert_close(jax.jit(sharded)(arrays, x), reference, 1e-9)


def test_shard_map_refuses_a_result_that_differs_between_devices():
    mesh = jax.make_mesh((2,), ("device",), axis_types=(AxisType.Auto,))
    specs = {"in_specs": PartitionSpec("device"), "out_specs": PartitionSpec()}
    with pytest.raises(ValueError, match="out_specs"):
        jax.shard_map(lambda v: energy_of_positions(saturating(SIZE), v, RHEL()), mesh=mesh, **specs)(batch())


@pytest.mark.parametrize(("algorithm", "name"), SHARDED)
def test_explicit_sharding(x64, algorithm, name):
    loss, module, x = case(name)
    gradient = eqx.filter_jit(eqx.filter_grad(loss))
    reference = gradient(module, x, BPTT())
    mesh = jax.make_mesh((2,), ("device",), axis_types=(AxisType.Explicit,))
    with jax.set_mesh(mesh):
        x = jax.device_put(x, NamedSharding(mesh, PartitionSpec("device")))
        assert_close(gradient(module, x, algorithm), reference, 1e-9)


@pytest.mark.parametrize("algorithm", [RHEL(), RHEL(scan="parallel"), BPTT(scan="parallel")])
def test_second_derivatives(x64, algorithm):
    """Also of a sequence without gradient, and through a matrix with a column of zeros."""
    module, x = layer(), batch(FEATURES)
    module = eqx.tree_at(lambda m: m.C, module, module.C.at[:, 0].set(0))
    direction = jax.tree.map(jnp.cos, eqx.filter(module, eqx.is_inexact_array))

    @eqx.filter_jit
    def along(algorithm):
        weights = jnp.array([0.0, 1.0, 2.0, 3.0])[:, None, None]
        arrays, static = eqx.partition(with_learning_algorithm(module, algorithm), eqx.is_inexact_array)

        def gradient(arrays):
            return jax.grad(lambda a: jnp.sum(weights * jax.vmap(eqx.combine(a, static))(x) ** 2))(arrays)

        tangent = jax.tree.unflatten(jax.tree.structure(arrays), jax.tree.leaves(direction))
        return jax.tree.leaves(jax.jvp(gradient, (arrays,), (tangent,))[1])

    assert_close(along(algorithm), along(BPTT(scan="sequential")), 1e-9)


def test_second_derivatives_through_finite_nudges(x64):
    x = batch().at[0].set(0)

    @eqx.filter_jit
    def along(algorithm):
        weights = jnp.array([0.0, 1.0, 2.0, 3.0])

        def loss(h):
            each = jax.vmap(lambda v: jnp.sum(evolve(h, v, learning_algorithm=algorithm) ** 2))(x)
            return jnp.sum(weights * each)

        return jax.jvp(jax.grad(loss), (saturating(SIZE),), (saturating(SIZE),))[1]

    assert_close(along(RHEL(1e-4)), along(BPTT()), 1e-5)


class Numbered(LinearOscillators):
    """A frequency that is chosen by a whole number and a mask, which are no parameters."""

    number: jax.Array
    mask: jax.Array

    def potential(self, q, drive):
        return super().potential(q * (1 + self.number) * self.mask, drive)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_arrays_that_are_no_parameters_are_mapped_like_any_other(x64, algorithm):
    plain, v = linear(SIZE, dt=0.1), batch(number=1)[0]
    masks = jnp.array([[True, False, True], [True, True, True]])

    def loss(A, number, mask):
        return jnp.sum(evolve(Numbered(A, plain.step, number, mask), v, learning_algorithm=algorithm) ** 2)

    together = jax.jit(jax.grad(lambda A: jnp.sum(jax.vmap(partial(loss, A))(jnp.arange(2), masks))))(plain.A)
    gradient = jax.jit(jax.grad(loss))
    alone = sum(gradient(plain.A, number, mask) for number, mask in enumerate(masks))
    np.testing.assert_allclose(together, alone, rtol=1e-10)


@pytest.mark.parametrize("transform", [lambda f: jax.jit(jax.grad(f)), lambda f: jax.grad(jax.jit(f)), jax.grad])
@pytest.mark.parametrize("algorithm", ["RHEL", "BPTT"])
@pytest.mark.parametrize("where", ["field", "closure", "readout"])
def test_a_parameter_from_outside_is_named(transform, algorithm, where):
    v = batch(number=1)[0]

    def loss(k):
        class Closed(AbstractHamiltonian):
            spring: object = eqx.field(static=True)

            def kinetic(self, p):
                return 0.05 * jnp.sum(p**2)

            def potential(self, q, drive):
                return 0.1 * jnp.sum(self.spring(q) - q * drive)

        class Scaled(BareSystem):
            def readout(self, positions, inputs):
                return k * positions

        if where == "readout":
            return jnp.sum(RHEL()(Scaled(saturating(SIZE)), v))
        k = k if where == "closure" else k * jnp.ones(SIZE)
        return jnp.sum(evolve(Closed(lambda q: k * q**2), v, learning_algorithm=algorithm))

    with pytest.raises(CapturedTracer, match=r"uses float32\[.*\] from outside.* an array field of (Closed|Scaled)"):
        transform(loss)(1.0)


def test_an_array_from_outside_that_is_constant_is_admitted():
    mask = jnp.array([1.0, 0.0, 1.0])

    class Masked(LinearOscillators):
        def potential(self, q, drive):
            return super().potential(q * mask, drive)

    plain = linear(SIZE)
    assert np.all(jax.jit(jax.grad(lambda h: jnp.sum(evolve(h, batch()[0]))))(Masked(**vars(plain))).A[1] == 0)


@pytest.mark.parametrize("algorithm", [RHEL(), RHEL(scan="parallel")])
def test_export_with_a_batch_of_any_size(algorithm):
    (b,) = jax.export.symbolic_shape("b")
    arrays, static = eqx.partition(layer(), eqx.is_array)

    @jax.jit
    def gradient(arrays, x):
        return jax.grad(lambda a: energy_of_outputs(eqx.combine(a, static), x, algorithm))(arrays)

    exported = jax.export.export(gradient)(arrays, jax.ShapeDtypeStruct((b, LENGTH, FEATURES), jnp.float32))
    assert_close(exported.call(arrays, batch(FEATURES)), gradient(arrays, batch(FEATURES)), 1e-5)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_an_empty_batch_has_outputs_and_no_gradient(algorithm):
    empty = jnp.zeros((0, LENGTH, SIZE))
    outputs = jax.jit(jax.vmap(lambda v: evolve(saturating(SIZE), v, learning_algorithm=algorithm)))(empty)
    assert outputs.shape == empty.shape
    gradient = eqx.filter_jit(eqx.filter_grad(energy_of_positions))(saturating(SIZE), empty, algorithm)
    assert all(np.all(leaf == 0) for leaf in jax.tree.leaves(gradient))


class Chain(AbstractHamiltonian):
    """Sites on a ring, of which two are driven."""

    spring: jax.Array

    def kinetic(self, p):
        return 0.05 * jnp.sum(p**2)

    def potential(self, q, drive):
        return 0.1 * (jnp.sum(1 - jnp.cos(self.spring * (q - jnp.roll(q, 1)))) - q[0] * drive[0] - q[5] * drive[1])


@pytest.mark.parametrize("algorithm", [*ALGORITHMS, RHEL(1e-4)])
def test_fewer_drives_than_oscillators(x64, algorithm):
    drives = batch(2)
    chain, x = Chain(jnp.ones(16)), drives[0]
    assert evolve(chain, x, n_osc=16).shape == (LENGTH, 16)

    @eqx.filter_jit
    @eqx.filter_grad
    def gradient(chain_and_drives, algorithm):
        chain, drives = chain_and_drives
        run = partial(evolve, chain, learning_algorithm=algorithm, n_osc=16)
        return jnp.sum(jnp.sin(jax.vmap(run)(drives)))

    assert_close(
        *(gradient((chain, drives), x) for x in (algorithm, BPTT())), 1e-9 if algorithm != RHEL(1e-4) else 1e-6
    )


def test_a_linear_system_with_fewer_drives_runs_sequentially():
    class TwoDriven(LinearOscillators):
        def potential(self, q, drive):
            return super().potential(q, jnp.zeros(SIZE).at[:2].set(drive))

    hamiltonian, x = TwoDriven(**vars(linear(SIZE))), batch(2)[0]
    assert evolve(hamiltonian, x, n_osc=SIZE).shape == (LENGTH, SIZE)
    with pytest.raises(ValueError, match="needs a linear system with a drive for each oscillator; TwoDriven is not"):
        evolve(hamiltonian, x, n_osc=SIZE, learning_algorithm=RHEL(scan="parallel"))


def test_one_oscillator_without_an_axis(x64):
    one = linear(1)
    v = batch(1)[0]
    scalar = jax.tree.map(lambda x: x[0], one)
    gradients = [
        eqx.filter_jit(eqx.filter_grad(lambda h, v: jnp.sum(evolve(h, v) ** 2)))(*x)
        for x in ((scalar, v[:, 0]), (one, v))
    ]
    np.testing.assert_allclose(gradients[0].A, gradients[1].A[0], rtol=1e-12)


class Squared(AbstractSystem):
    hamiltonian: AbstractHamiltonian
    shape: str = eqx.field(static=True)

    def drive(self, inputs):
        return inputs

    def readout(self, positions, inputs):
        shapes = {"square": positions**2, "relu": jax.nn.relu(positions), "clip": jnp.clip(positions, -1, 1)}
        return shapes[self.shape]


class ComplexRead(BareSystem):
    """A complex matrix in a port, and a print of the positions."""

    C: jax.Array = eqx.field(kw_only=True)

    def readout(self, positions, inputs):
        jax.debug.callback(lambda q: None, positions)
        return jnp.real(positions @ self.C)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_port_may_be_complex_and_print(x64, algorithm):
    system = ComplexRead(saturating(SIZE), C=jnp.array([[1.0 + 2j], [3j], [1.0]]))

    @eqx.filter_jit
    @eqx.filter_grad
    def gradient(system, algorithm):
        return jnp.sum(algorithm(system, batch()[0]) ** 2)

    assert_close(*(jax.tree.map(jnp.abs, gradient(system, x)) for x in (algorithm, BPTT())), 1e-9)


class CustomSlope(LinearOscillators):
    """An energy whose derivative exists in reverse mode only."""

    linear = False
    potential_contrast = AbstractHamiltonian.potential_contrast

    def potential(self, q, drive):
        @jax.custom_vjp
        def square(q):
            return jnp.sum(q**2)

        square.defvjp(lambda q: (square(q), q), lambda q, g: (2 * q * g,))
        return super().potential(0 * q, drive) + 0.05 * square(q) - 0.1 * jnp.sum(q * drive)


def test_an_energy_without_a_forward_derivative_is_named(x64):
    hamiltonian, x = CustomSlope(**vars(linear(SIZE))), batch()[0]
    with pytest.raises(ValueError, match=r"of CustomSlope, .* jax.custom_jvp .* epsilon=1e-3, or BPTT"):
        jax.grad(lambda h: jnp.sum(evolve(h, x) ** 2))(hamiltonian)
    value, reference = (
        jax.jit(jax.grad(lambda v, a=a: jnp.sum(evolve(hamiltonian, v, learning_algorithm=a) ** 2)))(x)
        for a in (RHEL(1e-3), BPTT())
    )
    assert_close(value, reference, 1e-9)


@pytest.mark.parametrize("shape", ["square", "relu", "clip"])
@pytest.mark.parametrize("algorithm", [RHEL(), RHEL(literal=True), ReversibleBPTT()])
def test_a_nonlinear_readout_is_refused(algorithm, shape):
    with pytest.raises(ValueError, match=r"Squared.readout is not linear in the positions"):
        algorithm(Squared(saturating(SIZE), shape), batch()[0])
    assert BPTT()(Squared(saturating(SIZE), shape), batch()[0]).shape == (LENGTH, SIZE)


class Rubbed(LinearOscillators):
    def force(self, q, drive):
        return 0.9 * super().force(q, drive)


class Hurried(LinearOscillators):
    def velocity(self, p):
        return 1.1 * super().velocity(p)


@pytest.mark.parametrize(("kind", "name"), [(Rubbed, "force"), (Hurried, "velocity")])
def test_an_overridden_force_is_refused_but_by_the_literal_echo(kind, name):
    hamiltonian, x = kind(**vars(linear(SIZE))), batch()[0]
    with pytest.raises(
        ValueError, match=rf"{kind.__name__} overrides {name}, .*RHEL\(literal=True\) runs the override"
    ):
        evolve(hamiltonian, x)
    np.testing.assert_array_equal(*(evolve(hamiltonian, x, learning_algorithm=a) for a in (RHEL(literal=True), BPTT())))


class NoHamiltonian:
    def kinetic(self, p):
        return jnp.sum(p**2)

    potential = kinetic


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(
    ("hamiltonian", "drives", "error", "message"),
    [
        (NoHamiltonian(), jnp.ones((5, 3)), TypeError, r"write class NoHamiltonian\(AbstractHamiltonian\)"),
        (linear(3), {"left": jnp.ones((5, 3))}, TypeError, r"one array \(time, \.\.\), got a dict"),
        (linear(3), [jnp.ones((5, 3))], TypeError, r"one array \(time, \.\.\), got a list"),
        (
            linear(16),
            jnp.ones((5, 2)),
            ValueError,
            r"LinearOscillators.kinetic cannot be evaluated at positions and momenta of shape \(2,\) and a drive of "
            r"shape \(2,\): .*. A position has the shape of a drive; .* n_osc",
        ),
    ],
)
@pytest.mark.parametrize("algorithm", ["RHEL", "BPTT"])
def test_what_evolve_cannot_run_is_named(hamiltonian, drives, error, message, algorithm):
    with pytest.raises(error, match=message):
        evolve(hamiltonian, drives, learning_algorithm=algorithm)


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize("n_osc", [(3,), 3.0, True, 0])
def test_another_n_osc_than_a_number_is_refused(n_osc):
    for use in (lambda: evolve(linear(3), jnp.ones((5, 3)), n_osc=n_osc), lambda: BareSystem(linear(3), n_osc)):
        with pytest.raises(ValueError, match=r"n_osc must be a whole number of at least 1, .*, got [(3.T0]"):
            use()


def test_the_cause_of_another_shape_comes_first_with_its_way_out():
    inputs = jnp.ones((5, 4))
    with pytest.raises(
        ValueError, match=r"drive of shape \(5,\): .*incompatible shapes.*have the shape \(3,\), from n"
    ):
        evolve(linear(3), jnp.ones((3, 5)), n_osc=3)
    layer = LinearPorts(linear(3), jnp.ones((2, 4)), jnp.ones((4, 3)), jnp.ones(4))
    with pytest.raises(ValueError, match=r"shape \(2,\): .*incompatible shapes.*unless position_shape of the ports"):
        BPTT()(layer, inputs)


@pytest.mark.usefixtures("unchecked_types")
def test_a_learning_algorithm_is_given_by_name_or_as_an_object():
    model = (BPTT(), jnp.ones(2))
    assert isinstance(with_learning_algorithm(model, "RHEL")[0], RHEL)
    for use in (
        lambda: with_learning_algorithm(model, EchoImperfection(noise=1e-3)),
        lambda: evolve(linear(3), jnp.ones((5, 3)), learning_algorithm=EchoImperfection(noise=1e-3)),
    ):
        with pytest.raises(TypeError, match=r"no learning algorithm: .*ImperfectRHEL\(EchoImperfection"):
            use()


def test_numpy_drives_are_taken():
    np.testing.assert_array_equal(*(evolve(saturating(SIZE), x) for x in (np.asarray(batch()[0]), batch()[0])))
