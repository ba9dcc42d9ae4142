"""Data parallelism on one host: the devices divide the samples of each batch among them.

Every device holds the whole model, optimiser state and BatchNorm state. jax compiles the program of one device for all
of them, by the places of its arguments. The mean loss, the gradients of the parameters and the averages of BatchNorm
are sums over the whole batch, so the compiler adds a sum over the devices to each. The numbers are those of one device
up to rounding. See docs/scale.md.
"""

from typing import Any

import equinox as eqx
import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree


def require_devices(devices: int, batch_size: int) -> None:
    """Raise `ValueError` if the platform has fewer devices, or if they cannot divide a batch equally."""
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
    return tree if devices == 1 else eqx.filter_shard(tree, _sharding(devices))


def divided(arrays: PyTree, devices: int, *, axis: int = 0) -> Any:
    """The arrays on the first `devices` devices, each with an equal part of the samples along `axis`."""
    if devices == 1:
        return jax.device_put(arrays)
    return jax.device_put(arrays, _sharding(devices, *[None] * axis, "batch"))


def _sharding(devices: int, *axes: str | None) -> NamedSharding:
    mesh = Mesh(np.array(jax.devices()[:devices]), ("batch",), axis_types=(AxisType.Auto,))
    return NamedSharding(mesh, PartitionSpec(*axes))
