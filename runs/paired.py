"""RHEL - BPTT on equal seeds and equal test samples: the mean, its interval, and a test of equivalence. Needs no jax.

Two runs of one seed and setting have the same first parameters, batches and dropout, so their difference varies less
than each of them. The samples of the test part are a draw, too: `over_seeds_and_samples` counts both.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import binom, norm, t

CONFIDENCE = 0.95
RARE = 2  # squares of differences that are added to those of the samples


class Answers(NamedTuple):
    """The answers of a run on its test part: the share that is right of each sample (samples,); a hash of the part."""

    right: np.ndarray
    part: str
    per_sample: int


class Estimate(NamedTuple):
    """A mean, and the parts of the variance of its error: (variance, degrees of freedom); none without an estimate."""

    mean: float
    parts: tuple[tuple[float, float], ...] = ()

    def scaled(self, scale: float) -> "Estimate":
        """The estimate in another unit."""
        return Estimate(scale * self.mean, tuple((scale**2 * variance, degrees) for variance, degrees in self.parts))

    def half_width(self, confidence: float) -> float:
        """Half of an interval by Student's t. Of several parts, each counts with its own t (Howe 1974)."""
        widths = [t.ppf((1 + confidence) / 2, degrees) * math.sqrt(variance) for variance, degrees in self.parts]
        return float(math.hypot(*widths)) if widths else math.nan

    def interval(self) -> tuple[float, float]:
        """The limits of the 95 % interval."""
        half = self.half_width(CONFIDENCE)
        return self.mean - half, self.mean + half

    def is_within(self, margin: float) -> bool | None:
        """Two one-sided tests of 5 % (Schuirmann 1987): is the 90 % interval in ± margin? None without an interval."""
        half = self.half_width(2 * CONFIDENCE - 1)
        return None if math.isnan(half) else abs(self.mean) + half < margin


class Pair(NamedTuple):
    """The test metrics of one seed by RHEL and by BPTT, and the answers, as far as they are recorded."""

    rhel: float
    bptt: float
    rhel_answers: Answers | None
    bptt_answers: Answers | None


class Difference(NamedTuple):
    """RHEL - BPTT. `samples` is 0 if the interval counts the seeds alone; limits that do not exist are nan.

    `within` says whether it lies within the margin by two one-sided tests, None where they cannot be made.
    """

    mean: float
    low: float
    high: float
    pairs: int
    samples: int
    within: bool | None


def answers_of(result: Mapping) -> Answers | None:
    """The answers that a result.json records, or None if it does not record them and their test part.

    **Raises:** `ValueError`, `TypeError` or `KeyError` if they are damaged, or are not those of its test metric.
    """
    digits, part = result.get("test_right"), result.get("test_part")
    if digits is None or part is None or part["sha256"] is None:
        return None
    if result.get("machine") is not None:  # its answers are of another pass than its test metric
        return None
    if not isinstance(part["sha256"], str):
        raise TypeError(f"test_part: sha256 {part['sha256']!r} is no text")
    samples, steps = part["samples"], part["answers_per_sample"]
    bits = np.unpackbits(np.frombuffer(bytes.fromhex(digits), np.uint8))
    if not (samples > 0 and steps > 0 and 0 <= len(bits) - samples * steps < 8):
        raise ValueError(f"test_right has {len(bits)} bits, not {samples} x {steps} answers")
    right = bits[: samples * steps].reshape(samples, steps).mean(axis=1)
    if abs(right.mean() - result["test_metric"]) > 1e-5:
        raise ValueError(f"test_right has {right.mean()} right answers, test_metric is {result['test_metric']}")
    return Answers(right, f"{samples} x {steps} {part['sha256']}", steps)


def difference(pairs: Sequence[Pair], scale: float, margin: float) -> Difference:
    """RHEL - BPTT of some seeds.

    Where all runs record their answers on the same test part, the interval is over the seeds and the samples; of a
    single seed over the samples alone. Otherwise it is over the seeds, and the tests are left out: they would not
    count that the test part is a draw. `scale` is the unit of the metrics (100 for %), `margin` has the same.
    """
    values = np.array([pair.rhel - pair.bptt for pair in pairs])
    every = [each for pair in pairs for each in (pair.rhel_answers, pair.bptt_answers)]
    known = [each for each in every if each is not None]
    samples, within = 0, None
    if known and len(known) == len(every) and len({each.part for each in known}) == 1 and len(known[0].right) > 1:
        samples = len(known[0].right)
        shares = np.stack([rhel.right - bptt.right for rhel, bptt in zip(known[::2], known[1::2], strict=True)])
        estimate = (over_seeds_and_samples(shares) if len(pairs) > 1 else over_samples(shares[0])).scaled(scale)
        within = estimate.is_within(margin) if len(pairs) > 1 else None
    else:
        rounding = 1e-9 * max((abs(value) for pair in pairs for value in (pair.rhel, pair.bptt)), default=0.0)
        estimate = over_draws(values, rounding)
    return Difference(estimate.mean, *estimate.interval(), len(pairs), samples, within)


def over_draws(values: np.ndarray, rounding: float = 0.0) -> Estimate:
    """The mean of independent draws. A single one, and draws equal up to `rounding`, have no interval."""
    if len(values) == 0:
        return Estimate(math.nan)
    mean, variance = float(values.mean()), float(values.var(ddof=1)) if len(values) > 1 else 0.0
    return Estimate(mean, ((variance / len(values), len(values) - 1),) if variance > rounding**2 else ())


def over_samples(shares: np.ndarray) -> Estimate:
    """The mean of the differences of samples, each in [-1, 1].

    The variance counts one more sample with the difference 1, and one with -1, similar to Agresti and Min (2005). Else
    the interval would be too narrow if by chance few samples have different answers, or none: of 84 samples, 34 of 100
    intervals held a difference of 0.5 %.
    """
    samples = len(shares)
    if samples < 2:
        return over_draws(shares)
    return Estimate(float(shares.mean()), ((shares.var(ddof=1) / samples + RARE / samples**2, samples - 1),))


def over_seeds_and_samples(shares: np.ndarray) -> Estimate:
    """The mean of differences (seeds, samples), for new seeds and new samples.

    Both are random, and each seed has each sample: a two-way analysis of variance, as for the readers and cases of
    diagnostic tests (Obuchowski and Rockette 1995). The mean square of the seeds counts at least as much as the
    residual one: seeds that agree by chance do not make an interval narrow. With the degrees of freedom of Hillis
    (2007), only 92 of 100 intervals of three seeds held the mean, where seeds and samples count alike.
    """
    seeds, samples = shares.shape
    mean, of_seeds, of_samples = shares.mean(), shares.mean(axis=1), shares.mean(axis=0)
    residual = shares - of_seeds[:, None] - of_samples + mean
    residual_square = (residual**2).sum() / ((seeds - 1) * (samples - 1))
    seed_square = max(samples * of_seeds.var(ddof=1), residual_square)
    sample_square = max(seeds * of_samples.var(ddof=1) - residual_square, 0.0)
    of_samples = sample_square / shares.size + RARE / samples**2  # as in `over_samples`
    return Estimate(float(mean), ((seed_square / shares.size, seeds - 1), (of_samples, samples - 1)))


def wilson(right: int, total: int) -> tuple[float, float]:
    """The 95 % interval of Wilson (1927) for the probability of which `right` of `total` trials came true."""
    z = norm.ppf((1 + CONFIDENCE) / 2)
    centre = (right + z**2 / 2) / (total + z**2)
    half = z / (total + z**2) * math.sqrt(right * (total - right) / total + z**2 / 4)
    return float(centre - half), float(centre + half)


def mcnemar(only_first: int, only_second: int) -> float:
    """The exact p value of McNemar's test, two-sided: of the samples that one run alone has right, each has half."""
    return float(min(1.0, 2 * binom.cdf(min(only_first, only_second), only_first + only_second, 0.5)))
