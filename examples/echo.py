"""One echo, drawn: python examples/echo.py [--output figures/echo.png]

Six nonlinear oscillators follow a drive. The loss is the square of their last positions. Left: one oscillator in the
free pass, and the two echoes, which run back over the same drive while the error nudges them apart. Right: the gradient
from the echoes against backpropagation through time, for every parameter and every drive.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from common.style import BLUE, BROAD, RED, save, styled
from models import evolve
from models.NonlinHRU import SaturatingOscillators
from models.rhel.hamiltonian import flow, leapfrog

LENGTH, OSCILLATORS, SHOWN = 300, 6, 2
VISIBLE_NUDGE = 0.004  # far larger than in training, so that the figure shows two different echoes


def problem():
    """Oscillators, a slow drive, and the gradient of the loss with respect to each position q_1, .., q_L."""
    drive_key, phase_key = jax.random.split(jax.random.PRNGKey(3))
    hamiltonian = SaturatingOscillators(
        W_diag=jnp.linspace(0.5, 1, OSCILLATORS),
        b=jnp.zeros(OSCILLATORS),
        alpha=jnp.linspace(0.1, 1, OSCILLATORS),
        step=jnp.full(OSCILLATORS, 0.1),
    )
    time = jnp.arange(LENGTH)[:, None]
    phases = 2 * jnp.pi * jax.random.uniform(phase_key, (1, OSCILLATORS))
    drives = jnp.sin(0.07 * time + phases) + 0.3 * jax.random.normal(drive_key, (LENGTH, OSCILLATORS))
    positions = evolve(hamiltonian, drives)
    incoming = jnp.where(time >= LENGTH - 100, positions, 0)
    return hamiltonian, drives, incoming


def echo(hamiltonian, drives, incoming, amplitude):
    """Positions of one echo, by the step of the free pass that it retraces."""
    rest = jnp.zeros(OSCILLATORS)
    (q, p), _ = flow(hamiltonian, (rest, rest), drives)

    def step(state, drive_and_gradient):
        (q, p), (drive, gradient) = state, drive_and_gradient
        state, _ = leapfrog(hamiltonian.velocity, hamiltonian.force, (q, p + amplitude * gradient), drive)
        return state, q

    _, positions = jax.lax.scan(step, (q, -p), (drives, incoming), reverse=True)
    return positions


def gradients(hamiltonian, drives):
    """The gradient of the loss by each algorithm, in float64: {algorithm: {leaf: values}}."""

    def loss(hamiltonian_and_drives, algorithm):
        return 0.5 * jnp.sum(evolve(*hamiltonian_and_drives, learning_algorithm=algorithm)[-100:] ** 2)

    result = {}
    for algorithm in ("RHEL", "BPTT"):
        by_parameter, by_drive = eqx.filter_grad(loss)((hamiltonian, drives), algorithm)
        result[algorithm] = vars(by_parameter) | {"drives": by_drive}
    return result


@styled
def draw(output: Path) -> float:
    """Writes the figure; returns the largest relative error of a parameter or of the drives."""
    hamiltonian, drives, incoming = problem()
    free = evolve(hamiltonian, drives)
    figure = Figure(figsize=(9.5, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(2, 1))
    left.axvspan(LENGTH - 100, LENGTH, color="0.92", lw=0, label="steps in the loss")
    left.plot(free[:, SHOWN], color="black", **BROAD, label="free pass")
    for sign, color, line in ((1, RED, "-"), (-1, BLUE, "--")):
        positions = echo(hamiltonian, drives, incoming, sign * VISIBLE_NUDGE)
        left.plot(positions[:, SHOWN], line, color=color, label=f"echo, nudged by {'+' if sign > 0 else '-'}ε")
    left.set(xlabel="step (the echoes run from right to left)", ylabel="position q", xlim=(0, LENGTH))

    values = gradients(hamiltonian, drives)
    errors = {}
    for (name, reference), marker in zip(values["BPTT"].items(), "os^D.", strict=True):
        value, reference = np.asarray(values["RHEL"][name]).ravel(), np.asarray(reference).ravel()
        errors[name] = np.linalg.norm(value - reference) / np.linalg.norm(reference)
        scale = np.max(np.abs(reference))
        right.plot(reference / scale, value / scale, marker, ms=2 if name == "drives" else 5, label=name)
    right.axline((0, 0), slope=1, color="black", lw=0.5, zorder=1)
    right.set(xlabel="gradient by BPTT (scaled)", ylabel="gradient by RHEL (scaled)", aspect="equal")
    right.set_title(f"largest relative error {max(errors.values()):.0e}")
    right.legend(loc="upper left", handletextpad=0.2)
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower left", ncols=4)
    output.parent.mkdir(parents=True, exist_ok=True)
    save(figure, output)
    return max(errors.values())


def main(arguments=None):
    """Draws the figure, and prints and returns the largest error."""
    parser = argparse.ArgumentParser(description="Draw one echo and the gradient read from it.")
    parser.add_argument("--output", type=Path, default=Path("outputs/examples/echo.png"), help="the PNG to write")
    output = parser.parse_args(arguments).output
    with jax.enable_x64(True):
        error = draw(output)
    print(f"largest relative error of a gradient, RHEL against BPTT in float64: {error:.1e}\nfigure: {output}")
    return error


if __name__ == "__main__":
    main()
