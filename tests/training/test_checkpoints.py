"""Checkpoints: what is read back, which are kept, and that no damage is mistaken for a sound one."""

import os
import resource
import shutil

import numpy as np
import orbax.checkpoint as ocp
import pytest

from training import checkpoints
from training.checkpoints import CheckpointError, Checkpoints

ARRAYS = (
    np.array([1.5, np.pi, np.nan]),
    np.arange(6, dtype=np.float32).reshape(2, 3) / 7,
    np.array(3, np.int32),
    np.array(True),
    np.array([1, 2**32 - 1], np.uint32),
)
FACTS = {"step": 2, "losses": [0.1 + 0.2, 1e-300, float("inf")], "history": [{"retrace_error": None}], "none": []}


def arrays_of(step):
    return [np.array(array + step, array.dtype) if array.dtype != bool else array for array in ARRAYS]


@pytest.fixture
def two(tmp_path):
    """The checkpoints of steps 2 and 4, and their folder."""
    folder = tmp_path / "checkpoints"
    saved = Checkpoints(folder, "config")
    for step in (2, 4):
        saved.save(step, arrays_of(step), {**FACTS, "step": step})
    return saved, folder


def same(arrays, step):
    return all(
        left.dtype == right.dtype and np.array_equal(left, right, equal_nan=left.dtype.kind == "f")
        for left, right in zip(arrays, arrays_of(step), strict=True)
    )


def snapshot(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_what_is_saved_is_read_back(two):
    saved, _ = two
    arrays, facts, damaged = saved.restore(ARRAYS)
    assert same(arrays, 4)
    assert facts == {**FACTS, "step": 4}
    assert damaged == {}


def test_without_a_checkpoint_there_is_nothing_to_go_on_from(tmp_path):
    assert Checkpoints(tmp_path / "checkpoints", "config").restore(ARRAYS) is None
    (tmp_path / "checkpoints").mkdir()
    assert Checkpoints(tmp_path / "checkpoints", "config").restore(ARRAYS) is None


def test_two_are_kept(two):
    saved, folder = two
    saved.save(6, arrays_of(6), FACTS)
    assert sorted(os.listdir(folder)) == ["4", "6"]
    assert same(saved.restore(ARRAYS).arrays, 6)


def goes_back(saved, folder, problem):
    """The one before is used, the damaged one is reported and out of the way of the one that comes next."""
    arrays, facts, damaged = saved.restore(ARRAYS)
    assert same(arrays, 2)
    assert facts["step"] == 2
    assert list(damaged) == [4]
    assert problem in damaged[4]
    saved.save(4, arrays_of(4), FACTS)
    assert same(saved.restore(ARRAYS).arrays, 4)
    assert sorted(os.listdir(folder)) == ["2", "4"]


def test_a_flipped_bit_in_any_file_is_noticed(two):
    saved, folder = two
    sound = folder.with_name("sound")
    shutil.copytree(folder, sound)
    files = [path for path in sorted((folder / "4").rglob("*")) if path.is_file()]
    assert len(files) > 5
    for file in files:
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
        arrays, _, damaged = saved.restore(ARRAYS)
        assert same(arrays, 2)
        assert list(damaged) == [4]
        assert not (folder / "4").exists()
        shutil.copytree(sound / "4", folder / "4")
    assert same(saved.restore(ARRAYS).arrays, 4)


@pytest.mark.parametrize(
    "damage", ["flipped", "truncated", "missing", "surplus", "no sums", "cut sums", "no hashes", "empty"]
)
def test_a_damaged_one_is_reported_and_the_one_before_is_used(two, damage):
    saved, folder = two
    file = max((path for path in (folder / "4" / "arrays").rglob("*") if path.is_file()), key=os.path.getsize)
    name = str(file.relative_to(folder / "4"))
    sums = folder / "4" / "sha256.json"
    problem = f"{name} is not what was saved"
    if damage == "flipped":
        file.write_bytes(file.read_bytes()[:-1] + b"!")
    elif damage == "truncated":
        os.truncate(file, file.stat().st_size // 2)
    elif damage == "missing":
        file.unlink()
        problem = f"{name} is missing"
    elif damage == "surplus":
        (folder / "4" / "more").touch()
        problem = "more is not what was saved"
    elif damage == "no sums":
        sums.unlink()
        problem = "was not finished"
    elif damage == "cut sums":
        os.truncate(sums, 20)
        problem = "sha256.json cannot be read"
    elif damage == "no hashes":
        shutil.rmtree(folder / "4")
        (folder / "4").mkdir()
        sums.write_text("{}")
        problem = "sha256.json holds no hashes"
    else:
        shutil.rmtree(folder / "4")
        (folder / "4").mkdir()
        problem = "was not finished"
    goes_back(saved, folder, problem)


def test_if_none_is_sound_the_error_says_so_and_nothing_is_removed(two):
    saved, folder = two
    for step in (2, 4):
        os.truncate(folder / str(step) / "sha256.json", step)
    before = snapshot(folder)
    with pytest.raises(CheckpointError, match=r"no checkpoint is sound \(step 4: .*; step 2: .*--overwrite"):
        saved.restore(ARRAYS)
    assert snapshot(folder) == before


def test_one_of_a_newer_version_another_config_or_other_arrays_is_refused(two, monkeypatch):
    saved, folder = two
    before = snapshot(folder)
    with pytest.raises(CheckpointError, match=r"/4: .* another config \(saved config, expected other\)"):
        Checkpoints(folder, "other").restore(ARRAYS)
    with pytest.raises(CheckpointError, match=r"cannot be resumed: the saved arrays do not fit this model"):
        saved.restore(ARRAYS[1:])
    assert snapshot(folder) == before
    with monkeypatch.context() as newer:
        newer.setattr(checkpoints, "FORMAT", 3)
        saved.save(6, ARRAYS, FACTS)
    os.truncate(folder / "6" / "sha256.json", 9)
    saved.restore(ARRAYS)  # a damaged one of a newer version does no harm
    with monkeypatch.context() as newer:
        newer.setattr(checkpoints, "FORMAT", 3)
        saved.save(6, ARRAYS, FACTS)
    before = snapshot(folder)
    with pytest.raises(CheckpointError, match=r"/6: .* another format \(saved 3, expected 2\). Use the version"):
        saved.restore(ARRAYS)
    assert snapshot(folder) == before


def test_what_is_no_checkpoint_is_left_alone(two):
    saved, folder = two
    (folder / "notes.txt").write_text("the user's own")
    (folder / "9").write_text("a file")
    for name in ("007", "²", "8.old"):
        (folder / name).mkdir()
    assert same(saved.restore(ARRAYS).arrays, 4)
    saved.save(6, arrays_of(6), FACTS)
    assert same(saved.restore(ARRAYS).arrays, 6)
    assert sorted(os.listdir(folder)) == sorted(["007", "4", "6", "8.old", "9", "notes.txt", "²"])


def test_every_file_is_on_the_disk_before_it_has_its_name(two, monkeypatch):
    saved, folder = two
    events = []
    sync, replace = os.fsync, os.replace

    def synced(descriptor):
        events.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        sync(descriptor)

    def replaced(source, target):
        events.append(f"renamed {target}")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", replaced)
    saved.save(6, arrays_of(6), FACTS)
    at = events.index(f"renamed {folder}/6/sha256.json")
    files = {str(path) for path in (folder / "6").rglob("*") if path.name != "sha256.json"}
    assert {*files, str(folder / "6"), str(folder), f"{folder}/6/.sha256.json.tmp"} <= set(events[:at])
    assert events[at + 1 :] == [f"{folder}/6"]


def test_a_full_disk_leaves_the_one_before_intact(two, caplog):
    """The system refuses to let any file grow beyond 20 kB, as it refuses where no room is left."""
    saved, folder = two
    large = [np.random.default_rng(0).normal(size=100_000)]
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(CheckpointError, match=r"the checkpoint of step 6 cannot be saved \(.*Free some disk space"):
            saved.save(6, large, FACTS)
        assert not [record for record in caplog.records if record.levelname == "ERROR"]  # no tracebacks before it
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert sorted(os.listdir(folder)) == ["2", "4"]
    assert same(saved.restore(ARRAYS).arrays, 4)
    saved.save(6, large, FACTS)
    np.testing.assert_array_equal(saved.restore(large).arrays[0], large[0])


def test_a_full_disk_at_the_hashes_leaves_the_one_before_intact(two, monkeypatch):
    saved, folder = two

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(checkpoints.os, "replace", full)
        with pytest.raises(CheckpointError, match="No space left on device"):
            saved.save(6, arrays_of(6), FACTS)
    assert same(saved.restore(ARRAYS).arrays, 4)
    assert "6" not in os.listdir(folder)


class Killed(BaseException):
    """The process ends here: nothing that handles errors may notice."""


def test_a_process_that_dies_while_it_saves_leaves_the_one_before(two, monkeypatch):
    saved, folder = two

    def die(*_, **__):
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(checkpoints, "_write_sums", die)
        with pytest.raises(Killed):
            saved.save(6, arrays_of(6), FACTS)
    assert (folder / "6").exists()
    arrays, _, damaged = saved.restore(ARRAYS)
    assert same(arrays, 4)
    assert damaged == {6: "was not finished"}

    with monkeypatch.context() as patched:
        patched.setattr(ocp.path.atomicity.AtomicRenameTemporaryPath, "finalize", die)
        with pytest.raises(Killed):
            saved.save(6, arrays_of(6), FACTS)
    assert any("tmp" in name for name in os.listdir(folder))
    arrays, _, damaged = saved.restore(ARRAYS)
    assert same(arrays, 4)
    assert damaged == {}
    assert sorted(os.listdir(folder)) == ["4"]
    saved.save(6, arrays_of(6), FACTS)
    assert same(saved.restore(ARRAYS).arrays, 6)
