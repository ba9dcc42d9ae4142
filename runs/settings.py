"""`--set FIELD=VALUE ..`: values of config fields, grids of them, and the name of their folder. Imports no jax."""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import product
from pathlib import Path
from typing import Any

# The fields that --set refuses, and what sets them.
ELSEWHERE = {name: f"--{name}" for name in ("dataset_name", "model_name", "learning_algorithm", "seeds")}
ELSEWHERE |= {"output_parent_dir": "--output_parent_dir"}
ELSEWHERE |= dict.fromkeys(("unit", "machine", "task"), "the config file")
MAX_NAME = 200  # bytes; a file system allows 255


def parse(texts: Iterable[str]) -> dict[str, list[Any]]:
    """The values of each field. A value is JSON (a number, true, false, null or a "text"), or plain text.

    Commas separate the values of a list, but not within brackets or double quotes. @FILE stands for the lines of a
    file; empty lines and lines that begin with # count for nothing.

    **Raises:** `ValueError`, which names the line of a file.
    """
    given: dict[str, list[Any]] = {}
    for place, text in _texts_and_lines(texts):
        try:
            field, values = _field(text)
            if field in given:
                raise ValueError(f"{field} is given twice; a list of values is {field}=VALUE,VALUE")
            given[field] = values
        except ValueError as error:
            raise ValueError(f"{place}{error}") from None
    return given


def _texts_and_lines(texts: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Each text, and each line of a file in the place of @FILE, after the words that say where it stands."""
    for text in texts:
        if not text.startswith("@"):
            yield "", text
            continue
        path = Path(text[1:])
        try:
            lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else None
        except (OSError, ValueError) as error:
            raise ValueError(f"{path}: cannot be read ({error})") from None
        if lines is None:
            raise ValueError(f"{text}: {path} is no file")
        for number, line in enumerate(map(str.strip, lines), start=1):
            if line and not line.startswith("#"):
                yield f"{path} line {number}: ", line


def _field(text: str) -> tuple[str, list[Any]]:
    field, equals, values = text.partition("=")
    if not equals or not field:
        raise ValueError(f"{text!r} is not FIELD=VALUE, as in lr=0.003 or lr=0.001,0.003 (without spaces)")
    if field in ELSEWHERE:
        raise ValueError(f"{field} is set by {ELSEWHERE[field]}")
    return field, [_value(part, text) for part in _split(values, text)]


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


def written(field: str, value: Any) -> str:
    """FIELD=VALUE of a single value, as --set takes it: `parse` gives the value back."""
    text = f"{field}={_text(value)}"
    with suppress(ValueError):
        if parse([text]) == {field: [value]}:
            return text
    return f"{field}={json.dumps(value)}"


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
