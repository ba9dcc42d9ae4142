"""Compare what RHEL and BPTT reached, and both with the paper: `python postprocess_results.py [outputs ..]`.

Of every run below the folders, <data set>/<model>_<algorithm>/seed_<n>/, only result.json and metrics.jsonl are read.
The settings that `run_experiment.py --set` made below a folder, and several folders, have rows of their own. With
--select validation, the best setting of each data set, model and algorithm is compared instead (`runs.choosing`).
What is no sound result is listed and takes no part; a mean of fewer seeds or steps than the paper's is marked.
The comparison is printed in short, and written to results.md, results.csv, results.tex and results.png, one line per
run to runs.csv, and the learning curves of each data set to curves/<data set>.png. Exit status: 0; 1 if no run is
completed, or if --select can choose no setting of a data set, model and algorithm; 2 if there is nothing to read.
"""

import argparse
import sys
from pathlib import Path

from runs import streams
from runs.comparison import ALGORITHMS, read_runs
from runs.summary import write


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    with streams.forgiving():
        return _main(argv)


def _main(argv: list[str] | None) -> int:
    parser = argparse.ArgumentParser(
        prog="postprocess_results.py",
        description="Compare the runs of RHEL and BPTT with each other and with the paper.",
        allow_abbrev=False,
    )
    parser.add_argument("outputs", nargs="*", type=Path, default=[Path("outputs")], help="folders (default: outputs)")
    parser.add_argument(
        "--select", choices=("validation",), help="compare the settings that have the best mean validation metric"
    )
    parser.add_argument(
        "--output_dir",
        type=Path,
        metavar="DIR",
        help="folder to write to (default: OUTPUTS/summary; of several folders, summary beside the first)",
    )
    arguments = parser.parse_args(argv)
    folders = arguments.outputs
    absent = [str(folder) for folder in folders if not folder.exists()]
    runs = read_runs(*folders)
    if absent or runs.empty:
        print(
            f"postprocess_results.py: error: {', '.join(absent or map(str, folders))}: no runs of "
            f"{' or '.join(ALGORITHMS)} here; they are folders <data set>/<model>_<algorithm>/seed_<n>, which "
            "run_experiment.py makes",
            file=sys.stderr,
        )
        return 2
    read = {parent for run in runs["folder"] for parent in Path(run).resolve().parents[2:4]}
    for folder in folders:
        if folder.resolve() not in read:
            print(f"{folder}: no runs here", file=sys.stderr)
    folder = arguments.output_dir or (folders[0] / "summary" if len(folders) == 1 else folders[0].parent / "summary")
    try:
        text, failures = write(runs, folder, select=arguments.select is not None)
    except OSError as error:
        print(f"postprocess_results.py: error: {error.filename}: {error.strerror}", file=sys.stderr)
        return 2
    print(text)
    print(f"Written to {folder}; the full table is in results.md", file=sys.stderr)
    for failure in failures:
        print(f"postprocess_results.py: error: {failure}", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
