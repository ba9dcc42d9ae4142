"""What limits a machine? python examples/check_machine.py --machine '{"name": "simulated_device", "drift": 1e-3}'

The command measures a machine (the config field `machine`) by `models.check.machine.check_machine`. The declared energy
is a unit of the paper at its initial parameters. The drives are noise, through the input matrix of the unit. It prints
the ladder, the gradient of every array and the way out of each limit, and writes into the output folder

    check_machine.png    the budget of errors, the gradient against the size of the nudges, the passes in time
    results.json         the same numbers

A program as the machine (the quotes are those of a Unix shell; other names and options are in docs/machines.md):

    --machine '{"name": "process", "command": ["python", "examples/device.py"]}'
"""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from common.files import write_json
from common.style import BLUE, GREEN, GREY, ORANGE, PURPLE, log_scale, log_scale_with_zero, save, styled
from common.tables import aligned
from experiment_configs.machines import operator_of
from models import create_model
from models.check.machine import check_machine
from models.check.machine_numbers import GOOD_COSINE, TOLERATED, UNEXPLAINED
from models.check.machine_report import MachineReport
from models.physics.machine import MachineError

MACHINE = {
    "name": "simulated_device",
    "spread": 0.05,
    "drift": 1e-3,
    "damping": 5e-3,
    "noise": 1e-4,
    "substeps": 8,
}
PARTS = {"noise and drift": BLUE, "nudge size": ORANGE, "friction": GREEN, UNEXPLAINED: PURPLE}
LOSSES = {"linear": None, "square": lambda q: jnp.mean(q**2)}


def unit_and_drives(unit, oscillators, steps, batch, seed=0):
    """The energy of a unit of the paper at its initial parameters, and drives (time, batch, osc) by noise."""
    sizes = {"data_dim": 1, "label_dim": 1, "hidden_dim": oscillators, "num_blocks": 1, "ssm_dim": oscillators}
    model, _ = create_model(unit, **sizes, classification=True, dropout_rate=0.0, key=jax.random.PRNGKey(seed))
    system = model.blocks[0].unit.system()
    noise = jax.random.normal(jax.random.PRNGKey(seed + 1), (steps, batch, oscillators))
    return system.hamiltonian, np.asarray(jax.vmap(system.drive, 1, 1)(noise))


@styled
def draw(report: MachineReport) -> Figure:
    """The budget of errors as bars, the gradient against the size of the nudges, and the passes in time."""
    figure = Figure(figsize=(10.5, 3.4), layout="constrained")
    bars, sizes, passes = figure.subplots(1, 3, width_ratios=(1.3, 1, 1))
    budget = report.budget()
    for number, (part, colour) in enumerate(PARTS.items()):
        heights = [min(parts[part], 1e3) for parts in budget.values()]
        places = np.arange(len(budget)) + 0.2 * (number - 1.5)
        bars.bar(places, heights, 0.2, color=colour, label=part)
    resolution = [min(x.resolution, 1e3) for x in report.arrays.values()]
    bars.plot(np.arange(len(budget)) + 0.3, resolution, "_", color="black", label="noise of the comparison")
    bars.axhline(TOLERATED, color="black", lw=0.8)
    bars.set(xticks=range(len(budget)), xticklabels=list(budget), title="parts of the error of one gradient")
    bars.set(ylim=(1e-5, 10), ylabel="relative to the gradient")
    bars.annotate(
        f"cosine {GOOD_COSINE}", (1, TOLERATED), (-2, 2), xycoords=bars.get_yaxis_transform(), ha="right", **_SMALL
    )
    log_scale(bars, "y")
    bars.legend(loc="upper center", ncols=2, fontsize=7)

    nudges = report.nudges
    changes = np.minimum(nudges.changes, 1e3)
    sizes.plot(nudges.epsilons[:-1], changes, "o-", color=BLUE)
    sizes.axhline(TOLERATED, color="black", lw=0.8)
    sizes.axvline(nudges.best, color=GREY, ls=":")
    sizes.set(
        xlim=(nudges.epsilons[0] / 1.5, nudges.epsilons[-1] * 1.5),
        xlabel="ε",
        title="change of the gradient to the next ε",
    )
    log_scale(sizes, "x")
    log_scale_with_zero(sizes, changes)

    steps = np.arange(1, len(report.measured.forward) + 1)
    curves = {
        "free pass - declared": (report.measured.forward, BLUE, "-"),
        "echo - free pass": (report.measured.echo, ORANGE, "--"),
        "free pass - free pass": (report.measured.runs, GREEN, "-."),
        "echo - echo": (report.measured.echoes, PURPLE, ":"),
    }
    for label, (curve, colour, line) in curves.items():
        passes.plot(steps, curve, color=colour, ls=line, label=label)
    passes.set(xlabel="steps from the start, or from the flip", title="differences of the positions")
    log_scale_with_zero(passes, np.concatenate([curve for curve, *_ in curves.values()]))
    passes.legend(fontsize=7)
    return figure


_SMALL = {"textcoords": "offset points", "size": 7}


def main(arguments=None):
    """Checks the machine, prints the tables, writes the figure and results.json; returns the report."""
    command = argparse.ArgumentParser(
        description=(__doc__ or "").split("\n\n", 1)[1], formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser = command.add_argument_group("what is checked")
    default = "(default: %(default)s)"
    parser.add_argument(
        "--machine",
        type=json.loads,
        default=MACHINE,
        metavar="JSON",
        help=f"the config field machine (default: {json.dumps(MACHINE)})",
    )
    parser.add_argument(
        "--unit", choices=("NonlinHRU", "LinHRU"), default="NonlinHRU", help=f"the declared energy {default}"
    )
    parser.add_argument(
        "--oscillators", type=int, default=8, help=f"ssm_dim of the unit; LinHRU has twice as many {default}"
    )
    parser.add_argument("--steps", type=int, default=100, help=f"steps L of a sequence {default}")
    parser.add_argument("--batch", type=int, default=4, help=f"sequences B of a pass {default}")
    parser.add_argument("--passes", type=int, help="a bound on the passes of the machine (default: none)")
    parser.add_argument(
        "--loss", choices=LOSSES, default="linear", help=f"random weights of the positions, or mean(q^2) {default}"
    )
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/check_machine"), help=f"a folder {default}")
    options = command.parse_args(arguments)
    try:
        operator = operator_of(options.machine)
        try:
            hamiltonian, drives = unit_and_drives(options.unit, options.oscillators, options.steps, options.batch)
            report = check_machine(operator, hamiltonian, drives, loss=LOSSES[options.loss], passes=options.passes)
        finally:
            operator.close()
    except ValueError as error:
        command.error(str(error))
    except MachineError as error:
        sys.exit(f"check_machine: {error}")
    ways = [f"{number} {x.words}" for number, x in enumerate(report.rungs(), 1)]
    print(aligned(report.rows()), "", aligned(report.array_rows()), "", *ways, "", *report.remarks(), sep="\n")
    options.output_dir.mkdir(parents=True, exist_ok=True)
    save(draw(report), options.output_dir / "check_machine.png")
    numbers = asdict(report)
    numbers["measured"] = {name: np.asarray(x).tolist() for name, x in numbers["measured"].items()}
    write_json(options.output_dir / "results.json", {"machine": options.machine, **numbers, "budget": report.budget()})
    print(f"Figure and numbers: {options.output_dir}")
    return report


if __name__ == "__main__":
    main()
