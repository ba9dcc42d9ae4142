"""--set: values of any field, grids with a folder for each setting, and what a terminal shows of a run."""

import io
import os
import pty
import re
import select
import struct
import sys
import termios
from fcntl import ioctl
from pathlib import Path
from types import SimpleNamespace

import pytest
from small_experiments import read, refusal, run, snapshot

import run_experiment
import train
from runs import progress, settings, train_all
from runs.command import parse
from runs.progress import RunProgress
from runs.selection import select_configs

SCHEDULE = "cosine_decay_schedule(lr, 100)"


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("lr=0.001,1e-3,x", [0.001, 0.001, "x"]),
        (f"lr_scheduler=lr,{SCHEDULE},0.5 * lr", ["lr", SCHEDULE, "0.5 * lr"]),
        ('split="a,b(",c', ["a,b(", "c"]),
        ("epsilon=null,true", [None, True]),
        ("a=b=c", ["b=c"]),
        ("a=[1, 2],{}", ["[1, 2]", "{}"]),
        ("a=" + "9" * 5000, ["9" * 5000]),
    ],
)
def test_values_are_split_at_commas_outside_brackets_and_quotes(text, values):
    assert list(settings.parse([text]).values()) == [values]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--set lr", "--set: 'lr' is not FIELD=VALUE, as in lr=0.003"),
        ("--set lr=0.1, 0.2", "--set: 'lr=0.1,': an empty value"),
        ("--set lr=", "an empty value"),
        ("--set lr=1 --set lr=2", "lr is given twice"),
        ("--set num_steps=1 --num_steps 2", "num_steps is given twice, here and by --num_steps"),
        ("--set lr_scheduler=f(lr", "quotes or brackets that do not match"),
        ('--set split="a', "quotes or brackets that do not match"),
        ("--set seeds=1", "seeds is set by --seeds"),
        ("--set output_parent_dir=x", "output_parent_dir is set by --output_parent_dir"),
        ("--set unit=a.py:A", "unit is set by the config file"),
        ("--evaluate x --set lr=1", "--set: it has no effect on --evaluate, which takes the settings of the run"),
        ("--no_timing", "--no_timing: it goes with --plan"),
    ],
)
def test_a_setting_that_cannot_be_read_ends_in_one_line(capsys, flags, message):
    assert message in refusal(capsys, flags)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ("lrr=3", "Tiny.json with --set lrr=3: unknown field lrr (3): did you mean lr?"),
        ("lr=0.1,-1 hidden_dim=8", "Tiny.json with --set lr=-1 hidden_dim=8: lr is -1: allowed is a positive number"),
        ("lr=0.001,0.0010", "--set: two settings are the same: lr=0.001"),
        ("metric=mse", '--set metric=mse: metric is "mse": classification is measured by accuracy'),
        ("batch_size=4,15", "batch_size 15: must not exceed the 14 samples"),
    ],
)
def test_every_setting_is_checked_before_the_first_run(workplace, capsys, values, message):
    assert run("--dataset_name", "Tiny", "--set", *values.split()) == 2
    assert message in capsys.readouterr().err
    assert not Path("outputs").exists()


def folders(*values, flags=()):
    """The folders of the settings, below outputs."""
    arguments = parse(["--config_dir", "configs", "--dataset_name", "Tiny", "--set", *values, *flags])
    return [str(Path(config.output_parent_dir).relative_to("outputs")) for config in select_configs(arguments)]


def test_a_setting_has_a_readable_folder_that_no_other_has(workplace):
    assert folders("hidden_dim=04", "lr=0.0010") == folders("lr=1e-3", "hidden_dim=4") == ["lr=0.001,hidden_dim=4"]
    assert folders("num_steps=8,9", flags=["--batch_size", "2"]) == ["num_steps=8", "num_steps=9"]
    assert folders("standardise=True,false", "epsilon=None,0.1") == [
        f"standardise={standardise},epsilon={epsilon}"
        for standardise in ("true", "false")
        for epsilon in ("null", "0.1")
    ]
    # What a file name cannot hold is replaced, and a hash tells such names apart.
    names = folders(f"lr_scheduler=0.5 * lr,0.5*lr,{SCHEDULE}")
    assert re.fullmatch(r"lr_scheduler=0\.5_lr~[0-9a-f]{8}", names[0])
    assert re.fullmatch(r"lr_scheduler=0\.5_lr~[0-9a-f]{8}", names[1])
    assert len(set(names)) == 3
    assert settings.folder_name({"split": "../a/b"}).startswith("split=.._a_b~")
    long = [settings.folder_name({"split": "x" * 300 + end, **{f"f{n}": n for n in range(90)}}) for end in "ab"]
    assert len(set(long)) == 2
    assert all(len(name.encode()) <= settings.MAX_NAME for name in long)


def test_a_grid_has_a_folder_for_each_setting(workplace, capsys):
    """Each is a run like any other: kept, continued, overwritten and evaluated."""
    # BPTT, because it compiles fastest.
    command = ("--dataset_name", "Tiny", "--seeds", "1", "--learning_algorithm", "BPTT")
    # They are settings of one compiled step.
    grid = ("--set", "split=seed,original", "lr=0.010")
    assert run(*command, *grid) == 0
    out = capsys.readouterr().out
    splits = ("seed", "original")
    places = [Path("outputs", f"lr=0.01,split={split}", "Tiny", "LinHRU_BPTT", "seed_1") for split in splits]
    for place, split in zip(places, splits, strict=True):
        assert read(place / "config.json")["config"]["split"] == split
        assert f"Tiny LinHRU BPTT lr=0.01,split={split} seed 1: test accuracy" in out
        assert f"LinHRU  BPTT       {f'lr=0.01,split={split}':<22}  1 " in out  # in the table
    models = [(place / "model.eqx").read_bytes() for place in places]
    assert models[0] != models[1]
    before = snapshot(Path("outputs"))
    assert run(*command, *grid) == 0
    assert snapshot(Path("outputs")) == before
    assert run_experiment.main(["--evaluate", str(places[1])]) == 0
    # Another value meets neither; the setting of the config is the run without --set.
    assert run(*command, "--num_steps", "6", "--set", "lr=0.01", "split=original") == 0
    note = "continues the finished run of 4 steps; its result and model are kept until the first new checkpoint or a "
    assert f"Tiny LinHRU BPTT lr=0.01,split=original seed 1: {note}failure\n" in capsys.readouterr().err
    assert [read(place / "result.json")["steps"] for place in places] == [4, 6]
    assert run(*command, "--set", "lr=0.01", "split=seed", "--overwrite") == 0
    assert (places[0] / "model.eqx").read_bytes() == models[0]
    assert snapshot(places[0]) != {path: file for path, file in before.items() if path.is_relative_to(places[0])}


# The terminal


EVALUATION = train.Evaluation(*[0.5] * len(train.Evaluation._fields))._replace(retrace_error=None)
CONFIG = SimpleNamespace(num_steps=100_000, metric="accuracy")
DATASET = SimpleNamespace(train=SimpleNamespace(size=14), length=8, data_dim=3)


@pytest.mark.parametrize("columns", [60, 80])
def test_the_bar_of_a_narrow_terminal_never_cuts_the_metric(monkeypatch, columns):
    ours, theirs = pty.openpty()
    ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    clock = iter(range(0, 10**6, 1000))
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(clock)))
    with os.fdopen(theirs, "w") as terminal, monkeypatch.context() as patched:
        patched.setattr(sys, "stderr", terminal)
        with RunProgress("Tiny LinHRU RHEL lr=0.001,hidden_dim=16 seed 1", CONFIG, None) as display:
            display.bar.mininterval = 0
            display.start(DATASET, 1234)
            for step in (1, 2, 3):
                display.step(step, step / 10)
            display.evaluation(EVALUATION)
            for step in (4, 5, 6):
                display.step(step, step / 10)
        terminal.flush()
        shown = b""
        while select.select([ours], [], [], 0.1)[0]:
            shown += os.read(ours, 10_000)
    os.close(ours)
    frames = [frame for frame in re.split(r"[\r\n]+", shown.decode()) if frame.strip()]
    heading = "Tiny LinHRU RHEL lr=0.001,hidden_dim=16 seed 1: 1,234 parameters, 100000 steps, 14 training series x "
    bars = [frame for frame in frames if not frame.startswith("Tiny")]
    assert frames[1] == f"{heading}8 time steps x 3 channels"
    assert all(len(bar) < columns for bar in bars)
    # It says "compiling" until the first step, and the time left counts from there and from the first evaluation.
    starts = [re.split(r" \|", bar)[0] for bar in bars]
    assert starts[:2] == ["compiling", "compiling"]
    assert starts[2:4] == ["loss 0.1000, 1/100000", "loss 0.2000, 2/100000"]
    assert starts[4:6] == ["loss 0.3000, 27776:56:40 left, 3/100000", "loss 0.4000, val accuracy 0.5000, 4/100000"]
    assert starts[7].startswith("loss 0.6000, val accuracy 0.5000, 27776:06:40 left")
    assert starts[7].endswith("6/100000") == (columns == 80)


def test_without_a_terminal_there_is_a_line_every_ten_seconds_and_the_last_one(monkeypatch):
    now, written = [0.0], io.StringIO()
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with monkeypatch.context() as patched:
        patched.setattr(sys, "stderr", written)
        with RunProgress("Tiny", CONFIG, None) as display:
            for number in range(1, 25):
                display.step(number, 0.5)
                display.evaluation(EVALUATION._replace(step=number))
                now[0] += 1
    text = written.getvalue()
    assert re.findall(r"step (\d+)/100000", text) == ["1", "11", "21", "24"]
    assert "\r" not in text
    assert len(text.splitlines()) == 4


def test_a_small_error_keeps_its_digits(monkeypatch):
    small, written = 1.2346e-7, io.StringIO()
    config = SimpleNamespace(num_steps=1, metric="mse")
    with monkeypatch.context() as patched:
        patched.setattr(sys, "stderr", written)
        with RunProgress("Tiny", config, None) as display:
            display.evaluation(EVALUATION._replace(loss=small, train_metric=small, val_metric=small))
    assert "loss 1.235e-07, mse 1.235e-07 (validation 1.235e-07)" in written.getvalue()
    result = {"status": "completed", "test_metric": small, "val_metric": small, "best_step": 1, "steps": 1}
    assert train_all._outcome(config, result).startswith("test mse 1.235e-07, validation 1.235e-07 at step 1 of 1")
    names = SimpleNamespace(dataset_name="a", model_name="b", learning_algorithm="c", output_parent_dir="o")
    names.classification = False
    assert "1.235e-07 ± 0" in train_all.results_table([(names, [result, result])])
