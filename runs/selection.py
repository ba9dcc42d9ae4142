"""The configs that a command line names, checked with their data before anything is trained."""

import argparse
import traceback
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import equinox as eqx

import train
from data_dir.datasets import create_dataset
from data_dir.finding import processed_datasets
from data_dir.names import PPG, PUBLISHED_UEA
from data_dir.storage import DataError, config_beside_data, processed_folder, script_command
from experiment_configs import MODEL_NAMES
from experiment_configs.schema import ConfigError, ExperimentConfig, config_path, load_config
from runs import devices, settings
from runs.command import ALL, FALLBACK_SET, OVERRIDES, PUBLISHED_ALGORITHMS
from runs.folder import run_folder, setting_of
from runs.identity import data_identity, identity, require_same_run
from runs.run import make_model, require_batch

USUAL_DATA_DIR = "data_dir"  # of the configs of this project
SMALL_UEA_SETS = ("SelfRegulationSCP1", "SelfRegulationSCP2")  # small enough to try


class Selection:
    """The runs of a command: `configs`, the `identities` of their runs by folder, and `lines` about the data sets.

    `devices`: for each config, how many devices divide a batch among them.
    """

    def __init__(self, arguments: argparse.Namespace):
        """Load the data of every config and seed once, so that errors come before the first run.

        **Raises:** `ConfigError` or `DataError`.
        """
        self.configs: list[ExperimentConfig] = []
        self.devices: list[int] = []
        self.identities: dict[Path, dict] = {}
        self._dims: list[tuple[int, int]] = []  # channels of the data and of the labels, for each config
        lines, checked = {}, {}
        asked = getattr(arguments, "devices", 1 if arguments.seeds_together else None)
        usual = devices.usual()
        elsewhere = "jobs" in arguments or "submit" in arguments
        for config in select_configs(arguments):
            # Configs that differ only in model and algorithm have the same data.
            key = (config.batch_size, config.seeds, *config.data_options().values())
            if key not in checked:
                checked[key] = _, _, _, notes = check_data(config)
                lines |= dict.fromkeys(notes)
            dims, output_step, data, _ = checked[key]
            config = config.completed(output_step)
            self.configs.append(config)
            if elsewhere:
                most = getattr(arguments, "gpus_per_run", None)
                self.devices.append(devices.devices_elsewhere(config, asked, most))
            else:
                self.devices.append(devices.devices_for(config, asked, usual))
                lines |= dict.fromkeys(devices.described(config, asked, self.devices[-1]))
            self._dims.append(dims)
            for seed in config.seeds:
                folder = run_folder(config, seed)
                if folder in self.identities:
                    raise ConfigError(f"--set: two settings are the same: {setting_of(config)}")
                self.identities[folder] = identity(config, seed, data[seed])
        self.lines = list(lines)

    def facts(self) -> dict[str, Any]:
        """What several processes that make these runs must have in common, as JSON values by name."""
        facts: dict[str, Any] = {"runs": [str(folder) for folder in self.identities]}
        for number, (config, count) in enumerate(zip(self.configs, self.devices, strict=True), start=1):
            fields = config.model_dump(mode="json", exclude={"data_dir"}) | {"devices": count}
            facts |= {f"{name} of config {number}": value for name, value in fields.items()}
        for folder, now in self.identities.items():
            facts |= {f"{name} of the data of {folder}": value for name, value in now["data"].items()}
            facts[f"sha256 of the unit of {folder}"] = now.get("unit_sha256")
        return facts

    def make_folders(self) -> None:
        """Make the parents of all folders, so that a folder that cannot be written is noticed before the first run."""
        for folder in self.identities:
            folder.parent.mkdir(parents=True, exist_ok=True)

    def require_same_runs(self) -> None:
        """Raise `RunRefused` if a folder holds a run that was made with another config or on other data."""
        for folder, now in self.identities.items():
            require_same_run(folder, now)

    def require_together(self) -> None:
        """Raise `ConfigError` if the seeds of a config cannot train together."""
        for config, count in zip(self.configs, self.devices, strict=True):
            problems = {
                f"seeds is {list(config.seeds)}: a single seed has no other to train with": len(config.seeds) < 2,
                f"--devices {count}: the seeds share one device": count > 1,
                "a machine in the loop runs one training at a time": config.machine is not None,
            }
            for problem in (text for text, applies in problems.items() if applies):
                name = f"{config.dataset_name}, {config.model_name}"
                raise ConfigError(f"--seeds_together: {name}: {problem}. Leave --seeds_together out")

    def require_models(self) -> None:
        """Raise `ConfigError` if the model of a config cannot be made."""
        # Settings that differ only in the training have the same model.
        models = {(repr(c.model_options()), dims): (c, dims) for c, dims in zip(self.configs, self._dims, strict=True)}
        for config, dims in models.values():
            key = train.seed_keys(config.seeds[0]).model
            make = partial(make_model, config, *dims)
            try:
                try:
                    eqx.filter_eval_shape(make, key)  # shapes only: it takes no memory
                except Exception:  # a unit of the user may need the values of its arrays
                    make(key)
            except ConfigError:
                raise
            except Exception as error:
                traceback.print_exc()
                raise ConfigError(
                    f"{config.model_name} on {config.dataset_name}: the model cannot be made: "
                    f"{type(error).__name__}: {error}"
                ) from error


def check_data(config: ExperimentConfig) -> tuple[tuple[int, int], int, dict[int, dict], list[str]]:
    """The dimensions of data and labels, the output step, the `data_identity` by seed, and lines about the data set.

    **Raises:** `DataError` if a data set is missing or damaged, `ConfigError` if it has fewer samples than a batch.
    """
    data, notes = {}, {}
    for seed in config.seeds:
        options: dict[str, Any] = config.data_options() | {"inmemory": False}
        dataset = create_dataset(seed=seed, **options)
        require_batch(config, dataset)
        data[seed] = data_identity(dataset)
        notes |= {f"{config.dataset_name}: {note}": None for note in dataset.notes}
    dims = dataset.data_dim, dataset.label_dim
    return dims, dataset.output_step, data, [dataset.describe(), *notes]


def select_configs(arguments: argparse.Namespace) -> list[ExperimentConfig]:
    """The configs, changed by the flags, in the order data set, model, algorithm. Prints which data sets it takes.

    **Raises:** `ConfigError` or `DataError`.
    """
    named = getattr(arguments, "dataset_name", None)
    names = _expanded(PUBLISHED_UEA if named is None else named, (*PUBLISHED_UEA, PPG))
    configs = [config for name in names for config in _load(arguments, name)]
    processed = [config for config in configs if config.dataset_name in processed_datasets(config.data_dir)]
    if named is None and processed:
        print("Processed UEA sets:", ", ".join(dict.fromkeys(config.dataset_name for config in processed)))
        return processed
    if named is None:
        configs = list(_load(arguments, FALLBACK_SET))
        data_dir = configs[0].data_dir
        print(
            f"None of the six UEA sets is processed in {data_dir}. These commands fetch and process two of them:\n"
            f"    {script_command('download_uea.py', data_dir, '--datasets', *SMALL_UEA_SETS)}\n"
            f"    {script_command('process_uea.py', data_dir)}\n"
            f"Running {FALLBACK_SET}, which needs no download."
        )
    elif ALL in named:
        wanted = [config for config in configs if config.dataset_name in named or config in processed]
        for config in {config.dataset_name: config for config in configs if config not in wanted}.values():
            print(f"Left out: {_how_to_get(config)}")
        if not wanted:
            raise DataError("--dataset_name all: none of the seven published sets is processed (see above).")
        return wanted
    return configs


def _load(arguments: argparse.Namespace, dataset_name: str) -> Iterator[ExperimentConfig]:
    """The configs of a data set: every model by every algorithm."""
    given = vars(arguments)
    changes = {name: given[name] for name in OVERRIDES if name in given}
    algorithms = _expanded(given.get("learning_algorithm", ()), PUBLISHED_ALGORITHMS)
    # Without the flag, the config decides.
    overrides = [changes | {"learning_algorithm": algorithm} for algorithm in algorithms] or [changes]
    setting = given.get("set", {})
    for model in _expanded(given.get("model_name", MODEL_NAMES[:1]), MODEL_NAMES):
        path = _config_file(arguments, model, dataset_name)
        config = load_config(path, model, own_units=arguments.own_units)
        if config.dataset_name != dataset_name:
            raise ConfigError(
                f'{path}: dataset_name is "{config.dataset_name}": allowed is the name of the file, {dataset_name}'
            )
        for flags, point in product(overrides, settings.grid(setting)):
            source = " and ".join(["the flags"] * bool(flags) + [f"--set {settings.shown(point)}"] * bool(point))
            changed = config.replace(flags | point, source=f"{path} with {source}") if source else config
            yield _in_its_folder(changed, setting)


def _in_its_folder(config: ExperimentConfig, given: Iterable[str]) -> ExperimentConfig:
    """The config, with a folder for its setting below its output folder if --set gives any field, or on a machine.

    The name lists the fields in the order of the config, with the values of the config: 0.0010 is 0.001.
    """
    given = {*given, *["machine"] * (config.machine is not None)}
    named = {name: getattr(config, name) for name in type(config).model_fields if name in given}
    if config.machine is not None:
        named["machine"] = config.machine["name"]
    if not named:
        return config
    name = settings.folder_name(named)
    return config.model_copy(update={"output_parent_dir": str(Path(config.output_parent_dir, name))})


def _config_file(arguments: argparse.Namespace, model: str, dataset_name: str) -> Path:
    """The config in --config_dir, else the config beside the data, which `data_dir/import_arrays.py` writes."""
    try:
        return config_path(arguments.config_dir, model, dataset_name)
    except ConfigError as error:
        data_dir = getattr(arguments, "data_dir", USUAL_DATA_DIR)
        beside = config_beside_data(data_dir, model, dataset_name)
        if beside is not None:
            return beside
        place = f"{processed_folder(data_dir)}/*/{dataset_name}/configs/{model}/{dataset_name}.json"
        raise ConfigError(
            f"{error}. Nor is there a config beside the data, {place}; data_dir/import_arrays.py writes those "
            f"of {' and '.join(MODEL_NAMES)} for your own data; for your own unit, copy one and add its field unit"
        ) from None


def _expanded(names, everything) -> list[str]:
    """The names without repeats, with `ALL` replaced by everything."""
    return list(dict.fromkeys(each for name in names for each in (everything if name == ALL else (name,))))


def _how_to_get(config: ExperimentConfig) -> str:
    """The message about a data set that is not processed: it names the commands."""
    try:
        check_data(config)
    except DataError as error:
        return str(error)
    return f"dataset_name {config.dataset_name!r}"
