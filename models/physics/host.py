"""A call of a numpy function from within a jax program. The call is made once for each run of the program.

`jax.pure_callback` may be dropped, merged or repeated. An ordered `jax.experimental.io_callback` is an effect: jax and
XLA keep each call, make it once, and in the order of the program, also from one program to the next. Such a call cannot
be mapped. The caller therefore sits behind `rhel.batching.batched_at_once`, which hands it the whole batch as an axis
and declares its effect, so that loops and programs around it pass the token of the order on.

jax converts what a callback gets and returns to the precision of the thread that runs it, which is not the thread that
set `jax.enable_x64`. Numbers of 64 bits therefore cross as pairs of 32 bits.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import io_callback
from jaxtyping import PyTree


def call_host(function: Callable, like: PyTree, *arguments: PyTree) -> PyTree:
    """`function(*arguments)` with numpy arrays of its own. It must not call jax, which may then wait for itself.

    `like` holds the shapes and types of the results (`jax.ShapeDtypeStruct`); results are cast to these types.
    """
    leaves, structure = jax.tree.flatten(arguments)
    results, results_structure = jax.tree.flatten(like)
    types = [np.dtype(x.dtype) for x in leaves]

    def on_host(*leaves):
        # Copies: the function may keep them or write into them, and jax may use the memory again.
        leaves = [_joined(np.array(x), dtype) for x, dtype in zip(leaves, types, strict=True)]
        returned = results_structure.flatten_up_to(function(*jax.tree.unflatten(structure, leaves)))
        return [_in_words(np.asarray(x, y.dtype)) for x, y in zip(returned, results, strict=True)]

    wide = [jax.ShapeDtypeStruct((*x.shape, 2), jnp.uint32) if np.dtype(x.dtype).itemsize == 8 else x for x in results]
    returned = io_callback(on_host, wide, *map(_split, leaves), ordered=True)
    joined = [
        jax.lax.bitcast_convert_type(x, y.dtype) if np.dtype(y.dtype).itemsize == 8 else x
        for x, y in zip(returned, results, strict=True)
    ]
    return jax.tree.unflatten(results_structure, joined)


def _split(x):
    return jax.lax.bitcast_convert_type(x, jnp.uint32) if x.dtype.itemsize == 8 else x


def _joined(x: np.ndarray, dtype: np.dtype) -> np.ndarray:
    return x.view(dtype)[..., 0] if dtype.itemsize == 8 else x


def _in_words(x: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(x)[..., None].view(np.uint32) if x.dtype.itemsize == 8 else x
