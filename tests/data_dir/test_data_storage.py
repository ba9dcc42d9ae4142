"""Folders that are written in one piece, or not at all."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from raw_files import files_below, full_disk

from data_dir.folders import new_folder
from data_dir.storage import DataError, read_json

ROOT = Path(__file__).resolve().parents[2]


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
    with pytest.raises(DataError, match=r"set: cannot be written \(No space left"), new_folder(target) as folder:
        (folder / "a").write_text("new")
    assert (target / "a").read_text() == "kept"
    assert files_below(tmp_path) == ["set", "set/a"]


def fill_up(target: Path) -> None:
    with new_folder(target) as folder:
        (folder / "small").write_text("x")
        (folder / "large").write_bytes(bytes(2000))


KILLED = """
import os, signal, sys
from pathlib import Path
from data_dir.folders import new_folder
if len(sys.argv) > 2:  # between the old folder's going and the new one's coming
    rename = Path.rename
    def once(self, to):
        result = rename(self, to)
        if str(to).endswith(".old"):
            os.kill(os.getpid(), signal.SIGKILL)
        return result
    Path.rename = once
with new_folder(Path(sys.argv[1])) as folder:
    (folder / "a").write_text("killed")
    if len(sys.argv) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_killed_processes_left_is_removed_at_the_next_start(tmp_path):
    target = tmp_path / "set"
    with new_folder(target) as folder:
        (folder / "a").write_text("kept")
    for flags in ([], ["late"]):
        done = subprocess.run([sys.executable, "-c", KILLED, str(target), *flags], cwd=ROOT)
        assert done.returncode == -signal.SIGKILL
    left = sorted(path.suffix for path in tmp_path.iterdir() if path != target)
    assert left == [".new", ".old"], "the second start removed what the first one left"
    assert not target.exists()
    with new_folder(tmp_path / "other") as other:
        (other / "b").write_text("alive")
        assert (target / "a").read_text() == "kept", "it came back to its place"
        with new_folder(tmp_path / "third") as third:  # the folder of a process that lives is left alone
            (third / "c").write_text("alive")
            assert (other / "b").exists()
    assert files_below(tmp_path) == ["other", "other/b", "set", "set/a", "third", "third/c"]


def test_a_full_disk_leaves_what_was_there(tmp_path):
    target = tmp_path / "set"
    with new_folder(target) as folder:
        (folder / "a").write_text("kept")
    with (
        full_disk(1000),
        pytest.raises(DataError, match=r"set: cannot be written \(File too large\). The folder is as it was before"),
    ):
        fill_up(target)
    assert files_below(tmp_path) == ["set", "set/a"]


def test_a_target_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"file/set: cannot be written"):
        fill_up(tmp_path / "file" / "set")


def read_within(target: Path, source: Path) -> None:
    with new_folder(target):
        np.load(source)


def test_a_file_that_cannot_be_read_is_no_failed_write(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_within(tmp_path / "a" / "set", tmp_path / "absent.npy")


@pytest.mark.parametrize("text", ["{", "[]", "3"])
def test_what_is_no_json_object_is_refused(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(DataError, match=r"a\.json: "):
        read_json(tmp_path / "a.json")


def test_a_pipe_is_no_json_file(tmp_path):
    os.mkfifo(tmp_path / "a.json")
    with pytest.raises(DataError, match=r"a\.json: is not a regular file"):
        read_json(tmp_path / "a.json")
