"""State dicts are unchanged by a round trip, and a wrong one is an error that names its keys."""

import errno
import json
import os
import pathlib
import pickle
import re
import threading

import jax
import jax.export
import numpy as np
import pytest
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save_file

import bt_jax
from bt_jax import convert, models
from bt_jax.augment import recipes
from bt_jax.messages import UserError
from bt_jax.run_folder import manifest, opening
from bt_jax.terminal import interrupts
from bt_jax.weights import export_formats, foreign_files, key_names, load, model_card, prefixes, usage

NARROW = 1 / 16
BATCH_NORM = [f"1.{name}" for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")]
LAST_COUNTS = [f"4.{name}" for name in ("running_mean", "running_var", "num_batches_tracked")]


def state_dict(arch: str, **options) -> dict[str, np.ndarray]:
    """Random float32 arrays under torchvision's keys; variances are positive, so that no feature is NaN."""
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape), init_shapes(models.build(arch, **options)))
    generator = np.random.default_rng(0)
    shapes = {key: value.shape for key, value in convert.to_torch(zeros, arch=arch).items()}
    arrays = {key: generator.standard_normal(shape, np.float32) for key, shape in shapes.items() if shape}
    arrays |= {key: np.abs(value) + 0.5 for key, value in arrays.items() if key.endswith("running_var")}
    return {key: arrays.get(key, np.int64(7)) for key in shapes}


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
def test_variables_have_the_structure_of_init(options):
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
    assert len(keys) == 318  # torchvision's 320 without fc.weight and fc.bias


@pytest.mark.parametrize("prefix", ["", "module.", "backbone.", "module.backbone."])
def test_prefixes_and_classifiers(prefix):
    plain = state_dict("resnet18", width=NARROW)
    given = {prefix + key: value for key, value in plain.items()}
    given[prefix + "fc.weight"] = np.zeros((10, 32), np.float32)
    if "backbone" in prefix:  # other parts of the reference's and solo-learn's models
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


def test_wrong_state_dicts_are_an_error():
    given = state_dict("resnet34", width=NARROW)
    with pytest.raises(UserError, match=r"not that of a resnet18: it also has layer1.2.conv1.weight.*arch='resnet34'"):
        convert.from_torch(given, arch="resnet18")
    with pytest.raises(UserError, match=r"lacks layer1.0.conv3.weight, .* 82 more. Pass arch='resnet34', or --arch"):
        convert.from_torch(given, arch="resnet50")
    with pytest.raises(UserError, match="lacks conv1.weight, .* and also has model. .*own state dict"):
        convert.from_torch({"model": given}, arch="resnet34")
    with pytest.raises(UserError, match="'vgg'"):
        convert.from_torch(given, arch="vgg")
    with pytest.raises(UserError, match="also has head.weight"):
        convert.from_torch(given | {"head.weight": np.zeros(3)}, arch="resnet34")


def test_relatives_with_keys_of_resnets_are_an_error():
    given = state_dict("resnet50", width=NARROW)
    given["layer1.0.conv2.weight"] = np.zeros((4, 1, 3, 3), np.float32)  # grouped, as in a ResNeXt
    with pytest.raises(UserError, match=r"layer1/block0/conv2/kernel has the shape \(3, 3, 1, 4\).*resnext"):
        convert.from_torch(given, arch="resnet50")


def test_to_torch_of_another_architecture_is_an_error():
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


@pytest.mark.parametrize(
    "options, keys",
    [  # the heads of BYOL, MoCo, SimCLR, SimSiam and DirectPred
        ({"bias": True, "last_bias": False}, ["0.weight", "0.bias", *BATCH_NORM, "3.weight"]),
        ({"hidden_norm": None}, ["0.weight", "2.weight"]),
        ({"last_norm": ("scale",)}, ["0.weight", *BATCH_NORM, "3.weight", "4.weight", *LAST_COUNTS, "4.bias"]),
        ({"last_norm": ()}, ["0.weight", *BATCH_NORM, "3.weight", *LAST_COUNTS]),
        ({"hidden_norm": ()}, ["0.weight", *BATCH_NORM[2:], "3.weight"]),
    ],
)
def test_heads_of_every_method_become_a_sequential(options, keys):
    variables = models.build_projector(4, (8, 6), **options).init(jax.random.key(0))
    sequential = convert.projector_to_torch(variables, prefix="")
    assert list(sequential) == keys
    number = next(key for key in reversed(keys) if sequential[key].ndim == 2)
    np.testing.assert_array_equal(sequential[number], variables["params"]["fc1"]["kernel"].T)
    if "4.bias" in keys:
        assert sequential["4.bias"].tolist() == [0] * 6 and sequential["4.weight"].tolist() == [1] * 6


def test_wrong_projectors_are_an_error():
    sequential = convert.projector_to_torch(models.build_projector(4, (8, 6)).init(jax.random.key(0)))
    with pytest.raises(UserError, match="no head.0.weight; its keys are projector.0.weight"):
        convert.projector_from_torch(sequential, prefix="head.")
    del sequential["projector.1.running_var"]
    with pytest.raises(UserError, match="a projector of 2 layers: it lacks 1.running_var"):
        convert.projector_from_torch(sequential)


# ---------------------------------------------------------------------------------------------- names in other programs


@pytest.mark.parametrize(
    "there, back",
    [(key_names.to_detectron2, key_names.from_detectron2), (key_names.to_hugging_face, key_names.from_hugging_face)],
)
@pytest.mark.parametrize("arch", ["resnet18", "resnet50"])
def test_names_survive_a_round_trip(arch, there, back):
    keys = list(state_dict(arch, width=NARROW))
    renamed = [there(key) for key in keys]
    assert [back(key) for key in renamed] == keys and len(set(renamed)) == len(keys)
    arrays = {key: index for index, key in enumerate(renamed)}
    assert prefixes.find(arrays)[0].arrays == {key: index for index, key in enumerate(keys)}


def test_names_of_a_hugging_face_classifier():
    keys = list(state_dict("resnet18", width=NARROW))
    arrays = {f"resnet.{key_names.to_hugging_face(key)}": key for key in keys} | {"classifier.1.weight": "dropped"}
    assert prefixes.find(arrays)[0] == prefixes.Backbone("resnet.", {key: key for key in keys}, "resnet18")


@pytest.mark.parametrize(
    "key, detectron2, hugging_face",
    [  # the names in transformers' ResNetModel.state_dict() and detectron2's build_resnet_backbone
        ("conv1.weight", "stem.conv1.weight", "embedder.embedder.convolution.weight"),
        ("bn1.running_var", "stem.conv1.norm.running_var", "embedder.embedder.normalization.running_var"),
        ("layer1.0.conv2.weight", "res2.0.conv2.weight", "encoder.stages.0.layers.0.layer.1.convolution.weight"),
        ("layer3.5.bn3.bias", "res4.5.conv3.norm.bias", "encoder.stages.2.layers.5.layer.2.normalization.bias"),
        (
            "layer2.0.downsample.0.weight",
            "res3.0.shortcut.weight",
            "encoder.stages.1.layers.0.shortcut.convolution.weight",
        ),
        (
            "layer4.0.downsample.1.running_mean",
            "res5.0.shortcut.norm.running_mean",
            "encoder.stages.3.layers.0.shortcut.normalization.running_mean",
        ),
    ],
)
def test_names_by_hand(key, detectron2, hugging_face):
    assert key_names.to_detectron2(key) == detectron2 and key_names.to_hugging_face(key) == hugging_face


# ------------------------------------------------------------------------------------------------------------- files

PROJECTOR = (8, 8, 6)
MODEL = {
    "build": {"arch": "resnet18", "small_images": False, "width": NARROW, "channels": 3, "stem_padding": 1},
    "mean": [0.4, 0.5, 0.6],
    "std": [0.2, 0.25, 0.3],
}


@pytest.fixture(scope="module")
def variables():
    return convert.from_torch(state_dict("resnet18", width=NARROW), arch="resnet18")


@pytest.fixture(scope="module")
def projector():
    return jax.device_get(models.build_projector(32, PROJECTOR).init(jax.random.key(0)))


@pytest.fixture
def encoder(tmp_path, variables, projector):
    """A checkpoint of a narrow ResNet-18 with its projector, outside a run folder."""
    export_formats.write_encoder(tmp_path / "encoder", model=MODEL, variables=variables, projector=projector)
    return tmp_path / "encoder"


def converted(source, form, out, *options):
    assert convert.main([str(source), f"--to={form}", f"--out={out}", *options]) == 0
    return out


def refused(capsys, said, *arguments):
    assert convert.main([str(argument) for argument in arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("convert: ") and error.count("\n") == 1 and said in error, error


def identical(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_a_checkpoint_survives_a_round_trip_through_every_readable_form(encoder, variables, projector, tmp_path):
    path = encoder
    forms = {"a.safetensors": "safetensors", "b": "checkpoint", "c": "huggingface", "d": "checkpoint"}
    for name, form in forms.items():
        path = converted(path, form, tmp_path / name)
        net, found = bt_jax.load_encoder(path)
        identical(found, variables)
        assert (net.arch, net.options["width"], net.options["small_images"]) == ("resnet18", NARROW, False)
    assert load.read_model(tmp_path / "b") == MODEL  # from the metadata of the file
    assert load.read_model(tmp_path / "d") == MODEL  # build options from the shapes, mean and std from the JSON files
    identical(load.load_projector(encoder), projector)
    assert load.load_projector(tmp_path / "b") is None  # torchvision's form cannot hold it


def test_the_folder_of_hugging_face(encoder, tmp_path):
    out = converted(encoder, "huggingface", tmp_path / "hf", "--size=64")
    config = json.loads((out / "config.json").read_text())
    assert config["hidden_sizes"] == [4, 8, 16, 32] and config["depths"] == [2, 2, 2, 2]
    assert config["embedding_size"] == 4 and config["layer_type"] == "basic" and not config["downsample_in_bottleneck"]
    preprocessor = json.loads((out / "preprocessor_config.json").read_text())
    assert preprocessor["image_mean"] == MODEL["mean"] and preprocessor["size"] == {"shortest_edge": 64}


def test_full_width_for_timm_and_detectron2(tmp_path):
    given = {key: np.asarray(value) for key, value in state_dict("resnet18").items()}
    save_file(given, tmp_path / "resnet18.safetensors")
    folder = converted(tmp_path / "resnet18.safetensors", "timm", tmp_path / "timm")
    config = json.loads((folder / "config.json").read_text())
    assert config["architecture"] == "resnet18" and config["pretrained_cfg"]["mean"] == list(recipes.IMAGENET_MEAN)
    assert "in_chans" not in config["model_args"]
    with safe_open(folder / "model.safetensors", "numpy") as file:
        assert file.metadata()["format"] == "pt"  # transformers needs the format in the metadata
    assert load_file(folder / "model.safetensors")["layer1.0.bn1.num_batches_tracked"].shape == ()
    converted(tmp_path / "resnet18.safetensors", "safetensors", tmp_path / "plain.safetensors")
    assert "torchvision.models.resnet18()" in (tmp_path / "plain.safetensors.md").read_text()
    written = converted(tmp_path / "resnet18.safetensors", "detectron2", tmp_path / "r18.pkl")
    found = pickle.loads(written.read_bytes())  # our own file from above
    assert found["matching_heuristics"] and len(found["model"]) == sum(1 for value in given.values() if value.ndim)
    np.testing.assert_array_equal(found["model"]["res2.1.conv2.norm.bias"], given["layer1.1.bn2.bias"])


def test_other_channels_and_bottlenecks_in_the_configs_of_timm_and_hugging_face(tmp_path):
    given = {key: np.asarray(value) for key, value in state_dict("resnet50", channels=1).items()}
    save_file(given, tmp_path / "gray.safetensors")
    folder = converted(tmp_path / "gray.safetensors", "timm", tmp_path / "timm", "--arch=resnet50")
    config = json.loads((folder / "config.json").read_text())
    assert config["model_args"] == {"in_chans": 1} and config["pretrained_cfg"]["input_size"][0] == 1
    config["pretrained_cfg"] |= {"mean": [0.25], "std": [0.5]}
    (folder / "config.json").write_text(json.dumps(config))
    weights = load_file(folder / "model.safetensors")
    save_file(weights, folder / "model.safetensors")  # without our metadata, as timm writes it
    for path in (folder, folder / "model.safetensors"):
        assert (foreign_files.read(path).model["mean"], foreign_files.read(path).model["std"]) == ([0.25], [0.5])
    hub = converted(tmp_path / "gray.safetensors", "huggingface", tmp_path / "hf", "--arch=resnet50")
    config = json.loads((hub / "config.json").read_text())
    assert config["hidden_sizes"] == [256, 512, 1024, 2048] and config["layer_type"] == "bottleneck"
    assert config["num_channels"] == 1


def test_stablehlo_accepts_any_number_of_uint8_images(encoder, variables, tmp_path):
    out = converted(encoder, "stablehlo", tmp_path / "encoder.stablehlo", "--size=16")
    program = jax.export.deserialize(bytearray(out.read_bytes()))
    assert program.platforms == ("cpu", "cuda", "tpu")
    images = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), np.uint8)
    normal = ((images / 255 - np.array(MODEL["mean"])) / np.array(MODEL["std"])).astype(np.float32)
    expected = models.build(**MODEL["build"]).apply(variables, normal, train=False)
    assert np.isfinite(expected).all() and np.std(expected) > 0
    # The normalisation is in float32, so the tolerance is relative to the largest feature.
    for n in (1, 3):
        np.testing.assert_allclose(program.call(images[:n]), expected[:n], atol=1e-5 * np.abs(expected).max())


def test_the_references_whole_model_and_another_projector(variables, projector, tmp_path):
    backbone, sequential = convert.to_torch(variables, arch="resnet18"), convert.projector_to_torch(projector)
    whole = {f"module.backbone.{key}": np.asarray(value) for key, value in backbone.items()}
    whole |= {f"module.{key}": np.asarray(value) for key, value in sequential.items()}
    save_file(whole, tmp_path / "whole.safetensors")
    found = foreign_files.read(tmp_path / "whole.safetensors")
    identical(found.variables, variables)
    identical(found.projector, projector)
    assert found.model["mean"] == list(recipes.IMAGENET_MEAN)
    vicreg = whole | {"module.projector.0.bias": np.zeros(8, np.float32)}  # biases only in hidden layers
    save_file(vicreg, tmp_path / "vicreg.safetensors")
    assert foreign_files.read(tmp_path / "vicreg.safetensors").projector is None


def test_a_pickle_with_code_is_an_error(tmp_path, capsys):
    class Planted:
        def __reduce__(self):
            return (pathlib.Path.touch, (tmp_path / "executed",))

    for name in ("planted.pth", "planted.pkl"):
        (tmp_path / name).write_bytes(pickle.dumps({"model": Planted()}))
        refused(capsys, name, tmp_path / name, "--to=checkpoint", f"--out={tmp_path / 'out'}")
        with pytest.raises(UserError):
            bt_jax.load_encoder(tmp_path / name)
    assert not (tmp_path / "executed").exists() and not (tmp_path / "out").exists()
    pickle.loads((tmp_path / "planted.pkl").read_bytes())
    assert (tmp_path / "executed").exists()  # its code would have made this file


def test_pth_files(variables, projector, encoder, tmp_path, capsys):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: .pth files cannot be read or written")
    out = converted(encoder, "torch", tmp_path / "encoder.pth")
    identical(bt_jax.load_encoder(out)[1], variables)
    whole = {f"module.backbone.{key}": value for key, value in torch.load(out, weights_only=True).items()}
    sequential = convert.projector_to_torch(projector).items()
    whole |= {f"module.{key}": torch.from_numpy(np.array(value)) for key, value in sequential}
    optimizer = {"state": {0: {"mu": torch.zeros(3)}}, "param_groups": [{"lr": 0.2, "params": [0]}]}
    torch.save({"epoch": 7, "model": whole, "optimizer": optimizer}, tmp_path / "checkpoint.pth")
    found = foreign_files.read(tmp_path / "checkpoint.pth")
    identical(found.variables, variables)
    identical(found.projector, projector)
    half = {key: value.bfloat16() for key, value in whole.items()}
    torch.save({"state_dict": half}, tmp_path / "half.ckpt")
    assert {leaf.dtype for leaf in jax.tree.leaves(foreign_files.read(tmp_path / "half.ckpt").variables)} == {
        np.dtype(np.float32)
    }
    nested = {key: torch.nn.Parameter(value) if value.is_floating_point() else value for key, value in whole.items()}
    torch.save({"model": {"state_dict": nested}, 7: torch.zeros(2)}, tmp_path / "nested.pt")
    identical(foreign_files.read(tmp_path / "nested.pt").variables, variables)
    content = out.read_bytes()
    (tmp_path / "cut.pth").write_bytes(content[: len(content) // 2])
    refused(capsys, "cannot be read", tmp_path / "cut.pth", "--to=checkpoint", f"--out={tmp_path / 'x'}")
    torch.save([1, 2], tmp_path / "list.pth")
    refused(capsys, "not a state dict", tmp_path / "list.pth", "--to=checkpoint", f"--out={tmp_path / 'x'}")


def test_mistakes(encoder, tmp_path, capsys, variables):
    safe = converted(encoder, "safetensors", tmp_path / "a.safetensors")
    content = safe.read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(content[: len(content) // 2])
    out = f"--out={tmp_path / 'out'}"
    refused(capsys, "not an intact safetensors file", tmp_path / "cut.safetensors", "--to=checkpoint", out)
    refused(capsys, "exists", encoder, "--to=safetensors", f"--out={safe}")
    refused(capsys, "There is no file or folder", tmp_path / "nowhere", "--to=checkpoint", out)
    refused(capsys, "invalid choice", encoder, "--to=onnx", out)
    refused(
        capsys,
        "detectron2 cannot build. Use --to=torchvision",
        encoder,
        "--to=detectron2",
        out,
    )
    refused(capsys, "not that of a resnet50", safe, "--to=checkpoint", out, "--arch=resnet50")
    save_file({"a": np.zeros(3, np.float32)}, tmp_path / "other.safetensors")
    refused(capsys, "lacks conv1.weight", tmp_path / "other.safetensors", "--to=checkpoint", out)
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob("out*"))


@pytest.mark.parametrize(
    "error, said",
    [
        (OSError(errno.ENOSPC, "No space left on device"), "the disk is full"),
        (SafetensorError("I/O error: No space left on device (os error 28)"), "the disk is full"),
        (PermissionError(errno.EACCES, "Permission denied"), "Permission denied"),
        (RuntimeError("unexpected pos 64 vs 0"), "unexpected pos"),  # the message of PyTorch
    ],
)
def test_a_failed_write_leaves_no_files(encoder, tmp_path, capsys, monkeypatch, error, said):
    def fail(*arguments, **options):
        raise error

    for name in ("_save", "_write_json"):
        monkeypatch.setattr(export_formats, name, fail)
    monkeypatch.setattr(manifest, "write", fail)
    before = sorted(tmp_path.rglob("*"))
    for form in ("safetensors", "checkpoint", "huggingface"):
        refused(capsys, said, encoder, f"--to={form}", f"--out={tmp_path / 'new' / 'folder' / 'out'}")
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("form", ["safetensors", "checkpoint", "timm"])
def test_ctrl_c_leaves_no_files(encoder, tmp_path, monkeypatch, form):
    """When the process ends within the last write, after all others."""
    before, left = sorted(tmp_path.rglob("*")), []

    def end(status):
        left.append(sorted(tmp_path.rglob("*")))
        raise SystemExit(status)

    monkeypatch.setattr(interrupts, "_tidying", threading.RLock())  # `_end` keeps it
    monkeypatch.setattr(os, "_exit", end)
    monkeypatch.setattr(model_card, "write", lambda *_, **__: interrupts._end())
    with pytest.raises(SystemExit, match="130"):
        convert.main([str(encoder), f"--to={form}", f"--out={tmp_path / 'new' / 'folder' / 'out'}"])
    assert left == [before]


def test_existing_files_are_not_changed(encoder, tmp_path, capsys):
    card = tmp_path / "mine.safetensors.md"  # another form of that name has another card
    card.write_text("my notes")
    refused(capsys, "mine.safetensors.md exists", encoder, "--to=safetensors", f"--out={tmp_path / 'mine'}")
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    refused(capsys, "link exists", encoder, "--to=checkpoint", f"--out={tmp_path / 'link'}")
    (tmp_path / "out.tmp").mkdir()
    converted(encoder, "checkpoint", tmp_path / "out")
    assert card.read_text() == "my notes" and (tmp_path / "out.tmp").is_dir()
    assert (tmp_path / "link").is_symlink() and not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(
    "options, said",
    [
        (["--to=safetensors", "--out=mine.pth"], "this form is a file that ends in .safetensors"),
        (["--to=checkpoint", "--out=mine.pkl"], "this form is a folder"),
        (["--to=safetensors", "--out="], "is not a name"),
        (["--to=checkpoint", "--out=.."], "is not a name"),
        (["--to=stablehlo", "--out=a", "--size=0"], "not a size of images"),
        (["--to=stablehlo", "--out=a", "--size=-1"], "not a size of images"),
    ],
)
def test_odd_arguments(encoder, capsys, options, said):
    refused(capsys, said, encoder, *options)


@pytest.mark.parametrize(
    "metadata",
    ["1", '"a"', "{}", '{"build": null}', json.dumps(MODEL | {"mean": [0.5]}), json.dumps(MODEL | {"std": "abc"})]
    + [json.dumps(MODEL | {"build": MODEL["build"] | change}) for change in ({"width": 1}, {"arch": "resnet34"})],
)
def test_metadata_of_other_weights(variables, tmp_path, metadata):
    arrays = {key: np.asarray(value) for key, value in convert.to_torch(variables, arch="resnet18").items()}
    save_file(arrays, tmp_path / "a.safetensors", {foreign_files.METADATA: metadata})
    with pytest.raises(UserError, match="metadata of .* does not fit its weights"):
        bt_jax.load_encoder(tmp_path / "a.safetensors")


def test_gray_weights_and_odd_arrays(tmp_path):
    given = {key: np.asarray(value) for key, value in state_dict("resnet18", width=NARROW, channels=1).items()}
    save_file(given, tmp_path / "gray.safetensors")
    assert load.read_model(tmp_path / "gray.safetensors")["mean"] == [sum(recipes.IMAGENET_MEAN) / 3]
    save_file(given | {"conv1.weight": np.zeros(3, np.float32)}, tmp_path / "odd.safetensors")
    with pytest.raises(UserError, match=r"The shape of conv1.weight is \(3,\)"):
        bt_jax.load_encoder(tmp_path / "odd.safetensors")


def test_the_model_card_names_the_source_of_the_weights(variables, tmp_path):
    run = tmp_path / "run"
    export_formats.write_encoder(tmp_path / "encoder", model=MODEL, variables=variables)
    (run / "checkpoints").mkdir(parents=True)
    (tmp_path / "encoder").rename(run / "checkpoints" / "8")
    config = {"task": "pretrain", "total_epochs": 4.0, "extend_epochs": 2.0, "batch_size": 96, "seed": 3}
    config |= {
        "data": {"name": "", "folder": "/home/me/ph2"},
        "views": {"name": "cifar", "size": 24},
        "evals": {"size": 0},
    }
    (run / "config.json").write_text(json.dumps(config))
    summary = {"steps": 8, "knn_top1": {"trained": 0.543}, "files": ["/home/me/ph2/a.jpg", "b.jpg"]}
    (run / "summary.json").write_text(json.dumps(summary))
    out = converted(run, "safetensors", tmp_path / "mine.safetensors", "--licence=cc-by-4.0")
    said = (tmp_path / "mine.safetensors.md").read_text()
    assert said.startswith("---\nlicense: cc-by-4.0\n") and f'load_file("{out.name}")' in said
    for part in ("from `run/checkpoints/8`", "Step 8 of the run", "kNN top-1 54.3 %", "pretrained with Barlow Twins"):
        assert part in said, part
    config["data"]["folder"], summary["files"] = "ph2", ["a.jpg", "b.jpg"]  # a published card names no local folder
    assert [json.loads(block) for block in re.findall(r"```json\n(.*?)```", said, re.DOTALL)] == [config, summary]
    assert "by `bt-jax convert --to=safetensors`" in said and str(tmp_path) not in said and "/home" not in said
    assert "24 x 24 pixels" in said and "0.4, 0.5, 0.6" in said
    again = (converted(out, "checkpoint", tmp_path / "again") / "README.md").read_text()
    assert "not in a pretraining run" in again and "Barlow" not in again.split("## Use")[0].split("---")[2]
    # The figures are of step 8, so the card of an earlier checkpoint has none.
    (run / "checkpoints" / "8").rename(run / "checkpoints" / "4")
    converted(run, "safetensors", tmp_path / "earlier.safetensors")
    earlier = (tmp_path / "earlier.safetensors.md").read_text()
    assert "Step 4 of the run" in earlier and "54.3" not in earlier and "summary.json" not in earlier


def test_a_damaged_config_of_the_run(variables, tmp_path, capsys):
    """The size of the images is not guessed."""
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    export_formats.write_encoder(tmp_path / "run" / "checkpoints" / "8", model=MODEL, variables=variables)
    (tmp_path / "run" / "config.json").write_text('{"task": "pre')
    said = "config.json is damaged. Restore a copy of it, or give the size of the images: --size=PIXELS."
    refused(capsys, said, tmp_path / "run", "--to=safetensors", f"--out={tmp_path / 'mine'}")
    out = converted(tmp_path / "run", "safetensors", tmp_path / "mine.safetensors", "--size=24")
    assert load.stated_size(out) == (24, 0)


def test_every_form_has_the_normalisation(tmp_path, monkeypatch):
    """Mean and standard deviation per channel, in the units of the other library."""
    build = {"arch": "resnet18", "small_images": False, "width": 1.0, "channels": 3, "stem_padding": 1}
    source = export_formats.Source({"build": build, "mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}, {}, None, 224)
    monkeypatch.setattr(export_formats.Source, "state_dict", lambda self: {})
    export_formats.write_timm(source, tmp_path / "timm")
    timm = json.loads((tmp_path / "timm" / "config.json").read_text())["pretrained_cfg"]
    assert (timm["mean"], timm["std"]) == ([0.1, 0.2, 0.3], [0.4, 0.5, 0.6])
    export_formats.write_hugging_face(source, tmp_path / "hf")
    hub = json.loads((tmp_path / "hf" / "preprocessor_config.json").read_text())
    assert (hub["image_mean"], hub["image_std"]) == ([0.1, 0.2, 0.3], [0.4, 0.5, 0.6])
    said = "\n".join(usage.CODE["detectron2"](source, "r18.pkl"))  # detectron2 uses grey levels
    assert "PIXEL_MEAN: [25.5, 51.0, 76.5]\n" in said and "PIXEL_STD: [102.0, 127.5, 153.0]\n" in said
    assert "DEPTH: 18, STRIDE_IN_1X1: False" in said and "WEIGHTS: r18.pkl" in said


def test_the_image_size_is_that_of_the_evaluation(tmp_path):
    """For every kind of run; (0, 0) without a config.json."""
    step = tmp_path / "checkpoints" / "8"

    def found():
        return load.evaluation_size(opening.read_run_json(step, "config.json"))

    assert found() == (0, 0)
    for evals, views, wanted in (
        ({"size": 24, "resize": 30}, {"size": 32}, (24, 30)),
        ({"size": 0, "resize": 40}, {"size": 32}, (32, 40)),
        ({"resize": 40}, {"size": 32}, (32, 40)),  # fine-tuning has no evals.size
        ({}, {}, (0, 0)),
        (7, {"size": 32}, (0, 0)),
        ({"size": "large"}, {"size": 32}, (0, 0)),
    ):
        (tmp_path / "config.json").write_text(json.dumps({"evals": evals, "views": views}))
        assert found() == wanted
