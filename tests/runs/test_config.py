"""Configs: the shipped ones are the published protocol, and whatever is wrong in one is named with what is allowed."""

import inspect
import json
import math
import os
import sys
from pathlib import Path

import optax
import pytest

from experiment_configs import LEARNING_ALGORITHMS, MODEL_NAMES, scheduler
from experiment_configs.machines import operator_of
from experiment_configs.schema import ConfigError, config_class, config_path, load_config, validate
from models.create import MODELS, create_model
from models.layer import unit_options

REPEATS = Path(__file__).resolve().parents[2] / "experiment_configs" / "repeats"

# lr, hidden_dim of LinHRU and of NonlinHRU, ssm_dim, num_blocks, batch_size, time
PUBLISHED = {
    "EigenWorms": (1e-4, (64, 64), 16, 2, 4, False),
    "SelfRegulationSCP1": (1e-4, (64, 128), 256, 6, 32, True),
    "SelfRegulationSCP2": (1e-5, (64, 64), 256, 6, 32, True),
    "EthanolConcentration": (1e-5, (16, 16), 256, 4, 32, False),
    "Heartbeat": (1e-5, (64, 64), 16, 2, 32, True),
    "MotorImagery": (1e-5, (128, 128), 16, 2, 32, False),
    "ppg": (1e-4, (64, 64), 16, 6, 4, True),
}
BUNDLED = ("BasicMotions", "ACSF1")


@pytest.fixture
def fields():
    """The fields of a valid config, to be spoiled."""
    return json.loads((REPEATS / "LinHRU" / "Heartbeat.json").read_text())


@pytest.fixture
def write(tmp_path):
    """Write fields (or text) into a file of LinHRU or NonlinHRU and return its path."""

    def write(content, model_name="LinHRU"):
        path = tmp_path / model_name / "Heartbeat.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    return write


@pytest.mark.parametrize("model_name", MODEL_NAMES)
@pytest.mark.parametrize("dataset_name", PUBLISHED)
def test_published_sets_follow_the_published_protocol(model_name, dataset_name):
    lr, hidden_dims, ssm_dim, num_blocks, batch_size, time = PUBLISHED[dataset_name]
    nonlinear = model_name == "NonlinHRU"
    regression = dataset_name == "ppg"
    assert load_config(REPEATS / model_name / f"{dataset_name}.json").model_dump() == {
        "unit": None,
        "machine": None,
        "task": None,
        "model_name": model_name,
        "dataset_name": dataset_name,
        "split": "seed",
        "inmemory": False,
        "standardise": False,
        "learning_algorithm": "RHEL",
        "seeds": (2345, 3456, 4567, 5678, 6789),
        "data_dir": "data_dir",
        "output_parent_dir": "outputs",
        "lr": lr,
        "lr_scheduler": "lambda lr: lr",
        "num_steps": 100_000,
        "print_steps": 1_000,
        "batch_size": batch_size,
        "patience": 10,
        "evaluate_train": None,
        "metric": "mse" if regression else "accuracy",
        "classification": not regression,
        "time": time,
        "output_step": 128 if regression else 1,
        "num_blocks": num_blocks,
        "hidden_dim": hidden_dims[nonlinear],
        "ssm_dim": ssm_dim,
        "complex_ssm": not nonlinear,
        "train_steps": True,
        "epsilon": 0.1,
        "step_init": 1e-4 if nonlinear else None,
        "gate": nonlinear,
        "damping": False,
        "shortest_period": None,
        "longest_period": None,
        "pooling": "mean",
        "batchnorm": "ema",
        "dropout_rate": 0.05,
        "remat": True,
        "grad_clip": None,
        "skip_nonfinite": 0,
        "checkpoint_steps": None,
    }


def test_every_shipped_config_loads_and_none_is_missing():
    files = sorted(REPEATS.parent.glob("*/*/*.json"))
    for path in files:
        config = load_config(path, own_units=True)
        assert config.dataset_name == path.stem
        assert config.model_name == path.parent.name
    names = {(path.parent.name, path.stem) for path in files if path.parent.parent == REPEATS}
    assert names == {(model, name) for model in MODEL_NAMES for name in (*PUBLISHED, *BUNDLED)}


@pytest.mark.parametrize("model_name", MODEL_NAMES)
@pytest.mark.parametrize("dataset_name", BUNDLED)
def test_bundled_sets_train_an_active_unit_in_few_steps(model_name, dataset_name):
    config = load_config(REPEATS / model_name / f"{dataset_name}.json")
    assert config.seeds == (2345, 3456, 4567)
    assert config.epsilon is None
    assert config.batchnorm == "batch"
    assert config.num_steps <= 1_000
    if model_name == "NonlinHRU":
        assert config.step_init >= 0.01  # at the published 1e-4 the recurrence adds next to nothing


def test_published_style_strings_are_read(fields, write):
    expected = load_config(write(fields))
    kept = ("dataset_name", "data_dir", "output_parent_dir", "lr_scheduler", "metric", "batchnorm", "seeds")
    strings = {name: value if name in kept else str(value) for name, value in fields.items()}
    assert strings["time"] == "True"
    assert strings["lr"] == "1e-05"
    strings["seeds"] = [str(seed) for seed in fields["seeds"]]
    strings["output_parent_dir"] = ""
    assert load_config(write(strings)) == expected


@pytest.mark.parametrize("value", [None, "None", "null"])
def test_epsilon_may_be_left_to_the_algorithm(fields, write, value):
    assert load_config(write({**fields, "epsilon": value})).epsilon is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lr": "fast"}, 'lr is "fast": allowed is a positive number'),
        ({"lr": 0}, "lr is 0: allowed is a positive number"),
        ({"lr": "nan"}, 'lr is "nan": allowed is a positive number'),
        ({"lr": True}, "lr is true: allowed is a positive number"),
        ({"num_steps": 1.5}, "num_steps is 1.5: allowed is a positive whole number"),
        ({"num_steps": "1e5"}, 'num_steps is "1e5": allowed is a positive whole number'),
        ({"batch_size": True}, "batch_size is true: allowed is a positive whole number"),
        ({"print_steps": 0}, "print_steps is 0: allowed is a positive whole number"),
        ({"num_blocks": None}, "num_blocks is null: allowed is a positive whole number"),
        ({"time": 1}, "time is 1: allowed is true or false"),
        ({"train_steps": "yes"}, 'train_steps is "yes": allowed is true or false'),
        ({"seeds": []}, "seeds is []: allowed is a list of different whole numbers"),
        ({"seeds": [1, -1]}, "seeds is -1: allowed is a list of different whole numbers"),
        ({"seeds": [1, 1]}, "seeds is [1, 1] (a seed is listed twice)"),
        ({"seeds": 2345}, "seeds is 2345: allowed is a list"),
        ({"epsilon": 0}, "epsilon is 0: allowed is a positive number, or null"),
        ({"epsilon": "inf"}, 'epsilon is "inf": allowed is a positive number, or null'),
        ({"dropout_rate": 1}, "dropout_rate is 1: allowed is a number from 0 to 0.999"),
        ({"dropout_rate": 0.9999999999}, "dropout_rate is 0.9999999999: allowed is a number from 0 to 0.999"),
        ({"hidden_dim": 10**20}, f"hidden_dim is {10**20}: allowed is a positive whole number, at most 1048576"),
        ({"ssm_dim": 2**20 + 1}, "ssm_dim is 1048577: allowed is a positive whole number, at most 1048576"),
        ({"num_blocks": 10**9}, "num_blocks is 1000000000: allowed is a positive whole number, at most 1000"),
        ({"num_steps": 2**31}, "num_steps is 2147483648: allowed is a positive whole number below 2147483648"),
        ({"skip_nonfinite": 2**31}, "skip_nonfinite is 2147483648: allowed is a whole number, 0 or more, below"),
        ({"data_dir": "a\0b"}, r'data_dir is "a\u0000b": allowed is the path of a folder'),
        ({"output_parent_dir": "\0"}, r'output_parent_dir is "\u0000": allowed is the path of a folder'),
        ({"dataset_name": "a\0"}, r'dataset_name is "a\u0000": allowed is the name'),
        ({"split": "a\0"}, r'split is "a\u0000": allowed is "seed"'),
        ({"grad_clip": 0}, "grad_clip is 0: allowed is a positive number, or null"),
        ({"grad_clip": "inf"}, 'grad_clip is "inf": allowed is a positive number, or null'),
        ({"skip_nonfinite": -1}, "skip_nonfinite is -1: allowed is a whole number, 0 or more"),
        ({"skip_nonfinite": True}, "skip_nonfinite is true: allowed is a whole number, 0 or more"),
        ({"checkpoint_steps": 0}, "checkpoint_steps is 0: allowed is a positive whole number, or null"),
        ({"batchnorm": "layer"}, 'batchnorm is "layer": allowed is ema or batch'),
        ({"metric": "f1"}, 'metric is "f1": allowed is accuracy or mse'),
        ({"learning_algorithm": "EP"}, 'learning_algorithm is "EP": allowed is one of RHEL, BPTT'),
        ({"data_dir": 3}, "data_dir is 3: allowed is the path of a folder"),
        ({"hiden_dim": 3}, "unknown field hiden_dim (3): did you mean hidden_dim?"),
        ({"learning_rate": 1}, "unknown field learning_rate (1): did you mean lr?"),
        ({"standardise": 1}, "standardise is 1: allowed is true or false"),
        ({"colour": "red"}, 'unknown field colour ("red"): the fields are unit, model_name'),
        ({"metric": "mse"}, 'metric is "mse": classification is measured by accuracy'),
        ({"classification": False}, 'metric is "accuracy": a regression is measured by mse'),
        ({"output_step": 128}, "output_step is 128: a classification has one output"),
        ({"step_init": 0.1}, "step_init is 0.1: only NonlinHRU has it"),
        ({"gate": True}, "gate is true: only NonlinHRU has it"),
        ({"damping": True, "learning_algorithm": "ReversibleBPTT"}, "damping is true: ReversibleBPTT does not"),
        ({"model_name": "NonlinHRU"}, 'model_name is "NonlinHRU", but this is a file of LinHRU'),
        ({"lr_scheduler": "lr +"}, "lr_scheduler is \"lr +\": 'lr +' cannot be read"),
        ({"lr_scheduler": 3}, "lr_scheduler is 3: allowed is lr or a constant multiple of it"),
    ],
)
def test_a_bad_field_is_named_with_its_file_and_what_is_allowed(fields, write, change, message):
    path = write({**fields, **change})
    with pytest.raises(ConfigError) as error:
        load_config(path)
    assert str(error.value).startswith(f"{path}: ")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"complex_ssm": True}, "complex_ssm is true: only LinHRU has it"),
        ({"damping": True}, "damping is true: only LinHRU has it"),
        ({"step_init": 1}, "step_init is 1: allowed is a number between 0 and 1"),
    ],
)
def test_a_bad_field_of_the_nonlinear_model(write, change, message):
    fields = json.loads((REPEATS / "NonlinHRU" / "Heartbeat.json").read_text())
    with pytest.raises(ConfigError, match=message):
        load_config(write({**fields, **change}, "NonlinHRU"))


def test_every_problem_is_reported_at_once(fields, write):
    del fields["ssm_dim"]
    with pytest.raises(ConfigError) as error:
        load_config(write({**fields, "lr": -1, "hiden_dim": 3}))
    for part in ("missing field ssm_dim: a positive whole number", "lr is -1", "unknown field hiden_dim"):
        assert part in str(error.value)


def published_file(model_name, dataset_name):
    """The fields of a file of the published repository, all as text."""
    lr, hidden_dims, ssm_dim, num_blocks, batch_size, time = PUBLISHED[dataset_name]
    regression = dataset_name == "ppg"
    units = {"complex_ssm": "True", "train_steps": "True"} if model_name == "LinHRU" else {}
    return {
        "seeds": ["2345", "3456", "4567", "5678", "6789"],
        "data_dir": "data_dir",
        "output_parent_dir": "",
        "lr_scheduler": "lambda lr: lr",
        "num_steps": "100000",
        "print_steps": "1000",
        "batch_size": str(batch_size),
        "metric": "mse" if regression else "accuracy",
        "classification": str(not regression),
        "lr": str(lr),
        "time": str(time),
        "num_blocks": str(num_blocks),
        "hidden_dim": str(hidden_dims[model_name == "NonlinHRU"]),
        "ssm_dim": str(ssm_dim),
        **units,
    }


@pytest.mark.parametrize("model_name", MODEL_NAMES)
@pytest.mark.parametrize("dataset_name", PUBLISHED)
def test_a_published_file_loads_as_it_is_and_tells_its_defaults(tmp_path, model_name, dataset_name):
    path = tmp_path / model_name / f"{dataset_name}.json"
    path.parent.mkdir()
    path.write_text(json.dumps(published_file(model_name, dataset_name)))
    config = load_config(path)
    ours = load_config(REPEATS / model_name / f"{dataset_name}.json")
    # What the published files say of neither set nor unit is a default of this project.
    differing = {name for name, value in config if value != getattr(ours, name)}
    step = {"output_step"} if dataset_name == "ppg" else set()
    assert differing == step | {"epsilon", "batchnorm"} | (
        {"gate", "step_init"} if model_name == "NonlinHRU" else set()
    )
    left_out = set(type(config).model_fields) - set(published_file(model_name, dataset_name))
    assert set(config.defaults()) == left_out - {"model_name", "dataset_name"}
    # Only the data know how many steps a label stands for.
    completed = config.completed(128)
    assert completed.output_step == ours.output_step
    assert completed.defaults()["output_step"] == ours.output_step
    assert completed.replace({"seeds": [1]}).defaults().keys() == config.defaults().keys()


@pytest.mark.parametrize("name", config_class(MODELS["LinHRU"]).model_fields)
def test_a_field_without_a_default_must_be_there(fields, write, name):
    fields.pop(name, None)
    documented = published_file("LinHRU", "Heartbeat").keys() - {"complex_ssm", "train_steps"}
    if name in documented:
        with pytest.raises(ConfigError, match=f"missing field {name}"):
            load_config(write(fields))
    else:
        load_config(write(fields))


def test_a_default_that_depends_on_a_bad_field_is_no_problem_of_its_own(fields):
    del fields["complex_ssm"], fields["output_step"]
    with pytest.raises(ConfigError) as error:
        validate({**fields, "model_name": "HRU", "classification": 3}, "here")
    assert str(error.value).count(": allowed is") == str(error.value).count(";") + 1 == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{\n  "lr": 1,\n  "time" true\n}', "not JSON, line 3 column 10"),
        ("", "not JSON, line 1 column 1"),
        ("[1]", "a config is a JSON object of fields, not"),
        ('{"lr": 1, "lr": 2}', "the field lr is given twice"),
        ("[" * 100_000, "not a config"),
    ],
)
def test_a_file_that_is_no_config(write, text, message):
    path = write(text)
    with pytest.raises(ConfigError) as error:
        load_config(path)
    assert str(error.value).startswith(f"{path}: ")
    assert message in str(error.value)


def test_a_file_that_cannot_be_read(tmp_path):
    with pytest.raises(ConfigError, match=r"LinHRU.json: cannot be read \(No such file"):
        load_config(tmp_path / "LinHRU.json")
    (tmp_path / "latin.json").write_bytes(b'{"data_dir": "\xe9"}')
    with pytest.raises(ConfigError, match=r"latin.json: not a config"):
        load_config(tmp_path / "latin.json")


def test_the_model_is_the_folder_or_a_field(fields, tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(fields))
    with pytest.raises(ConfigError, match="missing field model_name: one of LinHRU, NonlinHRU"):
        load_config(path)
    assert load_config(path, "LinHRU").model_name == "LinHRU"
    path.write_text(json.dumps({**fields, "model_name": "LinHRU"}))
    assert load_config(path).model_name == "LinHRU"


def test_a_data_set_without_a_config():
    assert config_path(REPEATS, "LinHRU", "Heartbeat") == REPEATS / "LinHRU" / "Heartbeat.json"
    with pytest.raises(
        ConfigError, match=r"no config for the data set 'Hartbeat'. Did you mean Heartbeat\? There are: ACSF1"
    ):
        config_path(REPEATS, "LinHRU", "Hartbeat")
    with pytest.raises(ConfigError, match=r"no config for the data set 'SCP1'. Did you mean SelfRegulationSCP1\?"):
        config_path(REPEATS, "LinHRU", "SCP1")
    with pytest.raises(ConfigError, match="no configs here"):
        config_path(REPEATS / "nowhere", "LinHRU", "Heartbeat")


def test_changes_are_checked_like_a_file(fields, write):
    config = load_config(write(fields))
    changed = config.replace({"num_steps": 7, "seeds": [1]})
    assert (changed.num_steps, changed.seeds) == (7, (1,))
    assert changed.replace({"num_steps": config.num_steps, "seeds": config.seeds}) == config
    with pytest.raises(ConfigError, match="command line: num_steps is 0: allowed is a positive whole number"):
        config.replace({"num_steps": 0})
    with pytest.raises(Exception, match="frozen"):
        config.num_steps = 3


def test_names_agree_with_the_models():
    from models import rhel

    assert tuple(MODELS) == MODEL_NAMES
    assert rhel.LEARNING_ALGORITHMS == LEARNING_ALGORITHMS
    parameters = inspect.signature(create_model).parameters
    for model_name, unit in MODELS.items():
        config = load_config(REPEATS / model_name / "BasicMotions.json")
        common = set(parameters) - {"data_dim", "label_dim", "key", "options"}
        assert set(config.model_options()) == common | set(unit_options(unit))
        for name in ("learning_algorithm", "epsilon", "train_steps", "batchnorm", "dropout_rate", "remat"):
            assert parameters[name].default == type(config).model_fields[name].default
    assert parameters["learning_algorithm"].default == LEARNING_ALGORITHMS[0]


# Units of one's own

UNIT = """
from typing import Annotated
import jax.numpy as jnp
from models.layer import AbstractHRULayer, Option
from models.LinHRU import LinearOscillators

open("imported", "w").close()

class Springs(AbstractHRULayer):
    stiffness: jnp.ndarray

    def __init__(self, hidden_dim, ssm_dim, *, strength: Annotated[float, Option("first stiffness", above=0)] = 1.0,
                 steps: int = 3, free: bool = True, key, **common):
        super().__init__(hidden_dim, ssm_dim, key=key, **common)
        self.stiffness = jnp.full(ssm_dim, strength)

    def hamiltonian(self):
        return LinearOscillators(A=self.stiffness, step=jnp.full_like(self.stiffness, 0.1))

class Other:
    pass

class Installed:
    __module__ = "rhel.layer"
"""


@pytest.fixture
def own(fields, tmp_path, monkeypatch):
    """The fields of a config of a unit in a file of the present directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_unit.py").write_text(UNIT)
    del fields["complex_ssm"]
    return {**fields, "unit": "my_unit.py:Springs", "model_name": "Springs", "dataset_name": "Tiny"}


def test_a_unit_of_ones_own_is_imported_only_where_it_is_allowed(own, tmp_path):
    with pytest.raises(ConfigError, match=r'here: unit is "my_unit.py:Springs": this is Python code, .*--own_units'):
        validate(own, "here")
    assert not (tmp_path / "imported").exists()
    config = validate({**own, "strength": "2", "free": "False"}, "here", own_units=True)
    assert (tmp_path / "imported").exists()
    options = config.model_options()
    assert options["model_name"].__name__ == "Springs"
    assert {name: options[name] for name in ("strength", "steps", "free")} == {
        "strength": 2.0,
        "steps": None,
        "free": False,
    }
    assert "gate" not in options
    assert config.replace({"seeds": [1]}).model_options() == options
    with pytest.raises(ConfigError, match="this is Python code"):
        config.replace({"unit": "other.py:Springs"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"strength": 0}, "strength is 0: allowed is a number above 0, or null for the default of the unit"),
        ({"steps": 1.5}, "steps is 1.5: allowed is a whole number, or null"),
        ({"free": "perhaps"}, 'free is "perhaps": allowed is true or false'),
        ({"strenght": 1}, "unknown field strenght (1): did you mean strength?"),
        ({"gate": True}, "gate is true: only NonlinHRU has it"),
        ({"model_name": "LinHRU"}, 'model_name is "LinHRU" (a model of this project, and not of your own unit)'),
        ({"model_name": "a/b"}, 'model_name is "a/b": allowed is one of LinHRU, NonlinHRU, or with unit'),
        ({"unit": "my_unit.py:Oscillators"}, "unit my_unit.py:Oscillators: cannot be imported"),
        ({"unit": "my_unit.py:Other"}, "unit my_unit.py:Other: is not a subclass of models.layer.AbstractHRULayer"),
        ({"unit": "my_unit.py:Installed"}, "AbstractHRULayer; in a clone, import from models, not from rhel"),
        ({"unit": "nowhere.py:Springs"}, "unit nowhere.py:Springs: cannot be imported ([Errno 2]"),
        ({"unit": "no_such_module:Springs"}, "unit no_such_module:Springs: cannot be imported (No module"),
        ({"unit": "Springs"}, "; it is a file or module and a class, as in my_unit.py:MyLayer"),
        ({"unit": 3}, "unit is 3: allowed is null, or the Python file and the class"),
    ],
)
def test_a_bad_config_of_a_unit_of_ones_own(own, change, message):
    with pytest.raises(ConfigError) as error:
        validate({**own, **change}, "here", own_units=True)
    assert message in str(error.value)


def test_a_unit_that_imports_the_installed_package_is_told_to_import_models(own, monkeypatch):
    monkeypatch.setitem(sys.modules, "rhel.layer", None)
    Path("my_unit.py").write_text("from rhel.layer import AbstractHRULayer")
    with pytest.raises(ConfigError) as error:
        validate(own, "here", own_units=True)
    assert str(error.value).endswith("); in a clone, import from models, not from rhel")


@pytest.mark.parametrize("name", ["lr", "num_steps", "time", "unit", "replace"])
def test_an_option_with_the_name_of_a_field_of_every_config_is_refused(own, name):
    Path("my_unit.py").write_text(UNIT.replace("strength", name))
    message = f"here: Springs: the option {name} has a name that every config uses: choose another name"
    with pytest.raises(ConfigError) as error:
        validate(own, "here", own_units=True)
    assert str(error.value) == message


# The rule of the learning rate


@pytest.mark.parametrize(
    ("rule", "rate"),
    [
        ("lambda lr: lr", 0.5),
        (" lambda  lr : lr ", 0.5),
        ("lr", 0.5),
        ("lambda lr: 0.5 * lr", 0.25),
        ("lr * 0.1", 0.05),
        ("lr / 10", 0.05),
        ("1e-1*lr", 0.05),
        ("3 * lr / 2", 0.75),
    ],
)
def test_a_constant_multiple(rule, rate):
    assert scheduler.build(rule, 0.5, 100) == pytest.approx(rate, rel=1e-15)


@pytest.mark.parametrize(
    "rule",
    [
        "cosine_decay_schedule(lr / 2, 100)",
        "optax.cosine_decay_schedule(lr / 2, decay_steps=100)",
        "lambda lr: cosine_decay_schedule(init_value=lr / 2, decay_steps=1e2)",
    ],
)
def test_a_schedule_of_optax(fields, rule):
    rate = validate({**fields, "model_name": "LinHRU", "lr": 0.5, "lr_scheduler": rule}, "here").learning_rate()
    expected = optax.cosine_decay_schedule(0.25, 100)
    for step in (0, 13, 50, 99):
        assert float(rate(step)) == float(expected(step))


@pytest.mark.parametrize("name", scheduler.SCHEDULES)
def test_every_schedule_can_be_had(name):
    values = {"decay_steps": "50", "transition_steps": "50", "warmup_steps": "10", "staircase": "True", "power": "2"}
    parameters = inspect.signature(getattr(optax, name)).parameters.values()
    required = [parameter.name for parameter in parameters if parameter.default is parameter.empty]
    arguments = ", ".join(f"{parameter}={values.get(parameter, 'lr')}" for parameter in required)
    rate = scheduler.build(f"{name}({arguments})", 0.1, 100)
    assert math.isfinite(float(rate(30)))


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("__import__('os').system('touch hacked') * lr", "cannot be read"),
        ("lambda lr: __import__('os').system('touch hacked') or lr", "cannot be read"),
        ("open('hacked', 'w', lr)", "the schedule 'open' is unknown"),
        ("eval('lr')", "the schedule 'eval' is unknown"),
        ("lr.__class__.__bases__[0].__subclasses__()", "cannot be read"),
        ("lambda lr: [lr for _ in range(9)]", "cannot be read"),
        ("(lambda: lr)()", "cannot be read"),
        ("lambda lr: lambda lr: lr", "cannot be read"),
        ("lr if lr else lr", "cannot be read"),
        ("lr + 1", "cannot be read"),
        ("lr ** 2", "cannot be read"),
        ("lr * lr", "'lr * lr' cannot be read"),
        ("1 / lr", "'1 / lr' cannot be read"),
        ("lr / lr * 5", "'lr / lr' cannot be read"),
        ("2 * lr * 3 * lr", "cannot be read"),
        ("lr / (2 * lr)", "cannot be read"),
        ("constant_schedule(lr / lr)", "'lr / lr' cannot be read"),
        ("-lr", "cannot be read"),
        ("lr * True", "cannot be read"),
        ("lr * 1j", "cannot be read"),
        ("lr * nan", "cannot be read"),
        ("lambda lr, x: lr", "cannot be read"),
        ("lambda lr=open('hacked'): lr", "cannot be read"),
        ("lambda x: x * lr", "cannot be read"),
        ("import lr", "cannot be read"),
        ("lr; lr", "cannot be read"),
        ("lr\x00", "cannot be read"),
        ("lr lr", "cannot be read"),
        ("(" * 240 + "lr" + ")" * 240, "cannot be read"),
        ("lr()", "the schedule 'lr' is unknown"),
        ("lr" + "* 10" * 1000, "characters long"),
        ("lr * " + "9" * 400, "cannot be read"),
        ("lr * 1e999", "cannot be read"),
        ("lr / 1e999", "cannot be read"),
        ("lr / 1e299 / 1e299", "not a positive number"),
        ("lr / 0", "divides by zero"),
        ("0 * lr", "not a positive number"),
        ("", "cannot be read"),
        ("rate", "the schedule 'rate' is unknown"),
        ("cosine", "the schedule 'cosine' is unknown"),
        ("cosine_decay_schedule", "it does not use lr"),
        ("0.001", "it does not use lr"),
        ("cosine_decay_schedule(0.1, 100)", "it does not use lr"),
        ("cosine_decay_schedul(lr, 100)", "did you mean 'cosine_decay_schedule'?"),
        ("optax.adam(lr)", "the schedule 'adam' is unknown"),
        ("cosine_decay_schedule(lr)", "missing a required argument: 'decay_steps'; it takes init_value, decay_steps"),
        ("cosine_decay_schedule(lr, 10, 0, 1, 2)", "too many positional arguments"),
        ("cosine_decay_schedule(lr, 10, decay_steps=10)", "multiple values for argument 'decay_steps'"),
        ("cosine_decay_schedule(lr, decay_steps=10, decay_steps=10)", "an argument is given twice"),
        ("cosine_decay_schedule(lr, steps=10)", "steps"),
        ("cosine_decay_schedule(lr, 1.5)", "decay_steps is a whole number of steps, not 1.5; it takes"),
        ("cosine_decay_schedule(lr, True)", "decay_steps is a number, not True; it takes"),
        ("constant_schedule(True * lr)", "'True' cannot be read"),
        ("linear_schedule(lr, False, 10)", "end_value is a number, not False; it takes"),
        ("exponential_decay(lr, 10, 0.5, staircase=1)", "staircase is True or False, not 1.0; it takes"),
        ("exponential_decay(lr, 10, 0.5, staircase=2)", "staircase is True or False, not 2.0; it takes"),
        ("linear_schedule(lr, 1e999, 10)", "cannot be read"),
        ("cosine_decay_schedule(lr, -1)", "'-1' cannot be read"),
        ("cosine_decay_schedule(lr, 0)", "refuses its arguments"),
        ("cosine_decay_schedule(*lr, 10)", "cannot be read"),
        ("cosine_decay_schedule(**lr, decay_steps=10)", "refuses its arguments"),
        ("cosine_decay_schedule(lr, 1e400)", "cannot be read"),
        ("linear_schedule(lr, lr / 1e-300 / 1e-300, 10)", "not all finite and at least 0"),
        ("constant_schedule(constant_schedule(lr))", "cannot be read"),
    ],
)
def test_a_rule_outside_the_language_runs_nothing(rule, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(scheduler.SchedulerError) as error:
        scheduler.build(rule, 0.5, 100)
    assert message in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_the_error_of_a_rule_lists_what_is_allowed(fields, write):
    with pytest.raises(ConfigError) as error:
        load_config(write({**fields, "lr_scheduler": "warmup(lr)"}))
    for part in (
        "lr_scheduler is \"warmup(lr)\": the schedule 'warmup' is unknown",
        "a constant multiple",
        *scheduler.SCHEDULES,
    ):
        assert part in str(error.value)


def test_a_pipe_in_place_of_a_config_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.json")
    for path in (tmp_path / "pipe.json", Path("/dev/zero")):
        with pytest.raises(ConfigError, match="is not a regular file"):
            load_config(path)


@pytest.mark.parametrize(
    ("machine", "words"),
    [
        ("numpy_leapfrog", "allowed is null, or an object with name"),
        ({"name": "board"}, 'name is "board": allowed is one of numpy_leapfrog, simulated_device, process'),
        ({"spread": 0.1}, "name is null: allowed is one of"),
        (
            {"name": "simulated_device", "sprad": 0.1},
            "unknown option sprad: those of simulated_device are spread,",
        ),
        ({"name": "numpy_leapfrog", "law": 1}, "unknown option law: those of numpy_leapfrog are none"),
        ({"name": "simulated_device", "spread": "0.1"}, 'spread is "0.1": allowed is a number'),
        ({"name": "simulated_device", "bits": 8.5}, "bits is 8.5: allowed is a whole number or null"),
        ({"name": "simulated_device", "momenta": 1}, "momenta is 1: allowed is true or false"),
        ({"name": "simulated_device", "spread": -0.1}, "spread must be finite and at least 0, got -0.1"),
        ({"name": "numpy_leapfrog", "units": []}, "units is []: allowed is a list of blocks"),
        ({"name": "numpy_leapfrog", "units": [2]}, "there are 2 units, counted from 0"),
        ({"name": "numpy_leapfrog", "units": [0, 0]}, "units is [0, 0]: a block is named twice"),
        ({"name": "process"}, "process: it needs command"),
        ({"name": "process", "command": "device"}, 'command is "device": allowed is a list of texts'),
        ({"name": "process", "command": []}, "command must be a list of texts"),
    ],
)
def test_a_machine_is_one_of_a_closed_set_with_its_options(fields, machine, words):
    with pytest.raises(ConfigError, match="machine is") as error:
        validate({**fields, "dataset_name": "X", "model_name": "LinHRU", "machine": machine}, "here", own_units=True)
    assert words in str(error.value)


def test_a_machine_of_a_config_is_made_from_its_options_and_a_program_needs_a_permission(fields):
    fields |= {"dataset_name": "X", "model_name": "LinHRU"}
    machine = {"name": "simulated_device", "spread": 0.1, "seed": 3, "bits": None, "units": [1]}
    config = validate(fields | {"machine": machine}, "here")
    made = operator_of(machine).machine
    assert (config.machine, made.spread, made.seed) == (machine, 0.1, 3)
    program = fields | {"machine": {"name": "process", "command": ["./no_such_device"], "time_limit": 900}}
    with pytest.raises(
        ConfigError, match=r'command of machine is \["./no_such_device"\]: this is a program, .*--own_units'
    ):
        validate(program, "here")
    allowed = validate(program, "here", own_units=True)
    assert allowed.replace({"lr": 0.1}).machine == program["machine"]
    with pytest.raises(ConfigError, match=r'command of machine is \["other"\]'):
        allowed.replace({"machine": {"name": "process", "command": ["other"]}})
    assert operator_of(program["machine"]).time_limit == 1800  # the program is killed first
    on_one = fields | {"machine": {"name": "numpy_leapfrog", "units": [1]}, "learning_algorithm": "BPTT"}
    assert validate(on_one, "here").learning_algorithm == "BPTT"  # of the other unit
    for whole in ({"name": "numpy_leapfrog"}, {"name": "numpy_leapfrog", "units": [1, 0]}):
        with pytest.raises(ConfigError, match='learning_algorithm is "BPTT": all units run on the machine, whose grad'):
            validate(on_one | {"machine": whole}, "here")
    with pytest.raises(ConfigError, match="damping is true: a machine does not differentiate it"):
        validate(fields | {"machine": machine, "damping": True}, "here")
