"""The projector: hidden layers of Linear, batch norm and ReLU, then one Linear (paper section 2.2).

The paper uses 8192-8192-8192 without biases, solo-learn's CIFAR recipe 2048-2048-2048 with biases. Other methods have
no batch norm, or one on the output. The predictors of BYOL and SimSiam are of this kind too.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from bt_jax.messages import UserError
from bt_jax.models.batch_norm import BatchNorm

# torch.nn.Linear's default, which the reference keeps: U(-1/sqrt(fan_in), 1/sqrt(fan_in)), of variance 1 / (3 fan_in).
TORCH_LINEAR = jax.nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def linear(in_dim: int, out_dim: int, *, bias: bool, dtype: jnp.dtype, rngs: nnx.Rngs) -> nnx.Linear:
    """A linear layer, kernel (in, out), with the initial weights of torch.nn.Linear."""

    def bias_init(key: jax.Array, shape: Sequence[int], dtype: DTypeLike) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -(in_dim**-0.5), in_dim**-0.5)

    return nnx.Linear(
        in_dim, out_dim, use_bias=bias, dtype=dtype, kernel_init=TORCH_LINEAR, bias_init=bias_init, rngs=rngs
    )


class Projector(nnx.Module):
    """A projector with parameters `fc0`, `bn0`, `fc1`, ....

    Args:
      in_dim: number of features of the encoder.
      widths: number of outputs of every layer `fc{i}`; the last is the size of the embedding.
      bias: whether the linear layers have a bias.
      last_bias: whether the last linear layer has one; None: as `bias`.
      hidden_norm, last_norm: the parameters, "scale" and "bias", of the batch norms on the hidden layers and on the
        output; None: there is no batch norm.
      dtype: of the computations in the linear layers; parameters are float32.

    Raises:
      UserError: there is no width, or one is not positive.
    """

    def __init__(
        self,
        in_dim: int,
        widths: Sequence[int],
        *,
        bias: bool = False,
        last_bias: bool | None = None,
        hidden_norm: Sequence[str] | None = ("scale", "bias"),
        last_norm: Sequence[str] | None = None,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        if not widths or min(widths) < 1:
            raise UserError(f"A projector of widths {tuple(widths)} has no output", "Give at least one positive width.")
        self.dtype = jnp.dtype(dtype)
        self.hidden = len(widths) - 1
        self.feature_dim = widths[-1]
        for index, out_dim in enumerate(widths):
            last = index == self.hidden
            with_bias = bias if last_bias is None or not last else last_bias
            norm = last_norm if last else hidden_norm
            setattr(self, f"fc{index}", linear(in_dim, out_dim, bias=with_bias, dtype=self.dtype, rngs=rngs))
            setattr(self, f"bn{index}", None if norm is None else BatchNorm(out_dim, trained=norm))
            in_dim = out_dim

    def stages(
        self, h: jax.Array, *, train: bool, gather: Callable[[jax.Array], jax.Array] = lambda x: x
    ) -> dict[str, jax.Array]:
        """Computes the outputs of every layer from features h (n, in_dim).

        Args:
          gather: gather(columns) -> the whole hidden output, for a device that has only some columns of every layer.

        Returns:
          "hidden0", ...: (n, width) in the compute dtype; "features": (n, widths[-1]), float32 or wider.
        """
        x, outputs = h.astype(self.dtype), {}
        for index in range(self.hidden):
            x = outputs[f"hidden{index}"] = gather(nnx.relu(self._layer(index, x, train)))
        x = self._layer(self.hidden, x, train)
        outputs["features"] = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        return outputs

    def _layer(self, index: int, x: jax.Array, train: bool) -> jax.Array:
        x, norm = getattr(self, f"fc{index}")(x), getattr(self, f"bn{index}")
        return x if norm is None else norm(x, train=train)
