"""The examples run as their README lines say."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.slow
def test_echo_draws_its_figure_and_finds_no_error(tmp_path):
    command = [sys.executable, "examples/echo.py", "--output", str(tmp_path / "deep" / "echo.png")]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=300)
    assert (tmp_path / "deep" / "echo.png").read_bytes().startswith(b"\x89PNG")
    error = float(result.stdout.splitlines()[0].rsplit(":", 1)[1])
    assert 0 < error < 1e-10


@pytest.mark.slow
def test_a_unit_of_ones_own_trains_and_has_the_right_gradient(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    from custom_hamiltonian import main

    accuracy, largest_error = main(["--num_steps", "100", "--data_dir", str(tmp_path)])
    assert accuracy >= 0.9
    assert largest_error < 1e-3
    assert "springs" in capsys.readouterr().out
