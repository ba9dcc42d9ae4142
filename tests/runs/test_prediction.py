"""Kept runs: their metric comes out again to the last bit, and their model predicts for files of series."""

import csv
import json
import re
import shutil
import tracemalloc
from pathlib import Path
from types import SimpleNamespace

import equinox as eqx
import jax
import numpy as np
import pytest
from matplotlib.figure import Figure
from raw_files import HEADER, series_text
from small_experiments import REGRESSION, lines, read, refusal, small_config, write_dataset

import run_experiment
from common.files import replacing, sha256_of
from data_dir.datasets import create_dataset
from data_dir.pickles import read_array, write_arrays
from data_dir.storage import DataError
from models import load_run
from models.load import RunError
from runs import prediction, train_all
from runs.folder import RunRefused, run_folder
from runs.run import baseline, run_seed


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A folder with data and finished runs: outputs/<data set>/LinHRU_RHEL/seed_1. The last is in double precision."""
    root = tmp_path_factory.mktemp("kept")
    write_dataset(root, "Tiny")
    write_dataset(root, "Pulse", regression=True)
    run_seed(small_config(root, "Tiny"), 1)
    run_seed(small_config(root, "Pulse", **REGRESSION), 1)
    # Heart rates in bpm, from a channel far off zero and one near it, and no word of output_step.
    write_dataset(root, "Rate", regression=True)
    folder = root / "data" / "processed" / "UEA" / "Rate"
    write_arrays(folder / "data.pkl", read_array(folder / "data.pkl") * [20, 0.1] + [4000, 0])
    write_arrays(folder / "labels.pkl", 120 + 100 * read_array(folder / "labels.pkl"))
    run_seed(small_config(root, "Rate", standardise=True, **{**REGRESSION, "output_step": None}), 1)
    with jax.enable_x64(True):
        run_seed(double(root), 5)
    return root


def double(root):
    changes = {"model_name": "NonlinHRU", "complex_ssm": False, "batchnorm": "ema", "split": "original"}
    return small_config(root, "Pulse", batch_size=3, time=False, inmemory=True, **REGRESSION, **changes)


@pytest.fixture
def work(kept, tmp_path):
    """A copy of it that a test may spoil. The recorded data_dir is that of the original."""
    shutil.copytree(kept, tmp_path, dirs_exist_ok=True)
    return tmp_path


def run_of(root, name="Tiny"):
    return root / "outputs" / name / "LinHRU_RHEL" / "seed_1"


def change(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def command(*flags):
    return run_experiment.main([str(flag) for flag in flags])


# The metric again


@pytest.mark.parametrize("part", ["train", "validation", "test"])
@pytest.mark.parametrize("name", ["Tiny", "Pulse", "Rate"])
def test_the_recorded_metric_comes_out_again(kept, capsys, name, part):
    folder = run_of(kept, name)
    assert command("--evaluate", folder, *([] if part == "test" else ["--split", part])) == 0
    result = json.loads((folder / "result.json").read_text())
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    best = next(line for line in lines if line["step"] == result["best_step"])
    metric = {"train": best["train_metric"], "validation": best["val_metric"], "test": result["test_metric"]}[part]
    printed = capsys.readouterr().out
    assert result["val_loss"] == best["val_loss"]
    assert f"{name} LinHRU RHEL seed 1, {part} {result['metric']}: recorded {metric}, recomputed {metric}" in printed


def test_it_comes_out_again_with_other_settings_and_in_double_precision(kept):
    found = prediction.evaluate_run(run_folder(double(kept), 5))
    assert found.recomputed == found.recorded
    assert float(np.float32(found.recorded.loss)) != found.recorded.loss
    assert not jax.config.jax_enable_x64
    # And the other way round.
    with jax.enable_x64(True):
        found = prediction.evaluate_run(run_of(kept, "Pulse"))
    assert found.recomputed == found.recorded


def test_the_rows_are_those_that_the_run_saved(work):
    path = run_of(work, "Pulse") / "split.json"
    saved = json.loads(path.read_text())
    parts = saved["seeds"]["1"]
    parts["train"][0], parts["test"][0] = parts["test"][0], parts["train"][0]
    path.write_text(json.dumps(saved))
    with pytest.raises(RunError, match=r"split.json: was changed: the run used other rows"):
        prediction.evaluate_run(run_of(work, "Pulse"))
    # Without saved rows they are drawn by the recorded seed.
    path.unlink()
    found = prediction.evaluate_run(run_of(work, "Pulse"))
    assert found.recomputed == found.recorded


def test_a_metric_that_differs_is_exit_status_1(work, capsys):
    change(run_of(work) / "result.json", test_metric=0.123)
    assert command("--evaluate", run_of(work)) == 1
    printed = capsys.readouterr()
    assert "recorded 0.123, recomputed" in printed.out
    assert "DIFFERENT" in printed.out
    assert f"with jax {jax.__version__}" in printed.err


def test_a_model_that_does_otherwise_is_not_called_equal(work, capsys):
    """A flipped bit that leaves the accuracy as it is: noticed by the hash of the model, the loss and the outputs."""
    path = run_of(work) / "model.eqx"
    content = bytearray(path.read_bytes())
    at = content.index(b"\x93NUMPY") + 128
    content[at + 1] ^= 1
    path.write_bytes(content)
    assert command("--evaluate", run_of(work)) == 2
    assert "model.eqx: was changed since the run ended" in capsys.readouterr().err
    change(run_of(work) / "result.json", model_sha256=sha256_of(path))
    assert command("--evaluate", run_of(work)) == 1
    printed = capsys.readouterr().out
    result = json.loads((run_of(work) / "result.json").read_text())
    assert f"recorded {result['test_metric']}, recomputed {result['test_metric']}: DIFFERENT (loss recorded" in printed
    assert "the outputs have other bits" in printed


def test_the_data_may_lie_elsewhere(work):
    record = json.loads((run_of(work) / "config.json").read_text())
    change(run_of(work) / "config.json", config=record["config"] | {"data_dir": str(work / "moved")})
    assert command("--evaluate", run_of(work)) == 2
    assert not (work / "moved").exists()
    (work / "data").rename(work / "moved")
    assert command("--evaluate", run_of(work)) == 0
    assert command("--evaluate", run_of(work), "--data_dir", work / "moved") == 0


def test_a_set_that_needs_no_download_is_not_processed_for_an_evaluation(work, capsys):
    record = json.loads((run_of(work) / "config.json").read_text())
    changes = {"data_dir": str(work / "gone"), "dataset_name": "BasicMotions"}
    change(run_of(work) / "config.json", config=record["config"] | changes)
    assert command("--evaluate", run_of(work)) == 2
    assert f"{work / 'gone'}: no such folder" in capsys.readouterr().err
    assert not (work / "gone").exists()


def test_other_data_of_that_name_are_refused(work, capsys):
    shutil.rmtree(work / "data")
    write_dataset(work, "Tiny", channels=3)
    assert command("--evaluate", run_of(work), "--data_dir", work / "data") == 2
    assert "was trained on other data (sha256 of the arrays" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        ("Rate", "label_map", None),
        ("Rate", "standardisation", {"mean": [4000.0, 0.0], "scale": [0.04, 10.0]}),
        ("Pulse", "output_names", ["heart rate"]),
        ("Tiny", "class_names", ["b", "a"]),
    ],
)
def test_other_names_and_maps_of_the_data_are_refused(work, name, field, value):
    """A run of an earlier version, or of a set that was imported again."""
    record = read(run_of(work, name) / "config.json")
    change(run_of(work, name) / "config.json", data=record["data"] | {field: value})
    changes = {"standardise": True, **REGRESSION, "num_steps": 6} if name == "Rate" else {}
    changes = REGRESSION if name == "Pulse" else changes
    text = rf"with other names or maps of the data, .* \({field} {re.escape(json.dumps(value))}, now "
    with pytest.raises(RunRefused, match=text):
        run_seed(small_config(work, name, **changes), 1)
    with pytest.raises(DataError, match=text):
        prediction.evaluate_run(run_of(work, name), data_dir=str(work / "data"))


def test_another_machine_may_round_the_standardisation_in_its_last_digit(work):
    record = read(run_of(work, "Rate") / "config.json")
    rounded = {name: [x * (1 + 1e-7) for x in values] for name, values in record["data"]["standardisation"].items()}
    change(run_of(work, "Rate") / "config.json", data=record["data"] | {"standardisation": rounded})
    run_seed(small_config(work, "Rate", standardise=True, **REGRESSION), 1)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: shutil.rmtree(folder), "config.json: cannot be read (No such file"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json: not JSON, line 1 column 2"),
        (lambda folder: (folder / "model.eqx").unlink(), "model.eqx: cannot be read (No such file"),
        (lambda folder: (folder / "model.eqx").write_bytes(b"PK"), "model.eqx: [0].encoder.weight: "),
        (lambda folder: (folder / "result.json").unlink(), "result.json: no result of a completed run"),
        (lambda folder: change(folder / "result.json", status="failed"), "no result of a completed run"),
        (
            lambda folder: (folder / "metrics.jsonl").write_text("{"),
            "lacks train_metric or train_loss",
        ),
        (lambda folder: change(folder / "config.json", config={}), "config.json: missing field model_name"),
        (lambda folder: change(folder / "config.json", precision="float64"), "expected float64"),
    ],
)
def test_a_folder_that_is_no_finished_run_is_refused(work, capsys, spoil, message):
    spoil(run_of(work))
    assert command("--evaluate", run_of(work), "--split", "train") == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


# Predictions


def rows_of(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def test_classes_are_predicted_as_the_evaluation_does(work, capsys):
    folder = run_of(work)
    record = json.loads((folder / "config.json").read_text())
    change(folder / "config.json", data=record["data"] | {"class_names": ["up", "down, or so"]})
    data = create_dataset(work / "data", "Tiny", seed=1, time=False)
    np.save(work / "new.npy", data.validation.data)  # 3 series, less than a batch of 4
    assert command("--predict", work / "new.npy", "--run", folder) == 0
    table = work / "new_predictions.csv"
    assert capsys.readouterr().out == f"{table}: 3 series, by Tiny LinHRU RHEL ({folder})\n"
    head, *rows = rows_of(table)
    assert head == ["index", "predicted", "probability_up", "probability_down, or so"]
    assert [row[0] for row in rows] == ["0", "1", "2"]

    model, state = load_run(folder)
    forward = jax.vmap(eqx.nn.inference_mode(model), axis_name="batch", in_axes=(0, None), out_axes=(0, None))
    with_time = create_dataset(work / "data", "Tiny", seed=1, time=True).validation.data
    expected = jax.nn.softmax(forward(with_time, state)[0])
    probabilities = np.array([row[2:] for row in rows], dtype=np.float32)
    np.testing.assert_allclose(probabilities, expected, rtol=1e-6)
    assert [row[1] for row in rows] == [head[2 + k].removeprefix("probability_") for k in probabilities.argmax(axis=1)]
    right = probabilities.argmax(axis=1) == data.validation.labels.argmax(axis=1)
    assert np.mean(right) == json.loads((folder / "result.json").read_text())["val_metric"]
    assert sorted(path.name for path in work.iterdir()) == ["data", "new.npy", "new_predictions.csv", "outputs"]


def test_a_regression_gives_a_column_per_output_in_every_precision(work):
    for folder, split, tolerance in (
        (run_of(work, "Pulse"), "seed", 1e-6),
        (run_folder(double(work), 5), "original", 1e-12),
    ):
        seed = int(folder.name.removeprefix("seed_"))
        options = {"seed": seed, "time": False, "classification": False, "output_step": 4, "split": split}
        data = create_dataset(work / "data", "Pulse", **options)
        np.save(work / "new.npy", data.train.data)  # several batches, the last of them not full
        output = work / f"{split}.csv"
        assert command("--predict", work / "new.npy", "--run", folder, "--output", output) == 0
        head, *rows = rows_of(output)
        assert head == ["index", "output_0", "output_1"]
        outputs = np.array([row[1:] for row in rows], dtype=float)
        best = read(folder / "result.json")["best_step"]
        recorded = next(line["train_metric"] for line in lines(folder / "metrics.jsonl") if line["step"] == best)
        assert abs(np.mean((outputs - data.train.labels) ** 2) / recorded - 1) < tolerance


def test_maps_of_the_data_are_recorded_and_undone(work, monkeypatch):
    """The files hold bpm and raw channels. So do predictions, metrics, pictures and what a loaded model takes."""
    folder = run_of(work, "Rate")
    record = json.loads((folder / "config.json").read_text())
    assert record["config"]["output_step"] == 4
    centre, unit = record["data"]["label_map"].values()
    processed = work / "data" / "processed" / "UEA" / "Rate"
    series, labels = read_array(processed / "data.pkl").astype(np.float32), read_array(processed / "labels.pkl")
    np.save(work / "new.npy", series)
    assert command("--predict", work / "new.npy", "--run", folder) == 0
    predicted = np.array([row[1:] for row in rows_of(work / "new_predictions.csv")[1:]], dtype=float)
    assert np.all(np.abs(predicted - centre) < unit)
    test = json.loads((folder / "split.json").read_text())["seeds"]["1"]["test"]
    result = json.loads((folder / "result.json").read_text())
    assert np.mean((predicted - labels)[test] ** 2) == pytest.approx(result["test_metric"], rel=1e-5)
    assert result["test_metric"] == pytest.approx(result["test_loss"] * unit**2)
    mean = labels[json.loads((folder / "split.json").read_text())["seeds"]["1"]["train"]].mean()
    assert result["test_baseline"] == pytest.approx(np.mean((mean - labels[test]) ** 2), rel=1e-5)

    model, state = load_run(folder)
    time = np.broadcast_to(np.arange(8, dtype=np.float32)[:, None] / 8, (20, 8, 1))
    forward = jax.vmap(eqx.nn.inference_mode(model), axis_name="batch", in_axes=(0, None), out_axes=(0, None))
    outputs, _ = forward(np.concatenate([time, series], axis=2), state)
    np.testing.assert_allclose(outputs[..., 0], predicted, rtol=1e-6)

    # The picture's numbers, and the run itself, once more.
    drawn = []
    monkeypatch.setattr("runs.run.draw_predictions", lambda *arrays, **_: drawn.extend(arrays[:2]) or Figure())
    shutil.rmtree(folder)
    run_seed(small_config(work, "Rate", standardise=True, **REGRESSION), 1)
    np.testing.assert_allclose(drawn[0], predicted[test], rtol=1e-6)
    np.testing.assert_allclose(drawn[1], labels[test], rtol=1e-6)

    # Other data under the same name are refused, and so are damaged maps.
    write_arrays(processed / "data.pkl", series + 1)
    with pytest.raises(DataError, match="was trained on other data"):
        prediction.evaluate_run(folder)
    for name, value in (("standardisation", {"mean": [1.0], "scale": [1.0]}), ("label_map", {"centre": 1.0})):
        change(folder / "config.json", data=record["data"] | {name: value})
        with pytest.raises(RunError, match=r"config.json: "):
            load_run(folder)


def test_the_baseline_is_the_largest_class_or_the_mean_of_each_output():
    def data(classification, train, test):
        parts = {"train": train, "test": test}
        parts = {name: SimpleNamespace(labels=np.array(labels), label_unit=(2, 1)) for name, labels in parts.items()}
        return SimpleNamespace(classification=classification, **parts)

    assert baseline(data(True, [[1, 0], [0, 1], [0, 1]], [[1, 0], [1, 0], [0, 1], [1, 0]])) == 0.25
    of_outputs = baseline(data(False, [[[0, 0]], [[2, 4]]], [[[1, 0]], [[2, 4]]]))
    np.testing.assert_array_equal(of_outputs, [4 * np.mean([0, 1]), np.mean([4, 4])])
    result = {"test_metric": 0.5, "val_metric": 0.5, "best_step": 1, "steps": 1, "test_baseline": 0.25}
    told = train_all._outcome(SimpleNamespace(metric="accuracy"), result)
    assert told.startswith("test accuracy 0.5000 (predicting the largest class: 0.2500), validation")
    told = train_all._outcome(SimpleNamespace(metric="mse"), result | {"test_baseline": 1e-6})
    assert told.startswith("test mse 0.5 (predicting the mean: 1e-06), validation")
    result |= {"test_mse_of_outputs": {"x": 0.2, "y": 3}, "test_baseline_of_outputs": {"x": 0.1, "y": 40}}
    told = train_all._outcome(SimpleNamespace(metric="mse"), result)
    means = "x 0.2, predicting its mean: 0.1; y 3, predicting its mean: 40"
    assert told.startswith(f"test mse 0.5 ({means}), validation")


def test_class_labels_keep_their_values(work):
    processed = work / "data" / "processed" / "UEA" / "Tiny"
    labels = read_array(processed / "labels.pkl").argmax(axis=1)
    (processed / "labels.pkl").unlink()
    np.save(processed / "labels.npy", np.where(labels, 40, 3))
    config = small_config(work, "Tiny", data_dir=str(work / "data"))
    shutil.rmtree(run_folder(config, 1))
    run_seed(config, 1)
    np.save(work / "new.npy", read_array(processed / "data.pkl"))
    assert command("--predict", work / "new.npy", "--run", run_of(work)) == 0
    head, *rows = rows_of(work / "new_predictions.csv")
    assert head == ["index", "predicted", "probability_3", "probability_40"]
    assert {row[1] for row in rows} <= {"3", "40"}


@pytest.mark.parametrize("names", [["a"], ["a", 1], "ab", {"a": 1, "b": 2}])
def test_damaged_class_names_are_refused(work, capsys, names):
    record = json.loads((run_of(work) / "config.json").read_text())
    change(run_of(work) / "config.json", data=record["data"] | {"class_names": names})
    np.save(work / "new.npy", SERIES)
    assert command("--predict", work / "new.npy", "--run", run_of(work)) == 2
    assert "config.json: class_names must be null or 2 texts" in capsys.readouterr().err
    assert not (work / "new_predictions.csv").exists()


def test_a_file_is_read_in_pieces(work):
    """More than once the memory of a batch is never held: neither a copy of the series nor all predictions."""
    series = np.zeros((16_000, 8, 2))
    np.save(work / "new.npy", series)
    with prediction._kept_run(run_of(work)) as run:
        opened, *_ = prediction._opened_series(work / "new.npy", run)
        assert isinstance(opened, np.memmap)
        predicted = prediction.predictions(run, opened, work / "new.npy")
        next(predicted)  # compiles
        tracemalloc.start()
        assert sum(1 for _ in predicted) == 15_999
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < series.nbytes / 4


def test_a_ts_file_is_read_and_classes_without_names_are_numbered(work):
    series = np.random.default_rng(1).normal(size=(5, 8, 2)).astype(np.float32)
    (work / "new.ts").write_text(HEADER + series_text(*((one.T.tolist(), "a") for one in series)))
    np.save(work / "same.npy", np.asfortranarray(series.astype(np.float64)))
    unlabelled = HEADER.replace("@classLabel true a b", "@classLabel false")
    (work / "bare.ts").write_text(
        unlabelled + series_text(*((one.T.tolist(), "a") for one in series)).replace(":a", "")
    )
    (work / "unknown.ts").write_text(HEADER + series_text(*((one.T.tolist(), "?") for one in series)))
    for name in ("new.ts", "same.npy", "bare.ts", "unknown.ts"):
        assert command("--predict", work / name, "--run", run_of(work)) == 0
    rows = rows_of(work / "new_predictions.csv")
    assert rows[0][2:] == ["probability_0", "probability_1"]
    assert {row[1] for row in rows[1:]} <= {"0", "1"}
    for name in ("same", "bare", "unknown"):
        assert (work / "new_predictions.csv").read_bytes() == (work / f"{name}_predictions.csv").read_bytes()


SERIES = np.zeros((3, 8, 2))


def with_value(value):
    series = SERIES.copy()
    series[1, 2, 0] = value
    return series


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (np.zeros((3, 8, 3)), "series of 8 time steps and 3 channels; the run"),
        (np.zeros((3, 7, 2)), "series of 7 time steps and 2 channels; the run"),
        (np.zeros((8, 2)), "float64 of shape (8, 2); needed are numbers (series, time steps, channels)"),
        (np.zeros((0, 8, 2)), "shape (0, 8, 2); needed are"),
        (np.zeros((3, 8, 2), dtype=complex), "complex128 of shape"),
        (np.full((3, 8, 2), "1"), "<U1 of shape"),
        (np.full((3, 8, 2), None), "no array can be read from it (Array can't be memory-mapped: Python obj"),
        (with_value(np.nan), "a value is missing, infinite or beyond float32: series 1, time step 2, channel 0"),
        (with_value(1e39), "a value is missing, infinite or beyond float32"),
        (np.full((3, 8, 2), [[[0]], [[3e38]], [[0]]]), "the prediction for series 1 (from 0) is not finite"),
        (b"", "no array can be read from it"),
        (b"PK\x03\x04", "no array can be read from it"),
        (b"\x93NUMPY\x01\x00\x0a\x00{'descr': (", "no array can be read from it"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(work, capsys, content, message):
    path = work / "new.npy"
    path.write_bytes(content) if isinstance(content, bytes) else np.save(path, content)
    assert command("--predict", path, "--run", run_of(work)) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"run_experiment.py: error: {path}: ")
    assert message in error
    assert not list(work.glob("*predictions.csv*"))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("new.csv", "1,2", "is a table, but"),
        ("new.txt", "1,2", "is none of .npy, .ts, .csv, .tsv, .parquet"),
        ("new.ts", "@data\n", "has a header but no series"),
        ("new.ts", "@problemName x\n@classLabel false\n@data\n1,2:3,4\n", "series of 2 time steps and 2 channels; the"),
        ("new.ts", "@classLabel true a b\n@data\n1,2:3,4\n", "series 1 ends in numbers where the header announces"),
        ("new.ts", None, "no such file"),
    ],
)
def test_a_file_of_another_kind_is_refused(work, capsys, name, text, message):
    if text is not None:
        (work / name).write_text(text)
    assert command("--predict", work / name, "--run", run_of(work)) == 2
    assert message in capsys.readouterr().err


def test_nothing_is_overwritten_unasked(work, capsys):
    np.save(work / "new.npy", SERIES)
    output = work / "new_predictions.csv"
    output.write_text("the user's own")
    assert command("--predict", work / "new.npy", "--run", run_of(work)) == 2
    assert "exists already. --output names another file, --overwrite replaces it" in capsys.readouterr().err
    assert output.read_text() == "the user's own"
    assert command("--predict", work / "new.npy", "--run", run_of(work), "--overwrite") == 0
    assert len(rows_of(output)) == 4
    # The input itself is never replaced, and a folder must be there.
    before = (work / "new.npy").read_bytes()
    for output in (work / "new.npy", work, work / "absent" / "new.csv"):
        assert command("--predict", work / "new.npy", "--run", run_of(work), "--overwrite", "--output", output) == 2
    assert "there is no folder" in capsys.readouterr().err
    # Nor is a device, which root could replace.
    node = work / "device"
    node.symlink_to("/dev/full")
    flags = ("--predict", work / "new.npy", "--run", run_of(work), "--overwrite", "--output", node)
    assert command(*flags) == 2
    assert "is not a regular file, so it is not replaced" in capsys.readouterr().err
    assert node.readlink() == Path("/dev/full")
    with pytest.raises(OSError, match="is not a regular file, so it is not replaced"), replacing(node):
        pass
    assert (work / "new.npy").read_bytes() == before


def test_a_table_that_cannot_be_finished_leaves_nothing(work, monkeypatch):
    np.save(work / "new.npy", SERIES)

    def fails(*_):
        yield ["index"]
        raise KeyboardInterrupt

    monkeypatch.setattr(prediction, "_rows", fails)
    assert command("--predict", work / "new.npy", "--run", run_of(work)) == 130
    assert sorted(path.name for path in work.iterdir()) == ["data", "new.npy", "outputs"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--predict new.npy", "--predict: --run RUN_FOLDER is missing"),
        ("--predict new.npy --evaluate run", "not allowed with argument"),
        ("--evaluate run --plan", "not allowed with argument"),
        ("--evaluate run --seeds 1", "--seeds: it has no effect on --evaluate"),
        ("--evaluate run --double_precision", "--double_precision: it has no effect on --evaluate"),
        ("--evaluate run --split all", "invalid choice: 'all'"),
        ("--predict new.npy --run run --data_dir data", "--data_dir: it has no effect on --predict"),
        ("--output new.csv", "--output: it goes with --evaluate or --predict"),
        ("--plan --run run", "--run: it goes with --evaluate or --predict"),
    ],
)
def test_flags_without_effect_are_refused(capsys, flags, message):
    assert message in refusal(capsys, flags)
