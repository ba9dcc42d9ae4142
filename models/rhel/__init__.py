"""Recurrent Hamiltonian Echo Learning, the method. It names no model: it acts on any `AbstractHamiltonian`."""

from .backprop import BPTT, ReversibleBPTT
from .echo import RHEL
from .evolve import LEARNING_ALGORITHMS, evolve, make_learning_algorithm, with_learning_algorithm
from .free_pass import SCANS
from .hamiltonian import AbstractHamiltonian
from .system import AbstractLearningAlgorithm, AbstractSystem, BareSystem, rest_state

__all__ = [
    "BPTT",
    "LEARNING_ALGORITHMS",
    "RHEL",
    "SCANS",
    "AbstractHamiltonian",
    "AbstractLearningAlgorithm",
    "AbstractSystem",
    "BareSystem",
    "ReversibleBPTT",
    "evolve",
    "make_learning_algorithm",
    "rest_state",
    "with_learning_algorithm",
]
