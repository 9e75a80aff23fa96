"""Batch normalisation that computes the same as `torch.nn.BatchNorm1d/2d`, for backbones and projector.

On a CPU, XLA sums over the images and pixels of a feature map in passes over arrays that it first writes to memory:
sum((x - shift)^2) takes four. Here a matrix product with ones sums the pixels of each image, and the gradient is a
formula with two sums. A batch norm of 64 channels at 32x32 takes a quarter of the time
(benchmarks/results/step_cpu.md). The form is chosen by the platform that is compiled for; programs for TPUs and GPUs
have the plain one.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

EPS = 1e-5  # torch's default, inside the root
MOMENTUM = 0.1  # as torch defines it: the weight of the newest batch in the running statistics


class BatchNorm(nnx.Module):
    """Normalises each channel, the last axis, over all other axes.

    Training uses the mean and the biased variance of the batch. It also updates the running statistics, with the
    unbiased variance as in torch; flax's layer stores the biased one. Batch statistics are float32, or float64 for
    float64 inputs. Under `jax.jit`, a batch split over devices is one array, and its statistics are global.

    Args:
      scale: the initial factor.
      trained: the parameters, "scale" and "bias", one of them, or none.
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
        scale = None if self.scale is None else self.scale[...].astype(x.dtype)
        bias = None if self.bias is None else self.bias[...].astype(x.dtype)
        if not train:
            mean, var = self.mean[...].astype(x.dtype), self.var[...].astype(x.dtype)
            return _normalise(x, mean, var, scale, bias).astype(dtype)
        count = x.size // x.shape[-1]
        if count < 2:
            raise ValueError(f"Batch statistics need more than one value for a channel; the input is {x.shape}")
        # var = E[(x - shift)^2] - E[x - shift]^2 for any constant shift. Its relative rounding error is about
        # 1e-7 ((mean - shift) / std)^2. flax's layer has no shift, and rounding can make its variance 0. Feature maps
        # are shifted by the running mean, which is known beforehand: one read of x and one all-reduce then give both
        # sums. Embeddings (n, d) can be nearly equal over the batch, so they are shifted by their own mean. That takes
        # little time, because they are small.
        if x.ndim == 2:
            y, mean, var = _plain(x, lax.stop_gradient(x.mean(0)), scale, bias)
        else:
            y, mean, var = _of_maps(x, self.mean[...].astype(x.dtype), scale, bias)
        self._update(self.mean, mean)
        self._update(self.var, var * (count / (count - 1)))
        return y.astype(dtype)

    @staticmethod
    def _update(running: nnx.BatchStat, batch: jax.Array) -> None:
        old = running[...]
        # `running[...] = ` asks a tracer for its sharding. This takes at least half of the time to trace a ResNet-50.
        running.set_value(((1 - MOMENTUM) * old.astype(batch.dtype) + MOMENTUM * batch).astype(old.dtype))


def _normalise(x, mean, var, scale, bias) -> jax.Array:
    factor = lax.rsqrt(var + EPS)
    if scale is not None:
        factor = factor * scale
    x = (x - mean) * factor
    return x if bias is None else x + bias


def _plain(x, shift, scale, bias) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The output, and the mean and the biased variance of the batch."""
    axes = tuple(range(x.ndim - 1))
    centred = x - shift
    offset = centred.mean(axes)
    var = jnp.maximum(jnp.square(centred).mean(axes) - jnp.square(offset), 0)
    mean = shift + offset
    return _normalise(x, mean, var, scale, bias), mean, var


@jax.custom_vjp
def _of_maps(x, shift, scale, bias) -> tuple[jax.Array, jax.Array, jax.Array]:
    """As `_plain`, for feature maps. The gradients of mean and variance are left out: nothing is trained by them."""
    return lax.platform_dependent(x, shift, scale, bias, cpu=_on_cpu, default=_plain)


def _forward(x, shift, scale, bias):
    y, mean, var = _of_maps(x, shift, scale, bias)
    return (y, mean, var), (x, shift, scale, bias, mean, var)


def _backward(inputs, gradients):
    def default(x, shift, scale, bias, mean, var, dy):
        return jax.vjp(lambda x, scale, bias: _plain(x, shift, scale, bias)[0], x, scale, bias)[1](dy)

    dx, dscale, dbias = lax.platform_dependent(*inputs, gradients[0], cpu=_gradients_on_cpu, default=default)
    return dx, None, dscale, dbias


_of_maps.defvjp(_forward, _backward)


def _on_cpu(x, shift, scale, bias):
    count, centred = x.size // x.shape[-1], x - shift
    offset = _sums(centred) / count
    var = jnp.maximum(_sums(jnp.square(centred)) / count - jnp.square(offset), 0)
    mean = shift + offset
    return _normalise(x, mean, var, scale, bias), mean, var


def _gradients_on_cpu(x, shift, scale, bias, mean, var, dy):
    """The formula of Ioffe and Szegedy 2015, section 3."""
    del shift
    count, root = x.size // x.shape[-1], lax.rsqrt(var + EPS)
    dbias, dscale = _sums(dy), _sums(dy * (x - mean)) * root
    dx = dy - dbias / count - (x - mean) * (root * dscale / count)
    dx = dx * (root if scale is None else root * scale)
    return dx, None if scale is None else dscale, None if bias is None else dbias


def _sums(x: jax.Array) -> jax.Array:
    """The sums of feature maps (n, ..., channels) over all other axes: per image, then over the images."""
    pixels = x.reshape(len(x), -1, x.shape[-1])
    return jnp.einsum("np,npc->nc", jnp.ones(pixels.shape[:2], x.dtype), pixels).sum(0)
