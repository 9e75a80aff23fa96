"""The block of the smallest architecture that `models.build` can make."""

from flax import nnx

from bt_jax.models import resnet
from bt_jax.models.batch_norm import BatchNorm


class OneConvolution(nnx.Module):
    """A block of one convolution, batch norm and ReLU, without a shortcut."""

    expansion = convs = 1

    def __init__(self, in_channels, channels, stride, *, last_scale, dtype, rngs):
        del last_scale
        self.conv1 = resnet.conv(in_channels, channels, 3, stride=stride, padding=1, dtype=dtype, rngs=rngs)
        self.bn1 = BatchNorm(channels)

    def __call__(self, x, *, train):
        return nnx.relu(self.bn1(self.conv1(x), train=train))
