"""Times loss and gradient in both forms, in the plain form and in PyTorch, for several batch sizes and widths.

    python -m benchmarks.loss                                                         # a small grid
    python -m benchmarks.loss --n=256,1024,4096 --d=2048,8192,32768,65536 --torch     # on a GPU

All programs run on one device, in float32. "plain" is the formula as written, with automatic differentiation, which
stores the matrix c and its gradient. A program that needs more scratch memory than --limit-gb does not run; the table
has its memory. Times are medians of alternating runs in one process. On a CPU, only their ratios are meaningful.
"""

import argparse
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from bt_jax.objectives import barlow_twins


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", default="256,512,1024", help="batch sizes")
    parser.add_argument("--d", default="512,1024,2048", help="widths of the embedding")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--limit-gb", type=float, default=4 if jax.default_backend() == "cpu" else 60)
    parser.add_argument("--torch", action="store_true", help="also time the plain form in PyTorch, on the same device")
    options = parser.parse_args(arguments)
    columns = [*barlow_twins.FORMS, "plain"] + ["torch"] * options.torch
    print(f"{jax.devices()[0].device_kind}, JAX {jax.__version__}; each cell: time relative to auto, scratch memory\n")
    print(f"| N | D | auto | {' | '.join(columns)} |\n|{'---|' * (3 + len(columns))}", flush=True)
    for n in map(int, options.n.split(",")):
        for d in map(int, options.d.split(",")):
            print(row(n, d, columns, options), flush=True)


def row(n: int, d: int, columns: list[str], options: argparse.Namespace) -> str:
    """The line of the table for batch size n and width d."""
    chosen = barlow_twins.choose_form(n, d)
    z = [jax.random.normal(jax.random.key(view), (n, d)) for view in (1, 2)]
    runs: dict[str, Callable] = {}
    scratch: dict[str, float] = {}
    for name in (*barlow_twins.FORMS, "plain"):
        program = compiled(name, z)
        scratch[name] = program.memory_analysis().temp_size_in_bytes / 1e9
        runs[name] = lambda program=program: jax.block_until_ready(program(*z))
    if "torch" in columns:
        runs["torch"], scratch["torch"] = in_torch(z), scratch["plain"]
    seconds = {name: [] for name in runs if scratch[name] <= options.limit_gb}
    for _ in range(options.repeats + 1):
        for name, taken in seconds.items():
            started = time.perf_counter()
            runs[name]()
            taken.append(time.perf_counter() - started)
    times = {name: np.median(taken[1:]) for name, taken in seconds.items()}

    def cell(name: str) -> str:
        ratio = f"{times[name] / times[chosen]:.2f}" if name in times and chosen in times else "not run"
        return ratio if name == "torch" else f"{ratio}, {scratch[name]:.2f} GB"

    unit = "" if jax.default_backend() == "cpu" or chosen not in times else f", {1e3 * times[chosen]:.2f} ms"
    return f"| {n} | {d} | {chosen}{unit} | {' | '.join(map(cell, columns))} |"


def compiled(form: str, z: list[jax.Array]) -> jax.stages.Compiled:
    """The loss and its gradient for both views, compiled."""

    def loss(z1, z2):
        return plain(z1, z2) if form == "plain" else barlow_twins.barlow_twins(z1, z2, form=form)[0]

    return jax.jit(jax.value_and_grad(loss, (0, 1))).lower(*z).compile()


def plain(z1: jax.Array, z2: jax.Array) -> jax.Array:
    c = barlow_twins.cross_correlation(z1, z2)
    on_diag = jnp.square(jnp.diagonal(c) - 1).sum()
    return on_diag + barlow_twins.LAMBD * (jnp.square(c).sum() - jnp.square(jnp.diagonal(c)).sum())


def in_torch(z: list[jax.Array]) -> Callable[[], None]:
    """The plain form in eager PyTorch with float32 products, on a GPU if there is one."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_float32_matmul_precision("highest")
    z1, z2 = (torch.tensor(np.asarray(view), device=device, requires_grad=True) for view in z)

    def run() -> None:
        a, b = (torch.nn.functional.batch_norm(view, None, None, training=True) for view in (z1, z2))
        c = a.T @ b / len(a)
        diagonal = torch.diagonal(c)
        loss = (diagonal - 1).square().sum() + barlow_twins.LAMBD * (c.square().sum() - diagonal.square().sum())
        torch.autograd.grad(loss, (z1, z2))
        if device == "cuda":
            torch.cuda.synchronize()

    return run


if __name__ == "__main__":
    main()
