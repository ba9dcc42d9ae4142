"""--distributed: several processes train together, see `training.hosts`. Imports no jax before `joined`."""

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, NoReturn

BY_HAND = ("coordinator", "num_processes", "process_id")
# What jax reads under srun. sbatch alone does not set all of them.
SLURM = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID")
PROGRAM = {"common", "data_dir", "experiment_configs", "models", "runs", "train", "training"}


class Place(NamedTuple):
    """The number of this process, the number of all, and HOST:PORT of process 0; None: SLURM's variables give it."""

    process: int
    processes: int
    coordinator: str | None


def add_flags(parser, whole: Callable, positive: Callable) -> None:
    """Add --distributed and the three flags for a start by hand."""
    add = parser.add_argument
    add(
        "--distributed",
        action="store_true",
        default=False,
        help="train on the devices of several processes, usually one or several on each host; started by srun, or each "
        "by hand with the next three flags",
    )
    add("--coordinator", metavar="HOST:PORT", help="for --distributed: the host of process 0, and a free port there")
    add("--num_processes", type=positive, metavar="N", help="for --distributed: the number of processes")
    add("--process_id", type=whole, metavar="I", help="for --distributed: the number of this process, from 0")


def place_of(arguments: argparse.Namespace, environment: Mapping[str, str] = os.environ) -> Place | None:
    """Where this process stands, or None without --distributed. Raises `ValueError`, with the name of the flag."""
    given = [name for name in BY_HAND if name in arguments]
    if not arguments.distributed:
        if given:
            raise ValueError(f"--{given[0]}: it goes with --distributed")
        return None
    for use, way_out in (
        ("plan", "plan the part of one process: its --devices, and its share of --batch_size"),
        ("evaluate", "--devices with the number of the run gives the same bits, if one host has so many"),
        ("predict", "it runs on the devices of one host"),
        ("submit", "a task is one process"),
        ("jobs", "it gives each run a process of its own"),
    ):
        if use in arguments:
            raise ValueError(f"--distributed: --{use} works in one process. Leave the flag out: {way_out}")
    if given:
        if missing := [name for name in BY_HAND if name not in given]:
            raise ValueError(
                f"--distributed: --{missing[0]} is missing: give all of --{', --'.join(BY_HAND)}, or none under srun"
            )
        address = arguments.coordinator
        place = Place(arguments.process_id, arguments.num_processes, address)
        host, _, port = address.rpartition(":")
        if not (host and port.isdecimal() and 0 < int(port) < 2**16):
            raise ValueError(f"--coordinator {address}: is not HOST:PORT with a port from 1 to 65535")
    else:
        if missing := [name for name in SLURM if name not in environment]:
            raise ValueError(
                f"--distributed: no srun started this process ({missing[0]} is not set), and --coordinator, "
                "--num_processes and --process_id are not given"
            )
        try:
            place = Place(int(environment["SLURM_PROCID"]), int(environment["SLURM_NTASKS"]), None)
        except ValueError:
            values = ", ".join(f"{name} {environment[name]!r}" for name in ("SLURM_PROCID", "SLURM_NTASKS"))
            raise ValueError(f"--distributed: SLURM's variables are not numbers: {values}") from None
    if not 0 <= place.process < place.processes:
        raise ValueError(
            f"--process_id {place.process}: must be from 0 to {place.processes - 1}, as there are {place.processes} "
            "processes"
        )
    return place


@contextmanager
def joined(arguments: argparse.Namespace, report: Callable[[BaseException], tuple[int, str]]) -> Iterator[None]:
    """Within the block, this process works together with the others of --distributed. Without the flag, alone.

    An error that leaves the block ends this process, and all others. `report` prints it, and gives the exit status and
    the message for the others. Processes of different versions, programs, precisions or devices are refused.

    **Raises:** `HostsError` if the processes do not find each other.
    """
    place = place_of(arguments)
    if place is None or place.processes == 1:
        yield
        return
    from training import hosts

    stderr = sys.stderr  # `act` silences it in all but process 0

    def end(status: int, message: str) -> NoReturn:
        for stream in (sys.stdout, stderr):
            stream.flush()
        os._exit(status)

    def ended_elsewhere(status: int, message: str) -> NoReturn:
        print(f"run_experiment.py: error: {message}", file=stderr)
        end(status, message)

    hosts.join(place.coordinator, place.process, place.processes, ended_elsewhere, slurm=place.coordinator is None)
    try:
        hosts.require_same_number()
        hosts.require_same(versions())
        yield
        hosts.leave(0)
    except BaseException as error:
        if lost := hosts.lost_after(error):
            hosts.leave(hosts.LOST, lost, lost=1)
            ended_elsewhere(hosts.LOST, lost)
        status, message = report(error)
        hosts.leave(status, f"process {place.process} ended: {message}")
        end(status, message)


def versions() -> dict[str, str]:
    """What decides how a process rounds, and what it does."""
    from common.files import sha256_of
    from runs import record
    from runs.identity import precision, sha256_of_json

    modules = {name: module for name, module in sys.modules.items() if name.partition(".")[0] in PROGRAM}
    files = {name: file for name, module in modules.items() if (file := getattr(module, "__file__", None))}
    program = sha256_of_json({name: sha256_of(Path(file)) for name, file in files.items()})
    return {
        **{f"version of {name}": version for name, version in record.versions().items()},
        "sha256 of the program": program[:12],
        "precision (--double_precision)": precision(),
        "XLA_FLAGS": os.environ.get("XLA_FLAGS", ""),
    }


def require_same_devices() -> None:
    """Raise `HostsError` if processes have other devices. It starts jax's backend."""
    import jax

    from training import hosts

    present = jax.local_devices()
    hosts.require_same({"devices of each process": f"{len(present)} x {present[0].device_kind}"})
