"""Experiment configs: one JSON file per group, model and data set, read and checked by `experiment_configs.schema`.

`experiment_configs/<group>/<model_name>/<dataset_name>.json`. The group `repeats` holds the protocol of the published
experiments and two small sets that train on a laptop. The names below are all that a command line needs before anything
heavy is imported.
"""

MODEL_NAMES = ("LinHRU", "NonlinHRU")
LEARNING_ALGORITHMS = ("RHEL", "BPTT", "ReversibleBPTT")


class ConfigError(ValueError):
    """A config that cannot be used. The message names its source, each bad field, its value and what is allowed."""
