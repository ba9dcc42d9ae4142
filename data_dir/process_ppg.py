"""From PPG-DaLiA's recordings to processed arrays.

    python data_dir/process_ppg.py [--source ZIP_OR_FOLDER] [--data_dir DIR] [--raw_dir DIR]
                                   [--seed N] [--subjects N ...]

The data set is fetched by hand: "PPG-DaLiA" in the machine learning repository of UCI (archive.ics.uci.edu, data set
495, a zip of 2.7 GB). Its zip, or the folder PPG_FieldStudy in it, goes to raw/, or anywhere with --source. Written is
processed/PPG/ppg/{X,y}_{train,val,test}.npy, X (n, 49920, 6) and y (n, 390) float32, which are memory-mapped when they
are used, and dataset.json. Per subject the recording is cut into three contiguous pieces, in an order that --seed
draws; see ``data_dir.processing.ppg``. Subjects are processed one by one.
"""

import argparse
import platform
import shutil
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import BinaryIO

if not __package__:  # Run as a script: Python put this folder on the path, the imports below want the one above.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from tqdm import tqdm

from common.files import sha256_of, write_json
from common.folders import scratch_folder
from data_dir.fetching.archives import opened_zip
from data_dir.names import PPG
from data_dir.pickles import read_members
from data_dir.processing import ppg
from data_dir.processing.rows import RowWriter
from data_dir.splits import PARTS
from data_dir.storage import DataError, add_folder_options, new_folder, processed_folder

COLLECTION = "PPG"
FOLDER = "PPG_FieldStudy"
SUBJECTS = tuple(range(1, 16))
SEED = 2345
FILES = {"train": "train", "validation": "val", "test": "test"}
# The largest pickle of the data set has 1 GB.
MAX_PICKLE_BYTES = 4 * 2**30
# The zip in the zip of UCI has 2.7 GB.
MAX_INNER_BYTES = 8 * 2**30
_BY_HAND = (
    "PPG-DaLiA is fetched by hand: data set 495 of archive.ics.uci.edu (2.7 GB). Put its zip, or the folder "
    f"{FOLDER} in it, into {{raw}}, or name either with --source."
)


def find_source(raw_dir: Path) -> Path:
    """PPG_FieldStudy in ``raw_dir``, or else a zip there with ppg in its name. Raises DataError if there is neither."""
    found = [raw_dir / FOLDER] if (raw_dir / FOLDER).is_dir() else []
    found += sorted(path for path in raw_dir.glob("*.zip") if "ppg" in path.name.lower())
    if not found:
        raise DataError(f"{raw_dir}: holds no {FOLDER}. " + _BY_HAND.format(raw=raw_dir))
    return found[0]


class FolderSource:
    """The pickles S{i}/S{i}.pkl in a folder."""

    def __init__(self, path: Path):
        self.path = path / FOLDER if (path / FOLDER).is_dir() else path

    def subjects(self) -> set[int]:
        """The subjects whose pickle is there."""
        return {i for i in SUBJECTS if self._file(i).is_file()}

    @contextmanager
    def opened(self, subject: int) -> Iterator[BinaryIO]:
        """The pickle of a subject."""
        with open(self._file(subject), "rb") as file:
            yield file

    def label(self, subject: int) -> str:
        """What messages call the pickle."""
        return str(self._file(subject))

    def _file(self, subject: int) -> Path:
        return self.path / f"S{subject}" / f"S{subject}.pkl"


class ZipSource:
    """The pickles S{i}/S{i}.pkl in an open zip, read from it without being unpacked."""

    def __init__(self, path: Path, zip_file):
        self.path = path
        self._zip = zip_file
        self._members = {}
        for member in zip_file.namelist():
            parts = PurePosixPath(member).parts
            for i in SUBJECTS:
                if parts[-2:] == (f"S{i}", f"S{i}.pkl"):
                    self._members[i] = member

    def subjects(self) -> set[int]:
        """The subjects whose pickle is in the zip."""
        return set(self._members)

    @contextmanager
    def opened(self, subject: int) -> Iterator[BinaryIO]:
        """The pickle of a subject. Raises DataError if it unpacks to over ``MAX_PICKLE_BYTES``."""
        member = self._zip.getinfo(self._members[subject])
        if member.file_size > MAX_PICKLE_BYTES:
            raise DataError(f"{self.label(subject)}: unpacks to over {MAX_PICKLE_BYTES} bytes.")
        with self._zip.open(member) as file:
            yield file
            while file.read(2**20):  # The checksum is compared at the end.
                pass

    def label(self, subject: int) -> str:
        """What messages call the pickle."""
        return f"{self.path}, member {self._members[subject]}"


@contextmanager
def opened_source(path: Path) -> Iterator[FolderSource | ZipSource]:
    """A folder or a zip of recordings; a zip may hold one other zip that holds them."""
    if path.is_dir():
        yield FolderSource(path)
        return
    if not path.is_file():
        raise DataError(f"{path}: no such file or folder.")
    with ExitStack() as stack:
        zip_file = stack.enter_context(opened_zip(path))
        source = ZipSource(path, zip_file)
        inner = [member for member in zip_file.namelist() if member.lower().endswith(".zip")]
        if not source.subjects() and len(inner) == 1:
            if zip_file.getinfo(inner[0]).file_size > MAX_INNER_BYTES:
                raise DataError(f"{path}, member {inner[0]!r}: unpacks to over {MAX_INNER_BYTES} bytes.")
            temporary = stack.enter_context(scratch_folder(path.parent / "ppg"))
            with zip_file.open(inner[0]) as packed, open(temporary / "inner.zip", "wb") as unpacked:
                shutil.copyfileobj(packed, unpacked, 2**20)
            source = ZipSource(path / inner[0], stack.enter_context(opened_zip(temporary / "inner.zip")))
        yield source


def process_ppg(
    source_path: Path,
    data_dir: str | Path,
    *,
    seed: int = SEED,
    subjects: tuple[int, ...] = SUBJECTS,
    window: int = ppg.WINDOW_LABELS,
    stride: int = ppg.STRIDE_LABELS,
    show_progress: bool = False,
) -> dict:
    """Processes the recordings into processed/PPG/ppg and returns what dataset.json says of them.

    ``window`` and ``stride`` count labels of 2 s. The folder appears in one piece. Raises DataError, naming file and
    cause, if subjects are absent, if a recording is not sound (see ``processing.ppg``), if a part gets no
    window, if the seed is negative, and if something cannot be written.
    """
    if seed < 0:
        raise DataError(f"seed {seed}: must be 0 or more.")
    row_shapes = {"X": (window * ppg.SAMPLES_PER_LABEL, len(ppg.CHANNELS)), "y": (window,)}
    described: dict[str, dict] = {}
    windows = {part: {"subject": [], "first_label": []} for part in PARTS}
    with ExitStack() as stack:
        source = stack.enter_context(opened_source(source_path))
        absent = sorted(set(subjects) - source.subjects())
        if absent:
            raise DataError(
                f"{source_path}: holds no S{{i}}/S{{i}}.pkl of the subject{'s' if len(absent) > 1 else ''} "
                f"{', '.join(f'S{i}' for i in absent)}. --subjects goes on with those that are there: "
                f"{' '.join(map(str, sorted(source.subjects()))) or 'none'}."
            )
        folder = stack.enter_context(new_folder(processed_folder(data_dir) / COLLECTION / PPG))
        writers = {
            (array, part): RowWriter(
                stack.enter_context(open(folder / f"{array}_{FILES[part]}.npy", "wb")), row_shapes[array]
            )
            for array in ("X", "y")
            for part in PARTS
        }
        for subject in tqdm(subjects, desc="processing", unit="subject", disable=None if show_progress else True):
            described[f"S{subject}"] = _add_subject(
                subject, _read(source, subject), seed, window, stride, writers, windows
            )
        for (_, part), writer in writers.items():
            if writer.rows == 0:
                raise DataError(
                    f"{source_path}: the {part} part gets no window of {window} labels; the recordings are too short."
                )
            writer.finish()
        files = sorted(folder.glob("*.npy"))
        info = {
            "name": PPG,
            "source": str(source_path),
            "processed_files": {file.name: {"sha256": sha256_of(file), "bytes": file.stat().st_size} for file in files},
            "n_samples": {part: len(windows[part]["subject"]) for part in PARTS},
            "length": row_shapes["X"][0],
            "channels": len(ppg.CHANNELS),
            "channel_names": ppg.CHANNELS,
            "output_step": ppg.SAMPLES_PER_LABEL,
            "stride_labels": stride,
            "seed": seed,
            "subjects": described,
            "windows": windows,
            "versions": {"python": platform.python_version(), "numpy": version("numpy")},
        }
        write_json(folder / "dataset.json", info)
    return info


def _add_subject(
    subject: int,
    whole: ppg.Recording,
    seed: int,
    window: int,
    stride: int,
    writers: dict[tuple[str, str], RowWriter],
    windows: dict[str, dict[str, list[int]]],
) -> dict:
    """Cuts a recording, writes its windows and notes them in ``windows``; returns what dataset.json says of it.

    A function of its own, so that no window keeps one recording in memory while the next is read.
    """
    order = ppg.order_of(subject, seed)
    cut = ppg.pieces(len(whole.labels), order)
    starts = {part: ppg.window_starts(cut[part], window, stride) for part in PARTS}
    for part in PARTS:
        for start in starts[part]:
            samples, labels = ppg.cut_window(whole, start, window)
            writers["X", part].append(samples)
            writers["y", part].append(labels)
            windows[part]["subject"].append(subject)
            windows[part]["first_label"].append(start)
    return {
        "labels": len(whole.labels),
        "order": order,
        "pieces": cut,
        "ranges": whole.ranges,
        "windows": {part: len(starts[part]) for part in PARTS},
    }


def _read(source: FolderSource | ZipSource, subject: int) -> ppg.Recording:
    label = source.label(subject)
    wrist = [("signal", "wrist", name) for name in ppg.SIGNALS]
    with source.opened(subject) as file:
        *signals, heart_rate = read_members(file, label, [*wrist, ("label",)])
    try:
        return ppg.recording(dict(zip(ppg.SIGNALS, signals, strict=True)), heart_rate)
    except DataError as error:
        raise DataError(f"{label}: {error}") from error


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(description="Process PPG-DaLiA for training.", epilog=_BY_HAND.format(raw="raw/"))
    parser.add_argument("--source", type=Path, help=f"the zip, or the folder {FOLDER}; default: what raw/ holds")
    parser.add_argument("--seed", type=int, default=SEED, help="draws the order of the pieces; default: %(default)s")
    parser.add_argument("--subjects", type=int, nargs="+", choices=SUBJECTS, metavar="N", default=list(SUBJECTS))
    add_folder_options(parser)
    options = parser.parse_args(arguments)
    try:
        source = options.source or find_source(options.raw_dir or options.data_dir / "raw")
        subjects = tuple(dict.fromkeys(options.subjects))
        info = process_ppg(source, options.data_dir, seed=options.seed, subjects=subjects, show_progress=True)
    except (DataError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    for subject, facts in info["subjects"].items():
        counts = ", ".join(f"{part} {count}" for part, count in facts["windows"].items())
        print(f"{subject}: {facts['labels']} labels, cut as {' - '.join(facts['order'])}; windows: {counts}")
    print(f"{processed_folder(options.data_dir) / COLLECTION / PPG}: " + ", ".join(map(str, info["n_samples"].items())))
    return 0


if __name__ == "__main__":
    sys.exit(main())
