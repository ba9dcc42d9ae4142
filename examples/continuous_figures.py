"""The figures of continuous_time.py. Every function takes arrays and returns a figure; it solves no equation."""

import numpy as np
from matplotlib.figure import Figure
from oscillators import NAMES, OSCILLATORS

from common.style import BLUE, BROAD, MARKERS, ORANGE, log_scale, series_colours, styled, subscripted

REFERENCE = {"color": "black", **BROAD}


@styled
def draw_adjoint(times, echo, adjoint):
    """The difference of the echoes over the adjoint state: twelve functions of time."""
    figure = Figure(figsize=(9, 7.5), layout="constrained")
    panels = figure.subplots(OSCILLATORS, 2, sharex=True)
    for column, group in zip(panels.T, ("position", "momentum"), strict=True):
        for i, axes in enumerate(column):
            axes.plot(times, adjoint[group][:, i], **REFERENCE, label="adjoint state λ(t)")
            axes.plot(times, echo[group][:, i], color=BLUE, lw=1, label="echoes, Δ(t)")
            axes.set_ylabel(f"λ of {subscripted(NAMES[group][i])}")
        column[-1].set_xlabel("time t of the free pass")
        figure.align_ylabels(column)
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=2)
    return figure


@styled
def draw_gradient(times, echo, adjoint, gradient):
    """The density of the gradient, and its integral while the echo runs, which ends at diffrax's own gradient.

    `echo`, `adjoint`: (density, accumulated), each {group: (time, elements)}. `gradient`: {group: elements}.
    """
    figure = Figure(figsize=(10, 5.4), layout="constrained")
    figure.suptitle("time runs from right to left; coloured: echoes, black dashes: adjoint method")
    panels = figure.subplots(2, 3, sharex=True)
    for column, (group, values) in zip(panels.T, gradient.items(), strict=True):
        values = np.asarray(values)
        for axes, echoed, reference in zip(column, echo, adjoint, strict=True):
            for element, colour in enumerate(series_colours(len(values))):
                axes.plot(times, echoed[group][:, element], color=colour)
            axes.plot(times, reference[group], color="black", lw=0.7, ls=(0, (4, 6)))
        column[1].plot(np.zeros_like(values), values, "k.", clip_on=False, label="RecursiveCheckpointAdjoint")
        first, last = (subscripted(NAMES[group][i]) for i in (0, -1))
        column[0].set_title(f"{group} ({first} .. {last})")
        column[1].set_xlabel("time t of the free pass")
    panels[0, 0].set_ylabel("Δ of θ, per unit of time")
    panels[1, 0].set_ylabel("accumulated from T to t")
    figure.legend(*panels[1, 0].get_legend_handles_labels(), loc="outside lower center")
    return figure


@styled
def draw_law(sizes, curves, label):
    """Errors over a size, both axes logarithmic, with a line of slope 2 below the first curve."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for (name, errors), marker in zip(curves.items(), MARKERS, strict=False):
        axes.plot(sizes, errors, marker=marker, label=name)
    sizes, errors = np.asarray(sizes), np.asarray(next(iter(curves.values())))
    middle = len(sizes) // 2
    axes.plot(sizes, 0.3 * errors[middle] * (sizes / sizes[middle]) ** 2, "k:", lw=1, label="slope 2")
    axes.set(xlabel=label, ylabel="relative error")
    log_scale(axes, "x", "y")
    figure.legend(loc="outside lower center", ncols=1 if max(map(len, curves)) > 30 else 3)
    return figure


@styled
def draw_training(losses, times, outputs):
    """The loss, and the output over time of the target, before the training and after it."""
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 2))
    left.plot(losses, color=BLUE)
    left.set(xlabel="step", ylabel="loss")
    log_scale(left, "y")
    lines = (REFERENCE, {"color": ORANGE, "ls": "--"}, {"color": BLUE})
    names = ("target y", "untrained", "trained by echoes")
    for name, line, output in zip(names, lines, outputs, strict=True):
        right.plot(times, output, label=name, **line)
    right.set(xlabel="time t", ylabel=subscripted("q_4"))
    figure.legend(*right.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure
