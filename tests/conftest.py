"""Strictness shared by all tests, and one folder for what they compile."""

import gc
import os
import tempfile

# Compiling takes most of the time of the tests. Without these optimisations it takes a fifth of it, and the results
# are the same up to rounding. The commands that tests start inherit the flags. `make test` runs a few files without
# them, as users run the code. To run others so, set XLA_FLAGS to an empty text. XLA reads the flags once, before the
# first computation.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true "
    "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1",
)

import jax
import jaxtyping
import pytest
from jax._src.interpreters import mlir
from small_experiments import HERE, REGRESSION, write_config, write_dataset

# Tracing makes many objects and few cycles: at the usual thresholds, looking for cycles takes 8 % of the time.
gc.set_threshold(200_000, 50, 100)

jax.config.update("jax_numpy_rank_promotion", "raise")
# Four devices on the CPU, for the tests of several devices. Everything else runs on the first.
jax.config.update("jax_num_cpu_devices", 4)


def sharing(make_context, programs=100):
    """`make_context` of jax, which gives several programs one context: loading its dialects takes 2 ms a program.

    A program that is lowered while another one is (an index that is evaluated at once) has a context of its own.
    """
    made = []

    def shared():
        if mlir.ir.Context.current is not None:
            return make_context()
        if len(made) % programs == 0:
            made[:] = [make_context()]
        else:
            made.append(made[0])
        return made[0]

    return shared


mlir.make_ir_context = sharing(mlir.make_ir_context)

COMPILED = "TESTS_COMPILED_FOLDER"
"""Names the folder that keeps what the tests compile, for all workers and for the commands that tests start."""


def pytest_configure(config):
    """Keep what is compiled in a temporary folder, never in the user's. The first process makes it and removes it."""
    if COMPILED not in os.environ:
        folder = tempfile.TemporaryDirectory(prefix="tests_compiled_")
        os.environ[COMPILED] = folder.name
        config.add_cleanup(lambda: (os.environ.pop(COMPILED), folder.cleanup()))
    os.environ["JAX_COMPILATION_CACHE_DIR"] = os.environ[COMPILED]
    jax.config.update("jax_compilation_cache_dir", os.environ[COMPILED])
    # The many small programs take most of the time together.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


LONGEST = ("examples", "runs", "models")
"""Folders whose files take longest. They come first, so that the workers end together."""


def pytest_collection_modifyitems(items):
    """Order the tests by folder. Within a folder they keep their order."""
    items.sort(key=lambda item: LONGEST.index(item.path.parent.name) if item.path.parent.name in LONGEST else 3)


@pytest.fixture(scope="module", autouse=True)
def _nothing_compiled_is_kept():
    """A process has a limited number of memory maps, and every compiled program takes some. The folder keeps it."""
    yield
    jax.clear_caches()


@pytest.fixture
def unchecked_types():
    """Annotations are not compared with arguments, where the code's own refusal of a wrong type is the claim."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


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


@pytest.fixture
def empty_figures(monkeypatch):
    """The figures of a run are drawn, but their files are empty: writing takes long. Other tests read the files."""
    monkeypatch.setattr("runs.run.save", lambda _, path: path.write_bytes(b""))
