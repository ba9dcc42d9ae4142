"""Several devices that divide each batch: the results are those of one device, and little passes between them."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_training import CHANNELS, CLASSES, OPTIONS, arrays, dataset, hru, loader, spoilt, toy

import train
from benchmarks import hlo
from data_dir.dataloaders import Dataloader
from models.physics.in_the_loop import MachineInTheLoop, on_machine
from models.physics.numpy_leapfrog import NumpyLeapfrog
from models.rhel import BPTT, RHEL, ReversibleBPTT, with_learning_algorithm
from training import steps
from training.devices import divided, replicated

HIDDEN, BATCH = 4, 12
SEGMENTS = 40  # steps of two segments of the parallel scan
COLLECTIVES = ("all-reduce", "all-gather", "all-to-all", "collective", "reduce-scatter", "ragged")


def three_steps(model, state, length, count):
    """The training state, losses and gradient norms after three steps on so many devices, and the compiled program."""
    optimiser = train.adam(1e-2)
    training = replicated(steps.initial_state(model, state, optimiser), count)
    random = np.random.default_rng(0)
    x = random.normal(size=(3, BATCH, length, CHANNELS))
    y = np.eye(CLASSES)[random.integers(CLASSES, size=(3, BATCH))]
    batches = (*divided((x, y), count, axis=1), *replicated((jax.random.PRNGKey(5), jnp.int32(3)), count))
    own, rest = eqx.partition(training, eqx.is_array)
    leaves, structure = jax.tree.flatten(rest)
    compiled = steps._compiled_steps.lower(own, batches, tuple(leaves), structure, optimiser, True, count).compile()
    return compiled(own, batches), hlo.Module(compiled.as_text())


def handed_over(module):
    """The bytes of each collective of a program, of one device."""
    for body in module.computations.values():
        shapes = {x.name: x.shape for x in body}
        yield from (sum(hlo.size(shapes[y]) for y in x.operands) for x in body if x.op.startswith(COLLECTIVES))


# The parallel and the unrolled scan are those of a GPU.
@pytest.mark.parametrize(
    ("model_name", "algorithm", "length", "options"),
    [
        pytest.param("LinHRU", RHEL(scan="parallel"), SEGMENTS, {}, id="parallel"),
        pytest.param("NonlinHRU", RHEL(1e-2, scan="unrolled"), 3, {}, id="unrolled"),
        pytest.param("LinHRU", BPTT(), 3, {"batchnorm": "ema"}, id="BPTT"),
        pytest.param("NonlinHRU", ReversibleBPTT(), 3, {}, id="ReversibleBPTT"),
    ],
)
def test_four_devices_train_as_one_and_hand_over_the_gradient_and_the_moments(
    x64, model_name, algorithm, length, options
):
    """With dropout. The collectives are counted as they stand in the program: none of them is in a loop over time."""
    model, state = hru(model_name, dropout_rate=0.25, **options)
    model = with_learning_algorithm(model, algorithm)
    one, _ = three_steps(model, state, length, 1)
    four, module = three_steps(model, state, length, 4)
    assert all(array.sharding.is_fully_replicated for array in jax.tree.leaves(four))
    for of_four, of_one in zip(arrays(four), arrays(one), strict=True):
        np.testing.assert_allclose(of_four, of_one, rtol=1e-12, atol=1e-14)
    # The gradient with the loss; the two moments of a BatchNorm, forward and backward.
    parameters = train.count_parameters(model)
    assert sorted(handed_over(module)) == [*[8 * HIDDEN] * 4, 8 * (parameters + 1)]


def test_a_training_on_several_devices():
    """The last batches of the parts are filled up. The echo's error is measured on the first training batch."""

    def trained(count):
        return train.train(*hru("LinHRU"), dataset(), **OPTIONS, retrace=True, devices=count)

    one, two = trained(1), trained(2)
    for of_two, of_one in zip(two.history, one.history, strict=True):
        np.testing.assert_allclose(of_two[:8], of_one[:8], rtol=1e-4)
        assert 0 < of_two.retrace_error < 1e-4
    np.testing.assert_allclose([two.test_loss, two.test_metric], [one.test_loss, one.test_metric], rtol=1e-4)
    options = {"batch_size": 8, "classification": True}
    outputs, together = (
        train.predict(two.model, two.state, dataset().test, **options, devices=count) for count in (1, 2)
    )
    np.testing.assert_allclose(together, outputs, rtol=1e-4)


def test_an_evaluation_adds_the_devices_in_their_order():
    """So that devices of one process and of several give the same bits. The sum in float32 would have others."""
    model, state = toy()
    options = {"classification": True}
    alone = [train.evaluate(model, state, part, batch_size=1, **options)[0] for part in map(only, range(32))]
    loss, _ = train.evaluate(model, state, loader(32), batch_size=4, devices=4, **options)
    assert loss == math.fsum(alone) / 32


def only(sample):
    """The loader of a single sample of 32."""
    data = loader(32)
    return Dataloader(data.data[sample : sample + 1], data.labels[sample : sample + 1])


def test_a_batch_that_is_not_finite_is_named_on_several_devices():
    with pytest.raises(train.NonFiniteLoss, match="not finite at step 3") as failure:
        train.train(*hru("LinHRU"), spoilt(3), **OPTIONS, devices=2)
    assert len(set(failure.value.rows)) == OPTIONS["batch_size"]


def test_the_progress_keeps_the_numbers_of_devices():
    saved = []

    def part(count, num_steps):
        def resume(fresh):
            return fresh.restored(*saved[-1]) if saved else fresh

        train.train(
            *hru("LinHRU"),
            dataset(),
            **{**OPTIONS, "num_steps": num_steps},
            devices=count,
            resume=resume,
            on_checkpoint=lambda progress: saved.append(
                (list(map(np.asarray, progress.arrays())), progress.json_part())
            ),
        )

    for count, num_steps in ((2, 2), (2, 4), (1, 6)):
        part(count, num_steps)
    assert saved[-1][1]["devices"] == [2, 1]


@pytest.mark.parametrize(
    ("count", "words"),
    [
        (3, r"devices 3: they cannot divide a batch of 8 samples \(batch_size\) equally. Of the 4 devices.*: 1, 2, 4$"),
        (8, r"devices 8: jax sees 4 \(cpu\)"),
        (0, "devices 0: jax sees 4"),
    ],
)
def test_a_number_of_devices_that_cannot_divide_a_batch_is_refused(count, words):
    with pytest.raises(ValueError, match=words):
        train.train(*hru("LinHRU"), dataset(), **OPTIONS, devices=count)


def test_a_machine_in_the_loop_is_refused_on_several_devices():
    model, state = hru("LinHRU")
    machine = MachineInTheLoop(NumpyLeapfrog(), 1e-2)
    with pytest.raises(ValueError, match="devices 2: a machine in the loop gets whole batches"):
        train.train(on_machine(model, machine), state, dataset(), **OPTIONS, devices=2)
