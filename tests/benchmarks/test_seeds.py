"""benchmarks/seeds.py: the step of several seeds is one batched program, and its counts make a table."""

import collections
import re

import jax

from benchmarks import seeds
from benchmarks.accelerator import TINY
from benchmarks.step import problem
from models.rhel import RHEL


def test_more_seeds_make_larger_arrays_and_not_more_operations():
    """A loop over the seeds would have further loops, or further products."""

    def operations(number):
        options = problem("LinHRU", "SelfRegulationSCP1", **TINY | {"num_blocks": 1})
        step, *arguments = seeds.step_of_seeds(options, RHEL(scan="parallel"), number)
        program = jax.jit(step).lower(*arguments).as_text()
        return collections.Counter(re.findall(r"stablehlo\.(while|dot_general|tanh)", program))

    one, three = operations(1), operations(3)
    assert three == one
    assert one["dot_general"] > 10


def test_the_counts_of_the_numbers_of_seeds_make_a_table(monkeypatch, capsys):
    asked = []

    def counted(settings, algorithm, number, target, plugin):
        asked.append((settings["length"], type(algorithm).__name__, number, target))
        return {"kernels": str(240 + number)}

    monkeypatch.setattr(seeds, "counted", counted)
    assert seeds.main(["--dataset_name", "Heartbeat", "--model_name", "LinHRU", "--seeds", "1", "5"]) == 0
    assert asked == [(405, "RHEL", 1, "H100"), (405, "RHEL", 5, "H100")]
    table = capsys.readouterr().out.split("\n\n")[1].splitlines()
    assert table[0] == "| data set | model | algorithm | seeds | kernels |"
    assert table[2:] == ["| Heartbeat | LinHRU | RHEL | 1 | 241 |", "| Heartbeat | LinHRU | RHEL | 5 | 245 |"]
