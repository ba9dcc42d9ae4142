"""From the UEA archive's files to processed arrays.

    python data_dir/process_uea.py [--datasets NAME ...] [--data_dir DIR] [--raw_dir DIR]
                                   [--unequal_length refuse|pad] [--missing refuse|impute]

reads raw/UEA/*/NAME/NAME_{TRAIN,TEST}.ts (or .arff) of the named sets, by default of all, and writes
processed/UEA/NAME/data.pkl (n, L, C) float32, labels.pkl (n, K) one-hot float32, original_idxs.pkl (the rows of the
archive's own train, validation and test parts) and dataset.json (origin, hashes, and the findings of an audit); for
padded series also mask.pkl (n, L) bool. As in the published experiments, train and test are merged, exact duplicates
are removed, and the rows are sorted. If a set fails, the others are still processed.
"""

import argparse
import sys
from pathlib import Path

if not __package__:  # Run as a script: Python puts this folder on the path, the imports below need its parent.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from tqdm import tqdm

from data_dir.names import nearest_name
from data_dir.processing.merging import IMPUTE, PAD, REFUSE
from data_dir.processing.uea import process_dataset, raw_datasets, raw_files
from data_dir.storage import DataError, add_folder_options, raw_folder, script_command


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status, 1 if any set failed."""
    parser = argparse.ArgumentParser(description="Process raw UEA files (ts, arff) for training.")
    parser.add_argument("--datasets", nargs="+", metavar="NAME", help="default: every set in raw/UEA")
    parser.add_argument("--unequal_length", choices=(REFUSE, PAD), default=REFUSE, help="default: %(default)s")
    parser.add_argument("--missing", choices=(REFUSE, IMPUTE), default=REFUSE, help="default: %(default)s")
    add_folder_options(parser)
    options = parser.parse_args(arguments)
    existing = raw_datasets(options.data_dir, options.raw_dir)
    raw = raw_folder(options.data_dir, options.raw_dir)
    if not (options.datasets or existing):
        command = script_command("download_uea.py", options.data_dir, raw_dir=options.raw_dir)
        print(f"No raw sets in {raw}. Fetch some first:\n    {command}", file=sys.stderr)
        return 1
    infos, failures = {}, {}
    for name in tqdm(dict.fromkeys(options.datasets or existing), desc="processing", unit="set", disable=None):
        try:
            files = raw_files(options.data_dir, name, options.raw_dir)
            if files is None:
                nearest = nearest_name(name, set(existing) - {name})
                raise DataError(
                    f"{name}: no folder in {raw}/*/{name} holds {name}_TRAIN and {name}_TEST, both .ts or both .arff."
                    + (f" Did you mean {nearest!r}?" if nearest else "")
                )
            infos[name] = process_dataset(
                name, *files, options.data_dir, unequal_length=options.unequal_length, missing=options.missing
            )
        except (DataError, OSError) as error:
            failures[name] = error
    for name, info in infos.items():
        shape = " x ".join(str(info[key]) for key in ("n_samples", "length", "channels"))
        print(f"{name}: {shape}, {len(info['class_names'])} classes, {info['duplicates_removed']} duplicates removed")
        for finding in info["findings"]:
            print(f"    {finding['kind']}: {finding['text']}")
    for name, error in failures.items():
        print(f"{name}: FAILED  {error}", file=sys.stderr)
    return int(bool(failures))


if __name__ == "__main__":
    sys.exit(main())
