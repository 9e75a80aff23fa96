"""Image operations against Pillow and the reference's numbers; views against their recipe, key and sharding."""

import dataclasses
import math
import pydoc
import re
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from bt_jax import augment
from bt_jax.augment import filters, recipes, views
from bt_jax.messages import UserError

# Pillow rounds or truncates to a grey level after every step; torchvision's hue even works in 8-bit HSV. Therefore the
# mean error of a correct operation is a fraction of a level. It is larger at pixels that amplify the rounding.
GREY_LEVELS = {"hue": 2.0, "blur": 2.0}

OPERATIONS = {
    "brightness": augment.adjust_brightness,
    "contrast": augment.adjust_contrast,
    "saturation": augment.adjust_saturation,
    "hue": augment.adjust_hue,
    "blur_radius": augment.gaussian_blur,
    "gray": augment.to_grayscale,
    "solarize128": augment.solarize,
    "flip": augment.horizontal_flip,
}
MODES = {
    "eager": lambda op: op,
    "jit": jax.jit,
    "vmap": lambda op: lambda *args: jax.jit(jax.vmap(op))(*(np.stack([a, a]) for a in args))[1],
}
KEY = jax.random.key(7)
two_views = jax.jit(augment.two_views, static_argnames=("recipe", "dtype"))  # faster than an eager run
gaussian_blur = jax.jit(augment.gaussian_blur)
center_crop_of_resize = jax.jit(augment.center_crop_of_resize, static_argnums=(1, 2))
evaluation_view = jax.jit(augment.evaluation_view, static_argnames=("recipe", "resize"))
PLAIN = recipes.View(
    crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0), flip=0.0, jitter=0.0, grayscale=0.0, blur=0.0, solarize=0.0
)


def plain_recipe(size, view1=PLAIN, view2=PLAIN, channels=3):
    return recipes.Recipe(size, view1, view2, (0.0,) * channels, (1.0,) * channels)


def unit(pixels):
    return jnp.asarray(pixels, jnp.float32) / 255


def grey_level_error(result, expected):
    return np.abs(np.asarray(result) * 255 - np.asarray(expected, np.float64)).mean()


def random_images(n, h, w, c=3):
    return np.random.default_rng(3).integers(0, 256, (n, h, w, c), dtype=np.uint8)


def pattern(h=37, w=53):
    """Gradients, hard edges, saturated patches and a grey one."""
    y, x = np.mgrid[:h, :w]
    image = np.stack([255 * x / (w - 1), 255 * y / (h - 1), 127 + 127 * np.sin(x / 3) * np.cos(y / 4)], -1)
    image[5:12, 8:20] = (255, 0, 0)
    image[14:20, 30:45] = (0, 20, 250)
    image[25:33, 4:18] = (128, 128, 128)
    image[25:33, 30:40] = np.where((x + y)[25:33, 30:40, None] % 2, 255, 0)
    return image.round().astype(np.uint8)


# ------------------------------------------------------------------------------------------------------- operations


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", OPERATIONS)
def test_operation_equals_the_reference(photographs, name, mode):
    with np.load(photographs) as data:
        cases = [key for key in data.files if key.split("/")[1] == name]
        assert cases
        op = MODES[mode](OPERATIONS[name])
        for case in cases if mode == "jit" else cases[:1]:
            arguments = [float(number) for number in case.split("/")[2:]]
            result = op(unit(data[f"{case[0]}/small"]), *arguments)
            limit = 0.01 if name in ("flip", "solarize128") else GREY_LEVELS.get(name.split("_")[0], 1.0)
            assert grey_level_error(result, data[case]) < limit, case


@pytest.mark.parametrize("mode", MODES)
def test_resized_crop_equals_the_reference(photographs, mode):
    with np.load(photographs) as data:
        boxes = [key for key in data.files if key.endswith("size")]
        for name in boxes if mode == "jit" else boxes[:1]:
            *box, size = data[name].tolist()
            op = MODES[mode](lambda image, *box, size=size: augment.resized_crop(image, *box, size))
            result = op(unit(data[f"{name[0]}/source"]), *box)
            # Each of Pillow's two passes rounds by up to half a level, 0.25 on average.
            assert grey_level_error(result, data[f"{name.rsplit('/', 1)[0]}/pil_bicubic"]) < 0.5, name


@pytest.mark.parametrize("mode", MODES)
def test_center_crop_equals_the_reference(photographs, mode):
    with np.load(photographs) as data:
        op = MODES[mode](lambda image: augment.center_crop_of_resize(image, 256, 224))
        for photo in "02":  # square, and wide
            expected = data[f"{photo}/center_crop_224_of_resize_256"]
            assert grey_level_error(op(unit(data[f"{photo}/source"])), expected) < 0.5


@pytest.mark.parametrize("factor", [0.6, 1.4])
@pytest.mark.parametrize("name", ["Brightness", "Contrast", "Color"])
def test_blends_equal_pillow(name, factor):
    op = {"Brightness": "adjust_brightness", "Contrast": "adjust_contrast", "Color": "adjust_saturation"}[name]
    expected = np.asarray(getattr(ImageEnhance, name)(Image.fromarray(pattern())).enhance(factor))
    result = np.asarray(jax.jit(getattr(augment, op))(unit(pattern()), factor)) * 255
    # Pillow truncates the result (1 level) and rounds the luma or its mean (half a level, times 0.4).
    assert np.abs(result - expected).max() < 1.25


def test_hue_rotates_pure_colours():
    red = jnp.zeros((1, 1, 3)).at[..., 0].set(1.0)
    turned = {-0.5: (0, 1, 1), -1 / 3: (0, 0, 1), 0.0: (1, 0, 0), 1 / 6: (1, 1, 0), 1 / 3: (0, 1, 0), 0.5: (0, 1, 1)}
    for delta, colour in turned.items():
        np.testing.assert_allclose(augment.adjust_hue(red, delta)[0, 0], colour, atol=1e-6)
    # Grey does not change, and a rotation and its inverse are the identity, to a few float32 roundings.
    image = unit(pattern())
    grey = augment.to_grayscale(image)
    np.testing.assert_allclose(augment.adjust_hue(grey, 0.3), grey, atol=1e-6)
    np.testing.assert_allclose(augment.adjust_hue(augment.adjust_hue(image, 0.37), -0.37), image, atol=5e-6)


def test_gray_solarise_and_flip_equal_pillow():
    image = Image.fromarray(pattern())
    grey = np.asarray(augment.to_grayscale(unit(image)))[..., 1] * 255
    assert np.abs(grey - np.asarray(image.convert("L"))).max() < 0.51
    np.testing.assert_allclose(augment.solarize(unit(image)) * 255, np.asarray(ImageOps.solarize(image)), atol=1e-4)
    np.testing.assert_array_equal(augment.horizontal_flip(unit(image)), unit(ImageOps.mirror(image)))


@pytest.mark.parametrize("sigma", [0.0, 0.3, 1.0, 2.0])
def test_blur_equals_pillow(sigma):
    expected = np.asarray(Image.fromarray(pattern()).filter(ImageFilter.GaussianBlur(sigma)))
    result = gaussian_blur(unit(pattern()), sigma)
    # Pillow rounds after each of six passes: about 0.7 of a level in all. It repeats the edge three times, ours once.
    assert grey_level_error(result, expected) < (1.0 if sigma else 1e-4)
    assert np.abs(np.asarray(result) * 255 - expected)[7:-7, 7:-7].max() < 4


@pytest.mark.parametrize("size", [12, 64])  # shrinks and enlarges
@pytest.mark.parametrize("method", ["bicubic", "bilinear"])
def test_resized_crop_equals_pillow(method, size):
    top, left, height, width = 3, 11, 29, 37
    box = Image.fromarray(pattern()).crop((left, top, left + width, top + height))
    expected = np.asarray(box.resize((size, size), getattr(Image.Resampling, method.upper())))
    crop = jax.jit(augment.resized_crop, static_argnames=("size", "method"))
    result = crop(unit(pattern()), top, left, height, width, size=size, method=method)
    # Pillow also clips between its two passes, which cuts the overshoot of bicubic at the checkerboard.
    assert grey_level_error(result, expected) < 0.75


def test_kernels_at_known_distances():
    """The kernel of Keys with a = -0.5, at quarters of a pixel. The mean over an image would not reveal another a."""
    at = jnp.array([0, 0.25, 0.5, 1, 1.25, 1.5, 1.75, 2, 3])
    expected = [1, 0.8671875, 0.5625, 0, -0.0703125, -0.0625, -0.0234375, 0, 0]
    np.testing.assert_allclose(filters._bicubic(at), expected, atol=1e-6)
    np.testing.assert_allclose(filters._bicubic(-at), expected, atol=1e-6)
    np.testing.assert_allclose(filters._bilinear(at), np.maximum(1 - at, 0), atol=1e-6)


@pytest.mark.parametrize("shape", [(37, 53), (61, 40)])
def test_center_crop_equals_torchvision_rule(shape):
    resize, size = 28, 23
    short = min(shape)
    height, width = (int(resize * length / short) for length in shape)
    top, left = int(round((height - size) / 2)), int(round((width - size) / 2))
    resized = Image.fromarray(pattern(*shape)).resize((width, height), Image.Resampling.BILINEAR)
    expected = np.asarray(resized.crop((left, top, left + size, top + size)))
    assert grey_level_error(center_crop_of_resize(unit(pattern(*shape)), resize, size), expected) < 0.5
    with pytest.raises(UserError, match="A crop of 24 pixels is larger than the resize to 20"):
        augment.center_crop_of_resize(unit(pattern()), 20, 24)


# ------------------------------------------------------------------------------------------------------------ views


def composed(key, image, view, size):
    """A view composed of the public operations, with branches as in torchvision."""
    sampled = views.sample_parameters(key, view, *image.shape[:2])
    image = augment.resized_crop(image.astype(jnp.float32) / 255, *sampled[:4], size)
    image = jnp.where(sampled.flip, augment.horizontal_flip(image), image)
    jitter = (
        lambda x: augment.adjust_brightness(x, sampled.brightness),
        lambda x: augment.adjust_contrast(x, sampled.contrast),
        lambda x: augment.adjust_saturation(x, sampled.saturation),
        lambda x: augment.adjust_hue(x, sampled.hue),
    )
    image, _ = jax.lax.scan(lambda x, i: (jax.lax.switch(i, jitter, x), None), image, jnp.argsort(sampled.order))
    image = jnp.where(sampled.grayscale, augment.to_grayscale(image), image)
    return augment.gaussian_blur(image, sampled.sigma), sampled


@pytest.mark.parametrize(("hue", "blur"), [(0.1, 0.5), (0.0, 0.0)])
def test_views_equal_the_operations_in_random_order(hue, blur):
    n, size = 96, 8
    view = recipes.View(blur=blur, hue=hue, brightness=0.8, contrast=0.8, saturation=0.8)
    images = random_images(n, 12, 10)
    both = two_views(KEY, images, plain_recipe(size, view, view))
    keys = jax.vmap(lambda i: jax.random.split(jax.random.fold_in(KEY, i)))(jnp.arange(n))
    compose = jax.jit(jax.vmap(lambda key, image: composed(key, image, view, size)))
    for i in range(2):
        expected, sampled = compose(keys[:, i], images)
        np.testing.assert_allclose(both[i], expected, atol=1e-5)  # a dozen float32 operations on numbers up to 1
        assert len(np.unique(np.argsort(sampled.order), axis=0)) >= 20  # of the 24 orders


def test_solarized_views_equal_the_operation():
    images = random_images(32, 8, 8)
    recipe = plain_recipe(8, dataclasses.replace(PLAIN, solarize=1.0), dataclasses.replace(PLAIN, solarize=0.5))
    always, sometimes = two_views(KEY, images, recipe)
    expected = augment.solarize(unit(images))
    np.testing.assert_allclose(always, expected, atol=1e-6)
    same = np.isclose(sometimes, expected, atol=1e-6).all((1, 2, 3))
    np.testing.assert_allclose(sometimes[~same], unit(images)[~same], atol=1e-6)
    assert 0 < same.sum() < 32


def test_every_view_has_its_own_flip():
    images = random_images(200, 6, 6)
    view = dataclasses.replace(PLAIN, flip=0.5)
    flipped = []
    for result in two_views(KEY, images, plain_recipe(6, view, view)):
        is_flipped = np.isclose(result, unit(images)[:, :, ::-1], atol=1e-6).all((1, 2, 3))
        np.testing.assert_allclose(result[~is_flipped], unit(images)[~is_flipped], atol=1e-6)
        flipped.append(is_flipped)
    flipped.append(flipped[0] != flipped[1])
    for events in flipped:  # 4 standard deviations of a binomial
        assert abs(events.mean() - 0.5) < 4 * math.sqrt(0.25 / 200)


SMALL = recipes.imagenet(8)
IMAGES, IDS = random_images(16, 12, 12), np.arange(100, 116)


def test_pixels_depend_on_key_and_id_alone():
    def views(key, images, ids):
        return two_views(key, images, SMALL, ids=ids)

    original = views(KEY, IMAGES, IDS)
    order = np.random.default_rng(0).permutation(16)
    for before, after in zip(original, views(KEY, IMAGES[order], IDS[order]), strict=True):
        np.testing.assert_array_equal(before[order], after)
    for other in (views(jax.random.key(8), IMAGES, IDS), views(KEY, IMAGES, IDS + 16), original[::-1]):
        for one, two in zip(original, other, strict=True):
            assert (np.abs(np.asarray(one - two)).max((1, 2, 3)) > 0.05).all()


def test_pixels_do_not_depend_on_the_number_of_devices():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    sharded = two_views(KEY, jax.device_put(IMAGES, sharding), SMALL, ids=jax.device_put(IDS, sharding))
    for one, eight in zip(two_views(KEY, IMAGES, SMALL, ids=IDS), sharded, strict=True):
        assert eight.sharding.is_equivalent_to(sharding, 4)
        np.testing.assert_allclose(one, eight, atol=5e-6)  # 1e-6 for [0, 1], divided by a std of 0.22


def test_the_padding_of_a_canvas_has_no_influence():
    canvas = np.full((16, 20, 24, 3), 255, np.uint8)
    canvas[:, :12, :12] = IMAGES
    sizes = np.full((16, 2), 12, np.int32)
    padded = two_views(KEY, canvas, SMALL, ids=IDS, sizes=sizes)
    for one, two in zip(two_views(KEY, IMAGES, SMALL, ids=IDS), padded, strict=True):
        np.testing.assert_allclose(one, two, atol=1e-5)  # the sums have more terms, which are zero
    one = evaluation_view(IMAGES, SMALL, resize=10)
    np.testing.assert_allclose(one, evaluation_view(canvas, SMALL, sizes=sizes, resize=10), atol=1e-5)


def test_bfloat16_views_differ_by_about_a_grey_level():
    full = two_views(KEY, IMAGES, SMALL, ids=IDS)[0]
    half = two_views(KEY, IMAGES, SMALL, ids=IDS, dtype=jnp.bfloat16)[0]
    assert half.dtype == jnp.bfloat16
    error = np.abs(np.asarray(full) - np.asarray(half, np.float32)) * np.array(SMALL.std) * 255
    assert 0 < error.mean() < 1.5  # four products and the result round to eight bits, half a level at white


def test_limit_cuts_a_box_before_the_padding():
    canvas = np.full((20, 24, 3), 255, np.uint8)
    canvas[:11, :14] = 100
    crop = jax.jit(lambda limit: augment.resized_crop(unit(canvas), 4, 6, 12, 13, 8, limit=limit))
    np.testing.assert_allclose(crop((11, 14)), 100 / 255, atol=1e-6)
    assert crop((20, 24)).max() > 0.9  # with a larger limit, the box has white padding


def test_evaluation_view():
    images = random_images(2, 8, 8)
    expected = (images / 255 - np.array(SMALL.mean)) / np.array(SMALL.std)
    np.testing.assert_allclose(evaluation_view(images, SMALL), expected, atol=1e-5)
    large = np.stack([pattern(), pattern()[:, ::-1]])
    for resize in (None, 11):
        crop = center_crop_of_resize(unit(large[1]), resize or 8, 8)
        view = evaluation_view(large, SMALL, resize=resize)
        assert view.shape == (2, 8, 8, 3) and view.dtype == jnp.float32
        np.testing.assert_allclose(view[1], (crop - np.array(SMALL.mean)) / np.array(SMALL.std), atol=1e-5)


def test_a_recipe_by_its_name():
    key, images = jax.random.key(0), np.zeros((2, 8, 8, 3), np.uint8)

    def shapes(name, **options):
        return [view.shape for view in jax.eval_shape(lambda: augment.two_views(key, images, name, **options))]

    assert shapes("cifar") == [(2, 32, 32, 3)] * 2
    assert shapes("imagenet", size=12) == shapes(recipes.imagenet(9), size=12) == [(2, 12, 12, 3)] * 2
    assert jax.eval_shape(lambda: augment.evaluation_view(images, "imagenet", size=12)).shape == (2, 12, 12, 3)
    with pytest.raises(UserError, match="Unknown view recipe 'cifra'. Use cifar"):
        augment.two_views(key, images, "cifra")


def test_a_recipe_of_another_kind_is_an_error(unchecked):
    with pytest.raises(UserError, match="is a function, not a name or a Recipe. Use 'imagenet', 'cifar', "):
        augment.two_views(jax.random.key(0), np.zeros((2, 8, 8, 3), np.uint8), recipes.RECIPES["cifar"])


def test_the_page_of_help_has_the_functions():
    page = pydoc.plain(pydoc.render_doc(augment))
    assert [name for name in augment.__all__ if not re.search(rf"^    (class )?{name}\b", page, flags=re.M)] == []
    assert {*augment.__all__} <= {*dir(augment)}


def test_one_channel_skips_the_colour_operations():
    images = random_images(4, 10, 10, 1)
    recipe = recipes.grayscale(8)
    coloured = [dataclasses.replace(view, jitter=1.0, grayscale=1.0) for view in (recipe.view1, recipe.view2)]
    with_colour = dataclasses.replace(recipe, view1=coloured[0], view2=coloured[1])
    for view in two_views(KEY, images, recipe):
        assert view.shape == (4, 8, 8, 1) and float(view.std()) > 0.1
    shape = (5, 8, 8)  # of planes and of blur matrices
    assert operations(recipe, shape, channels=1) == operations(with_colour, shape, channels=1)
    with pytest.raises(UserError, match="have 1 channels, but config.views.mean has 3 numbers"):
        augment.two_views(KEY, images, SMALL)


# ---------------------------------------------------------------------------------------------------- distributions


def torchvision_boxes(n, height, width):
    """RandomResizedCrop.get_params in plain Python."""
    rng = np.random.default_rng(0)
    for _ in range(n):
        for _ in range(10):
            area = height * width * rng.uniform(0.08, 1.0)
            ratio = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                yield rng.integers(0, height - h + 1), rng.integers(0, width - w + 1), h, w
                break
        else:
            ratio = min(max(width / height, 3 / 4), 4 / 3)
            w = width if width / height <= 4 / 3 else round(height * ratio)
            h = height if width / height >= 3 / 4 else round(width / ratio)
            yield (height - h) // 2, (width - w) // 2, h, w


def kolmogorov_smirnov(a, b):
    points = np.concatenate([a, b])
    return max(abs((a[:, None] <= points).mean(0) - (b[:, None] <= points).mean(0)))


@pytest.mark.parametrize("shape", [(256, 224), (48, 200), (200, 48)])  # the last two often use the central box
def test_crops_have_the_distribution_of_torchvision(shape):
    n = 2000
    keys = jax.random.split(KEY, n)
    sampled = jax.jit(jax.vmap(lambda key: views.sample_parameters(key, recipes.View(), *shape)))(keys)
    top, left, height, width = (np.asarray(x) for x in sampled[:4])
    assert (top >= 0).all() and (left >= 0).all()
    assert (top + height <= shape[0]).all() and (left + width <= shape[1]).all()
    expected = np.array(list(torchvision_boxes(n, *shape)))
    limit = 1.95 * math.sqrt(2 / n)  # of the two-sample statistic: one in a thousand keys exceeds it by chance
    for ours, theirs in zip((top, left, height, width), expected.T, strict=True):
        assert kolmogorov_smirnov(ours, theirs) < limit
    assert kolmogorov_smirnov(height * width, expected[:, 2] * expected[:, 3]) < limit
    assert kolmogorov_smirnov(width / height, expected[:, 3] / expected[:, 2]) < limit


def test_probabilities_and_strengths():
    n, view = 2000, recipes.View(blur=0.1, solarize=0.2)
    sampled = jax.jit(jax.vmap(lambda key: views.sample_parameters(key, view, 64, 64)))(jax.random.split(KEY, n))
    sampled = jax.tree.map(np.asarray, sampled)
    jittered, blurred = sampled.brightness != 1, sampled.sigma > 0
    events = {
        "flip": (sampled.flip, 0.5),
        "jitter": (jittered, 0.8),
        "grayscale": (sampled.grayscale, 0.2),
        "blur": (blurred, 0.1),
        "solarize": (sampled.solarize, 0.2),
        "flip and jitter": (sampled.flip & jittered, 0.4),  # independent
    }
    for name, (happened, p) in events.items():
        assert abs(happened.mean() - p) < 4 * math.sqrt(p * (1 - p) / n), name  # 4 standard deviations
    uniform = {
        "brightness": (sampled.brightness[jittered], 0.6, 1.4),
        "contrast": (sampled.contrast[jittered], 0.6, 1.4),
        "saturation": (sampled.saturation[jittered], 0.8, 1.2),
        "hue": (sampled.hue[jittered], -0.1, 0.1),
        "sigma": (sampled.sigma[blurred], 0.1, 2.0),
    }
    for name, (x, low, high) in uniform.items():
        assert low <= x.min() and x.max() <= high, name
        grid = np.linspace(low, high, 10001)
        assert kolmogorov_smirnov(x, grid) < 1.95 / math.sqrt(len(x)) + 1e-3, name
    orders = Counter(map(tuple, np.argsort(sampled.order)))
    # 5 standard deviations, because it is the largest of 24 counts
    assert len(orders) == 24 and max(orders.values()) < n / 24 + 5 * math.sqrt(n / 24)
    assert (sampled.contrast[~jittered] == 1).all() and (sampled.hue[~jittered] == 0).all()


def operations(recipe, shape, channels=3):
    """Counts the primitives of `two_views` whose result has this shape, by name."""
    names = Counter()

    def visit(jaxpr):
        for equation in jaxpr.eqns:
            names.update(equation.primitive.name for out in equation.outvars if out.aval.shape == shape)
            for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, "jaxpr")):
                if hasattr(inner, "jaxpr"):
                    visit(inner.jaxpr)

    images = jax.ShapeDtypeStruct((5, 10, 11, channels), jnp.uint8)
    visit(jax.make_jaxpr(lambda images: augment.two_views(KEY, images, recipe))(images).jaxpr)
    return names


def test_an_operation_of_probability_0_is_not_compiled():
    plane, image, size = (5, 12, 12), (5, 12, 3, 12), 12
    assert not operations(plain_recipe(size), plane)
    assert operations(plain_recipe(size), image)["dot_general"] == 2  # the second product of each crop
    assert "select_n" not in operations(plain_recipe(size), image)
    one_blur = plain_recipe(size, dataclasses.replace(PLAIN, blur=0.1))
    assert operations(one_blur, image)["dot_general"] == 4
    one_solarise = plain_recipe(size, dataclasses.replace(PLAIN, solarize=0.1))
    assert operations(one_solarise, image)["select_n"] == 1
    jitter = operations(plain_recipe(size, dataclasses.replace(PLAIN, jitter=0.8)), plane)
    without_hue = operations(plain_recipe(size, dataclasses.replace(PLAIN, jitter=0.8, hue=0.0)), plane)
    assert jitter["abs"] > 0 and without_hue["abs"] == 0  # only the hue computes distances


# ---------------------------------------------------------------------------------------------------------- recipes


def test_recipes_have_the_published_numbers():
    recipe = recipes.imagenet()
    table = dict(crop_scale=(0.08, 1.0), flip=0.5, jitter=0.8, brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1)
    for view, blur, solarise in ((recipe.view1, 1.0, 0.0), (recipe.view2, 0.1, 0.2)):
        assert {name: getattr(view, name) for name in table} == table
        assert (view.grayscale, view.blur, view.solarize, view.blur_sigma) == (0.2, blur, solarise, (0.1, 2.0))
    for small in (recipes.cifar(), recipes.lightly_cifar()):
        assert (small.size, small.view1.blur, small.view2.blur) == (32, 0.0, 0.0)
        assert (small.view1.solarize, small.view2.solarize) == (0.0, 0.2)
    assert recipes.cifar().mean != recipes.lightly_cifar().mean == recipe.mean
    assert len({hash(make()) for make in recipes.RECIPES.values()}) == len(recipes.RECIPES)  # static under jit


def test_recipe_from_config():
    config = {"name": "cifar", "size": 24, "view1": {"blur": 0.5, "crop_scale": [0.2, 1.0]}, "mean": [0, 0, 0]}
    recipe = recipes.recipe_from_config(config)
    assert recipe.size == 24 and recipe.mean == (0, 0, 0) and recipe.std == recipes.cifar().std
    assert recipe.view1 == dataclasses.replace(recipes.cifar().view1, blur=0.5, crop_scale=(0.2, 1.0))
    assert recipe.view2 == recipes.cifar().view2
    assert hash(recipe) == hash(recipes.recipe_from_config(config))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"name": "imagent"}, "'imagent'.*imagenet"),
        ({"size": 224}, "Unknown view recipe None"),
        ({"name": "cifar", "veiw1": {}}, "'veiw1'.*view1"),
        ({"name": "cifar", "view2": {"solarise": 0.1}}, "key of config.views.view2 'solarise'.*solarize"),
        ({"name": "cifar", "view1": {"flip": 1.5}}, "flip=1.5.*between 0 and 1"),
        ({"name": "cifar", "view1": {"crop_scale": [1.0, 0.2]}}, "crop_scale"),
        ({"name": "cifar", "view1": {"interpolation": "nearest"}}, "interpolation.*bicubic or bilinear"),
        ({"name": "cifar", "mean": [0.5]}, "mean"),
    ],
)
def test_the_error_of_a_wrong_recipe_names_the_key_and_a_fix(config, message):
    with pytest.raises(UserError, match=message):
        recipes.recipe_from_config(config)
