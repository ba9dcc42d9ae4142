"""Learning algorithms by name, and `evolve`: a Hamiltonian alone, without ports."""

import jax
import numpy as np
from jaxtyping import Array, Float, PyTree

from .backprop import BPTT, ReversibleBPTT
from .echo import RHEL
from .hamiltonian import AbstractHamiltonian
from .requirements import require_hamiltonian
from .system import AbstractLearningAlgorithm, BareSystem

LEARNING_ALGORITHMS = ("RHEL", "BPTT", "ReversibleBPTT")


def make_learning_algorithm(name: str, epsilon: float | None = None) -> AbstractLearningAlgorithm:
    """A learning algorithm by name. Only RHEL reads `epsilon`. Raises `ValueError` for another name."""
    if name == "RHEL":
        return RHEL(epsilon)
    if name == "BPTT":
        return BPTT()
    if name == "ReversibleBPTT":
        return ReversibleBPTT()
    raise ValueError(f"unknown learning_algorithm {name!r}; one of {', '.join(LEARNING_ALGORITHMS)}")


def _algorithm(given: str | AbstractLearningAlgorithm, epsilon: float | None = None) -> AbstractLearningAlgorithm:
    """A learning algorithm that is given by name, or as it is."""
    if isinstance(given, str):
        return make_learning_algorithm(given, epsilon)
    if not isinstance(given, AbstractLearningAlgorithm):
        raise TypeError(
            f"{given!r} is no learning algorithm: give {', '.join(LEARNING_ALGORITHMS)} or an object of one. An "
            "EchoImperfection belongs into physics.imperfect.ImperfectRHEL(EchoImperfection(..), epsilon)"
        )
    if epsilon is not None:
        raise ValueError("epsilon belongs to the learning algorithm that was given: RHEL(epsilon)")
    return given


def with_learning_algorithm(model: PyTree, algorithm: str | AbstractLearningAlgorithm) -> PyTree:
    """The model with this learning algorithm, or one by its name, in every unit.

    Its parameters and its forward pass stay as they are.
    """
    algorithm = _algorithm(algorithm)

    def is_algorithm(node):
        return isinstance(node, AbstractLearningAlgorithm)

    return jax.tree.map(lambda node: algorithm if is_algorithm(node) else node, model, is_leaf=is_algorithm)


def evolve(
    hamiltonian: AbstractHamiltonian,
    drives: Float[Array | np.ndarray, "time *in"],
    *,
    learning_algorithm: str | AbstractLearningAlgorithm = "RHEL",
    epsilon: float | None = None,
    n_osc: int | None = None,
) -> Float[Array, "time *osc"]:
    """Positions q_1, .., q_L of a Hamiltonian, from rest, under a sequence of drives.

    Differentiable in reverse mode, by the learning algorithm, with respect to every floating-point array of the
    Hamiltonian and to the drives. A position has the shape of a drive, or (n_osc,): then the potential says how a drive
    of another shape acts on the oscillators. Raises `ValueError` for an empty sequence, an unknown algorithm and
    energies that are not scalars or cannot be evaluated; `TypeError` for a Hamiltonian that is no
    `AbstractHamiltonian`, for drives that are not one floating-point array, and for a parameter that is no field.

    An index beyond an array is no error here: jax reads the last element and drops its gradient. `models.check` sees
    it.
    """
    require_hamiltonian(hamiltonian)
    return _algorithm(learning_algorithm, epsilon)(BareSystem(hamiltonian, n_osc), drives)
