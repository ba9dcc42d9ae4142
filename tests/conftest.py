"""Strictness shared by all tests."""

import jax
import pytest
from small_experiments import HERE, REGRESSION, write_config, write_dataset

jax.config.update("jax_numpy_rank_promotion", "raise")
# Two devices on the CPU, for the tests of sharding. Everything else runs on the first.
jax.config.update("jax_num_cpu_devices", 2)


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


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """A folder with two small processed sets and their configs for LinHRU, as the present directory."""
    monkeypatch.chdir(tmp_path)
    for name, changes in (("Tiny", {}), ("Pulse", REGRESSION)):
        write_dataset(tmp_path, name, regression=bool(changes))
        write_config({**HERE, **changes, "dataset_name": name})
    return tmp_path
