"""Readers: what is written comes back, for any shape, number and spelling that the formats allow."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from raw_files import ARFF_HEADER, ARFF_TRAIN

from data_dir.processing.merging import merge
from data_dir.processing.readers import read_raw

FLOAT32 = st.floats(width=32, allow_nan=False, allow_infinity=False)
LABEL = st.text("abcXYZ019_.-", min_size=1, max_size=6)
quick = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True
)


@st.composite
def series_sets(draw, gaps: bool = False):
    """(data with NaN for missing values and beyond the end, lengths, labels, class names)."""
    n, channels = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    lengths = np.array(draw(st.lists(st.integers(1, 5), min_size=n, max_size=n)))
    data = draw(arrays(np.float32, (n, int(lengths.max()), channels), elements=FLOAT32))
    names = draw(st.lists(LABEL, min_size=1, max_size=3, unique_by=str.lower))
    labels = draw(st.lists(st.sampled_from(names), min_size=n, max_size=n))
    if gaps:
        inner = draw(arrays(np.bool_, data.shape))
        inner[:, 0] = inner[np.arange(n), lengths - 1] = False  # The ends are there: they tell the length.
        data = np.where(inner, np.float32(np.nan), data)
    data[np.arange(data.shape[1]) >= lengths[:, None]] = np.nan
    return data, lengths, labels, names


def written(values: np.ndarray) -> str:
    return ",".join("?" if np.isnan(value) else repr(float(value)) for value in values)


def as_ts(data, lengths, labels, names) -> str:
    lines = [
        "# words",
        "@problemName toy",
        "@timeStamps false",
        "@univariate false",
        "@classLabel true " + " ".join(names),
    ]
    lines += ["@data"]
    for series, length, label in zip(data, lengths, labels, strict=True):
        lines.append(":".join([*(written(channel) for channel in series[:length].T), label]))
    return "\n".join(lines) + "\n"


def as_arff(data, lengths, labels, names) -> str:
    # arff knows no ends: shorter series end in missing values.
    head = "% words\n@relation toy\n@attribute r relational\n@attribute v numeric\n@end r\n"
    head += "@attribute class {" + ",".join(names) + "}\n@data\n"
    rows = (
        "'" + "\\n".join(written(channel) for channel in series.T) + f"',{label}\n"
        for series, label in zip(data, labels, strict=True)
    )
    return head + "".join(rows)


@pytest.mark.parametrize(("write", "suffix"), [(as_ts, "ts"), (as_arff, "arff")])
@pytest.mark.parametrize("gaps", [False, True])
def test_what_is_written_comes_back(tmp_path, write, suffix, gaps):
    path = tmp_path / f"toy.{suffix}"

    @quick
    @given(series_sets(gaps))
    def check(written_set):
        data, lengths, labels, names = written_set
        path.write_text(write(data, lengths, labels, names))
        raw = read_raw(path)
        assert raw.data.dtype == np.float32
        np.testing.assert_array_equal(raw.data, data)
        assert raw.lengths.tolist() == lengths.tolist()
        assert raw.labels.tolist() == labels
        within = np.arange(data.shape[1]) < lengths[:, None]
        assert raw.missing == np.isnan(data[within]).sum()
        assert raw.of_equal_length == (len(set(lengths.tolist())) == 1)

    check()


def test_the_spellings_of_other_programs_are_read(tmp_path):
    """A byte order mark, tabs, comments and empty lines behind @data: the series are the same."""
    text = (
        "@problemName toy\n@timeStamps\tfalse\n@classLabel\ttrue\ta b\n@data\n1,\t2 :3,4\t:a\n\n# no row\n5,6:?,8: b \n"
    )
    path = tmp_path / "toy.ts"
    path.write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    raw = read_raw(path)
    np.testing.assert_array_equal(raw.data, [[[1, 3], [2, 4]], [[5, np.nan], [6, 8]]])
    assert raw.labels.tolist() == ["a", "b"]
    assert raw.header_differs == []
    path = tmp_path / "toy.arff"
    text = ARFF_HEADER + "% no row\n" + ARFF_TRAIN.replace("\n'", "\n\n% none\n'")
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert read_raw(path).data.shape == (2, 3, 2)


def test_counts_of_the_header_are_compared(tmp_path):
    path = tmp_path / "toy.ts"
    head = "@univariate true\n@dimensions 3\n@seriesLength 2\n@classLabel true a\n@data\n"
    path.write_text(head + "1,2,3:4,5,6:a\n")
    assert read_raw(path).header_differs == [
        "the header says dimensions 3, the series have 2 channels",
        "the header says seriesLength 2, the series have 3 time steps",
        "the header says univariate true, the series have 2 channels",
    ]
    (tmp_path / "more.ts").write_text(head.replace("2", "3").replace("true\n@", "false\n@") + "1,2,3:4,5,6:4,5,6:a\n")
    assert read_raw(tmp_path / "more.ts").header_differs == []


def test_merging_keeps_every_series_once_with_its_class(tmp_path):
    @quick
    @given(series_sets(), st.integers(0, 3))
    def check(written_set, repeated):
        data, lengths, labels, names = written_set
        names = [*names, "another"]
        again = np.arange(len(data)) < repeated
        texts = []
        for rows, extra in ((np.ones(len(data), dtype=bool), False), (again, True)):
            part = [*np.flatnonzero(rows)]
            block = np.concatenate([data[part], np.full((1, *data.shape[1:]), 7, np.float32)]) if extra else data[part]
            sizes = [*lengths[part], data.shape[1]] if extra else lengths[part]
            texts.append(as_ts(block, sizes, [labels[row] for row in part] + ["another"] * extra, names))
        for text, name in zip(texts, ("train", "test"), strict=True):
            (tmp_path / f"{name}.ts").write_text(text)
        train, test = read_raw(tmp_path / "train.ts"), read_raw(tmp_path / "test.ts")
        merged = merge(train, test, unequal_length="pad")
        everything = {}
        for raw in (train, test):
            for series, length, label in zip(raw.data, raw.lengths, raw.labels, strict=True):
                everything.setdefault((series[:length] + np.float32(0)).tobytes(), []).append(str(label))
        kept = [
            (series[:length] + np.float32(0)).tobytes()
            for series, length in zip(merged.data, merged.lengths, strict=True)
        ]
        assert sorted(kept) == sorted(everything)
        assert [merged.class_names[row] for row in merged.classes] == [everything[key][0] for key in kept]
        assert merged.duplicates == len(train.data) + len(test.data) - len(kept)
        assert sorted(np.concatenate(merged.original).tolist()) == list(range(len(kept)))
        assert merged.class_names == sorted({label for found in everything.values() for label in found})

    check()
