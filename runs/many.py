"""The runs of --jobs and --submit: checked before the first starts, and divided into tasks and runs that need none."""

import argparse
from pathlib import Path

from experiment_configs.schema import ConfigError, ExperimentConfig
from runs.folder import RunRefused, at_work, finished_result, run_folder
from runs.tasks import Task, command_of, held
from runs.train_all import begin, kept_result, prepared, title


class ManyRuns:
    """The runs of a command. After `begin`, `tasks` are the runs to start, `results` those of the others, by folder."""

    def __init__(self, arguments: argparse.Namespace, flag: str):
        """Check all that a plain command checks, and that every model can be made. `flag` is for messages.

        **Raises:** an error of `runs.train_all.KNOWN_ERRORS`.
        """
        self._arguments = arguments
        self.selection, self.overwriting = prepared(arguments)
        for config in self.selection.configs:
            if config.machine is not None:
                raise ConfigError(
                    f"{flag}: {title(config)}: runs on a machine are made one after the other: without it"
                )
        if self.overwriting is None:
            self.selection.require_models()
        self.tasks: list[Task] = []
        self.results: dict[Path, dict] = {}
        self.configs: dict[Path, ExperimentConfig] = {}

    def unfinished(self) -> int:
        """How many runs the command would make, if no job or process has any of them."""
        runs = [(config, run_folder(config, seed)) for config in self.selection.configs for seed in config.seeds]
        cleared = set() if self.overwriting is None else set(self.overwriting.to_clear)
        return sum(folder in cleared or finished_result(folder, config.num_steps) is None for config, folder in runs)

    def begin(self) -> None:
        """Remove the earlier runs of --overwrite, and find the runs to start. Prints a line for each other run.

        **Raises:** `RunRefused` if --overwrite names a run that a job, or another process, has.
        """
        holders = held(self.selection.identities)
        if self.overwriting is not None and holders:
            raise RunRefused(f"--overwrite: {next(iter(holders.values()))}")
        begin(self.selection, self.overwriting)
        for config in self.selection.configs:
            for seed in config.seeds:
                folder, name = run_folder(config, seed), f"{title(config)} seed {seed}"
                self.configs[folder] = config
                kept = kept_result(config, folder, name)
                if kept is None and at_work(folder):
                    holders.setdefault(folder, f"{folder}: another process is at work there; wait for it, or end it")
                if kept is not None:
                    self.results[folder] = kept
                elif folder in holders:
                    print(f"{name}: REFUSED, {holders[folder]}")
                    self.results[folder] = {"status": "refused", "error": holders[folder]}
                else:
                    folder.mkdir(parents=True, exist_ok=True)
                    self.tasks.append(Task(name, command_of(self._arguments, config, seed), folder))

    def by_config(self) -> list[tuple[ExperimentConfig, list[dict]]]:
        """The results of all runs, for the table of `runs.train_all`."""
        of_seeds = (
            [self.results[run_folder(config, seed)] for seed in config.seeds] for config in self.selection.configs
        )
        return list(zip(self.selection.configs, of_seeds, strict=True))
