"""A trained model: predictions for raw series, and the frequencies, drives and energies of its oscillators."""

from dataclasses import replace
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import root

from models import create_model
from models.load import _of_raw_series
from models.NonlinHRU import SaturatingOscillators
from models.physics.oscillations import small_oscillations
from models.rhel import AbstractHamiltonian
from models.rhel.hamiltonian import leapfrog
from models.trained import SeriesError, TrainedModel

LENGTH, CHANNELS = 6, 2
SERIES = 4000 + 20 * np.random.default_rng(0).normal(size=(5, LENGTH, CHANNELS))


def trained_model(time=True, maps=None, **options):
    """A model that was never trained, as of a run that standardised its channels; batches of 3."""
    sizes = {"data_dim": CHANNELS + time, "label_dim": 2, "hidden_dim": 4, "ssm_dim": 3}
    options = {"model_name": "NonlinHRU", "classification": True, "num_blocks": 2} | options
    trained, state = create_model(**sizes, **options, key=jax.random.PRNGKey(0))
    data = {"data_dim": CHANNELS + time, "label_dim": 2, "length": LENGTH, "class_names": ["up", "down"]}
    data |= {"standardisation": {"mean": [4000.0, 3990.0], "scale": [0.05, 0.1]}, **(maps or {})}
    record = {"config": {"time": time, "batch_size": 3}, "data": data, "precision": "float32", "seed": 1}
    model = _of_raw_series(trained, record, Path("config.json"))
    return TrainedModel(Path("run"), record, trained, model, state)


@pytest.fixture(scope="module")
def classifier():
    return trained_model(gate=True)


@pytest.fixture(scope="module")
def damped():
    """A regression by LinHRU with friction; two outputs for each of three output steps, with a map of its own each."""
    maps = {"label_map": {"centre": [120.0, 5.0], "unit": [100.0, 0.5]}}
    options = {"model_name": "LinHRU", "damping": True, "classification": False, "output_step": 2, "complex_ssm": False}
    return trained_model(time=False, maps=maps, **options)


def forward(run, x):
    """The outputs of the network for inputs that are standardised and have their time."""
    network = eqx.nn.inference_mode(run.trained)
    return np.asarray(jax.vmap(network, axis_name="batch", in_axes=(0, None), out_axes=(0, None))(x, run.state)[0])


def standardised(series):
    return ((series - [4000, 3990]) * [0.05, 0.1]).astype(np.float32)


def test_raw_series_are_timed_standardised_and_named(classifier):
    times = np.broadcast_to(np.arange(LENGTH, dtype=np.float32)[:, None] / LENGTH, (5, LENGTH, 1))
    logits = forward(classifier, np.concatenate([times, standardised(SERIES)], axis=2))
    names, probabilities = classifier.predict(SERIES)
    np.testing.assert_allclose(probabilities, np.exp(logits) / np.exp(logits).sum(1, keepdims=True), rtol=1e-4)
    assert names.tolist() == [["up", "down"][k] for k in logits.argmax(axis=1)]
    same = classifier.predict(SERIES.tolist())
    assert np.array_equal(same.probabilities, probabilities)
    model, state = classifier
    assert model is classifier.model
    assert state is classifier.state
    assert repr(classifier) == "<TrainedModel from run: takes series (N, 6, 2), gives up, down>"


def test_shorter_series_of_a_padded_run_are_filled_with_zeros(classifier):
    run = replace(classifier, record=classifier.record | {"data": classifier.record["data"] | {"padded": True}})
    filled = np.array(SERIES[:3])
    filled[0, 4:] = filled[2, 3:] = 0
    with_nan = np.where(filled == 0, np.nan, filled)
    expected = classifier.predict(filled).probabilities
    for series in (with_nan, [filled[0, :4], filled[1], filled[2, :3]]):
        np.testing.assert_array_equal(run.predict(series).probabilities, expected)
        with pytest.raises(SeriesError):
            classifier.predict(series)
    np.testing.assert_array_equal(
        run.predict(filled[2:, :3]).probabilities, classifier.predict(filled[2:]).probabilities
    )
    hole = np.array(SERIES[:1])
    hole[0, 2, 1] = np.nan
    for series, message in (
        (hole, "a value is missing"),
        (np.full_like(hole, np.nan), "a value is missing"),
        (np.zeros((1, LENGTH + 1, CHANNELS)), "trained on at most 6 steps"),
        ([filled[0, :4], filled[1, :, :1]], "the series are no arrays of numbers"),
    ):
        with pytest.raises(SeriesError, match=message):
            run.predict(series)


def test_outputs_of_a_regression_have_the_units_of_the_labels(damped):
    outputs = damped.predict(SERIES)
    assert outputs.shape == (5, LENGTH // 2, 2)
    np.testing.assert_allclose(outputs, [120, 5] + [100, 0.5] * forward(damped, standardised(SERIES)), rtol=1e-4)


@pytest.mark.parametrize(
    ("shape", "predicted"), [((5, 1, 1), (5,)), ((5, 1, 2), (5, 2)), ((5, 3, 1), (5, 3)), ((1, 3, 2), (1, 3, 2))]
)
def test_predictions_have_the_shape_of_the_labels(damped, monkeypatch, shape, predicted):
    """Else a difference of labels and predictions would be broadcast in silence."""
    monkeypatch.setattr(TrainedModel, "outputs", lambda *_: iter([np.zeros(shape)]))
    assert damped.predict(SERIES).shape == predicted


def test_a_run_in_double_precision_is_used_in_its_precision():
    with jax.enable_x64(True):
        run = trained_model(model_name="LinHRU", num_blocks=1)
    run = replace(run, record=run.record | {"precision": "float64"})
    assert run.predict(SERIES).probabilities.dtype == run.drives(SERIES)[0].dtype == np.float64
    assert len(run.oscillators()[0].period) == 6  # of a complex unit, twice


def with_nan(series):
    series = series.copy()
    series[4, 2, 1] = np.nan
    return series


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x[0], r"float64 of shape \(6, 2\); needed are .* A single series is x\[None\]"),
        (
            lambda x: x[:, :, :1],
            "series of 6 time steps and 1 channels; the run run was trained on 6 steps and 2 ch",
        ),
        (lambda x: x[:, :4], "series of 4 time steps and 2 channels"),
        (lambda x: np.swapaxes(x, 1, 2), r"The axes are in another order: np.swapaxes\(x, 1, 2\) mends it"),
        (lambda x: np.dstack([x, x[:, :, :1]]), "The channel of time is added here: leave it out"),
        (with_nan, r"a value is missing, infinite or beyond float32: series 4, time step 2, channel 1 \(from 0\)"),
        (lambda x: x.astype(str), "<U.* of shape"),
        (lambda x: x[:0], r"of shape \(0, 6, 2\)"),
    ],
)
def test_series_that_do_not_fit_are_refused(classifier, change, message):
    with pytest.raises(SeriesError, match=message):
        classifier.predict(change(SERIES))


def test_series_of_one_channel_need_an_axis(classifier):
    data = classifier.record["data"] | {"data_dim": 2}
    run = replace(classifier, record=classifier.record | {"data": data})
    with pytest.raises(SeriesError, match=r"Series of one channel are x\[:, :, None\]"):
        run.require(SERIES[:, :, 0])


# Small oscillations


class Pendulums(AbstractHamiltonian):
    """Coupled, with masses, under one drive for all."""

    mass: jax.Array
    springs: jax.Array

    def kinetic(self, p):
        return 0.3 * jnp.sum(p**2 / (2 * self.mass))

    def potential(self, q, drive):
        stretch = q[:, None] - q[None, :]
        return 0.3 * (jnp.sum(1 - jnp.cos(q)) - jnp.sum(q) * drive[0] + jnp.sum(self.springs * stretch**2) / 4)


def angles_of_a_step(hamiltonian, drive, size):
    """The angles of the eigenvalues of the leapfrog's derivative at rest, rising: an independent way."""

    @jax.jit
    @jax.jacobian
    def derivative(state):
        return jnp.concatenate(leapfrog(hamiltonian.velocity, hamiltonian.force, tuple(jnp.split(state, 2)), drive)[0])

    force_at = jax.jit(lambda q: hamiltonian.force(q, drive))
    rest = root(lambda q: np.asarray(force_at(jnp.asarray(q))), np.zeros(size), tol=1e-14).x
    multipliers = np.linalg.eigvals(derivative(jnp.asarray([*rest, *np.zeros(size)])))
    return np.sort(np.abs(np.angle(multipliers)))[::2], multipliers


def test_frequencies_are_the_angles_of_a_leapfrog_step_at_rest(x64):
    matrix = np.random.default_rng(1).uniform(0.1, 0.5, (4, 4))
    coupled = Pendulums(jnp.linspace(0.5, 2, 4), jnp.asarray(matrix + matrix.T))
    nonlinear = SaturatingOscillators(*map(jnp.asarray, ([0.5, 0.7, 1], [0.3, -2, 5], [0.1, 1, 0.5], [0.1, 0.5, 0.9])))
    for hamiltonian, drive, options in (
        (coupled, jnp.array([0.4]), {"n_osc": 4}),
        (nonlinear, jnp.zeros(3), {}),
    ):
        found = small_oscillations(hamiltonian, drive, **options)
        angles, _ = angles_of_a_step(hamiltonian, drive, len(found.period))
        np.testing.assert_allclose(np.sort(2 * np.pi * found.frequency), angles, rtol=1e-6)
        np.testing.assert_allclose(found.period * found.frequency, 1)
        assert np.all(np.isinf(found.time_constant))


def test_friction_free_motion_and_growth(x64):
    class Wells(AbstractHamiltonian):
        stiffness: jax.Array

        def kinetic(self, p):
            return jnp.sum(p**2) / 2

        def potential(self, q, drive):
            return jnp.sum(self.stiffness * q**2) / 2 - jnp.sum(q * drive)

    # In order: an oscillator, a free particle, a hill, and a spring too stiff for the step.
    wells, zeros = Wells(jnp.array([1.0, 0.0, -0.5, 5.0])), jnp.zeros(4)
    found = small_oscillations(wells, zeros)
    _, multipliers = angles_of_a_step(wells, zeros, 4)
    np.testing.assert_allclose(found.period, [6, np.inf, np.inf, 2])
    largest = np.sort(np.abs(multipliers))[-2:]
    np.testing.assert_allclose(np.exp(-1 / found.time_constant), [1, 1, *sorted(largest)])
    np.testing.assert_allclose(small_oscillations(wells, zeros, damping_rate=0.01).time_constant[:2], 100)
    with pytest.raises(ValueError, match="Wells: no position of rest near q = 0: the search ends at a force of 1"):
        small_oscillations(wells, np.array([0, 1.0, 0, 0]))
    pendulums = Pendulums(jnp.ones(2), jnp.ones((2, 2)))
    with pytest.raises(ValueError, match="Pendulums: coupled oscillators with different damping rates have no modes"):
        small_oscillations(pendulums, np.zeros(1), n_osc=2, damping_rate=np.array([0.1, 0.2]))


def test_oscillators_of_a_trained_model(classifier, damped):
    for run in (classifier, damped):
        for block, unit in zip(run.oscillators(), run.units, strict=True):
            hamiltonian = unit.hamiltonian()
            if run is damped:
                cosine = 1 - np.asarray(hamiltonian.step**2 * hamiltonian.A, float) / 2
                np.testing.assert_allclose(np.cos(2 * np.pi * block.frequency), cosine, rtol=1e-5)
                rates = np.asarray(unit.gamma * hamiltonian.step / 2, float)
                np.testing.assert_allclose(block.time_constant, 1 / rates, rtol=1e-5)
            assert block.frequency.shape == (3,)
            assert np.all((block.frequency > 0) & (block.frequency < 0.5))


def test_energies_are_those_of_the_driven_units(classifier, damped):
    """A recursion in numpy, in double precision, over the drives; and the drives give what the block hands on."""
    for run in (classifier, damped):
        drives, energies = run.drives(SERIES), run.energies(SERIES)
        for unit, of_drives, of_block in zip(run.units, drives, energies, strict=True):
            assert of_drives.shape == (5, LENGTH, 3)
            hamiltonian = jax.tree.map(lambda x: np.asarray(x, float), unit.hamiltonian())
            kept = np.exp(-np.asarray(unit.damping_rate() if run is damped else 0.0, float))
            q = p = np.zeros((5, 3))
            for step in range(LENGTH):
                middle = q + hamiltonian.step * p / 2
                p = p + force(hamiltonian, middle, of_drives[:, step])
                q, p = kept * (middle + hamiltonian.step * p / 2), kept * p
                energy = np.sum(hamiltonian.step * p**2 / 2, axis=1) + potential(hamiltonian, q)
                np.testing.assert_allclose(of_block[:, step], energy, rtol=1e-3, atol=1e-6)
    first = classifier.trained.blocks[0]
    encoder = classifier.trained.encoder
    times = np.broadcast_to(np.arange(LENGTH)[:, None] / LENGTH, (5, LENGTH, 1))
    weight, bias, B = map(np.asarray, (encoder.weight, encoder.bias, first.unit.B))
    encoded = np.concatenate([times, standardised(SERIES)], axis=2) @ weight.T + bias
    expected = encoded / np.sqrt(1 + 1e-5) @ B.T  # BatchNorm before any training
    np.testing.assert_allclose(classifier.drives(SERIES)[0], expected, rtol=1e-4, atol=1e-5)


def force(hamiltonian, q, drive):
    if not isinstance(hamiltonian, SaturatingOscillators):
        return -hamiltonian.step * (hamiltonian.A * q - drive)
    return -hamiltonian.step * (hamiltonian.alpha * q + np.tanh(hamiltonian.W_diag * q + drive + hamiltonian.b))


def potential(hamiltonian, q):
    if not isinstance(hamiltonian, SaturatingOscillators):
        return np.sum(hamiltonian.step * hamiltonian.A * q**2 / 2, axis=1)
    W = hamiltonian.W_diag
    return np.sum(hamiltonian.step * (hamiltonian.alpha * q**2 / 2 + np.log(np.cosh(W * q)) / W), axis=1)
