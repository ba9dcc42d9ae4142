"""Hamiltonian recurrent units, their gradient by echoes, and the deep state space models made of them."""

from .create import create_model
from .load import load_run
from .rhel import evolve

__all__ = ["create_model", "evolve", "load_run"]
