"""A loss or gradient that is not finite: the error names its step, or the step is skipped and counted."""

import dataclasses
import json

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_training import (
    CHANNELS,
    CLASSES,
    LENGTH,
    OPTIONS,
    Toy,
    arrays,
    dataset,
    loader,
    same,
    spoilt,
    toy,
)

import train
from data_dir.dataloaders import Dataloader
from training.steps import initial_state


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


def trained_by_hand(steps):
    """The toy after these steps, counted from 1, of the order of `OPTIONS`; and their losses."""
    loader_key, dropout_key = jax.random.split(OPTIONS["key"])
    model, state = toy()
    optimiser = train.adam(OPTIONS["learning_rate"])
    training = initial_state(model, state, optimiser)
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
    """With 1, step 6 is sent before the loss of step 5 is read."""
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
        saved.append((list(map(np.array, progress.arrays())), json.loads(json.dumps(progress.json_part()))))

    options = {**OPTIONS, "print_steps": 8, "steps_per_dispatch": 8}
    train.train(*toy(), spoilt(2), **options, skip_nonfinite=1, checkpoint_steps=3, on_checkpoint=save)
    assert [json_part["step"] for _, json_part in saved] == [3, 6, 8]
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
