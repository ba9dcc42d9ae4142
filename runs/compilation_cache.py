"""Keep compiled programs on disk, so that the next start need not compile them again. For the scripts only.

A kept program computes the same, to the last bit. jax finds it by program, versions, flags and processor, so one folder
serves all of them.
"""

import argparse
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

OFF = "none"
_VARIABLE = "JAX_COMPILATION_CACHE_DIR"


def add_flag(parser: argparse.ArgumentParser) -> None:
    """Add --compilation_cache, whose value is for `enabled`."""
    parser.add_argument(
        "--compilation_cache",
        default=default_folder(),
        metavar="DIR",
        help=f"folder that keeps compiled programs for the next start, {OFF} for no folder (default: %(default)s)",
    )


def default_folder() -> str:
    """The folder in JAX_COMPILATION_CACHE_DIR, else one in the user's cache directory, else "none"."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(base):  # the standard says: ignore a relative path
        base = os.path.expanduser("~/.cache")
    in_home = os.path.join(base, "rhel", "jax") if os.path.isabs(base) else OFF  # a user without a home
    return os.environ.get(_VARIABLE) or in_home


@contextmanager
def enabled(folder: str) -> Iterator[None]:
    """Within the block, jax keeps compiled programs in a folder. If it cannot be written, a line on stderr says so."""
    import jax
    from jax.experimental.compilation_cache.compilation_cache import reset_cache

    # jax's default keeps only what takes a second to compile; the fifty small programs of a run take seconds together.
    options = {"jax_compilation_cache_dir": _usable(folder), "jax_persistent_cache_min_compile_time_secs": 0.0}
    before = {name: getattr(jax.config, name) for name in options}

    def set_options(values):
        for name, value in values.items():
            jax.config.update(name, value)
        reset_cache()  # jax reads the folder only once

    set_options(options)
    try:
        yield
    finally:
        set_options(before)


def _usable(folder: str) -> str | None:
    if folder == OFF or "://" in folder:  # jax can write to a bucket
        return None if folder == OFF else folder
    try:
        Path(folder).mkdir(mode=0o700, parents=True, exist_ok=True)  # whoever can write there can have programs run
        if not os.access(folder, os.W_OK):
            raise PermissionError(13, "Permission denied")
        return folder
    except OSError as error:
        print(
            f"Compiled programs are not kept: {folder}: {error.strerror} "
            f"(--compilation_cache names another folder, or {OFF}).",
            file=sys.stderr,
        )
        return None
