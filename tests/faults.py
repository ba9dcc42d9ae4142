"""Shows that the tests see faults: seeds one at a time in a copy of the tree, and runs the tests that should fail.

    make faults                            all of them; the exit status is 1 if a fault is not caught
    python tests/faults.py --only echo     those whose name or file contains the word
    python tests/faults.py --check         only looks whether each text to replace occurs exactly once

The copy has no processed data, so that no fault is left to a test that is skipped without a download. The tests must
pass before a fault is seeded; a fault is caught if a test then fails. A test that cannot be imported, is skipped or
takes over `TIME_LIMIT_S` catches nothing.
"""

import argparse
import os
import queue
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
ROWS = Path(__file__).with_name("faults.txt")
TIME_LIMIT_S = 600
_LEFT_OUT = (".*", "__pycache__", "outputs", "raw", "processed", "*.egg-info", "build")


class Fault(NamedTuple):
    """One fault: a text in a file, what replaces it, and the tests that see it."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


class Outcome(NamedTuple):
    """What became of a fault."""

    verdict: str  # "caught", "NOT CAUGHT", or what is wrong with the row
    seconds: float
    failure: str  # the test that failed, and how


def read_faults(text: str) -> list[Fault]:
    """The faults of a text, in the form of faults.txt."""
    faults, file, lines = [], "", {}
    for line in text.splitlines():
        kind, rest = line[:4], line[4:]
        if line.startswith("== "):
            file = line[3:]
        elif kind in ("  - ", "  + ", "  ! "):
            lines[kind[2]].append(rest)
        elif line and file:
            lines = {"-": [], "+": [], "!": []}
            faults.append((line, file, lines))
    return [
        Fault(name, file, "\n".join(lines["-"]), "\n".join(lines["+"]), tuple(lines["!"]))
        for name, file, lines in faults
    ]


def occurrences(fault: Fault, root: Path = ROOT) -> int:
    """How often the text to replace occurs in the file."""
    path = root / fault.file
    return path.read_text(encoding="utf-8").count(fault.old) if path.is_file() else 0


def run_tests(tree: Path, tests: tuple[str, ...], *flags: str) -> tuple[int, str]:
    """Exit status of pytest in a tree, and what it printed. 124 if it took too long."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "--tb=line", *flags]
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        done = subprocess.run(
            [*command, *(f"tests/{test}" for test in tests)],
            cwd=tree,
            env=environment,
            capture_output=True,
            text=True,
            timeout=TIME_LIMIT_S,
        )
    except subprocess.TimeoutExpired:
        return 124, f"longer than {TIME_LIMIT_S} s"
    return done.returncode, done.stdout + done.stderr


def seeded(fault: Fault, tree: Path) -> Outcome:
    """Seed a fault in a tree, run its tests, and take it out again."""
    path = tree / fault.file
    sound = path.read_text(encoding="utf-8")
    path.write_text(sound.replace(fault.old, fault.new), encoding="utf-8")
    start = time.perf_counter()
    try:
        status, output = run_tests(tree, fault.tests, "-x")
    finally:
        path.write_text(sound, encoding="utf-8")
    failed = re.search(r"^FAILED tests/(?:\S*/)?\S*?::(.*)$", output, re.MULTILINE)
    if status == 1 and failed:
        return Outcome("caught", time.perf_counter() - start, failed[1])
    reasons = {0: "NOT CAUGHT", 124: "NOT CAUGHT in time"}
    last = output.strip().splitlines()[-1:] or [""]
    return Outcome(reasons.get(status, f"NO TEST RAN (status {status})"), time.perf_counter() - start, last[0])


def broken_rows(faults: list[Fault]) -> list[str]:
    """What makes rows unusable."""
    lines = [
        f"{fault.name}: the text occurs {count} times in {fault.file}, not once: {fault.old!r}"
        for fault in faults
        if (count := occurrences(fault)) != 1
    ]
    names = [fault.name for fault in faults]
    return lines + [f"{name}: two faults have this name" for name in sorted({n for n in names if names.count(n) > 1})]


def in_copies(jobs: int, work, items: list) -> list:
    """`work(item, tree)` for all items, in order, on as many copies of the tree as there are jobs."""
    with tempfile.TemporaryDirectory(prefix="faults_") as scratch, ThreadPoolExecutor(jobs) as pool:
        trees: queue.Queue = queue.Queue()
        for number in range(jobs):
            tree = Path(scratch, f"tree_{number}")
            shutil.copytree(ROOT, tree, ignore=_ignored, symlinks=True)
            trees.put(tree)
        # One folder for what is compiled: most programs are the same with and without a fault.
        os.environ.setdefault("TESTS_COMPILED_FOLDER", str(Path(scratch, "compiled")))

        def in_one(item):
            tree = trees.get()
            try:
                return work(item, tree)
            finally:
                trees.put(tree)

        return list(pool.map(in_one, items))


def _ignored(folder, names):
    # data_dir/processing is code, data_dir/processed is data.
    return shutil.ignore_patterns(*_LEFT_OUT)(folder, names)


def baseline(faults: list[Fault], jobs: int) -> list[str]:
    """The tests that fail, or do not run, without any fault."""
    tests = sorted({test for fault in faults for test in fault.tests})
    files: dict[str, list[str]] = {}
    for test in tests:
        files.setdefault(test.split("::")[0], []).append(test)

    def of_file(tests, tree):
        status, output = run_tests(tree, tuple(tests), "-rs")
        skipped = re.findall(r"^SKIPPED.*$", output, re.MULTILINE)
        return [] if status == 0 and not skipped else [f"{tests[0].split('::')[0]}: {output[-2000:]}"]

    return [line for lines in in_copies(jobs, of_file, list(files.values())) for line in lines]


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", metavar="WORD", help="only faults whose name or file contains it")
    parser.add_argument("--jobs", type=int, default=2, help="trees that are tested at a time")
    parser.add_argument("--check", action="store_true", help="only look for the texts to replace")
    parser.add_argument("--no_baseline", action="store_true", help="do not run the tests without a fault first")
    options = parser.parse_args()
    faults = read_faults(ROWS.read_text(encoding="utf-8"))
    faults = [fault for fault in faults if options.only in fault.name or options.only in fault.file]
    broken = broken_rows(faults)
    if broken or options.check or not faults:
        print("\n".join(broken) or f"{len(faults)} faults, each with its text exactly once.")
        return 1 if broken or not faults else 0
    start = time.perf_counter()
    failing = [] if options.no_baseline else baseline(faults, options.jobs)
    if failing:
        print("Without a fault these tests fail or are skipped:", *failing, sep="\n")
        return 1

    def row(fault, tree):
        outcome = seeded(fault, tree)
        print(f"{fault.name:52} {fault.file:34} {outcome.verdict:10} {outcome.seconds:6.1f} s  {outcome.failure[:110]}")
        sys.stdout.flush()
        return outcome

    print(f"{'fault':52} {'file':34} {'verdict':10} {'time':>8}  the test that failed, and how")
    outcomes = in_copies(options.jobs, row, faults)
    missed = [fault.name for fault, outcome in zip(faults, outcomes, strict=True) if outcome.verdict != "caught"]
    print(
        f"{len(faults) - len(missed)} of {len(faults)} faults caught in {time.perf_counter() - start:.0f} s."
        + (f" NOT CAUGHT: {', '.join(missed)}" if missed else "")
    )
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
