"""Reading, processing and serving data: seconds and peak memory.

    python benchmarks/data.py raw NAME_OF_CASE     processes synthetic ts files of the size of a published set
    python benchmarks/data.py ppg                  processes synthetic PPG-DaLiA subjects, as large as the real ones
    python benchmarks/data.py batches              host batches of PPG's shape
    python benchmarks/data.py scp1 [--data_dir D]  processes and loads the real SelfRegulationSCP1

Every measurement runs in its own process, so that its peak memory is its own. The synthetic files are made in a
temporary folder (up to 1.5 GB) and removed.
"""

import argparse
import multiprocessing
import pickle
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

if not __package__:  # Run as a script: Python puts this folder on the path, the imports below need its parent.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

# Train and test series, time steps, channels, digits after the point, classes, as in the archive's files.
CASES = {
    "EigenWorms": (131, 128, 17984, 6, 6, 5),
    "MotorImagery": (278, 100, 3000, 64, 3, 2),
}
SCP1 = "SelfRegulationSCP1"
PPG_LABELS = 4500  # 2.5 hours


def write_ts(path: Path, n: int, length: int, channels: int, digits: int, classes: int) -> None:
    """Random walks in the archive's format."""
    rng = np.random.default_rng(n)
    with open(path, "w") as file:
        file.write("@problemName synthetic\n@timeStamps false\n@univariate false\n")
        file.write("@classLabel true " + " ".join(map(str, range(classes))) + "\n@data\n")
        for row in range(n):
            series = np.cumsum(rng.normal(scale=0.05, size=(channels, length)), axis=1)
            file.write(":".join(",".join(np.char.mod(f"%.{digits}f", channel)) for channel in series))
            file.write(f":{row % classes}\n")


def write_subject(path: Path, labels: int = PPG_LABELS) -> None:
    """A recording with all arrays of a real one, also those of the chest at 700 Hz."""
    rng = np.random.default_rng(0)
    rates = {"ACC": (32, 3), "BVP": (64, 1), "EDA": (4, 1), "TEMP": (4, 1)}
    wrist = {name: rng.normal(size=(labels * 2 * rate, columns)) for name, (rate, columns) in rates.items()}
    chest = {name: rng.normal(size=(labels * 1400, 1)) for name in ("ECG", "EMG", "EDA", "Temp", "Resp")}
    chest["ACC"] = rng.normal(size=(labels * 1400, 3))
    value = {"signal": {"wrist": wrist, "chest": chest}, "label": rng.normal(size=labels - 3), "subject": "S"}
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file:
        pickle.dump(value, file, protocol=2)


def process_raw(folder: Path, case: str) -> dict:
    """Seconds of one set from its ts files to its processed folder."""
    from data_dir.processing.uea import process_dataset, raw_files

    start = time.perf_counter()
    info = process_dataset(case, *raw_files(folder, case), folder)
    return {"seconds": time.perf_counter() - start, "shape": [info[key] for key in ("n_samples", "length", "channels")]}


def process_subjects(folder: Path, subjects: int) -> dict:
    """Seconds of some subjects, from pickles to windows."""
    from data_dir.processing.ppg_set import process_ppg

    start = time.perf_counter()
    info = process_ppg(folder / "raw" / "PPG_FieldStudy", folder, subjects=tuple(range(1, subjects + 1)))
    return {"seconds": time.perf_counter() - start, "windows": info["n_samples"]}


def draw_windows(folder: Path) -> dict:
    """Milliseconds that a step of 100 ms waits for its batch of 4, from memory-mapped windows of PPG's shape.

    The step is a sleep. It stands for an accelerator that computes while the host is free.
    """
    import jax

    from data_dir.datasets import create_dataset

    options = {"seed": 2345, "time": True, "classification": False, "output_step": 128}
    dataset = create_dataset(folder, "ppg", **options)
    batches = map(jax.device_put, dataset.train.loop(4, key=jax.random.key(0)))
    next(batches)
    waits = []
    for _ in range(50):
        time.sleep(0.1)
        start = time.perf_counter()
        jax.block_until_ready(next(batches))
        waits.append(1000 * (time.perf_counter() - start))
    return {"median wait, ms": float(np.median(waits)), "longest wait, ms": max(waits)}


def load(folder: Path) -> dict:
    """Seconds of create_dataset on SelfRegulationSCP1, and milliseconds of a batch."""
    import jax

    from data_dir.datasets import create_dataset

    start = time.perf_counter()
    dataset = create_dataset(folder, SCP1, seed=2345, time=True)
    loaded = time.perf_counter()
    batches = dataset.train.loop(32, key=jax.random.key(0))
    next(batches)
    begun = time.perf_counter()
    for _ in range(100):
        next(batches)
    return {"load, s": loaded - start, "a batch of 32, ms": 10 * (time.perf_counter() - begun)}


def with_peak_memory(run: Callable[..., dict], *arguments) -> dict:
    """The result of `run`, and the GB that this process had resident at most."""
    result = run(*arguments)
    # getrusage would count the memory of the parent, which made the files.
    (line,) = (x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmHWM"))
    return result | {"peak memory, GB": int(line.split()[1]) * 1024 / 1e9}


def report(run: Callable[..., dict], *arguments) -> None:
    """Run a measurement in a new process and print its result."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        result = pool.submit(with_peak_memory, run, *arguments).result()
    values = (
        f"{name} {value:.2f}" if isinstance(value, float) else f"{name} {value}" for name, value in result.items()
    )
    print(f"{run.__name__}: {', '.join(values)}")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("raw", "ppg", "batches", "scp1"))
    parser.add_argument("case", nargs="?", choices=CASES, default="EigenWorms", help="of raw; default: %(default)s")
    parser.add_argument("--data_dir", default="data_dir")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        raw = folder / "raw" / "UEA" / "Multivariate_ts"
        if options.what == "raw":
            train, test, *shape = CASES[options.case]
            (raw / options.case).mkdir(parents=True)
            write_ts(raw / options.case / f"{options.case}_TRAIN.ts", train, *shape)
            write_ts(raw / options.case / f"{options.case}_TEST.ts", test, *shape)
            print(f"files of {sum(file.stat().st_size for file in raw.rglob('*.ts')) / 1e6:.0f} MB")
            report(process_raw, folder, options.case)
        elif options.what == "scp1":
            from data_dir.processing.uea import raw_files

            (raw / SCP1).mkdir(parents=True)
            for file in raw_files(options.data_dir, SCP1) or parser.error(f"no raw files in {options.data_dir}"):
                (raw / SCP1 / file.name).symlink_to(file.resolve())
            report(process_raw, folder, SCP1)
            report(load, folder)
        else:
            for i in range(1, 4):
                write_subject(folder / "raw" / "PPG_FieldStudy" / f"S{i}" / f"S{i}.pkl")
            if options.what == "ppg":
                report(process_subjects, folder, 1)
            report(process_subjects, folder, 3)
            if options.what == "batches":
                report(draw_windows, folder)


if __name__ == "__main__":
    main()
