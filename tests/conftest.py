"""Strictness shared by all tests."""

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(scope="session", autouse=True)
def _compiled_elsewhere(tmp_path_factory):
    """What a command compiles is kept in a temporary folder, never in the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path_factory.mktemp("compiled")))
        yield


@pytest.fixture(scope="module", autouse=True)
def _nothing_compiled_is_kept():
    """A process has a limited number of memory maps, and every compiled program takes some."""
    yield
    jax.clear_caches()


@pytest.fixture
def x64():
    """Double precision, where exactness is the claim."""
    with jax.enable_x64(True):
        yield
