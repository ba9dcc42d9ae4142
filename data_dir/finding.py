"""The folder of a processed set by its name, and what to do if it is missing."""

import importlib.metadata
from pathlib import Path

from data_dir.names import BUNDLED, PPG, PUBLISHED_UEA, SEQUENTIAL, UEA_MULTIVARIATE, nearest_name
from data_dir.processed import CUT, WHOLE, is_dataset
from data_dir.processing.uea import COLLECTION, process_dataset, raw_files
from data_dir.storage import DataError, processed_folder, raw_folder, script_command


def processed_datasets(data_dir: str | Path) -> list[str]:
    """The names of the sets in processed/*/, sorted."""
    return sorted({folder.name for folder in processed_folder(data_dir).glob("*/[!.]*") if is_dataset(folder)})


def folder_of(data_dir: str | Path, name: str) -> Path:
    """The folder of a processed set; a bundled set is processed on first use.

    Raises DataError, with the commands that make the set, if it is missing, and for a name that is a path or occurs
    twice.
    """
    processed = processed_folder(data_dir)
    if not name or Path(name).name != name or name.startswith("."):
        raise DataError(f"dataset_name {name!r}: must be the name of a folder in {processed}/*/.")
    folders = [folder for folder in sorted(processed.glob(f"*/{name}")) if is_dataset(folder)]
    if len(folders) > 1:
        raise DataError(f"dataset_name {name!r}: exists twice, as {folders[0]} and {folders[1]}. Rename or remove one.")
    if folders:
        return folders[0]
    if not Path(data_dir).is_dir():
        raise DataError(
            f"data_dir {data_dir}: no such folder, so it has no data set {name!r}. In a clone it is data_dir, relative "
            "to the folder where you run the command; make the folder if it shall be a new one."
        )
    if name in BUNDLED:
        package = importlib.metadata.distribution("sktime")  # Importing sktime takes seconds.
        raw = Path(str(package.locate_file("sktime"))) / "datasets" / "data" / name
        train, test = (raw / f"{name}_{part}.ts" for part in ("TRAIN", "TEST"))
        process_dataset(name, train, test, data_dir, keep=is_dataset)
        return processed / COLLECTION / name
    raise DataError(_how_to_get(data_dir, name))


def _how_to_get(data_dir: str | Path, name: str) -> str:
    """The message for a missing set, with the commands that make it."""
    processed = processed_folder(data_dir)
    known = {*BUNDLED, *PUBLISHED_UEA, *UEA_MULTIVARIATE, *SEQUENTIAL, PPG, *processed_datasets(data_dir)}
    message = f"dataset_name {name!r}: no folder {processed}/*/{name} holds {WHOLE[0]}.pkl or {CUT['train'][0]}.npy."
    nearest = nearest_name(name, known)
    if name not in known and nearest:
        return f"{message} Did you mean {nearest!r}?"
    if name == PPG:
        process = script_command("process_ppg.py", data_dir)
        return f"{message} PPG-DaLiA is fetched by hand and processed; this says how:\n    {process}"
    if name in SEQUENTIAL:
        process = script_command("process_sequential.py", data_dir, "--datasets", name)
        return f"{message} Fetch and process it:\n    {process}"
    process = script_command("process_uea.py", data_dir, "--datasets", name)
    if raw_files(data_dir, name):
        return f"{message} Its raw files exist; process them:\n    {process}"
    if name in UEA_MULTIVARIATE:
        fetch = script_command("download_uea.py", data_dir, "--datasets", name)
        return f"{message} Fetch and process it:\n    {fetch}\n    {process}"
    raw = raw_folder(data_dir) / "Multivariate_ts" / name
    return (
        f"{message} Put {name}_TRAIN.ts and {name}_TEST.ts into {raw} and process them:\n    {process}\n"
        f"These sets need no download: {', '.join(BUNDLED)}."
    )
