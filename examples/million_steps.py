"""A sequence of a million steps, read at its end: python examples/million_steps.py --length 131072

The first 1 % of a sequence decides its label, noise follows, and the network reads its last step. The command trains
two blocks of 16 features and 16 oscillators on it by RHEL, one sequence a step, as a run of `run_experiment.py`: a
stopped command resumes. It prints the test accuracy with its Wilson interval, the peak memory of the process, and XLA's
count of the temporaries of a step by each learning algorithm. Without --length, a sequence has 1,048,576 steps.

The first periods of the oscillators decide whether the network learns. Here they lie in equal ratios between 1/128 and
four times the length of the sequence. From 16 steps on (--shortest_period 16) it learns later.
--published_periods draws them as the paper does. docs/long-range.md says which first periods fail, and why.

--growth also counts the temporaries against length and ssm_dim, without running a step, and draws million_steps.png:
the counts, and the curves of all runs in the output folder.
"""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

import run_experiment
from common.files import write_json
from common.style import ALGORITHMS, BROAD, COLOURS, MARKERS, log_scale, save, set_title, styled
from common.tables import aligned
from experiment_configs import LEARNING_ALGORITHMS, MODEL_NAMES
from experiment_configs.schema import ExperimentConfig, validate
from runs.folder import CONFIG, METRICS, RESULT, run_folder
from runs.paired import wilson
from runs.planning import Planning

MIB = 2**20
BLOCKS, HIDDEN_DIM, SSM_DIM = 2, 16, 16
LENGTHS = [2**power for power in range(10, 21, 2)]
OSCILLATORS = [16, 64, 256, 1024]
SHORTEST, LONGEST = 1 / 128, 4  # first periods, in lengths of the sequence
# NonlinHRU: the first time step times the length. The oscillators then pass about so many radians in a sequence, and a
# third of a radian in the steps that decide.
RADIANS = 30.0


def fields_of(options: argparse.Namespace) -> dict:
    """The fields of the config."""
    length, shortest = options.length, options.shortest_period or max(8.0, SHORTEST * options.length)
    kind = "runs" if options.shortest_period is None else f"shortest_period={shortest:g}"
    unit = {"shortest_period": shortest, "longest_period": float(LONGEST * length)}
    if options.published_periods:
        kind, unit = "published_periods", {}
    elif options.model_name == "NonlinHRU":
        unit = {"step_init": min(0.5, RADIANS / length)}
    return {
        "model_name": options.model_name,
        "dataset_name": f"First{length}",
        "task": {
            **{"name": "first", "length": length, "range": max(1, length // 100)},
            **{"train": 4096, "validation": options.validation, "test": options.test},
        },
        "learning_algorithm": options.learning_algorithm,
        "seeds": [options.seed],
        "data_dir": "data_dir",
        "output_parent_dir": str(options.output_dir / kind),
        "lr": 0.003,
        "lr_scheduler": f"cosine_decay_schedule(lr, {options.num_steps})",
        "num_steps": options.num_steps,
        "print_steps": options.print_steps,
        "batch_size": options.batch_size,
        "evaluate_train": options.batch_size,
        "patience": options.num_steps,
        "grad_clip": 1.0,
        "metric": "accuracy",
        **{"classification": True, "time": False, "pooling": "last"},
        **{"num_blocks": BLOCKS, "hidden_dim": HIDDEN_DIM, "ssm_dim": SSM_DIM, "dropout_rate": 0.0},
        # The moments of a batch of one sequence would carry its mean, and so its label, to the last step.
        "batchnorm": "ema",
        **unit,
    }


def trained(config: ExperimentConfig, folder: Path, fields: dict) -> Path:
    """Train, or resume, or find the finished run; the folder of the run. Ends the program if the run fails."""
    path = folder / "configs" / config.model_name / f"{config.dataset_name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, fields)
    command = ["--config_dir", str(folder / "configs"), "--dataset_name", config.dataset_name]
    command += ["--model_name", config.model_name, "--learning_algorithm", config.learning_algorithm]
    if status := run_experiment.main(command):
        sys.exit(status)
    return run_folder(config, config.seeds[0])


def temporaries(config: ExperimentConfig, changes: dict) -> dict[str, int]:
    """XLA's count of the temporaries of a training step in bytes, by each learning algorithm. No step runs."""
    steps = {name: config.replace({**changes, "learning_algorithm": name}) for name in LEARNING_ALGORITHMS}
    return {name: Planning(step, 1).needs().temporaries for name, step in steps.items()}


def growth(config: ExperimentConfig, lengths: list[int], oscillators: list[int]) -> list[dict]:
    """The temporaries against the length, and against the number of oscillators at the length of the config."""
    rows = []
    for length in lengths:
        task = {"task": {**(config.task or {}), "length": length, "range": max(1, length // 100)}}
        rows.append({"axis": "length", "value": length, **temporaries(config, task)})
        print(rows[-1], flush=True)
    for number in oscillators:
        rows.append({"axis": "ssm_dim", "value": number, **temporaries(config, {"ssm_dim": number})})
        print(rows[-1], flush=True)
    return rows


def histories(config: ExperimentConfig, folder: Path) -> dict[str, list[dict]]:
    """The evaluations of all runs below a folder with the model and learning algorithm of the config."""
    found = {}
    for path in sorted(folder.glob(f"*/*/{config.model_name}_{config.learning_algorithm}/*/{METRICS}")):
        fields = json.loads((path.parent / CONFIG).read_text(encoding="utf-8"))["config"]
        shortest = fields["shortest_period"]
        label = f"{fields['task']['length']:,} steps"
        if config.model_name == "LinHRU":
            label += f", periods from {shortest:,.0f}" if shortest else ", published periods"
        found[label] = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return found


@styled
def draw(rows: list[dict], curves: dict[str, list[dict]], title: str) -> Figure:
    """Temporaries against length and ssm_dim, and the accuracy on the validation part against the step."""
    figure = Figure(figsize=(11, 3.8), layout="constrained")
    set_title(figure, title)
    panels = figure.subplots(1, 3, width_ratios=(1, 1, 1.2))
    for axes, axis, label in zip(panels, ("length", "ssm_dim"), ("steps of a sequence", "ssm_dim"), strict=False):
        of_axis = [row for row in rows if row["axis"] == axis]
        _draw_temporaries(axes, of_axis)
        axes.set(xlabel=label, ylabel="temporaries of a step, MiB")
        log_scale(axes, "x", "y")
        values = [row["value"] for row in of_axis]
        axes.set_xticks(values, [f"{value:,}" for value in values], rotation=45)
        axes.xaxis.set_minor_locator(NullLocator())
    panels[0].legend()
    for (name, history), color, marker in zip(curves.items(), COLOURS, MARKERS, strict=False):
        steps = [evaluation["step"] for evaluation in history]
        panels[2].plot(steps, [100 * x["val_metric"] for x in history], color=color, marker=marker, label=name)
    panels[2].axhline(50, color="black", lw=0.5)
    panels[2].set(xlabel="step", ylabel="accuracy on the validation part, %", ylim=(0, 104))
    panels[2].legend(loc="lower right")
    return figure


def _draw_temporaries(axes: Axes, rows: list[dict]) -> None:
    # RHEL takes about the memory of ReversibleBPTT: the broad line lies below, the thin one above.
    for name in ("ReversibleBPTT", "BPTT", "RHEL"):
        line = ALGORITHMS[name] | ({**BROAD, "marker": ""} if name == "ReversibleBPTT" else {})
        axes.plot([row["value"] for row in rows], [row[name] / MIB for row in rows], **line, label=name)
    axes.grid(color="0.9")


def report(config: ExperimentConfig, result: dict, counts: dict[str, int]) -> str:
    """What the run reached, and the memory beside the memory of the other learning algorithms."""
    total = (config.task or {})["test"]
    low, high = wilson(round(result["test_metric"] * total), total)
    rows: list[tuple[str, ...]] = [("temporaries of a step", "MiB", "/ RHEL")]
    rows += [(name, f"{count / MIB:,.0f}", f"{count / counts['RHEL']:.2f}") for name, count in counts.items()]
    return (
        f"{aligned(rows)}\npeak memory of the process: {result['peak_memory_bytes']['host'] / MIB:,.0f} MiB\n"
        f"{result['steps']} steps, {result['seconds_per_1000_steps'] / 1000:.2f} s each, {result['seconds']:,.0f} s "
        f"with evaluations\ntest accuracy: {100 * result['test_metric']:.1f} % of {total} sequences "
        f"(95 % interval {100 * low:.1f} to {100 * high:.1f})"
    )


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    add = result.add_argument
    add("--length", type=int, default=2**20, help="steps of a sequence, 100 at least")
    add("--model_name", choices=MODEL_NAMES, default="LinHRU")
    add("--learning_algorithm", choices=LEARNING_ALGORITHMS, default="RHEL")
    add("--seed", type=int, default=2345)
    add("--num_steps", type=int, default=60, help="steps of the training")
    add("--print_steps", type=int, default=20, help="steps between evaluations, each of which is a checkpoint")
    add("--batch_size", type=int, default=1)
    add("--validation", type=int, default=64, help="sequences of an evaluation")
    add("--test", type=int, default=200, help="sequences of the test")
    add("--shortest_period", type=float, help="of LinHRU at first, in steps (without it: 1/128 of the length)")
    add("--published_periods", action="store_true", help="the first periods, or first time step, of the paper")
    add("--growth", action="store_true", help="count the temporaries against length and ssm_dim, and draw the figure")
    add("--output_dir", type=Path, default=Path("outputs/examples/million_steps"))
    return result


def main(arguments=None) -> dict:
    """Train, print the report, draw the figure if asked; return the result of the run."""
    options = parser().parse_args(arguments)
    if options.length < 100:
        parser().error(f"--length is {options.length}: the first 1 % of a sequence decides, so it needs 100 at least")
    fields = fields_of(options)
    config = validate(fields, source="million_steps.py")
    folder = trained(config, options.output_dir, fields)
    result = json.loads((folder / RESULT).read_text(encoding="utf-8"))
    print(report(config, result, temporaries(config, {})), flush=True)
    if options.growth:
        rows = growth(config, [x for x in LENGTHS if x <= options.length], OSCILLATORS)
        write_json(options.output_dir / "growth.json", rows)
        batch = "one sequence" if options.batch_size == 1 else f"{options.batch_size} sequences"
        title = f"{config.model_name}, {BLOCKS} blocks of {HIDDEN_DIM} features, {batch} a step"
        save(draw(rows, histories(config, options.output_dir), title), options.output_dir / "million_steps.png")
        print(f"figure: {options.output_dir / 'million_steps.png'}")
    return result


if __name__ == "__main__":
    main()
