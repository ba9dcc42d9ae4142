import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from systems import assert_close, assert_directional_derivatives, relative_error

from models import create_model
from models.LinHRU import LinHRULayer
from models.NonlinHRU import NonlinHRULayer
from models.physics.oscillations import small_oscillations
from models.rhel import BPTT, RHEL

MODELS = ["LinHRU", "NonlinHRU"]
KEY = jax.random.PRNGKey(0)


def make(model_name, algorithm="RHEL", **options):
    sizes = {"data_dim": 3, "label_dim": 4, "hidden_dim": 6, "num_blocks": 1, "ssm_dim": 5} | {
        name: options.pop(name)
        for name in ("data_dim", "label_dim", "hidden_dim", "num_blocks", "ssm_dim")
        if name in options
    }
    options = {"classification": True, "dropout_rate": 0.0, "key": KEY} | options
    return create_model(model_name, *sizes.values(), learning_algorithm=algorithm, **options)


@eqx.filter_jit
def forward(model, state, x, keys=None):
    in_axes = (0, None, None if keys is None else 0)
    return jax.vmap(model, axis_name="batch", in_axes=in_axes, out_axes=(0, None))(x, state, keys)


def batch(length, size=4, channels=3, seed=1):
    """Smooth sequences, as sensors give them."""
    noise = jax.random.normal(jax.random.PRNGKey(seed), (size, length, channels))
    return jnp.cumsum(noise, axis=1) / length**0.5


@eqx.filter_jit
@eqx.filter_grad
def gradient(model, state, x, scale):
    output, _ = forward(model, state, x)
    target = jax.nn.one_hot(jnp.arange(x.shape[0]) % output.shape[-1], output.shape[-1])
    return scale * -jnp.mean(jnp.sum(target * jax.nn.log_softmax(output), axis=-1))


@pytest.mark.parametrize(
    ("model_name", "num_blocks", "batchnorm"),
    [
        *(("LinHRU", 2, "batch"), ("NonlinHRU", 2, "ema")),
        *(pytest.param(name, 6, mode, marks=pytest.mark.long) for name in MODELS for mode in ("batch", "ema")),
    ],
)
def test_all_blocks_get_the_gradient_of_bptt(x64, model_name, num_blocks, batchnorm):
    options = {"num_blocks": num_blocks, "batchnorm": batchnorm} | ({"gate": True} if model_name == "NonlinHRU" else {})
    x = batch(200)
    values = [gradient(*make(model_name, name, **options), x, 1.0) for name in ("RHEL", "BPTT")]
    for leaf in jax.tree.leaves(values[1]):
        assert np.any(leaf != 0)
    assert_close(*values, 1e-8 if model_name == "LinHRU" else 1e-5)


@pytest.mark.parametrize("model_name", MODELS)
def test_model_gradient_against_finite_differences(x64, model_name):
    model, state = make(model_name)
    x = batch(60)
    target = jax.nn.one_hot(jnp.arange(4), 4)

    def loss(model):
        return -jnp.mean(jnp.sum(target * jax.nn.log_softmax(forward(model, state, x)[0]), axis=-1))

    assert_directional_derivatives(loss, model, gradient(model, state, x, 1.0), 1e-4, step=1e-5)


@pytest.mark.parametrize("model_name", MODELS)
def test_float32_with_default_settings_and_a_tiny_loss(model_name):
    x = batch(896)
    model, state = make(model_name)
    plain, tiny = gradient(model, state, x, 1.0), gradient(model, state, x, 1e-6)
    with jax.enable_x64(True):
        exact_model, exact_state = make(model_name, "BPTT")
        arrays, rest = eqx.partition(exact_model, eqx.is_inexact_array)
        same_numbers = [leaf.astype(jnp.float64) for leaf in jax.tree.leaves(eqx.filter(model, eqx.is_inexact_array))]
        exact_model = eqx.combine(jax.tree.unflatten(jax.tree.structure(arrays), same_numbers), rest)
        reference = gradient(exact_model, exact_state, x.astype(jnp.float64), 1.0)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(plain))
    assert_close(plain, reference, 1e-3)
    assert_close(jax.tree.map(lambda leaf: leaf * 1e6, tiny), reference, 1e-3)


@pytest.mark.parametrize(("train_steps", "algorithm"), [(True, "RHEL"), (False, "RHEL"), (False, "BPTT")])
@pytest.mark.parametrize("model_name", MODELS)
def test_only_frozen_leaves_have_no_gradient(model_name, train_steps, algorithm):
    value = gradient(*make(model_name, algorithm, train_steps=train_steps), batch(50), 1.0)
    for path, leaf in jax.tree_util.tree_leaves_with_path(value):
        frozen = jax.tree_util.keystr(path).endswith(".step") and not train_steps
        assert np.all(leaf == 0) if frozen else np.any(leaf != 0), jax.tree_util.keystr(path)


def test_complex_unit_follows_the_complex_recurrence(x64):
    """Re(C q) + D u of complex oscillators driven by complex B u, written out in numpy."""
    H, P = 3, 5
    layer = LinHRULayer(H, P, complex_ssm=True, key=KEY)
    u = np.asarray(batch(100, size=1)[0])
    A, step = np.maximum(layer.A, 0), 1 / (1 + np.exp(-np.asarray(layer.step)))
    B, C = layer.B[:P] + 1j * layer.B[P:], layer.C[:, :P] - 1j * layer.C[:, P:]
    q, p, expected = np.zeros(P, complex), np.zeros(P, complex), []
    for v, inputs in zip(u @ B.T, u, strict=True):
        q = q + 0.5 * step * p
        p = p - step * (A * q - v)
        q = q + 0.5 * step * p
        expected.append((C @ q).real + layer.D * inputs)
    assert relative_error(layer(jnp.asarray(u)), np.array(expected)) < 1e-12


def test_complex_unit_is_a_doubled_real_one(x64):
    tied = LinHRULayer(3, 5, complex_ssm=True, key=KEY)
    free = LinHRULayer(3, 10, complex_ssm=False, key=KEY)
    free = eqx.tree_at(
        lambda layer: (layer.A, layer.step, layer.B, layer.C, layer.D),
        free,
        (jnp.tile(tied.A, 2), jnp.tile(tied.step, 2), tied.B, tied.C, tied.D),
    )
    u = batch(200, size=1)[0]
    assert relative_error(tied(u), free(u)) < 1e-12
    layer_gradient = eqx.filter_jit(eqx.filter_grad(lambda layer: jnp.sum(layer(u) ** 2)))
    tied_grad, free_grad = layer_gradient(tied), layer_gradient(free)
    for name in ("A", "step"):
        assert relative_error(getattr(tied_grad, name), getattr(free_grad, name).reshape(2, 5).sum(0)) < 1e-12
    for name in ("B", "C", "D"):
        assert relative_error(getattr(tied_grad, name), getattr(free_grad, name)) < 1e-12


@pytest.mark.parametrize("model_name", MODELS)
def test_outputs_depend_on_the_past_alone(x64, model_name):
    model, state = make(model_name, classification=False)
    model = eqx.nn.inference_mode(model)
    x = batch(40, size=1)
    (before,), _ = forward(model, state, x)
    (after,), _ = forward(model, state, x.at[0, 20].add(1.0))
    np.testing.assert_array_equal(before[:20], after[:20])
    assert np.all(np.any(before[20:] != after[20:], axis=1))


@pytest.mark.parametrize("model_name", MODELS)
def test_dropout_differs_within_a_batch(model_name):
    model, state = make(model_name, dropout_rate=0.5)
    x = jnp.repeat(batch(30, size=1), 2, axis=0)
    training, _ = forward(model, state, x, jax.random.split(KEY, 2))
    assert np.all(training[0] != training[1])
    inference, _ = forward(eqx.nn.inference_mode(model), state, x)
    np.testing.assert_array_equal(inference[0], inference[1])


class Listening(eqx.Module):
    """In the place of a block: keeps its key."""

    keys: list = eqx.field(static=True)

    def __call__(self, x, state, key):
        self.keys.append(jax.random.key_data(key))
        return x, state


def test_blocks_have_masks_of_their_own():
    model, state = make("LinHRU")
    keys = []
    model = eqx.tree_at(lambda m: m.blocks, model, [Listening(keys) for _ in range(3)])
    model(batch(9)[0], state, KEY)
    assert len(np.unique(keys, axis=0)) == 3


@pytest.mark.parametrize("model_name", MODELS)
def test_shapes_of_outputs(model_name):
    model, state = make(model_name)
    assert forward(model, state, batch(50))[0].shape == (4, 4)
    model, state = make(model_name, classification=False, output_step=8, label_dim=1)
    output, _ = forward(model, state, batch(50))
    assert output.shape == (4, 50 // 8, 1)
    assert np.all(np.abs(output) < 1)


def test_a_sequence_shorter_than_its_output_step_is_refused():
    model, state = make("LinHRU", classification=False, output_step=8)
    with pytest.raises(ValueError, match="the sequence has 7 steps, fewer than output_step 8"):
        forward(model, state, batch(7))


def test_sizes_may_be_numpy_integers():
    model, _ = make("LinHRU", label_dim=np.int64(4))
    assert model.decoder.bias.shape == (4,)


def test_output_step_reads_the_last_position_of_each_stretch():
    sparse, state = make("LinHRU", classification=False, output_step=8)
    dense, _ = make("LinHRU", classification=False)
    every_eighth, all_steps = (forward(model, state, batch(50))[0] for model in (sparse, dense))
    # Two programs: the last bit may differ.
    np.testing.assert_allclose(every_eighth, all_steps[:, 7::8], rtol=1e-5, atol=1e-6)
    assert not np.allclose(every_eighth, all_steps[:, ::8][:, : every_eighth.shape[1]], atol=1e-3)


@pytest.mark.parametrize("mode", ["ema", "batch"])
def test_batchnorm_mode_is_the_one_asked_for(mode):
    model, state = make("LinHRU", batchnorm=mode)
    assert [block.norm.mode for block in model.blocks] == [mode]
    x, shifted = batch(50), batch(50) + 3
    first, _ = forward(model, state, shifted)
    _, seen = forward(model, state, x)
    moved, _ = forward(model, seen, shifted)
    # Batch statistics do not remember the batch before; running ones do.
    assert np.allclose(moved, first, atol=1e-6) == (mode == "batch")


@pytest.mark.parametrize("raw", [-1e3, -1.0, 0.0, 1.0, 1e3])
def test_constraints_hold_for_any_parameter(raw):
    def filled(layer):
        return jax.tree.map(lambda x: jnp.full_like(x, raw) if eqx.is_inexact_array(x) else x, layer)

    linear = filled(LinHRULayer(3, 5, key=KEY)).hamiltonian()
    assert np.all(linear.A >= 0)
    saturating = filled(NonlinHRULayer(3, 5, gate=True, key=KEY)).hamiltonian()
    assert np.all(saturating.W_diag >= 0)
    assert np.all(saturating.alpha >= 0)
    for step in (linear.step, saturating.step):
        assert np.all((step >= 0) & (step <= 1))


def test_initial_values_are_the_published_ones():
    layer = LinHRULayer(100, 200, key=KEY)
    unit = layer.hamiltonian()
    assert 0 <= unit.A.min() < 0.1 < 0.9 < unit.A.max() <= 1
    assert 0.5 <= unit.step.min() < unit.step.max() <= 1 / (1 + np.exp(-1))
    assert 0.09 < np.abs(layer.B).max() <= 0.1
    assert 0.06 < np.abs(layer.C).max() <= 200**-0.5
    layer = NonlinHRULayer(100, 200, step_init=1e-4, gate=True, key=KEY)
    unit = layer.hamiltonian()
    assert 0.5 <= unit.W_diag.min() < 0.55 < 0.95 < unit.W_diag.max() <= 1 + 1e-6
    assert 0.1 - 1e-6 <= unit.alpha.min() < 0.15 < 0.95 < unit.alpha.max() <= 1 + 1e-6
    assert np.all(unit.b == 0)
    np.testing.assert_allclose(unit.step, 1e-4 / (1 + np.exp(-np.asarray(layer.c))), rtol=1e-5)
    assert -1 <= layer.c.min() < -0.9 < 0.9 < layer.c.max() <= 1


def test_first_periods_lie_in_equal_ratios_on_request():
    plain = LinHRULayer(3, 5, key=KEY)
    layer = LinHRULayer(3, 5, shortest_period=10, longest_period=1e5, key=KEY)
    found = small_oscillations(layer.hamiltonian(), np.zeros(10)).period
    np.testing.assert_allclose(found, np.tile([1e5, 1e4, 1e3, 1e2, 1e1], 2), rtol=1e-5)
    np.testing.assert_array_equal(layer.B, plain.B)
    (longest,) = LinHRULayer(3, 1, complex_ssm=False, shortest_period=10, longest_period=50, key=KEY).step
    np.testing.assert_allclose(jax.nn.sigmoid(longest), 2 * np.sin(np.pi / 50), rtol=1e-6)


SUMS_LINEAR = {
    **{"A": 2.650441, "step": 1.943163, "gamma": 0.194316},
    **{"B": 0.258563, "C": 2.219637, "D": 2.016958},
}
SUMS_NONLINEAR = {
    **{"W_diag": 0.601555, "c": -1.113673, "alpha": -3.717704, "step": -2.197225},
    **{"B": -0.978872, "C": -0.255551, "D": -0.393537},
}


def test_a_seed_gives_the_initial_values_that_it_always_gave():
    """The sum of every parameter of a unit, as earlier versions drew them: published seeds give the same models."""
    for model_name, options, expected in (
        ("LinHRU", {"damping": True}, SUMS_LINEAR),
        ("NonlinHRU", {"gate": True}, SUMS_NONLINEAR),
    ):
        unit = make(model_name, num_blocks=2, **options)[0].blocks[1].unit
        found = {name: float(jnp.sum(getattr(unit, name))) for name in expected}
        assert found == pytest.approx(expected, rel=1e-5)


def test_algorithm_reaches_every_unit():
    for model_name, name, algorithm in (("LinHRU", "RHEL", RHEL(0.1)), ("NonlinHRU", "BPTT", BPTT())):
        model, _ = make(model_name, name, num_blocks=2, epsilon=0.1)
        assert [block.unit.learning_algorithm for block in model.blocks] == [algorithm, algorithm]


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(
    ("model_name", "options", "message"),
    [
        ("LinOSS", {}, r"unknown model_name 'LinOSS'; one of LinHRU, NonlinHRU"),
        ("LinHRU", {"algorithm": "backprop"}, r"unknown learning_algorithm 'backprop'; one of RHEL, BPTT"),
        ("LinHRU", {"batchnorm": "layer"}, r"unknown batchnorm 'layer'; one of ema, batch"),
        ("LinHRU", {"hidden_dim": 0}, "hidden_dim must be a whole number of at least 1, got 0"),
        ("LinHRU", {"num_blocks": True}, "num_blocks must be a whole number of at least 1, got True"),
        ("NonlinHRU", {"ssm_dim": 2.0}, "ssm_dim must be a whole number of at least 1, got 2.0"),
        ("NonlinHRU", {"output_step": -1}, "output_step must be a whole number of at least 1, got -1"),
        ("LinHRU", {"output_step": 2}, "output_step is 2, but a classification has one output per sequence"),
        ("NonlinHRU", {"dropout_rate": 1.0}, r"dropout_rate must lie in \[0, 1\), got 1.0"),
        ("NonlinHRU", {"step_init": 1.0}, "step_init must be a number between 0 and 1, got 1.0"),
        ("NonlinHRU", {"step_init": True}, "step_init must be a number between 0 and 1, got True"),
        ("NonlinHRU", {"gate": 1}, "gate must be true or false, got 1"),
        ("LinHRU", {"step_init": 0.1}, "step_init is an option of NonlinHRU, not of LinHRU"),
        ("LinHRU", {"gate": True}, "gate is an option of NonlinHRU, not of LinHRU"),
        ("NonlinHRU", {"complex_ssm": True}, "complex_ssm is an option of LinHRU, not of NonlinHRU"),
        ("LinHRU", {"gat": True}, "unknown option gat: LinHRU has complex_ssm, damping, shortest_period"),
        ("LinHRU", {"longest_period": 4.0}, "longest_period must be a number above 6, got 4.0"),
        ("LinHRU", {"longest_period": 9.0}, "shortest_period is 0 and longest_period 9: give both, or none"),
        ("LinHRU", {"shortest_period": 9.0, "longest_period": 8.0}, "must be above 6 and in this order"),
        ("LinHRU", {"epsilon": -1.0}, "epsilon must be a positive number .* got -1.0"),
    ],
)
def test_bad_arguments_are_named(model_name, options, message):
    with pytest.raises(ValueError, match=message):
        make(model_name, **options)


class Forgetful(NonlinHRULayer):
    def __init__(self, hidden_dim, ssm_dim, *, key, **common):
        super().__init__(hidden_dim, ssm_dim, key=key)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"algorithm": "BPTT"},
            r"Forgetful: learning_algorithm is RHEL\(\), but BPTT\(.*\) was asked for: pass \*\*com",
        ),
        ({"epsilon": 0.5}, r"Forgetful: learning_algorithm is RHEL\(\), but RHEL\(epsilon=0.5\) was asked for"),
        ({"train_steps": False}, r"Forgetful: train_steps is True, but False was asked for: pass \*\*common to super"),
    ],
)
def test_a_unit_that_forgets_what_was_asked_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        make(Forgetful, **options)
    make(Forgetful)  # asked for what it has


class Renaming(NonlinHRULayer):
    def __init__(self, hidden_dim, ssm_dim, *, epsilon=0.5, key, **common):
        super().__init__(hidden_dim, ssm_dim, key=key, **common)


def test_an_option_with_the_name_of_an_argument_of_every_model_is_refused():
    with pytest.raises(ValueError, match="Renaming: the option epsilon is an argument of create_model: choose another"):
        make(Renaming, epsilon=0.1)


class Copying(NonlinHRULayer):
    def __init__(self, hidden_dim, ssm_dim, *, copies=2, key, **common):
        super().__init__(hidden_dim, ssm_dim, key=key, **common)


class Whole(NonlinHRULayer):
    """An integer array, which no optimiser changes, and an index, which is a NumPy array."""

    whole: jax.Array
    index: np.ndarray

    def __init__(self, hidden_dim, ssm_dim, *, whole=True, key, **common):
        super().__init__(hidden_dim, ssm_dim, key=key, **common)
        self.whole = jnp.asarray([1, 2, 3], int if whole else float)
        self.index = np.array([0, 2])


def test_an_option_that_the_base_class_takes_and_an_array_that_is_never_trained_are_refused():
    with pytest.raises(TypeError, match="Copying: the option copies has the name of an argument of AbstractHRULayer"):
        make(Copying)
    with pytest.raises(ValueError, match=r"Whole.whole is an array of int32 and would never be trained: make it jnp"):
        make(Whole)
    make(Whole, whole=False)
