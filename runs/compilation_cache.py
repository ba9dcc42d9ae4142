"""Keep compiled programs on disk for the next start. For the scripts only.

A kept program computes the same, to the last bit. jax distinguishes programs, versions, flags and processors, so one
folder serves all of them.
"""

import argparse
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

OFF = "none"


def add_flag(parser: argparse.ArgumentParser) -> None:
    """Add --compilation_cache, whose value is for `enabled`."""
    parser.add_argument(
        "--compilation_cache",
        default=default_folder(),
        metavar="DIR",
        help=f"folder or URL that keeps compiled programs for the next start, {OFF} for none (default: %(default)s)",
    )


def default_folder() -> str:
    """The folder in JAX_COMPILATION_CACHE_DIR, else rhel/jax in the user's cache directory."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return os.environ.get("JAX_COMPILATION_CACHE_DIR") or os.path.join(base, "rhel", "jax")


@contextmanager
def enabled(folder: str) -> Iterator[None]:
    """Within the block, jax keeps compiled programs in a folder. If it cannot be written, a line on stderr says so."""
    import jax
    from jax.experimental.compilation_cache.compilation_cache import reset_cache

    # By default, jax keeps only what takes a second to compile. A run has about fifty small programs.
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
    if folder == OFF:
        return None
    if "://" in folder:  # jax opens URLs such as gs://bucket/folder itself
        return folder
    try:
        Path(folder).mkdir(mode=0o700, parents=True, exist_ok=True)  # whoever can write there can have programs run
        if not os.access(folder, os.W_OK):
            raise PermissionError(13, "Permission denied")
    except OSError as error:
        print(
            f"Compiled programs are not kept: {folder}: {error.strerror} "
            f"(--compilation_cache names another folder, or {OFF}).",
            file=sys.stderr,
        )
        return None
    return folder
