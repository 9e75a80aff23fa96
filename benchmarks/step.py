"""Measures a training step: its time, its parts, its distance from the device's limits, and PyTorch's step.

    python -m benchmarks.step --config=configs/pretrain_imagenet_r50.py --config.batch_size=1024 --against=torch
    python -m benchmarks.step --config=configs/pretrain_cifar10_r18.py:smoke --steps=5          # a dry run on a CPU

The images are random and on the device; there is no input pipeline. The first result is the floor: the time of the
counted FLOPs and bytes at the rates of this device, which the benchmark measures with a matrix product and a copy. Then
it times three programs: the views alone, the step on ready views ("model"), and the full step. After a warm-up, it
times single steps and prints the median, the tenth and the ninetieth percentile. The pairs per second come from steps
in a row without waiting between them.

--against=torch   also times the step in plain PyTorch (`torch_step.py`, without views), eager and compiled, in turns
                  on a CPU, give both the pages that the commands of bt_jax use: GLIBC_TUNABLES=glibc.malloc.hugetlb=1
--profile=DIR     writes a trace and prints the ten slowest operations with their share of the measured bandwidth
--largest         prints the largest batch that fits the device, from the compiler's counts of two smaller batches
--out=FILE        writes all results as JSON
"""

import collections
import gzip
import json
import re
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from bt_jax import augment, randomness, sharding
from bt_jax.cli import config_program
from bt_jax.config import keys
from bt_jax.messages import UserError
from bt_jax.objectives import barlow_twins
from bt_jax.plan import estimate
from bt_jax.train import build, epochs

STEPS = flags.DEFINE_integer("steps", 30, "Number of timed steps per program.")
WARMUP = flags.DEFINE_integer("warmup", 5, "Number of steps before these.")
ROUNDS = flags.DEFINE_integer("rounds", 3, "Number of turns of our step and PyTorch's.")
AGAINST = flags.DEFINE_enum("against", None, ["torch"], "Also time the step of another program.")
PROFILE = flags.DEFINE_string("profile", None, "Folder for a trace.")
LARGEST = flags.DEFINE_bool("largest", False, "Print the largest batch that fits the device.")
MEMORY_GB = flags.DEFINE_float(
    "memory_gb", None, "Memory limit for --largest; by default the memory that the device reports."
)
OUT = flags.DEFINE_string("out", None, "JSON file for the results.")

ON_CPU = jax.default_backend() == "cpu"
SIDE = 1024 if ON_CPU else 8192  # of the square matrices that measure the device's peak
COPIED = 2**26 if ON_CPU else 2**30  # number of float32 values in the copy


def main(argv: list[str]) -> None:
    del argv
    options = config_program.CONFIG.value
    keys.read(options)
    if options.objective.name != "barlow_twins":
        raise UserError(
            f"benchmarks.step measures Barlow Twins only, not {options.objective.name}", "Use a config of Barlow Twins."
        )
    largest_batch = {"largest_batch": largest(options)} if LARGEST.value else {}
    try:
        programs, results = prepare(options)
        jax.block_until_ready(programs["step"]())
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        smaller = f"--config.batch_size={options.batch_size // 2}"
        raise UserError(f"A step of batch {options.batch_size} does not fit this device", f"Try {smaller}.") from error
    results |= largest_batch | {
        "device": jax.devices()[0].device_kind,
        "devices": len(jax.devices()),
        "jax": jax.__version__,
    }
    results["limits"] = limits()
    results["floor_ms"] = {
        "arithmetic": 1e3 * results["flops"] / results["limits"]["flops"],
        "memory": 1e3 * results["bytes"] / results["limits"]["bytes"],
    }
    runs = {"views": programs["views"], "model": programs["model"], "full step": programs["step"]}
    results["steps"] = {name: timed(run, options.batch_size) for name, run in runs.items()}
    full = results["steps"]["full step"]
    results["mfu"] = results["flops"] / (full["in_a_row_ms"] / 1e3) / results["limits"]["flops"]
    results["views_share"] = results["steps"]["views"]["in_a_row_ms"] / full["in_a_row_ms"]
    stats = jax.devices()[0].memory_stats() or {}
    results["memory"]["peak in use"] = stats.get("peak_bytes_in_use", 0)
    if AGAINST.value:
        results["torch"] = against_torch(options, runs)
    if PROFILE.value:
        results["costliest"] = profile(programs, results["limits"])
    print(table(options, results))
    if OUT.value:
        Path(OUT.value).write_text(json.dumps(results, indent=1) + "\n")


def prepare(options) -> tuple[dict[str, Callable], dict]:
    """The compiled programs, as functions without arguments, and the compiler's counts."""
    mesh, recipe = sharding.make_mesh(), build.build_recipe(options.views)
    steps = epochs.Plan(5000, 500_000)
    training = build.build_training(options, steps, recipe, 1000, mesh)
    n, channels = options.batch_size, len(recipe.mean)
    side = max(options.views.size, 32) if options.data.on_device else options.data.canvas
    generator = np.random.default_rng(0)
    rows = {"image": generator.integers(0, 256, (n, side, side, channels), np.uint8)}
    rows |= {"id": np.arange(n, dtype=np.int32), "label": np.zeros(n, np.int32)}
    if not options.data.on_device:
        rows["size"] = np.full((n, 2), side, np.int32)
    batch = sharding.put_batch(rows, mesh)
    state = training.create(jax.random.key(0))
    key = randomness.stream(0, randomness.VIEWS)

    def make_views(batch):
        return augment.two_views(key, batch["image"], recipe, ids=batch["id"], sizes=batch.get("size"))

    views_program = jax.jit(make_views).lower(batch).compile()
    views = views_program(batch)
    everywhere = (training.layout, sharding.replicated(mesh))

    def compiled(step, *arguments):
        return jax.jit(step, donate_argnums=0, out_shardings=everywhere).lower(state, *arguments).compile()

    model_program = compiled(training.update, views, batch)
    started = time.perf_counter()
    step_program = compiled(training.step, batch)
    compile_seconds = time.perf_counter() - started
    need = estimate.measure(step_program, mesh)

    def size(tree) -> int:
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))

    counts = {
        "flops": need["flops"],
        "bytes": need["bytes_accessed"],
        "compile_seconds": compile_seconds,
        "memory": {
            "parameters": size(state.params),
            "optimizer": size(state.opt_state),
            "loss": loss_memory(options, mesh),
            "temporary": need["temporary_bytes"],
        },
    }
    current = [state]  # every step donates its state and returns the next one

    def stepping(program, *arguments):
        def run():
            current[0], metrics = program(current[0], *arguments)
            return metrics

        return run

    programs = {
        "views": lambda: views_program(batch),
        "model": stepping(model_program, views, batch),
        "step": stepping(step_program, batch),
        "hlo": step_program.as_text,
    }
    return programs, counts


def largest(options) -> int:
    """The largest batch whose step fits, a multiple of 32. The needed memory grows linearly with the batch."""
    stats = jax.local_devices()[0].memory_stats() or {}
    limit = MEMORY_GB.value * 1e9 if MEMORY_GB.value else stats.get("bytes_limit")
    if not limit:
        raise UserError("This device does not report its memory", "Set --memory_gb.")
    mesh, peaks = sharding.make_mesh(), {}
    for n in (options.batch_size // 2, options.batch_size):
        smaller = options.copy_and_resolve_references()
        smaller.batch_size = n
        peaks[n] = estimate.measure(estimate.compile_step(smaller, mesh)[0], mesh)["peak_bytes"]
    n, half = options.batch_size, options.batch_size // 2
    per_image = (peaks[n] - peaks[half]) / (n - half)
    return int((limit - peaks[n]) / per_image + n) // 32 * 32


def loss_memory(options, mesh) -> int:
    """Temporary memory of the loss and its gradient alone, in bytes."""
    shape = jax.ShapeDtypeStruct((options.batch_size, options.model.projector[-1]), jnp.float32)

    def loss(z1, z2):
        settings = {"lambd": options.objective.lambd, "form": options.objective.form}
        return barlow_twins.barlow_twins(z1, z2, **settings, mesh=mesh)[0]

    compiled = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(shape, shape).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def limits() -> dict[str, float]:
    """FLOPs per second of a large matrix product in the compute dtype, and bytes per second of a copy."""
    dtype = jnp.float32 if ON_CPU else jnp.bfloat16
    a = jnp.ones((SIDE, SIDE), dtype)
    x = jnp.ones(COPIED, jnp.float32)
    product, copied = jax.jit(lambda a: a @ a), jax.jit(lambda x: x + 1)
    flops = 2 * SIDE**3 / best(lambda: product(a))
    return {"flops": flops, "bytes": 2 * x.nbytes / best(lambda: copied(x))}


def best(run: Callable, times: int = 10) -> float:
    """The shortest time of a call, in seconds."""
    jax.block_until_ready(run())
    seconds = []
    for _ in range(times):
        started = time.perf_counter()
        jax.block_until_ready(run())
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def timed(run: Callable, batch: int, wait: Callable = jax.block_until_ready) -> dict[str, float]:
    """Percentiles of the time of a step, the time of a step in a row, and pairs per second."""
    for _ in range(WARMUP.value):
        wait(run())
    single = []
    for _ in range(STEPS.value):
        started = time.perf_counter()
        wait(run())
        single.append(1e3 * (time.perf_counter() - started))
    started = time.perf_counter()
    for _ in range(STEPS.value):
        last = run()
    wait(last)
    in_a_row = (time.perf_counter() - started) / STEPS.value
    spread = dict(zip(("p10_ms", "median_ms", "p90_ms"), np.percentile(single, (10, 50, 90)), strict=True))
    return spread | {"in_a_row_ms": 1e3 * in_a_row, "pairs": batch / in_a_row}


def against_torch(options, runs: dict[str, Callable]) -> dict[str, dict]:
    """Median milliseconds of our step and of PyTorch's, which take turns, and the ratio of the two."""
    try:
        import torch

        from benchmarks.torch_step import Step
    except ImportError:
        raise UserError("PyTorch is not installed", "Install it (pip install torch), or leave --against out.") from None
    model = {key: options.model[key] for key in ("arch", "small_images", "width", "stem_padding")}
    model |= {"channels": 3, "projector": tuple(options.model.projector), "lambd": options.objective.lambd}
    shared = {"batch": options.batch_size, "size": options.views.size, "bfloat16": options.model.dtype == "bfloat16"}
    rivals = {
        name: Step(model, compiled=compiled, **shared)
        for name, compiled in (("torch, eager", False), ("torch, compiled", True))
    }
    taken: dict[str, list[float]] = collections.defaultdict(list)
    for _ in range(ROUNDS.value):
        for name in ("model", "full step"):
            taken[f"bt_jax, {name}"].append(timed(runs[name], 1)["in_a_row_ms"])
        for name, rival in list(rivals.items()):
            try:
                taken[name].append(timed(rival, 1, wait=lambda _, rival=rival: rival.wait())["in_a_row_ms"])
            except Exception as error:  # PyTorch lacks a compiler or memory; the other forms still run
                print(f"{name} failed: {' '.join(str(error).split())[:120]}")
                del rivals[name]
    medians = {name: float(np.median(times)) for name, times in taken.items() if len(times) == ROUNDS.value}
    rival = min((value for name, value in medians.items() if name.startswith("torch")), default=float("nan"))
    ratio = {name: rival / medians[f"bt_jax, {name}"] for name in ("model", "full step")}
    return {"ms": medians, "ratio": ratio, "version": torch.__version__}


# ------------------------------------------------------------------------------------------------------------ profile


def profile(programs: dict[str, Callable], limits: dict[str, float]) -> list[dict]:
    """The ten slowest operations of the full step, from a trace of five steps."""
    jax.block_until_ready(programs["step"]())
    with jax.profiler.trace(PROFILE.value, create_perfetto_trace=True):
        for _ in range(5):
            metrics = programs["step"]()
        jax.block_until_ready(metrics)
    newest = max(Path(PROFILE.value).rglob("perfetto_trace.json.gz"), key=lambda path: path.stat().st_mtime)
    events = json.loads(gzip.decompress(newest.read_bytes()))
    events = events["traceEvents"] if isinstance(events, dict) else events
    moved = bytes_moved(programs["hlo"]())
    spent: collections.Counter = collections.Counter()
    for event in events:
        name = (event.get("args") or {}).get("hlo_op", event.get("name", ""))
        if event.get("ph") == "X" and name in moved:
            spent[name] += event["dur"] / 5 / 1e3
    total = sum(spent.values())
    return [
        {"name": name, "ms": ms, "share": ms / total, "of_bandwidth": moved[name] / (ms / 1e3) / limits["bytes"]}
        for name, ms in spent.most_common(10)
    ]


SIZES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8, "f64": 8}
INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?([\w.-]+) = (.*?) ([\w-]+)\((.*?)\)(?:,|$)", re.M)
SHAPE = re.compile(r"\b(\w+)\[([\d,]*)\]")


def bytes_moved(hlo: str) -> dict[str, int]:
    """The bytes that each operation of a compiled program reads and writes: the sizes of its operands and results."""
    instructions = INSTRUCTION.findall(hlo)
    results = {name: _bytes(shape) for name, shape, _, _ in instructions}
    operands = {name: re.findall(r"%([\w.-]+)", arguments) for name, _, _, arguments in instructions}
    return {name: results[name] + sum(results.get(operand, 0) for operand in operands[name]) for name in results}


def _bytes(shapes: str) -> int:
    arrays = [(SIZES.get(kind, 0), [int(n) for n in dims.split(",") if n]) for kind, dims in SHAPE.findall(shapes)]
    return sum(size * int(np.prod(dims)) for size, dims in arrays)


# -------------------------------------------------------------------------------------------------------------- table


def table(options, results: dict) -> str:
    """The results as text and Markdown tables."""
    limits = results["limits"]
    lines = [
        f"{results['devices']} x {results['device']}, JAX {results['jax']}: {options.model.arch} of width"
        f" {options.model.width:g}, {options.views.size} px, batch {options.batch_size},"
        f" projector {tuple(options.model.projector)}, {options.model.dtype}",
        f"compiled in {results['compile_seconds']:.1f} s",
        f"measured limits: {limits['flops'] / 1e12:.2f} TFLOP/s, {limits['bytes'] / 1e9:.0f} GB/s",
        f"step: {results['flops'] / 1e12:.3f} TFLOP, {results['bytes'] / 1e9:.2f} GB by the compiler's count; per pair"
        f" {results['flops'] / options.batch_size / 1e9:.2f} GFLOP",
        "floor: " + ", ".join(f"{name} {ms:.2f} ms" for name, ms in results["floor_ms"].items()),
        "",
        "| program | median | 10 % | 90 % | in a row | pairs/s |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in results["steps"].items():
        times = " | ".join(f"{row[key]:.2f} ms" for key in ("median_ms", "p10_ms", "p90_ms", "in_a_row_ms"))
        lines.append(f"| {name} | {times} | {row['pairs']:,.0f} |")
    memory = ", ".join(f"{name} {size / 1e9:.3f} GB" for name, size in results["memory"].items() if size)
    lines += [
        "",
        f"MFU {results['mfu']:.1%}; the views take {results['views_share']:.1%} of the step",
        f"memory: {memory}",
    ]
    if "largest_batch" in results:
        lines.append(f"largest batch that fits by the compiler's count: {results['largest_batch']}")
    if "torch" in results:
        lines += ["", "| step | in a row |", "|---|---|"]
        lines += [f"| {name} | {ms:.2f} ms |" for name, ms in results["torch"]["ms"].items()]
        ratios = ", ".join(f"{name} {ratio:.2f}" for name, ratio in results["torch"]["ratio"].items())
        lines.append(f"best PyTorch {results['torch']['version']} over ours: {ratios} (PyTorch's without views)")
    if "costliest" in results:
        lines += ["", "| operation | ms per step | share | share of the bandwidth |", "|---|---|---|---|"]
        lines += [
            f"| {row['name']} | {row['ms']:.3f} | {row['share']:.1%} | {row['of_bandwidth']:.0%} |"
            for row in results["costliest"]
        ]
    return "\n".join(lines)


if __name__ == "__main__":
    config_program.run(main, __doc__)
