"""Hamiltonian recurrent units, their gradient by echoes, and the deep state space models made of them.

`pip install .` installs this folder as the package `rhel`.
"""

from .check import check_gradient, check_hamiltonian
from .create import create_model
from .LinHRU import LinHRU
from .load import load_run
from .NonlinHRU import NonlinHRU
from .rhel import BPTT, RHEL, AbstractHamiltonian, ReversibleBPTT, evolve

__all__ = [
    "BPTT",
    "RHEL",
    "AbstractHamiltonian",
    "LinHRU",
    "NonlinHRU",
    "ReversibleBPTT",
    "check_gradient",
    "check_hamiltonian",
    "create_model",
    "evolve",
    "load_run",
]
