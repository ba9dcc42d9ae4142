"""`--set FIELD=VALUE ..`: values of config fields, grids of them, and the name of their folder. Imports no jax."""

import hashlib
import json
import re
from collections.abc import Iterable
from itertools import product
from typing import Any

# The fields that --set refuses, and what sets them.
ELSEWHERE = {name: f"--{name}" for name in ("dataset_name", "model_name", "learning_algorithm", "seeds")}
ELSEWHERE |= {"output_parent_dir": "--output_parent_dir"}
ELSEWHERE |= dict.fromkeys(("unit", "machine", "task"), "the config file")
MAX_NAME = 200  # bytes; a file system allows 255


def parse(texts: Iterable[str]) -> dict[str, list[Any]]:
    """The values of each field. A value is JSON (a number, true, false, null or a "text"), or plain text.

    Commas separate the values of a list, but not within brackets or double quotes.

    **Raises:** `ValueError`.
    """
    given: dict[str, list[Any]] = {}
    for text in texts:
        field, equals, values = text.partition("=")
        if not equals or not field:
            raise ValueError(f"{text!r} is not FIELD=VALUE, as in lr=0.003 or lr=0.001,0.003 (without spaces)")
        if field in ELSEWHERE:
            raise ValueError(f"{field} is set by {ELSEWHERE[field]}")
        if field in given:
            raise ValueError(f"{field} is given twice; a list of values is {field}=VALUE,VALUE")
        given[field] = [_value(part, text) for part in _split(values, text)]
    return given


def _split(values: str, text: str) -> list[str]:
    parts, depth = [""], 0
    for token in re.findall(r'"(?:[^"\\]|\\.)*"|[^",()\[\]{}]+|.', values, re.DOTALL):
        depth += (token in "([{") - (token in ")]}")
        if token == '"' or depth < 0:
            break
        if token == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += token
    else:
        if depth == 0:
            return parts
    raise ValueError(f"{text!r}: quotes or brackets that do not match")


def _value(part: str, text: str) -> Any:
    part = part.strip()
    if not part:
        raise ValueError(f"{text!r}: an empty value")
    try:
        value = json.loads(part)
    except (ValueError, RecursionError):
        return part
    return part if isinstance(value, list | dict) else value


def shown(given: dict[str, Any]) -> str:
    """The values of a setting as on the command line."""
    return " ".join(f"{field}={_text(value)}" for field, value in given.items())


def grid(given: dict[str, list[Any]]) -> list[dict[str, Any]]:
    """All combinations; of no field, the empty one."""
    return [dict(zip(given, values, strict=True)) for values in product(*given.values())]


def folder_name(fields: dict[str, Any]) -> str:
    """The name of the folder of a setting, as `lr=0.001,hidden_dim=16`. Other values have another name.

    Letters that do not belong into a file name are replaced, and a long name is cut. A hash then keeps it unique.
    """
    name = ",".join(f"{field}={_cut(_text(value), 60)}" for field, value in fields.items())
    return _cut(name, MAX_NAME)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _cut(text: str, length: int) -> str:
    safe = re.sub(r"[^\w.,=~+-]+", "_", text, flags=re.ASCII)
    if safe == text and len(text) <= length:
        return text
    return f"{safe[: length - 9].strip('_')}~{hashlib.sha256(text.encode(errors='surrogateescape')).hexdigest()[:8]}"
