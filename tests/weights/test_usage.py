"""The code of a model card, executed as printed, computes the encoder's features; files get the modes of the umask."""

import os
import re
import stat

import jax
import numpy as np
import pytest

import bt_jax
from bt_jax import convert, models
from bt_jax.weights import export_formats, load, usage

BUILD = {"arch": "resnet18", "small_images": True, "width": 1 / 16, "channels": 3, "stem_padding": 1}
BUILDS = {
    "quickstart": {},
    "CIFAR": {"stem_padding": 2},
    "whole width": {"width": 1.0},
    "gray": {"width": 1.0, "small_images": False, "channels": 1},
    "narrow": {"small_images": False},
    "wide": {"width": 1.25},
    "bottlenecks": {"arch": "resnet50"},
    "plain": {"width": 1.0, "small_images": False},
}
FOREIGN = ("safetensors", "torchvision", "torch", "timm", "huggingface")


def encoder(folder, **options):
    """A checkpoint of a network with random variables that keep the size of features, outside a run."""
    build = BUILD | options
    generator = np.random.default_rng(0)

    def draw(path, leaf):
        name = path[-1].key
        if name == "kernel":
            spread = np.sqrt(2 / np.prod(leaf.shape[:-1]))
            return (generator.standard_normal(leaf.shape) * spread).astype(np.float32)
        low, high = {"scale": (0.5, 1), "var": (0.5, 1.5)}.get(name, (-0.1, 0.1))
        return generator.uniform(low, high, leaf.shape).astype(np.float32)

    shapes = jax.eval_shape(models.build(**build).init, jax.random.key(0))
    variables = jax.tree_util.tree_map_with_path(draw, shapes)
    model = {"build": build, "mean": [0.5] * build["channels"], "std": [0.25] * build["channels"]}
    export_formats.write_encoder(folder, model=model, variables=variables)
    return folder


def code_of(card):
    """The only fenced block of Python on a model card."""
    (code,) = re.findall(r"^```python\n(.*?)^```", card.read_text(), flags=re.S | re.M)
    return code


def exported(source, form, out):
    """Converts; returns the file or folder and its model card."""
    assert convert.main([str(source), f"--to={form}", f"--out={out}", "--size=20"]) == 0
    suffix = export_formats.FORMS[form].suffix
    return (out.with_name(out.name + suffix), out.with_suffix(".md")) if suffix else (out, out / "README.md")


@pytest.mark.parametrize("build", BUILDS)
@pytest.mark.parametrize("form", FOREIGN)
def test_the_code_of_a_card_computes_the_encoders_features(form, build, tmp_path, monkeypatch):
    needs = {"timm": ["timm"], "huggingface": ["transformers"]}.get(form, ["torchvision"])
    torch, *_ = (pytest.importorskip(name, reason=f"{name} is not installed") for name in ["torch", *needs])
    source = encoder(tmp_path / "encoder", **BUILDS[build])
    _, card = exported(source, form, tmp_path / "mine")
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(code_of(card), names)
    net, variables = bt_jax.load_encoder(source)
    assert tuple(names["features"].shape) == (8, net.feature_dim) and not names["model"].training
    images = np.random.default_rng(1).standard_normal((2, 20, 20, names["images"].shape[1])).astype(np.float32)
    with torch.no_grad():
        found = names["model"](torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
    found = found.pooler_output.flatten(1) if form == "huggingface" else found
    expected = net.apply(variables, images, train=False)
    assert np.std(expected) > 0.01
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-5 * np.abs(expected).max(), rtol=0)


@pytest.mark.parametrize("form", ["safetensors", "torchvision", "timm", "huggingface"])
def test_small_stems_and_widths_survive_a_round_trip(form, tmp_path):
    """The padding of the stem as well, which is in no shape. The export also has the size of the images."""
    source = encoder(tmp_path / "encoder", stem_padding=2)
    path, _ = exported(source, form, tmp_path / "mine")
    assert load.read_model(path) == load.read_model(source) | {"evals": {"size": 20, "resize": 0}}
    jax.tree.map(np.testing.assert_array_equal, bt_jax.load_encoder(path)[1], bt_jax.load_encoder(source)[1])


@pytest.mark.parametrize("form", ["torchvision", "timm"])
def test_a_card_names_every_difference_from_the_network_of_the_other_library(form):
    def lines(name):
        model = {"build": BUILD | BUILDS[name], "mean": [0.5], "std": [0.25]}
        return "\n".join(usage.CODE[form](export_formats.Source(model, {}, None, 20), "mine"))

    assert "conv1" not in lines("plain") and "maxpool" not in lines("plain")
    cifar = lines("CIFAR")
    assert "model.conv1 = torch.nn.Conv2d(3, 4, 3, padding=2, bias=False)\n" in cifar
    assert "model.maxpool = torch.nn.Identity()\n" in cifar and "layer.num_features * 4 // 64" in cifar
    gray = "model.conv1 = torch.nn.Conv2d(1, 64, 7, stride=2, padding=3, bias=False)\n"
    assert (gray in lines("gray")) == (form == "torchvision")  # timm's config.json says it
    assert "layer.num_features" not in lines("whole width")


def test_files_have_the_modes_of_the_umask(tmp_path):
    source = encoder(tmp_path / "encoder")
    before = os.umask(0o027)
    try:
        for form in ("safetensors", "timm", "huggingface", "checkpoint"):
            exported(source, form, tmp_path / "out" / form)
    finally:
        os.umask(before)
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "out").rglob("*")}
    assert {path for path, mode in modes.items() if mode != (0o750 if path.is_dir() else 0o640)} == set()
    assert len(modes) > 10
