"""How far back does a gradient reach? python examples/input_gradients.py [--quick]

The command measures the norm of the gradient of the loss with respect to the input at distance d from the last step,
for LinHRU, NonlinHRU and a GRU with about as many parameters, before and after a training. The task: the first 5 % of
a sequence decide its label, noise follows, the network reads its last step. The gradients of the units are those of
RHEL, in float64; the command prints how far they are from BPTT. It writes into the output folder

    input_gradients.png    the norm against d, median over seeds and sequences, and the middle half as a band
    results.json           the medians and quartiles, the test accuracies, the differences from BPTT

A norm is divided by the norm of the gradient of the loss with respect to the outputs, which falls as a training
succeeds.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure

from common.files import write_json
from common.style import COLOURS, log_scale, save, styled
from common.tables import aligned
from data_dir.dataloaders import Dataloader
from data_dir.tasks import First, GeneratedSeries, labels_of
from models import create_model
from models.rhel import BPTT, RHEL, with_learning_algorithm
from train import adam, evaluate, train_step
from training.steps import initial_state

BLOCKS, HIDDEN_DIM, SSM_DIM = 2, 16, 16
GRU_DIM = 32  # 3,362 parameters; LinHRU has 3,298, NonlinHRU 2,308
BATCH_SIZE = 8
BINS = 40
FLOOR = 1e-12  # of what is drawn


class GRU(eqx.Module):
    """A gated recurrent unit, read at the last step by a linear decoder."""

    cell: eqx.nn.GRUCell
    decoder: eqx.nn.Linear

    def __init__(self, *, key):
        cell_key, decoder_key = jax.random.split(key)
        self.cell = eqx.nn.GRUCell(1, GRU_DIM, key=cell_key)
        self.decoder = eqx.nn.Linear(GRU_DIM, 2, key=decoder_key)

    def __call__(self, x, state, key=None):
        """Logits (2,) of a sequence x (L, 1), and the state, which it leaves alone; `key` is not used."""
        last, _ = jax.lax.scan(lambda h, u: (self.cell(u, h), None), jnp.zeros(GRU_DIM, x.dtype), x)
        return self.decoder(last), state


# The unit of each network, and its options for sequences of a length.
NETWORKS: dict[str, tuple[str, Callable[[int], dict]]] = {
    "LinHRU, periods from 16 to 4 L": ("LinHRU", lambda length: {"shortest_period": 16, "longest_period": 4 * length}),
    "LinHRU, published periods": ("LinHRU", lambda _: {}),
    "LinHRU, published, friction": ("LinHRU", lambda _: {"damping": True}),
    "NonlinHRU, time step 3 / L": ("NonlinHRU", lambda length: {"step_init": 3 / length}),
    "NonlinHRU, time step 0.1": ("NonlinHRU", lambda _: {"step_init": 0.1}),
    "GRU": ("GRU", lambda _: {}),
}


def made(name: str, length: int, key: jax.Array) -> tuple[eqx.Module, eqx.nn.State]:
    """A network of `NETWORKS` for sequences of a length, and its state."""
    unit, options = NETWORKS[name]
    if unit == "GRU":
        return eqx.nn.make_with_state(GRU)(key=key)
    sizes = {"hidden_dim": HIDDEN_DIM, "num_blocks": BLOCKS, "ssm_dim": SSM_DIM, "dropout_rate": 0.0}
    read = {"classification": True, "pooling": "last"}
    return create_model(unit, 1, 2, **sizes, **read, **options(length), key=key)


@eqx.filter_jit
def gradients(model, state, x, y):
    """The gradient of the loss by the input (batch, L, 1), over the norm of its gradient by the logits.

    The latter is (p - y), of two classes p (-1, 1) or p (1, -1). Its direction is exact even where p rounds to 0.
    """

    def of_one(x, y):
        _, to_input = jax.vjp(lambda x: model(x, state, None)[0], x)
        return to_input((1 - 2 * y) / jnp.sqrt(2.0).astype(y.dtype))[0]

    return jax.vmap(of_one, axis_name="batch")(x, y)


def in_float64(tree):
    """The same numbers in float64."""
    return jax.tree.map(lambda x: x.astype(jnp.float64) if eqx.is_inexact_array(x) else x, tree)


def measured(model, state, x, y) -> tuple[np.ndarray, float | None]:
    """The gradients by RHEL in float64, and how far they are from BPTT, relative to the largest; None for a GRU."""
    model = eqx.nn.inference_mode(model)
    with jax.enable_x64(True):
        model, state, x, y = in_float64((model, state, jnp.asarray(x), jnp.asarray(y)))
        if isinstance(model, GRU):
            return np.asarray(gradients(model, state, x, y)), None
        ways = (with_learning_algorithm(model, way) for way in (RHEL(), BPTT()))
        found, exact = (np.asarray(gradients(network, state, x, y)) for network in ways)
    return found, float(np.max(np.abs(found - exact)) / np.max(np.abs(exact)))


def train_on(model, state, task: First, optimiser: optax.GradientTransformation, num_steps: int, seed: int):
    """A network after `num_steps` steps on the task, its state, and its test accuracy."""
    parts = {name: Dataloader(GeneratedSeries(task, name), labels_of(task, name)) for name in ("train", "test")}
    training = initial_state(model, state, optimiser)
    batches = parts["train"].loop(BATCH_SIZE, key=jax.random.PRNGKey(seed))
    for _ in range(num_steps):
        training, _ = train_step((*map(jnp.asarray, next(batches)), jax.random.PRNGKey(0)), training, optimiser, True)
    accuracy = evaluate(training.model, training.state, parts["test"], batch_size=32, classification=True)[1]
    return training.model, training.state, accuracy


@eqx.filter_jit
def seen(model, state, x):
    """The state after one batch: an untrained network standardises by its moments."""
    return jax.vmap(model, axis_name="batch", in_axes=(0, None, None), out_axes=(0, None))(x, state, None)[1]


def by_distance(norms: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """The mean norm in each bin of distances, (series, bins). `norms` (series, L) are in the order of time."""
    norms = norms[:, ::-1]
    return np.stack([norms[:, low:high].mean(axis=1) for low, high in pairwise(edges)], axis=1)


def edges_of(length: int) -> np.ndarray:
    """The first distance of each bin, in equal ratios, and the length as the end of the last."""
    return np.unique(np.round(np.geomspace(1, length + 1, BINS + 1)).astype(int)) - 1


def compare(names: Sequence[str], task: First, seeds: int, num_steps: int) -> list[dict]:
    """A row for each network, untrained and trained: quartiles of the norms, accuracies and differences."""
    x, y = GeneratedSeries(task, "validation")[:], labels_of(task, "validation")
    edges, rows = edges_of(task.length), []
    optimiser = adam(optax.cosine_decay_schedule(0.003, num_steps), 1.0)
    for name in names:
        found = {"untrained": ([], [], []), "trained": ([], [], [])}
        for seed in range(seeds):
            model, state = made(name, task.length, jax.random.PRNGKey(seed))
            trained = train_on(model, state, task, optimiser, num_steps, seed)
            for stage, network in (("untrained", (model, seen(model, state, x), None)), ("trained", trained)):
                gradient, difference = measured(*network[:2], x, y)
                norms = by_distance(np.linalg.norm(gradient, axis=2), edges)
                for kept, value in zip(found[stage], (norms, network[2], difference), strict=True):
                    kept.append(value)
        for stage, (norms, accuracies, differences) in found.items():
            quartiles = np.percentile(np.concatenate(norms), [25, 50, 75], axis=0).tolist()
            rows.append({"network": name, "stage": stage, "accuracies": accuracies, "differences": differences})
            rows[-1] |= {"distances": edges[:-1].tolist(), "quartiles": quartiles}
        print(aligned([HEADER, *map(shown, rows[-2:])]), flush=True)
    return rows


HEADER = ("network", "stage", "test accuracy, %", "norm at d = 0", "at L / 2", "at L - 1", "RHEL - BPTT")


def shown(row: dict) -> tuple[str, ...]:
    """A line of the table."""
    middle, half = row["quartiles"][1], np.searchsorted(row["distances"], (row["distances"][-1] + 1) / 2) - 1
    accuracies = [f"{100 * x:.0f}" for x in row["accuracies"] if x is not None]
    differences = [x for x in row["differences"] if x is not None]
    return (
        *(row["network"], row["stage"], ", ".join(accuracies)),
        *(f"{middle[place]:.1e}" for place in (0, half, -1)),
        f"{max(differences):.1e}" if differences else "",
    )


@styled
def draw(rows: list[dict]) -> Figure:
    """The norms against the distance, untrained on the left and trained on the right."""
    figure = Figure(figsize=(10, 4.4), layout="constrained")
    panels = figure.subplots(1, 2, sharex=True, sharey=True)
    for axes, stage in zip(panels, ("untrained", "trained"), strict=True):
        of_stage = [row for row in rows if row["stage"] == stage]
        for row, color, line in zip(of_stage, COLOURS, ("-", "--", ":", "-", "--", "-."), strict=False):
            distances = np.asarray(row["distances"]) + 1
            low, middle, high = np.maximum(row["quartiles"], FLOOR)
            axes.plot(distances, middle, line, color=color, label=row["network"])
            axes.fill_between(distances, low, high, color=color, alpha=0.15, lw=0)
        axes.set(title=stage, xlabel="distance of the input from the last step, d + 1")
        log_scale(axes, "x", "y")
        axes.grid(color="0.9")
    panels[0].set_ylim(FLOOR, 3 * max(max(row["quartiles"][2]) for row in rows))
    panels[0].set_ylabel("norm of the gradient by the input")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


def main(arguments=None) -> list[dict]:
    """Compare, print a table, write the figure and the numbers; return the rows."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    add = parser.add_argument
    add("--network", nargs="+", choices=NETWORKS, default=list(NETWORKS), metavar="NAME", help="; ".join(NETWORKS))
    add("--length", type=int, default=2048, help="steps of a sequence, 20 at least")
    add("--num_steps", type=int, default=300, help="steps of a training")
    add("--seeds", type=int, default=3)
    add("--series", type=int, default=16, help="sequences of a measurement")
    add("--quick", action="store_true", help="256 steps of a sequence, 20 steps of a training, one seed")
    add("--output_dir", type=Path, default=Path("outputs/examples/input_gradients"))
    options = parser.parse_args(arguments)
    if options.quick:
        options.length, options.num_steps, options.seeds = 256, 20, 1
    if options.length < 20:
        parser.error(f"--length is {options.length}: the first 5 % of a sequence decide, so it needs 20 at least")
    task = First(options.length, range=options.length // 20, train=4096, validation=options.series, test=256)
    rows = compare(options.network, task, options.seeds, options.num_steps)
    print(f"\n{aligned([HEADER, *map(shown, rows)])}")
    options.output_dir.mkdir(parents=True, exist_ok=True)
    write_json(options.output_dir / "results.json", rows)
    save(draw(rows), options.output_dir / "input_gradients.png")
    print(f"figure: {options.output_dir / 'input_gradients.png'}")
    return rows


if __name__ == "__main__":
    main()
