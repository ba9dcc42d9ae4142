"""How close is the gradient by echoes to backpropagation through time? Every parameter, block and precision.

    python gradient_comparison_bptt_rhel.py [--dataset_name SelfRegulationSCP1] [--model_name LinHRU NonlinHRU] ..

Takes a batch of a data set through untrained models and compares the gradient of each learning algorithm, in float32
and in float64, with that of BPTT in float64; that one is checked by finite differences. Writes to the output folder

    gradient_comparison.json    every number
    <model>.png, <model>.pdf    cosine, ratio of norms and relative error by parameter and block (the paper's Fig. 4)
    epsilon.png, epsilon.pdf    error against the size of the nudges, where several --epsilon are given

In float64, the recurrences use the float32 values of their constrained parameters (time steps above all: the rounding
of a frequency grows with the length of the sequence): the gradient is compared, not the rounding of a parameter.

"one rounding" is how far the float64 gradient itself moves when the inputs and the constrained parameters are moved by
one rounding of float32, 2^-24 of themselves: what a gradient in float32 cannot be expected to get below.
"""

import argparse
import json
import re
import sys
import warnings
from importlib.metadata import version
from itertools import cycle
from pathlib import Path
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from data_dir.datasets import Dataset, create_dataset, processed_datasets
from experiment_configs import MODEL_NAMES
from models import create_model
from models.check import (
    RetraceWarning,
    agreement_by_leaf,
    finite_difference_errors,
    one_rounding,
    retrace_errors,
    rounding_of_constraints,
    to_float64,
    with_same_numbers,
)
from models.rhel import BPTT, LEARNING_ALGORITHMS, RHEL, make_learning_algorithm, with_learning_algorithm
from runs import compilation_cache
from train import sample_loss

DATASET, BUNDLED_DATASET = "SelfRegulationSCP1", "BasicMotions"


class Problem(NamedTuple):
    """A model without dropout, and the batch whose mean loss is differentiated."""

    model: eqx.Module
    state: eqx.nn.State
    x: jax.Array
    labels: jax.Array
    classification: bool
    rounding: list | None = None
    """In float64: see `models.check.with_same_numbers`."""


def make_problem(options: argparse.Namespace, model_name: str, dataset: Dataset) -> Problem:
    """A model and a random batch of training samples, all float32."""
    rng = np.random.default_rng(options.seed)
    rows = rng.choice(dataset.train.size, min(options.batch_size, dataset.train.size), replace=False)
    model, state = create_model(
        model_name,
        dataset.data_dim,
        dataset.label_dim,
        options.hidden_dim,
        options.num_blocks,
        options.ssm_dim,
        classification=dataset.classification,
        dropout_rate=0.0,
        key=jax.random.PRNGKey(options.seed),
        **({"step_init": options.step_init} if model_name == "NonlinHRU" else {}),
    )
    x, labels = (jnp.asarray(array[rows], jnp.float32) for array in (dataset.train.data, dataset.train.labels))
    return Problem(*_cast((model, state), jnp.float32), x[:, : options.sequence_length], labels, dataset.classification)


def widen(problem: Problem, *, moved_by: jax.Array | None = None) -> Problem:
    """The same numbers in float64; with a key, the inputs and the constrained parameters one rounding off."""
    rounding = rounding_of_constraints(problem.model, key=moved_by)
    wide = Problem(*to_float64(problem[:4]), problem.classification, rounding)
    return wide if moved_by is None else wide._replace(x=one_rounding(wide.x, key=moved_by))


def loss(model: eqx.Module, problem: Problem) -> jax.Array:
    """Mean loss of the batch."""
    if problem.rounding is not None:
        model = with_same_numbers(model, problem.rounding)
    forward = jax.vmap(model, axis_name="batch", in_axes=(0, None, None), out_axes=(0, None))
    outputs, _ = forward(problem.x, problem.state, None)
    return jnp.mean(jax.vmap(sample_loss, in_axes=(0, 0, None))(outputs, problem.labels, problem.classification))


gradient = eqx.filter_jit(eqx.filter_grad(loss))


def compare(options: argparse.Namespace, problem: Problem, notice) -> tuple[list[dict], dict]:
    """Rows (one per parameter, block, algorithm and precision) and what else was found about one model."""
    wide = widen(problem)
    by_backpropagation = with_learning_algorithm(wide.model, BPTT())
    reference = gradient(by_backpropagation, wide)
    notice("finite differences of the reference ..")
    differences = finite_difference_errors(
        lambda model: loss(model, wide), by_backpropagation, reference, key=jax.random.PRNGKey(1)
    )
    notice("the reference, one rounding off ..")
    moved = gradient(by_backpropagation, widen(problem, moved_by=jax.random.PRNGKey(2)))
    of_reference = {
        path: {"finite_differences": difference, "one_rounding": numbers.relative_error}
        for (path, numbers), difference in zip(agreement_by_leaf(moved, reference).items(), differences, strict=True)
    }
    rows = []
    for algorithm_name in options.learning_algorithm:
        for dtype, version_of in (("float32", problem), ("float64", wide)):
            if (algorithm_name, dtype) == ("BPTT", "float64"):
                continue
            for epsilon in (options.epsilon or [None]) if algorithm_name == "RHEL" else [None]:
                run = f"{algorithm_name} {dtype}" + (f" {epsilon:g}" if epsilon and len(options.epsilon) > 1 else "")
                notice(f"{run} ..")
                nudged = algorithm_name == "RHEL"
                algorithm = RHEL(epsilon, options.literal) if nudged else make_learning_algorithm(algorithm_name)
                found = gradient(with_learning_algorithm(version_of.model, algorithm), version_of)
                about = {"learning_algorithm": algorithm_name, "dtype": dtype, "epsilon": epsilon, "run": run}
                for path, numbers in agreement_by_leaf(found, reference).items():
                    rows.append(_split_path(path) | about | numbers._asdict() | of_reference[path])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", RetraceWarning)
        retrace = np.max(retrace_errors(problem.model, problem.state, problem.x), axis=0)
    for warning in caught:
        notice(f"warning: {warning.message}")
    return rows, {"retrace_error_float32": [float(error) for error in retrace]}


def _split_path(path: str) -> dict:
    match = re.fullmatch(r"\.blocks\[(\d+)\]\.(.+)", path)
    name = (match[2] if match else path).removeprefix(".").removeprefix("unit.")
    return {"parameter": name, "block": int(match[1]) if match else None}


def _cast(tree, dtype):
    return jax.tree.map(lambda x: x.astype(dtype) if eqx.is_inexact_array(x) else x, tree)


def _runs(rows: pd.DataFrame) -> list[str]:
    """The columns of the tables: float32 before float64."""
    return list(dict.fromkeys(rows.sort_values("dtype", kind="stable").run))


def by_parameter(rows: pd.DataFrame) -> pd.DataFrame:
    """Largest relative error of each parameter over the blocks, and what is known of its reference."""
    order = list(dict.fromkeys(rows.parameter))
    table = rows.pivot_table(index="parameter", columns="run", values="relative_error", aggfunc="max", dropna=False)
    table = table.loc[order, _runs(rows)]
    table["1 - cosine"] = 1 - rows.groupby("parameter").cosine.min()
    table["one rounding"] = rows.groupby("parameter").one_rounding.max()
    table["finite differences"] = rows.groupby("parameter").finite_differences.max()
    return table


def by_model(rows: pd.DataFrame) -> pd.DataFrame:
    """Of each model and run, the largest relative error of any parameter of any block and the smallest cosine."""
    grouped = rows.groupby(["model", "run"], sort=False)
    measures = {
        "largest relative error": grouped.relative_error.max(),
        "1 - smallest cosine": 1 - grouped.cosine.min(),
    }
    table = (
        pd.concat({name: values.unstack() for name, values in measures.items()})
        .swaplevel()
        .sort_index(level=0, sort_remaining=False)
    )
    table = table[_runs(rows)]
    table["one rounding"] = [
        rows[rows.model == model].one_rounding.max() if measure == "largest relative error" else np.nan
        for model, measure in table.index
    ]
    return table.rename_axis(index=[None, None], columns=None)


def draw_comparison(rows: pd.DataFrame, title: str) -> Figure:
    """Bars of cosine and norm ratio as in the paper, and the relative errors that such bars cannot show."""
    order = list(dict.fromkeys(rows.parameter))
    blocks = sorted(rows.block.dropna().unique())
    figure = Figure(figsize=(1.5 + 0.62 * len(order), 8), layout="constrained")
    bars = figure.subplots(3, 1, sharex=True, height_ratios=(1, 1, 1.6))
    bars[0].set_title(title)
    first = rows[rows.run == rows.run.iloc[0]]
    for axis, column, label in ((bars[0], "cosine", "cosine"), (bars[1], "norm_ratio", "ratio of norms")):
        for parameter, group in first.groupby("parameter"):
            width = 0.8 / len(group)
            for i, (_, row) in enumerate(group.iterrows()):
                color = "0.5" if row.block != row.block else f"C{int(row.block) % 10}"
                axis.bar(order.index(parameter) - 0.4 + width * (i + 0.5), row[column], width, color=color)
        axis.axhline(1, color="black", lw=0.5)
        axis.set(ylim=(0.3, 1.1), ylabel=f"{label}\n{first.run.iloc[0]}")
    for block in blocks:
        bars[0].bar(0, 0, color=f"C{int(block) % 10}", label=f"block {int(block)}")
    if blocks:
        bars[0].legend(ncols=min(len(blocks), 6), fontsize="x-small", loc="lower left")
    runs = rows.groupby("run", sort=False)
    for (run, group), marker, shift in zip(runs, cycle("osv^D<>"), np.linspace(-0.3, 0.3, len(runs)), strict=False):
        x = [order.index(parameter) + shift for parameter in group.parameter]
        bars[2].semilogy(x, np.maximum(group.relative_error, 1e-17), marker, ms=4, label=run)
    bars[2].set(ylabel="relative error\nagainst BPTT float64", xlim=(-0.6, len(order) - 0.4))
    bars[2].set_xticks(range(len(order)), order, rotation=60, ha="right")
    bars[2].grid(axis="y", alpha=0.3)
    bars[2].legend(fontsize="small", loc="center right")
    return figure


def draw_sweep(rows: pd.DataFrame) -> Figure:
    """Largest relative error of a leaf against epsilon, with the slope between the two largest epsilons."""
    figure = Figure(figsize=(5.5, 4), layout="constrained")
    axis = figure.subplots()
    for (model, dtype), group in rows[rows.learning_algorithm == "RHEL"].groupby(["model", "dtype"]):
        errors = group.groupby("epsilon").relative_error.max().clip(lower=1e-17)
        slope = np.diff(np.log(errors.iloc[-2:]))[0] / np.diff(np.log(errors.index[-2:]))[0]
        axis.loglog(errors.index, errors, "o-", label=f"{model} {dtype}, slope {slope:.2f}")
    axis.set(xlabel="epsilon", ylabel="largest relative error of a parameter")
    axis.grid(alpha=0.3)
    axis.legend(fontsize="small")
    return figure


def parse(arguments=None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])

    def positive(kind):
        def convert(text):
            value = kind(text)
            if not 0 < value < float("inf"):
                raise argparse.ArgumentTypeError(f"must be positive, got {text}")
            return value

        convert.__name__ = f"positive {kind.__name__}"
        return convert

    add = parser.add_argument
    add("--dataset_name", help=f"a processed data set (default: {DATASET}, or {BUNDLED_DATASET} where that is missing)")
    add("--data_dir", type=Path, default=Path("data_dir"), help="folder of the data (default: data_dir)")
    add("--model_name", nargs="+", choices=MODEL_NAMES, default=list(MODEL_NAMES), help="(default: both)")
    add(
        "--learning_algorithm",
        nargs="+",
        choices=LEARNING_ALGORITHMS,
        default=["RHEL", "BPTT"],
        help="what is compared (default: RHEL BPTT)",
    )
    add("--num_blocks", type=positive(int), default=6, help="(default: 6)")
    add("--hidden_dim", type=positive(int), default=64, help="(default: 64)")
    add("--ssm_dim", type=positive(int), default=64, help="(default: 64)")
    add("--step_init", type=positive(float), default=0.1, help="first time step of NonlinHRU (default: 0.1)")
    add("--sequence_length", type=positive(int), help="use the first steps only (default: all)")
    add("--batch_size", type=positive(int), default=4, help="random training samples (default: 4)")
    add("--seed", type=int, default=2345, help="of split, samples and parameters (default: 2345)")
    add("--epsilon", type=positive(float), nargs="+", help="relative size of the nudges; several for a sweep")
    add("--literal", action="store_true", help="run the echoes as two trajectories, as a machine would")
    add("--output_dir", type=Path, default=Path("outputs/gradient_comparison"), help="folder for what is written")
    compilation_cache.add_flag(parser)
    return parser.parse_args(arguments)


def choose_dataset(options: argparse.Namespace, notice) -> str:
    """The data set asked for, else SCP1, else the bundled one with a notice."""
    if options.dataset_name is not None:
        return options.dataset_name
    if DATASET in processed_datasets(options.data_dir):
        return DATASET
    notice(
        f"{DATASET} is not processed (python data_dir/download_uea.py --datasets {DATASET} && python "
        f"data_dir/process_uea.py); taking {BUNDLED_DATASET}, which is bundled"
    )
    return BUNDLED_DATASET


def main(arguments=None) -> int:
    """Runs the comparison; returns the exit status."""
    options = parse(arguments)

    def notice(line):
        print(line, file=sys.stderr)

    # Both precisions live in one process: what is float32 says so.
    with compilation_cache.enabled(options.compilation_cache), jax.enable_x64(True):
        try:
            options.output_dir.mkdir(parents=True, exist_ok=True)
            name = choose_dataset(options, notice)
            dataset = create_dataset(options.data_dir, name, seed=options.seed, time=True)
            rows, models = [], {}
            for model_name in options.model_name:
                notice(f"{model_name} on {name}")
                problem = make_problem(options, model_name, dataset)
                found, models[model_name] = compare(options, problem, notice)
                rows += [{"model": model_name} | row for row in found]
        except (ValueError, OSError) as error:
            notice(f"error: {error}")
            return 2
    table = pd.DataFrame(rows)
    batch, length, channels = problem.x.shape
    figures = {}
    for model_name, group in table.groupby("model", sort=False):
        found = models[model_name]
        found["largest_relative_error"] = group.groupby("run", sort=False).relative_error.max().to_dict()
        found["smallest_cosine"] = group.groupby("run", sort=False).cosine.min().to_dict()
        found["one_rounding"] = float(group.one_rounding.max())
        title = f"{model_name}, {options.num_blocks} blocks, {name}, {batch} x {length} x {channels}"
        print(f"\n{title}: relative error against BPTT float64, largest over blocks")
        print(by_parameter(group).to_string(float_format="{:.1e}".format))
        print("largest error of an echo without nudges, float32:", f"{max(found['retrace_error_float32']):.1e}")
        figures[model_name] = draw_comparison(group, title)
    if options.epsilon is not None and len(options.epsilon) > 1 and "RHEL" in options.learning_algorithm:
        figures["epsilon"] = draw_sweep(table)
    for stem, figure in figures.items():
        for suffix in ("png", "pdf"):
            figure.savefig(options.output_dir / f"{stem}.{suffix}", dpi=110)
    report = {
        "dataset": name,
        "shape": [batch, length, channels],
        "options": {key: str(value) if isinstance(value, Path) else value for key, value in vars(options).items()},
        "versions": {package: version(package) for package in ("jax", "jaxlib", "equinox", "numpy")},
        "models": models,
        "rows": rows,
    }
    print(f"\nOver all parameters and blocks, {name}, {batch} x {length} x {channels}:")
    print(by_model(table).to_string(float_format="{:.1e}".format, na_rep=""))
    path = options.output_dir / "gradient_comparison.json"
    path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(f"\nwritten: {', '.join(str(options.output_dir / f'{stem}.png') for stem in figures)}, {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
