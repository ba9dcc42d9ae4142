"""Damage at random, again and again: what comes out is right, or it says why not. Long by `make test-all`."""

import os
import random
import shutil

import pytest
from small_experiments import SEED_1, read, run
from test_checkpoints import ARRAYS, FACTS, arrays_of, same

import run_experiment
from training.checkpoints import CheckpointError, Checkpoints


def flip(path, chance):
    content = bytearray(path.read_bytes())
    if content:
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    path.write_bytes(content)


def cut(path, chance):
    os.truncate(path, chance.randrange(path.stat().st_size + 1))


def grow(path, chance):
    with open(path, "ab") as file:
        file.write(chance.randbytes(chance.randrange(1, 40)))


def fill(path, chance):
    path.write_bytes(
        chance.choice([b"", b"{}", b"[]", b"null", b"\0" * 99, b"[" * 99_999, chance.randbytes(99), b"\xff"])
    )


def remove(path, _):
    path.unlink()


def make_folder(path, _):
    path.unlink()
    path.mkdir()


def swap(path, chance):
    other = chance.choice([file for file in path.parent.iterdir() if file.is_file()])
    content = path.read_bytes()
    path.write_bytes(other.read_bytes())
    other.write_bytes(content)


SIDE_FILES = (".lock", "confusion.png", "curves.png", "metrics.jsonl", "predictions.png")
DAMAGES = (flip, cut, grow, fill, remove, make_folder, swap)


def damage(folder, chance, spared=(".lock",)):
    """Damage one or two files below a folder, and say how."""
    told = []
    for _ in range(chance.choice([1, 1, 2])):
        files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name not in spared)
        if files:
            path, how = chance.choice(files), chance.choice(DAMAGES)
            how(path, chance)
            told.append(f"{how.__name__} {path.relative_to(folder)}")
    return told


@pytest.mark.parametrize("count", [25, pytest.param(1000, marks=pytest.mark.long)])
def test_a_damaged_checkpoint_is_never_taken_for_a_sound_one(tmp_path, count):
    chance = random.Random(1)
    sound, folder = tmp_path / "sound", tmp_path / "checkpoints"
    for step in (2, 4):
        Checkpoints(sound, "config").save(step, arrays_of(step), {**FACTS, "step": step})
    refused = []
    for number in range(count):
        shutil.copytree(sound, folder)
        told = damage(folder, chance)
        try:
            restored = Checkpoints(folder, "config").restore(ARRAYS)
        except CheckpointError as error:
            refused.append(str(error))
        else:
            assert same(restored.arrays, restored.json_part["step"]), (number, told)
            assert restored.json_part == {**FACTS, "step": restored.json_part["step"]}, (number, told)
        shutil.rmtree(folder)
    assert 0 < len(refused) < count
    assert all("no checkpoint is sound" in error for error in refused)


@pytest.mark.parametrize("count", [12, pytest.param(400, marks=pytest.mark.long)])
def test_a_damaged_run_is_the_same_again_or_says_what_is_wrong(workplace, capsys, count):
    """A run that counts as finished and reproduced has the model and the metric of the sound one."""
    chance = random.Random(2)
    command = ("--dataset_name", "Tiny", "--seeds", "1")
    assert run(*command) == 0
    shutil.copytree(SEED_1, "sound")
    model, metric = (SEED_1 / "model.eqx").read_bytes(), read("sound/result.json")["test_metric"]
    outcomes = []
    for number in range(count):
        # Every other time a file that decides, so that a few rounds are enough to see one refused.
        told = damage(SEED_1, chance, SIDE_FILES if number % 2 else (".lock",))
        capsys.readouterr()
        trained = run(*command)
        evaluated = run_experiment.main(["--evaluate", str(SEED_1)])
        printed = capsys.readouterr().err
        assert (trained, evaluated) in {(0, 0), (0, 1), (0, 2), (1, 2), (2, 0), (2, 2)}, (number, told)
        assert "Traceback" not in printed, (number, told, printed)
        if (trained, evaluated) == (0, 0):
            assert (SEED_1 / "model.eqx").read_bytes() == model, (number, told)
            assert read(SEED_1 / "result.json")["test_metric"] == metric, (number, told)
        outcomes.append((trained, evaluated))
        shutil.rmtree(SEED_1)
        shutil.copytree("sound", SEED_1)
    assert len(set(outcomes)) > 1
