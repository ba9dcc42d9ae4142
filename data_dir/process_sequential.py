"""Fetches and processes sets of long sequences: images as sequences of pixels, and PigCVP.

    python data_dir/process_sequential.py [--datasets NAME ...] [--data_dir DIR] [--raw_dir DIR]
                                          [--accept_changed_files]

makes the named sets, by default all: FashionMNISTRows and FashionMNISTPermuted (60,000 + 10,000 images), MNIST5k (5,000
digits) and PigCVP (104 + 208 series). Raw files are fetched into raw/sequential/ if they are not there, and checked
against pinned hashes. It writes processed/sequential/NAME/data.npy (n, L, 1) float32, labels.npy (n, K) one-hot
float32, original_idxs.pkl (the published train and test rows) and dataset.json (origin, hashes, and the findings of an
audit). The rows keep the published order, and all stay. If a set fails, the others are still processed.
"""

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path

if not __package__:  # Run as a script: Python puts this folder on the path, the imports below need its parent.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from data_dir.fetching.first import Source
from data_dir.fetching.sequential import SOURCES, fetch_sequential
from data_dir.names import SEQUENTIAL, nearest_name
from data_dir.processing.sequential import KINDS, process_sequential
from data_dir.storage import DataError, add_folder_options


def main(arguments: list[str] | None = None, sources: Iterable[Source] = SOURCES) -> int:
    """The command line; returns the exit status, 1 if any set failed."""
    parser = argparse.ArgumentParser(description="Fetch and process sets of long sequences.")
    parser.add_argument("--datasets", nargs="+", metavar="NAME", default=list(SEQUENTIAL), help="default: %(default)s")
    parser.add_argument(
        "--accept_changed_files",
        action="store_true",
        help="take files whose sha256 is not the pinned one, and record it",
    )
    add_folder_options(parser)
    options = parser.parse_args(arguments)
    raw = options.raw_dir or options.data_dir / "raw"
    unreachable: dict[str, str] = {}
    failed = False
    for name in dict.fromkeys(options.datasets):
        try:
            if name not in KINDS:
                nearest = nearest_name(name, SEQUENTIAL)
                known = f"Did you mean {nearest!r}?" if nearest else f"Known are {', '.join(SEQUENTIAL)}."
                raise DataError(f"no set of this name. {known}")
            folder = fetch_sequential(
                KINDS[name].raw,
                raw,
                sources=sources,
                unreachable=unreachable,
                accept_changed=options.accept_changed_files,
                show_progress=True,
            )
            info = process_sequential(name, folder, options.data_dir)
        except (DataError, OSError) as error:
            print(f"{name}: FAILED  {error}", file=sys.stderr)
            failed = True
            continue
        shape = " x ".join(str(info[key]) for key in ("n_samples", "length", "channels"))
        print(f"{name}: {shape}, {len(info['class_names'])} classes")
        for finding in info["findings"]:
            print(f"    {finding['kind']}: {finding['text']}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
