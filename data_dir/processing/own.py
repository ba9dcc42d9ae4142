"""Arrays and tables of your own as a processed set, with first configs beside it."""

import platform
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from common.files import sha256_of, write_json
from data_dir.folders import new_folder
from data_dir.names import BUNDLED, PPG, SEQUENTIAL, UEA_MULTIVARIATE, listed
from data_dir.pickles import write_arrays
from data_dir.processing.audit import audit_rows, audit_series
from data_dir.processing.labels import (
    CLASSIFICATION,
    OUTPUTS,
    REGRESSION,
    STEPS,
    Labels,
    is_coarse,
    plain_labels,
    stored_labels,
)
from data_dir.processing.merging import REFUSE, MergedSet, compare_rows, join
from data_dir.processing.readers import RawSeries, without_end
from data_dir.processing.starter import SEED, edited_configs, starter_configs, write_configs
from data_dir.processing.tables import Columns, is_table, labels_of, stacked, table_of, unlike_columns
from data_dir.storage import DEFAULT_DATA_DIR, DataError, processed_folder

COLLECTION = "own"
# Larger values than a network takes easily.
_LARGE = 10
_NAME = re.compile(r"\w[\w.-]*")


class _Part(NamedTuple):
    """The series and labels of one input; ``ids`` and ``columns`` of a table, ``names`` of label columns.

    ``coarse`` are the channels that float32 does not resolve.
    """

    series: RawSeries
    coarse: list[int]
    labels: np.ndarray
    ids: list | None = None
    columns: Columns | None = None
    names: tuple[str, ...] = ()


def import_arrays(
    name: str,
    x: Any,
    y: Any = None,
    *,
    x_test: Any = None,
    y_test: Any = None,
    split: str | Path | None = None,
    data_dir: str | Path = DEFAULT_DATA_DIR,
    task: str | None = None,
    label_axis: str | None = None,
    label: str | Sequence[str] = "label",
    id: str = "id",
    time: str = "time",
    output_names: Sequence[str] = (),
    ignore: Sequence[str] = (),
    channels_first: bool = False,
    unequal_length: str = REFUSE,
    missing: str = REFUSE,
    overwrite: bool = False,
    sources: Mapping[str, Path] | None = None,
) -> dict[str, Any]:
    """Writes your own series as the processed set ``name``, with a starter config for each model; the row order stays.

    - ``x``: an array (n, L, C) or (n, L), with ``channels_first`` (n, C, L); a list of arrays (L_i, C) or (L_i,); or a
      pandas DataFrame. A DataFrame with the columns ``id`` and ``time`` has a row for each time step, any other a row
      for each series. Its label columns are ``label``; ``ignore`` names columns to leave out.
    - ``y``: texts or integers (n,) are classes, floats a regression: (n,), (n, T) for T equal label steps, or (n, T, K)
      for K outputs, which ``output_names`` names. ``task`` ("classification", "regression") overrides this. The columns
      of (n, m) are, by ``label_axis``, "steps" or "outputs". With "steps", a long DataFrame has a label in every row.
    - ``x_test``, ``y_test``: a test part of its own. ``split``: "seed", "original" (the default with a test part) or
      an index file, which is copied.
    - ``missing="impute"`` interpolates missing values (NaN), ``unequal_length="pad"`` appends zeros to series that are
      shorter (in an array, that end in NaN in all channels).
    - ``sources``: the files of the arguments, such as {"x": path}, for messages and dataset.json.

    Returns the content of dataset.json, with "folder". The folder ``data_dir``/processed/own/``name`` appears in one
    piece. Raises DataError for arrays that do not fit or cannot be trained on, for a name that is taken (by a set of
    your own: without ``overwrite``), and if ``data_dir`` does not exist.
    """
    target = _target(name, Path(data_dir), overwrite)
    columns = Columns((label,) if isinstance(label, str) else tuple(label), id, time, tuple(ignore))
    options: dict[str, Any] = {"columns": columns, "channels_first": channels_first, "label_axis": label_axis}
    sources = sources or {}
    parts = [_part(sources, "x", x, y, **options)]
    if x_test is not None:
        options["columns"] = parts[0].columns or columns
        parts.append(_part(sources, "x_test", x_test, y_test, **options))
    elif y_test is not None:
        raise DataError("y_test without x_test: the labels of no series.")
    rows, lengths, imputed = join([part.series for part in parts], unequal_length=unequal_length, missing=missing)
    padded = bool(lengths.min() < rows.shape[1])
    names = ((output_names,) if isinstance(output_names, str) else tuple(output_names)) or parts[0].names
    labels = _labels(parts, rows.shape[1], task, label_axis or (OUTPUTS if len(names) > 1 else None))
    if padded and labels.class_names is None and labels.stored.shape[1] > 1:
        raise DataError("series of unequal length with several labels each: the padding has no labels.")
    n_train = len(parts[0].labels)
    merged = _merged(rows, lengths, labels, n_train, imputed)
    coarse = sorted({channel for part in parts for channel in part.coarse})
    findings = [*_findings(merged, labels, padded, coarse, channels_first), *_column_findings(parts[0].columns)]
    splits = _splits(name, len(rows), merged.original, split)
    kept = edited_configs(target)
    findings += [{"kind": "configs", "text": f"{path} is no starter config: it stays as it is"} for path in kept]
    info = {
        "name": name,
        "source": "your own arrays",
        "raw_files": {str(file): _identity(file) for file in sources.values()},
        **dict(zip(("n_samples", "length", "channels"), rows.shape, strict=True)),
        **_label_info(labels, names, bool(output_names)),
        "missing_values_imputed": imputed,
        "padded": padded,
        "seed": splits.seeds[0],
        "findings": findings,
        "versions": {"python": platform.python_version(), "numpy": version("numpy")},
    }
    if parts[0].columns is not None:
        ids = [each if isinstance(each, str | int) else str(each) for part in parts for each in part.ids or ()]
        info |= {"table": parts[0].columns.record(), "ids": ids}
    _write(target, merged, labels, info, splits, Path(data_dir), kept)
    return info | {"folder": str(target)}


def _target(name: str, data_dir: Path, overwrite: bool) -> Path:
    """The folder of the set. Raises DataError for a name that is taken or none."""
    if not _NAME.fullmatch(name) or name == "all":
        raise DataError(f"name {name!r}: must be letters, digits, '_', '-' and '.', and not 'all'.")
    if name in {*BUNDLED, *UEA_MULTIVARIATE, *SEQUENTIAL, PPG}:
        raise DataError(f"name {name!r}: is the name of a known data set; choose another one.")
    if not data_dir.is_dir():
        raise DataError(f"data_dir {data_dir}: no such folder. Make it first, or name another one.")
    target = processed_folder(data_dir) / COLLECTION / name
    others = [folder for folder in processed_folder(data_dir).glob(f"*/{name}") if folder != target]
    if others:
        raise DataError(f"name {name!r}: is the name of the set in {others[0]}; choose another one.")
    if target.exists() and not overwrite:
        raise DataError(
            f"{target}: exists. --overwrite replaces the set, but no config that you edited; or choose another name."
        )
    return target


def _part(
    sources: Mapping[str, Path],
    key: str,
    x: Any,
    y: Any,
    columns: Columns,
    channels_first: bool,
    label_axis: str | None,
) -> _Part:
    """One input, checked; ``key`` is "x" or "x_test". Messages name the file in ``sources``, or the argument."""
    labels, ids, names, table, by_step = y, None, (), None, label_axis == STEPS
    with _named(sources.get(key, key)):
        if is_table(x):
            x, labels, ids, table = table_of(x, columns, labelled=y is None, by_step=by_step and y is None)
            names = table.labels if y is None else ()
        series, coarse = _series(x, channels_first)
        if y is None and labels is None:
            raise DataError("no labels: they are y, or y_test for x_test.")
    label_key = key if y is None else key.replace("x", "y")
    with _named(sources.get(label_key, label_key)):
        if is_table(y):
            labels, names = labels_of(y, table or columns, ids, by_step=by_step)
        labels = plain_labels(y if labels is None else labels)
    if len(labels) != len(series.data):
        raise DataError(f"{sources.get(key, key)}: {len(series.data)} series but {len(labels)} labels.")
    return _Part(series, coarse, labels, ids, table, names)


@contextmanager
def _named(what: str | Path) -> Iterator[None]:
    try:
        yield
    except DataError as error:
        raise DataError(f"{what}: {error}") from error


def _series(x: Any, channels_first: bool) -> tuple[RawSeries, list[int]]:
    """An array, or a list of arrays, as float32 series with NaN after their ends; the channels that are too coarse."""
    if np.ma.is_masked(x) or (isinstance(x, list | tuple) and any(map(np.ma.is_masked, x))):
        raise DataError('values are masked. x.filled(np.nan) and missing="impute" interpolate them.')
    try:
        data = np.asarray(x)
    except ValueError:
        data = stacked(x)
    if data.dtype.kind not in "biuf":
        raise DataError(f"the series are {data.dtype}; needed are numbers.")
    if data.ndim == 2:
        data = data[:, :, None]
    if data.ndim != 3 or 0 in data.shape:
        raise DataError(f"shape {data.shape}; needed is (series, time steps, channels), none of them 0.")
    if channels_first:
        data = data.transpose(0, 2, 1)
    given = data
    with np.errstate(over="ignore"):
        data = np.array(given, dtype=np.float32)
    infinite = np.argwhere(np.isinf(data))
    if len(infinite):
        row, step, channel = infinite[0]
        raise DataError(
            f"a value is infinite or beyond float32: series {row}, time step {step}, channel {channel} (from 0)."
        )
    data, lengths = without_end(data)
    if lengths.min() == 0:
        raise DataError(f"series {lengths.argmin()} (from 0) has no values.")
    missing = np.isnan(data).sum() - data.shape[2] * (data.shape[1] - lengths).sum()
    coarse = []
    if given.dtype != np.float32:
        coarse = [channel for channel, values in enumerate(given.T) if is_coarse(values[~np.isnan(values)])]
    return RawSeries(data, lengths, np.empty(0, dtype=str), int(missing)), coarse


def _labels(parts: list[_Part], length: int, task: str | None, label_axis: str | None) -> Labels:
    """The labels of all parts together. Raises DataError if the parts have labels of different kinds."""
    if len({(part.labels.dtype.kind, part.labels.shape[1:]) for part in parts}) > 1:
        described = " and ".join(f"{part.labels.dtype} {part.labels.shape}" for part in parts)
        raise DataError(f"the labels of the two parts differ in kind or shape: {described}.")
    names = [list(part.names) for part in parts if part.names]
    if len(names) > 1 and names[0] != names[1] and len(names[0]) > 1:
        raise DataError(f"the labels are {listed(names[0])}, but {listed(names[1])} in the test part.")
    values = np.concatenate([part.labels for part in parts])
    return stored_labels(values, length, task=task, label_axis=label_axis)


def _merged(rows: np.ndarray, lengths: np.ndarray, labels: Labels, n_train: int, imputed: int) -> MergedSet:
    """All rows in their order. Unlike in the archive's sets, rows that repeat stay."""
    names = labels.class_names or ["a number"]
    first, in_train, in_test, conflicts = compare_rows(rows, n_train, labels.classes, names)
    merged = MergedSet(
        data=rows,
        lengths=lengths,
        classes=labels.classes,
        class_names=labels.class_names or [],
        original=(np.arange(n_train), np.arange(n_train, len(rows))),
        duplicates=len(rows) - len(first),
        in_both_files=int((in_train & in_test).sum()),
        conflicts=conflicts,
        missing=imputed,
    )
    merged.data[~merged.mask] = 0
    return merged


def _findings(merged: MergedSet, labels: Labels, padded: bool, coarse: list[int], channels_first: bool):
    """What to look at before training: the axes, and the audit of channels and rows."""
    _, length, channels = merged.data.shape
    if channels > length:
        way_out = "leave out --channels_first" if channels_first else "add --channels_first"
        text = f"{length} steps of {channels} channels? If it is {channels} steps of {length} channels, {way_out}"
        yield {"kind": "orientation", "text": text}
    yield from audit_series(merged.data, merged.mask if padded else None)
    if padded and np.any(np.abs(merged.data).max(axis=(0, 1)) > _LARGE):
        text = "padded series are not standardised, and the values are large: scale the channels before the import"
        yield {"kind": "scale", "text": text}
    if coarse:
        text = f"float32 does not resolve the changes of channel {coarse[0]}: subtract its offset before the import"
        yield {"kind": "rounded", "text": text, "channels": coarse}
    counts = [] if labels.class_names is None else labels.stored.sum(axis=0).astype(int).tolist()
    for finding in audit_rows(merged, counts):
        if finding["kind"] == "duplicate_rows":
            finding["text"] += "; all are kept, so that equal series may train and test"
        yield finding
    yield from labels.findings


def _column_findings(columns: Columns | None):
    """Columns of a wide table that may be no time steps."""
    if columns is not None and (unlike := unlike_columns(columns)):
        text = f"not named as the other time steps: {listed(unlike)}. --ignore leaves columns out"
        yield {"kind": "columns", "text": text, "columns": unlike}


class _Splits(NamedTuple):
    """How the rows are split: ``field`` of the configs, the ``seeds`` that can be used, and the training rows at least.

    ``index_file`` is the file that ``field`` names, or None.
    """

    field: str
    seeds: list[int]
    n_train: int
    index_file: Path | None


def _splits(name: str, n: int, original: tuple[np.ndarray, np.ndarray], asked: str | Path | None) -> _Splits:
    """The splits that were asked for. Raises DataError if the rows cannot be split so."""
    # It imports jax, which takes a second.
    from data_dir.splits import read_index_file, split_as_original, split_by_seed

    has_test = len(original[1]) > 0
    field, index_file, seeds = str(asked or ("original" if has_test else "seed")), None, [SEED]
    if field == "seed":
        splits = [split_by_seed(n, SEED)]
    elif field == "original":
        if not has_test:
            raise DataError("split 'original': needs a test part, x_test and y_test.")
        splits = [split_as_original((original[0], np.empty(0, dtype=np.int64), original[1]), n, SEED)]
    else:
        index_file = Path(field)
        seeds = _seeds_of(index_file)
        splits = [read_index_file(index_file, name, n, seed) for seed in seeds]
    return _Splits(field, seeds, min(len(split["train"]) for split in splits), index_file)


def _seeds_of(path: Path) -> list[int]:
    from data_dir.storage import read_json

    seeds = read_json(path).get("seeds")
    if not isinstance(seeds, dict) or not seeds or not all(seed.isdecimal() for seed in seeds):
        raise DataError(f"{path}: seeds must be an object of rows by seed; data_dir/write_splits.py writes such files.")
    return [int(seed) for seed in seeds]


def _label_info(labels: Labels, names: tuple[str, ...], asked: bool) -> dict[str, Any]:
    """The fields of dataset.json about the labels. Raises DataError if ``names`` that were asked for do not fit."""
    outputs = labels.stored.shape[2] if labels.stored.ndim == 3 else 1
    if asked and (labels.class_names is not None or len({*names}) < len(names) or len(names) != outputs):
        count = "none for classes" if labels.class_names is not None else f"{outputs} distinct names"
        raise DataError(f"output_names {listed(names)}: needed are {count}.")
    if labels.class_names is not None:
        counts = labels.stored.sum(axis=0).astype(int).tolist()
        return {"task": CLASSIFICATION, "class_names": labels.class_names, "class_counts": counts}
    info: dict[str, Any] = {"task": REGRESSION, "label_steps": labels.stored.shape[1], "outputs": outputs}
    columns = labels.stored.reshape(-1, outputs)
    info["label_ranges"] = [[float(low), float(high)] for low, high in zip(columns.min(0), columns.max(0), strict=True)]
    if len(names) == outputs:
        info["output_names"] = list(names)
    return info


def _write(
    target: Path, merged: MergedSet, labels: Labels, info: dict, splits: _Splits, data_dir: Path, kept: dict[str, bytes]
) -> None:
    """Writes the arrays, the configs and dataset.json; ``kept`` are configs that take the place of the starters."""
    pickled: dict[str, Any] = {
        "original_idxs.pkl": (merged.original[0], np.empty(0, dtype=np.int64), merged.original[1])
    }
    if info["padded"]:
        pickled["mask.pkl"] = merged.mask
    is_default = data_dir.resolve() == DEFAULT_DATA_DIR
    places = {"data_dir": "data_dir" if is_default else str(data_dir.resolve()), "output_parent_dir": "outputs"}
    field = splits.field
    if splits.index_file is not None:
        field = f"{places['data_dir']}/processed/{COLLECTION}/{info['name']}/splits.json"
    configs = starter_configs(
        info["name"],
        length=info["length"],
        n_train=splits.n_train,
        classification=labels.class_names is not None,
        standardise=not info["padded"],
        seeds=splits.seeds,
        split=field,
        **places,
    )
    with new_folder(target) as folder:
        np.save(folder / "data.npy", merged.data)
        np.save(folder / "labels.npy", labels.stored)
        for file, arrays in pickled.items():
            write_arrays(folder / file, arrays)
        files = ("data.npy", "labels.npy", *pickled)
        info["processed_files"] = {file: _identity(folder / file) for file in files}
        if splits.index_file is not None:
            (folder / "splits.json").write_bytes(splits.index_file.read_bytes())
        info["starter_configs"] = write_configs(folder, configs, kept)
        write_json(folder / "dataset.json", info)


def _identity(file: Path) -> dict:
    return {"sha256": sha256_of(file), "bytes": file.stat().st_size}
