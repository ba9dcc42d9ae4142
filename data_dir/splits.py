"""Which stored rows train, validate and test: drawn by seed, as the archive cut the set, or as an index file says."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import numpy as np
from numpy.typing import ArrayLike

from common.files import replacing
from data_dir.storage import DataError, read_json

PARTS: tuple[str, ...] = ("train", "validation", "test")
PUBLISHED_SEEDS = (2345, 3456, 4567, 5678, 6789)

Split = dict[str, np.ndarray]


def split_by_seed(n: int, seed: int) -> Split:
    """The published split of ``n`` rows: 70 % train, 15 % validation, the rest test.

    With ``key = PRNGKey(seed)``, ``data_key = split(key, 4)[0]`` and ``order = permutation(split(data_key)[0], n)``,
    the train rows are the first int(0.7 n) of ``order``, the validation rows those up to int(0.85 n). The
    generator and its bits are jax's defaults since 0.5. The configuration of the process does not change them.

    Returns int64 arrays that partition range(n). Raises DataError if a part would be empty (n < 4) or for a seed
    outside [0, 2^32).
    """
    split = dict(zip(PARTS, np.split(_order(n, seed), [int(n * 0.7), int(n * 0.85)]), strict=True))
    empty = [part for part, rows in split.items() if len(rows) == 0]
    if empty:
        raise DataError(
            f"{n} samples are too few to split 70/15/15: {' and '.join(empty)} would be empty. A random split needs at "
            "least 4 samples."
        )
    return split


def split_as_original(original_idxs: Sequence[np.ndarray], n: int, seed: int) -> Split:
    """The train, validation and test rows that the archive itself made of ``n`` stored rows.

    The UEA archive has no validation rows. Then 3 of 17 of the train rows, drawn by ``seed``, become validation rows:
    the 15 : 70 of the split by seed. Raises DataError if the rows are not three lists of distinct rows, or if a part
    would be empty.
    """
    if len(original_idxs) != 3:
        raise DataError(f"{len(original_idxs)} lists of rows where train, validation and test are needed.")
    rows = [np.asarray(part).reshape(-1) for part in original_idxs]
    split = checked_split(dict(zip(PARTS, rows, strict=True)), n, may_be_empty=("validation",))
    if len(split["validation"]) == 0:
        train = split["train"][_order(len(split["train"]), seed)]
        kept = len(train) - round(len(train) * 3 / 17)
        split |= {"train": train[:kept], "validation": train[kept:]}
    return checked_split(split, n)


def checked_split(parts: Mapping[str, ArrayLike], n: int, may_be_empty: Sequence[str] = ()) -> Split:
    """The parts as int64 arrays. Raises DataError if they are not distinct rows of ``n``, or if one is empty."""
    if set(parts) != set(PARTS):
        raise DataError(f"parts {sorted(parts)}; needed are {', '.join(PARTS)}.")
    split = {}
    for part in PARTS:
        rows = np.asarray(parts[part])
        if rows.size == 0:
            rows = np.empty(0, dtype=np.int64)  # An empty list has no type.
            if part not in may_be_empty:
                raise DataError(f"no rows for {part}.")
        if rows.ndim != 1 or rows.dtype.kind not in "iu":
            raise DataError(f"the {part} rows are not a list of whole numbers.")
        split[part] = rows.astype(np.int64)
    together = np.concatenate(list(split.values()))
    outside = together[(together < 0) | (together >= n)]
    if len(outside):
        raise DataError(f"row {outside[0]} is not one of the {n} samples.")
    values, counts = np.unique(together, return_counts=True)
    if counts.max() > 1:
        raise DataError(f"row {values[counts > 1][0]} occurs more than once.")
    return split


def write_index_file(path: Path, dataset_name: str, n: int, splits: dict[int, Split]) -> None:
    """Writes the rows of one or several seeds as JSON: {"dataset", "n_samples", "seeds": {seed: {part: [rows]}}}.

    The same arguments give the same bytes. The file appears in one piece.
    """
    seeds = {str(seed): {part: split[part].tolist() for part in PARTS} for seed, split in splits.items()}
    with replacing(path) as temporary:
        content = json.dumps({"dataset": dataset_name, "n_samples": n, "seeds": seeds})
        temporary.write_text(content + "\n", encoding="utf-8")


def read_index_file(path: str | Path, dataset_name: str, n: int, seed: int) -> Split:
    """The rows of a seed in an index file.

    Raises DataError, naming the file, if it is damaged, if it is for another set or number of samples, and if it does
    not have the seed.
    """
    path = Path(path)
    content = read_json(path)
    if content.get("dataset") != dataset_name or content.get("n_samples") != n:
        raise DataError(
            f"{path}: is for {content.get('n_samples')} samples of {content.get('dataset')!r}, not for the {n} of "
            f"{dataset_name!r}."
        )
    seeds = content.get("seeds")
    if not isinstance(seeds, dict) or not isinstance(seeds.get(str(seed)), dict):
        listed = ", ".join(seeds) if isinstance(seeds, dict) else "none"
        raise DataError(f"{path}: names no rows for seed {seed}; it has {listed}.")
    try:
        return checked_split(seeds[str(seed)], n)
    except (DataError, ValueError) as error:
        raise DataError(f"{path}: seed {seed}: {error}") from error


def _order(n: int, seed: int) -> np.ndarray:
    if not 0 <= seed < 2**32:
        raise DataError(f"seed {seed}: must lie in [0, 2^32).")
    with jax.threefry_partitionable(True):
        key = jax.random.key(np.uint32(seed), impl="threefry2x32")
        data_key = jax.random.split(key, 4)[0]
        return np.asarray(jax.random.permutation(jax.random.split(data_key)[0], n)).astype(np.int64)
