"""Models, data and options that train in a blink."""

import dataclasses
import functools

import equinox as eqx
import jax
import numpy as np

import train
from data_dir.dataloaders import Dataloader, ShuffledBatches
from data_dir.datasets import Dataset
from models import create_model
from training import evaluation, steps

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


OPTIONS = {"learning_rate": 1e-2, "num_steps": 8, "print_steps": 2, "batch_size": 8, "key": jax.random.PRNGKey(1)}


def arrays(tree):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(eqx.filter(tree, eqx.is_array))]


def same(left, right):
    return all(np.array_equal(*pair) for pair in zip(arrays(left), arrays(right), strict=True))


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


def timeless(history):
    seconds = {name: 0 for name in train.Evaluation._fields if name.startswith("seconds")}
    return [evaluation._replace(**seconds) for evaluation in history]


def count_losses(monkeypatch):
    """A list that grows by one whenever the loss is traced, for a step or for an evaluation."""
    traces = []

    def counted(*args):
        traces.append(1)
        return train.sample_loss(*args)

    for part in (steps, evaluation):
        monkeypatch.setattr(part, "sample_loss", counted)
    return traces
