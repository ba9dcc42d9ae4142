"""What the errors of a config say: field, value, what is allowed, and the field that was meant."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from data_dir.names import nearest_name

# Other names that people use for these fields.
_ALSO_CALLED = dict(learning_rate="lr", scheduler="lr_scheduler", dataset="dataset_name", model="model_name")
_ALSO_CALLED |= dict(algorithm="learning_algorithm", seed="seeds", steps="num_steps", dropout="dropout_rate")
_ALSO_CALLED |= dict.fromkeys(("standardize", "normalise", "normalize"), "standardise")


def described(problem: Mapping[str, Any], fields: Mapping[str, Any], known: Mapping[str, Any]) -> str:
    """Put one error of pydantic into words: field, value as it was given, what is allowed."""
    if not problem["loc"]:
        return str(problem["ctx"]["error"])
    name, *items = problem["loc"]
    if problem["type"] == "missing":
        return f"missing field {name}: {known[name].description}"
    value = fields[name]
    for item in items:
        value = value[item]
    if problem["type"] == "extra_forbidden":
        near = field_meant(name, known)
        hint = f"did you mean {near}?" if near else f"the fields are {', '.join(known)}"
        return f"unknown field {name} ({shown(value)}): {hint}"
    detail = f" ({problem['ctx']['error']})" if problem["type"] == "value_error" else ""
    return f"{name} is {shown(value)}{detail}: allowed is {known[name].description}"


def field_meant(name: str, known: Iterable[str]) -> str | None:
    """The field that a name may stand for: a field that people call so, or the nearest of the `known` names."""
    return _ALSO_CALLED.get(name) or nearest_name(name, known)


def shown(value: Any) -> str:
    """The value as JSON, cut to 80 letters."""
    text = json.dumps(value, default=str)
    return text if len(text) <= 80 else text[:77] + "..."
