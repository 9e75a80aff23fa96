"""Compiles a training step ahead of time for a TPU slice, and measures its memory, FLOPs and collectives."""

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

# Environment in which libtpu compiles without a chip. It sends no request to the metadata server of the cloud, and
# several processes can load it at the same time.
COMPILER_ONLY = {
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_MIN_LOG_LEVEL": "3",
    "TPU_STDERR_LOG_LEVEL": "3",
}

# Sizes of ImageNet, so that no data set has to be opened. The schedule, the probe and the memory of a method depend on
# them.
IMAGES, CLASSES = 1_281_167, 1000


class Chip(NamedTuple):
    """Published figures of a chip.

    Source: "System architecture" of each version in the Cloud TPU documentation (cloud.google.com/tpu/docs/v4, v5e,
    v5p, v6e).

    Attributes:
      flops_per_second: in bfloat16.
      memory_bytes: size of its memory.
      memory_bytes_per_second: from and to its memory.
      link_bytes_per_second: sent over all its interconnect links: half of the published bidirectional rate.
      slices: shapes of the slices that exist.
    """

    flops_per_second: float
    memory_bytes: float
    memory_bytes_per_second: float
    link_bytes_per_second: float
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
    """The mesh over the chips of a slice such as "v5e:16x16", and the figures of the chip.

    Raises:
      UserError: the name is unknown, or libtpu is not installed.
    """
    version, _, shape = name.partition(":")
    if version not in CHIPS:
        versions = ", ".join(CHIPS)
        raise UserError(f"--topology={name!r} is unknown", f"Write VERSION:SHAPE, with one of the versions {versions}.")
    chip = CHIPS[version]
    if shape not in chip.slices:
        raise UserError(f"There is no {version} slice {shape!r}", f"Choose from {', '.join(chip.slices)}.")
    if importlib.util.find_spec("libtpu") is None:
        raise UserError("The compiler for TPUs, libtpu, is not installed", "Run pip install 'jax[tpu]'.")
    os.environ.update(COMPILER_ONLY | os.environ)
    topology = topologies.get_topology_desc(platform="tpu", topology_name=name)
    # A v4 chip has two cores, which are one device on a TPU VM.
    devices = [device for device in topology.devices if device.core_on_chip == 0]
    return sharding.make_mesh(devices), chip


def make_plan(config: ConfigDict, mesh: Mesh, chip: Chip) -> dict[str, Any]:
    """Compiles the training step of a config for the mesh, and estimates its memory and time.

    Returns:
      A dict of JSON types with bytes, FLOPs and seconds per chip and step; `plan.__main__.table` names them in words.
    """
    started = time.monotonic()
    compiled, state, batch = compile_step(config, mesh)
    seconds = time.monotonic() - started
    need = measure(compiled, mesh)
    times = {
        "arithmetic": need["flops"] / chip.flops_per_second,
        "memory": need["bytes_accessed"] / chip.memory_bytes_per_second,
        "interconnect": need["link_bytes"] / chip.link_bytes_per_second,
    }
    return {
        "chips": mesh.devices.size,
        "batch_size": config.batch_size,
        "state_bytes": _bytes_per_chip(state),
        "batch_bytes": _bytes_per_chip(batch),
        "memory_bytes": chip.memory_bytes,
        "fits": bool(need["peak_bytes"] <= chip.memory_bytes),
        **need,
        "seconds": times,
        "limit": max(times, key=times.__getitem__),
        "compile_seconds": round(seconds, 1),
    }


def compile_step(config: ConfigDict, mesh: Mesh) -> tuple[jax.stages.Compiled, Any, dict[str, Any]]:
    """(compiled training step of a config, shapes and layouts of its state, those of its batch); makes no array."""
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

    XLA counts the body of a loop once. Therefore the FLOPs of the covariance form are too low if its rows of c need
    several blocks (objectives.barlow_twins.BLOCK), that is if D^2 / chips is above 2^24.
    """
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis()
    totals = collectives.count(compiled.as_text(), mesh.devices.size)
    arrays = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    return {
        "temporary_bytes": memory.temp_size_in_bytes,
        "peak_bytes": arrays + memory.temp_size_in_bytes,
        "flops": cost["flops"],
        "bytes_accessed": cost["bytes accessed"],
        "collectives": totals,
        "collective_bytes": sum(total["bytes"] for total in totals.values()),
        "link_bytes": sum(total["link_bytes"] for total in totals.values()),
    }


def _bytes_per_chip(tree) -> int:
    shards = ((leaf.sharding.shard_shape(leaf.shape), leaf.dtype) for leaf in jax.tree.leaves(tree))
    return sum(int(np.prod(shape)) * dtype.itemsize for shape, dtype in shards)
