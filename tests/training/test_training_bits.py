"""The bits of a training do not depend on how its steps are sent. Compiled as users do: see the Makefile."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_training import OPTIONS, arrays, dataset, hru, loader, run_of, same, timeless, toy

import train
from data_dir.dataloaders import Dataloader
from training import steps
from training.dispatch import stack_batches


@pytest.mark.parametrize(
    ("model_name", "options"),
    [("LinHRU", {"epsilon": 0.1, "batchnorm": "ema"}), ("NonlinHRU", {"learning_algorithm": "BPTT"})],
)
def test_the_bits_do_not_depend_on_how_steps_are_sent(model_name, options):
    make = functools.partial(hru, model_name, dropout_rate=0.25, **options)
    plain, plain_losses = run_of(1, make, print_steps=3)
    assert [step for step, _ in plain_losses] == list(range(1, 11))
    # Two programs, for stacks of 2 and of 3 batches: 2, 1, 2, 1, 2, 1, 1 steps; 3, 3, 3, 1; by the clock.
    for steps_per_dispatch in (2, 99, None):
        result, losses = run_of(steps_per_dispatch, make, print_steps=3)
        assert losses == plain_losses
        assert timeless(result.history) == timeless(plain.history)
        assert same((result.model, result.state), (plain.model, plain.state))
        names = ("best_step", "val_metric", "test_loss", "test_metric", "steps", "stop_reason")
        assert [getattr(result, name) for name in names] == [getattr(plain, name) for name in names]


def test_a_stack_of_batches_gives_what_single_steps_give():
    model, state = toy(dropout_rate=0.25)
    optimiser = train.adam(1e-2)

    def start():
        return steps.initial_state(model, state, optimiser)

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


def test_samples_on_the_device_give_the_same_training():
    host, device = dataset(), dataset()
    on_device = Dataloader(device.train.data, device.train.labels, inmemory=True)
    device = dataclasses.replace(device, train=on_device)
    assert isinstance(next(on_device.loop(8, key=OPTIONS["key"]))[0], jax.Array)
    first, second = (train.train(*toy(dropout_rate=0.25), data, **OPTIONS) for data in (host, device))
    assert timeless(first.history) == timeless(second.history)
    assert same(first.model, second.model)
