"""A machine in the loop: its gradient against reverse mode, and what it is asked to do."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from systems import assert_close

from models import create_model
from models.check.machine_bench import Bench
from models.check.machine_numbers import DRIVES
from models.physics.in_the_loop import MachineInTheLoop, on_machine, operators_of
from models.physics.machine import Limits, Machine
from models.physics.numpy_leapfrog import Law, NumpyLeapfrog
from models.physics.operating import MachineWarning
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


def test_a_parameter_in_the_kinetic_energy_needs_the_momenta_also_where_its_gradient_is_0(x64, drives):
    class Masked(Springs):
        def kinetic(self, p):
            return super().kinetic(p) + 0.0 * jnp.sum(self.k)

    machine = NumpyLeapfrog(Limits(momenta=False), LAW)
    algorithm = MachineInTheLoop(machine)
    assert set(Bench(machine, Masked(jnp.ones(2)), np.asarray(drives)[:, None], None, None, 0).arguments) == {DRIVES}
    with pytest.raises(ValueError, match="the gradient of k, on which the kinetic energy of Masked depends"):
        jax.grad(lambda x: jnp.sum(evolve(x, drives, learning_algorithm=algorithm)))(Masked(jnp.ones(2)))


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


def test_drives_that_are_not_a_number_have_a_gradient_that_is_none(drives):
    algorithm = MachineInTheLoop(NumpyLeapfrog(law=LAW))
    springs, _ = springs_gradient(algorithm, drives.at[3].set(jnp.nan))
    assert np.isnan(springs.k).all()
    assert (algorithm.operator.failure, algorithm.operator.record.passes) == (None, 0)


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
