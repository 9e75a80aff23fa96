"""Networks as pure functions over plain dicts.

The layers are Flax NNX modules. This module splits them into a graph and its variables. The rest of the code sees
`init(key)` and `apply(variables, x, *, train)`, with variables `{"params": ..., "batch_stats": ...}`. These are nested
dicts of arrays, which `jax.jit`, `jax.grad`, optax and checkpoints accept. Modules are merged again while jit traces:
the host needs 3 ms for a compiled step of a ResNet-50, and would need 23 ms with `nnx.jit`.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, overload

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from bt_jax.models.classifier import Classifier
from bt_jax.models.projector import Projector
from bt_jax.models.resnet import ARCHITECTURES, ResNet

__all__ = ["ARCHITECTURES", "Net", "Tree", "Variables", "build", "build_classifier", "build_projector"]

Tree = Any  # nested dicts of arrays
Variables = Mapping[str, Tree]  # {"params", "batch_stats"}
Module = ResNet | Projector | Classifier


@dataclasses.dataclass(frozen=True, eq=False)
class Net:
    """The definition of a network, without weights.

    Attributes:
      arch, options: of JSON types. `build(net.arch, **net.options)` builds an equal network. If arch is "projector" or
        "classifier", it is `build_projector(**net.options)` or `build_classifier(**net.options)`.
      feature_dim: the last axis of the outputs of `apply`.
      mean, std: of the training images, per channel, for pixels in [0, 1]; None if unknown. `bt_jax.load_encoder` sets
        them, and `bt_jax.preprocess` uses them.
    """

    arch: str
    options: dict[str, Any]
    feature_dim: int
    _graph: nnx.GraphDef[Module] = dataclasses.field(repr=False)
    _make: Callable[[nnx.Rngs], Module] = dataclasses.field(repr=False)
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    def init(self, key: jax.Array) -> dict[str, Tree]:
        """New variables {"params", "batch_stats"}, float32; works under `jax.jit` and `jax.eval_shape`."""
        _, params, stats = nnx.split(self._make(nnx.Rngs(key)), nnx.Param, nnx.BatchStat)
        return {"params": nnx.to_pure_dict(params), "batch_stats": nnx.to_pure_dict(stats)}

    @overload
    def apply(self, variables: Variables, x: jax.Array, *, train: Literal[False]) -> jax.Array: ...

    @overload
    def apply(self, variables: Variables, x: jax.Array, *, train: Literal[True]) -> tuple[jax.Array, Tree]: ...

    @overload
    def apply(self, variables: Variables, x: jax.Array, *, train: bool) -> jax.Array | tuple[jax.Array, Tree]: ...

    def apply(self, variables: Variables, x: jax.Array, *, train: bool) -> jax.Array | tuple[jax.Array, Tree]:
        """Computes the features of a batch.

        Args:
          variables: {"params", "batch_stats"}, of the structure that `init` returns. They are not changed.
          x: images (n, height, width, channels), float, normalised; for a projector, features (n, in_dim).
          train: normalise with the statistics of the batch, over all its devices. Otherwise with the running ones.

        Returns:
          The features (n, feature_dim), float32, or float64 for a float64 network. With `train`, a pair of the features
          and the new batch_stats, of the structure and dtypes of the old.
        """
        if train:
            outputs, stats = self.stages(variables, x, train=True)
            return outputs["features"], stats
        return self.stages(variables, x, train=False)["features"]

    @overload
    def stages(
        self, variables: Variables, x: jax.Array, *, train: Literal[False], **options: Any
    ) -> dict[str, jax.Array]: ...

    @overload
    def stages(
        self, variables: Variables, x: jax.Array, *, train: Literal[True], **options: Any
    ) -> tuple[dict[str, jax.Array], Tree]: ...

    def stages(
        self, variables: Variables, x: jax.Array, *, train: bool, **options: Any
    ) -> dict[str, jax.Array] | tuple[dict[str, jax.Array], Tree]:
        """Computes the outputs of every stage of a batch; see `apply`.

        Args:
          options: for the method `stages` of the module.

        Returns:
          As `apply`, but with a dict of outputs instead of the features. The stages of a ResNet are "maxpool" and
          "layer1" to "layer4", (n, h, w, c) in the compute dtype, and "features". They are in the order of the network;
          `jax.jit` sorts them by name.
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
    dtype: DTypeLike = jnp.float32,
) -> Net:
    """Builds a torchvision ResNet without its classifier; `resnet.ResNet` describes the options.

    Raises:
      UserError: the architecture is unknown, or `width` gives a fractional number of channels.
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


def build_projector(
    in_dim: int,
    widths: Sequence[int],
    *,
    bias: bool = False,
    last_bias: bool | None = None,
    hidden_norm: Sequence[str] | None = ("scale", "bias"),
    last_norm: Sequence[str] | None = None,
    dtype: DTypeLike = jnp.float32,
) -> Net:
    """Builds a projector from features (n, in_dim) to embeddings (n, widths[-1]); see `projector.Projector`."""
    options = {
        "in_dim": in_dim,
        "widths": list(widths),
        "bias": bias,
        "last_bias": last_bias,
        "hidden_norm": hidden_norm if hidden_norm is None else list(hidden_norm),
        "last_norm": last_norm if last_norm is None else list(last_norm),
        "dtype": jnp.dtype(dtype).name,
    }
    return _net("projector", options, lambda rngs: Projector(**options, rngs=rngs))


def build_classifier(in_dim: int, classes: int) -> Net:
    """Builds a linear classifier from features (n, in_dim) to logits (n, classes); see `classifier.Classifier`."""
    options = {"in_dim": in_dim, "classes": classes}
    return _net("classifier", options, lambda rngs: Classifier(**options, rngs=rngs))


def _net(arch: str, options: dict[str, Any], make: Callable[[nnx.Rngs], Module]) -> Net:
    module = nnx.eval_shape(lambda: make(nnx.Rngs(0)))
    return Net(arch, options, module.feature_dim, nnx.graphdef(module), make)
