"""Train models on data sets, as a config says, and use trained models: `python run_experiment.py --help`.

Without a flag it trains LinHRU by RHEL on the UEA sets of the published experiments that are processed, or on
BasicMotions, which needs no download, if none is. Every run leaves its files in its folder (`runs.folder`). A finished
run is kept and reported, an unfinished run is resumed, and a run that fails does not stop the others. SIGTERM, SIGINT
and SIGUSR1 end the command when the steps at work are done and saved; a second SIGINT ends it at once.
"""

from runs import signals

if __name__ == "__main__":
    signals.end_at_signals()  # before the other imports, because they take time

import sys

from runs import streams
from runs.command import parse


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return its exit status. A wrong flag raises `SystemExit`, as argparse does."""
    with streams.forgiving():
        arguments = parse(argv)
        # It imports jax. --help and a wrong flag have been answered without it.
        with signals.ending_at_signals():
            from runs.actions import act
        return act(arguments)


if __name__ == "__main__":
    status = main()
    signals.ignore_signals()
    sys.exit(status)
