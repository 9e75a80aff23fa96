"""Stored pixels as an encoder takes them."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bt_jax
from bt_jax import augment, models
from bt_jax.augment import recipes
from bt_jax.messages import UserError

MEAN, STD = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
COLOUR = dataclasses.replace(models.build("resnet18", width=0.125), mean=MEAN, std=STD)
GRAY = dataclasses.replace(models.build("resnet18", width=0.125, channels=1), mean=(0.5,), std=(0.25,))
PIXELS = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), np.uint8)


@pytest.mark.parametrize("kind", [np.asarray, jnp.asarray, list])
def test_a_batch_is_normalised_as_in_training(kind):
    view = recipes.View(interpolation="bilinear")
    wanted = augment.evaluation_view(PIXELS, recipes.Recipe(8, view, view, MEAN, STD))
    found = bt_jax.preprocess(kind(PIXELS), COLOUR)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, wanted, atol=1e-6)
    np.testing.assert_allclose(jax.jit(lambda images: bt_jax.preprocess(images, COLOUR))(PIXELS), found, atol=1e-6)


def test_one_image_and_gray_images():
    one = bt_jax.preprocess(PIXELS[0], COLOUR)
    np.testing.assert_array_equal(one, bt_jax.preprocess(PIXELS, COLOUR)[:1])
    gray = PIXELS[..., :1]
    np.testing.assert_array_equal(bt_jax.preprocess(gray, COLOUR), bt_jax.preprocess(gray.repeat(3, axis=-1), COLOUR))
    wanted = (gray.astype(np.float32) / 255 - 0.5) / 0.25
    np.testing.assert_allclose(bt_jax.preprocess(gray, GRAY), wanted, atol=1e-6)
    for image in (gray[0], gray[0, ..., 0]):
        np.testing.assert_allclose(bt_jax.preprocess(image, GRAY), wanted[:1], atol=1e-6)


@pytest.mark.parametrize(
    "images, net, said",
    [
        (PIXELS / 255, COLOUR, "The images are float64, not uint8. Pass the pixels as they are stored, 0 to 255"),
        (PIXELS.astype(np.int64), COLOUR, "The images are int64, not uint8. If all values are 0 to 255, convert"),
        ([[[[300] * 3]]], COLOUR, "The images are int64, not uint8. If all values are 0 to 255, convert"),
        (jnp.zeros((1, 8, 8, 3), jnp.bfloat16), COLOUR, "bfloat16, not uint8. Pass the pixels as they are stored"),
        (
            PIXELS.transpose(0, 3, 1, 2),
            COLOUR,
            "(2, 3, 8, 8) are not (n, h, w, c) or (h, w, c) with 1 or 3 channels."
            " Move the channels to the end: np.moveaxis(images, -3, -1).",
        ),
        (PIXELS[0].transpose(2, 0, 1), COLOUR, "Move the channels to the end"),
        (PIXELS[..., 0], GRAY, "Add the channel axis of gray images: images[..., None]."),
        (np.zeros((8, 8, 4), np.uint8), COLOUR, "Drop the alpha channel: images[..., :3]."),
        (np.uint8(3), COLOUR, "Images of shape () are not"),
        ([PIXELS[0], PIXELS[1, :4]], COLOUR, "The images differ in shape."),
        (PIXELS, GRAY, "are in colour, but the encoder takes gray ones. Convert them"),
        (PIXELS, models.build("resnet18"), "does not state mean and std of its training images. Set them"),
    ],
)
def test_other_images_are_an_error(images, net, said):
    with pytest.raises(UserError, match=re.escape(said)):
        bt_jax.preprocess(images, net)


@pytest.mark.parametrize("images", [PIXELS, PIXELS.astype(np.int32), PIXELS > 9])
def test_a_network_refuses_pixels_that_are_not_normalised(images):
    with pytest.raises(UserError, match="not normalised floating-point numbers. Normalise them: bt_jax.preprocess"):
        jax.eval_shape(lambda images: COLOUR.apply(COLOUR.init(jax.random.key(0)), images, train=False), images)
