"""Which stored rows train, validate and test: the published random split of a seed."""

import jax
import numpy as np

from data_dir.storage import DataError

PARTS = ("train", "validation", "test")


def split_by_seed(n: int, seed: int) -> dict[str, np.ndarray]:
    """The published split of ``n`` rows: 70 % train, 15 % validation, the rest test.

    With ``key = PRNGKey(seed)``, ``data_key = split(key, 4)[0]`` and ``order = permutation(split(data_key)[0], n)``,
    the train rows are the first int(0.7 n) of ``order``, the validation rows those up to int(0.85 n).

    Generator and bits are those that jax uses by default since 0.5, whatever the process has configured (generator,
    partitionable bits); 64-bit types make no difference.

    Returns int64 arrays that partition range(n). Raises DataError if a part would be empty (n < 4) or for a seed
    outside [0, 2^32).
    """
    if not 0 <= seed < 2**32:
        raise DataError(f"seed {seed}: must lie in [0, 2^32).")
    with jax.threefry_partitionable(True):
        key = jax.random.key(np.uint32(seed), impl="threefry2x32")
        data_key = jax.random.split(key, 4)[0]
        order = np.asarray(jax.random.permutation(jax.random.split(data_key)[0], n)).astype(np.int64)
    first, second = int(n * 0.7), int(n * 0.85)
    split = dict(zip(PARTS, (order[:first], order[first:second], order[second:]), strict=True))
    empty = [part for part, rows in split.items() if len(rows) == 0]
    if empty:
        raise DataError(
            f"{n} samples are too few to split 70/15/15: nothing is left for {' and '.join(empty)}. "
            "A random split needs at least 4 samples."
        )
    return split
