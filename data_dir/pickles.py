"""Arrays in pickles, read without running the code that a pickle names.

A pickle is a program: it names functions and calls them. This unpickler knows only the names with which numpy (since
1.11) and jax (since 0.2) write arrays of numbers. It records the calls and does not make them. The arrays are built
later, from the recorded parts: type, shape and bytes.
"""

import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from data_dir.storage import DataError


class _Recorded:
    """A recorded call: the builder for the called name, the arguments, and the state, which pickle sets later."""

    def __init__(self, builder: Callable, arguments: tuple):
        self.builder, self.arguments, self.state = builder, arguments, None

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def built(self) -> Any:
        return self.builder(self.state, *self.arguments)


def _flat(data: Any, dtype: _Recorded) -> np.ndarray:
    data = data.built() if isinstance(data, _Recorded) else data
    return np.frombuffer(data.encode("latin1") if isinstance(data, str) else data, dtype.built())


def _bytes(_, text: str = "", codec: str = "latin1") -> bytes:
    if codec != "latin1":
        raise ValueError(f"codec {codec!r}")
    return text.encode("latin1")


def _dtype(state, spelling: str, *_) -> np.dtype:
    dtype = np.dtype(spelling) if isinstance(spelling, str) else None
    if dtype is None or dtype.kind not in "biuf":
        raise ValueError(f"an array of type {spelling!r}, which is no type of numbers")
    return dtype.newbyteorder(state[1] if state else "=")


def _array(state, *_) -> np.ndarray:
    _, shape, dtype, fortran_order, data = state
    return _flat(data, dtype).reshape(shape, order="F" if fortran_order else "C")


def _jax_array(_, function, arguments, state, extras) -> np.ndarray:
    return _array(state)


def _buffer(_, data, dtype, shape, order, axes=None) -> np.ndarray:
    if axes is not None:
        return _flat(data, dtype).reshape(shape).transpose(axes)
    return _flat(data, dtype).reshape(shape, order=order)


# The names of numpy's and jax's functions in all versions, and what builds their result from state and arguments.
_ALLOWED = {
    ("numpy", "ndarray"): None,
    ("numpy", "dtype"): _dtype,
    ("jax._src.array", "_reconstruct_array"): _jax_array,
    ("jax._src.device_array", "reconstruct_device_array"): _jax_array,
    # Bytes in protocols 0 to 2.
    ("_codecs", "encode"): _bytes,
    ("__builtin__", "bytes"): _bytes,
}
for _core in ("numpy.core", "numpy._core"):
    _ALLOWED[f"{_core}.multiarray", "_reconstruct"] = _array
    _ALLOWED[f"{_core}.multiarray", "scalar"] = lambda _, dtype, data: _flat(data, dtype)[0]
    _ALLOWED[f"{_core}.numeric", "_frombuffer"] = _buffer


# pickle.Unpickler, written in C, reserves memory for the largest number of a "put" in the file: a few bytes can ask for
# gigabytes. The unpickler in Python does not.
class _ArrayUnpickler(pickle._Unpickler):
    def __init__(self, file: BinaryIO, path: Path | str):
        super().__init__(file, encoding="latin1")
        self.path = path

    def find_class(self, module: str, name: str) -> Callable[..., _Recorded]:
        if (module, name) not in _ALLOWED:
            raise DataError(
                f"{self.path}: the pickle asks for {module}.{name}, and was not run. Only numpy and jax arrays of "
                "numbers, in lists or tuples, are read. If you trust the file, load it with the program that wrote it "
                "and write numpy.asarray(...) of its arrays instead."
            )
        return lambda *arguments: _Recorded(_ALLOWED[module, name], arguments)


def _built(value: Any, file_bytes: int) -> Any:
    """``value`` with arrays in place of the recorded calls.

    Raises ValueError for anything but arrays, numbers, lists and tuples. It also raises if the result is many times
    larger than the file: a pickle can refer to one part again and again.
    """
    left = 16 * file_bytes + 2**16

    def build(value: Any) -> Any:
        nonlocal left
        built = value.built() if isinstance(value, _Recorded) else value
        left -= 1 + getattr(built, "nbytes", 0)
        if left < 0:
            raise ValueError("it expands to many times its own size")
        if isinstance(built, list | tuple):
            return type(built)(map(build, built))
        if isinstance(built, np.ndarray | np.generic | bool | int | float):
            return built
        raise ValueError(f"a {type(built).__name__}")

    return build(value)


@contextmanager
def _refusing(path: Path | str) -> Iterator[None]:
    """Turns every error into a DataError. Each opcode of a damaged pickle fails in its own way."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        raise DataError(
            f"{path}: not a pickle of arrays, or cut short ({type(error).__name__}: {error}). Write it again."
        ) from error


def read_arrays(path: str | Path) -> Any:
    """The arrays of numbers in a pickle: one array, or lists and tuples of arrays and numbers.

    jax arrays become numpy arrays. Arrays may be read-only. Raises DataError, naming the file, if it is missing,
    damaged or no pickle, or holds anything else. No function or class that the file names is imported or called.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        raise DataError(f"{path}: is not a regular file.")
    try:
        file = open(path, "rb")  # noqa: SIM115
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}).") from error
    with file, _refusing(path):
        return _built(_ArrayUnpickler(file, path).load(), file.tell())


def read_array(path: str | Path) -> np.ndarray:
    """As ``read_arrays``, as one array. Lists and tuples of arrays of one shape are stacked. Raises DataError."""
    value = read_arrays(path)
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise DataError(f"{path}: holds arrays of different shapes where one array is needed.") from error
    if array.dtype.kind not in "biuf":
        raise DataError(f"{path}: holds no array of numbers.")
    return array


def read_members(file: BinaryIO, path: Path | str, members: list[tuple[str, ...]]) -> list[np.ndarray]:
    """Arrays in the nested dicts of a pickle, also one of Python 2; ``members`` lists the keys, the outermost first.

    Other members may be text, numbers and arrays. They are not built, so that reading takes little more memory than the
    file has bytes. Raises DataError, naming ``path`` and the member, as ``read_arrays`` does and if a member is missing
    or no array of numbers.
    """
    with _refusing(path):
        value = _ArrayUnpickler(file, path).load()
    arrays = []
    for keys in members:
        name = "".join(f"[{key!r}]" for key in keys)
        inner = value
        for key in keys:
            if not isinstance(inner, dict) or key not in inner:
                raise DataError(f"{path}: holds no {name}.")
            inner = inner[key]
        try:
            arrays.append(np.asarray(_built(inner, file.tell())))
        except Exception as error:  # The parts may be anything.
            raise DataError(f"{path}: {name} is no array of numbers ({error}).") from error
    return arrays


def write_arrays(path: str | Path, arrays: Any) -> None:
    """Writes numpy arrays (or a tuple of them) so that any Python 3 with numpy reads them."""
    with open(path, "wb") as file:
        pickle.dump(arrays, file, protocol=4)
