"""From PPG-DaLiA's recordings to processed arrays.

    python data_dir/process_ppg.py [--source ZIP_OR_FOLDER] [--data_dir DIR] [--raw_dir DIR]
                                   [--seed N] [--subjects N ...]

The data set is fetched by hand: "PPG-DaLiA" in the machine learning repository of UCI (archive.ics.uci.edu, data set
495, a zip of 2.7 GB). Its zip, or the folder PPG_FieldStudy in it, goes to raw/, or anywhere with --source. The command
writes processed/PPG/ppg/{X,y}_{train,val,test}.npy, X (n, 49920, 6) and y (n, 390) float32, which are memory-mapped
when they are used, and dataset.json. It cuts the recording of each subject into three contiguous pieces, in an order
that --seed draws; see ``data_dir.processing.ppg``.
"""

import argparse
import sys
from pathlib import Path

if not __package__:  # Run as a script: Python puts this folder on the path, the imports below need its parent.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from data_dir.fetching.recordings import BY_HAND, FOLDER, SUBJECTS, find_source
from data_dir.names import PPG
from data_dir.processing.ppg_set import COLLECTION, SEED, process_ppg
from data_dir.storage import DataError, add_folder_options, processed_folder


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(description="Process PPG-DaLiA for training.", epilog=BY_HAND.format(raw="raw/"))
    parser.add_argument("--source", type=Path, help=f"the zip, or the folder {FOLDER}; default: the one in raw/")
    parser.add_argument("--seed", type=int, default=SEED, help="draws the order of the pieces; default: %(default)s")
    parser.add_argument("--subjects", type=int, nargs="+", choices=SUBJECTS, metavar="N", default=list(SUBJECTS))
    add_folder_options(parser)
    options = parser.parse_args(arguments)
    try:
        source = options.source or find_source(options.raw_dir or options.data_dir / "raw")
        subjects = tuple(dict.fromkeys(options.subjects))
        info = process_ppg(source, options.data_dir, seed=options.seed, subjects=subjects, show_progress=True)
    except (DataError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    for subject, facts in info["subjects"].items():
        counts = ", ".join(f"{part} {count}" for part, count in facts["windows"].items())
        print(f"{subject}: {facts['labels']} labels, cut as {' - '.join(facts['order'])}; windows: {counts}")
    print(f"{processed_folder(options.data_dir) / COLLECTION / PPG}: " + ", ".join(map(str, info["n_samples"].items())))
    return 0


if __name__ == "__main__":
    sys.exit(main())
