"""A model from the folder of its run: the same numbers, and a clear word where files do not fit."""

import hashlib
import json
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models
from models import create_model
from models.LinHRU import LinHRULayer
from models.load import RunError, read_record

OPTIONS = {
    "model_name": "NonlinHRU",
    "hidden_dim": 4,
    "num_blocks": 2,
    "ssm_dim": 3,
    "classification": True,
    "gate": True,
    "dropout_rate": 0.1,
}


def keep(folder, record=None, **changes):
    """A run folder as a training leaves it, with options and fields of its record changed, and its model."""
    options = {**OPTIONS, **changes}
    model, state = create_model(data_dim=3, label_dim=2, key=jax.random.PRNGKey(7), **options)
    folder.mkdir()
    precision = str(jnp.zeros(()).dtype)
    data = {"data_dim": 3, "label_dim": 2, "length": 8}
    # A config has fields that no model has.
    fields = {**options, "lr": 0.1, **(record or {})}
    record = {"config": fields, "data": data, "precision": precision, "seed": 1}
    (folder / "config.json").write_text(json.dumps(record))
    eqx.tree_serialise_leaves(folder / "model.eqx", (model, state))
    return model, state


def change(folder, **fields):
    """Fields of a record, changed."""
    record = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(record | fields))


@pytest.fixture
def folder(tmp_path):
    keep(tmp_path / "run")
    return tmp_path / "run"


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"model_name": "LinHRU", "gate": False, "complex_ssm": True, "train_steps": False},
        {"batchnorm": "ema", "learning_algorithm": "BPTT", "classification": False, "output_step": 4},
    ],
)
@pytest.mark.parametrize("double", [False, True])
def test_what_was_saved_is_loaded(tmp_path, changes, double):
    with jax.enable_x64(double):
        saved = keep(tmp_path / "run", **changes)
        loaded = tuple(models.load_run(tmp_path / "run"))
        # Arrays, other numbers, and by their structure what is fixed: algorithm, output step, mode of the BatchNorm.
        assert eqx.tree_equal(loaded, saved)


class OwnUnit(LinHRULayer):
    """A unit of the user's own, in a file that a run names."""


@pytest.mark.usefixtures("unchecked_types")
def test_a_unit_of_ones_own_is_given_and_never_imported(tmp_path):
    changes = {"model_name": OwnUnit, "gate": False, "train_steps": False}
    folder = tmp_path / "run"
    saved = keep(folder, record={"model_name": "Own", "unit": "evil.py:OwnUnit"}, **changes)
    change(folder, unit_sha256=hashlib.sha256(Path(__file__).read_bytes()).hexdigest())
    with pytest.raises(
        RunError, match=r"config.json: the run has its own unit, evil.py:OwnUnit: .*load_unit\('evil.py:OwnUnit'\)\)"
    ):
        models.load_run(folder)
    with pytest.raises(RunError, match=r"unit is 'evil.py:OwnUnit', but a class is needed: .*load_unit\('evil.py:Own"):
        models.load_run(folder, unit="evil.py:OwnUnit")  # pyright: ignore[reportArgumentType]
    assert eqx.tree_equal(tuple(models.load_run(folder, unit=OwnUnit)), saved)
    keep(tmp_path / "ordinary")
    with pytest.raises(RunError, match=r"the run has no own unit, but 'NonlinHRU': leave unit out"):
        models.load_run(tmp_path / "ordinary", unit=OwnUnit)


@pytest.mark.parametrize("double", [False, True])
def test_another_precision_is_refused_with_the_way_out(tmp_path, double):
    with jax.enable_x64(double):
        keep(tmp_path / "run")
    with (
        jax.enable_x64(not double),
        pytest.raises(RunError, match=rf"trained in float{64 if double else 32}, .* jax.enable_x64\({double}\)"),
    ):
        models.load_run(tmp_path / "run")


def test_a_model_of_another_precision_than_its_record_is_refused(tmp_path, x64):
    keep(tmp_path / "double")
    with jax.enable_x64(False):
        keep(tmp_path / "run")
        (tmp_path / "double" / "model.eqx").replace(tmp_path / "run" / "model.eqx")
        with pytest.raises(RunError, match=r"model.eqx: .*encoder.weight: float64 of shape \(4, 3\), expected float32"):
            models.load_run(tmp_path / "run")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_dim": 5}, r"encoder.weight: float32 of shape \(5, 3\), expected float32 of shape \(4, 3\)"),
        ({"ssm_dim": 5}, r"blocks\[0\].unit.B: float32 of shape \(5, 4\), expected float32 of shape \(3, 4\)"),
        ({"dropout_rate": 0.2}, r"dropout.p: 0.2, expected 0.1"),
        ({"num_blocks": 1}, r"model.eqx: .*blocks\[1\]"),
        ({"num_blocks": 3}, r"model.eqx: "),
        ({"model_name": "LinHRU", "gate": False}, r"model.eqx: "),
    ],
)
def test_a_model_of_another_config_is_refused(tmp_path, folder, changes, message):
    keep(tmp_path / "other", **changes)
    (tmp_path / "other" / "model.eqx").replace(folder / "model.eqx")
    with pytest.raises(RunError, match=message):
        models.load_run(folder)


def test_a_model_with_more_behind_it_is_refused(folder):
    with open(folder / "model.eqx", "ab") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(RunError, match=r"model.eqx: holds more than the model of the config.json"):
        models.load_run(folder)


@pytest.mark.parametrize("kept", [0, 5, 60, 200, -1])
def test_a_cut_model_is_refused(folder, kept):
    path = folder / "model.eqx"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(RunError, match=r"model.eqx: .*the file is damaged, or belongs to another config"):
        models.load_run(folder)


@pytest.mark.parametrize(
    ("sound", "damaged"),
    [
        *((b"(4,", b"{4,"), (b"'descr'", b"'descr("), (b"NUMPY", b"numpy")),
        # Of numpy, in their order: TypeError, SyntaxError, OverflowError.
        *((b"'shape'", b"b'hape'"), (b"'<f4'", b"',,4'")),
        (b"(4, 3), }".ljust(29), b"(99999999999999999999,), }".ljust(29)),
    ],
)
def test_a_damaged_header_is_refused(folder, sound, damaged):
    content = (folder / "model.eqx").read_bytes()
    (folder / "model.eqx").write_bytes(content.replace(sound, damaged, 1))
    with pytest.raises(RunError, match=r"model.eqx: .*the file is damaged"):
        models.load_run(folder)


@pytest.mark.parametrize("count", [100, pytest.param(3000, marks=pytest.mark.long)])
def test_a_damaged_header_is_refused_or_changes_nothing(folder, count):
    """Bytes of the headers, changed at random: never another exception."""
    random = np.random.default_rng(0)
    path = folder / "model.eqx"
    sound = path.read_bytes()
    headers = [start + at for start in find(sound, b"\x93NUMPY") for at in range(128)]
    letters = list(b"{}()[]'\"\\,:#0915eE-LJj\n\0\t\xff")
    refused = 0
    for _ in range(count):
        content = bytearray(sound)
        for at in random.choice(headers, size=random.integers(1, 4)):
            content[at] = random.choice(letters) if random.random() < 0.7 else content[at] ^ 1
        path.write_bytes(content)
        try:
            models.load_run(folder)
        except RunError:
            refused += 1
    assert refused > count / 2


def find(content, mark):
    at = content.find(mark)
    while at >= 0:
        yield at
        at = content.find(mark, at + 1)


def test_a_model_that_is_not_the_one_of_the_result_is_refused(folder):
    path = folder / "model.eqx"
    sound = path.read_bytes()
    result = {"status": "completed", "model_sha256": hashlib.sha256(sound).hexdigest()}
    (folder / "result.json").write_text(json.dumps(result))
    models.load_run(folder)
    path.write_bytes(sound[:-1] + bytes([sound[-1] ^ 1]))
    with pytest.raises(RunError, match=r"model.eqx: was changed since the run ended: its sha256"):
        models.load_run(folder)
    (folder / "result.json").write_text('{"status": "failed"}')
    models.load_run(folder)
    (folder / "result.json").write_text("[" * 100_000)
    with pytest.raises(RunError, match=r"result.json: cannot be read"):
        models.load_run(folder)


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize("name", ["train_steps", "gate", "classification", "damping", "remat", "complex_ssm"])
def test_a_flag_that_is_text_is_refused(folder, name):
    record = read_record(folder)
    record["config"][name] = "False"
    (folder / "config.json").write_text(json.dumps(record))
    with pytest.raises(
        RunError, match=rf"config.json: describes no model \({name} (must be true or false|is an option)"
    ):
        models.load_run(folder)


def test_a_pickle_in_place_of_a_model_is_not_opened(folder):
    with open(folder / "model.eqx", "wb") as file:
        np.save(file, np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(RunError, match=r"object of shape \(1,\), expected float32"):
        models.load_run(folder)


@pytest.mark.parametrize(
    ("name", "message"),
    [("config.json", "config.json: cannot be read"), ("model.eqx", "model.eqx: cannot be read .* run it again")],
)
def test_a_missing_file_is_named(folder, name, message):
    (folder / name).unlink()
    with pytest.raises(RunError, match=message):
        models.load_run(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"config": {},\n "seed" 1}', r"config.json: not JSON, line 2 column 9"),
        (b"\xff", r"config.json: cannot be read \(.*utf-8"),
        ("[]", "config.json: config is missing"),
        ('{"config": {}, "data": {}, "precision": "float32", "seed": null}', "seed is missing or not of type int"),
        ('{"config": {}, "data": {}, "precision": "float32", "seed": 1}', "data_dim is missing or not of type int"),
    ],
)
def test_a_record_that_is_none_is_refused(folder, content, message):
    (folder / "config.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(RunError, match=message):
        read_record(folder)


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(
    ("section", "field", "value", "message"),
    [
        (None, "precision", "float16", "precision is 'float16': allowed is float32 or float64"),
        ("config", "model_name", "GRU", "describes no model .unknown model_name 'GRU'"),
        ("config", "hidden_dim", 0, "describes no model .hidden_dim must be"),
        ("config", "hidden_dim", None, "describes no model .hidden_dim must be"),
        ("config", "hidden_dim", 10**20, "expected float32 of shape .100000000000000000000, 3"),
        ("data", "data_dim", True, "data_dim is missing or not of type int"),
    ],
)
def test_a_record_of_an_impossible_model_is_refused(folder, section, field, value, message):
    record = json.loads((folder / "config.json").read_text())
    (record if section is None else record[section])[field] = value
    (folder / "config.json").write_text(json.dumps(record))
    with pytest.raises(RunError, match=message):
        models.load_run(folder)


def test_a_record_without_a_size_is_refused(folder):
    record = read_record(folder)
    del record["config"]["hidden_dim"]
    (folder / "config.json").write_text(json.dumps(record))
    with pytest.raises(RunError, match=r"describes no model .*hidden_dim"):
        models.load_run(folder)
