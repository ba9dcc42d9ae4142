"""The energy of a system and its leapfrog, under their public name; they live in `models.rhel.hamiltonian`."""

from .rhel.hamiltonian import AbstractHamiltonian, State, flow, leapfrog

__all__ = ["AbstractHamiltonian", "State", "flow", "leapfrog"]
