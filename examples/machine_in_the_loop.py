"""Train a device that nobody can differentiate. python examples/machine_in_the_loop.py [--quick]

The oscillators of a small classifier are a `SimulatedDevice`. Each of its parameters differs from the programmed one by
a random factor exp(sigma x), x normal, which no method knows. The device makes two steps for each step of the declared
model. What the echoes trained is also tested in continuous time, by `solve_ivp`. Five ways to train it:

    echoes       the device runs forwards and echoes; the gradient is read from the echoes (`MachineInTheLoop`)
    jax          the model is trained in jax, then its parameters are programmed into the device
    twin         physics-aware training: the device runs forwards, the reverse mode of the declared model gives the
                 gradient. The model runs on the inputs alone (Wright et al., Nature 601, 549, 2022)
    twin, states the same, but each step of the model starts at the state that the device had, which a second pass
                 measures: positions and momenta
    readout      only what follows the device is trained

All start from the same parameters and make the same number of steps on the same batches. Every method has the best
learning rate of four (`--tune` finds them, with seeds that the figure does not use). Three seeds: of the data, the
parameters and the device. The tasks:

    tones        which of six frequencies? 80 steps, random phase and size, noise; four nonlinear oscillators
    OSULeaf      real outlines of leaves, six species, bundled with sktime; four linear oscillators
    BasicMotions, SelfRegulationSCP1   (with --tasks) real; their test parts do not tell the methods apart

The command prints tables and writes into the output folder

    machine_in_the_loop.png   accuracy and loss on the test part, and the cosine of the gradient, against sigma
    results.json              every training; cosines with the gradient by finite differences on the device
"""

import argparse
import platform
import sys
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from typing_extensions import override

from common.files import write_json
from common.style import COLOURS, MARKERS, log_if_wide, save, styled
from common.tables import aligned
from data_dir.datasets import create_dataset
from data_dir.storage import DEFAULT_DATA_DIR, DataError
from models import create_model
from models.physics.host import call_host
from models.physics.in_the_loop import MachineInTheLoop, named
from models.physics.operating import Operator, Record
from models.physics.simulated_device import SimulatedDevice
from models.rhel import BPTT, RHEL, with_learning_algorithm
from models.rhel.hamiltonian import leapfrog
from models.rhel.system import AbstractLearningAlgorithm, BareSystem, drives_of, outputs_of
from train import adam, sample_loss, train_step
from training.steps import initial_state

LABELS = {
    "echoes": "echoes on the device",
    "jax": "trained in jax, then programmed",
    "twin": "twin: device forwards, model backwards",
    "twin, states": "twin, at measured states",
    "readout": "readout only",
}
METHODS = tuple(LABELS)
WITH_GRADIENT = ("echoes", "twin", "twin, states")
SIGMAS, SEEDS, SEED = (0.0, 0.05, 0.1, 0.2, 0.3), 3, 2345
EPSILON = 0.1
BATCH_SIZE, SMOOTHED = 32, 10  # the loss that is compared with the target is a mean over so many steps
RATES = (0.01, 0.02, 0.04, 0.08)
SUBSTEPS = 2  # leapfrog steps of the device in a step of the declared model. solve_ivp takes six times as long.
DIFFERENCE = 1e-4  # of a parameter, for the finite differences


class OnDevice(AbstractLearningAlgorithm):
    """Positions from the device; their derivative from the declared model, the twin.

    - `states`: "inputs", where the twin runs on the drives alone; "measured", where each of its steps starts at the
      measured state; or "none": the positions have no derivative.
    """

    operator: Operator = eqx.field(static=True)
    states: str = eqx.field(static=True)

    @override
    def outputs(self, system, inputs):
        drives = drives_of(system, inputs)
        return outputs_of(system, self._measured(system, drives)[0], inputs)

    @override
    def respond(self, system, inputs):
        drives = drives_of(system, inputs)
        positions, *momenta = jax.lax.stop_gradient(self._measured(system, drives))
        if self.states == "inputs":
            positions = _with_slope_of(BPTT().respond(BareSystem(system.hamiltonian), drives), positions)
        if self.states == "measured":
            positions = _through_states(system.hamiltonian, drives, positions, *momenta)
        return outputs_of(system, positions, inputs)

    def _measured(self, system, drives):
        """Positions, and with measured states momenta, (time, batch, osc), after every step."""
        oscillators = system.position_shape(drives.shape[2:])[0]
        like = jax.ShapeDtypeStruct((*drives.shape[:2], oscillators), drives.dtype)

        def run(parameters, drives):
            return (self.operator.run(parameters, drives, oscillators)[1],)

        def run_and_return(parameters, drives):
            (positions,) = run(parameters, drives)
            trace = self.operator.machine.echo(drives[::-1], np.zeros(positions.shape))
            self.operator.record.echoes += 1
            return positions, -trace.momenta_before[::-1]

        function, results = (run_and_return, 2) if self.states == "measured" else (run, 1)
        arguments = jax.lax.stop_gradient((named(system.hamiltonian), drives))
        return call_host(function, (like,) * results, *arguments)


def _with_slope_of(model, value):
    """The value, with the derivative of the model."""
    return model + jax.lax.stop_gradient(value - model)


def _through_states(hamiltonian, drives, positions, momenta):
    """The positions. Their derivative is that of the declared steps, each taken from the measured state before it."""

    def step(state, measured):
        drive, *after = measured
        take = partial(leapfrog, hamiltonian.velocity, hamiltonian.force)
        modelled, _ = jax.vmap(lambda state, drive: take(state, drive))(state, drive)
        state = tuple(map(_with_slope_of, modelled, after))
        return state, state[0]

    rest = jnp.zeros_like(positions[0])
    return jax.lax.scan(step, (rest, rest), (drives, positions, momenta))[1]


class Task(NamedTuple):
    """What is learned, and by which network. `data(seed, data_dir)`: x and one-hot y of training, then of the test."""

    data: Callable
    unit: str
    hidden_dim: int
    oscillators: int
    steps: int
    target: float  # of the loss in training
    rates: dict[str, float]
    options: dict


def tones(seed, _, count=512, tested=256, steps=80):
    """Sines of six frequencies with random phase and size, in noise."""
    random = np.random.default_rng(seed)
    frequencies = np.geomspace(0.15, 0.6, 6)  # radians a step
    labels, (phases, sizes) = random.integers(0, 6, count + tested), random.uniform(size=(2, count + tested, 1))
    x = (0.7 + 0.7 * sizes) * np.sin(frequencies[labels][:, None] * np.arange(steps) + 2 * np.pi * phases)
    x = (x + 0.3 * random.standard_normal(x.shape))[..., None].astype(np.float32)
    y = np.eye(6, dtype=np.float32)[labels]
    return x[:count], y[:count], x[count:], y[count:]


def real(name, pooled):
    """A processed set in the archive's own parts, every series standardised, `pooled` steps averaged to one."""

    def data(seed, data_dir):
        dataset = create_dataset(data_dir, name, seed=seed, time=False, split="original")
        arrays = []
        for parts in ((dataset.train, dataset.validation), (dataset.test,)):
            x, y = (np.concatenate([np.asarray(getattr(p, z)) for p in parts]) for z in ("data", "labels"))
            x = x[:, : len(x[0]) // pooled * pooled].reshape(len(x), -1, pooled, x.shape[2]).mean(2)
            x = (x - x.mean(1, keepdims=True)) / np.maximum(x.std(1, keepdims=True), 1e-6)
            arrays += [x.astype(np.float32), y.astype(np.float32)]
        return arrays

    return data


def rates(*values):
    """The learning rate of every method, the best of `RATES` by --tune."""
    return dict(zip(METHODS, values, strict=True))


LEAVES = rates(0.02, 0.02, 0.04, 0.01, 0.04)
LINEAR, NONLINEAR = {"complex_ssm": False}, {"step_init": 0.3}
TASKS = {
    "tones": Task(tones, "NonlinHRU", 3, 4, 200, 0.3, rates(0.04, 0.02, 0.02, 0.01, 0.04), NONLINEAR),
    "OSULeaf": Task(real("OSULeaf", 4), "LinHRU", 3, 4, 300, 1.2, LEAVES, LINEAR),
    "BasicMotions": Task(real("BasicMotions", 1), "LinHRU", 3, 4, 100, 0.3, LEAVES, LINEAR),
    "SelfRegulationSCP1": Task(real("SelfRegulationSCP1", 8), "LinHRU", 3, 4, 200, 0.5, LEAVES, LINEAR),
}


class Bench:
    """The place of the device, itself a machine. Devices come and go; the operator and all compiled programs stay."""

    def __init__(self):
        self.device = SimulatedDevice(substeps=SUBSTEPS)
        self.operator = Operator(self)
        self.algorithms = {
            "echoes": MachineInTheLoop(self.operator, EPSILON),
            "jax": RHEL(),
            "twin": OnDevice(self.operator, "inputs"),
            "twin, states": OnDevice(self.operator, "measured"),
            "readout": OnDevice(self.operator, "none"),
        }

    def insert(self, sigma, seed, substeps=SUBSTEPS):
        """Put a device into the place."""
        self.device = SimulatedDevice(spread=sigma, seed=seed, substeps=substeps)
        self.operator.reset()
        self.operator.record = Record()

    @property
    def limits(self):
        """See `Machine`."""
        return self.device.limits

    def program(self, parameters):
        """See `Machine`."""
        self.device.program(parameters)

    def run(self, drives):
        """See `Machine`."""
        return self.device.run(drives)

    def echo(self, drives, nudges):
        """See `Machine`."""
        return self.device.echo(drives, nudges)


def network(task, x, y, seed):
    """A network and its state, without dropout."""
    sizes = x.shape[2], y.shape[1], task.hidden_dim, 1, task.oscillators
    options = {"classification": True, "dropout_rate": 0.0, "remat": False, "batchnorm": "ema"} | task.options
    return create_model(task.unit, *sizes, **options, key=jax.random.PRNGKey(seed))


def outputs_and_loss(model, state, x, y):
    """Logits and mean loss of a batch."""
    logits, _ = jax.vmap(model, axis_name="batch", in_axes=(0, None), out_axes=(0, None))(x, state)
    return logits, jnp.mean(jax.vmap(sample_loss, (0, 0, None))(logits, y, True))


@eqx.filter_jit
def tested(model, state, x, y):
    """Loss and accuracy."""
    logits, loss = outputs_and_loss(eqx.nn.inference_mode(model), state, x, y)
    return loss, jnp.mean(jnp.argmax(logits, 1) == jnp.argmax(y, 1))


def trained(bench, task, arrays, method, seed, rate):
    """Network and state after the training, the losses of all steps, and the passes of the device until each."""
    x, y = arrays[:2]
    model, state = network(task, x, y, seed)
    model = with_learning_algorithm(model, bench.algorithms[method])
    optimiser, random = adam(rate), np.random.default_rng([seed, 1])
    training, losses, passes = initial_state(model, state, optimiser), [], []
    for _ in range(task.steps):
        rows = random.choice(len(x), min(BATCH_SIZE, len(x)), replace=False)
        batch = x[rows], y[rows], jax.random.PRNGKey(0)
        training, loss = train_step(batch, training, optimiser, True)
        losses.append(float(loss))
        passes.append(bench.operator.record.passes)
    return training.model, training.state, losses, passes


def on_device(bench, model, state, arrays):
    """Loss and accuracy of the test part on the device."""
    model = with_learning_algorithm(model, bench.algorithms["readout"])
    return [float(value) for value in tested(model, state, *map(jnp.asarray, arrays[2:]))]


def passes_to(target, losses, passes):
    """Passes until the smoothed loss is at most the target; None if it never is."""
    smoothed = np.convolve(losses, np.ones(SMOOTHED) / SMOOTHED, "valid")
    below = np.flatnonzero(smoothed <= target)
    return passes[below[0] + SMOOTHED - 1] if len(below) else None


def train_all(bench, task, name, arrays, seed, sigmas):
    """A row for every method and sigma. What is trained in jax is trained once and programmed into every device."""
    in_jax, rows = trained(bench, task, arrays, "jax", seed, task.rates["jax"])[:2], []
    for sigma in sigmas:
        for method in METHODS:
            bench.insert(sigma, seed)
            row = {"task": name, "sigma": sigma, "seed": seed, "method": method}
            if method == "jax":
                network_and_state = in_jax
            else:
                *network_and_state, losses, passes = trained(bench, task, arrays, method, seed, task.rates[method])
                row |= {"losses": losses, "passes": passes[-1], "to_target": passes_to(task.target, losses, passes)}
            row["loss"], row["accuracy"] = on_device(bench, *network_and_state, arrays)
            if method == "echoes":
                bench.insert(sigma, seed, substeps=None)
                row["loss_solved"], row["accuracy_solved"] = on_device(bench, *network_and_state, arrays)
            rows.append(row)
    return rows


def batch_loss(model, state, x, y):
    """Mean loss of a batch."""
    return outputs_and_loss(model, state, x, y)[1]


loss_of, gradient_of = eqx.filter_jit(batch_loss), eqx.filter_jit(eqx.filter_grad(batch_loss))


def cosines(bench, task, arrays, sigma, seed):
    """{method: cosine of the gradient} with finite differences on the device, in float64, at the first parameters.

    The gradient of B and of the parameters of the oscillators: of all that the loss sees through the device alone.
    """

    def seen(model):
        """The parameters that matter to the device, as a vector; and the model with others."""
        unit = model.blocks[0].unit
        inside = eqx.tree_at(lambda x: (x.C, x.D), jax.tree.map(eqx.is_inexact_array, unit), (False, False))
        inside, outside = eqx.partition(unit, inside)
        flat, unflatten = ravel_pytree(inside)

        def with_others(flat):
            return eqx.tree_at(lambda x: x.blocks[0].unit, model, eqx.combine(unflatten(flat), outside))

        return np.asarray(flat), with_others

    with jax.enable_x64(True):
        wide = partial(jax.tree.map, lambda z: jnp.asarray(z, float) if eqx.is_inexact_array(z) else z)
        model, state = map(wide, network(task, *arrays[:2], seed))
        batch = state, *(jnp.asarray(z[:BATCH_SIZE], float) for z in arrays[:2])
        bench.insert(sigma, seed)
        flat, with_others = seen(with_learning_algorithm(model, bench.algorithms["readout"]))

        def loss(flat):
            return float(loss_of(with_others(jnp.asarray(flat)), *batch))

        shifts = DIFFERENCE * np.eye(len(flat))
        true = np.asarray([(loss(flat + x) - loss(flat - x)) / (2 * DIFFERENCE) for x in shifts])
        found = {}
        for method in WITH_GRADIENT:
            gradient, _ = seen(gradient_of(with_learning_algorithm(model, bench.algorithms[method]), *batch))
            found[method] = float(gradient @ true / np.linalg.norm(gradient) / np.linalg.norm(true))
        return found


PANELS = {"accuracy": "accuracy, test part", "loss": "loss, test part", "cosine": "cosine of the gradient"}


@styled
def draw(results):
    """A row of panels for every task. Lines: means of the seeds; bands: all seeds."""
    tasks = list(dict.fromkeys(row["task"] for row in results["trainings"]))
    figure = Figure(figsize=(9.5, 2.7 * len(tasks) + 0.6), layout="constrained")
    figure.suptitle("a device whose parameters are off by σ, trained in five ways")
    for panels, task in zip(figure.subplots(len(tasks), len(PANELS), squeeze=False), tasks, strict=True):
        for axes, (quantity, label) in zip(panels, PANELS.items(), strict=True):
            rows = results["cosines" if quantity == "cosine" else "trainings"]
            for method, colour, marker in zip(METHODS, COLOURS, MARKERS, strict=False):
                found = by_sigma(rows, task, method, quantity)
                if not found:
                    continue
                sigmas, values = 100 * np.asarray(list(found)), np.asarray(list(found.values()))
                axes.plot(sigmas, values.mean(1), color=colour, marker=marker, label=LABELS[method])
                axes.fill_between(sigmas, values.min(1), values.max(1), color=colour, alpha=0.15, lw=0)
            axes.set(xlabel="σ of every parameter, %", ylabel=label)
            if quantity == "accuracy":
                axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
            if quantity == "loss":
                log_if_wide(axes, [row["loss"] for row in rows if row["task"] == task])
        panels[0].set_title(task, loc="left")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


def by_sigma(rows, task, method, quantity):
    """{sigma: values of all seeds}."""
    found = {}
    for row in rows:
        if (row["task"], row["method"]) == (task, method):
            found.setdefault(row["sigma"], []).append(row[quantity])
    return found


def print_tables(results):
    """Accuracy and loss of the test part; passes to the target."""
    for task in dict.fromkeys(row["task"] for row in results["trainings"]):
        sigmas = list(dict.fromkeys(row["sigma"] for row in results["trainings"] if row["task"] == task))
        head = ["", *(f"σ = {100 * sigma:g} %" for sigma in sigmas)]

        def table(quantity, cell, methods=METHODS, task=task, head=head):
            found = (by_sigma(results["trainings"], task, method, quantity) for method in methods)
            return aligned([head, *([m, *map(cell, x.values())] for m, x in zip(methods, found, strict=True))])

        print(f"\n{task}: accuracy on the test part, %: mean [worst, best seed]")
        print(table("accuracy", lambda x: "{:.0f} [{:.0f}, {:.0f}]".format(*100 * np.array([np.mean(x), *span(x)]))))
        print("\nloss on the test part: the same")
        print(table("loss", lambda x: f"{np.mean(x):.2g} [{min(x):.2g}, {max(x):.2g}]"))
        on_device = [method for method in METHODS if method != "jax"]
        rows = [row for row in results["trainings"] if row["task"] == task and row["method"] == "echoes"]
        error = max(abs(row["loss_solved"] - row["loss"]) for row in rows)
        print(f"echoes, on the device by solve_ivp: these losses change by at most {error:.1g}")
        print(f"\npasses of the device until the loss is {TASKS[task].target:g}: the seeds in order (-: not reached)")
        print(table("to_target", lambda x: " ".join("-" if n is None else f"{n:,}" for n in x), on_device))


def span(values):
    """The smallest and the largest."""
    return min(values), max(values)


def measured(options):
    """All trainings and cosines, as rows."""
    bench, results = Bench(), {"trainings": [], "cosines": []}
    sigmas = (0.0, 0.2) if options.quick else SIGMAS
    for name in options.tasks:
        task = TASKS[name]
        if options.quick:
            task = task._replace(steps=SMOOTHED)
        for seed in range(SEED, SEED + (1 if options.quick else SEEDS)):
            try:
                arrays = task.data(seed, options.data_dir)
            except DataError as error:
                print(f"{name} is left out: {error}")
                break
            results["trainings"] += train_all(bench, task, name, arrays, seed, sigmas)
            for sigma in sigmas:
                about = {"task": name, "sigma": sigma, "seed": seed}
                found = cosines(bench, task, arrays, sigma, seed)
                results["cosines"] += [about | {"method": method, "cosine": x} for method, x in found.items()]
    return results


def tune(options):
    """Print the mean loss of the last steps for every method and rate, with other seeds, at sigma = 10 %."""
    bench = Bench()
    for name in options.tasks:
        rows = [[name, *map(str, RATES)]]
        for method in METHODS:
            row = [method]
            for rate in RATES:
                last = []
                for seed in (SEED - 2, SEED - 1):
                    bench.insert(0.1, seed)
                    arrays = TASKS[name].data(seed, options.data_dir)
                    losses = trained(bench, TASKS[name], arrays, method, seed, rate)[2]
                    last.append(np.mean(losses[-2 * SMOOTHED :]))
                row.append(f"{np.mean(last):.3f}")
            rows.append(row)
        print(aligned(rows))


def main(arguments=None):
    """Measures, prints the tables, writes figure and results.json; returns the results."""
    parser = argparse.ArgumentParser(description="A device in the loop of a training, beside other ways to train it.")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/machine_in_the_loop"))
    parser.add_argument("--data_dir", type=Path, default=DEFAULT_DATA_DIR, help="holds raw/ and processed/")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=["tones", "OSULeaf"], metavar="TASK")
    parser.add_argument("--quick", action="store_true", help="ten steps of one seed: under a minute")
    parser.add_argument("--tune", action="store_true", help="print the loss for every learning rate instead")
    options = parser.parse_args(arguments)
    if options.tune:
        return tune(options)
    started = time.perf_counter()
    results = measured(options)
    if not results["trainings"]:
        sys.exit("machine_in_the_loop.py: error: no task is left")
    versions = {name: version(name) for name in ("jax", "numpy", "scipy")} | {"python": platform.python_version()}
    results |= {"versions": versions, "seconds": time.perf_counter() - started}
    print_tables(results)
    options.output_dir.mkdir(parents=True, exist_ok=True)
    write_json(options.output_dir / "results.json", results)
    save(draw(results), options.output_dir / "machine_in_the_loop.png")
    print(f"\n{results['seconds']:.0f} s; figure and results: {options.output_dir}")
    return results


if __name__ == "__main__":
    main()
