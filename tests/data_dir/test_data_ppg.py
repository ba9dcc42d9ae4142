"""PPG-DaLiA: from the pickle of a subject to a network, on recordings whose labels are a function of time."""

import os
import pickle
import struct
import tracemalloc
import zipfile
from io import BytesIO
from pathlib import Path

import equinox as eqx
import jax
import numpy as np
import pytest
from raw_files import contents, files_below, full_disk

from data_dir import process_ppg
from data_dir.datasets import create_dataset
from data_dir.fetching import recordings
from data_dir.npy import read_npy
from data_dir.pickles import read_members
from data_dir.processing import ppg, ppg_set
from data_dir.processing.ppg_set import RowWriter
from data_dir.splits import PARTS
from data_dir.storage import DataError, read_json
from models import create_model

# Windows of 5 labels, 2 apart, in recordings of 60 labels: 42 to train, 9 to validate, 9 to test.
SMALL = {"window": 5, "stride": 2}
LABELS = 60


class _Python2Pickler(pickle._Pickler):
    """Writes bytes as the str of Python 2, as numpy's arrays were written there."""

    def save_bytes(self, obj):
        self.write(pickle.BINSTRING + struct.pack("<i", len(obj)) + obj)

    dispatch = {**pickle._Pickler.dispatch, bytes: save_bytes}  # noqa: RUF012


def python2_pickle(value) -> bytes:
    file = BytesIO()
    _Python2Pickler(file, protocol=2).dump(value)
    return file.getvalue().replace(b"numpy._core.multiarray", b"numpy.core.multiarray")


def subject(n: int = LABELS, **changes) -> dict:
    """A recording of n label units in which every channel is the time, in units, and a heart rate is its own number."""
    time = {rate: np.arange(n * 2 * rate) / (2.0 * rate) for rate in (64, 32, 4)}
    wrist = {
        "ACC": np.stack([time[32], -time[32], 2 * time[32]], axis=1),
        "BVP": time[64][:, None],
        "EDA": time[4][:, None],
        "TEMP": time[4][:, None] + 30,
    }
    label = np.arange(3.0, n)  # The value that ends with unit j is j: the first 8 s end with unit 3.
    chest = {"ECG": np.zeros((10, 1)), "Resp": np.zeros((10, 1))}
    value = {
        "signal": {"chest": chest, "wrist": wrist},
        "label": label,
        "activity": np.zeros((5, 1)),
        "questionnaire": {"AGE": 34, "Gender": " m", "SKIN": 3.5},
        "rpeaks": np.arange(3),
        "subject": "S1",
    }
    for key, change in changes.items():
        (wrist if key in wrist else value)[key] = change
    return value


def put(raw: Path, subjects=(1, 2), value=None, **changes) -> Path:
    folder = raw / "PPG_FieldStudy"
    for i in subjects:
        (folder / f"S{i}").mkdir(parents=True, exist_ok=True)
        (folder / f"S{i}" / f"S{i}.pkl").write_bytes(python2_pickle(value or subject(**changes)))
    return folder


def process(source: Path, data_dir: Path, subjects=(1, 2), **options) -> dict:
    return ppg_set.process_ppg(source, data_dir, subjects=subjects, **{**SMALL, **options})


def load(data_dir: Path, **options):
    return create_dataset(
        data_dir, "ppg", **{"seed": 1, "time": False, "classification": False, "output_step": 128, **options}
    )


# Protocol


@pytest.mark.parametrize("order", ppg.ORDERS, ids="-".join)
def test_labels_belong_to_the_samples_of_their_window(tmp_path, order, monkeypatch):
    monkeypatch.setattr(ppg, "order_of", lambda *_: order)
    info = process(put(tmp_path), tmp_path)
    ranges = info["subjects"]["S1"]["ranges"]

    def raw(values, name):
        low, high = ranges[name]
        return low + (values.astype(np.float64) + 1) * (high - low) / 2

    dataset = load(tmp_path)
    seen = {}
    for part in PARTS:
        loader = getattr(dataset, part)
        assert loader.size == 2 * info["subjects"]["S1"]["windows"][part] == info["n_samples"][part]
        units = raw(loader.data[:, :, ppg.CHANNELS.index("BVP")], "BVP").reshape(loader.size, 5, 128)
        numbers = np.floor(units.mean(axis=2))
        np.testing.assert_allclose(units.std(axis=2), 128**-0.5 / 128**0.5 * np.sqrt((128**2 - 1) / 12), rtol=1e-2)
        np.testing.assert_allclose(raw(loader.labels, "heart_rate"), np.maximum(numbers, 3), atol=1e-4)
        for name, scale in {"ACC_x": 1, "ACC_y": -1, "ACC_z": 2}.items():
            channel = raw(loader.data[:, :, ppg.CHANNELS.index(name)], name)
            np.testing.assert_allclose(
                channel, scale * np.floor(units.reshape(channel.shape) * 64 + 0.5) / 64, atol=0.05
            )
        for name, offset in {"EDA": 0, "TEMP": 30}.items():
            channel = raw(loader.data[:, :, ppg.CHANNELS.index(name)], name) - offset
            np.testing.assert_allclose(channel, units.reshape(channel.shape), atol=16 / 128 + 1e-3)
        seen[part] = set(numbers.ravel().tolist())
        assert numbers[:, 0].tolist() == info["windows"][part]["first_label"]
    assert not seen["train"] & seen["validation"] | seen["train"] & seen["test"] | seen["validation"] & seen["test"]
    starts = [min(seen[part]) for part in order]
    assert starts == sorted(starts), "the pieces follow each other in the order"


def test_the_pieces_are_70_15_15_and_cover_the_recording():
    for order in ppg.ORDERS:
        cut = ppg.pieces(101, order)
        assert {part: end - start for part, (start, end) in cut.items()} == {"train": 70, "validation": 15, "test": 16}
        assert [cut[part][0] for part in order] == [0, cut[order[0]][1], cut[order[1]][1]]
        assert cut[order[2]][1] == 101
    assert list(ppg.window_starts((10, 20), window=5, stride=2)) == [10, 12, 14]
    assert list(ppg.window_starts((10, 14), window=5, stride=2)) == []
    assert (ppg.WINDOW_LABELS * ppg.SAMPLES_PER_LABEL, ppg.STRIDE_LABELS * ppg.SAMPLES_PER_LABEL) == (49920, 4992)


def test_the_order_of_the_pieces_is_fixed_by_the_seed():
    orders = [ppg.order_of(i, ppg_set.SEED) for i in recordings.SUBJECTS]
    assert orders[:4] == [
        ("validation", "train", "test"),
        ("test", "validation", "train"),
        ("validation", "train", "test"),
        ("train", "validation", "test"),
    ]
    assert {ppg.order_of(i, 1) for i in range(60)} == set(ppg.ORDERS)
    assert [ppg.order_of(i, 1) for i in recordings.SUBJECTS] != orders


def test_a_window_that_ends_after_its_recording_is_an_error():
    whole = ppg.recording({name: subject()["signal"]["wrist"][name] for name in ppg.SIGNALS}, subject()["label"])
    assert ppg.cut_window(whole, LABELS - 5, 5)[0].shape == (640, 6)
    with pytest.raises(AssertionError, match="has 512 samples and 4 labels"):
        ppg.cut_window(whole, LABELS - 4, 5)


# The files


def test_dataset_json_says_how_the_set_was_made(tmp_path):
    source = put(tmp_path)
    info = process(source, tmp_path, seed=5)
    assert info == read_json(tmp_path / "processed" / "PPG" / "ppg" / "dataset.json") | {
        "channel_names": ppg.CHANNELS,
        "subjects": info["subjects"],
    }
    assert (info["length"], info["channels"], info["output_step"], info["seed"]) == (640, 6, 128, 5)
    facts = info["subjects"]["S2"]
    assert facts["order"] == ppg.order_of(2, 5)
    assert facts["labels"] == LABELS
    assert facts["ranges"]["heart_rate"] == (3, LABELS - 1)
    assert facts["ranges"]["TEMP"] == (30, 30 + LABELS - 0.125)
    assert facts["windows"] == {"train": 19, "validation": 3, "test": 3}
    assert info["windows"]["test"]["subject"] == [1, 1, 1, 2, 2, 2]
    assert files_below(tmp_path / "processed" / "PPG" / "ppg") == sorted(
        ["dataset.json", *(f"{array}_{part}.npy" for array in "Xy" for part in ("train", "val", "test"))]
    )
    again = process(source, tmp_path / "again", seed=5)
    assert again["processed_files"] == info["processed_files"]
    assert process(source, tmp_path / "other", seed=6)["processed_files"] != info["processed_files"]


@pytest.mark.parametrize("nested", [False, True])
def test_the_zip_says_the_same_as_the_folder(tmp_path, monkeypatch, nested):
    folder = put(tmp_path / "raw")
    expected = process(folder, tmp_path / "folder")["processed_files"]
    archive = tmp_path / "ppg+dalia.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("readme.txt", "words")
        for i in (1, 2):
            file.write(folder / f"S{i}" / f"S{i}.pkl", f"PPG_FieldStudy/S{i}/S{i}.pkl")
            file.writestr(f"PPG_FieldStudy/S{i}/S{i}_E4.zip", "not opened")
    if nested:
        archive.rename(tmp_path / "data.zip")
        with zipfile.ZipFile(archive, "w") as file:
            file.write(tmp_path / "data.zip", "data.zip")
    assert process(archive, tmp_path / "zip")["processed_files"] == expected
    assert recordings.find_source(tmp_path) == archive
    if nested:
        monkeypatch.setattr(recordings, "MAX_INNER_BYTES", (tmp_path / "data.zip").stat().st_size - 1)
        with pytest.raises(DataError, match=r"ppg\+dalia\.zip, member 'data\.zip': unpacks to over"):
            process(archive, tmp_path / "zip")
        assert not list(tmp_path.glob(".*")), "nothing is left"
    whole = archive.read_bytes()
    archive.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"ppg\+dalia\.zip: not a sound zip archive"):
        process(archive, tmp_path / "zip")
    assert recordings.find_source(tmp_path / "raw") == folder


def test_a_pickle_that_is_damaged_within_a_zip_or_too_large_is_refused(tmp_path, monkeypatch):
    archive = tmp_path / "ppg.zip"
    blob = python2_pickle(subject())
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("S1/S1.pkl", blob)
    monkeypatch.setattr(recordings, "MAX_PICKLE_BYTES", len(blob) - 1)
    with pytest.raises(DataError, match=r"ppg\.zip, member S1/S1\.pkl: unpacks to over"):
        process(archive, tmp_path, subjects=(1,))
    monkeypatch.undo()
    damaged = bytearray(archive.read_bytes())
    damaged[damaged.index(b"BVP") + 3000] ^= 1
    archive.write_bytes(bytes(damaged))
    with pytest.raises(DataError, match=r"ppg\.zip, member S1/S1\.pkl: .*Bad CRC-32"):
        process(archive, tmp_path, subjects=(1,))
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("S1/S1.pkl", blob + bytes(3_000_000))  # The pickle ends long before its member does.
    damaged = bytearray(archive.read_bytes())
    damaged[damaged.index(b"BVP") + 3000] ^= 1
    archive.write_bytes(bytes(damaged))
    with pytest.raises(DataError, match=r"ppg\.zip: not a sound zip archive .*Bad CRC-32"):
        process(archive, tmp_path, subjects=(1,))
    assert not list((tmp_path / "processed" / "PPG").iterdir())


# Bad recordings


class _Runs:
    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


def column(values) -> np.ndarray:
    return np.asarray(values, dtype=float)[:, None]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([1, 2], r"holds no \['signal'\]\['wrist'\]\['ACC'\]"),
        ({"signal": {"wrist": {}}}, r"holds no \['signal'\]\['wrist'\]\['ACC'\]"),
        (subject(label="text"), r"\['label'\] is no array of numbers"),
        (subject(label=np.array([None])), r"\['label'\] is no array of numbers"),
        (subject(label=np.zeros((3, 2))), r"heart rate of shape \(3, 2\)"),
        (subject(label=np.zeros(0)), r"heart rate of shape \(0,\)"),
        (subject(label=np.arange(3.0, LABELS - 5)), "do not end together; .*heart rate 55, ACC 60, BVP 60"),
        (subject(BVP=column(range(100))), "do not end together; .*BVP 0"),
        (subject(ACC=np.zeros((LABELS * 64, 2))), r"signal ACC of shape \(3840, 2\); needed is \(samples, 3\)"),
        (subject(BVP=np.zeros(LABELS * 128)), r"signal BVP of shape \(7680,\)"),
        (subject(EDA=column(np.full(LABELS * 8, 2.0))), "signal EDA: constant"),
        (subject(TEMP=column([np.nan, *range(1, LABELS * 8)])), "signal TEMP: 1 values are not finite"),
        (subject(label=np.array([np.inf, *range(4, LABELS)])), "heart rate: 4 values are not finite"),
        (subject(n=0, label=np.zeros(1)), "do not end together; .*heart rate 4, ACC 0, BVP 0"),
        (subject(n=20), "the validation part gets no window of 5 labels; the recordings are too short"),
    ],
)
def test_recordings_that_are_not_sound_are_refused_and_what_was_there_stays(tmp_path, value, message):
    process(put(tmp_path, (1,)), tmp_path, subjects=(1,))
    before = contents(tmp_path / "processed")
    source = put(tmp_path, (1,), value)
    with pytest.raises(DataError, match=message) as caught:
        process(source, tmp_path, subjects=(1,))
    assert str(caught.value).startswith(str(source))
    assert contents(tmp_path / "processed") == before
    assert files_below(tmp_path / "processed" / "PPG")[0] == "ppg", "no temporary folder is left"


def test_code_in_a_recording_is_not_run(tmp_path):
    mark = tmp_path / "it_ran"
    source = put(tmp_path, (1,), subject(questionnaire={"AGE": _Runs(mark)}))
    with pytest.raises(DataError, match=r"S1\.pkl: the pickle asks for posix\.mkdir"):
        process(source, tmp_path, subjects=(1,))
    assert not mark.exists()
    pickle.loads((source / "S1" / "S1.pkl").read_bytes(), encoding="latin1")
    assert mark.exists(), "the payload is a live one"


def test_a_recording_that_is_cut_short_is_refused(tmp_path):
    source = put(tmp_path, (1,))
    file = source / "S1" / "S1.pkl"
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(DataError, match=r"S1\.pkl: not a pickle of arrays, or cut short"):
        process(source, tmp_path, subjects=(1,))


def test_signals_may_end_a_moment_apart(tmp_path):
    source = put(tmp_path, (1,), subject(label=np.arange(3.0, LABELS - 2)))
    assert process(source, tmp_path, subjects=(1,))["subjects"]["S1"]["labels"] == LABELS - 2


def test_a_full_disk_leaves_what_was_there(tmp_path):
    source = put(tmp_path)
    process(source, tmp_path)
    before = contents(tmp_path / "processed")
    for limit in (50, 20_000):
        with full_disk(limit), pytest.raises(DataError, match=r"PPG/ppg: cannot be written \(File too large\)"):
            process(source, tmp_path, seed=9)
        assert contents(tmp_path / "processed") == before


def test_memory_does_not_grow_with_the_subjects(tmp_path):
    def peak(subjects) -> int:
        source = put(tmp_path / str(len(subjects)), subjects, n=200)
        tracemalloc.start()
        process(source, tmp_path / str(len(subjects)), subjects=subjects)
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return size

    one = peak((1,))
    assert peak((1, 2, 3, 4)) < 1.3 * one


# npy files


def test_rows_are_written_one_by_one(tmp_path):
    rows = np.arange(24, dtype=np.float64).reshape(4, 3, 2)
    with open(tmp_path / "a.npy", "wb") as file:
        writer = RowWriter(file, (3, 2))
        for row in rows:
            writer.append(row)
        with pytest.raises(DataError, match=r"a\.npy: a row of shape \(2, 3\) where \(3, 2\) is needed"):
            writer.append(rows[0].T)
        writer.finish()
    found = read_npy(tmp_path / "a.npy")
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, rows)


def test_members_of_nested_dicts_are_read(tmp_path):
    value = {"a": {"b": np.arange(3), "text": "words"}, "c": 2.5}
    found = read_members(BytesIO(pickle.dumps(value)), "it", [("a", "b"), ("c",)])
    assert found[0].tolist() == [0, 1, 2]
    assert float(found[1]) == 2.5
    for keys in (("a", "c"), ("a", "b", "c"), ("d",)):
        with pytest.raises(DataError, match=r"it: holds no \["):
            read_members(BytesIO(pickle.dumps(value)), "it", [keys])
    with pytest.raises(DataError, match=r"it: \['a'\]\['text'\] is no array of numbers"):
        read_members(BytesIO(pickle.dumps(value)), "it", [("a", "text")])


# The command


def test_the_command_names_absent_subjects_and_the_way_by_hand(tmp_path, capsys):
    arguments = ["--data_dir", str(tmp_path)]
    assert process_ppg.main(arguments) == 1
    error = capsys.readouterr().err
    assert f"{tmp_path / 'raw'}: holds no PPG_FieldStudy" in error
    assert "data set 495 of archive.ics.uci.edu" in error
    put(tmp_path / "raw", (1, 2, 4))
    assert process_ppg.main(arguments) == 1
    error = capsys.readouterr().err
    assert "of the subjects S3, S5, S6, S7, S8, S9, S10, S11, S12, S13, S14, S15." in error
    assert "--subjects takes those that it holds: 1 2 4." in error
    assert process_ppg.main([*arguments, "--source", str(tmp_path / "absent.zip")]) == 1
    assert "absent.zip: no such file or folder" in capsys.readouterr().err
    assert process_ppg.main([*arguments, "--seed", "-1"]) == 1
    assert "seed -1: must be 0 or more" in capsys.readouterr().err
    assert not (tmp_path / "processed").exists()


def test_the_command_processes_whole_recordings(tmp_path, capsys):
    source = put(tmp_path / "elsewhere", (3,), n=2640)
    assert process_ppg.main(["--data_dir", str(tmp_path), "--source", str(source.parent), "--subjects", "3"]) == 0
    out = capsys.readouterr().out
    order = " - ".join(ppg.order_of(3, ppg_set.SEED))
    assert f"S3: 2640 labels, cut as {order}; windows: train 38, validation 1, test 1" in out
    dataset = load(tmp_path, time=True)
    assert dataset.train._data.shape == (38, 49920, 6)
    assert isinstance(dataset.train._data.base, np.memmap)
    assert dataset.label_dim == 1


def test_from_the_raw_pickle_to_a_network(tmp_path):
    process(put(tmp_path), tmp_path)
    dataset = load(tmp_path, time=True)

    def outputs(x):
        options = {"classification": False, "output_step": dataset.output_step, "key": jax.random.key(0)}
        model, state = create_model("LinHRU", dataset.data_dim, dataset.label_dim, 4, 1, 4, **options)
        forward = jax.vmap(eqx.nn.inference_mode(model), axis_name="batch", in_axes=(0, None, None), out_axes=(0, None))
        return forward(x, state, None)[0]

    x, y = next(dataset.train.loop(4, key=jax.random.key(1)))
    assert x.shape == (4, 640, 7)
    assert jax.eval_shape(outputs, x).shape == (*y.shape, 1) == (4, 5, 1)
