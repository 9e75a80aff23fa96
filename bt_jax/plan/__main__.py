"""Estimates memory and time of a training step on a TPU slice, on a machine without a TPU.

    bt-jax plan --config=pretrain_imagenet_r50 --topology=v5e:16x16
        [--config.model.projector_sharding=sharded]

libtpu (pip install 'jax[tpu]') compiles the real step of a pretraining config, with its real sharding, ahead of time.
The command runs no step and opens no data set. It prints for each chip:

- the size of the state, the memory of the compiled step, and whether it fits;
- FLOPs;
- bytes of memory traffic: an upper bound, because the compiler counts on-chip memory too;
- the collectives of every kind;
- the time of arithmetic, memory and interconnect at the chip's published rates. It assumes that all links of the chip
  are busy; in a slice of few chips, some have no neighbour.
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
    """The plan as a table of text."""
    lines = [f"{name}: {plan['chips']} chips, global batch {plan['batch_size']}; per chip and step"]

    def line(title, value, unit, note=""):
        lines.append(f"  {title:24}{value:10.3f} {unit:8}{note}".rstrip())

    giga = 1e9
    line("state", plan["state_bytes"] / giga, "GB", "parameters, optimizer, statistics")
    line("temporary", plan["temporary_bytes"] / giga, "GB", "activations and scratch memory")
    fits = "fits in" if plan["fits"] else "DOES NOT FIT in"
    line("peak", plan["peak_bytes"] / giga, "GB", f"{fits} the chip's {plan['memory_bytes'] / giga:.1f} GB")
    line("arithmetic", plan["flops"] / 1e12, "TFLOP")
    line("memory traffic", plan["bytes_accessed"] / giga, "GB")
    for kind, total in plan["collectives"].items():
        line(kind, total["bytes"] / giga, "GB", f"{total['count']} of them, {total['link_bytes'] / giga:.3f} GB sent")
    line("collectives, all", plan["collective_bytes"] / giga, "GB", f"{plan['link_bytes'] / giga:.3f} GB sent")
    for limit, seconds in plan["seconds"].items():
        line(f"time of {limit}", 1e3 * seconds, "ms", "<- limits" if limit == plan["limit"] else "")
    lines.append(f"  compiled in {plan['compile_seconds']:.0f} s; the times assume the chip's published rates")
    return "\n".join(lines)


def main(argv: list[str]) -> None:
    """Prints the plan of --config for --topology."""
    del argv

    import jax  # after config_program, which checks JAX's environment variables

    jax.config.update("jax_platforms", "cpu")  # the command needs no TPU, and must not occupy one
    name = TOPOLOGY.value
    if name is None:
        raise UserError("--topology is missing", "Name a slice, such as --topology=v5e:16x16.")
    if (task := config_program.CONFIG.value.task) != "pretrain":
        print(f"bt_jax.plan estimates pretraining alone. This config has the task {task}.")
        return
    plan = estimate.make_plan(config_program.CONFIG.value, *estimate.topology_mesh(name))
    print(storage.to_json({"topology": name} | plan, indent=2) if AS_JSON.value else table(name, plan))


if __name__ == "__main__":
    config_program.run(main, __doc__, tasks=["pretrain"])
