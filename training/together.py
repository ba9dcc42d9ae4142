"""Several trainings at the same time, their steps in one program.

A training is a generator. It yields the `Steps` that it wants, gets a function that computes them, and returns its
result. `alone` computes the steps of a single training. `together` stacks the steps of several, such as the seeds of a
config: models, BatchNorm states, optimisers, batches and dropout keys get the seeds as their first axis, and
`jax.vmap` maps the step over it. All trainings make equally many steps at once, each from its own step number. What a
training does between its steps it does by itself: it evaluates, stops early, fails, saves.

The program has a place for every training. A training that has ended leaves its place empty: no step changes the state
that fills it. When half of the places are empty, a smaller program takes over. The last training uses the program of a
single one.
"""

import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, ParamSpec

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

from models.physics.in_the_loop import operators_of
from training.loop import Computed, Result, Steps, Wanting
from training.steps import TrainingState, some_steps

Arguments = ParamSpec("Arguments")


class NotTogether(ValueError):
    """Trainings that one program cannot compute. The message says in what they differ."""


def alone(in_steps: Callable[Arguments, Wanting[Result]]) -> Callable[Arguments, Result]:
    """The function that computes the steps of a generator and returns its result."""

    @functools.wraps(in_steps)
    def function(*args: Arguments.args, **options: Arguments.kwargs) -> Result:
        training = in_steps(*args, **options)
        try:
            steps = next(training)
            while True:
                steps = training.send(steps.compute)
        except StopIteration as end:
            return end.value

    function.__name__ = function.__qualname__ = in_steps.__name__.removesuffix("_in_steps")
    return function


def together(trainings: Sequence[Wanting[Result]]) -> list[Result]:
    """The results of the trainings, in their order.

    An exception ends its training. The others continue, and the first of the exceptions is raised when all have ended.
    If their steps cannot be computed together, or the computation fails, every training gets the exception.
    """
    wanted: dict[int, Steps] = {}
    results: dict[int, Result] = {}
    errors: dict[int, Exception] = {}

    def advance(number: int, compute: Callable[[], Computed] | None) -> None:
        try:
            wanted[number] = next(trainings[number]) if compute is None else trainings[number].send(compute)
        except StopIteration as end:
            results[number] = end.value
        except Exception as error:
            errors[number] = error

    try:
        for number in range(len(trainings)):
            advance(number, None)
        places = len(wanted)
        while wanted:
            if 2 * len(wanted) <= places:
                places = len(wanted)
            numbers, computed = list(wanted), _computed(list(wanted.values()), places)
            wanted.clear()
            for number, compute in zip(numbers, computed, strict=True):
                advance(number, compute)
    finally:
        for training in trainings:
            training.close()
    if errors:
        raise errors[min(errors)]
    return [results[number] for number in range(len(trainings))]


def _computed(wanted: list[Steps], places: int) -> list[Callable[[], Computed]]:
    """For each of the steps that are wanted, the function that gives them computed, or raises why they are not."""
    if places == 1:
        return [wanted[0].compute]
    count = min(steps.most for steps in wanted)
    try:
        batches, started = [steps.batches(count) for steps in wanted], time.perf_counter()
        results = train_steps_together(
            batches, [steps.training for steps in wanted], [steps.rest for steps in wanted], places
        )
    except Exception as error:
        return [functools.partial(_raise, error)] * len(wanted)
    return [functools.partial(Computed, *result, count, started, places) for result in results]


def _raise(error: Exception) -> Any:
    raise error


def train_steps_together(
    batches: Sequence[tuple], trainings: Sequence[TrainingState], rests: Sequence[tuple], places: int
) -> list[tuple]:
    """`train_steps` for several trainings in one program, which has so many places.

    **Arguments:** for each training the batches, the state, and the optimiser, the kind of labels and the number of
    devices. The states are not donated.

    **Returns:** for each training, what `train_steps` returns.

    **Raises:** `NotTogether` for trainings that differ in more than the values of their arrays, that have several
    devices, or a machine in the loop.
    """
    parts = [eqx.partition(training, eqx.is_array) for training in trainings]
    (leaves, structure), *others = (jax.tree.flatten(rest) for _, rest in parts)
    optimiser, classification, devices = rests[0]
    if devices != 1:
        raise NotTogether(f"devices {devices}: trainings together need 1")
    if operators_of(trainings[0].model):
        raise NotTogether("a machine in the loop runs one training at a time: train the seeds one after the other")
    if any(rest != rests[0] for rest in rests):
        raise NotTogether(
            "the trainings differ in their learning rate, their gradient clipping or their kind of labels"
        )
    if any(other != (leaves, structure) for other in others):
        raise NotTogether(
            "the models differ in more than the values of their arrays, for instance in a static field: train the "
            "seeds one after the other"
        )
    arrays, batches = [own for own, _ in parts], list(batches)
    empty = places - len(arrays)
    if empty:
        arrays += [replace(arrays[0], skips_left=jnp.full_like(arrays[0].skips_left, -1))] * empty
        batches += batches[:1] * empty
    results = _compiled_together(arrays, batches, tuple(leaves), structure, optimiser, classification)
    return [(eqx.combine(own, rest), *values) for (own, *values), (_, rest) in zip(results, parts, strict=False)]


@functools.partial(jax.jit, static_argnums=(2, 3, 4, 5))
def _compiled_together(
    arrays, batches, leaves, structure, optimiser: optax.GradientTransformation, classification: bool
):
    def stacked(trees):
        shapes = {tuple(x.shape for x in jax.tree.leaves(tree)) for tree in trees}
        if len(shapes) > 1:
            raise NotTogether("the trainings differ in the shapes of their arrays or of their batches")
        return jax.tree.map(lambda *x: jnp.stack(x), *trees)

    def steps(arrays, batches):
        return some_steps(arrays, batches, leaves, structure, optimiser, classification)

    results = jax.vmap(steps)(stacked(arrays), stacked(batches))
    return [jax.tree.map(lambda x, place=place: x[place], results) for place in range(len(arrays))]
