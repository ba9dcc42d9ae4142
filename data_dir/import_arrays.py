"""Imports your own series, so that they can be trained on.

    python data_dir/import_arrays.py NAME --x FILE [--y FILE] [--x_test FILE] [--y_test FILE] [--split SPLIT]
                                     [--task classification|regression] [--label_axis steps|outputs] [--overwrite]

reads npy, npz, csv, tsv, parquet or ts files, and writes processed/own/NAME/data.npy (n, L, C) float32, labels.npy
(one-hot (n, K), or the numbers of a regression), original_idxs.pkl, dataset.json (sources, hashes and the findings of
an audit), for padded series mask.pkl, and a starter config for each model in configs/. docs/your-own-data.md describes
the files. From Python, `data_dir.import_arrays(name, x, y)` takes arrays and DataFrames.
"""

import argparse
import functools
import re
import sys
import types
from pathlib import Path
from typing import Any

if not __package__:  # Run as a script: Python puts this folder on the path, the imports below need its parent.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import numpy as np

from data_dir.names import listed
from data_dir.npy import read_npy
from data_dir.processing.labels import CLASSIFICATION, OUTPUTS, REGRESSION, STEPS
from data_dir.processing.merging import IMPUTE, PAD, REFUSE
from data_dir.processing.own import import_arrays
from data_dir.processing.readers import read_raw
from data_dir.processing.starter import MODELS
from data_dir.processing.tables import SUFFIXES, read_table
from data_dir.scaling import output_names
from data_dir.storage import DEFAULT_DATA_DIR, DataError

INPUTS = ("x", "y", "x_test", "y_test")


_FLAGS = (
    (r"--(overwrite|channels_first)", r"\1=True"),
    (r"--ignore ('[^']*'|\w+)", lambda flag: f"ignore=[{flag[1].strip(chr(39))!r}]"),
    (r"--(task|label_axis|missing|unequal_length) (\w+)", r'\1="\2"'),
    (r"--(\w+)", r"\1"),
)


@functools.wraps(import_arrays)
def _from_python(*args: Any, **kwargs: Any) -> dict[str, Any]:
    """Messages name arguments, not flags."""
    try:
        info = import_arrays(*args, **kwargs)
    except DataError as error:
        raise DataError(_with_arguments(str(error))) from error
    return info | {"findings": [finding | {"text": _with_arguments(finding["text"])} for finding in info["findings"]]}


def _with_arguments(text: str) -> str:
    for flag, argument in _FLAGS:
        text = re.sub(flag, argument, text)
    return text


class _CallableModule(types.ModuleType):
    """This module has the name of the function that the package offers: `data_dir.import_arrays(..)` calls it."""

    __call__ = staticmethod(_from_python)


sys.modules[__name__].__class__ = _CallableModule


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    options = vars(_parser().parse_args(arguments))
    name = options.pop("name")
    sources = {key: path for key in INPUTS if (path := options.pop(key)) is not None}
    try:
        values = {key: read_input(path, key) for key, path in sources.items()}
        for key in ("x", "x_test"):
            _add_labels(values, key)
        files = {key: _split_name(path)[0] for key, path in sources.items()}
        info = import_arrays(name, sources=files, **values, **options)
    except (DataError, OSError) as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 1
    print(report(info, options["data_dir"]))
    return 0


def read_input(spec: Path, key: str) -> Any:
    """The content of a file as `import_arrays` takes it: an array, a DataFrame, or for ts and arff (series, labels).

    FILE.npz:NAME is one array of an npz file; without a name it is the one with the name of the flag, and of an npz
    file without ``y`` its labels are read too. Raises DataError, naming the file.
    """
    path, name = _split_name(spec)
    if path.suffix == ".npy":
        try:
            return read_npy(path)
        except DataError as error:
            hint = (
                " Labels that are texts: np.save(FILE, labels.astype(str))." if "Python objects" in str(error) else ""
            )
            raise DataError(f"{error}{hint}") from error
    if path.suffix in SUFFIXES:
        return read_table(path)
    if path.suffix in (".ts", ".arff"):
        raw = read_raw(path)
        return (raw.data, raw.labels) if key.startswith("x") else raw.labels
    if path.suffix == ".npz":
        return _from_npz(path, name, key)
    raise DataError(f"{path}: is no npy, npz, csv, tsv, parquet, ts or arff file.")


def _split_name(spec: Path) -> tuple[Path, str]:
    file, mark, name = str(spec).rpartition(":")
    return (Path(file), name) if mark and file.endswith(".npz") else (spec, "")


def _from_npz(path: Path, name: str, key: str) -> Any:
    """One array of an npz file; for x and x_test without a name, (series, labels) if the file has both."""
    if not path.is_file():
        raise DataError(f"{path}: no such file.")
    try:
        with np.load(path, allow_pickle=False) as arrays:
            wanted = name or key
            if wanted not in arrays.files:
                raise DataError(f"{path}: has no array {wanted!r}, but {', '.join(arrays.files)}: write {path}:NAME.")
            partner = key.replace("x", "y")
            if key[0] == "x" and not name and partner in arrays.files:
                return arrays[wanted], arrays[partner]
            return arrays[wanted]
    except DataError:
        raise
    except Exception as error:  # a damaged zip, or a header that numpy cannot parse, fails in any way
        raise DataError(f"{path}: no arrays of numbers or texts can be read from it ({error}).") from error


def _add_labels(values: dict[str, Any], key: str) -> None:
    """Takes the labels from the file of the series, unless they have a file of their own."""
    if isinstance(values.get(key), tuple):
        series, labels = values[key]
        values[key] = series
        values.setdefault(key.replace("x", "y"), labels)


def report(info: dict[str, Any], data_dir: Path) -> str:
    """What was imported, and the commands that train and predict."""
    n, length, channels = (info[key] for key in ("n_samples", "length", "channels"))
    lines = [f"{info['name']}: {n} series x {length} time steps x {channels} channel{'s' if channels > 1 else ''}"]
    if info["task"] == CLASSIFICATION:
        counts = zip(info["class_names"], info["class_counts"], strict=True)
        classes = [f"{name} ({count})" for name, count in counts]
        lines.append(f"    classification, {len(classes)} classes: {listed(classes, 20)}")
    else:
        names = info.get("output_names") or (output_names(info["outputs"]) if info["outputs"] > 1 else ["labels"])
        ranges = [f"{name} {low:g} to {high:g}" for name, (low, high) in zip(names, info["label_ranges"], strict=True)]
        steps = info["label_steps"]
        lines.append(f"    regression, {steps} label{'s' if steps > 1 else ''} a series: {', '.join(ranges)}")
    lines += [f"    {finding['kind']}: {finding['text']}" for finding in info["findings"]] or ["    no findings"]
    table = info.get("table")
    if table and table["long"]:
        lines.insert(1, f"    channels: {listed(table['channels'], 20)}")
    elif table:
        lines.insert(1, f"    time steps: the columns {table['channels'][0]} to {table['channels'][-1]}")
    elsewhere = f" --data_dir {data_dir}" if data_dir.resolve() != DEFAULT_DATA_DIR else ""
    new = "new.csv" if table else "new.npy"
    run = f"outputs/{info['name']}/{MODELS[0]}_RHEL/seed_{info['seed']}"
    return "\n".join(
        [
            *lines,
            f"    files: {info['folder']}",
            f"    configs: {info['folder']}/configs/{{{','.join(MODELS)}}}/{info['name']}.json",
            "Train, then predict:",
            f"    python run_experiment.py --dataset_name {info['name']}{elsewhere}",
            f"    python run_experiment.py --predict {new} --run {run}",
        ]
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Import your own series (npy, npz, csv, tsv, parquet, ts, arff).")
    add = parser.add_argument
    add("name", metavar="NAME", help="the name of the data set")
    add("--x", type=Path, required=True, metavar="FILE", help="the series; FILE.npz:NAME is one array of an npz file")
    add("--y", type=Path, metavar="FILE", help="the labels, unless --x has them")
    add("--x_test", type=Path, metavar="FILE", help="the series of a test part")
    add("--y_test", type=Path, metavar="FILE", help="the labels of the test part, unless --x_test has them")
    add("--split", metavar="SPLIT", help="seed, original or an index file; default: original with --x_test, else seed")
    add(
        "--task",
        choices=(CLASSIFICATION, REGRESSION),
        help="default: floats are a regression, other labels classes",
    )
    add(
        "--label_axis",
        choices=(STEPS, OUTPUTS),
        help="labels (n, m): one at each of m steps, or m outputs",
    )
    add("--output_names", nargs="+", default=[], metavar="NAME", help="of a regression; default: of the label columns")
    add("--label", nargs="+", default=["label"], metavar="COLUMN", help="the label columns of a table; default: label")
    add("--id", default="id", metavar="COLUMN", help="of a table with a row a time step: its series; default: id")
    add("--time", default="time", metavar="COLUMN", help="of such a table: the time; default: time")
    add("--ignore", nargs="+", default=[], metavar="COLUMN", help="columns of a table to leave out")
    add("--channels_first", action="store_true", help="the axes of --x are (series, channels, time steps)")
    add("--unequal_length", choices=(REFUSE, PAD), default=REFUSE, help="default: %(default)s")
    add("--missing", choices=(REFUSE, IMPUTE), default=REFUSE, help="default: %(default)s")
    add("--overwrite", action="store_true", help="replace a set of this name; configs that you edited stay")
    add("--data_dir", type=Path, default=DEFAULT_DATA_DIR, metavar="DIR", help="default: %(default)s")
    return parser


if __name__ == "__main__":
    sys.exit(main())
