"""The network around a unit: normalisation, dropout, the recomputed feed-forward part, and what a step keeps."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

from models import create_model
from models.normalisation import BatchNorm
from models.stack import GLU, FeedForward

KEY = jax.random.PRNGKey(0)


def sequences(batch=5, length=12, features=3):
    return 2 + 3 * jax.random.normal(KEY, (batch, length, features))


def step_of(
    model_name="LinHRU", learning_algorithm="RHEL", *, length=40, batch=4, hidden_dim=8, num_blocks=2, **options
):
    """Value and gradient of a loss as a function of the arrays of the model and of the batch, with such arrays."""
    model, state = create_model(
        model_name,
        data_dim=3,
        label_dim=2,
        hidden_dim=hidden_dim,
        num_blocks=num_blocks,
        classification=True,
        learning_algorithm=learning_algorithm,
        key=KEY,
        **({"ssm_dim": 4} | ({"complex_ssm": False} if model_name == "NonlinHRU" else {}) | options),
    )
    arrays, static = eqx.partition(model, eqx.is_inexact_array)
    keys = jax.random.split(KEY, batch)

    def loss(arrays, x):
        forward = jax.vmap(eqx.combine(arrays, static), axis_name="batch", in_axes=(0, None, 0), out_axes=(0, None))
        return jnp.sum(forward(x, state, keys)[0] ** 2)

    return jax.value_and_grad(loss), (arrays, jax.random.normal(KEY, (batch, length, 3)))


# Normalisation


@pytest.mark.parametrize("mode", ["ema", "batch"])
def test_batch_norm_is_that_of_equinox_in_training(x64, mode):
    norm, state = eqx.nn.make_with_state(BatchNorm)(3, mode=mode)
    theirs, their_state = eqx.nn.make_with_state(eqx.nn.BatchNorm)(3, "batch", mode=mode, channelwise_affine=False)

    def of_ours(x, state):
        standardisation, state = norm(x, state)
        return standardisation(x), state

    def of_theirs(x, state):
        out, state = theirs(x.T, state)
        return out.T, state

    weights = jax.random.normal(KEY, (5, 12, 3))
    for shift in range(3):
        x = sequences() + shift
        found = []
        for function, known in ((of_ours, state), (of_theirs, their_state)):

            def weighted(x, function=function, known=known):
                out, new = jax.vmap(function, axis_name="batch", in_axes=(0, None), out_axes=(0, None))(x, known)
                return jnp.vdot(weights, out), (out, new)

            gradient, (out, new) = jax.grad(weighted, has_aux=True)(x)
            found.append((out, gradient, new))
        (out, gradient, state), (their_out, their_gradient, their_state) = found
        np.testing.assert_allclose(out, their_out, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(gradient, their_gradient, rtol=1e-10, atol=1e-12)
    if mode == "ema":
        norm, theirs = eqx.nn.inference_mode((norm, theirs))
        np.testing.assert_allclose(norm(x[0], state)[0](x[0]), theirs(x[0].T, their_state)[0].T, rtol=1e-12)


def test_running_moments_are_unbiased_from_the_first_batch(x64):
    norm, state = eqx.nn.make_with_state(BatchNorm)(3, mode="batch")
    x = sequences()
    _, state = jax.vmap(norm, axis_name="batch", in_axes=(0, None), out_axes=(None, None))(x, state)
    mean, scale = eqx.nn.inference_mode(norm)(x[0], state)[0]
    np.testing.assert_allclose(mean, jnp.mean(x, (0, 1)), rtol=1e-12)
    np.testing.assert_allclose(scale, 1 / jnp.sqrt(jnp.var(x, (0, 1)) + 1e-5), rtol=1e-12)


@pytest.mark.parametrize("mode", ["ema", "batch"])
def test_before_any_training_inference_leaves_the_features_as_they_are(x64, mode):
    norm, state = eqx.nn.make_with_state(BatchNorm)(3, mode=mode)
    x = sequences()[0]
    np.testing.assert_allclose(eqx.nn.inference_mode(norm)(x, state)[0](x), x, rtol=1e-5)


def test_batches_under_another_vmap_have_moments_of_their_own(x64):
    norm, state = eqx.nn.make_with_state(BatchNorm)(3)
    x = sequences(4).reshape(2, 2, 12, 3) * jnp.array([1.0, 5.0])[:, None, None, None]

    def of_batch(x):
        leaves, structure = jax.tree.flatten(state)  # a state may be read once
        fresh = jax.tree.unflatten(structure, leaves)
        return jax.vmap(lambda x: norm(x, fresh)[0], axis_name="batch", out_axes=None)(x)

    together = jax.vmap(of_batch)(x)
    for i, one in enumerate(map(of_batch, x)):
        np.testing.assert_allclose(together.mean[i], one.mean, rtol=1e-12)
        np.testing.assert_allclose(together.scale[i], one.scale, rtol=1e-12)


# Dropout and the feed-forward part


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize("rate", [0.05, 0.5])
def test_the_two_masks_are_independent_and_of_the_right_rate(rate):
    class Shows(eqx.Module):
        """In the place of the GLU: shows the first mask to the second."""

        def __call__(self, x):
            return jnp.where(x == 0, 1.0, 2.0)

    feed_forward = FeedForward(Shows(), eqx.nn.Dropout(rate), remat=False)
    keys = jax.random.split(KEY, 4)
    out = np.asarray(jax.vmap(feed_forward)(jnp.ones((4, 500, 51)), keys))
    scale = 1 / (1 - round(rate * 65536) / 65536)
    kept = out != 0
    np.testing.assert_allclose(np.unique(out[kept]), [scale, 2 * scale], rtol=1e-6)
    deviation = (rate * (1 - rate) / out.size) ** 0.5
    assert abs(np.mean(~kept) - rate) < 5 * deviation
    # Where the second mask keeps, the first drops at its own rate.
    assert abs(np.mean(out[kept] < 1.5 * scale) - rate) < 5 * deviation / (1 - rate) ** 0.5
    for along in range(3):  # neighbouring sequences, steps and features
        ahead, behind = np.split(kept, [1], along)[1], np.split(kept, [-1], along)[0]
        both = np.mean(ahead & behind)
        assert abs(both - (1 - rate) ** 2) < 8 * deviation


def test_masks_belong_to_the_key_and_the_step_and_not_to_the_batch_or_the_stretch():
    def drop(remat):
        return FeedForward(GLU(3, 3, key=KEY), eqx.nn.Dropout(0.4), remat)

    x, keys = jnp.ones((6, 40, 3)), jax.random.split(KEY, 6)
    whole = jax.vmap(drop(False))(x, keys)
    assert len(np.unique(whole[0], axis=0)) > 5
    assert not np.array_equal(whole[0], whole[1])
    np.testing.assert_allclose(drop(False)(x[3], keys[3]), whole[3], rtol=1e-6)
    np.testing.assert_allclose(drop(False)(x[3, :25], keys[3]), whole[3, :25], rtol=1e-6)
    np.testing.assert_allclose(jax.vmap(drop(True))(x, keys), whole, rtol=1e-6)
    typed = jax.vmap(drop(False))(x, jax.random.wrap_key_data(keys))
    np.testing.assert_array_equal(typed, whole)


def test_dropout_without_a_key_says_what_is_missing():
    feed_forward = FeedForward(GLU(3, 3, key=KEY), eqx.nn.Dropout(0.4), True)
    with pytest.raises(RuntimeError, match="needs a key in training"):
        feed_forward(jnp.ones((4, 3)))
    eqx.nn.inference_mode(feed_forward)(jnp.ones((4, 3)))


@pytest.mark.parametrize("model_name", ["LinHRU", "NonlinHRU"])
@pytest.mark.parametrize("algorithm", ["RHEL", "BPTT"])
def test_remat_changes_no_value_and_no_gradient(x64, monkeypatch, model_name, algorithm):
    monkeypatch.setattr("models.rhel.stretches.CACHED", 7 * 4 * 8)  # stretches of 8 steps, and one of 5
    found = []
    for remat in (True, False):
        function, arguments = step_of(model_name, algorithm, length=45, num_blocks=1, dropout_rate=0.3, remat=remat)
        found.append(jax.jit(function)(*arguments))
    for again, kept in zip(*map(jax.tree.leaves, found), strict=True):
        np.testing.assert_allclose(again, kept, rtol=1e-9, atol=1e-12)


# What a step keeps


def temporaries(**options) -> int:
    function, arguments = step_of(**options)
    return jax.jit(function).lower(*arguments).compile().memory_analysis().temp_size_in_bytes


def test_remat_keeps_less():
    size = {"length": 896, "batch": 32, "hidden_dim": 64, "ssm_dim": 16, "num_blocks": 2}
    assert temporaries(remat=True, **size) < 0.7 * temporaries(remat=False, **size)


def shapes_in(jaxpr):
    """The shapes of all arrays that are computed in a jaxpr, inner ones included."""
    for equation in jaxpr.eqns:
        yield from (variable.aval.shape for variable in equation.outvars)
        for inner in jaxprs_in_params(equation.params):
            yield from shapes_in(getattr(inner, "jaxpr", inner))


@pytest.mark.parametrize("model_name", ["LinHRU", "NonlinHRU"])
def test_the_program_grows_with_neither_length_nor_oscillators_and_has_no_product_of_all_sizes(model_name):
    counts = set()
    for length, oscillators in ((896, 24), (1792, 24), (896, 48)):
        function, arguments = step_of(model_name, length=length, ssm_dim=oscillators, hidden_dim=11, batch=3)
        shapes = list(shapes_in(jax.make_jaxpr(function)(*arguments).jaxpr))
        counts.add(len(shapes))
        states = {oscillators, 2 * oscillators}
        for shape in shapes:
            assert not (11 in shape and states & set(shape) and np.prod(shape) >= length * oscillators * 11), shape
            assert np.prod(shape) < length * oscillators * 3, shape
    assert len(counts) == 1
