"""Arrays in pickles, read without running anything that the pickle names.

A pickle is a program: the names in it are imported and called. Here every admitted name stands for itself; what the
pickle would call is noted as parts, and the array is built from its parts (type, shape, bytes) afterwards. Admitted are
numpy's arrays, types and scalars, and jax's arrays, in the spellings of every version since numpy 1.11 and jax 0.2.
"""

import pickle
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from data_dir.storage import DataError

# Name in the pickle -> what it stands for. numpy 2 renamed numpy.core to numpy._core. jax arrays pickle as a call of a
# function of jax on the parts of a numpy array (`device_array` until jax 0.4.1, `array` since 0.3.25); before that they
# pickled as numpy arrays. The codec spells bytes in pickles of protocol 2 and below; `bytes` those of an empty array.
_ADMITTED = {
    ("numpy", "ndarray"): "class",
    ("numpy", "dtype"): "dtype",
    ("numpy.core.multiarray", "_reconstruct"): "array",
    ("numpy._core.multiarray", "_reconstruct"): "array",
    ("numpy.core.multiarray", "scalar"): "scalar",
    ("numpy._core.multiarray", "scalar"): "scalar",
    ("numpy.core.numeric", "_frombuffer"): "buffer",
    ("numpy._core.numeric", "_frombuffer"): "buffer",
    ("jax._src.array", "_reconstruct_array"): "jax array",
    ("jax._src.device_array", "reconstruct_device_array"): "jax array",
    ("_codecs", "encode"): "bytes",
    ("__builtin__", "bytes"): "bytes",
}


class _Parts:
    """What the pickle would have made by a call: what it stands for, the call's arguments and the state set after."""

    def __init__(self, kind: str, arguments: tuple):
        self.kind = kind
        self.arguments = arguments
        self.state = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Name:
    """An admitted name; calling it notes the arguments."""

    def __init__(self, kind: str):
        self.kind = kind

    def __call__(self, *arguments: Any) -> _Parts:
        return _Parts(self.kind, arguments)


# Python's own unpickler: that of C reserves memory for every number below the largest one that a "put" in the file
# names, and a few bytes name a large one.
class _ArrayUnpickler(pickle._Unpickler):
    def __init__(self, file, path: Path | str):
        super().__init__(file, encoding="latin1")
        self.path = path

    def find_class(self, module: str, name: str) -> _Name:
        kind = _ADMITTED.get((module, name))
        if kind is None:
            raise DataError(
                f"{self.path}: the pickle asks for {module}.{name}; only numpy and jax arrays of numbers, in lists or "
                "tuples, are read, and nothing was run. If you trust the file, load it with the program that wrote it "
                "and write numpy.asarray(...) of its arrays instead."
            )
        return _Name(kind)


def _as_bytes(value: Any) -> bytes:
    if isinstance(value, _Parts) and value.kind == "bytes":
        text, codec = value.arguments or ("", "latin1")
        if codec != "latin1":
            raise ValueError(f"codec {codec!r}")
        return text.encode("latin1")
    return value.encode("latin1") if isinstance(value, str) else value


def _as_dtype(value: Any) -> np.dtype:
    if not (isinstance(value, _Parts) and value.kind == "dtype" and isinstance(value.arguments[0], str)):
        raise ValueError("an array without a type")
    dtype = np.dtype(value.arguments[0])
    if dtype.kind not in "biuf":
        raise ValueError(f"an array of type {dtype}, which are not numbers")
    byte_order = value.state[1] if value.state else "="
    return dtype.newbyteorder(byte_order)


def _array(state: tuple) -> np.ndarray:
    # numpy's state: (version, shape, type, in Fortran order?, bytes).
    _, shape, dtype, fortran_order, data = state
    return np.frombuffer(_as_bytes(data), dtype=_as_dtype(dtype)).reshape(shape, order="F" if fortran_order else "C")


class _Budget:
    """What may be built from a file: a pickle can name one part again and again, lists of lists of it as well."""

    def __init__(self, file_bytes: int):
        self.left = 16 * file_bytes + 2**16

    def spend(self, amount: int) -> None:
        self.left -= amount
        if self.left < 0:
            raise ValueError("it expands to many times its own size")


def _built(value: Any, budget: _Budget) -> Any:
    budget.spend(1)
    if isinstance(value, list | tuple):
        return type(value)(_built(item, budget) for item in value)
    if isinstance(value, _Parts):
        array = _array_of(value)
        budget.spend(array.nbytes)
        return array
    if isinstance(value, bool | int | float):
        return value
    raise ValueError(f"a {type(value).__name__}")


def _array_of(value: _Parts) -> np.ndarray:
    if value.kind == "array":
        return _array(value.state)
    if value.kind == "jax array":
        _, _, state, _ = value.arguments
        return _array(state)
    if value.kind == "buffer":
        data, dtype, shape, order, *axes = value.arguments
        array = np.frombuffer(_as_bytes(data), dtype=_as_dtype(dtype))
        if axes and axes[0] is not None:
            return array.reshape(shape).transpose(axes[0])
        return array.reshape(shape, order=order)
    if value.kind == "scalar":
        dtype, data = value.arguments
        return np.frombuffer(_as_bytes(data), dtype=_as_dtype(dtype))[0]
    raise ValueError(f"a {value.kind}")


def read_arrays(path: str | Path) -> Any:
    """What a pickle holds, if that is an array of numbers or lists, tuples or numbers around such arrays.

    jax arrays come back as numpy arrays. Arrays may be read-only. Raises DataError, naming the file, if it is missing,
    cut short, no pickle, or holds anything else; no function or class that the file names is imported or called.
    """
    path = Path(path)
    try:
        if path.exists() and not path.is_file():
            raise DataError(f"{path}: is not a regular file.")
        with open(path, "rb") as file:
            return _built(_ArrayUnpickler(file, path).load(), _Budget(path.stat().st_size))
    except DataError:
        raise
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}).") from error
    except Exception as error:  # A damaged pickle can fail in any way: each opcode has its own.
        raise DataError(
            f"{path}: not a pickle of arrays, or cut short ({type(error).__name__}: {error}). Write it again."
        ) from error


def read_members(file: BinaryIO, path: Path | str, members: list[tuple[str, ...]]) -> list[np.ndarray]:
    """Arrays out of the nested dicts in a pickle: ``members`` lists their keys, from the outermost dict on.

    The pickle may hold text, numbers and arrays beside them. Only the wanted arrays are built, so that a file takes
    little more memory than its own size. It may be one of Python 2. Raises DataError, naming ``path`` and the member,
    as ``read_arrays`` does, and if there is no such member or it is no array of numbers.
    """
    try:
        value = _ArrayUnpickler(file, path).load()
    except DataError:
        raise
    except Exception as error:
        raise DataError(f"{path}: not a pickle, or cut short ({type(error).__name__}: {error}).") from error
    found = []
    for keys in members:
        name = "".join(f"[{key!r}]" for key in keys)
        inner = value
        for key in keys:
            if not isinstance(inner, dict) or key not in inner:
                raise DataError(f"{path}: holds no {name}.")
            inner = inner[key]
        try:
            array = np.asarray(_built(inner, _Budget(file.tell())))
        except Exception as error:  # The parts may be anything.
            raise DataError(f"{path}: {name} is no array of numbers ({error}).") from error
        if array.dtype.kind not in "biuf":
            raise DataError(f"{path}: {name} is no array of numbers.")
        found.append(array)
    return found


def read_array(path: str | Path) -> np.ndarray:
    """The array in a pickle; a list or tuple of equally shaped arrays or numbers is stacked. Raises DataError."""
    value = read_arrays(path)
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise DataError(f"{path}: holds arrays of different shapes where one array is needed.") from error
    if array.dtype.kind not in "biuf":
        raise DataError(f"{path}: holds no array of numbers.")
    return array


def write_arrays(path: str | Path, arrays: Any) -> None:
    """Writes numpy arrays (or a tuple of them) so that any Python 3 with numpy reads them."""
    with open(path, "wb") as file:
        pickle.dump(arrays, file, protocol=4)
