import json

import pytest

from gradient_comparison_bptt_rhel import main

TINY = ["--num_blocks", "2", "--hidden_dim", "4", "--ssm_dim", "3", "--sequence_length", "40", "--batch_size", "2"]


@pytest.mark.slow
def test_comparison_on_the_bundled_set_end_to_end(tmp_path, capsys):
    arguments = [*TINY, "--data_dir", str(tmp_path / "data"), "--output_dir", str(tmp_path / "out")]
    assert main([*arguments, "--epsilon", "0.01", "0.1"]) == 0
    captured = capsys.readouterr()
    assert "SelfRegulationSCP1 is not processed" in captured.err
    assert "NonlinHRU, 2 blocks, BasicMotions, 2 x 40 x 7" in captured.out
    for stem in ("LinHRU", "NonlinHRU", "epsilon"):
        assert (tmp_path / "out" / f"{stem}.png").read_bytes().startswith(b"\x89PNG")
        assert (tmp_path / "out" / f"{stem}.pdf").read_bytes().startswith(b"%PDF")
    report = json.loads((tmp_path / "out" / "gradient_comparison.json").read_text())
    assert report["dataset"] == "BasicMotions"
    for row in report["rows"]:
        exact = row["dtype"] == "float64" and row["model"] == "LinHRU"
        nudged = row["learning_algorithm"] == "RHEL" and row["model"] == "NonlinHRU"
        assert row["relative_error"] < (1e-12 if exact else 0.1 if nudged else 1e-4), row
        assert row["finite_differences"] < 1e-3, row
    names = {(row["parameter"], row["block"]) for row in report["rows"] if row["model"] == "NonlinHRU"}
    assert {("W_diag", 0), ("step", 1), ("encoder.weight", None), ("glu.w2.bias", 1)} <= names


def test_unknown_data_set_is_one_clear_line(tmp_path, capsys):
    assert main(["--dataset_name", "BasicMotion", "--data_dir", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert "BasicMotions" in error
