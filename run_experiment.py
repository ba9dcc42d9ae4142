"""Train models on data sets, as a config says: `python run_experiment.py --help`.

Without a flag it trains LinHRU by RHEL on those of the six UEA sets of the published experiments that are processed,
and where none is, on BasicMotions, which needs no download. Every run leaves its files in its folder (see `runs`); a
run that is finished there is kept and reported, one that is unfinished goes on. SIGTERM, SIGINT and SIGUSR1 end it once
the steps at work are done and saved; a second SIGINT ends it at once. Exit status: 0, or 1 if a run failed, or 2 if
what was asked for cannot be done, or 75 if a signal ended it and the same command goes on.
"""

import argparse
import contextlib
import importlib.util
import os
import signal
import socket
import statistics
import sys
import threading
from pathlib import Path

import compilation_cache
from experiment_configs import LEARNING_ALGORITHMS, MODEL_NAMES

CONFIG_DIR = Path(__file__).resolve().parent / "experiment_configs" / "repeats"
FALLBACK_SET = "BasicMotions"
SMALL_UEA_SETS = ("SelfRegulationSCP1", "SelfRegulationSCP2")  # small enough to be fetched by the way
OVERRIDES = (
    *("learning_algorithm", "seeds", "data_dir", "output_parent_dir", "num_steps", "print_steps", "batch_size"),
    *("checkpoint_steps", "skip_nonfinite"),
)
RESUMABLE = 75  # exit status, EX_TEMPFAIL of sysexits.h


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
        epilog="Exit status: 0; 1 if a run failed; 2 if what was asked for cannot be done; 75 if SIGTERM, SIGINT or "
        "SIGUSR1 ended it: the same command goes on.",
        allow_abbrev=False,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    unset = {"default": argparse.SUPPRESS}
    add = result.add_argument
    add("--model_name", choices=MODEL_NAMES, default=MODEL_NAMES[0], help="the model")
    add(
        "--dataset_name",
        **unset,
        nargs="+",
        metavar="NAME",
        help=f"one or several data sets (without it: the UEA sets that are processed, else {FALLBACK_SET})",
    )
    add("--learning_algorithm", **unset, choices=LEARNING_ALGORITHMS, help="how the gradient is found (default: RHEL)")
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
    add("--tensorboard", action="store_true", help="write event files too; needs tensorboardX")
    add("--double_precision", action="store_true", help="compute in float64")
    add("--overwrite", action="store_true", help="start runs anew, finished or not")
    compilation_cache.add_flag(result)
    return result


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return its exit status. A flag that is wrong raises `SystemExit`, as argparse does."""
    arguments = parser().parse_args(argv)
    # From here on and not at the top, so that --help and a mistyped flag answer at once.
    import jax

    from checkpoints import CheckpointError
    from data_dir.storage import DataError
    from experiment_configs.schema import ConfigError
    from train import Stopped

    precision = jax.enable_x64(True) if arguments.double_precision else contextlib.nullcontext()
    try:
        with precision, compilation_cache.enabled(arguments.compilation_cache), _Signals() as signals:
            return _run_all(arguments, signals)
    except (CheckpointError, ConfigError, DataError) as error:
        print(f"run_experiment.py: error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print(f"run_experiment.py: error: {where}{error.strerror}", file=sys.stderr)
        return 2
    except Stopped as stopped:
        print(f"{signals.received} received: {stopped}; the same command goes on from there.", file=sys.stderr)
        return RESUMABLE
    except KeyboardInterrupt:
        print("\nInterrupted. The same command goes on.", file=sys.stderr)
        return 130


class _Signals:
    """Notes a signal that asks for an end; a second SIGINT ends the process, with status 130. For the main thread."""

    _HEARD = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)

    def __init__(self):
        self.received: str | None = None

    def __enter__(self):
        self._before = {number: signal.signal(number, self._note) for number in self._HEARD}
        self._heard, self._hears = socket.socketpair()
        self._hears.setblocking(False)
        signal.set_wakeup_fd(self._hears.fileno())
        threading.Thread(target=self._count, args=(self._heard,), name="signals", daemon=True).start()
        return self

    def __exit__(self, *_):
        signal.set_wakeup_fd(-1)
        self._hears.close()  # which ends the thread
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number, _):
        self.received = signal.Signals(number).name

    @staticmethod
    def _count(heard):
        """A thread of its own, because Python's handlers wait until jax is done. Files are whole at any moment."""
        interrupts = 0
        with heard:
            while number := heard.recv(1):
                interrupts += number[0] == signal.SIGINT
                if interrupts == 2:
                    os._exit(128 + signal.SIGINT)


def _run_all(arguments: argparse.Namespace, signals: _Signals) -> int:
    import runs
    from experiment_configs.schema import ConfigError

    if arguments.tensorboard and importlib.util.find_spec("tensorboardX") is None:
        raise ConfigError("--tensorboard needs a package that is not installed: pip install tensorboardX")
    configs = _configs(arguments)
    if not arguments.overwrite:
        for config in configs:
            for seed in config.seeds:
                runs.require_same_config(config, runs.run_folder(config, seed))
    results = [(config, [_run(config, seed, arguments, signals) for seed in config.seeds]) for config in configs]
    print(f"\n{_table(results)}")
    failed = sum(result["status"] != "completed" for _, of_seeds in results for result in of_seeds)
    if failed:
        print(f"{failed} of {sum(len(of_seeds) for _, of_seeds in results)} runs failed.", file=sys.stderr)
    return 1 if failed else 0


def _configs(arguments: argparse.Namespace) -> list:
    """The configs to run, with the flags laid over them; what can be checked before the first run is checked here."""
    from data_dir.datasets import BUNDLED, PUBLISHED_UEA, create_dataset, processed_datasets
    from data_dir.storage import script_command
    from experiment_configs.schema import ConfigError, config_path, load_config

    given = vars(arguments)
    changes = {name: given[name] for name in OVERRIDES if name in given}

    def load(name):
        path = config_path(arguments.config_dir, arguments.model_name, name)
        config = load_config(path, arguments.model_name)
        if config.dataset_name != name:
            raise ConfigError(
                f'{path}: dataset_name is "{config.dataset_name}": allowed is the name of the file, {name}'
            )
        return config.replace(changes, source=f"{path} with the flags") if changes else config

    def is_processed(config):
        return config.dataset_name in processed_datasets(config.data_dir)

    if "dataset_name" in given:
        configs = [load(name) for name in dict.fromkeys(given["dataset_name"])]
        for config in configs:
            if config.dataset_name not in BUNDLED and not is_processed(config):
                # It raises and says how to get the set; better now than after hours spent on the sets before.
                create_dataset(config.data_dir, config.dataset_name, seed=config.seeds[0], time=config.time)
        return configs

    configs = [config for config in map(load, PUBLISHED_UEA) if is_processed(config)]
    if configs:
        print("Processed UEA sets:", ", ".join(config.dataset_name for config in configs))
        return configs
    fallback = load(FALLBACK_SET)
    print(
        f"None of the six UEA sets is processed in {fallback.data_dir}. These commands fetch and process two of them:\n"
        f"    {script_command('download_uea.py', fallback.data_dir, '--datasets', *SMALL_UEA_SETS)}\n"
        f"    {script_command('process_uea.py', fallback.data_dir)}\n"
        f"Running {FALLBACK_SET}, which needs no download."
    )
    return [fallback]


def _run(config, seed: int, arguments: argparse.Namespace, signals: _Signals) -> dict:
    """One run with its progress on stderr and a line on stdout; a finished one is only reported."""
    import runs

    folder = runs.run_folder(config, seed)
    name = f"{config.dataset_name} {config.model_name} {config.learning_algorithm} seed {seed}"
    finished = None if arguments.overwrite else runs.finished_result(folder)
    if finished is not None:
        print(f"{name}: kept, {_outcome(config, finished)} ({folder})")
        return finished
    with _Progress(name, config, folder / runs.EVENTS if arguments.tensorboard else None) as progress:
        result = runs.run_seed(
            config,
            seed,
            overwrite=arguments.overwrite,
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


class _Progress:
    """A bar with loss and metric on a terminal; one line per evaluation where stderr goes elsewhere.

    With a folder for `events` there are event files for TensorBoard in it.
    """

    def __init__(self, name: str, config, events: Path | None):
        from tqdm import tqdm

        self.name, self.config = name, config
        self.interactive = sys.stderr.isatty()
        self.bar = tqdm(
            total=config.num_steps,
            desc=name,
            unit="step",
            disable=not self.interactive,
            leave=False,
            dynamic_ncols=True,
        )
        self.validation = ""
        self.events, self.writer = events, None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.bar.close()
        if self.writer is not None:
            self.writer.close()

    def resume(self, step: int, damaged: dict[int, str]) -> None:
        for number, problem in damaged.items():
            print(f"{self.name}: the checkpoint of step {number} is damaged: {problem}", file=sys.stderr)
        print(f"{self.name}: goes on from step {step}", file=sys.stderr)
        self.bar.update(step)

    def step(self, _, loss: float) -> None:
        self.bar.set_postfix_str(f"loss {loss:.4f}{self.validation}", refresh=False)
        self.bar.update()

    def evaluation(self, evaluation) -> None:
        metric = self.config.metric
        self.validation = f", validation {metric} {evaluation.val_metric:.4f}"
        if not self.interactive:
            print(
                f"{self.name} step {evaluation.step}/{self.config.num_steps}: loss {evaluation.loss:.4f}, {metric} "
                f"{evaluation.train_metric:.4f} (validation {evaluation.val_metric:.4f}), {evaluation.seconds:.1f} s",
                file=sys.stderr,
            )
        if self.events is None:
            return
        if self.writer is None:
            from tensorboardX import SummaryWriter

            # What an earlier process wrote of this step and later ones counts no more.
            self.writer = SummaryWriter(str(self.events), purge_step=evaluation.step)
        for field, value in evaluation._asdict().items():
            if value is not None and field != "step":
                self.writer.add_scalar(field, value, evaluation.step)
        self.writer.flush()


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
                *(_mean_and_std(column, digits=1 if config.classification else 4) for column in columns),
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join(
        [*lines, "test and validation: mean ± sample standard deviation over the seeds, best model by validation"]
    )


def _mean_and_std(values: list[float], digits: int) -> str:
    if not values:
        return "-"
    std = f"{statistics.stdev(values):.{digits}f}" if len(values) > 1 else "n/a"
    return f"{statistics.fmean(values):.{digits}f} ± {std}"


if __name__ == "__main__":
    sys.exit(main())
