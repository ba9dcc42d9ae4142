"""First configs for a set: sizes by the shape of its arrays, so that a training takes a minute or two.

The rate is constant: a schedule that ends at 0 would leave a training that is continued at the rate 0.
"""

from pathlib import Path
from typing import Any, NamedTuple

from common.files import sha256_of, write_json
from data_dir.storage import DataError, read_json

MODELS = ("LinHRU", "NonlinHRU")
SEED = 2345


class _Sizes(NamedTuple):
    """Up to ``length`` time steps: the first time step of NonlinHRU, steps of the training, samples of a step."""

    length: int
    step_init: float
    num_steps: int
    batch_size: int


# Longer series take fewer and smaller steps, so that the time of a training grows slowly.
_BY_LENGTH = (
    _Sizes(300, 0.2, 1000, 32),
    _Sizes(1000, 0.1, 800, 16),
    _Sizes(3000, 0.05, 600, 16),
    _Sizes(2**63, 0.02, 300, 8),
)
# With fewer series for training, the network is smaller.
_MANY_SERIES = 200


def starter_config(
    model: str, *, length: int, n_train: int, classification: bool, standardise: bool, seeds: list[int], **places: str
) -> dict[str, Any]:
    """The fields of a config for one of ``MODELS``; ``n_train`` series train. ``places`` are the path fields."""
    sizes = next(sizes for sizes in _BY_LENGTH if length <= sizes.length)
    wide = 32 if n_train >= _MANY_SERIES else 16
    fields = {
        "seeds": seeds,
        **places,
        "classification": classification,
        "metric": "accuracy" if classification else "mse",
        "time": False,
        "standardise": standardise,
        "lr": 0.005,
        "lr_scheduler": "lr",
        "num_steps": sizes.num_steps,
        "print_steps": sizes.num_steps // 20,
        "batch_size": min(sizes.batch_size, n_train),
        "num_blocks": 2,
        "hidden_dim": wide,
        "ssm_dim": wide,
        "batchnorm": "batch",
        "dropout_rate": 0.05,
    }
    return fields | ({"step_init": sizes.step_init} if model == "NonlinHRU" else {})


def starter_configs(name: str, **sizes: Any) -> dict[str, dict[str, Any]]:
    """The starter config of each model by its path in the folder of the set ``name``."""
    return {f"configs/{model}/{name}.json": starter_config(model, **sizes) for model in MODELS}


def edited_configs(folder: Path) -> dict[str, bytes]:
    """The configs in the folder of a set that are not its starter configs, by path; none without the folder."""
    try:
        starters = read_json(folder / "dataset.json").get("starter_configs", {})
    except DataError:
        starters = {}
    paths = {str(path.relative_to(folder)): path for path in sorted(folder.glob("configs/**/*.json"))}
    return {name: path.read_bytes() for name, path in paths.items() if sha256_of(path) != starters.get(name)}


def write_configs(folder: Path, starters: dict[str, dict[str, Any]], kept: dict[str, bytes]) -> dict[str, str]:
    """Writes configs; ``kept`` take the place of starters. Returns the sha256 of the starters that were written."""
    for name in {**starters, **kept}:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name in kept:
            path.write_bytes(kept[name])
        else:
            write_json(path, starters[name])
    return {name: sha256_of(folder / name) for name in starters if name not in kept}
