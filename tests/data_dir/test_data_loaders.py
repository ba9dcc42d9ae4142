"""Batches and splits: every sample once, and always the same ones."""

import hashlib
import json
from collections import Counter

import jax
import numpy as np
import pytest

from data_dir.dataloaders import Dataloader
from data_dir.splits import split_by_seed
from data_dir.storage import DataError

KEY = jax.random.key(7)
RNG = np.random.default_rng(0)
BATCH = 5


def numbered(n: int) -> Dataloader:
    """A loader whose samples and labels carry their row number."""
    rows = np.arange(n, dtype=np.float32)
    return Dataloader(np.tile(rows[:, None, None], (1, 3, 2)), np.stack([rows, -rows], axis=1))


def drawn(batches, count: int) -> list[np.ndarray]:
    found = []
    for _ in range(count):
        x, y = next(batches)
        assert x.shape == (len(x), 3, 2)
        assert x.dtype == y.dtype == np.float32
        np.testing.assert_array_equal(x[:, 0, 0], y[:, 0])
        np.testing.assert_array_equal(x[:, 0, 0], -y[:, 1])
        found.append(x[:, 0, 0].astype(int))
    return found


@pytest.mark.parametrize("n", [4 * BATCH - 1, 4 * BATCH, 4 * BATCH + 1, BATCH, BATCH + 1])
def test_shuffled_batches_hold_every_sample_once_per_epoch(n):
    epochs = 5
    batches = drawn(numbered(n).loop(BATCH, key=KEY), n)  # n batches are BATCH epochs
    assert {len(batch) for batch in batches} == {BATCH}
    order = np.concatenate(batches).reshape(epochs, n)
    for epoch in range(epochs):
        assert Counter(order[epoch].tolist()) == Counter(range(n))
    assert len({tuple(epoch) for epoch in order}) == epochs, "each epoch has a shuffle of its own"


def test_the_shuffle_is_that_of_the_key_and_the_epoch():
    order = np.concatenate(drawn(numbered(12).loop(4, key=KEY), 6)).reshape(2, 12)
    for epoch in range(2):
        np.testing.assert_array_equal(order[epoch], jax.random.permutation(jax.random.fold_in(KEY, epoch), 12))
    other = np.concatenate(drawn(numbered(12).loop(4, key=jax.random.key(8)), 3))
    assert other.tolist() != order[0].tolist()


@pytest.mark.parametrize("n", [14, 15, 16])
@pytest.mark.parametrize("taken", [0, 1, 2, 3, 7])
def test_a_saved_position_goes_on_identically(n, taken):
    first = numbered(n).loop(BATCH, key=KEY)
    drawn(first, taken)
    saved = json.loads(json.dumps(first.position))
    expected = drawn(first, 8)
    found = drawn(numbered(n).loop(BATCH, key=KEY, position=saved), 8)
    np.testing.assert_array_equal(found, expected)
    assert saved["epoch"] * n + saved["offset"] == taken * BATCH


def test_a_position_of_another_set_is_refused():
    for position in ({"epoch": 0, "offset": 12}, {"epoch": -1, "offset": 0}, {"step": 3}):
        with pytest.raises(DataError, match="not one of a loop over 12 samples"):
            numbered(12).loop(4, key=KEY, position=position)


@pytest.mark.parametrize("n", [14, 15, 16, 3])
def test_one_epoch_serves_every_sample_in_order(n):
    batches = [x[:, 0, 0].astype(int).tolist() for x, _ in numbered(n).loop_epoch(BATCH)]
    assert [row for batch in batches for row in batch] == list(range(n))
    assert all(len(batch) == BATCH for batch in batches[:-1])


@pytest.mark.parametrize(
    ("n", "batch_size", "message"),
    [(4, 5, "batch_size 5: must not exceed the 4 samples"), (4, 0, "batch_size 0"), (4, -1, "-1"), (0, 1, "empty")],
)
def test_impossible_batches_are_refused_at_the_call(n, batch_size, message):
    with pytest.raises(DataError, match=message):
        numbered(n).loop(batch_size, key=KEY)
    if batch_size <= n or n == 0:
        with pytest.raises(DataError, match=message):
            numbered(n).loop_epoch(batch_size)


def test_loader_checks_its_arrays():
    with pytest.raises(DataError, match="3 samples but 2 labels"):
        Dataloader(np.zeros((3, 4, 1)), np.zeros((2, 2)))
    with pytest.raises(DataError, match=r"not \(3, 4\) and \(3, 2\)"):
        Dataloader(np.zeros((3, 4)), np.zeros((3, 2)))
    with pytest.raises(DataError, match=r"and \(3,\)"):
        Dataloader(np.zeros((3, 4, 1)), np.zeros(3))


def test_loaders_share_one_array_and_serve_their_rows():
    data, labels = RNG.normal(size=(9, 4, 2)).astype(np.float32), np.eye(9, dtype=np.float32)
    rows = np.array([7, 2, 5])
    loader = Dataloader(data, labels, rows=rows)
    assert loader.size == 3
    np.testing.assert_array_equal(loader.data, data[rows])
    np.testing.assert_array_equal(loader.labels, labels[rows])
    (batch,) = loader.loop_epoch(5)
    np.testing.assert_array_equal(batch[0], data[rows])
    np.testing.assert_array_equal(batch[1], labels[rows])
    assert np.shares_memory(Dataloader(data, labels).data, data), "arrays are kept, not copied"
    data[7] = 3
    assert (loader.batch(np.array([0]))[0] == 3).all()
    for outside in ([9], [-1]):
        with pytest.raises(DataError, match="of 9 samples"):
            Dataloader(data, labels, rows=np.array(outside))
    assert Dataloader(data, labels, rows=np.empty(0, dtype=int)).size == 0


@pytest.mark.parametrize("inmemory", [False, True])
@pytest.mark.parametrize("time", [False, True])
def test_batches_are_the_same_wherever_the_samples_lie(inmemory, time):
    data, labels = RNG.normal(size=(9, 4, 2)).astype(np.float32), np.eye(9, dtype=np.float32)
    rows = np.array([7, 2, 5, 0, 1])
    loader = Dataloader(data, labels, rows=rows, time=time, inmemory=inmemory)
    expected = data[rows]
    if time:
        channel = np.tile(np.arange(4, dtype=np.float32)[None, :, None] / 4, (5, 1, 1))
        expected = np.concatenate([channel, expected], axis=2)
    kind = jax.Array if inmemory else np.ndarray
    for x, y in (next(loader.loop(5, key=KEY)), next(loader.loop_epoch(5)), (loader.data, loader.labels)):
        assert isinstance(x, kind)
        assert isinstance(y, kind)
        assert x.dtype == y.dtype == np.float32
        order = np.argsort(np.asarray(y).argmax(axis=1))
        np.testing.assert_array_equal(np.asarray(x)[order], expected[np.argsort(rows)])
    x, y = loader.batch(np.array([1, 1]))
    np.testing.assert_array_equal(x, expected[[1, 1]])
    np.testing.assert_array_equal(y, labels[[2, 2]])


# Drawn with jax 0.10.2 by the lines of the docstring of split_by_seed; n = 80 is BasicMotions, 561 SelfRegulationSCP1,
# 380 SelfRegulationSCP2. The hash is of all rows in order, as little-endian int64.
PINNED = {
    80: (
        (56, 12, 12),
        [53, 46, 0, 71, 72, 47, 16, 4],
        [27, 41, 49, 61],
        [73, 69, 39, 8],
        "f5c498c54efd893a0d52df4b067b81f80151a7e583dfaeb6bda85d0bfef3dd0b",
    ),
    380: (
        (266, 57, 57),
        [220, 366, 200, 170, 296, 102, 305, 204],
        [281, 244, 318, 27],
        [130, 73, 284, 245],
        "349f2deeb17484ac0d3ac3b6b7ff9824df2f8d27a98157a4cab92ca8853eac01",
    ),
    561: (
        (392, 84, 85),
        [486, 220, 366, 427, 200, 466, 415, 170],
        [83, 310, 342, 508],
        [456, 245, 401, 81],
        "fc937567cb712db079d89ac907cdf749c1f7cfbca2e28f6380e263e509b759c9",
    ),
}


def digest(split: dict[str, np.ndarray]) -> str:
    return hashlib.sha256(np.concatenate(list(split.values())).astype("<i8").tobytes()).hexdigest()


@pytest.mark.parametrize("n", PINNED)
def test_split_of_seed_2345_is_pinned(n):
    sizes, train, validation, test, sha256 = PINNED[n]
    split = split_by_seed(n, 2345)
    assert list(split) == ["train", "validation", "test"]
    assert tuple(len(rows) for rows in split.values()) == sizes
    assert split["train"][:8].tolist() == train
    assert split["validation"][:4].tolist() == validation
    assert split["test"][:4].tolist() == test
    assert digest(split) == sha256
    assert sorted(np.concatenate(list(split.values())).tolist()) == list(range(n))


def test_split_follows_the_published_lines():
    for seed in (2345, 3456, 4567, 5678, 6789):
        key = jax.random.PRNGKey(seed)
        data_key = jax.random.split(key, 4)[0]
        order = np.asarray(jax.random.permutation(jax.random.split(data_key)[0], 97))
        split = split_by_seed(97, seed)
        np.testing.assert_array_equal(split["train"], order[:67])
        np.testing.assert_array_equal(split["validation"], order[67:82])
        np.testing.assert_array_equal(split["test"], order[82:])


def test_split_ignores_how_jax_is_configured():
    with jax.enable_x64(True):
        assert digest(split_by_seed(561, 2345)) == PINNED[561][-1]
    with jax.threefry_partitionable(False):
        assert digest(split_by_seed(561, 2345)) == PINNED[561][-1]
    with jax.default_prng_impl("rbg"):
        assert digest(split_by_seed(561, 2345)) == PINNED[561][-1]


@pytest.mark.parametrize("n", [1, 2, 3])
def test_a_set_too_small_to_split_is_refused(n):
    with pytest.raises(DataError, match=f"{n} samples are too few .* would be empty.*at least 4"):
        split_by_seed(n, 2345)


def test_four_samples_are_enough_to_split():
    assert [len(rows) for rows in split_by_seed(4, 2345).values()] == [2, 1, 1]


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_that_jax_would_read_differently_is_refused(seed):
    with pytest.raises(DataError, match=f"seed {seed}"):
        split_by_seed(80, seed)
