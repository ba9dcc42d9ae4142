"""Where the time of a training step goes, line by line of the source: `python benchmarks/profile.py --help`.

Runs compiled steps under jax's profiler and adds up the time of every operation that XLA made of them by the line of
this repository that asked for it. An operation that was fused from several lines counts for the one that XLA names.
Loops count by what is inside them. On several threads the times add up to more than the clock shows.
"""

import sys
import tempfile
from collections import Counter
from pathlib import Path

if not __package__:  # Run as a script: Python put this folder on the path, the imports below want the one above.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import jax

from benchmarks.step import Program

ROOT = Path(__file__).resolve().parent.parent


def times_by_operation(program: Program, steps: int) -> Counter:
    """Seconds a step of every operation of the compiled program, by its name in the optimised HLO."""
    program.step(record=False)
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(steps):
                program.step(record=False)
        (path,) = Path(folder).rglob("*.xplane.pb")
        times: Counter = Counter()
        for plane in jax.profiler.ProfileData.from_file(str(path)).planes:
            for line in plane.lines:
                for event in line.events:
                    times[event.name] += event.duration_ns * 1e-9 / steps
    return times
