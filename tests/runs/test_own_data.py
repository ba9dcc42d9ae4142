"""Own data from the import to the predictions: a table with words for labels, and a regression in physical units."""

import json

import equinox as eqx
import jax
import numpy as np
import pandas as pd
import pytest
from small_experiments import read

import run_experiment
from data_dir.import_arrays import main as import_main
from data_dir.processing import own
from models import load_run
from models.load import RunError
from runs.prediction import evaluate_run

N, L = 20, 6
SMALL = {"num_steps": 4, "print_steps": 2, "batch_size": 4, "num_blocks": 1, "hidden_dim": 4, "ssm_dim": 3}
RUN = "outputs/{}/LinHRU_RHEL/seed_2345"


def command(*flags):
    return run_experiment.main([*map(str, flags), "--compilation_cache", "none"])


def make_small(info):
    """Makes the starter config small, and gives the folder of its run."""
    path = f"{info['folder']}/configs/LinHRU/{info['name']}.json"
    with open(path) as file:
        config = json.load(file)
    with open(path, "w") as file:
        json.dump(config | SMALL | {"lr_scheduler": "lambda lr: lr"}, file)
    return RUN.format(info["name"])


@pytest.fixture(scope="module")
def heat(tmp_path_factory):
    """Temperature in K and pressure in Pa at three label steps of each series, trained by the command without flags."""
    root = tmp_path_factory.mktemp("own")
    random = np.random.default_rng(0)
    x = random.normal(size=(N, L, 2)) * [20, 0.1] + [4000, 0]
    y = random.uniform([280, 99_000], [310, 102_000], size=(N, 3, 2))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        (root / "data_dir").mkdir()
        np.save("x.npy", x)
        info = own.import_arrays("heat", x, y, data_dir="data_dir")
        folder = make_small(info)
        assert command("--dataset_name", "heat") == 0
    return root, folder, x, y


def test_outputs_of_several_units_come_back_in_their_units(heat, monkeypatch, capsys):
    root, folder, x, y = heat
    monkeypatch.chdir(root)
    record, result = read(f"{folder}/config.json"), read(f"{folder}/result.json")
    label_map = record["data"]["label_map"]
    ranges = y.astype(np.float32).reshape(-1, 2)
    np.testing.assert_allclose(label_map["centre"], (ranges.max(0) + ranges.min(0)) / 2)
    np.testing.assert_allclose(label_map["unit"], (ranges.max(0) - ranges.min(0)) / 1.8)
    assert (record["data"]["label_dim"], record["config"]["output_step"]) == (2, 2)
    assert command("--predict", "x.npy", "--run", folder) == 0
    table = pd.read_csv("x_predictions.csv")
    assert list(table.columns) == ["index", *(f"output_{k}_{step}" for step in range(3) for k in range(2))]
    predicted = table.iloc[:, 1:].to_numpy().reshape(N, 3, 2)
    assert np.all(np.abs(predicted - label_map["centre"]) < label_map["unit"])  # each near its own range

    # One mse: the mean over all numbers of the table. The result also has the mse of each output.
    test = read(f"{folder}/split.json")["seeds"]["2345"]["test"]
    errors = np.mean((predicted - y)[test] ** 2, axis=(0, 1))
    assert result["test_metric"] == pytest.approx(errors.mean(), rel=1e-4)
    assert list(result["test_mse_of_outputs"]) == ["output_0", "output_1"]
    np.testing.assert_allclose(list(result["test_mse_of_outputs"].values()), errors, rtol=1e-4)
    # The loss is in units of the ranges, in which both outputs count alike.
    assert result["test_loss"] == pytest.approx(np.mean(errors / np.square(label_map["unit"])), rel=1e-4)
    assert evaluate_run(folder).differences() == []
    assert evaluate_run(folder).recomputed.metric == result["test_metric"]
    capsys.readouterr()
    assert command("--dataset_name", "heat") == 0  # kept
    assert "(output_0 " in capsys.readouterr().out

    model, state = load_run(folder)
    forward = jax.vmap(eqx.nn.inference_mode(model), axis_name="batch", in_axes=(0, None), out_axes=(0, None))
    outputs, _ = forward(x.astype(np.float32), state)
    np.testing.assert_allclose(outputs, predicted, rtol=1e-6)


@pytest.mark.parametrize("change", [{"centre": [1.0]}, {"unit": 1.0}, {"unit": [1.0, "2"]}])
def test_damaged_maps_of_several_outputs_are_refused(heat, tmp_path, change):
    root, folder, *_ = heat
    record = read(root / folder / "config.json")
    record["data"]["label_map"] |= change
    (tmp_path / "config.json").write_text(json.dumps(record))
    (tmp_path / "model.eqx").write_bytes((root / folder / "model.eqx").read_bytes())
    with pytest.raises(RunError, match=r"config\.json: "):
        load_run(tmp_path)


def test_a_table_of_words_is_trained_on_and_predicted(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    rows = [
        {"who": f"p{i}", "t": t, "b": random.normal(), "a": random.normal(), "kind": ("rest", "walk")[i % 2]}
        for i in range(N)
        for t in range(L - (i == 3))
    ]
    pd.DataFrame(rows).to_csv("gait.csv", index=False)
    (tmp_path / "elsewhere").mkdir()
    flags = ["--x", "gait.csv", "--id", "who", "--time", "t", "--label", "kind", "--data_dir", "elsewhere"]
    flags += ["--unequal_length", "pad"]
    assert import_main(["gait", *flags]) == 0
    info = read("elsewhere/processed/own/gait/dataset.json") | {"folder": "elsewhere/processed/own/gait"}
    folder = make_small(info)
    capsys.readouterr()
    assert command("--dataset_name", "gait") == 2  # the default is data_dir
    error = capsys.readouterr().err
    assert "repeats/LinHRU: no config for the data set 'gait'" in error
    assert "beside the data, data_dir/processed/*/gait/configs/LinHRU/gait.json" in error
    assert "writes those of LinHRU and NonlinHRU for your own data; for your own unit, copy one" in error
    assert command("--dataset_name", "gait", "--data_dir", "elsewhere") == 0
    # New rows in another order, with columns in another order and without labels.
    new = pd.DataFrame(rows)[["a", "t", "who", "b"]].sample(frac=1, random_state=0)
    new.to_csv("new.csv", index=False)
    np.save("new.npy", np.load("elsewhere/processed/own/gait/data.npy"))
    for name in ("new.npy", "new.csv"):
        assert command("--predict", name, "--run", folder, "--output", f"{name}.predicted.csv") == 0
    by_file = pd.read_csv("new.csv.predicted.csv")
    assert list(by_file.columns[:3]) == ["index", "who", "predicted"]
    by_file = by_file.set_index("who").loc[[f"p{i}" for i in range(N)]]
    expected = pd.read_csv("new.npy.predicted.csv")
    # The shorter series is padded as it was for the training.
    assert read(f"{folder}/config.json")["data"]["padded"]
    np.testing.assert_allclose(by_file.probability_walk, expected.probability_walk, rtol=1e-5)
    assert set(expected.predicted) <= {"rest", "walk"}
    new.drop(columns="b").to_csv("less.csv", index=False)
    assert command("--predict", "less.csv", "--run", folder) == 2
    assert "less.csv: no column 'b'; the columns are a, t, who." in capsys.readouterr().err
    capsys.readouterr()
    assert command("--predict", "gait.csv", "--run", folder) == 0
    assert "the labels in gait.csv, kind, were not used" in capsys.readouterr().out
    new.assign(c=1.0).to_csv("more.csv", index=False)
    assert command("--predict", "more.csv", "--run", folder) == 2
    assert "more.csv: the table that was imported has no column 'c'" in capsys.readouterr().err


def test_a_folder_of_data_that_does_not_exist_is_not_made(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert command("--dataset_name", "BasicMotions", "--data_dir", "typo") == 2
    assert "data_dir typo: no such folder, so it has no data set 'BasicMotions'" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
