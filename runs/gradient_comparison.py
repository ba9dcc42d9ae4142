"""Compares the gradient of each learning algorithm, parameter by parameter, with the gradient of BPTT in float64."""

import argparse
import re
import warnings
from collections.abc import Callable, Iterator
from itertools import product
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd

from data_dir.datasets import Dataset
from models import create_model
from models.check import (
    RETRACE_TOLERANCE,
    RetraceWarning,
    agreement_by_leaf,
    finite_difference_errors,
    one_rounding,
    retrace_errors,
    rounding_of_constraints,
    to_float64,
    try_unit,
    with_same_numbers,
)
from models.create import MODELS
from models.layer import AbstractHRULayer
from models.rhel import BPTT, RHEL, make_learning_algorithm, with_learning_algorithm
from train import sample_loss

DIFFERENCES_AGREE = 1e-2
"""Errors of finite differences up to this size are of their own: sound gradients show up to a few 1e-3."""


class Problem(NamedTuple):
    """A model without dropout, and a batch. The gradient is of the mean loss of the batch."""

    model: eqx.Module
    state: eqx.nn.State
    x: jax.Array
    labels: jax.Array
    classification: bool
    rounding: list | None = None  # in float64: see `models.check.with_same_numbers`


def make_problem(
    options: argparse.Namespace, unit: type[AbstractHRULayer], given: dict[str, Any], dataset: Dataset
) -> Problem:
    """A model with the given options of its unit, and a random batch of training samples, all float32."""
    rng = np.random.default_rng(options.seed)
    rows = rng.choice(dataset.train.size, min(options.batch_size, dataset.train.size), replace=False)
    model, state = create_model(
        unit,
        dataset.data_dim,
        dataset.label_dim,
        options.hidden_dim,
        options.num_blocks,
        options.ssm_dim,
        classification=dataset.classification,
        dropout_rate=0.0,
        key=jax.random.PRNGKey(options.seed),
        **given,
    )
    if unit not in MODELS.values():
        try_unit(model.blocks[0].unit, options.hidden_dim)
    x, labels = (jnp.asarray(array[rows], jnp.float32) for array in (dataset.train.data, dataset.train.labels))
    return Problem(*_cast((model, state), jnp.float32), x[:, : options.sequence_length], labels, dataset.classification)


def widen(problem: Problem, *, moved_by: jax.Array | None = None) -> Problem:
    """The same numbers in float64. A key moves inputs and constrained parameters by one rounding of float32."""
    rounding = rounding_of_constraints(problem.model, key=moved_by)
    wide = Problem(*to_float64(problem[:4]), problem.classification, rounding)
    return wide if moved_by is None else wide._replace(x=one_rounding(wide.x, key=moved_by))


def loss(model: Any, problem: Problem) -> jax.Array:
    """Mean loss of the batch."""
    if problem.rounding is not None:
        model = with_same_numbers(model, problem.rounding)
    forward = jax.vmap(model, axis_name="batch", in_axes=(0, None, None), out_axes=(0, None))
    outputs, _ = forward(problem.x, problem.state, None)
    return jnp.mean(jax.vmap(sample_loss, in_axes=(0, 0, None))(outputs, problem.labels, problem.classification))


gradient = eqx.filter_jit(eqx.filter_grad(loss))


def compare(options: argparse.Namespace, problem: Problem, notice: Callable[[str], None]) -> tuple[list[dict], dict]:
    """The rows of one model, one per parameter, block, algorithm and precision; and the errors of its echo."""
    wide = widen(problem)
    bptt = with_learning_algorithm(wide.model, BPTT())
    reference = gradient(bptt, wide)
    notice("finite differences of the reference ..")
    differences = finite_difference_errors(lambda model: loss(model, wide), bptt, reference, key=jax.random.PRNGKey(1))
    notice("the reference after a change by one rounding ..")
    moved = gradient(bptt, widen(problem, moved_by=jax.random.PRNGKey(2)))
    of_reference = {
        path: {"finite_differences": difference, "one_rounding": numbers.relative_error}
        for (path, numbers), difference in zip(agreement_by_leaf(moved, reference).items(), differences, strict=True)
    }
    rows = []
    for name, epsilon, dtype in _algorithms(options):
        if (name, dtype) == ("BPTT", "float64"):  # the reference
            continue
        run = f"{name} {dtype}" + (f" {epsilon:g}" if epsilon and len(options.epsilon) > 1 else "")
        notice(f"{run} ..")
        algorithm = RHEL(epsilon, options.literal) if name == "RHEL" else make_learning_algorithm(name)
        of_run = problem if dtype == "float32" else wide
        computed = gradient(with_learning_algorithm(of_run.model, algorithm), of_run)
        about = {"learning_algorithm": name, "dtype": dtype, "epsilon": epsilon, "run": run}
        for path, numbers in agreement_by_leaf(computed, reference).items():
            rows.append(_split_path(path) | about | numbers._asdict() | of_reference[path])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", RetraceWarning)
        retrace = np.max(retrace_errors(problem.model, problem.state, problem.x), axis=0)
    for warning in caught:
        notice(f"warning: {warning.message}")
    return rows, {"retrace_error_float32": retrace.tolist()}


def doubts(rows: pd.DataFrame, retrace: list[float]) -> Iterator[str]:
    """Sentences about a reference that finite differences do not confirm, and about an echo that does not return."""
    worst = rows.loc[rows.finite_differences.fillna(np.inf).idxmax()]
    if not worst.finite_differences <= DIFFERENCES_AGREE:
        yield (
            f"The gradient of BPTT itself is doubtful: finite differences of {worst.parameter} differ by "
            f"{100 * worst.finite_differences:.2g} %. An index beyond an array, a corner, a stop_gradient or chaotic "
            "dynamics may be the cause; models.check.check_gradient tells more"
        )
    if not max(retrace) <= RETRACE_TOLERANCE:
        yield (
            f"An echo without nudges misses its start by {max(retrace):.1e} of the largest state: the kinetic energy "
            "is not even in p, or the dynamics are unstable at this step or precision; models.check.check_gradient "
            "tells more"
        )


def _algorithms(options: argparse.Namespace) -> Iterator[tuple[str, float | None, str]]:
    """(algorithm, epsilon, precision) of every gradient; only RHEL has an epsilon."""
    for name in options.learning_algorithm:
        epsilons = options.epsilon if name == "RHEL" and options.epsilon else [None]
        for dtype, epsilon in product(("float32", "float64"), epsilons):
            yield name, epsilon, dtype


def _split_path(path: str) -> dict:
    match = re.fullmatch(r"\.blocks\[(\d+)\]\.(.+)", path)
    name = (match[2] if match else path).removeprefix(".").removeprefix("unit.")
    return {"parameter": name, "block": int(match[1]) if match else None}


def _cast(tree, dtype):
    return jax.tree.map(lambda x: x.astype(dtype) if eqx.is_inexact_array(x) else x, tree)
