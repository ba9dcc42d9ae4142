"""Folders of finished runs, as far as the comparison reads them."""

import json


def put(root, dataset, name, seed, test_metric=0.5, metric="accuracy", **fields):
    """A finished run, as far as it is read."""
    folder = root / dataset / name / f"seed_{seed}"
    folder.mkdir(parents=True)
    result = {"status": "completed", "seed": seed, "metric": metric, "test_metric": test_metric, **fields}
    (folder / "result.json").write_text(json.dumps(result))
    lines = [{"step": step, "train_loss": 1 / step, "val_metric": 0.5} for step in (2, 4)]
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return folder
