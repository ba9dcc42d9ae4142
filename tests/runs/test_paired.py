"""RHEL - BPTT on equal seeds and test samples: its interval holds as often as it says, and pairs are real pairs."""

import csv
import math

import numpy as np
import pytest
from finished_runs import put
from scipy import stats

import postprocess_results
from runs.comparison import compare, problems, read_runs
from runs.differences import by_seed, draw_differences
from runs.paired import Estimate, answers_of, mcnemar, over_draws, over_samples, over_seeds_and_samples, wilson
from runs.run import packed


def result(right, part="a", **fields):
    """The fields of result.json for answers (samples,) or (samples, answers of each)."""
    right = np.asarray(right, bool)
    per_sample = right.shape[1] if right.ndim == 2 else 1
    test_part = {"samples": len(right), "answers_per_sample": per_sample, "sha256": part}
    return {"test_metric": right.mean(), "test_right": packed(right), "test_part": test_part, **fields}


def put_answers(root, algorithm, seed, right, part="a", dataset="Own"):
    put(root, dataset, f"LinHRU_{algorithm}", seed, **result(right, part))


def draws(random, seeds, samples, of_seeds, of_samples, of_both):
    """Differences (seeds, samples) of mean 0, with standard deviations between seeds, between samples, and of both."""
    return (
        of_seeds * random.standard_normal((seeds, 1))
        + of_samples * random.standard_normal((1, samples))
        + of_both * random.standard_normal((seeds, samples))
    )


# The numbers


@pytest.mark.parametrize("spread", [(0, 0, 1), (0.3, 0, 1), (0, 3, 1), (0.3, 1, 1), (1, 0.1, 0.1)])
def test_the_interval_over_seeds_and_samples_holds_the_mean_in_95_of_100_cases(spread):
    random = np.random.default_rng(0)
    drawn = [draws(random, 3, 40, *spread) for _ in range(1000)]
    low, high = np.array([over_seeds_and_samples(shares).interval() for shares in drawn]).T
    assert np.mean((low < 0) & (high > 0)) > 0.95 - 3 * math.sqrt(0.95 * 0.05 / 1000)


def test_an_interval_over_the_seeds_alone_would_not_hold_for_new_samples():
    random = np.random.default_rng(0)
    drawn = [draws(random, 3, 40, 0, 1, 0.1).mean(axis=1) for _ in range(1000)]
    low, high = np.array([over_draws(of_seeds).interval() for of_seeds in drawn]).T
    assert np.mean((low < 0) & (high > 0)) < 0.5


def test_the_mean_squares_are_those_of_least_squares():
    """The sums of squares as differences of residuals of linear models, without a formula of the analysis."""
    shares = draws(np.random.default_rng(1), 4, 9, 1, 2, 1) + 3
    seed, sample = np.eye(4)[np.repeat(range(4), 9)], np.eye(9)[np.tile(range(9), 4)]

    def residual(*columns):
        matrix = np.hstack([np.ones((36, 1)), *columns])
        return np.sum((shares.ravel() - matrix @ np.linalg.lstsq(matrix, shares.ravel())[0]) ** 2)

    both = residual(seed, sample)
    of_seeds, of_samples, rest = (residual(sample) - both) / 3, (residual(seed) - both) / 8, both / 24
    assert of_seeds > rest
    assert of_samples > rest
    estimate = over_seeds_and_samples(shares)
    assert estimate.mean == pytest.approx(shares.mean())
    assert estimate.parts == (pytest.approx((of_seeds / 36, 3)), pytest.approx(((of_samples - rest) / 36 + 2 / 81, 8)))
    half = math.hypot(*(stats.t.ppf(0.95, degrees) * math.sqrt(part) for part, degrees in estimate.parts))
    assert estimate.half_width(0.9) == pytest.approx(half)


def test_seeds_that_agree_by_chance_do_not_make_the_interval_narrow():
    shares = np.array([[1, 0, 0, -1], [0, 1, -1, 0], [-1, -1, 1, 1]])
    assert set(shares.mean(axis=1)) == {0}
    estimate = over_seeds_and_samples(shares)
    residual_square = 8 / (2 * 3)  # of 3 x 4 differences with the means 0, 8 of which are 1 or -1
    assert estimate == (0, ((residual_square / 12, 2), (2 / 16, 3)))


@pytest.mark.parametrize("seeds", [1, 5])
def test_few_samples_with_different_answers_do_not_make_the_interval_narrow(seeds):
    """Answers of 84 samples, of which RHEL alone has 1 of 200 right: most test parts have no such sample, or one."""
    random = np.random.default_rng(0)
    estimates = []
    for _ in range(400):
        shares = np.tile((random.random(84) < 0.005).astype(float), (seeds, 1))
        estimates.append(over_seeds_and_samples(shares) if seeds > 1 else over_samples(shares[0]))
    low, high = np.array([estimate.interval() for estimate in estimates]).T
    assert np.mean((low < 0.005) & (high > 0.005)) > 0.95
    assert not any(estimate.is_within(0.02) for estimate in estimates)
    same = over_seeds_and_samples(np.zeros((3, 10_000)))
    assert same.interval()[1] == pytest.approx(1.96 * math.sqrt(2) / 10_000, rel=1e-3)
    assert same.is_within(0.02)


def test_intervals_and_tests_are_those_of_scipy():
    values = np.array([0.3, -0.4, 0.9, 0.2])
    interval = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert over_draws(values).interval() == pytest.approx((interval.low, interval.high))
    for margin in (0.8, 0.9, 1.0, 2.0):
        sides = ((-margin, "greater"), (margin, "less"))
        both = all(stats.ttest_1samp(values, limit, alternative=side).pvalue < 0.05 for limit, side in sides)
        assert over_draws(values).is_within(margin) == both == (margin >= 0.9)
    assert Estimate(2.5, ((0.01, 4),)).is_within(2.0) is False
    assert over_draws(values[:1]).is_within(2.0) is None
    for right, total in ((8, 10), (10, 10), (0, 7), (200, 200), (8213, 10_000)):
        exact = stats.binomtest(right, total).proportion_ci(method="wilson")
        assert wilson(right, total) == pytest.approx((exact.low, exact.high))
    for first, second in ((3, 11), (11, 3), (0, 5), (4, 4)):
        assert mcnemar(first, second) == pytest.approx(stats.binomtest(first, first + second).pvalue)
    assert mcnemar(0, 0) == 1


# From runs to tables


def test_seeds_on_one_test_part_are_compared_sample_by_sample(tmp_path):
    random = np.random.default_rng(2)
    every = {"RHEL": random.random((3, 400)) < 0.9, "BPTT": random.random((3, 400)) < 0.9}
    for algorithm, rights in every.items():
        for seed, right in enumerate(rights):
            put_answers(tmp_path, algorithm, seed, right)
    (row,) = compare(read_runs(tmp_path)).to_dict("records")
    expected = over_seeds_and_samples(every["RHEL"].astype(int) - every["BPTT"]).scaled(100)
    assert (row["pairs"], row["difference_samples"]) == (3, 400)
    assert row["difference_mean"] == pytest.approx(row["RHEL_mean"] - row["BPTT_mean"])
    assert (row["difference_low"], row["difference_high"]) == pytest.approx(expected.interval())
    assert row["difference_within"] == expected.is_within(2)

    assert postprocess_results.main([str(tmp_path)]) == 0
    report = (tmp_path / "summary" / "results.md").read_text()
    assert " | 3 seeds, 400 samples | " in report
    assert (tmp_path / "summary" / "differences.png").exists()
    alone = [int((every[one] & ~every[other])[0].sum()) for one, other in (("RHEL", "BPTT"), ("BPTT", "RHEL"))]
    first = by_seed(read_runs(tmp_path))[1]
    assert first[:4] == ("Own", "LinHRU", "0", "400")
    assert first[7:] == (*map(str, alone), f"{stats.binomtest(alone[0], sum(alone)).pvalue:.2g}")
    low, high = stats.binomtest(int(every["RHEL"][0].sum()), 400).proportion_ci(method="wilson")
    assert first[5] == f"{100 * every['RHEL'][0].mean():.1f} [{100 * low:.1f}, {100 * high:.1f}]"
    with open(tmp_path / "summary" / "runs.csv", newline="") as file:
        assert "answers" not in next(csv.reader(file))


def test_one_seed_has_an_interval_over_the_samples_and_no_test_of_equivalence(tmp_path):
    right = np.arange(100) < 90
    put_answers(tmp_path, "RHEL", 1, right)
    put_answers(tmp_path, "BPTT", 1, np.roll(right, 5))
    (row,) = compare(read_runs(tmp_path)).to_dict("records")
    # 5 samples of each algorithm alone, and one more of each.
    half = stats.t.ppf(0.975, 99) * 100 * math.sqrt(10 / 99 / 100 + 2 / 100**2)
    assert (row["difference_low"], row["difference_high"]) == pytest.approx((-half, half))
    assert (row["pairs"], row["difference_samples"]) == (1, 100)
    assert row["difference_within"] is None


def test_runs_on_other_test_samples_are_no_pair(tmp_path):
    right = np.arange(40) < 30
    for seed in (1, 2, 3):
        put_answers(tmp_path, "RHEL", seed, right, part="a")
        put_answers(tmp_path, "BPTT", seed, np.roll(right, seed), part="b" if seed == 3 else "a")
    runs = read_runs(tmp_path)
    (row,) = compare(runs).to_dict("records")
    assert (row["RHEL_n"], row["BPTT_n"], row["pairs"]) == (3, 3, 2)
    assert problems(runs) == [
        "Own LinHRU: seed 3: RHEL and BPTT were tested on different data or rows, so they are no pair"
    ]
    assert len(by_seed(runs)) == 3


def test_an_average_leaves_out_the_seeds_that_are_no_pair(tmp_path):
    for dataset, moved in (("A", 1), ("B", 3)):
        for seed in (1, 2, 3):
            part = "b" if dataset == "B" and seed == 3 else "a"
            put_answers(tmp_path, "BPTT", seed, np.arange(40) < 20, dataset=dataset)
            put_answers(tmp_path, "RHEL", seed, np.arange(40) < 20 + moved * seed, part, dataset=dataset)
    *_, average = compare(read_runs(tmp_path)).to_dict("records")
    assert average["dataset"] == "average of 2 sets"
    assert (average["pairs"], average["difference_mean"]) == (2, pytest.approx(7.5))  # of 5 and 10
    assert average["difference_samples"] == 0


def test_a_machine_gives_other_answers_in_each_pass(tmp_path):
    right = np.arange(40) < 20
    for algorithm in ("RHEL", "BPTT"):
        fields = result(right) | {"test_metric": 0.6, "machine": {"name": "simulated_device"}}
        put(tmp_path, "Own", f"LinHRU_{algorithm}", 1, **fields)
    (row,) = compare(read_runs(tmp_path)).to_dict("records")
    assert (row["RHEL_mean"], row["pairs"], row["difference_samples"]) == (pytest.approx(60), 1, 0)


def test_seeds_with_test_parts_of_their_own_are_draws_of_both(tmp_path):
    """A split by seed: the interval is over the seeds, each of which has drawn its samples."""
    right = np.arange(40) < 30
    differences = []
    for seed, moved in enumerate((0, 1, 4)):
        put_answers(tmp_path, "RHEL", seed, right, part=str(seed))
        put_answers(tmp_path, "BPTT", seed, np.arange(40) < 30 - moved, part=str(seed))
        differences.append(100 * moved / 40)
    put_answers(tmp_path, "RHEL", 0, right, dataset="Old")
    put(tmp_path, "Old", "LinHRU_BPTT", 0, 0.5)
    old, own = compare(read_runs(tmp_path)).to_dict("records")[:2]
    assert (own["pairs"], own["difference_samples"]) == (3, 0)
    assert (own["difference_low"], own["difference_high"]) == pytest.approx(
        over_draws(np.array(differences)).interval()
    )
    assert own["difference_within"] is None
    assert (old["pairs"], old["difference_samples"]) == (1, 0)
    assert math.isnan(old["difference_low"])


def test_several_answers_of_a_sample_count_as_one_share(tmp_path):
    rhel, bptt = np.ones((6, 3)), np.ones((6, 3))
    bptt[:2] = 0
    bptt[2, 0] = 0
    put_answers(tmp_path, "RHEL", 1, rhel)
    put_answers(tmp_path, "BPTT", 1, bptt)
    runs = read_runs(tmp_path)
    (row,) = compare(runs).to_dict("records")
    expected = over_samples(np.array([1, 1, 1 / 3, 0, 0, 0])).scaled(100).interval()
    assert (row["difference_low"], row["difference_high"]) == pytest.approx(expected)
    assert by_seed(runs)[1][3:6] == ("6", "61.1", "100.0")
    assert by_seed(runs)[1][7:] == ("-", "-", "-")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"test_right": "ff"}, "test_right has 8 bits, not 20 x 1 answers"),
        ({"test_right": "xy"}, "non-hexadecimal"),
        ({"test_right": 7}, "TypeError"),
        ({"test_metric": 0.7}, "test_right has 0.5 right answers, test_metric is 0.7"),
        ({"test_part": {"samples": 0, "answers_per_sample": 1, "sha256": "a"}}, "bits, not 0 x 1 answers"),
        ({"test_part": {"samples": 20, "sha256": "a"}}, "KeyError"),
        ({"test_part": [20]}, "TypeError"),
        ({"test_part": {"samples": 20, "answers_per_sample": 1, "sha256": {}}}, "sha256"),
    ],
)
def test_damaged_answers_are_named_and_take_no_part(tmp_path, fields, words):
    put_answers(tmp_path, "RHEL", 2, np.arange(20) < 10)
    put(tmp_path, "Own", "LinHRU_RHEL", 1, **(result(np.arange(20) < 10) | fields))
    runs = read_runs(tmp_path)
    assert runs["status"].to_list() == ["damaged", "completed"]
    assert words in runs["error"].iloc[0]
    assert answers_of({"test_metric": 0.5, **{"test_right": "ff"}}) is None


def test_the_figure_has_a_row_for_every_pair(tmp_path):
    right = np.arange(50) < 40
    for seed in (1, 2):
        for algorithm, moved in (("RHEL", seed), ("BPTT", 0)):
            put_answers(tmp_path, algorithm, seed, np.roll(right, moved))
            put(tmp_path, "ppg", f"NonlinHRU_{algorithm}", seed, 0.1 + 0.01 * moved, metric="mse")
    put(tmp_path, "Heartbeat", "LinHRU_RHEL", 1)  # has no pair
    comparison = compare(read_runs(tmp_path))
    accuracy, mse = draw_differences(comparison).axes
    assert [text.get_text() for text in accuracy.get_yticklabels()] == ["Own LinHRU"]
    assert [text.get_text() for text in mse.get_yticklabels()] == ["ppg NonlinHRU"]
    (point,) = mse.lines[1].get_xdata()
    assert point == pytest.approx(15)  # errors of 0.11 and 0.12 against 0.1
    assert draw_differences(comparison[comparison["pairs"] == 0]) is None


def test_long_settings_are_told_apart(tmp_path):
    shared = "batch_size=32,dropout_rate=0.05,weight_decay=0.001,lr_scheduler=cosine_decay_schedule(lr,100)"
    for rate in ("0.001", "0.01"):
        for algorithm in ("RHEL", "BPTT"):
            put(tmp_path / f"{shared},lr={rate}", "Own", f"LinHRU_{algorithm}", 1)
    (axes,) = draw_differences(compare(read_runs(tmp_path))).axes
    assert [text.get_text() for text in axes.get_yticklabels()] == ["Own LinHRU lr=0.001", "Own LinHRU lr=0.01"]
