"""Batch normalisation with the numbers of `torch.nn.BatchNorm1d/2d`, for the backbones and the projector."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

EPS = 1e-5  # torch's default, inside the root
MOMENTUM = 0.1  # torch's sense: the weight of the newest batch in the running statistics


class BatchNorm(nnx.Module):
    """Normalises the last axis over all others.

    Training uses the batch's mean and biased variance and moves the running statistics, whose variance is unbiased as
    torch's is (flax's own layer stores the biased one). Statistics are float32, float64 for float64 inputs, whatever
    the dtype of the input. Under `jax.jit` a batch split over devices is one array, so its statistics are global.

    Args:
      scale: the factor at the start.
      trained: which of "scale" and "bias" there are.
    """

    def __init__(self, channels: int, *, scale: float = 1.0, trained: Sequence[str] = ("scale", "bias")) -> None:
        self.scale = nnx.Param(jnp.full((channels,), scale, jnp.float32)) if "scale" in trained else None
        self.bias = nnx.Param(jnp.zeros((channels,), jnp.float32)) if "bias" in trained else None
        self.mean = nnx.BatchStat(jnp.zeros((channels,), jnp.float32))
        self.var = nnx.BatchStat(jnp.ones((channels,), jnp.float32))

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """x: (n, ..., channels), float; the result has its shape and dtype.

        Raises:
          ValueError: `train` with a single value for a channel, which has no unbiased variance (torch raises too).
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
        """Mean and biased variance of the batch, each (channels,); moves the running statistics as well."""
        axes, count = tuple(range(x.ndim - 1)), x.size // x.shape[-1]
        if count < 2:
            raise ValueError(f"Batch statistics need more than one value for a channel; the input is {x.shape}")
        # var = E[(x - shift)^2] - E[x - shift]^2 holds for every constant shift; its relative rounding error is about
        # 1e-7 ((mean - shift) / std)^2, and without a shift flax's came out negative. Feature maps are shifted by the
        # running mean: one read of x and one all-reduce give both sums, and the gradient needs no third pass.
        # Embeddings (n, d) can be nearly equal over the batch and are small, so they are shifted by their own mean.
        shift = x.mean(axes) if x.ndim == 2 else self.mean[...].astype(x.dtype)
        shift = jax.lax.stop_gradient(shift)
        centred = x - shift
        offset = centred.mean(axes)
        var = jnp.maximum(jnp.square(centred).mean(axes) - jnp.square(offset), 0)
        mean = shift + offset
        self._move(self.mean, mean)
        self._move(self.var, var * (count / (count - 1)))
        return mean, var

    @staticmethod
    def _move(running: nnx.BatchStat, batch: jax.Array) -> None:
        old = running[...]
        # Not `running[...] = `, which asks a tracer for its sharding: more than half of the time to trace a ResNet-50.
        running.set_value(((1 - MOMENTUM) * old.astype(batch.dtype) + MOMENTUM * batch).astype(old.dtype))
