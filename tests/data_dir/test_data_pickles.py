"""Pickles: arrays are read, whoever wrote them; nothing is run."""

import codecs
import os
import pickle
import resource
import subprocess
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_dir.pickles import read_array, read_arrays, write_arrays
from data_dir.storage import DataError

BLOCK = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
ARRAYS = {
    "plain": BLOCK,
    "transposed": BLOCK.T,
    "axes swapped": BLOCK.transpose(1, 0, 2),
    "Fortran order": np.asfortranarray(BLOCK),
    "not contiguous": BLOCK[:, ::2],
    "double": BLOCK.astype(np.float64),
    "big-endian": BLOCK.astype(">f4"),
    "integers": np.array([2, -1, 3]),
    "booleans": BLOCK > 3,
    "no axes": np.array(3.0),
    "empty": np.empty((0, 3)),
    "scalar": np.float64(2.5),
    "jax": jnp.asarray(BLOCK),
    "jax integers": jnp.arange(5),
    "jax weakly typed": jnp.asarray(1.5) * 2,
}


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_come_back(tmp_path, name, protocol):
    path = tmp_path / "a.pkl"
    path.write_bytes(pickle.dumps(ARRAYS[name], protocol=protocol))
    found, expected = read_array(path), np.asarray(ARRAYS[name])
    assert isinstance(found, np.ndarray)
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    np.testing.assert_array_equal(found, expected)


def test_tuples_of_arrays_come_back(tmp_path):
    arrays = (np.arange(3), np.empty(0, dtype=np.int64), np.arange(4))
    write_arrays(tmp_path / "a.pkl", arrays)
    found = read_arrays(tmp_path / "a.pkl")
    assert isinstance(found, tuple)
    for one, other in zip(found, arrays, strict=True):
        np.testing.assert_array_equal(one, other)


class _Spelled:
    """Pickles as a call of ``module.name``, whether or not such a module is installed."""

    def __init__(self, module: str, name: str, arguments: tuple, state=None):
        self.module, self.name, self.arguments, self.state = module, name, arguments, state


class _Speller(pickle._Pickler):
    def save(self, obj, save_persistent_id=True):
        if isinstance(obj, _Spelled):
            self.write(pickle.GLOBAL + f"{obj.module}\n{obj.name}\n".encode())
            self.save(obj.arguments)
            self.write(pickle.REDUCE)
            if obj.state is not None:
                self.save(obj.state)
                self.write(pickle.BUILD)
        else:
            super().save(obj, save_persistent_id)


def spell(path, obj):
    with open(path, "wb") as file:
        _Speller(file, protocol=2).dump(obj)


OLD_DTYPE = _Spelled("numpy", "dtype", ("f4", 0, 1), (3, "<", None, None, None, -1, -1, 0))


@pytest.mark.parametrize(
    ("module", "name"),
    [("jax._src.array", "_reconstruct_array"), ("jax._src.device_array", "reconstruct_device_array")],
)
def test_jax_arrays_of_all_versions_are_read(tmp_path, module, name):
    # The arguments are those of jax's function: numpy's function, its arguments, the state to set, jax's own extras.
    state = (1, (2, 3), OLD_DTYPE, False, np.arange(6, dtype="<f4").tobytes())
    extras = {"weak_type": False, "named_shape": {}}
    spell(tmp_path / "a.pkl", _Spelled(module, name, (None, (), state, extras)))
    found = read_array(tmp_path / "a.pkl")
    assert isinstance(found, np.ndarray)
    np.testing.assert_array_equal(found, np.arange(6, dtype=np.float32).reshape(2, 3))


@pytest.mark.parametrize("core", ["numpy.core", "numpy._core"])
def test_both_names_of_numpys_core_are_read(tmp_path, core):
    data = np.arange(6, dtype="<f4").tobytes()
    spell(
        tmp_path / "a.pkl",
        _Spelled(f"{core}.multiarray", "_reconstruct", (None, (0,), "b"), (1, (6,), OLD_DTYPE, False, data)),
    )
    spell(tmp_path / "b.pkl", _Spelled(f"{core}.multiarray", "scalar", (OLD_DTYPE, data[4:8])))
    spell(tmp_path / "c.pkl", _Spelled(f"{core}.numeric", "_frombuffer", (data, OLD_DTYPE, (3, 2), "C")))
    np.testing.assert_array_equal(read_array(tmp_path / "a.pkl"), np.arange(6))
    assert read_array(tmp_path / "b.pkl") == 1
    np.testing.assert_array_equal(read_array(tmp_path / "c.pkl"), np.arange(6).reshape(3, 2))


class _Runs:
    """What its pickle does when loaded is to call ``function`` with ``arguments``."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("within", [lambda bad: bad, lambda bad: [np.arange(2), bad], lambda bad: {"data": bad}])
def test_code_in_a_pickle_is_not_run(tmp_path, within):
    mark = tmp_path / "it_ran"
    for bad, name in (
        (_Runs(os.mkdir, str(mark)), "posix.mkdir"),
        (_Runs(subprocess.check_call, ["mkdir", str(mark)]), "subprocess.check_call"),
        (_Runs(eval, f"__import__('os').mkdir({str(mark)!r})"), "builtins.eval"),
    ):
        payload = pickle.dumps(within(bad))
        path = tmp_path / "labels.pkl"
        path.write_bytes(payload)
        with pytest.raises(DataError, match=r"labels\.pkl: the pickle asks for ") as caught:
            read_arrays(path)
        assert name in str(caught.value)
        assert "numpy.asarray" in str(caught.value), "the message says what to do"
        assert not mark.exists()
        pickle.loads(payload)  # The payload is a live one.
        assert mark.exists()
        mark.rmdir()


@pytest.mark.parametrize("call", [(np.ndarray, (3,)), (codecs.encode, "a", "rot13")], ids=["ndarray", "encode"])
def test_functions_with_an_allowed_name_are_not_called(tmp_path, call):
    """numpy.ndarray((3,)) is an array of whatever the memory holds."""
    path = tmp_path / "data.pkl"
    path.write_bytes(pickle.dumps([np.arange(2), _Runs(*call)]))
    with pytest.raises(DataError, match=r"data\.pkl: not a pickle of arrays"):
        read_arrays(path)


@pytest.mark.parametrize(
    "value",
    [
        {"a": np.arange(2)},
        "text",
        b"bytes",
        None,
        [np.arange(2), "text"],
        np.array([object], dtype=object),
        np.array(["text"]),
        np.array([1j]),
        np.array([(1, 2.0)], dtype=[("a", "i4"), ("b", "f4")]),
        jax.random.key_data,
        np.arange,
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_no_array_of_numbers_is_refused(tmp_path, value):
    path = tmp_path / "data.pkl"
    path.write_bytes(pickle.dumps(value))
    with pytest.raises(DataError, match=r"data\.pkl: "):
        read_arrays(path)


def test_a_name_is_not_an_array(tmp_path):
    path = tmp_path / "data.pkl"
    path.write_bytes(b"cnumpy\nndarray\n.")
    with pytest.raises(DataError, match=r"data\.pkl: not a pickle of arrays"):
        read_arrays(path)


def test_damaged_pickles_are_refused(tmp_path):
    path = tmp_path / "data.pkl"
    whole = pickle.dumps(BLOCK)
    for cut in range(len(whole)):
        path.write_bytes(whole[:cut])
        with pytest.raises(DataError, match=r"data\.pkl: not a pickle of arrays, or cut short"):
            read_arrays(path)
    path.write_bytes(b"X" * 200)
    with pytest.raises(DataError, match="Write it again"):
        read_arrays(path)
    with pytest.raises(DataError, match=r"absent\.pkl: cannot be read \(No such file"):
        read_arrays(tmp_path / "absent.pkl")


def nested(value, depth: int = 26) -> bytes:
    """A list of two lists of two lists .. of one value: 2^depth times the value, in a few hundred bytes."""
    for _ in range(depth):
        value = [value, value]
    return pickle.dumps(value)


@pytest.mark.parametrize(
    ("content", "sound"),
    [
        (nested(1), False),
        (nested(np.arange(4.0)), False),
        (pickle.dumps([np.zeros(10**5)] * 10**5), False),
        (b"\x80\x02K\x01r\xff\xff\xff\x7f.", True),  # stores the number 1 as part 2^31 - 1, and is the number 1
        (b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7fK\x01.", False),
        (b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\x00\x00x.", False),
    ],
    ids=["numbers", "small arrays", "a large array", "memo", "frame", "bytes"],
)
def test_no_small_file_takes_much_memory(tmp_path, content, sound):
    path = tmp_path / "data.pkl"
    path.write_bytes(content)
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**30, hard))
    try:
        if sound:
            assert read_array(path) == 1
            return
        with pytest.raises(DataError, match=r"data\.pkl: not a pickle of arrays"):
            read_array(path)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def test_a_pipe_is_no_pickle(tmp_path):
    os.mkfifo(tmp_path / "data.pkl")
    with pytest.raises(DataError, match=r"data\.pkl: is not a regular file"):
        read_arrays(tmp_path / "data.pkl")


def test_arrays_of_different_shapes_are_not_one_array(tmp_path):
    path = tmp_path / "data.pkl"
    path.write_bytes(pickle.dumps([np.arange(2), np.arange(3)]))
    with pytest.raises(DataError, match=r"data\.pkl: holds arrays of different shapes"):
        read_array(path)
