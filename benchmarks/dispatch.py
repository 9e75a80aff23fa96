"""Compares the host time and the device time of a step, to check that dispatch is no bottleneck.

    python benchmarks/dispatch.py [--width=0.25] [--size=32] [--batch=256] [--steps=20]

The input is random uint8 images; the run is ResNet-18 with the small-image stem, the CIFAR views and solo-learn's
optimizer. "host" is the time until the call returns: the work of Python and JAX. "step" is the time until the result is
ready.
"""

import argparse
import time

import jax
import numpy as np

from bt_jax import sharding
from bt_jax.configs import pretrain_cifar10_r18
from bt_jax.data import device
from bt_jax.data.order import epoch_order
from bt_jax.train import build, epochs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("width", 1.0), ("size", 32), ("batch", 256), ("steps", 20), ("scan", 1)):
        parser.add_argument(f"--{name}", type=type(default), default=default)
    args = parser.parse_args()
    config = pretrain_cifar10_r18.get_config()
    config.model.width, config.views.size, config.batch_size = args.width, args.size, args.batch
    if jax.default_backend() == "cpu":
        config.model.dtype = "float32"

    mesh, plan = sharding.make_mesh(), epochs.Plan(steps_per_epoch=50_000 // args.batch, total_steps=10_000)
    training = build.build_training(config, plan, build.build_recipe(config.views), 10, mesh)
    rng = np.random.default_rng(0)
    data = device.put_arrays(rng.integers(0, 256, (5000, 32, 32, 3), np.uint8), np.zeros(5000, np.int32), mesh)
    order = epoch_order(jax.random.key(0), 0, 5000)
    run = device.make_dispatch(training.step, batch_size=args.batch, mesh=mesh, layout=training.layout)
    state = training.create(jax.random.key(0))
    started = time.perf_counter()
    state, _ = jax.block_until_ready(run(state, data, order, steps=args.scan))
    print(f"compilation and first dispatch {time.perf_counter() - started:.1f} s")
    host, whole = [], []
    for _ in range(args.steps):
        started = time.perf_counter()
        state, metrics = run(state, data, order, steps=args.scan)
        host.append(time.perf_counter() - started)
        jax.block_until_ready(metrics)
        whole.append(time.perf_counter() - started)
    host, whole = np.median(host) / args.scan, np.median(whole) / args.scan
    print(
        f"{jax.devices()[0].device_kind}: host {1e3 * host:.2f} ms, step {1e3 * whole:.1f} ms, share {host / whole:.3f}"
    )


if __name__ == "__main__":
    main()
