"""Tasks of any length whose answer lies far from where it is read. They are generated, and have no files.

A series is a function of the task, its seed, the part of the set and the number of the series. So a loader makes the
series of a batch when it needs them, and a set of 50,000 series of 100,000 steps takes no memory. The random numbers
are the raw words of Philox, a counter-based generator: no version of numpy and no machine changes them.

Sources: adding, Hochreiter and Schmidhuber (1997); copy, Arjovsky, Shah and Bengio (2016); selective copy, Gu and Dao
(2023). docs/data.md describes each, with its chance level.
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float, Int
from typing_extensions import override

from common.files import sha256_of_array
from data_dir.splits import PARTS

# A change of any task that changes its series or labels needs the next number.
VERSION = 1
_MOST = 2**31 - 1


class _Random:
    """The random numbers of one series."""

    def __init__(self, seed: int, part: int, number: int):
        key = np.array([seed << 32 | part, number], dtype=np.uint64)
        self._words = np.random.Philox(key=key).random_raw

    def below(self, bound: int, size: int) -> Int[np.ndarray, " size"]:
        """Whole numbers from 0 to bound - 1."""
        return ((self._words(size) >> np.uint64(32)) * np.uint64(bound) >> np.uint64(32)).astype(np.int64)

    def unit(self, size: int) -> Float[np.ndarray, " size"]:
        """Multiples of 2^-24 in [0, 1), as float32."""
        return (self._words(size) >> np.uint64(40)).astype(np.float32) * np.float32(2**-24)

    def subset(self, bound: int, size: int) -> Int[np.ndarray, " size"]:
        """Different whole numbers from 0 to bound - 1, in their order; each subset is equally likely (Floyd)."""
        chosen: set[int] = set()
        for last in range(bound - size, bound):
            number = int(self.below(last + 1, 1)[0])
            chosen.add(last if number in chosen else number)
        return np.array(sorted(chosen))


@dataclass(frozen=True)
class Task:
    """A generated task: ``length`` time steps, and the number of series of each part, drawn by ``seed``.

    A subclass has a name, its own sizes, and the three functions of a series below. ``classes`` is 1 for a regression.
    ``last_steps`` counts the answers of a classification: one at each of so many last steps.
    """

    length: int
    seed: int = dataclasses.field(default=0, kw_only=True)
    train: int = dataclasses.field(default=50_000, kw_only=True)
    validation: int = dataclasses.field(default=1_000, kw_only=True)
    test: int = dataclasses.field(default=2_000, kw_only=True)

    name: ClassVar[str]
    classification: ClassVar[bool] = True

    @property
    def channels(self) -> int:
        """The channels of a series."""
        raise NotImplementedError

    @property
    def last_steps(self) -> int:
        """The steps that have an answer, the last ones."""
        return 1

    def least_length(self) -> int:
        """The smallest length that the task can have."""
        raise NotImplementedError

    def drawn(self, random: _Random) -> Any:
        """What decides the answer, drawn before the rest of the series."""
        raise NotImplementedError

    def answer(self, drawn: Any) -> np.ndarray:
        """The label of a series: a one-hot row (classes,), rows (last_steps, classes), or of a regression (1,)."""
        raise NotImplementedError

    def write(self, series: Float[np.ndarray, "L C"], drawn: Any, random: _Random) -> None:
        """Fills a series of zeros."""
        raise NotImplementedError


@dataclass(frozen=True)
class Adding(Task):
    """Channel 0 has numbers from [0, 1), channel 1 marks a step of each half; the label is the sum of these two."""

    name: ClassVar[str] = "adding"
    classification: ClassVar[bool] = False
    centre: ClassVar[float] = 1.0  # of the labels, which lie in [0, 2)

    @property
    @override
    def channels(self) -> int:
        return 2

    @override
    def least_length(self) -> int:
        return 2

    @override
    def drawn(self, random: _Random) -> Any:
        half = self.length // 2
        marked = int(random.below(half, 1)[0]), half + int(random.below(self.length - half, 1)[0])
        return list(marked), random.unit(2)

    @override
    def answer(self, drawn: Any) -> np.ndarray:
        return drawn[1].sum(keepdims=True)

    @override
    def write(self, series, drawn, random) -> None:
        marked, values = drawn
        series[:, 0] = random.unit(self.length)
        series[marked, 0], series[marked, 1] = values, 1


@dataclass(frozen=True)
class Copy(Task):
    """The first ``symbols`` steps show a symbol each, then silence; the answers are the symbols, at the last steps.

    A symbol is a one-hot row of ``classes`` channels, silence is 0. The last channel is 1 before the first answer.
    """

    symbols: int = dataclasses.field(default=10, kw_only=True)
    classes: int = dataclasses.field(default=8, kw_only=True)
    name: ClassVar[str] = "copy"

    @property
    @override
    def channels(self) -> int:
        return self.classes + 1

    @property
    @override
    def last_steps(self) -> int:
        return self.symbols

    @override
    def least_length(self) -> int:
        return 2 * self.symbols + 1

    @override
    def drawn(self, random: _Random) -> Any:
        return random.below(self.classes, self.symbols)

    @override
    def answer(self, drawn: Any) -> np.ndarray:
        return np.eye(self.classes, dtype=np.float32)[drawn]

    def shown_at(self, random: _Random) -> Int[np.ndarray, " symbols"]:
        """The steps at which the symbols are shown."""
        return np.arange(self.symbols)

    @override
    def write(self, series, drawn, random) -> None:
        series[self.shown_at(random), drawn] = 1
        series[self.length - self.symbols - 1, self.classes] = 1


@dataclass(frozen=True)
class SelectiveCopy(Copy):
    """As ``Copy``, but the symbols are shown at random steps; the answers are the symbols in their order."""

    name: ClassVar[str] = "selective_copy"

    @override
    def shown_at(self, random: _Random) -> Int[np.ndarray, " symbols"]:
        return random.subset(self.length - self.symbols - 1, self.symbols)


@dataclass(frozen=True)
class First(Task):
    """The first ``range`` steps lie in a cell of [-1, 1], one cell for each class; the answer is the class.

    The other steps are noise, uniform in [-noise, noise]; with ``noise`` 0 they are silence.
    """

    range: int = dataclasses.field(kw_only=True)
    classes: int = dataclasses.field(default=2, kw_only=True)
    noise: float = dataclasses.field(default=1.0, kw_only=True)
    name: ClassVar[str] = "first"

    @property
    @override
    def channels(self) -> int:
        return 1

    @override
    def least_length(self) -> int:
        return self.range + 1

    @override
    def drawn(self, random: _Random) -> Any:
        return int(random.below(self.classes, 1)[0])

    @override
    def answer(self, drawn: Any) -> np.ndarray:
        return np.eye(self.classes, dtype=np.float32)[drawn]

    @override
    def write(self, series, drawn, random) -> None:
        values = random.unit(self.length).astype(np.float64)
        # Between two cells a tenth of a cell is empty.
        series[: self.range, 0] = 2 * (drawn + 0.05 + 0.9 * values[: self.range]) / self.classes - 1
        series[self.range :, 0] = self.noise * (2 * values[self.range :] - 1)


TASKS: dict[str, type[Task]] = {task.name: task for task in (Adding, Copy, SelectiveCopy, First)}
_LEAST = {"seed": 0, "classes": 2}
_MOST_OF = {"seed": 2**32 - 1, "classes": 1000}


def task_of_fields(fields: Mapping[str, Any]) -> Task:
    """The task of a JSON object {"name", "length", ..}. Raises ValueError for fields that are not allowed."""
    given = dict(fields)
    name = given.pop("name", None)
    if not isinstance(name, str) or name not in TASKS:
        raise ValueError(f"name is {json.dumps(name, default=str)}: allowed is one of {', '.join(TASKS)}")
    known = {field.name: field for field in dataclasses.fields(TASKS[name])}
    for field, value in given.items():
        if field not in known:
            raise ValueError(f"unknown field {field}: those of {name} are {', '.join(known)}")
        if known[field].type is float:
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1e6:
                raise ValueError(f"{field} is {json.dumps(value, default=str)}: allowed is a number from 0 to 1000000")
            given[field] = float(value)
            continue
        least, most = _LEAST.get(field, 1), _MOST_OF.get(field, _MOST)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            shown = json.dumps(value, default=str)
            raise ValueError(f"{field} is {shown}: allowed is a whole number from {least} to {most}")
    missing = [field for field in known if known[field].default is dataclasses.MISSING and field not in given]
    if missing:
        raise ValueError(f"{name} needs {' and '.join(missing)}")
    task = TASKS[name](**given)
    if task.length < task.least_length():
        raise ValueError(f"length is {task.length}: with these sizes {name} needs {task.least_length()} steps at least")
    return task


def record_of(task: Task) -> dict[str, Any]:
    """All fields of a task as a JSON object, for ``task_of_fields``."""
    return {"name": task.name, **dataclasses.asdict(task)}


class GeneratedSeries:
    """The series (n, L, C) of a part of a task. Indexed by rows, as an array is, it makes them, as float32."""

    dtype, ndim = np.dtype(np.float32), 3

    def __init__(self, task: Task, part: str):
        self._task, self._part = task, PARTS.index(part)
        self.shape = (getattr(task, part), task.length, task.channels)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: np.ndarray | slice) -> Float[np.ndarray, "n L C"]:
        numbers = np.arange(len(self))[rows]
        series = np.zeros((len(numbers), *self.shape[1:]), np.float32)
        for each, number in zip(series, numbers.tolist(), strict=True):
            random = _Random(self._task.seed, self._part, number)
            self._task.write(each, self._task.drawn(random), random)
        return series


@functools.lru_cache(maxsize=32)
def labels_of(task: Task, part: str) -> np.ndarray:
    """The labels of all series of a part, (n, classes), (n, last_steps, classes) or (n, 1), read-only."""
    number = PARTS.index(part)
    answers = (task.answer(task.drawn(_Random(task.seed, number, row))) for row in range(getattr(task, part)))
    labels = np.stack(list(answers)).astype(np.float32)
    labels.flags.writeable = False
    return labels


@functools.lru_cache(maxsize=32)
def sha256_of_task(task: Task) -> str:
    """One hash of the recipe, of all labels, and of the first series of each part, which stands for the others."""
    texts = [json.dumps({"version": VERSION, **record_of(task)}, sort_keys=True)]
    for part in PARTS:
        texts += [sha256_of_array(labels_of(task, part)), sha256_of_array(GeneratedSeries(task, part)[:1])]
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()
