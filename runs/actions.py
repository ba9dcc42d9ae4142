"""What run_experiment.py does with a parsed command line: train, plan, evaluate or predict."""

import argparse
import contextlib
import math
import sys
from datetime import datetime, timedelta

import jax

from common import tables
from models.load import RunError
from runs import compilation_cache, planning, prediction, streams
from runs.command import use_of
from runs.folder import finished_result, run_folder
from runs.overwriting import Overwriting
from runs.selection import Selection
from runs.signals import StopSignals
from runs.train_all import KNOWN_ERRORS, message_of, title, train_all


def act(arguments: argparse.Namespace, signals: StopSignals | None) -> int:
    """Do what the command line asks for, and return the exit status (`runs.command.STATUS`).

    `signals` are needed to train, and None for the other uses.
    """
    use = use_of(arguments)
    precision = jax.enable_x64(True) if arguments.double_precision else contextlib.nullcontext()
    try:
        with precision, compilation_cache.enabled(arguments.compilation_cache):
            if signals is not None:
                return train_all(arguments, signals)
            status = {"plan": _plan, "evaluate": _evaluate, "predict": _predict}[use](arguments)
    except (*KNOWN_ERRORS, RunError) as error:
        print(f"run_experiment.py: error: {message_of(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nInterrupted. The same command resumes.", file=sys.stderr)
        return 130
    if use != "predict" and streams.output_is_lost():  # the printed text is all that these commands give
        print(f"run_experiment.py: error: --{use}: the output was lost: stdout is closed or full", file=sys.stderr)
        return 2
    return status


def _plan(arguments: argparse.Namespace) -> int:
    selection = Selection(arguments)
    if arguments.overwrite:
        removed = Overwriting(selection.identities).to_clear
    else:
        selection.require_same_runs()
        removed = []
    print(*selection.lines, sep="\n", file=sys.stderr)
    plans = []
    for config in selection.configs:
        print(f"Timing {title(config)}", file=sys.stderr)
        folders = [run_folder(config, seed) for seed in config.seeds]
        to_do = [folder for folder in folders if folder in removed or finished_result(folder) is None]
        plans.append(planning.plan(config, runs=len(to_do)))
    print(plan_table(plans, datetime.now()))
    return 0


def plan_table(plans: list[planning.Plan], now: datetime) -> str:
    """A line for each plan, and the time at which all of them would be done."""
    sizes = ("temporaries", "arguments", "disk")
    rows: list[tuple[str, ...]] = [
        ("data set", "model", "algorithm", "runs", "parameters", *sizes, "s / 1000 steps", "at most")
    ]
    for plan in plans:
        config = plan.config
        rows.append(
            (
                *(config.dataset_name, config.model_name, config.learning_algorithm),
                *(str(plan.runs), f"{plan.parameters:,}"),
                *(f"{getattr(plan, size) / 2**20:,.1f} MiB" for size in sizes),
                *(f"{plan.per_1000_steps:,.1f}", str(_duration(plan.longest))),
            )
        )
    seconds = math.fsum(plan.longest for plan in plans)
    return (
        f"{tables.aligned(rows)}\n"
        f"{sum(plan.runs for plan in plans)} runs, one after the other: at most {_duration(seconds)}, until "
        f"{now + timedelta(seconds=seconds):%Y-%m-%d %H:%M}. Early stopping ends runs sooner.\n"
        "temporaries and arguments: memory of a step by XLA's own analysis; the data and a second copy of the model "
        "come on top. disk: of all these runs."
    )


def _duration(seconds: float) -> timedelta:
    return timedelta(seconds=math.ceil(seconds))


def _evaluate(arguments: argparse.Namespace) -> int:
    part = getattr(arguments, "split", "test")
    result = prediction.evaluate_run(
        arguments.evaluate, part=part, data_dir=getattr(arguments, "data_dir", None), own_units=arguments.own_units
    )
    run, then, now, differences = result.run, result.recorded, result.recomputed, result.differences()
    equal = then == now
    print(
        f"{title(run.config)} seed {run.record['seed']}, {part} {run.config.metric}: recorded {then.metric}, "
        f"recomputed {now.metric}: {'equal' if equal else 'DIFFERENT'}"
        + (f" ({'; '.join(differences)})" if differences else "")
    )
    if not equal:
        recorded_on = f"{run.record.get('device')} with jax {run.record.get('versions', {}).get('jax')}"
        this = f"{jax.devices()[0].device_kind} with jax {jax.__version__}"
        print(f"Recorded on {recorded_on}, recomputed on {this}; the two may round differently.", file=sys.stderr)
    return 0 if equal else 1


def _predict(arguments: argparse.Namespace) -> int:
    output = getattr(arguments, "output", None)
    written = prediction.predict_file(
        arguments.run, arguments.predict, output, overwrite=arguments.overwrite, own_units=arguments.own_units
    )
    print(f"{written.path}: {written.series} series, by {title(written.run.config)} ({arguments.run})")
    return 0
