"""Checkpoints of a training: two are kept, and one that is damaged is not mistaken for a sound one. A layer over orbax.

FOLDER/<step>/
    arrays/, facts/    what orbax writes, first under another name
    sha256.json        the hash of every other file, written last: a folder without it is unfinished

Nothing is unpickled. The disk may fill up, the process may die, and the power may fail, at any moment: the checkpoint
before stays. Every file is synced to the disk before sha256.json is, and sha256.json before it has its name.
"""

import json
import logging
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import orbax.checkpoint as ocp
from jaxtyping import Array

from common.files import replacing, sha256_of, sync, sync_folder

FORMAT = 1  # of what is saved; raised whenever a checkpoint of before could not be gone on from
KEPT = 2
_SUMS = "sha256.json"


class CheckpointError(RuntimeError):
    """Checkpoints that cannot be written, or not be gone on from. The message names the folder and the way out."""


class Restored(NamedTuple):
    """What the newest sound checkpoint holds, and what is wrong with those after it, by step."""

    arrays: list[np.ndarray]
    facts: dict
    damaged: dict[int, str]


class Checkpoints:
    """The checkpoints in one folder. `config` is the hash of the config that they belong to.

    One process at a time may use the folder.
    """

    def __init__(self, folder: Path, config: str):
        self._folder = folder.absolute()
        self._config = config

    def save(self, step: int, arrays: Sequence[Array], facts: dict) -> None:
        """Save arrays, of any size but none, and facts that fit into JSON; then remove all but the newest two.

        **Raises:** `CheckpointError` if it cannot be written; what was there before is intact.
        """
        arrays = [np.asarray(array) for array in arrays]
        facts = {"format": FORMAT, "config": self._config, "arrays": _shapes(arrays), "facts": facts}
        items = ocp.args.Composite(arrays=ocp.args.StandardSave(arrays), facts=ocp.args.JsonSave(facts))
        options = ocp.CheckpointManagerOptions(max_to_keep=KEPT, enable_async_checkpointing=False)
        try:
            with _quiet(), ocp.CheckpointManager(self._folder, options=options) as manager:
                manager.save(step, args=items, force=True)
            _write_sums(self._folder / str(step))
        # A full disk is an OSError, or what the library that writes the arrays makes of it.
        except (OSError, ValueError, RuntimeError) as error:
            shutil.rmtree(self._folder / str(step), ignore_errors=True)
            self._remove_unnamed()
            raise CheckpointError(
                f"{self._folder}: the checkpoint of step {step} cannot be saved ({error}). The one before is intact: "
                "make room, and the same command goes on from there"
            ) from error

    def restore(self, like: Sequence[Array]) -> Restored | None:
        """Read the newest checkpoint that is sound, and remove what lies behind it; None if there is none at all.

        `like` are arrays of the shapes and types that are expected.

        **Raises:** `CheckpointError` if none is sound, or if the newest sound one was saved by a newer version or for
        another config or program. Nothing is removed then.
        """
        damaged: dict[int, str] = {}
        for step in self._steps():
            problem = _problem(self._folder / str(step))
            if problem is None:
                break
            damaged[step] = problem
        else:
            if not damaged:
                self._remove_unnamed()
                return None
            found = "; ".join(f"that of step {step}: {problem}" for step, problem in damaged.items())
            raise CheckpointError(
                f"{self._folder}: no checkpoint is sound ({found}). Nothing was removed; --overwrite starts anew"
            )
        arrays, facts = self._read(step, like)
        for later in damaged:
            shutil.rmtree(self._folder / str(later))
        self._remove_unnamed()
        return Restored(arrays, facts, damaged)

    def _read(self, step: int, like: Sequence[Array]) -> tuple[list[np.ndarray], dict]:
        folder = self._folder / str(step)
        like = [np.asarray(array) for array in like]
        with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as reader:
            saved = reader.restore(folder, args=ocp.args.Composite(facts=ocp.args.JsonRestore())).facts
            for expected, there, reason in (
                (FORMAT, saved.get("format"), "it has another format; use the version of this program that saved it"),
                (self._config, saved.get("config"), "it belongs to another config; use that one"),
                (_shapes(like), saved.get("arrays"), "its arrays are not those of this model; use the program of then"),
            ):
                if there != expected:
                    raise CheckpointError(
                        f"{folder}: cannot be gone on from: {reason}, or start anew by --overwrite"
                        f" (there {_short(there)}, here {_short(expected)})"
                    )
            items = ocp.args.Composite(arrays=ocp.args.StandardRestore(like))
            return reader.restore(folder, args=items).arrays, saved["facts"]

    def _steps(self) -> list[int]:
        """Newest first."""
        if not self._folder.is_dir():
            return []
        # Names of another spelling, and files, are not ours.
        folders = (path for path in self._folder.iterdir() if re.fullmatch("0|[1-9][0-9]*", path.name))
        return sorted((int(folder.name) for folder in folders if folder.is_dir()), reverse=True)

    def _remove_unnamed(self) -> None:
        """Remove what a process that died left under a temporary name."""
        for folder in self._folder.glob("*.orbax-checkpoint-tmp*"):
            shutil.rmtree(folder, ignore_errors=True)


def _shapes(arrays: Sequence[np.ndarray]) -> list[str]:
    return [f"{array.dtype}{list(array.shape)}" for array in arrays]


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _sums(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path != folder / _SUMS)
    return {str(path.relative_to(folder)): sha256_of(path) for path in files}


def _write_sums(folder: Path) -> None:
    sums = json.dumps(_sums(folder), indent=2)
    for inner, _, names in os.walk(folder):
        for name in names:
            sync(Path(inner, name))
        sync_folder(Path(inner))
    sync_folder(folder.parent)
    with replacing(folder / _SUMS) as temporary:
        temporary.write_text(sums, encoding="utf-8")


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the library from printing tracebacks of what its threads raise: it raises the same here."""

    def drop(_):
        return False

    logger = logging.getLogger("absl")
    logger.addFilter(drop)
    try:
        yield
    finally:
        logger.removeFilter(drop)


def _problem(folder: Path) -> str | None:
    """What is wrong with a checkpoint; None if it is sound."""
    if not (folder / _SUMS).exists():
        return "was not finished"
    try:
        expected = json.loads((folder / _SUMS).read_text(encoding="utf-8"))
        found = _sums(folder)
    except (OSError, ValueError, RecursionError) as error:
        return f"{_SUMS} cannot be read ({error})"
    if not isinstance(expected, dict) or not expected:
        return f"{_SUMS} holds no hashes"
    for name in sorted(expected.keys() | found.keys()):
        if name not in found:
            return f"{name} is missing"
        if found[name] != expected.get(name):
            return f"{name} is not what was saved"
    return None
