"""`--devices`: how many devices divide each batch among them."""

import argparse
import json
from contextlib import suppress
from pathlib import Path

import jax

from experiment_configs.schema import ConfigError, ExperimentConfig
from models.load import read_record
from runs.command import ALL
from runs.folder import CONFIG
from training import hosts
from training.devices import dividing, require_devices

MOST_OF_A_CPU = 64
Asked = int | str | None  # the value of --devices: a number or `ALL`; None without the flag


def make_devices(arguments: argparse.Namespace) -> None:
    """Make a CPU as many devices as --devices asks for, if jax has not started. They share its cores.

    Without the flag, as many as the run of --evaluate or --predict had. Several processes share the devices equally.
    Raises `RunError`.
    """
    asked = getattr(arguments, "devices", None)
    folder = getattr(arguments, "evaluate", getattr(arguments, "run", None))
    needed = recorded(read_record(folder)) if asked is None and folder is not None else asked
    if isinstance(needed, int):
        needed = -(-needed // hosts.processes())
    if isinstance(needed, int) and 1 < needed <= MOST_OF_A_CPU:
        with suppress(RuntimeError):  # jax has started
            present = jax.config.jax_num_cpu_devices  # pyright: ignore[reportAttributeAccessIssue]
            jax.config.update("jax_num_cpu_devices", max(needed, present))


def recorded(record: dict) -> int:
    """The number of devices in the config.json of a run; 1 in those of before there was a choice."""
    number = record.get("devices", 1)
    return number if isinstance(number, int) and number > 0 else 1


def devices_before(folder: Path) -> int | None:
    """The number of devices in the config.json of a folder; None without such a file."""
    try:
        return recorded(json.loads((folder / CONFIG).read_text(encoding="utf-8")))
    except (OSError, ValueError, AttributeError, RecursionError):
        return None


def usual() -> int:
    """All devices, but one CPU for each process."""
    return hosts.processes() if jax.devices()[0].platform == "cpu" else jax.device_count()


def devices_for(config: ExperimentConfig, asked: Asked, most: int) -> int:
    """The number of devices that divide each batch of a config.

    Without --devices, the largest number up to `most` that can divide a batch equally; 1 for a machine in the loop.

    **Raises:** `ConfigError` for a number that jax does not see, that cannot divide a batch, or that is several for a
    machine in the loop.
    """
    if asked is None:
        present = 1 if config.machine is not None else min(most, jax.device_count())
        if fitting := dividing(config.batch_size, present):
            return fitting[-1]
        number, size = hosts.processes(), config.batch_size
        reason = (
            f"cannot divide a batch of {size} samples equally: batch_size must be a multiple of {number}"
            if config.machine is None
            else f"cannot share the machine {config.machine['name']}: train in one process"
        )
        raise ConfigError(f"--distributed: {number} processes {reason}")
    number = jax.device_count() if asked == ALL else int(asked)
    if number > 1 and config.machine is not None:
        raise ConfigError(f"--devices {asked}: a machine in the loop gets whole batches: leave the flag out")
    try:
        require_devices(number, config.batch_size)
    except ValueError as error:
        raise ConfigError(f"--{error}" if asked != ALL else f"--devices {ALL}: {error}") from error
    return number


def devices_elsewhere(config: ExperimentConfig, asked: Asked, most: int | None) -> int:
    """The number of devices of a run in another process that sees `most` accelerators; None if that is not known.

    Without --devices it is 1, and the process decides. Raises `ConfigError` as `devices_for`.
    """
    if not isinstance(asked, int) or asked == 1:
        return 1
    if config.machine is not None:
        raise ConfigError(f"--devices {asked}: a machine in the loop gets whole batches: leave the flag out")
    if most and asked > most:
        raise ConfigError(f"--devices {asked}: a run has {most} GPU{'s' * (most > 1)} (--gpus_per_run)")
    if config.batch_size % asked:
        fitting = ", ".join(map(str, dividing(config.batch_size, most or asked)))
        raise ConfigError(
            f"--devices {asked}: they cannot divide a batch of {config.batch_size} samples (batch_size) equally. These "
            f"numbers can: {fitting}"
        )
    return asked


def described(config: ExperimentConfig, asked: Asked, devices: int) -> list[str]:
    """What to say about the devices of a config: a line, or none if a single device is all that was to be had."""
    present = jax.devices()
    fewer = asked is None and config.machine is None and devices < usual()
    if devices == 1 and not fewer:
        return []
    reason = "; no larger number can divide it equally" * fewer
    return [
        f"{config.dataset_name}: each batch of {config.batch_size} samples on {devices} of {len(present)} devices "
        f"({present[0].device_kind}){reason}"
    ]
