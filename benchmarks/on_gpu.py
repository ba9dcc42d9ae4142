"""What a GPU that is lent for minutes can show: `benchmarks/on_gpu.sh`, or `python benchmarks/on_gpu.py --help`.

1. gradients: RHEL and BPTT in float32 on the device against BPTT in float64 on the CPU, every array of the gradient.
2. steps: the time of whole training steps beside the counts of benchmarks/accelerator.py.
3. scans: which `scan` is fastest.
4. training: SelfRegulationSCP1 and 2 at the published size, as far as the time goes.

Every result is in --output_dir as soon as it is measured. The same command continues where the last one ended. The exit
status is 1 if a gradient is over its limit. Nothing needs a network.
"""

import argparse
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

if not __package__:  # Run as a script: the imports below need the repository on the path, not this folder.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import equinox as eqx
import jax
import jax.numpy as jnp

from benchmarks import accelerator
from benchmarks.accelerator import ROOT, TINY, version
from benchmarks.step import SHAPES, Program, measure, prepared, problem
from common import tables
from common.files import write_json
from data_dir.finding import processed_datasets
from models.check import agreement_by_leaf
from models.create import MODELS
from models.rhel import BPTT, RHEL, with_learning_algorithm
from models.rhel.free_pass import SCANS
from runs.gradient_comparison import Problem, gradient, widen

LIMIT = 5e-3
"""Largest relative error of an array of a float32 gradient whose products are float32, too.

The step size of an oscillator, a single number, reaches 3e-3 over 896 steps (docs/precision.md).
"""
TIMES_BPTT = 3
"""With products of the default precision (TF32 on recent GPUs), RHEL may miss so many times what BPTT misses."""
PRECISIONS = {"default": "default", "float32": "highest"}
COUNTED = ROOT / "docs" / "performance" / "accelerator.json"
ATTEMPTS = 2
GOOD_STATUS = (0, 75)  # of run_experiment.py: finished, or stopped by a signal and ready to continue


class Clock:
    """The time that is left until a deadline, in seconds."""

    def __init__(self, seconds: float):
        self.deadline = time.monotonic() + seconds

    def left(self) -> float:
        """Seconds to the deadline."""
        return self.deadline - time.monotonic()


class Results:
    """Rows by part in on_gpu.json. Rows of other code, or of another device, are left out."""

    def __init__(self, folder: Path, sound: str):
        self.path, self.sound = folder / "on_gpu.json", sound
        saved = json.loads(self.path.read_text(encoding="utf-8")) if self.path.exists() else {}
        self.parts: dict[str, dict] = saved["parts"] if saved.get("version") == sound else {}

    def fill(self, part: str, items: Iterator[tuple[str, Callable[[], dict]]], clock: Clock, need: float) -> bool:
        """Compute the missing items of a part, as long as `need` seconds are left. Returns whether all are there.

        An item that ended two commands is left out.
        """
        rows = self.parts.setdefault(part, {})
        for name, compute in items:
            attempts = rows.get(name, {"attempts": 0}).get("attempts", ATTEMPTS)
            if attempts >= ATTEMPTS:
                continue
            if clock.left() < need:
                print(f"{part}: the time is up before {name}. The same command continues", flush=True)
                return False
            rows[name] = {"shown": "did not end in time", "attempts": attempts + 1}
            self._write()
            rows[name] = compute()
            self._write()
            print(f"{part}: {name}: {rows[name]['shown']}", flush=True)
        return True

    def _write(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_json(self.path, {"version": self.sound, "parts": self.parts})


def gradients(options: argparse.Namespace) -> Iterator[tuple[str, Callable[[], dict]]]:
    """The errors of every array, by model, algorithm and precision of the products."""
    for model_name in options.model_name:
        made: dict = {}
        # On a CPU both are the same.
        for precision in PRECISIONS if jax.devices()[0].platform != "cpu" else ("float32",):
            for algorithm in (BPTT(), RHEL()):
                name = f"{model_name} {type(algorithm).__name__} {precision}"
                yield name, lambda m=model_name, a=algorithm, p=precision, made=made: _errors(options, m, a, p, made)


def _errors(options, model_name, algorithm, precision, made) -> dict:
    if not made:
        sizes = TINY if options.tiny else {"batch_size": 4, "num_blocks": 2}
        settings = problem(model_name, "SelfRegulationSCP1", dropout_rate=0.0, **sizes)
        training, (x, y, _), _ = prepared(settings, BPTT())
        made["narrow"] = Problem(training.model, training.state, x, y, settings["classification"])
        cpu = jax.devices("cpu")[0]
        with jax.enable_x64(True), jax.default_device(cpu):
            arrays, rest = eqx.partition(made["narrow"], eqx.is_array)
            wide = widen(eqx.combine(jax.device_put(arrays, cpu), rest))
            made["reference"] = gradient(wide.model, wide)
    narrow = made["narrow"]
    with jax.default_matmul_precision(PRECISIONS[precision]):
        computed = gradient(with_learning_algorithm(narrow.model, algorithm), narrow)
    errors = {path: x.relative_error for path, x in agreement_by_leaf(computed, made["reference"]).items()}
    worst = max(errors, key=lambda path: errors[path] if errors[path] == errors[path] else jnp.inf)
    return {"shown": f"largest relative error {errors[worst]:.1e}, {worst}", "errors": errors}


def over_limit(rows: dict[str, dict]) -> list[str]:
    """The arrays whose error is over its limit: row, array, error and limit."""
    lines = []
    for name, row in rows.items():
        model, algorithm, precision = name.split()
        if "errors" not in row:
            lines.append(f"{name}: {row['shown']}")
            continue
        of_bptt = rows.get(f"{model} BPTT {precision}", {}).get("errors", {})
        for path, error in row["errors"].items():
            limit = LIMIT
            if precision == "default":
                limit = max(LIMIT, TIMES_BPTT * of_bptt.get(path, 0.0)) if algorithm != "BPTT" else float("inf")
            if not error <= limit:
                lines.append(f"{name}: {path} has the relative error {error:.2g}, at most {limit:.2g}")
    return lines


def scans(options: argparse.Namespace) -> Iterator[tuple[str, Callable[[], dict]]]:
    """The time of a training step of 2 blocks by each scan."""
    for dataset_name in ["Heartbeat"] if options.tiny else ["Heartbeat", "SelfRegulationSCP1", "EigenWorms"]:
        for model_name in options.model_name:
            settings = problem(model_name, dataset_name, **(TINY if options.tiny else {"num_blocks": 2}))
            for scan in (x for x in SCANS if x != "auto"):
                yield f"{dataset_name} {model_name} {scan}", lambda s=settings, x=scan: _time_of_scan(s, x)


def _time_of_scan(settings: dict, scan) -> dict:
    try:
        table = measure({"step": Program(settings, RHEL(scan=scan))}, 3)
    except ValueError as error:  # the parallel scan of a nonlinear system
        return {"shown": "does not apply", "failure": str(error)}
    except jax.errors.JaxRuntimeError as error:
        return {"shown": "failed", "failure": str(error).splitlines()[0]}
    milliseconds, memory = 1e3 * float(table["step s"]["step"]), float(table["temporaries MiB"]["step"])
    return {"shown": f"{milliseconds:.3g} ms, {memory:.0f} MiB", "ms": milliseconds, "temporaries MiB": memory}


def scan_table(rows: dict[str, dict]) -> str:
    """Milliseconds of a step by scan; the fastest of a line is bold."""
    names = [x for x in SCANS if x != "auto"]
    lines = [["data set", "model", *names]]
    for key in dict.fromkeys(name.rpartition(" ")[0] for name in rows):
        found = {scan: rows.get(f"{key} {scan}", {}).get("ms") for scan in names}
        best = min((ms for ms in found.values() if ms is not None), default=None)
        cells = ("" if ms is None else f"**{ms:.3g}**" if ms == best else f"{ms:.3g}" for ms in found.values())
        lines.append([*key.split(), *cells])
    return tables.markdown(lines)


def steps(options: argparse.Namespace) -> Iterator[tuple[str, Callable[[], dict]]]:
    """Measured rows beside the counted ones, in accelerator.json and accelerator.md of the output folder."""
    names = ["Heartbeat"] if options.tiny else list(SHAPES)
    counts = ["--counted", str(options.counted)] if options.counted.exists() else []
    more = ["--tiny"] if options.tiny else []

    def run(name, model, algorithm):
        flags = ["--dataset_name", name, "--model_name", model, "--algorithm", algorithm, "--target", options.target]
        folder = ["--output_dir", str(options.output_dir), "--measure"]
        accelerator.main([*flags, *counts, *more, *folder])
        return {"shown": "see accelerator.md"}

    for algorithm in ["RHEL"] if options.tiny else ["RHEL", "BPTT"]:
        for name in names:
            for model in options.model_name:
                yield f"{name} {model} {algorithm}", lambda x=(name, model, algorithm): run(*x)


def training_command(options: argparse.Namespace) -> list[str]:
    """The published runs of SelfRegulationSCP1 and 2, as far as they are processed (the configs say the five seeds)."""
    names = [x for x in processed_datasets(options.data_dir) if x.startswith("SelfRegulationSCP")]
    if not names:
        return []
    script = [sys.executable, str(ROOT / "run_experiment.py"), "--learning_algorithm", "RHEL", "BPTT"]
    of_data = ["--dataset_name", *names, "--data_dir", str(options.data_dir.absolute())]
    return [*script, *of_data, "--model_name", *options.model_name, "--output_parent_dir", str(options.output_dir)]


def train_until(command: list[str], clock: Clock, margin: float) -> int:
    """Run a command; `margin` seconds before the deadline, ask it to save and end. Returns its exit status."""
    with subprocess.Popen(command, cwd=ROOT) as process:
        try:
            return process.wait(max(0.0, clock.left() - margin))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGTERM)
        try:
            return process.wait(margin)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    add = result.add_argument
    add("--minutes", type=float, default=9.0, help="time of the whole command")
    add("--part", nargs="+", choices=PARTS, default=list(PARTS), help=f"some of {', '.join(PARTS)}")
    add("--model_name", nargs="+", choices=MODELS, default=list(MODELS))
    add("--target", choices=accelerator.GPUS, default="H100", help="the GPU whose counts stand beside the times")
    add("--counted", type=Path, default=COUNTED, metavar="FILE", help="the counts; without the file they are compiled")
    add("--data_dir", type=Path, default=ROOT / "data_dir", metavar="DIR", help="folder of the processed data")
    add("--output_dir", type=Path, default=Path("outputs/on_gpu"), metavar="DIR")
    add("--tiny", action="store_true", help="2 blocks and 40 steps, to try the command on a CPU")
    return result


# The part of the time at which each ends, and the seconds that it needs for one more item.
PARTS = {"gradients": (0.45, 40), "steps": (0.7, 45), "scans": (0.85, 40), "training": (1.0, 75)}


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    options = parser().parse_args(argv)
    options.output_dir = options.output_dir.absolute()
    seconds, start = 60 * options.minutes, time.monotonic()
    device = jax.devices()[0]
    print(f"{device.platform} ({device.device_kind}), jax {jax.__version__}, {options.minutes:g} minutes", flush=True)
    results = Results(options.output_dir, f"{version()} {device.device_kind}{' tiny' * options.tiny}")
    status = 0
    for part, (share, need) in PARTS.items():
        if part not in options.part:
            continue
        clock = Clock(share * seconds - (time.monotonic() - start))
        if part == "training":
            status |= _train(options, clock, need)
            continue
        items = {"gradients": gradients, "steps": steps, "scans": scans}[part](options)
        results.fill(part, items, clock, need)
        if part == "gradients":
            lines = over_limit(results.parts["gradients"])
            print("\n".join(lines) or "gradients: none of the computed ones is over its limit", flush=True)
            status |= bool(lines)
        elif part == "scans":
            print(scan_table(results.parts["scans"]), flush=True)
    return status


def _train(options: argparse.Namespace, clock: Clock, need: float) -> int:
    """Train as far as the time goes. Returns 1 if the command failed."""
    if clock.left() < need:
        print("training: not started, too little time is left. The same command continues", flush=True)
        return 0
    command = training_command(options)
    if not command:
        print(
            f"training: {options.data_dir} holds no processed SelfRegulationSCP1 or 2: run make data there", flush=True
        )
        return 0
    print(" ".join(command), flush=True)
    status = train_until(command, clock, margin=25)
    if status not in GOOD_STATUS:
        print(f"training: the command ended with status {status}", flush=True)
    return int(status not in GOOD_STATUS)


if __name__ == "__main__":
    sys.exit(main())
