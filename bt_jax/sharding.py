"""The mesh, with one axis "data", and the shardings on it. It splits the batch, and little or nothing of the state.

For jitted code, a batch on many devices is one array. Therefore the statistics of batch norm and of the loss are those
of the whole batch on any number of devices: jit inserts the all-reduce. No other code synchronises them.
"""

import os
import re

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from bt_jax.messages import UserError, line

AXIS = "data"
# JAX_PLATFORMS -> (extra of bt_jax, the package to install, which works in a checkout and without one)
PACKAGES = {"cuda": ("cuda", "jax[cuda13]"), "gpu": ("cuda", "jax[cuda13]"), "tpu": ("tpu", "jax[tpu]")}


def make_mesh(devices=None) -> Mesh:
    """A mesh over some devices, by default over all devices of all processes.

    Its axis is `Auto`: jit propagates the sharding of the batch and inserts the collectives. `jax.make_mesh` would make
    an `Explicit` axis, for which z1.T @ z2 with a sharded batch is an error.
    """
    devices = np.asarray(all_devices() if devices is None else devices)
    return Mesh(devices.reshape(-1), (AXIS,), axis_types=(AxisType.Auto,))


def all_devices() -> list[jax.Device]:
    """The devices of all processes.

    Raises:
      UserError: JAX finds no device.
    """
    try:
        return jax.devices()
    except (RuntimeError, AssertionError) as error:  # for a missing platform
        names = [name for name in ("JAX_PLATFORMS", "JAX_PLATFORM_NAME") if os.environ.get(name)]
        settings = ", ".join(f"{name}={os.environ[name]}" for name in names)
        platforms = re.findall(r"\w+", " ".join(os.environ[name] for name in names).lower())
        extra, package = next((found for name, found in PACKAGES.items() if name in platforms), ("", ""))
        install = f"Install the extra {extra} (pip install '{package}') and its driver, or unset" if extra else "Unset"
        raise UserError(
            f"JAX finds no device{f' for {settings}' if settings else ''}{_why(error)}",
            f"{install} {' and '.join(names) or 'JAX_PLATFORMS'} to use the CPU.",
        ) from None


def _why(error: Exception) -> str:
    """The reason in JAX's text; "" if it only says that the platform is absent."""
    text = re.sub(r"^Unable to initialize backend '\w+':? ?|\(set JAX_PLATFORMS=.*", "", line(error, 1000)).strip(" .")
    return f": {text[:150]}" if str(error) and text and "known backends" not in text else ""


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding that splits the first axis over the devices."""
    return NamedSharding(mesh, PartitionSpec(AXIS))


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of a whole copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def state_sharding(shapes, mesh: Mesh, projector: str, images: int = 0):
    """The sharding of every array of a `TrainState`, as a pytree of its structure.

    Args:
      shapes: the state, or its shapes from `jax.eval_shape`.
      projector: `config.model.projector_sharding`. With "replicated", every device has every array. With "sharded", the
        arrays of the projector (parameters, batch statistics and their optimizer state) are split by their last axis,
        the features. The matrix of the probe is split by its rows, if their number is divisible by the number of
        devices: for ImageNet, this matrix is 3.5 times as large as the share that one of 256 devices has of the paper's
        projector.
      images: arrays of the memory with this number of rows are split by row, if it is divisible by the number of
        devices; 0 splits none.
    """

    def sharding_of(path, leaf):
        if getattr(path[0], "name", None) == "memory":
            by_row = images and leaf.shape[:1] == (images,) and images % mesh.devices.size == 0
            return batch_sharding(mesh) if by_row else replicated(mesh)
        keys = {getattr(entry, "key", None) for entry in path}
        if projector == "sharded" and "projector" in keys and leaf.ndim:
            return NamedSharding(mesh, PartitionSpec(*[None] * (leaf.ndim - 1), AXIS))
        if projector == "sharded" and "probe" in keys and leaf.ndim == 2 and leaf.shape[0] % mesh.devices.size == 0:
            return batch_sharding(mesh)
        return replicated(mesh)

    return jax.tree_util.tree_map_with_path(sharding_of, shapes)


def abstract(shapes, layout):
    """A pytree of shapes with the shardings of `layout`, to compile programs without arrays."""
    return jax.tree.map(lambda s, sharding: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=sharding), shapes, layout)


def put_batch(batch, mesh: Mesh):
    """Global arrays from the rows of each process: a pytree of NumPy arrays, whose first axis is the local batch."""
    sharding = batch_sharding(mesh)
    return jax.tree.map(lambda rows: jax.make_array_from_process_local_data(sharding, rows), batch)


def put_global(batch, mesh: Mesh):
    """Global arrays from a whole batch, of which every process has the same copy."""
    sharding = batch_sharding(mesh)
    return jax.tree.map(lambda x: jax.make_array_from_callback(x.shape, sharding, lambda index: x[index]), batch)


def round_up(batch_size: int, mesh: Mesh) -> int:
    """The smallest batch size, not below `batch_size`, that is divisible by the number of devices."""
    return -(-batch_size // mesh.devices.size) * mesh.devices.size


def put_replicated(tree, mesh: Mesh):
    """Copies every array of a pytree to every device; all processes must have the same values."""
    return jax.device_put(tree, replicated(mesh))


def check_batch(batch_size: int, mesh: Mesh) -> None:
    """Raises UserError unless the global batch is divisible by the number of devices."""
    devices = mesh.devices.size
    if batch_size % devices:
        fits = [size for size in range(batch_size, batch_size + devices) if size % devices == 0][0]
        raise UserError(
            f"The global batch of {batch_size} is not divisible by {devices} devices",
            f"Set --config.batch_size={fits}, or make fewer devices visible.",
        )
