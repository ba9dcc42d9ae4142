"""Compares the gradients of RHEL and of BPTT, for every parameter, block and precision.

    python gradient_comparison_bptt_rhel.py [--dataset_name SelfRegulationSCP1] [--model_name LinHRU NonlinHRU] ..

It takes a batch of a data set and untrained models, or your own unit (--unit FILE.py:CLASS). It computes the gradient
of each learning algorithm in float32 and in float64, and compares it with the gradient of BPTT in float64. Finite
differences check this reference. The files:

    gradient_comparison.json    every number
    <model>.png, <model>.pdf    1 - cosine and relative error by parameter and block (compare the paper's Fig. 4)
    epsilon.png, epsilon.pdf    error against the size of the nudges, if several --epsilon are given

In float64, the units use the float32 values of their constrained parameters, such as the time steps. (The rounding of a
frequency grows with the length of the sequence.) So the errors are errors of the gradient, not of a parameter.

"one rounding" is the change of the float64 gradient if the inputs and the constrained parameters change by one rounding
of float32, 2^-24 of their value. A gradient in float32 cannot be expected to be more exact.
"""

import argparse
import json
import sys
from importlib.metadata import version
from pathlib import Path

import jax
import pandas as pd

from common.style import save
from data_dir.datasets import create_dataset
from data_dir.finding import processed_datasets
from experiment_configs import MODEL_NAMES
from models.create import MODELS
from models.layer import AbstractHRULayer, unit_options
from models.load import error_in_unit, load_unit
from models.rhel import LEARNING_ALGORITHMS
from runs import compilation_cache, settings
from runs.gradient_comparison import compare, doubts, make_problem
from runs.gradient_tables import by_model, by_parameter, draw_comparison, draw_sweep

DATASET, BUNDLED_DATASET = "SelfRegulationSCP1", "BasicMotions"


def positive(kind):
    """A type of arguments: a positive number of this kind."""

    def convert(text):
        value = kind(text)
        if not 0 < value < float("inf"):
            raise argparse.ArgumentTypeError(f"must be positive, got {text}")
        return value

    convert.__name__ = f"positive {kind.__name__}"
    return convert


def parse(arguments=None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").split("\n\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("--dataset_name", help=f"a processed data set (without it: {DATASET}, or {BUNDLED_DATASET} if it is missing)")
    add("--data_dir", type=Path, default=Path("data_dir"), help="folder of the data")
    add("--model_name", nargs="+", choices=MODEL_NAMES, help="models to compare (without it: all, or none with --unit)")
    add("--unit", metavar="FILE.py:CLASS", help="your own unit, in place of a model or beside it; this runs its file")
    add("--learning_algorithm", nargs="+", choices=LEARNING_ALGORITHMS, default=["RHEL", "BPTT"], help="and algorithms")
    add("--num_blocks", type=positive(int), default=6, help="number of blocks")
    add("--hidden_dim", type=positive(int), default=64, help="number of features")
    add("--ssm_dim", type=positive(int), default=64, help="number of oscillators of a unit")
    add("--step_init", type=positive(float), help="first time step, as --set step_init=.. (without it: of the unit)")
    add("--set", nargs="+", metavar="OPTION=VALUE", default=[], help="options of the units, as dt=0.2")
    add("--sequence_length", type=positive(int), help="use the first steps only (without it: all)")
    add("--batch_size", type=positive(int), default=4, help="random training samples")
    add("--seed", type=int, default=2345, help="seed of split, samples and parameters")
    add("--epsilon", type=positive(float), nargs="+", help="relative size of the nudges; several for a sweep")
    add("--literal", action="store_true", help="run the echoes as two trajectories, as a machine would")
    add("--output_dir", type=Path, default=Path("outputs/gradient_comparison"), help="folder to write to")
    compilation_cache.add_flag(parser)
    return parser.parse_args(arguments)


def choose_dataset(options: argparse.Namespace) -> str:
    """The data set of --dataset_name, else SCP1, else the bundled one with a notice."""
    if options.dataset_name is not None:
        return options.dataset_name
    if DATASET in processed_datasets(options.data_dir):
        return DATASET
    notice(
        f"{DATASET} is not processed (python data_dir/download_uea.py --datasets {DATASET} && python "
        f"data_dir/process_uea.py); using {BUNDLED_DATASET}, which needs no download"
    )
    return BUNDLED_DATASET


def main(arguments=None) -> int:
    """Run the comparison and return the exit status."""
    options, own = parse(arguments), None
    # float32 and float64 occur in one process. Everything that is float32 says so.
    with compilation_cache.enabled(options.compilation_cache), jax.enable_x64(True):
        try:
            options.output_dir.mkdir(parents=True, exist_ok=True)
            name = choose_dataset(options)
            dataset = create_dataset(options.data_dir, name, seed=options.seed, time=True)
            rows, models = [], {}
            units = {name: MODELS[name] for name in options.model_name or (MODEL_NAMES if options.unit is None else ())}
            if options.unit is not None:
                own = load_unit(options.unit)
                units[own.__name__] = own
            for (model_name, unit), given in zip(units.items(), options_of(units, options), strict=True):
                notice(f"{model_name} on {name}")
                problem = make_problem(options, unit, given, dataset)
                rows_of_model, models[model_name] = compare(options, problem, notice)
                rows += [{"model": model_name} | row for row in rows_of_model]
        except Exception as error:
            words = error_in_unit(error, own)
            if words is None and not isinstance(error, ValueError | OSError):
                raise
            notice(f"error: {words or error}")
            return 2
    table, shape = pd.DataFrame(rows), list(problem.x.shape)
    title = f"{name}, {' x '.join(map(counted, shape, ('series', 'step', 'channel')))}"
    figures = {}
    for model_name, group in table.groupby("model", sort=False):
        results, by_run = models[model_name], group.groupby("run", sort=False)
        results["largest_relative_error"] = by_run.relative_error.max().to_dict()
        results["smallest_cosine"] = by_run.cosine.min().to_dict()
        results["one_rounding"] = float(group.one_rounding.max())
        title_of_model = f"{model_name}, {options.num_blocks} blocks, {title}"
        print(f"\n{title_of_model}: relative error against BPTT float64, largest over blocks")
        print(by_parameter(group).to_string(float_format="{:.1e}".format))
        for sentence in doubts(group, results["retrace_error_float32"]):
            print(sentence)
        print("largest error of an echo without nudges, float32:", f"{max(results['retrace_error_float32']):.1e}")
        figures[model_name] = draw_comparison(group, title_of_model)
    if options.epsilon is not None and len(options.epsilon) > 1 and "RHEL" in options.learning_algorithm:
        figures["epsilon"] = draw_sweep(table)
    for stem, figure in figures.items():
        for suffix in ("png", "pdf"):
            save(figure, options.output_dir / f"{stem}.{suffix}")
    print(f"\nOver all parameters and blocks, {title}:")
    print(by_model(table).to_string(float_format="{:.1e}".format, na_rep=""))
    report = {
        "dataset": name,
        "shape": shape,
        "options": vars(options),
        "versions": {package: version(package) for package in ("jax", "jaxlib", "equinox", "numpy")},
        "models": models,
        "rows": rows,
    }
    path = options.output_dir / "gradient_comparison.json"
    path.write_text(json.dumps(report, indent=1, default=str) + "\n", encoding="utf-8")
    written = [str(options.output_dir / f"{stem}.{suffix}") for stem in figures for suffix in ("png", "pdf")]
    print(f"\nwritten: {', '.join([*written, str(path)])}")
    return 0


def options_of(
    units: dict[str, type[AbstractHRULayer]], options: argparse.Namespace
) -> list[dict[str, bool | float | None]]:
    """For each unit those of --set and --step_init that it has. Raises `ValueError` for an option that no unit has."""
    given = {name: values[0] for name, values in settings.parse(options.set).items() if len(values) == 1}
    if len(given) < len(options.set):
        raise ValueError(f"--set {' '.join(options.set)}: one value for each option, not a list")
    if options.step_init is not None:
        given["step_init"] = options.step_init
    declared = [unit_options(unit) for unit in units.values()]
    known = list(dict.fromkeys(name for names in declared for name in names))
    for name in given.keys() - set(known):
        way_out = f"the options are {', '.join(known) or 'none'}; sizes have flags, as --ssm_dim"
        raise ValueError(f"{name} is no option of {' or '.join(units)}: {way_out}")
    return [{name: value for name, value in given.items() if name in names} for names in declared]


def counted(number: int, thing: str) -> str:
    """1 step, 2 steps, 2 series."""
    return f"{number:,} {thing}" + ("s" if number != 1 and not thing.endswith("s") else "")


def notice(line: str) -> None:
    """Print a line to stderr."""
    print(line, file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
