"""create_dataset: from a processed folder to three loaders, or a message that says what to do."""

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from raw_files import store

from data_dir import finding, scaling
from data_dir.datasets import create_dataset
from data_dir.finding import processed_datasets
from data_dir.names import BUNDLED, nearest_name
from data_dir.pickles import read_arrays, write_arrays
from data_dir.splits import split_by_seed
from data_dir.storage import DataError

RNG = np.random.default_rng(0)
PARTS = ("train", "validation", "test")


def toy(n: int = 20) -> np.ndarray:
    return RNG.normal(size=(n, 6, 2)).astype(np.float32)


def load(data_dir: Path, name: str = "Toy", **options):
    return create_dataset(data_dir, name, **{"seed": 2345, "time": False, **options})


def test_bundled_set_is_served(bundled):
    dataset = load(bundled, "BasicMotions", time=True)
    assert (dataset.name, dataset.length, dataset.data_dim, dataset.label_dim) == ("BasicMotions", 100, 7, 4)
    assert dataset.classification
    assert dataset.class_names == ["Badminton", "Running", "Standing", "Walking"]
    assert [getattr(dataset, part).size for part in PARTS] == [56, 12, 12]
    expected = split_by_seed(80, 2345)
    stored = read_arrays(bundled / "processed" / "UEA" / "BasicMotions" / "data.pkl")
    for part in PARTS:
        loader = getattr(dataset, part)
        np.testing.assert_array_equal(dataset.split[part], expected[part])
        np.testing.assert_array_equal(loader.data[:, :, 1:], stored[expected[part]])
        np.testing.assert_array_equal(
            loader.data[:, :, 0], np.tile((np.arange(100) / 100).astype(np.float32), (loader.size, 1))
        )
        assert loader.data.dtype == loader.labels.dtype == np.float32
        assert np.all(loader.labels.sum(axis=1) == 1)
    labels = np.concatenate([getattr(dataset, part).labels for part in PARTS])
    assert labels.sum(axis=0).tolist() == [20, 20, 20, 20]


def test_bundled_set_without_the_time_channel(bundled):
    dataset = load(bundled, "BasicMotions")
    assert dataset.data_dim == 6
    assert dataset.train.data.shape == (56, 100, 6)
    other = load(bundled, "BasicMotions", seed=3456)
    assert other.split["train"].tolist() != dataset.split["train"].tolist()


def test_bundled_set_is_processed_once(bundled, monkeypatch):
    def fail(*arguments, **options):
        raise AssertionError("processed again")

    monkeypatch.setattr(finding, "process_dataset", fail)
    assert load(bundled, "BasicMotions").train.size == 56
    with pytest.raises(AssertionError, match="processed again"):
        load(bundled, "GunPoint")


@pytest.mark.parametrize("name", sorted({*BUNDLED} - {"BasicMotions"}))
def test_every_bundled_set_needs_no_download(tmp_path, name, monkeypatch):
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("reached for the network"))
    dataset = load(tmp_path, name)
    assert dataset.train.size > dataset.test.size > 0
    assert processed_datasets(tmp_path) == [name]
    assert [entry.name for entry in (tmp_path / "processed" / "UEA").iterdir()] == [name], "nothing else is left"
    info = json.loads((tmp_path / "processed" / "UEA" / name / "dataset.json").read_text())
    assert sum(info["class_counts"]) == info["n_samples"] == sum(getattr(dataset, part).size for part in PARTS)


def test_a_half_written_bundled_set_is_processed_again(tmp_path):
    folder = store(tmp_path, "GunPoint", labels=np.arange(3))
    assert load(tmp_path, "GunPoint").train.size == 140
    assert (folder / "data.pkl").exists()


def test_a_missing_set_names_folder_and_commands(tmp_path):
    with pytest.raises(DataError) as caught:
        load(tmp_path, "SelfRegulationSCP1")
    message = str(caught.value)
    assert f"{tmp_path}/processed/*/SelfRegulationSCP1" in message
    assert f"python data_dir/download_uea.py --datasets SelfRegulationSCP1 --data_dir {tmp_path}" in message
    assert f"python data_dir/process_uea.py --datasets SelfRegulationSCP1 --data_dir {tmp_path}" in message


def test_a_missing_set_with_raw_files_needs_processing_only(tmp_path):
    raw = tmp_path / "raw" / "UEA" / "Multivariate_arff" / "Heartbeat"
    raw.mkdir(parents=True)
    for part in ("TRAIN", "TEST"):
        (raw / f"Heartbeat_{part}.arff").touch()
    with pytest.raises(DataError, match=r"process_uea\.py --datasets Heartbeat") as caught:
        load(tmp_path, "Heartbeat")
    assert "download" not in str(caught.value)


def test_a_missing_set_that_no_command_fetches(tmp_path):
    with pytest.raises(DataError, match=r"Put QuietSeries_TRAIN\.ts and QuietSeries_TEST\.ts into "):
        load(tmp_path, "QuietSeries")
    with pytest.raises(DataError, match=r"fetched by hand .*\n    python data_dir/process_ppg"):
        load(tmp_path, "ppg", classification=False)


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("BasicMotion", "BasicMotions"),
        ("selfregulationscp2", "SelfRegulationSCP2"),
        ("SCP1", "SelfRegulationSCP1"),
        ("Self-Regulation SCP 1", "SelfRegulationSCP1"),
        ("motor", "MotorImagery"),
        ("Ethanol", "EthanolConcentration"),
        ("EigenWorm", "EigenWorms"),
        ("HeartBeats", "Heartbeat"),
        ("worms", "EigenWorms"),
        ("PPG", "ppg"),
        ("PPG-DaLiA", "ppg"),
    ],
)
def test_a_typing_error_gets_the_nearest_name(tmp_path, typed, meant):
    with pytest.raises(DataError, match=f"'{typed}'.*Did you mean '{meant}'"):
        load(tmp_path, typed)


@pytest.mark.parametrize("name", ["Mot", "ab", "Entirely different"])
def test_what_is_like_none_or_many_gets_no_guess(name):
    assert nearest_name(name, ["SelfRegulationSCP1", "SelfRegulationSCP2", "BasicMotions", "MotorImagery"]) is None


def test_the_nearest_name_may_be_a_processed_set(tmp_path):
    store(tmp_path, "MyOwnSeries", data=toy(), labels=np.arange(20) % 2)
    with pytest.raises(DataError, match="Did you mean 'MyOwnSeries'"):
        load(tmp_path, "MyOwnSerie")


@pytest.mark.parametrize("name", ["", "../Toy", "UEA/Toy", "/etc", ".hidden", ".."])
def test_a_name_is_not_a_path(tmp_path, name):
    store(tmp_path, data=toy(), labels=np.arange(20) % 2)
    with pytest.raises(DataError, match="must be the name of a folder"):
        load(tmp_path, name)


def test_a_name_found_twice_is_ambiguous(tmp_path):
    store(tmp_path, data=toy(), labels=np.arange(20) % 2)
    store(tmp_path, collection="Other", data=toy(), labels=np.arange(20) % 2)
    with pytest.raises(DataError, match=r"exists twice, as .*Other/Toy and .*UEA/Toy"):
        load(tmp_path)


@pytest.mark.parametrize(
    "labels",
    [
        np.arange(20) % 3,
        (np.arange(20) % 3 + 4).astype(np.int8),
        (np.arange(20) % 3).astype(np.float64),
        np.arange(20)[:, None] % 3,
        np.eye(3)[np.arange(20) % 3],
        jnp.arange(20) % 3,
        jnp.eye(3)[jnp.arange(20) % 3],
        [int(row) for row in np.arange(20) % 3],
    ],
    ids=["int64", "int8 from 4", "float", "column", "one-hot", "jax", "jax one-hot", "list"],
)
def test_labels_as_integers_or_one_hot(tmp_path, labels):
    store(tmp_path, data=jnp.asarray(toy()), labels=labels)
    dataset = load(tmp_path)
    # The values are kept as names: predictions give them back.
    one_hot = np.ndim(labels) == 2 and np.shape(labels)[1] == 3
    names = None if one_hot else [str(int(value)) for value in np.unique(np.asarray(labels))]
    assert (dataset.label_dim, dataset.class_names) == (3, names)
    for part in PARTS:
        np.testing.assert_array_equal(getattr(dataset, part).labels, np.eye(3)[dataset.split[part] % 3])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": toy()[0]}, r"data\.pkl: shape \(6, 2\); needed is \(samples, time steps, channels\)"),
        ({"data": toy()[:, :0]}, r"data\.pkl: shape \(20, 0, 2\)"),
        ({"data": np.where(np.arange(2) == 1, np.nan, toy())}, r"data\.pkl: 120 values are not finite"),
        ({"data": toy().astype(float) * 1e300}, r"data\.pkl: 240 values are not finite"),
        ({"data": toy(19)}, r"labels\.pkl: labels of shape \(20,\) for the 19 samples of data\.pkl"),
        ({"labels": np.array(1)}, r"labels\.pkl: labels of shape \(\)"),
        ({"labels": np.full(20, np.nan)}, r"labels\.pkl: 20 values are not finite"),
        ({"labels": np.linspace(0, 1, 20)}, r"labels\.pkl: class labels must be integers below 2\^24 or one-hot rows"),
        ({"labels": 2**24 + np.arange(20)}, r"labels\.pkl: class labels must be integers below 2\^24"),
        ({"labels": np.full(20, 7)}, r"labels\.pkl: all samples are of class 7; a classification needs two classes"),
        (
            {"labels": np.eye(3)[np.ones(20, int)]},
            r"labels\.pkl: all samples are of class 1; a classification needs two",
        ),
        ({"labels": np.ones((20, 3))}, r"labels\.pkl: class labels of shape \(20, 3\)"),
        ({"labels": np.full((20, 2), 0.5)}, r"labels\.pkl: class labels of shape \(20, 2\)"),
        ({"labels": np.ones((20, 3, 1))}, r"labels\.pkl: class labels of shape \(20, 3, 1\)"),
        ({"data": toy(3), "labels": np.arange(3)}, r"data\.pkl: 3 samples are too few"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(tmp_path, change, message):
    folder = store(tmp_path, **{"data": toy(), "labels": np.arange(20) % 2, **change})
    with pytest.raises(DataError, match=message) as caught:
        load(tmp_path)
    assert str(caught.value).startswith(str(folder)), "the message names the file"


def test_the_values_of_class_labels_are_said(tmp_path):
    store(tmp_path, data=toy(), labels=np.array([0, 1, 2, 3, 40] * 4))
    dataset = load(tmp_path)
    assert dataset.class_names == ["0", "1", "2", "3", "40"]
    described = "Toy: 20 series x 6 time steps x 2 channels; 5 classes (0, 1, 2, 3, 40); train 14, validation 3, test 3"
    assert dataset.describe() == described
    assert dataset.notes == ()


def test_what_is_odd_is_noted(tmp_path):
    data = toy().transpose(0, 2, 1)
    data[:, :, 4] += 100
    labels = np.arange(20) % 2
    lost = split_by_seed(20, 2345)["test"][0]
    labels[lost] = 9
    store(tmp_path, data=data, labels=labels)
    transposed, class_lost, offset = load(tmp_path).notes
    assert transposed.startswith("more channels (6) than time steps (2): the axes must be")
    assert class_lost == "the training part of seed 2345 has no sample of class 9."
    assert offset.startswith("channel 4 far off zero: channel 4 lies at 100")
    assert '"standardise": true in the config removes the offset' in offset
    assert load(tmp_path, seed=2).notes[-1] == offset, "it does not depend on the seed"
    assert len(load(tmp_path, standardise=True).notes) == 2


@pytest.mark.parametrize("kind", ["pkl", "npy"])
@pytest.mark.parametrize("inmemory", [False, True])
def test_channels_are_standardised_by_the_training_part(tmp_path, monkeypatch, kind, inmemory):
    monkeypatch.setattr(scaling, "_CHUNK_BYTES", 500)
    data = toy() * np.array([20, 0.1], dtype=np.float32) + np.array([4000, 0], dtype=np.float32)
    data[:, :, 1] = 0.1  # constant: its mean is subtracted and nothing is divided
    folder = store(tmp_path, labels=np.arange(20) % 2, **({"data": data} if kind == "pkl" else {}))
    np.save(folder / "data.npy", data) if kind == "npy" else None
    dataset = load(tmp_path, time=True, standardise=True, inmemory=inmemory)
    train = data[dataset.split["train"]].astype(np.float64)
    served = np.asarray(dataset.train.data, dtype=np.float64)
    np.testing.assert_allclose(served[:, :, 1].mean(), 0, atol=1e-4)
    np.testing.assert_allclose(served[:, :, 1].std(), 1, rtol=1e-5)
    np.testing.assert_array_equal(served[:, :, 2], 0)
    np.testing.assert_array_equal(served[0, :, 0], np.arange(6, dtype=np.float32) / 6)
    mean, scale = train[:, :, 0].mean(), 1 / train[:, :, 0].std()
    expected = (data[dataset.split["test"]][:, :, 0].astype(np.float64) - mean) * scale
    np.testing.assert_allclose(dataset.test.data[:, :, 1], expected, atol=1e-4)
    np.testing.assert_array_equal(dataset.test.data, dataset.test.batch(np.arange(3))[0])
    np.testing.assert_allclose(dataset.standardisation.mean, [mean, 0.1], rtol=1e-7)
    np.testing.assert_allclose(dataset.standardisation.scale, [scale, 1], rtol=1e-6)


def test_padded_series_are_not_standardised(tmp_path):
    store(tmp_path, data=toy(), labels=np.arange(20) % 2, mask=np.ones((20, 6), dtype=bool))
    with pytest.raises(DataError, match="standardise would move the zeros that pad its series"):
        load(tmp_path, standardise=True)


def test_padding_does_not_hide_an_offset(tmp_path):
    data, mask = toy() + 50, np.arange(6) < np.where(np.arange(20) % 2, 6, 1)[:, None]
    data[~mask] = 0
    folder = store(tmp_path, data=data, labels=np.arange(20) % 2)
    assert load(tmp_path).notes == (), "zeros that belong to the series hide it"
    write_arrays(folder / "mask.pkl", mask)
    (offset,) = load(tmp_path).notes
    assert offset.startswith("channels 0, 1 far off zero")
    assert "standardise" not in offset, "padded sets cannot be standardised"


def test_labels_beyond_tanh_are_mapped_and_come_back(tmp_path):
    labels = RNG.uniform(60, 180, size=(20, 3))
    labels[4, 1], labels[7, 0] = 50, 190
    store(tmp_path, data=toy(), labels=labels)
    dataset = load(tmp_path, classification=False)
    assert (dataset.output_step, dataset.label_dim) == (2, 1)
    centre, unit = dataset.label_map
    assert centre == 120
    assert unit == pytest.approx(70 / 0.9)
    served = np.concatenate([getattr(dataset, part).labels for part in PARTS])
    assert served.min() == pytest.approx(-0.9)
    assert served.max() == pytest.approx(0.9)
    stored = np.concatenate([labels[dataset.split[part]] for part in PARTS])
    np.testing.assert_allclose(dataset.label_map.to_labels(served), stored, rtol=1e-6)
    assert {getattr(dataset, part).label_unit for part in PARTS} == {unit}
    assert np.shares_memory(dataset.train._labels, dataset.test._labels), "mapped once for all parts"
    assert "3 labels a series, one every 2 time steps, mapped: label = 120 + 77.7778 x output" in dataset.describe()
    # Labels that tanh comes near to, to its very ends, stay as they are.
    write_arrays(tmp_path / "processed" / "UEA" / "Toy" / "labels.pkl", (labels - 120) / 70)
    dataset = load(tmp_path, classification=False)
    assert dataset.label_map is None
    np.testing.assert_array_equal(dataset.test.labels, ((labels - 120) / 70).astype(np.float32)[dataset.split["test"]])
    # Labels in a small part of that range are widened: the first outputs would be far from all of them.
    write_arrays(tmp_path / "processed" / "UEA" / "Toy" / "labels.pkl", 0.5 + (labels - 120) / 700)
    dataset = load(tmp_path, classification=False)
    assert dataset.label_map == pytest.approx((0.5, 0.1 / 0.9), rel=1e-6)


def test_each_output_has_its_own_map_and_name(tmp_path):
    near = np.linspace(-1, 1, 60).reshape(20, 3)
    folder = store(tmp_path, data=toy(), labels=np.stack([near, 280 + 15 * near], axis=2))
    dataset = load(tmp_path, classification=False)
    assert (dataset.label_dim, dataset.output_step, dataset.output_names) == (2, 2, None)
    assert dataset.label_map.centre == (0, 280)
    assert dataset.label_map.unit == pytest.approx((1, 15 / 0.9))
    np.testing.assert_allclose(dataset.test.labels, near[dataset.split["test"]][..., None] * [1, 0.9], rtol=1e-5)
    (folder / "dataset.json").write_text(json.dumps({"output_names": ["angle", "heat"]}))
    described = load(tmp_path, classification=False).describe()
    assert (
        "2 outputs (angle, heat), 3 labels a series, one every 2 time steps of each, mapped: angle = 0 + 1 x"
        in described
    )
    assert "; heat = 280 + 16.6667 x output; mse in units of the files" in described
    (folder / "dataset.json").write_text(json.dumps({"output_names": ["angle"]}))
    with pytest.raises(DataError, match="output_names must be 2 distinct texts"):
        load(tmp_path, classification=False)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.full((20, 3), 5), "Toy: all labels are 5: a regression needs labels that differ"),
        (RNG.uniform(size=(20, 7)), "Toy: 6 time steps cannot carry 7 labels"),
        (RNG.uniform(size=(20, 4)), "Toy: 6 time steps cannot carry 4 labels at equal distances"),
    ],
)
def test_labels_that_no_regression_can_have(tmp_path, labels, message):
    store(tmp_path, data=toy(), labels=labels)
    with pytest.raises(DataError, match=message):
        load(tmp_path, classification=False)


def test_the_number_of_classes_must_be_that_of_the_names(tmp_path):
    folder = store(tmp_path, data=toy(), labels=np.arange(20) % 3)
    (folder / "dataset.json").write_text('{"class_names": ["2", "0", "1", "7"]}')
    with pytest.raises(DataError, match=r"labels\.pkl: dataset\.json has class_names, so the labels must be one-hot"):
        load(tmp_path)
    write_arrays(folder / "labels.pkl", np.eye(3)[np.arange(20) % 3])
    with pytest.raises(DataError, match=r"labels\.pkl: 3 classes, but dataset\.json names 4"):
        load(tmp_path)
    (folder / "dataset.json").write_text('{"class_names": ["a", "b", "c"]}')
    assert load(tmp_path).class_names == ["a", "b", "c"]
    with pytest.raises(DataError, match="needs classification True"):
        load(tmp_path, classification=False)


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        '{"class_names": 3}',
        '{"class_names": ["a", "b", 1]}',
        '{"class_names": ["a", "b", "a"]}',
        '{"processed_files": []}',
        '{"processed_files": {"data.pkl": 3}}',
        "\xff",
    ],
)
def test_a_damaged_description_is_refused(tmp_path, text):
    folder = store(tmp_path, data=toy(), labels=np.arange(20) % 3)
    (folder / "dataset.json").write_bytes(text.encode("latin1"))
    with pytest.raises(DataError, match=r"dataset\.json: "):
        load(tmp_path)


def test_files_changed_since_they_were_processed_are_refused(tmp_path):
    load(tmp_path, "GunPoint")
    folder = tmp_path / "processed" / "UEA" / "GunPoint"
    for file in ("data.pkl", "labels.pkl", "original_idxs.pkl"):
        whole = (folder / file).read_bytes()
        (folder / file).write_bytes(whole[:-200] + bytes([whole[-200] ^ 1]) + whole[-199:])
        with pytest.raises(DataError, match=rf"{file}: was changed since it was processed \(sha256\)"):
            load(tmp_path, "GunPoint")
        (folder / file).write_bytes(whole[:-1])
        with pytest.raises(DataError, match=rf"{file}: was changed since it was processed \(sha256\)"):
            load(tmp_path, "GunPoint")
        if file != "data.pkl":  # Without it the set counts as absent and is processed again.
            (folder / file).unlink()
            with pytest.raises(DataError, match=rf"{file}: no such file, but dataset\.json names it"):
                load(tmp_path, "GunPoint")
        (folder / file).write_bytes(whole)
    assert load(tmp_path, "GunPoint").train.size == 140


def test_samples_may_lie_on_the_device(tmp_path):
    store(tmp_path, data=toy(), labels=np.arange(20) % 3)
    host, device = load(tmp_path, time=True), load(tmp_path, time=True, inmemory=True)
    for part in PARTS:
        assert isinstance(getattr(device, part).data, jax.Array)
        np.testing.assert_array_equal(getattr(device, part).data, getattr(host, part).data)
        np.testing.assert_array_equal(getattr(device, part).labels, getattr(host, part).labels)


def test_damaged_and_missing_files_are_refused(tmp_path):
    folder = store(tmp_path, data=toy(), labels=np.arange(20) % 3)
    whole = (folder / "data.pkl").read_bytes()
    (folder / "data.pkl").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"data\.pkl: not a pickle of arrays, or cut short"):
        load(tmp_path)
    (folder / "data.pkl").write_bytes(whole)
    (folder / "labels.pkl").unlink()
    # These files are the user's own: nobody advises to remove them.
    with pytest.raises(DataError, match=r"labels\.pkl: no such file, nor labels\.npy\. Write the file again") as caught:
        load(tmp_path)
    assert "emove" not in str(caught.value)


def ppg(counts=(6, 4, 5), length: int = 64, step: int = 8) -> dict[str, np.ndarray]:
    """Arrays of PPG-DaLiA's layout, short."""
    arrays = {}
    for part, n in zip(("train", "val", "test"), counts, strict=True):
        arrays[f"X_{part}"] = RNG.normal(size=(n, length, 6)).astype(np.float32)
        arrays[f"y_{part}"] = RNG.uniform(-1, 1, size=(n, length // step))
    return arrays


def test_ppg_is_served_in_its_own_parts(tmp_path):
    arrays = ppg()
    store(tmp_path, "ppg", "PPG", **arrays)
    dataset = load(tmp_path, "ppg", classification=False, output_step=8, time=True)
    assert (dataset.data_dim, dataset.label_dim, dataset.length) == (7, 1, 64)
    assert dataset.split is None
    assert dataset.class_names is None
    assert not dataset.classification
    for part, stored in zip(PARTS, ("train", "val", "test"), strict=True):
        loader = getattr(dataset, part)
        np.testing.assert_array_equal(loader.data[:, :, 1:], arrays[f"X_{stored}"])
        np.testing.assert_array_equal(loader.data[0, :, 0], np.arange(64, dtype=np.float32) / 64)
        np.testing.assert_array_equal(loader.labels, arrays[f"y_{stored}"].astype(np.float32))
    assert processed_datasets(tmp_path) == ["ppg"]


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({}, {"output_step": 1}, r"output_step 1 does not fit: 64 time steps carry 8 labels, so it must be 8"),
        ({}, {"output_step": 0}, "output_step 0 does not fit"),
        ({}, {"classification": True}, "PPG/ppg: .* needs classification False"),
        ({"y_val": np.zeros((4, 7))}, {}, "the validation part has .* 7 labels each, the train part .* and 8"),
        ({"X_test": np.zeros((5, 64, 5))}, {}, r"the test part has samples of shape \(64, 5\)"),
        ({"y_test": np.zeros((4, 8))}, {}, r"y_test\.pkl: labels of shape \(4, 8\) for the 5 samples"),
        ({"y_train": np.zeros(6)}, {}, r"y_train\.pkl: labels of shape \(6,\)"),
        ({"X_val": np.zeros((0, 64, 6))}, {}, r"X_val\.pkl: shape \(0, 64, 6\)"),
    ],
)
def test_ppg_arrays_that_do_not_fit_are_refused(tmp_path, change, options, message):
    store(tmp_path, "ppg", "PPG", **{**ppg(), **change})
    with pytest.raises(DataError, match=message):
        load(tmp_path, "ppg", **{"classification": False, "output_step": 8, **options})


def test_ppg_cannot_be_split_anew(tmp_path):
    store(tmp_path, "ppg", "PPG", **ppg())
    with pytest.raises(DataError, match=r"PPG/ppg: holds three parts; split 'original' is not possible, only 'seed'"):
        load(tmp_path, "ppg", classification=False, output_step=8, split="original")


def test_arrays_in_npy_files_are_memory_mapped_and_checked(tmp_path):
    arrays = ppg()
    folder = store(tmp_path, "ppg", "PPG")
    options = {"classification": False, "output_step": 8}
    for file, array in arrays.items():
        np.save(folder / f"{file}.npy", array.astype(np.float32))
    dataset = load(tmp_path, "ppg", **options)
    np.testing.assert_array_equal(dataset.train.data, arrays["X_train"])
    assert isinstance(dataset.train._data.base, np.memmap)
    bad = arrays["X_val"].copy()
    bad[0, 0, 0] = np.nan
    for content, message in [
        (bad, "1 values are not finite"),
        (np.array([object()]), "no array can be read from it"),
        (np.array(["text"]), "holds no array of numbers"),
    ]:
        np.save(folder / "X_val.npy", content)
        with pytest.raises(DataError, match=rf"X_val\.npy: {message}"):
            load(tmp_path, "ppg", **options)
    np.save(folder / "X_val.npy", arrays["X_val"])
    whole = (folder / "X_val.npy").read_bytes()
    for cut in (whole[:-100], whole[:20], b""):
        (folder / "X_val.npy").write_bytes(cut)
        with pytest.raises(DataError, match=r"X_val\.npy: no array can be read from it"):
            load(tmp_path, "ppg", **options)


def test_a_missing_part_is_named(tmp_path):
    folder = store(tmp_path, "ppg", "PPG", **ppg())
    (folder / "y_val.pkl").unlink()
    with pytest.raises(DataError, match=r"y_val\.pkl: no such file"):
        load(tmp_path, "ppg", classification=False, output_step=8)


def test_processed_sets_are_listed(bundled, tmp_path):
    assert processed_datasets(tmp_path) == []
    shutil.copytree(bundled / "processed", tmp_path / "processed")
    store(tmp_path, ".Unfinished.new", data=toy())
    store(tmp_path, "Empty")
    store(tmp_path, "ppg", "PPG", **ppg())
    assert processed_datasets(tmp_path) == ["BasicMotions", "ppg"]
