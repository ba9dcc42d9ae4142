"""What a classification reads: the mean over time, the last step, or several last steps."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from systems import assert_close, relative_error

from models import create_model
from models.rhel import RHEL, with_learning_algorithm

STEPS, CLASSES = 12, 3
X = jax.random.normal(jax.random.PRNGKey(1), (4, STEPS, 2))


def make(model_name="LinHRU", algorithm="RHEL", classification=True, **options):
    sizes = {"data_dim": 2, "label_dim": CLASSES, "hidden_dim": 4, "num_blocks": 1, "ssm_dim": 3}
    options = {"dropout_rate": 0.0, "key": jax.random.PRNGKey(0), "learning_algorithm": algorithm} | options
    return create_model(model_name, classification=classification, **sizes, **options)


def outputs(model, state, x=X):
    return jax.vmap(model, axis_name="batch", in_axes=(0, None), out_axes=(0, None))(x, state)[0]


@eqx.filter_jit
@eqx.filter_grad
def gradient(model, state, x):
    """Of the mean cross-entropy, with labels that differ between samples and steps."""
    logits = outputs(model, state, x)
    labels = jnp.arange(logits[..., 0].size).reshape(logits.shape[:-1]) % CLASSES
    return -jnp.mean(jnp.sum(jax.nn.one_hot(labels, CLASSES) * jax.nn.log_softmax(logits), axis=-1))


@pytest.mark.parametrize(
    ("model_name", "last_steps", "of_gpu"), [("LinHRU", 5, "parallel"), ("NonlinHRU", 1, "unrolled")]
)
def test_the_gradient_is_that_of_bptt(x64, model_name, last_steps, of_gpu):
    options = {"pooling": "last", "last_steps": last_steps}
    model, state = make(model_name, **options)
    exact = gradient(*make(model_name, "BPTT", **options), X.astype(float))
    assert all(np.any(leaf != 0) for leaf in jax.tree.leaves(exact))
    for scan in ("sequential", of_gpu):
        by_echo = gradient(with_learning_algorithm(model, RHEL(scan=scan)), state, X.astype(float))
        assert_close(by_echo, exact, 1e-10 if model_name == "LinHRU" else 1e-8)


def test_the_last_steps_are_read_and_no_others():
    dense, state = make(classification=False)  # a regression reads every step, with the same numbers
    at_all_steps = np.arctanh(np.asarray(outputs(dense, state), float))
    for last_steps, shape in ((1, (4, CLASSES)), (5, (4, 5, CLASSES))):
        read = outputs(*make(pooling="last", last_steps=last_steps))
        assert read.shape == shape
        assert relative_error(read, at_all_steps[:, -last_steps:].reshape(shape)) < 1e-4
    mean = outputs(*make())
    assert relative_error(mean, at_all_steps.mean(axis=1)) < 1e-4
    assert relative_error(mean, at_all_steps[:, -1]) > 0.1


def test_the_gradient_in_float32_as_users_run_it():
    options = {"pooling": "last"}
    model, state = make(**options)
    by_echo = gradient(model, state, X)
    with jax.enable_x64(True):
        exact_model, exact_state = make(algorithm="BPTT", **options)
        numbers = jax.tree.leaves(eqx.filter(model, eqx.is_inexact_array))
        arrays, rest = eqx.partition(exact_model, eqx.is_inexact_array)
        numbers = [jnp.asarray(np.asarray(leaf), jnp.float64) for leaf in numbers]
        exact_model = eqx.combine(jax.tree.unflatten(jax.tree.structure(arrays), numbers), rest)
        exact = gradient(exact_model, exact_state, jnp.asarray(np.asarray(X), jnp.float64))
    assert_close(by_echo, exact, 1e-4)


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pooling": "first"}, "unknown pooling 'first'; one of mean, last"),
        (
            {"pooling": "last", "classification": False},
            "pooling is 'last', but a regression reads every output_step-th",
        ),
        ({"last_steps": 2}, "last_steps is 2, but pooling is 'mean': several steps need pooling 'last'"),
        ({"last_steps": 0, "pooling": "last"}, "last_steps must be a whole number of at least 1, got 0"),
    ],
)
def test_bad_readings_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_a_sequence_shorter_than_its_last_steps_is_refused():
    with pytest.raises(ValueError, match="the sequence has 12 steps, fewer than last_steps 13"):
        outputs(*make(pooling="last", last_steps=13))
