"""PPG-DaLiA's processed set: the recordings, one after the other, cut and written window by window."""

import platform
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from typing import BinaryIO

import numpy as np
from tqdm import tqdm

from common.files import sha256_of, write_json
from data_dir.fetching.recordings import SUBJECTS, Pickle, opened_source
from data_dir.folders import new_folder
from data_dir.names import PPG
from data_dir.pickles import read_members
from data_dir.processing import ppg
from data_dir.splits import PARTS
from data_dir.storage import DataError, processed_folder

COLLECTION = "PPG"
SEED = 2345
FILES = {"train": "train", "validation": "val", "test": "test"}


class RowWriter:
    """Writes a float32 array (n, *row_shape) in npy format into an open file, row by row, before n is known."""

    def __init__(self, file: BinaryIO, row_shape: tuple[int, ...]):
        self.row_shape, self.rows, self._file = row_shape, 0, file
        self._header_bytes = self._write_header()

    def append(self, row: np.ndarray) -> None:
        """Writes one row; raises DataError if it has another shape."""
        if row.shape != self.row_shape:
            raise DataError(f"{self._file.name}: a row of shape {row.shape} where {self.row_shape} is needed.")
        self._file.write(np.ascontiguousarray(row, dtype="<f4").data)
        self.rows += 1

    def finish(self) -> None:
        """Writes the number of rows into the header, which says 0 until then."""
        # numpy leaves space in the header for the first axis to grow.
        if self._write_header() != self._header_bytes:
            raise AssertionError(f"the header of {self._file.name} needs more bytes than before")
        self._file.flush()

    def _write_header(self) -> int:
        self._file.seek(0)
        header = {"descr": "<f4", "fortran_order": False, "shape": (self.rows, *self.row_shape)}
        np.lib.format.write_array_header_1_0(self._file, header)
        return self._file.tell()


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
    """Processes the recordings into processed/PPG/ppg and returns the content of dataset.json.

    ``window`` and ``stride`` count labels of 2 s. The folder appears in one piece. Raises DataError, naming file and
    cause, if subjects are missing, if a recording is not sound (see ``processing.ppg``), if a part gets no window, if
    the seed is negative, and if the folder cannot be written.
    """
    if seed < 0:
        raise DataError(f"seed {seed}: must be 0 or more.")
    row_shapes = {"X": (window * ppg.SAMPLES_PER_LABEL, len(ppg.CHANNELS)), "y": (window,)}
    described: dict[str, dict] = {}
    windows = {part: {"subject": [], "first_label": []} for part in PARTS}
    with ExitStack() as stack:
        pickles = stack.enter_context(opened_source(source_path))
        missing = sorted(set(subjects) - set(pickles))
        if missing:
            raise DataError(
                f"{source_path}: holds no S{{i}}/S{{i}}.pkl of the subject{'s' if len(missing) > 1 else ''} "
                f"{', '.join(f'S{i}' for i in missing)}. --subjects takes those that it holds: "
                f"{' '.join(map(str, sorted(pickles))) or 'none'}."
            )
        folder = stack.enter_context(new_folder(processed_folder(data_dir) / COLLECTION / PPG))
        writers = {
            (array, part): RowWriter(
                stack.enter_context(open(folder / f"{array}_{FILES[part]}.npy", "wb")), row_shapes[array]
            )
            for array in ("X", "y")
            for part in PARTS
        }
        for i in tqdm(subjects, desc="processing", unit="subject", disable=None if show_progress else True):
            described[f"S{i}"] = _add_subject(i, _read(pickles[i]), seed, window, stride, writers, windows)
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
    """Writes the windows of a recording and adds them to ``windows``; returns what dataset.json says of the subject.

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


def _read(pickle: Pickle) -> ppg.Recording:
    with pickle.opened() as file:
        wrist = [("signal", "wrist", name) for name in ppg.SIGNALS]
        *signals, heart_rate = read_members(file, pickle.label, [*wrist, ("label",)])
    try:
        return ppg.recording(dict(zip(ppg.SIGNALS, signals, strict=True)), heart_rate)
    except DataError as error:
        raise DataError(f"{pickle.label}: {error}") from error
