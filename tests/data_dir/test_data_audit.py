"""The audit: what is odd is found, what is not is left alone, and nothing is changed."""

import numpy as np
import pytest

from data_dir.pickles import read_array
from data_dir.processing.audit import (
    MIN_OVERLAP,
    ShiftedCopy,
    audit_rows,
    audit_series,
    shifted_copies,
)
from data_dir.processing.merging import MergedSet
from data_dir.scaling import constant_channels

N, LENGTH = 5, 60


def noise(channels: int, length: int = LENGTH, n: int = N, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, length, channels)).astype(np.float32)


def kinds(findings) -> list[str]:
    return [finding["kind"] for finding in findings]


def test_plain_data_have_no_findings():
    data = noise(4)
    before = data.copy()
    assert list(audit_series(data)) == []
    np.testing.assert_array_equal(data, before)


@pytest.mark.parametrize("channels", [6, 7])
def test_the_defect_of_the_archives_converter_is_found(channels):
    """Its bug in short: values of one electrode, read with the stride of the channels as if it were that of time."""
    long = noise(1, LENGTH + channels * (channels - 1))[:, :, 0]
    data = np.stack([long[:, channels * k : channels * k + LENGTH] for k in range(channels)], axis=2)
    np.testing.assert_array_equal(data[:, channels:, 0], data[:, :-channels, 1])
    (finding,) = audit_series(data)
    assert finding["kind"] == "shifted_copies"
    values = N * (LENGTH - channels)
    assert finding["copies"] == [
        {"channel": k + 1, "original": k, "lag": channels, "equal_values": values} for k in range(channels - 1)
    ]
    assert f"from step {channels} on, equal on all {values} values" in finding["text"]


def test_any_lag_is_found():
    for lag in range(LENGTH - MIN_OVERLAP + 1):
        long = noise(1, LENGTH + lag)[:, :, 0]
        data = noise(3, seed=1)
        data[:, :, 2], data[:, :, 0] = long[:, :LENGTH], long[:, lag:]
        channel, of = (2, 0) if lag == 0 else (0, 2)  # of equal channels the later one is the copy
        assert shifted_copies(data) == [ShiftedCopy(channel, of, lag, N * (LENGTH - lag))]


def test_the_smallest_lag_counts():
    data = np.tile(noise(1, 10), (1, 6, 2))  # period 10
    assert shifted_copies(data) == [ShiftedCopy(1, 0, 0, N * LENGTH)]
    data[:, :, 1] = np.roll(data[:, :, 1], 4, axis=1)
    assert [(copy.channel, copy.lag) for copy in shifted_copies(data)] == [(0, 4), (1, 6)]
    long = noise(1, LENGTH + 5)[:, :, 0]
    data = np.stack([long[:, start : start + LENGTH] for start in (2, 0, 5)], axis=2)  # channel 2 copies both others
    assert [(copy.channel, copy.original, copy.lag) for copy in shifted_copies(data)] == [(0, 1, 2), (2, 0, 3)]


@pytest.mark.parametrize("series", range(N))
def test_one_value_that_differs_in_one_series_is_enough(series):
    long = noise(1, LENGTH + 3)[:, :, 0]
    data = np.stack([long[:, :LENGTH], long[:, 3:]], axis=2)
    assert len(shifted_copies(data)) == 1
    data[series, LENGTH - 1, 0] += 1e-6
    assert shifted_copies(data) == []


def test_zeros_of_either_sign_are_equal():
    long = np.zeros((N, LENGTH + 3), dtype=np.float32)
    long[:, ::2] = noise(1, LENGTH + 3)[:, ::2, 0]
    data = np.stack([long[:, :LENGTH], long[:, 3:]], axis=2)
    data[data == 0] *= -1
    data[:, :, 1] = np.where(data[:, :, 1] == 0, 0, data[:, :, 1])
    assert [copy.lag for copy in shifted_copies(data)] == [3]


def test_constant_channels_and_constant_overlaps_are_no_copies():
    data = noise(4)
    data[:, :, 1] = 2
    data[:, :, 3] = np.arange(N)[:, None]
    assert constant_channels(data) == [1, 3]
    assert kinds(audit_series(data)) == ["constant_channels"]
    data = noise(2)
    data[:, :20, 0] = 0
    data[:, -20:, 1] = 0
    assert shifted_copies(data) == []
    assert shifted_copies(noise(2, MIN_OVERLAP - 1)) == []
    assert kinds(audit_series(noise(1))) == []


def test_scales_far_apart_are_found_whatever_the_offset():
    data = noise(3)
    data[:, :, 1] = data[:, :, 1] * 2000 + 1
    (finding,) = audit_series(data)
    assert (finding["kind"], finding["largest"]["channel"]) == ("scale_differences", 1)
    data = noise(3)
    data[:, :, 2] += 1e5
    assert kinds(audit_series(data)) == ["offsets"]


def test_a_channel_far_off_zero_is_found():
    data = noise(4)
    data[:, :, 1] = data[:, :, 1] * 20 + 4000
    data[:, :, 2] += 2  # twice its deviation
    data[:, :, 3] = -5  # constant: a finding of its own
    constant, offsets = audit_series(data)
    assert constant["kind"] == "constant_channels"
    assert offsets["kind"] == "offsets"
    (channel,) = offsets["channels"]
    assert channel["channel"] == 1
    assert channel["mean"] == pytest.approx(data[:, :, 1].mean(dtype=float))
    assert channel["deviation"] == pytest.approx(data[:, :, 1].std(dtype=float))
    assert offsets["text"].startswith(f"channel 1 far off zero: channel 1 lies at {channel['mean']:.4g} ± ")


def test_findings_about_rows():
    data, classes = np.zeros((2, 3, 1), np.float32), np.array([0, 1])
    quiet = MergedSet(data, np.array([3, 3]), classes, ["a", "b"], (classes, classes), 0, 0, [], 0)
    assert list(audit_rows(quiet, [5, 6])) == []
    assert kinds(audit_rows(quiet, [4, 6])) == ["small_classes"]
    loud = MergedSet(data, np.array([2, 3]), classes, ["a", "b"], (classes, classes), 3, 1, [["a", "b"]], 7)
    findings = list(audit_rows(loud, [5, 6], ["a.ts: more", "b.ts: less"]))
    expected = ["header_counts", "missing_values", "unequal_length", "duplicate_rows", "conflicting_labels"]
    assert kinds(findings) == expected
    assert [finding["text"] for finding in findings] == [
        "a.ts: more; b.ts: less",
        "7 interpolated",
        "series of 2 to 3 time steps",
        "3 rows repeat another one; 1 series occur in the train and the test file",
        "1 series occur with different labels, as a and b for one",
    ]


def test_padding_is_not_looked_at():
    data, mask = noise(2), np.arange(LENGTH) < np.where(np.arange(N) % 2, LENGTH, 10)[:, None]
    data[:, :, 1] = data[:, :, 0] + 50
    data[1, 40, 0] = 1e5  # after the end of the shorter series
    data[~mask] = 0
    offsets, scales = audit_series(data, mask)
    assert [channel["channel"] for channel in offsets["channels"]] == [1]
    assert offsets["channels"][0]["mean"] == pytest.approx(data[:, :, 1][mask].mean(dtype=float))
    assert (scales["kind"], scales["largest"]["channel"]) == ("scale_differences", 0)
    data[:, :, 1] = np.where(mask, 50, 0)
    assert kinds(audit_series(data, mask)) == ["constant_channels"]
    assert kinds(audit_series(data)) != ["constant_channels"]


def test_basic_motions_is_clean(bundled):
    assert list(audit_series(read_array(bundled / "processed" / "UEA" / "BasicMotions" / "data.pkl"))) == []


def test_the_time_grows_with_the_length_and_no_faster(monkeypatch):
    """A channel that repeats itself agrees at many lags; they are not compared one by one in every series."""
    compared = []
    equal = np.array_equal
    monkeypatch.setattr(np, "array_equal", lambda one, other: compared.append(one.size) or equal(one, other))
    long = np.tile(noise(1, 4, n=1), (N, 100, 1))
    data = np.concatenate([long, long], axis=2)
    data[-1] = noise(2, 400, n=1)
    assert shifted_copies(data) == []
    assert compared == []
