"""Recurrent Hamiltonian Echo Learning in continuous time, where it is a theorem about every instant.

Pourcel & Ernoult, arXiv 2506.05259, Section 3.1. Symbols as in `models.hamiltonian`, with one difference:

    delta        not folded in: `kinetic` is T and `potential` is V, where in discrete time they are dt * T and dt * V

A Hamiltonian written for discrete time therefore runs 1/dt times too slowly here, without an error. `Discretised` folds
a step into one that is written for here, so that the same object runs here and in `models.rhel.evolve`. All
differential equations are solved by diffrax.

A system runs from s(0) = (q, p) and is judged all the way by L = ∫ l(q(t), t) dt, t from 0 to T:

    dq/dt = T'(p)      dp/dt = -V'(q, v(t))                                                 the free pass
    e(t)  = dl/dq at (q(t), t)                                                              the error signal

**The adjoint method.** With f the right-hand side above and x' its transposed Jacobian applied to x,

    -dλ/dt = (df/ds)' λ + (e, 0),   λ(T) = 0,      g(t) = (df/dθ)' λ,      dL/dθ = ∫ g dt,      dL/ds(0) = λ(0)

**The echo** (Eqs. 4-7). From (q(T), -p(T)), in the time τ = T - t that counts from the end of the free pass:

    dq/dτ = T'(p)      dp/dτ = -V'(q, v(T - τ)) ± ε e(T - τ)                                two echoes, + and -
    Δ_q   = (p+ - p-) / (2 ε)      Δ_p = (q+ - q-) / (2 ε)      Δ_θ = -(dH/dθ at + minus dH/dθ at -) / (2 ε)

**Theorem 3.1.** As ε -> 0, Δ(τ) is λ(t) and Δ_θ(τ) is g(t), at every instant t = T - τ. With ε = 0 the echoes retrace
the free pass, (q(t), -p(t)). Linearise around it: (p+ - p-) / (2 ε) obeys the equation of λ_q, and (q+ - q-) / (2 ε)
that of λ_p, with the same start, zero. Positions and momenta change places, and no sign does. In g = λ_q dT'/dθ - λ_p
dV'/dθ the momentum is that of the free pass, opposite to that of the echo; T' is odd, hence the common minus of Δ_θ.

What is left out is O(ε^2). It is nothing at all, for any ε, if H is quadratic in (q, p) at all θ: the half-difference
over ε then obeys a linear equation that does not know ε, the mean is the free pass, and the difference of the energies
is bilinear in the two. If the echoes take the error at their own positions instead of the recorded one
(`Echo(recorded=False)`, the natural choice of a machine in which l is an energy too), each nudge changes the mean, and
O(ε^2) comes back.

In discrete time (`models.rhel`) g_t is e(t) dt, the energies carry the dt of the integral, and the nudge is a kick at
one instant; the signs are the same.
"""

from abc import abstractmethod
from collections.abc import Callable

import equinox as eqx
import jax
import jax.core
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

try:
    import diffrax
except ImportError as error:
    raise ImportError("the continuous-time echo needs diffrax: pip install 'rhel[continuous]'") from error

from ..rhel.hamiltonian import AbstractHamiltonian, State
from ..rhel.requirements import require_force_of_energies

Time = float | Float[Array, ""]

PARITY_SAMPLES = 32
"""Instants of a free pass at whose momenta T(p) is compared with T(-p)."""


def _saved(solution: diffrax.Solution) -> PyTree:
    """What a solve was asked to save."""
    assert solution.ys is not None
    return solution.ys


def _require_positive(name, value):
    # A value that is being traced is not known yet.
    if not isinstance(value, jax.core.Tracer) and not 0 < value < jnp.inf:
        raise ValueError(f"{name} must be positive and finite, got {value}")


class Discretised(AbstractHamiltonian):
    """A Hamiltonian of continuous time with a time step folded in: what `models.rhel.evolve` takes.

    Kicked in the middle of each step, it wants the drives at dt/2, 3 dt/2, ..; its positions are those at dt, 2 dt, ..
    """

    hamiltonian: AbstractHamiltonian
    step: Float[Array, ""]

    def kinetic(self, p):
        """dt * T(p)."""
        return self.step * self.hamiltonian.kinetic(p)

    def potential(self, q, drive):
        """dt * V(q, drive)."""
        return self.step * self.hamiltonian.potential(q, drive)


class Problem(eqx.Module):
    """A system, what drives it, where it starts and how its way is judged.

    - `hamiltonian`: T and V without a time step, T even in p. The gradient is with respect to its floating-point
      arrays. `models.check.check_hamiltonian` looks at a `Discretised` one.
    - `drive`: the function of time t -> v(t), of whatever shape the potential takes.
    - `loss`: the function (q, t) -> l(q, t), a scalar, whose integral is the loss.
    - `start`: position and momentum at t = 0.
    - `duration`: T. Raises `ValueError` if it is not positive and finite.
    """

    hamiltonian: AbstractHamiltonian
    drive: Callable
    loss: Callable
    start: State
    duration: float

    def __check_init__(self):
        _require_positive("duration", self.duration)

    def rate(self, state: State, t: Time) -> State:
        """f: the velocities of positions and momenta."""
        q, p = state
        return self.hamiltonian.velocity(p), self.hamiltonian.force(q, self.drive(t))

    def error(self, q: Float[Array, " osc"], t: Time) -> Float[Array, " osc"]:
        """e = dl/dq."""
        return jax.grad(self.loss)(q, t)

    def energy(self, state: State, t: Time) -> Float[Array, ""]:
        """H = T + V."""
        q, p = state
        return self.hamiltonian.kinetic(p) + self.hamiltonian.potential(q, self.drive(t))

    def unjudged(self) -> tuple[State, Float[Array, ""]]:
        """The start, and a loss of zero."""
        return self.start, jnp.zeros_like(self.loss(self.start[0], 0.0))

    def at(self, hamiltonian: AbstractHamiltonian) -> "Problem":
        """The same for another Hamiltonian."""
        return eqx.tree_at(lambda problem: problem.hamiltonian, self, hamiltonian)


class Integrator(eqx.Module):
    """How the differential equations are solved: by one solver at one tolerance, absolute and relative, for all.

    The default is for float64; in float32 nothing below 1e-6 can be reached. Raises `ValueError` if the tolerance is
    not positive and finite; a solve raises the error of diffrax if `max_steps` do not suffice.
    """

    tolerance: float = 1e-11
    solver: diffrax.AbstractSolver = eqx.field(default_factory=diffrax.Dopri8)
    max_steps: int = eqx.field(default=1024, static=True)

    def __check_init__(self):
        _require_positive("tolerance", self.tolerance)

    def solve(
        self,
        rate: Callable,
        start: PyTree,
        duration: float,
        args: PyTree = None,
        *,
        saveat: diffrax.SaveAt,
        adjoint: diffrax.AbstractAdjoint,
    ) -> diffrax.Solution:
        """From time 0 to the duration; `rate(t, state, args)` is the time derivative of the state."""
        return diffrax.diffeqsolve(
            diffrax.ODETerm(rate),
            self.solver,
            0.0,
            duration,
            None,
            start,
            args,
            saveat=saveat,
            adjoint=adjoint,
            stepsize_controller=diffrax.PIDController(rtol=self.tolerance, atol=self.tolerance),
            max_steps=self.max_steps,
        )

    def trajectory(self, rate: Callable, start: PyTree, duration: float) -> diffrax.Solution:
        """With dense output: its `evaluate(t)` is the state at any time."""
        return self.solve(
            rate,
            start,
            duration,
            saveat=diffrax.SaveAt(t1=True, dense=True),
            adjoint=diffrax.RecursiveCheckpointAdjoint(),
        )


def total_loss(
    problem: Problem, integrator: Integrator, adjoint: diffrax.AbstractAdjoint | None = None
) -> Float[Array, ""]:
    """L, differentiable with respect to the Hamiltonian and the start by one of diffrax's own adjoints.

    The reference of the echo. `problem.drive` and `problem.loss` are constants to it.
    """

    def rate(t, state_and_loss, hamiltonian):
        state, _ = state_and_loss
        return problem.at(hamiltonian).rate(state, t), problem.loss(state[0], t)

    solution = integrator.solve(
        rate,
        problem.unjudged(),
        problem.duration,
        problem.hamiltonian,
        saveat=diffrax.SaveAt(t1=True),
        adjoint=diffrax.RecursiveCheckpointAdjoint() if adjoint is None else adjoint,
    )
    return _saved(solution)[1][0]


class FreePass(eqx.Module):
    """A system on its way, recorded."""

    problem: Problem
    recording: diffrax.Solution

    def state(self, t: Time) -> State:
        """Position and momentum at time t."""
        return self.recording.evaluate(t)[0]

    def error(self, t: Time) -> Float[Array, " osc"]:
        """The error signal e(t)."""
        return self.problem.error(self.state(t)[0], t)

    def loss(self) -> Float[Array, ""]:
        """L, solved along with the state."""
        return _saved(self.recording)[1][0]

    def end(self) -> State:
        """The state at the end of the duration."""
        return jax.tree.map(lambda x: x[0], _saved(self.recording)[0])


def free_pass(problem: Problem, integrator: Integrator) -> FreePass:
    """Runs the system from its start, with dense output."""

    def rate(t, state_and_loss, _):
        state, _ = state_and_loss
        return problem.rate(state, t), problem.loss(state[0], t)

    return FreePass(problem, integrator.trajectory(rate, problem.unjudged(), problem.duration))


class AbstractReturn(eqx.Module):
    """A method that finds the adjoint state λ and the gradient's density g on the way back through a free pass.

    What it carries, a tree of arrays, obeys a differential equation in τ, the time since the end of the free pass;
    t = T - τ is the time of the free pass.
    """

    @abstractmethod
    def begin(self, free: FreePass) -> PyTree:
        """What is carried, at τ = 0."""

    @abstractmethod
    def rate(self, free: FreePass, t: Time, carried: PyTree) -> PyTree:
        """Its derivative by τ."""

    @abstractmethod
    def adjoint(self, carried: PyTree) -> State:
        """λ = (λ_q, λ_p), the gradient of the loss that is still to come at t with respect to the state at t."""

    @abstractmethod
    def density(self, free: FreePass, t: Time, carried: PyTree) -> AbstractHamiltonian:
        """g: what the instant t adds to the gradient of each array of the Hamiltonian, per unit of time."""

    def __call__(self, free: FreePass, integrator: Integrator) -> "WayBack":
        """Goes back to t = 0, and adds up the density as part of the same solve."""
        duration = free.problem.duration

        def rate(tau, carried_and_gradient, _):
            carried, _ = carried_and_gradient
            t = duration - tau
            return self.rate(free, t, carried), self.density(free, t, carried)

        nothing = jax.tree.map(jnp.zeros_like, eqx.filter(free.problem.hamiltonian, eqx.is_inexact_array))
        return WayBack(self, free, integrator.trajectory(rate, (self.begin(free), nothing), duration))


class WayBack(eqx.Module):
    """What a method found on its way back, as functions of the time t of the free pass."""

    method: AbstractReturn
    free: FreePass
    recording: diffrax.Solution

    def carried(self, t: Time) -> PyTree:
        """What the method carries when it is back at t."""
        return self.recording.evaluate(self.free.problem.duration - t)[0]

    def adjoint(self, t: Time) -> State:
        """λ(t), or its estimate Δ(t)."""
        return self.method.adjoint(self.carried(t))

    def density(self, t: Time) -> AbstractHamiltonian:
        """g(t), or its estimate Δ_θ(t)."""
        return self.method.density(self.free, t, self.carried(t))

    def accumulated(self, t: Time) -> AbstractHamiltonian:
        """The integral of the density from t to T."""
        return self.recording.evaluate(self.free.problem.duration - t)[1]

    def gradient(self) -> AbstractHamiltonian:
        """dL/dθ, for every floating-point array of the Hamiltonian."""
        return jax.tree.map(lambda x: x[0], _saved(self.recording)[1])


class Echo(AbstractReturn):
    """Two echoes, (q, p) of shape (2, osc) each, solved together, so that they take the same steps.

    Rounding and the error of the solver come divided by `epsilon`, which multiplies the error signal into a force.
    `recorded`: nudge by the error of the free pass; otherwise by the error at the echo's own position. Raises
    `ValueError` if `epsilon` is not positive and finite, or if the Hamiltonian overrides velocity or force;
    `RuntimeError` if T is not even at a momentum of the free pass, since then no echo returns.
    """

    epsilon: Float[Array, ""] = eqx.field(converter=lambda x: jnp.asarray(x, float))
    recorded: bool = eqx.field(default=True, static=True)

    def __check_init__(self):
        _require_positive("epsilon", self.epsilon)

    def begin(self, free):
        """Both at the end of the free pass, momenta flipped."""
        hamiltonian = free.problem.hamiltonian
        require_force_of_energies(hamiltonian)
        times = free.problem.duration * jnp.linspace(0, 1, PARITY_SAMPLES)
        _, momenta = jax.vmap(free.state)(times)
        there, back = (jax.vmap(hamiltonian.kinetic)(x) for x in (momenta, -momenta))
        uneven = jnp.abs(there - back) > 1e4 * jnp.finfo(there.dtype).eps * (jnp.abs(there) + jnp.abs(back))
        q, p = free.end()
        p = eqx.error_if(
            p,
            jnp.any(uneven),
            f"{type(hamiltonian).__name__}.kinetic is not even in p: an echo returns only if T(p) = T(-p)",
        )
        return jnp.stack([q, q]), jnp.stack([-p, -p])

    def rate(self, free, t, carried):
        """The same system, its drive played backwards, with a nudge to either side."""
        (q, _), epsilon = carried, self.epsilon
        at = jnp.stack([free.state(t)[0]] * 2) if self.recorded else q
        error = jax.vmap(free.problem.error, (0, None))(at, t)
        velocity, force = jax.vmap(free.problem.rate, (0, None))(carried, t)
        return velocity, force + jnp.stack([epsilon * error[0], -epsilon * error[1]])

    def adjoint(self, carried):
        """Δ: half the difference over epsilon; positions and momenta change places."""
        q, p = ((x[0] - x[1]) / (2 * self.epsilon) for x in carried)
        return p, q

    def density(self, free, t, carried):
        """Δ_θ: minus half the difference of the gradients of the energy, over epsilon."""

        def contrast(hamiltonian):
            energy = jax.vmap(free.problem.at(hamiltonian).energy, (0, None))(carried, t)
            return -(energy[0] - energy[1]) / (2 * self.epsilon)

        return eqx.filter_grad(contrast)(free.problem.hamiltonian)


class AdjointMethod(AbstractReturn):
    """The adjoint method of the continuous system: it needs the derivative of the dynamics, which no machine gives."""

    def begin(self, free):
        """Nothing is left to be judged."""
        return jax.tree.map(jnp.zeros_like, free.end())

    def rate(self, free, t, carried):
        """(df/ds)' λ + (e, 0)."""
        state = free.state(t)
        _, pull_back = jax.vjp(lambda state: free.problem.rate(state, t), state)
        ((by_q, by_p),) = pull_back(carried)
        return by_q + free.error(t), by_p

    def adjoint(self, carried):
        """λ itself."""
        return carried

    def density(self, free, t, carried):
        """(df/dθ)' λ."""

        def weighted(hamiltonian):
            velocity, force = free.problem.at(hamiltonian).rate(free.state(t), t)
            return jnp.vdot(carried[0], velocity) + jnp.vdot(carried[1], force)

        return eqx.filter_grad(weighted)(free.problem.hamiltonian)
