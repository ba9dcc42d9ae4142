"""The learning-rate rule of a config. It is read as a syntax tree of a few kinds of nodes, never run as Python.

A rule is one of

    "lambda lr: lr", "lr"                            the field lr
    "lambda lr: 0.5 * lr", "lr * 0.1", "lr / 10"     a constant multiple of it
    "cosine_decay_schedule(lr, decay_steps=1000)"    a schedule of optax, with numbers and multiples of lr as arguments

Every rule must use lr, so that the field lr of a config always has an effect.
"""

import ast
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


class SchedulerError(ValueError):
    """A learning-rate rule that cannot be read, or that gives no usable rate."""


@functools.lru_cache
def build(rule: str, lr: float, num_steps: int):
    """Turn a rule into the learning rate of an optax optimiser.

    **Arguments:** the text of the rule, the field `lr` of the config, and the number of training steps.

    **Returns:** a float, or an optax schedule (a function of the number of steps done). The same arguments give the
    same object, so that all seeds share one compiled step.

    **Raises:** `SchedulerError` if the text is no rule, does not use lr, or gives a rate that is not finite, negative,
    or (for a constant rate) zero.
    """
    if len(rule) > MAX_LENGTH:
        raise SchedulerError(f"it is {len(rule)} characters long; at most {MAX_LENGTH} are read")
    body = re.sub(r"^lambda +lr *:", "", rule.strip()).strip().removeprefix("optax.")
    try:
        tree = ast.parse(body, mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        raise _unreadable(body) from None
    match tree:
        case ast.Call(func=ast.Name(id=name)) if name not in SCHEDULES:
            raise _unknown(name)
        case ast.Name(id=name) if name not in (*SCHEDULES, "lr"):
            raise _unknown(name)
    if not _uses_lr(tree):
        raise SchedulerError("it does not use lr, so the field lr would have no effect")
    if isinstance(tree, ast.Call) and isinstance(tree.func, ast.Name):
        return _schedule(tree.func.id, tree, lr, num_steps)
    rate = _value(tree, lr)
    if not 0 < rate < math.inf:
        raise SchedulerError(f"it gives the learning rate {rate:g}, which is not a positive number")
    return rate


def _schedule(name: str, call: ast.Call, lr: float, num_steps: int):
    make = getattr(optax, name)
    signature = inspect.signature(make)
    given = [_argument(node, lr) for node in call.args]
    named = {str(keyword.arg): _argument(keyword.value, lr) for keyword in call.keywords}
    try:
        if len(named) < len(call.keywords):
            raise TypeError("an argument is given twice")
        arguments = signature.bind(*given, **named).arguments
        for key, value in arguments.items():
            if isinstance(value, bool) != (key == "staircase"):
                raise ValueError(f"{key} is {'True or False' if key == 'staircase' else 'a number'}, not {value}")
            if key.endswith(("_steps", "_begin")):
                if not float(value).is_integer():
                    raise ValueError(f"{key} is a whole number of steps, not {value}")
                arguments[key] = int(value)
        schedule = make(**arguments)
        rates = [float(schedule(step)) for step in (0, num_steps // 2, num_steps - 1)]
    except (ArithmeticError, TypeError, ValueError) as error:
        takes = ", ".join(signature.parameters)
        raise SchedulerError(f"{name} refuses its arguments: {error}; it takes {takes}") from error
    if not all(math.isfinite(rate) and rate >= 0 for rate in rates):
        raise SchedulerError(f"{name} gives the learning rates {rates}, which are not all finite and at least 0")
    return schedule


def _argument(node: ast.expr, lr: float) -> float | bool:
    if isinstance(node, ast.Constant) and isinstance(node.value, bool):
        return node.value
    return _value(node, lr)


def _value(node: ast.expr, lr: float) -> float:
    """A number or a constant multiple of lr: lr is never a divisor, and never a factor twice."""
    match node:
        case ast.Constant(value=(int() | float()) as number) if abs(number) < 1e300 and not isinstance(number, bool):
            return float(number)
        case ast.Name(id="lr"):
            return lr
        case ast.BinOp(op=ast.Mult()) if not (_uses_lr(node.left) and _uses_lr(node.right)):
            return _value(node.left, lr) * _value(node.right, lr)
        case ast.BinOp(op=ast.Div()) if not _uses_lr(node.right):
            divisor = _value(node.right, lr)
            if divisor == 0:
                raise SchedulerError(f"{ast.unparse(node)!r} divides by zero")
            return _value(node.left, lr) / divisor
    raise _unreadable(ast.unparse(node))


def _uses_lr(node: ast.expr) -> bool:
    return any(isinstance(part, ast.Name) and part.id == "lr" for part in ast.walk(node))


def _unknown(name: str) -> SchedulerError:
    near = difflib.get_close_matches(name, SCHEDULES, n=1)
    return SchedulerError(f"the schedule {name!r} is unknown" + (f"; did you mean {near[0]!r}?" if near else ""))


def _unreadable(text: str) -> SchedulerError:
    return SchedulerError(f"{text[:80]!r} cannot be read")
