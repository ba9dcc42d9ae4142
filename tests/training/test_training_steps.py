"""A step, and how the loop sends it."""

import dataclasses

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
    OPTIONS,
    arrays,
    dataset,
    hru,
    loader,
    same,
    timeless,
    toy,
)

import train
from data_dir.dataloaders import Dataloader
from data_dir.storage import DataError
from training import loop, steps

# A step


@pytest.mark.parametrize("classification", [True, False])
def test_a_step_is_adam_on_the_mean_loss_of_the_batch(classification):
    model, state = toy(classification)
    data = loader(5, classification)
    x, y = jnp.asarray(data.data), jnp.asarray(data.labels)
    optimiser = train.adam(1e-2)

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

    start = steps.initial_state(model, state, optimiser)
    training, loss = train.train_step((x, y, jax.random.PRNGKey(0)), start, optimiser, classification)
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-6)
    np.testing.assert_allclose(training.model.linear.weight, expected[0], rtol=1e-5)
    np.testing.assert_allclose(training.model.linear.bias, expected[1], rtol=1e-5)
    assert training.step == 1


@pytest.fixture
def outputs_of_a_step(monkeypatch):
    """The outputs of the model for a batch of equal samples in one training step."""

    def outputs(model, state, step=0):
        seen = []

        def record(output, label, classification):
            jax.debug.callback(lambda value: seen.append(np.asarray(value)), output)
            return train.sample_loss(output, label, classification)

        monkeypatch.setattr(steps, "sample_loss", record)
        x = jnp.broadcast_to(loader(1).data, (4, LENGTH, CHANNELS))
        y = jnp.broadcast_to(loader(1).labels, (4, CLASSES))
        training = steps.initial_state(model, state, train.adam(1e-2))
        training = dataclasses.replace(training, step=jnp.array(step))
        # A function of its own, for which jax has no compiled program with another `record`.
        eqx.filter_jit(lambda *args: steps.batch_gradient(*args))((x, y, jax.random.PRNGKey(3)), training, True)
        jax.effects_barrier()
        assert len(seen) == 4
        return np.array(sorted(output.tolist() for output in seen))

    return outputs


def test_every_sample_of_a_batch_has_its_own_dropout(outputs_of_a_step):
    dropped = outputs_of_a_step(*hru("LinHRU", dropout_rate=0.5))
    assert len(np.unique(dropped, axis=0)) == 4
    kept = outputs_of_a_step(*hru("LinHRU", dropout_rate=0.0))
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


# Steps in the loop


def test_a_step_that_is_sent_gives_what_a_step_gives():
    model, optimiser, key = toy(dropout_rate=0.25), train.adam(1e-2), jax.random.PRNGKey(3)
    stepped, sent = (steps.initial_state(*model, optimiser) for _ in range(2))
    for number, (x, y) in zip(range(3), loader(16).loop(8, key=key), strict=False):
        batch = (jnp.asarray(x), jnp.asarray(y), key)
        _, gradient = steps.batch_gradient(batch, sent, True)
        stepped, expected = train.train_step(batch, stepped, optimiser, True)
        sent, loss, norm = steps.send_step(batch, sent, optimiser, True)
        np.testing.assert_allclose(loss, expected, rtol=1e-5)
        np.testing.assert_allclose(norm, optax.tree.norm(gradient), rtol=1e-5)
        assert sent.step == number + 1
    for left, right in zip(arrays(sent), arrays(stepped), strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-5, atol=1e-7)


def test_a_loss_is_read_when_the_next_step_is_sent_and_before_an_evaluation(monkeypatch):
    events, original = [], loop.send_step

    def sent(batch, training, *rest):
        events.append(("send", int(training.step) + 1))
        return original(batch, training, *rest)

    monkeypatch.setattr(loop, "send_step", sent)
    train.train(
        *toy(),
        dataset(),
        **{**OPTIONS, "num_steps": 5, "print_steps": 3},
        on_step=lambda step, _: events.append(("loss", step)),
        on_evaluation=lambda evaluation: events.append(("evaluate", evaluation.step)),
    )
    assert [f"{event} {step}" for event, step in events] == [
        *("send 1", "send 2", "loss 1", "send 3", "loss 2", "loss 3", "evaluate 3"),
        *("send 4", "send 5", "loss 4", "loss 5", "evaluate 5"),
    ]


def test_samples_on_the_device_give_the_same_training():
    host, device = dataset(), dataset()
    on_device = Dataloader(device.train.data, device.train.labels, inmemory=True)
    device = dataclasses.replace(device, train=on_device)
    assert isinstance(next(on_device.loop(8, key=OPTIONS["key"]))[0], jax.Array)
    first, second = (train.train(*toy(dropout_rate=0.25), data, **OPTIONS) for data in (host, device))
    assert timeless(first.history) == timeless(second.history)
    assert same(first.model, second.model)
