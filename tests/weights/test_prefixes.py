"""A ResNet behind any prefix, with or without heads; errors for an incomplete ResNet and for several."""

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from bt_jax import convert, messages, models
from bt_jax.messages import UserError
from bt_jax.weights import foreign_files, key_names, prefixes
from tests.support import damage

HEADS = {"head_a.weight": np.zeros((2, 2)), "projection_head.0.bias": np.zeros(2), "queue": np.zeros((2, 8))}


@pytest.fixture(scope="module")
def plain():
    """A narrow ResNet-18 under torchvision's keys."""
    variables = jax.device_get(damage.random_state(1).encoder())
    return {key: np.array(value) for key, value in convert.to_torch(variables, arch="resnet18").items()}


def behind(prefix, arrays):
    return {prefix + key: value for key, value in arrays.items()}


def same(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("rename", [str, key_names.to_hugging_face, key_names.to_detectron2])
@pytest.mark.parametrize(
    "prefix",
    ["", "model.", "_orig_mod.", "module.", "module.encoder_q.", "encoder.", "backbone.", "student."]
    + ["model._orig_mod.module.backbone.", "net.0.", "layer1."],
)
def test_one_complete_resnet_is_used(plain, prefix, rename):
    given = behind(prefix, {rename(key): value for key, value in plain.items()})
    found, _ = prefixes.find(given)
    assert (found.prefix, found.arch) == (prefix, "resnet18") and same(found.arrays, plain)
    found, _ = prefixes.find(given | HEADS | behind(prefix, HEADS) | behind(prefix, {"fc.weight": np.zeros((2, 2))}))
    assert found.prefix == prefix and same(found.arrays, plain)
    with pytest.raises(UserError, match="not that of a resnet34"):
        prefixes.find(given, "resnet34")


def test_the_prefix_is_named_once(plain, tmp_path, capsys):
    messages.say_once.cache_clear()
    for name, prefix in (("a", "model."), ("b", "")):
        save_file(behind(prefix, plain), tmp_path / f"{name}.safetensors")
        for _ in range(2):
            foreign_files.read(tmp_path / f"{name}.safetensors")
    said = capsys.readouterr().out.splitlines()
    assert [line for line in said if "with the prefix" in line] == [
        f"{tmp_path}/a.safetensors: using the resnet18 with the prefix model."
    ]
    unknown = "states no mean and std of its training images, so those of ImageNet are used"
    assert [line for line in said if "mean" in line] == [f"{tmp_path}/{name}.safetensors {unknown}" for name in "ab"]


@pytest.mark.parametrize("prefix, beside", [("module.encoder.", "module."), ("model.", "model."), ("backbone.", "")])
def test_the_projector_beside_the_resnet_is_read(plain, prefix, beside, tmp_path):
    projector = jax.device_get(models.build_projector(32, (8, 6)).init(jax.random.key(0)))
    sequential = behind(beside, convert.projector_to_torch(projector))
    arrays = behind(prefix, plain) | {key: np.array(value) for key, value in sequential.items()}
    save_file(arrays, tmp_path / "a.safetensors")
    found = foreign_files.read(tmp_path / "a.safetensors").projector
    jax.tree.map(np.testing.assert_array_equal, found, projector)


def test_several_resnets_are_an_error_unless_they_are_equal(plain):
    other = plain | {"bn1.bias": plain["bn1.bias"] + 1}
    two = behind("module.encoder_q.", plain) | behind("module.encoder_k.", other)
    with pytest.raises(
        UserError, match="holds 2 networks, with the prefixes 'module.encoder_q.' and 'module.encoder_k.'"
    ):
        prefixes.find(two)
    found, _ = prefixes.find(behind("model.backbone.", plain) | behind("backbone.", plain))
    assert found.prefix == "backbone."


def test_nested_dicts_are_prefixes_too(plain):
    flat = foreign_files._flat({"epoch": np.zeros(1), "student": {"module": plain}, "heads": {"a": np.zeros(2)}})
    assert prefixes.find(flat)[0].prefix == "student.module."


def test_the_error_names_the_nearest_architecture_and_the_prefixes(plain):
    cut = {key: value for key, value in plain.items() if key != "layer4.1.bn2.weight"}
    with pytest.raises(UserError, match="not that of a resnet18: it lacks layer4.1.bn2.weight. Its prefix is 'model.'"):
        prefixes.find(behind("model.", cut))
    with pytest.raises(UserError, match="resnet18: it lacks layer4.1.bn2.weight. Its prefixes are 'a.' and 'bb.'"):
        prefixes.find(behind("a.", dict(list(plain.items())[:40])) | behind("bb.", cut))
    with pytest.raises(UserError, match="lacks conv1.weight, .* Its keys start with blocks., patch_embed.. Pass"):
        prefixes.find({"blocks.0.norm.weight": np.zeros(3), "patch_embed.weight": np.zeros(3)})


@pytest.mark.parametrize("name", ["normalize.mean", "conv2.weight", "attnpool.weight", "layer1.0.se.weight"])
def test_modules_that_may_be_part_of_the_network_are_not_ignored(plain, name):
    with pytest.raises(UserError, match=f"resnet18: it also has {name}"):
        prefixes.find(behind("model.", plain | {name: np.zeros(3)}))
