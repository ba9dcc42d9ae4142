"""--overwrite over several runs: which of them the command has begun anew, so that a second sitting keeps them.

The folders are lines of a file, OUTPUT_PARENT_DIR/.overwrite_<hash of the command>. The file goes when the command
ends; it stays if the command is stopped or killed.
"""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from experiment_configs.schema import ExperimentConfig
from runs.facts import hash_of, precision


class Overwriting:
    """The folders that a command of these configs clears, and those that it has begun anew in an earlier sitting."""

    def __init__(self, configs: Sequence[ExperimentConfig]):
        command = {"configs": [config.model_dump(mode="json") for config in configs], "precision": precision()}
        self.path = Path(configs[0].output_parent_dir) / f".overwrite_{hash_of(command)[:16]}"
        try:
            self.begun = set(map(Path, self.path.read_text(encoding="utf-8").splitlines()))
        except (OSError, ValueError):
            self.begun = set()

    def add(self, folder: Path) -> None:
        """Note that a folder was cleared."""
        self.begun.add(folder)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(f"{folder}\n")

    def end(self) -> None:
        """The command has ended: the next one starts all runs anew."""
        with suppress(OSError):
            self.path.unlink()
