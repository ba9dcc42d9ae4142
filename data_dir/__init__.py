"""Real data sets: from raw files to batches. docs/layout.md says what each module holds.

Axis names: n samples, L time steps, C channels, K classes or outputs, T label steps.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from data_dir.processing.own import import_arrays

__all__ = ["import_arrays"]


def __getattr__(name: str):
    # The module is callable. Nothing is imported before it is used.
    if name == "import_arrays":
        return importlib.import_module("data_dir.import_arrays")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
