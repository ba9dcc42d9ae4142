"""The command line of run_experiment.py: its flags, their types, and which flags go together. Imports no jax."""

import argparse
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
STATUS = (
    "Exit status: 0; 1 if a run failed, if a row of --plan could not be measured, or if the metric, the loss or an "
    "output differs for --evaluate; 2 if the command was refused and no run was trained, or if the output of --plan or "
    "--evaluate could not be printed; 75 if SIGTERM, SIGINT or SIGUSR1 stopped a training: the same command resumes; "
    "76 if another process of --distributed was lost: the same command resumes; 130 after a second SIGINT."
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
        "combinations, each in a folder of its own below --output_parent_dir",
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


def _add_other_uses(group) -> None:
    add = group.add_mutually_exclusive_group().add_argument
    add("--plan", action="store_true", help="print the memory, disk and time that the runs would take")
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
    """ "plan", "evaluate" or "predict" if the flag is given, else "train"."""
    return next((use for use in ("plan", "evaluate", "predict") if use in arguments), "train")


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
        distributed.place_of(arguments)
    except ValueError as error:
        flags.error(str(error))
    if use == "train" and "no_timing" in given:
        flags.error("--no_timing: it goes with --plan")
    if "seeds_together" in given and use == "plan":
        flags.error("--seeds_together: --plan measures single runs: leave one of the two out")
    if "seeds_together" in given and getattr(arguments, "devices", 1) not in (1, ALL):
        flags.error("--seeds_together: the seeds of a config share one device: leave --devices out")
    if "seeds_together" in given and arguments.distributed:
        flags.error("--seeds_together: the seeds of a config share one device: leave --distributed out")
    if use in ("train", "plan"):
        surplus = given & {"split", "run", "output"}
        reason = "it goes with --evaluate or --predict"
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
    for name in given & arguments.set.keys():
        flags.error(f"--set: {name} is given twice, here and by --{name}")
    return arguments


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
