"""Five training steps that must give the same numbers on any devices; `tests/train/test_step.py` compares them.

    python -m tests.support.invariance ADDRESS PROCESS OUT.npz [views] [SHARDING/FORM ...]

runs the steps as one of two processes with four devices each.
"""

import os
import sys

if __name__ == "__main__":
    os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"
    os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from bt_jax import augment, models, optim, randomness, sharding
from bt_jax.augment import recipes
from bt_jax.models.batch_norm import BatchNorm
from bt_jax.objectives import barlow_twins
from bt_jax.state import Nets
from bt_jax.train import build, optimizer
from bt_jax.train import step as train_step

RECIPE = recipes.cifar(16)
CASES = [(head, form) for head in ("replicated", "sharded") for form in barlow_twins.FORMS]
BATCH = 32


class OneConv:
    """A backbone that compiles within a second: convolution, batch norm, ReLU, mean."""

    feature_dim = 24

    def __init__(self):
        def make(key):
            rngs = nnx.Rngs(key)
            return nnx.Dict(conv=nnx.Conv(3, self.feature_dim, (3, 3), rngs=rngs), bn=BatchNorm(self.feature_dim))

        self._make, self._graph = make, nnx.graphdef(nnx.eval_shape(lambda: make(jax.random.key(0))))

    def init(self, key):
        _, params, stats = nnx.split(self._make(key), nnx.Param, nnx.BatchStat)
        return {"params": nnx.to_pure_dict(params), "batch_stats": nnx.to_pure_dict(stats)}

    def apply(self, variables, x, *, train):
        module = nnx.merge(self._graph, variables["params"], variables["batch_stats"])
        x = nnx.relu(module.bn(module.conv(x), train=train)).mean((1, 2))
        return (x, nnx.to_pure_dict(nnx.state(module, nnx.BatchStat))) if train else x


def nets():
    return Nets(OneConv(), {"projector": models.build_projector(OneConv.feature_dim, (48, 48, 64), bias=True)})


def five_steps(mesh, head, form, networks=None, loss=None, steps=5):
    """Takes five steps (or `steps`) from a fixed start; returns the losses (5,) and the last state, in NumPy arrays.

    Every step has new images, and every device has different images of the batch. `loss` replaces
    `barlow_twins.barlow_twins`.
    """
    networks = networks or nets()
    tx = optimizer.make_optimizer(optim.lars(0.3, 1e-3), optax.sgd(0.1))

    objective = barlow_twins.BarlowTwins(form=form, mesh=mesh)

    def create(key):
        return build.initial_state(key, networks, tx, objective, probe_classes=10)

    layout = sharding.state_sharding(jax.eval_shape(create, jax.random.key(0)), mesh, head)
    state = jax.jit(create, out_shardings=layout)(randomness.stream(0, randomness.INIT))
    original = barlow_twins.barlow_twins
    barlow_twins.barlow_twins = loss or original
    try:
        update = train_step.make_update(objective, networks, tx, mesh=mesh, projector=head)
        step = train_step.make_step(update, RECIPE, seed=0)
        step = jax.jit(step, out_shardings=(layout, sharding.replicated(mesh)))
        rng, losses = np.random.default_rng(0), []
        for _ in range(steps):
            batch = {
                "image": rng.integers(0, 256, (BATCH, 16, 16, 3), np.uint8),
                "id": rng.permutation(1000)[:BATCH].astype(np.int32),
                "label": rng.integers(0, 10, BATCH).astype(np.int32),
            }
            state, metrics = step(state, sharding.put_global(batch, mesh))
            losses.append(float(metrics["train/loss"]))
    finally:
        barlow_twins.barlow_twins = original
    return np.array(losses), jax.tree.map(_whole(mesh), state)


def views(mesh):
    """The two views of the first batch, float32 (2, n, h, w, c)."""
    rng = np.random.default_rng(0)
    images = sharding.put_global(
        (rng.integers(0, 256, (BATCH, 16, 16, 3), np.uint8), rng.permutation(1000)[:BATCH].astype(np.int32)), mesh
    )
    make = jax.jit(lambda image, ids: jnp.stack(augment.two_views(jax.random.key(7), image, RECIPE, ids=ids)))
    return _whole(mesh)(make(*images))


def _whole(mesh):
    gather = jax.jit(lambda x: x, out_shardings=sharding.replicated(mesh))
    return lambda x: np.asarray(gather(x).addressable_data(0))


def flat(result):
    """The losses and the arrays of the state, by name, for `np.savez`."""
    losses, state = result
    named = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(state)}
    return {"losses": losses} | named


def main(address, process, out, *what):
    jax.distributed.initialize(address, num_processes=2, process_id=int(process))
    mesh = sharding.make_mesh()
    assert mesh.devices.size == 8 and len(jax.local_devices()) == 4
    arrays = {"views": views(mesh)} if "views" in what else {}
    for case in what:
        if case != "views":
            arrays |= {f"{case}/{name}": leaf for name, leaf in flat(five_steps(mesh, *case.split("/"))).items()}
    np.savez(out, **arrays)


if __name__ == "__main__":
    main(*sys.argv[1:])
