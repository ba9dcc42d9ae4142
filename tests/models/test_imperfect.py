"""The echo on an imperfect machine: strength zero is the ideal machine, and each imperfection has its leading order."""

from dataclasses import fields
from functools import cache

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from systems import assert_close, leaf_errors, linear, pendulums, saturating

from models import create_model, evolve
from models.physics.imperfect import EchoImperfection, ImperfectBPTT, ImperfectRHEL, quantum
from models.rhel import BPTT, RHEL, BareSystem, with_learning_algorithm

INCOMING = np.random.default_rng(4).normal(size=(2, 30, 5))
PARTS = [field.name for field in fields(EchoImperfection)]


def machine(**strengths):
    """An imperfect machine with every part, at strength zero where none is given: one compiled program for all."""
    return EchoImperfection(**{name: jnp.asarray(strengths.get(name, 0.0)) for name in PARTS})


@eqx.filter_grad
def plain_gradient(hamiltonian_and_drives, algorithm, incoming=INCOMING):
    """Over a batch of two sequences."""
    hamiltonian, drives = hamiltonian_and_drives
    return jnp.vdot(
        jax.vmap(lambda v: evolve(hamiltonian, v, learning_algorithm=algorithm))(drives), jnp.asarray(incoming)
    )


gradient = eqx.filter_jit(plain_gradient)


def problem(system, seed=0):
    return system(5), jax.random.normal(jax.random.PRNGKey(seed), INCOMING.shape)


def rhel(epsilon=1e-2, seed=0, **strengths):
    return ImperfectRHEL(machine(**strengths), jnp.asarray(epsilon), jnp.asarray(seed))


def error(system, epsilon=1e-2, seed=0, **strengths):
    """Of the whole gradient, relative, against reverse mode of the same free pass."""
    where = problem(system, seed)
    value = gradient(where, rhel(epsilon, seed, **strengths))
    reference = gradient(where, ImperfectBPTT(machine(**strengths)))
    return max(leaf_errors(value, reference).values())


@pytest.mark.parametrize("system", [linear, saturating, pendulums])
def test_without_imperfections_it_is_the_literal_echo(x64, system):
    where = problem(system)
    value = gradient(where, ImperfectRHEL(epsilon=1e-2))
    assert_close(value, gradient(where, RHEL(1e-2, literal=True, chunk=30)), 1e-11)
    assert_close(gradient(where, ImperfectBPTT()), gradient(where, BPTT()), 1e-13)


@cache
def operation_by_operation(system, imperfection=None):
    """The gradient over three steps. Compiled as a whole, two programs are fused, and so rounded, differently."""
    hamiltonian, drives = problem(system)
    part = {} if imperfection is None else {imperfection: jnp.asarray(0.0)}
    with jax.disable_jit():
        algorithm = ImperfectRHEL(EchoImperfection(**part))
        return jax.tree.leaves(plain_gradient((hamiltonian, drives[:, :3]), algorithm, INCOMING[:, :3]))


@pytest.mark.parametrize(("part", "system"), list(zip(PARTS, [linear, saturating] * 5, strict=True)))
def test_strength_zero_is_the_ideal_machine_bitwise(system, part):
    present, absent = operation_by_operation(system, part), operation_by_operation(system)
    for a, b in zip(present, absent, strict=True):
        np.testing.assert_array_equal(a, b)


def test_strength_zero_is_the_ideal_machine_compiled(x64):
    where = problem(saturating)
    assert_close(gradient(where, rhel()), gradient(where, ImperfectRHEL()), 1e-10)


@pytest.mark.parametrize("part", PARTS)
def test_every_part_takes_effect(x64, part):
    assert error(linear, **{part: 1e-2}) > 10 * error(linear) + 1e-6


# Leading orders


def typical_error(seeds=8, **how):
    return np.mean([error(seed=seed, **how) for seed in range(seeds)])


@pytest.mark.parametrize(
    "part", ["flip_amplitude", "flip_phase", "damping", "drift", "replay", "recording", "noise", "nudge_quantum"]
)
def test_the_error_grows_in_proportion_to_the_strength(x64, part):
    small, large = (typical_error(16, system=linear, **{part: strength}) for strength in (1e-5, 1e-4))
    rounds = part == "nudge_quantum"  # in proportion on average alone
    assert large == pytest.approx(10 * small, rel=0.3 if rounds else 0.02)


def test_rounding_of_the_readout_grows_with_the_quantum_and_shrinks_with_the_nudge(x64):
    fine, coarse, strong = (
        typical_error(32, system=linear, epsilon=epsilon, readout_quantum=2.0**-bits)
        for epsilon, bits in ((0.1, 16), (0.1, 12), (1.6, 12))
    )
    assert 8 < coarse / fine < 32
    assert 8 < coarse / strong < 32


@pytest.mark.parametrize(("asymmetry", "order"), [(0.0, 2), (1.0, 1)])
def test_two_sided_nudges_err_as_epsilon_squared_one_sided_as_epsilon(x64, asymmetry, order):
    small, large = (error(saturating, epsilon, asymmetry=asymmetry) for epsilon in (0.01, 0.02))
    assert np.log2(large / small) == pytest.approx(order, abs=0.1)


@pytest.mark.parametrize("part", ["noise", "drift", "replay"])
def test_what_differs_between_the_echoes_is_drowned_by_larger_nudges(x64, part):
    small, large = (typical_error(4, system=linear, epsilon=epsilon, **{part: 1e-6}) for epsilon in (0.01, 0.1))
    assert small == pytest.approx(10 * large, rel=0.1)


def test_noise_averages_out(x64):
    where = problem(linear)
    reference = gradient(where, BPTT())
    values = [gradient(where, rhel(seed=seed, noise=1e-4)) for seed in range(128)]

    def spread(n):
        """Error of the mean of n gradients, root-mean-square over disjoint groups."""
        means = [jax.tree.map(lambda *x: sum(x) / n, *values[i : i + n]) for i in range(0, len(values), n)]
        return np.sqrt(np.mean([max(leaf_errors(mean, reference).values()) ** 2 for mean in means]))

    assert spread(1) / spread(16) == pytest.approx(4, rel=0.35)


# What a user of it relies on


@eqx.filter_jit
def single_gradient(hamiltonian, drives, incoming, machine):
    def response(hamiltonian):
        return jnp.vdot(evolve(hamiltonian, drives, learning_algorithm=machine), incoming)

    return eqx.filter_grad(response)(hamiltonian)


@pytest.mark.parametrize(
    "change",
    [
        lambda drives, incoming: (drives, 2 * incoming),
        lambda drives, incoming: (drives, -incoming),
        lambda drives, incoming: (drives, incoming[::-1]),
        lambda drives, incoming: (drives, incoming[:, ::-1]),
        lambda drives, incoming: (drives.at[7, 2].multiply(1 + 1e-15), incoming),
    ],
)
def test_noise_is_drawn_anew_for_all_that_differs_in_a_bit(x64, change):
    """What the noise adds to the gradient is unrelated in the two runs."""
    hamiltonian, drives = problem(linear)
    runs = [(drives[0], jnp.asarray(INCOMING[0])), change(drives[0], jnp.asarray(INCOMING[0]))]

    def noise_of(run):
        noisy, clean = (single_gradient(hamiltonian, *run, rhel(noise=strength)) for strength in (1e-6, 0.0))
        # Relative to one gradient for both runs: another scale of a run is no other noise.
        gradients = map(jax.tree.leaves, (noisy, clean, of_first))
        return np.concatenate([(x - y) / np.linalg.norm(z) for x, y, z in zip(*gradients, strict=True)])

    of_first = single_gradient(hamiltonian, *runs[0], rhel())
    first, again, other = noise_of(runs[0]), noise_of(runs[0]), noise_of(runs[1])
    np.testing.assert_array_equal(first, again)
    for sign in (1, -1):
        assert np.linalg.norm(first - sign * other) > 0.3 * np.linalg.norm(first)


@pytest.mark.parametrize("part", ["drift", "recording"])
def test_a_part_does_not_change_what_another_draws(x64, part):
    where, incoming = problem(linear), INCOMING
    with_part = EchoImperfection(noise=jnp.asarray(1e-3), **{part: jnp.asarray(0.0)})
    found, alone = (
        gradient(where, ImperfectRHEL(x), incoming) for x in (with_part, EchoImperfection(noise=jnp.asarray(1e-3)))
    )
    assert_close(found, alone, 1e-9)  # compiled, two programs round differently


def test_parts_are_drawn_from_keys_of_their_own():
    """Parts at strength zero, of which each has as many numbers as there are drives."""
    drives = jnp.zeros((4, 5))
    drawn = machine().draws(jax.random.PRNGKey(0), linear(5), drives, drives)
    rows = np.concatenate([np.reshape(x, (-1, 20)) for x in (*drawn["noise"], drawn["replay"], drawn["recording"][0])])
    assert len(np.unique(rows, axis=0)) == len(rows) == 7
    # Noise for 12 oscillators that share 5 drives.
    noise = machine(noise=0.0).draws(jax.random.PRNGKey(0), linear(5), drives, jnp.zeros((4, 12)))["noise"]
    assert [x.shape for x in noise] == [(2, 4, 12)] * 2
    assert len(np.unique(noise)) == 2 * 2 * 4 * 12


@pytest.mark.parametrize("mapped", ["seed", "epsilon", "noise"])
def test_a_gradient_outside_a_vmap_over_the_machine_is_the_sum(x64, mapped):
    hamiltonian, drives = problem(linear)
    values = jnp.asarray([1, 2, 3]) if mapped == "seed" else jnp.asarray([0.01, 0.02, 0.05])

    def machine_at(value):
        return rhel(**{"noise": 1e-3, mapped: value})

    def response(hamiltonian, value):
        return jnp.vdot(evolve(hamiltonian, drives[0], learning_algorithm=machine_at(value)), jnp.asarray(INCOMING[0]))

    def total(hamiltonian):
        return jnp.sum(jax.vmap(response, (None, 0))(hamiltonian, values))

    outside = eqx.filter_jit(eqx.filter_grad(total))(hamiltonian)
    inside = eqx.filter_jit(eqx.filter_vmap(eqx.filter_grad(response), in_axes=(None, 0)))(hamiltonian, values)
    assert_close(outside, jax.tree.map(lambda x: jnp.sum(x, axis=0), inside), 1e-9)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_the_scale_of_the_incoming_gradient_cancels(scale):
    where = problem(linear)
    found = gradient(where, rhel(), np.float32(scale) * INCOMING.astype(np.float32))
    expected = gradient(where, rhel(), INCOMING.astype(np.float32))
    assert_close(jax.tree.map(lambda x: x / np.float32(scale), found), expected, 1e-3)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("noise", -1e-3),
        ("drift", np.nan),
        ("replay", -1.0),
        ("recording", np.inf),
        ("readout_quantum", -0.1),
        ("nudge_quantum", jnp.asarray([0.1, -0.1])),
        ("damping", -0.1),
        ("asymmetry", 2.0),
        ("asymmetry", -0.5),
        ("flip_amplitude", -1.0),
        ("flip_phase", np.inf),
    ],
)
def test_impossible_strengths_are_refused(name, value):
    with pytest.raises(ValueError, match=f"the strength {name} must be .*, got "):
        EchoImperfection(**{name: value})


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"epsilon": 0.0}, "epsilon must be positive and finite, got 0.0"),
        ({"epsilon": -1e-2}, "epsilon must be positive and finite, got -0.01"),
        ({"epsilon": jnp.asarray(jnp.nan)}, "epsilon must be positive and finite, got nan"),
        ({"seed": 1.5}, "the seed must be a whole number, got 1.5"),
    ],
)
def test_an_impossible_machine_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        ImperfectRHEL(**arguments)


def test_a_readout_that_is_not_linear_is_refused():
    class Squared(BareSystem):
        def readout(self, positions, inputs):
            return positions**2

    with pytest.raises(ValueError, match=r"Squared.readout is not linear in the positions"):
        ImperfectRHEL()(Squared(linear(5)), jnp.ones((4, 5)))


def test_a_sequence_without_gradient_has_none_through_all_imperfections(x64):
    found = gradient(problem(linear), rhel(**dict.fromkeys(PARTS, 0.1)), 0 * INCOMING)
    assert all(np.all(leaf == 0) for leaf in jax.tree.leaves(found))


def test_quantum_of_bits():
    assert [float(quantum(bits)) for bits in (1, 4, 8)] == [1, 1 / 8, 1 / 128]


def test_a_network_trains_its_parameters_and_not_the_strengths(x64):
    model, state = create_model(
        "LinHRU", 3, 2, 4, 1, 3, classification=True, dropout_rate=0.0, remat=False, key=jax.random.PRNGKey(0)
    )
    x = jax.random.normal(jax.random.PRNGKey(1), (4, 12, 3))

    @eqx.filter_jit
    @eqx.filter_grad
    def model_gradient(model):
        outputs, _ = jax.vmap(model, axis_name="batch", in_axes=(0, None), out_axes=(0, None))(x, state)
        return jnp.sum(outputs**2)

    damped = EchoImperfection(damping=jnp.asarray(0.1))
    algorithms = ImperfectRHEL(damped, jnp.asarray(1e-3), jnp.asarray(0)), ImperfectBPTT(damped)
    found, reference = (model_gradient(with_learning_algorithm(model, algorithm)) for algorithm in algorithms)
    strengths = [tree.blocks[0].unit.learning_algorithm for tree in (found, reference)]
    assert all(np.all(leaf == 0) for leaf in jax.tree.leaves(eqx.filter(strengths, eqx.is_inexact_array)))
    unit, exact = (with_learning_algorithm(tree, BPTT()).blocks[0].unit for tree in (found, reference))
    assert_close((unit.C, unit.D), (exact.C, exact.D), 1e-9)
    assert min(leaf_errors((unit.A, unit.step, unit.B), (exact.A, exact.step, exact.B)).values()) > 1e-2
