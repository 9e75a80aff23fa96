"""Networks as pure functions over plain dicts.

Layers are Flax NNX modules; here they are split once, and everything outside sees `init(key)` and
`apply(variables, x, *, train)` over `{"params": ..., "batch_stats": ...}`: nested dicts of arrays that `jax.jit`,
`jax.grad`, optax and a checkpoint take as they are. Modules are put together again while jit traces, so a compiled step
costs 3 ms of host time on a ResNet-50 tree, against 23 ms through `nnx.jit`.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from bt_jax.models.projector import Projector
from bt_jax.models.resnet import ARCHITECTURES, ResNet

__all__ = ["ARCHITECTURES", "Net", "Variables", "build", "build_projector"]

Variables = dict[str, Any]


@dataclasses.dataclass(frozen=True, eq=False)
class Net:
    """A network without its numbers.

    Attributes:
      arch, options: what built it, of types that JSON can hold: `build(net.arch, **net.options)` makes it again
        (`build_projector(**net.options)` where arch is "projector").
      feature_dim: the last axis of what `apply` returns.
    """

    arch: str
    options: dict[str, Any]
    feature_dim: int
    _graph: nnx.GraphDef = dataclasses.field(repr=False)
    _make: Callable[[nnx.Rngs], nnx.Module] = dataclasses.field(repr=False)

    def init(self, key: jax.Array) -> Variables:
        """{"params", "batch_stats"}, float32. May be jitted, with out_shardings, or passed to jax.eval_shape."""
        _, params, stats = nnx.split(self._make(nnx.Rngs(key)), nnx.Param, nnx.BatchStat)
        return {"params": nnx.to_pure_dict(params), "batch_stats": nnx.to_pure_dict(stats)}

    def apply(self, variables: Mapping[str, Any], x: jax.Array, *, train: bool):
        """The features of a batch.

        Args:
          variables: {"params", "batch_stats"}, with the structure that `init` gives. They are not changed.
          x: images (n, height, width, channels), float, normalised; for a projector, features (n, in_dim).
          train: normalise with the batch's statistics, over all devices that share it, instead of the running ones.

        Returns:
          The features, (n, feature_dim), float32 (float64 for a float64 net); with `train`, a pair of them and the
          new batch_stats, which have the structure and dtypes of the old.
        """
        outputs = self.stages(variables, x, train=train)
        return (outputs[0]["features"], outputs[1]) if train else outputs["features"]

    def stages(self, variables: Mapping[str, Any], x: jax.Array, *, train: bool, **options):
        """As `apply`, with a dict of every stage's output in place of the features alone.

        A ResNet's stages are "maxpool" and "layer1" to "layer4", (n, h, w, c) in the compute dtype, then "features".
        The dict is in the network's order; `jax.jit` returns it sorted by name. `options` go to the module's `stages`.
        """
        module = nnx.merge(self._graph, variables["params"], variables["batch_stats"])
        outputs = module.stages(x, train=train, **options)
        return (outputs, nnx.to_pure_dict(nnx.state(module, nnx.BatchStat))) if train else outputs


def build(
    arch: str,
    *,
    small_images: bool = False,
    width: float = 1,
    channels: int = 3,
    zero_init_residual: bool = True,
    stem_padding: int = 1,
    dtype=jnp.float32,
) -> Net:
    """A torchvision ResNet without its classifier; `resnet.ResNet` says what the options mean.

    Raises:
      UserError: the architecture is unknown, or the width does not give whole numbers of channels.
    """
    options = {
        "small_images": small_images,
        "width": width,
        "channels": channels,
        "zero_init_residual": zero_init_residual,
        "stem_padding": stem_padding,
        "dtype": jnp.dtype(dtype).name,
    }
    return _net(arch, options, lambda rngs: ResNet(arch, **options, rngs=rngs))


def build_projector(in_dim: int, widths: Sequence[int], *, bias: bool = False, dtype=jnp.float32) -> Net:
    """The projector that maps features (n, in_dim) to embeddings (n, widths[-1]); see `projector.Projector`."""
    options = {"in_dim": in_dim, "widths": list(widths), "bias": bias, "dtype": jnp.dtype(dtype).name}
    return _net("projector", options, lambda rngs: Projector(**options, rngs=rngs))


def _net(arch: str, options: dict[str, Any], make: Callable[[nnx.Rngs], nnx.Module]) -> Net:
    module = nnx.eval_shape(lambda: make(nnx.Rngs(0)))
    return Net(arch, options, module.feature_dim, nnx.graphdef(module), make)
