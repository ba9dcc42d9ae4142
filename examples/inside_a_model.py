"""Inside a trained model: python examples/inside_a_model.py [--run outputs/BasicMotions/LinHRU_RHEL/seed_2345]

Without --run, the script first trains LinHRU (or --model_name) by RHEL on BasicMotions, with the config of `make run`,
below outputs/examples/inside_a_model. It prints how fast the oscillators of every block are, before and after the
training, and draws a figure: the period of each oscillator before and after, and the energy of each block along some
series of the test part.

    period    steps per cycle of a small oscillation; for LinHRU of any oscillation. A series has L steps: oscillators
              with a much longer period hardly move, those with a much shorter one forget less than they could
    energy    of all oscillators of the block. The inputs put energy in and take it out
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from matplotlib.figure import Figure

import run_experiment
import train
from common.style import log_scale, save, set_title, styled
from common.tables import aligned
from data_dir.datasets import create_dataset
from experiment_configs.schema import ExperimentConfig, validate
from models import create_model, load_run
from models.load import read_record, unit_of_run
from models.physics.oscillations import Oscillators
from models.stack import HRU
from models.trained import TrainedModel, oscillators_of

SERIES = 3


def opened(folder: Path, own_units: bool = False) -> tuple[TrainedModel, ExperimentConfig]:
    """The trained model of a run and its config. A unit of your own is Python code: `own_units` allows to import it."""
    record = read_record(folder)
    fields = record["config"] | {"unit": unit_of_run(folder, record)}
    config = validate(fields, source=str(folder / "config.json"), own_units=own_units)
    return load_run(folder, unit=config.unit_class), config


def untrained(run: TrainedModel, config: ExperimentConfig) -> HRU:
    """The network of a run before its first step."""
    sizes = {name: run.record["data"][name] for name in ("data_dim", "label_dim")}
    return create_model(**sizes, **config.model_options(), key=train.seed_keys(run.record["seed"]).model)[0]


def raw_series(run: TrainedModel, config: ExperimentConfig, number: int) -> np.ndarray:
    """The first series of the test part, (number, L, C), in the units of the data files."""
    options = config.data_options() | {"time": False, "standardise": False}
    return create_dataset(seed=run.record["seed"], **options).test.first(number).data


def table(before: list[Oscillators], after: list[Oscillators]) -> str:
    """A line for each block."""
    rows: list[tuple[str, ...]] = [
        ("block", "oscillators", "periods before", "periods after", "largest change", "time constants")
    ]
    for number, (then, now) in enumerate(zip(before, after, strict=True)):
        with np.errstate(divide="ignore", invalid="ignore"):
            change = np.nanmax(np.abs(now.frequency / then.frequency - 1))
        constants = _spread(now.time_constant) if np.any(np.isfinite(now.time_constant)) else "no friction"
        spreads = (_spread(then.period), _spread(now.period), f"{100 * change:.1f} %", constants)
        rows.append((str(number), str(len(now.period)), *spreads))
    return (
        f"{aligned(rows)}\nperiods and time constants in steps: shortest, median, longest; change: of a frequency. "
        "A negative time constant: the unit is unstable"
    )


def _spread(values: np.ndarray) -> str:
    return ", ".join(f"{x:.3g}" for x in (np.min(values), np.median(values), np.max(values)))


@styled
def draw(before: list[Oscillators], after: list[Oscillators], energies: list[np.ndarray], title: str) -> Figure:
    """The figure: periods on the left, energies (series, L) of every block on the right."""
    figure = Figure(figsize=(10, 3.8), layout="constrained")
    set_title(figure, title)
    left, right = figure.subplots(1, 2)
    for number, (then, now, of_block) in enumerate(zip(before, after, energies, strict=True)):
        color = f"C{number % 10}"
        left.plot(then.period, now.period, ".", color=color, label=f"block {number}")
        right.plot(of_block.T, color=color, lw=1)
    left.axline((1, 1), slope=1, color="black", lw=0.5)
    periods = np.concatenate([block.period for block in (*before, *after)])
    periods = periods[np.isfinite(periods)]
    around = (0.9 * np.min(periods), 1.1 * np.max(periods)) if len(periods) else (1, 10)
    left.set(xlabel="period before the training (steps)", ylabel="period after the training (steps)")
    left.set(xlim=around, ylim=around)
    log_scale(left, "x", "y")
    left.legend()
    right.set(xlabel="step", ylabel="energy of the block, times the time step")
    right.set_title(f"{len(energies[0])} series of the test part")
    return figure


def main(arguments=None):
    """Print the table and draw the figure; return the oscillators before and after."""
    parser = argparse.ArgumentParser(description="Frequencies and energies of a trained model.")
    parser.add_argument("--run", type=Path, help="the folder of a run; without it, a model is trained on BasicMotions")
    parser.add_argument("--model_name", default="LinHRU", help="the model to train")
    parser.add_argument("--own_units", action="store_true", help="allow to run the Python file of your own unit")
    picture = Path("outputs/examples/inside_a_model.png")
    parser.add_argument("--output", type=Path, default=picture, help="the PNG to write")
    options = parser.parse_args(arguments)
    if options.run is None:
        parent = Path("outputs", "examples", "inside_a_model")  # the runs of the user stay as they are
        flags = ["--dataset_name", "BasicMotions", "--model_name", options.model_name, "--seeds", "2345"]
        flags += ["--output_parent_dir", str(parent)]
        if status := run_experiment.main(flags):
            sys.exit(status)
        options.run = parent / "BasicMotions" / f"{options.model_name}_RHEL" / "seed_2345"
    try:
        run, config = opened(options.run, options.own_units)
        series = raw_series(run, config, SERIES)
    except ValueError as error:
        sys.exit(f"inside_a_model.py: error: {error}")
    before, after = oscillators_of(untrained(run, config)), run.oscillators()
    print(f"\n{run}\n{table(before, after)}")
    options.output.parent.mkdir(parents=True, exist_ok=True)
    title = f"{config.dataset_name}, {config.model_name} by {config.learning_algorithm}, seed {run.record['seed']}"
    save(draw(before, after, run.energies(series), title), options.output)
    print(f"figure: {options.output}")
    return before, after


if __name__ == "__main__":
    main()
