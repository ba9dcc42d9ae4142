"""The learning-rate rule of a config: a small language, parsed and never evaluated as Python.

A rule is one of

    "lambda lr: lr"                                  arithmetic in lr: numbers, lr, + - * / **, parentheses
    "lr / 2"                                         the same without the lambda
    "cosine_decay_schedule(lr, decay_steps=1000)"    an optax schedule; its arguments are arithmetic in lr
    {"name": "cosine_decay_schedule", "args": {"init_value": "lr", "decay_steps": 1000}}    the same, spelled out

The schedules are those of `SCHEDULES`. Every rule must use lr, so that the field lr of a config always takes effect.
"""

import ast
import difflib
import functools
import math
import operator
import warnings

MAX_LENGTH = 500

# Arguments of the optax schedules that may be named; those in brackets are optional. An argument that ends in _steps or
# _begin is a whole number, `staircase` is True or False, every other is arithmetic in lr.
SCHEDULES = {
    "constant_schedule": ("value",),
    "cosine_decay_schedule": ("init_value", "decay_steps", "[alpha]", "[exponent]"),
    "cosine_onecycle_schedule": (
        "transition_steps",
        "peak_value",
        "[pct_start]",
        "[div_factor]",
        "[final_div_factor]",
    ),
    "exponential_decay": (
        "init_value",
        "transition_steps",
        "decay_rate",
        "[transition_begin]",
        "[staircase]",
        "[end_value]",
    ),
    "linear_onecycle_schedule": (
        "transition_steps",
        "peak_value",
        "[pct_start]",
        "[pct_final]",
        "[div_factor]",
        "[final_div_factor]",
    ),
    "linear_schedule": ("init_value", "end_value", "transition_steps", "[transition_begin]"),
    "polynomial_schedule": ("init_value", "end_value", "power", "transition_steps", "[transition_begin]"),
    "warmup_constant_schedule": ("init_value", "peak_value", "warmup_steps"),
    "warmup_cosine_decay_schedule": (
        "init_value",
        "peak_value",
        "warmup_steps",
        "decay_steps",
        "[end_value]",
        "[exponent]",
    ),
    "warmup_exponential_decay_schedule": (
        "init_value",
        "peak_value",
        "warmup_steps",
        "transition_steps",
        "decay_rate",
        "[transition_begin]",
        "[staircase]",
        "[end_value]",
    ),
}

ALLOWED = (
    "arithmetic in lr (numbers, lr, + - * / **, parentheses), as in 'lambda lr: lr' or 'lr / 2', or one of "
    f"{', '.join(SCHEDULES)} with its arguments, as in 'cosine_decay_schedule(lr, decay_steps=1000)'"
)

_OPERATORS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
    ast.UAdd: operator.pos,
    ast.USub: operator.neg,
}


class SchedulerError(ValueError):
    """A learning-rate rule that cannot be read, or that gives no usable rate."""


def normalise(rule) -> str:
    """Give the text form of a rule that is text or {"name": .., "args": {..}}; the text itself is not parsed yet.

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

    **Arguments:** the text of the rule, the base rate `lr` of the config, and the number of steps it has to serve.

    **Returns:** a float, or an optax schedule (a function of the number of steps done); the same object for the same
    arguments.

    **Raises:** `SchedulerError` if the text is outside the language, does not use lr, or gives a rate that is not
    finite, negative, or (for a constant rate) zero.
    """
    body = _body(rule)
    try:
        name, arguments = _call(body, lr) if isinstance(body, ast.Call) else (None, {"rate": _number(body, lr)})
    except RecursionError:
        raise SchedulerError("it is nested too deeply") from None
    if not any(isinstance(node, ast.Name) and node.id == "lr" for node in ast.walk(body)):
        raise SchedulerError("it does not use lr, so the field lr would have no effect")
    if name is None:
        rate = arguments["rate"]
        if rate <= 0:
            raise SchedulerError(f"it gives the learning rate {rate:g}, which is not positive")
        return rate
    # Here and not at the top: reading a config with a constant rate should not cost the import of jax.
    import optax

    try:
        schedule = getattr(optax, name)(**arguments)
        rates = [float(schedule(step)) for step in (0, num_steps // 2, num_steps - 1)]
    except (ArithmeticError, TypeError, ValueError) as error:
        raise SchedulerError(f"{name} refuses its arguments: {error}") from error
    if not all(math.isfinite(rate) and rate >= 0 for rate in rates):
        raise SchedulerError(f"{name} gives the learning rates {rates}, which are not all finite and at least 0")
    return schedule


def _body(rule: str) -> ast.expr:
    if len(rule) > MAX_LENGTH:
        raise SchedulerError(f"it is {len(rule)} characters long; at most {MAX_LENGTH} are read")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)  # what is odd is refused below
            expression = ast.parse(rule.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise SchedulerError(f"it cannot be read ({getattr(error, 'msg', error)})") from error
    if not isinstance(expression, ast.Lambda):
        return expression
    try:
        parameters = ast.unparse(expression.args)
    except RecursionError:
        raise SchedulerError("it is nested too deeply") from None
    if parameters != "lr":
        raise SchedulerError(f"a lambda takes lr alone, not ({parameters})")
    return expression.body


def _number(node: ast.expr, lr: float) -> float:
    match node:
        case ast.Constant(value=bool() | str() | bytes() | None | complex()):
            raise SchedulerError(f"{ast.unparse(node)} is not a number")
        case ast.Constant(value=int() | float()):
            compute, operands = float, (node.value,)
        case ast.Name(id="lr"):
            return lr
        case ast.BinOp(op=op) if type(op) in _OPERATORS:
            compute, operands = _OPERATORS[type(op)], (_number(node.left, lr), _number(node.right, lr))
        case ast.UnaryOp(op=op) if type(op) in _OPERATORS:
            compute, operands = _OPERATORS[type(op)], (_number(node.operand, lr),)
        case _:
            raise SchedulerError(f"{ast.unparse(node)!r} is not allowed")
    try:
        value = compute(*operands)
    except ArithmeticError as error:
        raise SchedulerError(f"{ast.unparse(node)!r} has no value ({error})") from error
    if isinstance(value, complex) or not math.isfinite(value):
        raise SchedulerError(f"{ast.unparse(node)!r} is not a finite number")
    return value


def _call(node: ast.Call, lr: float) -> tuple[str, dict]:
    name = ast.unparse(node.func).removeprefix("optax.")
    if name not in SCHEDULES:
        near = difflib.get_close_matches(name, SCHEDULES, n=1)
        raise SchedulerError(f"{name!r} is not allowed" + (f"; did you mean {near[0]!r}?" if near else ""))
    parameters = [parameter.strip("[]") for parameter in SCHEDULES[name]]
    required = [parameter for parameter in SCHEDULES[name] if not parameter.startswith("[")]
    if any(keyword.arg is None for keyword in node.keywords):
        raise SchedulerError(f"{ast.unparse(node)!r} is not allowed")
    if len(node.args) > len(parameters):
        raise SchedulerError(f"{name} takes at most {len(parameters)} arguments")
    given = list(zip(parameters, node.args, strict=False)) + [(keyword.arg, keyword.value) for keyword in node.keywords]
    arguments: dict = {}
    for parameter, value in given:
        if parameter not in parameters:
            raise SchedulerError(f"{name} takes {', '.join(SCHEDULES[name])}, and not {parameter}")
        if parameter in arguments:
            raise SchedulerError(f"{name} is given {parameter} twice")
        arguments[parameter] = _argument(parameter, value, lr)
    missing = [parameter for parameter in required if parameter not in arguments]
    if missing:
        raise SchedulerError(f"{name} needs {', '.join(missing)}; it takes {', '.join(SCHEDULES[name])}")
    return name, arguments


def _argument(parameter: str, node: ast.expr, lr: float):
    if parameter == "staircase":
        if not isinstance(node, ast.Constant) or not isinstance(node.value, bool):
            raise SchedulerError(f"staircase is True or False, not {ast.unparse(node)}")
        return node.value
    value = _number(node, lr)
    if not parameter.endswith(("_steps", "_begin")):
        return value
    if not value.is_integer() or value < 0:
        raise SchedulerError(f"{parameter} is a whole number of steps, not {value:g}")
    return int(value)
