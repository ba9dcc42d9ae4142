"""Batches drawn ahead: the same ones in the same order, with the position of those that were handed out."""

import gc
import threading
import time

import jax
import numpy as np
import pytest

from data_dir.dataloaders import Dataloader
from training.prefetch import Prefetched

KEY = jax.random.key(3)


def loader(n: int = 12) -> Dataloader:
    rows = np.arange(n, dtype=np.float32)
    return Dataloader(np.tile(rows[:, None, None], (1, 3, 2)), rows[:, None])


def threads() -> int:
    return sum(thread.name == "prefetch" for thread in threading.enumerate())


def wait_until(condition) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_batches_are_those_of_the_loop_and_lie_on_the_device():
    plain = loader().loop(5, key=KEY)
    with Prefetched(loader().loop(5, key=KEY)) as batches:
        for _ in range(7):
            (x, y), (expected_x, expected_y) = next(batches), next(plain)
            assert isinstance(x, jax.Array)
            np.testing.assert_array_equal(x, expected_x)
            np.testing.assert_array_equal(y, expected_y)
            assert batches.position == plain.position
    assert threads() == 0


def test_the_position_is_that_of_the_batches_handed_out():
    with Prefetched(loader().loop(5, key=KEY), depth=4) as batches:
        assert batches.position == {"epoch": 0, "offset": 0}
        for _ in range(3):
            next(batches)
        wait_until(batches._queue.full)
        saved = batches.position
        expected = [np.asarray(next(batches)[1]) for _ in range(6)]
    again = loader().loop(5, key=KEY, position=saved)
    np.testing.assert_array_equal([next(again)[1] for _ in range(6)], expected)


def test_no_more_than_depth_are_drawn_ahead():
    drawn = []
    source = (drawn.append(number) or np.float32(number) for number in range(100))
    with Prefetched(source, depth=3) as batches:
        assert batches.position is None
        wait_until(lambda: len(drawn) == 4)  # One more waits for its place.
        time.sleep(0.05)
        assert len(drawn) == 4
        assert float(next(batches)) == 0
        wait_until(lambda: len(drawn) == 5)


def test_the_end_comes_after_the_last_batch():
    with Prefetched(loader().loop_epoch(5)) as batches:
        assert [len(x) for x, _ in batches] == [5, 5, 2]
        with pytest.raises(StopIteration):
            next(batches)
    assert threads() == 0


def failing():
    yield np.float32(1)
    raise OSError("the disk is gone")


def test_an_error_comes_where_its_batch_would_have():
    batches = Prefetched(failing())
    assert float(next(batches)) == 1
    with pytest.raises(OSError, match="the disk is gone"):
        next(batches)
    with pytest.raises(StopIteration):
        next(batches)
    assert threads() == 0


def test_the_thread_ends_with_its_reader():
    batches = Prefetched(loader().loop(5, key=KEY))
    next(batches)
    assert threads() == 1
    batches.close()
    batches.close()
    assert threads() == 0
    batches = Prefetched(loader().loop(5, key=KEY))
    del batches
    gc.collect()
    wait_until(lambda: threads() == 0)


def test_a_depth_of_nothing_is_refused():
    with pytest.raises(ValueError, match="depth 0"):
        Prefetched(iter([]), depth=0)
