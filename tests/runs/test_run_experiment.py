"""The entry point: what a run leaves behind."""

import importlib.util
import json
import struct
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from small_experiments import HERE, REGRESSION, SEED_1, lines, read, run, small_config, snapshot, timeless, write_config
from tensorboardX.proto.event_pb2 import Event

import run_experiment
import runs.run
import train
from data_dir.datasets import create_dataset
from experiment_configs.schema import load_config
from models import load_run
from runs.paired import answers_of
from runs.progress import RunProgress
from runs.run import confusion, packed
from runs.train_all import results_table

ROOT = Path(__file__).resolve().parents[2]
FILES = {"config.json", "split.json", "metrics.jsonl", "model.eqx", "result.json", "checkpoints", ".lock"}
FILES |= {"curves.png", "confusion.png"}


def test_the_rows_of_each_part_are_saved_and_can_be_given_back(workplace):
    assert run("--dataset_name", "Tiny", "--seeds", "1") == 0
    saved = read(SEED_1 / "split.json")
    parts = saved["seeds"]["1"]
    assert (saved["dataset"], saved["n_samples"]) == ("Tiny", 20)
    assert sorted(row for part in parts.values() for row in part) == list(range(20))

    # Another split by an index file: its rows are those that the run uses and saves.
    parts["train"][0], parts["test"][0] = parts["test"][0], parts["train"][0]
    Path("mine.json").write_text(json.dumps(saved))
    write_config({**HERE, "dataset_name": "Tiny", "split": "mine.json"})
    assert run("--dataset_name", "Tiny", "--seeds", "1", "--overwrite") == 0
    assert read(SEED_1 / "split.json")["seeds"]["1"] == parts


def test_a_refused_overwrite_leaves_the_finished_run_intact(workplace, capsys):
    assert run("--dataset_name", "Tiny", "--seeds", "1") == 0
    before = snapshot(SEED_1)
    assert run("--dataset_name", "Tiny", "--seeds", "1", "--overwrite", "--batch_size", "1000") == 2
    assert "must not exceed the 14 samples of the training part of Tiny" in capsys.readouterr().err
    assert snapshot(SEED_1) == before


def test_data_on_the_device_give_the_same_run(workplace):
    assert run("--dataset_name", "Tiny", "--seeds", "1") == 0
    write_config({**HERE, "dataset_name": "Tiny", "inmemory": True})
    assert run("--dataset_name", "Tiny", "--seeds", "1", "--output_parent_dir", "device") == 0
    host, device = (folder / "model.eqx" for folder in (SEED_1, Path("device", *SEED_1.parts[1:])))
    assert host.read_bytes() == device.read_bytes()


def test_the_command_end_to_end_on_real_data(tmp_path, monkeypatch, capsys):
    command = "--dataset_name BasicMotions --seeds 2345 --num_steps 4 --print_steps 2 --data_dir data"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    monkeypatch.setattr(
        sys, "orig_argv", ["python", "run_experiment.py", *command.split(), "--output_parent_dir", "out"]
    )
    assert run_experiment.main(sys.orig_argv[2:]) == 0
    printed = capsys.readouterr()

    folder = tmp_path / "out" / "BasicMotions" / "LinHRU_RHEL" / "seed_2345"
    assert {path.name for path in folder.iterdir()} == FILES
    assert all((folder / name).read_bytes().startswith(b"\x89PNG") for name in ("curves.png", "confusion.png"))
    result, saved = read(folder / "result.json"), read(folder / "config.json")
    assert (result["status"], result["seed"], result["steps"]) == ("completed", 2345, 4)
    assert [record["step"] for record in lines(folder / "metrics.jsonl")] == [2, 4]
    changes = {"seeds": [2345], "num_steps": 4, "print_steps": 2, "data_dir": "data", "output_parent_dir": "out"}
    shipped = load_config(ROOT / "experiment_configs" / "repeats" / "LinHRU" / "BasicMotions.json")
    assert saved["config"] == {**shipped.model_dump(mode="json"), **changes}
    names = [name.lower() for name in saved["data"]["class_names"]]
    assert names == ["badminton", "running", "standing", "walking"]
    assert saved["data"]["samples"] == {"train": 56, "validation": 12, "test": 12}
    assert saved["versions"]["jax"] == jax.__version__
    assert saved["device"].startswith(jax.devices()[0].platform)
    assert saved["command"].endswith("--print_steps 2 --data_dir data --output_parent_dir out")
    assert saved["commit"] is None or len(saved["commit"].removesuffix("-dirty")) == 40
    confusion = np.array(result["test_confusion"])
    assert (confusion.shape, confusion.sum()) == ((4, 4), 12)
    assert np.trace(confusion) / 12 == pytest.approx(result["test_metric"])
    assert int(result["test_right"], 16).bit_count() == np.trace(confusion)
    assert answers_of(result).right.mean() == pytest.approx(result["test_metric"])
    assert {name: result["test_part"][name] for name in ("samples", "answers_per_sample")} == {
        "samples": 12,
        "answers_per_sample": 1,
    }
    assert packed(np.array([1, 0, 0, 1, 1, 1, 0, 0, 1], bool)) == "9c80"
    assert result["peak_memory_bytes"]["host"] > 2**20
    assert result["seconds_per_1000_steps"] > 0

    # stdout: one line for the run, then the table; stderr, which is no terminal here: a line per evaluation.
    assert f"test accuracy {result['test_metric']:.4f}" in printed.out
    header, row = printed.out.splitlines()[-3:-1]
    assert header.split()[:3] == ["data", "set", "model"]
    assert row.split()[:3] == ["BasicMotions", "LinHRU", "RHEL"]
    assert row.split()[3:6] == ["1", "0", "4"]  # seeds, failed, steps
    assert f"accuracy, %  {100 * result['test_metric']:.1f} " in row
    shape, start, *progress = printed.err.splitlines()
    assert shape.startswith("BasicMotions: 80 series x 100 time steps x 6 channels; 4 classes (Badminton, Running, ")
    assert start.endswith(
        f"seed 2345: {result['parameters']:,} parameters, 4 steps, 56 training series x 100 time steps x 6 channels"
    )
    assert len(progress) == 2
    assert "\r" not in printed.err


def test_the_best_model_is_saved_so_that_it_gives_the_recorded_result(workplace):
    assert run("--dataset_name", "Tiny", "--seeds", "1") == 0
    saved = read(SEED_1 / "config.json")
    data = create_dataset("data", "Tiny", seed=1, time=True)
    assert (saved["data"]["data_dim"], saved["data"]["label_dim"], saved["data"]["length"]) == (3, 2, 8)
    model, state = load_run(SEED_1)
    loss, metric = train.evaluate(model, state, data.test, batch_size=4, classification=True)
    result = read(SEED_1 / "result.json")
    assert (loss, metric) == (result["test_loss"], result["test_metric"])
    assert result["parameters"] == train.count_parameters(model)


def test_the_metrics_are_the_evaluations(workplace):
    assert run("--dataset_name", "Tiny", "--seeds", "1", "--num_steps", "5") == 0
    records = lines(SEED_1 / "metrics.jsonl")
    assert [record["step"] for record in records] == [2, 4, 5]
    assert all(set(record) == set(train.Evaluation._fields) for record in records)
    best = max(record["val_metric"] for record in records)
    result = read(SEED_1 / "result.json")
    assert result["val_metric"] == best
    assert result["best_step"] == next(record["step"] for record in records if record["val_metric"] == best)


def test_a_confusion_matrix_counts_the_true_class_by_row():
    outputs = np.array([[0.1, 0.9, 0.0], [0.0, 2.0, 1.0], [3.0, 0.0, 0.0]])
    assert confusion(outputs, np.eye(3)[[1, 0, 0]]) == [[1, 1, 0], [0, 1, 0], [0, 0, 0]]


@pytest.mark.parametrize("error", [1.288, float("nan")])
def test_an_echo_that_does_not_return_is_warned_of_once(workplace, capsys, error):
    """The kinetic energy of a user's own unit may not be even: the training runs, and its gradient is wrong."""
    evaluation = train.Evaluation(*range(2), *[0.5] * (len(train.Evaluation._fields) - 2))
    with RunProgress("Tiny", small_config(workplace, "Tiny"), None) as progress:
        for retrace_error in (None, 1e-5, error, error):
            progress.evaluation(evaluation._replace(retrace_error=retrace_error))
    warnings = [line for line in capsys.readouterr().err.splitlines() if "WARNING" in line]
    assert len(warnings) == 1
    assert f"misses the start of the free pass by {error:.2g} of the state" in warnings[0]


def test_gradients_of_0_are_warned_of_once(workplace, capsys):
    evaluation = train.Evaluation(*range(2), *[0.5] * (len(train.Evaluation._fields) - 2))
    evaluation = evaluation._replace(retrace_error=None)
    with RunProgress("Tiny", small_config(workplace, "Tiny"), None) as progress:
        for gradient_norm in (0.1, 1e-30, 0.0, 0.0):
            progress.evaluation(evaluation._replace(gradient_norm=gradient_norm))
    warnings = [line for line in capsys.readouterr().err.splitlines() if "WARNING" in line]
    assert len(warnings) == 1
    assert "are exactly 0, so the model does not learn any more" in warnings[0]


def test_event_files_have_every_evaluation(workplace):
    assert run("--dataset_name", "Tiny", "--seeds", "1", "--tensorboard") == 0
    (file,) = (SEED_1 / "events").iterdir()
    events = [Event.FromString(record) for record in records_of(file)]
    found = {(value.tag, event.step): value.simple_value for event in events for value in event.summary.value}
    expected = {
        (name, record["step"]): np.float32(value)
        for record in lines(SEED_1 / "metrics.jsonl")
        for name, value in record.items()
        if name != "step"
    }
    assert found == expected
    assert run("--dataset_name", "Tiny", "--seeds", "1", "--overwrite") == 0
    assert not (SEED_1 / "events").exists()


def records_of(file):
    """The records of an event file: a length, its checksum, the bytes and their checksum."""
    content, at = file.read_bytes(), 0
    while at < len(content):
        (length,) = struct.unpack_from("<Q", content, at)
        yield content[at + 12 : at + 12 + length]
        at += 16 + length


def test_event_files_need_their_package(workplace, monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert run("--dataset_name", "Tiny", "--tensorboard") == 2
    assert "pip install tensorboardX" in capsys.readouterr().err


def test_flags_override_the_config_and_nothing_else(workplace):
    flags = "--dataset_name Tiny --learning_algorithm BPTT --seeds 7 8 --num_steps 3 --print_steps 1 --batch_size 5"
    assert run(*flags.split(), "--output_parent_dir", "elsewhere") == 0
    expected = load_config("configs/LinHRU/Tiny.json").model_dump(mode="json") | {
        "learning_algorithm": "BPTT",
        "seeds": [7, 8],
        "num_steps": 3,
        "print_steps": 1,
        "batch_size": 5,
        "output_parent_dir": "elsewhere",
    }
    for seed in (7, 8):
        folder = Path("elsewhere", "Tiny", "LinHRU_BPTT", f"seed_{seed}")
        assert read(folder / "config.json")["config"] == expected
        assert read(folder / "result.json")["steps"] == 3
    assert not Path("outputs").exists()


def test_double_precision_lasts_as_long_as_the_command(workplace):
    bptt = ("--dataset_name", "Tiny", "--seeds", "1", "--learning_algorithm", "BPTT")
    assert run(*bptt, "--double_precision") == 0
    double = SEED_1.parent.with_name("LinHRU_BPTT") / "seed_1"
    assert read(double / "config.json")["precision"] == "float64"
    assert not jax.config.jax_enable_x64
    assert run("--dataset_name", "Tiny", "--seeds", "1", "--output_parent_dir", "single") == 0
    single = Path("single", *SEED_1.parts[1:])
    assert read(single / "config.json")["precision"] == "float32"
    assert b"<f4" not in (double / "model.eqx").read_bytes()
    assert b"<f4" in (single / "model.eqx").read_bytes()


def test_the_same_seed_twice_gives_the_same_files(workplace):
    for folder in ("one", "two"):
        assert run("--dataset_name", "Tiny", "--seeds", "1", "--output_parent_dir", folder) == 0
    one, two = (Path(folder, *SEED_1.parts[1:]) for folder in ("one", "two"))
    assert (one / "model.eqx").read_bytes() == (two / "model.eqx").read_bytes()
    for first, second in zip(lines(one / "metrics.jsonl"), lines(two / "metrics.jsonl"), strict=True):
        assert timeless(first) == timeless(second)
    assert timeless(read(one / "result.json")) == timeless(read(two / "result.json"))


def test_a_regression_and_a_classification_in_one_command(workplace, monkeypatch, capsys):
    drawn_with = []

    def recorded(draw):
        return lambda *arguments, **options: drawn_with.append((arguments, options)) or draw(*arguments, **options)

    monkeypatch.setattr(runs.run, "draw_confusion", recorded(runs.run.draw_confusion))
    monkeypatch.setattr(runs.run, "draw_predictions", recorded(runs.run.draw_predictions))
    assert run("--dataset_name", "Tiny", "Pulse") == 0
    table = capsys.readouterr().out.splitlines()[-4:-1]
    assert [row.split()[0] for row in table] == ["data", "Tiny", "Pulse"]
    results = [read(path) for path in sorted(Path("outputs", "Pulse", "LinHRU_RHEL").glob("*/result.json"))]
    assert [result["seed"] for result in results] == [1, 2]
    errors = [result["test_metric"] for result in results]
    ((counts, names), of_class), _, ((outputs, labels), of_labels), _ = drawn_with
    assert (counts, list(names)) == (read(SEED_1 / "result.json")["test_confusion"], [0, 1])
    assert of_class == {"title": "Tiny, LinHRU by RHEL, seed 1"}
    assert of_labels == {"title": "Pulse, LinHRU by RHEL, seed 1", "names": None, "output_step": 4}
    assert outputs.shape == labels.shape == (3, 2)
    assert np.mean((outputs - labels) ** 2) == pytest.approx(errors[0], rel=1e-4)
    pictures = sorted(path.name for path in Path("outputs").glob("*/*/seed_1/*.png"))
    assert pictures == ["confusion.png", "curves.png", "curves.png", "predictions.png"]
    assert f"mse          {np.mean(errors):.4g} ± {np.std(errors, ddof=1):.4g}" in table[2]


def test_the_table_has_the_sample_standard_deviation_of_the_completed_runs(workplace):
    config = load_config("configs/LinHRU/Tiny.json")
    numbers = [{"test_metric": metric, "val_metric": 1.0, "steps": int(100 * metric)} for metric in (0.5, 1.0)]
    of_seeds = [{"status": "completed", **of_seed} for of_seed in numbers]
    failed = {"status": "failed", "test_metric": None, "val_metric": None}
    row = results_table([(config, [*of_seeds, failed])]).splitlines()[1]
    assert " ".join(row.split()) == "Tiny LinHRU RHEL 2 1 50 to 100 accuracy, % 75.0 ± 35.4 100.0 ± 0.0"
    row = results_table([(config, [failed])]).splitlines()[1]
    assert " ".join(row.split()) == "Tiny LinHRU RHEL 0 1 - accuracy, % - -"


# Real data, to the end


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model_name", "learning_algorithm", "seeds"),
    [
        ("LinHRU", "RHEL", [2345]),
        ("NonlinHRU", "RHEL", [2345]),
        *(
            pytest.param(model_name, learning_algorithm, [2345, 3456, 4567], marks=pytest.mark.long)
            for model_name in ("LinHRU", "NonlinHRU")
            for learning_algorithm in ("RHEL", "BPTT")
        ),
    ],
)
def test_basic_motions_is_learnt(tmp_path, model_name, learning_algorithm, seeds):
    flags = f"--dataset_name BasicMotions --model_name {model_name} --learning_algorithm {learning_algorithm} --seeds"
    where = ("--data_dir", str(tmp_path), "--output_parent_dir", str(tmp_path))
    assert run_experiment.main([*flags.split(), *map(str, seeds), *where]) == 0
    folders = (tmp_path / "BasicMotions" / f"{model_name}_{learning_algorithm}").iterdir()
    accuracies = [read(folder / "result.json")["test_metric"] for folder in folders]
    assert len(accuracies) == len(seeds)
    assert np.mean(accuracies) >= 0.9


def test_a_published_file_runs_as_it_is(workplace, capsys):
    """All values as text, no output_step, and no field of this project; what it left out is told."""
    texts = ("lr_scheduler", "metric", "data_dir", "seeds")
    fields = {**HERE, **REGRESSION, "dataset_name": "Pulse", "output_parent_dir": "", "seeds": ["7"]}
    fields = {name: value if name in texts else str(value) for name, value in fields.items()}
    ours = {name: fields.pop(name) for name in ("output_step", "epsilon", "model_name")}
    write_config(fields, "NonlinHRU")
    path = Path("configs", "NonlinHRU", "Pulse.json")
    path.write_text(json.dumps({name: fields[name] for name in fields.keys() - {"dataset_name", "complex_ssm"}}))
    assert run("--dataset_name", "Pulse", "--model_name", "NonlinHRU") == 0
    shape, _, *progress = capsys.readouterr().err.splitlines()
    assert shape == (
        "Pulse: 20 series x 8 time steps x 2 channels; 2 labels a series, one every 4 time steps; "
        "train 14, validation 3, test 3"
    )
    assert "step 2/4" in progress[0]
    record = read("outputs/Pulse/NonlinHRU_RHEL/seed_7/config.json")
    assert record["config"]["output_step"] == int(ours["output_step"])
    defaults = {"output_step": 4, "epsilon": None, "complex_ssm": False, "standardise": False, "batchnorm": "batch"}
    assert defaults.items() <= record["defaults"].items()
    assert record["defaults"].items() <= record["config"].items()
    assert not record["defaults"].keys() & fields.keys() - {"complex_ssm", "dataset_name"}
    # The field in the file or left out, it is the same run.
    assert run("--dataset_name", "Pulse", "--model_name", "NonlinHRU") == 0
    assert "kept" in capsys.readouterr().out
