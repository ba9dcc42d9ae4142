"""Training with a machine in the loop: the losses, the passes and their order, and a machine that fails."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_training import OPTIONS, arrays, dataset, hru, same, spoilt

import train
from models.physics.in_the_loop import MachineInTheLoop
from models.physics.machine import Limits
from models.physics.numpy_leapfrog import NumpyLeapfrog
from models.rhel import BPTT, with_learning_algorithm

STEPS = 50
LONG = {**OPTIONS, "num_steps": STEPS, "print_steps": STEPS}


@dataclasses.dataclass
class Watched(NumpyLeapfrog):
    """The ideal machine. It notes its calls, wants numpy, and dies at a pass."""

    dies_at: int = 0

    def __post_init__(self):
        self.calls = []

    def _called(self, name, *arrays):
        self.calls.append(name)
        if self.dies_at and sum(call != "program" for call in self.calls) == self.dies_at:
            raise OSError("the cable is out")
        if not all(type(x) is np.ndarray for x in arrays):
            raise TypeError("a machine cannot be differentiated, mapped or compiled")

    def program(self, parameters):
        self._called("program", *parameters.values())
        super().program(parameters)

    def run(self, drives):
        self._called("run", drives)
        return super().run(drives)

    def echo(self, drives, nudges):
        self._called("echo", drives, nudges)
        return super().echo(drives, nudges)


@pytest.fixture(scope="module")
def algorithm():
    """One algorithm, and so one compiled program, for all tests."""
    return MachineInTheLoop(Watched(Limits(holds_state=True)), 1e-3)


def trained(algorithm, **options):
    """The result of a training on the machine, its losses and what it saved. The machine starts afresh."""
    machine = algorithm.operator.machine
    machine.calls, machine.dies_at = [], options.pop("dies_at", 0)
    algorithm.operator.reset()
    algorithm.operator.resume({})
    losses, saved = [], []

    def save(progress):
        saved.append((list(map(np.array, progress.arrays())), json.loads(json.dumps(progress.json_part()))))

    model, state = hru("NonlinHRU")
    model = with_learning_algorithm(model, algorithm)
    options = {**LONG, **options, "on_step": lambda step, loss: losses.append(loss), "on_checkpoint": save}
    try:
        return train.train(model, state, options.pop("data", None) or dataset(), **options), losses, saved
    except train.MachineFailure as failure:
        return failure, losses, saved


@pytest.fixture(scope="module")
def on_machine(algorithm):
    """The whole training, the calls of the machine and its record."""
    result, losses, _ = trained(algorithm, retrace=True)
    return result, losses, algorithm.operator.machine.calls, dataclasses.asdict(algorithm.operator.record)


def test_fifty_steps_on_the_machine_have_the_losses_of_fifty_steps_in_jax(on_machine):
    result, losses, _, _ = on_machine
    expected = []
    model, state = hru("NonlinHRU")
    model = with_learning_algorithm(model, BPTT())
    in_jax = train.train(model, state, dataset(), **LONG, on_step=lambda step, loss: expected.append(loss))
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    assert result.history[-1].retrace_error is None  # it is a property of the declared energy, not of the machine
    assert result.test_loss == pytest.approx(in_jax.test_loss, rel=1e-5)


def test_a_step_is_a_run_and_two_echoes_in_order_and_an_evaluation_a_run_for_each_batch(on_machine):
    _, _, calls, record = on_machine
    # Two batches of the training part and one of the validation part; then two of the test part, by the same model.
    evaluations = ["program", *["run"] * 3, *["run"] * 2]
    assert calls == ["program", "run", "echo", "echo"] * STEPS + evaluations
    counts = {name: record[name] for name in ("free_passes", "echoes", "repeated", "programmed")}
    assert counts == {"free_passes": STEPS + 5, "echoes": 2 * STEPS, "repeated": 0, "programmed": STEPS + 1}
    assert 0 < record["seconds"] < 60


def test_a_machine_that_dies_in_a_step_ends_the_training_with_the_step_before_it_saved(algorithm, on_machine):
    failure, losses, saved = trained(algorithm, dies_at=3 * 7 + 2)
    words = (
        "the machine failed in the training at step 8: echo failed: OSError: the cable is out (pass 23 of the machine)"
    )
    assert str(failure).startswith(f"{words}; rows ")
    assert (failure.step, failure.where, len(failure.rows)) == (8, "training", 8)
    assert losses == on_machine[1][:7]
    assert [part["step"] for _, part in saved] == [7]
    assert saved[0][1]["machines"][0]["echoes"] == 14
    result, losses, _ = trained(algorithm, resume=lambda fresh: fresh.restored(*saved[0]))
    assert losses == on_machine[1][7:]
    assert same(result.model, on_machine[0].model)
    assert algorithm.operator.record.echoes == 2 * STEPS


def test_a_machine_that_dies_in_an_evaluation_is_named_and_no_loss_is_taken_from_it(algorithm):
    failure, losses, saved = trained(algorithm, dies_at=3 * STEPS + 3)
    assert str(failure) == (
        "the machine failed in the evaluation of the validation set at step 50: run failed: OSError: the cable is out "
        "(pass 153 of the machine)"
    )
    assert (len(losses), saved, failure.rows) == (STEPS, [], None)


def test_a_failed_machine_is_told_from_steps_that_are_skipped_before_it(algorithm):
    """Steps 4 and 5 are skipped without a pass. Step 4 ends the first dispatch; 5, 6 and 7 are in the second."""
    options = {"data": spoilt(4, 5), "skip_nonfinite": 5, "steps_per_dispatch": 4}
    failure, losses, saved = trained(algorithm, dies_at=3 * 4 + 2, **options)
    assert (failure.step, len(losses)) == (7, 6)
    _, _, expected = trained(algorithm, num_steps=6, **options)
    (before, counts), (whole, of_whole) = saved[0], expected[-1]
    assert (len(saved), counts["step"], counts["skipped"]) == (1, 6, 2) == (1, of_whole["step"], of_whole["skipped"])
    model = len(arrays(hru("NonlinHRU")[0]))
    assert all(map(np.array_equal, before[:model], whole[:model]))


def test_outside_of_a_training_a_failure_raises_with_the_words_of_the_machine(algorithm):
    machine, operator = algorithm.operator.machine, algorithm.operator
    model, state = hru("NonlinHRU")
    model = with_learning_algorithm(model, algorithm)
    machine.calls, machine.dies_at = [], 1
    operator.reset()
    forward = jax.vmap(model, axis_name="batch", in_axes=(0, None, None), out_axes=(0, None))
    with pytest.raises(jax.errors.JaxRuntimeError, match="run failed: OSError: the cable is out"):
        forward(jnp.ones((2, 12, 2)), state, jax.random.PRNGKey(0))
    assert "the cable is out" in str(operator.failure)
