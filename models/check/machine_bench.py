"""The bench of `check_machine`: a machine, its declared energy, and what it is asked to do."""

import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..physics.in_the_loop import MachineInTheLoop, kinetic_parameters, name_of, named
from ..physics.operating import Operator
from ..rhel import BareSystem, evolve
from ..rhel.hamiltonian import flow
from .machine_numbers import DRIVES
from .precision import to_float64

MOVED = 0.02
"""A finite difference moves the declared positions to both sides by this part of their root mean square."""

Loss = Callable[[Float[Array, "time batch osc"]], Float[Array, ""]]
Arrays = dict[str, np.ndarray]


class Bench:
    """The machine and what it is asked to do. `arguments`: the arrays whose gradients are checked, by their names."""

    def __init__(self, machine, hamiltonian, drives: np.ndarray, loss, n_osc, seed):
        self.operator = machine if isinstance(machine, Operator) else Operator(machine)
        self.hamiltonian, self.n_osc, self.random = to_float64(hamiltonian), n_osc, np.random.default_rng(seed)
        self.parameters: Arrays = {name: np.asarray(x) for name, x in named(self.hamiltonian).items()}
        limits, largest = self.operator.machine.limits, float(np.abs(drives).max(initial=0))
        require(math.isfinite(largest), "the drives are not finite")
        require(largest > 0, "all drives are 0: give drives like those of the training")
        self.scaled = min(1.0, 0.9 * limits.drive / largest)  # room to move them
        self.steps, self.batch, _ = drives.shape
        self.drives: np.ndarray = self.scaled * drives
        shape = BareSystem(self.hamiltonian, n_osc).position_shape(drives.shape[2:])
        require(len(shape) == 1, f"a machine has one axis of oscillators, but a position has the shape {shape}")
        require(
            limits.oscillators in (None, *shape),
            f"the machine has {limits.oscillators} oscillators, but the declared energy has {shape[0]}: give an energy "
            "of its size (--oscillators of the command)",
        )
        self.rest = jnp.zeros(shape)
        same, free = (self.random.standard_normal((n, self.batch, *shape)) for n in (1, self.steps))
        weights = jnp.asarray(same + free) / (self.steps * self.batch)
        self.loss: Loss = jax.jit((lambda q: jnp.vdot(q, weights)) if loss is None else loss)
        self.losses: list[float] = []  # of free passes that should be equal
        self.positions = drives  # of the first of them
        self.near = False  # whether they are near those of the declared energy
        self.slopes = jax.jit(jax.grad(self.loss))
        trained = {name: x for name, x in self.parameters.items() if np.issubdtype(x.dtype, np.inexact)}
        kinetic = set() if limits.momenta else kinetic_parameters(self.hamiltonian, self.rest)
        trained = {name: x for name, x in trained.items() if name not in kinetic}
        self.arguments: Arrays = {**trained, DRIVES: self.drives}
        self.pushed = jax.jit(lambda x, tangents: jax.jvp(self.declared, (x,), (tangents,)))

    def with_arrays(self, arrays):
        """The declared energy with other parameters."""
        leaves, structure = jax.tree_util.tree_flatten_with_path(self.hamiltonian)
        names = (name_of(path) for path, _ in leaves)
        return jax.tree.unflatten(structure, [arrays.get(name, x) for name, (_, x) in zip(names, leaves, strict=True)])

    def declared(self, arguments):
        """The positions of the declared energy."""
        hamiltonian, start = self.with_arrays(arguments), (self.rest, self.rest)
        return jax.vmap(lambda x: flow(hamiltonian, start, x)[1], 1, 1)(arguments[DRIVES])

    def value(self, arguments, algorithm):
        """The loss, differentiated by a learning algorithm."""
        hamiltonian = self.with_arrays(arguments)
        positions = partial(evolve, hamiltonian, learning_algorithm=algorithm, n_osc=self.n_osc)
        return self.loss(jax.vmap(positions, 1, 1)(arguments[DRIVES]))

    def run(self, **changed):
        """Ticket and positions of a free pass on the machine."""
        arrays = {**self.parameters, DRIVES: self.drives, **changed}
        return self.operator.run(arrays, arrays.pop(DRIVES), self.rest.size)

    def gradient(self, epsilon):
        """The gradient by echoes on the machine, by the names of the arrays."""
        arguments, algorithm = jax.tree.map(jnp.asarray, self.arguments), MachineInTheLoop(self.operator, epsilon)
        try:
            value, gradient = jax.value_and_grad(self.value)(arguments, algorithm)
        except jax.errors.JaxRuntimeError as error:
            raise (self.operator.failure or error) from None
        finite = bool(np.isfinite(value)) and all(np.all(np.isfinite(x)) for x in gradient.values())
        require(finite, f"the loss or its gradient is not finite, with nudges of epsilon {epsilon:g}")
        self.losses.append(float(value))
        return {name: np.asarray(x) for name, x in gradient.items()}

    def slope(self, name, direction):
        """The slope of the loss on the machine along a direction of an array, and its variance by noise."""
        tangents = {other: np.zeros_like(x) for other, x in self.arguments.items()} | {name: direction}
        positions, change = self.pushed(self.arguments, tangents)
        step = self._step(name, direction, size_of(positions), size_of(change))
        moved = [self.arguments[name] + sign * step * direction for sign in (1, -1)]

        def difference(losses):
            return (losses[0] - losses[1]) / (2 * step)

        slope = difference([float(self.loss(jnp.asarray(self.run(**{name: x})[1]))) for x in moved])
        if self.near:  # the declared energy tells the error of a difference
            losses = [float(self.loss(self.pushed(self.arguments | {name: x}, tangents)[0])) for x in moved]
            slope -= difference(losses) - float(jnp.vdot(self.slopes(positions), change))
        noise = np.mean(np.diff(self.losses) ** 2) / 2
        return slope, noise / (2 * step**2)

    def _step(self, name, direction, positions, change):
        """A step that keeps the sign of an array whose numbers all have one, and drives below the limit."""
        x, largest = self.arguments[name], np.abs(direction).max()
        most = max(size_of(x), 1e-3) / largest
        if np.all(x > 0) or np.all(x < 0):
            most = np.min(np.abs(x)[direction != 0] / np.abs(direction[direction != 0])) / 2
        if name == DRIVES:
            most = min(most, (self.operator.machine.limits.drive - np.abs(x).max()) / largest)
        moved = MOVED * positions
        return float(min(most, moved / change)) if moved and change else float(most)


def size_of(x) -> float:
    """The root mean square."""
    return float(np.sqrt(np.mean(np.square(x))))


def require(good: bool, words: str) -> None:
    """Raises `ValueError` unless it is good."""
    if not good:
        raise ValueError(words)
