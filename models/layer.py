"""The layer of a Hamiltonian recurrent unit: oscillators between an input matrix, an output matrix and a skip.

Legend: H features of the layer (hidden_dim), P oscillators, L steps.
"""

from abc import abstractmethod

import equinox as eqx
import jax
from jaxtyping import Array, Float, PRNGKeyArray

from .normalisation import Standardisation, standardised
from .rhel.batching import batched_at_once
from .rhel.hamiltonian import AbstractHamiltonian
from .rhel.system import AbstractLearningAlgorithm, AbstractSystem


class LinearPorts(AbstractSystem):
    """A Hamiltonian driven by v_t = B u_t and read by o_t = C q_{t+1} + D u_t, D diagonal."""

    hamiltonian: AbstractHamiltonian
    B: Float[Array, "P H"]
    C: Float[Array, "H P"]
    D: Float[Array, " H"]

    def drive(self, inputs: Float[Array, "L H"]) -> Float[Array, "L P"]:
        """B u_t."""
        return inputs @ self.B.T

    def readout(self, positions: Float[Array, "L P"], inputs: Float[Array, "L H"]) -> Float[Array, "L H"]:
        """C q_{t+1} + D u_t."""
        return _readout((self.C, self.D), positions, inputs)


@batched_at_once
def _readout(C_and_D, positions, inputs):
    C, D = C_and_D
    return positions @ C.T + D[None, None] * inputs


class AbstractHRULayer(eqx.Module):
    """A trainable unit: raw parameters, the constraints that turn them into a Hamiltonian, and the ports.

    A new unit subclasses this, declares its parameters, and writes `hamiltonian`.
    """

    B: eqx.AbstractVar[Float[Array, "P H"]]
    C: eqx.AbstractVar[Float[Array, "H P"]]
    D: eqx.AbstractVar[Float[Array, " H"]]
    learning_algorithm: eqx.AbstractVar[AbstractLearningAlgorithm]

    @abstractmethod
    def hamiltonian(self) -> AbstractHamiltonian:
        """The energy at the present parameters; every constraint on them is applied here."""

    def system(self) -> LinearPorts:
        """The Hamiltonian at the present parameters, with its ports."""
        return LinearPorts(self.hamiltonian(), self.B, self.C, self.D)

    def __call__(
        self, inputs: Float[Array, "L H"], standardisation: Standardisation | None = None
    ) -> Float[Array, "L H"]:
        """Outputs of the unit, from rest, to the inputs, or to what the standardisation makes of them."""
        return self.learning_algorithm(standardised(self.system(), standardisation), inputs)


def init_ports(
    hidden_dim: int, ssm_dim: int, *, copies: int = 1, key: PRNGKeyArray
) -> tuple[Float[Array, "P H"], Float[Array, "H P"], Float[Array, " H"]]:
    """B uniform in ±1/sqrt(H), C uniform in ±1/sqrt(ssm_dim), D standard normal, for P = copies * ssm_dim."""
    B_key, C_key, D_key = jax.random.split(key, 3)
    oscillators = copies * ssm_dim
    B = uniform(B_key, (oscillators, hidden_dim), 1 / hidden_dim**0.5)
    C = uniform(C_key, (hidden_dim, oscillators), 1 / ssm_dim**0.5)
    return B, C, jax.random.normal(D_key, (hidden_dim,))


def uniform(key: PRNGKeyArray, shape: tuple[int, ...], bound: float) -> Array:
    """Uniform in ±bound, in the default floating dtype."""
    return jax.random.uniform(key, shape, minval=-bound, maxval=bound)
