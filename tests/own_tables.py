"""A small set of your own as an array and as tables."""

import numpy as np
import pandas as pd

N, L, C = 12, 10, 2
RNG = np.random.default_rng(0)
X = RNG.normal(size=(N, L, C))
WORDS = np.where(np.arange(N) % 3 == 0, "walk", "run")


def long_table(x=X, labels=WORDS):
    """A row for each time step, in random order but for the first row of each series."""
    rows = [
        {"id": f"s{i}", "time": 0.1 * t, "a": series[t, 0], "b": series[t, 1], "label": label}
        for i, (series, label) in enumerate(zip(x, labels, strict=True))
        for t in range(len(series))
    ]
    table = pd.DataFrame(rows)
    mixed = pd.concat([table[table.time == 0], table[table.time > 0].sample(frac=1, random_state=0)])
    return mixed.reset_index(drop=True)


def wide_table(x=X, labels=WORDS):
    return pd.DataFrame(x[:, :, 0], columns=[f"t{t}" for t in range(x.shape[1])]).assign(label=labels)
