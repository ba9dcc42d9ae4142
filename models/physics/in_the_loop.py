"""The machine in the loop: a learning algorithm whose free pass and echoes run on a machine outside of jax.

The gradient is that of `rhel.reference`, with the traces that the machine measured:

    dL/dx = -(dE/dx at the +a echo - dE/dx at the -a echo) / (2 a)

E is the declared energy, differentiated at fixed traces with respect to its parameters and the drives. The ports and
the network around the unit stay in jax. No derivative of the machine is taken. It needs no model of itself.

How jax calls the machine. A machine must make every pass that is asked for, once, in order:

- `physics.host` calls it, by an ordered callback. Each free pass has a ticket. By it the operator knows whether the
  machine still holds the right end state when the echoes come, so that units can share a machine.
- A custom gradient with effects cannot be staged. `AbstractLearningAlgorithm.__call__` is a primitive for the whole
  batch, which stages no custom gradient. It declares the effects of `outputs`, and `respond` comes into play where a
  derivative is taken. `jax.checkpoint`, which would repeat passes, refuses these effects.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.interpreters import partial_eval
from jaxtyping import Array, Float, PyTree
from typing_extensions import override

from ..rhel.hamiltonian import AbstractHamiltonian
from ..rhel.nudges import finite_nudges, per_sequence
from ..rhel.pair import MeanAndHalfDifference
from ..rhel.requirements import position_like, require_linear_readout
from ..rhel.system import AbstractLearningAlgorithm, AbstractSystem, drives_of, one_sequence, outputs_of
from .host import call_host
from .machine import Machine
from .operating import Operator


class MachineInTheLoop(AbstractLearningAlgorithm):
    """RHEL by a machine, a `models.physics.machine.Machine`, that runs the free pass and the two echoes.

    - `machine`: the machine, or its `Operator`, which keeps the record. Units may share one.
    - `epsilon`: size of the nudges relative to the largest position of a sequence, as in `models.rhel.RHEL`.

    Drives above the limit of the machine are clipped; a clipped drive has no gradient. Nudges above it are scaled down,
    all nudges of a sequence by the same factor, which changes the gradient by O(epsilon^2) only. The operator counts
    both. The traces of a batch are kept in memory during its gradient: six arrays (time, batch, osc).

    Raises `ValueError` for an epsilon that is not positive and finite, a readout that is not linear in the positions,
    another number of oscillators than the machine has, and a parameter of the kinetic energy that is trained on a
    machine without momenta. A failing machine raises inside jax, as `jax.errors.JaxRuntimeError`; the first
    `MachineError` is `operator.failure`.
    """

    operator: Operator = eqx.field(static=True)
    epsilon: float = eqx.field(static=True)

    def __init__(self, machine: Machine | Operator, epsilon: float | None = None):
        epsilon = 1e-2 if epsilon is None else epsilon
        if isinstance(epsilon, bool) or not (epsilon > 0 and math.isfinite(epsilon)):
            raise ValueError(f"epsilon must be positive and finite, got {epsilon!r}")
        self.operator = machine if isinstance(machine, Operator) else Operator(machine)
        self.epsilon = epsilon

    @override
    def outputs(self, system, inputs):
        self._require(system, inputs)
        _, _, positions = self._free_pass(system, inputs)
        return outputs_of(system, positions, inputs)

    @override
    def respond(self, system, inputs):
        self._require(system, inputs)
        parameters, rest = eqx.partition(system, eqx.is_inexact_array)
        constants, static = eqx.partition(rest, eqx.is_array)

        @jax.custom_vjp
        def custom_gradient(parameters, constants, inputs):
            return self.outputs(eqx.combine(parameters, constants, static), inputs)

        def forwards(*arguments):
            trained = jax.tree.map(lambda x: x.perturbed, arguments[0])
            parameters, constants, inputs = jax.tree.map(lambda x: x.value, arguments)
            system = eqx.combine(parameters, constants, static)
            if not self.operator.machine.limits.momenta:
                _require_no_kinetic_parameter(system.hamiltonian, trained.hamiltonian, position_of(system, inputs))
            ticket, drives, positions = self._free_pass(system, inputs)
            kept = ticket, drives, positions
            return outputs_of(system, positions, inputs), (parameters, constants, inputs, kept)

        def backwards(residuals, outputs_grad):
            parameters, constants, inputs, kept = residuals
            system = eqx.combine(parameters, constants, static)
            system_grad, inputs_grad = self._gradients(system, inputs, outputs_grad, *kept)
            return system_grad, None, inputs_grad

        custom_gradient.defvjp(forwards, backwards, symbolic_zeros=True)
        return custom_gradient(parameters, constants, inputs)

    def _require(self, system, inputs):
        sequence = one_sequence(inputs)
        require_linear_readout(system, sequence)
        position = position_like(system, sequence)
        has = self.operator.machine.limits.oscillators
        drive = jax.eval_shape(system.drive, sequence).shape[1:]
        if (len(position.shape), len(drive)) != (1, 1):
            raise ValueError(
                f"a machine has one axis of oscillators and one of drives, but a position has the shape "
                f"{position.shape} and a drive {drive}"
            )
        if has is not None and position.shape != (has,):
            raise ValueError(
                f"the machine has {has} oscillators, but the unit has {position.shape[0]}: set ssm_dim to match "
                "(a complex LinHRU has 2 ssm_dim oscillators)"
            )

    def _clipped(self, system, inputs):
        """The drives as the machine plays them, and the number of those that are clipped to its limit."""
        drives = drives_of(system, inputs)
        largest = _at_most(self.operator.machine.limits.drive, drives.dtype)
        above = jnp.abs(drives) > largest
        # Not jnp.clip: at the limit itself it halves the gradient.
        return jnp.where(above, jnp.sign(drives) * largest, drives), jnp.sum(above, dtype=jnp.int32)

    def _free_pass(self, system, inputs):
        """Ticket, drives and positions of a free pass on the machine."""
        position = position_of(system, inputs)
        drives, clipped = self._clipped(system, inputs)
        shape = jax.ShapeDtypeStruct((*drives.shape[:2], *position.shape), position.dtype)

        def call(parameters, drives, clipped):
            self.operator.count_drives(int(clipped), drives.size)
            return self.operator.run(parameters, drives, shape.shape[2])

        like = (jax.ShapeDtypeStruct((), jnp.int32), shape)
        ticket, positions = call_host(call, like, named(system.hamiltonian), drives, clipped)
        return ticket, drives, positions

    def _echoes(self, hamiltonian, ticket, drives, nudges, reduced):
        """Mean and half-difference of the traces of the two echoes, as (p before, q half, p after)."""
        shape = jax.ShapeDtypeStruct(nudges.shape, nudges.dtype)
        names = ("momenta_before", "positions", "momenta_after")
        if not self.operator.machine.limits.momenta:
            names = ("positions",)

        def call(ticket, parameters, drives, nudges, reduced):
            self.operator.count_reduced(int(reduced))
            pair = self.operator.echoes(int(ticket), parameters, drives, nudges)
            return tuple(tuple(getattr(trace, name) for trace in pair) for name in names)

        like = ((shape, shape),) * len(names)
        pairs = call_host(call, like, ticket, named(hamiltonian), drives, nudges, reduced)
        return dict(zip(names, pairs, strict=True))

    def _gradients(self, system, inputs, outputs_grad, ticket, drives, positions):
        """Gradients of the system, summed over the batch, and of the inputs."""
        nudges, weight, reduced = self._nudges(system, inputs, outputs_grad, positions)
        traces = self._echoes(system.hamiltonian, ticket, drives, nudges, reduced)

        def contrasts(hamiltonian, drives):
            return jax.vmap(jax.vmap(partial(_contrast, hamiltonian)))(drives, traces)

        value, of_energies = eqx.filter_vjp(contrasts, system.hamiltonian, drives)
        hamiltonian_grad, drives_grad = of_energies(jnp.broadcast_to(weight, value.shape))

        def ports(system, inputs):
            return outputs_of(system, positions, inputs), self._clipped(system, inputs)[0]

        _, of_ports = eqx.filter_vjp(ports, system, inputs)
        system_grad, inputs_grad = of_ports((outputs_grad, drives_grad))
        hamiltonian_grad = jax.tree.map(jnp.add, system_grad.hamiltonian, hamiltonian_grad)
        return eqx.tree_at(lambda x: x.hamiltonian, system_grad, hamiltonian_grad), inputs_grad

    def _nudges(self, system, inputs, outputs_grad, positions):
        """Nudges, the weight of the contrast, and the number of sequences that the limit of the machine reduces."""

        def positions_grad(inputs, outputs_grad):
            anywhere = jnp.zeros((len(inputs), *positions.shape[1:]), positions.dtype)  # the readout is linear
            return jax.vjp(lambda x: outputs_of(system, x, inputs), anywhere)[1](outputs_grad)[0]

        steps = inputs, outputs_grad
        size = jax.vmap(lambda x: jnp.max(jnp.abs(x)), 1)(positions)
        nudges, weight = finite_nudges(positions_grad, steps, size, self.epsilon, len(inputs))
        nudges, most = nudges(*steps), _at_most(self.operator.machine.limits.nudge, positions.dtype)
        height = jax.vmap(lambda x: jnp.max(jnp.abs(x)), 1)(nudges)
        reduced = height > most
        factor = jnp.where(reduced, most / jnp.where(reduced, height, 1), 1)
        nudges = jnp.clip(per_sequence(jnp.multiply)(nudges, factor), -most, most)  # rounding may exceed the limit
        return nudges, weight / factor, jnp.sum(reduced, dtype=jnp.int32)


def on_machine(model: PyTree, algorithm: MachineInTheLoop, units: Sequence[int] | None = None) -> PyTree:
    """The model with this algorithm in some of its units, counted from 0 as they follow each other; None: in all.

    The others keep their learning algorithm. Raises `ValueError` for a unit that the model does not have.
    """
    leaves, structure = jax.tree.flatten(model, is_leaf=lambda x: isinstance(x, AbstractLearningAlgorithm))
    places = [place for place, x in enumerate(leaves) if isinstance(x, AbstractLearningAlgorithm)]
    for unit in range(len(places)) if units is None else units:
        if not 0 <= unit < len(places):
            raise ValueError(f"the model has no unit {unit}: it has {len(places)}, counted from 0")
        leaves[places[unit]] = algorithm
    return jax.tree.unflatten(structure, leaves)


def require_fitting(model: PyTree, features: int) -> None:
    """Traces every unit that runs on a machine, and its gradient, for inputs with so many features. Runs no machine.

    Raises `ValueError` for a unit that does not fit its machine, see `MachineInTheLoop`, and `MachineError` for a
    machine that does not tell its limits.
    """

    def on_a_machine(x):
        return isinstance(getattr(x, "learning_algorithm", None), MachineInTheLoop)

    inputs = jax.ShapeDtypeStruct((2, features), jnp.result_type(float))
    for unit in filter(on_a_machine, jax.tree.leaves(model, is_leaf=on_a_machine)):
        eqx.filter_eval_shape(eqx.filter_grad(lambda unit, x: jnp.sum(unit(x))), unit, inputs)


def operators_of(model: PyTree) -> list[Operator]:
    """The operators of the machines of a model, each once, in the order of its units."""
    return list({id(x): x for x in map(_operator_of, _algorithms(model)) if x is not None}.values())


def in_jax(model: PyTree) -> list[bool]:
    """Whether each unit of a model runs in jax, and not on a machine."""
    return [_operator_of(x) is None for x in _algorithms(model)]


def _algorithms(model):
    leaves = jax.tree.leaves(model, is_leaf=lambda x: isinstance(x, AbstractLearningAlgorithm))
    return [x for x in leaves if isinstance(x, AbstractLearningAlgorithm)]


def _operator_of(algorithm):
    return algorithm.operator if isinstance(algorithm, MachineInTheLoop) else None


def _at_most(limit: float, dtype: Any) -> float:
    """The largest number of this type that is not above a limit."""
    near = np.asarray(limit, dtype)
    return float(near if near.astype(float) <= limit else np.nextafter(near, np.zeros_like(near)))


def _contrast(hamiltonian, drive, trace):
    """Energy of the plus echo minus energy of the minus echo in a step, as far as the machine measured it."""
    if "momenta_before" not in trace:
        return hamiltonian.potential_contrast(*trace["positions"], drive)
    pair = MeanAndHalfDifference(hamiltonian)
    return pair.contrast(
        hamiltonian, drive, tuple(trace[name] for name in ("momenta_before", "positions", "momenta_after"))
    )


def named(hamiltonian: AbstractHamiltonian) -> dict[str, Array]:
    """The arrays of a Hamiltonian by the path of the field, as a machine gets them: "step", "springs.stiffness"."""
    return {name_of(path): x for path, x in jax.tree_util.tree_leaves_with_path(hamiltonian) if eqx.is_array(x)}


def name_of(path: tuple) -> str:
    """The name of an array at a path of a Hamiltonian."""
    return jax.tree_util.keystr(path, simple=True, separator=".")


def position_of(system: AbstractSystem, inputs: Float[Array, "time batch *in"]) -> jax.ShapeDtypeStruct:
    """Shape and type of a position of one sequence of a batch."""
    return position_like(system, one_sequence(inputs))


def kinetic_parameters(hamiltonian: AbstractHamiltonian, momentum: Array | jax.ShapeDtypeStruct) -> set[str]:
    """The names of the floating-point arrays on which the kinetic energy depends, see `named`."""
    arrays, static = eqx.partition(hamiltonian, eqx.is_inexact_array)
    jaxpr = jax.make_jaxpr(lambda arrays, p: eqx.combine(arrays, static).kinetic(p))(arrays, momentum).jaxpr
    _, used = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    return {name for name, is_used in zip(named(arrays), used, strict=False) if is_used}  # the last is the momentum


def _require_no_kinetic_parameter(hamiltonian, trained, momentum):
    """Raises `ValueError` if the kinetic energy depends on a trained parameter, whose gradient needs the momenta."""
    kinetic = kinetic_parameters(hamiltonian, momentum)
    arrays = named(eqx.filter(hamiltonian, eqx.is_inexact_array))
    flags = zip(arrays, jax.tree.leaves(trained), strict=False)
    names = [name for name, is_trained in flags if is_trained and name in kinetic]
    if names:
        raise ValueError(
            f"the gradient of {', '.join(names)}, on which the kinetic energy of {type(hamiltonian).__name__} depends, "
            "needs the momenta of the echoes, and the machine does not measure them. Freeze the parameter (train_steps "
            "false for a time step), or use a machine with momenta"
        )
