"""Decoding within tf.data: JPEG and PNG by TensorFlow, all other formats by Pillow, onto a canvas.

The array path decodes everything by Pillow (`sources.decode`). Both paths read the same formats to the same pixels.
Only CMYK images and JPEGs that are shrunk during decoding differ, by rounding.
"""

import numpy as np

from bt_jax.data.sources import decode, orientation

# TensorFlow decodes a JPEG of less than 2^29 values (core/lib/jpeg/jpeg_mem.cc). A pixel has up to 4 values, and
# decoding at 1/8 rounds the sides up.
JPEG_PIXELS = (1 << 27) - (1 << 20)


def fit(data, canvas: int, channels: int = 3):
    """Encoded image, a string tensor -> (uint8 (h, w, channels), no side over `canvas`; int32 (2,): h and w)."""
    import tensorflow as tf

    is_png = tf.strings.substr(data, 0, 4) == b"\x89PNG"
    image, size = tf.cond(
        tf.io.is_jpeg(data),
        lambda: _decode_jpeg(data, canvas, channels),
        lambda: tf.cond(is_png, lambda: _decode_png(data, channels), lambda: _decode_other(data, channels)),
    )
    longest = tf.reduce_max(size)
    size = tf.cond(
        longest > canvas,
        lambda: tf.maximum(1, tf.cast(tf.round(tf.cast(size, tf.float64) * (canvas / longest)), tf.int32)),
        lambda: size,
    )
    image = tf.cond(tf.reduce_all(tf.shape(image)[:2] == size), lambda: image, lambda: _shrink(image, size))
    return shaped(image, [None, None, channels]), shaped(size, [2])


def turned(image, size, number):
    """Makes an image of `fit` upright, like `orientation.turned`; number: its EXIF orientation, an int32 tensor."""
    import tensorflow as tf

    def turn():
        def among(numbers):
            return tf.reduce_any(tf.equal(number, numbers))

        exchanged = among(orientation.EXCHANGED)
        reverse = tf.stack([among(orientation.ROWS_REVERSED), among(orientation.COLUMNS_REVERSED), False])
        turned = tf.transpose(image, tf.where(exchanged, [1, 0, 2], [0, 1, 2]))
        return tf.reverse(turned, tf.reshape(tf.where(reverse), [-1])), tf.where(exchanged, size[::-1], size)

    # All of the work is in one branch: each operation of the graph takes microseconds of an image that stays as it is.
    upright, turned_size = tf.cond(tf.equal(number, orientation.UPRIGHT), lambda: (image, size), turn)
    return shaped(upright, [None, None, image.shape[-1]]), shaped(turned_size, [2])


def _decode_jpeg(data, canvas: int, channels: int):
    """The image and its full size. Grayscale and CMYK become RGB.

    Decodes at 1/2, 1/4 or 1/8 of the size if that still covers the canvas: fewer coefficients take less time.
    """
    import tensorflow as tf

    size = tf.io.extract_jpeg_shape(data)[:2]
    index = tf.reduce_sum(tf.cast(tf.reduce_max(size) >= [2 * canvas, 4 * canvas, 8 * canvas], tf.int32))
    pixels = tf.reduce_prod(tf.cast(size, tf.int64))
    decoded = pixels // tf.gather(tf.constant([1, 4, 16, 64], tf.int64), index)

    def decoder(ratio):
        # The accurate transform gives exactly Pillow's pixels, at no measurable cost.
        return lambda: tf.io.decode_jpeg(data, channels=channels, ratio=ratio, dct_method="INTEGER_ACCURATE")

    image = tf.cond(
        tf.logical_or(pixels > decode.LARGEST, decoded > JPEG_PIXELS),
        lambda: _pillow(data, channels),
        lambda: shaped(tf.switch_case(index, [decoder(ratio) for ratio in (1, 2, 4, 8)]), [None, None, channels]),
    )
    return shaped(image, [None, None, channels]), size


def _decode_png(data, channels: int):
    import tensorflow as tf

    # Pillow converts colour to one channel, as on the array path: TensorFlow's decoder has other weights.
    image = tf.io.decode_png(data, channels=3) if channels == 3 else _pillow(data, channels)
    return shaped(image, [None, None, channels]), tf.shape(image)[:2]


def _decode_other(data, channels: int):
    import tensorflow as tf

    image = _pillow(data, channels)
    return image, tf.shape(image)[:2]


def _pillow(data, channels: int):
    """Decodes the other formats that Pillow reads: WebP, TIFF, GIF, BMP, PPM ..."""
    import tensorflow as tf

    def pixels(data):
        # Outside a graph, data is an array without dimensions.
        image = decode.try_decode(data.item() if isinstance(data, np.ndarray) else data, channels)
        return np.zeros((0, 0, channels), np.uint8) if isinstance(image, Exception) else image

    image = tf.numpy_function(pixels, [data], tf.uint8, stateful=False)
    # An assertion of TensorFlow, because TensorFlow prints the traceback of a Python exception.
    with tf.control_dependencies([tf.debugging.assert_greater(tf.size(image), 0, "Pillow cannot read it")]):
        return shaped(tf.identity(image), [None, None, channels])


def _shrink(image, size):
    import tensorflow as tf

    # The area method does not alias and takes 1 ms an image; TensorFlow's antialiased bicubic takes 6.
    return tf.cast(tf.round(tf.image.resize(image, size, method="area")), tf.uint8)


def plain(function):
    """Turns AutoGraph off for a function: there is nothing to rewrite, and its failures print the environment."""
    import tensorflow as tf

    return tf.autograph.experimental.do_not_convert(function)


def shaped(tensor, shape):
    tensor.set_shape(shape)  # unknown to the graph, because a Python function or a decoder made the tensor
    return tensor
