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
import sys
from importlib.metadata import version
from pathlib import Path

import jax
import pandas as pd

from data_dir.datasets import create_dataset, processed_datasets
from experiment_configs import MODEL_NAMES
from models.rhel import LEARNING_ALGORITHMS
from runs import compilation_cache
from runs.gradient_comparison import compare, make_problem
from runs.gradient_tables import by_model, by_parameter, draw_comparison, draw_sweep

DATASET, BUNDLED_DATASET = "SelfRegulationSCP1", "BasicMotions"


def parse(arguments=None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])

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
