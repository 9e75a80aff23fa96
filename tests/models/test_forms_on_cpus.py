"""The forms that convolution, batch norm and max-pool have on a CPU: exact, and for CPUs alone."""

import importlib.util
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bt_jax.models import batch_norm, convolution, max_pool, resnet

# (height, width, kernel, stride, padding) of ResNet-18 and -50 at 20, 32, 96 and 224 pixels, and unequal sides.
SHAPES = [(side, side, 3, stride, 1) for side in (3, 5, 7, 10, 12, 14, 20, 24, 28) for stride in (1, 2)]
SHAPES += [(side, side, 1, stride, 0) for side in (5, 7, 10, 24) for stride in (1, 2)]
SHAPES += [(20, 20, 3, 1, 1), (20, 20, 3, 1, 2), (32, 32, 7, 2, 3), (33, 33, 7, 2, 3)]
SHAPES += [(6, 9, 3, 2, 1), (9, 6, 3, 2, 1), (6, 10, 3, 2, 1), (9, 6, 1, 2, 0), (8, 6, 3, 1, 1), (7, 9, 3, 1, 2)]


def random(*shape, seed=0):
    return jnp.asarray(np.random.default_rng((seed, *shape)).standard_normal(shape))


def with_gradients(function, *inputs):
    out, gradients = jax.vjp(function, *inputs)
    return [out, *gradients(random(*out.shape, seed=1))]


def largest_difference(ours, theirs):
    pairs = [(np.asarray(a), np.asarray(b)) for a, b in zip(ours, theirs, strict=True)]
    return max(abs(a - b).max() / abs(b).max() for a, b in pairs)


@pytest.mark.parametrize("height, width, size, stride, padding", SHAPES)
def test_every_form_is_the_plain_convolution(monkeypatch, height, width, size, stride, padding):
    """Value and gradients in float64, also by phases and by chunks: only the order of sums differs."""
    monkeypatch.setattr(convolution, "PHASES", 1)
    monkeypatch.setattr(convolution, "PIXELS", 30)
    monkeypatch.setattr(convolution, "CHUNK", 4 * height * width * 3 * 8)  # four images
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    options = {"stride": stride, "padding": padding}
    with jax.enable_x64(True):
        inputs = random(8, height, width, 3), random(size, size, 3, 5)
        ours = with_gradients(lambda x, kernel: convolution.convolve(x, kernel, stride, padding), *inputs)
        theirs = with_gradients(lambda x, kernel: convolution.plain(x, kernel, **options), *inputs)
    assert largest_difference(ours, theirs) < 1e-12


def program(platform, size, stride, *, images=8):
    """The operations of value and gradients, lowered for a platform."""
    x, kernel = jnp.zeros((images, 8, 8, 64)), jnp.zeros((size, size, 64, 64))

    def both(x, kernel):
        return with_gradients(lambda x, kernel: convolution.convolve(x, kernel, stride, size // 2), x, kernel)

    text = jax.jit(both).trace(x, kernel).lower(lowering_platforms=(platform,)).as_text()
    return re.findall(r"stablehlo\.(\w+)", text)


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_other_platforms_have_the_plain_convolution(monkeypatch, platform):
    monkeypatch.setattr(convolution, "CHUNK", 4 * 8 * 8 * 64 * 4)
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    for size, stride in ((1, 2), (3, 1), (3, 2)):
        operations = program(platform, size, stride)
        assert operations.count("convolution") == 3
        assert not {"dot_general", "while"} & set(operations)


def test_a_cpu_has_its_forms(monkeypatch):
    monkeypatch.setattr(convolution, "CHUNK", 4 * 8 * 8 * 64 * 4)
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    products = program("cpu", 1, 2)
    assert products.count("dot_general") == 3 and "convolution" not in products
    assert program("cpu", 3, 2).count("convolution") == 1 + 4 + 1  # forward, phases, a chunk of the kernel's gradient
    assert "while" in program("cpu", 3, 1)
    monkeypatch.setattr(jax, "device_count", lambda: 2)  # chunks of a batch that is split would move images
    assert "while" not in program("cpu", 3, 1)


@pytest.mark.parametrize("shape", [(4, 6, 6, 5), (3, 7, 5, 2), (5, 1, 1, 3)])
@pytest.mark.parametrize("trained", ["both", "scale", "bias", "neither"])
def test_batch_norm_of_maps_is_the_plain_one(shape, trained):
    """Value, statistics and gradients in float64."""
    with jax.enable_x64(True):
        x, channels = 2 * random(*shape) + 1, shape[-1]
        scale = random(channels, 1)[:, 0] if trained in ("both", "scale") else None
        bias = random(channels, 2)[:, 0] if trained in ("both", "bias") else None

        def result(norm):
            def apply(x, scale, bias):
                y, mean, var = norm(x, jnp.full(channels, 0.3), scale, bias)
                return y, jax.lax.stop_gradient((mean, var))

            out, gradients, statistics = jax.vjp(lambda *them: apply(*them), x, scale, bias, has_aux=True)
            return [out, *statistics, *(leaf for leaf in gradients(random(*shape, seed=1)) if leaf is not None)]

        assert largest_difference(result(batch_norm._of_maps), result(batch_norm._plain)) < 1e-12


@pytest.mark.parametrize("platform, products", [("cpu", 4), ("tpu", 0), ("cuda", 0)])
def test_batch_norm_sums_by_products_on_a_cpu_alone(platform, products):
    def both(x):
        return with_gradients(lambda x: batch_norm.BatchNorm(4)(x, train=True), x)

    text = jax.jit(both).trace(jnp.zeros((2, 3, 3, 4))).lower(lowering_platforms=(platform,)).as_text()
    assert text.count("stablehlo.dot_general") == products


@pytest.mark.parametrize("shape", [(2, 8, 8, 3), (2, 7, 10, 3), (1, 9, 5, 2), (2, 1, 2, 1)])
def test_max_pool_is_the_plain_one(shape):
    """Value and gradient in float64, with windows of equal pixels: those behind a ReLU have many zeros."""
    with jax.enable_x64(True):
        x = jnp.maximum(random(*shape).round(1), 0)
        ours, theirs = with_gradients(max_pool.max_pool, x), with_gradients(max_pool.plain, x)
        assert (ours[0] == theirs[0]).all()
        assert abs(ours[1] - theirs[1]).max() < 1e-12  # only the order of at most four terms differs


@pytest.mark.parametrize("platform, windows", [("cpu", 0), ("tpu", 2), ("cuda", 2)])
def test_max_pool_compares_views_on_a_cpu_alone(platform, windows):
    lowered = jax.jit(lambda x: with_gradients(max_pool.max_pool, x)).trace(jnp.zeros((2, 8, 8, 3)))
    text = lowered.lower(lowering_platforms=(platform,)).as_text()
    assert len(re.findall(r"stablehlo\.(reduce_window|select_and_scatter)", text)) == windows


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu, the compiler for TPUs, is not installed"
)
@pytest.mark.parametrize("small_images", [True, False])
def test_the_program_of_a_tpu_is_that_of_the_plain_layers(monkeypatch, small_images):
    """The compiled program of loss and gradients of a ResNet-18: equal but for the numbers in names."""
    from bt_jax import models
    from bt_jax.plan import estimate

    mesh, _ = estimate.topology_mesh("v5e:2x2")
    chip = jax.sharding.SingleDeviceSharding(mesh.devices.flat[0])
    net = models.build("resnet18", small_images=small_images, width=0.25)

    def abstract(shape):
        return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=chip)

    variables = jax.tree.map(abstract, jax.eval_shape(net.init, jax.random.key(0)))
    images = jax.ShapeDtypeStruct((64, 32, 32, 3), jnp.float32, sharding=chip)

    def compiled():
        def loss(params, stats, x):
            features, stats = net.apply({"params": params, "batch_stats": stats}, x, train=True)
            return jnp.square(features).sum(), stats

        step = jax.jit(jax.value_and_grad(loss, has_aux=True))
        return step.lower(variables["params"], variables["batch_stats"], images).compile().as_text()

    ours = _without_names(compiled())
    monkeypatch.setattr(
        convolution, "convolve", lambda x, k, stride, padding: convolution.plain(x, k, stride=stride, padding=padding)
    )
    monkeypatch.setattr(
        batch_norm, "_of_maps", lambda x, shift, *them: batch_norm._plain(x, jax.lax.stop_gradient(shift), *them)
    )
    monkeypatch.setattr(resnet, "max_pool", max_pool.plain)
    assert ours == _without_names(compiled())


def _without_names(program: str) -> str:
    """Names have numbers in the order in which the instructions were made; metadata name the lines of the source."""
    program = program[re.search(r"^(%|ENTRY)", program, re.M).start() :]
    program = re.sub(r",? ?metadata=\{[^}]*\}|(frontend_attributes|backend_config)=\{.*?\}", "", program)
    names, numbers = set(re.findall(r"%([\w.-]+)", program)), {}
    return re.sub(
        r"%?([A-Za-z_][\w.-]*)",
        lambda word: str(numbers.setdefault(word[1], f"name{len(numbers)}")) if word[1] in names else word[0],
        program,
    )
