"""The training loop: what it keeps, when it stops, and what it tells."""

import functools
import itertools
import time
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small_training import (
    CHANNELS,
    CLASSES,
    LENGTH,
    MODELS,
    OPTIONS,
    arrays,
    count_losses,
    dataset,
    hru,
    loader,
    same,
    spoilt,
    timeless,
    toy,
)

import train
from data_dir.splits import split_by_seed
from training import loop, steps
from training.dispatch import stack_batches


@pytest.fixture
def scripted(monkeypatch):
    """Let validation metrics and losses be given lists; returns what was evaluated, as (split, copy of the model)."""

    def script(data, metrics, losses=()):
        names = {id(data.train): "train", id(data.validation): "validation", id(data.test): "test"}
        seen, metrics, losses = [], iter(metrics), iter(losses)

        def evaluate(model, state, split, **_):
            name = names[id(split)]
            seen.append((name, jax.tree.map(lambda leaf: jnp.copy(leaf) if eqx.is_array(leaf) else leaf, model)))
            return (next(losses, 0.0), next(metrics)) if name == "validation" else (0.0, 0.25)

        monkeypatch.setattr(loop, "evaluate", evaluate)
        return seen

    return script


class Trainings(NamedTuple):
    """Three trainings of one model: two with one key, one with another."""

    first: train.TrainingResult
    second: train.TrainingResult
    other: train.TrainingResult
    started: tuple  # the model and state that the first one was given
    traces: int  # how often a loss was traced in all of them


def make(model_name):
    return hru(model_name, dropout_rate=0.0625)


@pytest.fixture(scope="module")
def trainings():
    """Gives the `Trainings` of a model. Each is done once, and compiles what the tests below use."""

    @functools.cache
    def of(model_name):
        with pytest.MonkeyPatch.context() as patch:
            traces = count_losses(patch)
            started, keys = make(model_name), (OPTIONS["key"], OPTIONS["key"], jax.random.PRNGKey(2))
            models = (started, make(model_name), make(model_name))
            results = [
                train.train(*model, dataset(), **{**OPTIONS, "key": key})
                for model, key in zip(models, keys, strict=True)
            ]
        return Trainings(*results, started, len(traces))

    return of


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
    """In the unit of the loss, in which several outputs count alike: the mse may be that of the largest unit alone."""
    data = dataset(classification=False)
    scripted(data, metrics=[9.0, 8.0, 7.0, 6.0], losses=[0.5, 0.3, 0.3, 0.6])
    result = train.train(*toy(classification=False), data, **OPTIONS)
    assert (result.best_step, result.val_metric) == (4, 8.0)


def test_the_test_set_is_read_once_at_the_end_by_the_best_model(scripted):
    data = dataset()
    seen = scripted(data, [0.5, 0.7, 0.6, 0.6])
    result = train.train(*toy(), data, **OPTIONS)
    assert [name for name, _ in seen] == ["train", "validation"] * 4 + ["test"]
    assert same(seen[-1][1], result.model)
    assert [same(result.model, model) for name, model in seen if name == "validation"] == [False, True, False, False]
    assert result.test_metric == 0.25


@pytest.mark.parametrize("model_name", MODELS)
def test_the_result_is_that_of_the_returned_model_and_state(trainings, model_name):
    data, result = dataset(), trainings(model_name).first
    options = {"batch_size": 8, "classification": True}
    assert train.evaluate(result.model, result.state, data.validation, **options)[1] == pytest.approx(result.val_metric)
    test_loss, test_metric = train.evaluate(result.model, result.state, data.test, **options)
    assert test_metric == pytest.approx(result.test_metric)
    assert test_loss == pytest.approx(result.test_loss, rel=1e-5)


def test_the_model_that_is_handed_in_stays_as_it_was(trainings):
    started = trainings("LinHRU").started
    assert same(started, make("LinHRU"))
    assert not same(trainings("LinHRU").first.model, started[0])


# When it stops


@pytest.mark.parametrize(
    ("metrics", "evaluations"),
    [
        ([0.5] * 99, 1 + 11),
        ([0.5] * 11 + [0.6] * 88, 11 + 1 + 11),  # ten are forgiven, and an improvement resets the count
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


def test_the_first_call_of_a_step_counts_as_compiling(scripted, monkeypatch):
    """It traces the step, and jax does not tell how long that takes."""
    data, calls, send = dataset(), itertools.count(), loop.train_steps
    scripted(data, [0.5] * 99)
    monkeypatch.setattr(loop, "train_steps", lambda *args: time.sleep(next(calls) == 0) or send(*args))
    seconds = train.train(*toy(), data, **OPTIONS, patience=1).seconds
    assert seconds.steps < 1 < seconds.compiling


def test_the_seconds_of_the_parts_are_within_the_whole(trainings):
    result, whole = trainings("LinHRU").first, 0
    for evaluation in result.history:
        parts = (evaluation.seconds_steps, evaluation.seconds_evaluation, evaluation.seconds_compiling)
        assert min(parts) > 0
        assert whole < sum(parts) <= evaluation.seconds
        whole = evaluation.seconds
    assert result.history[0].seconds_compiling > result.history[0].seconds_evaluation
    assert result.seconds.total >= whole


# Repeatability and precision


@pytest.mark.parametrize("model_name", MODELS)
def test_the_same_key_gives_the_same_training(trainings, model_name):
    first, second, other, _, _ = trainings(model_name)
    assert timeless(first.history) == timeless(second.history)
    assert same((first.model, first.state), (second.model, second.state))
    assert timeless(other.history) != timeless(first.history)


@pytest.mark.parametrize("model_name", MODELS)
def test_two_seeds_share_one_compiled_step(trainings, model_name):
    assert trainings(model_name).traces == 2  # one of the step, one of the evaluation


def test_a_step_uses_up_the_state_that_it_is_given(trainings):
    """The new state takes its memory. jax warns where that is not possible, and warnings are errors here."""
    trainings("LinHRU")
    optimiser = train.adam(OPTIONS["learning_rate"])
    training = steps.initial_state(*make("LinHRU"), optimiser)
    x, y = jax.device_put(stack_batches(loader(16).loop(8, key=jax.random.PRNGKey(0)), 2, 2))
    steps.train_steps((x, y, jax.random.PRNGKey(0), jnp.int32(2)), training, optimiser, True)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(eqx.filter(training, eqx.is_array)))
    assert not x.is_deleted()


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
    # The published experiments: data, model and training are the first three of four.
    np.testing.assert_array_equal(np.stack(keys), jax.random.split(jax.random.PRNGKey(2345), 4)[:3])
    order = np.asarray(jax.random.permutation(jax.random.split(keys.data)[0], 80))
    np.testing.assert_array_equal(order[:56], split_by_seed(80, 2345)["train"])


def test_parameters_are_counted():
    assert train.count_parameters(toy()[0]) == LENGTH * CHANNELS * CLASSES + CLASSES
