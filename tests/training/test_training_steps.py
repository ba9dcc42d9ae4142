"""A step, and many of them in one call."""

import dataclasses
import functools

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
    count_losses,
    dataset,
    hru,
    loader,
    run_of,
    toy,
)

import train
from data_dir.dataloaders import Dataloader
from data_dir.storage import DataError
from training import dispatch, loop, steps
from training.dispatch import stack_batches

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


# Many steps at once


def test_every_number_of_steps_is_served_by_one_compiled_program(monkeypatch):
    traces = count_losses(monkeypatch)
    compiled = steps._compiled_steps._cache_size()
    run_of(4, functools.partial(toy, dropout_rate=0.375))  # 4, 4, 2
    run_of(4, functools.partial(toy, dropout_rate=0.375), num_steps=9, print_steps=7)  # 4, 3, 2
    assert steps._compiled_steps._cache_size() == compiled + 1
    assert len(traces) == 2  # one of the steps, one of the evaluation


def sent_by(monkeypatch, **options):
    """The number of slots, and how many steps were sent in each dispatch of a training of the toy."""
    sent, original = [], loop.train_steps

    def spy(batches, *args):
        sent.append((len(batches[0]), int(batches[3])))
        return original(batches, *args)

    monkeypatch.setattr(loop, "train_steps", spy)
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
    assert slots == dispatch.DISPATCH_STEPS
    assert sum(counts) == 100
    assert counts[0] == 1  # nothing has been measured
    monkeypatch.setattr(dispatch, "DISPATCH_BYTES", 4 * 8 * (LENGTH * CHANNELS + CLASSES) * 5 + 1)
    slots, counts = sent_by(monkeypatch, **options)
    assert slots == 5
    assert 1 < max(counts) <= 5
    monkeypatch.setattr(dispatch, "DISPATCH_BYTES", 1)
    slots, counts = sent_by(monkeypatch, **options)
    assert (slots, max(counts)) == (2, 2)
    assert sent_by(monkeypatch, **options, steps_per_dispatch=1) == (2, [1] * 100)


def test_the_number_of_steps_follows_the_clock():
    pace = dispatch.StepsPerDispatch(None)
    assert pace.next() == 1
    pace.measured(1, 20.0)  # it was compiled
    assert pace.next() == 1
    for expected in (2, 4, 5, 5):
        pace.measured(pace.next(), 0.19 * pace.next())
        assert pace.next() == expected
    pace.measured(5, 0.0)
    assert pace.next() == 10
    pace.measured(10, 30.0)
    assert pace.next() == 1
    for _ in range(10):
        pace.measured(1, 0.0)
    assert pace.next() == dispatch.DISPATCH_STEPS


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


def test_a_loss_is_read_when_the_next_dispatch_is_sent_and_before_an_evaluation(monkeypatch):
    events, original = [], loop.train_steps

    def sent(batch, training, *rest):
        events.append(("send", int(training.step) + 1))
        return original(batch, training, *rest)

    monkeypatch.setattr(loop, "train_steps", sent)
    train.train(
        *toy(),
        dataset(),
        **{**OPTIONS, "num_steps": 5, "print_steps": 3, "steps_per_dispatch": 1},
        on_step=lambda step, _: events.append(("loss", step)),
        on_evaluation=lambda evaluation: events.append(("evaluate", evaluation.step)),
    )
    assert [f"{event} {step}" for event, step in events] == [
        *("send 1", "send 2", "loss 1", "send 3", "loss 2", "loss 3", "evaluate 3"),
        *("send 4", "send 5", "loss 4", "loss 5", "evaluate 5"),
    ]
