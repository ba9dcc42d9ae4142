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
