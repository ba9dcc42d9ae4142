"""Labels of any form as they are stored: classes as one-hot rows, or the numbers of a regression."""

from typing import Any, NamedTuple

import numpy as np

from data_dir.names import listed
from data_dir.scaling import label_map_of
from data_dir.storage import DataError

CLASSIFICATION, REGRESSION = "classification", "regression"
STEPS, OUTPUTS = "steps", "outputs"
# So many whole numbers, with fewer series for each, may be quantities.
_MANY, _FEW_SERIES = 10, 10


class Labels(NamedTuple):
    """The labels of a set as float32: one-hot (n, K), or (n, T) or (n, T, K) of a regression.

    ``class_names`` are None for a regression. ``findings`` say what was decided.
    """

    stored: np.ndarray
    class_names: list[str] | None
    findings: list[dict]

    @property
    def classes(self) -> np.ndarray:
        """The number of the class of each series (n,); 0 in a regression."""
        return self.stored.argmax(axis=1) if self.class_names is not None else np.zeros(len(self.stored), dtype=int)


def plain_labels(values: Any) -> np.ndarray:
    """Labels as an array of texts, truth values, integers or floats. Raises DataError for others, and missing ones."""
    if np.ma.is_masked(values):
        raise DataError("some labels are masked, that is missing. Leave these series out.")
    try:
        # Numbers among texts would become texts, and a missing label the class "nan".
        array = np.asarray(values, dtype=object) if isinstance(values, list | tuple) else np.asarray(values)
        kinds = {type(value) for value in array.flat} if array.dtype.kind == "O" else set()
        if kinds:
            array = np.asarray(array.tolist())
    except ValueError as error:
        raise DataError(f"the labels are lists of different lengths ({error}).") from error
    mixed = kinds and not any(all(issubclass(kind, text) for kind in kinds) for text in (str, bytes))
    if array.dtype.kind == "O" or (array.dtype.kind in "US" and mixed):
        types = ", ".join(sorted(kind.__name__ for kind in kinds))
        raise DataError(
            f"the labels are of several types: {types}. They must be all texts or all numbers. A missing label is "
            "None or NaN."
        )
    if array.dtype.kind == "S":
        array = np.char.decode(array, "utf-8")
    if array.dtype.kind not in "Ubiuf":
        raise DataError(f"the labels are {array.dtype}; needed are texts, whole numbers or floats.")
    if array.ndim == 0:
        raise DataError("there is one label for all series; needed is one for each.")
    bad = np.argwhere(array == "") if array.dtype.kind == "U" else np.argwhere(~np.isfinite(array))
    if len(bad):
        raise DataError(f"the label of series {bad[0][0]} (from 0) is missing or not finite.")
    if array.dtype.kind == "u" and array.max(initial=0) <= np.iinfo(np.int64).max:
        array = array.astype(np.int64)  # beside int64, numpy makes floats of uint64
    return array.reshape(len(array)) if array.ndim > 1 and array.size == len(array) else array


def stored_labels(values: np.ndarray, length: int, *, task: str | None = None, label_axis: str | None = None) -> Labels:
    """The labels as they are stored, of series of ``length`` time steps.

    Texts, truth values and whole numbers (n,), and one-hot rows of whole numbers (n, K), are classes; floats are a
    regression. ``task`` overrides this for numbers. Labels (n, m) of a regression are one for each of m equal
    ``STEPS``, or m ``OUTPUTS`` of a series; ``label_axis`` says which, unless m is ``length``. Raises DataError for
    labels that do not fit.
    """
    if task not in (None, CLASSIFICATION, REGRESSION):
        raise DataError(f"task {task!r}: must be {CLASSIFICATION} or {REGRESSION}.")
    if label_axis not in (None, STEPS, OUTPUTS):
        raise DataError(f"label_axis {label_axis!r}: must be {STEPS} or {OUTPUTS}.")
    is_text, whole = values.dtype.kind == "U", values.dtype.kind in "biu"
    if is_text and task == REGRESSION:
        raise DataError(f"the labels are texts, as {str(values.flat[0])!r}; a regression needs numbers.")
    one_hot = whole and values.ndim == 2 and _is_one_hot(values)
    if task is None:
        task = CLASSIFICATION if is_text or (whole and values.ndim == 1) or one_hot else REGRESSION
        findings = list(_decided(values, task, one_hot))
    else:
        findings = []
    if task == CLASSIFICATION:
        return _classes(values, findings)
    return _regression(values.astype(float), length, label_axis, findings)


def _decided(values: np.ndarray, task: str, one_hot: bool):
    """Findings about a choice that may be wrong."""
    text = ""
    if task == REGRESSION and np.array_equal(values, np.round(values)):
        text = f"whole numbers {'of shape ' + str(values.shape) if values.ndim > 1 else 'as floats'} are a regression"
        text += "; --task classification makes classes of them" if values.ndim == 1 else ""
    elif one_hot:
        text = f"labels of shape {values.shape} are one-hot rows, a class for each series; --task regression: numbers"
    elif values.dtype.kind in "iu" and max(_MANY, len(values) / _FEW_SERIES) < (classes := len(np.unique(values))):
        text = f"{classes} classes for {len(values)} series: is it a regression? Then --task regression"
    if text:
        yield {"kind": "task", "text": text}


def _is_one_hot(values: np.ndarray) -> bool:
    return values.shape[1] > 1 and bool(np.isin(values, (0, 1)).all() and np.all(values.sum(axis=1) == 1))


def _classes(values: np.ndarray, findings: list[dict]) -> Labels:
    if values.ndim == 2 and values.dtype.kind in "biuf" and _is_one_hot(values):
        values = values.argmax(axis=1)
    if values.ndim != 1:
        raise DataError(f"labels of shape {values.shape}: a classification has one class for each series.")
    if values.dtype.kind == "f":
        if np.any(values != np.round(values)) or np.any(np.abs(values) >= 2**53):
            raise DataError("the labels are floats with fractions, which are no classes; --task regression takes them.")
        values = values.astype(np.int64)
    names, classes = np.unique(values, return_inverse=True)
    if len(names) < 2:
        raise DataError(f"all series have the label {str(names[0])!r}; a set needs two classes at least.")
    return Labels(np.eye(len(names), dtype=np.float32)[classes], [str(name) for name in names], findings)


def _regression(values: np.ndarray, length: int, label_axis: str | None, findings: list[dict]) -> Labels:
    if values.ndim == 1:
        values = values[:, None]
    if values.ndim == 2 and values.shape[1] > 1:
        if label_axis is None and values.shape[1] != length:
            count = values.shape[1]
            raise DataError(
                f"labels of shape {values.shape}: {count} outputs of each series (--label_axis outputs), or one output "
                f"at each of {count} equal stretches of the {length} time steps (--label_axis steps)?"
            )
        values = values[:, None, :] if label_axis == OUTPUTS else values
    if values.ndim == 3 and values.shape[2] == 1:
        values = values[..., 0]
    if values.ndim not in (2, 3) or 0 in values.shape:
        raise DataError(f"labels of shape {values.shape}: must be (n,), (n, label steps) or (n, label steps, outputs).")
    steps = values.shape[1]
    if length % steps:
        fitting = listed([count for count in range(1, length + 1) if length % count == 0], 20)
        raise DataError(
            f"{length} time steps cannot carry {steps} labels at equal distances. The numbers that fit: {fitting}."
        )
    outputs = values.reshape(-1, values.shape[2] if values.ndim == 3 else 1)
    for number, column in enumerate(outputs.T):
        if np.abs(column).max() > np.finfo(np.float32).max:
            raise DataError(f"a label of output {number} is beyond the range of float32. Choose a larger unit.")
        if is_coarse(column):
            raise DataError(
                f"the labels of output {number} span {np.ptp(column):.3g} around {column.mean():.12g}, which float32 "
                "cannot resolve. Subtract an offset first."
            )
    stored = values.astype(np.float32)
    label_map_of([stored])  # refuses an output whose labels are all equal
    return Labels(stored, None, findings)


def is_coarse(values: np.ndarray) -> bool:
    """Whether float32 gives finite values, of whatever shape, fewer than a thousand levels in their range."""
    low, high = float(values.min(initial=np.inf)), float(values.max(initial=-np.inf))
    return high > low and float(np.spacing(np.float32(max(abs(low), abs(high))))) > 1e-3 * (high - low)
