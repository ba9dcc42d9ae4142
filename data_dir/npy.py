"""npy files: written row by row without knowing how many there will be, read by memory-mapping."""

from pathlib import Path
from typing import BinaryIO

import numpy as np

from data_dir.storage import DataError


class RowWriter:
    """Writes a float32 array (n, *row_shape) in npy format into an open binary file as its rows come."""

    def __init__(self, file: BinaryIO, row_shape: tuple[int, ...]):
        self.row_shape = row_shape
        self.rows = 0
        self._file = file
        self._write_header()
        self._header_bytes = file.tell()

    def append(self, row: np.ndarray) -> None:
        """Writes one row; raises DataError if it has another shape."""
        if row.shape != self.row_shape:
            raise DataError(f"{self._file.name}: a row of shape {row.shape} where {self.row_shape} is needed.")
        self._file.write(np.ascontiguousarray(row, dtype="<f4").data)
        self.rows += 1

    def finish(self) -> None:
        """Completes the header by the number of rows. Without it the file has none."""
        self._file.seek(0)
        self._write_header()
        # numpy leaves room in the header for the first axis to grow.
        if self._file.tell() != self._header_bytes:
            raise AssertionError(f"the header of {self._file.name} outgrew its room")
        self._file.flush()

    def _write_header(self) -> None:
        header = {"descr": "<f4", "fortran_order": False, "shape": (self.rows, *self.row_shape)}
        np.lib.format.write_array_header_1_0(self._file, header)


def read_npy(path: Path) -> np.ndarray:
    """The array in an npy file, memory-mapped, read-only. Raises DataError, naming the file, if it is not sound."""
    if not path.is_file():
        raise DataError(f"{path}: no such file.")
    try:
        return np.lib.format.open_memmap(path, mode="r")  # never a pickle, never a zip
    except Exception as error:  # numpy parses the header as Python: damage fails in any way
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise DataError(
            f"{path}: no array can be read from it ({reason}). Write it again, as one array of numbers."
        ) from error
