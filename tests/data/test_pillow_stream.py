"""The reader without TensorFlow: its batches are those of tf.data."""

import io
import itertools

import numpy as np
import pytest
from PIL import Image

from bt_jax.data import pillow_stream, pipeline
from bt_jax.data.sources.base import Source
from bt_jax.data.sources.broken import UnreadableImages
from bt_jax.messages import UserError
from tests.support.drawn_images import Listed, encode


@pytest.fixture(scope="module")
def images():
    """Eleven images of several sizes, formats and modes, of which one is damaged; some are over the canvas of 32."""
    rng = np.random.default_rng(0)
    records = []
    for number in range(11):
        height, width = rng.integers(8, 60, 2)
        pixels = rng.integers(100, 156, (height, width, 3), np.uint8)  # no colour is cut at 0 or 255
        kind = ("PNG", "JPEG", "WEBP")[number % 3]
        records.append((encode(pixels, kind, "L" if number == 4 else None), number % 2))
    records[5] = (b"damaged", 1)
    return Listed(records)


def both(function, source, *arguments, count, **options):
    """The first batches of each reader, and the lines about damaged images."""
    results = []
    for reader in (pipeline, pillow_stream):
        broken = UnreadableImages(source, limit=1.0, say=lambda line: None)
        made = getattr(reader, function)(source, *arguments, broken=broken, **options)
        results.append((list(itertools.islice(made, count)), broken.lines))
        made.close()
    return results


@pytest.mark.parametrize("channels", [1, 3])
def test_training_batches_are_those_of_tf_data(images, channels):
    """In the middle of an epoch, and over its end; every pixel, as no JPEG is shrunk while it is decoded."""
    options = {"batch_size": 4, "canvas": 32, "seed": 3, "start_step": 1, "channels": channels}
    (wanted, lines), (found, own_lines) = both("train_batches", images, "train", count=4, **options)
    for one, other in zip(wanted, found, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            assert one[name].dtype == other[name].dtype, name
            np.testing.assert_allclose(
                other[name].astype(int), one[name].astype(int), atol=name == "image", err_msg=name
            )
    assert lines and [line.split(" (")[0] for line in lines] == [line.split(" (")[0] for line in own_lines]


def test_processes_share_a_batch(images):
    options = {
        "batch_size": 4,
        "canvas": 32,
        "seed": 0,
        "broken": UnreadableImages(images, limit=1.0, say=lambda line: None),
    }
    whole = next(pillow_stream.train_batches(images, "train", **options))
    parts = [
        next(pillow_stream.train_batches(images, "train", process_index=index, process_count=2, **options))
        for index in range(2)
    ]
    for name in whole:
        np.testing.assert_array_equal(whole[name], np.concatenate([part[name] for part in parts]))


@pytest.mark.parametrize("limit", [0, 3])
def test_evaluation_batches_are_those_of_tf_data(images, limit):
    (wanted, _), (found, _) = both("eval_batches", images, "train", count=99, batch_size=4, canvas=32, limit=limit)
    assert len(wanted) == len(found) == (1 if limit else 3)
    for one, other in zip(wanted, found, strict=True):
        for name in one:
            np.testing.assert_allclose(
                other[name].astype(int), one[name].astype(int), atol=name == "image", err_msg=name
            )


def test_a_large_jpeg_is_shrunk_while_it_is_decoded():
    """To the size and nearly the pixels of tf.data; a gradient, which both shrink alike."""
    ramp = np.linspace(0, 255, 600)[None, :, None].repeat(400, 0).repeat(3, 2).astype(np.uint8)
    source = Listed([(encode(ramp, "JPEG"), 0)])
    (wanted, _), (found, _) = both("eval_batches", source, "train", count=1, batch_size=1, canvas=100)
    np.testing.assert_array_equal(found[0]["size"], [[67, 100]])
    np.testing.assert_array_equal(wanted[0]["size"], found[0]["size"])
    assert np.abs(wanted[0]["image"].astype(int) - found[0]["image"]).max() <= 3


def test_several_jpegs_in_one_file_are_decoded_like_the_first():
    """Phones write such files (MPO), for depth or brightness beside the photograph."""
    pixels = np.random.default_rng(0).integers(0, 256, (80, 120, 3), np.uint8)
    several = io.BytesIO()
    picture = Image.fromarray(pixels)
    picture.save(several, "MPO", save_all=True, append_images=[picture])
    assert Image.open(several).format == "MPO"
    found = pillow_stream.fit(several.getvalue(), 30)
    np.testing.assert_array_equal(found, pillow_stream.fit(encode(pixels, "JPEG"), 30))


def test_the_first_damaged_image_is_an_error_without_a_limit(images):
    with pytest.raises(UserError, match="id 5"):
        list(pillow_stream.eval_batches(images, "train", batch_size=4, canvas=32))


class Sequential(Listed):
    def random_access(self, base):
        return False


def test_storage_in_sequence_is_refused(images):
    source = Sequential(images.records)
    for make in (
        lambda: pillow_stream.eval_batches(source, "train", batch_size=4, canvas=32),
        lambda: pillow_stream.train_batches(source, "train", batch_size=4, canvas=32, seed=0),
    ):
        with pytest.raises(UserError, match="can only be read in sequence"):
            next(make())
    with pytest.raises(UserError, match="not in a window of 8"):
        next(pillow_stream.train_batches(images, "train", batch_size=4, canvas=32, seed=0, shuffle_buffer=8))
    assert isinstance(source, Source)
