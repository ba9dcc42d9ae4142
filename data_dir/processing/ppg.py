"""PPG-DaLiA: how a subject's recording becomes windows with labels.

All cuts are in label units, so that the labels of a window belong to its samples by construction:

    one label unit = 2 s = 128 samples at 64 Hz
    label j        = heart rate of the 8 s that end with unit j, i.e. of the samples [128 (j - 3), 128 (j + 1))

The first three units end before 8 s have passed; they carry the first heart rate.
"""

from dataclasses import dataclass
from itertools import permutations

import numpy as np

from data_dir.splits import PARTS
from data_dir.storage import DataError

SAMPLES_PER_LABEL = 128
WINDOW_LABELS, STRIDE_LABELS = 390, 39
CHANNELS = ("ACC_x", "ACC_y", "ACC_z", "BVP", "EDA", "TEMP")
# Signal of the wrist -> (columns, how often a value is repeated to reach 64 Hz).
SIGNALS = {"ACC": (3, 2), "BVP": (1, 1), "EDA": (1, 16), "TEMP": (1, 16)}
REPEATED_LABELS = 3
# The devices stop a moment apart. Signals that end further apart than this (8 s) do not belong together.
MAX_LABELS_APART = 4
ORDERS = tuple(permutations(PARTS))


@dataclass(frozen=True)
class Recording:
    """A subject's recording, scaled to [-1, 1].

    ``samples`` (128 N, 6) float32 in the order of ``CHANNELS``, ``labels`` (N,) float32. ``ranges`` maps the channels
    and "heart_rate" to the (lowest, highest) raw value: raw = low + (scaled + 1) (high - low) / 2.
    """

    samples: np.ndarray
    labels: np.ndarray
    ranges: dict[str, tuple[float, float]]


def recording(signals: dict[str, np.ndarray], heart_rate: np.ndarray) -> Recording:
    """Brings the signals to 64 Hz and scales each channel and the heart rate to [-1, 1].

    ``signals`` maps the names in ``SIGNALS`` to (samples, columns) at their own rates; ``heart_rate`` (N - 3,) has one
    value every 2 s. Raises DataError for other ranks, values that are not finite, a channel that is constant, and
    signals that end more than ``MAX_LABELS_APART`` labels apart from each other or from the heart rate.
    """
    heart_rate = np.asarray(heart_rate, dtype=np.float64)
    heart_rate = heart_rate.reshape(-1) if heart_rate.ndim == 2 and 1 in heart_rate.shape else heart_rate
    if heart_rate.ndim != 1 or not len(heart_rate):
        raise DataError(f"heart rate of shape {heart_rate.shape}; needed is one value every 2 s.")
    labels = np.concatenate([np.repeat(heart_rate[:1], REPEATED_LABELS), heart_rate])
    units = {"heart rate": len(labels)}
    for name, (columns, repeats) in SIGNALS.items():
        signal = signals[name]
        if signal.ndim != 2 or signal.shape[1] != columns:
            raise DataError(f"signal {name} of shape {signal.shape}; needed is (samples, {columns}).")
        units[name] = len(signal) * repeats // SAMPLES_PER_LABEL
    n = min(units.values())
    if max(units.values()) - n > MAX_LABELS_APART or n == 0:
        counts = ", ".join(f"{name} {count}" for name, count in units.items())
        raise DataError(f"signals and labels do not end together; label units of 2 s: {counts}.")
    samples = np.empty((n * SAMPLES_PER_LABEL, len(CHANNELS)), dtype=np.float32)
    ranges, channel = {}, 0
    for name, (columns, repeats) in SIGNALS.items():
        for column in range(columns):
            values = np.asarray(signals[name][: len(samples) // repeats, column], dtype=np.float64)
            scaled, ranges[CHANNELS[channel]] = _scaled(values, f"signal {CHANNELS[channel]}")
            samples[:, channel] = np.repeat(scaled, repeats)
            channel += 1
    scaled, ranges["heart_rate"] = _scaled(labels[:n], "heart rate")
    return Recording(samples, scaled.astype(np.float32), ranges)


def _scaled(values: np.ndarray, what: str) -> tuple[np.ndarray, tuple[float, float]]:
    bad = int(np.count_nonzero(~np.isfinite(values)))
    if bad:
        raise DataError(f"{what}: {bad} values are not finite.")
    low, high = float(values.min()), float(values.max())
    if low == high:
        raise DataError(f"{what}: constant, so that it cannot be scaled to [-1, 1].")
    return 2 * (values - low) / (high - low) - 1, (low, high)


def order_of(subject: int, seed: int) -> tuple[str, ...]:
    """The order of the three pieces in a subject's recording, which depends on seed and subject alone."""
    return ORDERS[int(np.random.default_rng([seed, subject]).integers(len(ORDERS)))]


def pieces(n: int, order: tuple[str, ...]) -> dict[str, tuple[int, int]]:
    """Cuts ``n`` labels into contiguous pieces of 70 % (train), 15 % (validation) and the rest (test), in ``order``.

    Returns (first label, last label + 1) of each part.
    """
    until_validation = int(n * 0.85)
    sizes = {"train": int(n * 0.7), "validation": until_validation - int(n * 0.7), "test": n - until_validation}
    start, cut = 0, {}
    for part in order:
        cut[part] = (start, start + sizes[part])
        start += sizes[part]
    return cut


def window_starts(piece: tuple[int, int], window: int = WINDOW_LABELS, stride: int = STRIDE_LABELS) -> range:
    """The first labels of the windows of ``window`` labels, ``stride`` apart, that lie within a piece."""
    return range(piece[0], piece[1] - window + 1, stride)


def cut_window(whole: Recording, start: int, window: int = WINDOW_LABELS) -> tuple[np.ndarray, np.ndarray]:
    """The samples (128 ``window``, 6) and labels (``window``,) of the window that begins with label ``start``."""
    labels = whole.labels[start : start + window]
    samples = whole.samples[SAMPLES_PER_LABEL * start : SAMPLES_PER_LABEL * (start + window)]
    if len(labels) != window or len(samples) != SAMPLES_PER_LABEL * len(labels):
        raise AssertionError(f"the window from label {start} has {len(samples)} samples and {len(labels)} labels")
    return samples, labels
