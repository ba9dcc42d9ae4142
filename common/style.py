"""How the figures look: fonts, sizes, colours, lines and ticks. Importing this module changes no setting of matplotlib.

A function that draws carries `@styled`. While it runs, `SETTINGS` hold, whatever the user's matplotlibrc says. `save`
writes a figure under the same settings. No display is needed.
"""

import math
import textwrap
from collections.abc import Iterable
from pathlib import Path

import matplotlib.style
import numpy as np
from cycler import cycler
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from common.files import replacing

# The palette of Okabe and Ito, which readers with a colour vision deficiency tell apart.
BLUE, ORANGE, GREEN, RED = "#0072B2", "#E69F00", "#009E73", "#D55E00"
PURPLE, SKY, GREY = "#CC79A7", "#56B4E9", "#666666"
COLOURS = (BLUE, ORANGE, GREEN, RED, PURPLE, SKY, GREY)
MARKERS = "os^DvP<>"

# RHEL and BPTT differ in grey, too. The lines and markers tell all three apart without colour.
ALGORITHMS = {
    "RHEL": {"color": BLUE, "linestyle": "-", "marker": "o"},
    "BPTT": {"color": ORANGE, "linestyle": "--", "marker": "s"},
    "ReversibleBPTT": {"color": GREEN, "linestyle": ":", "marker": "^"},
}
# A reference that another line covers.
BROAD = {"linestyle": "-", "linewidth": 4, "alpha": 0.35, "solid_capstyle": "round"}

SETTINGS = {
    "axes.formatter.limits": (-4, 5),
    "axes.formatter.useoffset": False,
    "axes.labelsize": 9,
    "axes.prop_cycle": cycler(color=COLOURS),
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 9,
    "figure.titlesize": 10,
    "font.size": 9,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "lines.linewidth": 1.4,
    "lines.markersize": 4,
    "pdf.fonttype": 42,
    "savefig.dpi": 110,
    # Names of data sets, classes and folders are no formulas. A name with a "$" would end the run.
    "text.parse_math": False,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
}
styled = matplotlib.style.context(SETTINGS, after_reset=True)

_SUPERSCRIPTS = str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻")
_SUBSCRIPTS = str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉", "_")


@styled
def save(figure: Figure, path: Path) -> None:
    """Write a figure, atomically. The ending of the path says the format. Raises `OSError`."""
    with replacing(path) as temporary:
        figure.savefig(temporary, format=path.suffix[1:])


def set_title(figure: Figure, title: str) -> None:
    """The title of a whole figure, in lines that are not wider than the figure."""
    figure.suptitle(textwrap.fill(drawable(title, 200), int(11 * figure.get_figwidth())))


def drawable(name: object, most: int = 60) -> str:
    """The name as a text in one line. A longer one keeps its beginning and its end, `most` characters together.

    Bytes of a file name that are no text are written as escapes, because matplotlib refuses them.
    """
    text = " ".join(str(name).encode(errors="backslashreplace").decode().split())
    head, tail = most - most // 2 - 1, most // 2
    return text if len(text) <= most else f"{text[:head]}…{text[-tail:]}"


def subscripted(name: str) -> str:
    """q_12 as q₁₂."""
    return name.translate(_SUBSCRIPTS)


def series_colours(count: int) -> list:
    """A colour for each of `count` equal things."""
    if count <= len(COLOURS):
        return list(COLOURS[:count])
    return [tuple(colour) for colour in colormaps["cividis"](np.linspace(0, 0.9, count))]


def whole_ticks(axes: Axes) -> None:
    """Ticks of the x axis at whole numbers, also around a single one."""
    axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True, min_n_ticks=1))


def log_scale(axes: Axes, *names: str) -> None:
    """Make the axes "x" or "y" logarithmic. Call it after drawing: the range decides the ticks."""
    for name in names:
        axes.set(**{f"{name}scale": "log"})
        axis = axes.xaxis if name == "x" else axes.yaxis
        low, high = sorted(axes.get_xlim() if name == "x" else axes.get_ylim())
        if high / low < 5:
            axis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
            axis.set_minor_locator(NullLocator())
        else:
            axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < 50 else (1,)))
        axis.set_major_formatter(FuncFormatter(log_label))
        axis.set_minor_formatter(NullFormatter())


def log_if_wide(axes: Axes, values: Iterable[float]) -> None:
    """Make the y axis logarithmic if all values are positive and the largest is over 30 times the smallest."""
    finite = [value for value in values if math.isfinite(value)]
    if finite and 0 < 30 * min(finite) < max(finite):
        log_scale(axes, "y")


def log_scale_with_zero(axes: Axes, values: Iterable[float]) -> None:
    """Make the y axis logarithmic. Zeros among the drawn `values` >= 0 get a grey band at the bottom, labelled 0.

    Call it after drawing.
    """
    values = np.asarray([value for value in values if math.isfinite(value)])
    positive = values[values > 0]
    if len(positive) == len(values) > 0:
        return log_scale(axes, "y")
    low, high = (10.0, 10.0) if len(positive) == 0 else (positive.min(), positive.max())
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    edge = 10.0**first
    axes.set_yscale("symlog", linthresh=edge, linscale=0.5)
    axes.set_ylim(-0.6 * edge, 10.0**last * 2)
    axes.axhspan(-0.6 * edge, 0.6 * edge, color="0.92", lw=0, zorder=0)
    decades = range(first, last + 1, max(1, math.ceil((last - first) / 7)))
    axes.set_yticks([0.0, *(10.0**decade for decade in decades)])
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(log_label))
    return None


def log_label(value: float, _: object = None) -> str:
    """The label of a tick: 0.02, 500, 20,000, 10⁻⁶ or 2·10⁻⁶."""
    if value == 0:
        return "0"
    exponent = math.floor(math.log10(abs(value)) + 1e-9)
    if -3 <= exponent <= 4:
        return f"{value:,.6g}"
    mantissa, power = f"{value / 10.0**exponent:.3g}", f"10{str(exponent).translate(_SUPERSCRIPTS)}"
    return power if mantissa == "1" else f"{mantissa}·{power}"
