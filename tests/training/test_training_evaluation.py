"""Loss and metric of a split: every sample once, without dropout."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_training import CHANNELS, CLASSES, LENGTH, OUTPUT_STEP, count_losses, hru, loader, toy

import train
from data_dir.dataloaders import Dataloader
from data_dir.storage import DataError


def linhru(classification):
    return hru("LinHRU", classification)


@pytest.mark.parametrize("classification", [True, False])
@pytest.mark.parametrize(
    ("make", "size", "batch_size"), [(toy, 7, 4), (toy, 8, 4), (toy, 9, 4), (toy, 5, 16), (linhru, 7, 4)]
)
def test_evaluation_covers_every_sample_once(classification, make, size, batch_size):
    model, state = make(classification)
    data = loader(size, classification)
    loss, metric = train.evaluate(model, state, data, batch_size=batch_size, classification=classification)

    forward = jax.vmap(eqx.nn.inference_mode(model), axis_name="batch", in_axes=(0, None, None), out_axes=(0, None))
    output = np.asarray(forward(jnp.asarray(data.data), state, None)[0], dtype=np.float64)
    if classification:
        logarithms = np.log(np.exp(output).sum(axis=1)) - (output * data.labels).sum(axis=1)
        assert loss == pytest.approx(logarithms.mean(), rel=1e-5)
        assert metric == np.mean(output.argmax(axis=1) == data.labels.argmax(axis=1))
    else:
        assert output.shape == (size, LENGTH // OUTPUT_STEP, 1)  # 3 outputs, of the toy too
        assert loss == metric == pytest.approx(np.mean((output[:, :, 0] - data.labels) ** 2), rel=1e-5)


def test_an_error_is_in_the_unit_of_the_files():
    """The loss is that of the mapped labels."""
    data = loader(7, classification=False)
    mapped = Dataloader(data.data, data.labels, label_unit=3.0)
    options = {"batch_size": 4, "classification": False}
    loss, metric = train.evaluate(*toy(False), mapped, **options)
    assert (loss, metric) == (train.evaluate(*toy(False), data, **options)[0], pytest.approx(9 * loss))


def test_the_last_batch_weighs_what_it_holds():
    """A model that is right on the odd sample alone: the fill of the last batch must not count, the sample must."""
    data = Dataloader(np.zeros((9, LENGTH, CHANNELS)), np.eye(CLASSES)[[0] * 8 + [1]])
    model, state = toy()
    zero = jnp.zeros_like(model.linear.weight)
    model = eqx.tree_at(lambda m: (m.linear.weight, m.linear.bias), model, (zero, jnp.array([0.0, 5.0, 0.0])))
    _, accuracy = train.evaluate(model, state, data, batch_size=4, classification=True)
    assert accuracy == 1 / 9


def test_all_splits_share_one_compiled_evaluation(monkeypatch):
    traces = count_losses(monkeypatch)
    model, state = toy(dropout_rate=0.125)
    for size in (3, 6, 7, 11):
        train.evaluate(model, state, loader(size), batch_size=6, classification=True)
    assert len(traces) == 1


def test_dropout_is_off_in_evaluation():
    data = loader(7)
    expected = train.evaluate(*toy(dropout_rate=0.0), data, batch_size=4, classification=True)
    assert train.evaluate(*toy(dropout_rate=0.9), data, batch_size=4, classification=True) == expected


class Recall(eqx.Module):
    """Logits (steps, classes) from the last three steps."""

    def __call__(self, x, state, key):
        return x[-3:, :2] * 3, state


def test_the_accuracy_of_several_steps_is_the_share_of_right_ones():
    """6 samples in batches of 4: of 18 answers, 3 are wrong. Wherever they are, the number is the same."""
    labels = np.eye(2)[np.random.default_rng(0).integers(2, size=(6, 3))]
    shown = labels.copy()
    for wrong in ((0, 0), (0, 1), (5, 1)):
        shown[wrong] = 1 - shown[wrong]
    data = Dataloader(np.concatenate([np.zeros((6, 3, 2)), shown], axis=1), labels)
    state = eqx.nn.State(eqx.nn.Identity())
    loss, accuracy = train.evaluate(Recall(), state, data, batch_size=4, classification=True)
    assert accuracy == 15 / 18
    right, wrong = np.log(1 + np.exp(-3)), np.log(1 + np.exp(3))
    assert loss == pytest.approx((15 * right + 3 * wrong) / 18, rel=1e-5)
    assert train.predict(Recall(), state, data, batch_size=4, classification=True).shape == (6, 3, 2)


def test_an_empty_split_cannot_be_evaluated():
    empty = Dataloader(np.zeros((0, LENGTH, CHANNELS)), np.zeros((0, CLASSES)))
    with pytest.raises(DataError, match="no samples"):
        train.evaluate(*toy(), empty, batch_size=4, classification=True)
