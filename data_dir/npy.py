"""Arrays in npy files, memory-mapped."""

from pathlib import Path

import numpy as np

from data_dir.storage import DataError


def read_npy(path: Path) -> np.ndarray:
    """The array in an npy file, memory-mapped, read-only. Raises DataError, naming the file, if it is not sound."""
    if not path.is_file():
        raise DataError(f"{path}: no such file.")
    try:
        return np.lib.format.open_memmap(path, mode="r")  # never a pickle, never a zip
    except Exception as error:  # numpy parses the header as Python: a damaged one fails in any way
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise DataError(
            f"{path}: no array can be read from it ({reason}). Write it again, as one array of numbers."
        ) from error
