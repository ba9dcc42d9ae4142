"""Functions that see a whole batch although they are written, and called, for one sequence.

A custom gradient of one sequence, batched by `jax.vmap`, gives a gradient of the parameters for every sequence, which
is summed afterwards: a batch of matrix products where one product would do, and as many copies of every parameter as
there are sequences. Here the batch reaches the function as an axis of its own, so that it contracts over it.

A primitive is the place where jax lets that be said; the differentiation of it is that of the function.
"""

from collections.abc import Callable
from functools import wraps

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array, Float, PyTree


def sees_whole_batch(function: Callable) -> Callable:
    """Turns f(shared, (time, batch, in)) -> (time, batch, out) into f(shared, (time, in)) -> (time, out).

    Under `jax.vmap` over the sequences, nested or not, `function` is called once with all of them; under one over
    `shared`, a pytree, it is itself mapped. It must treat the sequences independently.
    """

    @wraps(function)
    def of_one_sequence(shared: PyTree, inputs: Float[Array, "time in"]) -> Float[Array, "time out"]:
        arrays, static = eqx.partition(shared, eqx.is_array)
        leaves, structure = jax.tree.flatten(arrays)

        def of_arrays(*operands):
            *leaves, inputs = operands
            return function(eqx.combine(jax.tree.unflatten(structure, leaves), static), inputs)

        return _whole_batch_p.bind(*leaves, inputs[:, None], function=of_arrays)[:, 0]

    return of_one_sequence


def _call(*operands, function):
    return function(*operands)


def _abstract(*operands, function):
    output = jax.eval_shape(function, *(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in operands))
    return jax.core.ShapedArray(output.shape, output.dtype)


def _jvp(primals, tangents, *, function):
    return jax.jvp(function, primals, tuple(ad.instantiate_zeros(tangent) for tangent in tangents))


def _batch(operands, axes, *, function):
    *shared, inputs = operands
    if any(axis is not None for axis in axes[:-1]):
        return jax.vmap(function, in_axes=axes)(*operands), 0
    inputs = jnp.moveaxis(inputs, axes[-1], 1)
    time, new, batch, *rest = inputs.shape
    outputs = _whole_batch_p.bind(*shared, inputs.reshape(time, new * batch, *rest), function=function)
    return outputs.reshape(time, new, batch, *outputs.shape[2:]), 1


_whole_batch_p = Primitive("whole_batch")
_whole_batch_p.def_impl(_call)
_whole_batch_p.def_abstract_eval(_abstract)
mlir.register_lowering(_whole_batch_p, mlir.lower_fun(_call, multiple_results=False))
ad.primitive_jvps[_whole_batch_p] = _jvp
batching.primitive_batchers[_whole_batch_p] = _batch
