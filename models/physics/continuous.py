"""Recurrent Hamiltonian Echo Learning in continuous time.

Pourcel & Ernoult, arXiv 2506.05259, Section 3.1. Symbols as in `models.hamiltonian`, with one difference:

    delta        not folded in: `kinetic` is T and `potential` is V; in discrete time they are dt * T and dt * V

So a Hamiltonian for discrete time runs 1/dt times too slowly here, without an error. `Discretised` folds a step into a
Hamiltonian for continuous time; `models.rhel.evolve` then runs the same object. diffrax solves all equations.

A system runs from s(0) = (q, p). Its loss is L = ∫ l(q(t), t) dt, t from 0 to T:

    dq/dt = T'(p)      dp/dt = -V'(q, v(t))                                                 the free pass
    e(t)  = dl/dq at (q(t), t)                                                              the error signal

**The adjoint method.** With f the right-hand side above and x' its transposed Jacobian applied to x,

    -dλ/dt = (df/ds)' λ + (e, 0),   λ(T) = 0,      g(t) = (df/dθ)' λ,      dL/dθ = ∫ g dt,      dL/ds(0) = λ(0)

**The echo** (Eqs. 4-7). From (q(T), -p(T)), with τ = T - t, the time since the end of the free pass:

    dq/dτ = T'(p)      dp/dτ = -V'(q, v(T - τ)) ± ε e(T - τ)                                two echoes, + and -
    Δ_q   = (p+ - p-) / (2 ε)      Δ_p = (q+ - q-) / (2 ε)      Δ_θ = -(dH/dθ at + minus dH/dθ at -) / (2 ε)

**Theorem 3.1.** As ε -> 0, Δ(τ) is λ(t) and Δ_θ(τ) is g(t), at every instant t = T - τ. With ε = 0 the echoes retrace
the free pass, (q(t), -p(t)). Linearise around it: (p+ - p-) / (2 ε) obeys the equation of λ_q, and (q+ - q-) / (2 ε)
the equation of λ_p, both from zero. Positions and momenta exchange their roles. In g = λ_q dT'/dθ - λ_p dV'/dθ the
momentum is the momentum of the free pass, opposite to the echo; T' is odd, hence the common minus of Δ_θ.

The error is O(ε^2). It is zero for every ε if H is quadratic in (q, p): then the half-difference over ε obeys a linear
equation without ε, and the difference of the energies is bilinear in mean and half-difference. This needs nudges by the
recorded error. With `Echo(recorded=False)` the echoes take the error at their own positions, as a machine does in which
l is an energy; then the error is O(ε^2) for every system.

In discrete time (`models.rhel`) g_t is e(t) dt, the energies include dt, and the nudge is a kick at one instant. The
signs are the same.
"""

from abc import abstractmethod
from collections.abc import Callable

import equinox as eqx
import jax
import jax.core
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree
from typing_extensions import override

try:
    import diffrax
except ImportError as error:
    raise ImportError("the continuous-time echo needs diffrax: pip install 'rhel[continuous]'") from error

from ..rhel.hamiltonian import AbstractHamiltonian, State
from ..rhel.requirements import require_force_of_energies

Time = float | Float[Array, ""]

PARITY_SAMPLES = 32
"""Instants of a free pass at which T(p) is compared with T(-p)."""


def _end(solution: diffrax.Solution) -> PyTree:
    """The state at the end of a solve."""
    return jax.tree.map(lambda x: x[0], solution.ys)


def _require_positive(name, value):
    # The value of a tracer is not known yet.
    if not isinstance(value, jax.core.Tracer) and not 0 < value < jnp.inf:
        raise ValueError(f"{name} must be positive and finite, got {value}")


class Discretised(AbstractHamiltonian):
    """A Hamiltonian of continuous time with a time step folded in, for `models.rhel.evolve`.

    The kick is in the middle of a step: give the drives at dt/2, 3 dt/2, .. The positions are at dt, 2 dt, ..
    """

    hamiltonian: AbstractHamiltonian
    step: Float[Array, ""]

    @override
    def kinetic(self, p):
        return self.step * self.hamiltonian.kinetic(p)

    @override
    def potential(self, q, drive):
        return self.step * self.hamiltonian.potential(q, drive)


class Problem(eqx.Module):
    """A system, its drive, its start and its loss.

    - `hamiltonian`: T and V without a time step, T even in p. The gradient is with respect to its floating-point
      arrays. `models.check.check_hamiltonian` checks a `Discretised` one.
    - `drive`: the function t -> v(t), of the shape that the potential takes.
    - `loss`: the function (q, t) -> l(q, t), a scalar. Its integral is the loss.
    - `start`: position and momentum at t = 0.
    - `duration`: T. Raises `ValueError` if it is not positive and finite, or if shapes do not fit together.
    """

    hamiltonian: AbstractHamiltonian
    drive: Callable
    loss: Callable
    start: State
    duration: float

    def __check_init__(self):
        _require_positive("duration", self.duration)
        shapes = [getattr(x, "shape", None) for x in self.start] if isinstance(self.start, tuple) else []
        if len(shapes) != 2 or shapes[0] is None or shapes[0] != shapes[1]:
            raise ValueError(f"start must be two arrays (q, p) of one shape, got {shapes or type(self.start).__name__}")
        try:
            jax.eval_shape(jax.grad(lambda q: self.loss(q, 0.0) + self.energy((q, q), 0.0)), self.start[0])
        except (TypeError, ValueError, IndexError, AttributeError) as error:
            needed = f"drive(t) -> v, loss(q, t) -> a scalar, scalar energies, at positions of shape {shapes[0]}"
            raise ValueError(f"a problem needs {needed}, the shape of the start: {error}") from error

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

    def start_and_loss(self) -> tuple[State, Float[Array, ""]]:
        """The start, and a loss of zero."""
        return self.start, jnp.zeros_like(self.loss(self.start[0], 0.0))

    def rate_and_loss(self, t: Time, state_and_loss: PyTree) -> tuple[State, Float[Array, ""]]:
        """The derivatives of the state and of the loss by time."""
        state, _ = state_and_loss
        return self.rate(state, t), self.loss(state[0], t)

    def at(self, hamiltonian: AbstractHamiltonian) -> "Problem":
        """The same problem for another Hamiltonian."""
        return eqx.tree_at(lambda problem: problem.hamiltonian, self, hamiltonian)


class Integrator(eqx.Module):
    """How the differential equations are solved. `tolerance` is the absolute and the relative one.

    The default is for float64; float32 reaches 1e-6. Raises `ValueError` if the tolerance is not positive and finite; a
    solve does if it is below the rounding. A solve raises the error of diffrax if it needs more than `max_steps`.
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
        dtype = jnp.result_type(float, *jax.tree.leaves(start))
        if not isinstance(self.tolerance, jax.core.Tracer) and self.tolerance < jnp.finfo(dtype).eps:
            raise ValueError(
                f"the tolerance {self.tolerance:g} is below the rounding of {dtype}: compute in float64 (arrays and "
                "calls inside `with jax.enable_x64(True):`), or give another one, as Integrator(1e-5) for float32"
            )
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
        """A solve with dense output: `evaluate(t)` is the state at any time."""
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
    """L, differentiable with respect to the Hamiltonian and the start by an adjoint of diffrax.

    It is the reference of the echo. `problem.drive` and `problem.loss` have no gradient.
    """

    def rate(t, state_and_loss, hamiltonian):
        return problem.at(hamiltonian).rate_and_loss(t, state_and_loss)

    solution = integrator.solve(
        rate,
        problem.start_and_loss(),
        problem.duration,
        problem.hamiltonian,
        saveat=diffrax.SaveAt(t1=True),
        adjoint=diffrax.RecursiveCheckpointAdjoint() if adjoint is None else adjoint,
    )
    return _end(solution)[1]


class FreePass(eqx.Module):
    """A recorded free pass."""

    problem: Problem
    recording: diffrax.Solution

    def state(self, t: Time) -> State:
        """Position and momentum at time t."""
        return self.recording.evaluate(t)[0]

    def error(self, t: Time) -> Float[Array, " osc"]:
        """The error signal e(t)."""
        return self.problem.error(self.state(t)[0], t)

    def loss(self) -> Float[Array, ""]:
        """L, solved together with the state."""
        return _end(self.recording)[1]

    def end(self) -> State:
        """The state at the end of the duration."""
        return _end(self.recording)[0]


def free_pass(problem: Problem, integrator: Integrator) -> FreePass:
    """Runs the system from its start."""

    def rate(t, state_and_loss, _):
        return problem.rate_and_loss(t, state_and_loss)

    return FreePass(problem, integrator.trajectory(rate, problem.start_and_loss(), problem.duration))


class AbstractReturn(eqx.Module):
    """A method that computes the adjoint state λ and the density g of the gradient, backwards along a free pass.

    It carries a tree of arrays, which obeys a differential equation in τ, the time since the end of the free pass.
    t = T - τ is the time of the free pass.
    """

    @abstractmethod
    def begin(self, free: FreePass) -> PyTree:
        """The arrays at τ = 0."""

    @abstractmethod
    def rate(self, free: FreePass, t: Time, carried: PyTree) -> PyTree:
        """The derivative of the arrays by τ."""

    @abstractmethod
    def adjoint(self, carried: PyTree) -> State:
        """λ = (λ_q, λ_p), the gradient of the loss from t to T with respect to the state at t."""

    @abstractmethod
    def density(self, free: FreePass, t: Time, carried: PyTree) -> AbstractHamiltonian:
        """g, the contribution of the instant t to the gradient of each array of the Hamiltonian, per unit of time."""

    def __call__(self, free: FreePass, integrator: Integrator) -> "WayBack":
        """Solves back to t = 0. The integral of the density is part of the same solve."""
        duration = free.problem.duration

        def rate(tau, carried_and_gradient, _):
            carried, _ = carried_and_gradient
            t = duration - tau
            return self.rate(free, t, carried), self.density(free, t, carried)

        zero = jax.tree.map(jnp.zeros_like, eqx.filter(free.problem.hamiltonian, eqx.is_inexact_array))
        return WayBack(self, free, integrator.trajectory(rate, (self.begin(free), zero), duration))


class WayBack(eqx.Module):
    """The result of a method, as functions of the time t of the free pass."""

    method: AbstractReturn
    free: FreePass
    recording: diffrax.Solution

    def carried(self, t: Time) -> PyTree:
        """The arrays of the method at t."""
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
        return _end(self.recording)[1]


class Echo(AbstractReturn):
    """Two echoes, (q, p) of shape (2, osc) each, in one solve, so that both take the same steps.

    The force of the nudge is `epsilon` times the error signal. Rounding and the error of the solver are divided by
    `epsilon`. `recorded`: nudge by the error of the free pass; otherwise by the error at the position of the echo.
    Raises `ValueError` if `epsilon` is not positive and finite, or if the Hamiltonian overrides velocity or force;
    `RuntimeError` if T is not even at a momentum of the free pass: then no echo returns.
    """

    epsilon: Float[Array, ""] = eqx.field(converter=lambda x: jnp.asarray(x, float))
    recorded: bool = eqx.field(default=True, static=True)

    def __check_init__(self):
        _require_positive("epsilon", self.epsilon)

    @override
    def begin(self, free):
        hamiltonian = free.problem.hamiltonian
        require_force_of_energies(hamiltonian)
        times = free.problem.duration * jnp.linspace(0, 1, PARITY_SAMPLES)
        _, momenta = jax.vmap(free.state)(times)
        there, back = jax.vmap(hamiltonian.kinetic)(momenta), jax.vmap(hamiltonian.kinetic)(-momenta)
        uneven = jnp.abs(there - back) > 1e4 * jnp.finfo(there.dtype).eps * (jnp.abs(there) + jnp.abs(back))
        q, p = free.end()
        p = eqx.error_if(
            p,
            jnp.any(uneven),
            f"{type(hamiltonian).__name__}.kinetic is not even in p: an echo returns only if T(p) = T(-p)",
        )
        return jnp.stack([q, q]), jnp.stack([-p, -p])

    @override
    def rate(self, free, t, carried):
        q = jnp.stack([free.state(t)[0]] * 2) if self.recorded else carried[0]
        error = jax.vmap(free.problem.error, (0, None))(q, t)
        velocity, force = jax.vmap(free.problem.rate, (0, None))(carried, t)
        return velocity, force + self.epsilon * jnp.stack([error[0], -error[1]])

    @override
    def adjoint(self, carried):
        q, p = ((x[0] - x[1]) / (2 * self.epsilon) for x in carried)
        return p, q

    @override
    def density(self, free, t, carried):

        def contrast(hamiltonian):
            energy = jax.vmap(free.problem.at(hamiltonian).energy, (0, None))(carried, t)
            return -(energy[0] - energy[1]) / (2 * self.epsilon)

        return eqx.filter_grad(contrast)(free.problem.hamiltonian)


class AdjointMethod(AbstractReturn):
    """The adjoint method of the continuous system: it needs the derivative of the dynamics, which no machine gives."""

    @override
    def begin(self, free):
        return jax.tree.map(jnp.zeros_like, free.end())

    @override
    def rate(self, free, t, carried):
        state = free.state(t)
        _, pull_back = jax.vjp(lambda state: free.problem.rate(state, t), state)
        ((by_q, by_p),) = pull_back(carried)
        return by_q + free.error(t), by_p

    @override
    def adjoint(self, carried):
        return carried

    @override
    def density(self, free, t, carried):

        def weighted(hamiltonian):
            velocity, force = free.problem.at(hamiltonian).rate(free.state(t), t)
            return jnp.vdot(carried[0], velocity) + jnp.vdot(carried[1], force)

        return eqx.filter_grad(weighted)(free.problem.hamiltonian)
