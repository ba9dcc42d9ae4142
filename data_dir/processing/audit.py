"""The audit of a data set. It reports defects and never changes the data.

A finding is a dict that fits into JSON: "kind", "text" for people, and the numbers. Channels count from 0.
"""

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from data_dir.processing.merging import MergedSet
from data_dir.scaling import constant_channels, offset_channels, offsets_text

FEW_SAMPLES = 5
SCALE_RATIO = 1e3
# A copy that overlaps with its original on fewer time steps may be chance.
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


def audit_series(data: Float[np.ndarray, "n L C"], mask: Bool[np.ndarray, "n L"] | None = None) -> Iterator[dict]:
    """Findings about the channels: constant, copied, far off zero, of scales far apart.

    ``mask`` says which time steps belong to a series. Padding at the end of series is not looked at.
    """
    constant = constant_channels(data, mask)
    if constant:
        text = f"constant in every series: {_listed('channel', constant)}"
        yield {"kind": "constant_channels", "text": text, "channels": constant}
    copies = shifted_copies(data if mask is None else data[:, : mask.sum(axis=1).min()])
    if copies:
        text = "; ".join(
            _copies_text(lag, list(group))
            for lag, group in groupby(sorted(copies, key=lambda copy: copy.lag), lambda copy: copy.lag)
        )
        yield {"kind": "shifted_copies", "text": text, "copies": [copy._asdict() for copy in copies]}
    offsets = offset_channels(data, mask)
    if offsets:
        channels = [{"channel": c, "mean": mean, "deviation": deviation} for c, (mean, deviation) in offsets.items()]
        yield {"kind": "offsets", "text": offsets_text(offsets), "channels": channels}
    # The range is a scale that an offset does not hide, unlike the largest value.
    where = True if mask is None else mask[:, :, None]
    high = data.max(axis=(0, 1), where=where, initial=-np.inf).astype(float)
    ranges = high - data.min(axis=(0, 1), where=where, initial=np.inf)
    varying = np.flatnonzero(ranges > 0)
    if len(varying):
        large, small = int(varying[ranges[varying].argmax()]), int(varying[ranges[varying].argmin()])
        if ranges[large] > SCALE_RATIO * ranges[small]:
            yield {
                "kind": "scale_differences",
                "text": f"channel {large} spans {ranges[large]:.3g}, channel {small} only {ranges[small]:.3g}",
                "largest": {"channel": large, "range": float(ranges[large])},
                "smallest": {"channel": small, "range": float(ranges[small])},
            }


def audit_rows(merged: MergedSet, class_counts: Sequence[int], header_differs: Sequence[str] = ()) -> Iterator[dict]:
    """Findings about the rows of a set with so many rows of each class.

    ``header_differs`` are sentences about headers that do not agree with their series.
    """
    if header_differs:
        yield {"kind": "header_counts", "text": "; ".join(header_differs), "differences": list(header_differs)}
    if merged.missing:
        yield {"kind": "missing_values", "text": f"{merged.missing} interpolated", "values": merged.missing}
    shortest, longest = int(merged.lengths.min()), int(merged.lengths.max())
    if shortest < longest:
        text = f"series of {shortest} to {longest} time steps"
        yield {"kind": "unequal_length", "text": text, "shortest": shortest, "longest": longest}
    if merged.duplicates:
        numbers = {"rows": merged.duplicates, "in_both_files": merged.in_both_files}
        text = "{rows} rows repeat another one; {in_both_files} series occur in the train and the test file"
        yield {"kind": "duplicate_rows", "text": text.format(**numbers), **numbers}
    conflicts = merged.conflicts
    if conflicts:
        text = f"{len(conflicts)} series occur with different labels, as {' and '.join(conflicts[0])} for one"
        yield {"kind": "conflicting_labels", "text": text, "labels": conflicts}
    counts = zip(merged.class_names, class_counts, strict=True)
    few = {name: count for name, count in counts if count < FEW_SAMPLES}
    if few:
        text = "few samples: " + ", ".join(f"{count} of class {name}" for name, count in few.items())
        yield {"kind": "small_classes", "text": text, "classes": few}


def shifted_copies(data: Float[np.ndarray, "n L C"]) -> list[ShiftedCopy]:
    """Channels that are another channel shifted in time by any lag, in every series.

    For every channel the copy with the smallest lag is given; of equal channels the later one is the copy. Constant
    channels are left out, as are overlaps of fewer than ``MIN_OVERLAP`` time steps and constant overlaps. The hashes
    take O(n C L), the comparison of one series O(C^2 L); later series are compared for the remaining pairs only.
    """
    length, channels = data.shape[1:]
    lags = length - MIN_OVERLAP + 1
    varying = sorted(set(range(channels)) - set(constant_channels(data)))
    if lags < 1:
        return []
    # Of the sequence x: hash(x[:m]) = sum over t < m of x[t] r^t, and hash(x[d:]) = r^-d (hash(x) - hash(x[:d])), all
    # modulo 2^64. So the tails of a channel are compared with the heads of another at all lags at once. What agrees is
    # compared value by value before it counts.
    powers = np.cumprod(np.full(length, _RADIX, dtype=np.uint64), dtype=np.uint64)
    unshift = np.cumprod(np.r_[np.uint64(1), np.full(lags - 1, _RADIX_INVERSE, dtype=np.uint64)], dtype=np.uint64)
    pairs = {(channel, of): np.ones(lags, dtype=bool) for channel in varying for of in varying if channel != of}
    for series in data:
        if not pairs:
            break
        bits = (series[:, varying].T + np.float32(0)).view(np.uint32)  # Adding 0 turns -0 into 0.
        hashes = np.zeros((len(varying), length + 1), dtype=np.uint64)
        np.cumsum(bits * powers, axis=1, out=hashes[:, 1:])
        heads = dict(zip(varying, hashes[:, length : length - lags : -1], strict=True))  # of length L, L - 1, ...
        tails = dict(zip(varying, (hashes[:, -1:] - hashes[:, :lags]) * unshift, strict=True))
        for (channel, of), possible in list(pairs.items()):
            possible &= heads[channel] == tails[of]
            if not possible.any():
                del pairs[channel, of]
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


def _copies_text(lag: int, copies: list[ShiftedCopy]) -> str:
    channels, originals = (_listed("channel", [copy[place] for copy in copies]) for place in (0, 1))
    return (
        f"{channels} repeat{'s' if len(copies) == 1 else ''} {originals} from step {lag} on, equal on all "
        f"{min(copy.equal_values for copy in copies)} values"
    )


def _listed(noun: str, numbers: list[int]) -> str:
    return f"{noun}{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))}"
