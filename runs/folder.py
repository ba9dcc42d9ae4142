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
    log.txt          what the run printed, if --jobs or --submit started it
    .lock            held by the process at work
    .task            which job, or which process, has this run as a task, see `runs.tasks`
    .overwrite       the key of an --overwrite command that has not ended, see `runs.overwriting`
"""

import fcntl
import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from common import tables
from experiment_configs import ConfigError

if TYPE_CHECKING:
    from experiment_configs.schema import ExperimentConfig  # it imports jax, which a task that waits does not need

CONFIG, MODEL, RESULT, UNIT = "config.json", "model.eqx", "result.json", "unit.py"  # as in `models.load`
SPLIT, METRICS = "split.json", "metrics.jsonl"
CURVES, CONFUSION, PREDICTIONS = "curves.png", "confusion.png", "predictions.png"
CHECKPOINTS, EVENTS, NONFINITE = "checkpoints", "events", "nonfinite.eqx"
AT_THE_END = (RESULT, MODEL, CURVES, CONFUSION, PREDICTIONS, NONFINITE)  # files that a run gets when it ends
UNCHECKED = "has no hash of model.eqx, so it is not known whether model.eqx was changed"
LOCK, OVERWRITE = ".lock", ".overwrite"
TASK, LOG = ".task", "log.txt"


class RunRefused(ConfigError):
    """The folder of a run cannot be used: another process works in it, or its run has another config or other data."""


def run_folder(config: "ExperimentConfig", seed: int) -> Path:
    """The folder of the run of one seed."""
    unit = f"{config.model_name}_{config.learning_algorithm}"
    return Path(config.output_parent_dir) / config.dataset_name / unit / f"seed_{seed}"


def setting_of(config: "ExperimentConfig") -> str:
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
    for name in (*AT_THE_END, OVERWRITE, CONFIG, UNIT, SPLIT, METRICS, TASK, LOG):
        (folder / name).unlink(missing_ok=True)
    for name in (CHECKPOINTS, EVENTS):
        if (folder / name).exists():
            shutil.rmtree(folder / name)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes out of the folder. The system lifts the lock when the process ends, however it ends.

    **Raises:** `RunRefused` if another process has the lock.
    """
    with open(folder / LOCK, "a", encoding="utf-8") as file:  # `runs.shared_folder` writes into it
        if not any(_locks(file, fcntl.LOCK_EX, wait) for wait in (0, 0.1, 0.2)):  # `at_work` may be looking
            raise RunRefused(f"{folder}: another process is at work there; wait for it, or end it")
        yield


def at_work(folder: Path) -> bool:
    """Whether a process has the lock of the folder. It looks for a moment only, and waits for no process."""
    try:
        with open(folder / LOCK, encoding="utf-8") as file:
            return not _locks(file, fcntl.LOCK_SH)
    except OSError:  # no file, or a folder that this user cannot read
        return False


def _locks(file, kind: int, wait: float = 0) -> bool:
    time.sleep(wait)
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
