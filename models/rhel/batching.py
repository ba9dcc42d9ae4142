"""Functions that are called for one sequence and run once for the whole batch.

`jax.vmap` of a custom gradient computes the gradient of the parameters once for every sequence and sums afterwards: a
batch of matrix products instead of one product, and one copy of every parameter for each sequence. Here the function
gets the batch as an axis of its own, and its gradient contracts over it.

Only a primitive sees vmap before differentiation. Its derivative is the derivative of `function`.
"""

from collections.abc import Callable
from functools import partial, wraps

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array, PyTree, Shaped


def batched_at_once(function: Callable, plain: Callable | None = None) -> Callable:
    """Turns f(shared, (time, batch, ..), ..) -> (time, batch, ..) into f(shared, (time, ..), ..) -> (time, ..).

    Under `jax.vmap` over the sequences, nested or not, `function` is called once with all sequences. Under `jax.vmap`
    over `shared`, a pytree, `function` is mapped too. It must treat the sequences independently.

    `plain` computes the same where no derivative is taken. A `function` with a custom gradient and effects needs it:
    jax refuses to stage effects inside a custom gradient. The effects of `plain` are those of the call, so that no
    transformation drops or repeats it.
    """

    @wraps(function)
    def of_one_sequence(shared: PyTree, *inputs: Shaped[Array, "time ..."]) -> Shaped[Array, "..."]:
        arrays, static = eqx.partition(shared, eqx.is_array)
        leaves, structure = jax.tree.flatten(arrays)

        def of_batch(which, *operands):
            leaves, inputs = operands[: len(operands) - len(axes)], operands[-len(axes) :]
            return which(eqx.combine(jax.tree.unflatten(structure, leaves), static), *inputs)

        axes = (1,) * len(inputs)
        leaves, inputs = _equally_varying((leaves, inputs))
        functions = {"function": partial(of_batch, function), "plain": partial(of_batch, plain or function)}
        return _whole_batch_p.bind(*leaves, *inputs, **functions, shared=len(leaves), batched=False)

    return of_one_sequence


def as_varying(x: Array, like: Array) -> Array:
    """The array, marked as different on the devices on which `like` is. It matters only inside `jax.shard_map`.

    In `jax.shard_map`, an array that does not vary over a mesh axis gets a gradient summed over that axis. A state of
    zeros varies as soon as a drive acts on it, so it must start as varying.
    """
    missing = _varying(like) - _varying(x)
    return jax.lax.pcast(x, tuple(sorted(missing)), to="varying") if missing else x


def _varying(x):
    return jax.typeof(x).manual_axis_type.varying


def _equally_varying(tree):
    """All arrays, marked as varying over every mesh axis over which at least one of them varies."""
    leaves = jax.tree.leaves(tree)
    widest = frozenset().union(*map(_varying, leaves))
    if not widest:
        return tree
    return jax.tree.map(lambda x: jax.lax.pcast(x, tuple(sorted(widest - _varying(x))), to="varying"), tree)


def _call(*operands, function, plain, shared, batched):
    """The result where no derivative is taken."""
    return _applied(plain, operands, shared, batched)


def _applied(function, operands, shared, batched):
    if batched:
        return function(*operands)
    return function(*operands[:shared], *(x[:, None] for x in operands[shared:]))[:, 0]


def _abstract(*operands, **how):
    like = (
        jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding, manual_axis_type=x.manual_axis_type)
        for x in operands
    )
    jaxpr = jax.make_jaxpr(partial(_call, **how))(*like)
    (output,) = jaxpr.out_avals
    return output, jaxpr.effects


def _jvp(primals, tangents, *, function, plain, shared, batched):
    moving = [not isinstance(tangent, ad.Zero) for tangent in tangents]

    def of_moving(*moved):
        moved = iter(moved)
        operands = tuple(next(moved) if moves else x for x, moves in zip(primals, moving, strict=True))
        return _applied(function, operands, shared, batched)

    def those_moving(xs):
        return tuple(x for x, moves in zip(xs, moving, strict=True) if moves)

    return jax.jvp(of_moving, those_moving(primals), those_moving(tangents))


def _batch(operands, axes, *, function, plain, shared, batched):
    how = {"function": function, "plain": plain, "shared": shared, "batched": True}
    if any(axis is not None for axis in axes[:shared]):
        return jax.vmap(lambda *x: _applied(function, x, shared, batched), axes)(*operands), 0
    (new,) = {x.shape[axis] for x, axis in zip(operands, axes, strict=True) if axis is not None}
    inputs = [
        jnp.broadcast_to(x[:, None], (x.shape[0], new, *x.shape[1:])) if axis is None else jnp.moveaxis(x, axis, 1)
        for x, axis in zip(operands[shared:], axes[shared:], strict=True)
    ]
    if not batched:
        return _whole_batch_p.bind(*operands[:shared], *inputs, **how), 1
    merged = (x.reshape(x.shape[0], new * x.shape[2], *x.shape[3:]) for x in inputs)
    outputs = _whole_batch_p.bind(*operands[:shared], *merged, **how)
    return outputs.reshape(outputs.shape[0], new, -1, *outputs.shape[2:]), 1


_whole_batch_p = Primitive("whole_batch")
_whole_batch_p.def_impl(_call)
_whole_batch_p.def_effectful_abstract_eval(_abstract)
mlir.register_lowering(_whole_batch_p, mlir.lower_fun(_call, multiple_results=False))
ad.primitive_jvps[_whole_batch_p] = _jvp
batching.primitive_batchers[_whole_batch_p] = _batch
