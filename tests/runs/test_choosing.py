"""Settings: their rows in the comparison, and the choice among them by validation."""

import csv

import pytest
from finished_runs import put

import postprocess_results
from runs.choosing import by_validation
from runs.comparison import compare, read_runs
from runs.summary import cells


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
    assert max(map(len, out.splitlines())) <= 100
    summary = tmp_path / "outputs" / "summary"
    head, _, *rows = [line for line in (summary / "results.md").read_text().splitlines() if line.startswith("|")]
    assert head.startswith("| data set | model | setting | metric | BPTT | seeds | steps | RHEL |")
    assert [row.split(" | ")[2] for row in rows] == ["(as configured)", "lr=a", "lr=b", "lr=c", "lr=d"]
    assert rows[2].startswith("| Own | LinHRU | lr=b | accuracy, % | 60.0 ± 0.0 | 3 | 10 | 40.0 ± 0.0 | 3 | 10 |")
    assert rows[0].startswith("| Own | LinHRU | (as configured) | accuracy, % | - | 0 | - | 30.0 | 1 | 20 |")
    assert "- Own LinHRU RHEL lr=c: seed 2 failed" in out
    assert "- Own LinHRU BPTT (as configured): seed 1 missing" in out
    table = [" ".join(line.split()) for line in out.splitlines()]
    assert table[0] == "data set model setting metric BPTT RHEL RHEL - BPTT steps seeds"
    assert table[1:3] == [
        "Own LinHRU (as configured) % - 30.0 - 20 1",
        "Own LinHRU lr=a % 40.0 ± 0.0 60.0 ± 0.0 20.0 10 2",
    ]
    # Named one by one they are the same, without the runs beside them, and a folder counts once.
    assert postprocess_results.main(["outputs/lr=a", "outputs/lr=b", "outputs/lr=a", "outputs/lr=a/Own"]) == 0
    again = capsys.readouterr()
    assert [" ".join(line.split()) for line in again.out.splitlines()][1:3] == table[2:4]
    assert again.err.startswith("outputs/lr=a/Own: no runs here\n")
    assert (tmp_path / "outputs" / "summary" / "results.png").exists()
    assert postprocess_results.main(["outputs", "outputz"]) == 2
    assert "error: outputz: no runs" in capsys.readouterr().err


def test_the_setting_is_chosen_by_validation_alone(tmp_path, capsys):
    folders = grid(tmp_path)
    assert postprocess_results.main([*map(str, folders), "--select", "validation"]) == 0
    out = capsys.readouterr().out
    report = (tmp_path / "summary" / "results.md").read_text()
    head, _, *rows = [line for line in report.splitlines() if line.startswith("|")]
    assert head.startswith("| data set | model | metric | BPTT | seeds | steps | setting | RHEL | seeds |")
    # RHEL and BPTT are compared with a setting of their own each.
    (row,) = rows
    assert row.startswith(
        "| Own | LinHRU | accuracy, % | 40.0 ± 0.0 | 2 | 10 | lr=a (of 4) | 40.0 ± 0.0 | 3 | 10 | lr=b (of 4) |"
    )
    assert row.endswith("| 0.0 | - | 2 seeds | - |")
    # Seed 3 is better than the others, but only this setting has it.
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
    chosen, (line,), _ = by_validation(read_runs(tmp_path))
    assert chosen["taken"].to_list() == [f"lr={taken}"]
    assert chosen["of"].to_list() == [4]
    assert "; equal: lr=z; lr=w takes no part: seed 1 has no finite val_metric" in line


@pytest.mark.parametrize(
    ("losses", "taken", "text"),
    [
        ((2e-5, 1.2346e-5), "lr=b", "loss 1.235e-05 over seed 1"),
        ((2e-5, None), "lr=a", "mse 1.235e-07 over seed 1"),  # a run of an earlier version
    ],
    ids=["loss", "mse"],
)
def test_a_regression_is_chosen_by_the_loss_that_the_training_takes(tmp_path, losses, taken, text):
    """Of several outputs, the mse follows the one with the largest unit. A small mse keeps its digits."""
    for setting, mse, loss in zip("ab", (1.2346e-7, 2e-7), losses, strict=True):
        fields = {"metric": "mse", "val_metric": mse} | ({} if loss is None else {"val_loss": loss})
        put(tmp_path / f"lr={setting}", "Own", "LinHRU_RHEL", 1, 5.4321e-8, **fields)
    chosen, (line,), _ = by_validation(read_runs(tmp_path))
    assert chosen["taken"].to_list() == [taken]
    assert f"{taken} (of 2), validation {text}" in line
    assert "5.432e-08" in cells(compare(chosen))[1]


def test_settings_below_settings_are_read_in_the_order_of_their_numbers(tmp_path):
    settings = ["lr=1e-4", "lr=0.001,dim=8", "lr=0.001,dim=16", "lr=1", "lr=1/dim=8", "lr=1/dim=16"]
    for name in (".", *settings):
        put(tmp_path / name, "Own", f"LinHRU_{'RHEL' if name in settings[2:4] else 'BPTT'}", 1)
    assert compare(read_runs(tmp_path))["setting"].to_list() == ["(as configured)", *settings]


def test_settings_are_compared_over_the_seeds_that_most_of_them_have(tmp_path, capsys):
    """As after the first command of the docs, whose run has another seed."""
    for setting, seeds in ((".", (2345,)), ("lr=0.001", (1, 2)), ("lr=0.01", (1, 2)), ("lr=0.1", (1,))):
        for seed in seeds:
            fields = {"val_metric": 0.9 if setting == "." else 0.8 if setting == "lr=0.01" else 0.7}
            put(tmp_path / setting, "Own", "LinHRU_RHEL", seed, **fields)
    put(tmp_path, "Own", "NonlinHRU_RHEL", 2345, val_metric=0.8)  # its seed is not missing in a setting of LinHRU
    assert postprocess_results.main([str(tmp_path), "--select", "validation"]) == 0
    out = capsys.readouterr().out
    assert "missing" not in out
    assert "No run of these settings has failed." in out
    assert "Own LinHRU RHEL: lr=0.01 (of 4), validation accuracy, % 80.0 over seed 1; " in out
    assert "; (as configured) takes no part: it has seed 2345, not 1\n" in out


def test_settings_without_a_common_seed_are_not_compared(tmp_path, capsys):
    for seed in (1, 2):
        put(tmp_path / f"lr={seed}", "Own", "LinHRU_RHEL", seed, val_metric=0.5)
    assert postprocess_results.main([str(tmp_path), "--select", "validation"]) == 1
    printed = capsys.readouterr()
    assert "none has failed" not in printed.out
    assert printed.err.splitlines()[-1] == (
        "postprocess_results.py: error: Own LinHRU RHEL: none can be chosen: no seed belongs to more than half of the "
        "settings: lr=1 has seed 1, lr=2 has seed 2; train the settings with the same --seeds, or name only the "
        "folders to compare"
    )
