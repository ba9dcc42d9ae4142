"""The folders of the data, and the error for wrong files and wrong requests."""

import argparse
import glob
import json
from pathlib import Path

DEFAULT_DATA_DIR = Path(__file__).resolve().parent


class DataError(ValueError):
    """A data file or a request for data is wrong. The message names the file and what to do."""


def raw_folder(data_dir: str | Path, raw_dir: str | Path | None = None) -> Path:
    """The folder of the UEA archive's own files: ``UEA`` in ``raw_dir``, by default ``data_dir``/raw."""
    return (Path(data_dir) / "raw" if raw_dir is None else Path(raw_dir)) / "UEA"


def processed_folder(data_dir: str | Path) -> Path:
    """The folder of the processed sets, ``processed/{collection}/{dataset_name}``."""
    return Path(data_dir) / "processed"


def config_beside_data(data_dir: str | Path, model: str, dataset_name: str) -> Path | None:
    """The config of a model that lies beside the arrays of a processed set, or None."""
    pattern = f"*/{glob.escape(dataset_name)}/configs/{glob.escape(model)}/{glob.escape(dataset_name)}.json"
    return min(processed_folder(data_dir).glob(pattern), default=None)


def script_command(script: str, data_dir: str | Path, *options: str, raw_dir: str | Path | None = None) -> str:
    """The command line that runs a script of this package on ``data_dir``, for error messages."""
    command = f"python data_dir/{script} {' '.join(options)}".rstrip()
    if Path(data_dir).resolve() != DEFAULT_DATA_DIR:
        command += f" --data_dir {data_dir}"
    if raw_dir is not None:
        command += f" --raw_dir {raw_dir}"
    return command


def add_folder_options(parser: argparse.ArgumentParser) -> None:
    """Adds --data_dir and --raw_dir, which all scripts that read or write raw files take."""
    parser.add_argument("--data_dir", type=Path, default=DEFAULT_DATA_DIR, help="default: %(default)s")
    parser.add_argument("--raw_dir", type=Path, help="folder of the raw files; default: raw in the data_dir")


def read_json(path: Path) -> dict:
    """The JSON object in a file. Raises DataError if the file cannot be read or holds no JSON object."""
    if path.exists() and not path.is_file():
        raise DataError(f"{path}: is not a regular file.")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise DataError(f"{path}: cannot be read ({error}).") from error
    if not isinstance(value, dict):
        raise DataError(f"{path}: must hold a JSON object.")
    return value
