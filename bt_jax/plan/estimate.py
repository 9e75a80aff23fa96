"""Compiling a training step ahead of time for a TPU slice, and what it needs there: memory, FLOPs, collectives."""

import importlib.util
import os
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh
from ml_collections import ConfigDict

from bt_jax import sharding
from bt_jax.config import keys
from bt_jax.messages import UserError
from bt_jax.plan import collectives
from bt_jax.train import build, epochs

# libtpu compiles here without a chip: it neither asks the cloud where it is nor minds who else has it loaded.
COMPILER_ONLY = {
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_MIN_LOG_LEVEL": "3",
    "TPU_STDERR_LOG_LEVEL": "3",
}

# ImageNet's, so that nothing needs to be opened: they enter the schedule, the probe, and what a method remembers of
# each image.
IMAGES, CLASSES = 1_281_167, 1000


class Chip(NamedTuple):
    """Published figures of a chip, per second where they are rates.

    Source: "System architecture" of each version in the Cloud TPU documentation (cloud.google.com/tpu/docs/v4, v5e,
    v5p, v6e). `link_bytes` is one direction of all of a chip's interconnect links, half of the published bidirectional
    rate.
    """

    flops: float  # bfloat16
    memory: float  # bytes
    memory_bytes: float
    link_bytes: float
    slices: tuple[str, ...]


FLAT = ("2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
CUBES = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16", "8x16x16")
CHIPS = {
    "v4": Chip(275e12, 32 * 2**30, 1228e9, 300e9, CUBES),
    "v5e": Chip(197e12, 16 * 2**30, 819e9, 200e9, FLAT),
    "v5p": Chip(459e12, 95 * 2**30, 2765e9, 600e9, CUBES),
    "v6e": Chip(918e12, 32 * 2**30, 1640e9, 400e9, FLAT),
}


def topology_mesh(name: str) -> tuple[Mesh, Chip]:
    """A mesh over the chips of a slice such as "v5e:16x16", and the chip.

    Raises:
      UserError: an unknown name, or no libtpu.
    """
    version, _, shape = name.partition(":")
    if version not in CHIPS:
        raise UserError(f"Topology {name!r} is unknown", f"Write VERSION:SHAPE with a version of {', '.join(CHIPS)}.")
    chip = CHIPS[version]
    if shape not in chip.slices:
        raise UserError(f"There is no {version} slice {shape!r}", f"Choose from {', '.join(chip.slices)}.")
    if importlib.util.find_spec("libtpu") is None:
        raise UserError("The compiler for TPUs, libtpu, is not installed", "Run pip install -e '.[tpu]'.")
    os.environ.update(COMPILER_ONLY | os.environ)
    described = topologies.get_topology_desc(platform="tpu", topology_name=name)
    # A v4 chip has two cores; on a TPU VM they are one device.
    devices = [device for device in described.devices if device.core_on_chip == 0]
    return sharding.make_mesh(devices), chip


def make_plan(config: ConfigDict, mesh: Mesh, chip: Chip) -> dict[str, Any]:
    """Compiles the config's training step for the mesh and counts.

    Returns:
      Per chip, bytes, FLOPs and seconds; see `plan.__main__.table` for the words. Plain JSON types.
    """
    started = time.monotonic()
    compiled, state, batch = compile_step(config, mesh)
    seconds = time.monotonic() - started
    need = measure(compiled, mesh)
    times = {
        "arithmetic": need["flops"] / chip.flops,
        "memory": need["bytes_accessed"] / chip.memory_bytes,
        "interconnect": need["link_bytes"] / chip.link_bytes,
    }
    return {
        "chips": mesh.devices.size,
        "batch_size": config.batch_size,
        "state_bytes": _bytes_per_chip(state),
        "batch_bytes": _bytes_per_chip(batch),
        "memory_bytes": chip.memory,
        "fits": bool(need["peak_bytes"] <= chip.memory),
        **need,
        "seconds": times,
        "limit": max(times, key=times.__getitem__),
        "compile_seconds": round(seconds, 1),
    }


def compile_step(config: ConfigDict, mesh: Mesh) -> tuple[jax.stages.Compiled, Any, dict[str, Any]]:
    """The config's training step, compiled without any array; and the shapes and layouts of its state and its batch."""
    settings = keys.read(config)
    sharding.check_batch(settings.batch_size, mesh)
    recipe = build.build_recipe(settings.views)
    steps = epochs.make_plan(settings, IMAGES)
    training = build.build_training(settings, steps, recipe, CLASSES, mesh, images=IMAGES)

    rows = sharding.batch_sharding(mesh)
    shapes = jax.eval_shape(training.create, jax.random.key(0))
    state = sharding.abstract(shapes, training.layout)
    side = settings.views.size if settings.data.on_device else settings.data.canvas
    n, channels = settings.batch_size, len(recipe.mean)
    batch = {"image": ((n, side, side, channels), jnp.uint8), "id": ((n,), jnp.int32), "label": ((n,), jnp.int32)}
    if not settings.data.on_device:
        batch["size"] = ((n, 2), jnp.int32)
    batch = {name: jax.ShapeDtypeStruct(*spec, sharding=rows) for name, spec in batch.items()}

    jitted = jax.jit(training.step, donate_argnums=0, out_shardings=(training.layout, sharding.replicated(mesh)))
    return jitted.lower(state, batch).compile(), state, batch


def measure(compiled: jax.stages.Compiled, mesh: Mesh) -> dict[str, Any]:
    """Memory, FLOPs and collectives of a compiled program, per chip.

    XLA counts the body of a loop once: the covariance form is short of FLOPs where its rows of c do not fit one block
    (objectives.barlow_twins.BLOCK), which takes D^2 / chips above 2^24.
    """
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis()
    found = collectives.count(compiled.as_text(), mesh.devices.size)
    kept = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    return {
        "temporary_bytes": memory.temp_size_in_bytes,
        "peak_bytes": kept + memory.temp_size_in_bytes,
        "flops": cost["flops"],
        "bytes_accessed": cost["bytes accessed"],
        "collectives": found,
        "collective_bytes": sum(kind["bytes"] for kind in found.values()),
        "link_bytes": sum(kind["link_bytes"] for kind in found.values()),
    }


def _bytes_per_chip(tree) -> int:
    shards = ((leaf.sharding.shard_shape(leaf.shape), leaf.dtype) for leaf in jax.tree.leaves(tree))
    return sum(int(np.prod(shape)) * dtype.itemsize for shape, dtype in shards)
