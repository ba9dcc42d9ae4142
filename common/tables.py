"""Tables as text: rows of cells, the header first, for a terminal, for Markdown and for LaTeX."""

import statistics
from collections.abc import Sequence

Rows = Sequence[Sequence[str]]

_LATEX = {
    "\\": r"\textbackslash{}",
    "±": r"$\pm$",
    "²": "$^2$",
    "⁻": "$^{-}$",
    **{character: "\\" + character for character in "&%$#_{}"},
}


def aligned(rows: Rows) -> str:
    """Columns that stand below each other."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def markdown(rows: Rows) -> str:
    """A Markdown table."""
    head, *body = ([" ".join(cell.split()).replace("|", "\\|") for cell in row] for row in rows)
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *body))


def latex(rows: Rows) -> str:
    """A LaTeX tabular, with rules of its own that need no package."""
    head, *body = (
        " & ".join("".join(_LATEX.get(letter, letter) for letter in " ".join(cell.split())) for cell in row)
        for row in rows
    )
    lines = [head + r" \\", r"\hline", *(row + r" \\" for row in body)]
    return "\n".join([f"\\begin{{tabular}}{{{'l' * len(rows[0])}}}", *lines, r"\end{tabular}"])


def metric_text(value: float, metric: str) -> str:
    """An accuracy, or a loss beside it, with four decimals; a squared error, of any unit, with four digits."""
    return f"{value:.4f}" if metric == "accuracy" and abs(value) < 1000 else f"{value:.4g}"


def mean_and_std(values: Sequence[float], digits: str) -> str:
    """Mean ± sample standard deviation (n - 1); of a single value, the value. `digits` is a format, as ".1f"."""
    if not values:
        return "-"
    mean = f"{statistics.fmean(values):{digits}}"
    return f"{mean} ± {statistics.stdev(values):{digits}}" if len(values) > 1 else mean


def is_number(value: object) -> bool:
    """Whether this is a number that a table can hold: not nan, not infinite, not a truth value."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


def span(numbers: Sequence[int]) -> str:
    """The smallest and the largest number, as in "120 to 240"."""
    least, most = min(numbers, default="-"), max(numbers, default="-")
    return str(least) if least == most else f"{least} to {most}"
