"""What run_experiment.py does with a parsed command line: train, plan, evaluate or predict."""

import argparse
import contextlib
import math
import sys
import time
import traceback
from datetime import datetime, timedelta

import jax

from experiment_configs.schema import ExperimentConfig
from models.load import RunError
from runs import compilation_cache, distributed, planning, prediction, streams
from runs.command import use_of
from runs.devices import make_devices, recorded
from runs.folder import RESULT, UNCHECKED, finished_result, run_folder, setting_of
from runs.overwriting import Overwriting
from runs.selection import Selection
from runs.side_by_side import train_side_by_side
from runs.signals import StopSignals
from runs.submitting import submit
from runs.train_all import KNOWN_ERRORS, message_of, title, train_all
from training import hosts


def act(arguments: argparse.Namespace, signals: StopSignals | None) -> int:
    """Do what the command line asks for but --status, and return the exit status (`runs.command.STATUS`).

    `signals` are needed to train, and None for the other uses.
    """
    use = use_of(arguments)
    precision = jax.enable_x64(True) if arguments.double_precision else contextlib.nullcontext()
    try:
        with precision, compilation_cache.enabled(arguments.compilation_cache):
            if use == "submit" or "jobs" in arguments:  # the processes that train take the accelerators
                jax.config.update("jax_platforms", "cpu")
            if signals is not None and "jobs" not in arguments:
                return _train(arguments, signals)
            make_devices(arguments)
            if signals is not None:
                return train_side_by_side(arguments, signals)
            status = {"plan": _plan, "evaluate": _evaluate, "predict": _predict, "submit": submit}[use](arguments)
    except (*_TOLD, KeyboardInterrupt) as error:
        return _tell(error, use)[0]
    if use in ("plan", "evaluate") and streams.output_is_lost():  # the printed text is all that these commands give
        print(f"run_experiment.py: error: --{use}: the output was lost: stdout is closed or full", file=sys.stderr)
        return 2
    return status


_TOLD = (*KNOWN_ERRORS, RunError)  # errors whose message is enough


def _tell(error: BaseException, use: str = "train") -> tuple[int, str]:
    """Print an error that ends the command. Its exit status and message."""
    if isinstance(error, KeyboardInterrupt):
        print(f"\nInterrupted.{' The same command resumes.' * (use == 'train')}", file=sys.stderr)
        return 130, "interrupted"
    if isinstance(error, _TOLD):
        print(f"run_experiment.py: error: {message_of(error)}", file=sys.stderr)
        return 2, message_of(error)
    traceback.print_exception(error)
    return 1, f"{type(error).__name__}: {error}"


def _train(arguments: argparse.Namespace, signals: StopSignals) -> int:
    """Train, alone or together with other processes: then only process 0 prints, and errors."""
    with distributed.joined(arguments, _tell):
        make_devices(arguments)
        distributed.require_same_devices()
        with contextlib.nullcontext() if hosts.first() else streams.silent():
            return train_all(arguments, signals)


def _plan(arguments: argparse.Namespace) -> int:
    selection = Selection(arguments)
    if arguments.overwrite:
        removed = Overwriting(selection.identities).to_clear
    else:
        selection.require_same_runs()
        removed = []
    print(*selection.lines, sep="\n", file=sys.stderr)
    cells = []
    for config, devices in zip(selection.configs, selection.devices, strict=True):
        folders = [run_folder(config, seed) for seed in config.seeds]
        to_do = [folder for folder in folders if folder in removed or finished_result(folder, config.num_steps) is None]
        cells.append((config, len(to_do), devices))
    return 1 if _print_plan(cells, timing=not arguments.no_timing) else 0


def _print_plan(cells: list[tuple[ExperimentConfig, int, int]], *, timing: bool) -> int:
    """A row for each config with its number of runs and of devices: memory and disk, then the times.

    Returns how many rows could not be measured. They end in the reason, as a step that does not fit into the memory.
    """
    names = [(c.dataset_name, c.model_name, c.learning_algorithm, setting_of(c) or "-") for c, *_ in cells]
    shown = 4 if any(setting != "-" for *_, setting in names) else 3
    head = ("data set", "model", "algorithm", "setting")[:shown]
    names = [name[:shown] for name in names]
    widths = [max(map(len, column)) for column in zip(head, *names, strict=True)] + [4, 11, 13, 13, 13]

    def row(texts):
        return "  ".join(text.ljust(width) for text, width in zip(texts, widths, strict=True))

    head = row((*head, "runs", "parameters", "temporaries", "arguments", "disk"))
    print(f"{head}  s / 1000 steps  at most" if timing else head.rstrip(), flush=True)
    start, seconds, failed = time.monotonic(), [], 0
    for number, (config, runs, devices) in enumerate(cells):
        left = (time.monotonic() - start) / max(number, 1) * (len(cells) - number)
        left = f", about {_duration(left)} left" if number else ""
        print(f"Measuring {title(config)} ({number + 1} of {len(cells)}{left})", file=sys.stderr, flush=True)
        text = row((*names[number], str(runs), *[""] * 4)).rstrip()
        if not runs:
            print(f"{text}  finished", flush=True)
            continue
        try:
            planned = planning.Planning(config, runs, devices)
            needs = planned.needs()
            sizes = (f"{size / 2**20:,.1f} MiB" for size in (needs.temporaries, needs.arguments, needs.disk))
            text = row((*names[number], str(runs), f"{needs.parameters:,}", *sizes))
            print(text if timing else text.rstrip(), end="", flush=True)
            text = ""  # it is printed
            if timing:
                times = planned.times()
                seconds.append(times.longest)
                few = f" ({times.steps} timed in {planning.TIMING_SECONDS} s)"
                few = few * (times.steps < planning.TIMED_STEPS)
                print(f"  {times.per_1000_steps:<14,.1f}  {_duration(times.longest)}{few}", end="")
            print(flush=True)
        except (jax.errors.JaxRuntimeError, MemoryError) as error:
            failed += 1
            print(f"{text}  {(str(error) or type(error).__name__).splitlines()[0][:200]}", flush=True)
        except BaseException:
            print(flush=True)  # the message begins a line
            raise
    until = datetime.now() + timedelta(seconds=math.fsum(seconds))
    at_most = f", one after the other: at most {_duration(math.fsum(seconds))}, until {until:%Y-%m-%d %H:%M}. Early "
    at_most += "stopping ends runs sooner; the start of Python and compiling come on top"
    total = sum(runs for _, runs, _ in cells)
    each = " on each device" * any(devices > 1 for *_, devices in cells)
    unknown = f" ({failed} row{'s' * (failed > 1)} could not be measured)" * (failed > 0)
    print(
        f"{total} run{'s' * (total != 1)}{unknown}{at_most * timing}.\n"
        f"temporaries and arguments: memory of a step{each} by XLA's own analysis; the data and a second copy of "
        "the model come on top. disk: of all these runs, with their two checkpoints, which a finished run keeps."
    )
    return failed


def _duration(seconds: float) -> timedelta:
    return timedelta(seconds=math.ceil(seconds))


def _evaluate(arguments: argparse.Namespace) -> int:
    part = getattr(arguments, "split", "test")
    result = prediction.evaluate_run(
        arguments.evaluate,
        part=part,
        data_dir=getattr(arguments, "data_dir", None),
        own_units=arguments.own_units,
        devices=getattr(arguments, "devices", None),
    )
    run, then, now, differences = result.run, result.recorded, result.recomputed, result.differences()
    _note_what_was_used(run)
    equal, on_machine = then == now, run.config.machine is not None
    different = "different, as the numbers of a machine may be" if on_machine else "DIFFERENT"
    print(
        f"{title(run.config)} seed {run.record['seed']}, {part} {run.config.metric}: recorded {then.metric}, "
        f"recomputed {now.metric}: {'equal' if equal else different}"
        + (f" ({'; '.join(differences)})" if differences else "")
    )
    if not equal and not on_machine:
        jax_then = run.record.get("versions", {}).get("jax")
        recorded_on = _machine(run.record.get("device"), recorded(run.record), jax_then)
        this = _machine(jax.devices()[0].device_kind, run.devices, jax.__version__)
        print(f"Recorded on {recorded_on}, recomputed on {this}; the two may round differently.", file=sys.stderr)
    return 0 if equal or on_machine else 1


def _predict(arguments: argparse.Namespace) -> int:
    output = getattr(arguments, "output", None)
    written = prediction.predict_file(
        arguments.run,
        arguments.predict,
        output,
        overwrite=arguments.overwrite,
        own_units=arguments.own_units,
        devices=getattr(arguments, "devices", None),
    )
    _note_what_was_used(written.run)
    print(f"{written.path}: {written.series} series, by {title(written.run.config)} ({arguments.run})")
    if written.ignored:
        print(f"the labels in {arguments.predict}, {', '.join(written.ignored)}, were not used")
    return 0


def _machine(device: object, count: int, jax_version: object) -> str:
    return f"{f'{count} x ' * (count > 1)}{device} with jax {jax_version}"


def _note_what_was_used(run: prediction.KeptRun) -> None:
    result, unit = finished_result(run.folder), run.record["config"].get("unit")
    if result is not None and "model_sha256" not in result:
        print(f"{run.folder / RESULT} {UNCHECKED}", file=sys.stderr)
    if run.config.unit != unit:
        print(f"{unit} is gone or was changed after the training; {run.config.unit} is used", file=sys.stderr)
