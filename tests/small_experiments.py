"""Small processed sets and configs that train in a blink."""

from pathlib import Path

import numpy as np

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
