"""What a program does on a GPU, counted from the text of its optimised HLO module.

`count` walks the schedule from the entry. A loop counts as often as it runs. Each fusion, copy, library call and other
instruction that computes is one kernel.

What a kernel reads and writes:

- the whole of each operand and result, once. Caches are not modelled.
- of an operand that a kernel only slices, the slices.
- of a `dynamic-update-slice` in place, the slice. A fusion writes in place if all its outputs are such updates.
- of the workspace of a library call, nothing.

A conditional counts as its longest branch. A loop with a known number of iterations launches no kernel for its
condition. Sorts and solvers, which may launch several kernels, count as one.
"""

import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from math import prod
from typing import NamedTuple

_FREE = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "opt-barrier", "add-dependency"),
    *("partition-id", "replica-id", "domain", "async-update", "async-done", "fusion-done", "custom-call-done"),
}
_FREE_CALLS = {"AllocateBuffer", "Sharding", "SPMDFullToShardShape", "SPMDShardToFullShape"}
_ARITHMETIC = {
    *("add", "subtract", "multiply", "divide", "remainder", "maximum", "minimum", "negate", "abs", "sign", "select"),
    *("compare", "clamp", "and", "or", "xor", "not", "shift-left", "shift-right-logical", "shift-right-arithmetic"),
    *("floor", "ceil", "round-nearest-even", "round-nearest-afz", "popcnt", "clz", "is-finite"),
}
_TRANSCENDENTAL = {
    *("tanh", "exponential", "exponential-minus-one", "logistic", "log", "log-plus-one", "sqrt", "rsqrt", "cbrt"),
    *("erf", "power", "sine", "cosine", "tan", "atan2"),
}
_COLLECTIVES = (
    *("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "ragged-all-to-all", "collective-permute"),
    "collective-broadcast",
)
_SLICES = ("slice", "dynamic-slice", "gather")
_ARRAY = re.compile(r"\b(pred|token|opaque|[a-z]+(\d+)\w*)\[([^\]]*)\]")
_HEAD = re.compile(r"(ENTRY )?%?([\w.\-<>]+) \(.*\) -> .* \{$")
_BODY = re.compile(r"\s+(ROOT )?%?([\w.\-<>]+) = (.*)$")


class HloError(ValueError):
    """The text cannot be counted. The message names the instruction."""


class Instruction(NamedTuple):
    """One line of a computation. `attributes` is the text behind the operands."""

    name: str
    op: str
    shape: str
    operands: tuple[str, ...]
    attributes: str
    root: bool

    def called(self, key: str) -> str | None:
        """The name of the computation behind `key=`."""
        found = re.search(rf"\b{key}=%?([\w.\-<>]+)", self.attributes)
        return found and found[1]


@dataclass(frozen=True)
class Counts:
    """What a program, or a part of it, does in one run.

    - `bytes`: read and written by kernels.
    - `arithmetic`, `transcendentals`: operations on one element outside matrix products. Operations on bits count, too.
    - `product_flops`: two for each multiplication in a matrix product.
    - `collective_bytes`: what one device hands over.
    - `seconds`: of a model. Each kernel takes its launch, or the time to move its bytes if that is longer.
    """

    kernels: float = 0
    bytes: float = 0
    arithmetic: float = 0
    transcendentals: float = 0
    product_flops: float = 0
    collectives: float = 0
    collective_bytes: float = 0
    seconds: float = 0

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(*(getattr(self, x.name) + getattr(other, x.name) for x in fields(Counts)))

    def times(self, factor: float) -> "Counts":
        """The counts of so many runs."""
        return Counts(*(factor * getattr(self, x.name) for x in fields(Counts)))

    def as_dict(self) -> dict[str, float]:
        """The counts by name."""
        return asdict(self)


def arrays(shape: str) -> Iterator[tuple[int, int]]:
    """(number of elements, bytes) of every array of a shape, which may be a tuple."""
    for kind, bits, dimensions in _ARRAY.findall(shape):
        elements = prod(int(x.strip().removeprefix("<=")) for x in dimensions.split(",") if x.strip())
        width = {"pred": 8, "token": 0, "opaque": 0}.get(kind) if not bits else int(bits)
        yield elements, -(-elements * width // 8)


def size(shape: str) -> int:
    """Bytes of a shape."""
    return sum(number for _, number in arrays(shape))


def elements(shape: str) -> int:
    """Elements of a shape."""
    return sum(number for number, _ in arrays(shape))


def _closing(text: str) -> int:
    """The place of the parenthesis that closes the first one."""
    depth = 0
    for place in re.finditer(r"[()]", text):
        depth += 1 if place[0] == "(" else -1
        if depth == 0:
            return place.start()
    raise HloError(f"a parenthesis is not closed: {text[:200]}")


class Module:
    """The computations of an HLO module, and where in the source its instructions come from."""

    def __init__(self, text: str):
        self.computations: dict[str, list[Instruction]] = {}
        self.entry = ""
        self._tables: dict[str, dict[str, str]] = {}
        current, table = None, None
        for line in text.splitlines():
            if head := _HEAD.match(line):
                current, table = self.computations.setdefault(head[2], []), None
                self.entry = head[2] if head[1] else self.entry
            elif line in ("FileNames", "FunctionNames", "FileLocations", "StackFrames"):
                current, table = None, self._tables.setdefault(line, {})
            elif table is not None and (row := re.match(r"(\d+) (.*)", line)):
                table[row[1]] = row[2].strip('"')
            elif current is not None and (body := _BODY.match(line)):
                current.append(_instruction(body))
        if not self.entry:
            raise HloError("the text has no ENTRY computation: it is no HLO module")

    def source(self, instruction: Instruction, folder: str) -> str:
        """Where an instruction comes from: "models/stack.py HRUBlock.__call__, backward: dot_general".

        The innermost function below the folder, the way of differentiation, and the operation in jax. A function with a
        gradient of its own (`jax.custom_vjp`) hides the functions inside it.
        """
        found = re.search(r'op_name="([^"]*)"', instruction.attributes)
        name = re.sub(r"\d+", "", found[1]) if found else "no name"
        way = (", backward" if "transpose(" in name else "") + ": " + name.rpartition("/")[2]
        frame = re.search(r"\bstack_frame_id=(\d+)", instruction.attributes)
        number, seen = frame[1] if frame else "", set()
        while number in self._tables.get("StackFrames", {}) and number not in seen:
            seen.add(number)
            row = dict(re.findall(r"(\w+)=(\d+)", self._tables["StackFrames"][number]))
            place = dict(re.findall(r"(\w+)=(\d+)", self._tables["FileLocations"][row["file_location_id"]]))
            file = self._tables["FileNames"][place["file_name_id"]]
            if file.startswith(folder + "/") and "/site-packages/" not in file:
                function = self._tables["FunctionNames"][place["function_name_id"]].replace(".<locals>", "")
                return f"{file.removeprefix(folder + '/')} {function}{way}"
            number = str(int(row.get("parent_frame_id", "1")) - 1)
        return f"?{way}"


def _instruction(match: re.Match) -> Instruction:
    text = match[3]
    cut = _closing(text) + 1 if text.startswith("(") else text.index(" ")
    shape, rest = text[:cut], text[cut:].strip()
    op, _, inside = rest.partition("(")
    end = _closing("(" + inside) - 1
    operands = tuple(re.findall(r"%([\w.\-<>]+)", inside[:end])) if op != "constant" else ()
    return Instruction(match[2], op, shape, operands, inside[end + 1 :], bool(match[1]))


def count(
    text: str, *, launch_seconds: float, bytes_per_second: float, folder: str = ""
) -> tuple[Counts, dict[str, Counts]]:
    """The counts of the text of an optimised module; and its rows by function of the source below `folder`.

    Raises `HloError` for a loop whose number of iterations the module does not say.
    """
    module = Module(text)
    done: dict[str, dict[str, Counts]] = {}

    def walk(name: str) -> dict[str, Counts]:
        if name not in done:
            done[name] = {}
            shapes = {x.name: x.shape for x in module.computations[name]}
            for x in module.computations[name]:
                _merge(done[name], *of_instruction(x, shapes))
        return done[name]

    def of_instruction(x: Instruction, shapes: dict[str, str]) -> tuple[dict[str, Counts], float]:
        if x.op == "while":
            return walk(_named(x, "body")), _iterations(x)
        if x.op == "conditional":
            return max((walk(name) for name in _branches(x)), key=lambda rows: sum(r.seconds for r in rows.values())), 1
        if x.op in ("call", "async-start"):
            return walk(x.called("to_apply") or _named(x, "calls")), 1
        counts = _kernel(module, x, shapes)
        if counts is None:
            return {}, 1
        seconds = max(launch_seconds * counts.kernels, counts.bytes / bytes_per_second)
        return {f"{module.source(x, folder)} [{_kind(x)}]": counts + Counts(seconds=seconds)}, 1

    rows = walk(module.entry)
    return sum(rows.values(), Counts()), rows


def _merge(rows: dict[str, Counts], more: dict[str, Counts], factor: float) -> None:
    for key, counts in more.items():
        rows[key] = rows.get(key, Counts()) + counts.times(factor)


def _kind(x: Instruction) -> str:
    return re.sub(r"[.\d]+$", "", x.name) if x.op == "fusion" else x.op


def _named(x: Instruction, key: str) -> str:
    name = x.called(key)
    if name is None:
        raise HloError(f"{x.op} {x.name} names no computation {key}=")
    return name


def _iterations(x: Instruction) -> int:
    trips = re.search(r'"known_trip_count":\{"n":"(\d+)"', x.attributes)
    if trips is None:
        name = re.search(r'op_name="([^"]*)"', x.attributes)
        raise HloError(
            f"the loop {x.name} ({name[1] if name else 'no op_name'}) has no known number of iterations, so its "
            "kernels cannot be counted: give the loop a fixed length"
        )
    return int(trips[1])


def _branches(x: Instruction) -> list[str]:
    listed = re.search(r"branch_computations=\{([^}]*)\}", x.attributes)
    if listed:
        return re.findall(r"%?([\w.\-<>]+)", listed[1])
    return [_named(x, "true_computation"), _named(x, "false_computation")]


def _kernel(module: Module, x: Instruction, shapes: dict[str, str]) -> Counts | None:
    """The counts of one instruction that computes, without its time. None if it launches nothing and moves nothing."""
    if x.op in _FREE:
        return None
    base, done = x.op.removesuffix("-start").removesuffix("-done"), x.op.endswith("-done")
    if done:  # the start launched the kernel and read its operands
        return Counts(bytes=size(x.shape))
    target = re.search(r'custom_call_target="([^"]*)"', x.attributes)
    if base == "custom-call" and target and target[1] in _FREE_CALLS:
        return None
    arithmetic, transcendentals, flops = _operations(module, [x], shapes)
    handed = sum(size(shapes[name]) for name in x.operands) if base in _COLLECTIVES else 0
    return Counts(
        kernels=1,
        bytes=_traffic(module, x, base, shapes),
        arithmetic=arithmetic,
        transcendentals=transcendentals,
        product_flops=flops,
        collectives=base in _COLLECTIVES,
        collective_bytes=handed,
    )


def _traffic(module: Module, x: Instruction, base: str, shapes: dict[str, str]) -> int:
    """Bytes that a kernel reads and writes."""
    read = [size(shapes[name]) for name in x.operands]
    if base == "fusion":
        return _fusion_traffic(module.computations[_named(x, "calls")])
    if base == "dynamic-update-slice":
        return 2 * read[1]
    if base in _SLICES:
        return 2 * size(x.shape) + sum(read[1:])
    if x.op.endswith("-start") and base != "custom-call":  # its shape repeats the operands; the end counts the result
        return sum(read)
    written = size(x.shape)
    if base == "custom-call" and "__cublas" in x.attributes and x.shape.startswith("("):
        written -= size(" ".join(re.findall(r"\bs8\[\d+\]", x.shape)))  # the workspace
    return sum(read) + written


def _fusion_traffic(body: list[Instruction]) -> int:
    by_name = {x.name: x for x in body}
    users: dict[str, list[tuple[Instruction, int]]] = {}
    for x in body:
        for place, name in enumerate(x.operands):
            users.setdefault(name, []).append((x, place))

    def through_bitcasts(name: str) -> Instruction:
        while by_name[name].op == "bitcast":
            name = by_name[name].operands[0]
        return by_name[name]

    root = next(x for x in body if x.root)
    outputs = [by_name[name] for name in root.operands] if root.op == "tuple" else [root]
    updates = [through_bitcasts(x.name) for x in outputs]
    in_place = all(
        x.op == "dynamic-update-slice" and through_bitcasts(x.operands[0]).op == "parameter" for x in updates
    )
    written = sum(
        size(by_name[x.operands[1]].shape if in_place else y.shape) for x, y in zip(updates, outputs, strict=True)
    )
    names = {x.name for x in outputs}

    def read(x: Instruction) -> int:
        """Bytes of an array that its users read, at most all."""
        total, whole = 0, size(x.shape)
        for user, place in users.get(x.name, []):
            if user is root and root.op == "tuple":
                continue
            if user.op == "bitcast":
                total += read(user)
            elif user.op in _SLICES and place == 0:
                total += size(user.shape)
            elif not (in_place and user.op == "dynamic-update-slice" and place == 0):
                return whole
        return whole if x.name in names else min(total, whole)

    return written + sum(read(x) for x in body if x.op == "parameter")


def _operations(module: Module, body: list[Instruction], shapes: dict[str, str]) -> tuple[float, float, float]:
    """Arithmetic, transcendentals and flops of matrix products of some instructions, with what they call."""
    total = [0.0, 0.0, 0.0]
    for x in body:
        if x.op in ("fusion", "fusion-start"):
            inner = module.computations[_named(x, "calls")]
            more = _operations(module, inner, {y.name: y.shape for y in inner})
        elif x.op in ("reduce", "map", "reduce-window"):
            # The function of two numbers runs once for every element that goes in.
            inner = module.computations[_named(x, "to_apply")]
            arrays_in = len(x.operands) if x.op == "map" else max(1, len(x.operands) // 2)
            runs = elements(shapes[x.operands[0]]) if arrays_in else 0
            more = [runs * n for n in _operations(module, inner, {y.name: y.shape for y in inner})]
        elif x.op in ("dot", "convolution") or "__cublas$gemm" in x.attributes:
            more = (0.0, 0.0, 2.0 * elements(x.shape.split("s8[")[0]) * _contracted(x, shapes))
        else:
            number = elements(x.shape)
            more = (number * (x.op in _ARITHMETIC), number * (x.op in _TRANSCENDENTAL), 0.0)
        total = [a + b for a, b in zip(total, more, strict=True)]
    return total[0], total[1], total[2]


def _contracted(x: Instruction, shapes: dict[str, str]) -> int:
    """The length of the sums of a matrix product."""
    listed = re.search(r'lhs_contracting_dim(?:ension)?s"?[=:][{[]([^}\]]*)', x.attributes)
    array = _ARRAY.search(shapes[x.operands[0]])
    if listed is None or array is None:
        return 0
    dimensions = [int(n) for n in array[3].split(",") if n]
    return prod(dimensions[int(n)] for n in re.findall(r"\d+", listed[1]))
