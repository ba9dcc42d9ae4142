"""RHEL and BPTT have the same losses if they start from the same model, with the same batches and dropout masks.

Training amplifies rounding errors. In float32, with batches of 32, BPTT of this LinHRU differs from BPTT that adds in
another order by 3e-6 after 50 steps, 5e-5 after 100 and 2e-2 after 200. RHEL differs by 4e-5, 5e-4 and 3e-2. With
batches of 16, RHEL differs by 2e-5 in 60 steps.
"""

import jax
import numpy as np
import pytest

import train
from data_dir.datasets import create_dataset
from data_dir.finding import processed_datasets
from models import create_model
from models.rhel import BPTT, RHEL, with_learning_algorithm

SET = "SelfRegulationSCP1"
STEPS = 60


def losses_of(dataset, model_name, learning_algorithm):
    """The training losses of the first steps."""
    keys = train.seed_keys(2345)
    model, state = create_model(
        model_name,
        data_dim=dataset.data_dim,
        label_dim=dataset.label_dim,
        hidden_dim=8,
        num_blocks=2,
        ssm_dim=8,
        classification=True,
        complex_ssm=False,
        dropout_rate=0.05,
        key=keys.model,
    )
    model = with_learning_algorithm(model, learning_algorithm)
    losses = []
    train.train(
        model,
        state,
        dataset,
        learning_rate=1e-3,
        num_steps=STEPS,
        print_steps=STEPS,
        batch_size=16,
        key=keys.training,
        on_step=lambda _, loss: losses.append(loss),
    )
    return np.array(losses)


@pytest.fixture
def dataset():
    if SET not in processed_datasets("data_dir"):
        pytest.skip(f"{SET} is not processed: make data")
    return create_dataset("data_dir", SET, seed=2345, time=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model_name", "double", "tolerance"),
    [
        ("LinHRU", False, 1e-3),
        pytest.param("NonlinHRU", False, 1e-3, marks=pytest.mark.long),
        pytest.param("LinHRU", True, 1e-6, marks=pytest.mark.long),
    ],
)
def test_the_losses_agree_at_every_step(dataset, model_name, double, tolerance):
    with jax.enable_x64(double):
        rhel, bptt = (losses_of(dataset, model_name, algorithm) for algorithm in (RHEL(), BPTT()))
    assert rhel.shape == bptt.shape == (STEPS,)
    assert not np.array_equal(rhel, bptt)
    np.testing.assert_allclose(rhel, bptt, rtol=tolerance)
