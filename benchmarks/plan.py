"""Estimates the needs of training on TPU slices, for docs/devices.md, and their growth with the embedding width.

    python -m benchmarks.plan slices      # ImageNet, ResNet-50, batch 2048, two forms; takes half an hour
    python -m benchmarks.plan growth      # only projector and loss, D = 2,048 ... 65,536; takes a few minutes
    python -m benchmarks.plan views       # the share of the views in the ImageNet step; takes a few minutes

All commands compile for the slice and run nothing. They need libtpu (pip install -e '.[tpu]') and print Markdown.
"""

import json
import subprocess
import sys

import jax
import jax.numpy as jnp

from bt_jax import augment, models, sharding
from bt_jax.configs import pretrain_imagenet_r50
from bt_jax.models.split_projector import SplitProjector
from bt_jax.objectives import barlow_twins
from bt_jax.plan import estimate
from bt_jax.train import build

SLICES = ("v5e:4x4", "v5e:16x16", "v4:4x4x4", "v6e:16x16")
FORMS = {"plain": ("replicated", "covariance"), "best": ("sharded", "auto")}
BATCH, FEATURES = 2048, 2048


def slices() -> None:
    """Prints one line per slice and form."""
    columns = (
        "slice | projector, loss | state | temporary | peak | collectives | sent | TFLOP | arithmetic | memory | links"
    )
    print(f"| {columns} |\n|{'---|' * 11}")
    for topology in SLICES:
        for projector, form in FORMS.values():
            command = [sys.executable, "-m", "bt_jax.plan", "--json", f"--topology={topology}"]
            command += ["--config=configs/pretrain_imagenet_r50.py"]
            command += [f"--config.model.projector_sharding={projector}", f"--config.objective.form={form}"]
            need = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
            giga = [need[f"{name}_bytes"] / 1e9 for name in ("state", "temporary", "peak", "collective", "link")]
            times = [1e3 * need["seconds"][name] for name in ("arithmetic", "memory", "interconnect")]
            cells = [topology, f"{projector}, {form}"] + [f"{x:.2f} GB" for x in giga]
            cells += [f"{need['flops'] / 1e12:.2f}"] + [f"{x:.1f} ms" for x in times]
            print(f"| {' | '.join(cells)} |", flush=True)


def growth(topology: str = "v5e:16x16") -> None:
    """Prints the needs of a split projector (D, D, D) and the loss, forward and backward."""
    jax.config.update("jax_platforms", "cpu")
    mesh, _ = estimate.topology_mesh(topology)
    print("| D | form | parameters per chip | temporary | GFLOP | collectives |\n|---|---|---|---|---|---|")
    for d in (2048, 4096, 8192, 16384, 32768, 65536):
        net = models.build_projector(FEATURES, (d, d, d), dtype=jnp.bfloat16)
        shapes = {"projector": jax.eval_shape(net.init, jax.random.key(0))}
        variables = sharding.abstract(shapes, sharding.state_sharding(shapes, mesh, "sharded"))["projector"]
        h = jax.ShapeDtypeStruct((BATCH, FEATURES), jnp.float32, sharding=sharding.batch_sharding(mesh))
        split = SplitProjector(net, mesh)
        for form in barlow_twins.FORMS:

            def loss(params, stats, h1, h2, split=split, form=form):
                z1, stats = split.apply({"params": params, "batch_stats": stats}, h1, train=True)
                z2, stats = split.apply({"params": params, "batch_stats": stats}, h2, train=True)
                return barlow_twins.barlow_twins(z1, z2, form=form, mesh=mesh)[0], stats

            gradient = jax.jit(jax.value_and_grad(loss, (0, 2, 3), has_aux=True))
            need = estimate.measure(gradient.lower(variables["params"], variables["batch_stats"], h, h).compile(), mesh)
            parameters = sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) * 4 / mesh.devices.size / 1e9
            cells = [f"{d:,}", form, f"{parameters:.3f} GB", f"{need['temporary_bytes'] / 1e9:.2f} GB"]
            cells += [f"{need['flops'] / 1e9:.0f}", f"{need['collective_bytes'] / 1e9:.2f} GB"]
            print(f"| {' | '.join(cells)} |", flush=True)


def views(topology: str = "v5e:2x2", batch: str = "512") -> None:
    """Prints FLOPs and bytes of the two views alone, cut from the canvas, and of the whole ImageNet step."""
    jax.config.update("jax_platforms", "cpu")
    mesh, chip = estimate.topology_mesh(topology)
    config = pretrain_imagenet_r50.get_config(f"batch={batch}")
    whole = estimate.make_plan(config, mesh, chip)
    recipe, n, side = build.build_recipe(config.views), config.batch_size, config.data.canvas

    def alone(key, images, ids, sizes):
        return augment.two_views(key, images, recipe, ids=ids, sizes=sizes)

    shapes = {"image": ((n, side, side, 3), jnp.uint8), "id": ((n,), jnp.int32), "size": ((n, 2), jnp.int32)}
    arrays = [jax.ShapeDtypeStruct(*spec, sharding=sharding.batch_sharding(mesh)) for spec in shapes.values()]
    key = jax.ShapeDtypeStruct((), jax.random.key(0).dtype, sharding=sharding.replicated(mesh))
    need = estimate.measure(jax.jit(alone).lower(key, *arrays).compile(), mesh)
    print(f"{topology}, {n // mesh.devices.size} pairs per chip\n\n| | views | step | share |\n|---|---|---|---|")
    for quantity, unit, scale in (("flops", "TFLOP", 1e12), ("bytes_accessed", "GB", 1e9)):
        part, total = need[quantity] / scale, whole[quantity] / scale
        print(f"| {quantity.replace('_', ' ')} | {part:.3f} {unit} | {total:.2f} {unit} | {part / total:.1%} |")


if __name__ == "__main__":
    {"slices": slices, "growth": growth, "views": views}[sys.argv[1]](*sys.argv[2:])
