"""What a whole training step does on a GPU, counted on any machine: `python benchmarks/accelerator.py --help`.

The script compiles the training step of benchmarks/step.py for a described GPU and counts the program: kernels, bytes,
arithmetic, memory. It runs no kernel. "modelled ms" reads the counts: each kernel takes 2.5 microseconds, or the time
to move its bytes if that is longer. Where a GPU is present, the script also times the steps there.

`make gpu-counts` fetches the plugin that compiles. Each row is written into --output_dir when it is done, and taken
from there the next time if neither the code nor jax has changed. How to read the table: docs/performance.md.
"""

import argparse
import hashlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

if not __package__:  # Run as a script: the imports below need the repository on the path, not this folder.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # XLA's remark that no driver is present

import equinox as eqx
import jax

from benchmarks import hlo
from benchmarks.gpus import GPUS, LAUNCH_SECONDS, PluginError, compiled_for, described
from benchmarks.step import ALGORITHMS, LINEAR_ONLY, MIB, SHAPES, Program, measure, prepared, problem
from common import tables
from common.files import replacing, write_json
from models.create import MODELS
from train import train_step

ROOT = Path(__file__).resolve().parent.parent
PLUGIN = ROOT / ".cuda_plugin"
BOUNDS = Path(__file__).with_name("gpu_bounds.json")
BOUNDED = ("kernels", "GiB", "temporaries MiB")
SLACK = 1.02
COUNTED = ("RHEL", "BPTT", "ReversibleBPTT", "floor", "straightforward")
TINY = {"length": 40, "batch_size": 2, "num_blocks": 2, "hidden_dim": 4, "ssm_dim": 4}
ABOUT = ("data set", "model", "algorithm", "target")
# Heading, key of a row, and format.
COLUMNS = (
    ("kernels", "kernels", ",.0f"),
    ("GiB", "GiB", ".3g"),
    ("temporaries MiB", "temporaries MiB", ",.0f"),
    ("arithmetic, G", "arithmetic G", ".3g"),
    ("transcendentals, G", "transcendentals G", ".3g"),
    ("products, GFLOP", "products GFLOP", ".3g"),
    ("modelled ms", "modelled ms", ".3g"),
)


def lowered_step(options: dict, algorithm: Any) -> tuple:
    """The training step as a function of arrays, and its arguments: `training, x, y, key`."""
    training, batch, rest = prepared(options, algorithm)
    arrays, static = eqx.partition(training, eqx.is_array)

    def step(arrays, *batch):
        training, loss = train_step(batch, eqx.combine(arrays, static), *rest)
        return eqx.filter(training, eqx.is_array), loss

    return step, arrays, *batch


def counted(options: dict, algorithm: Any, target: str, plugin: Path, number: int) -> dict:
    """The counts of a training step on a GPU, by the names of `COLUMNS`, and so many of its functions by bytes."""
    gpu, start = GPUS[target], time.perf_counter()
    compiled = compiled_for(described(gpu, plugin), *lowered_step(options, algorithm))
    seconds = time.perf_counter() - start
    speed = {"launch_seconds": LAUNCH_SECONDS, "bytes_per_second": gpu.bytes_per_second}
    counts, functions = hlo.count(compiled.as_text(), **speed, folder=str(ROOT))
    most = sorted(functions.items(), key=lambda item: -item[1].bytes)[:number]
    return {
        **in_units(counts),
        "temporaries MiB": compiled.memory_analysis().temp_size_in_bytes / MIB,
        "compile s": round(seconds, 1),
        **({"functions": {name: in_units(counts) for name, counts in most}} if number else {}),
    }


def in_units(counts: hlo.Counts) -> dict[str, float]:
    """The counts in the units of the table."""
    return {
        "kernels": counts.kernels,
        "GiB": counts.bytes / 2**30,
        "arithmetic G": counts.arithmetic / 1e9,
        "transcendentals G": counts.transcendentals / 1e9,
        "products GFLOP": counts.product_flops / 1e9,
        "collectives": counts.collectives,
        "collective GiB": counts.collective_bytes / 2**30,
        "modelled ms": counts.seconds * 1e3,
    }


def timed(options: dict, algorithm: Any, rounds: int) -> dict:
    """The time of the step on the device that jax has. A step that fails there has the message instead."""
    try:
        table = measure({"step": Program(options, algorithm)}, rounds)
    except jax.errors.JaxRuntimeError as error:
        return {"measured ms": None, "failure": str(error).splitlines()[0]}
    return {"measured ms": 1e3 * float(table["step s"]["step"])}


def version() -> str:
    """Changes with jax and with every file that decides what a training step computes."""
    files = [path for name in ("models", "training") for path in (ROOT / name).rglob("*.py")]
    files += [ROOT / "benchmarks" / f"{name}.py" for name in ("step", "opponents", "hlo", "gpus")]
    files += [ROOT / "train.py", *(ROOT / "experiment_configs").rglob("*.json")]
    digest = hashlib.sha256(jax.__version__.encode())
    for path in sorted(files):
        digest.update(path.relative_to(ROOT).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:16]


class Rows:
    """The rows of a table in a file, accelerator.json, and as Markdown beside it."""

    def __init__(self, folder: Path, *, sound: str | None = None):
        """Rows of another version than `sound` are left out."""
        self.folder = folder
        self.path = folder / "accelerator.json"
        rows = read_rows(self.path) if self.path.exists() else []
        self.rows = {_key(row): row for row in rows if sound is None or row.get("version") == sound}

    def add(self, row: dict) -> None:
        """Add or replace a row, and write the files."""
        self.rows[_key(row)] = row
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.path, {"rows": list(self.rows.values())})
        with replacing(self.folder / "accelerator.md") as temporary:
            temporary.write_text(table(list(self.rows.values())) + "\n", encoding="utf-8")


def read_rows(path: Path) -> list[dict]:
    """The rows of a file that `Rows` wrote. Raises `SystemExit` for another file."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))["rows"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SystemExit(f"{path} holds no counted rows ({error!r}): name a file accelerator.json") from error


def _key(row: dict) -> tuple:
    return tuple(row[name] for name in ABOUT)


def in_order(rows: list[dict]) -> list[dict]:
    """Rows in the order of the published shapes."""
    orders = (list(SHAPES), list(MODELS), list(ALGORITHMS), list(GPUS))
    return sorted(rows, key=lambda row: [order.index(row[x]) for x, order in zip(ABOUT, orders, strict=True)])


def table(rows: list[dict]) -> str:
    """The table in Markdown. Columns that no row fills are left out."""
    rows = in_order(rows)
    about = ABOUT if len({row["target"] for row in rows}) > 1 else ABOUT[:-1]
    columns = [*COLUMNS]
    if any(row.get("collectives") for row in rows):
        columns += [("collectives", "collectives", ",.0f"), ("collective GiB", "collective GiB", ".3g")]
    if any("measured ms" in row for row in rows):
        columns.append(("measured ms", "measured ms", ".3g"))

    def shown(row, key, form):
        return "failed" if "failure" in row and key == "measured ms" else _cell(row.get(key), form)

    cells = ([*(row[x] for x in about), *(shown(row, key, form) for _, key, form in columns)] for row in rows)
    return tables.markdown([[*about, *(heading for heading, *_ in columns)], *cells])


def _cell(value, form):
    if value is None:
        return ""
    return f"{value:,.0f}" if form == ".3g" and abs(value) >= 1000 else f"{value:{form}}"


def by_function(row: dict, number: int) -> str:
    """The functions of a row that move most bytes, as a text table."""
    listed = list(row["functions"].items())[:number]
    body = [[f"{x['GiB']:.3g}", f"{x['kernels']:,.0f}", f"{x['arithmetic G']:.3g}", name] for name, x in listed]
    return tables.aligned([["GiB", "kernels", "arithmetic, G", "function [kind of kernel]"], *body])


def over(rows: list[dict], bounds: dict) -> list[str]:
    """What is over the recorded bounds: the row, what was counted, and the bound."""
    held = {(bound["data set"], bound["model"], bound["algorithm"], bound["target"]): bound for bound in bounds["rows"]}
    lines = []
    for row in rows:
        bound = held.get(_key(row))
        if bound is None:
            lines.append(f"{' '.join(_key(row))}: no bound is recorded; record one with --record")
            continue
        for name in BOUNDED:
            value = row.get(name, float("nan"))
            if not value <= bound[name]:
                lines.append(f"{' '.join(_key(row))}: {name} {value:,.6g}, at most {bound[name]:,.6g}")
    return lines


def recorded(rows: list[dict]) -> dict:
    """Bounds that hold these rows with 2 % to spare."""
    return {
        "jax": jax.__version__,
        "rows": [{x: row[x] for x in ABOUT} | {x: round(SLACK * row[x], 3) for x in BOUNDED} for row in in_order(rows)],
    }


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    add = result.add_argument
    bounded = "; with --check or --record: SelfRegulationSCP1 and EigenWorms by RHEL"
    add("--dataset_name", nargs="+", choices=SHAPES, metavar="NAME", help=", ".join(SHAPES) + bounded)
    add("--model_name", nargs="+", choices=MODELS, default=list(MODELS))
    add("--algorithm", nargs="+", choices=ALGORITHMS, metavar="NAME", help=", ".join(ALGORITHMS))
    add("--target", choices=GPUS, default="H100", help="the GPU that the program is compiled for")
    add("--plugin", type=Path, default=PLUGIN, metavar="DIR", help="the wheels of the CUDA plugin (make gpu-counts)")
    add("--by_function", type=int, default=0, metavar="N", help="also the N functions that move most bytes")
    add("--check", action="store_true", help=f"compare with {BOUNDS.name}; exit status 1 if a count is over its bound")
    add("--record", action="store_true", help=f"write {BOUNDS.name}: the present counts and 2 %%")
    add("--measure", action="store_true", help="time the steps, too, even without a GPU")
    add("--rounds", type=int, default=7, help="steps that are timed")
    add("--counted", type=Path, metavar="FILE", help="take the counts from this accelerator.json, compile nothing")
    add("--tiny", action="store_true", help="2 blocks and 40 steps, to try the script")
    add("--output_dir", type=Path, default=Path("outputs/accelerator"), metavar="DIR")
    return result


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    options = parser().parse_args(argv)
    bounded = options.check or options.record
    names = options.dataset_name or (["SelfRegulationSCP1", "EigenWorms"] if bounded else list(SHAPES))
    algorithms = options.algorithm or (["RHEL"] if bounded else COUNTED)
    wanted = [
        (name, model, algorithm, options.target)
        for name in names
        for model in options.model_name
        for algorithm in algorithms
        if algorithm not in LINEAR_ONLY or model == "LinHRU"
    ]
    given = {_key(row): row for row in read_rows(options.counted)} if options.counted else None
    now = version() + (" tiny" if options.tiny else "")
    rows = Rows(options.output_dir, sound=now)
    try:
        for key in wanted:
            _add(rows, key, now, options, given)
    except PluginError as error:
        raise SystemExit(f"error: {error}") from error
    done = [rows.rows[key] for key in wanted]
    print(f"\n{table(done)}\n\nwritten: {rows.path}, {rows.path.with_suffix('.md')}")
    return _held(done, options)


def _add(rows: Rows, key: tuple, now: str, options: argparse.Namespace, given: dict | None) -> None:
    """Count and time a row if the file does not hold it, and print it."""
    name, model, algorithm, target = key
    settings = problem(model, name, **(TINY if options.tiny else {})) | {"remat": algorithm != "RHEL, no remat"}
    row = rows.rows.get(key, dict(zip(ABOUT, key, strict=True)) | {"version": now, "jax": jax.__version__})
    known = "kernels" in row and len(row.get("functions", ())) >= options.by_function
    if given is not None:
        row |= {x: value for x, value in given.get(key, {}).items() if x not in ("version", "jax")}
    elif not known:
        row |= counted(settings, ALGORITHMS[algorithm], target, options.plugin, options.by_function)
    rows.add(row)
    device = jax.devices()[0]
    if (options.measure or device.platform == "gpu") and row.get("device") != device.device_kind:
        row |= {"device": device.device_kind, **timed(settings, ALGORITHMS[algorithm], options.rounds)}
        rows.add(row)
    text = ", ".join(f"{heading} {_cell(row.get(x), form) or '-'}" for heading, x, form in COLUMNS)
    print(f"{' '.join(key)}: {text}, measured ms {_cell(row.get('measured ms'), '.3g') or '-'}", flush=True)
    if options.by_function and "functions" in row:
        print(by_function(row, options.by_function), flush=True)


def _held(rows: list[dict], options: argparse.Namespace) -> int:
    """Record or check the bounds. Returns the exit status."""
    if options.record:
        write_json(BOUNDS, recorded(rows))
        print(f"recorded: {BOUNDS}")
    if not options.check:
        return 0
    bounds = json.loads(BOUNDS.read_text(encoding="utf-8"))
    lines = over(rows, bounds)
    if bounds["jax"] != jax.__version__:
        lines.append(f"{BOUNDS.name} belongs to jax {bounds['jax']}, this is {jax.__version__}: record it again")
    print("\n".join(lines) or f"all counts are within {BOUNDS.name}")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
