"""The config field `machine`: the machine that runs the oscillators, by name, and its options.

{"name": "simulated_device", "spread": 0.1, "units": [0]}
"""

import dataclasses
import json
from collections.abc import Iterator, Mapping
from types import UnionType
from typing import Annotated, Any, get_args

from pydantic import AfterValidator, Field

from models.physics.numpy_leapfrog import NumpyLeapfrog
from models.physics.operating import Operator
from models.physics.process_machine import ProcessMachine
from models.physics.simulated_device import SimulatedDevice

MACHINES: dict[str, type] = {
    "numpy_leapfrog": NumpyLeapfrog,
    "simulated_device": SimulatedDevice,
    "process": ProcessMachine,
}
ALLOWED = (
    f"null, or an object with name (one of {', '.join(MACHINES)}), the options of this machine, and units (the blocks "
    "on the machine, counted from 0; without it all)"
)
_KINDS = {float: "a number", int: "a whole number", bool: "true or false", list[str]: "a list of texts"}


def command_of(fields: object) -> Any:
    """The program that the config names as its machine; None for another machine."""
    return fields.get("command", []) if isinstance(fields, Mapping) and fields.get("name") == "process" else None


def checked(fields: dict[str, Any] | None) -> dict[str, Any] | None:
    """The fields. Raises `ValueError` for fields that are not allowed. A machine starts only at its first call."""
    if fields is not None:
        operator_of(fields)
    return fields


def clashes(fields: Mapping[str, Any] | None, blocks: int, algorithm: str) -> Iterator[tuple[str, str]]:
    """The fields of a config that do not fit its machine, each with the reason."""
    if fields is not None:
        units = fields.get("units") or range(blocks)
        if max(units) >= blocks:
            yield "machine", f"there are {blocks} units, counted from 0"
        elif len(units) == blocks and algorithm != "RHEL":
            yield "learning_algorithm", "all units run on the machine, whose gradient is that of RHEL: write RHEL"


def machine_options(name: str) -> dict[str, Any]:
    """The kinds of the options of a machine, by their names: the fields of its class that fit into JSON."""
    fields = (field for field in dataclasses.fields(MACHINES[name]) if field.init)
    return {field.name: field.type for field in fields if all(kind in _KINDS for kind in _kinds(field.type))}


def operator_of(fields: Mapping[str, Any]) -> Operator:
    """A machine of its own, not started, and its operator. Raises `ValueError` for fields that are not allowed."""
    options = dict(fields)
    name, units = options.pop("name", None), options.pop("units", None)
    if name not in MACHINES:
        raise ValueError(f"name is {json.dumps(name)}: allowed is one of {', '.join(MACHINES)}")
    if units is not None and not (_fits(units, list) and units and all(_fits(x, int) and x >= 0 for x in units)):
        raise ValueError(f"units is {json.dumps(units)}: allowed is a list of blocks, counted from 0")
    if units is not None and len(set(units)) < len(units):
        raise ValueError(f"units is {json.dumps(units)}: a block is named twice")
    known = machine_options(name)
    for option, value in options.items():
        if option not in known:
            listed = ", ".join(known) or "none"
            raise ValueError(f"unknown option {option}: those of {name} are {listed}")
        if not any(_fits(value, kind) for kind in _kinds(known[option], null=True)):
            words = " or ".join(_KINDS.get(kind, "null") for kind in _kinds(known[option], null=True))
            raise ValueError(f"{option} is {json.dumps(value)}: allowed is {words}")
    if name == "process" and "command" not in options:
        raise ValueError("process: it needs command, the program and its arguments")
    machine = MACHINES[name](**options)
    # A program has its own limit, and is killed before this one.
    return Operator(machine, max(Operator.time_limit, 2 * getattr(machine, "time_limit", 0)))


Fields = Annotated[dict[str, Any] | None, AfterValidator(checked), Field(description=ALLOWED)]
"""The type of the field in a config."""


def _kinds(kind: Any, *, null: bool = False) -> tuple:
    kinds = get_args(kind) if isinstance(kind, UnionType) else (kind,)
    return tuple(x for x in kinds if null or x is not type(None))


def _fits(value: Any, kind: Any) -> bool:
    if kind == list[str]:
        return isinstance(value, list) and all(isinstance(x, str) for x in value)
    if kind is bool or isinstance(value, bool):
        return kind is bool and isinstance(value, bool)
    return isinstance(value, int | float if kind is float else kind)
