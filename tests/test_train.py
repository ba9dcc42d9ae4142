"""The training loop: what it keeps, when it stops, what it evaluates, and that it says where it diverged."""

import dataclasses
import functools
import json

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import train
from data_dir.dataloaders import Dataloader, ShuffledBatches
from data_dir.datasets import Dataset
from data_dir.prefetch import stack_batches
from data_dir.splits import split_by_seed
from data_dir.storage import DataError
from models import create_model

MODELS = ("LinHRU", "NonlinHRU")
LENGTH, CHANNELS, CLASSES, OUTPUT_STEP = 12, 2, 3, 4


class Toy(eqx.Module):
    """A model that compiles in no time: dropout and one linear map of the whole sequence."""

    linear: eqx.nn.Linear
    dropout: eqx.nn.Dropout
    classification: bool = eqx.field(static=True)

    def __init__(self, key, classification=True, dropout_rate=0.0):
        self.linear = eqx.nn.Linear(LENGTH * CHANNELS, CLASSES, key=key)
        self.dropout = eqx.nn.Dropout(dropout_rate)
        self.classification = classification

    def __call__(self, x, state, key):
        output = self.linear(self.dropout(x.reshape(-1), key=key))
        return output if self.classification else output[:, None], state


def toy(classification=True, dropout_rate=0.0):
    make = functools.partial(Toy, classification=classification, dropout_rate=dropout_rate)
    return eqx.nn.make_with_state(make)(jax.random.PRNGKey(0))


def hru(model_name, classification=True, **options):
    return create_model(
        *(model_name, CHANNELS, CLASSES if classification else 1, 4, 1, 3),
        classification=classification,
        output_step=1 if classification else OUTPUT_STEP,
        key=jax.random.PRNGKey(0),
        **options,
    )


def loader(size, classification=True, seed=0):
    """Random samples; the labels are learnable: the class, or the values, come from the sums of the sequence."""
    random = np.random.default_rng(seed)
    x = random.normal(size=(size, LENGTH, CHANNELS))
    sums = x.reshape(size, CLASSES, -1).sum(axis=2)
    return Dataloader(x, np.eye(CLASSES)[sums.argmax(axis=1)] if classification else np.tanh(sums))


def dataset(sizes=(16, 7, 9), classification=True):
    train_set, validation, test = (loader(size, classification, seed) for seed, size in enumerate(sizes))
    return Dataset(
        name="random",
        train=train_set,
        validation=validation,
        test=test,
        data_dim=CHANNELS,
        label_dim=CLASSES if classification else 1,
        length=LENGTH,
        classification=classification,
        split=None,
        class_names=None,
    )


OPTIONS = {"learning_rate": 1e-2, "num_steps": 8, "print_steps": 2, "batch_size": 8, "key": jax.random.PRNGKey(1)}


def arrays(tree):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(eqx.filter(tree, eqx.is_array))]


def same(left, right):
    return all(np.array_equal(*pair) for pair in zip(arrays(left), arrays(right), strict=True))


@pytest.fixture
def scripted(monkeypatch):
    """Let the validation metrics be a given list; returns what was evaluated, as (split, copy of the model)."""

    def script(data, metrics):
        names = {id(data.train): "train", id(data.validation): "validation", id(data.test): "test"}
        seen, metrics = [], iter(metrics)

        def evaluate(model, state, split, **_):
            name = names[id(split)]
            seen.append((name, jax.tree.map(lambda leaf: jnp.copy(leaf) if eqx.is_array(leaf) else leaf, model)))
            return 0.0, next(metrics) if name == "validation" else 0.25

        monkeypatch.setattr(train, "evaluate", evaluate)
        return seen

    return script


# The model that is kept


def test_the_first_of_equal_validation_metrics_is_kept(scripted):
    data = dataset()
    seen = scripted(data, [0.5, 0.7, 0.7, 0.6])
    result = train.train(*toy(), data, **OPTIONS)
    assert (result.best_step, result.val_metric, result.steps, result.stop_reason) == (4, 0.7, 8, "num_steps")
    validated = [model for name, model in seen if name == "validation"]
    assert same(result.model, validated[1])
    assert not same(result.model, validated[2])


def test_a_regression_keeps_the_smallest_error(scripted):
    data = dataset(classification=False)
    scripted(data, [0.5, 0.3, 0.3, 0.6])
    result = train.train(*toy(classification=False), data, **OPTIONS)
    assert (result.best_step, result.val_metric) == (4, 0.3)


def test_the_test_set_is_read_once_at_the_end_by_the_best_model(scripted):
    data = dataset()
    seen = scripted(data, [0.5, 0.7, 0.6, 0.6])
    result = train.train(*toy(), data, **OPTIONS)
    assert [name for name, _ in seen] == ["train", "validation"] * 4 + ["test"]
    assert same(seen[-1][1], result.model)
    assert result.test_metric == 0.25


@pytest.mark.parametrize("model_name", MODELS)
def test_the_result_is_that_of_the_returned_model_and_state(model_name):
    data = dataset()
    result = train.train(*hru(model_name), data, **OPTIONS)
    options = {"batch_size": 5, "classification": True}
    assert train.evaluate(result.model, result.state, data.validation, **options)[1] == pytest.approx(result.val_metric)
    test_loss, test_metric = train.evaluate(result.model, result.state, data.test, **options)
    assert test_metric == pytest.approx(result.test_metric)
    assert test_loss == pytest.approx(result.test_loss, rel=1e-5)


def test_the_model_that_is_handed_in_stays_as_it_was():
    model, state = hru("LinHRU")
    before = [leaf.copy() for leaf in arrays((model, state))]
    result = train.train(model, state, dataset(), **OPTIONS)
    assert all(np.array_equal(*pair) for pair in zip(before, arrays((model, state)), strict=True))
    assert not same(result.model, model)


# When it stops


@pytest.mark.parametrize(
    ("metrics", "evaluations"),
    [
        ([0.5] * 99, 1 + 11),
        ([0.5] * 11 + [0.6] * 88, 11 + 1 + 11),  # ten are forgiven, and an improvement starts the count anew
        ([0.5] + [0.4] * 98, 1 + 11),
    ],
)
def test_more_than_ten_evaluations_without_improvement_stop_it(scripted, metrics, evaluations):
    data = dataset()
    scripted(data, metrics)
    result = train.train(*toy(), data, **{**OPTIONS, "num_steps": 198})
    assert result.stop_reason == "early_stopping"
    assert len(result.history) == evaluations
    assert result.steps == 2 * evaluations


def test_patience_can_be_changed(scripted):
    data = dataset()
    scripted(data, [0.5] * 99)
    assert len(train.train(*toy(), data, **OPTIONS, patience=1).history) == 3


@pytest.mark.parametrize(("num_steps", "print_steps", "steps"), [(5, 2, [2, 4, 5]), (4, 2, [2, 4]), (3, 10, [3])])
def test_it_evaluates_at_every_print_step_and_after_the_last(num_steps, print_steps, steps):
    records, losses = [], []
    result = train.train(
        *toy(),
        dataset(),
        **{**OPTIONS, "num_steps": num_steps, "print_steps": print_steps},
        on_step=lambda step, loss: losses.append((step, loss)),
        on_evaluation=records.append,
    )
    assert [evaluation.step for evaluation in result.history] == steps
    assert records == result.history
    assert [step for step, _ in losses] == list(range(1, num_steps + 1))
    first = [loss for step, loss in losses if step <= steps[0]]
    assert result.history[0].loss == pytest.approx(np.mean(first))
    last = [loss for step, loss in losses if step > ([0, *steps])[-2]]
    assert result.history[-1].loss == pytest.approx(np.mean(last))


# What it evaluates


@pytest.mark.parametrize("classification", [True, False])
@pytest.mark.parametrize(("size", "batch_size"), [(7, 4), (8, 4), (9, 4), (5, 16)])
def test_evaluation_covers_every_sample_once(classification, size, batch_size):
    model, state = hru("LinHRU", classification)
    data = loader(size, classification)
    loss, metric = train.evaluate(model, state, data, batch_size=batch_size, classification=classification)

    forward = jax.vmap(eqx.nn.inference_mode(model), axis_name="batch", in_axes=(0, None, None), out_axes=(0, None))
    output = np.asarray(forward(jnp.asarray(data.data), state, None)[0], dtype=np.float64)
    if classification:
        logarithms = np.log(np.exp(output).sum(axis=1)) - (output * data.labels).sum(axis=1)
        assert loss == pytest.approx(logarithms.mean(), rel=1e-5)
        assert metric == np.mean(output.argmax(axis=1) == data.labels.argmax(axis=1))
    else:
        assert output.shape == (size, LENGTH // OUTPUT_STEP, 1)
        assert loss == metric == pytest.approx(np.mean((output[:, :, 0] - data.labels) ** 2), rel=1e-5)


def test_the_last_batch_weighs_what_it_holds():
    """A model that is right on the odd sample alone: the fill of the last batch must not count, the sample must."""
    data = Dataloader(np.zeros((9, LENGTH, CHANNELS)), np.eye(CLASSES)[[0] * 8 + [1]])
    model, state = toy()
    zero = jnp.zeros_like(model.linear.weight)
    model = eqx.tree_at(lambda m: (m.linear.weight, m.linear.bias), model, (zero, jnp.array([0.0, 5.0, 0.0])))
    _, accuracy = train.evaluate(model, state, data, batch_size=4, classification=True)
    assert accuracy == 1 / 9


def test_all_splits_share_one_compiled_evaluation(monkeypatch):
    traces = []
    sample_loss = train.sample_loss
    monkeypatch.setattr(train, "sample_loss", lambda *args: traces.append(1) or sample_loss(*args))
    model, state = toy(dropout_rate=0.125)
    for size in (3, 6, 7, 11):
        train.evaluate(model, state, loader(size), batch_size=6, classification=True)
    assert len(traces) == 1


def test_dropout_is_off_in_evaluation():
    data = loader(7)
    expected = train.evaluate(*toy(dropout_rate=0.0), data, batch_size=4, classification=True)
    assert train.evaluate(*toy(dropout_rate=0.9), data, batch_size=4, classification=True) == expected


def test_an_empty_split_cannot_be_evaluated():
    empty = Dataloader(np.zeros((0, LENGTH, CHANNELS)), np.zeros((0, CLASSES)))
    with pytest.raises(DataError, match="no samples"):
        train.evaluate(*toy(), empty, batch_size=4, classification=True)


# A step


@pytest.mark.parametrize("classification", [True, False])
def test_a_step_is_adam_on_the_mean_loss_of_the_batch(classification):
    model, state = toy(classification)
    data = loader(5, classification)
    x, y = jnp.asarray(data.data), jnp.asarray(data.labels)
    optimiser = train.adam(1e-2)
    start = optimiser.init(eqx.filter(model, eqx.is_inexact_array))

    def mean_loss(weight, bias):
        output = x.reshape(5, -1) @ weight.T + jnp.broadcast_to(bias, (5, CLASSES))
        if classification:
            return -jnp.mean(jnp.sum(y * jax.nn.log_softmax(output), axis=1))
        return jnp.mean((output - y) ** 2)

    parameters = (model.linear.weight, model.linear.bias)
    expected_loss, gradient = jax.value_and_grad(mean_loss, argnums=(0, 1))(*parameters)
    adam = optax.adam(1e-2)
    updates, _ = adam.update(gradient, adam.init(parameters))
    expected = optax.apply_updates(parameters, updates)

    training, loss = train.train_step(
        (x, y, jax.random.PRNGKey(0)), train.TrainingState(model, state, start, jnp.array(0)), optimiser, classification
    )
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-6)
    np.testing.assert_allclose(training.model.linear.weight, expected[0], rtol=1e-5)
    np.testing.assert_allclose(training.model.linear.bias, expected[1], rtol=1e-5)
    assert training.step == 1


@pytest.fixture
def outputs_of_a_step(monkeypatch):
    """What the model gives for every sample of a batch of equal samples in one training step."""
    sample_loss = train.sample_loss

    def outputs(model, state, step=0):
        seen = []

        def record(output, label, classification):
            jax.debug.callback(lambda value: seen.append(np.asarray(value)), output)
            return sample_loss(output, label, classification)

        monkeypatch.setattr(train, "sample_loss", record)
        jax.clear_caches()  # a step that is compiled already would not call the one above
        x = jnp.broadcast_to(loader(1).data, (4, LENGTH, CHANNELS))
        y = jnp.broadcast_to(loader(1).labels, (4, CLASSES))
        training = train.TrainingState(
            model,
            state,
            train.adam(1e-2).init(eqx.filter(model, eqx.is_inexact_array)),
            jnp.array(step),
        )
        copy = jax.tree.map(lambda leaf: jnp.copy(leaf) if eqx.is_array(leaf) else leaf, training)
        train.train_step((x, y, jax.random.PRNGKey(3)), copy, train.adam(1e-2), True)
        jax.effects_barrier()
        assert len(seen) == 4
        return np.array(sorted(output.tolist() for output in seen))

    return outputs


@pytest.mark.parametrize("model_name", MODELS)
def test_every_sample_of_a_batch_has_its_own_dropout(outputs_of_a_step, model_name):
    dropped = outputs_of_a_step(*hru(model_name, dropout_rate=0.5))
    assert len(np.unique(dropped, axis=0)) == 4
    kept = outputs_of_a_step(*hru(model_name, dropout_rate=0.0))
    np.testing.assert_allclose(kept, np.broadcast_to(kept[:1], kept.shape), rtol=1e-5)


def test_every_step_has_its_own_dropout_and_repeats_it(outputs_of_a_step):
    model, state = toy(dropout_rate=0.5)
    first = outputs_of_a_step(model, state, step=0)
    np.testing.assert_array_equal(first, outputs_of_a_step(model, state, step=0))
    assert not np.array_equal(first, outputs_of_a_step(model, state, step=1))


def test_the_loss_is_finite_for_logits_that_softmax_would_flatten():
    loss = train.sample_loss(jnp.array([0.0, 1e4, 0.0]), jnp.array([1.0, 0.0, 0.0]), True)
    assert loss == 1e4


def test_outputs_that_do_not_fit_the_labels_are_refused():
    with pytest.raises(TypeError, match="reshape"):
        train.sample_loss(jnp.zeros((3, 1)), jnp.zeros(4), False)


def test_a_batch_larger_than_the_training_set_is_refused():
    with pytest.raises(DataError, match="batch_size 17"):
        train.train(*toy(), dataset(), **{**OPTIONS, "batch_size": 17})


# Divergence


@pytest.mark.parametrize(
    ("print_steps", "where", "seen_steps"),
    [(100, "training loss", [1, 2, 3]), (3, "training set loss", [1, 2, 3])],
)
def test_a_loss_that_is_not_finite_is_an_error_that_names_the_step(print_steps, where, seen_steps):
    # The third update is infinite, so the fourth batch is the first with a bad loss, unless an evaluation comes before.
    def rate(count):
        return jnp.where(count == 2, jnp.inf, 1e-3)

    steps = []
    with pytest.raises(train.NonFiniteLoss) as error:
        train.train(
            *toy(),
            dataset(),
            **{**OPTIONS, "learning_rate": rate, "num_steps": 50, "print_steps": print_steps},
            on_step=lambda step, loss: steps.append(step),
        )
    step = 4 if where == "training loss" else 3
    assert (error.value.step, error.value.where) == (step, where)
    assert str(error.value).startswith(f"the {where} is not finite at step {step} (largest parameter: inf in .linear.")
    assert steps == seen_steps


def test_a_bad_sample_in_training_or_validation_stops_it():
    data = dataset()
    samples = data.train.data.copy()
    samples[0, 0, 0] = np.nan
    bad = dataclasses.replace(data, train=Dataloader(samples, data.train.labels))
    with pytest.raises(train.NonFiniteLoss, match="the training loss is not finite at step 1"):
        train.train(*toy(), bad, **{**OPTIONS, "batch_size": 16})
    samples = data.validation.data.copy()
    samples[0, 0, 0] = np.inf
    bad = dataclasses.replace(data, validation=Dataloader(samples, data.validation.labels))
    with pytest.raises(train.NonFiniteLoss, match="the validation set loss is not finite at step 2"):
        train.train(*toy(), bad, **OPTIONS)


class SpoiltBatches(ShuffledBatches):
    """The batches of some steps are not a number."""

    def __next__(self):
        number = (self.position["epoch"] * self._loader.size + self.position["offset"]) // self._batch_size + 1
        x, y = super().__next__()
        return (np.full_like(x, np.nan) if number in self._loader.bad_steps else x), y


class Spoilt(Dataloader):
    def loop(self, batch_size, *, key, position=None):
        return SpoiltBatches(self, batch_size, key, position)


def spoilt(*bad_steps):
    data = dataset()
    train_set = Spoilt(data.train.data, data.train.labels)
    train_set.bad_steps = bad_steps
    return dataclasses.replace(data, train=train_set)


def trained_by_hand(steps):
    """The toy after these steps, counted from 1, of the order of `OPTIONS`; and their losses."""
    loader_key, dropout_key = jax.random.split(OPTIONS["key"])
    model, state = toy()
    optimiser = train.adam(OPTIONS["learning_rate"])
    training = train._copy(
        train.TrainingState(model, state, optimiser.init(eqx.filter(model, eqx.is_inexact_array)), jnp.array(0))
    )
    losses = []
    for step, (x, y) in zip(range(1, max(steps) + 1), loader(16).loop(8, key=loader_key), strict=False):
        if step in steps:
            batch = (jnp.asarray(x), jnp.asarray(y), dropout_key)
            training, loss = train.train_step(batch, training, optimiser, True)
            losses.append(float(loss))
    return training.model, losses


@pytest.mark.parametrize("steps_per_dispatch", [1, 3, None])
def test_a_step_that_is_not_finite_is_skipped_and_counted(steps_per_dispatch):
    options = {**OPTIONS, "print_steps": 8, "steps_per_dispatch": steps_per_dispatch}
    result = train.train(*toy(), spoilt(2, 5), **options, skip_nonfinite=2)
    assert (result.steps, result.skipped) == (8, 2)
    model, losses = trained_by_hand((1, 3, 4, 6, 7, 8))
    for left, right in zip(arrays(result.model), arrays(model), strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-5, atol=1e-7)
    assert result.history[0].loss == pytest.approx(np.mean(losses))


@pytest.mark.parametrize("steps_per_dispatch", [1, 3, 8, None])
def test_the_state_in_which_a_step_went_wrong_is_at_hand(steps_per_dispatch):
    options = {**OPTIONS, "print_steps": 8, "steps_per_dispatch": steps_per_dispatch}
    with pytest.raises(train.NonFiniteLoss, match="training loss is not finite at step 5") as error:
        train.train(*toy(), spoilt(2, 5), **options, skip_nonfinite=1)
    model, _ = trained_by_hand((1, 3, 4))
    for left, right in zip(arrays(error.value.model), arrays(model), strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("skip_nonfinite", [0, 1])
def test_the_skips_of_before_a_resume_count(skip_nonfinite):
    saved = []

    def save(progress):
        saved.append((list(map(np.array, progress.arrays())), json.loads(json.dumps(progress.facts()))))

    options = {**OPTIONS, "print_steps": 8, "steps_per_dispatch": 8}
    train.train(*toy(), spoilt(2), **options, skip_nonfinite=1, checkpoint_steps=3, on_checkpoint=save)
    assert [facts["step"] for _, facts in saved] == [3, 6, 8]
    with pytest.raises(train.NonFiniteLoss, match="training loss is not finite at step 5") as error:
        train.train(
            *toy(), spoilt(2, 5), **options, skip_nonfinite=skip_nonfinite, resume=lambda new: new.restored(*saved[0])
        )
    model, _ = trained_by_hand((1, 3, 4))
    for left, right in zip(arrays(error.value.model), arrays(model), strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-5, atol=1e-7)


def test_the_rows_of_a_batch_that_is_not_finite_are_named():
    data = dataset()
    samples = np.concatenate([np.zeros((3, LENGTH, CHANNELS)), data.train.data])
    samples[3 + 5, 0, 0] = np.inf
    labels = np.concatenate([np.zeros((3, CLASSES)), data.train.labels])
    bad = dataclasses.replace(data, train=Dataloader(samples, labels, rows=np.arange(3, 19)))
    order = np.asarray(jax.random.permutation(jax.random.fold_in(jax.random.split(OPTIONS["key"])[0], 0), 16))
    step = 1 + int(np.flatnonzero(order == 5)[0]) // 8
    with pytest.raises(train.NonFiniteLoss) as error:
        train.train(*toy(), bad, **{**OPTIONS, "print_steps": 100})
    assert error.value.step == step
    assert error.value.rows == (3 + order[8 * step - 8 : 8 * step]).tolist()
    assert ", ".join(map(str, error.value.rows)) in str(error.value)
    assert "largest gradient: nan in .linear." in str(error.value)


class Kink(Toy):
    """Its outputs are finite, its gradient is not: the root of a sum that is zero."""

    def __call__(self, x, state, key):
        output, state = super().__call__(x, state, key)
        return output + jnp.sqrt(jnp.sum(0 * self.linear.bias)), state


def test_a_gradient_that_is_not_finite_under_a_finite_loss_is_noticed():
    model = eqx.nn.make_with_state(Kink)(jax.random.PRNGKey(0))
    with pytest.raises(
        train.NonFiniteLoss, match="the gradient of the training loss is not finite at step 1 "
    ) as error:
        train.train(*model, dataset(), **OPTIONS)
    assert "largest gradient: nan in .linear.bias" in str(error.value)
    assert same(error.value.model, model[0])


# Clipping, and what an evaluation tells


def test_gradients_are_cut_to_a_global_norm():
    gradient = {"a": jnp.array([3.0, 0.0]), "b": jnp.array(4.0)}
    for grad_clip, first_moment in ((None, 0.5), (10.0, 0.5), (0.5, 0.05)):
        optimiser = train.adam(1e-2, grad_clip)
        _, state = optimiser.update(gradient, optimiser.init(gradient))
        assert optax.tree.norm(optax.tree.get(state, "mu")) == pytest.approx(first_moment)


def test_the_norm_of_the_gradient_is_that_before_clipping():
    x, y = next(loader(16).loop(8, key=jax.random.split(OPTIONS["key"])[0]))
    model, _ = toy()

    def mean_loss(model):
        outputs = jax.vmap(lambda sample: model.linear(sample.reshape(-1)))(jnp.asarray(x))
        return jnp.mean(optax.softmax_cross_entropy(outputs, jnp.asarray(y)))

    expected = optax.tree.norm(eqx.filter_grad(mean_loss)(model))
    options = {**OPTIONS, "num_steps": 1}
    results = [train.train(*toy(), dataset(), **options, grad_clip=grad_clip) for grad_clip in (None, 1e-3)]
    for result in results:
        assert result.history[0].gradient_norm == pytest.approx(float(expected), rel=1e-5)
    assert not same(results[0].model, results[1].model)


def test_an_evaluation_tells_the_learning_rate_of_the_last_step_that_was_done():
    def rate(count):
        return 1e-3 * (count + 1)

    result = train.train(*toy(), spoilt(3), **{**OPTIONS, "learning_rate": rate}, skip_nonfinite=1)
    assert [evaluation.learning_rate for evaluation in result.history] == pytest.approx([2e-3, 3e-3, 5e-3, 7e-3])


def test_an_evaluation_tells_how_well_the_echo_returns():
    model, state = hru("NonlinHRU", step_init=0.1)
    result = train.train(model, state, dataset(), **OPTIONS, retrace=True)
    assert all(0 < evaluation.retrace_error < 1e-4 for evaluation in result.history)
    assert train.train(*toy(), dataset(), **OPTIONS).history[0].retrace_error is None


def test_the_seconds_of_the_parts_are_within_the_whole():
    result = train.train(*hru("LinHRU", dropout_rate=0.3125), dataset(), **OPTIONS)
    whole = 0
    for evaluation in result.history:
        parts = (evaluation.seconds_steps, evaluation.seconds_evaluation, evaluation.seconds_compiling)
        assert min(parts) > 0
        assert whole < sum(parts) <= evaluation.seconds
        whole = evaluation.seconds
    assert result.history[0].seconds_compiling > result.history[0].seconds_evaluation
    assert result.seconds.total >= whole


# Repeatability and precision


def timeless(history):
    seconds = {name: 0 for name in train.Evaluation._fields if name.startswith("seconds")}
    return [evaluation._replace(**seconds) for evaluation in history]


@pytest.mark.parametrize("model_name", MODELS)
def test_the_same_key_gives_the_same_training(model_name):
    first, second = (train.train(*hru(model_name), dataset(), **OPTIONS) for _ in range(2))
    assert timeless(first.history) == timeless(second.history)
    assert same((first.model, first.state), (second.model, second.state))
    other = train.train(*hru(model_name), dataset(), **{**OPTIONS, "key": jax.random.PRNGKey(2)})
    assert timeless(other.history) != timeless(first.history)


@pytest.mark.parametrize("model_name", MODELS)
def test_two_seeds_share_one_compiled_step(monkeypatch, model_name):
    traces = []
    sample_loss = train.sample_loss
    monkeypatch.setattr(train, "sample_loss", lambda *args: traces.append(1) or sample_loss(*args))
    for seed in (1, 2):
        train.train(*hru(model_name, dropout_rate=0.0625), dataset(), **{**OPTIONS, "key": jax.random.PRNGKey(seed)})
    assert len(traces) == 2  # one of the step, one of the evaluation


# Many steps at once


def run_of(steps_per_dispatch, make=lambda: hru("LinHRU", dropout_rate=0.25), **changes):
    """A training of 10 steps, evaluated after 4, 8 and 10, and its losses."""
    losses = []
    options = {**OPTIONS, "num_steps": 10, "print_steps": 4, **changes}
    result = train.train(
        *make(),
        dataset(),
        **options,
        steps_per_dispatch=steps_per_dispatch,
        on_step=lambda step, loss: losses.append((step, loss)),
    )
    return result, losses


@pytest.mark.parametrize(
    ("model_name", "options"),
    [("LinHRU", {"epsilon": 0.1, "batchnorm": "ema"}), ("NonlinHRU", {"learning_algorithm": "BPTT"})],
)
def test_the_bits_do_not_depend_on_how_steps_are_sent(model_name, options):
    make = functools.partial(hru, model_name, dropout_rate=0.25, **options)
    plain, plain_losses = run_of(1, make)
    assert [step for step, _ in plain_losses] == list(range(1, 11))
    for steps_per_dispatch in (3, 4, 99, None):
        result, losses = run_of(steps_per_dispatch, make)
        assert losses == plain_losses
        assert timeless(result.history) == timeless(plain.history)
        assert same((result.model, result.state), (plain.model, plain.state))
        names = ("best_step", "val_metric", "test_loss", "test_metric", "steps", "stop_reason")
        assert [getattr(result, name) for name in names] == [getattr(plain, name) for name in names]


def test_a_stack_of_batches_gives_what_single_steps_give():
    model, state = toy(dropout_rate=0.25)
    optimiser = train.adam(1e-2)

    def start():
        optimiser_state = optimiser.init(eqx.filter(model, eqx.is_inexact_array))
        return train._copy(train.TrainingState(model, state, optimiser_state, jnp.array(0)))

    key = jax.random.PRNGKey(3)
    batches = [next(loader(16).loop(8, key=jax.random.PRNGKey(number))) for number in range(3)]
    single, losses = start(), []
    for x, y in batches:
        single, loss = train.train_step((jnp.asarray(x), jnp.asarray(y), key), single, optimiser, True)
        losses.append(float(loss))
    x, y = map(jnp.asarray, stack_batches(iter(batches), 3, 5))
    together, of_stack, _ = train.train_steps((x, y, key, jnp.array(3)), start(), optimiser, True)
    for left, right in zip(arrays(together), arrays(single), strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(of_stack[:3], losses, rtol=1e-5)
    assert np.isnan(of_stack[3:]).all()


def test_every_number_of_steps_is_served_by_one_compiled_program(monkeypatch):
    traces = []
    sample_loss = train.sample_loss
    monkeypatch.setattr(train, "sample_loss", lambda *args: traces.append(1) or sample_loss(*args))
    compiled = train._compiled_steps._cache_size()
    run_of(4, functools.partial(toy, dropout_rate=0.375))  # 4, 4, 2
    run_of(4, functools.partial(toy, dropout_rate=0.375), num_steps=9, print_steps=7)  # 4, 3, 2
    assert train._compiled_steps._cache_size() == compiled + 1
    assert len(traces) == 2  # one of the steps, one of the evaluation


def test_the_steps_use_up_the_state_that_they_are_given():
    """Its buffers hold the new one. jax warns, which is an error here, where that is not possible."""
    model, state = hru("LinHRU")
    optimiser = train.adam(1e-2)
    optimiser_state = optimiser.init(eqx.filter(model, eqx.is_inexact_array))
    training = train._copy(train.TrainingState(model, state, optimiser_state, jnp.array(0)))
    x, y = map(jnp.asarray, stack_batches(loader(16).loop(8, key=jax.random.PRNGKey(0)), 2, 2))
    train.train_steps((x, y, jax.random.PRNGKey(0), jnp.array(2)), training, optimiser, True)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(eqx.filter(training, eqx.is_array)))
    assert not x.is_deleted()


@pytest.mark.parametrize("steps_per_dispatch", [1, 3, 8, None])
def test_a_loss_that_is_not_finite_in_the_middle_of_a_dispatch_names_its_step(steps_per_dispatch):
    def rate(count):
        return jnp.where(count == 3, jnp.inf, 1e-3)

    steps = []
    with pytest.raises(train.NonFiniteLoss, match="the training loss is not finite at step 5") as error:
        train.train(
            *toy(),
            dataset(),
            **{**OPTIONS, "learning_rate": rate, "num_steps": 50, "print_steps": 50},
            steps_per_dispatch=steps_per_dispatch,
            on_step=lambda step, loss: steps.append(step),
        )
    assert error.value.step == 5
    assert steps == [1, 2, 3, 4]


def sent_by(monkeypatch, **options):
    """The number of slots, and how many steps were sent in each dispatch of a training of the toy."""
    sent, steps = [], train.train_steps

    def spy(batches, *args):
        sent.append((len(batches[0]), int(batches[3])))
        return steps(batches, *args)

    monkeypatch.setattr(train, "train_steps", spy)
    train.train(*toy(), dataset(), **{**OPTIONS, **options})
    slots, counts = zip(*sent, strict=True)
    assert len(set(slots)) == 1
    return slots[0], list(counts)


def test_no_dispatch_goes_beyond_an_evaluation(monkeypatch):
    options = {"num_steps": 12, "print_steps": 5, "steps_per_dispatch": 3}
    assert sent_by(monkeypatch, **options) == (3, [3, 2, 3, 2, 2])
    assert sent_by(monkeypatch, **{**options, "steps_per_dispatch": 9}) == (5, [5, 5, 2])


def test_a_dispatch_is_bounded_by_bytes_and_by_time(monkeypatch):
    options = {"num_steps": 100, "print_steps": 100}
    slots, counts = sent_by(monkeypatch, **options)
    assert slots == train.DISPATCH_STEPS
    assert sum(counts) == 100
    assert counts[0] == 1  # nothing has been measured
    monkeypatch.setattr(train, "DISPATCH_BYTES", 4 * 8 * (LENGTH * CHANNELS + CLASSES) * 5 + 1)
    slots, counts = sent_by(monkeypatch, **options)
    assert slots == 5
    assert 1 < max(counts) <= 5
    monkeypatch.setattr(train, "DISPATCH_BYTES", 1)
    slots, counts = sent_by(monkeypatch, **options)
    assert (slots, max(counts)) == (2, 2)
    assert sent_by(monkeypatch, **options, steps_per_dispatch=1) == (2, [1] * 100)


def test_the_number_of_steps_follows_the_clock():
    pace = train._Pace(None)
    assert pace.steps() == 1
    pace.measured(1, 20.0)  # it was compiled
    assert pace.steps() == 1
    for expected in (2, 4, 5, 5):
        pace.measured(pace.steps(), 0.19 * pace.steps())
        assert pace.steps() == expected
    pace.measured(5, 0.0)
    assert pace.steps() == 10
    pace.measured(10, 30.0)
    assert pace.steps() == 1
    for _ in range(10):
        pace.measured(1, 0.0)
    assert pace.steps() == train.DISPATCH_STEPS


def test_a_dispatch_of_no_steps_is_refused():
    with pytest.raises(ValueError, match="steps_per_dispatch 0"):
        run_of(0)


def test_batches_on_the_device_are_stacked_there():
    key = jax.random.PRNGKey(0)
    host = stack_batches(loader(16).loop(5, key=key), 3, 4)
    source = loader(16)
    device = stack_batches(Dataloader(source.data, source.labels, inmemory=True).loop(5, key=key), 3, 4)
    single = loader(16).loop(5, key=key)
    for slot in range(3):
        for on_host, on_device, plain in zip(host, device, next(single), strict=True):
            assert isinstance(on_device, jax.Array)
            assert on_host.shape == on_device.shape == (4, *plain.shape)
            np.testing.assert_array_equal(on_host[slot], plain)
            np.testing.assert_array_equal(on_device[slot], plain)


def test_it_learns():
    result = train.train(*toy(), dataset((512, 64, 64)), **{**OPTIONS, "num_steps": 300, "print_steps": 50})
    assert result.test_metric > 0.75
    assert result.history[-1].train_loss < 0.5 * result.history[0].train_loss


def test_double_precision_is_kept_throughout(x64):
    result = train.train(*hru("LinHRU"), dataset(), **{**OPTIONS, "key": jax.random.PRNGKey(1)})
    floating = [leaf for leaf in arrays((result.model, result.state)) if np.issubdtype(leaf.dtype, np.floating)]
    assert {leaf.dtype for leaf in floating} == {np.dtype("float64")}
    assert result.test_loss * 9 != float(np.float32(result.test_loss * 9))  # a sum of 9 losses in float64


def test_the_keys_of_a_seed_are_those_of_the_split():
    keys = train.seed_keys(2345)
    assert len({tuple(np.asarray(key).tolist()) for key in keys}) == 3
    order = np.asarray(jax.random.permutation(jax.random.split(keys.data)[0], 80))
    np.testing.assert_array_equal(order[:56], split_by_seed(80, 2345)["train"])


def test_parameters_are_counted():
    assert train.count_parameters(toy()[0]) == LENGTH * CHANNELS * CLASSES + CLASSES
