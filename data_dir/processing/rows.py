"""npy files that are written row by row, before the number of rows is known."""

from typing import BinaryIO

import numpy as np

from data_dir.storage import DataError


class RowWriter:
    """Writes a float32 array (n, *row_shape) in npy format into an open binary file, one row at a time."""

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
        """Writes the number of rows into the header. Before, the header says 0."""
        self._file.seek(0)
        self._write_header()
        # numpy leaves space in the header for the first axis to grow.
        if self._file.tell() != self._header_bytes:
            raise AssertionError(f"the header of {self._file.name} needs more bytes than before")
        self._file.flush()

    def _write_header(self) -> None:
        header = {"descr": "<f4", "fortran_order": False, "shape": (self.rows, *self.row_shape)}
        np.lib.format.write_array_header_1_0(self._file, header)
