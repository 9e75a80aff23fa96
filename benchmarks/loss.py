"""Time and memory of the loss with its gradient, in both forms: where is the crossover, and does "auto" find it?

    python -m benchmarks.loss [--n=256,512,1024] [--d=512,1024,2048] [--repeats=5]

One device. Times are medians of alternating runs within this process, so only their ratio means something on a CPU.
"""

import argparse
import time

import jax
import numpy as np

from bt_jax import losses


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", default="256,512,1024", help="batch sizes")
    parser.add_argument("--d", default="512,1024,2048", help="widths of the embedding")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    print(f"{jax.devices()[0].device_kind}\n\n| N | D | gram / covariance, time | scratch, gram | covariance | auto |")
    print("|---|---|---|---|---|---|")
    for n in map(int, args.n.split(",")):
        for d in map(int, args.d.split(",")):
            z = [jax.random.normal(jax.random.key(view), (n, d)) for view in (1, 2)]
            programs = {form: compiled(form, z) for form in losses.FORMS}
            seconds = {form: [] for form in losses.FORMS}
            for _ in range(args.repeats + 1):
                for form, program in programs.items():
                    started = time.perf_counter()
                    jax.block_until_ready(program(*z))
                    seconds[form].append(time.perf_counter() - started)
            ratio = np.median(seconds["gram"][1:]) / np.median(seconds["covariance"][1:])
            scratch = [programs[f].memory_analysis().temp_size_in_bytes / 1e6 for f in ("gram", "covariance")]
            cells = [f"{n}", f"{d}", f"{ratio:.2f}", *(f"{x:.0f} MB" for x in scratch), losses.choose_form(n, d)]
            print(f"| {' | '.join(cells)} |", flush=True)


def compiled(form: losses.Form, z: list[jax.Array]) -> jax.stages.Compiled:
    """Loss and gradient by both views."""

    def loss(z1, z2):
        return losses.barlow_twins(z1, z2, form=form)[0]

    return jax.jit(jax.value_and_grad(loss, (0, 1))).lower(*z).compile()


if __name__ == "__main__":
    main()
