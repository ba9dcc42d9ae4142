"""The check of a machine: each rung sees the flaw that it is for, and no other."""

import dataclasses
import math
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from systems import saturating

from models.check import agreement
from models.check.machine import _plain_passes, check_machine
from models.check.machine_bench import Bench
from models.check.machine_numbers import DRIVES, TOLERATED
from models.physics.in_the_loop import MachineInTheLoop, named
from models.physics.machine import Limits, MachineError
from models.physics.numpy_leapfrog import NumpyLeapfrog
from models.physics.operating import Operator
from models.physics.process_machine import ProcessMachine
from models.physics.simulated_device import SimulatedDevice
from models.rhel import BPTT, evolve

STEPS, BATCH, OSCILLATORS = 40, 2, 3
UNIT = saturating(OSCILLATORS, dt=0.25)
V = 0.3 * np.random.default_rng(0).normal(size=(STEPS, BATCH, OSCILLATORS)).cumsum(0)


def loss(positions):
    """A loss that is not linear."""
    return jnp.mean(jnp.cos(positions))


def verdicts(report):
    """The verdict of each rung."""
    return [rung.verdict for rung in report.rungs()]


def check(machine, **options):
    """A short check."""
    return check_machine(machine, UNIT, V, **{"epsilons": (0.01, 0.1, 0.3), "directions": 3, "loss": loss} | options)


def test_the_example_device_has_no_limit():
    device = ProcessMachine([sys.executable, str(Path(__file__).parents[2] / "examples" / "device.py")], time_limit=20)
    operator = Operator(device)
    report = check(operator)
    device.close()
    assert verdicts(report) == ["good"] * 7
    # Three free passes with an echo; three epsilons and two repetitions of three passes; two for each direction.
    assert report.passes == operator.record.passes == 6 + 3 * (3 + 2) + 2 * 3 * 5
    assert report.nudges.best == 0.01
    assert np.all(np.diff(report.nudges.changes) > 0)
    assert report.measured.drift == report.measured.runs.max() == report.measured.echoes.max() == 0
    assert report.measured.forward.max() < 1e-6
    assert report.measured.friction is not None
    assert abs(report.measured.friction) < 5e-3
    assert set(report.arrays) == {"W_diag", "b", "alpha", "step", DRIVES}
    for name, array in report.arrays.items():
        assert array.cosine > 0.9999, name
        # The size of the nudges explains what differences leave.
        assert array.error < 1e-4, name
        assert array.noise < 1e-9, name
        assert array.repetitions == 1
    assert report.limit() == "No part of the error of a gradient is above 14 %."
    assert "epsilon 0.01" in str(report)
    assert [len(row) for row in report.rows()] == [4] * 8
    assert len(report.array_rows()) == 6


def test_without_momenta_or_starts_the_check_leaves_out_the_kinetic_energy_and_keeps_the_bound():
    class Silent(NumpyLeapfrog):
        def echo(self, drives, nudges):
            trace = super().echo(drives, nudges)
            return type(trace)(trace.positions)

    machine = Silent(Limits(momenta=False, holds_state=True, nudge=1e-3))
    report = check(machine, passes=31)
    assert report.passes <= 31
    assert set(report.arrays) == {"W_diag", "b", "alpha", DRIVES}
    assert "Not checked, because the machine measures no momenta: step." in str(report)
    # No nudge is above the limit: the record would have warned.
    assert max(report.nudges.epsilons) < 0.1
    assert verdicts(report) == ["good"] * 7
    assert report.measured.echo.max() < 1e-9
    assert report.measured.friction is not None
    assert abs(report.measured.friction) < 1e-2
    # The smallest sizes are left out first.
    assert len(report.nudges.epsilons) == 2
    with pytest.raises(ValueError, match="the check needs at least 31 passes of the machine, above the bound of 30"):
        check(machine, passes=30)


def test_friction_is_measured_lost_on_the_way_predicted_and_seen_in_the_gradient():
    report = check(SimulatedDevice(damping=1.0 / STEPS, substeps=8), repetitions=2)
    assert report.measured.friction == pytest.approx(1.0, rel=0.02)
    assert 0.05 < report.tolerated_friction < 1.0
    forward, echo, nudges, gradient, drift, noise, friction = report.rungs()
    assert [x.verdict for x in (echo, friction, gradient)] == ["limits"] * 3
    assert [x.verdict for x in (nudges, drift, noise)] == ["good"] * 3
    assert "lost on the way: friction" in echo.words
    assert "friction explains most of it" in gradient.words
    worst = max(report.arrays.values(), key=lambda x: x.error)
    assert worst.error == pytest.approx(worst.friction, rel=0.3)
    assert "The largest part of the error is friction" in report.limit()
    assert forward.number.startswith("1")


def test_drift_is_measured_in_parameters_and_the_noise_says_how_many_gradients_to_average():
    drift = 3e-3
    device = SimulatedDevice(drift=drift, substeps=2, seed=1)
    report = check(device, repetitions=4, directions=2)
    assert report.measured.drift == pytest.approx(drift, rel=0.6)
    assert report.rungs()[5].verdict == "limits"
    worst = max(report.arrays.values(), key=lambda x: x.noise)
    assert worst.repetitions == math.ceil((worst.noise / TOLERATED) ** 2) > 1
    assert dataclasses.replace(worst, noise=0.5).repetitions == 13
    assert report.nudges.best > 0.01
    assert f"average {worst.repetitions:g}" in report.rungs()[5].number


class NoNudge(NumpyLeapfrog):
    def echo(self, drives, nudges):
        return super().echo(drives, 0 * nudges)


class LateNudge(NumpyLeapfrog):
    def echo(self, drives, nudges):
        return super().echo(drives, np.concatenate([0 * nudges[:1], nudges[:-1]]))


class HalfNudge(NumpyLeapfrog):
    def echo(self, drives, nudges):
        return super().echo(drives, 0.4 * nudges)


class EndPositions(NumpyLeapfrog):
    """Reports the positions of an echo at the end of the step instead of the half."""

    def _played(self, *arguments):
        positions, state, trace = super()._played(*arguments)
        return positions, state, dataclasses.replace(trace, positions=positions)


class NoRest(NumpyLeapfrog):
    """Starts a run where the last pass ended."""

    state = ()

    def run(self, drives):
        rest = np.zeros(drives.shape[1:])
        positions, self._end = self._played(self.state or (rest, rest), drives)[:2]
        self.state = self._end
        return positions

    def echo(self, drives, nudges):
        assert self._end is not None
        q, p = self._end
        _, self.state, trace = self._played((q, -p), drives, nudges)
        return trace


class StrongAlpha(NumpyLeapfrog):
    def program(self, parameters):
        super().program(parameters | {"alpha": 1.05 * parameters["alpha"]})


def short(machine):
    """The shortest check, by one sequence."""
    return check_machine(machine, UNIT, V[:, 0], epsilons=(0.1, 0.3), repetitions=2, directions=2, loss=loss)


@pytest.fixture(scope="module")
def strong_alpha():
    return short(StrongAlpha())


def with_passes_of(report, machine):
    """The report, with the plain passes of another machine."""
    with jax.enable_x64(True):
        bench = Bench(machine, UNIT, V, loss, None, 0)
        return dataclasses.replace(report, measured=_plain_passes(bench))


def test_a_parameter_that_the_machine_scales_is_named_with_its_factor(strong_alpha):
    assert verdicts(strong_alpha) == ["good"] * 7
    name, worst = strong_alpha.worst()
    assert worst.error == max(x.error for x in strong_alpha.arrays.values())
    alpha = strong_alpha.arrays["alpha"]
    assert alpha.factor == pytest.approx(1.05, abs=1e-3)
    assert alpha.error == pytest.approx(0.05 / 1.05, rel=0.02)
    gradient = strong_alpha.rungs()[3]
    assert f"(largest error: {name})" in gradient.number
    assert "As if the machine scaled what is programmed: alpha by 1.05." in gradient.words
    assert "give the same gradient to 14 %" in strong_alpha.rungs()[2].words
    # The table of the arrays is part of the text.
    assert "\nalpha " in str(strong_alpha)


def test_the_array_with_the_largest_error_is_named(strong_alpha):
    alpha = strong_alpha.arrays["alpha"]
    arrays = {
        "long": dataclasses.replace(alpha, error=0.3, factor=0.8),
        "turned": dataclasses.replace(alpha, error=0.2, cosine=0.98, factor=1.0),
    }
    report = dataclasses.replace(strong_alpha, arrays=arrays)
    gradient = report.rungs()[3]
    assert gradient.verdict == "limits"
    assert "error 30 %" in gradient.number
    assert "largest error: long" in gradient.number
    assert "The direction is right and the length is not. As if the machine scaled" in gradient.words
    # The last line names the same array, by its largest part.
    assert report.limit().endswith("30 % of the gradient of long.")
    by_friction = dataclasses.replace(
        report, arrays={"long": dataclasses.replace(arrays["long"], factor=1, friction=0.29)}
    )
    assert "friction explains most of it" in by_friction.rungs()[3].words
    assert "is friction: 29 % of the gradient of long" in by_friction.limit()


def test_a_machine_that_ignores_the_nudges_is_named():
    report = short(NoNudge(Limits(drive=0.5, holds_state=True)))
    assert report.measured.nudge == (0, 0)
    assert [x.verdict for x in report.rungs()[2:4]] == ["limits"] * 2
    assert "The nudges have no effect: the gradient is 0." in report.rungs()[2].words
    assert report.limit() == report.rungs()[2].words
    # The drives are scaled to leave room below the limit.
    assert report.scaled == pytest.approx(0.45 / np.abs(V[:, 0]).max())
    assert f"The drives are scaled by {report.scaled:.2g}" in str(report)


@pytest.mark.parametrize("momenta", [True, False])
@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (LateNudge, "A nudge has no effect in its own step."),
        (HalfNudge, "A nudge changes the momenta by 0.4 of its size."),
        (EndPositions, "a nudge moves the positions of the echo 2 times as far"),
    ],
)
def test_a_nudge_that_acts_wrongly_in_its_own_step_is_named(strong_alpha, kind, words, momenta):
    report = with_passes_of(strong_alpha, kind(Limits(holds_state=True, momenta=momenta)))
    assert (report.measured.nudge[0] is not None) == momenta
    assert report.rungs()[2].verdict == "limits"
    if momenta or kind is not HalfNudge:
        assert words in report.rungs()[2].words
        assert words in report.limit()


def test_a_machine_that_does_not_start_from_rest_is_named(strong_alpha):
    report = with_passes_of(strong_alpha, NoRest())
    assert report.rungs()[4].verdict == "limits"
    for words in (report.rungs()[4].words, report.limit()):
        assert "The machine does not start every run from rest" in words
    assert not with_passes_of(strong_alpha, SimulatedDevice(drift=3e-3, substeps=2)).measured.restless


def test_what_noise_hides_is_not_printed_and_not_blamed(strong_alpha):
    array = dataclasses.replace(strong_alpha.arrays["alpha"], error=0.51, resolution=1.1, noise=0.1)
    assert array.known_cosine == "-"
    assert array.parts["unexplained"] == 0
    hidden = dataclasses.replace(array, error=0.02, resolution=0.05)
    assert hidden.known_cosine == "> 0.99"
    assert dataclasses.replace(hidden, resolution=0.2).uncertain
    report = dataclasses.replace(strong_alpha, arrays={"alpha": array})
    assert report.rungs()[3].verdict == "open"
    assert "unexplained" not in report.limit()
    # Sizes whose gradient is far from the best are not recommended, even if that of the next size is near.
    nudges = dataclasses.replace(strong_alpha.nudges, epsilons=(0.01, 0.1, 0.3), changes=(0.01, 0.13, 0.13))
    far = dataclasses.replace(strong_alpha, nudges=dataclasses.replace(nudges, from_best=(0, 0.1, 0.26), cut=True))
    assert "sizes from 0.01 to 0.1 give" in far.rungs()[2].words
    assert "The limit of the machine cuts all sizes above 0.3." in far.rungs()[2].words


def bad_device():
    return SimulatedDevice(spread=0.3, flip_amplitude=0.5, bits=16, nudge_range=1.0, substeps=2, seed=1)


@pytest.fixture(scope="module")
def flawed():
    """The report of a device of which much is wrong."""
    return check(bad_device(), epsilons=(1e-7, 0.03, 0.1), repetitions=2)


def test_a_bad_flip_and_other_parameters_are_named(flawed):
    forward, echo, _, gradient, *_ = flawed.rungs()
    assert [forward.verdict, echo.verdict, gradient.verdict] == ["limits"] * 3
    assert "Most is lost at the flip" in echo.words
    assert "see 1" in gradient.words
    assert "not explained by nudges, friction or noise" in flawed.limit()
    # Below the resolution of the nudges, all gradients are equal: zero.
    assert flawed.nudges.changes[0] == math.inf
    assert flawed.nudges.best == 0.03


def test_cosine_and_error_are_those_of_the_exact_gradient_of_the_machine(flawed, x64):
    """With as many directions as numbers, the comparison is exact. The device is a leapfrog with other parameters."""
    device = bad_device()
    device.program({name: np.asarray(x, np.float64) for name, x in named(UNIT).items()})
    factors = {name: device._parameters[name] / np.asarray(x, np.float64) for name, x in named(UNIT).items()}

    def value(arrays):
        own = {name: x * factors[name] for name, x in arrays.items()}
        # Two leapfrog steps of half the length are a step of the device; the drive is held.
        unit = type(UNIT)(**own | {"step": own["step"] / 2})
        run = jax.vmap(lambda v: evolve(unit, jnp.repeat(v, 2, axis=0), learning_algorithm=BPTT())[1::2], 1, 1)
        return loss(run(jnp.asarray(V)))

    exact = jax.grad(value)({name: jnp.asarray(x, jnp.float64) for name, x in named(UNIT).items()})

    def by_echoes(arrays):
        algorithm = MachineInTheLoop(device, flawed.nudges.best)
        return loss(jax.vmap(lambda v: evolve(type(UNIT)(**arrays), v, learning_algorithm=algorithm), 1, 1)(V))

    echoes = jax.grad(by_echoes)({name: jnp.asarray(x, jnp.float64) for name, x in named(UNIT).items()})
    for name, x in exact.items():
        wanted, got = agreement(echoes[name], x), flawed.arrays[name]
        assert got.cosine == pytest.approx(wanted.cosine, abs=2e-3), name
        assert got.error == pytest.approx(wanted.relative_error, rel=2e-2), name


def test_bad_input_and_a_failing_machine_are_named(unchecked_types):
    with pytest.raises(ValueError, match=r"drives must have the shape \(steps, sequences, drives\), got \(40,\)"):
        check_machine(NumpyLeapfrog(), UNIT, V[:, 0, 0])
    with pytest.raises(ValueError, match="all drives are 0: give drives like those of the training"):
        check_machine(NumpyLeapfrog(), UNIT, 0 * V)
    with pytest.raises(ValueError, match="the machine has 4 oscillators, but the declared energy has 3"):
        check(NumpyLeapfrog(Limits(oscillators=4)))
    with pytest.raises(ValueError, match="the loss of a free pass is nan"):
        check(NumpyLeapfrog(), loss=lambda q: jnp.sqrt(-jnp.sum(q**2)))
    with pytest.raises(ValueError, match="the gradient of the loss by the positions is not finite"):
        check(NumpyLeapfrog(), loss=lambda q: jnp.sqrt(jnp.sum((q - q) ** 2)))
    with pytest.raises(ValueError, match="the loss does not depend on the positions"):
        check(NumpyLeapfrog(), loss=lambda q: jnp.sum(0 * q))
    for option in ({"epsilons": (0.1, 0.1)}, {"repetitions": 1}, {"directions": 1}):
        with pytest.raises(ValueError, match=f"{next(iter(option))}: at least 2 are needed, got 1"):
            check(NumpyLeapfrog(), **option)

    class Still(NumpyLeapfrog):
        def run(self, drives):
            return 0 * super().run(drives)

    with pytest.raises(ValueError, match="the machine does not move: all positions of its free pass are 0"):
        check(Still())

    class Dying(NumpyLeapfrog):
        def echo(self, drives, nudges):
            if np.any(nudges):
                raise OSError("no more helium")
            return super().echo(drives, nudges)

    with pytest.raises(MachineError, match="echo failed: OSError: no more helium"):
        check(Dying())
