"""The command line of run_experiment.py: its flags, their types, and which flags go together. Imports no jax."""

import argparse
import math
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from data_dir.names import nearest_name
from experiment_configs import LEARNING_ALGORITHMS, MODEL_NAMES
from runs import compilation_cache, distributed, settings

CONFIG_DIR = Path(__file__).resolve().parents[1] / "experiment_configs" / "repeats"
FALLBACK_SET = "BasicMotions"
PUBLISHED_ALGORITHMS = ("RHEL", "BPTT")
ALL = "all"
# Flags that override the config field of the same name.
OVERRIDES = (
    *("seeds", "data_dir", "output_parent_dir", "num_steps", "print_steps", "batch_size"),
    *("checkpoint_steps", "skip_nonfinite"),
)
# The flags that --evaluate and --predict read. Training and --plan read all flags except --split, --run and --output;
# only --plan reads --no_timing.
KEPT_RUN_FLAGS = {
    "evaluate": {"evaluate", "split", "devices", "data_dir", "own_units", "compilation_cache"},
    "predict": {"predict", "run", "output", "overwrite", "devices", "own_units", "compilation_cache"},
}
# The flags of --submit. Those of SLURM have no effect on --cluster local.
_OF_SLURM = ("partition", "account", "gpus_per_run", "cpus_per_run", "mem", "array_parallelism")
LEAST_MINUTES = 5  # of --time, see `runs.submitting.SECONDS_TO_SAVE`
CLUSTER_FLAGS = ("cluster", "time", *_OF_SLURM)
STATUS = (
    "Exit status: 0, for --submit as soon as the runs are submitted; 1 if a run failed, if a row of --plan could not "
    "be measured, or if the metric, the loss or an output differs for --evaluate; 2 if the command was refused and no "
    "run was trained or submitted, or if the output of --plan or --evaluate could not be printed; 75 if SIGTERM, "
    "SIGINT, SIGUSR1 or SIGUSR2 stopped a training: the same command resumes; 76 if another process of --distributed "
    "was lost: the same command resumes; 130 after a second SIGINT."
)


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        self.exit(2, f"{self.prog}: error: {message.removeprefix('argument ')} (--help lists the flags)\n")


def _whole_number(what: str, least: int, below: float = float("inf")) -> Callable[[str], int]:
    def convert(text):
        with suppress(ValueError):
            if least <= int(text) < below:
                return int(text)
        raise argparse.ArgumentTypeError(f"{text!r} is not {what}")

    return convert


_positive = _whole_number("a whole number of at least 1", 1)
_whole = _whole_number("a whole number of at least 0", 0)
_seed = _whole_number("a whole number from 0 to 4294967295", 0, 2**32)


def _devices(text: str) -> int | str:
    return text if text == ALL else _whole_number(f"a whole number of at least 1, or {ALL}", 1)(text)


def _minutes(text: str) -> int:
    """The minutes of a time limit, written as for sbatch: minutes, MM:SS, HH:MM:SS, D-HH, D-HH:MM or D-HH:MM:SS."""
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", text, re.ASCII)
    if match is None:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a time limit: minutes, HH:MM:SS or D-HH:MM:SS (the field time of a config: --set)"
        )
    days, *parts = (None if part is None else int(part) for part in match.groups())
    given = [part for part in parts if part is not None]
    if days is None:
        given = [0] * (3 - len(given)) + given if len(given) > 1 else [0, *given]
    hours, minutes, seconds = [*given, 0, 0][:3]
    total = math.ceil(((days or 0) * 24 + hours) * 60 + minutes + seconds / 60)
    if total < LEAST_MINUTES:
        raise argparse.ArgumentTypeError(
            f"{text!r}: the limit must be at least {LEAST_MINUTES} minutes: a task is saved up to 3 minutes before it"
        )
    return total


def parser() -> argparse.ArgumentParser:
    """All flags. A flag that is not given leaves the config as it is."""
    result = _Parser(
        prog="run_experiment.py",
        description="Train models on data sets. A flag overrides the field of the same name in the config.",
        epilog=STATUS,
        allow_abbrev=False,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        argument_default=argparse.SUPPRESS,
    )
    _add_training(result)
    _add_many_runs(result.add_argument_group("many runs"))
    _add_other_uses(result.add_argument_group("instead of training"))
    return result


def _add_training(flags) -> None:
    add = flags.add_argument
    several = {"nargs": "+"}
    add(
        "--model_name",
        **several,
        metavar="NAME",
        help=f"one or several of {', '.join(MODEL_NAMES)}, {ALL}; with --own_units, other folders of configs, too "
        f"(default: {MODEL_NAMES[0]})",
    )
    add(
        "--dataset_name",
        **several,
        metavar="NAME",
        help=f"one or several data sets; {ALL}: the seven published sets, as far as they are processed (without it: "
        f"the UEA sets among them, else {FALLBACK_SET})",
    )
    add(
        "--learning_algorithm",
        **several,
        choices=(*LEARNING_ALGORITHMS, ALL),
        help=f"one or several ways to compute the gradient; {ALL}: the published {' and '.join(PUBLISHED_ALGORITHMS)} "
        "(default: RHEL)",
    )
    add("--seeds", **several, type=_seed, metavar="SEED", help="one run for each (without it: the seeds of the config)")
    add(
        "--config_dir",
        type=Path,
        default=CONFIG_DIR,
        metavar="DIR",
        help="group of configs: DIR/<model_name>/<dataset_name>.json",
    )
    add("--data_dir", metavar="DIR", help="folder of the data, with raw/ and processed/")
    add("--output_parent_dir", metavar="DIR", help="folder that the runs are written to")
    add("--num_steps", type=_positive, metavar="N", help="most steps of training")
    add("--print_steps", type=_positive, metavar="N", help="steps from one evaluation to the next")
    add("--batch_size", type=_positive, metavar="N", help="samples per step")
    add("--checkpoint_steps", type=_positive, metavar="N", help="steps from one checkpoint to the next")
    add("--skip_nonfinite", type=_whole, metavar="N", help="most steps to skip because they are not finite")
    add(
        "--set",
        **several,
        action="extend",
        metavar="FIELD=VALUE",
        help="any field of the config, as in lr=0.003; a list, as in lr=0.001,0.003 hidden_dim=16,32, makes all "
        "combinations, each in a folder of its own below --output_parent_dir; @FILE reads the lines of a file",
    )
    no = {"action": "store_true", "default": False}
    add(
        "--own_units",
        **no,
        help="run the Python file that a config, or the config.json of a run, names as its unit, and the program that "
        "it names as its machine",
    )
    add("--tensorboard", **no, help="write event files too; needs tensorboardX")
    add(
        "--devices",
        type=_devices,
        metavar="N",
        help=f"number of devices that divide each batch among them, or {ALL} (without it: all accelerators of the "
        "machine that can divide a batch equally; one CPU; for --evaluate and --predict: as many as the run had)",
    )
    distributed.add_flags(flags, _whole, _positive)
    add(
        "--seeds_together",
        **no,
        help="train the seeds of a config at the same time, in one program on one device. The results are those of one "
        "seed after the other, up to rounding",
    )
    add("--double_precision", **no, help="compute in float64")
    add(
        "--overwrite",
        **no,
        help="remove earlier runs and start again; after a stop, the same command resumes. For --predict: replace the "
        "file of predictions",
    )
    compilation_cache.add_flag(flags)


def _add_many_runs(group) -> None:
    add = group.add_argument
    add(
        "--jobs",
        type=_positive,
        metavar="N",
        help="train N runs at a time on this machine, each in a process that has its own cores and GPUs",
    )
    add(
        "--submit",
        action="store_true",
        help="give the runs to a cluster as tasks of one job array; needs submitit: requirements-cluster.txt",
    )
    add(
        "--cluster",
        choices=("slurm", "local"),
        help="for --submit: slurm (default), or local: processes in the background of this machine, all at once",
    )
    add("--partition", metavar="NAME", help="for --submit: the partition of SLURM")
    add("--account", metavar="NAME", help="for --submit: the account of SLURM")
    add(
        "--time",
        type=_minutes,
        metavar="LIMIT",
        help="for --submit: time limit of a task, in minutes or as HH:MM:SS; a run that reaches it is saved, queued "
        "again and resumed (without it: 4 hours)",
    )
    add(
        "--gpus_per_run",
        type=_whole,
        metavar="N",
        help="GPUs of each run (without it: none for --submit; an equal share of the GPUs for --jobs)",
    )
    add(
        "--cpus_per_run",
        type=_positive,
        metavar="N",
        help="for --submit: cores of each run (without it: SLURM's default)",
    )
    add("--mem", type=_positive, metavar="GB", help="for --submit: memory of each run (without it: SLURM decides)")
    add("--array_parallelism", type=_positive, metavar="N", help="for --submit: most tasks at a time (default: 256)")


def _add_other_uses(group) -> None:
    add = group.add_mutually_exclusive_group().add_argument
    add("--plan", action="store_true", help="print the memory, disk and time that the runs would take")
    add(
        "--status",
        action="store_true",
        help="print a table of the runs that the other flags name: done, running, waiting, failed; also of runs that "
        "were not submitted",
    )
    add("--evaluate", type=Path, metavar="RUN_FOLDER", help="compute the recorded metric of a run again")
    add(
        "--predict",
        type=Path,
        metavar="FILE",
        help="write what the model of --run predicts for an npy array (N, L, C), a ts file or a table, as CSV",
    )
    add = group.add_argument
    add("--no_timing", action="store_true", default=False, help="for --plan: memory and disk only")
    add("--split", choices=("train", "validation", "test"), help="for --evaluate: the part (default: test)")
    add("--run", type=Path, metavar="RUN_FOLDER", help="for --predict: the run whose model predicts")
    add(
        "--output",
        type=Path,
        metavar="CSV",
        help="for --predict: the file to write (default: FILE_predictions.csv beside FILE)",
    )


def use_of(arguments: argparse.Namespace) -> str:
    """ "plan", "status", "evaluate", "predict" or "submit" if the flag is given, else "train"."""
    return next((use for use in ("plan", "status", "evaluate", "predict", "submit") if use in arguments), "train")


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line, checked: a flag that would have no effect is an error."""
    flags = parser()
    arguments, unknown = flags.parse_known_args(argv)
    if unknown:
        flags.error(f"unrecognized arguments: {' '.join(unknown)}{_meant(unknown, flags)}")
    for name in () if arguments.own_units else getattr(arguments, "model_name", ()):
        if name not in (*MODEL_NAMES, ALL):
            near = nearest_name(name, MODEL_NAMES)
            flags.error(
                f"--model_name: invalid choice: {name!r}: {f'did you mean {near}? ' if near else ''}choose from "
                f"{', '.join(MODEL_NAMES)}, {ALL}; your own unit needs --own_units"
            )
    given = {name for name, value in vars(arguments).items() if value != flags.get_default(name)}
    use = use_of(arguments)
    try:
        place = None if use == "status" else distributed.place_of(arguments)
    except ValueError as error:
        flags.error(str(error))
    if use in ("train", "status", "submit") and "no_timing" in given:
        flags.error("--no_timing: it goes with --plan")
    for problem in _clashes_of_together(arguments, use, place) if "seeds_together" in given else ():
        flags.error(f"--seeds_together: {problem}")
    if use in ("train", "plan", "status", "submit"):
        surplus = given & {"split", "run", "output"}
        reason = "it goes with --evaluate or --predict"
        if not surplus:
            surplus, reason = _surplus_of_many_runs(given, arguments, use)
    else:
        surplus = given - KEPT_RUN_FLAGS[use]
        reason = f"it has no effect on --{use}, which takes the settings of the run"
    if surplus:
        flags.error(f"--{min(surplus)}: {reason}")
    if use == "predict" and "run" not in arguments:
        flags.error("--predict: --run RUN_FOLDER is missing, the run whose model predicts")
    try:
        arguments.set = settings.parse(getattr(arguments, "set", ()))
    except ValueError as error:
        flags.error(f"--set: {error}")
    for name in given & arguments.set.keys() & set(OVERRIDES):
        flags.error(f"--set: {name} is given twice, here and by --{name}")
    return arguments


def _clashes_of_together(arguments: argparse.Namespace, use: str, place: distributed.Place | None) -> list[str]:
    """Why --seeds_together does not go with the other flags."""
    clashes = {
        "--plan measures single runs: leave one of the two out": use == "plan",
        "with --jobs and --submit every run has a process of its own: leave one of the two out": use == "submit"
        or (use == "train" and "jobs" in arguments),
        "the seeds of a config share one device: leave --devices out": use == "train"
        and getattr(arguments, "devices", 1) not in (1, ALL),
        "the seeds of a config share one device: leave --distributed out": place is not None,
    }
    return [text for text, applies in clashes.items() if applies]


def _surplus_of_many_runs(given: set[str], arguments: argparse.Namespace, use: str) -> tuple[set[str], str]:
    """Flags for many runs that would have no effect, and why. --status takes all of them, and ignores them."""
    if use == "status":
        return set(), ""
    if use == "plan":
        return given & {"jobs", "submit", *CLUSTER_FLAGS}, "it has no effect on --plan"
    if use == "submit" and "jobs" in given:
        return {"jobs"}, "it trains on this machine, --submit on a cluster: give one of them"
    if use == "submit":
        local = getattr(arguments, "cluster", None) == "local"
        return given & set(_OF_SLURM) if local else set(), "it goes with --cluster slurm"
    alone = set(CLUSTER_FLAGS) - ({"gpus_per_run"} if "jobs" in given else set())
    return given & alone, "it goes with --submit" + " or --jobs" * ("jobs" not in given and "gpus_per_run" in given)


def _meant(unknown: list[str], flags: argparse.ArgumentParser) -> str:
    """A hint for the first unknown flag: the flag of a similar name, or --set for a field of the configs."""
    from experiment_configs.schema import config_class  # it imports jax, which a correct command spares
    from experiment_configs.wording import field_meant

    flag, _, value = unknown[0].partition("=")
    name = flag.removeprefix("--")
    if name == flag:
        return ""
    names = [option.removeprefix("--") for option in flags._option_string_actions]
    meant = field_meant(name, [*config_class(None).model_fields, *names])
    if meant is None or meant in names:
        return f"; did you mean --{meant}?" if meant else ""
    value = value or next((text for text in unknown[1:] if not text.startswith("--")), "VALUE")
    return f"; did you mean --set {meant}={value}?"
