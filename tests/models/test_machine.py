"""A machine in the loop: its gradient against reverse mode, what it is asked to do, and what its failures do."""

import sys
import threading

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from systems import assert_close

from models import create_model
from models.physics.in_the_loop import MachineInTheLoop, on_machine, operators_of
from models.physics.machine import Limits, Machine, MachineError, Trace
from models.physics.numpy_leapfrog import Law, NumpyLeapfrog
from models.physics.operating import MachineWarning, Operator, deferred_failures
from models.rhel import BPTT, AbstractHamiltonian, evolve, with_learning_algorithm

BATCH, STEPS, CHANNELS, CLASSES = 3, 6, 2, 2


def stack(name="NonlinHRU", blocks=1, **options):
    """A small stack differentiated by BPTT, and its state."""
    sizes = {"data_dim": CHANNELS, "label_dim": CLASSES, "hidden_dim": 4, "num_blocks": blocks, "ssm_dim": 3}
    options = {"classification": True, "dropout_rate": 0.1, "learning_algorithm": "BPTT"} | options
    return create_model(name, **sizes, **options, key=jax.random.PRNGKey(0))


def batch_loss(state):
    """The loss of a model on one batch."""
    x = jax.random.normal(jax.random.PRNGKey(1), (BATCH, STEPS, CHANNELS))
    keys = jax.random.split(jax.random.PRNGKey(2), BATCH)

    def loss(model):
        forward = jax.vmap(model, axis_name="batch", in_axes=(0, None, 0), out_axes=(0, None))
        logits, _ = forward(x, state, keys)
        return -jnp.mean(jax.nn.log_softmax(logits)[:, 0])

    return loss


def value_and_gradient(model, state, algorithm):
    """Loss and the gradient of every array leaf."""
    model = with_learning_algorithm(model, algorithm)
    value, gradient = eqx.filter_jit(eqx.filter_value_and_grad(batch_loss(state)))(model)
    return value, eqx.filter(gradient, eqx.is_inexact_array)


@pytest.mark.parametrize(("name", "epsilon"), [("LinHRU", 1.0), ("NonlinHRU", 1e-6)])
def test_the_gradient_of_a_stack_on_a_machine_is_that_of_reverse_mode(x64, name, epsilon):
    model, state = stack(name)
    machine = NumpyLeapfrog(dtype=np.longdouble)
    assert isinstance(machine, Machine)
    assert_close(
        value_and_gradient(model, state, MachineInTheLoop(machine, epsilon)),
        value_and_gradient(model, state, BPTT()),
        1e-10,
    )


@pytest.mark.parametrize(("holds_state", "free_passes"), [(True, 1), (False, 2)])
def test_a_gradient_takes_three_passes_or_four(holds_state, free_passes):
    model, state = stack()
    algorithm = MachineInTheLoop(NumpyLeapfrog(Limits(holds_state=holds_state)), 1e-3)
    got = value_and_gradient(model, state, algorithm)
    record = algorithm.operator.record
    assert (record.free_passes, record.echoes, record.repeated) == (free_passes, 2, free_passes - 1)
    assert record.passes == algorithm.operator.machine.limits.passes
    assert_close(got, value_and_gradient(model, state, BPTT()), 1e-4)


def test_without_momenta_the_gradient_of_all_but_the_kinetic_energy_is_exact(x64):
    model, state = stack(train_steps=False)
    machine = NumpyLeapfrog(Limits(momenta=False), dtype=np.longdouble)
    assert_close(
        value_and_gradient(model, state, MachineInTheLoop(machine, 1e-6)),
        value_and_gradient(model, state, BPTT()),
        1e-10,
    )
    model, state = stack()
    with pytest.raises(ValueError, match=r"the gradient of step, on which the kinetic energy .* needs the momenta"):
        value_and_gradient(model, state, MachineInTheLoop(machine))


def test_units_share_a_machine_and_the_others_stay_in_jax():
    model, state = stack(blocks=3)
    algorithm = MachineInTheLoop(NumpyLeapfrog(Limits(holds_state=True)), 1e-3)
    placed = on_machine(model, algorithm, (0, 2))
    assert [block.unit.learning_algorithm for block in placed.blocks] == [algorithm, BPTT(), algorithm]
    assert operators_of(placed) == [algorithm.operator]
    _, gradient = eqx.filter_jit(eqx.filter_value_and_grad(batch_loss(state)))(placed)
    # The end state of block 0 is lost when block 2 runs.
    record = algorithm.operator.record
    assert (record.free_passes, record.echoes, record.repeated, record.programmed) == (3, 4, 1, 3)
    assert_close(eqx.filter(gradient, eqx.is_inexact_array), value_and_gradient(model, state, BPTT())[1], 1e-4)
    with pytest.raises(ValueError, match="the model has no unit 3: it has 3, counted from 0"):
        on_machine(model, algorithm, (3,))


class Springs(AbstractHamiltonian):
    """Two springs, of which a machine knows nothing but a law."""

    k: jax.Array

    def kinetic(self, p):
        return 0.05 * jnp.sum(p**2)

    def potential(self, q, drive):
        return 0.1 * jnp.sum(0.5 * self.k * q**2 - q * drive)


LAW = Law(("k",), lambda x, p: 0.1 * p, lambda x, q, drive: 0.1 * (drive - x["k"] * q))


def springs_gradient(algorithm, drives, weight=1.0):
    """The gradient of a loss by the springs and by the drives."""

    def loss(system):
        return weight * jnp.sum(jnp.cos(evolve(*system, learning_algorithm=algorithm)))

    return jax.jit(jax.grad(loss))((Springs(jnp.array([0.5, 2.0])), drives))


@pytest.fixture
def drives():
    """Drives (time, osc), of which the first is largest."""
    return jnp.linspace(1.0, -0.5, 10)[:, None] * jnp.array([[1.0, 0.6]])


def test_drives_above_the_limit_are_clipped_warned_of_counted_and_have_no_gradient(x64, drives):
    drives = drives.at[3, 0].set(0.7)  # which is not above the limit
    machine = MachineInTheLoop(NumpyLeapfrog(Limits(drive=0.7), LAW))
    with pytest.warns(MachineWarning, match="2 of 20 drives are above 0.7, the limit of the machine"):
        springs, of_drives = springs_gradient(machine, drives)
    expected, of_clipped = springs_gradient(BPTT(), jnp.minimum(drives, 0.7))
    assert_close(springs, expected, 1e-8)
    assert_close(of_drives, jnp.where(drives > 0.7, 0, of_clipped), 1e-8)
    record = machine.operator.record
    assert (record.clipped_drives, record.drives) == (2, 20)
    springs_gradient(machine, drives)  # warns once
    assert record.clipped_drives == 4


def test_nudges_above_the_limit_are_scaled_down_and_counted(x64, drives):
    class Measured(NumpyLeapfrog):
        def echo(self, drives, nudges):
            heights.append(np.abs(nudges).max())
            return super().echo(drives, nudges)

    heights = []
    algorithm = MachineInTheLoop(Measured(Limits(nudge=1e-4), LAW), 1.0)
    with pytest.warns(MachineWarning, match=r"the nudges of 1 sequences are above 0\.0001"):
        got = springs_gradient(algorithm, drives, 1e6)
    assert heights == pytest.approx([1e-4, 1e-4])
    assert algorithm.operator.record.reduced_nudges == 1
    assert_close(got, springs_gradient(BPTT(), drives, 1e6), 1e-8)


def test_no_drive_or_nudge_of_32_bits_is_above_a_limit_of_64_bits(drives):
    class Strict(NumpyLeapfrog):
        def run(self, drives):
            heights[0].append(np.abs(drives.astype(float)).max())
            return super().run(drives)

        def echo(self, drives, nudges):
            heights[1].append(np.abs(nudges.astype(float)).max())
            return super().echo(drives, nudges)

    limits, heights = (0.1, 0.001), ([], [])
    with pytest.warns(MachineWarning):
        springs_gradient(MachineInTheLoop(Strict(Limits(None, *limits), LAW), 1.0), drives, 1e6)
    for limit, reached in zip(limits, heights, strict=True):
        assert float(np.float32(limit)) > limit  # so rounding to 32 bits exceeds it
        assert reached == [pytest.approx(limit)] * 2
        assert max(reached) <= limit


def test_a_forward_pass_is_one_run_for_all_sequences_also_if_nobody_reads_its_outputs(drives):
    class Counted(NumpyLeapfrog):
        def run(self, drives):
            shapes.append(drives.shape)
            return super().run(drives)

    shapes = []
    algorithm = MachineInTheLoop(Counted(law=LAW))

    def forward(drives):
        return evolve(Springs(jnp.ones(2)), drives, learning_algorithm=algorithm)

    jax.block_until_ready(jax.jit(jax.vmap(jax.vmap(forward)))(jnp.stack([jnp.stack([drives] * 3)] * 2)))
    jax.jit(lambda drives: forward(drives)[:0])(drives)
    jax.effects_barrier()
    assert shapes == [(10, 6, 2), (10, 1, 2)]
    assert algorithm.operator.record.echoes == 0


def test_a_compiled_program_calls_its_own_machine(drives):
    @eqx.filter_jit
    def forward(algorithm):
        return evolve(Springs(jnp.ones(2)), drives, learning_algorithm=algorithm)

    algorithms = [MachineInTheLoop(NumpyLeapfrog(law=LAW)) for _ in range(2)]
    assert algorithms[0] != algorithms[1]
    for algorithm in (*algorithms, algorithms[1]):
        jax.block_until_ready(forward(algorithm))
    jax.effects_barrier()
    assert [algorithm.operator.record.free_passes for algorithm in algorithms] == [1, 2]


def test_a_loss_that_does_not_depend_on_the_outputs_has_a_gradient_of_zero(drives):
    springs, of_drives = springs_gradient(MachineInTheLoop(NumpyLeapfrog(law=LAW)), drives, 0.0)
    assert not np.any(springs.k)
    assert not np.any(of_drives)


def test_what_a_machine_cannot_do_is_refused_in_words(drives):
    machine = MachineInTheLoop(NumpyLeapfrog(Limits(oscillators=3), LAW))
    with pytest.raises(ValueError, match="the machine has 3 oscillators, but the unit has 2: set ssm_dim to match"):
        springs_gradient(machine, drives)
    ideal = MachineInTheLoop(NumpyLeapfrog(law=LAW))
    with pytest.raises(ValueError, match=r"but a position has the shape \(2, 1\) and a drive \(2, 1\)"):
        evolve(Springs(jnp.ones((2, 1))), drives[..., None], learning_algorithm=ideal)
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(lambda x: evolve(Springs(jnp.ones(2)), x, learning_algorithm=ideal), (drives,), (drives,))
    with pytest.raises(NotImplementedError, match="Effects not supported"):  # it would repeat passes
        jax.grad(jax.checkpoint(lambda x: jnp.sum(evolve(Springs(jnp.ones(2)), x, learning_algorithm=ideal))))(drives)
    assert ideal.operator.record.echoes == 0
    with pytest.raises(ValueError, match=r"epsilon must be positive and finite, got 0"):
        MachineInTheLoop(NumpyLeapfrog(), 0)
    with pytest.raises(ValueError, match="limits: nudge must be above 0, got 0"):
        Limits(nudge=0)


PARAMETERS = {"k": np.ones(2)}


class Scripted:
    """A machine that returns what a test says."""

    limits = Limits(holds_state=True)

    def __init__(self, positions=np.zeros((4, 1, 2)), trace=None):  # noqa: B008 (it is only read)
        self.positions, self.trace = positions, trace

    def program(self, parameters):
        pass

    def run(self, drives):
        return self.positions() if callable(self.positions) else self.positions

    def echo(self, drives, nudges):
        return self.trace


ZEROS = np.zeros((4, 1, 2))
LATE = threading.Event()
NOT_FINITE = np.where(np.arange(8).reshape(4, 1, 2) == 5, np.nan, 0.0)


@pytest.mark.parametrize(
    ("positions", "trace", "words"),
    [
        (ZEROS[:, 0], None, r"run returned positions of shape \(4, 2\), expected \(4, 1, 2\)"),
        (NOT_FINITE, None, "run returned positions that are not finite, first at step 2, sequence 0 of the batch, osc"),
        ([[0.0]], None, "run returned a list for positions instead of floating-point numbers"),
        (ZEROS.astype(int), None, "run returned an array of int64 for positions"),
        (lambda: 1 / 0, None, "run failed: ZeroDivisionError: division by zero"),
        (lambda: sys.exit("no board"), None, "run failed: SystemExit: no board"),
        (lambda: LATE.wait(9), None, "run took longer than the time limit of 0.2 s"),
        (ZEROS, ZEROS, "echo returned a ndarray instead of a Trace"),
        (ZEROS, Trace(ZEROS), "echo returned a NoneType for momenta_before"),
        (ZEROS, Trace(ZEROS, ZEROS, NOT_FINITE), "echo returned momenta_after that are not finite"),
        (ZEROS, Trace(ZEROS[1:], ZEROS, ZEROS), r"echo returned positions of shape \(3, 1, 2\)"),
    ],
)
def test_a_machine_that_fails_is_named_and_not_called_again(positions, trace, words):
    operator = Operator(Scripted(positions, trace), time_limit=0.2)

    def gradient():
        ticket, _ = operator.run(PARAMETERS, ZEROS, 2)
        operator.echoes(ticket, PARAMETERS, ZEROS, ZEROS)

    for _ in range(2):
        with pytest.raises(MachineError, match=f"{words}.*pass {1 if trace is None else 2} of the machine"):
            gradient()
    with deferred_failures([operator]):
        assert np.isnan(operator.run(PARAMETERS, ZEROS, 2)[1]).all()
        mean, half_difference = operator.echoes(1, PARAMETERS, ZEROS, ZEROS)
        assert np.isnan([mean.positions, half_difference.momenta_after]).all()
    assert not operator.deferred
    if "longer" in words:
        with pytest.raises(MachineError, match="has not returned from an earlier call, which was late"):
            operator.reset()
        LATE.set()
        operator._shared._last.exception()  # pyright: ignore[reportOptionalMemberAccess]
    operator.reset()
    operator.machine.positions, operator.machine.trace = ZEROS, Trace(ZEROS, ZEROS, ZEROS)
    gradient()
    assert operator.record.echoes == 2


def test_an_object_that_is_no_machine_is_refused(unchecked_types):
    with pytest.raises(TypeError, match="str is no machine: it needs limits, program, run and echo"):
        MachineInTheLoop("board")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="time_limit must be above 0 seconds, got 0"):
        Operator(Scripted(), time_limit=0)


class Remembers(Scripted):
    """A machine whose numbers are its parameter. It uses its memory again, may fail, and notes its thread."""

    def __init__(self):
        self.threads, self.fails, self.memory = [], None, np.zeros((4, 1, 2))

    def called(self, name):
        self.threads.append(threading.current_thread())
        if self.fails == name:
            raise OSError("the cable is out")

    def program(self, parameters):
        self.called("program")
        self.parameters = parameters

    def run(self, drives):
        self.called("run")
        (self.end,) = self.parameters.values()
        self.memory[:] = self.end + drives
        drives += 1
        return self.memory

    def echo(self, drives, nudges):
        self.called("echo")
        self.memory[:] = self.end + nudges
        return Trace(*[self.memory] * 3)


UNITS = [{"k": np.array(1.0)}, {"k": np.array(2.0)}, {"stiffness": np.array(3.0)}]


def test_an_echo_starts_from_its_own_free_pass_whatever_ran_in_between():
    """Three free passes with other parameters each, and their echoes in any order, by one operator or by two."""
    machine = Remembers()
    for operators in ([Operator(machine)], [Operator(machine), Operator(machine)]):
        one, two = operators[0], operators[-1]
        tickets = [operator.run(unit, ZEROS, 2)[0] for operator, unit in zip((one, two), UNITS, strict=False)]

        def echoed(operator, number, tickets=tickets):
            mean, _ = operator.echoes(tickets[number], UNITS[number], ZEROS, ZEROS)
            return mean.positions[0, 0, 0]

        assert [echoed(one, 0), echoed(one, 0)] == [1.0, 1.0]
        tickets.append(two.run(UNITS[2], ZEROS, 2)[0])
        assert [echoed(one, 1), echoed(two, 2), echoed(one, 0), echoed(one, 0)] == [2.0, 3.0, 1.0, 1.0]
        assert sum(operator.record.repeated for operator in {one, two}) == 4
    assert len(set(machine.threads)) == 1
    assert machine.threads[0] is not threading.current_thread()


def test_arguments_and_numbers_of_a_machine_are_copied():
    operator = Operator(Remembers(), time_limit=np.inf)
    ticket, positions = operator.run(UNITS[0], ZEROS, 2)
    mean, half_difference = operator.echoes(ticket, UNITS[0], ZEROS, ZEROS + 0.5)
    assert not ZEROS.any()
    assert (positions[0, 0, 0], mean.positions[0, 0, 0], half_difference.positions[0, 0, 0]) == (1.0, 1.0, 0.5)


@pytest.mark.parametrize("after", ["failed program", "failed run", "reset", "close", "exchange"])
def test_a_machine_is_programmed_and_run_again_after(after):
    operator, unit = Operator(Remembers()), UNITS[0]
    ticket, _ = operator.run(unit, ZEROS, 2)
    if after.startswith("failed"):
        operator.machine.fails = after.split()[1]
        with pytest.raises(MachineError, match="the cable is out"):
            operator.run(UNITS[1], ZEROS, 2)
        operator.failure = operator.machine.fails = None
    elif after == "exchange":
        operator.machine = Remembers()
    else:
        getattr(operator, after)()
    operator.echoes(ticket, unit, ZEROS, ZEROS)
    counted = operator.record.programmed, operator.record.free_passes
    assert counted == (3 if after == "failed run" else 2, 2)


def test_numbers_that_are_not_finite_are_not_sent_and_are_no_failure(drives):
    operator = Operator(Remembers())
    for x, y in ((ZEROS + np.inf, UNITS[0]), (ZEROS, {"k": np.array(np.nan)})):
        assert np.isnan(operator.run(y, x, 2)[1]).all()
    ticket, _ = operator.run(UNITS[0], ZEROS, 2)
    for trace in (*operator.echoes(ticket, UNITS[0], ZEROS, NOT_FINITE), operator.echo(1, UNITS[0], NOT_FINITE, ZEROS)):
        assert np.isnan([trace.positions, trace.momenta_before, trace.momenta_after]).all()
    assert (operator.record.passes, operator.failure) == (1, None)
    springs, _ = springs_gradient(MachineInTheLoop(NumpyLeapfrog(law=LAW)), drives.at[3].set(jnp.nan))
    assert np.isnan(springs.k).all()


def test_the_rows_of_an_echo_go_back_in_time():
    """A machine plays row 0 first. What it measured comes back in the order of the free pass."""

    class Order(Scripted):
        def echo(self, drives, nudges):
            assert drives[:, 0, 0].tolist() == [3.0, 2.0, 1.0, 0.0]
            return Trace(drives, nudges, nudges)

    drives = np.arange(4.0)[:, None, None] * np.ones((1, 1, 2))
    operator = Operator(Order())
    ticket, _ = operator.run(PARAMETERS, drives, 2)
    mean, half_difference = operator.echoes(ticket, PARAMETERS, drives, 2 * drives)
    np.testing.assert_array_equal(mean.positions, drives)
    np.testing.assert_array_equal(half_difference.momenta_before, 2 * drives)
