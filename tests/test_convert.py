"""State dicts go in and come out as they were, and a wrong one is refused with its keys named."""

import jax
import numpy as np
import pytest

from bt_jax import convert, models
from bt_jax.errors import UserError

NARROW = 1 / 16


def state_dict(arch: str, **options) -> dict[str, np.ndarray]:
    """Random float32 arrays under torchvision's keys."""
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape), init_shapes(models.build(arch, **options)))
    generator = np.random.default_rng(0)
    shapes = {key: value.shape for key, value in convert.to_torch(zeros, arch=arch).items()}
    return {
        key: generator.standard_normal(shape, np.float32) if shape else np.int64(7) for key, shape in shapes.items()
    }


def init_shapes(net: models.Net):
    return jax.eval_shape(net.init, jax.random.key(0))


@pytest.mark.parametrize("arch", ["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"])
def test_round_trip_is_byte_equal(arch):
    given = state_dict(arch, width=NARROW)
    returned = convert.to_torch(convert.from_torch(given, arch=arch), arch=arch)
    assert list(returned) == list(given)
    for key, value in given.items():
        if key.endswith("num_batches_tracked"):
            assert returned[key] == 0 and returned[key].dtype == np.int64
        else:
            assert returned[key].dtype == value.dtype and returned[key].flags.c_contiguous
            assert returned[key].tobytes() == value.tobytes(), key


@pytest.mark.parametrize("options", [{}, {"small_images": True, "width": 2}, {"channels": 1}])
def test_variables_are_what_init_makes(options):
    given = state_dict("resnet18", **options)
    variables = convert.from_torch(given, arch="resnet18")
    expected = init_shapes(models.build("resnet18", **options))
    shapes = [jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree) for tree in (variables, expected)]
    assert shapes[0] == shapes[1]
    kernel = variables["params"]["layer2"]["block0"]["downsample"]["conv"]["kernel"]
    np.testing.assert_array_equal(kernel[0, 0].T, given["layer2.0.downsample.0.weight"][:, :, 0, 0])
    np.testing.assert_array_equal(variables["batch_stats"]["bn1"]["var"], given["bn1.running_var"])


def test_key_order_is_torchvisions():
    keys = list(state_dict("resnet50", width=NARROW))
    counted = ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]
    block = [f"{part}{i}" for i in (1, 2, 3) for part in ("conv", "bn")]
    expected = ["conv1.weight", *(f"bn1.{name}" for name in counted)]
    for module in [*block, "downsample.0", "downsample.1"]:
        names = ["weight"] if module.startswith("conv") or module.endswith(".0") else counted
        expected += [f"layer1.0.{module}.{name}" for name in names]
    assert keys[: len(expected)] == expected
    assert keys[-1] == "layer4.2.bn3.num_batches_tracked"
    assert len(keys) == 318  # torchvision's 320 less fc.weight and fc.bias


@pytest.mark.parametrize("prefix", ["", "module.", "backbone.", "module.backbone."])
def test_prefixes_and_classifiers(prefix):
    plain = state_dict("resnet18", width=NARROW)
    given = {prefix + key: value for key, value in plain.items()}
    given[prefix + "fc.weight"] = np.zeros((10, 32), np.float32)
    if "backbone" in prefix:  # the rest of the reference's and solo-learn's models
        given |= {"module.projector.0.weight": np.zeros((8, 32)), "classifier.bias": np.zeros(10)}
    actual, expected = convert.from_torch(given, arch="resnet18"), convert.from_torch(plain, arch="resnet18")
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


def test_counts_of_batches_may_be_missing_and_half_precision_is_widened():
    given = {key: value for key, value in state_dict("resnet18", width=NARROW).items() if value.ndim}
    given = {key: value.astype(np.float16) for key, value in given.items()}
    variables = convert.from_torch(given, arch="resnet18")
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {np.dtype(np.float32)}


def test_from_torch_copies():
    given = state_dict("resnet18", width=NARROW)
    variables = convert.from_torch(given, arch="resnet18")
    given["bn1.weight"][:] = 5
    assert not (variables["params"]["bn1"]["scale"] == 5).any()


def test_wrong_state_dicts_are_refused():
    given = state_dict("resnet34", width=NARROW)
    with pytest.raises(UserError, match=r"not that of a resnet18: it also has layer1.2.conv1.weight.*arch='resnet34'"):
        convert.from_torch(given, arch="resnet18")
    with pytest.raises(UserError, match=r"lacks layer1.0.conv3.weight, .* 82 more. Pass arch='resnet34'"):
        convert.from_torch(given, arch="resnet50")
    with pytest.raises(UserError, match="lacks conv1.weight, .* and also has model. .*own state dict"):
        convert.from_torch({"model": given}, arch="resnet34")
    with pytest.raises(UserError, match="'vgg'"):
        convert.from_torch(given, arch="vgg")
    with pytest.raises(UserError, match="also has head.weight"):
        convert.from_torch(given | {"head.weight": np.zeros(3)}, arch="resnet34")


def test_relatives_with_resnets_keys_are_refused_by_their_shapes():
    given = state_dict("resnet50", width=NARROW)
    given["layer1.0.conv2.weight"] = np.zeros((4, 1, 3, 3), np.float32)  # grouped, as in a resnext
    with pytest.raises(UserError, match=r"layer1/block0/conv2/kernel has the shape \(3, 3, 1, 4\).*resnext"):
        convert.from_torch(given, arch="resnet50")


def test_to_torch_refuses_another_architecture():
    variables = convert.from_torch(state_dict("resnet18", width=NARROW), arch="resnet18")
    with pytest.raises(UserError, match="layer1/block0/bn3"):
        convert.to_torch(variables, arch="resnet50")


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("widths", [(6,), (8, 6), (8, 8, 6)])
def test_projector_round_trip(widths, bias):
    variables = models.build_projector(4, widths, bias=bias).init(jax.random.key(0))
    sequential = convert.projector_to_torch(variables)
    jax.tree.map(np.testing.assert_array_equal, convert.projector_from_torch(sequential), jax.device_get(variables))
    assert list(sequential)[0] == "projector.0.weight" and sequential["projector.0.weight"].shape == (widths[0], 4)
    assert f"projector.{3 * len(widths) - 3}.weight" in sequential
    wrapped = {f"module.{key}": value for key, value in sequential.items()} | {"module.bn.running_mean": np.zeros(6)}
    jax.tree.map(np.testing.assert_array_equal, convert.projector_from_torch(wrapped), jax.device_get(variables))
    bare = convert.projector_to_torch(variables, prefix="")
    assert list(bare) == [key.removeprefix("projector.") for key in sequential]


def test_wrong_projectors_are_refused():
    sequential = convert.projector_to_torch(models.build_projector(4, (8, 6)).init(jax.random.key(0)))
    with pytest.raises(UserError, match="no head.0.weight; its keys are projector.0.weight"):
        convert.projector_from_torch(sequential, prefix="head.")
    del sequential["projector.1.running_var"]
    with pytest.raises(UserError, match="a projector of 2 layers: it lacks 1.running_var"):
        convert.projector_from_torch(sequential)
