"""The folder of a run: its path, the names of its files, its lock, and whether the run is finished.

<output_parent_dir>/[<setting>/]<dataset>/<model>_<algorithm>/seed_<n>/     <setting>: what --set gave, as lr=0.003,
                                                                                and the machine, as machine=process
    config.json      config with defaults, shape and hash of the data, precision, versions, commit, device, command
    split.json       the stored rows of each part, as an index file (not for data sets that come cut into parts)
    metrics.jsonl    one line per evaluation (the fields of `train.Evaluation`)
    checkpoints/     the state of the training, see `training.checkpoints`: an unfinished run is resumed from it
    unit.py          the file of your own unit as it ran: to use the run after a change of the file
    model.eqx        the model and its state that were best on the validation set
    curves.png       loss and metric against the step
    confusion.png    classification only: the confusion matrix of the test part
    predictions.png  regression only: predicted against true labels of the test part, or both over time
    nonfinite.eqx    the model and its state before the step that was not finite, if such a step ended the run
    result.json      how the run ended, and the hashes of model.eqx and of its outputs for the test part. It is written
                     last and atomically: a folder without it is unfinished
    events/          event files for TensorBoard, with --tensorboard
    .lock            held by the process at work
    .overwrite       the key of an --overwrite command that has not ended, see `runs.overwriting`
"""

import fcntl
import json
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from common import tables
from experiment_configs.schema import ConfigError, ExperimentConfig
from training import hosts

SEEN_S = 60  # in which a file of process 0 must appear in the other processes: NFS keeps a folder in mind so long
CONFIG, MODEL, RESULT, UNIT = "config.json", "model.eqx", "result.json", "unit.py"  # as in `models.load`
SPLIT, METRICS = "split.json", "metrics.jsonl"
CURVES, CONFUSION, PREDICTIONS = "curves.png", "confusion.png", "predictions.png"
CHECKPOINTS, EVENTS, NONFINITE = "checkpoints", "events", "nonfinite.eqx"
AT_THE_END = (RESULT, MODEL, CURVES, CONFUSION, PREDICTIONS, NONFINITE)  # files that a run gets when it ends
UNCHECKED = "has no hash of model.eqx, so it is not known whether model.eqx was changed"
LOCK, OVERWRITE = ".lock", ".overwrite"


class RunRefused(ConfigError):
    """The folder of a run cannot be used: another process works in it, or its run has another config or other data."""


def run_folder(config: ExperimentConfig, seed: int) -> Path:
    """The folder of the run of one seed."""
    unit = f"{config.model_name}_{config.learning_algorithm}"
    return Path(config.output_parent_dir) / config.dataset_name / unit / f"seed_{seed}"


def setting_of(config: ExperimentConfig) -> str:
    """The name of the folder that --set or a machine gave to the config, as lr=0.003; "" without such a folder."""
    name = Path(config.output_parent_dir).name
    return name if "=" in name else ""


def finished_result(folder: Path, num_steps: int = 0) -> dict | None:
    """The result of a completed run; None if the run is unfinished or failed, or if result.json is damaged.

    Also None if the run stopped after fewer steps than `num_steps`, unless early stopping ended it: more steps follow.
    """
    try:
        result = json.loads((folder / RESULT).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(result, dict) or result.get("status") != "completed":
        return None
    numbers = (result.get(name) for name in ("best_step", "steps", "val_metric", "test_metric"))
    if not all(tables.is_number(number) for number in numbers):
        return None
    return result if result["steps"] >= num_steps or result.get("stop_reason") == "early_stopping" else None


def clear(folder: Path) -> None:
    """Remove the files of a run. result.json goes first: if the process dies halfway, the folder is unfinished."""
    for name in (*AT_THE_END, OVERWRITE, CONFIG, UNIT, SPLIT, METRICS):
        (folder / name).unlink(missing_ok=True)
    for name in (CHECKPOINTS, EVENTS):
        if (folder / name).exists():
            shutil.rmtree(folder / name)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes out of the folder. The system lifts the lock when the process ends, however it ends."""
    with open(folder / LOCK, "a", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunRefused(f"{folder}: another process is at work there; wait for it, or end it") from None
        yield


@contextmanager
def locked_by_first(folder: Path) -> Iterator[None]:
    """Make and lock the folder, in process 0 of those that train together. The others must see it.

    **Raises:** `RunRefused`, as `locked`, and for a folder that is not that of process 0.
    """
    with ExitStack() as locks:

        def lock():
            folder.mkdir(parents=True, exist_ok=True)
            locks.enter_context(locked(folder))
            token = uuid.uuid4().hex
            if hosts.processes() > 1:
                (folder / LOCK).write_text(token, encoding="utf-8")
            return token

        token = hosts.from_first(lock)
        if not hosts.first():
            require_seen(folder, token)
        hosts.gathered(None)  # no process begins before all have seen it
        yield


def require_seen(folder: Path, token: str, seconds: float = SEEN_S) -> None:
    """Wait until the lock in the folder has the token of process 0. Raises `RunRefused` if it has not in time."""
    end = time.monotonic() + seconds
    while True:
        with suppress(OSError, ValueError):
            if (folder / LOCK).read_text(encoding="utf-8") == token:
                return
        if time.monotonic() > end:
            raise RunRefused(
                f"{folder.absolute()}: is not the folder in which process 0 works: its lock is not seen here in "
                f"{seconds:.0f} s. All processes need the same folder, on a file system that they share: see "
                "--output_parent_dir"
            )
        time.sleep(0.2)
