"""Your own unit, trained by echoes: python examples/custom_hamiltonian.py [--num_steps 200]

The unit is a set of pendulums. A spring ties each pair of them. The echo uses only the two methods of `Pendulums`.
`PendulumLayer` declares its parameters and its one option, and draws them. The block and the stack are the ordinary
ones. The script trains the unit on BasicMotions (real, bundled) by RHEL. Then it checks the gradient against
reverse mode and finite differences.

The command `run_experiment.py` trains it, too. A config names the unit:

    python run_experiment.py --config_dir experiment_configs/examples --model_name Pendulums --dataset_name BasicMotions
        --own_units
"""

import argparse
import sys
from pathlib import Path
from typing import Annotated, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray
from typing_extensions import override

import train
from data_dir.datasets import create_dataset
from data_dir.storage import DEFAULT_DATA_DIR
from models import create_model
from models.check import check_gradient
from models.layer import AbstractHRULayer, Option
from models.rhel.hamiltonian import AbstractHamiltonian


class Pendulums(AbstractHamiltonian):
    """T = sum p^2 / (2 m),  V = sum (1 - cos q - q v) + sum_ij k_ij (q_i - q_j)^2 / 4,  times the step."""

    mass: Float[Array, " P"]
    springs: Float[Array, "P P"]
    step: Float[Array, ""]

    @override
    def kinetic(self, p):
        return self.step * jnp.sum(p**2 / (2 * self.mass))  # even in p, as every kinetic energy must be

    @override
    def potential(self, q, drive):
        stretch = q[:, None] - q[None, :]
        return self.step * (jnp.sum(1 - jnp.cos(q) - q * drive) + 0.25 * jnp.sum(self.springs * stretch**2))


class PendulumLayer(AbstractHRULayer):
    """Masses, springs and step are positive by softplus."""

    mass: Float[Array, " P"]
    springs: Float[Array, "P P"]
    step: Float[Array, ""]

    def __init__(
        self,
        hidden_dim: int,
        ssm_dim: int,
        *,
        step_init: Annotated[float, Option("first time step", above=0)] = 0.2,
        key: PRNGKeyArray,
        **common: Any,
    ):
        mass_key, springs_key, ports_key = jax.random.split(key, 3)
        super().__init__(hidden_dim, ssm_dim, key=ports_key, **common)
        self.mass = jax.random.uniform(mass_key, (ssm_dim,), minval=0.5, maxval=2)
        self.springs = jax.random.normal(springs_key, (ssm_dim, ssm_dim)) - 3
        self.step = jnp.log(jnp.expm1(jnp.asarray(step_init)))

    @override
    def hamiltonian(self) -> Pendulums:
        mass, springs, step = map(jax.nn.softplus, (self.mass, self.springs, self.step))
        return Pendulums(mass, springs, self.trainable(step))


def report(hamiltonian, drives):
    """Print the errors of the gradient, leaf by leaf, and return the largest error of RHEL in float32."""
    errors = check_gradient(hamiltonian, drives)
    print("\ntrained: relative errors against reverse mode in float64")
    print(f"{'':10}{'RHEL float32':>14}{'RHEL float64':>14}{'differences':>14}")
    for leaf, error in errors.items():
        print(f"{leaf:10}" + "".join(f"{value:14.1e}" for value in error))
    return max(error.rhel for error in errors.values())


def main(arguments=None):
    """Train and check; return the test accuracy and the largest error of a float32 gradient."""
    parser = argparse.ArgumentParser(description="Train your own unit by echoes.")
    parser.add_argument("--num_steps", type=int, default=200)
    parser.add_argument("--data_dir", type=Path, default=DEFAULT_DATA_DIR)
    options = parser.parse_args(arguments)
    dataset = create_dataset(options.data_dir, "BasicMotions", seed=2345, time=False)
    keys = train.seed_keys(2345)
    sizes = {"data_dim": dataset.data_dim, "label_dim": dataset.label_dim, "hidden_dim": 16, "num_blocks": 2}
    model, state = create_model(PendulumLayer, **sizes, ssm_dim=12, classification=True, key=keys.model)
    result = train.train(
        model,
        state,
        dataset,
        learning_rate=3e-3,
        num_steps=options.num_steps,
        print_steps=20,
        batch_size=32,
        key=keys.training,
        on_evaluation=lambda e: print(f"step {e.step}: loss {e.loss:.4f}, validation accuracy {e.val_metric:.3f}"),
    )
    drives = jax.random.normal(jax.random.PRNGKey(0), (100, 12))
    largest = report(result.model.blocks[0].unit.hamiltonian(), drives)
    print(f"\ntest accuracy of two blocks of coupled pendulums on BasicMotions: {result.test_metric:.3f}")
    return result.test_metric, largest


if __name__ == "__main__":
    main()
