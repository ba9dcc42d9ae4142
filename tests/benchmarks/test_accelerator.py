"""The counts of a training step on a GPU: the program for CUDA, the table, the bounds, the plugin, and on_gpu.py."""

import collections
import json
import re
import sys
from pathlib import Path

import jax
import pytest
from small_experiments import write_dataset

from benchmarks import accelerator, on_gpu
from benchmarks.accelerator import TINY, lowered_step
from benchmarks.gpus import GPUS, PluginError, library, tracing_for
from benchmarks.step import problem
from models.create import MODELS
from models.rhel import RHEL
from runs import command

ROOT = Path(__file__).resolve().parents[2]
DEVICE = type("Device", (), {"platform": "gpu"})()
COUNTS = {"kernels": 1234.0, "GiB": 1.5, "temporaries MiB": 30.0, "modelled ms": 4.0}


@pytest.mark.parametrize("model_name", MODELS)
def test_the_training_step_is_lowered_for_cuda_with_the_program_for_a_gpu(model_name):
    """It needs no plugin."""
    step, *arguments = lowered_step(problem(model_name, "SelfRegulationSCP1", **TINY), RHEL())

    def program():
        return jax.jit(step).trace(*arguments).lower(lowering_platforms=("cuda",)).as_text()

    of_cpu = program()
    with tracing_for(DEVICE):
        on_gpu = program()
    assert operations(on_gpu) != operations(of_cpu) == operations(program())
    assert all("f64" not in line and "bf16" not in line for line in on_gpu.splitlines() if "dot_general" in line)
    assert jax.devices()[0].platform == "cpu"


def operations(program):
    """How often each operation occurs, but for the choice of the platform."""
    found = collections.Counter(re.findall(r"stablehlo\.\w+", program))
    return {name: number for name, number in found.items() if name not in ("stablehlo.case", "stablehlo.constant")}


def counting(monkeypatch, counts=COUNTS):
    """Count nothing; return what would have been counted."""
    asked = []

    def counted(settings, algorithm, target, plugin, functions):
        asked.append((settings["length"], type(algorithm).__name__, target))
        return dict(counts)

    monkeypatch.setattr(accelerator, "counted", counted)
    return asked


def run(*flags):
    return accelerator.main(["--dataset_name", "Heartbeat", "--algorithm", "RHEL", "--output_dir", "out", *flags])


def test_a_row_is_written_when_it_is_done_and_counted_again_if_the_code_changes(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    asked = counting(monkeypatch)
    assert run("--model_name", "LinHRU") == 0
    assert run("--algorithm", "RHEL", "straightforward") == 0  # of NonlinHRU there is none
    assert asked == [(405, "RHEL", "H100"), (405, "Straightforward", "H100"), (405, "RHEL", "H100")]
    head, rule, *lines = (tmp_path / "out" / "accelerator.md").read_text().splitlines()
    assert head.startswith("| data set | model | algorithm | kernels | GiB | temporaries MiB |")
    assert [line.split(" | ")[1:5] for line in lines] == [
        ["LinHRU", "RHEL", "1,234", "1.5"],
        ["LinHRU", "straightforward", "1,234", "1.5"],
        ["NonlinHRU", "RHEL", "1,234", "1.5"],
    ]
    assert "\n".join((head, rule, *lines)) in capsys.readouterr().out
    monkeypatch.setattr(accelerator, "version", lambda: "another")
    run("--model_name", "LinHRU")
    assert len(asked) == 4
    assert len(json.loads((tmp_path / "out" / "accelerator.json").read_text())["rows"]) == 1


def test_counts_over_their_bounds_are_named(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(accelerator, "BOUNDS", tmp_path / "bounds.json")
    counting(monkeypatch)
    assert run("--record") == run("--check") == 0
    assert "all counts are within" in capsys.readouterr().out
    bounds = json.loads((tmp_path / "bounds.json").read_text())
    row = bounds["rows"][0]
    assert [row[x] for x in accelerator.BOUNDED] == [1258.68, 1.53, 30.6]  # 2 % more
    row["GiB"] = 1.4
    bounds["rows"].pop()
    (tmp_path / "bounds.json").write_text(json.dumps(bounds | {"jax": "0.1"}))
    assert run("--check") == 1
    out = capsys.readouterr().out
    assert "Heartbeat LinHRU RHEL H100: GiB 1.5, at most 1.4\n" in out
    assert "Heartbeat NonlinHRU RHEL H100: no bound is recorded; record one with --record\n" in out
    assert "bounds.json belongs to jax 0.1" in out


def test_the_recorded_bounds_are_of_the_long_and_the_wide_set():
    bounds = json.loads(accelerator.BOUNDS.read_text())
    assert {(x["data set"], x["model"]) for x in bounds["rows"]} == {
        (name, model) for name in ("SelfRegulationSCP1", "EigenWorms") for model in MODELS
    }


def test_the_table_of_the_page_is_that_of_the_counts():
    page = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    assert accelerator.table(accelerator.read_rows(on_gpu.COUNTED)) in page


def test_a_missing_plugin_or_one_of_another_version_is_refused_with_the_command_that_gets_it(tmp_path):
    command = f"pip install --no-deps --upgrade --target {tmp_path} jax-cuda12-plugin=={jax.__version__}"
    with pytest.raises(PluginError, match="does not hold jax-cuda12-plugin") as error:
        library(tmp_path)
    assert command in str(error.value)
    for name, version in (("plugin", jax.__version__), ("pjrt", "0.1")):
        folder = tmp_path / f"jax_cuda12_{name}-{version}.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: jax-cuda12-{name}\nVersion: {version}\n")
    with pytest.raises(PluginError, match=rf"holds jax-cuda12-pjrt 0\.1, jax is {jax.__version__}") as error:
        library(tmp_path)
    assert command in str(error.value)
    with pytest.raises(SystemExit, match=r"error: .* does not hold"):
        accelerator.main(["--tiny", "--plugin", str(tmp_path / "empty"), "--output_dir", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_the_descriptions_differ_in_what_the_model_reads():
    assert len({gpu.bytes_per_second for gpu in GPUS.values()}) == len({gpu.capability for gpu in GPUS.values()}) == 3
    assert "core_count: 132 " in GPUS["H100"].description()
    assert "{ major: 8 minor: 9 }" in GPUS["RTX4090"].description()


def test_all_of_on_gpu_runs_in_tiny_on_a_cpu_and_continues(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    rows = [{"data set": "Heartbeat", "model": "LinHRU", "algorithm": "RHEL", "target": "H100"} | COUNTS]
    (tmp_path / "counted.json").write_text(json.dumps({"rows": rows}))
    flags = ["--tiny", "--model_name", "LinHRU", "--counted", "counted.json", "--output_dir", "out"]
    monkeypatch.setattr(on_gpu, "training_command", lambda options: [sys.executable, "-c", "print(open('README.md'))"])
    monkeypatch.setattr(on_gpu, "SCANS", ("auto", "sequential"))
    assert on_gpu.main(flags) == 0
    out = capsys.readouterr().out
    assert "gradients: LinHRU RHEL float32: largest relative error" in out
    assert "scans: Heartbeat LinHRU sequential" in out
    line = (tmp_path / "out" / "accelerator.md").read_text().splitlines()[2]
    assert line.startswith("| Heartbeat | LinHRU | RHEL | 1,234 | 1.5 | 30 |")
    assert float(line.split("|")[-2]) > 0
    monkeypatch.setattr(on_gpu, "LIMIT", 0.0)
    monkeypatch.setattr(on_gpu, "training_command", lambda options: [sys.executable, "-c", "raise SystemExit(3)"])
    assert on_gpu.main(flags) == 1  # takes everything from the files, and compares with the limit of now
    out = capsys.readouterr().out
    assert "LinHRU RHEL float32: " in out
    assert "at most" in out
    assert "training: the command ended with status 3" in out
    assert "scans: Heartbeat" not in out
    saved = tmp_path / "out" / "on_gpu.json"
    saved.write_text(saved.read_text().replace('"errors"', '"attempts": 2, "lost"'))
    assert on_gpu.main([*flags, "--part", "gradients"]) == 1
    assert "LinHRU BPTT float32: largest relative" in capsys.readouterr().out
    assert on_gpu.main([*flags, "--part", "training", "--minutes", "0.1"]) == 0
    assert "training: not started" in capsys.readouterr().out


def test_training_names_the_processed_sets_alone(tmp_path):
    options = on_gpu.parser().parse_args(["--data_dir", str(tmp_path)])
    assert on_gpu.training_command(options) == []
    write_dataset(tmp_path, "SelfRegulationSCP2")
    options = on_gpu.parser().parse_args(["--data_dir", str(tmp_path / "data"), "--output_dir", str(tmp_path)])
    script, *flags = on_gpu.training_command(options)[1:]
    named = command.parser().parse_args(flags)
    assert Path(script).is_file()
    assert named.dataset_name == ["SelfRegulationSCP2"]
    assert named.model_name == list(MODELS)
    assert named.learning_algorithm == ["RHEL", "BPTT"]


def test_errors_over_their_limit():
    errors = {"M BPTT default": 0.1, "M RHEL default": 0.31, "M BPTT float32": 1e-3, "M RHEL float32": float("nan")}
    rows = {name: {"errors": {".A": error}} for name, error in errors.items()}
    assert on_gpu.over_limit(rows) == [
        "M RHEL default: .A has the relative error 0.31, at most 0.3",
        "M RHEL float32: .A has the relative error nan, at most 0.005",
    ]


def test_training_is_asked_to_save_before_the_time_is_up():
    waits = "import signal,sys,time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(75)); time.sleep(60)"
    assert on_gpu.train_until([sys.executable, "-c", waits], on_gpu.Clock(3), margin=2.5) == 75
    deaf = "import signal,time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"
    assert on_gpu.train_until([sys.executable, "-c", deaf], on_gpu.Clock(1.2), margin=0.2) == -9
