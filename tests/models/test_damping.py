"""Damped linear oscillators: the gauge is exact, over any length, and so is the echo in it."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from systems import assert_close, leaf_errors, linear, saturating

from models import create_model
from models.LinHRU import LinearOscillators, LinHRULayer
from models.physics import damping
from models.physics.damping import respond_damped
from models.rhel import BPTT, RHEL
from models.rhel.backprop import ReversibleBPTT
from models.rhel.hamiltonian import leapfrog
from models.rhel.retrace import RetraceWarning, retrace_errors
from models.rhel.system import BareSystem, rest_state

SIZE = 5


def recurrence(hamiltonian, rate, drives):
    """The damped recurrence as it stands, for reverse mode."""

    def step(state, drive):
        state, _ = leapfrog(hamiltonian.velocity, hamiltonian.force, state, drive)
        state = jax.tree.map(lambda x: x * jnp.exp(-rate), state)
        return state, state[0]

    return jax.lax.scan(step, rest_state(BareSystem(hamiltonian), drives), drives)[1]


def in_gauge(algorithm):
    return lambda hamiltonian, rate, drives: respond_damped(algorithm, BareSystem(hamiltonian), rate, drives)


def problem(length, loss):
    """Oscillators whose gamma dt L is between half of `loss` and `loss`, drives, and the incoming gradient."""
    rate = 0.5 * loss / length * jnp.linspace(0.5, 1, SIZE)
    drives, incoming = (jax.random.normal(jax.random.PRNGKey(seed), (length, SIZE)) for seed in (1, 2))
    return (linear(SIZE), rate, drives), incoming


def gradient(respond, parameters, incoming):
    return eqx.filter_jit(eqx.filter_value_and_grad(lambda x: jnp.vdot(incoming, respond(*x))))(parameters)


@pytest.mark.parametrize("algorithm", [RHEL(), BPTT()])
@pytest.mark.parametrize(("length", "loss"), [(45, 0.0), (45, 1.0), (45, 100.0), (1000, 100.0), (5, 1.0)])
def test_gradient_is_reverse_mode_of_the_damped_recurrence(x64, algorithm, length, loss):
    parameters, incoming = problem(length, loss)
    found = gradient(in_gauge(algorithm), parameters, incoming)
    assert_close(found, gradient(recurrence, parameters, incoming), 1e-12)


@pytest.mark.parametrize("shape", [(2, 3), (), (3,)])
def test_positions_may_have_any_shape_and_one_rate_may_serve_all(x64, shape):
    rate = 0.05 * jnp.ones(() if shape == (3,) else shape)
    drives, incoming = (jax.random.normal(jax.random.PRNGKey(seed), (20, *shape)) for seed in (1, 2))
    hamiltonian = LinearOscillators(A=jnp.full(shape, 0.7), step=jnp.full(shape, 0.2))
    parameters = (hamiltonian, rate, drives)
    for algorithm in (RHEL(), BPTT()):
        found = gradient(in_gauge(algorithm), parameters, incoming)
        assert_close(found, gradient(recurrence, parameters, incoming), 1e-12)


def test_single_precision_suffices():
    parameters, incoming = problem(1000, 100.0)
    found = gradient(in_gauge(RHEL()), parameters, incoming)
    assert_close(found, gradient(recurrence, parameters, incoming), 1e-4)


def test_one_gauge_for_the_whole_sequence_loses_the_digits(x64, monkeypatch):
    parameters, incoming = problem(48, 30.0)
    reference = gradient(recurrence, parameters, incoming)
    errors = []
    for chunk in (8, 48):
        monkeypatch.setattr(damping, "CHUNK", chunk)
        errors.append(max(leaf_errors(gradient(in_gauge(RHEL()), parameters, incoming), reference).values()))
    assert errors[0] < 1e-14
    assert errors[1] > 1e-11


def test_a_damped_machine_needs_no_gain(x64):
    """The echo of the damped oscillators themselves, over attenuated drives."""
    length, a = 10, 0.1
    (hamiltonian, rate, drives), incoming = problem(length, 2.0)
    _, (hamiltonian_grad, _, drives_grad) = gradient(recurrence, (hamiltonian, rate, drives), incoming)
    shrink = jnp.exp(-rate)

    def step(state, drive):
        state, q_half = leapfrog(hamiltonian.velocity, hamiltonian.force, state, drive)
        return jax.tree.map(lambda x: shrink * x, state), (q_half, state[1])

    q, p = rest_state(BareSystem(hamiltonian), drives)
    for drive in drives:
        (q, p), _ = step((q, p), drive)
    echoes = [(q, -p), (q, -p)]
    A_grad, by_drive = jnp.zeros(SIZE), []
    for n, (drive, error) in enumerate(zip(drives[::-1], incoming[::-1], strict=True)):
        kicked = [(q, p + sign * a * error) for (q, p), sign in zip(echoes, (1, -1), strict=True)]
        (plus, (q_plus, _)), (minus, (q_minus, _)) = (step(state, shrink ** (2 * n + 1) * drive) for state in kicked)
        echoes = [plus, minus]
        A_grad -= shrink ** (-2 * n) / (2 * a) * hamiltonian.step / 2 * (q_plus**2 - q_minus**2)
        by_drive.append(shrink / (2 * a) * hamiltonian.step * (q_plus - q_minus))
    assert_close((A_grad, jnp.stack(by_drive[::-1])), (hamiltonian_grad.A, drives_grad), 1e-12)


def test_too_strong_a_damping_is_an_error():
    (hamiltonian, rate, drives), incoming = problem(20, 1.0)
    with pytest.raises(RuntimeError, match=r"gamma \* step is above .*; bound the damping, or take a smaller step"):
        gradient(in_gauge(RHEL()), (hamiltonian, rate + 2, drives), incoming)


@pytest.mark.parametrize(
    ("system", "algorithm", "length", "message"),
    [
        (linear, RHEL(), 0, "the sequence is empty"),
        (saturating, RHEL(), 3, "needs a linear system; SaturatingOscillators is not"),
        (linear, RHEL(literal=True), 3, r"not by RHEL\(.*literal=True"),
        (linear, ReversibleBPTT(), 3, "not by ReversibleBPTT"),
    ],
)
def test_what_cannot_be_damped_is_refused(system, algorithm, length, message):
    with pytest.raises(ValueError, match=message):
        respond_damped(algorithm, BareSystem(system(SIZE)), jnp.zeros(SIZE), jnp.zeros((length, SIZE)))


# The unit


def layer_gradient(layer, inputs):
    outputs = jax.vmap(layer)(inputs)
    return jnp.sum(outputs**2)


def test_gamma_zero_is_the_undamped_unit(x64):
    inputs = jax.random.normal(jax.random.PRNGKey(1), (3, 20, 4))
    plain, damped = (LinHRULayer(4, 3, damping=option, key=jax.random.PRNGKey(0)) for option in (False, True))
    damped = eqx.tree_at(lambda layer: layer.gamma, damped, jnp.zeros(3))
    values = [eqx.filter_jit(eqx.filter_value_and_grad(layer_gradient))(layer, inputs) for layer in (plain, damped)]
    (value, plain), (damped_value, damped) = values
    names = ("A", "step", "B", "C", "D")
    assert len(jax.tree.leaves(plain)) == len(names)
    of_damped, of_plain = ([getattr(layer, name) for name in names] for layer in (damped, plain))
    assert_close((damped_value, *of_damped), (value, *of_plain), 1e-12)
    # A gamma that starts at 0 can leave it.
    assert np.all(damped.gamma != 0)


def test_a_network_of_damped_units_has_the_gradient_of_bptt(x64):
    x = jax.random.normal(jax.random.PRNGKey(1), (4, 20, 3))

    @eqx.filter_jit
    @eqx.filter_grad
    def gradient(model, state):
        outputs, _ = jax.vmap(model, axis_name="batch", in_axes=(0, None), out_axes=(0, None))(x, state)
        return jnp.sum(outputs**2)

    options = {
        "classification": True,
        "dropout_rate": 0.0,
        "remat": False,
        "damping": True,
        "key": jax.random.PRNGKey(0),
    }
    found, reference = (
        gradient(*create_model("LinHRU", 3, 2, 4, 1, 3, learning_algorithm=name, **options))
        for name in ("RHEL", "BPTT")
    )
    assert_close(*map(jax.tree.leaves, (found, reference)), 1e-11)
    assert all(np.all(block.unit.gamma != 0) for block in found.blocks)


def test_the_echo_of_a_damped_network_returns():
    model, state = create_model(
        "LinHRU", 3, 2, 4, 2, 3, classification=True, dropout_rate=0.0, damping=True, key=jax.random.PRNGKey(0)
    )
    x = jax.random.normal(jax.random.PRNGKey(1), (2, 20, 3))
    errors = retrace_errors(model, state, x)
    assert errors.shape == (2, 2)
    assert np.all((errors > 0) & (errors < 1e-5))
    # Unstable oscillators, A step^2 > 4: the gauge begins anew every 8 steps, and within these the echo is lost.
    unstable = eqx.tree_at(lambda m: m.blocks[1].unit.A, model, jnp.full(3, 40.0))
    with pytest.warns(RetraceWarning, match="the echo of unit 1 misses its initial state"):
        assert np.all(retrace_errors(unstable, state, x)[:, 1] > 1e-3)


@pytest.mark.parametrize(
    ("model_name", "algorithm", "message"),
    [
        ("NonlinHRU", "RHEL", "damping is an option of LinHRU, not of NonlinHRU"),
        ("LinHRU", "ReversibleBPTT", "damping works with RHEL or BPTT, not with ReversibleBPTT"),
    ],
)
def test_a_model_that_cannot_be_damped_is_refused(model_name, algorithm, message):
    with pytest.raises(ValueError, match=message):
        create_model(
            *(model_name, 3, 2, 4, 2, 3),
            classification=True,
            damping=True,
            learning_algorithm=algorithm,
            key=jax.random.PRNGKey(0),
        )
