"""What runs would take, lists of runs in one command, and what is refused before the first of them trains."""

import contextlib
import io
import itertools
import json
import re
import time
from datetime import datetime, timedelta
from typing import NamedTuple

import jax
import pytest
from small_experiments import HERE, REGRESSION, refusal, small_config, write_config, write_dataset

import run_experiment
import train
from data_dir.splits import split_by_seed, write_index_file
from experiment_configs.schema import ExperimentConfig
from models import create_model
from runs import planning
from runs.command import parse
from runs.folder import run_folder
from runs.run import run_seed
from runs.selection import select_configs
from training import dispatch


@pytest.fixture
def workplace(workplace):
    """Both sets have configs for both models."""
    for name, changes in (("Tiny", {}), ("Pulse", REGRESSION)):
        write_configs(name, **changes)
    return workplace


def write_configs(name, **changes):
    for model, options in (("LinHRU", {}), ("NonlinHRU", {"complex_ssm": False})):
        write_config({**HERE, "dataset_name": name, "model_name": model, **options, **changes}, model)


def command(*flags):
    return run_experiment.main(["--config_dir", "configs", *flags])


@pytest.fixture
def trained(monkeypatch):
    """No run trains: these tests ask which ones would. Those named in `failing` fail in their own way."""
    names, failing = [], {}

    def run_seed(config, seed, **_):
        name = f"{config.dataset_name} {config.model_name} {config.learning_algorithm} {seed}"
        names.append(name)
        if name in failing:
            raise failing[name]
        return {
            **{"status": "completed", "best_step": 1, "steps": 1, "seconds": 0.0},
            **{"test_metric": 0.5, "val_metric": 0.5},
        }

    monkeypatch.setattr("runs.train_all.run_seed", run_seed)
    return names, failing


# Planning


class Planned(NamedTuple):
    """A plan of three runs by the command, once for all tests."""

    status: int
    printed: str
    config: ExperimentConfig
    needs: planning.Needs
    times: planning.Times
    dispatches: list  # how many steps were sent in each


@pytest.fixture(scope="module")
def planned(tmp_path_factory):
    folder, measured, dispatches, printed = tmp_path_factory.mktemp("planned"), [], [], io.StringIO()
    needs, times, train_steps = planning.Planning.needs, planning.Planning.times, train.train_steps

    def noted(method):
        return lambda self: measured.append(method(self)) or measured[-1]

    def counted(batches, *rest):
        dispatches.append(int(batches[-1]))
        return train_steps(batches, *rest)

    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.chdir(folder)
        write_dataset(folder, "Tiny")
        write_config({**HERE, "dataset_name": "Tiny", "num_steps": 40, "print_steps": 10})
        patch.setattr(planning.Planning, "needs", noted(needs))
        patch.setattr(planning.Planning, "times", noted(times))
        patch.setattr(train, "train_steps", counted)
        patch.setattr(planning, "TIMED_STEPS", 7)
        # As many at once as the loop would send: here two batches.
        patch.setattr(dispatch, "DISPATCH_BYTES", 2 * 4 * (4 * 8 * 3 + 4 * 2))
        status = command("--plan", "--dataset_name", "Tiny", "--seeds", "1", "2", "3")
        (config,) = select_configs(parse(["--config_dir", "configs", "--dataset_name", "Tiny"]))
    assert not (folder / "outputs").exists()
    return Planned(status, printed.getvalue(), config, *measured, dispatches)


def test_a_plan_tells_parameters_memory_disk_and_time(planned):
    needs, times = planned.needs, planned.times
    options = planned.config.model_options()
    model, _ = create_model(data_dim=3, label_dim=2, key=jax.random.PRNGKey(0), **options)
    assert needs.parameters == train.count_parameters(model)
    # The step is given model, state, both moments of Adam and the batch: 32 bits each.
    batch = 4 * (8 * 3 + 2)
    assert 4 * (3 * needs.parameters + batch) < needs.arguments < 4 * (3 * needs.parameters + batch) + 200
    assert needs.temporaries > 4 * 8 * 4 * planned.config.hidden_dim  # a batch between two blocks
    assert times.per_1000_steps > 0
    assert times.longest > 3 * 40 * times.per_1000_steps / 1000
    assert times.steps == 7


def test_the_disk_that_is_planned_holds_a_run_with_its_checkpoints(workplace, planned):
    config = small_config(workplace, "Tiny", num_steps=4, print_steps=1)
    assert run_seed(config, 1)["status"] == "completed"
    used = sum(path.stat().st_size for path in run_folder(config, 1).rglob("*") if path.is_file())
    # Both have four evaluations. What is not computed has the bounds that the plan takes.
    bounds = planning.BYTES_OF_OTHER_FILES + planning.KEPT * planning.BYTES_PER_CHECKPOINT
    assert used < planned.needs.disk / 3 < used + bounds


def test_exactly_the_steps_that_are_said_are_timed(planned):
    assert planned.dispatches == [1, 1, 2, 2, 2, 1]  # the first compiles, the second tells how many can be timed


def test_the_plan_of_a_command_is_a_table_with_an_end(planned):
    head, row, total, note = planned.printed.splitlines()
    assert planned.status == 0
    assert head.split()[:5] == ["data", "set", "model", "algorithm", "runs"]
    assert row.split()[:4] == ["Tiny", "LinHRU", "RHEL", "3"]
    assert re.search(r" MiB +\d+\.\d +0:\d\d:\d\d$", row)
    assert re.match(r"3 runs, one after the other: at most 0:\d\d:\d\d, until \d{4}-\d\d-\d\d \d\d:\d\d\.", total)
    assert "XLA" in note


def test_the_timing_of_a_slow_step_ends_in_time_and_the_cell_says_so(workplace, planned, monkeypatch, capsys):
    """The clock gives every step 25 s; 60 s hold two of them, one for the estimate."""
    seconds = itertools.count(0, 25)
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(seconds)))
    monkeypatch.setattr(planning, "_seconds_per_evaluation", lambda *_: 0.0)
    # The step is the one of `planned`, already compiled.
    monkeypatch.setattr(planning, "TIMED_STEPS", 2)
    monkeypatch.setattr(planning.Planning, "needs", lambda _: planned.needs)
    assert command("--dataset_name", "Tiny", "--seeds", "1", "--plan") == 0
    row = capsys.readouterr().out.splitlines()[1]
    assert re.search(r"  25,000\.0 +0:01:40 \(1 timed in 60 s\)$", row)


@pytest.fixture
def measured(monkeypatch):
    """Nothing is measured: the numbers are given."""
    asked = []

    class Given:
        def __init__(self, config, runs, devices):
            asked.append(runs)

        def needs(self):
            return planning.Needs(1234, 2**20, 2**21, 2**19)

        def times(self):
            return planning.Times(12.34, 100_000.0, planning.TIMED_STEPS)

    monkeypatch.setattr(planning, "Planning", Given)
    return asked


def test_a_plan_counts_the_runs_that_the_command_would_make(workplace, measured, capsys):
    """A finished run takes nothing, unless it is made again or continued."""
    flags = ("--dataset_name", "Tiny", "--set", "print_steps=1,2", "--seeds")  # of one compiled step
    assert command(*flags, "1") == 0
    for more in (("2",), ("2", "--overwrite"), ("--num_steps", "6"), ()):
        capsys.readouterr()
        assert command(*flags, "1", *more, "--plan") == 0
    assert measured == [1, 1, 2, 2, 1, 1]
    _, *rows, total, _ = capsys.readouterr().out.splitlines()
    assert [row.split()[3:5] for row in rows] == [["print_steps=1", "0"], ["print_steps=2", "0"]]
    assert all(row.endswith("0  finished") for row in rows)
    assert total.startswith("0 runs, one after the other: at most 0:00:00, ")


def test_rows_come_one_by_one_and_the_end_is_that_of_all_runs(workplace, measured, monkeypatch, capsys):
    until = datetime.now() + timedelta(seconds=200_000)
    assert command("--dataset_name", "Tiny", "--learning_algorithm", "all", "--plan") == 0
    out, err = capsys.readouterr()
    _, row, _, total, _ = out.splitlines()
    assert row.split() == [
        *("Tiny", "LinHRU", "RHEL", "2", "1,234", "1.0", "MiB", "2.0", "MiB", "0.5", "MiB"),
        *("12.3", "1", "day,", "3:46:40"),
    ]
    assert total.startswith(f"4 runs, one after the other: at most 2 days, 7:33:20, until {until:%Y-%m-%d}")
    assert re.search(r"BPTT \(2 of 2, about 0:00:0\d left\)$", err.rstrip())

    # Memory and disk are printed before the timing, which --no_timing leaves out.
    def lost(self):
        out = capsys.readouterr().out
        assert out.endswith("0.5 MiB      ")
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(planning.Planning, "times", lost)
        assert command("--dataset_name", "Tiny", "--plan") == 130
        out, err = capsys.readouterr()
        assert out == "\n"
        assert err.endswith("\nInterrupted.\n")  # a plan does not resume
        assert command("--dataset_name", "Tiny", "--plan", "--no_timing") == 0
    head, row, total, _ = capsys.readouterr().out.splitlines()
    assert head.endswith("disk")
    assert row.split()[-2:] == ["0.5", "MiB"]
    assert total == "2 runs."


@pytest.mark.parametrize("method", ["needs", "times"])
def test_a_step_that_does_not_fit_into_memory_is_a_row_of_its_own(workplace, measured, monkeypatch, capsys, method):
    whole = getattr(planning.Planning, method)

    def exhausted(self):
        if len(measured) == 1:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory\nallocations ..")
        return whole(self)

    monkeypatch.setattr(planning.Planning, method, exhausted)
    assert command("--plan", "--dataset_name", "Tiny", "--learning_algorithm", "all") == 1
    _, bad, good, total, _ = capsys.readouterr().out.splitlines()
    assert bad.split()[:4] == ["Tiny", "LinHRU", "RHEL", "2"]
    assert bad.endswith("  RESOURCE_EXHAUSTED: out of memory")
    assert good.endswith("1 day, 3:46:40")
    assert total.startswith("4 runs (1 row could not be measured), one after the other: at most 1 day, 3:46:40, ")


# Lists


def test_lists_run_in_order_and_none_twice(workplace, trained, capsys):
    names, _ = trained
    flags = "--dataset_name Pulse Tiny Pulse --model_name all LinHRU --learning_algorithm all --seeds 1 2"
    assert command(*flags.split()) == 0
    assert names == [
        f"{dataset} {model} {algorithm} {seed}"
        for dataset in ("Pulse", "Tiny")
        for model in ("LinHRU", "NonlinHRU")
        for algorithm in ("RHEL", "BPTT")
        for seed in (1, 2)
    ]
    lines = [line for line in capsys.readouterr().out.splitlines() if " seed " in line]
    assert [line.partition(":")[0] for line in lines] == [name[:-1] + "seed " + name[-1] for name in names]


def test_every_algorithm_can_be_named(workplace, trained):
    names, _ = trained
    assert command("--dataset_name", "Tiny", "--learning_algorithm", "ReversibleBPTT", "BPTT", "--seeds", "1") == 0
    assert names == ["Tiny LinHRU ReversibleBPTT 1", "Tiny LinHRU BPTT 1"]


def test_all_data_sets_are_the_published_ones_that_are_processed(workplace, trained, capsys):
    names, _ = trained
    write_configs("ppg", **REGRESSION)
    for name in ("EigenWorms", "SelfRegulationSCP1", "SelfRegulationSCP2", "EthanolConcentration", "MotorImagery"):
        write_configs(name)
    write_configs("Heartbeat")
    assert command("--dataset_name", "all", "--seeds", "1") == 2
    assert "none of the seven published sets is processed" in capsys.readouterr().err
    for name in ("Heartbeat", "EigenWorms"):
        write_dataset(workplace, name)
    assert command("--dataset_name", "Tiny", "all", "--model_name", "all", "--seeds", "1") == 0
    sets = ("Tiny", "EigenWorms", "Heartbeat")
    assert names == [f"{name} {model} RHEL 1" for name in sets for model in ("LinHRU", "NonlinHRU")]
    output = capsys.readouterr().out
    assert output.count("Left out: dataset_name 'SelfRegulationSCP1'") == 1
    assert "python data_dir/download_uea.py --datasets MotorImagery" in output
    assert "python data_dir/process_ppg.py" in output
    # One that is named is not left out in silence.
    assert command("--dataset_name", "all", "MotorImagery") == 2
    assert "dataset_name 'MotorImagery': no folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(28, "No space left on device", "outputs/x"), "FAILED, outputs/x: No space left on device"),
        (MemoryError(), "FAILED, MemoryError"),
        (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED"), "FAILED, RESOURCE_EXHAUSTED"),
        (TypeError("a defect"), "FAILED, a defect"),
    ],
)
def test_a_run_that_fails_in_any_way_does_not_stop_the_others(workplace, trained, capsys, error, message):
    names, failing = trained
    failing["Tiny LinHRU RHEL 1"] = error
    assert command("--dataset_name", "Tiny", "--learning_algorithm", "all") == 1
    assert len(names) == 4
    output = capsys.readouterr()
    assert message in output.out
    assert "1 of 4 runs failed." in output.err
    assert ("Traceback" in output.err) is isinstance(error, TypeError)


@pytest.mark.parametrize(("failed", "status"), [([], 0), ([1], 1), ([1, 2], 1)])
def test_the_exit_status_is_1_for_any_number_of_failed_runs(workplace, trained, failed, status):
    _, failing = trained
    failing |= {f"Tiny LinHRU RHEL {seed}": MemoryError() for seed in failed}
    assert command("--dataset_name", "Tiny") == status


# What is refused before the first run


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--dataset_name Tiny Large", "batch_size 15: must not exceed the 14 samples of the training part of Large"),
        ("--dataset_name Tiny Pulse --batch_size 15", "samples of the training part of Tiny"),
        ("--dataset_name Tiny Broken", "Broken.json: not JSON, line 1 column 2"),
        ("--dataset_name Tiny Unknown", "Unknown.json: unknown field lrr (0.1): did you mean lr?"),
        ("--dataset_name Tiny Uneven", "index.json: names no rows for seed 2"),
        ("--dataset_name Tiny all", "no config for the data set 'EigenWorms'"),
    ],
)
@pytest.mark.parametrize("plan", [[], ["--plan"]])
def test_what_cannot_be_done_is_noticed_before_the_first_run(workplace, trained, capsys, plan, flags, message):
    names, _ = trained
    write_dataset(workplace, "Large")
    write_configs("Large", batch_size=15)
    (workplace / "configs" / "LinHRU" / "Broken.json").write_text("{]")
    fields = json.loads((workplace / "configs" / "LinHRU" / "Tiny.json").read_text())
    unknown = {**fields, "lrr": 0.1, "dataset_name": "Unknown"}
    (workplace / "configs" / "LinHRU" / "Unknown.json").write_text(json.dumps(unknown))
    write_dataset(workplace, "Uneven")
    write_configs("Uneven", split="index.json")
    write_index_file(workplace / "index.json", "Uneven", 20, {1: split_by_seed(20, 1)})
    assert command(*flags.split(), *plan) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not names
    assert not (workplace / "outputs").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--model_name LinHRU GRU", "invalid choice: 'GRU'"),
        ("--learning_algorithm all EP", "invalid choice: 'EP'"),
        ("--learning_algorithm", "expected at least one argument"),
        ("--plann", "unrecognized arguments: --plann"),
    ],
)
def test_a_wrong_name_in_a_list_ends_in_one_line(capsys, flags, message):
    assert message in refusal(capsys, flags)
