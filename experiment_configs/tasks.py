"""The config field `task`: the generated task that takes the place of a stored data set, by name, and its sizes.

{"name": "adding", "length": 10000, "train": 20000}
"""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from data_dir.tasks import TASKS, Task, record_of, task_of_fields

ALLOWED = (
    f"null, or an object with name (one of {', '.join(TASKS)}), length (the time steps of a series), and the other "
    "sizes of this task"
)


def task_of(fields: Mapping[str, Any] | None) -> Task | None:
    """The task of the field; None without one."""
    return None if fields is None else task_of_fields(fields)


def checked(fields: dict[str, Any] | None) -> dict[str, Any] | None:
    """The fields, with the defaults of the task. Raises `ValueError` for fields that are not allowed."""
    return None if fields is None else record_of(task_of_fields(fields))


Fields = Annotated[dict[str, Any] | None, AfterValidator(checked), Field(description=ALLOWED)]
"""The type of the field in a config."""


def clashes(config: Any) -> Iterator[tuple[str, str]]:
    """The fields that do not fit the way in which the outputs are read, or the task; each with the reason."""
    if not config.classification and config.pooling != "mean":
        yield "pooling", 'a regression reads every output_step-th step and pools no steps: leave it out, or "mean"'
    task = task_of(config.task)
    if task is None:
        return
    if config.classification != task.classification:
        yield "classification", f"the task {task.name} is a {'classification' if task.classification else 'regression'}"
    if task.last_steps > 1 and config.pooling != "last":
        yield "pooling", f'the task {task.name} has {task.last_steps} answers, read at the last steps: write "last"'
    if config.split != "seed":
        yield "split", f"the task {task.name} has parts of its own (train, validation, test): leave split out"
    if config.standardise:
        yield "standardise", f"the channels of the task {task.name} have a range of their own: false"
