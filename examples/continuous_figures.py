"""The figures of continuous_time.py. Every function takes arrays and returns a figure; it solves no equation."""

import numpy as np
from matplotlib.figure import Figure
from oscillators import NAMES, OSCILLATORS

BROAD_LINE = {"color": "black", "lw": 4, "alpha": 0.25}


def draw_adjoint(times, echo, adjoint):
    """The difference of the echoes over the adjoint state: twelve functions of time."""
    figure = Figure(figsize=(10, 10), layout="constrained")
    panels = figure.subplots(OSCILLATORS, 2, sharex=True)
    for column, group in zip(panels.T, ("position", "momentum"), strict=True):
        for i, axes in enumerate(column):
            axes.plot(times, adjoint[group][:, i], **BROAD_LINE, label="adjoint state λ(t)")
            axes.plot(times, echo[group][:, i], color="tab:purple", lw=1, label="echoes, Δ(t)")
            axes.set_ylabel(rf"$\lambda$ of ${NAMES[group][i]}$")
        column[-1].set_xlabel("time t of the free pass")
    panels[0, 0].legend(fontsize="small", ncols=2)
    return figure


def draw_gradient(times, echo, adjoint, gradient):
    """The density of the gradient, and its integral while the echo runs, which ends at diffrax's own gradient.

    `echo`, `adjoint`: (density, accumulated), each {group: (time, elements)}. `gradient`: {group: elements}.
    """
    figure = Figure(figsize=(11, 6), layout="constrained")
    figure.suptitle("time runs from right to left; coloured: echoes, black dashes: adjoint method")
    panels = figure.subplots(2, 3, sharex=True)
    for column, (group, values) in zip(panels.T, gradient.items(), strict=True):
        for axes, echoed, reference in zip(column, echo, adjoint, strict=True):
            axes.plot(times, echoed[group], lw=1.5)
            axes.plot(times, reference[group], color="black", lw=0.7, ls=(0, (4, 6)))
        values = np.asarray(values)
        column[1].plot(np.zeros_like(values), values, "k.", clip_on=False, label="RecursiveCheckpointAdjoint")
        column[0].set_title(f"{group} ({NAMES[group][0]} .. {NAMES[group][-1]})", fontsize="medium")
        column[1].set_xlabel("time t of the free pass")
    panels[0, 0].set_ylabel("Δ of θ, per unit of time")
    panels[1, 0].set_ylabel("accumulated from T to t")
    panels[1, 0].legend(fontsize="small")
    return figure


def draw_law(sizes, curves, label):
    """Errors over a size, both axes logarithmic, with a line of slope 2 below the first curve."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for name, errors in curves.items():
        axes.loglog(sizes, errors, marker=".", label=name)
    sizes, errors = np.asarray(sizes), np.asarray(next(iter(curves.values())))
    middle = len(sizes) // 2
    axes.loglog(sizes, 0.3 * errors[middle] * (sizes / sizes[middle]) ** 2, "k:", lw=1, label="slope 2")
    axes.set(xlabel=label, ylabel="relative error")
    axes.legend(fontsize="small")
    return figure


def draw_training(losses, times, outputs):
    """The loss, and the output over time of the target, before the training and after it."""
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 2))
    left.semilogy(losses)
    left.set(xlabel="step", ylabel="loss")
    styles = (BROAD_LINE, {"color": "tab:orange", "lw": 1}, {"color": "tab:purple"})
    names = ("target y", "untrained", "trained by echoes")
    for name, style, output in zip(names, styles, outputs, strict=True):
        right.plot(times, output, label=name, **style)
    right.set(xlabel="time t", ylabel="$q_4$")
    right.legend(fontsize="small", ncols=3)
    return figure
