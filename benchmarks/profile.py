"""Where the time of a training step goes: `python benchmarks/profile.py --help`.

The script runs compiled steps under jax's profiler. It adds up the times of XLA's operations, by the function of this
repository that asked for them. A fused operation counts for the function that XLA names. A loop counts by its content.
On several cores, the sum of the times exceeds the time on the clock.
"""

import argparse
import re
import sys
import tempfile
from collections import Counter
from pathlib import Path

if not __package__:  # Run as a script: the imports below need the repository on the path, not this folder.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import jax
import pandas as pd

from benchmarks.step import ALGORITHMS, SHAPES, Program, problem
from experiment_configs import MODEL_NAMES

ROOT = Path(__file__).resolve().parent.parent


def times_by_operation(program: Program, steps: int) -> Counter:
    """Seconds per step of every event of the profiler, by name: mostly names of operations in the optimised HLO."""
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


def origins(hlo: str) -> dict[str, tuple[str, str]]:
    """Operation of an optimised HLO text -> (the innermost function of models/ or training/ behind it, the pass)."""
    files = {int(i): name for i, name in re.findall(r'^(\d+) "([^"]*)"$', _section(hlo, "FileNames"), re.M)}
    functions = {int(i): name for i, name in re.findall(r'^(\d+) "([^"]*)"$', _section(hlo, "FunctionNames"), re.M)}
    number = r"^(\d+) {file_name_id=(\d+) function_name_id=(\d+)"
    places = {int(i): (int(f), int(g)) for i, f, g in re.findall(number, _section(hlo, "FileLocations"), re.M)}
    number = r"^(\d+) {file_location_id=(\d+)(?: parent_frame_id=(\d+))?"
    frames = {int(i): (int(p), int(up or 1)) for i, p, up in re.findall(number, _section(hlo, "StackFrames"), re.M)}

    def origin(frame):
        while frame:
            place, parent = frames[frame]
            file, function = places[place]
            path = Path(files[file])
            # Parents are numbered from 1; 1 means that the frame has no parent.
            frame = parent - 1
            ours = path.is_relative_to(ROOT) and path.relative_to(ROOT).parts[0] in ("models", "training", "train.py")
            if ours and path.stem != "batching":
                return f"{path.relative_to(ROOT)} {functions[function].replace('.<locals>', '')}"
        return "elsewhere"

    found = {}
    pattern = r'^\s+(?:ROOT )?%([\w.\-]+) = .*?metadata={op_name="([^"]*)"(?: stack_frame_id=(\d+))?'
    for name, operation, frame in re.findall(pattern, hlo, re.M):
        found[name] = origin(int(frame or 0)), "backward" if "transpose(" in operation else "forward"
    return found


def _section(hlo: str, name: str) -> str:
    start = hlo.index(f"\n{name}\n")
    return hlo[start : hlo.index("\n\n", start)]


def profile(program: Program, steps: int) -> pd.DataFrame:
    """Milliseconds a step by function and pass, the largest first, and the share of the whole."""
    known = origins(program.compiled.compiled.as_text())
    loops = ("while", "conditional", "call")
    rows = [
        (*known.get(name, ("unknown", "")), 1e3 * seconds)
        for name, seconds in times_by_operation(program, steps).items()
        if re.fullmatch(r"[a-z][\w.\-]*", name) and not name.startswith(loops) and (name in known or "fusion" in name)
    ]
    table = pd.DataFrame(rows, columns=["function", "pass", "ms"]).groupby(["function", "pass"]).sum()
    table["share"] = table["ms"] / table["ms"].sum()
    return table.sort_values("ms", ascending=False)


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("--dataset_name", nargs="+", choices=SHAPES, metavar="NAME", help=", ".join(SHAPES))
    parser.add_argument("--model_name", nargs="+", choices=MODEL_NAMES, default=list(MODEL_NAMES))
    parser.add_argument("--algorithm", choices=ALGORITHMS, default="RHEL")
    parser.add_argument("--steps", type=int, default=3, help="steps under the profiler")
    parser.add_argument("--rows", type=int, default=15, help="functions shown")
    parser.set_defaults(dataset_name=["Heartbeat", "SelfRegulationSCP1", "EigenWorms"])
    options = parser.parse_args(argv)
    for dataset_name in options.dataset_name:
        for model_name in options.model_name:
            program = Program(problem(model_name, dataset_name), ALGORITHMS[options.algorithm])
            table = profile(program, options.steps)
            print(
                f"\n{dataset_name}, {model_name}, {options.algorithm}: {table['ms'].sum():.0f} ms of operations a step"
            )
            print(table.head(options.rows).to_string(float_format="{:.2f}".format), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
