"""Time and memory of a whole training step: `python benchmarks/step.py --help`.

The script times every shape of the published experiments, for both models, with these programs: the learning
algorithms of this repository; BPTT with a checkpoint at every step; the floor (the same network with its units replaced
by their two matrix products); and for the linear model the straightforward layer (associative scan over one matrix per
step, differentiated by jax). The step is a training step: forward pass with dropout and BatchNorm, loss, gradient and
Adam, on random data.

It prints a table and writes step.json, step.md and, with --growth, growth.png and growth.json into --output_dir.
How to read the results: docs/performance.md.
"""

import argparse
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

if not __package__:  # Run as a script: the imports below need the repository on the path, not this folder.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from benchmarks.opponents import CheckpointedBPTT, Floor, Straightforward
from common import tables
from common.files import write_json
from common.style import ALGORITHMS as ALGORITHM_STYLES
from common.style import BROAD, log_scale, save, styled
from experiment_configs.schema import config_path, load_config
from models import create_model
from models.create import MODELS
from models.rhel import BPTT, RHEL, ReversibleBPTT, with_learning_algorithm
from train import TrainingState, adam, train_step
from training.steps import initial_state

CONFIGS = Path(__file__).resolve().parent.parent / "experiment_configs" / "repeats"

# Steps and channels of a sequence, and values of a label, as stored. The other sizes are in the configs.
SHAPES = {
    "Heartbeat": (405, 61, 2),
    "SelfRegulationSCP1": (896, 6, 2),
    "SelfRegulationSCP2": (1152, 7, 2),
    "EthanolConcentration": (1751, 3, 4),
    "MotorImagery": (3000, 64, 2),
    "EigenWorms": (17984, 6, 5),
    "ppg": (49920, 6, 1),
}
KEEPING = "RHEL, no remat"
ALGORITHMS = {
    "RHEL": RHEL(),
    "BPTT": BPTT(),
    "ReversibleBPTT": ReversibleBPTT(),
    "checkpointed": CheckpointedBPTT(),
    "straightforward": Straightforward(),
    "floor": Floor(),
    KEEPING: RHEL(),  # keeps the feed-forward part instead of computing it again
}
LINEAR_ONLY = ("straightforward",)
MIB = 2**20


def problem(model_name: str, dataset_name: str, **changes: Any) -> dict:
    """The options of a model and the shape of a batch; `changes` replace any of them."""
    config = load_config(config_path(CONFIGS, model_name, dataset_name), model_name)
    length, channels, label_dim = SHAPES[dataset_name]
    options = {
        "length": length,
        "batch_size": config.batch_size,
        "data_dim": channels + config.time,
        "label_dim": label_dim,
        **config.model_options(),
    }
    options |= {"epsilon": None, "batchnorm": "batch"}
    return options | changes


def prepared(options: dict, algorithm: Any) -> tuple[TrainingState, tuple, tuple]:
    """The training state, the batch (x, y, key) of random data, and the other arguments of a training step."""
    options = dict(options)
    length, batch = options.pop("length"), options.pop("batch_size")
    model, state = create_model(**options, key=jax.random.PRNGKey(0))
    optimiser = adam(1e-4)
    training = initial_state(with_learning_algorithm(model, algorithm), state, optimiser)
    x = jax.random.normal(jax.random.PRNGKey(1), (batch, length, options["data_dim"]))
    if options["classification"]:
        y = jax.nn.one_hot(jnp.arange(batch) % options["label_dim"], options["label_dim"])
    else:
        y = jnp.zeros((batch, length // options["output_step"]))
    return training, (x, y, jax.random.PRNGKey(2)), (optimiser, options["classification"])


class Program:
    """A compiled training step with its state."""

    def __init__(self, options: dict, algorithm: Any):
        self.training, self.batch, self.rest = prepared(options, algorithm)
        start = time.perf_counter()
        self.compiled = train_step.lower(self.batch, self.training, *self.rest).compile()
        self.compile_seconds = time.perf_counter() - start
        self.temporaries = self.compiled.compiled.memory_analysis().temp_size_in_bytes
        self.seconds: list[float] = []

    def step(self, *, record: bool = True) -> None:
        """One training step, timed."""
        start = time.perf_counter()
        self.training, loss = self.compiled(self.batch, self.training, *self.rest)
        jax.block_until_ready((self.training, loss))
        if record:
            self.seconds.append(time.perf_counter() - start)
        if not np.isfinite(loss):
            raise ArithmeticError("the loss is not finite: do not time this step")


def measure(programs: dict[str, Program], rounds: int) -> pd.DataFrame:
    """Runs the programs in turn, so that a busy moment slows all of them. Returns one row per program."""
    for program in programs.values():
        program.step(record=False)
    for _ in range(rounds):
        for program in programs.values():
            program.step()
    rows = {
        name: {
            "compile s": program.compile_seconds,
            "step s": np.median(program.seconds),
            "temporaries MiB": program.temporaries / MIB,
        }
        for name, program in programs.items()
    }
    table = pd.DataFrame(rows).T
    for opponent in ("BPTT", "floor", "straightforward"):
        if opponent in programs:
            # The median of the ratios of each round, not the ratio of the medians: a busy moment slows both programs.
            seconds = programs[opponent].seconds
            ratios = [np.divide(program.seconds, seconds) for program in programs.values()]
            table[f"time / {opponent}"] = np.median(ratios, axis=1)
            if opponent == "BPTT":
                table["lowest"], table["highest"] = np.min(ratios, axis=1), np.max(ratios, axis=1)
            if opponent != "straightforward":
                table[f"temporaries / {opponent}"] = table["temporaries MiB"] / table["temporaries MiB"][opponent]
    return table


def free(programs: dict[str, Program]) -> None:
    """Forget compiled programs: each takes memory maps, of which a process has a limited number."""
    programs.clear()
    jax.clear_caches()


def growth(model_names: list[str], rounds: int, lengths: list[int], oscillators: list[int]) -> Iterator[dict]:
    """Rows of time and temporaries against the length of a sequence and against ssm_dim."""
    base = {"batch_size": 4, "num_blocks": 2, "hidden_dim": 64}
    sweeps = {"length": (lengths, {"ssm_dim": 64}), "ssm_dim": (oscillators, {"length": 896})}
    for model_name in model_names:
        for axis, (values, fixed) in sweeps.items():
            for value in values:
                options = problem(model_name, "SelfRegulationSCP1", **base, **fixed, **{axis: value})
                programs = {name: Program(options, ALGORITHMS[name]) for name in ("RHEL", "ReversibleBPTT", "BPTT")}
                table = measure(programs, rounds)
                free(programs)
                for name, row in table.iterrows():
                    yield {"model": model_name, "axis": axis, "value": value, "algorithm": name, **row.to_dict()}


@styled
def draw_growth(rows: list[dict]) -> Figure:
    """Time and temporaries against length and ssm_dim, both axes logarithmic: two columns of axes for each model."""
    table = pd.DataFrame(rows)
    models = list(table["model"].unique())
    figure = Figure(figsize=(1 + 4.6 * len(models), 5.2), layout="constrained")
    panels = figure.subplots(2, 2 * len(models), squeeze=False, sharex="col", sharey="row")
    sweeps = [
        (model, *axis) for model in models for axis in (("length", "steps of a sequence"), ("ssm_dim", "ssm_dim"))
    ]
    for column, (model, axis, label) in zip(panels.T, sweeps, strict=True):
        of_column = table[(table["model"] == model) & (table["axis"] == axis)]
        for axes, quantity in zip(column, ("step s", "temporaries MiB"), strict=True):
            # RHEL takes the memory of ReversibleBPTT: the broad line lies below, the thin one above.
            for name in ("ReversibleBPTT", "BPTT", "RHEL"):
                curve = of_column[of_column["algorithm"] == name]
                line = ALGORITHM_STYLES[name] | ({**BROAD, "marker": ""} if name == "ReversibleBPTT" else {})
                axes.plot(curve["value"], curve[quantity], **line, label=name)
            axes.grid(color="0.9")
        values = sorted(of_column["value"].unique())
        log_scale(column[1], "x", "y")
        log_scale(column[0], "y")
        column[1].set_xticks(values, [f"{value:,}" for value in values], rotation=45)
        column[1].xaxis.set_minor_locator(NullLocator())
        column[0].set_title(model)
        column[1].set_xlabel(label)
    panels[0, 0].set_ylabel("time of a step, s")
    panels[1, 0].set_ylabel("temporaries, MiB")
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


def markdown(table: pd.DataFrame) -> str:
    """The table in Markdown, with its significant digits."""

    def shown(column, value):
        if pd.isna(value):
            return ""
        if "MiB" in column:
            return f"{value:,.0f}"
        return f"{value:.3g}" if column.endswith(" s") else f"{value:.2f}"

    rows = ([*index, *(shown(x, row[x]) for x in table.columns)] for index, row in table.iterrows())
    return tables.markdown([[*table.index.names, *table.columns], *rows])


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    add = result.add_argument
    add("--dataset_name", nargs="+", choices=SHAPES, default=list(SHAPES), metavar="NAME", help=", ".join(SHAPES))
    add("--model_name", nargs="+", choices=MODELS, default=list(MODELS))
    algorithms = {"choices": ALGORITHMS, "default": list(ALGORITHMS), "help": ", ".join(ALGORITHMS)}
    add("--algorithm", nargs="+", metavar="NAME", **algorithms)
    add("--rounds", type=int, default=7, help="steps of each program, in turn")
    quick = "under two minutes: Heartbeat, and SCP1 with a batch of 4 and 2 blocks; three algorithms"
    add("--quick", action="store_true", help=quick)
    add("--growth", action="store_true", help="also time and memory against length and ssm_dim, drawn")
    add("--output_dir", type=Path, default=Path("outputs/benchmarks"), metavar="DIR")
    return result


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    options = parser().parse_args(argv)
    options.output_dir.mkdir(parents=True, exist_ok=True)
    changes = {}
    if options.quick:
        options.dataset_name, options.rounds = ["Heartbeat", "SelfRegulationSCP1"], 3
        options.algorithm = ["RHEL", "BPTT", "floor"]
        changes = {"SelfRegulationSCP1": {"batch_size": 4, "num_blocks": 2}}
    device = jax.devices()[0]
    print(f"{device.platform} ({device.device_kind}), jax {jax.__version__}; whole steps, {options.rounds} rounds")
    measured = {}
    for dataset_name in options.dataset_name:
        for model_name in options.model_name:
            settings = problem(model_name, dataset_name, **changes.get(dataset_name, {}))
            programs = {
                name: Program(settings | {"remat": name != KEEPING}, ALGORITHMS[name])
                for name in options.algorithm
                if name not in LINEAR_ONLY or model_name == "LinHRU"
            }
            measured[dataset_name, model_name] = table = measure(programs, options.rounds)
            print(f"\n{dataset_name}, {model_name}\n{table.to_string(float_format='{:.3g}'.format)}", flush=True)
            _write(options.output_dir, measured, device)
            free(programs)
    if options.growth:
        rows = list(growth(options.model_name, options.rounds, [256, 1024, 4096, 16384, 65536], [16, 64, 256, 1024]))
        write_json(options.output_dir / "growth.json", rows)
        save(draw_growth(rows), options.output_dir / "growth.png")
        print(pd.DataFrame(rows).to_string(float_format="{:.3g}".format))
    print(f"\nwritten: {', '.join(str(path) for path in sorted(options.output_dir.iterdir()))}")
    return 0


def _write(folder: Path, measured: dict, device: Any) -> None:
    table = pd.concat(measured, names=["data set", "model", "algorithm"])
    rows = table.reset_index().to_dict(orient="records")
    report = {"device": f"{device.platform} ({device.device_kind})", "jax": jax.__version__, "rows": rows}
    write_json(folder / "step.json", report)
    (folder / "step.md").write_text(markdown(table) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
