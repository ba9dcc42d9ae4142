"""What devices exchange in a training step that divides its batch: `python benchmarks/devices.py --help`.

The script compiles the training step of benchmarks/step.py for several described GPUs of one host, as --devices of
run_experiment.py divides it, and counts the program of a device as benchmarks/accelerator.py does. It runs no kernel.
How to read the table: docs/scale.md.
"""

import argparse
import os
import sys
from pathlib import Path
from typing import Any

if not __package__:  # Run as a script: the imports below need the repository on the path, not this folder.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # XLA's remark that no driver is present

import equinox as eqx
import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from benchmarks import hlo
from benchmarks.accelerator import PLUGIN, ROOT, in_units
from benchmarks.gpus import GPUS, LAUNCH_SECONDS, PluginError, several_described, tracing_for
from benchmarks.step import ALGORITHMS, MIB, SHAPES, prepared, problem
from common import tables
from models.create import MODELS
from train import train_step
from training.devices import AXIS


def compiled_for_several(devices: list[Any], options: dict, algorithm: Any) -> jax.stages.Compiled:
    """The training step, its batch divided among the devices, its other arguments on each of them."""
    training, (x, y, key), rest = prepared(options, algorithm)
    arrays, static = eqx.partition(training, eqx.is_array)
    mesh = Mesh(np.array(devices), (AXIS,), axis_types=(AxisType.Auto,))

    def placed(tree, *axes):
        place = NamedSharding(mesh, PartitionSpec(*axes))
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(np.shape(x), x.dtype, sharding=place), tree)

    def step(arrays, *batch):
        training, loss = train_step(batch, eqx.combine(arrays, static), *rest, len(devices))
        return eqx.filter(training, eqx.is_array), loss

    shapes = placed(arrays), placed(x, AXIS), placed(y, AXIS), placed(key)
    with tracing_for(*devices):
        return jax.jit(step, donate_argnums=0).trace(*shapes).lower().compile()


def counted(options: dict, algorithm: Any, number: int, target: str, plugin: Path) -> dict[str, str]:
    """What a device does in the step, as the cells of a row."""
    gpu = GPUS[target]
    compiled = compiled_for_several(several_described(gpu, plugin, number), options, algorithm)
    speed = {"launch_seconds": LAUNCH_SECONDS, "bytes_per_second": gpu.bytes_per_second}
    counts = hlo.count(compiled.as_text(), **speed, folder=str(ROOT))[0]
    units = in_units(counts)
    return {
        "kernels": f"{units['kernels']:,.0f}",
        "GiB": f"{units['GiB']:.3g}",
        "temporaries MiB": f"{compiled.memory_analysis().temp_size_in_bytes / MIB:,.0f}",
        "modelled ms": f"{units['modelled ms']:.3g}",
        "collectives": f"{counts.collectives:,.0f}",
        "bytes handed over": f"{counts.collective_bytes:,.0f}",
    }


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    add = result.add_argument
    add("--dataset_name", choices=SHAPES, default="SelfRegulationSCP1", metavar="NAME", help=", ".join(SHAPES))
    add("--model_name", nargs="+", choices=MODELS, default=list(MODELS))
    add("--algorithm", choices=ALGORITHMS, default="RHEL", metavar="NAME", help=", ".join(ALGORITHMS))
    add("--devices", nargs="+", type=int, default=[1, 4, 8], metavar="N", help="numbers that divide the batch")
    add("--target", choices=GPUS, default="H100", help="the GPU that the program is compiled for")
    add("--plugin", type=Path, default=PLUGIN, metavar="DIR", help="the wheels of the CUDA plugin (make gpu-counts)")
    return result


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    options, rows = parser().parse_args(argv), []
    for model in options.model_name:
        settings = problem(model, options.dataset_name)
        batch = settings["batch_size"]
        for number in options.devices:
            if number < 1 or batch % number:
                raise SystemExit(f"error: --devices {number}: cannot divide a batch of {batch} samples equally")
            try:
                row = counted(settings, ALGORITHMS[options.algorithm], number, options.target, options.plugin)
            except PluginError as error:
                raise SystemExit(f"error: {error}") from error
            rows.append({"model": model, "devices": str(number)} | row)
            print(", ".join(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
    print(f"\n{tables.markdown([list(rows[0]), *(list(row.values()) for row in rows)])}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
