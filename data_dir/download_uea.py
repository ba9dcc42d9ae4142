"""Fetches raw files of the UEA archive.

    python data_dir/download_uea.py [--datasets NAME ...] [--data_dir DIR] [--raw_dir DIR] [--accept_changed_files]

writes raw/UEA/Multivariate_ts/NAME/NAME_{TRAIN,TEST}.ts (and .arff if the archive has it) with source.json beside them,
which records their origin and hashes. The zip of a set is fetched from the archive's site or from Zenodo; two sets are
in a Python package too. A zip that was fetched by hand is taken from raw/UEA/NAME.zip. Everything is checked against a
pinned sha256 before it gets its name. Files that exist already are checked and not fetched again.

A defect of the archive itself: in SelfRegulationSCP1 and SCP2 (C channels) channel k + 1 is channel k shifted by C
samples, X[:, C:, k] == X[:, :-C, k + 1] on every value. They are kept so: the published numbers were made on them.
"""

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path

if not __package__:  # Run as a script: Python puts this folder on the path, the imports below need its parent.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from data_dir.fetching.first import Source
from data_dir.fetching.sources import SOURCES
from data_dir.fetching.uea import FORMAT_FOLDER, fetch_dataset
from data_dir.folders import scratch_folder
from data_dir.names import PUBLISHED_UEA, UEA_MULTIVARIATE, nearest_name
from data_dir.storage import DataError, add_folder_options, raw_folder, script_command


def _check_names(names: Iterable[str]) -> None:
    """Raises DataError, with the nearest name, for a name that the archive does not have."""
    for name in names:
        if name not in UEA_MULTIVARIATE:
            nearest = nearest_name(name, UEA_MULTIVARIATE)
            known = f"Did you mean {nearest!r}?" if nearest else f"Known are {', '.join(UEA_MULTIVARIATE)}."
            raise DataError(f"dataset {name!r}: the archive has no multivariate set of this name. {known}")


def main(arguments: list[str] | None = None, sources: Iterable[Source] = SOURCES) -> int:
    """The command line; returns the exit status, 1 if any set is missing in the end."""
    parser = argparse.ArgumentParser(description="Fetch raw files of the UEA archive.")
    parser.add_argument(
        "--datasets", nargs="+", metavar="NAME", default=list(PUBLISHED_UEA), help="default: %(default)s"
    )
    parser.add_argument(
        "--accept_changed_files",
        action="store_true",
        help="take files whose sha256 is not the pinned one, or for which none is pinned, and record it",
    )
    add_folder_options(parser)
    options = parser.parse_args(arguments)
    raw = raw_folder(options.data_dir, options.raw_dir)
    existing, failed = [], []
    unreachable: dict[str, str] = {}
    try:
        _check_names(options.datasets)
        raw.mkdir(parents=True, exist_ok=True)
        # Beside the target: a zip may be larger than the system's folder for temporary files.
        with scratch_folder(raw / "download") as scratch:
            for name in dict.fromkeys(options.datasets):
                try:
                    outcome = fetch_dataset(
                        name,
                        raw,
                        scratch,
                        sources=sources,
                        unreachable=unreachable,
                        accept_changed=options.accept_changed_files,
                        show_progress=True,
                    )
                except (DataError, OSError) as error:
                    print(error, file=sys.stderr)
                    failed.append(name)
                else:
                    print(f"{name}: {outcome}, {raw / FORMAT_FOLDER / name}")
                    existing.append(name)
    except (DataError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    if existing:
        process = script_command("process_uea.py", options.data_dir, "--datasets", *existing, raw_dir=options.raw_dir)
        print(f"Next:\n    {process}")
    if failed:
        print(f"{len(failed)} of {len(failed) + len(existing)} sets are missing: {', '.join(failed)}", file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
