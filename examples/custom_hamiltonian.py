"""A unit that is in no paper, trained by echoes: python examples/custom_hamiltonian.py [--num_steps 200]

Pendulums, every one tied to every other by a spring of its own. The two methods of `Pendulums` are all that the echo
needs to know; `PendulumLayer` names its parameters and draws them; the block and the stack are the ordinary ones. It is
trained on BasicMotions (real, bundled) by RHEL, and its gradient is checked against reverse mode and finite
differences, before the training and after it.
"""

import argparse
import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

import train
from data_dir.datasets import create_dataset
from data_dir.storage import DEFAULT_DATA_DIR
from models.check import check_gradient
from models.layer import AbstractHRULayer, init_ports
from models.rhel import RHEL, AbstractLearningAlgorithm
from models.rhel.hamiltonian import AbstractHamiltonian
from models.stack import HRU

HIDDEN_DIM, PENDULUMS, BLOCKS, STEP = 16, 12, 2, 0.2


class Pendulums(AbstractHamiltonian):
    """T = sum p^2 / (2 m),  V = sum (1 - cos q - q v) + sum_ij k_ij (q_i - q_j)^2 / 4,  times the step."""

    mass: Float[Array, " P"]
    springs: Float[Array, "P P"]
    step: Float[Array, ""]

    def kinetic(self, p):
        """Even in p, as every kinetic energy must be."""
        return self.step * jnp.sum(p**2 / (2 * self.mass))

    def potential(self, q, drive):
        """A scalar: the energies of all pendulums and springs together."""
        stretch = q[:, None] - q[None, :]
        return self.step * (jnp.sum(1 - jnp.cos(q) - q * drive) + 0.25 * jnp.sum(self.springs * stretch**2))


class PendulumLayer(AbstractHRULayer):
    """Masses, springs and step are positive by softplus."""

    mass: Float[Array, " P"]
    springs: Float[Array, "P P"]
    step: Float[Array, ""]
    B: Float[Array, "P H"]
    C: Float[Array, "H P"]
    D: Float[Array, " H"]
    learning_algorithm: AbstractLearningAlgorithm

    def __init__(self, learning_algorithm, *, key):
        mass_key, springs_key, ports_key = jax.random.split(key, 3)
        self.mass = jax.random.uniform(mass_key, (PENDULUMS,), minval=0.5, maxval=2)
        self.springs = jax.random.normal(springs_key, (PENDULUMS, PENDULUMS)) - 3
        self.step = jnp.log(jnp.expm1(jnp.asarray(STEP)))
        self.B, self.C, self.D = init_ports(HIDDEN_DIM, PENDULUMS, key=ports_key)
        self.learning_algorithm = learning_algorithm

    def hamiltonian(self):
        """The energy at the present parameters."""
        return Pendulums(*(jax.nn.softplus(x) for x in (self.mass, self.springs, self.step)))


def make_model(dataset, key, learning_algorithm):
    """The ordinary stack, with this unit plugged in."""
    return eqx.nn.make_with_state(HRU)(
        partial(PendulumLayer, learning_algorithm),
        HIDDEN_DIM,
        data_dim=dataset.data_dim,
        label_dim=dataset.label_dim,
        num_blocks=BLOCKS,
        classification=dataset.classification,
        key=key,
    )


def report(title, hamiltonian, drives):
    """Prints the errors of the gradient, leaf by leaf; returns the largest against reverse mode, in float32."""
    errors = check_gradient(hamiltonian, drives)
    print(f"\n{title}: relative errors against reverse mode in float64")
    print(f"{'':10}{'RHEL float32':>14}{'RHEL float64':>14}{'differences':>14}")
    for leaf, error in errors.items():
        print(f"{leaf:10}" + "".join(f"{value:14.1e}" for value in error))
    return max(error.rhel for error in errors.values())


def main(arguments=None):
    """Checks, trains, checks again; returns the test accuracy and the largest error of a float32 gradient."""
    parser = argparse.ArgumentParser(description="Train a unit of one's own by echoes.")
    parser.add_argument("--num_steps", type=int, default=200)
    parser.add_argument("--data_dir", type=Path, default=DEFAULT_DATA_DIR)
    options = parser.parse_args(arguments)
    dataset = create_dataset(options.data_dir, "BasicMotions", seed=2345, time=False)
    keys = train.seed_keys(2345)
    model, state = make_model(dataset, keys.model, RHEL())
    drives = jax.random.normal(jax.random.PRNGKey(0), (100, PENDULUMS))
    report("untrained", model.blocks[0].unit.hamiltonian(), drives)
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
    largest = report("trained", result.model.blocks[0].unit.hamiltonian(), drives)
    print(f"\ntest accuracy of {BLOCKS} blocks of coupled pendulums on BasicMotions: {result.test_metric:.3f}")
    return result.test_metric, largest


if __name__ == "__main__":
    main()
