"""GPUs that XLA compiles for on a machine without one, and the CUDA plugin that compiles."""

import importlib.metadata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import topologies
from jaxlib import xla_client

WHEELS = ("jax-cuda12-plugin", "jax-cuda12-pjrt")
LAUNCH_SECONDS = 2.5e-6
"""Time of the model for a kernel that has little to do. Launches of a graph take about so long."""


class GPU(NamedTuple):
    """What XLA asks about a GPU. Memory in bytes, clock in GHz."""

    name: str
    capability: tuple[int, int]
    cores: int  # streaming multiprocessors
    units: int  # float32 units of a core
    threads: int  # of a core
    shared_of_core: int
    shared_of_block: int  # at most, on request
    l2: int
    clock: float
    memory: int
    bytes_per_second: int

    def description(self) -> str:
        """The text of XLA's `GpuTargetConfigProto`."""
        major, minor = self.capability
        return f"""
            gpu_device_info {{
                core_count: {self.cores} fpus_per_core: {self.units} clock_rate_ghz: {self.clock}
                threads_per_warp: 32 threads_per_block_limit: 1024 threads_per_core_limit: {self.threads}
                registers_per_core_limit: 65536 registers_per_block_limit: 65536
                shared_memory_per_core: {self.shared_of_core} shared_memory_per_block: 49152
                shared_memory_per_block_optin: {self.shared_of_block} l2_cache_size: {self.l2}
                device_memory_size: {self.memory} memory_bandwidth: {self.bytes_per_second}
                block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
                cuda_compute_capability {{ major: {major} minor: {minor} }}
            }}
            platform_name: "CUDA" dnn_version_info {{ major: 9 minor: 8 patch: 0 }}
            device_description_str: "{self.name}"
        """


# From NVIDIA's data sheets and the tables of the CUDA programming guide (shared memory and threads by capability).
KIB = 1024
GPUS = {
    "H100": GPU(
        "NVIDIA H100 80GB HBM3",
        *((9, 0), 132, 128, 2048, 228 * KIB, 227 * KIB, 50 * KIB**2, 1.98, 84_942_979_072, 3_352_320_000_000),
    ),
    "A100": GPU(
        "NVIDIA A100-SXM4-80GB",
        *((8, 0), 108, 64, 2048, 164 * KIB, 163 * KIB, 40 * KIB**2, 1.41, 84_942_979_072, 2_039_000_000_000),
    ),
    "RTX4090": GPU(
        "NVIDIA GeForce RTX 4090",
        *((8, 9), 128, 128, 1536, 100 * KIB, 99 * KIB, 72 * KIB**2, 2.52, 25_351_356_416, 1_008_000_000_000),
    ),
}


class PluginError(RuntimeError):
    """The plugin that compiles for CUDA is missing, or it belongs to another version of jax."""


def library(folder: Path) -> Path:
    """The plugin in a folder of wheels. Raises `PluginError` if it is missing or of another version than jax."""
    wheels = " ".join(f"{name}=={jax.__version__}" for name in WHEELS)
    remedy = f"python -m pip install --no-deps --upgrade --target {folder} {wheels}"
    known = {x.name.replace("_", "-"): x.version for x in importlib.metadata.distributions(path=[str(folder)])}
    for name in WHEELS:
        if name not in known:
            raise PluginError(f"{folder} does not hold {name}, which compiles for a GPU. Get it with: {remedy}")
        if known[name] != jax.__version__:
            other = f"{folder} holds {name} {known[name]}, jax is {jax.__version__}"
            raise PluginError(f"{other}. Replace it with: {remedy}")
    path = folder / "jax_plugins" / "xla_cuda12" / "xla_cuda_plugin.so"
    if not path.is_file():
        raise PluginError(f"{path} is missing: the wheel is damaged. Replace it with: {remedy}")
    return path


def described(gpu: GPU, folder: Path) -> Any:
    """A device that programs can be compiled for, but not run on. `folder` holds the wheels of the plugin.

    Where jax itself has the plugin, as on a machine with a GPU, the folder is not needed.
    """
    return several_described(gpu, folder, 1)[0]


def several_described(gpu: GPU, folder: Path, number: int) -> list[Any]:
    """So many devices of one host, each as `described`."""
    options = {"topology": f"1x1x{number}", "target_config": gpu.description()}
    jax.devices()  # loads the plugins of jax itself
    if not xla_client.pjrt_plugin_loaded("cuda"):
        _loaded.append(xla_client.load_pjrt_plugin_dynamically("cuda", str(library(folder))))
        xla_client.initialize_pjrt_plugin("cuda")
    if _loaded:
        return xla_client.make_c_api_device_topology(_loaded[0], "", **options)._make_compile_only_devices()
    return topologies.get_topology_desc("", "cuda", **options).devices


_loaded: list[Any] = []


@contextmanager
def tracing_for(*devices: Any) -> Iterator[None]:
    """Programs that are traced in the block see these devices alone.

    The models ask `jax.devices()` how to compute a step, and trace only the program of the platforms that they see. jax
    keeps what it has traced, so that is forgotten before and after.
    """
    jax.clear_caches()
    present = jax.devices
    jax.devices = lambda *_: list(devices)
    try:
        yield
    finally:
        jax.devices = present
        jax.clear_caches()


def compiled_for(device: Any, function: Callable, donated: Any, *arguments: Any) -> jax.stages.Compiled:
    """The function of these arguments, compiled for a device that `described` made. Only their shapes matter."""
    place = jax.sharding.SingleDeviceSharding(device)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(np.shape(x), x.dtype, sharding=place), (donated, *arguments))
    with tracing_for(device):
        return jax.jit(function, donate_argnums=0).trace(*shapes).lower().compile()
