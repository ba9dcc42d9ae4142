"""Data parallelism: the devices of all processes divide the samples of each batch among them.

Every device holds the whole model, optimiser state and BatchNorm state, and runs the program of one device on its part
of the batch (`jax.shard_map`). The moments of BatchNorm, the mean loss and the gradient of the parameters are averaged
over the devices, in the forward pass of each BatchNorm, in its derivative, and at the end of the step. Nothing that
grows with the length of the sequences or with the batch passes from device to device. The results are those of one
device up to rounding. See docs/scale.md.

The processes (`training.hosts`; usually there is one) have equally many of the devices, and each loads only the samples
of its own.
"""

from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from training import hosts

AXIS = "devices"


def require_devices(devices: int, batch_size: int) -> None:
    """Raise `ValueError` if jax sees fewer devices, or if they cannot divide a batch equally.

    Several processes must have equally many of the devices.
    """
    present, processes = jax.devices(), jax.process_count()
    if not 1 <= devices <= len(present):
        raise ValueError(f"devices {devices}: jax sees {len(present)} ({present[0].device_kind})")
    if devices not in dividing(batch_size, len(present)):
        fitting = ", ".join(map(str, dividing(batch_size, len(present)))) or "none"
        together = f", as many on each of {processes} processes" * (processes > 1)
        raise ValueError(
            f"devices {devices}: they cannot divide a batch of {batch_size} samples (batch_size) equally{together}. Of "
            f"the {len(present)} devices, these numbers can: {fitting}"
        )


def dividing(batch_size: int, most: int) -> list[int]:
    """The numbers of devices, up to `most`, that can divide a batch equally, with as many on each process."""
    processes = jax.process_count()
    return [number for number in range(processes, most + 1, processes) if batch_size % number == 0]


def connect(devices: int) -> None:
    """Let the devices of several processes find each other, while all wait for it.

    The first collective of a CPU waits 30 s at most, and compiling may take longer in some processes than in others.
    """
    if jax.process_count() > 1:
        hosts.gathered(None)
        whole(divided(np.zeros(devices // jax.process_count(), np.float32), devices))


def replicated(tree: PyTree, devices: int) -> PyTree:
    """The tree with all its arrays on each of the first `devices` devices. With one device, the tree itself.

    All processes must have the same tree.
    """
    if devices == 1:
        return tree
    sharding = NamedSharding(_mesh(devices), PartitionSpec())
    if jax.process_count() == 1:
        return eqx.filter_shard(tree, sharding)

    def everywhere(leaf):
        if not eqx.is_array(leaf) or not leaf.is_fully_addressable:
            return leaf
        return jax.make_array_from_process_local_data(sharding, np.asarray(leaf), leaf.shape)

    return jax.tree.map(everywhere, tree)


def divided(arrays: PyTree, devices: int, *, axis: int = 0) -> Any:
    """The arrays on the first `devices` devices, each with an equal part of the samples along `axis`.

    A process gives the samples of its `own_part` of the batch.
    """
    if devices == 1:
        return jax.device_put(arrays)
    sharding = NamedSharding(_mesh(devices), PartitionSpec(*[None] * axis, AXIS))
    if jax.process_count() == 1:
        return jax.device_put(arrays, sharding)
    return jax.tree.map(partial(jax.make_array_from_process_local_data, sharding), arrays)


def own_part(samples: np.ndarray) -> np.ndarray:
    """Of a whole batch along the first axis, the part of this process."""
    return np.split(samples, jax.process_count())[jax.process_index()]


def own_batches(batches: Any, loader: Any) -> Iterator[tuple]:
    """The `own_part` of each of the batches of a `Dataloader`, the only samples that are loaded."""
    return batches if jax.process_count() == 1 else _own_batches(batches, loader)


def _own_batches(batches, loader):
    while True:
        yield loader.batch(own_part(batches.draw()))


def whole(array: jax.Array) -> np.ndarray:
    """An array that is divided among the devices of all processes, on the host of each."""
    addressable = array.is_fully_addressable or array.is_fully_replicated
    return np.asarray(array if addressable else multihost_utils.process_allgather(array, tiled=True))


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
    """A compiled function(model, state, x) of a whole batch. The results of `function` have the samples first.

    Several processes give the whole batch each, and get the results of the whole batch.
    """
    if devices == 1:
        return function
    of_batch = eqx.filter_jit(over_devices(lambda shared, x: (None, function(*shared, x)), devices))
    if jax.process_count() == 1:
        return lambda model, state, x: of_batch((model, state), divided(x, devices))[1]
    return lambda model, state, x: jax.tree.map(
        whole, of_batch(replicated((model, state), devices), divided(own_part(np.asarray(x)), devices))[1]
    )


def average(tree: PyTree, devices: int) -> PyTree:
    """In `over_devices`: the mean over the devices of every array."""
    return tree if devices == 1 else jax.lax.pmean(tree, AXIS)


def of_each(tree: PyTree, devices: int) -> PyTree:
    """In `over_devices`: every array of all devices, stacked in their order along a new first axis.

    The bits do not depend on how the devices are divided among processes. Those of `average` do.
    """
    return jax.tree.map(lambda x: x[None], tree) if devices == 1 else jax.lax.all_gather(tree, AXIS)


def _mesh(devices: int) -> Mesh:
    """The devices in the order of the processes, as many of each."""
    processes = jax.process_count()
    present = [[device for device in jax.devices() if device.process_index == each] for each in range(processes)]
    taken = [own[: devices // processes] for own in present]
    return Mesh(np.concatenate(taken), (AXIS,), axis_types=(AxisType.Auto,))
