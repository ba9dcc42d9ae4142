"""The figures of continuous_time.py. Every function takes arrays and returns a figure; it solves no equation."""

import numpy as np
from matplotlib.animation import FuncAnimation
from matplotlib.figure import Figure
from oscillators import DURATION, INPUT, NAMES, OSCILLATORS, OUTPUT, PAIRS

PLUS, MINUS = "tab:red", "tab:blue"
BROAD_LINE = {"color": "black", "lw": 4, "alpha": 0.25}


def ring(displacement=0):
    """Places on a circle, oscillator 1 on the left. A displacement moves an oscillator outwards. (2, osc)."""
    angle = np.pi - 2 * np.pi * np.arange(OSCILLATORS) / OSCILLATORS
    return (1 + displacement) * np.stack([np.cos(angle), np.sin(angle)])


def draw_springs(axes, oscillators):
    """The oscillators on a ring, springs as lines as wide as they are stiff. Returns the lines and the circles."""
    x, y = ring()
    axes.set(xlim=(-2.1, 2.1), ylim=(-1.8, 1.8), aspect="equal")
    axes.axis("off")
    lines = [
        axes.plot(x[[i, j]], y[[i, j]], color="0.6", lw=6 * k, zorder=1)[0]
        for i, j, k in zip(*PAIRS, oscillators.coupling, strict=True)
    ]
    walls = 1.5 * ring()
    for i, k in enumerate(oscillators.spring):
        lines += axes.plot([x[i], walls[0, i]], [y[i], walls[1, i]], color="tab:brown", lw=2 * k, zorder=1)
        axes.plot(*walls[:, i], marker="s", color="black", ms=5)
    colors = ["white"] * OSCILLATORS
    colors[INPUT], colors[OUTPUT] = "tab:green", "tab:orange"
    sizes = 500 * np.asarray(oscillators.mass)
    return lines, axes.scatter(x, y, s=sizes, c=colors, edgecolors="black", zorder=2)


def draw_system(oscillators):
    """Masses, springs, input and output."""
    figure = Figure(figsize=(6, 5), layout="constrained")
    axes = figure.subplots()
    draw_springs(axes, oscillators)
    for i, (x, y) in enumerate(ring().T):
        axes.text(x, y, f"$m_{i + 1}$", ha="center", va="center", zorder=3)
    axes.annotate("input u(t)", (-1.1, 0.08), (-2.05, 0.55), color="tab:green", arrowprops={"arrowstyle": "->"})
    axes.annotate("output, target y(t)", (1.12, 0.1), (1.3, 0.55), color="tab:orange", arrowprops={"arrowstyle": "->"})
    axes.set_title("areas: masses; widths: springs to the wall (brown), couplings (grey)", fontsize="small")
    return figure


def draw_trajectories(times, positions, echoes):
    """Every position of the free pass (time, osc), with the echoes (time, 2, osc) over it."""
    figure = Figure(figsize=(10, 6), layout="constrained")
    figure.suptitle("the echoes run from right to left, nudged by the error of oscillator 4")
    for i, axes in enumerate(figure.subplots(3, 2, sharex=True).ravel()):
        axes.plot(times, positions[:, i], **BROAD_LINE, label="free pass")
        for sign, color in enumerate((PLUS, MINUS)):
            axes.plot(times, echoes[:, sign, i], color=color, lw=1, label=f"echo, {'+-'[sign]}ε")
        axes.set_ylabel(f"$q_{i + 1}$")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    for axes in figure.axes[-2:]:
        axes.set_xlabel("time t of the free pass")
    return figure


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


def animate(times, oscillators, positions, echoes, gathered):
    """The free pass, then the + echo on its way back with the gradient (time, osc) that it has accumulated."""
    frames, scale = len(times), 0.3 / np.max(np.abs(positions))
    figure = Figure(figsize=(9, 4), layout="constrained")
    panels = figure.subplot_mosaic([["ring", "trace"], ["ring", "gradient"]], height_ratios=(3, 1))
    left, right, bars = panels.values()
    lines, circles = draw_springs(left, oscillators)
    (out,) = right.plot([], [], **BROAD_LINE, label="free pass, $q_4$")
    back = [right.plot([], [], color=c, lw=1, label=f"echo, {s}ε")[0] for c, s in ((PLUS, "+"), (MINUS, "-"))]
    size = 1.1 * np.max(np.abs(echoes[:, :, OUTPUT]))
    right.set(xlim=(0, DURATION), ylim=(-size, size), xlabel="time t of the free pass", ylabel="$q_4$")
    right.legend(fontsize="small", loc="upper left")
    gradient = bars.bar(NAMES["spring"], np.zeros(OSCILLATORS), color="tab:purple")
    bars.set(ylim=(1.1 * min(gathered.min(), 0), 1.1 * max(gathered.max(), 0)), ylabel="dL/d$k_i$ so far")

    def show(frame):
        returning = frame >= frames
        now = 2 * frames - 1 - frame if returning else frame
        displaced = ring(scale * (echoes[now, 0] if returning else positions[now]))
        circles.set_offsets(displaced.T)
        ends = [displaced[:, [i, j]] for i, j in zip(*PAIRS, strict=True)]
        ends += [np.stack([displaced[:, i], 1.5 * ring()[:, i]], axis=1) for i in range(OSCILLATORS)]
        for line, (x, y) in zip(lines, ends, strict=True):
            line.set_data(x, y)
        until = frames if returning else now + 1
        out.set_data(times[:until], positions[:until, OUTPUT])
        for sign, line in enumerate(back):
            line.set_data(*((times[now:], echoes[now:, sign, OUTPUT]) if returning else ([], [])))
        for bar, height in zip(gradient, gathered[now] if returning else np.zeros(OSCILLATORS), strict=True):
            bar.set_height(height)
        left.set_title(f"{'echo' if returning else 'free pass'}, t = {times[now]:.1f}")

    return FuncAnimation(figure, show, frames=2 * frames, interval=50)
