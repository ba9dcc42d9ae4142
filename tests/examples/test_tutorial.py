"""The notebook runs from its first cell to its last, and is kept without outputs."""

from pathlib import Path

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).resolve().parents[2] / "examples" / "tutorial.ipynb"


def test_the_notebook_has_no_outputs():
    for cell in nbformat.read(NOTEBOOK, as_version=4).cells:
        assert cell.get("outputs", []) == [], cell.source
        assert cell.get("execution_count") is None, cell.source


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """A folder with the runs of the notebook, and the outputs of its cells. The trainings have 4 steps."""
    folder = tmp_path_factory.mktemp("tutorial")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    (parameters,) = (cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", []))
    parameters.source = f"FOLDER, NUM_STEPS = Path({str(folder)!r}), 4"
    with pytest.MonkeyPatch.context() as patched:
        # Jupyter and IPython read and write nothing in the user's home.
        for variable in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR"):
            patched.setenv(variable, str(folder / variable))
        NotebookClient(notebook, resources={"metadata": {"path": str(NOTEBOOK.parent)}}, timeout=300).execute()
    return folder, [output for cell in notebook.cells for output in cell.get("outputs", [])]


@pytest.mark.slow
def test_the_notebook_runs(executed):
    folder, outputs = executed
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 4
    printed = "".join(output.get("text", "") for output in outputs)
    assert "gradient of the stiffness A, echoes against BPTT: relative difference" in printed
    assert (folder / "runs" / "two_waves" / "LinHRU_BPTT" / "seed_1" / "result.json").exists()


@pytest.mark.slow
def test_a_run_is_looked_into(executed, tmp_path, capsys, monkeypatch):
    monkeypatch.syspath_prepend(NOTEBOOK.parent)
    from inside_a_model import main

    run = executed[0] / "runs" / "two_waves" / "LinHRU_RHEL" / "seed_1"
    (before,), (after,) = main(["--run", str(run), "--output", str(tmp_path / "deep" / "inside.png")])
    assert (tmp_path / "deep" / "inside.png").read_bytes().startswith(b"\x89PNG")
    change = np.abs(after.frequency / before.frequency - 1)
    assert np.all((change > 0) & (change < 0.1))  # after 4 steps
    words = capsys.readouterr().out.split("largest change")[1].splitlines()[1].split()
    assert words[:3] == ["0", "8", f"{np.min(before.period):.3g},"]
    with pytest.raises(SystemExit, match=r"inside_a_model.py: error: .*absent/config.json: cannot be read"):
        main(["--run", str(tmp_path / "absent")])
