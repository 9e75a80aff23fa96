"""A convolution layer that computes some shapes on a CPU in forms that XLA compiles to faster code there.

XLA passes nearly every convolution of a CPU to one routine for all sizes. Four kinds of convolution are slow, and have
another form here, with the same sums (times: benchmarks/results/step_cpu.md):

- 1x1 kernels are matrix products, of every `stride`th pixel. The gradient of the kernel has one product for each image,
  which needs no transposed copy of the map;
- the input gradient of a 3x3 convolution of stride 2 is four convolutions of stride 1, one for each pair of even or odd
  rows with even or odd columns. XLA has one convolution over an array that is three quarters zeros;
- the gradient of a 3x3 kernel is a sum over chunks of images that fit the caches;
- the gradient of a kernel is a matrix product with the patches that the kernel sees, if the output is larger than the
  input. This is so for the stem with a padding of 2.

The layer chooses by the platform that is compiled for, which need not be that of this machine: programs for TPUs and
GPUs have the plain convolution.
"""

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

NHWC = ("NHWC", "HWIO", "NHWC")
CHUNK = 2 * 2**20  # bytes of inputs; the fastest of 0.25, 0.5, 1 and 2 MB for 64 channels at 32x32
PHASES = 64  # number of input channels from which `_by_phases` is faster
PIXELS = 64  # of an image, from which one product for each image is faster than one that transposes the whole map first


class Convolution(nnx.Module):
    """A square convolution without bias, with the same zero padding on all four sides.

    Args:
      size: height and width of the kernel; the parameter is `kernel` (size, size, in_channels, out_channels), float32.
      dtype: of the computation and the output.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        size: int,
        *,
        stride: int = 1,
        padding: int,
        dtype: jnp.dtype,
        kernel_init: nnx.Initializer,
        rngs: nnx.Rngs,
    ) -> None:
        shape = (size, size, in_channels, out_channels)
        self.kernel = nnx.Param(kernel_init(rngs.params(), shape, jnp.float32))
        self.stride, self.padding, self.dtype = stride, padding, dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (n, height, width, in_channels) to (n, height', width', out_channels)."""
        return convolve(x.astype(self.dtype), self.kernel[...].astype(self.dtype), self.stride, self.padding)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def convolve(x: jax.Array, kernel: jax.Array, stride: int, padding: int) -> jax.Array:
    """The convolution of x (n, height, width, in) with a kernel (size, size, in, out), of one dtype."""
    options = {"stride": stride, "padding": padding}
    return lax.platform_dependent(
        x, kernel, cpu=functools.partial(_on_cpu, **options), default=functools.partial(plain, **options)
    )


def plain(x: jax.Array, kernel: jax.Array, *, stride: int, padding: int) -> jax.Array:
    """The convolution as one operation."""
    return _convolution(x, kernel, stride, (padding, padding), (padding, padding))


def _forward(x, kernel, stride, padding):
    return convolve(x, kernel, stride, padding), (x, kernel)


def _backward(stride, padding, inputs, dy):
    options = {"stride": stride, "padding": padding}

    def default(x, kernel, dy):
        return jax.vjp(functools.partial(plain, **options), x, kernel)[1](dy)

    def cpu(x, kernel, dy):
        return _input_gradient(x, kernel, dy, **options), _kernel_gradient(x, kernel, dy, **options)

    return lax.platform_dependent(*inputs, dy, cpu=cpu, default=default)


convolve.defvjp(_forward, _backward)


def _convolution(x, kernel, stride, rows, columns):
    """The convolution of x, with a zero padding of (before, after) in `rows` and in `columns`."""
    return lax.conv_general_dilated(x, kernel, (stride, stride), (rows, columns), dimension_numbers=NHWC)


def _is_product(kernel, padding: int) -> bool:
    return kernel.shape[:2] == (1, 1) and padding == 0


def _on_cpu(x, kernel, *, stride, padding):
    if _is_product(kernel, padding):
        return x[:, ::stride, ::stride] @ kernel[0, 0]
    return plain(x, kernel, stride=stride, padding=padding)


# ------------------------------------------------------------------------- gradients, from dy (n, height', width', out)


def _input_gradient(x, kernel, dy, *, stride, padding):
    height, width, channels = x.shape[1:]
    if _is_product(kernel, padding):
        dx = dy @ kernel[0, 0].T
        after = [side - stride * (out - 1) - 1 for side, out in zip((height, width), dy.shape[1:3], strict=True)]
        padded = ((0, 0, 0), *((0, pixels, stride - 1) for pixels in after), (0, 0, 0))
        return lax.pad(dx, jnp.zeros((), dx.dtype), padded)
    even = height % 2 == width % 2 == 0
    if kernel.shape[0] == 3 and (stride, padding) == (2, 1) and even and channels >= PHASES:
        return _by_phases(kernel.swapaxes(2, 3), dy)
    return jax.vjp(lambda x: plain(x, kernel, stride=stride, padding=padding), x)[1](dy)[0]


def _by_phases(kernel, dy):
    """The input gradient for a 3x3 kernel (3, 3, out, in) of stride 2 and padding 1, if the input has even sides.

    Output i reads the input at 2 i - 1, 2 i and 2 i + 1, with the taps 0, 1 and 2. Therefore an even row 2 p gets tap 1
    of output p, and an odd row 2 p + 1 gets tap 2 of output p and tap 0 of output p + 1. The same is so for columns.
    """
    taps = (slice(1, 2), slice(None, None, -2))  # for even and odd rows; -2: taps 2 and 0
    after = (0, 1)

    def phase(row, column):
        return _convolution(dy, kernel[taps[row]][:, taps[column]], 1, (0, after[row]), (0, after[column]))

    phases = [[phase(row, column) for column in (0, 1)] for row in (0, 1)]
    n, rows, columns = dy.shape[:3]
    dx = jnp.stack([jnp.stack(row, axis=3) for row in phases], axis=2)  # (n, rows, 2, columns, 2, in)
    return dx.reshape(n, 2 * rows, 2 * columns, -1)


def _kernel_gradient(x, kernel, dy, *, stride, padding):
    if _is_product(kernel, padding):
        return _product_gradient(x[:, ::stride, ::stride], dy)[None, None]
    if dy.shape[1] > x.shape[1] and stride == 1:  # XLA has naive loops for a window larger than its input
        return _by_patches(x, kernel, dy, padding)
    size, per_chunk = kernel.shape[0], _images_of_chunk(x, least=4)
    if size != 3 or per_chunk == len(x):
        return jax.vjp(lambda kernel: plain(x, kernel, stride=stride, padding=padding), kernel)[1](dy)[0]
    return _over_chunks(lambda x, dy: _chunk_gradient(x, dy, size, stride, padding), per_chunk, x, dy)


def _product_gradient(x, dy):
    """The gradient (in, out) of the matrix that maps the pixels of x (n, h, w, in) to those of dy (n, h, w, out)."""
    if x.shape[1] * x.shape[2] < PIXELS:
        return jnp.einsum("nhwi,nhwo->io", x, dy)
    of_images = functools.partial(jnp.einsum, "nhwi,nhwo->nio")
    return _over_chunks(lambda x, dy: of_images(x, dy).sum(0), _images_of_chunk(x, least=1), x, dy)


def _over_chunks(gradient, per_chunk, x, dy):
    """The sum of gradient(x, dy) over chunks of images."""
    if per_chunk == len(x):
        return gradient(x, dy)
    chunks = tuple(array.reshape(len(x) // per_chunk, per_chunk, *array.shape[1:]) for array in (x, dy))
    start = jnp.zeros_like(jax.eval_shape(gradient, *(chunk[0] for chunk in chunks)))
    return lax.scan(lambda total, chunk: (total + gradient(*chunk), None), start, chunks)[0]


def _by_patches(x, kernel, dy, padding):
    size, (height, width) = kernel.shape[0], dy.shape[1:3]
    x = jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    taps = [x[:, row : row + height, column : column + width] for row in range(size) for column in range(size)]
    return jnp.einsum("nhwp,nhwo->po", jnp.concatenate(taps, axis=-1), dy).reshape(kernel.shape)


def _images_of_chunk(x, *, least) -> int:
    """The number of images in a chunk, a divisor of n; n itself where chunks would not be faster."""
    n, height, width, channels = x.shape
    # Chunks of a batch that is split over devices would move images between them.
    if jax.device_count() > 1:
        return n
    fitting = max(CHUNK // (height * width * channels * x.dtype.itemsize), 1)
    return max((images for images in range(1, n + 1) if n % images == 0 and least <= images <= fitting), default=n)


def _chunk_gradient(x, dy, size, stride, padding):
    """The gradient of a kernel as the convolution of x (in, h, w, n) with dy (h', w', n, out).

    On a CPU, XLA itself changes a convolution to these layouts, but not within a loop. There, a convolution in other
    layouts is many times slower.
    """
    sides = zip(x.shape[1:3], dy.shape[1:3], strict=True)
    rows, columns = ((padding, stride * (out - 1) + size - side - padding) for side, out in sides)
    gradient = lax.conv_general_dilated(
        x.transpose(3, 1, 2, 0), dy.transpose(1, 2, 0, 3), (1, 1), (rows, columns), rhs_dilation=(stride, stride),
        dimension_numbers=NHWC,
    )  # fmt: skip
    return gradient.transpose(1, 2, 0, 3)
