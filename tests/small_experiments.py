"""Small processed sets and configs that train in a blink."""

import json
from pathlib import Path

import numpy as np
import pytest

import run_experiment
from data_dir.pickles import write_arrays
from experiment_configs.schema import ExperimentConfig, validate

FIELDS = {
    "model_name": "LinHRU",
    "seeds": [1],
    "lr": 0.01,
    "lr_scheduler": "lambda lr: lr",
    "num_steps": 4,
    "print_steps": 2,
    "batch_size": 4,
    "metric": "accuracy",
    "classification": True,
    "time": True,
    "output_step": 1,
    "num_blocks": 1,
    "hidden_dim": 4,
    "ssm_dim": 3,
    "complex_ssm": True,
    "train_steps": True,
    "epsilon": None,
}
REGRESSION = {"metric": "mse", "classification": False, "output_step": 4}
# Of a config that lies below the present directory, with the data beside it.
HERE = {**FIELDS, "seeds": [1, 2], "data_dir": "data", "output_parent_dir": "outputs"}

SEED_1 = Path("outputs", "Tiny", "LinHRU_RHEL", "seed_1")


def write_dataset(root: Path, name: str, *, regression: bool = False, channels: int = 2) -> None:
    """20 series of 8 steps, of two classes or with two labels each, as a processed set in root/data."""
    random = np.random.default_rng(0)
    folder = root / "data" / "processed" / "UEA" / name
    folder.mkdir(parents=True)
    write_arrays(folder / "data.pkl", random.normal(size=(20, 8, channels)))
    labels = random.uniform(-0.5, 0.5, size=(20, 2)) if regression else np.eye(2)[np.arange(20) % 2]
    write_arrays(folder / "labels.pkl", labels)
    write_arrays(folder / "original_idxs.pkl", (np.arange(12), np.arange(0), np.arange(12, 20)))


def small_config(root: Path, name: str, **changes) -> ExperimentConfig:
    """A config of a set in root/data whose runs go to root/outputs."""
    folders = {"data_dir": str(root / "data"), "output_parent_dir": str(root / "outputs")}
    return validate({**FIELDS, **folders, "dataset_name": name, **changes}, source="test")


def write_config(fields: dict, model_name: str = "LinHRU") -> None:
    """A config of the set that the fields name, below the present directory."""
    path = Path("configs", model_name, f"{fields['dataset_name']}.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(fields))


def run(*flags: str) -> int:
    """The command with the configs of the present directory; its exit status."""
    return run_experiment.main(["--config_dir", "configs", *flags])


def read(path: Path | str):
    """A JSON file."""
    return json.loads(Path(path).read_text())


def lines(path: Path | str) -> list:
    """A file of one JSON value a line."""
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def snapshot(folder: Path) -> dict:
    """Every file with its time and its bytes."""
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.rglob("*") if path.is_file()}


def timeless(record: dict) -> dict:
    """A line of metrics.jsonl or a result without what depends on the clock and the machine."""
    return {name: value for name, value in record.items() if not name.startswith(("seconds", "peak"))}


def refusal(capsys: pytest.CaptureFixture, flags: str) -> str:
    """What the command says of flags that it refuses with status 2 before it does anything: a single line."""
    with pytest.raises(SystemExit) as exit:
        run_experiment.main(flags.split())
    assert exit.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error
