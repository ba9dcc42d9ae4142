"""What several modules share."""

from pathlib import Path

import pytest

from data_dir.datasets import create_dataset


@pytest.fixture(scope="session")
def bundled(tmp_path_factory) -> Path:
    """A data folder in which BasicMotions is processed."""
    data_dir = tmp_path_factory.mktemp("bundled")
    create_dataset(data_dir, "BasicMotions", seed=2345, time=False)
    return data_dir
