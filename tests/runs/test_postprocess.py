"""The comparison of RHEL, BPTT and the paper: its numbers by hand, its gaps, and what it writes."""

import csv
import json
import math

import numpy as np
import pytest
from finished_runs import put

import postprocess_results
from common import tables
from experiment_configs.published_results import DATASETS, PUBLISHED
from runs.comparison import compare, problems, read_curve, read_runs
from runs.summary import cells, note


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


def test_one_pair_and_equal_pairs_have_no_interval(tmp_path):
    for name, more in (("LinHRU_BPTT", 0.0), ("LinHRU_RHEL", 0.2)):
        put(tmp_path, "Heartbeat", name, 1, 0.5)
        for seed in (1, 2, 3):  # 0.3 - 0.1 and 0.4 - 0.2 differ in the last bit
            put(tmp_path, "MotorImagery", name, seed, seed / 10 + more)
    row = compared(tmp_path)
    assert row["difference_mean"] == 0
    assert math.isnan(row["difference_low"])
    assert math.isnan(row["BPTT_std"])
    row = compared(tmp_path, "MotorImagery")
    assert row["difference_mean"] == pytest.approx(20)
    assert math.isnan(row["difference_low"])
    table = compare(read_runs(tmp_path))
    assert cells(table)[2][-4:] == ("20.0", "-", "3 seeds", "-")
    assert "A single pair without answers, or equal differences of all pairs, have no interval." in note(table)


def test_sets_without_a_common_seed_have_no_average(tmp_path):
    for seed, dataset in enumerate(("Heartbeat", "MotorImagery")):
        for algorithm in ("BPTT", "RHEL"):
            put(tmp_path, dataset, f"LinHRU_{algorithm}", seed, 0.5)
    table = compare(read_runs(tmp_path))
    assert table["dataset"].to_list() == ["Heartbeat", "MotorImagery"]
    assert "Averages" not in note(table)


def test_an_algorithm_without_runs_leaves_its_columns_open(tmp_path):
    put(tmp_path, "Own", "LinHRU_RHEL", 1, 0.5)
    row = compared(tmp_path, "Own")
    assert (row["BPTT_n"], row["RHEL_n"], row["pairs"]) == (0, 1, 0)
    for name in ("BPTT_mean", "BPTT_paper_mean", "RHEL_paper_mean", "difference_mean", "difference_high"):
        assert math.isnan(row[name])


def test_errors_of_the_published_set_are_shown_as_in_the_paper_and_others_as_they_are(tmp_path):
    for seed in (1, 2):
        put(tmp_path, "ppg", "NonlinHRU_RHEL", seed, 0.08, metric="mse")
        outputs = {"speed": 9000.0, "=b": seed / 4}
        put(tmp_path, "Own", "NonlinHRU_RHEL", seed, 9413.4 * seed, metric="mse", test_mse_of_outputs=outputs)
    put(tmp_path, "Own", "NonlinHRU_BPTT", 1, 0.00012344, metric="mse", test_mse_of_outputs=["x"])
    assert postprocess_results.main([str(tmp_path)]) == 0
    own = cells(compare(read_runs(tmp_path)))[2]
    assert own[2:4] == ("mse", "0.0001234")
    assert own[7] == "1.412e+04 ± 6656"
    with open(tmp_path / "summary" / "results.csv", newline="") as file:
        ppg, own = csv.DictReader(file)
    assert (float(ppg["RHEL_mean_mse"]), float(ppg["RHEL_paper_mean_mse"])) == pytest.approx((0.08, 0.084))
    assert float(own["RHEL_mean_mse"]) == pytest.approx(14120.1)
    assert not [name for name in own if "percent" in name]
    with open(tmp_path / "summary" / "runs.csv", newline="") as file:
        runs = list(csv.DictReader(file))
    assert [run["test_mse_of_speed"] for run in runs] == ["", "", "", "9000.0", "9000.0"]
    assert [run["test_mse_of_=b"] for run in runs[-2:]] == ["0.25", "0.5"]
    assert [run["test_mse"] for run in runs[1:]] == ["0.08", "0.00012344", "9413.4", "18826.8"]
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
    assert lines[:5] == [
        "Heartbeat LinHRU RHEL: seed 1 failed: the loss is not finite at step 7",
        "Heartbeat LinHRU RHEL: seed 2 unfinished",
        "Heartbeat LinHRU RHEL: seed 3 missing",
        *(f"Heartbeat NonlinHRU {name}: seeds 1, 2, 3 missing" for name in ("BPTT", "RHEL")),
    ]
    assert lines[7].startswith(
        "Own NonlinHRU BPTT: seed 4 damaged: result.json: ValueError('test_metric nan is no accuracy'"
    )
    assert lines[9].startswith("Own NonlinHRU RHEL: seed 5 damaged: result.json: JSONDecodeError")
    assert len(lines) == 10
    assert compare(read_runs(tmp_path))["RHEL_n"].to_list() == [0, 1]


def test_an_algorithm_without_any_run_of_the_set_or_the_model_is_not_missing(tmp_path):
    put(tmp_path, "Own", "LinHRU_RHEL", 1)
    put(tmp_path, "Own", "LinHRU_RHEL", 2)
    put(tmp_path, "Other", "NonlinHRU_BPTT", 1)
    put(tmp_path, "Other", "NonlinHRU_RHEL", 1)
    lines = problems(read_runs(tmp_path))
    assert "Own NonlinHRU BPTT: seeds 1, 2 missing" in lines
    assert not [line for line in lines if line.startswith("Own LinHRU")]


def test_an_error_has_one_line_of_a_readable_length(tmp_path):
    for seed in (3, 1):
        put(tmp_path, "Own", "LinHRU_RHEL", seed, None, status="failed", error="first line\n" + 90 * "long ")
    (line,) = problems(read_runs(tmp_path))
    assert line.startswith("Own LinHRU RHEL: seeds 1, 3 failed: first line long long")
    assert line.endswith(" ..")
    assert len(line) < 200


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
    fields = {"metric": ["mse"], "val_metric": "x", "test_mse_of_outputs": {"y": [1]}}
    put(tmp_path, "Own", "LinHRU_RHEL", 99, [1], status="failed", **fields)
    (put(tmp_path, strange, "@m_RHEL", 1, error="-1", steps=10**30) / "metrics.jsonl").write_text(DAMAGED[-1])
    runs = read_runs(tmp_path)
    own = runs[runs["dataset"] == "Own"]
    assert list(own["status"]) == [*["damaged"] * len(DAMAGED), "failed"]
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
        f"Own LinHRU RHEL: seed 1 damaged: metric accuracy: {why}",
        f"Own LinHRU RHEL: seed 2 damaged: metric mse: {why}",
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
    pictures = ["curves/Heartbeat.png", "curves/ppg.png", "differences.png", "results.png"]
    assert names == sorted(["results.md", "results.csv", "results.tex", "runs.csv", *pictures])
    assert all((summary / name).read_bytes().startswith(b"\x89PNG") for name in pictures)
    assert {path: path.read_bytes() for path in before} == before

    report = (summary / "results.md").read_text()
    printed = capsys.readouterr().out
    assert "Heartbeat LinHRU % 65.0 ± 7.1 * 65.0 ± 7.1 * 0.0 100 to 200 2" in " ".join(printed.split())
    assert printed[printed.index("Runs that are missing") :].rstrip() in report
    row = "| Heartbeat | LinHRU | accuracy, % | 65.0 ± 7.1 * | 2 | 100 to 200 | 73.9 ± 0.6 |"
    row += " 65.0 ± 7.1 * | 2 | 100 to 200 | 73.5 ± 1.6 |"
    assert f"{row} 0.0 | - | 2 seeds | - |" in report
    assert "sample standard deviation" in report
    assert "- EigenWorms LinHRU RHEL: seed 1 failed: a|b" in report
    tex = (summary / "results.tex").read_text()
    assert r"Heartbeat & LinHRU & accuracy, \% & 65.0 $\pm$ 7.1 * & 2 & 100 to 200 &" in tex
    assert len({line.count("&") for line in tex.splitlines() if "&" in line}) == 1
    with open(summary / "results.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["dataset"] for row in rows] == ["Heartbeat", "ppg"]
    assert float(rows[0]["RHEL_std_accuracy_percent"]) == pytest.approx(math.sqrt(50))
    with open(summary / "runs.csv", newline="") as file:
        runs = list(csv.DictReader(file))
    assert len(runs) == 9
    assert (runs[1]["status"], runs[1]["seconds"]) == ("completed", "1.5")
    assert (runs[1]["test_accuracy_percent"], runs[1]["test_mse"], runs[-1]["test_mse"]) == ("60.0", "", "0.1")
    assert (int(float(runs[1]["peak_memory_host_bytes"])), runs[1]["peak_memory_device_bytes"]) == (3 * 2**30, "")

    # Written again it is the same, and takes no part in what is read.
    first = {path: path.read_bytes() for path in summary.rglob("*") if path.is_file()}
    assert postprocess_results.main([str(outputs)]) == 0
    csv_again = (summary / "results.csv").read_bytes()
    assert csv_again == first[summary / "results.csv"]


def test_only_failed_runs_are_reported_without_a_figure(tmp_path, capsys):
    put(tmp_path, "Own", "LinHRU_RHEL", 1, None, status="failed", error="x")
    assert postprocess_results.main([str(tmp_path), "--output_dir", str(tmp_path / "there")]) == 1
    printed = capsys.readouterr()
    assert "- Own LinHRU RHEL: seed 1 failed: x" in printed.out
    assert "error: no run is completed" in printed.err
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
