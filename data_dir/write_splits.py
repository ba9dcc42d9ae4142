"""Writes the train, validation and test rows of the five published seeds.

    python data_dir/write_splits.py [--datasets NAME ...] [--seeds N ...] [--data_dir DIR] [--output_dir DIR]

writes splits.json beside the processed files of every set (or DIR/NAME.json). ``split`` in a config takes the path of
such a file. The command always writes the same bytes. Sets that hold three parts (ppg) have no such rows. Of sets with
a published test part (Fashion-MNIST), the validation rows alone are drawn by seed.
"""

import argparse
import sys
from pathlib import Path

if not __package__:  # Run as a script: Python puts this folder on the path, the imports below need its parent.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from data_dir.datasets import rows_by_seed
from data_dir.finding import processed_datasets
from data_dir.splits import PUBLISHED_SEEDS, write_index_file
from data_dir.storage import DEFAULT_DATA_DIR, DataError


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status, 1 if any set failed."""
    parser = argparse.ArgumentParser(description="Write the rows of the published splits.")
    parser.add_argument("--datasets", nargs="+", metavar="NAME", help="default: every set that holds no three parts")
    parser.add_argument("--seeds", nargs="+", type=int, metavar="N", default=list(PUBLISHED_SEEDS))
    parser.add_argument("--output_dir", type=Path, metavar="DIR", help="default: beside the processed files")
    parser.add_argument("--data_dir", type=Path, default=DEFAULT_DATA_DIR, help="default: %(default)s")
    options = parser.parse_args(arguments)
    failed = False
    for name in options.datasets or processed_datasets(options.data_dir):
        try:
            folder, n, splits = rows_by_seed(options.data_dir, name, options.seeds)
            if not splits:
                if options.datasets:
                    raise DataError(f"{folder}: holds three parts and is not split by seed.")
                continue
            path = folder / "splits.json" if options.output_dir is None else options.output_dir / f"{name}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_index_file(path, name, n, splits)
        except (DataError, OSError) as error:
            print(error, file=sys.stderr)
            failed = True
        else:
            print(f"{name}: {n} samples, seeds {', '.join(map(str, options.seeds))}: {path}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
