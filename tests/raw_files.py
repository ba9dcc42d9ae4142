"""Raw and processed files of a toy set, a full disk, and the files in a folder."""

import pickle
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from data_dir.processing.uea import raw_files

HEADER = "@problemName toy\n@timeStamps false\n@univariate false\n@classLabel true a b\n@data\n"


def series_text(*rows: tuple[list[list[float]], str]) -> str:
    """Rows of a ts file: channels separated by colons, the label last."""
    return "".join(":".join([*(",".join(map(str, channel)) for channel in row), label]) + "\n" for row, label in rows)


TRAIN = series_text(([[3, 1, 2], [0, 0, 1]], "a"), ([[1, 2, 3], [4, 5, 6]], "a"))
TEST = series_text(([[2, 2, 2], [1, 1, 1]], "a"), ([[-1, 0, 0], [0, 0, 0]], "b"))

ARFF_HEADER = "@relation toy\n@attribute r relational\n@attribute v numeric\n@end r\n@attribute class {a,b}\n@data\n"
ARFF_TRAIN = "'3,1,2\\n0,0,1',a\n'1,2,3\\n4,5,6',a\n"
ARFF_TEST = "'2,2,2\\n1,1,1',a\n'-1,0,0\\n0,0,0',b\n"


def put_raw(data_dir: Path, name: str = "Toy", train: str = HEADER + TRAIN, test: str = HEADER + TEST, suffix=".ts"):
    folder = data_dir / "raw" / "UEA" / f"Multivariate_{suffix[1:]}" / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}_TRAIN{suffix}").write_text(train)
    (folder / f"{name}_TEST{suffix}").write_text(test)
    return raw_files(data_dir, name)


def store(data_dir: Path, name: str = "Toy", collection: str = "UEA", **arrays) -> Path:
    """Writes arrays as the published scripts do."""
    folder = data_dir / "processed" / collection / name
    folder.mkdir(parents=True, exist_ok=True)
    for file, array in arrays.items():
        (folder / f"{file}.pkl").write_bytes(pickle.dumps(array))
    return folder


def files_below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@contextmanager
def full_disk(after_bytes: int) -> Iterator[None]:
    """Within it, writing more than ``after_bytes`` into any one file fails, as it does on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (after_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
