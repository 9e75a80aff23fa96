"""The networks compute the same as torchvision's and the reference's, at any precision, width and number of devices."""

import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from bt_jax import convert, models
from bt_jax.messages import UserError
from bt_jax.models.batch_norm import BatchNorm
from bt_jax.objectives import barlow_twins

# Both sides compute in float64: only the order of sums differs. In eval mode, the measured error is 2e-15. In train
# mode, the statistics of layer4 are those of 2 to 36 numbers, and amplify the rounding of all layers before: 2e-12 for
# resnet101, 2e-13 for resnet50.
PARITY = {"eval": 1e-13, "train": 2e-11}

TINY = {"small_images": True, "width": 0.125}  # 8 to 64 channels


def rule(name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """The weights of the fixtures: a function of the state-dict key, so that no weights have to be stored."""
    generator = np.random.default_rng([zlib.crc32(name.encode()), seed])
    if name.endswith("running_var"):
        return generator.uniform(0.5, 1.5, shape)
    normal = generator.standard_normal(shape)
    if name.endswith("running_mean"):
        return 0.1 * normal
    if len(shape) == 1:
        return (1 if name.endswith("weight") else 0) + 0.1 * normal
    return normal * np.sqrt(2 / np.prod(shape[1:]))


def abstract(net: models.Net):
    return jax.eval_shape(net.init, jax.random.key(0))


def torch_weights(net: models.Net, seed: int, prefix: str = "") -> dict[str, np.ndarray]:
    """A float64 state dict of the network, with the weights of `rule`."""
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape), abstract(net))
    if net.arch == "projector":
        state_dict = convert.projector_to_torch(zeros, prefix=prefix)
    else:
        state_dict = {prefix + key: value for key, value in convert.to_torch(zeros, arch=net.arch).items()}
    return {key: rule(key, value.shape, seed) if value.ndim else value for key, value in state_dict.items()}


@pytest.fixture(scope="module")
def tiny_variables() -> dict:
    """Float32 variables of resnet18 with TINY, by `rule`: a compilation of `init` would take seconds."""
    weights = torch_weights(models.build("resnet18", **TINY), seed=0)
    return jax.tree.map(jnp.float32, convert.from_torch(weights, arch="resnet18"))


def relative_error(actual, expected) -> float:
    return np.abs(np.asarray(actual) - expected).max() / np.abs(expected).max()


@pytest.mark.parametrize(
    "arch",
    ["resnet18", "resnet50", *(pytest.param(arch, marks=pytest.mark.slow) for arch in ("resnet34", "resnet101"))],
)
def test_backbone_equals_torchvision_at_every_stage(arch, fixtures):
    with np.load(fixtures / "backbones.npz") as file:
        saved = {key.removeprefix(f"{arch}/"): file[key] for key in file if key.startswith((f"{arch}/", "seed"))}
    seed = int(saved["seed"])
    images = np.random.default_rng([seed, 7]).standard_normal(saved["input_shape"]).transpose(0, 2, 3, 1)
    with jax.enable_x64(True):
        net = models.build(arch, dtype=jnp.float64)
        weights = torch_weights(net, seed)
        assert [key for key in weights if not key.endswith("num_batches_tracked")] == list(saved["keys"])
        variables = convert.from_torch(weights, arch=arch)
        stages = {"eval": net.stages(variables, images, train=False)}
        stages["train"], batch_stats = net.stages(variables, images, train=True)
    for mode, outputs in stages.items():
        assert list(outputs) == ["maxpool", "layer1", "layer2", "layer3", "layer4", "features"]
        for stage, output in outputs.items():
            if stage == "features":
                expected = saved[f"{mode}/features"]
            else:
                expected, output = saved[f"{mode}/{stage}_channel_mean"], np.asarray(output).mean((1, 2))
            assert relative_error(output, expected) < PARITY[mode], (mode, stage)
    after = convert.to_torch({"params": variables["params"], "batch_stats": batch_stats}, arch=arch)
    running = [key for key in saved if "_after_one_train_pass/" in key]
    assert running
    for key in running:
        statistic, layer = key.split("_after_one_train_pass/")
        assert relative_error(after[f"{layer}.{statistic}"], saved[key]) < PARITY["train"], key


def test_projector_on_backbone_gives_the_references_first_loss(fixtures):
    """It is the whole model of the reference, whose training trajectory starts at this loss."""
    saved = np.load(fixtures / "trajectory.npz")
    seed = 20  # of all fixtures, such as backbones.npz
    x = np.random.default_rng([seed, 11]).standard_normal((8, 2, 16, 3, 32, 32))[0].transpose(0, 1, 3, 4, 2)
    x[1] = 0.8 * x[0] + 0.6 * x[1]
    with jax.enable_x64(True):
        backbone = models.build("resnet18", dtype=jnp.float64)
        projector = models.build_projector(512, (64, 64, 64), dtype=jnp.float64)
        variables = convert.from_torch(torch_weights(backbone, seed, "backbone."), arch="resnet18")
        weights = convert.projector_from_torch(torch_weights(projector, seed, "projector."))
        h = [backbone.apply(variables, view, train=True)[0] for view in x]
        z1, z2 = (projector.apply(weights, features, train=True)[0] for features in h)
        loss, _ = barlow_twins.barlow_twins(z1, z2, lambd=float(saved["lambda"]))
    assert relative_error(loss, saved["loss"][0]) < PARITY["train"]


@pytest.mark.parametrize(
    ("arch", "parameters", "classifier"),
    [  # torchvision's published counts, with the classifier of 1000 classes
        ("resnet18", 11_689_512, 513_000),
        ("resnet34", 21_797_672, 513_000),
        ("resnet50", 25_557_032, 2_049_000),
        ("resnet101", 44_549_160, 2_049_000),
        ("resnet152", 60_192_808, 2_049_000),
    ],
)
def test_number_of_parameters(arch, parameters, classifier):
    net = models.build(arch)
    assert sum(leaf.size for leaf in jax.tree.leaves(abstract(net)["params"])) == parameters - classifier
    assert net.feature_dim == (512 if arch in ("resnet18", "resnet34") else 2048)


def test_projector_of_the_paper_has_151_million_parameters():
    variables = abstract(models.build_projector(2048, (8192, 8192, 8192)))
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == 2048 * 8192 + 2 * 8192**2 + 4 * 8192
    assert {name: tuple(layer) for name, layer in variables["params"].items()} == {
        "fc0": ("kernel",), "bn0": ("bias", "scale"), "fc1": ("kernel",), "bn1": ("bias", "scale"), "fc2": ("kernel",)
    }  # fmt: skip


@pytest.mark.parametrize(("width", "feature_dim"), [(0.25, 512), (0.5, 1024), (2, 4096)])
def test_width_multiplies_every_number_of_channels(width, feature_dim):
    plain, wide = models.build("resnet50"), models.build("resnet50", width=width)
    assert wide.feature_dim == feature_dim

    def expected(path, leaf):
        image_kernel = path[-2].key == "conv1" and len(path) == 3
        scaled = leaf.shape if leaf.ndim == 1 else leaf.shape[-2:]
        scaled = (3, int(scaled[1] * width)) if image_kernel else tuple(int(size * width) for size in scaled)
        return leaf.shape[: leaf.ndim - len(scaled)] + scaled

    if width == 2:  # R50 (2x) of the BYOL and VICReg papers: 94 million
        assert sum(leaf.size for leaf in jax.tree.leaves(abstract(wide)["params"])) == 93_907_072
    shapes = jax.tree.map(lambda leaf: leaf.shape, abstract(wide))
    assert shapes == jax.tree_util.tree_map_with_path(expected, abstract(plain))


@pytest.mark.parametrize(
    ("options", "size", "heights"),
    [
        ({}, 224, (56, 56, 28, 14, 7)),
        ({}, 65, (17, 17, 9, 5, 3)),
        ({"small_images": True}, 32, (32, 32, 16, 8, 4)),
        ({"small_images": True, "stem_padding": 2}, 32, (34, 34, 17, 9, 5)),  # solo-learn's CIFAR stem
    ],
)
def test_spatial_sizes(options, size, heights):
    net = models.build("resnet18", **options)
    images = jax.ShapeDtypeStruct((2, size, size, 3), jnp.float32)
    stages = jax.eval_shape(lambda v, x: net.stages(v, x, train=False), abstract(net), images)
    names = ("maxpool", "layer1", "layer2", "layer3", "layer4")
    assert tuple(stages[name].shape[1] for name in names) == heights
    assert stages["features"].shape == (2, 512)


def test_bfloat16_networks_have_float32_parameters_and_features(tiny_variables):
    full, half = models.build("resnet18", **TINY), models.build("resnet18", dtype=jnp.bfloat16, **TINY)
    assert {leaf.dtype for leaf in jax.tree.leaves(abstract(half))} == {jnp.dtype("float32")}
    images = jax.random.normal(jax.random.key(1), (8, 8, 8, 3))
    stages, batch_stats = jax.jit(lambda v, x: half.stages(v, x, train=True))(tiny_variables, images)
    assert stages["layer4"].dtype == jnp.bfloat16
    assert stages["features"].dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(batch_stats)} == {jnp.dtype("float32")}
    h, expected = jax.jit(lambda v, x: full.apply(v, x, train=True))(tiny_variables, images)
    assert jax.tree.structure(batch_stats) == jax.tree.structure(expected)
    # A bfloat16 has 8 bits: each of about 40 successive roundings is up to 2^-9. A wrong statistic has an error near 1.
    assert relative_error(stages["features"], h) < 0.1
    assert jax.eval_shape(lambda v, x: half.apply(v, x, train=False), tiny_variables, images).dtype == jnp.float32


def test_init_equals_torch():
    net = models.build("resnet18", **TINY)
    kernel = jax.jit(lambda key: net.init(key)["params"]["layer4"]["block1"]["conv2"]["kernel"])(jax.random.key(0))
    kernel = np.asarray(kernel)
    assert kernel.std() == pytest.approx(np.sqrt(2 / (9 * 64)), rel=0.02)  # 37k values: 5 standard errors
    assert np.abs(kernel).max() > 3 * kernel.std()  # the distribution is normal, neither truncated nor uniform
    params = models.build_projector(256, (64,), bias=True).init(jax.random.key(0))["params"]
    for leaf in jax.tree.leaves(params):
        assert 0.8 / 16 < np.abs(leaf).max() <= 1 / 16  # U(-1/sqrt(256), 1/sqrt(256))


@pytest.mark.parametrize(("arch", "last"), [("resnet18", "bn2"), ("resnet50", "bn3")])
def test_zero_init_residual_starts_the_last_scale_of_a_block_at_zero(arch, last):
    for zero in (True, False):
        net = models.build(arch, zero_init_residual=zero)

        def scales(key, net=net):
            block = net.init(key)["params"]["layer3"]["block1"]
            return {name: layer["scale"] for name, layer in block.items() if name.startswith("bn")}

        # jit removes the random numbers that are not returned.
        for name, scale in jax.jit(scales)(jax.random.key(0)).items():
            assert (scale == (0 if zero and name == last else 1)).all(), name


@pytest.mark.parametrize("shape", [(64, 5), (4, 4, 4, 5)])
def test_batch_norm_and_its_gradient_equal_two_passes(shape):
    x = jax.random.normal(jax.random.key(0), shape) * 2 + 3
    weights = jax.random.normal(jax.random.key(1), shape)

    def two_pass(x):
        axes = tuple(range(x.ndim - 1))
        return (x - x.mean(axes)) / jnp.sqrt(x.var(axes) + 1e-5)

    actual, gradient = jax.value_and_grad(lambda x: (BatchNorm(5)(x, train=True) * weights).sum())(x)
    expected, true = jax.value_and_grad(lambda x: (two_pass(x) * weights).sum())(x)
    assert float(actual) == pytest.approx(float(expected), rel=1e-5)
    np.testing.assert_allclose(gradient, true, atol=2e-6)


@pytest.mark.parametrize("shape", [(64, 5), (4, 4, 4, 5)])
def test_batch_variance_survives_a_large_mean(shape):
    """Without a shift, the float32 error of E[x^2] - E[x]^2 would be larger than the variance."""
    noise = np.random.default_rng(0).standard_normal(shape)
    layer = BatchNorm(5)
    if len(shape) == 4:  # feature maps use the running mean, which lags by 6 deviations
        layer.mean[...] = jnp.full((5,), 4090.0)
    actual = layer(jnp.asarray(noise + 4096, jnp.float32), train=True)
    axes = tuple(range(len(shape) - 1))
    # The rounding of x to float32 at 4096 is up to 2.5e-4.
    np.testing.assert_allclose(actual, (noise - noise.mean(axes)) / noise.std(axes), atol=2e-3)


def test_one_value_for_a_channel_has_no_statistics():
    net = models.build_projector(4, (3, 2))
    with pytest.raises(ValueError, match="more than one value"):
        net.apply(net.init(jax.random.key(0)), jnp.ones((1, 4)), train=True)


def test_sharded_batch_gives_the_numbers_of_one_device(tiny_variables):
    net = models.build("resnet18", **TINY)
    images = jax.random.normal(jax.random.key(1), (16, 8, 8, 3))
    images += jnp.arange(16).reshape(-1, 1, 1, 1)  # the devices have different means
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    rows, whole = NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())
    step = jax.jit(lambda v, x: net.apply(v, x, train=True))
    expected = step(tiny_variables, images)
    actual = step(jax.device_put(tiny_variables, whole), jax.device_put(images, rows))
    assert actual[0].sharding.is_equivalent_to(rows, ndim=2)
    # The order of float32 sums differs, in 20 layers with batch statistics.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), actual, expected)


def test_gradients_trace_under_jit_and_checkpoint():
    net = models.build("resnet18", **TINY)
    variables, images = abstract(net), jax.ShapeDtypeStruct((4, 8, 8, 3), jnp.float32)

    def loss(params, batch_stats, images):
        variables = {"params": params, "batch_stats": batch_stats}
        h, new_stats = jax.checkpoint(lambda variables: net.apply(variables, images, train=True))(variables)
        return h.sum(), new_stats

    step = jax.jit(jax.grad(loss, has_aux=True))
    gradient, new_stats = jax.eval_shape(step, variables["params"], variables["batch_stats"], images)
    shapes = jax.tree.map(lambda leaf: leaf.shape, {"params": gradient, "batch_stats": new_stats})
    assert shapes == jax.tree.map(lambda leaf: leaf.shape, variables)


def test_a_net_is_rebuilt_from_its_options():
    net = models.build("resnet34", dtype=jnp.bfloat16, **TINY)
    assert abstract(models.build(net.arch, **net.options)) == abstract(net)
    projector = models.build_projector(8, (4, 2), bias=True)
    assert abstract(models.build_projector(**projector.options)) == abstract(projector)


def test_user_errors():
    with pytest.raises(UserError, match="'resnet19'.*resnet18, resnet34, resnet50, resnet101, resnet152"):
        models.build("resnet19")
    for width in (0.3, 0, -1):
        with pytest.raises(UserError, match=f"width of {width}"):
            models.build("resnet18", width=width)
    with pytest.raises(UserError, match="widths"):
        models.build_projector(8, ())


@pytest.mark.parametrize(
    "shape, fix",
    [((2, 3, 16, 16), r"images.transpose\(0, 2, 3, 1\)"), ((16, 16, 3), "a batch of"), ((2, 16, 16, 1), "3 channels")],
)
def test_images_of_another_layout_are_an_error(shape, fix):
    net = models.build("resnet18", **TINY)
    with pytest.raises(UserError, match=rf"are not \(n, height, width, 3\). .*{fix}"):
        jax.eval_shape(lambda v: net.apply(v, jnp.zeros(shape), train=False), abstract(net))
