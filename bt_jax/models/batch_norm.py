"""Batch normalisation that computes the same as `torch.nn.BatchNorm1d/2d`, for backbones and projector."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

EPS = 1e-5  # torch's default, inside the root
MOMENTUM = 0.1  # as torch defines it: the weight of the newest batch in the running statistics


class BatchNorm(nnx.Module):
    """Normalises each channel, the last axis, over all other axes.

    Training uses the mean and the biased variance of the batch. It also updates the running statistics, with the
    unbiased variance as in torch; flax's layer stores the biased one. Statistics are float32, or float64 for float64
    inputs. Under `jax.jit`, a batch split over devices is one array, and its statistics are global.

    Args:
      scale: the initial factor.
      trained: the parameters, "scale" and "bias" or one of them.
    """

    def __init__(self, channels: int, *, scale: float = 1.0, trained: Sequence[str] = ("scale", "bias")) -> None:
        self.scale = nnx.Param(jnp.full((channels,), scale, jnp.float32)) if "scale" in trained else None
        self.bias = nnx.Param(jnp.zeros((channels,), jnp.float32)) if "bias" in trained else None
        self.mean = nnx.BatchStat(jnp.zeros((channels,), jnp.float32))
        self.var = nnx.BatchStat(jnp.ones((channels,), jnp.float32))

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Normalises x (n, ..., channels), float; the result has its shape and dtype.

        Raises:
          ValueError: with `train`, a channel has a single value, and thus no unbiased variance (torch raises as well).
        """
        dtype = x.dtype
        x = x.astype(jnp.promote_types(dtype, jnp.float32))
        if train:
            mean, var = self._batch_statistics(x)
        else:
            mean, var = self.mean[...].astype(x.dtype), self.var[...].astype(x.dtype)
        factor = jax.lax.rsqrt(var + EPS)
        if self.scale is not None:
            factor = factor * self.scale[...].astype(x.dtype)
        x = (x - mean) * factor
        if self.bias is not None:
            x = x + self.bias[...].astype(x.dtype)
        return x.astype(dtype)

    def _batch_statistics(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The mean and the biased variance of the batch, each (channels,); also updates the running statistics."""
        axes, count = tuple(range(x.ndim - 1)), x.size // x.shape[-1]
        if count < 2:
            raise ValueError(f"Batch statistics need more than one value for a channel; the input is {x.shape}")
        # var = E[(x - shift)^2] - E[x - shift]^2 for any constant shift. Its relative rounding error is about
        # 1e-7 ((mean - shift) / std)^2; flax's layer has no shift, and its variance can be negative. Feature maps are
        # shifted by the running mean: one read of x and one all-reduce give both sums, and the gradient needs no third
        # pass. Embeddings (n, d) can be nearly equal over the batch. They are small, and shifted by their own mean.
        shift = x.mean(axes) if x.ndim == 2 else self.mean[...].astype(x.dtype)
        shift = jax.lax.stop_gradient(shift)
        centred = x - shift
        offset = centred.mean(axes)
        var = jnp.maximum(jnp.square(centred).mean(axes) - jnp.square(offset), 0)
        mean = shift + offset
        self._update(self.mean, mean)
        self._update(self.var, var * (count / (count - 1)))
        return mean, var

    @staticmethod
    def _update(running: nnx.BatchStat, batch: jax.Array) -> None:
        old = running[...]
        # `running[...] = ` asks a tracer for its sharding, which takes half of the time to trace a ResNet-50 or more.
        running.set_value(((1 - MOMENTUM) * old.astype(batch.dtype) + MOMENTUM * batch).astype(old.dtype))
