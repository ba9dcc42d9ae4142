"""The comparison of RHEL, BPTT and the paper: its numbers by hand, its gaps, and what it writes."""

import csv
import json
import math

import numpy as np
import pytest

import postprocess_results
from common import tables
from experiment_configs.published_results import DATASETS, PUBLISHED
from runs.choosing import by_validation
from runs.comparison import compare, problems, read_curve, read_runs
from runs.summary import cells


def put(root, dataset, name, seed, test_metric=0.5, metric="accuracy", **fields):
    """A finished run, as far as it is read."""
    folder = root / dataset / name / f"seed_{seed}"
    folder.mkdir(parents=True)
    result = {"status": "completed", "seed": seed, "metric": metric, "test_metric": test_metric, **fields}
    (folder / "result.json").write_text(json.dumps(result))
    lines = [{"step": step, "train_loss": 1 / step, "val_metric": 0.5} for step in (2, 4)]
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return folder


def compared(root, dataset="Heartbeat", model="LinHRU"):
    table = compare(read_runs(root))
    (row,) = table[(table["dataset"] == dataset) & (table["model"] == model)].to_dict("records")
    return row


# Numbers


def test_mean_and_deviation_of_each_and_the_difference_of_pairs(tmp_path):
    for seed, bptt, rhel in ((1, 0.6, 0.7), (2, 0.8, 0.8), (3, 0.7, 0.9), (4, 0.1, None), (5, None, 0.2)):
        if bptt is not None:
            put(tmp_path, "Heartbeat", "LinHRU_BPTT", seed, bptt)
        if rhel is not None:
            put(tmp_path, "Heartbeat", "LinHRU_RHEL", seed, rhel)
    row = compared(tmp_path)
    assert (row["BPTT_n"], row["RHEL_n"], row["pairs"]) == (4, 4, 3)
    assert row["BPTT_mean"] == pytest.approx(55.0)
    assert row["BPTT_std"] == pytest.approx(np.std([60, 80, 70, 10], ddof=1))
    assert row["RHEL_mean"] == pytest.approx(65.0)
    # Differences 10, 0, 20: mean 10, sample deviation 10; Student's t for 2 degrees of freedom is 4.302653.
    half = 4.302653 * 10 / math.sqrt(3)
    assert row["difference_mean"] == pytest.approx(10.0)
    assert row["difference_low"] == pytest.approx(10 - half, rel=1e-6)
    assert row["difference_high"] == pytest.approx(10 + half, rel=1e-6)
    assert (row["BPTT_paper_mean"], row["BPTT_paper_std"]) == (73.9, 0.6)
    assert (row["RHEL_paper_mean"], row["RHEL_paper_std"]) == (73.5, 1.6)


def test_one_pair_has_no_interval_and_equal_pairs_have_one_of_no_width(tmp_path):
    for name in ("LinHRU_BPTT", "LinHRU_RHEL"):
        put(tmp_path, "Heartbeat", name, 1, 0.5)
        for seed in (1, 2):
            put(tmp_path, "MotorImagery", name, seed, seed / 10)
    row = compared(tmp_path)
    assert row["difference_mean"] == 0
    assert math.isnan(row["difference_low"])
    assert math.isnan(row["BPTT_std"])
    row = compared(tmp_path, "MotorImagery")
    assert (row["difference_low"], row["difference_high"], row["pairs"]) == (0, 0, 2)


def test_an_algorithm_without_runs_leaves_its_columns_open(tmp_path):
    put(tmp_path, "Own", "LinHRU_RHEL", 1, 0.5)
    row = compared(tmp_path, "Own")
    assert (row["BPTT_n"], row["RHEL_n"], row["pairs"]) == (0, 1, 0)
    for name in ("BPTT_mean", "BPTT_paper_mean", "RHEL_paper_mean", "difference_mean", "difference_high"):
        assert math.isnan(row[name])


def test_errors_are_shown_in_the_unit_of_the_paper(tmp_path):
    for seed in (1, 2):
        put(tmp_path, "ppg", "NonlinHRU_RHEL", seed, 0.08, metric="mse")
    row = compared(tmp_path, "ppg", "NonlinHRU")
    assert row["RHEL_mean"] == pytest.approx(8.0)
    assert (row["RHEL_paper_mean"], row["metric"]) == (8.4, "mse")


def test_the_average_is_taken_over_seeds_that_all_sets_have(tmp_path):
    metrics = {"Heartbeat": (0.5, 0.7), "MotorImagery": (0.3, 0.1), "Own": (0.1, 0.4)}
    for dataset, of_seeds in metrics.items():
        for seed, metric in enumerate(of_seeds):
            put(tmp_path, dataset, "LinHRU_BPTT", seed, metric)
            put(tmp_path, dataset, "LinHRU_RHEL", seed, metric + 0.1 * seed)
    put(tmp_path, "Heartbeat", "LinHRU_BPTT", 7, 0.0)  # the others lack this seed
    put(tmp_path, "EigenWorms", "LinHRU_RHEL", 1, 1.0)  # this set lacks BPTT
    put(tmp_path, "ppg", "LinHRU_RHEL", 1, 0.1, metric="mse")
    put(tmp_path, "ppg", "LinHRU_BPTT", 1, 0.1, metric="mse")
    row = compared(tmp_path, "average of 3 sets")
    assert row["BPTT_mean"] == pytest.approx((30 + 40) / 2)
    assert row["BPTT_std"] == pytest.approx(math.sqrt(50))
    assert (row["BPTT_n"], row["pairs"]) == (2, 2)
    assert row["difference_mean"] == pytest.approx(5.0)
    assert math.isnan(row["BPTT_paper_mean"])
    assert not row["RHEL_short"]
    row = compared(tmp_path, "average of 2 published sets")
    assert row["RHEL_short"]
    assert row["BPTT_mean"] == pytest.approx(40.0)
    assert row["BPTT_paper_mean"] == pytest.approx((73.9 + 48.1) / 2)
    assert row["RHEL_paper_mean"] == pytest.approx((73.5 + 51.6) / 2)


def test_the_published_values_have_the_averages_that_the_paper_prints():
    averages = {"LinHRU": (63.4, 62.9), "NonlinHRU": (58.8, 57.8)}
    for model, of_model in averages.items():
        for algorithm, average in zip(("BPTT", "RHEL"), of_model, strict=True):
            means = [PUBLISHED[name, model, algorithm][0] for name in DATASETS if name != "ppg"]
            assert np.mean(means) == pytest.approx(average, abs=0.051)


# Gaps


def test_failed_unfinished_damaged_and_missing_runs_are_listed(tmp_path):
    for seed in (1, 2, 3):
        put(tmp_path, "Heartbeat", "LinHRU_BPTT", seed)
    put(tmp_path, "Heartbeat", "LinHRU_RHEL", 1, None, status="failed", error="the loss is not finite at step 7")
    (put(tmp_path, "Heartbeat", "LinHRU_RHEL", 2) / "result.json").unlink()
    put(tmp_path, "Own", "NonlinHRU_RHEL", 4)
    (put(tmp_path, "Own", "NonlinHRU_RHEL", 5) / "result.json").write_text('{"status": "comp')
    put(tmp_path, "Own", "NonlinHRU_BPTT", 4, math.nan)
    lines = problems(read_runs(tmp_path))
    assert lines[0] == (
        "Heartbeat LinHRU RHEL: seed 1 failed (the loss is not finite at step 7); seed 2 unfinished; missing: 3"
    )
    assert lines[1:3] == [f"Heartbeat NonlinHRU {name}: missing: 1, 2, 3" for name in ("BPTT", "RHEL")]
    assert lines[5].startswith(
        "Own NonlinHRU BPTT: seed 4 damaged (result.json: ValueError('test_metric nan is no accuracy'"
    )
    assert lines[6].startswith("Own NonlinHRU RHEL: seed 5 damaged (result.json: JSONDecodeError")
    assert len(lines) == 7
    assert compare(read_runs(tmp_path))["RHEL_n"].to_list() == [0, 1]


def test_folders_that_are_no_runs_are_passed_over(tmp_path):
    put(tmp_path, "Own", "LinHRU_RHEL", 1)
    for seed in ("01", "٣"):
        put(tmp_path, "Own", "LinHRU_RHEL", seed)
    put(tmp_path, "Own", "LinHRU_ReversibleBPTT", 1)
    put(tmp_path, "Own", "LinHRU_BPTT", "one")
    (tmp_path / "benchmarks" / "step_times").mkdir(parents=True)
    assert read_runs(tmp_path)["folder"].to_list() == [str(tmp_path / "Own" / "LinHRU_RHEL" / "seed_1")]


DAMAGED = (
    '{"status": "completed", "metric": "accuracy", "test_metric": 7.0}',
    '{"status": "completed", "metric": "accuracy", "test_metric": -0.1}',
    f'{{"status": "completed", "metric": "mse", "test_metric": {10**400}}}',
    '{"status": "completed", "metric": ["mse"], "test_metric": 1}',
    '{"status": "completed", "metric": "f1", "test_metric": 1}',
    '{"status": "completed", "metric": "mse", "test_metric": "1"}',
    '{"status": "completed", "metric": "accuracy", "test_metric": true}',
    '{"status": "completed", "metric": "accuracy"}',
    "[" * 100_000,
    "[]",
    "\0",
)


def test_a_damaged_run_never_takes_the_table_away(tmp_path):
    for seed in (1, 2):
        put(tmp_path, "Heartbeat", "LinHRU_RHEL", seed)
    for seed, text in enumerate(DAMAGED):
        folder = put(tmp_path, "Own", "LinHRU_RHEL", seed)
        (folder / "result.json").write_text(text)
        (folder / "metrics.jsonl").write_text(text)
    strange = "=a$\\frac$|"
    (put(tmp_path, strange, "@m_RHEL", 1, error="-1", steps=10**30) / "metrics.jsonl").write_text(DAMAGED[-1])
    runs = read_runs(tmp_path)
    own = runs[runs["dataset"] == "Own"]
    assert list(own["status"]) == ["damaged"] * len(DAMAGED)
    assert "test_metric 7.0 is no accuracy" in own["error"].iloc[0]
    assert postprocess_results.main([str(tmp_path)]) == 0
    summary = tmp_path / "summary"
    row = "| Heartbeat | LinHRU | accuracy, % | - | 0 | - | 73.9 ± 0.6 | 50.0 ± 0.0 * | 2 | - |"
    assert row in (summary / "results.md").read_text()
    # A spreadsheet must not take a text for a formula.
    for name in ("results.csv", "runs.csv"):
        with open(summary / name, newline="") as file:
            rows = [(row["dataset"], row["model"], row.get("error")) for row in csv.DictReader(file)]
        assert rows[0][:2] == ("Heartbeat", "LinHRU")
        assert (f"'{strange}", "'@m", "'-1" if name == "runs.csv" else None) in rows


@pytest.mark.parametrize("name", ["$\\frac$", "a_{$b", "\udcff"])
def test_every_name_of_a_folder_can_be_drawn(tmp_path, name):
    put(tmp_path, name, f"{name}_RHEL", 1)
    assert postprocess_results.main([str(tmp_path)]) == 0
    assert (tmp_path / "summary" / "curves" / f"{name}.png").exists()


@pytest.mark.parametrize(
    "fields",
    [{"seed": 1}, {"seed": "x"}, {"dataset": "Heartbeat"}, {"model": 3, "folder": "x"}, {"peak_memory_bytes": None}],
)
def test_the_folder_says_which_run_it_is(tmp_path, fields):
    """A folder may have been copied, and result.json may have been edited."""
    put(tmp_path, "Own", "LinHRU_RHEL", 1)
    folder = put(tmp_path, "Own", "LinHRU_RHEL", 2, 0.7)
    path = folder / "result.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    last = read_runs(tmp_path).iloc[-1]
    assert (last["dataset"], last["model"], last["seed"]) == ("Own", "LinHRU", 2)
    assert (last["status"], last["folder"]) == ("completed", str(folder))
    assert compared(tmp_path, "Own")["RHEL_mean"] == pytest.approx(60.0)


def test_runs_of_two_metrics_are_never_averaged(tmp_path):
    put(tmp_path, "Own", "LinHRU_RHEL", 1, 0.5)
    put(tmp_path, "Own", "LinHRU_RHEL", 2, 0.5, metric="mse")
    put(tmp_path, "Own", "LinHRU_BPTT", 1, 0.5, metric="mse")
    put(tmp_path, "Other", "LinHRU_BPTT", 1, 0.5, metric="mse")
    runs = read_runs(tmp_path)
    assert compare(runs)["dataset"].to_list() == ["Other"]
    why = "other runs of this data set have another metric; keep them in another folder"
    assert problems(runs)[-2:] == [
        f"Own LinHRU BPTT: seed 1 damaged (metric mse: {why}); missing: 2",
        f"Own LinHRU RHEL: seed 1 damaged (metric accuracy: {why}); seed 2 damaged (metric mse: {why})",
    ]


@pytest.mark.parametrize(
    ("dataset", "seeds", "fields", "short"),
    [
        ("Heartbeat", 5, {"steps": 100_000, "stop_reason": "num_steps"}, False),
        ("Heartbeat", 5, {"steps": 12_000, "stop_reason": "early_stopping"}, False),
        ("Heartbeat", 4, {"steps": 100_000, "stop_reason": "num_steps"}, True),
        ("Heartbeat", 5, {"steps": 600, "stop_reason": "num_steps"}, True),
        ("Heartbeat", 5, {"steps": 240, "stop_reason": "early_stopping"}, True),
        ("Heartbeat", 5, {}, True),
        ("Own", 1, {}, False),
    ],
)
def test_a_mean_of_fewer_seeds_or_steps_than_the_paper_is_marked(tmp_path, dataset, seeds, fields, short):
    for seed in range(seeds):
        put(tmp_path, dataset, "LinHRU_RHEL", seed, **fields)
    row = compared(tmp_path, dataset)
    assert (row["RHEL_short"], row["BPTT_short"]) == (short, False)
    (row_cells,) = cells(compare(read_runs(tmp_path)))[1:]
    assert row_cells[7].endswith(" *") == short


@pytest.mark.parametrize(
    ("content", "steps"),
    [
        (None, []),
        ("", []),
        ('{"step": 2, "val_metric": 0.5, "new": "x"}\n', [2]),
        ('{"step": 2, "val_metric": 0.5}\n{"step": 4, "train_lo', []),
        ("[1]\n7\n", []),
    ],
)
def test_a_damaged_curve_is_left_out(tmp_path, content, steps):
    if content is not None:
        (tmp_path / "metrics.jsonl").write_text(content)
    curve = read_curve(tmp_path)
    assert list(curve) == ["step", "train_loss", "val_metric"]
    assert curve["step"].to_list() == steps
    assert curve["train_loss"].isna().all()


# Settings


def grid(root):
    """Four settings of LinHRU on one set: "c" fails for a seed, "d" has begun fewer seeds than the others."""
    for algorithm, better in (("RHEL", "b"), ("BPTT", "a")):
        for setting, seeds in (("a", (1, 2)), ("b", (1, 2, 3)), ("c", (1, 2)), ("d", (1, 2))):
            for seed in seeds:
                # The setting that is best on validation is worst on the test set.
                best, fails = setting == better, setting == "c" and seed == 2
                fields = {"val_metric": 0.8 + 0.1 * best + seed / 100, "steps": 10 + 5 * (setting == "d")}
                fields |= {"stop_reason": "num_steps"}
                fields |= {"status": "failed"} if fails else {}
                put(root / f"lr={setting}", "Own", f"LinHRU_{algorithm}", seed, 0.4 if best else 0.6, **fields)
    return [root / f"lr={setting}" for setting in "abcd"]


def test_settings_have_rows_of_their_own(tmp_path, monkeypatch, capsys):
    grid(tmp_path / "outputs")
    put(tmp_path / "outputs", "Own", "LinHRU_RHEL", 1, 0.3, steps=20)
    monkeypatch.chdir(tmp_path)
    assert postprocess_results.main([]) == 0
    out = capsys.readouterr().out
    head, _, *rows = [line for line in out.splitlines() if line.startswith("|")]
    assert head.startswith("| data set | model | setting | metric | BPTT | seeds | steps | BPTT, paper | RHEL |")
    assert [row.split(" | ")[2] for row in rows] == ["lr=a", "lr=b", "lr=c", "lr=d", "outputs"]
    assert rows[1].startswith("| Own | LinHRU | lr=b | accuracy, % | 60.0 ± 0.0 | 3 | 10 | - | 40.0 ± 0.0 | 3 | 10 |")
    assert rows[4].startswith("| Own | LinHRU | outputs | accuracy, % | - | 0 | - | - | 30.0 | 1 | 20 |")
    assert "- Own LinHRU RHEL lr=c: seed 2 failed" in out
    assert "- Own LinHRU BPTT outputs: missing: 1" in out
    # Named one by one they are the same, without the runs beside them, and a folder counts once.
    assert postprocess_results.main(["outputs/lr=a", "outputs/lr=b", "outputs/lr=a", "outputs/lr=a/Own"]) == 0
    again = capsys.readouterr()
    assert [row for row in again.out.splitlines() if row.startswith("|")][2:] == rows[:2]
    assert again.err.startswith("outputs/lr=a/Own: no runs here\n")
    assert (tmp_path / "outputs" / "summary" / "results.png").exists()
    assert postprocess_results.main(["outputs", "outputz"]) == 2
    assert "error: outputz: no runs" in capsys.readouterr().err


def test_the_setting_is_chosen_by_validation_alone(tmp_path, capsys):
    folders = grid(tmp_path)
    assert postprocess_results.main([*map(str, folders), "--select", "validation"]) == 0
    out = capsys.readouterr().out
    head, _, *rows = [line for line in out.splitlines() if line.startswith("|")]
    assert head.startswith(
        "| data set | model | metric | BPTT | seeds | steps | setting | BPTT, paper | RHEL | seeds |"
    )
    # RHEL and BPTT are compared with a setting of their own each.
    (row,) = rows
    assert row.startswith(
        "| Own | LinHRU | accuracy, % | 40.0 ± 0.0 | 2 | 10 | lr=a (of 4) | - | 40.0 ± 0.0 | 3 | 10 | lr=b (of 4) | - |"
    )
    assert row.endswith("| 0.0 | [0.0, 0.0] | 2 |")
    # Seed 3 is better than the others, but the other settings have not begun it.
    assert "- Own LinHRU RHEL: lr=b (of 4), validation accuracy, % 91.5 over seeds 1, 2; the settings differ in " in out
    assert "the settings differ in steps: 10 and 15; lr=c takes no part: seed 2 failed\n" in out
    with open(tmp_path / "summary" / "runs.csv", newline="") as file:
        runs = list(csv.DictReader(file))
    assert len(runs) == 18
    chosen = {(run["algorithm"], run["setting"]) for run in runs if run["selected"] == "True"}
    assert chosen == {("BPTT", "lr=a"), ("RHEL", "lr=b")}


@pytest.mark.parametrize(("metric", "taken"), [("accuracy", "x"), ("mse", "y")])
def test_of_equal_settings_the_first_is_chosen_and_the_smallest_error(tmp_path, metric, taken):
    for setting, value in (("w", None), ("x", 0.9), ("y", 0.3), ("z", 0.9 if metric == "accuracy" else 0.3)):
        put(tmp_path / f"lr={setting}", "Own", "LinHRU_RHEL", 1, metric=metric, val_metric=value)
    chosen, (line,) = by_validation(read_runs(tmp_path))
    assert chosen["taken"].to_list() == [f"lr={taken}"]
    assert chosen["of"].to_list() == [4]
    assert "; equal: lr=z; lr=w takes no part: seed 1 has no finite val_metric" in line


@pytest.mark.parametrize(
    ("losses", "taken", "text"),
    [
        ((2e-5, 1.2346e-5), "lr=b", "loss, 1e-2 0.001235 over seeds 1"),
        ((2e-5, None), "lr=a", "mse, 1e-2 1.235e-05 over seeds 1"),  # a run of an earlier version
    ],
    ids=["loss", "mse"],
)
def test_a_regression_is_chosen_by_the_loss_that_the_training_takes(tmp_path, losses, taken, text):
    """Of several outputs, the mse follows the one with the largest unit. A small mse keeps its digits."""
    for setting, mse, loss in zip("ab", (1.2346e-7, 2e-7), losses, strict=True):
        fields = {"metric": "mse", "val_metric": mse} | ({} if loss is None else {"val_loss": loss})
        put(tmp_path / f"lr={setting}", "Own", "LinHRU_RHEL", 1, 5.4321e-8, **fields)
    chosen, (line,) = by_validation(read_runs(tmp_path))
    assert chosen["taken"].to_list() == [taken]
    assert f"{taken} (of 2), validation {text}" in line
    assert "5.432e-06" in cells(compare(chosen))[1]


def test_settings_below_settings_are_read(tmp_path):
    for name in (".", "lr=1", "lr=1/dim=2", "lr=1/dim=2/a=b"):
        put(tmp_path / name, "Own", "LinHRU_RHEL", 1)
    assert read_runs(tmp_path)["setting"].to_list() == sorted(["lr=1", "lr=1/dim=2", "lr=1/dim=2/a=b", tmp_path.name])


def test_settings_without_a_common_seed_are_not_compared(tmp_path):
    for seed in (1, 2):
        put(tmp_path / f"lr={seed}", "Own", "LinHRU_RHEL", seed, val_metric=0.5)
    chosen, lines = by_validation(read_runs(tmp_path))
    assert chosen.empty
    assert lines[0].startswith("Own LinHRU RHEL: none: the settings have no seed in common")
    assert postprocess_results.main([str(tmp_path), "--select", "validation"]) == 0


# What is written


def test_everything_is_written_and_nothing_but_results_and_metrics_is_read(tmp_path, monkeypatch, capsys):
    outputs = tmp_path / "outputs"
    for seed in (1, 2):
        for algorithm in ("BPTT", "RHEL"):
            memory = {"host": 3 * 2**30, "device": None}
            fields = {"seconds": 1.5, "peak_memory_bytes": memory, "steps": 100 * seed}
            folder = put(outputs, "Heartbeat", f"LinHRU_{algorithm}", seed, 0.5 + seed / 10, **fields)
            (folder / "config.json").write_bytes(b"\xff")
            put(outputs, "ppg", f"NonlinHRU_{algorithm}", seed, 0.1, metric="mse")
    put(outputs, "EigenWorms", "LinHRU_RHEL", 1, None, status="failed", error="a|b")
    before = {path: path.read_bytes() for path in outputs.rglob("*") if path.is_file()}
    monkeypatch.chdir(tmp_path)
    assert postprocess_results.main([]) == 0
    summary = outputs / "summary"
    names = sorted(str(path.relative_to(summary)) for path in summary.rglob("*") if path.is_file())
    pictures = ["curves/Heartbeat.png", "curves/ppg.png", "results.png"]
    assert names == sorted(["results.md", "results.csv", "results.tex", "runs.csv", *pictures])
    assert all((summary / name).read_bytes().startswith(b"\x89PNG") for name in pictures)
    assert {path: path.read_bytes() for path in before} == before

    report = (summary / "results.md").read_text()
    assert capsys.readouterr().out.rstrip() in report
    row = "| Heartbeat | LinHRU | accuracy, % | 65.0 ± 7.1 * | 2 | 100 to 200 | 73.9 ± 0.6 |"
    row += " 65.0 ± 7.1 * | 2 | 100 to 200 | 73.5 ± 1.6 |"
    assert f"{row} 0.0 | [0.0, 0.0] | 2 |" in report
    assert "sample standard deviation" in report
    assert "- EigenWorms LinHRU RHEL: seed 1 failed (a|b)" in report
    tex = (summary / "results.tex").read_text()
    assert r"Heartbeat & LinHRU & accuracy, \% & 65.0 $\pm$ 7.1 * & 2 & 100 to 200 &" in tex
    assert len({line.count("&") for line in tex.splitlines() if "&" in line}) == 1
    with open(summary / "results.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["dataset"] for row in rows] == ["Heartbeat", "ppg"]
    assert float(rows[0]["RHEL_std"]) == pytest.approx(math.sqrt(50))
    with open(summary / "runs.csv", newline="") as file:
        runs = list(csv.DictReader(file))
    assert len(runs) == 9
    assert (runs[1]["status"], runs[1]["seconds"]) == ("completed", "1.5")
    assert (int(float(runs[1]["peak_memory_host_bytes"])), runs[1]["peak_memory_device_bytes"]) == (3 * 2**30, "")

    # Written again it is the same, and takes no part in what is read.
    first = {path: path.read_bytes() for path in summary.rglob("*") if path.is_file()}
    assert postprocess_results.main([str(outputs)]) == 0
    csv_again = (summary / "results.csv").read_bytes()
    assert csv_again == first[summary / "results.csv"]


def test_only_failed_runs_are_reported_without_a_figure(tmp_path, capsys):
    put(tmp_path, "Own", "LinHRU_RHEL", 1, None, status="failed", error="x")
    assert postprocess_results.main([str(tmp_path), "--output_dir", str(tmp_path / "there")]) == 0
    assert "- Own LinHRU RHEL: seed 1 failed (x)" in capsys.readouterr().out
    assert not list((tmp_path / "there").rglob("*.png"))


def test_nothing_to_compare_is_exit_status_2(tmp_path, capsys):
    assert postprocess_results.main([str(tmp_path / "nowhere")]) == 2
    assert "no runs of BPTT or RHEL here" in capsys.readouterr().err
    assert not (tmp_path / "nowhere").exists()
    put(tmp_path, "Own", "LinHRU_RHEL", 1)
    (tmp_path / "file").write_text("")
    assert postprocess_results.main([str(tmp_path), "--output_dir", str(tmp_path / "file")]) == 2
    assert "error: " in capsys.readouterr().err
    with pytest.raises(SystemExit) as exit:
        postprocess_results.main(["--ouput_dir", "x"])
    assert exit.value.code == 2


def test_cells_are_escaped():
    rows = [("a_b", "50 %"), ("x|y", "1 ± 2 \\ {3}")]
    assert tables.markdown(rows) == "| a_b | 50 % |\n| --- | --- |\n| x\\|y | 1 ± 2 \\ {3} |"
    assert tables.latex(rows).splitlines()[1:4] == [
        r"a\_b & 50 \% \\",
        r"\hline",
        r"x|y & 1 $\pm$ 2 \textbackslash{} \{3\} \\",
    ]
    assert tables.aligned(rows) == "a_b  50 %\nx|y  1 ± 2 \\ {3}"
