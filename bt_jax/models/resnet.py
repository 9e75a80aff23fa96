"""ResNet-18/34/50/101/152 that compute the same as torchvision's, in NHWC.

Every padding is explicit. With "SAME", a 3x3 convolution of stride 2 would pad an even side by (0, 1), but torch pads
(1, 1): converted weights would give other features. Bottlenecks have the stride in their 3x3 convolution (torchvision's
"v1.5"). Sub-modules have the names of torchvision (`conv1`, `bn1`, `layer1`), except those that torchvision numbers
(`block0`, `downsample.conv`): the parameters are nested dicts with string keys.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from bt_jax.messages import UserError
from bt_jax.models.batch_norm import BatchNorm
from bt_jax.models.convolution import Convolution
from bt_jax.models.max_pool import max_pool

# He et al. 2015, "Delving deep", with fan-out: the initialiser in torchvision's ResNet.__init__.
KAIMING_NORMAL = jax.nn.initializers.variance_scaling(2.0, "fan_out", "normal")


def conv(
    in_channels: int, out_channels: int, size: int, *, stride: int = 1, padding: int, dtype: jnp.dtype, rngs: nnx.Rngs
) -> Convolution:
    """A square convolution without bias, with the same zero padding on all four sides."""
    options = {"stride": stride, "padding": padding, "dtype": dtype}
    return Convolution(in_channels, out_channels, size, **options, kernel_init=KAIMING_NORMAL, rngs=rngs)


class Downsample(nnx.Module):
    """The 1x1 convolution in the shortcut of a block that changes the resolution or the number of channels."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, *, dtype: jnp.dtype, rngs: nnx.Rngs) -> None:
        self.conv = conv(in_channels, out_channels, 1, stride=stride, padding=0, dtype=dtype, rngs=rngs)
        self.bn = BatchNorm(out_channels)

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        return self.bn(self.conv(x), train=train)


def downsample(
    in_channels: int, out_channels: int, stride: int, *, dtype: jnp.dtype, rngs: nnx.Rngs
) -> Downsample | None:
    """The convolution of a shortcut, or None if the shortcut is the identity."""
    if stride == 1 and in_channels == out_channels:
        return None
    return Downsample(in_channels, out_channels, stride, dtype=dtype, rngs=rngs)


class BasicBlock(nnx.Module):
    """Two 3x3 convolutions and a shortcut (ResNet-18 and 34)."""

    expansion = 1
    convs = 2

    def __init__(
        self, in_channels: int, channels: int, stride: int, *, last_scale: float, dtype: jnp.dtype, rngs: nnx.Rngs
    ) -> None:
        self.conv1 = conv(in_channels, channels, 3, stride=stride, padding=1, dtype=dtype, rngs=rngs)
        self.bn1 = BatchNorm(channels)
        self.conv2 = conv(channels, channels, 3, padding=1, dtype=dtype, rngs=rngs)
        self.bn2 = BatchNorm(channels, scale=last_scale)
        self.downsample = downsample(in_channels, channels, stride, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        y = nnx.relu(self.bn1(self.conv1(x), train=train))
        y = self.bn2(self.conv2(y), train=train)
        shortcut = x if self.downsample is None else self.downsample(x, train=train)
        return nnx.relu(y + shortcut)


class Bottleneck(nnx.Module):
    """1x1, 3x3 and 1x1 convolutions and a shortcut (ResNet-50 and deeper); the output has 4 times the channels."""

    expansion = 4
    convs = 3

    def __init__(
        self, in_channels: int, channels: int, stride: int, *, last_scale: float, dtype: jnp.dtype, rngs: nnx.Rngs
    ) -> None:
        out_channels = channels * self.expansion
        self.conv1 = conv(in_channels, channels, 1, padding=0, dtype=dtype, rngs=rngs)
        self.bn1 = BatchNorm(channels)
        self.conv2 = conv(channels, channels, 3, stride=stride, padding=1, dtype=dtype, rngs=rngs)
        self.bn2 = BatchNorm(channels)
        self.conv3 = conv(channels, out_channels, 1, padding=0, dtype=dtype, rngs=rngs)
        self.bn3 = BatchNorm(out_channels, scale=last_scale)
        self.downsample = downsample(in_channels, out_channels, stride, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        y = nnx.relu(self.bn1(self.conv1(x), train=train))
        y = nnx.relu(self.bn2(self.conv2(y), train=train))
        y = self.bn3(self.conv3(y), train=train)
        shortcut = x if self.downsample is None else self.downsample(x, train=train)
        return nnx.relu(y + shortcut)


Block = BasicBlock | Bottleneck

# He et al. 2015, "Deep residual learning", table 1: the block, and the number of blocks in each of the four stages.
ARCHITECTURES: dict[str, tuple[type[Block], tuple[int, int, int, int]]] = {
    "resnet18": (BasicBlock, (2, 2, 2, 2)),
    "resnet34": (BasicBlock, (3, 4, 6, 3)),
    "resnet50": (Bottleneck, (3, 4, 6, 3)),
    "resnet101": (Bottleneck, (3, 4, 23, 3)),
    "resnet152": (Bottleneck, (3, 8, 36, 3)),
}


def architecture(arch: str) -> tuple[type[Block], tuple[int, int, int, int]]:
    """The block class and the depths of the four stages.

    Raises:
      UserError: the architecture is unknown.
    """
    if arch not in ARCHITECTURES:
        raise UserError(f"There is no architecture {arch!r}", f"Choose from {', '.join(ARCHITECTURES)}.")
    return ARCHITECTURES[arch]


def stem_channels(width: float) -> int:
    """The number of channels of the stem, 64 * width; all others are multiples of it.

    Raises:
      UserError: it is not a positive integer.
    """
    channels = 64 * width
    if channels < 1 or channels != int(channels):
        raise UserError(
            f"A width of {width} gives {channels} channels in the stem", "Set a positive multiple of 1/64, such as 0.5."
        )
    return int(channels)


class Stage(nnx.Module):
    """`depth` blocks. The first may change the number of channels; in layer2 to layer4, it halves the resolution."""

    def __init__(
        self,
        block: type[Block],
        in_channels: int,
        channels: int,
        depth: int,
        stride: int,
        *,
        last_scale: float,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ) -> None:
        options = {"last_scale": last_scale, "dtype": dtype, "rngs": rngs}
        self.depth = depth
        for index in range(depth):
            setattr(self, f"block{index}", block(in_channels, channels, stride if index == 0 else 1, **options))
            in_channels = channels * block.expansion

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        for index in range(self.depth):
            x = getattr(self, f"block{index}")(x, train=train)
        return x


class ResNet(nnx.Module):
    """A ResNet with its average pool, without a classifier.

    Args:
      arch: a key of ARCHITECTURES.
      small_images: for CIFAR, a 3x3 stem of stride 1 without max-pool. Otherwise 7x7, stride 2, with max-pool.
      width: factor for all numbers of channels, those of stem and features included (R50x2 of SimCLR and VICReg: 2).
      channels: of the images.
      zero_init_residual: the last scale of every block starts at 0, so that the block starts as its shortcut.
      stem_padding: of the 3x3 stem. solo-learn pads 2, so that 32x32 images become 34x34 maps.
      dtype: of the computations in convolutions; parameters are float32.

    Raises:
      UserError: the architecture is unknown, or `width` gives a fractional number of channels.
    """

    def __init__(
        self,
        arch: str,
        *,
        small_images: bool = False,
        width: float = 1,
        channels: int = 3,
        zero_init_residual: bool = True,
        stem_padding: int = 1,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        block, depths = architecture(arch)
        base = stem_channels(width)
        self.dtype = jnp.dtype(dtype)
        self.small_images = small_images
        self.channels = channels
        if small_images:
            self.conv1 = conv(channels, base, 3, padding=stem_padding, dtype=self.dtype, rngs=rngs)
        else:
            self.conv1 = conv(channels, base, 7, stride=2, padding=3, dtype=self.dtype, rngs=rngs)
        self.bn1 = BatchNorm(base)
        options = {"last_scale": 0.0 if zero_init_residual else 1.0, "dtype": self.dtype, "rngs": rngs}
        out = block.expansion
        self.layer1 = Stage(block, base, base, depths[0], 1, **options)
        self.layer2 = Stage(block, base * out, base * 2, depths[1], 2, **options)
        self.layer3 = Stage(block, base * 2 * out, base * 4, depths[2], 2, **options)
        self.layer4 = Stage(block, base * 4 * out, base * 8, depths[3], 2, **options)
        self.feature_dim = base * 8 * out

    def stages(self, images: jax.Array, *, train: bool) -> dict[str, jax.Array]:
        """Computes the outputs of every stage, in the order of the network.

        Args:
          images: (n, height, width, channels), float, normalised.

        Returns:
          "maxpool" (with small_images, the output of the stem) and "layer1" to "layer4": (n, h, w, c) in the compute
          dtype; "features": (n, feature_dim), float32, or float64 if that is the compute dtype.

        Raises:
          UserError: the images are whole numbers, or have another shape, such as PyTorch's (n, channels, height,
            width).
        """
        self._check(images.shape)
        if not jnp.issubdtype(images.dtype, jnp.floating):
            raise UserError(
                f"The images are {images.dtype}, not normalised floating-point numbers",
                "Normalise them: bt_jax.preprocess(images, net).",
            )
        x = nnx.relu(self.bn1(self.conv1(images.astype(self.dtype)), train=train))
        if not self.small_images:
            x = max_pool(x)
        outputs = {"maxpool": x}
        for name in ("layer1", "layer2", "layer3", "layer4"):
            x = outputs[name] = getattr(self, name)(x, train=train)
        outputs["features"] = x.astype(jnp.promote_types(x.dtype, jnp.float32)).mean((1, 2))
        return outputs

    def _check(self, shape: tuple[int, ...]) -> None:
        if len(shape) == 4 and shape[-1] == self.channels:
            return
        torchs = len(shape) == 4 and shape[1] == self.channels
        raise UserError(
            f"Images of the shape {shape} are not (n, height, width, {self.channels})",
            "Transpose them: images.transpose(0, 2, 3, 1)."
            if torchs
            else f"Pass a batch of images with {self.channels} channels, the channels last.",
        )
