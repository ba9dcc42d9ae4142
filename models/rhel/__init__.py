"""Recurrent Hamiltonian Echo Learning, the method. It names no model: it acts on any `AbstractHamiltonian`."""

from .backprop import ReversibleBPTT
from .echo import LEARNING_ALGORITHMS, RHEL, evolve, make_learning_algorithm, with_learning_algorithm
from .hamiltonian import AbstractHamiltonian
from .system import BPTT, SCANS, AbstractLearningAlgorithm, AbstractSystem, BareSystem, rest_state

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
