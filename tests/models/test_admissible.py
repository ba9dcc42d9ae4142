"""What the echo assumes of a Hamiltonian and of a system: every violation has a name and a way out."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from systems import Springs, linear, pendulums, plain_saturating, saturating

from models.check import InadmissibleHamiltonian, InadmissibleSystem, check_hamiltonian, check_system
from models.layer import LinearPorts
from models.LinHRU import LinearOscillators
from models.rhel.hamiltonian import AbstractHamiltonian
from models.rhel.system import AbstractSystem, BareSystem

SIZE = 8
DRIVES = jax.random.normal(jax.random.PRNGKey(3), (60, SIZE))
ONES = jnp.ones(SIZE)
OUTSIDE = 2 * jnp.ones(SIZE)
OUTSIDE_NUMBER = jnp.asarray(2.0)
CONSTANT = np.full(SIZE, 2.0, np.float32)


def springs(k=ONES, name="Own", **methods):
    """Springs with other methods, of a class of its own."""
    return type(name, (Springs,), methods)(k)


def stiffer(more, **methods):
    """Springs with another term in the potential: `more(k, q, drive)`, summed."""

    def potential(self, q, drive):
        return Springs.potential(self, q, drive) + jnp.sum(more(self.k, q, drive))

    return springs(potential=potential, **methods)


def heavier(more):
    """Springs with another term in the kinetic energy: `more(p)`, summed."""
    return springs(kinetic=lambda self, p: Springs.kinetic(self, p) + jnp.sum(more(p)))


class Stretched(Springs):
    """A number that is a field of its own, or part of one."""

    scale: float | complex | tuple

    def potential(self, q, drive):
        return jnp.sum(0.1 * (0.5 * self.k * jnp.real(jnp.asarray(self.scale)) * q**2 - q * drive))


class Activated(Springs):
    """Springs whose restoring force passes through a function."""

    function: object = eqx.field(static=True)

    def potential(self, q, drive):
        return Springs.potential(self, q, drive) + jnp.sum(self.function(q))


class NotStatic(Springs):
    function: object

    potential = Activated.potential


@jax.custom_jvp
def lying_square(x):
    return x**2


lying_square.defjvp(lambda primals, tangents: (primals[0] ** 2, 2.1 * primals[0] * tangents[0]))


def leaking():
    left = []

    def kinetic(self, p):
        left[:] = [p]
        return Springs.kinetic(self, p)

    return springs(kinetic=kinetic, potential=lambda self, q, drive: jnp.sum(q * left[0]))


def closing_over(array):
    return lambda q: jnp.cos(array * q)


CURL = jnp.asarray(np.triu(np.ones((SIZE, SIZE), np.float32), 1) - np.tril(np.ones((SIZE, SIZE), np.float32), -1))

VIOLATIONS = {
    # Fields
    "integer array": (springs(jnp.arange(SIZE)), r"Own.k is an array of int32 .* floating-point or, .* a NumPy array"),
    "complex array": (
        springs(jnp.ones(SIZE, complex)),
        r"k is an array of complex64, .* real: make it two real fields",
    ),
    "Python float": (
        Stretched(ONES, 0.3),
        r"Stretched.scale is a Python float, 0.3, .*: make it jnp.asarray\(0.3\) or",
    ),
    "Python float in a tuple": (Stretched(ONES, (0.3, 1.0)), r"scale\[0\] is a Python float, 0.3, .* a static field"),
    "Python complex": (Stretched(ONES, 1 + 2j), r"scale is a Python complex, .* jnp.asarray\(\[1.0, 2.0\]\)"),
    "Python int": (Stretched(ONES, 2), r"scale is a Python int, 2, .*: make it jnp.asarray\(2.0\) or, .* a static"),
    # Arrays from outside
    "global array": (
        stiffer(lambda k, q, v: OUTSIDE * q**2),
        r"Own.potential uses an array from outside, float32 of shape \(8,\), which is no field and gets no gradient",
    ),
    "global array, by name": (
        springs(kinetic=lambda self, p: 0.05 * jnp.sum(OUTSIDE * p**2)),
        r"Own.kinetic uses the array OUTSIDE from outside, .*: make it a field .* a NumPy array",
    ),
    "global number": (
        springs(kinetic=lambda self, p: OUTSIDE_NUMBER * jnp.sum(p**2)),
        r"uses the array OUTSIDE_NUMBER",
    ),
    "static callable": (
        Activated(ONES, closing_over(OUTSIDE)),
        r"Activated.potential uses the array array from outside",
    ),
    "callable that closes over": (NotStatic(ONES, closing_over(OUTSIDE)), r"NotStatic.potential uses the array array"),
    # Energies that are no function of their arguments, or no real number
    "vector kinetic": (
        springs(kinetic=lambda self, p: p**2),
        r"Own.kinetic must return a scalar, got shape \(8,\): sum",
    ),
    "vector potential": (springs(potential=lambda self, q, v: q * v), r"Own.potential must return a scalar, got shape"),
    "complex energy": (
        springs(potential=lambda self, q, v: jnp.sum(q * v) + 1j),
        r"Own.potential must return a real floating-point number, got complex64: an energy is real",
    ),
    "integer energy": (
        springs(kinetic=lambda self, p: jnp.sum(p**2).astype(int)),
        r"Own.kinetic must return a real floating-point number, got int32",
    ),
    "p leaked into the potential": (
        leaking(),
        r"uses float32\[8\] from outside, which jax is differentiating, batching or compiling: .* Make it an array",
    ),
    "p as an argument": (
        springs(potential=lambda self, q, p, drive: jnp.sum(q * p)),
        r"Own.potential cannot be evaluated at .*missing 1 required positional",
    ),
    "another size": (
        springs(jnp.ones(5)),
        r"Own.potential cannot be evaluated at .* of shape \(8,\): .*\. A position has",
    ),
    "index beyond the chain": (
        springs(potential=lambda self, q, drive: jnp.sum(self.k * q**2) - q[np.array([0, SIZE])] @ drive[:2]),
        r"an index in the energies or ports of Own is beyond its array .*index 8 is out of bounds .*Mend the index",
    ),
    "another precision": (
        stiffer(lambda k, q, v: jax.lax.mul(q, CONSTANT)),
        r"a step of Own cannot be run in float64: let energies \(and overrides\) take and give the dtype",
    ),
    # Numbers that are not finite
    "nan parameter": (springs(jnp.full(SIZE, jnp.nan)), r"Own.potential is nan at rest: give it a finite value"),
    "nan far away": (
        stiffer(lambda k, q, v: jnp.where(jnp.abs(q) > 4.5, jnp.nan, 0.0)),
        r"Own.potential is nan at random states of 3 times the trajectory's size",
    ),
    "logarithm": (stiffer(lambda k, q, v: jnp.log1p(q)), r"Own.potential is nan on the trajectory: .* drives and step"),
    "runaway": (
        stiffer(lambda k, q, v: -(q**4)),
        r"the trajectory of Own over these drives is not finite from step \d+ on: make the time step or",
    ),
    "root of p": (heavier(lambda p: jnp.sqrt(jnp.abs(p))), r"the gradient of Own.kinetic by p is not finite at rest"),
    "root of k": (
        springs(0 * ONES, potential=lambda self, q, v: jnp.sum(jnp.sqrt(self.k) * q**2 - q * v)),
        r"the gradient of Own.potential by Own.k is not finite: write it without the division or root of zero",
    ),
    "norm of q": (
        springs(potential=lambda self, q, v: jnp.linalg.norm(q) * jnp.sum(self.k) - q @ v),
        r"the gradient of Own.potential by q is not finite at rest",
    ),
    "root of the drive": (
        stiffer(lambda k, q, v: jnp.sqrt(jnp.maximum(v, 0.0))),
        r"the gradient of Own.potential by the drive is not finite at rest",
    ),
    # Kinetic energies that are not even
    "odd": (heavier(lambda p: 0.005 * p), r"Own.kinetic is not even: .* at p, .* at -p, .*: an echo returns only if"),
    "odd far away": (
        heavier(lambda p: jnp.maximum(p - 3, 0) ** 2),
        r"is not even: .* 3 times the trajectory's size: an",
    ),
    "odd near zero": (
        heavier(lambda p: 1e-3 * p * jnp.exp(-100 * p**2)),
        r"Own.kinetic is not even: .* at p, .* at -p",
    ),
    # Dynamics that are not those of the energies
    "dissipative velocity": (
        springs(velocity=lambda self, p: 0.1 * (p - 0.01 * p**3)),
        r"Own.velocity is not the gradient of Own.kinetic: .* % off, .*: the echo reads .* remove the override",
    ),
    "curl velocity": (
        springs(velocity=lambda self, p: 0.1 * p + 0.01 * CURL @ p),
        r"Own.velocity is not the gradient of",
    ),
    "dissipative force": (
        springs(force=lambda self, q, v: 0.1 * v - 0.11 * self.k * q),
        r"Own.force is not minus the gradient of Own.potential: .* % off, .*: .*friction: models.physics.damping",
    ),
    "curl force": (
        springs(force=lambda self, q, v: 0.1 * (v - self.k * q) + 0.01 * CURL @ q),
        r"Own.force is not minus the gradient of Own.potential",
    ),
    # Slopes that are not those of the energies
    "corner in q": (
        stiffer(lambda k, q, v: 0.05 * jnp.abs(q)),
        r"Own.potential by q does not change as its gradient says",
    ),
    "corner in p": (
        heavier(lambda p: 0.05 * jnp.abs(p)),
        r"Own.kinetic by p does not .*: .* a corner or jump .* smooth",
    ),
    "corner elsewhere": (
        stiffer(lambda k, q, v: jnp.abs(q - 0.3)),
        r"Own.potential by q does not change as its gradient",
    ),
    "rounded q": (
        stiffer(lambda k, q, v: 0.05 * jnp.round(q)),
        r"Own.potential by q does not change as its gradient says",
    ),
    "stopped q": (
        stiffer(lambda k, q, v: 0.01 * jax.lax.stop_gradient(q) ** 2),
        r"Own.potential by q does not change as its gradient says, .*: it has a corner .*, a stop_gradient, or a deriv",
    ),
    "stopped drive": (
        springs(potential=lambda self, q, v: jnp.sum(0.1 * (0.5 * self.k * q**2 - q * jax.lax.stop_gradient(v)))),
        r"Own.potential by the drive does not change as its gradient says",
    ),
    "lying custom_jvp": (
        stiffer(lambda k, q, v: 0.1 * lying_square(q)),
        r"Own.potential by q does not change as its grad",
    ),
    "lying custom_jvp of a parameter": (
        stiffer(lambda k, q, v: 0.1 * lying_square(k) * q**2),
        r"Own.potential does not change with Own.k as its gradient says: by .*, not .*, along a random dir",
    ),
    "stopped parameter": (
        stiffer(lambda k, q, v: 0.01 * jax.lax.stop_gradient(k) * q**2),
        r"Own.potential does not change with Own.k as its gradient says: .*: .* where the Hamiltonian is made",
    ),
    # Contrasts
    "contrast": (
        springs(potential_contrast=lambda self, q, dq, v: jnp.sum(self.k * q * dq)),
        r"the gradient of Own.potential_contrast by .* % off, at 1 of a random half-difference: a contrast is",
    ),
    "kinetic contrast": (
        springs(kinetic_contrast=lambda self, p, dp: 0.05 * jnp.sum(p * dp)),
        r"the gradient of Own.kinetic_contrast by the mean is 75 % off, at 1 of",
    ),
    "contrast at small differences": (
        springs(kinetic_contrast=lambda self, p, dp: 0.2 * jnp.sum(jnp.where(jnp.abs(dp) < 3e-9, 0, p * dp))),
        r"the gradient of Own.kinetic_contrast by the half-difference is .* % off, at 1e-08 of a random",
    ),
    "contrast that is detached": (
        springs(potential_contrast=lambda self, q, dq, v: jnp.sum(0.2 * dq * (jax.lax.stop_gradient(self.k) * q - v))),
        r"the gradient of Own.potential_contrast by Own.k is 1e\+02 % off",
    ),
    "contrast of a parent": (
        type("Own", (LinearOscillators,), {"kinetic": lambda self, p: jnp.sum(self.step * p**2)})(
            A=ONES, step=0.1 * ONES
        ),
        r"the gradient of Own.kinetic_contrast by Own.step is 50 % off",
    ),
    # Linear systems
    "coupled, said to be linear": (
        stiffer(lambda k, q, v: 0.05 * (q - jnp.roll(q, 1)) ** 2, linear=True),
        r"Own says linear = True, but a step is not one linear map .*: the parallel scan would .*; remove `linear`",
    ),
    "pendulums, said to be linear": (
        springs(potential=lambda self, q, v: -jnp.sum(jnp.cos(q) + 0.1 * q * v), linear=True),
        r"Own says linear = True, but a step is not one linear map of \(q, p\) for each oscillator",
    ),
    "a constant force, said to be linear": (
        stiffer(lambda k, q, v: q, linear=True),
        r"Own says linear = True, but a step",
    ),
}
# Drives
BAD_DRIVES = {
    "empty": (DRIVES[:0], "the sequence of drives is empty"),
    "integers": (jnp.ones((5, SIZE), int), "the drives must be floating-point, got int32"),
    "not finite": (DRIVES.at[7, 2].set(jnp.nan), "the drives hold numbers that are not finite, at first in step 7"),
    "no array": ({"a": DRIVES}, r"the drives must be one array \(time, ..\), got dict"),
}


@pytest.mark.parametrize("violation", VIOLATIONS)
def test_every_violation_is_named_with_a_way_out(violation):
    hamiltonian, message = VIOLATIONS[violation]
    with pytest.raises(InadmissibleHamiltonian, match=message):
        check_hamiltonian(hamiltonian, DRIVES)


@pytest.mark.usefixtures("unchecked_types")
def test_what_is_no_hamiltonian_is_named():
    with pytest.raises(InadmissibleHamiltonian, match="object is not an AbstractHamiltonian: subclass"):
        check_hamiltonian(object(), DRIVES)


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize("drives", BAD_DRIVES)
def test_drives_are_looked_at(drives):
    drives, message = BAD_DRIVES[drives]
    with pytest.raises(InadmissibleHamiltonian, match=message):
        check_hamiltonian(springs(), drives)


def test_a_step_that_loses_its_digits_does_not_return():
    with pytest.raises(
        InadmissibleHamiltonian, match=r"a step of Own there and back misses .*: the step must be revers"
    ):
        check_hamiltonian(springs(1e9 * ONES), DRIVES[:3])


def test_a_parameter_that_is_being_differentiated_is_no_constant():
    def loss(w):
        check_hamiltonian(Activated(ONES, closing_over(w)), DRIVES)
        return jnp.sum(w)

    with pytest.raises(
        InadmissibleHamiltonian, match=r"Activated.potential uses float32\[8\] from outside, which jax is diff"
    ):
        jax.grad(loss)(ONES)


def test_all_that_is_violated_is_told_at_once():
    uneven = heavier(lambda p: 0.005 * p)
    both = type("Both", (type(uneven),), {"force": lambda self, q, v: 0.1 * v - 0.2 * q})(ONES)
    with pytest.raises(InadmissibleHamiltonian) as caught:
        check_hamiltonian(both, DRIVES)
    assert [reason.split(" is not ")[0] for reason in caught.value.reasons[:2]] == ["Both.kinetic", "Both.force"]
    assert all(reason in str(caught.value) for reason in caught.value.reasons)
    with pytest.raises(
        InadmissibleHamiltonian, match=r"2 violations:\n- Stretched.k is .*\n- Stretched.scale is a Pyth"
    ):
        check_hamiltonian(Stretched(jnp.arange(SIZE), 0.3), DRIVES)


def test_the_key_draws_the_samples():
    def message(seed):
        with pytest.raises(InadmissibleHamiltonian) as caught:
            check_hamiltonian(heavier(lambda p: 0.005 * p), DRIVES, key=jax.random.key(seed))
        return str(caught.value)

    assert message(1) == message(1) != message(2)


# What is admissible


class Masked(Springs):
    """Flags, constants and functions that are no parameters."""

    mask: jax.Array
    power: int = eqx.field(static=True)
    on: bool
    network: eqx.nn.MLP

    def kinetic(self, p):
        return jnp.sum(jnp.asarray([0.05] * SIZE) * p**self.power)

    def potential(self, q, drive):
        well = jnp.where(self.mask, q, 0.0) ** 2 + jnp.linspace(0, 1, SIZE) * CONSTANT * q**2
        return Springs.potential(self, q, drive) + 0.1 * jnp.sum(well) + 0.1 * self.on * self.network(q)


class Reordered(Springs):
    """An array of integers that is an index, and no parameter."""

    index: np.ndarray

    def potential(self, q, drive):
        return Springs.potential(self, q[self.index], drive)


ADMISSIBLE = {
    "linear": linear(),
    "NumPy index": Reordered(ONES, np.arange(SIZE)[::-1].copy()),
    "saturating": saturating(),
    "plain saturating": plain_saturating(),
    "pendulums": pendulums(),
    "constants": Masked(
        ONES, ONES > 0, 2, True, eqx.nn.MLP(SIZE, "scalar", 4, 1, jax.nn.softplus, key=jax.random.PRNGKey(0))
    ),
    "jax number": Stretched(ONES, jnp.asarray(0.3)),
    "NumPy number": Stretched(ONES, np.float32(0.3)),
    "NumPy array": Stretched(ONES, CONSTANT),
    "NumPy array closed over": Activated(ONES, closing_over(CONSTANT)),
    "parameters of zero": springs(0 * ONES),
    "free": springs(potential=lambda self, q, v: 0.0 * jnp.sum(self.k * q * v)),
    "steep": stiffer(lambda k, q, v: jnp.logaddexp(50 * q, -50 * q)),
    "wall": stiffer(lambda k, q, v: jnp.maximum(q - 0.3, 0) ** 2),
    "Toda": stiffer(lambda k, q, v: jnp.exp(2 * q) - 2 * q),
    "Morse": stiffer(lambda k, q, v: (1 - jnp.exp(-2 * q)) ** 2),
    "eighth power": stiffer(lambda k, q, v: q**8),
    "own velocity": springs(velocity=lambda self, p: 0.1 * p),
}


@pytest.mark.parametrize("hamiltonian", ADMISSIBLE)
def test_admissible_hamiltonians_pass(hamiltonian):
    check_hamiltonian(ADMISSIBLE[hamiltonian], DRIVES)


@pytest.mark.parametrize("shape", [(), (2, 3)])
def test_positions_of_any_shape_pass(shape):
    check_hamiltonian(LinearOscillators(A=jnp.ones(shape), step=jnp.full(shape, 0.2)), jnp.ones((4, *shape)))


def test_a_drive_may_have_another_shape_than_a_position():
    driven = springs(potential=lambda self, q, v: jnp.sum(0.05 * self.k * q**2) - 0.1 * q[0] * v)
    check_hamiltonian(driven, DRIVES[:, 0], n_osc=SIZE)
    uneven = heavier(lambda p: 0.005 * p)
    with pytest.raises(InadmissibleHamiltonian, match="is not even"):
        check_hamiltonian(
            type("Own", (type(driven),), {"kinetic": type(uneven).kinetic})(ONES), DRIVES[:, 0], n_osc=SIZE
        )


@pytest.mark.parametrize("system", [saturating, pendulums])
@pytest.mark.parametrize("drives", [DRIVES[:1], 0 * DRIVES, 1e-5 * DRIVES, 1e-12 * DRIVES])
def test_drives_of_any_size_pass(system, drives):
    check_hamiltonian(system(), drives)


# Systems


class Ports(AbstractSystem):
    """A Hamiltonian whose ports a test replaces."""

    hamiltonian: AbstractHamiltonian
    B: jax.Array | float

    def drive(self, inputs):
        return self.B * inputs

    def readout(self, positions, inputs):
        return self.B * positions * inputs[:, :1] + inputs


def ports(B=None, hamiltonian=None, **methods):
    B = 2 * jnp.ones((1, 1)) if B is None else B
    return type("Own", (Ports,), methods)(saturating() if hamiltonian is None else hamiltonian, B)


@pytest.mark.parametrize(
    ("system", "message"),
    [
        (
            ports(readout=lambda self, x, u: jnp.tanh(x)),
            r"Own.readout is not linear in the positions \(.* % off\), .*: read",
        ),
        (ports(readout=lambda self, x, u: x + 1e-2 * x**2), "Own.readout is not linear in the positions"),
        (
            ports(readout=lambda self, x, u: jnp.cumsum(x, axis=0)),
            "Own.readout does not treat every step alike: of a str",
        ),
        (ports(readout=lambda self, x, u: jnp.mean(x, axis=0)), "Own.readout does not treat every step alike"),
        (
            ports(drive=lambda self, u: u - jnp.mean(u, axis=0, keepdims=True)),
            "Own.drive does not treat every step alike",
        ),
        (ports(drive=lambda self, u: OUTSIDE[None] * u), "Own.drive uses the array OUTSIDE from outside, .* no field"),
        (ports(drive=lambda self, u: u @ jnp.ones((3, 3))), "dot_general requires contracting dimensions"),
        (ports(B=2.0), r"Own.B is a Python float, 2.0, and would get no gradient"),
        (ports(hamiltonian=heavier(lambda p: 0.005 * p)), "Own.kinetic is not even"),
        (
            ports(readout=lambda self, x, u: x**2, hamiltonian=heavier(lambda p: 0.005 * p)),
            r"3 violations:\n- Own.kinetic is not even.*\n- .*there and back.*\n- Own.readout is not linear",
        ),
    ],
)
def test_every_violation_of_a_system_is_named(system, message):
    with pytest.raises(InadmissibleSystem, match=message):
        check_system(system, DRIVES)


def test_admissible_systems_pass():
    B_key, C_key = jax.random.split(jax.random.PRNGKey(0))
    B, C = jax.random.normal(B_key, (SIZE, 3)), jax.random.normal(C_key, (3, SIZE))
    check_system(LinearPorts(saturating(), B, C, jnp.ones(3)), DRIVES[:, :3])
    check_system(BareSystem(linear()), DRIVES)
    check_system(ports(), DRIVES)


def refusing(self, q, drive):
    raise TypeError(
        "lax.add requires arguments to have the same dtypes, got int32, int64."
    )  # of jax, for such an index


def test_an_index_that_has_another_type_in_double_precision_is_told_with_the_way_out():
    with pytest.raises(InadmissibleHamiltonian, match="works in both precisions as a NumPy array of int32"):
        check_hamiltonian(springs(potential=refusing), DRIVES)
