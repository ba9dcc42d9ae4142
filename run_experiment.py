"""Train models on data sets, as a config says, and use trained models: `python run_experiment.py --help`.

Without a flag it trains LinHRU by RHEL on the UEA sets of the published experiments that are processed, or on
BasicMotions, which needs no download, if none is. Every run leaves its files in its folder (`runs.folder`). A finished
run is kept and reported, an unfinished run is resumed, and a run that fails does not stop the others. At SIGTERM,
SIGINT, SIGUSR1 and SIGUSR2 a training finishes the current steps, saves them, and ends the command. A second SIGINT
ends it at once.
"""

import sys
from contextlib import nullcontext

from runs import streams
from runs.command import parse, use_of
from runs.signals import StopSignals


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return its exit status. A wrong flag raises `SystemExit`, as argparse does."""
    with streams.forgiving():
        arguments = parse(argv)
        if use_of(arguments) == "status":
            from runs.status import print_status

            return print_status(arguments)
        with StopSignals() if use_of(arguments) == "train" else nullcontext() as signals:
            from runs.actions import act  # it imports jax, which --help and a wrong flag do not need

            return act(arguments, signals)


if __name__ == "__main__":
    sys.exit(main())
