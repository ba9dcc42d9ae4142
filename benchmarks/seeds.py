"""A training step of several seeds in one program, beside that of one seed: `python benchmarks/seeds.py --help`.

The script compiles the training step of benchmarks/step.py for a described GPU, for one seed and for several
(`run_experiment.py --seeds_together`), and counts both programs as benchmarks/accelerator.py does. With --measure it
times the steps on the device that jax has instead. How to read the table: docs/scale.md.
"""

import argparse
import os
import sys
import time
from pathlib import Path
from typing import Any

if not __package__:  # Run as a script: the imports below need the repository on the path, not this folder.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # XLA's remark that no driver is present

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import hlo
from benchmarks.accelerator import PLUGIN, ROOT, in_units, lowered_step
from benchmarks.gpus import GPUS, LAUNCH_SECONDS, PluginError, compiled_for, described
from benchmarks.step import ALGORITHMS, MIB, SHAPES, problem
from common import tables
from models.create import MODELS

ABOUT = ("data set", "model", "algorithm", "seeds")


def step_of_seeds(options: dict, algorithm: Any, seeds: int) -> tuple:
    """`lowered_step` of so many seeds, whose arrays have the seeds as their first axis."""
    step, *arguments = lowered_step(options, algorithm)
    if seeds == 1:
        return step, *arguments
    return jax.vmap(step), *jax.tree.map(lambda x: jnp.stack([x] * seeds), arguments)


def counted(options: dict, algorithm: Any, seeds: int, target: str, plugin: Path) -> dict[str, str]:
    """What the step does on a GPU, as the cells of a row."""
    gpu = GPUS[target]
    compiled = compiled_for(described(gpu, plugin), *step_of_seeds(options, algorithm, seeds))
    speed = {"launch_seconds": LAUNCH_SECONDS, "bytes_per_second": gpu.bytes_per_second}
    counts = in_units(hlo.count(compiled.as_text(), **speed, folder=str(ROOT))[0])
    return {
        "kernels": f"{counts['kernels']:,.0f}",
        "GiB": f"{counts['GiB']:.3g}",
        "temporaries MiB": f"{compiled.memory_analysis().temp_size_in_bytes / MIB:,.0f}",
        "modelled ms": f"{counts['modelled ms']:.3g}",
        "modelled ms / seed": f"{counts['modelled ms'] / seeds:.3g}",
    }


class Timed:
    """A compiled step of so many seeds, and the times of its calls."""

    def __init__(self, options: dict, algorithm: Any, seeds: int):
        step, self.arrays, *self.batch = step_of_seeds(options, algorithm, seeds)
        self.compiled = jax.jit(step, donate_argnums=0).lower(self.arrays, *self.batch).compile()
        self.seconds: list[float] = []

    def step(self) -> None:
        """One step of all seeds, timed."""
        start = time.perf_counter()
        self.arrays, loss = self.compiled(self.arrays, *self.batch)
        jax.block_until_ready((self.arrays, loss))
        self.seconds.append(time.perf_counter() - start)


def measured(options: dict, algorithm: Any, seeds: list[int], rounds: int) -> list[dict[str, str]]:
    """The times of the steps, as the cells of a row for each number of seeds. They run in turn."""
    programs = [Timed(options, algorithm, number) for number in seeds]
    for _ in range(rounds + 1):
        for program in programs:
            program.step()
    times = [np.array(program.seconds[1:]) / number for program, number in zip(programs, seeds, strict=True)]
    return [
        {
            "ms": f"{1e3 * number * np.median(seconds):.3g}",
            "ms / seed": f"{1e3 * np.median(seconds):.3g}",
            f"ms / seed, of {seeds[0]}": f"{np.median(seconds / times[0]):.2f}",
            "temporaries MiB": f"{program.compiled.memory_analysis().temp_size_in_bytes / MIB:,.0f}",
        }
        for number, seconds, program in zip(seeds, times, programs, strict=True)
    ]


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    add = result.add_argument
    sets = ["Heartbeat", "SelfRegulationSCP1"]
    add("--dataset_name", nargs="+", choices=SHAPES, default=sets, metavar="NAME", help=", ".join(SHAPES))
    add("--model_name", nargs="+", choices=MODELS, default=list(MODELS))
    add("--algorithm", choices=ALGORITHMS, default="RHEL", metavar="NAME", help=", ".join(ALGORITHMS))
    add("--seeds", nargs="+", type=int, default=[1, 5], metavar="N", help="numbers of seeds in a program")
    add("--target", choices=GPUS, default="H100", help="the GPU that the program is compiled for")
    add("--plugin", type=Path, default=PLUGIN, metavar="DIR", help="the wheels of the CUDA plugin (make gpu-counts)")
    add("--measure", action="store_true", help="time the steps here instead of counting those of a GPU")
    add("--rounds", type=int, default=7, help="for --measure: steps that are timed")
    return result


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    options = parser().parse_args(argv)
    algorithm, rows = ALGORITHMS[options.algorithm], []
    for name in options.dataset_name:
        for model in options.model_name:
            settings = problem(model, name)
            try:
                if options.measure:
                    cells = measured(settings, algorithm, options.seeds, options.rounds)
                else:
                    how = (options.target, options.plugin)
                    cells = [counted(settings, algorithm, number, *how) for number in options.seeds]
            except PluginError as error:
                raise SystemExit(f"error: {error}") from error
            for number, row in zip(options.seeds, cells, strict=True):
                about = dict(zip(ABOUT, (name, model, options.algorithm, str(number)), strict=True))
                rows.append(about | row)
                print(", ".join(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
    print(f"\n{tables.markdown([list(rows[0]), *(list(row.values()) for row in rows)])}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
