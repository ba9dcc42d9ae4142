"""The layer of a Hamiltonian recurrent unit: oscillators between an input matrix, an output matrix and a skip.

Legend: H features of the layer (hidden_dim), P oscillators, L steps. Ports of your own may have V drives and read R
positions; otherwise V = R = P.
"""

import inspect
import math
from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import Any, get_type_hints

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray
from typing_extensions import override

from .normalisation import Standardisation, standardised
from .rhel import RHEL
from .rhel.batching import batched_at_once
from .rhel.hamiltonian import AbstractHamiltonian
from .rhel.system import AbstractLearningAlgorithm, AbstractSystem


class LinearPorts(AbstractSystem):
    """A Hamiltonian driven by v_t = B u_t and read by o_t = C q_{t+1} + D u_t, D diagonal."""

    hamiltonian: AbstractHamiltonian
    B: Float[Array, "V H"]
    C: Float[Array, "H R"]
    D: Float[Array, " H"]

    @override
    def drive(self, inputs: Float[Array, "L H"]) -> Float[Array, "L V"]:
        return inputs @ self.B.T

    @override
    def readout(self, positions: Float[Array, "L P"], inputs: Float[Array, "L H"]) -> Float[Array, "L H"]:
        return _readout((self.C, self.D), positions, inputs)


@batched_at_once
def _readout(C_and_D, positions, inputs):
    C, D = C_and_D
    return positions @ C.T + D[None, None] * inputs


@dataclass(frozen=True)
class Option:
    """What a unit says about one of its options: `step: Annotated[float, Option("first time step", above=0)] = 0.1`.

    The name, the type and the default come from the signature, see `unit_options`. `algorithms`: the learning
    algorithms that the option works with; all if empty.
    """

    purpose: str = ""
    above: int | float = -math.inf
    below: int | float = math.inf
    algorithms: tuple[str, ...] = ()
    kind: type = bool
    default: Any = None

    def allowed(self) -> str:
        """The allowed values, in words."""
        if self.kind is bool:
            return "true or false"
        number = "a whole number" if self.kind is int else "a number"
        if math.isfinite(self.above) and math.isfinite(self.below):
            return f"{number} between {self.above:g} and {self.below:g}"
        return (
            number
            + (f" above {self.above:g}" if math.isfinite(self.above) else "")
            + (f" below {self.below:g}" if math.isfinite(self.below) else "")
        )

    def allows(self, value: Any) -> bool:
        """Whether a value has the kind and lies in the range of this option."""
        if self.kind is bool or isinstance(value, bool):
            return self.kind is bool and isinstance(value, bool)
        kinds = int | np.integer if self.kind is int else int | float | np.number
        return isinstance(value, kinds) and bool(self.above < value < self.below)


class AbstractHRULayer(eqx.Module):
    """A trainable unit: raw parameters, the constraints that turn them into a Hamiltonian, and the ports.

    A new unit is a subclass that declares its own parameters, writes `hamiltonian`, and draws the parameters in
    `__init__(self, hidden_dim, ssm_dim, *, its options, key, **common)`, which passes `common` on to this class.
    `examples/custom_hamiltonian.py` is one.
    """

    B: Float[Array, "V H"]
    C: Float[Array, "H R"]
    D: Float[Array, " H"]
    learning_algorithm: AbstractLearningAlgorithm
    train_steps: bool = eqx.field(static=True)

    def __init__(
        self,
        hidden_dim: int,
        ssm_dim: int,
        *,
        copies: int = 1,
        learning_algorithm: AbstractLearningAlgorithm | None = None,
        train_steps: bool = True,
        key: PRNGKeyArray,
    ):
        self.B, self.C, self.D = init_ports(hidden_dim, ssm_dim, copies=copies, key=key)
        self.learning_algorithm = RHEL() if learning_algorithm is None else learning_algorithm
        self.train_steps = train_steps

    @abstractmethod
    def hamiltonian(self) -> AbstractHamiltonian:
        """The energy at the present parameters; every constraint on them is applied here."""

    def trainable(self, step: Array) -> Array:
        """The time step, without a gradient if `train_steps` is false."""
        return step if self.train_steps else jax.lax.stop_gradient(step)

    def damping_rate(self) -> Float[Array, "..."] | None:
        """The rate per step at which position and momentum of each oscillator shrink; None without friction."""
        return None

    def system(self) -> LinearPorts:
        """The Hamiltonian at the present parameters, with its ports."""
        return LinearPorts(self.hamiltonian(), self.B, self.C, self.D)

    def __call__(
        self, inputs: Float[Array, "L H"], standardisation: Standardisation | None = None
    ) -> Float[Array, "L H"]:
        """Outputs of the unit, from rest, to the inputs; with a standardisation, to the standardised inputs."""
        return self.learning_algorithm(standardised(self.system(), standardisation), inputs)


def unit_options(unit: type[AbstractHRULayer]) -> dict[str, Option]:
    """The options of a unit by name: the keyword arguments of its `__init__` that have a default.

    `train_steps` and `learning_algorithm`, which every unit has, are not among them. Raises `TypeError` for a default
    that is neither a number nor a bool, and for the name `copies`, which the base class takes.
    """
    hints = get_type_hints(unit.__init__, include_extras=True)
    common = inspect.signature(AbstractHRULayer.__init__).parameters
    options = {}
    for name, parameter in inspect.signature(unit.__init__).parameters.items():
        if parameter.kind is not parameter.KEYWORD_ONLY or parameter.default is parameter.empty:
            continue
        if name in common:
            if name == "copies":
                raise TypeError(
                    f"{unit.__name__}: the option copies has the name of an argument of AbstractHRULayer: choose "
                    "another name"
                )
            continue
        declared = next((x for x in getattr(hints.get(name), "__metadata__", ()) if isinstance(x, Option)), Option())
        kind = type(parameter.default)
        if kind not in (bool, int, float):
            raise TypeError(
                f"{unit.__name__}: the option {name} has the default {parameter.default!r}: make it a number or a bool"
            )
        options[name] = replace(declared, kind=kind, default=parameter.default)
    return options


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
