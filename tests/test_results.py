"""The recorded runs of docs/results: small, complete, and what the tables of the docs say."""

import json
from pathlib import Path

import pytest

from common import tables
from runs.comparison import compare, read_runs
from runs.summary import cells

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs" / "results"
FILES = sorted(path for path in RESULTS.rglob("*") if path.is_file() and "summary" not in path.parts)


@pytest.fixture(scope="module")
def comparison():
    return compare(read_runs(RESULTS))


def test_only_results_and_learning_curves_are_kept_and_all_are_complete():
    assert {path.name for path in FILES} == {"result.json", "metrics.jsonl"}
    assert sum(path.stat().st_size for path in FILES) < 1_000_000
    for path in FILES:
        assert "/" not in path.read_text(encoding="utf-8"), f"{path} has a path of a machine"
    for path in (path for path in FILES if path.name == "result.json"):
        result = json.loads(path.read_text(encoding="utf-8"))
        assert result["status"] == "completed"
        steps = [json.loads(line)["step"] for line in (path.parent / "metrics.jsonl").read_text().splitlines()]
        assert (steps[-1], result["best_step"] in steps) == (result["steps"], True), path


def test_the_docs_have_the_table_of_these_runs(comparison):
    page = (ROOT / "docs" / "long-range.md").read_text(encoding="utf-8")
    lines = tables.markdown(cells(comparison)).splitlines()
    missing = [line for line in lines if line not in page and not line.startswith("| average of")]
    assert not missing


def test_the_readme_has_the_difference_on_10_000_test_images(comparison):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = comparison[(comparison["dataset"] == "FashionMNISTPermuted") & (comparison["pairs"] > 0)]
    assert rows["pairs"].max() >= 5
    for _, row in rows.iterrows():
        low, high = row["difference_low"], row["difference_high"]
        assert row["difference_samples"] == 10_000
        assert -1 < low < high < 1
        assert f"{row['difference_mean']:z.1f} [{low:z.1f}, {high:z.1f}]" in readme


@pytest.mark.parametrize("algorithm", ["RHEL", "BPTT"])
def test_the_page_on_the_reproduction_has_the_runs_of_the_published_size(algorithm):
    folder = RESULTS / "published_size" / "SelfRegulationSCP1" / f"LinHRU_{algorithm}" / "seed_2345"
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    lines = map(json.loads, (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    losses = {line["step"]: line["loss"] for line in lines}
    cells = [algorithm, *(f"{losses[step]:.4f}" for step in (20, 100, 200, 300, 500))]
    cells += [f"{100 * result['val_metric']:.1f} at {result['best_step']}", f"{100 * result['test_metric']:.1f}"]
    assert f"| {' | '.join(cells)} |" in (ROOT / "docs" / "reproduction.md").read_text(encoding="utf-8")
