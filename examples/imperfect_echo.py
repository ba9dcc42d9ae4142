"""How exact must a machine be that learns by echoes? python examples/imperfect_echo.py [--quick]

The command compares the gradient of `models.physics.imperfect.ImperfectRHEL` with exact reverse mode of the same free
pass, in float64, for one imperfection at a time. The systems are six blocks of LinHRU and NonlinHRU on BasicMotions
(real, bundled) and the six oscillators of oscillators.py. There are 8 seeds: of the parameters, of the batch or the
input, and of the random numbers of an imperfection. The command writes into the output folder

    imperfect_echo.png    one panel per imperfection: 1 - cosine of the parameter with the smallest cosine, the median
                          over the seeds as a line, all seeds as a band
    results.json          cosine and relative error of every parameter of every block and seed, and the tolerances

and prints a table of tolerances, median and range over the seeds. A tolerance is the strength up to which the cosine of
every parameter stays above 0.99.
"""

import argparse
import platform
import sys
from collections.abc import Callable
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from oscillators import OUTPUT
from oscillators import make_problem as make_toy
from tqdm import tqdm

import train
from common.files import write_json
from common.style import COLOURS, MARKERS, log_label, log_scale, save, styled
from common.tables import aligned
from data_dir.datasets import create_dataset
from data_dir.storage import DEFAULT_DATA_DIR
from models import create_model, evolve
from models.check import agreement_by_leaf
from models.physics.continuous import Discretised, Integrator
from models.physics.imperfect import EchoImperfection, ImperfectBPTT, ImperfectRHEL, quantum
from models.rhel import with_learning_algorithm

DATASET, SEED = "BasicMotions", 2345
HIDDEN_DIM = SSM_DIM = 8
SEEDS, BATCH_SIZE = 8, 8  # the seeds of the comparison of gradients are SEED and the numbers after it
TOY, TOY_STEPS = "six oscillators", 200
EPSILONS = {"ε = 0.1": 0.1, "ε = 1": 1.0}
GOOD_COSINE = 0.99
FLOOR = 1e-12  # of what is drawn: float64 knows 1 - cosine to 1e-16 only


class Sweep(NamedTuple):
    """An imperfection and the strengths that are compared.

    `machine(strength, steps of the sequence)`: the fields of the machine that differ from the ideal machine.
    """

    title: str
    label: str
    machine: Callable[[float, int], dict]
    strengths: np.ndarray
    more_is_better: bool = False


def of(field, convert=float):
    """The machine that differs from the ideal machine in one field."""
    return lambda strength, _: {field: convert(strength)}


def powers(first, last, points=9):
    """Strengths from 10^first to 10^last."""
    return np.logspace(first, last, points)


BITS = np.asarray([16.0, 14, 12, 10, 8, 6, 4, 2])
TINY, SMALL, NUDGES, ERROR = powers(-7, 0), powers(-3, 0.5), powers(-3, 1), "error / largest drive"
SWEEPS = {
    "epsilon": Sweep("finite nudges", "ε", of("epsilon"), NUDGES),
    "one-sided": Sweep("one-sided nudges", "ε", lambda x, _: {"epsilon": x, "asymmetry": 1.0}, NUDGES),
    "noise": Sweep("thermal noise in p and q", "kick a step / size of state", of("noise"), TINY),
    "flip amplitude": Sweep("flip: amplitude", "relative error of -p", of("flip_amplitude"), SMALL),
    "flip phase": Sweep("flip: phase", "angle", of("flip_phase"), SMALL),
    "drift": Sweep("parameters differ between the echoes", "relative", of("drift"), TINY),
    "replay": Sweep("input replayed, errors differ", ERROR, of("replay"), TINY),
    "recording": Sweep("input replayed, same errors", ERROR, of("recording"), powers(-4, 1)),
    "readout bits": Sweep("quantised readout", "bits", of("readout_quantum", quantum), BITS, True),
    "nudge bits": Sweep("quantised nudge", "bits", of("nudge_quantum", quantum), BITS, True),
    "damping": Sweep("friction", "γT over the sequence", lambda x, n: {"damping": x / n}, powers(-3, 1, 13)),
}


def machine(sweep, strength, steps, epsilon):
    """The imperfect echo and its reference. All strengths are arrays, so that a problem is compiled once."""
    changed = {"epsilon": epsilon} | sweep.machine(strength, steps)
    epsilon = jnp.asarray(changed.pop("epsilon"), float)
    strengths = {field.name: jnp.asarray(changed.get(field.name, 0.0), float) for field in fields(EchoImperfection)}
    imperfection = EchoImperfection(**strengths)
    return ImperfectRHEL(imperfection, epsilon, jnp.asarray(SEED)), ImperfectBPTT(imperfection)


# A problem is a pair: `gradient(learning algorithm)`, whose arrays have a first axis of seeds; the number of steps.


def over_seeds(gradient, problems, seeds):
    """`gradient(problem, learning algorithm)` for the problems of all seeds, in one compiled program."""

    @eqx.filter_jit
    def of_all(problems, seeds, algorithm):
        def of_one(problem, seed):
            drawn = isinstance(algorithm, ImperfectRHEL)
            return gradient(problem, eqx.tree_at(lambda x: x.seed, algorithm, seed) if drawn else algorithm)

        return jax.vmap(of_one)(problems, seeds)

    return lambda algorithm: of_all(problems, seeds, algorithm)


def toy_problem(seeds):
    """The gradient of masses, springs and couplings. The loss is a trapezoidal rule; the system starts from rest."""
    ends = np.arange(1, TOY_STEPS + 1) / TOY_STEPS

    @jax.jit
    @jax.vmap
    def sampled(seed):
        problem, _ = make_toy(seed, Integrator(1e-8))
        dt = problem.duration / TOY_STEPS
        drives = jax.vmap(problem.drive)(problem.duration * ends - 0.5 * dt)
        # The loss is half the square of the distance from a target: its slope at rest is minus the target.
        slopes = jax.vmap(jax.grad(problem.loss), (None, 0))(problem.start[0], problem.duration * ends)
        return Discretised(problem.hamiltonian, jnp.asarray(dt)), drives, -slopes[:, OUTPUT]

    def gradient(problem, algorithm):
        discretised, drives, targets = problem
        weights = discretised.step * jnp.ones(TOY_STEPS).at[-1].set(0.5)

        def loss(hamiltonian):
            changed = eqx.tree_at(lambda x: x.hamiltonian, discretised, hamiltonian)
            positions = evolve(changed, drives, learning_algorithm=algorithm)
            return 0.5 * weights @ (positions[:, OUTPUT] - targets) ** 2

        return jax.grad(loss)(discretised.hamiltonian)

    return over_seeds(gradient, sampled(jnp.arange(len(seeds))), seeds), TOY_STEPS


def make_network(dataset, model_name, num_blocks, key):
    """A network and its state, without dropout."""
    sizes = (dataset.data_dim, dataset.label_dim, HIDDEN_DIM, num_blocks, SSM_DIM)
    return create_model(model_name, *sizes, classification=True, dropout_rate=0.0, remat=False, key=key)


def network_problem(dataset, model_name, num_blocks, steps, seeds):
    """The gradient of all parameters of a network, for the mean loss of a batch."""

    def network(key):
        return make_network(dataset, model_name, num_blocks, key)

    models, states = eqx.filter_vmap(network)(jax.vmap(jax.random.PRNGKey)(seeds))
    arrays, static = eqx.partition(models, eqx.is_array)
    state = jax.tree.map(lambda x: x[0], states)  # The first state of a network is the same for every key.
    rows = [np.random.default_rng(int(x)).choice(dataset.train.size, BATCH_SIZE, replace=False) for x in seeds]
    x, labels = (jnp.asarray(array[np.stack(rows)], float) for array in (dataset.train.data, dataset.train.labels))

    def gradient(problem, algorithm):
        arrays, x, labels = problem

        def loss(model):
            forward = jax.vmap(
                with_learning_algorithm(model, algorithm), axis_name="batch", in_axes=(0, None), out_axes=(0, None)
            )
            outputs, _ = forward(x, state)
            return jnp.mean(jax.vmap(train.sample_loss, (0, 0, None))(outputs, labels, True))

        return eqx.filter_grad(loss)(eqx.combine(arrays, static))

    x = x[:, :, :steps]
    return over_seeds(gradient, (arrays, x, labels), seeds), x.shape[2]


def compare(problem, sweep, strength, epsilon):
    """{parameter: (cosine of every seed, relative error of every seed)}."""
    gradient, steps = problem
    echo, exact = machine(sweep, strength, steps, epsilon)
    gradients = [jax.tree.map(np.asarray, gradient(algorithm)) for algorithm in (echo, exact)]
    seeds = range(len(jax.tree.leaves(gradients)[0]))
    by_seed = [agreement_by_leaf(*(jax.tree.map(lambda x, i=i: x[i], tree) for tree in gradients)) for i in seeds]
    return {
        path.lstrip("."): ([x[path].cosine for x in by_seed], [x[path].relative_error for x in by_seed])
        for path in by_seed[0]
    }


def tolerance(strengths, cosines):
    """The strength at which the smallest cosine falls below `GOOD_COSINE`, interpolated on logarithmic axes.

    None: the cosine is below from the first strength on. The last strength: the cosine never falls below.
    """
    lost = np.log10(np.maximum(1 - np.asarray(cosines), 1e-17)) - np.log10(1 - GOOD_COSINE)
    bad = np.flatnonzero(~(lost <= 0))  # NaN is bad
    if len(bad) == 0:
        return float(strengths[-1])
    if bad[0] == 0:
        return None
    (before, after), x = lost[bad[0] - 1 : bad[0] + 1], np.log10(strengths[bad[0] - 1 : bad[0] + 1])
    share = before / (before - after) if np.isfinite(after) else 0.0
    return float(10 ** (x[0] + share * (x[1] - x[0])))


def tolerances_of(strengths, cosines):
    """{"median", "worst", "best"} of the tolerances of all seeds; `cosines`: (strength, seed)."""
    values = [tolerance(strengths, of_seed) for of_seed in np.transpose(cosines)]
    # The seed with the smallest tolerance comes first. None is worse than every strength.
    ordered = sorted(values, key=lambda x: -1 if x is None else abs(np.log(x / strengths[0])))
    middle = ordered[(len(ordered) - 1) // 2], ordered[len(ordered) // 2]
    median = None if None in middle else float(np.sqrt(np.prod(middle)))
    return {"median": median, "worst": ordered[0], "best": ordered[-1]}


@styled
def draw(curves):
    """A panel for each imperfection. `curves`: {imperfection: {(problem, ε): (strengths, cosines[strength, seed])}}."""
    figure = Figure(figsize=(10.5, 8.2), layout="constrained")
    figure.suptitle("1 - cosine with the exact gradient, of the parameter with the smallest cosine")
    panels = figure.subplots(3, 4, sharey=True).ravel()
    names = list(dict.fromkeys(name for name, _ in curves["noise"]))
    for axes, (part, lines) in zip(panels, curves.items(), strict=False):
        sweep = SWEEPS[part]
        for (name, epsilon), (strengths, cosines) in lines.items():
            number = names.index(name)
            line = {
                "color": COLOURS[number],
                "marker": MARKERS[number],
                "ms": 3,
                "ls": "--" if epsilon == "ε = 1" else "-",
            }
            lost = np.clip(1 - np.asarray(cosines), FLOOR, None)
            axes.plot(strengths, np.median(lost, axis=1), label=f"{name}, {epsilon}", **line)
            axes.fill_between(strengths, lost.min(1), lost.max(1), color=line["color"], alpha=0.15, lw=0)
        axes.axhline(1 - GOOD_COSINE, color="black", lw=0.8, zorder=1)
        label = {"xycoords": axes.get_yaxis_transform(), "textcoords": "offset points", "size": 7}
        axes.annotate(f"cosine {GOOD_COSINE}", (0, 1 - GOOD_COSINE), (2, 2), **label)
        axes.set_title(sweep.title, size=8)
        axes.set_xlabel(sweep.label)
        axes.set_ylim(0.5 * FLOOR, 4)
        log_scale(axes, "y")
        axes.set_yticks([FLOOR, *(10.0**power for power in range(-10, 1, 2))])
        axes.yaxis.set_major_formatter(lambda x, _: ("≤ " if x <= FLOOR else "") + log_label(x))
        if sweep.more_is_better:
            axes.invert_xaxis()
            axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        else:
            log_scale(axes, "x")
    for axes in panels[len(curves) :]:
        axes.set_axis_off()
    panels[-1].legend(*panels[list(curves).index("noise")].get_legend_handles_labels(), loc="center")
    return figure


def measure(options):
    """The cosines and errors of every parameter, as rows; and the smallest cosines as curves."""
    names = ("LinHRU",) if options.quick else ("LinHRU", "NonlinHRU")
    blocks, steps, stride = (1, 30, 3) if options.quick else (6, None, 1)
    dataset = create_dataset(options.data_dir, DATASET, seed=SEED, time=False)
    seeds = SEED + jnp.arange(2 if options.quick else SEEDS)
    problems = {name: network_problem(dataset, name, blocks, steps, seeds) for name in names}
    problems[TOY] = toy_problem(seeds)
    jobs = [
        (part, name, epsilon)
        for part in SWEEPS
        for name in problems
        for epsilon in (["ε swept"] if part in ("epsilon", "one-sided") else EPSILONS)
    ]
    rows, curves = [], {part: {} for part in SWEEPS}
    for part, name, epsilon in tqdm(jobs, disable=None, leave=False):
        strengths, cosines = SWEEPS[part].strengths[::-stride][::-1], []
        for strength in strengths:
            by_parameter = compare(problems[name], SWEEPS[part], strength, EPSILONS.get(epsilon, 1.0))
            cosines.append(np.min([cosine for cosine, _ in by_parameter.values()], axis=0))
            about = {"imperfection": part, "strength": float(strength), "problem": name, "epsilon": epsilon}
            parameters = {path: {"cosine": cosine, "error": error} for path, (cosine, error) in by_parameter.items()}
            rows.append(about | {"parameters": parameters})
        curves[part][name, epsilon] = strengths, cosines
    return rows, curves


def print_tolerances(tolerances):
    """A row per imperfection, a column per problem."""
    print(
        f"every parameter's cosine stays above {GOOD_COSINE} up to (median over the seeds [worst, best]; * the largest "
        "strength tried; -: at no strength):"
    )
    columns = list(dict.fromkeys(key for cells in tolerances.values() for key in cells))
    table = [["", *columns]]
    for part, by_column in tolerances.items():
        sweep, row = SWEEPS[part], []
        for key in columns:
            values = by_column.get(key, {}).values()
            cells = ["-" if x is None else f"{x:.2g}" + "*" * int(x == sweep.strengths[-1]) for x in values]
            row.append(f"{cells[0]} [{', '.join(cells[1:])}]" if cells else "")
        table.append([f"{sweep.title} ({sweep.label})", *row])
    print(aligned(table))


def main(arguments=None):
    """Measures, prints the table, writes figure and results.json; returns the results."""
    parser = argparse.ArgumentParser(description="The gradient of imperfect echoes.")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/imperfect_echo"))
    parser.add_argument("--data_dir", type=Path, default=DEFAULT_DATA_DIR)
    parser.add_argument("--quick", action="store_true", help="the short form: fewer of everything")
    options = parser.parse_args(arguments)
    options.output_dir.mkdir(parents=True, exist_ok=True)
    with jax.enable_x64(True):
        rows, curves = measure(options)
    tolerances = {
        part: {f"{name}, {epsilon}": tolerances_of(*curve) for (name, epsilon), curve in lines.items()}
        for part, lines in curves.items()
    }
    print_tolerances(tolerances)
    settings = {key: str(value) if isinstance(value, Path) else value for key, value in vars(options).items()}
    versions = {name: version(name) for name in ("jax", "equinox", "numpy")}
    results = {"options": settings, "versions": {"python": platform.python_version(), **versions}}
    results |= {"tolerances": tolerances, "rows": rows}
    save(draw(curves), options.output_dir / "imperfect_echo.png")
    write_json(options.output_dir / "results.json", results)
    print(f"written: {options.output_dir}")
    return results


if __name__ == "__main__":
    main()
