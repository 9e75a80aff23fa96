"""The projector: hidden layers of Linear, batch norm and ReLU, then one Linear (paper section 2.2).

The paper uses 8192-8192-8192 without biases, solo-learn's CIFAR recipe 2048-2048-2048 with biases.
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
    """A projector with parameters `fc0`, `bn0`, `fc1`, ...; the last layer has no batch norm.

    Args:
      in_dim: number of features of the encoder.
      widths: number of outputs of every layer `fc{i}`; the last is the size of the embedding.
      bias: whether the linear layers have a bias.
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
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        if not widths or min(widths) < 1:
            raise UserError(f"A projector of widths {tuple(widths)} has no output", "Give at least one positive width.")
        self.dtype = jnp.dtype(dtype)
        self.hidden = len(widths) - 1
        self.feature_dim = widths[-1]
        for index, out_dim in enumerate(widths):
            setattr(self, f"fc{index}", linear(in_dim, out_dim, bias=bias, dtype=self.dtype, rngs=rngs))
            if index < self.hidden:
                setattr(self, f"bn{index}", BatchNorm(out_dim))
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
            x = getattr(self, f"fc{index}")(x)
            x = outputs[f"hidden{index}"] = gather(nnx.relu(getattr(self, f"bn{index}")(x, train=train)))
        x = getattr(self, f"fc{self.hidden}")(x)
        outputs["features"] = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        return outputs
