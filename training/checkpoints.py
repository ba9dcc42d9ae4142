"""Checkpoints of a training, written by orbax. The newest two are kept, and a damaged one is detected.

FOLDER/<step>/
    arrays/, facts/    written by orbax, first under a temporary name
    sha256.json        the hashes of all other files, written last: without it the checkpoint is unfinished

No pickle is read. The previous checkpoint stays intact if the disk is full, the process dies, or the power fails: all
files are synced to the disk before sha256.json is written, and sha256.json is synced before it gets its name.
"""

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import orbax.checkpoint as ocp
from jaxtyping import Array

from common.files import sha256_of, sha256_of_array, sync, sync_folder, write_json
from training import hosts

FORMAT = 2  # of the content; a new number if older checkpoints can no longer be resumed
KEPT = 2
_SUMS = "sha256.json"


class CheckpointError(RuntimeError):
    """A checkpoint cannot be written, or cannot be resumed. The message names the folder and the way out."""


class Restored(NamedTuple):
    """The content of the newest sound checkpoint, and the problems of later ones, by step."""

    arrays: list[np.ndarray]
    json_part: dict
    damaged: dict[int, str]


class Checkpoints:
    """The checkpoints in one folder. `config` is the hash of the config that they belong to.

    Only one process at a time may use the folder, or several that train together (`training.hosts`).
    """

    def __init__(self, folder: Path, config: str):
        self._folder = folder.absolute()
        self._config = config

    def save(self, step: int, arrays: Sequence[Array | np.ndarray], json_part: dict) -> None:
        """Save arrays that are not empty, and values that fit into JSON. Then remove all but the newest two.

        **Raises:** `CheckpointError` if the checkpoint cannot be written. The previous one is then intact.
        """
        arrays = [np.asarray(array) for array in arrays]
        if hosts.processes() > 1:
            hosts.require_same({f"step {step}: the hash of the arrays of the training": _sha256_of_all(arrays)})
        facts = {"format": FORMAT, "config": self._config, "arrays": _shapes(arrays), "facts": json_part}
        items = ocp.args.Composite(arrays=ocp.args.StandardSave(arrays), facts=ocp.args.JsonSave(facts))
        options = ocp.CheckpointManagerOptions(max_to_keep=KEPT, enable_async_checkpointing=False)
        try:
            with _quiet(), ocp.CheckpointManager(self._folder, options=options) as manager:
                manager.save(step, args=items, force=True)
            if hosts.first():
                _write_sums(self._folder / str(step))
        # orbax reports a full disk by any of these.
        except (OSError, ValueError, RuntimeError) as error:
            if hosts.first():
                shutil.rmtree(self._folder / str(step), ignore_errors=True)
                self._remove_temporary()
            raise CheckpointError(
                f"{self._folder}: the checkpoint of step {step} cannot be saved ({error}). The previous checkpoint is "
                "intact. Free some disk space; then the same command resumes from it"
            ) from error

    def restore(
        self, like: Sequence[Array | np.ndarray], usable: Callable[[dict], bool] = lambda json_part: True
    ) -> Restored | None:
        """Read the newest checkpoint that is sound and usable, and remove the later ones. None if there is none.

        `like` are arrays of the expected shapes and types. `usable` is asked with the values that were saved.

        **Raises:** `CheckpointError` if no checkpoint is sound, or if the newest sound one has another format, config
        or model. No file is removed then.
        """
        damaged: dict[int, str] = {}
        removed = []
        for step in hosts.from_first(self.steps):
            problem = hosts.from_first(lambda step=step: _problem(self._folder / str(step)))
            if problem is None:
                restored = Restored(*self._read(step, like), damaged)
                if usable(restored.json_part):
                    break
            else:
                damaged[step] = problem
            removed.append(step)
        else:
            if damaged:
                problems = "; ".join(f"step {step}: {problem}" for step, problem in damaged.items())
                raise CheckpointError(
                    f"{self._folder}: no checkpoint is sound ({problems}). No file was removed. --overwrite starts the "
                    "training again from the beginning"
                )
            restored = None
        if hosts.first():  # orbax reads in step: the others have read what is removed
            for later in removed:
                shutil.rmtree(self._folder / str(later))
            self._remove_temporary()
        return restored

    def _read(self, step: int, like: Sequence[Array | np.ndarray]) -> tuple[list[np.ndarray], dict]:
        folder = self._folder / str(step)
        like = [np.asarray(array) for array in like]
        with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as reader:
            facts = reader.restore(folder, args=ocp.args.Composite(facts=ocp.args.JsonRestore())).facts
            for name, expected, reason, way_out in (
                ("format", FORMAT, "it has another format", "Use the version that wrote it"),
                ("config", self._config, "it belongs to another config", "Use that config"),
                ("arrays", _shapes(like), "the saved arrays do not fit this model", "Use the version that wrote them"),
            ):
                if facts.get(name) != expected:
                    raise CheckpointError(
                        f"{folder}: cannot be resumed: {reason} (saved {_short(facts.get(name))}, expected "
                        f"{_short(expected)}). {way_out}, or --overwrite"
                    )
            items = ocp.args.Composite(arrays=ocp.args.StandardRestore(like))
            return reader.restore(folder, args=items).arrays, facts["facts"]

    def steps(self) -> list[int]:
        """The steps of all checkpoints, the newest first. Files and other names are not ours."""
        names = (path.name for path in self._folder.glob("*") if path.is_dir())
        return sorted((int(name) for name in names if re.fullmatch("0|[1-9][0-9]*", name)), reverse=True)

    def _remove_temporary(self) -> None:
        """Remove the unfinished folders of a process that died."""
        for folder in self._folder.glob("*.orbax-checkpoint-tmp*"):
            shutil.rmtree(folder, ignore_errors=True)


def _sha256_of_all(arrays: Sequence[np.ndarray]) -> str:
    return hashlib.sha256("".join(map(sha256_of_array, arrays)).encode()).hexdigest()


def _shapes(arrays: Sequence[np.ndarray]) -> list[str]:
    return [f"{array.dtype}{list(array.shape)}" for array in arrays]


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _sums(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path != folder / _SUMS)
    return {str(path.relative_to(folder)): sha256_of(path) for path in files}


def _write_sums(folder: Path) -> None:
    sums = _sums(folder)
    for name in sums:
        sync(folder / name)
    for inner, _, _ in os.walk(folder):
        sync_folder(Path(inner))
    sync_folder(folder.parent)
    write_json(folder / _SUMS, sums)


def _problem(folder: Path) -> str | None:
    """The problem of a checkpoint; None if it is sound."""
    if not (folder / _SUMS).exists():
        return "was not finished"
    try:
        expected = json.loads((folder / _SUMS).read_text(encoding="utf-8"))
        sums = _sums(folder)
    except (OSError, ValueError, RecursionError) as error:
        return f"{_SUMS} cannot be read ({error})"
    if not isinstance(expected, dict) or not expected:
        return f"{_SUMS} holds no hashes"
    for name in sorted(expected.keys() | sums.keys()):
        if name not in sums:
            return f"{name} is missing"
        if sums[name] != expected.get(name):
            return f"{name} is not what was saved"
    return None


@contextmanager
def _quiet() -> Iterator[None]:
    """Stop orbax from logging tracebacks of errors that it raises as well."""
    logger = logging.getLogger("absl")
    disabled, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = disabled
