"""Hamiltonian recurrent units, their gradient by echoes, and the deep state space models made of them."""

from models.create import create_model
from models.load import load_run
from models.rhel import evolve

__all__ = ["create_model", "evolve", "load_run"]
