"""First configs for a set: sizes and rate by the shape of its arrays, so that a training takes a minute or two."""

from typing import Any, NamedTuple

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
        "lr_scheduler": f"cosine_decay_schedule(lr, {sizes.num_steps})",
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
