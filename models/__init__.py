"""Hamiltonian recurrent units, their gradient by echoes, and the deep state space models made of them."""

from .check import check_gradient
from .create import create_model
from .load import load_run
from .rhel.echo import BPTT, RHEL, ReversibleBPTT, evolve
from .rhel.hamiltonian import AbstractHamiltonian

__all__ = [
    "BPTT",
    "RHEL",
    "AbstractHamiltonian",
    "ReversibleBPTT",
    "check_gradient",
    "create_model",
    "evolve",
    "load_run",
]
