"""One mesh with one axis, "data": the batch is split over it, and little or nothing of the state.

A batch stays one array for whoever computes with it, so the statistics of batch norm and of the loss are those of the
whole batch on any number of devices: jit inserts the all-reduce. Nothing else synchronises them.
"""

import os

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from bt_jax.messages import UserError, line

AXIS = "data"


def make_mesh(devices=None) -> Mesh:
    """A mesh over all devices of all processes, or over the given ones.

    The axis is `Auto`: jit then propagates the batch's sharding and inserts the collectives. `jax.make_mesh` would by
    default make it `Explicit`, under which z1.T @ z2 with a sharded batch is an error.
    """
    devices = np.asarray(all_devices() if devices is None else devices)
    return Mesh(devices.reshape(-1), (AXIS,), axis_types=(AxisType.Auto,))


def all_devices() -> list[jax.Device]:
    """The devices of all processes; UserError if JAX finds none."""
    try:
        return jax.devices()
    except (RuntimeError, AssertionError) as error:  # what is asked for is not there; an AssertionError says nothing
        names = [name for name in ("JAX_PLATFORMS", "JAX_PLATFORM_NAME") if os.environ.get(name)]
        asked = ", ".join(f"{name}={os.environ[name]}" for name in names)
        raise UserError(
            f"JAX finds no device{f' for {asked}' if asked else ''}: {line(error, 200)}",
            f"Unset {' and '.join(names) or 'JAX_PLATFORMS'} or set JAX_PLATFORMS=cpu.",
        ) from None


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The first axis over the devices."""
    return NamedSharding(mesh, PartitionSpec(AXIS))


def replicated(mesh: Mesh) -> NamedSharding:
    """A whole copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def state_sharding(shapes, mesh: Mesh, head: str, images: int = 0):
    """Where every array of a `TrainState` lies, as a pytree of its structure.

    Args:
      shapes: the state, or its shapes from `jax.eval_shape`.
      head: `config.model.projector_sharding`. "replicated": every array on every device. "sharded": whatever belongs to
        the projector (parameters, batch statistics and the optimizer's arrays for them) is split by its last axis, the
        features; the probe's matrix (ImageNet's is 3.5 times a 256th of the paper's projector) by its rows, where they
        divide.
      images: number of rows of the arrays in memory that are split by row, if the devices divide it; 0: none.
    """

    def place(path, leaf):
        if getattr(path[0], "name", None) == "memory":
            by_row = images and leaf.shape[:1] == (images,) and images % mesh.devices.size == 0
            return batch_sharding(mesh) if by_row else replicated(mesh)
        keys = {getattr(entry, "key", None) for entry in path}
        if head == "sharded" and "projector" in keys and leaf.ndim:
            return NamedSharding(mesh, PartitionSpec(*[None] * (leaf.ndim - 1), AXIS))
        if head == "sharded" and "probe" in keys and leaf.ndim == 2 and leaf.shape[0] % mesh.devices.size == 0:
            return batch_sharding(mesh)
        return replicated(mesh)

    return jax.tree_util.tree_map_with_path(place, shapes)


def abstract(shapes, layout):
    """A pytree of shapes with the shardings of `layout`, for programs that are compiled without any array."""
    return jax.tree.map(lambda s, at: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=at), shapes, layout)


def put_batch(batch, mesh: Mesh):
    """Global arrays from each process's own rows (a pytree of numpy arrays, first axis the local batch)."""
    sharding = batch_sharding(mesh)
    return jax.tree.map(lambda rows: jax.make_array_from_process_local_data(sharding, rows), batch)


def put_global(batch, mesh: Mesh):
    """Global arrays from whole batches, of which every process holds the same copy."""
    sharding = batch_sharding(mesh)
    return jax.tree.map(lambda x: jax.make_array_from_callback(x.shape, sharding, lambda index: x[index]), batch)


def round_up(batch_size: int, mesh: Mesh) -> int:
    """The next batch that divides by the number of devices."""
    return -(-batch_size // mesh.devices.size) * mesh.devices.size


def put_replicated(tree, mesh: Mesh):
    """A copy of every array of the pytree on every device; each process must hold the same values."""
    return jax.device_put(tree, replicated(mesh))


def check_batch(batch_size: int, mesh: Mesh) -> None:
    """Raises UserError unless the global batch divides by the number of devices."""
    devices = mesh.devices.size
    if batch_size % devices:
        fits = [size for size in range(batch_size, batch_size + devices) if size % devices == 0][0]
        raise UserError(
            f"The global batch of {batch_size} does not divide by {devices} devices",
            f"Set --config.batch_size={fits}, or make fewer devices visible.",
        )
