"""Runs on generated tasks, through the command: what is trained, recorded, evaluated and predicted."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from small_experiments import FIELDS, lines, read, run, snapshot, write_config

import run_experiment
from data_dir.datasets import create_dataset
from data_dir.tasks import GeneratedSeries, labels_of, task_of_fields
from examples.inside_a_model import opened, raw_series
from experiment_configs.schema import ConfigError, validate
from models import load_run
from runs.folder import RunRefused
from runs.identity import identity, require_same_run

pytestmark = pytest.mark.usefixtures("empty_figures")

COPY = {"name": "copy", "length": 12, "symbols": 2, "classes": 3, "train": 20, "validation": 4, "test": 6}
ADDING = {"name": "adding", "length": 12, "train": 20, "validation": 4, "test": 6}
RUN = {**FIELDS, "dataset_name": "Recall", "data_dir": "no_such_folder", "output_parent_dir": "outputs"}
RECALL = {"task": COPY, "pooling": "last", "evaluate_train": 7}
SUM = {"task": ADDING, "classification": False, "metric": "mse", "output_step": None}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a finished run. No data folder exists."""
    root = tmp_path_factory.mktemp("tasks")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setattr("runs.run.save", lambda _, path: path.write_bytes(b""))
        write_config({**RUN, **RECALL})
        assert run("--dataset_name", "Recall") == 0
    return root


@pytest.fixture
def here(trained, monkeypatch):
    monkeypatch.chdir(trained)
    return Path("outputs", "Recall", "LinHRU_RHEL", "seed_1")


def test_a_run_of_a_copy_task_counts_every_answer(here):
    folder, given = here, task_of_fields(COPY)
    record, result = read(folder / "config.json"), read(folder / "result.json")
    assert record["config"]["task"] == {**COPY, "seed": 0}
    data = {name: record["data"][name] for name in ("length", "last_steps", "data_dim", "label_dim", "split_sha256")}
    assert data == {"length": 12, "last_steps": 2, "data_dim": 5, "label_dim": 3, "split_sha256": None}
    assert not (folder / "split.json").exists()
    labels = {part: labels_of(given, part).argmax(axis=-1) for part in ("train", "test")}
    assert (
        np.sum(result["test_confusion"], axis=1).tolist() == np.bincount(labels["test"].ravel(), minlength=3).tolist()
    )
    assert np.trace(result["test_confusion"]) / 12 == pytest.approx(result["test_metric"])
    largest = np.bincount(labels["train"].ravel()).argmax()
    assert result["test_baseline"] == pytest.approx(np.mean(labels["test"] == largest))


@pytest.mark.parametrize("part", ["train", "test"])
def test_its_metrics_come_out_again(here, capsys, part):
    assert run_experiment.main(["--evaluate", str(here), "--split", part]) == 0
    assert capsys.readouterr().out.endswith(": equal\n")


def test_a_part_of_the_training_set_is_evaluated_on_request(here, monkeypatch):
    """7 of 20 samples: the accuracy is a number of 14 answers."""
    accuracies = [line["train_metric"] for line in lines(here / "metrics.jsonl")]
    assert all(14 * accuracy == pytest.approx(round(14 * accuracy), abs=1e-4) for accuracy in accuracies)
    data = create_dataset("", "Recall", seed=1, time=False, task=task_of_fields(COPY))
    first = data.train.first(7)
    np.testing.assert_array_equal(first.batch(np.arange(7))[0], data.train.batch(np.arange(7))[0])
    np.testing.assert_array_equal(first.labels, data.train.labels[:7])
    on_device = create_dataset("", "Recall", seed=1, time=False, task=task_of_fields(COPY), inmemory=True).train.first(
        7
    )
    np.testing.assert_array_equal(on_device.data, first.data)
    np.testing.assert_array_equal(on_device.labels, first.labels)
    assert (first.size, data.train.size, data.train.first(20), data.train.first(None)) == (7, 20, *[data.train] * 2)


def test_a_look_inside_the_model_makes_the_series_that_it_shows(here, monkeypatch):
    """Not the whole test part: of 100,000 steps it takes gigabytes."""
    made, make = [], GeneratedSeries.__getitem__

    def counted(self, rows):
        made.append(len(series := make(self, rows)))
        return series

    run, config = opened(here)
    create_dataset(seed=1, **config.data_options())  # hashes a series of each part, once
    monkeypatch.setattr(GeneratedSeries, "__getitem__", counted)
    assert raw_series(run, config, 3).shape == (3, 12, 4)
    assert made == [3]


def test_new_series_get_a_class_for_each_of_the_last_steps(here, tmp_path):
    data = create_dataset("", "Recall", seed=1, time=False, task=task_of_fields(COPY))
    np.save(tmp_path / "new.npy", data.test.data)
    assert run_experiment.main(["--predict", str(tmp_path / "new.npy"), "--run", str(here)]) == 0
    with open(tmp_path / "new_predictions.csv", newline="", encoding="utf-8") as file:
        head, *rows = list(csv.reader(file))
    columns = ["predicted_{}", "probability_0_{}", "probability_1_{}", "probability_2_{}"]
    assert head == ["index", *(column.format(step) for step in range(2) for column in columns)]
    names, probabilities = load_run(here).predict(data.test.data)
    assert names.shape == (6, 2)
    assert probabilities.shape == (6, 2, 3)
    np.testing.assert_allclose(probabilities.sum(axis=2), 1, rtol=1e-5)
    assert [[row[1], row[5]] for row in rows] == names.tolist()
    np.testing.assert_allclose([float(row[6]) for row in rows], probabilities[:, 1, 0], rtol=1e-5)
    right = np.mean(names == data.test.labels.argmax(axis=-1).astype(str))
    assert right == pytest.approx(read(here / "result.json")["test_metric"])


def test_a_run_of_another_task_or_reading_is_refused(here, capsys):
    before = snapshot(here)
    for change, words in (
        ({"task": {**COPY, "length": 13}}, "task {'name': 'copy', 'length': 12, "),
        ({"task": {**COPY, "seed": 1}}, "'seed': 0"),
        ({"evaluate_train": None}, "evaluate_train 7, now None"),
    ):
        write_config({**RUN, **RECALL, **change})
        assert run("--dataset_name", "Recall") == 2
        message = capsys.readouterr().err
        assert f"{here}: was made " in message
        assert words in message
    assert snapshot(here) == before


FITS = {**FIELDS, "dataset_name": "X", "data_dir": "", "output_parent_dir": ""}


def test_a_run_of_before_these_fields_keeps_its_identity(tmp_path):
    config, data = validate(FITS, "here"), dict.fromkeys(("sha256", "split_sha256", "class_names", "output_names"))
    data |= dict.fromkeys(("label_map", "standardisation"))
    now = identity(config, 1, data)
    assert not {"task", "pooling", "evaluate_train", "machine", "shortest_period", "longest_period"} & now.keys()
    fields = config.model_dump(mode="json")
    before = {name: value for name, value in fields.items() if name in {*now, "seeds", "data_dir"}}
    last = identity(validate({**FITS, "pooling": "last"}, "here"), 1, data)
    assert last == {**now, "pooling": "last"}
    for recorded in (fields, before):
        record = {"config": recorded, "data": data, "precision": "float32", "seed": 1}
        (tmp_path / "config.json").write_text(json.dumps(record))
        require_same_run(tmp_path, now)
        with pytest.raises(RunRefused, match=r"with another config \(pooling None, now 'last'\)"):
            require_same_run(tmp_path, last)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"task": {"name": "copying"}},
            'task is {"name": "copying"} (name is "copying": allowed is one of adding, copy,',
        ),
        ({"task": "copy"}, 'task is "copy": allowed is null, or an object with name (one of adding, copy'),
        ({"task": {**COPY, "lenght": 3}}, "unknown field lenght: those of copy are length, seed"),
        ({"task": COPY}, 'pooling is "mean": the task copy has 2 answers, read at the last steps: write "last"'),
        ({"task": ADDING}, "classification is true: the task adding is a regression"),
        ({**SUM, "pooling": "last"}, 'pooling is "last": a regression reads every output_step-th step'),
        ({"task": COPY, "pooling": "last", "split": "original"}, 'split is "original": the task copy has parts of its'),
        ({"task": COPY, "pooling": "last", "standardise": True}, "standardise is true: the channels of the task copy"),
        ({"pooling": "max"}, 'pooling is "max": allowed is mean or last'),
        ({"evaluate_train": 0}, "evaluate_train is 0: allowed is a positive whole number, or null for the whole"),
    ],
)
def test_a_task_or_reading_that_does_not_fit_is_named(changes, words):
    with pytest.raises(ConfigError) as error:
        validate({**FITS, **changes}, "here")
    assert words in str(error.value)


def test_a_task_is_completed_and_gives_its_answers_to_the_model():
    config = validate({**FITS, "task": COPY, "pooling": "last"}, "here")
    assert config.task == {**COPY, "seed": 0}
    assert (config.model_options()["last_steps"], config.model_options()["pooling"]) == (2, "last")
    assert validate(FITS, "here").model_options()["last_steps"] == 1
    assert config.replace({"lr": 0.1}).task == config.task
