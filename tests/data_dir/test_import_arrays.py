"""Own series, from files and from Python, become a processed set with configs, or are refused with the reason."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from own_tables import RNG, WORDS, C, L, N, X, long_table, wide_table

import data_dir as package
import data_dir.import_arrays
from data_dir.datasets import create_dataset
from data_dir.import_arrays import main
from data_dir.processing import own
from data_dir.processing.labels import plain_labels, stored_labels
from data_dir.processing.starter import MODELS, starter_config
from data_dir.splits import split_by_seed, write_index_file
from data_dir.storage import DataError
from experiment_configs.scheduler import build
from experiment_configs.schema import load_config


def write_inputs(folder):
    """The same series in every format; csv of one channel, too."""
    np.save(folder / "x.npy", X)
    np.save(folder / "words.npy", WORDS)
    np.savez(folder / "both.npz", x=X, y=WORDS, other=X, x_test=X[:4], y_test=WORDS[:4])
    long_table().to_csv(folder / "long.csv", index=False)
    long_table().drop(columns="label").rename(columns={"id": "who", "time": "t"}).to_csv(folder / "x.csv", index=False)
    pd.DataFrame({"who": [f"s{i}" for i in range(N)], "class": WORDS})[::-1].to_csv(folder / "y.csv", index=False)
    wide_table().to_csv(folder / "wide.csv", sep=";", index=False)
    lines = [":".join([*(",".join(map(str, channel)) for channel in s.T), w]) for s, w in zip(X, WORDS, strict=True)]
    (folder / "set.ts").write_text("@problemName toy\n@classLabel true run walk\n@data\n" + "\n".join(lines) + "\n")


@pytest.mark.parametrize(
    ("flags", "channels"),
    [
        ("--x x.npy --y words.npy", C),
        ("--x both.npz", C),
        ("--x both.npz:other --y both.npz", C),
        ("--x long.csv", C),
        ("--x x.csv --y y.csv --id who --time t", C),
        ("--x wide.csv", 1),
        ("--x set.ts", C),
        ("--x x.npy --y set.ts", C),
    ],
)
def test_every_format_gives_the_same_set(tmp_path, monkeypatch, capsys, flags, channels):
    monkeypatch.chdir(tmp_path)
    write_inputs(tmp_path)
    (tmp_path / "data").mkdir()
    assert main(["toy", *flags.split(), "--data_dir", "data"]) == 0
    out = capsys.readouterr().out
    assert f"toy: 12 series x 10 time steps x {channels} channel" in out
    assert "classification, 2 classes: run (8), walk (4)" in out
    assert "python run_experiment.py --dataset_name toy --data_dir data\n" in out
    new = "new.csv" if ".csv" in flags else "new.npy"
    assert f"--predict {new} --run outputs/toy/LinHRU_RHEL/seed_2345" in out
    folder = tmp_path / "data" / "processed" / "own" / "toy"
    stored = np.load(folder / "data.npy")
    assert stored.dtype == np.float32
    np.testing.assert_array_equal(stored, X[:, :, :channels].astype(np.float32))  # in the order of the user
    info = json.loads((folder / "dataset.json").read_text())
    assert info["class_names"] == ["run", "walk"]
    assert all(len(described["sha256"]) == 64 for described in info["raw_files"].values())
    dataset = create_dataset("data", "toy", seed=2345, time=False)  # checks the hashes, too
    assert dataset.class_names == ["run", "walk"]
    np.testing.assert_array_equal(np.load(folder / "labels.npy")[:, 1] == 1, WORDS == "walk")
    for model in MODELS:
        config = load_config(folder / "configs" / model / "toy.json")
        assert (config.dataset_name, config.standardise, config.split) == ("toy", True, "seed")
        assert config.batch_size == 8  # the training rows
        assert Path(config.data_dir) == (tmp_path / "data").resolve()


def test_a_test_part_and_an_index_file_are_the_split(tmp_path):
    write_inputs(tmp_path)
    assert (
        main(["toy", "--x", f"{tmp_path}/both.npz", "--x_test", f"{tmp_path}/both.npz", "--data_dir", str(tmp_path)])
        == 0
    )
    config = load_config(tmp_path / "processed/own/toy/configs/LinHRU/toy.json")
    assert config.split == "original"
    dataset = create_dataset(tmp_path, "toy", seed=2345, time=False, split="original")
    assert dataset.split["test"].tolist() == list(range(N, N + 4))
    (finding,) = (
        f
        for f in own.import_arrays("twice", X, WORDS, x_test=X[:4], y_test=WORDS[:4], data_dir=tmp_path)["findings"]
        if f["kind"] == "duplicate_rows"
    )
    assert finding["text"].startswith(
        "4 rows repeat another one; 4 series occur in the train and the test file; all are kept"
    )
    index = tmp_path / "mine.json"
    write_index_file(index, "drawn", N, {7: split_by_seed(N, 7)})
    own.import_arrays("drawn", X, WORDS, split=index, data_dir=tmp_path)
    index.unlink()  # the set has its own copy
    config = load_config(tmp_path / "processed/own/drawn/configs/NonlinHRU/drawn.json")
    assert config.seeds == (7,)
    drawn = create_dataset(tmp_path, "drawn", seed=7, time=False, split=config.split)
    assert drawn.split["train"].tolist() == split_by_seed(N, 7)["train"].tolist()


@pytest.mark.parametrize(
    ("labels", "options", "names", "shape", "decided"),
    [
        (["b", "a"] * 6, {}, ["a", "b"], (N, 2), None),
        (np.array([10, 9] * 6), {}, ["9", "10"], (N, 2), None),
        (np.array([True, False] * 6), {}, ["False", "True"], (N, 2), None),
        (np.eye(3, dtype=int)[np.arange(N) % 3], {}, ["0", "1", "2"], (N, 3), "are one-hot rows"),
        (
            np.arange(N),
            {},
            list(map(str, range(N))),
            (N, N),
            "12 classes for 12 series: is it a regression?",
        ),
        (np.arange(N), {"task": "regression"}, None, (N, 1), None),
        (np.arange(N) % 2.0, {}, None, (N, 1), "--task classification makes classes of them"),
        (np.arange(N) % 2.0, {"task": "classification"}, ["0", "1"], (N, 2), None),
        (RNG.normal(size=(N, 1)), {}, None, (N, 1), None),
        (RNG.normal(size=(N, L)), {}, None, (N, L), None),
        (RNG.normal(size=(N, 2)), {"label_axis": "steps"}, None, (N, 2), None),
        (RNG.normal(size=(N, 2)), {"label_axis": "outputs"}, None, (N, 1, 2), None),
        (RNG.normal(size=(N, 5, 3)), {}, None, (N, 5, 3), None),
    ],
)
def test_the_kind_of_labels_is_decided_and_said(labels, options, names, shape, decided):
    result = stored_labels(plain_labels(labels), L, **options)
    assert (result.class_names, result.stored.shape, result.stored.dtype) == (names, shape, np.float32)
    if names is not None:
        values = np.asarray(labels).argmax(axis=1) if np.ndim(labels) == 2 else labels
        assert [names[k] for k in result.classes] == [str(v).removesuffix(".0") for v in values]
    assert [decided in finding["text"] for finding in result.findings] == ([True] if decided else [])


def test_many_small_classes_may_be_quantities():
    for labels, asked in ((np.arange(60) % 20, True), (np.arange(60) % 10, False), (np.arange(400) % 20, False)):
        assert [f["kind"] for f in stored_labels(labels, L).findings] == ["task"] * asked


@pytest.mark.parametrize(
    ("labels", "options", "message"),
    [
        (RNG.normal(size=(N, 2)), {}, r"2 outputs of each series \(--label_axis outputs\), or one output at each of 2"),
        (
            RNG.normal(size=(N, 4)),
            {"label_axis": "steps"},
            "cannot carry 4 labels at equal distances. The numbers that fit: 1, 2, 5, 10",
        ),
        (RNG.normal(size=(N, 3)), {"label_axis": "steps"}, "10 time steps cannot carry 3"),
        (["a"] * N, {}, "all series have the label 'a'"),
        (["a", None] * 6, {}, "several types: NoneType, str"),
        (["a", np.nan] * 6, {}, "several types: float, str"),
        (["a", 1] * 6, {}, "several types: int, str"),
        ([[1.0, 2.0], [3.0]], {}, "lists of different lengths"),
        (np.ma.masked_equal(np.arange(N), 3), {}, "some labels are masked"),
        (["a", ""] * 6, {}, r"the label of series 1 \(from 0\) is missing"),
        ([0.5, np.nan] * 6, {}, r"the label of series 1 \(from 0\) is missing or not finite"),
        (["a", "b"] * 6, {"task": "regression"}, "the labels are texts, as 'a'; a regression needs numbers"),
        ([0.5, 1.0] * 6, {"task": "classification"}, "floats with fractions"),
        (np.stack([np.arange(N) / 3, np.ones(N)], 1), {"label_axis": "outputs"}, "all labels of output 1 are 1"),
        (np.full(N, 1e300) * np.arange(N), {}, "output 0 is beyond the range of float32"),
        (1.7e9 + np.arange(N), {"task": "regression"}, "span 11 around 1700000005.5, which float32 cannot resolve"),
    ],
)
def test_labels_that_cannot_be_learned_are_refused(labels, options, message):
    with pytest.raises(DataError, match=message):
        stored_labels(plain_labels(labels), L, **options)


def test_missing_values_and_unequal_lengths_are_refused_or_handled(tmp_path):
    holes = X.copy()
    holes[2, 4, 0] = np.nan
    with pytest.raises(DataError, match=r"missing values: 1\. --missing impute interpolates"):
        own.import_arrays("toy", holes, WORDS, data_dir=tmp_path)
    info = own.import_arrays("toy", holes, WORDS, missing="impute", data_dir=tmp_path)
    filled = np.load(Path(info["folder"]) / "data.npy")[2, 4, 0]
    assert filled == pytest.approx((X[2, 3, 0] + X[2, 5, 0]) / 2, rel=1e-6)

    short = [series[: L - i % 3] for i, series in enumerate(X)]
    with pytest.raises(DataError, match=r"series of unequal length: 8 to 10 time steps\. --unequal_length pad"):
        own.import_arrays("short", short, WORDS, data_dir=tmp_path)
    infos = [
        own.import_arrays(name, x, y, unequal_length="pad", data_dir=tmp_path)
        for name, x, y in (("short", short, WORDS), ("table", long_table(short), None))
    ]
    assert not any(finding["kind"] == "scale" for finding in infos[0]["findings"])
    large = own.import_arrays("large", [x * 100 for x in short], WORDS, unequal_length="pad", data_dir=tmp_path)
    assert any("scale the channels before the import" in finding["text"] for finding in large["findings"])
    for name, info in zip(("short", "table"), infos, strict=True):
        data = create_dataset(tmp_path, name, seed=1, time=False)
        np.testing.assert_array_equal(data.mask.sum(axis=1), [len(series) for series in short])
        assert np.all(np.load(Path(info["folder"]) / "data.npy")[~data.mask] == 0)
        assert not load_config(Path(info["folder"], "configs", "LinHRU", f"{name}.json")).standardise
    with pytest.raises(DataError, match="several labels each: the padding has no labels"):
        own.import_arrays("steps", short, X[:, :, 0], unequal_length="pad", data_dir=tmp_path)


def test_axes_in_the_wrong_order_and_doubtful_channels_are_asked_about(tmp_path):
    turned = X.transpose(0, 2, 1)
    info = own.import_arrays("turned", turned, WORDS, data_dir=tmp_path)
    assert info["findings"][0]["text"] == (
        "2 steps of 10 channels? If it is 10 steps of 2 channels, add --channels_first"
    )
    info = own.import_arrays("turned", turned, WORDS, channels_first=True, overwrite=True, data_dir=tmp_path)
    np.testing.assert_array_equal(np.load(Path(info["folder"]) / "data.npy"), X.astype(np.float32))
    doubtful = np.stack([np.ones((N, L)), X[:, :, 0] + 50, 1.7e9 + X[:, :, 1]], axis=2)
    kinds = [f["kind"] for f in own.import_arrays("odd", doubtful, WORDS, data_dir=tmp_path)["findings"]]
    assert kinds == ["constant_channels", "offsets", "rounded", "small_classes"]


@pytest.mark.parametrize(
    ("name", "x", "y", "options", "message"),
    [
        ("toy", X, WORDS[:-1], {}, "x: 12 series but 11 labels"),
        ("toy", X, None, {}, "x: no labels: they are y"),
        ("toy", X, WORDS, {"y_test": WORDS}, "y_test without x_test"),
        ("toy", X, WORDS, {"x_test": X[:, :, :1], "y_test": WORDS}, "series of 1 channels, but the train file has 2"),
        ("toy", X, WORDS, {"x_test": X, "y_test": np.arange(N)}, "the labels of the two parts differ in kind or shape"),
        ("toy", X[0, 0], WORDS, {}, r"x: shape \(2,\); needed is \(series, time steps, channels\)"),
        ("toy", [X[0], X[1, :, :1]], ["a", "b"], {}, "all must have the same channels"),
        (
            "toy",
            np.where(X[3, 4, 1] == X, np.inf, X),
            WORDS,
            {},
            r"infinite or beyond float32: series 3, time step 4, ch",
        ),
        ("toy", X.astype(str), WORDS, {}, "needed are numbers"),
        ("toy", [X[0], [["a", "b"]] * 5], ["a", "b"], {}, r"series 1 \(from 0\) is no array of numbers"),
        ("toy", np.ma.masked_less(X, 0), WORDS, {}, r"values are masked. x.filled\(np.nan\) and missing=\"impute\""),
        ("toy", [np.ma.masked_less(x, 0) for x in X], WORDS, {}, "values are masked"),
        ("toy", X * [1, np.nan], WORDS, {"missing": "impute"}, "has no value in channel 1 to interpolate from"),
        ("toy", X[:3], WORDS[:3], {}, "3 samples are too few to split"),
        ("toy", X, WORDS, {"split": "original"}, "needs a test part"),
        ("toy", X, WORDS, {"split": "gone.json"}, r"gone\.json: cannot be read"),
        ("all", X, WORDS, {}, "and not 'all'"),
        ("../toy", X, WORDS, {}, "must be letters"),
        ("GunPoint", X, WORDS, {}, "is the name of a known data set"),
    ],
)
def test_what_cannot_be_a_set_is_refused_and_nothing_is_written(tmp_path, name, x, y, options, message):
    with pytest.raises(DataError, match=message):
        own.import_arrays(name, x, y, **options, data_dir=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_integers_of_both_parts_stay_integers(tmp_path):
    labels = np.arange(N, dtype=np.uint64) % 2 + 2**60
    info = own.import_arrays("toy", X, labels, x_test=X[:4], y_test=labels[:4].astype(np.int64), data_dir=tmp_path)
    assert info["class_names"] == [str(2**60), str(2**60 + 1)]


def test_a_set_is_written_whole_and_never_over_another(tmp_path, monkeypatch, capsys):
    folder = Path(own.import_arrays("toy", X, WORDS, data_dir=tmp_path)["folder"])
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    with pytest.raises(DataError, match=r"toy: exists\. --overwrite replaces the set, but no config that you"):
        own.import_arrays("toy", X, WORDS, data_dir=tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(own, "write_configs", lambda *_, **__: (_ for _ in ()).throw(OSError(28, "No space left")))
        with pytest.raises(DataError, match="cannot be written"):
            own.import_arrays("toy", X + 1, WORDS, overwrite=True, data_dir=tmp_path)
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before
    assert [path.name for path in folder.parent.iterdir()] == ["toy"]
    edited = folder / "configs" / "LinHRU" / "toy.json"
    edited.write_text("{}")
    info = own.import_arrays("toy", X[:10], np.arange(10) / 3, overwrite=True, data_dir=tmp_path)
    assert edited.read_text() == "{}"
    assert {"kind": "configs", "text": "configs/LinHRU/toy.json is no starter config: it stays as it is"} in info[
        "findings"
    ]
    assert not load_config(folder / "configs" / "NonlinHRU" / "toy.json").classification
    regression = create_dataset(tmp_path, "toy", seed=1, time=False, classification=False)
    assert "2 channels; one label a series, mapped" in regression.describe()
    (tmp_path / "processed" / "UEA" / "other").mkdir(parents=True)
    with pytest.raises(DataError, match=r"is the name of the set in .*UEA/other"):
        own.import_arrays("other", X, WORDS, data_dir=tmp_path)
    np.save(tmp_path / "x.npy", X)
    assert main(["new", "--x", str(tmp_path / "x.npy"), "--data_dir", str(tmp_path / "typo")]) == 1
    assert "typo: no such folder" in capsys.readouterr().err
    assert not (tmp_path / "typo").exists()


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("x.npz", b"no zip", "no arrays of numbers or texts can be read"),
        ("x.npz", None, "no such file"),
        ("x.csv", b"", "cannot be read as a table"),
        ("x.csv", b"\xff\xfe\x00", "cannot be read as a table"),
        ("x.parquet", b"PAR1", "pip install pyarrow, or save the table as csv"),
        ("x.npy", b"objects", "Labels that are texts: np.save(FILE, labels.astype(str))"),
        ("x.mat", b"", "is no npy, npz, csv, tsv, parquet, ts or arff file"),
    ],
)
def test_files_that_cannot_be_read_are_named(tmp_path, monkeypatch, capsys, file, content, message):
    def no_engine(_):
        raise ImportError("Unable to find a usable engine")

    monkeypatch.setattr(pd, "read_parquet", no_engine)
    if content == b"objects":
        np.save(tmp_path / file, np.array(["a", None], dtype=object))
    elif content is not None:
        (tmp_path / file).write_bytes(content)
    assert main(["toy", "--x", str(tmp_path / file), "--data_dir", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"toy: {tmp_path / file}: ")
    assert message in error


def test_objects_in_npz_files_are_not_unpickled(tmp_path, capsys):
    np.savez(tmp_path / "x.npz", x=np.array([{"a": 1}, [2]], dtype=object), y=WORDS)
    assert main(["toy", "--x", str(tmp_path / "x.npz"), "--data_dir", str(tmp_path)]) == 1
    assert "Object arrays cannot be loaded when allow_pickle=False" in capsys.readouterr().err


def test_the_function_is_there_whatever_was_imported(tmp_path):
    assert package.import_arrays is sys.modules["data_dir.import_arrays"]
    info = package.import_arrays("toy", X, WORDS, data_dir=tmp_path)
    assert info["n_samples"] == N
    # From Python, messages name arguments.
    options = {"label_axis": "outputs", "output_names": ["heat", "angle"], "overwrite": True}
    info = package.import_arrays("toy", X.transpose(0, 2, 1), X[:, 0], **options, data_dir=tmp_path)
    assert info["output_names"] == ["heat", "angle"]
    assert info["findings"][0]["text"].endswith("add channels_first=True")
    for y, message in (
        (WORDS, r"exists\. overwrite=True replaces the set"),
        (X[:, 0], r"\(label_axis=\"outputs\"\)"),
        (pd.DataFrame({"id": range(N), "label": WORDS}), r"same order: ignore=\['id'\]"),
        (pd.DataFrame({"Unnamed: 0": range(N), "label": WORDS}), r"ignore=\['Unnamed: 0'\] leaves it out"),
    ):
        with pytest.raises(DataError, match=message):
            package.import_arrays("toy" if y is WORDS else "other", X, y, data_dir=tmp_path)
    for y, message in ((WORDS, "needed are none for classes"), (X[:, 0, 0], "needed are 1 distinct names")):
        with pytest.raises(DataError, match=message):
            own.import_arrays("other", X, y, output_names=["a", "b"], data_dir=tmp_path)
    code = (
        "import sys, data_dir; assert not {'jax', 'pandas', 'numpy'} & sys.modules.keys(); data_dir.import_arrays; "
        "assert callable(data_dir.import_arrays); assert not {'jax', 'pandas', 'sktime'} & sys.modules.keys(); "
        "from data_dir import import_arrays; assert callable(import_arrays)"
    )
    root = Path(__file__).resolve().parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True).stderr == ""


@pytest.mark.parametrize("length", [10, 301, 1001, 10**5])
@pytest.mark.parametrize("n_train", [3, 500])
def test_starter_configs_are_valid_at_every_size(tmp_path, length, n_train):
    for model in MODELS:
        places = {"data_dir": "data_dir", "output_parent_dir": "outputs", "split": "seed"}
        sizes = {"length": length, "n_train": n_train, "classification": True, "standardise": True, "seeds": [1]}
        (tmp_path / model).mkdir()
        (tmp_path / model / "toy.json").write_text(json.dumps(starter_config(model, **sizes, **places)))
        config = load_config(tmp_path / model / "toy.json")
        assert config.batch_size <= n_train
        assert build(config.lr_scheduler, config.lr, 10) == config.lr  # a training that is continued still learns
