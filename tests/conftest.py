"""Strictness shared by all tests."""

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture
def x64():
    """Double precision, where exactness is the claim."""
    with jax.enable_x64(True):
        yield
