"""Data parallelism on one host: the devices divide the samples of each batch among them.

Every device holds the whole model, optimiser state and BatchNorm state, and runs the program of one device on its part
of the batch (`jax.shard_map`). The moments of BatchNorm, the mean loss and the gradient of the parameters are averaged
over the devices, in the forward pass of each BatchNorm, in its derivative, and at the end of the step. Nothing that
grows with the length of the sequences or with the batch passes from device to device. The results are those of one
device up to rounding. See docs/scale.md.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

AXIS = "devices"


def require_devices(devices: int, batch_size: int) -> None:
    """Raise `ValueError` if jax sees fewer devices, or if they cannot divide a batch equally."""
    present = jax.devices()
    if not 1 <= devices <= len(present):
        raise ValueError(f"devices {devices}: jax sees {len(present)} ({present[0].device_kind})")
    if batch_size % devices:
        fitting = ", ".join(map(str, dividing(batch_size, len(present))))
        raise ValueError(
            f"devices {devices}: they cannot divide a batch of {batch_size} samples (batch_size) equally. Of the "
            f"{len(present)} devices, these numbers can: {fitting}"
        )


def dividing(batch_size: int, most: int) -> list[int]:
    """The numbers of devices, from 1 to `most`, that can divide a batch equally."""
    return [number for number in range(1, most + 1) if batch_size % number == 0]


def replicated(tree: PyTree, devices: int) -> PyTree:
    """The tree with all its arrays on each of the first `devices` devices. With one device, the tree itself."""
    return tree if devices == 1 else eqx.filter_shard(tree, NamedSharding(_mesh(devices), PartitionSpec()))


def divided(arrays: PyTree, devices: int, *, axis: int = 0) -> Any:
    """The arrays on the first `devices` devices, each with an equal part of the samples along `axis`."""
    if devices == 1:
        return jax.device_put(arrays)
    return jax.device_put(arrays, NamedSharding(_mesh(devices), PartitionSpec(*[None] * axis, AXIS)))


def over_devices(function: Callable, devices: int) -> Callable:
    """A function(shared, *arrays) of a whole batch, from a `function` of the same arguments for a part of the batch.

    `shared` is a pytree, the arrays have the samples as their first axis. `function` returns a pair: results that are
    equal on all devices, such as an `average`, and results with the samples as their first axis.
    """
    if devices == 1:
        return function

    def of_batch(shared: PyTree, *arrays: Any):
        shared, static = eqx.partition(shared, eqx.is_array)

        def of_device(shared, arrays):
            return function(eqx.combine(shared, static), *arrays)

        specs = (PartitionSpec(), PartitionSpec(AXIS))
        # jax's check of what differs between devices does not know the axis of `jax.vmap` that BatchNorm averages over.
        # Without it, the gradient of a shared array on a device is that of the device's samples.
        how = {"mesh": _mesh(devices), "in_specs": specs, "out_specs": specs, "check_vma": False}
        return jax.shard_map(of_device, **how)(shared, arrays)

    return of_batch


@cache
def of_samples(function: Callable, devices: int) -> Callable:
    """A compiled function(model, state, x) of a whole batch. The results of `function` have the samples first."""
    if devices == 1:
        return function
    of_batch = eqx.filter_jit(over_devices(lambda shared, x: (None, function(*shared, x)), devices))
    return lambda model, state, x: of_batch((model, state), divided(x, devices))[1]


def average(tree: PyTree, devices: int) -> PyTree:
    """In `over_devices`: the mean over the devices of every array."""
    return tree if devices == 1 else jax.lax.pmean(tree, AXIS)


def total(tree: PyTree, devices: int) -> PyTree:
    """In `over_devices`: the sum over the devices of every array."""
    return tree if devices == 1 else jax.lax.psum(tree, AXIS)


def _mesh(devices: int) -> Mesh:
    return Mesh(np.array(jax.devices()[:devices]), (AXIS,), axis_types=(AxisType.Auto,))
