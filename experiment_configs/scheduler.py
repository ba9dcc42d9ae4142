"""The learning-rate rule of a config. It is matched against a few patterns and never evaluated as Python.

A rule is one of

    "lambda lr: lr", "lr"                            the field lr
    "lambda lr: 0.5 * lr", "lr * 0.1", "lr / 10"     a constant multiple of it
    "cosine_decay_schedule(lr, decay_steps=1000)"    a schedule of optax, with numbers and multiples of lr as arguments
    {"name": "cosine_decay_schedule", "args": {"init_value": "lr", "decay_steps": 1000}}    the same, spelled out

Every rule must use lr, so that the field lr of a config always takes effect.
"""

import difflib
import functools
import inspect
import math
import re

import optax

SCHEDULES = (
    *("constant_schedule", "cosine_decay_schedule", "cosine_onecycle_schedule", "exponential_decay"),
    *("linear_onecycle_schedule", "linear_schedule", "polynomial_schedule", "warmup_constant_schedule"),
    *("warmup_cosine_decay_schedule", "warmup_exponential_decay_schedule"),
)
ALLOWED = (
    "lr or a constant multiple of it, as in 'lambda lr: lr' or '0.5 * lr', or one of "
    f"{', '.join(SCHEDULES)} with its arguments, as in 'cosine_decay_schedule(lr, decay_steps=1000)'"
)
MAX_LENGTH = 500

_NUMBER = r"\d{1,50}(?:\.\d{0,50})?(?:e[+-]?\d{1,3})?"
_MULTIPLE = re.compile(rf"(?:(?P<before>{_NUMBER}) *\* *)?lr(?: *(?P<operator>[*/]) *(?P<after>{_NUMBER}))?", re.ASCII)
_CALL = re.compile(r"(?:optax\.)?(?P<name>\w+) *\((?P<arguments>.*)\)", re.ASCII)
_ARGUMENT = re.compile(r"(?:(?P<name>\w+) *= *)?(?P<value>[^=]+)", re.ASCII)


class SchedulerError(ValueError):
    """A learning-rate rule that cannot be read, or that gives no usable rate."""


def normalise(rule) -> str:
    """Give the text form of a rule that is text or {"name": .., "args": {..}}; the text itself is not read yet.

    **Raises:** `SchedulerError` if it is neither.
    """
    if isinstance(rule, str):
        return rule
    if not isinstance(rule, dict) or set(rule) != {"name", "args"}:
        raise SchedulerError('it is text or {"name": .., "args": {..}}')
    name, arguments = rule["name"], rule["args"]
    if not isinstance(name, str) or not name.isidentifier() or not isinstance(arguments, dict):
        raise SchedulerError('in {"name": .., "args": {..}} name is a schedule and args its arguments by name')
    return f"{name}({', '.join(f'{key}={value}' for key, value in arguments.items())})"


@functools.lru_cache
def build(rule: str, lr: float, num_steps: int):
    """Turn a rule into what an optax optimiser takes as its learning rate.

    **Arguments:** the text of the rule, the base rate `lr` of the config, and the number of training steps.

    **Returns:** a float, or an optax schedule (a function of the number of steps done); the same object for the same
    arguments.

    **Raises:** `SchedulerError` if the text is no rule, does not use lr, or gives a rate that is not finite, negative,
    or (for a constant rate) zero.
    """
    if len(rule) > MAX_LENGTH:
        raise SchedulerError(f"it is {len(rule)} characters long; at most {MAX_LENGTH} are read")
    body = re.sub(r"^lambda +lr *:", "", rule.strip()).strip()
    if not re.search(r"\blr\b", body):
        raise SchedulerError("it does not use lr, so the field lr would have no effect")
    call = _CALL.fullmatch(body)
    if call is not None:
        return _schedule(call["name"], call["arguments"], lr, num_steps)
    rate = _value(body, lr)
    if not 0 < rate < math.inf:
        raise SchedulerError(f"it gives the learning rate {rate:g}, which is not a positive number")
    return rate


def _schedule(name: str, text: str, lr: float, num_steps: int):
    if name not in SCHEDULES:
        near = difflib.get_close_matches(name, SCHEDULES, n=1)
        raise SchedulerError(f"{name!r} is not allowed" + (f"; did you mean {near[0]!r}?" if near else ""))
    signature = inspect.signature(getattr(optax, name))
    matches = [_ARGUMENT.fullmatch(piece.strip()) for piece in text.split(",")]
    pieces = [match for match in matches if match is not None]
    if len(pieces) < len(matches):
        raise SchedulerError(f"the arguments of {name}, {text!r}, cannot be read")
    given = [piece["value"] for piece in pieces if piece["name"] is None]
    named = {piece["name"]: piece["value"] for piece in pieces if piece["name"] is not None}
    try:
        if len(given) + len(named) < len(pieces):
            raise TypeError("an argument is given twice")
        arguments = signature.bind(*given, **named).arguments
        schedule = getattr(optax, name)(**{key: _argument(key, value, lr) for key, value in arguments.items()})
        rates = [float(schedule(step)) for step in (0, num_steps // 2, num_steps - 1)]
    except SchedulerError:
        raise
    except (ArithmeticError, TypeError, ValueError) as error:
        takes = ", ".join(signature.parameters)
        raise SchedulerError(f"{name} refuses its arguments: {error}; it takes {takes}") from error
    if not all(math.isfinite(rate) and rate >= 0 for rate in rates):
        raise SchedulerError(f"{name} gives the learning rates {rates}, which are not all finite and at least 0")
    return schedule


def _argument(name: str, text: str, lr: float):
    if name == "staircase":
        if text not in ("True", "False"):
            raise SchedulerError(f"staircase is True or False, not {text}")
        return text == "True"
    value = _value(text, lr)
    if not name.endswith(("_steps", "_begin")):
        return value
    if not value.is_integer():
        raise SchedulerError(f"{name} is a whole number of steps, not {text}")
    return int(value)


def _value(text: str, lr: float) -> float:
    """A number, or a multiple of lr."""
    if re.fullmatch(_NUMBER, text, re.ASCII):
        return float(text)
    match = _MULTIPLE.fullmatch(text)
    if match is None:
        raise SchedulerError(f"{text!r} cannot be read")
    value = lr * float(match["before"] or 1)
    if match["after"] is None:
        return value
    after = float(match["after"])
    if match["operator"] == "/" and after == 0:
        raise SchedulerError(f"{text!r} divides by zero")
    return value * after if match["operator"] == "*" else value / after
