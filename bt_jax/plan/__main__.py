"""What a training step needs on a TPU slice, found by compiling it for that slice on a machine without one.

    python -m bt_jax.plan --config=configs/pretrain_imagenet_r50.py --topology=v5e:16x16
        [--config.model.projector_sharding=sharded]

The real step of any config, with the real sharding, is compiled ahead of time by libtpu (pip install -e '.[tpu]'). Per
chip: the state, the compiler's memory and whether it fits, FLOPs, bytes of memory traffic (the compiler's count, with
what stays in on-chip memory: an upper bound), every kind of collective, and the time that each of arithmetic, memory
and interconnect would take at the chip's published rates, all of its links busy (a slice of few chips has fewer
neighbours). No step is run and no data set is opened.
"""

from typing import Any

from absl import flags

from bt_jax import storage
from bt_jax.cli import config_program
from bt_jax.messages import UserError
from bt_jax.plan import estimate

TOPOLOGY = flags.DEFINE_string("topology", None, "TPU slice, VERSION:SHAPE: v5e:16x16, v6e:4x4, v4:4x4x4, ...")
AS_JSON = flags.DEFINE_bool("json", False, "Print JSON.")


def table(name: str, plan: dict[str, Any]) -> str:
    """The plan in words."""
    lines = [f"{name}: {plan['chips']} chips, global batch {plan['batch_size']}; per chip and step"]

    def line(title, value, unit, note=""):
        lines.append(f"  {title:24}{value:10.3f} {unit:8}{note}".rstrip())

    giga = 1e9
    line("state", plan["state_bytes"] / giga, "GB", "parameters, optimizer, statistics")
    line("temporary", plan["temporary_bytes"] / giga, "GB", "the compiler's: activations and scratch")
    verdict = "fits in" if plan["fits"] else "DOES NOT FIT in"
    line("peak", plan["peak_bytes"] / giga, "GB", f"{verdict} the chip's {plan['memory_bytes'] / giga:.1f} GB")
    line("arithmetic", plan["flops"] / 1e12, "TFLOP")
    line("memory traffic", plan["bytes_accessed"] / giga, "GB")
    for kind, found in plan["collectives"].items():
        line(kind, found["bytes"] / giga, "GB", f"{found['count']} of them, {found['link_bytes'] / giga:.3f} GB sent")
    line("collectives, all", plan["collective_bytes"] / giga, "GB", f"{plan['link_bytes'] / giga:.3f} GB sent")
    for limit, seconds in plan["seconds"].items():
        line(f"time of {limit}", 1e3 * seconds, "ms", "<- limits" if limit == plan["limit"] else "")
    lines.append(f"  compiled in {plan['compile_seconds']:.0f} s; the times are at the chip's published rates")
    return "\n".join(lines)


def main(argv: list[str]) -> None:
    """Prints the plan of --config for --topology."""
    if len(argv) > 1:
        raise UserError(f"Unknown argument {argv[1]!r}", "Options are written --name=value; see --help.")
    import jax  # here: config_program comes first

    jax.config.update("jax_platforms", "cpu")  # where there is a TPU it is left alone
    name = TOPOLOGY.value
    if name is None:
        raise UserError("No --topology is given", "Name a slice, such as --topology=v5e:16x16.")
    if config_program.CONFIG.value.task != "pretrain":
        print(
            f"bt_jax.plan compiles pretraining alone; nothing is known ahead of task {config_program.CONFIG.value.task}"
        )
        return
    plan = estimate.make_plan(config_program.CONFIG.value, *estimate.topology_mesh(name))
    print(storage.to_json({"topology": name} | plan, indent=2) if AS_JSON.value else table(name, plan))


if __name__ == "__main__":
    config_program.run(main, __doc__)
