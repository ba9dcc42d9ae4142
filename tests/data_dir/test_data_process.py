"""Raw files: read or refused, merged, and written in one piece."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import sktime
from raw_files import (
    ARFF_HEADER,
    ARFF_TEST,
    ARFF_TRAIN,
    HEADER,
    TEST,
    TRAIN,
    contents,
    files_below,
    full_disk,
    put_raw,
    series_text,
)

from common.files import sha256_of
from data_dir import process_uea
from data_dir.datasets import create_dataset
from data_dir.fetching.origin import write_record
from data_dir.pickles import read_array, read_arrays
from data_dir.processing.merging import merge, sorted_unique_rows
from data_dir.processing.readers import RawSeries, read_raw
from data_dir.processing.uea import process_dataset, raw_datasets
from data_dir.storage import DataError

REPOSITORY = Path(__file__).resolve().parents[2]
FILES = ("data.pkl", "dataset.json", "labels.pkl", "original_idxs.pkl")


def toy_folder(data_dir: Path) -> Path:
    return data_dir / "processed" / "UEA" / "Toy"


def test_a_set_is_merged_sorted_and_written(tmp_path):
    info = process_dataset("Toy", *put_raw(tmp_path), tmp_path)
    folder = toy_folder(tmp_path)
    data, labels = read_arrays(folder / "data.pkl"), read_arrays(folder / "labels.pkl")
    assert data.dtype == np.float32
    assert data[:, :, 0].tolist() == [[-1, 0, 0], [1, 2, 3], [2, 2, 2], [3, 1, 2]]
    assert data[:, :, 1].tolist() == [[0, 0, 0], [4, 5, 6], [1, 1, 1], [0, 0, 1]]
    assert labels.tolist() == [[0, 1], [1, 0], [1, 0], [1, 0]]
    assert [rows.tolist() for rows in read_arrays(folder / "original_idxs.pkl")] == [[1, 3], [], [0, 2]]
    assert files_below(tmp_path / "processed") == ["UEA", "UEA/Toy", *(f"UEA/Toy/{file}" for file in FILES)]
    assert json.loads((folder / "dataset.json").read_text()) == info


def test_dataset_json_says_what_the_set_is(tmp_path):
    files = put_raw(tmp_path)
    info = process_dataset("Toy", *files, tmp_path)
    assert info["class_names"] == ["a", "b"]
    assert info["class_counts"] == [3, 1]
    assert (info["n_samples"], info["length"], info["channels"], info["duplicates_removed"]) == (4, 3, 2, 0)
    assert info["source"] == f"placed by hand in {files[0].parent}"
    assert info["raw_files"] == {file.name: {"sha256": sha256_of(file), "bytes": file.stat().st_size} for file in files}
    assert set(info["processed_files"]) == {file for file in FILES if file != "dataset.json"}
    for name, facts in info["processed_files"].items():
        assert facts["sha256"] == sha256_of(toy_folder(tmp_path) / name)
    assert set(info["versions"]) == {"python", "numpy", "sktime"}
    assert [finding["kind"] for finding in info["findings"]] == ["small_classes"]


def test_the_record_of_the_origin_is_kept_and_checked(tmp_path):
    files = put_raw(tmp_path)
    write_record(files[0].parent, {"source": "somewhere", "sha256": "1", "pinned_sha256": "1"})
    assert process_dataset("Toy", *files, tmp_path)["source"] == "somewhere"
    before = contents(tmp_path / "processed")
    files[1].write_text(files[1].read_text()[:-20])
    with pytest.raises(DataError, match=r"Toy_TEST\.ts: sha256 [0-9a-f]{64}, but [0-9a-f]{64} when it was fetched"):
        process_dataset("Toy", *files, tmp_path)
    assert contents(tmp_path / "processed") == before


def test_duplicates_go_and_the_first_label_stays(tmp_path):
    again = series_text(([[1, 2, 3], [4, 5, 6]], "b"))
    info = process_dataset("Toy", *put_raw(tmp_path, test=HEADER + again + TEST + again), tmp_path)
    assert info["duplicates_removed"] == 2
    assert read_arrays(toy_folder(tmp_path) / "labels.pkl").tolist() == [[0, 1], [1, 0], [1, 0], [1, 0]]
    assert [rows.tolist() for rows in read_arrays(toy_folder(tmp_path) / "original_idxs.pkl")] == [[1, 3], [], [0, 2]]
    findings = {finding["kind"]: finding for finding in info["findings"]}
    assert (findings["duplicate_rows"]["rows"], findings["duplicate_rows"]["in_both_files"]) == (2, 1)
    assert findings["conflicting_labels"]["labels"] == [["a", "b"]]


def test_the_class_names_are_spelled_as_in_the_header(tmp_path):
    header = HEADER.replace("a b", "Left rIght")
    train, test = (text.replace("a\n", "Left\n").replace("b\n", "rIght\n") for text in (TRAIN, TEST))
    info = process_dataset("Toy", *put_raw(tmp_path, train=header + train, test=header + test), tmp_path)
    assert info["class_names"] == ["Left", "rIght"]


def test_arff_says_the_same_as_ts(tmp_path):
    files = put_raw(tmp_path, "Arff", ARFF_HEADER + ARFF_TRAIN, ARFF_HEADER + ARFF_TEST, suffix=".arff")
    assert files[0].suffix == ".arff"
    for one, other in zip(files, put_raw(tmp_path, "Toy"), strict=True):
        np.testing.assert_array_equal(read_raw(one).data, read_raw(other).data)
        assert read_raw(one).labels.tolist() == read_raw(other).labels.tolist()
    assert raw_datasets(tmp_path) == ["Arff", "Toy"]


def test_a_univariate_arff_is_read(tmp_path):
    text = "@relation toy\n@attribute t1 numeric\n@attribute t2 numeric\n@attribute target {1,2}\n@data\n1,2,1\n3,4,2\n"
    file, _ = put_raw(tmp_path, "Arff", text, text, suffix=".arff")
    assert read_raw(file).data.tolist() == [[[1], [2]], [[3], [4]]]
    assert read_raw(file).labels.tolist() == ["1", "2"]


def test_rows_sort_as_numpy_unique_does():
    rng = np.random.default_rng(1)
    data = rng.integers(-2, 3, size=(60, 3, 2)).astype(np.float32) * np.float32(0.1)
    data[::7] *= -1  # some zeros become negative: -0 equals 0
    data[5] = data[40]
    data[1, 0, 0], data[2, 0, 0] = 1e-45, -3e38
    first, inverse = sorted_unique_rows(data)
    _, expected_first, expected_inverse = np.unique(data, axis=0, return_index=True, return_inverse=True)
    np.testing.assert_array_equal(first, expected_first)
    np.testing.assert_array_equal(inverse, expected_inverse.ravel())
    assert len(first) < len(data)


@pytest.mark.parametrize(
    ("test", "message"),
    [
        ("", "cannot be parsed"),
        (HEADER, "a header but no series"),
        (HEADER + TEST[:-2], "label '' is not among the labels of the header"),
        (HEADER + TEST.rsplit(":", 1)[0], "series 2 has 1 channels, the first 2"),
        (HEADER + TEST.replace("a\n", "c\n"), r"label 'c' is not among the labels of the header, \['a', 'b'\]"),
        (HEADER + TEST.replace("2,2,2:1,1,1", "2,2:1,1"), r"unequal length: .* 2 to 3 .* --unequal_length pad"),
        (HEADER + TEST.replace("2,2,2:", "2,2:"), "the channels of series 1 have 2 to 3 time steps"),
        (HEADER + TEST.replace("2,2,2:1,1,1", ":"), "series 1 has no values"),
        (HEADER + TEST.replace("2,2,2", "2,?,2"), r"missing values: 1\. --missing impute"),
        (HEADER + TEST.replace("2,2,2", "2,1e300,2"), "1 values are infinite or beyond"),
        (HEADER + TEST.replace("2,2,2", "2,-inf,2"), "1 values are infinite or beyond"),
        (HEADER + TEST.replace("2,2,2", "2,two,2"), "could not convert string to float: 'two'"),
        (HEADER.replace("@classLabel true a b", "@classLabel false") + "1,2,3:4,5,6\n", "no class labels"),
        (HEADER.replace("a b", "a A") + TEST, "are not distinct"),
        (HEADER.replace("@timeStamps false", "@timeStamps true") + "(0,1):a\n", "has time stamps"),
        (HEADER + series_text(([[1, 2, 3]], "a")), "series of 1 channels, but the train file has 2"),
        (HEADER + series_text(([[1, 2], [3, 4]], "a")), "series of unequal length: 3 to 3 .* train file, 2 to 2"),
        ("\0\1\2 not a text of series", "cannot be parsed|no class labels"),
    ],
)
def test_damaged_ts_files_are_refused_and_what_was_there_stays(tmp_path, test, message):
    process_dataset("Toy", *put_raw(tmp_path), tmp_path)
    before = contents(tmp_path / "processed")
    files = put_raw(tmp_path, test=test)
    with pytest.raises(DataError, match=message) as caught:
        process_dataset("Toy", *files, tmp_path)
    assert str(caught.value).startswith(str(files[1]))
    assert contents(tmp_path / "processed") == before


@pytest.mark.parametrize(
    ("test", "message"),
    [
        (ARFF_HEADER, "a header but no series"),
        (ARFF_HEADER + ARFF_TEST.replace("\\n0,0,0", ""), "series 2 has 1 channels, the first 2"),
        (ARFF_HEADER + ARFF_TEST.replace("\\n1,1,1", ""), "series 2 has 2 channels, the first 1"),
        (ARFF_HEADER + ARFF_TEST[:-12], "series 2 has no label"),
        (ARFF_HEADER + ARFF_TEST[:-2], "series 2 has no label"),
        (ARFF_HEADER + ARFF_TEST.replace(",b", ",c"), "label 'c' is not among the labels of the header"),
        (ARFF_HEADER.replace("@attribute class {a,b}\n", "") + ARFF_TEST, "no class labels"),
        (ARFF_HEADER + ARFF_TEST.replace("2,2,2", "2,two,2"), "could not convert string to float"),
        (ARFF_HEADER + ARFF_TEST.replace("2,2,2", "2,?,2"), "missing values: 1"),
        (ARFF_HEADER + ARFF_TEST.replace("2,2,2", "2,2,?").replace("1,1,1", "1,1,?"), "unequal length: .* 2 to 3"),
        (ARFF_HEADER + ARFF_TEST.replace("2,2,2\\n1,1,1", "2,2\\n1,1,1"), "the channels of series 1 have 2 to 3"),
    ],
)
def test_damaged_arff_files_are_refused(tmp_path, test, message):
    files = put_raw(tmp_path, train=ARFF_HEADER + ARFF_TRAIN, test=test, suffix=".arff")
    with pytest.raises(DataError, match=message) as caught:
        process_dataset("Toy", *files, tmp_path)
    assert str(caught.value).startswith(str(files[1]))
    assert not (tmp_path / "processed").exists()


def test_one_class_is_none(tmp_path):
    files = put_raw(tmp_path, train=HEADER + TRAIN.replace("b\n", "a\n"), test=HEADER + TEST.replace("b\n", "a\n"))
    with pytest.raises(DataError, match=r"Toy_TEST\.ts: all series have the label 'a'"):
        process_dataset("Toy", *files, tmp_path)


# Unequal length and missing values


def test_unequal_length_is_padded_and_masked_on_request(tmp_path):
    short = series_text(([[1, 2], [4, 5]], "b"), ([[1, 2, 0], [4, 5, 0]], "b"))
    info = process_dataset("Toy", *put_raw(tmp_path, test=HEADER + TEST + short), tmp_path, unequal_length="pad")
    folder = toy_folder(tmp_path)
    data, mask = read_array(folder / "data.pkl"), read_array(folder / "mask.pkl")
    assert info["padded"]
    assert info["n_samples"] == 6, "a series and the same one with zeros after it are not the same"
    assert info["duplicates_removed"] == 0
    assert mask.dtype == bool
    assert mask.sum() == 6 * 3 - 1
    (row,) = np.flatnonzero(~mask.all(axis=1))
    assert data[row].tolist() == [[1, 4], [2, 5], [0, 0]]
    assert mask[row].tolist() == [True, True, False]
    assert "unequal_length" in {finding["kind"] for finding in info["findings"]}
    assert "mask.pkl" in info["processed_files"]
    dataset = create_dataset(tmp_path, "Toy", seed=1, time=False)
    np.testing.assert_array_equal(dataset.mask, mask)
    (folder / "dataset.json").unlink()
    (folder / "mask.pkl").write_bytes((folder / "labels.pkl").read_bytes())
    with pytest.raises(DataError, match=r"mask\.pkl: float32 of shape \(6, 2\); needed is bool of shape \(6, 3\)"):
        create_dataset(tmp_path, "Toy", seed=1, time=False)


def test_a_real_set_of_unequal_length(tmp_path):
    """JapaneseVowels, which sktime ships: 270 and 370 utterances of 7 to 29 steps, 9 speakers."""
    folder = Path(sktime.__file__).parent / "datasets" / "data" / "JapaneseVowels"
    files = [folder / f"JapaneseVowels_{part}.ts" for part in ("TRAIN", "TEST")]
    with pytest.raises(DataError, match=r"TRAIN\.ts: .* 7 to 26 time steps in the train file, 7 to 29 in the test"):
        process_dataset("JapaneseVowels", *files, tmp_path)
    info = process_dataset("JapaneseVowels", *files, tmp_path, unequal_length="pad")
    assert [info[key] for key in ("n_samples", "length", "channels", "padded")] == [640, 29, 12, True]
    assert [finding["kind"] for finding in info["findings"]] == ["unequal_length"]


def test_missing_values_are_imputed_on_request(tmp_path):
    gaps = series_text(([["?", 2, "?"], [4, "?", 6]], "b"))
    info = process_dataset("Toy", *put_raw(tmp_path, test=HEADER + TEST + gaps), tmp_path, missing="impute")
    data = read_array(toy_folder(tmp_path) / "data.pkl")
    assert [[2, 4], [2, 5], [2, 6]] in data.tolist()
    assert info["missing_values_imputed"] == 3
    assert {"kind": "missing_values", "text": "3 interpolated", "values": 3} in info["findings"]
    nothing = series_text(([["?", "?", "?"], [4, 5, 6]], "b"))
    files = put_raw(tmp_path, test=HEADER + TEST + nothing)
    with pytest.raises(DataError, match=r"Toy_TEST\.ts: series 5 of both files has no value in channel 0"):
        process_dataset("Toy", *files, tmp_path, missing="impute")


def test_an_arff_series_ends_before_its_last_missing_values(tmp_path):
    test = ARFF_HEADER + ARFF_TEST.replace("2,2,2", "2,2,?").replace("1,1,1", "1,?,?")
    files = put_raw(tmp_path, train=ARFF_HEADER + ARFF_TRAIN, test=test, suffix=".arff")
    raw = read_raw(files[1])
    assert raw.lengths.tolist() == [2, 3]
    assert raw.missing == 1
    assert not raw.of_equal_length
    merged = merge(read_raw(files[0]), raw, unequal_length="pad", missing="impute")
    assert merged.mask.sum() == 11
    assert [[2, 1], [2, 1], [0, 0]] in merged.data.tolist()


def test_padding_and_gaps_do_not_mix():
    """A missing value inside a series is imputed from that series alone, not from its padding."""
    data = np.array([[[1], [np.nan], [np.nan]], [[5], [6], [7]]], dtype=np.float32)
    raw = RawSeries(data, np.array([2, 3]), np.array(["a", "b"]), missing=1)
    merged = merge(raw, raw, unequal_length="pad", missing="impute")
    assert merged.data[:, :, 0].tolist() == [[1, 1, 0], [5, 6, 7]]
    assert (merged.duplicates, merged.in_both_files, merged.missing) == (2, 2, 2)


# The command


def test_processing_command_goes_on_after_a_failure(tmp_path, capsys):
    put_raw(tmp_path, "Broken", test="")
    put_raw(tmp_path, "Toy")
    assert process_uea.main(["--data_dir", str(tmp_path)]) == 1
    captured = capsys.readouterr()
    assert (
        "Toy: 4 x 3 x 2, 2 classes, 0 duplicates removed\n    small_classes: few samples: 3 of class a" in captured.out
    )
    assert "Broken: FAILED" in captured.err
    assert "Broken_TEST.ts: cannot be parsed" in captured.err
    assert process_uea.main(["--data_dir", str(tmp_path), "--datasets", "Toy"]) == 0
    assert process_uea.main(["--data_dir", str(tmp_path), "--datasets", "Absent", "toys"]) == 1
    error = capsys.readouterr().err
    assert "Absent_TRAIN and Absent_TEST, both .ts or both .arff" in error
    assert "Did you mean 'Toy'?" in error


def test_the_flags_of_the_command_reach_the_set(tmp_path, capsys):
    odd = series_text(([[1, "?"], [4, 5]], "b"))
    put_raw(tmp_path / "kept", test=HEADER + TEST + odd)
    arguments = ["--data_dir", str(tmp_path), "--raw_dir", str(tmp_path / "kept" / "raw")]
    assert process_uea.main(arguments) == 1
    assert process_uea.main([*arguments, "--unequal_length", "pad"]) == 1
    assert process_uea.main([*arguments, "--unequal_length", "pad", "--missing", "impute"]) == 0
    out = capsys.readouterr().out
    assert "missing_values: 1 interpolated" in out
    assert "unequal_length: series of 2 to 3 time steps" in out


def test_processing_command_without_raw_sets_says_how_to_fetch(tmp_path, capsys):
    assert process_uea.main(["--data_dir", str(tmp_path)]) == 1
    assert f"python data_dir/download_uea.py --data_dir {tmp_path}" in capsys.readouterr().err


def test_a_full_disk_fails_one_set_and_keeps_what_was_there(tmp_path, capsys):
    put_raw(tmp_path)
    assert process_uea.main(["--data_dir", str(tmp_path)]) == 0
    before = contents(tmp_path / "processed")
    with full_disk(100):
        assert process_uea.main(["--data_dir", str(tmp_path)]) == 1
    assert "UEA/Toy: cannot be written (File too large)" in capsys.readouterr().err
    assert contents(tmp_path / "processed") == before


@pytest.mark.parametrize("script", ["download_uea.py", "process_uea.py", "process_ppg.py", "write_splits.py"])
def test_scripts_run_from_any_folder(tmp_path, script):
    options = ["--datasets", "Absent"] if script != "process_ppg.py" else []
    run = subprocess.run(
        [sys.executable, REPOSITORY / "data_dir" / script, *options, "--data_dir", tmp_path],
        cwd=tmp_path,
        text=True,
        capture_output=True,
    )
    assert run.returncode == 1
    assert "Absent" in run.stderr or "fetched by hand" in run.stderr
    assert "Traceback" not in run.stderr
    assert files_below(tmp_path) == []
