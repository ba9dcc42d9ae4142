"""The simulated device: a physical thing whose leapfrog is an approximation, and each of its flaws."""

import dataclasses

import jax
import numpy as np
import pytest

from models import create_model
from models.create import MODELS
from models.physics.in_the_loop import named
from models.physics.machine import Limits, Machine, MachineError
from models.physics.numpy_leapfrog import LAWS, NumpyLeapfrog, law_of
from models.physics.operating import Operator
from models.physics.simulated_device import SimulatedDevice

OSCILLATORS = 3


def parameters(step=0.2):
    random = np.random.default_rng(0)
    alpha, W_diag = random.uniform(0.3, 1, (2, OSCILLATORS))
    return {"W_diag": W_diag, "b": np.full(OSCILLATORS, 0.2), "alpha": alpha, "step": np.full(OSCILLATORS, step)}


def drives(steps=24):
    return np.sin(0.3 * np.arange(steps))[:, None, None] * np.ones((1, 2, OSCILLATORS))


def device(step=0.2, **flaws):
    made = SimulatedDevice(**flaws)
    made.program(parameters(step))
    return made


def echo(machine, v, nudges=0.0):
    """The trace of an echo after a free pass, in the order of the free pass."""
    machine.run(v)
    trace = machine.echo(v[::-1], np.broadcast_to(nudges, v.shape))
    return {name: x[::-1] for name, x in vars(trace).items() if x is not None}


@pytest.mark.parametrize("substeps", [None, 64])
def test_the_leapfrog_approaches_the_device_as_the_square_of_the_time_step(substeps):
    errors = []
    for finer in (1, 2):
        machine, ideal = device(0.2 / finer, substeps=substeps), NumpyLeapfrog()
        assert isinstance(machine, Machine)
        ideal.program(parameters(0.2 / finer))
        v = np.repeat(drives(), finer, axis=0)
        of_run = np.abs(machine.run(v) - ideal.run(v)).max()
        traces = [x.echo(v[::-1], 0.1 * v[::-1] / finer) for x in (machine, ideal)]
        of_echo = [np.abs(getattr(traces[0], name) - getattr(traces[1], name)).max() for name in vars(traces[0])]
        errors.append(np.array([of_run, *of_echo]))
    np.testing.assert_array_less(3, errors[0] / errors[1])
    np.testing.assert_array_less(errors[0] / errors[1], 5)


def test_the_solver_and_the_substeps_agree():
    v = drives()
    np.testing.assert_allclose(device(substeps=64).run(v), device().run(v), atol=1e-4)


def test_an_echo_without_nudges_returns_to_rest_and_a_nudge_kicks_the_momentum():
    v, nudges = drives(), np.zeros((24, 2, OSCILLATORS))
    machine = device(holds_state=True)
    trace = echo(machine, v)
    # The last half step starts from momenta that the device reaches at rest.
    np.testing.assert_allclose(trace["momenta_after"][0], 0, atol=1e-6)
    np.testing.assert_allclose(trace["starts"], machine.run(v), atol=1e-6)
    nudges[5, 1, 2] = 0.1
    kicked = machine.echo(v[::-1], nudges).momenta_before[::-1] - trace["momenta_before"]
    np.testing.assert_allclose(kicked[18, 1, 2], 0.1, atol=1e-6)
    np.testing.assert_allclose(kicked[19:], 0, atol=1e-6)


def test_the_parameters_of_a_device_differ_from_the_programmed_ones_in_the_same_way_each_time():
    v = drives()
    one, ideal = device(spread=0.1, seed=3).run(v), device().run(v)
    assert 1e-3 < np.abs(one - ideal).max() < 1
    np.testing.assert_array_equal(device(spread=0.1, seed=3).run(v), one)
    again = device(spread=0.1, seed=3)
    again.program(parameters())
    np.testing.assert_array_equal(again.run(v), one)
    assert np.abs(device(spread=0.1, seed=4).run(v) - one).max() > 1e-3


@pytest.mark.parametrize("flaw", ["noise", "drift", "replay"])
def test_what_is_drawn_differs_from_pass_to_pass_and_not_from_device_to_device(flaw):
    v = drives()
    passes = [echo(device(**{flaw: 1e-2}), v)["positions"] for _ in range(2)]
    np.testing.assert_array_equal(*passes)
    machine = device(**{flaw: 1e-2}, holds_state=True)
    first, ideal = echo(machine, v)["positions"], echo(device(), v)["positions"]
    second = machine.echo(v[::-1], 0 * v).positions[::-1]
    for other in (second, ideal):
        assert 1e-4 < np.abs(first - other).max() < 0.5


def test_a_resumed_record_continues_the_random_numbers():
    def echoes(operator):
        ticket, _ = operator.run(parameters(), drives(), OSCILLATORS)
        return operator.echoes(ticket, parameters(), drives(), drives())[0].positions

    first, second = Operator(SimulatedDevice(noise=1e-2)), Operator(SimulatedDevice(noise=1e-2))
    echoes(first)
    second.resume(dataclasses.asdict(first.record))
    np.testing.assert_array_equal(echoes(second), echoes(first))


def test_noise_and_replay_leave_the_free_pass_alone():
    np.testing.assert_array_equal(device(noise=0.1, replay=0.1).run(drives()), device().run(drives()))


def test_friction_stops_the_device_and_a_flip_may_be_too_strong_or_turned():
    v = drives()
    assert np.abs(device(damping=2.0).run(v)).max() < 0.3 * np.abs(device().run(v)).max()
    ideal, strong = echo(device(), v), echo(device(flip_amplitude=0.5), v)
    np.testing.assert_allclose(strong["momenta_before"][-1], 1.5 * ideal["momenta_before"][-1])
    turned = echo(device(flip_phase=np.pi / 2), v)
    np.testing.assert_allclose(turned["starts"][-1], -ideal["momenta_before"][-1])


def test_converters_clip_and_round():
    v = drives()
    coarse = device(bits=4, readout_range=0.5, drive_range=0.25, nudge_range=0.1)
    assert (coarse.limits.drive, coarse.limits.nudge) == (0.25, 0.1)
    q = coarse.run(4 * v)
    np.testing.assert_array_equal(q, np.round(q * 16) / 16)
    assert np.abs(q).max() == 0.5
    clipped = np.round(np.clip(4 * v, -0.25, 0.25) * 32) / 32
    np.testing.assert_array_equal(q, device(bits=4, readout_range=0.5).run(clipped))


def test_a_device_without_momenta_leaves_them_out():
    trace = echo(device(momenta=False), drives())
    assert set(trace) == {"positions", "starts"}


@pytest.mark.parametrize("machine", [SimulatedDevice(), NumpyLeapfrog(Limits())], ids=["device", "leapfrog"])
def test_an_echo_needs_a_run_and_a_law_needs_known_parameters(machine):
    machine.program(parameters())
    machine.run(drives())
    machine.echo(drives(), drives())
    with pytest.raises(MachineError, match="an echo needs a run before it"):
        machine.echo(drives(), drives())
    with pytest.raises(MachineError, match="no known unit has the parameters mass"):
        machine.program({"mass": np.ones(1)})


@pytest.mark.parametrize(
    ("flaws", "words"),
    [
        ({"spread": -0.1}, "spread must be finite and at least 0, got -0.1"),
        ({"flip_amplitude": -1.0}, "flip_amplitude must be finite and above -1"),
        ({"bits": 8}, "need drive_range, nudge_range or readout_range"),
        ({"substeps": 3}, "substeps must be an even number of at least 2, got 3"),
        ({"readout_range": 0.0}, "readout_range must be above 0"),
        ({"drive_range": -1.0}, "drive must be above 0"),
        ({"tolerance": 1.0}, "tolerance must lie between 0 and 1"),
        ({"seed": -1}, "seed must be at least 0"),
    ],
)
def test_a_flaw_outside_its_range_is_refused(flaws, words):
    with pytest.raises(ValueError, match=words):
        SimulatedDevice(**flaws)


@pytest.mark.parametrize("name", MODELS)
def test_the_laws_are_those_of_the_units(name):
    sizes = {"data_dim": 2, "label_dim": 2, "hidden_dim": 4, "num_blocks": 1, "ssm_dim": OSCILLATORS}
    model, _ = create_model(name, **sizes, classification=True, key=jax.random.PRNGKey(0))
    hamiltonian = model.blocks[0].unit.hamiltonian()
    parameters = {name: np.asarray(x) for name, x in named(hamiltonian).items()}
    q, p, v = jax.random.normal(jax.random.PRNGKey(1), (3, len(parameters["step"])))
    law = LAWS[name]
    assert law_of(parameters) is law
    np.testing.assert_allclose(law.velocity(parameters, p), jax.grad(hamiltonian.kinetic)(p), rtol=1e-5)
    np.testing.assert_allclose(-law.force(parameters, q, v), jax.grad(hamiltonian.potential)(q, v), rtol=1e-4)
