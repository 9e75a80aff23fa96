"""Host time against device time of the device-resident path: is the dispatch ever the limit?

    python benchmarks/dispatch.py [--width=0.25] [--size=32] [--batch=256] [--steps=20]

Random uint8 images, ResNet-18 with the small-image stem, the CIFAR views and solo-learn's optimizer. "host" is the time
until the call returns, during which Python and JAX work; "step" is the time until the result is there.
"""

import argparse
import time

import jax
import numpy as np

from bt_jax import build, sharding, train_step
from bt_jax import state as state_lib
from bt_jax.data import device
from configs import pretrain_cifar10_r18


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("width", 1.0), ("size", 32), ("batch", 256), ("steps", 20), ("scan", 1)):
        parser.add_argument(f"--{name}", type=type(default), default=default)
    args = parser.parse_args()
    config = pretrain_cifar10_r18.get_config()
    config.model.width, config.views.size, config.batch_size = args.width, args.size, args.batch
    if jax.default_backend() == "cpu":
        config.model.dtype = "float32"

    mesh, plan = sharding.make_mesh(), build.Plan(steps_per_epoch=50_000 // args.batch, total_steps=10_000)
    nets, recipe = build.build_nets(config, channels=3), build.build_recipe(config)
    tx, rates = build.build_optimizer(config, plan)
    update = train_step.make_update(nets, tx, lambd=config.loss.lambd, rates=rates)
    step = train_step.make_pretrain_step(update, recipe, seed=0)
    rng = np.random.default_rng(0)
    data = device.put_arrays(rng.integers(0, 256, (5000, 32, 32, 3), np.uint8), np.zeros(5000, np.int32), mesh)
    order = device.epoch_order(jax.random.key(0), 0, 5000)
    run = device.make_dispatch(step, batch_size=args.batch, mesh=mesh)
    state = jax.jit(lambda key: state_lib.create(key, nets, tx, 10), out_shardings=sharding.replicated(mesh))(
        jax.random.key(0)
    )
    started = time.perf_counter()
    state, _ = jax.block_until_ready(run(state, data, order, steps=args.scan))
    print(f"compile and first dispatch {time.perf_counter() - started:.1f} s")
    host, whole = [], []
    for _ in range(args.steps):
        started = time.perf_counter()
        state, shown = run(state, data, order, steps=args.scan)
        host.append(time.perf_counter() - started)
        jax.block_until_ready(shown)
        whole.append(time.perf_counter() - started)
    host, whole = np.median(host) / args.scan, np.median(whole) / args.scan
    print(
        f"{jax.devices()[0].device_kind}: host {1e3 * host:.2f} ms, step {1e3 * whole:.1f} ms, share {host / whole:.3f}"
    )


if __name__ == "__main__":
    main()
