"""Train models on data sets, as a config says, and use what was trained: `python run_experiment.py --help`.

Without a flag it trains LinHRU by RHEL on those of the six UEA sets of the published experiments that are processed,
and where none is, on BasicMotions, which needs no download. Every run leaves its files in its folder (see `runs`); a
run that is finished there is kept and reported, one that is unfinished goes on, and one that fails does not stop the
others. SIGTERM, SIGINT and SIGUSR1 end it once the steps at work are done and saved; a second SIGINT ends it at once.
"""

from runs import display as run_progress

if __name__ == "__main__":
    run_progress.end_at_signals()  # from here on, because the imports below take time

import argparse
import contextlib
import importlib.util
import math
import sys
import traceback
from datetime import datetime, timedelta
from pathlib import Path

from common import tables
from experiment_configs import LEARNING_ALGORITHMS, MODEL_NAMES
from runs import compilation_cache, streams

CONFIG_DIR = Path(__file__).resolve().parent / "experiment_configs" / "repeats"
FALLBACK_SET = "BasicMotions"
SMALL_UEA_SETS = ("SelfRegulationSCP1", "SelfRegulationSCP2")  # small enough to be fetched by the way
PUBLISHED_ALGORITHMS = ("RHEL", "BPTT")
ALL = "all"
OVERRIDES = (
    *("seeds", "data_dir", "output_parent_dir", "num_steps", "print_steps", "batch_size"),
    *("checkpoint_steps", "skip_nonfinite"),
)
# The flags that the uses of a kept run read; training and planning read all but the flags of these alone.
KEPT_RUN_FLAGS = {
    "evaluate": {"evaluate", "split", "data_dir", "own_units", "compilation_cache"},
    "predict": {"predict", "run", "output", "overwrite", "own_units", "compilation_cache"},
}
STATUS = (
    "Exit status: 0; 2 if what was asked for cannot be done, and nothing was trained; 75 if SIGTERM, SIGINT or SIGUSR1 "
    "ended it: the same command goes on; else the number of failed runs, where 2 is left out: 1 for one, 3 for two, 4 "
    "for three, 64 for 63 and more. --evaluate: 1 if the metric, the loss or an output differs."
)


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        self.exit(2, f"{self.prog}: error: {message} (--help lists the flags)\n")


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError
    return value


def _whole(text: str) -> int:
    value = int(text)
    if value < 0:
        raise ValueError
    return value


def _seed(text: str) -> int:
    value = int(text)
    if not 0 <= value < 2**32:
        raise ValueError
    return value


_positive.__name__ = "positive whole number"
_whole.__name__ = "whole number"
_seed.__name__ = "seed from 0 to 4294967295"


def parser() -> argparse.ArgumentParser:
    """The command line. Flags that are not given leave the config as it is."""
    result = _Parser(
        prog="run_experiment.py",
        description="Train models on data sets. A flag overrides the field of the same name in the config.",
        epilog=STATUS,
        allow_abbrev=False,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    unset = {"default": argparse.SUPPRESS}
    add = result.add_argument
    add(
        "--model_name",
        **unset,
        nargs="+",
        metavar="NAME",
        help=f"one or several of {', '.join(MODEL_NAMES)}, {ALL}; with --own_units, other folders of configs, too "
        f"(default: {MODEL_NAMES[0]})",
    )
    add(
        "--dataset_name",
        **unset,
        nargs="+",
        metavar="NAME",
        help=f"one or several data sets; {ALL}: those of the seven published sets that are processed (without it: "
        f"the UEA sets among them, else {FALLBACK_SET})",
    )
    add(
        "--learning_algorithm",
        **unset,
        nargs="+",
        choices=(*LEARNING_ALGORITHMS, ALL),
        help=f"one or several ways to find the gradient; {ALL}: the published {' and '.join(PUBLISHED_ALGORITHMS)} "
        "(default: RHEL)",
    )
    add(
        "--seeds",
        **unset,
        nargs="+",
        type=_seed,
        metavar="SEED",
        help="a run for each (without it: those of the config)",
    )
    add(
        "--config_dir",
        type=Path,
        default=CONFIG_DIR,
        metavar="DIR",
        help="group of configs: DIR/<model_name>/<dataset_name>.json",
    )
    add("--data_dir", **unset, metavar="DIR", help="folder of the data, with raw/ and processed/")
    add("--output_parent_dir", **unset, metavar="DIR", help="folder that the runs are written below")
    add("--num_steps", **unset, type=_positive, metavar="N", help="steps of training, at most")
    add("--print_steps", **unset, type=_positive, metavar="N", help="steps from one evaluation to the next")
    add("--batch_size", **unset, type=_positive, metavar="N", help="samples per step")
    add("--checkpoint_steps", **unset, type=_positive, metavar="N", help="steps from one checkpoint to the next")
    add("--skip_nonfinite", **unset, type=_whole, metavar="N", help="steps to skip that are not finite, at most")
    add(
        "--own_units",
        action="store_true",
        help="import and run the Python file that a config, or the config.json of a run, names as its unit",
    )
    add("--tensorboard", action="store_true", help="write event files too; needs tensorboardX")
    add("--double_precision", action="store_true", help="compute in float64")
    add("--overwrite", action="store_true", help="start runs anew, finished or not, or replace the file of predictions")
    compilation_cache.add_flag(result)

    uses = result.add_argument_group("instead of training")
    use = uses.add_mutually_exclusive_group().add_argument
    use("--plan", **unset, action="store_true", help="print the memory, disk and time that the runs would take")
    use("--evaluate", **unset, type=Path, metavar="RUN_FOLDER", help="compute the recorded metric of a run again")
    use(
        "--predict",
        **unset,
        type=Path,
        metavar="FILE",
        help="write what the model of --run predicts for an npy array (N, L, C) or a ts file, as CSV",
    )
    add = uses.add_argument
    add("--split", **unset, choices=("train", "validation", "test"), help="for --evaluate: the part (default: test)")
    add("--run", **unset, type=Path, metavar="RUN_FOLDER", help="for --predict: the run whose model predicts")
    add(
        "--output",
        **unset,
        type=Path,
        metavar="CSV",
        help="for --predict: the file to write (default: FILE_predictions.csv beside FILE)",
    )
    return result


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line, checked: a flag that would have no effect is an error."""
    flags = parser()
    arguments = flags.parse_args(argv)
    for name in () if arguments.own_units else getattr(arguments, "model_name", ()):
        if name not in (*MODEL_NAMES, ALL):
            flags.error(
                f"argument --model_name: invalid choice: {name!r}: choose from {', '.join(MODEL_NAMES)}, {ALL}; your "
                "own unit needs --own_units"
            )
    given = {name for name, value in vars(arguments).items() if value != flags.get_default(name)}
    use = next((name for name in KEPT_RUN_FLAGS if name in arguments), None)
    if use is None:
        surplus = given & {"split", "run", "output"}
        reason = "it goes with --evaluate or --predict"
    else:
        surplus = given - KEPT_RUN_FLAGS[use]
        reason = f"it has no effect on --{use}, which takes the settings of the run"
    if surplus:
        flags.error(f"--{min(surplus)}: {reason}")
    if use == "predict" and "run" not in arguments:
        flags.error("--predict: --run RUN_FOLDER is missing, the run whose model predicts")
    return arguments


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return its exit status. A flag that is wrong raises `SystemExit`, as argparse does."""
    with streams.forgiving():
        return _main(parse(argv))


def _main(arguments: argparse.Namespace) -> int:
    # From here on and not at the top, so that --help and a mistyped flag answer at once.
    with run_progress.ending_at_signals():
        import jax

        from data_dir.storage import DataError
        from experiment_configs.schema import ConfigError
        from models.load import RunError
        from runs import run as runs  # noqa: F401 (it imports all that takes time)
        from training.checkpoints import CheckpointError

    uses = {"plan": _plan_all, "evaluate": _evaluate, "predict": _predict}
    do = next((function for name, function in uses.items() if name in arguments), None)
    precision = jax.enable_x64(True) if arguments.double_precision else contextlib.nullcontext()
    signals = run_progress.StopSignals() if do is None else contextlib.nullcontext()
    try:
        with signals, precision, compilation_cache.enabled(arguments.compilation_cache):
            return _run_all(arguments, signals) if do is None else do(arguments)
    except (CheckpointError, ConfigError, DataError, RunError, OSError, jax.errors.JaxRuntimeError) as error:
        print(f"run_experiment.py: error: {_message(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nInterrupted. The same command goes on.", file=sys.stderr)
        return 130


def exit_status(failed: int) -> int:
    """As `STATUS` says: the number of failed runs, with 2 left out and none above 64."""
    return min(failed if failed < 2 else failed + 1, 64)


def _message(error: Exception) -> str:
    return f"{error.filename}: {error.strerror}" if isinstance(error, OSError) and error.filename else str(error)


def _run_all(arguments: argparse.Namespace, signals: run_progress.StopSignals) -> int:
    from experiment_configs.schema import ConfigError
    from runs import run as runs
    from train import Stopped

    if arguments.tensorboard and importlib.util.find_spec("tensorboardX") is None:
        raise ConfigError("--tensorboard needs a package that is not installed: pip install tensorboardX")
    configs, lines = _checked_configs(arguments)
    overwriting = _overwriting(configs) if arguments.overwrite else None
    if overwriting is None:
        _require_same_runs(configs)
    for config in configs:
        runs.run_folder(config, config.seeds[0]).parent.mkdir(parents=True, exist_ok=True)
    print(*lines, sep="\n", file=sys.stderr)
    results = []
    try:
        for config in configs:
            of_seeds = [_attempt(config, seed, arguments, signals, overwriting) for seed in config.seeds]
            results.append((config, of_seeds))
    except Stopped as stopped:
        print(f"{signals.received} received: {stopped}; the same command goes on from there.", file=sys.stderr)
        return run_progress.RESUMABLE
    if overwriting is not None:
        overwriting.end()
    print(f"\n{_table(results)}")
    results = [result for _, of_seeds in results for result in of_seeds]
    failed = sum(result["status"] != "completed" for result in results)
    if failed:
        print(f"{failed} of {len(results)} runs failed.", file=sys.stderr)
    nothing_done = all(result["status"] == "refused" or result.get("kept") for result in results)
    return 2 if failed and nothing_done else exit_status(failed)


def _overwriting(configs):
    """What an --overwrite command has begun anew in the sittings before, told on stderr."""
    from runs.overwriting import Overwriting

    overwriting = Overwriting(configs)
    overwriting.begun -= _made_otherwise(configs, overwriting.begun).keys()
    if overwriting.begun:
        print(
            f"--overwrite: {len(overwriting.begun)} runs that this command began anew before it was stopped go on or "
            f"are kept; remove {overwriting.path} to start them anew, too.",
            file=sys.stderr,
        )
    return overwriting


def _require_same_runs(configs) -> None:
    """Refuse runs whose folder holds one that was made with another config or on other data."""
    from runs import run as runs

    folders = {runs.run_folder(config, seed) for config in configs for seed in config.seeds}
    for refused in _made_otherwise(configs, folders).values():
        raise refused


def _made_otherwise(configs, folders: set[Path]) -> dict:
    """Of these folders, those whose run was made with another config or on other data: folder -> `RunRefused`."""
    from runs import facts as run_facts
    from runs import run as runs

    data, found = {}, {}
    for config in configs:
        for seed in config.seeds:
            folder = runs.run_folder(config, seed)
            if folder not in folders or not (folder / runs.CONFIG).exists():
                continue
            options = (seed, *config.data_options().values())
            if options not in data:
                data[options] = runs.facts_of_data(config, seed)
            try:
                run_facts.require_same_run(folder, run_facts.decisive_facts(config, seed, data[options]))
            except run_facts.RunRefused as refused:
                found[folder] = refused
    return found


def _plan_all(arguments: argparse.Namespace) -> int:
    from runs import planning

    plans = []
    configs, lines = _checked_configs(arguments)
    if not arguments.overwrite:
        _require_same_runs(configs)
    print(*lines, sep="\n", file=sys.stderr)
    for config in configs:
        print(f"Timing {_title(config)}", file=sys.stderr)
        plans.append(planning.plan(config, overwrite=arguments.overwrite))
    print(_plan_table(plans, datetime.now()))
    return 0


def _evaluate(arguments: argparse.Namespace) -> int:
    import jax

    from runs import prediction

    part = getattr(arguments, "split", "test")
    found = prediction.evaluate_run(
        arguments.evaluate, part=part, data_dir=getattr(arguments, "data_dir", None), own_units=arguments.own_units
    )
    run, then, now, differences = found.run, found.recorded, found.recomputed, found.differences()
    equal = then == now
    print(
        f"{_title(run.config)} seed {run.record['seed']}, {part} {run.config.metric}: recorded {then.metric}, "
        f"recomputed {now.metric}: {'equal' if equal else 'DIFFERENT'}"
        + (f" ({'; '.join(differences)})" if differences else "")
    )
    if not equal:
        there = f"{run.record.get('device')} with jax {run.record.get('versions', {}).get('jax')}"
        here = f"{jax.devices()[0].device_kind} with jax {jax.__version__}"
        print(f"Recorded on {there}, recomputed on {here}; another one may round otherwise.", file=sys.stderr)
    return 0 if equal else 1


def _predict(arguments: argparse.Namespace) -> int:
    from runs import prediction

    output = getattr(arguments, "output", None)
    written = prediction.predict_file(
        arguments.run, arguments.predict, output, overwrite=arguments.overwrite, own_units=arguments.own_units
    )
    print(f"{written.path}: {written.series} series, by {_title(written.run.config)} ({arguments.run})")
    return 0


def _title(config) -> str:
    return f"{config.dataset_name} {config.model_name} {config.learning_algorithm}"


def _checked_configs(arguments: argparse.Namespace) -> tuple[list, list[str]]:
    """The configs to run, and lines about the shapes of their data sets and what is odd about them.

    What can be refused is refused here, and not after hours spent on the runs before.
    """
    from runs import planning

    configs, checked = _configs(arguments), {}
    for number, config in enumerate(configs):
        # Of configs that differ in model and algorithm alone, one is enough.
        alike = (config.batch_size, config.seeds, *config.data_options().values())
        if alike not in checked:
            checked[alike] = planning.check_data(config)
        configs[number] = config.completed(checked[alike].output_step)
    return configs, list(dict.fromkeys(line for data in checked.values() for line in data.lines))


def _configs(arguments: argparse.Namespace) -> list:
    """The configs that the command line names, with the flags laid over them: by data set, model and algorithm."""
    from data_dir.datasets import PPG, PUBLISHED_UEA, processed_datasets
    from data_dir.storage import DataError, script_command
    from experiment_configs.schema import ConfigError, config_path, load_config

    given = vars(arguments)
    changes = {name: given[name] for name in OVERRIDES if name in given}
    models = _expanded(given.get("model_name", MODEL_NAMES[:1]), MODEL_NAMES)
    algorithms = _expanded(given.get("learning_algorithm", ()), PUBLISHED_ALGORITHMS)
    # Without the flag there is one round, in which the config decides.
    rounds = [changes | {"learning_algorithm": algorithm} for algorithm in algorithms] or [changes]

    def load(name):
        for model in models:
            path = config_path(arguments.config_dir, model, name)
            config = load_config(path, model, own_units=arguments.own_units)
            if config.dataset_name != name:
                raise ConfigError(
                    f'{path}: dataset_name is "{config.dataset_name}": allowed is the name of the file, {name}'
                )
            for flags in rounds:
                yield config.replace(flags, source=f"{path} with the flags") if flags else config

    def is_processed(config):
        return config.dataset_name in processed_datasets(config.data_dir)

    named = given.get("dataset_name", PUBLISHED_UEA)
    configs = [config for name in _expanded(named, (*PUBLISHED_UEA, PPG)) for config in load(name)]
    if "dataset_name" not in given:
        configs = [config for config in configs if is_processed(config)]
        if configs:
            print("Processed UEA sets:", ", ".join(dict.fromkeys(config.dataset_name for config in configs)))
            return configs
        configs = list(load(FALLBACK_SET))
        data_dir = configs[0].data_dir
        print(
            f"None of the six UEA sets is processed in {data_dir}. These commands fetch and process two of them:\n"
            f"    {script_command('download_uea.py', data_dir, '--datasets', *SMALL_UEA_SETS)}\n"
            f"    {script_command('process_uea.py', data_dir)}\n"
            f"Running {FALLBACK_SET}, which needs no download."
        )
    elif ALL in named:
        wanted = [config for config in configs if config.dataset_name in named or is_processed(config)]
        for config in {config.dataset_name: config for config in configs if config not in wanted}.values():
            print(f"Left out: {_how_to_get(config)}")
        if not wanted:
            raise DataError("--dataset_name all: none of the seven published sets is processed (see above).")
        return wanted
    return configs


def _expanded(names, everything) -> list[str]:
    """The names without repeats, with `ALL` replaced by what it stands for."""
    return list(dict.fromkeys(each for name in names for each in (everything if name == ALL else (name,))))


def _how_to_get(config) -> str:
    """What a data set that is not there says about how it is had."""
    from data_dir.storage import DataError
    from runs import planning

    try:
        planning.check_data(config)
    except DataError as error:
        return str(error)


def _attempt(config, seed: int, arguments: argparse.Namespace, signals, overwriting) -> dict:
    """As `_run`, but what ends one run is reported as its failure, so that the others go on."""
    import jax

    from data_dir.storage import DataError
    from experiment_configs.schema import ConfigError
    from runs import run as runs
    from runs.facts import RunRefused
    from train import Stopped
    from training.checkpoints import CheckpointError

    try:
        return _run(config, seed, arguments, signals, overwriting)
    except Stopped:
        raise
    except RunRefused as error:
        print(f"{_title(config)} seed {seed}: REFUSED, {error}")
        return {"status": "refused", "error": str(error)}
    except Exception as error:
        if not isinstance(
            error, (CheckpointError, ConfigError, DataError, OSError, MemoryError, jax.errors.JaxRuntimeError)
        ):
            traceback.print_exc()
        message = _message(error) or type(error).__name__
        print(f"{_title(config)} seed {seed}: FAILED, {message} ({runs.run_folder(config, seed)})")
        return {"status": "failed", "error": message}


def _run(config, seed: int, arguments: argparse.Namespace, signals, overwriting) -> dict:
    """One run with its progress on stderr and a line on stdout; a finished one is only reported."""
    from runs import run as runs
    from runs.display import RunProgress

    folder = runs.run_folder(config, seed)
    name = f"{_title(config)} seed {seed}"
    clear = overwriting is not None and folder not in overwriting.begun
    finished = None if clear else runs.finished_result(folder)
    if finished is not None:
        print(f"{name}: kept, {_outcome(config, finished)} ({folder})")
        return {**finished, "kept": True}
    with RunProgress(name, config, folder / runs.EVENTS if arguments.tensorboard else None) as progress:
        result = runs.run_seed(
            config,
            seed,
            overwrite=clear,
            on_overwrite=lambda: overwriting.add(folder),
            stop=lambda: signals.received is not None,
            on_step=progress.step,
            on_evaluation=progress.evaluation,
            on_resume=progress.resume,
        )
    if result["status"] == "completed":
        print(f"{name}: {_outcome(config, result)}, {result['seconds']:.1f} s ({folder})")
    else:
        print(f"{name}: FAILED, {result['error']} ({folder})")
    return result


def _outcome(config, result: dict) -> str:
    return (
        f"test {config.metric} {result['test_metric']:.4f}, validation {result['val_metric']:.4f} at step"
        f" {result['best_step']} of {result['steps']}"
    )


def _table(results: list) -> str:
    """Mean and sample standard deviation over the completed seeds, one line per data set."""
    rows = [("data set", "model", "algorithm", "seeds", "failed", "metric", "test", "validation")]
    for config, of_seeds in results:
        completed = [result for result in of_seeds if result["status"] == "completed"]
        scale, metric = (100, "accuracy, %") if config.classification else (1, "mse")
        columns = [[scale * result[f"{split}_metric"] for result in completed] for split in ("test", "val")]
        rows.append(
            (
                *(config.dataset_name, config.model_name, config.learning_algorithm),
                *(str(len(completed)), str(len(of_seeds) - len(completed)), metric),
                *(tables.mean_and_std(column, digits=1 if config.classification else 4) for column in columns),
            )
        )
    note = "test and validation: mean ± sample standard deviation over the seeds, best model by validation"
    return f"{tables.aligned(rows)}\n{note}"


def _plan_table(plans: list, now: datetime) -> str:
    """A line for each plan, and when all of them would be done."""
    sizes = ("temporaries", "arguments", "disk")
    rows = [("data set", "model", "algorithm", "runs", "parameters", *sizes, "s / 1000 steps", "at most")]
    for plan in plans:
        config = plan.config
        rows.append(
            (
                *(config.dataset_name, config.model_name, config.learning_algorithm),
                *(str(plan.runs), f"{plan.parameters:,}"),
                *(f"{getattr(plan, size) / 2**20:,.1f} MiB" for size in sizes),
                *(f"{plan.per_1000_steps:,.1f}", _duration(plan.longest)),
            )
        )
    seconds = math.fsum(plan.longest for plan in plans)
    return (
        f"{tables.aligned(rows)}\n"
        f"{sum(plan.runs for plan in plans)} runs, one after the other: at most {_duration(seconds)}, until "
        f"{now + timedelta(seconds=seconds):%Y-%m-%d %H:%M}. Early stopping ends runs before.\n"
        "temporaries and arguments: memory of a step by XLA's own analysis; the data and a second copy of the model "
        "come on top. disk: of all these runs."
    )


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(math.ceil(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h" if days else f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s"


if __name__ == "__main__":
    status = main()
    run_progress.ignore_signals()
    sys.exit(status)
