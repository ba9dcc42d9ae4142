"""Several trainings in one program: each ends as it does alone, whatever the others do."""

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
    OPTIONS,
    Toy,
    arrays,
    dataset,
    hru,
    loader,
    spoilt,
    timeless,
    toy,
)
from systems import CoupledPendulums

import train
from models import create_model
from models.layer import AbstractHRULayer
from models.physics.in_the_loop import MachineInTheLoop, on_machine
from models.physics.numpy_leapfrog import NumpyLeapfrog
from models.rhel import BPTT, RHEL, ReversibleBPTT, with_learning_algorithm
from training import loop, steps
from training.together import train_steps_together

BATCH = 12


class Pendulums(AbstractHRULayer):
    """A unit of a user: oscillators that are coupled by a matrix."""

    inertia: jax.Array
    coupling: jax.Array

    def __init__(self, hidden_dim, ssm_dim, *, key, **common):
        super().__init__(hidden_dim, ssm_dim, key=key, **common)
        self.inertia = 1 + jax.random.uniform(key, (ssm_dim,))
        self.coupling = jax.random.normal(key, (ssm_dim, 4 * ssm_dim))

    def hamiltonian(self):
        return CoupledPendulums(self.inertia, self.coupling, jnp.full_like(self.inertia, 0.1))


def own_unit(dropout_rate):
    key = jax.random.PRNGKey(0)
    sizes = (CHANNELS, CLASSES, 4, 1, 3)
    return create_model(Pendulums, *sizes, classification=True, dropout_rate=dropout_rate, key=key)


def of_seed(seed, made, algorithm, optimiser, length):
    """The training state of a seed, with parameters of its own, and three batches as `train_steps` takes them."""
    model, state = made
    arrays, static = eqx.partition(with_learning_algorithm(model, algorithm), eqx.is_inexact_array)
    arrays = jax.tree.map(lambda x: x * (1 + 0.1 * seed), arrays)
    random = np.random.default_rng(seed)
    x = random.normal(size=(3, BATCH, length, CHANNELS))
    y = np.eye(CLASSES)[random.integers(CLASSES, size=(3, BATCH))]
    batches = (*jax.device_put((x, y)), jax.random.PRNGKey(seed), jnp.int32(3))
    return steps.initial_state(eqx.combine(arrays, static), state, optimiser), batches


# The parallel and the unrolled scan are those of a GPU. The single programs of the first three are those that
# test_training_devices.py compiles.
@pytest.mark.parametrize(
    ("make", "algorithm", "length"),
    [
        pytest.param(lambda **how: hru("LinHRU", **how), RHEL(scan="parallel"), 40, id="parallel"),
        pytest.param(lambda **how: hru("LinHRU", batchnorm="ema", **how), BPTT(), 3, id="BPTT"),
        pytest.param(lambda **how: hru("NonlinHRU", **how), ReversibleBPTT(), 3, id="ReversibleBPTT"),
        pytest.param(own_unit, RHEL(1e-2, scan="unrolled"), 3, id="own unit"),
        pytest.param(lambda **how: hru("LinHRU", **how), RHEL(), 40, id="linear on a CPU", marks=pytest.mark.long),
        pytest.param(lambda **how: hru("NonlinHRU", **how), RHEL(), 40, id="on a CPU", marks=pytest.mark.long),
        pytest.param(
            *(lambda **how: hru("NonlinHRU", **how), RHEL(scan="unrolled"), 40), id="unrolled", marks=pytest.mark.long
        ),
    ],
)
def test_seeds_take_their_own_steps_in_one_program(x64, make, algorithm, length):
    """With dropout. The seeds differ in parameters, batches, keys and numbers of their steps; a place is empty."""
    optimiser, made = train.adam(1e-2), make(dropout_rate=0.25)
    seeds = [of_seed(seed, made, algorithm, optimiser, length) for seed in (0, 1)]
    seeds[1] = (dataclasses.replace(seeds[1][0], step=jnp.array(7)), seeds[1][1])
    rests = [(optimiser, True, 1)] * 2
    states, batches = zip(*seeds, strict=True)
    together = train_steps_together(batches, states, rests, places=3)
    for (state, batches), of_together in zip(seeds, together, strict=True):
        alone = steps.train_steps(batches, state, optimiser, True)
        assert jax.tree.structure(of_together[0]) == jax.tree.structure(alone[0])
        for one, other in zip(arrays(of_together), arrays(alone), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-10, atol=1e-13)
            assert one.dtype == other.dtype


# Whole trainings


def shuffled(seed):
    """Data of a seed. The training sets differ in size."""
    return dataclasses.replace(dataset(), train=loader(16 + 4 * seed, seed=seed))


def starting(seed):
    return eqx.nn.make_with_state(lambda key: Toy(key, dropout_rate=0.25))(jax.random.PRNGKey(seed))


def caught(training):
    """The training, whose exception is its result."""
    try:
        return (yield from training)
    except Exception as error:
        return error


def both(members, **options):
    """The trainings of (seed, function that makes its data) alone and together: results or exceptions, told losses."""
    options = {**OPTIONS, "steps_per_dispatch": 2, **options}

    def tell(told):
        return lambda step, loss: told.append((step, loss))

    def training(how, seed, make, told):
        own = {"key": jax.random.PRNGKey(seed), "on_step": tell(told)}
        return how(*starting(seed), make(), **options | own)

    told = [([], []) for _ in members]
    ended = []
    for member, (losses, _) in zip(members, told, strict=True):
        try:
            ended.append(training(train.train, *member, losses))
        except train.NonFiniteLoss as error:
            ended.append(error)
    wanting = [
        caught(training(train.train_in_steps, *member, losses))
        for member, (_, losses) in zip(members, told, strict=True)
    ]
    return ended, train.together(wanting), told


def assert_same_end(alone, together):
    if isinstance(alone, Exception):
        assert type(together) is type(alone)
        assert str(together) == str(alone)
        assert together.rows == alone.rows
    else:
        for name in ("best_step", "steps", "skipped", "stop_reason"):
            assert getattr(together, name) == getattr(alone, name)
        np.testing.assert_allclose(together.test_loss, alone.test_loss, rtol=1e-10)
        for one, other in zip(timeless(together.history), timeless(alone.history), strict=True):
            np.testing.assert_allclose(one[:8], other[:8], rtol=1e-10)
    for one, other in zip(arrays((together.model, together.state)), arrays((alone.model, alone.state)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-10, atol=1e-13)


def test_trainings_together_end_as_each_does_alone(x64, monkeypatch):
    """One stops early, one fails, one skips a step, one does all steps."""
    evaluate = loop.evaluate

    def stuck():
        data = shuffled(0)
        data.validation.stuck = True
        return data

    def evaluated(model, state, split, **options):
        """The accuracy of a validation set grows, unless it is stuck."""
        loss, _ = evaluate(model, state, split, **options)
        split.seen = getattr(split, "seen", 0) + 1
        return loss, 0.5 if hasattr(split, "stuck") else 0.01 * split.seen

    monkeypatch.setattr(loop, "evaluate", evaluated)
    members = [(0, stuck), (1, lambda: shuffled(1)), (2, lambda: spoilt(2, 3)), (3, lambda: spoilt(2))]
    alone, together, told = both(members, num_steps=10, patience=1, skip_nonfinite=1)
    for one, other in zip(alone, together, strict=True):
        assert_same_end(one, other)
    for of_alone, of_together in told:
        np.testing.assert_allclose(of_together, of_alone, rtol=1e-10)
    assert (together[0].stop_reason, together[0].steps) == ("early_stopping", 6)
    assert (type(together[2]), together[2].step) == (train.NonFiniteLoss, 3)
    assert (together[3].stop_reason, together[3].skipped) == ("num_steps", 1)


def test_a_seed_that_has_ended_leaves_a_smaller_program(monkeypatch):
    """The program has 5 places until two seeds are left, and the last one has the program of a single training."""
    places, compute = [], loop.Steps.compute
    original = train_steps_together

    def counted(batches, trainings, rests, number):
        places.append((len(trainings), number))
        return original(batches, trainings, rests, number)

    monkeypatch.setattr("training.together.train_steps_together", counted)
    monkeypatch.setattr(loop.Steps, "compute", lambda self: places.append((1, 1)) or compute(self))
    saved = {}

    def training(seed, num_steps):
        return train.train_in_steps(
            *toy(),
            dataset(),
            **{**OPTIONS, "num_steps": num_steps, "print_steps": 20},
            steps_per_dispatch=2,
            on_checkpoint=lambda progress: saved.update({seed: progress.json_part()["seeds"]}),
        )

    ends = train.together([training(seed, num_steps) for seed, num_steps in enumerate((2, 4, 6, 8, 10))])
    assert [end.steps for end in ends] == [2, 4, 6, 8, 10]
    assert places == [(5, 5), (4, 5), (3, 5), (2, 2), (1, 1)]
    assert saved == {0: [5], 1: [5], 2: [5], 3: [5, 2], 4: [5, 2, 1]}


def test_trainings_at_different_steps_continue_together_and_alone(x64):
    """A checkpoint does not say how it was made: alone, or together with others at other steps."""
    options = {**OPTIONS, "num_steps": 8, "print_steps": 4, "steps_per_dispatch": 3}

    def training(how, seed, saved, **changes):
        def save(progress):
            saved.append((list(map(np.array, progress.arrays())), json.loads(json.dumps(progress.json_part()))))

        own = {"key": jax.random.PRNGKey(seed), "on_checkpoint": save}
        own["resume"] = lambda fresh: fresh.restored(*saved[-1]) if saved else fresh
        return how(*starting(seed), shuffled(seed), **options | own | changes)

    whole = [training(train.train, seed, []) for seed in (0, 1)]
    saved = [], []
    for seed, num_steps in ((0, 1), (1, 3)):
        training(train.train, seed, saved[seed], num_steps=num_steps, checkpoint_steps=1, print_steps=100)
        saved[seed][-1][1].update(history=[], evaluations_since_best=0)  # of a run of so few steps
        saved[seed][-1][1].update(losses=[0.0] * num_steps, gradient_norms=[0.0] * num_steps)
    train.together([training(train.train_in_steps, seed, saved[seed], num_steps=6) for seed in (0, 1)])
    assert [of_seed[-1][1]["step"] for of_seed in saved] == [6, 6]
    assert [of_seed[-1][1]["seeds"] for of_seed in saved] == [[1, 2, 1], [1, 2]]
    for seed in (0, 1):
        end = training(train.train, seed, saved[seed])
        assert [evaluation.step for evaluation in end.history] == [4, 6, 8]
        np.testing.assert_allclose(end.history[-1][2:6], whole[seed].history[-1][2:6], rtol=1e-10)


# What cannot be computed together


def test_what_one_program_cannot_compute_is_refused(monkeypatch):
    model, state = hru("LinHRU")
    others = {
        "differ in their learning rate": {"learning_rate": 1e-3},
        "devices 2: trainings together need 1": {"devices": 2},
        "differ in the shapes": {"batch_size": 4},
    }
    for words, changes in others.items():
        wanting = [train.train_in_steps(*toy(), dataset(), **OPTIONS | changes) for _ in range(2)]
        if "devices" not in changes:
            wanting[1] = train.train_in_steps(*toy(), dataset(), **OPTIONS)
        with pytest.raises(train.NotTogether, match=words):
            train.together(wanting)
    makes = {"static field": toy(dropout_rate=0.125), "a machine in the loop": (None, state)}
    for words, (other, state) in makes.items():
        other = on_machine(model, MachineInTheLoop(NumpyLeapfrog(), 1e-2)) if other is None else other
        models = [(other, state), toy() if words == "static field" else (other, state)]
        with pytest.raises(train.NotTogether, match=words):
            train.together([train.train_in_steps(*each, dataset(), **OPTIONS) for each in models])


def test_an_exception_is_raised_when_the_others_have_ended():
    """Also one of the computation, which each of them gets."""
    ended = []

    def training(seed, data):
        def mark(evaluation):
            ended.append((seed, evaluation.step))

        return train.train_in_steps(*toy(), data, **OPTIONS, on_evaluation=mark)

    with pytest.raises(train.NonFiniteLoss, match="step 1"):
        train.together([training(0, spoilt(1)), training(1, dataset()), training(2, spoilt(3))])
    assert ended == [(1, 2), (2, 2), (1, 4), (1, 6), (1, 8)]
