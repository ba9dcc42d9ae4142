"""The figures of one run. Needs no jax."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from common.files import replacing


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, atomically."""
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)


def draw_predictions(outputs: np.ndarray, labels: np.ndarray, path: Path, *, title: str) -> None:
    """Draw predicted and true labels of up to four samples spread over a set, into a PNG.

    Both are (samples, T), or (samples, T, K) with K outputs at each of T label steps.
    Both are in the units of the files of the data set.
    """
    shown = np.unique(np.linspace(0, len(labels) - 1, 4, dtype=int))
    figure = Figure(figsize=(9, 1 + 1.6 * len(shown)), layout="constrained")
    figure.suptitle(title, parse_math=False)
    for axes, sample in zip(figure.subplots(len(shown), squeeze=False)[:, 0], shown, strict=True):
        axes.plot(labels[sample], color="0.4", label="true")
        axes.plot(outputs[sample], label="predicted")
        axes.set_ylabel(f"test sample {sample}")
    axes.set_xlabel("label, in units of the files (of PPG-DaLiA: heart rate every 2 s, scaled to [-1, 1] by subject)")
    axes.legend(frameon=False, fontsize="small")
    save(figure, path)


def draw_curves(history: list, path: Path, *, title: str, metric: str, best_step: int | None) -> None:
    """Draw the loss and the metric of the training and validation set against the step into a PNG file.

    `history` is a list of `train.Evaluation`.
    """
    steps = [evaluation.step for evaluation in history]
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    figure.suptitle(title, parse_math=False)
    left, right = figure.subplots(1, 2)
    left.plot(steps, [evaluation.loss for evaluation in history], color="0.7", label="batches, with dropout")
    for axes, quantity, name in ((left, "loss", "loss"), (right, "metric", metric)):
        for split, label in (("train", "training set"), ("val", "validation set")):
            values = [getattr(evaluation, f"{split}_{quantity}") for evaluation in history]
            axes.plot(steps, values, marker=".", label=label)
        if best_step is not None:
            axes.axvline(best_step, color="0.4", linestyle=":", label=f"best, step {best_step}")
        axes.set_xlabel("step")
        axes.set_ylabel(name)
        axes.legend(frameon=False, fontsize="small")
    save(figure, path)
