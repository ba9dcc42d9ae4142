"""What jax has compiled is kept on disk, so that the next start need not compile it again. For the entry points alone.

Nothing is changed at import. jax names an entry by program, versions, flags and processor, so a folder can be shared by
all of them; what a kept program computes is the same to the last bit.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

OFF = "none"
_VARIABLE = "JAX_COMPILATION_CACHE_DIR"
_THRESHOLD = "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"


def add_flag(parser: argparse.ArgumentParser) -> None:
    """Add --compilation_cache, whose value is for `enabled`."""
    parser.add_argument(
        "--compilation_cache",
        default=default_folder(),
        metavar="DIR",
        help=f"folder that keeps what is compiled for the next start; {OFF} keeps nothing (default: %(default)s)",
    )


def default_folder() -> str:
    """The folder that jax's own variable names, else one in the user's cache directory; "none" without a home."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(base):  # unset, or to be ignored by the standard
        base = os.path.join(os.path.expanduser("~"), ".cache")
    in_home = os.path.join(base, "rhel", "jax") if os.path.isabs(base) else OFF
    return os.environ.get(_VARIABLE) or in_home


@contextmanager
def enabled(folder: str) -> Iterator[None]:
    """Within the block, keep what is compiled in a folder, and take it from there. "none" keeps nothing.

    A folder that cannot be written is named in a line on stderr, and nothing is kept.
    """
    import jax
    from jax.experimental.compilation_cache.compilation_cache import reset_cache

    options = {"jax_compilation_cache_dir": _usable(folder)}
    if _THRESHOLD not in os.environ:
        # By default only what takes a second to compile; but the fifty small programs of a run take seconds together.
        options["jax_persistent_cache_min_compile_time_secs"] = 0.0
    before = {name: getattr(jax.config, name) for name in options}

    def configure(options):
        for name, value in options.items():
            jax.config.update(name, value)
        reset_cache()  # jax looks at the folder once, at the first program

    configure(options)
    try:
        yield
    finally:
        configure(before)


def _usable(folder: str) -> str | None:
    if folder == OFF:
        return None
    if "://" in folder:  # jax can keep it in a bucket
        return folder
    try:
        # For the user alone: who can write there can have programs run.
        Path(folder).mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
        _drop_empty(Path(folder))
        return folder
    except OSError as error:
        print(
            f"Nothing compiled is kept: {folder}: {error.strerror} "
            f"(--compilation_cache names another folder, or {OFF}).",
            file=sys.stderr,
        )
        return None


def _drop_empty(folder: Path) -> None:
    """Remove the entries that a full disk left without a byte: jax would warn of each at every start, and keep it."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.endswith("-cache") and entry.is_file() and entry.stat().st_size == 0:
                os.unlink(entry.path)
