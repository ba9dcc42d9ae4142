"""What is odd about a data set. The data are looked at, never changed.

A finding is a dict that fits into JSON: "kind", "text" for people, and the facts. Channels count from 0.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

FEW_SAMPLES = 5
SCALE_RATIO = 1e3
# A channel lies off zero if its mean is more than so many of its standard deviations.
OFFSET_RATIO = 3
# A copy that overlaps with its original on fewer time steps is taken for chance.
MIN_OVERLAP = 8

# Odd, so that it has an inverse modulo 2^64; otherwise without meaning.
_RADIX = 0x9E3779B97F4A7C15
_RADIX_INVERSE = pow(_RADIX, -1, 2**64)


class ShiftedCopy(NamedTuple):
    """data[:, lag:, original] equals data[:, :-lag, channel] on all ``equal_values`` values; lag >= 0."""

    channel: int
    original: int
    lag: int
    equal_values: int


def audit_series(data: np.ndarray) -> Iterator[dict]:
    """Findings about the channels of finite ``data`` (n, L, C): constant, copied, far off zero, of scales far apart."""
    low, high = data.min(axis=(0, 1)), data.max(axis=(0, 1))
    constant = constant_channels(data)
    if constant:
        yield {
            "kind": "constant_channels",
            "text": f"constant in every series: {_listed('channel', constant)}",
            "channels": constant,
        }
    copies = shifted_copies(data)
    if copies:
        by_lag: dict[int, list[ShiftedCopy]] = {}
        for copy in copies:
            by_lag.setdefault(copy.lag, []).append(copy)
        yield {
            "kind": "shifted_copies",
            "text": "; ".join(
                f"{_listed('channel', [copy.channel for copy in group])} repeat"
                f"{'s' if len(group) == 1 else ''} {_listed('channel', [copy.original for copy in group])} "
                f"from step {lag} on, equal on all {min(copy.equal_values for copy in group)} values"
                for lag, group in by_lag.items()
            ),
            "copies": [copy._asdict() for copy in copies],
        }
    offsets = offset_channels(data)
    if offsets:
        yield {
            "kind": "offsets",
            "text": offsets_text(offsets),
            "channels": [
                {"channel": channel, "mean": mean, "deviation": deviation}
                for channel, (mean, deviation) in offsets.items()
            ],
        }
    # The range is a scale that an offset does not hide, unlike the largest value.
    scales = {channel: float(high[channel]) - float(low[channel]) for channel in range(data.shape[2])}
    scales = {channel: scale for channel, scale in scales.items() if scale > 0}
    if scales:
        small, large = min(scales, key=scales.__getitem__), max(scales, key=scales.__getitem__)
        if scales[large] > SCALE_RATIO * scales[small]:
            yield {
                "kind": "scale_differences",
                "text": f"channel {large} spans {scales[large]:.3g}, channel {small} only {scales[small]:.3g}",
                "largest": {"channel": large, "range": scales[large]},
                "smallest": {"channel": small, "range": scales[small]},
            }


def audit_rows(
    class_counts: dict[str, int],
    *,
    duplicates: int,
    in_both_files: int,
    conflicts: list[list[str]],
    missing: int,
    lengths: np.ndarray,
    header_differs: Sequence[str] = (),
) -> Iterator[dict]:
    """Findings about the rows of a set, from what was counted while it was put together.

    ``class_counts`` are those of the kept rows; ``duplicates`` rows were left out, ``in_both_files`` of the kept ones
    occur in the train and in the test file; ``conflicts`` lists the classes of every series that has several;
    ``header_differs`` are sentences about headers that do not agree with their series.
    """
    if header_differs:
        yield {"kind": "header_counts", "text": "; ".join(header_differs), "differences": list(header_differs)}
    if missing:
        yield {"kind": "missing_values", "text": f"{missing} values are missing", "values": missing}
    if lengths.min() < lengths.max():
        text = f"series of {lengths.min()} to {lengths.max()} time steps"
        yield {"kind": "unequal_length", "text": text, "shortest": int(lengths.min()), "longest": int(lengths.max())}
    if duplicates:
        text = f"{duplicates} rows repeat another one; {in_both_files} series occur in the train and the test file"
        yield {"kind": "duplicate_rows", "text": text, "rows": duplicates, "in_both_files": in_both_files}
    if conflicts:
        text = f"{len(conflicts)} series occur with different labels, as {' and '.join(conflicts[0])} for one"
        yield {"kind": "conflicting_labels", "text": text, "labels": conflicts}
    few = {name: count for name, count in class_counts.items() if count < FEW_SAMPLES}
    if few:
        text = "few samples: " + ", ".join(f"{count} of class {name}" for name, count in few.items())
        yield {"kind": "small_classes", "text": text, "classes": few}


def constant_channels(data: np.ndarray) -> list[int]:
    """The channels that do not change within any series of ``data`` (n, L, C)."""
    return np.flatnonzero((data.min(axis=1) == data.max(axis=1)).all(axis=0)).tolist()


def offset_channels(data: np.ndarray) -> dict[int, tuple[float, float]]:
    """Mean and standard deviation of the channels of ``data`` (n, L, C) that lie off zero by ``OFFSET_RATIO``.

    Channels that are constant in every series are left out.
    """
    mean = data.mean(axis=(0, 1), dtype=np.float64)
    deviation = np.sqrt(
        [np.mean((data[:, :, channel] - mean[channel]) ** 2, dtype=np.float64) for channel in range(len(mean))]
    )
    off = set(np.flatnonzero(np.abs(mean) > OFFSET_RATIO * deviation).tolist()) - set(constant_channels(data))
    return {channel: (float(mean[channel]), float(deviation[channel])) for channel in sorted(off)}


def offsets_text(offsets: dict[int, tuple[float, float]]) -> str:
    """The channels of ``offset_channels`` in words: the farthest one with its numbers."""
    channel = max(offsets, key=lambda channel: abs(offsets[channel][0]) / max(offsets[channel][1], 1e-300))
    mean, deviation = offsets[channel]
    return f"{_listed('channel', list(offsets))} far off zero: channel {channel} lies at {mean:.4g} ± {deviation:.2g}"


def shifted_copies(data: np.ndarray) -> list[ShiftedCopy]:
    """Channels of ``data`` (n, L, C) that are another one shifted in time by any lag, in every series.

    For every channel the copy with the smallest lag is given, of equal channels the later one. Constant channels are
    left out, as are overlaps of fewer than ``MIN_OVERLAP`` time steps or in which nothing changes. Takes time in
    O(n C L) for the hashes and O(C^2 L) for the comparison of one series; further series are compared for the pairs
    that agree so far only.
    """
    length, channels = data.shape[1:]
    lags = length - MIN_OVERLAP + 1
    varying = sorted(set(range(channels)) - set(constant_channels(data)))
    if lags < 1:
        return []
    # Of the sequence x: hash(x[:m]) = sum over t < m of x[t] r^t, and hash(x[d:]) = r^-d (hash(x) - hash(x[:d])), all
    # modulo 2^64. So the tails of a channel are compared with the heads of another at all lags at once. What agrees is
    # compared value by value before it is believed.
    powers = np.cumprod(np.full(length, _RADIX, dtype=np.uint64), dtype=np.uint64)
    unshift = np.cumprod(np.r_[np.uint64(1), np.full(lags - 1, _RADIX_INVERSE, dtype=np.uint64)], dtype=np.uint64)
    pairs = {(channel, of): np.ones(lags, dtype=bool) for channel in varying for of in varying if channel != of}
    for series in data:
        bits = (series[:, varying].T + np.float32(0)).view(np.uint32)  # Adding 0 turns -0 into 0.
        hashes = np.zeros((len(varying), length + 1), dtype=np.uint64)
        np.cumsum(bits * powers, axis=1, out=hashes[:, 1:])
        heads = hashes[:, length : length - lags : -1]  # of length L, L - 1, ...
        tails = (hashes[:, -1:] - hashes[:, :lags]) * unshift
        place = {channel: row for row, channel in enumerate(varying)}
        for (channel, of), possible in list(pairs.items()):
            possible &= heads[place[channel]] == tails[place[of]]
            if not possible.any():
                del pairs[channel, of]
        if not pairs:
            return []
    best: dict[int, ShiftedCopy] = {}
    for (channel, of), possible in pairs.items():
        for lag in np.flatnonzero(possible).tolist():
            if lag == 0 and channel < of:
                break
            head, tail = data[:, : length - lag, channel], data[:, lag:, of]
            if np.array_equal(head, tail) and (head != head[:, :1]).any():
                if channel not in best or lag < best[channel].lag:
                    best[channel] = ShiftedCopy(channel, of, lag, head.size)
                break
    return [best[channel] for channel in sorted(best)]


def _listed(noun: str, numbers: list[int]) -> str:
    return f"{noun}{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))}"
