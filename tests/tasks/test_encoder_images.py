"""Which images an encoder is evaluated on: data and sizes of its run or its export, and the mistakes about them."""

import json

import jax
import numpy as np
import pytest

from bt_jax import convert, models
from bt_jax.config import keys
from bt_jax.embed import record
from bt_jax.embed.__main__ import parser
from bt_jax.messages import UserError
from bt_jax.tasks.from_encoder import complete, say_size
from bt_jax.weights.export_formats import write_encoder
from tests.support.runs import changed

SIZES = 20, 23  # of the crop and of the shorter side
BUILD = {"arch": "resnet18", "small_images": False, "width": 1 / 64, "channels": 3, "stem_padding": 1}
RUN = {"data": {"name": "cifar10", "train_split": "train[:64]"}, "views": {"size": 20}, "evals": {"resize": 23}}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """RUN/checkpoints/3 with zeros as weights, without config.json."""
    path = tmp_path_factory.mktemp("of") / "run" / "checkpoints" / "3"
    path.parent.mkdir(parents=True)
    shapes = jax.eval_shape(models.build(**BUILD).init, jax.random.key(0))
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    write_encoder(path, model={"build": BUILD, "mean": [0.5] * 3, "std": [0.25] * 3}, variables=zeros)
    return path


@pytest.fixture
def run(checkpoint):
    """run(content of config.json) -> the run folder."""
    folder = checkpoint.parents[1]

    def write(content):
        (folder / "config.json").write_text(content if isinstance(content, str) else json.dumps(content))
        return folder

    yield write
    (folder / "config.json").unlink(missing_ok=True)


def config_of(encoder, **values):
    return changed(keys.evaluate(), encoder=str(encoder), **values)


def sizes(config):
    completed = complete(config)
    return completed.views.size, completed.evals.resize


def embedded(encoder, *options):
    view = record.view_sizes(parser().parse_args([f"--encoder={encoder}", "--out=o", *options]))
    return view["size"], view["resize"]


@pytest.mark.parametrize("task", ["pretrain", "finetune"])
def test_data_and_sizes_are_those_of_the_run(run, task, capsys):
    folder = run({"task": task} | RUN)
    for encoder in (folder, folder / "checkpoints" / "3"):
        data = complete(config_of(encoder)).data
        assert (data.name, data.train_split) == ("cifar10", "train[:64]")
        assert sizes(config_of(encoder)) == embedded(encoder) == SIZES
        say_size(config_of(encoder))
    assert not capsys.readouterr().out


@pytest.mark.parametrize("form", ["safetensors", "checkpoint"])
def test_an_export_states_the_sizes_of_its_run(run, tmp_path, form, capsys):
    """So does an export of the export; --size wins."""
    path = run({"task": "pretrain"} | RUN)
    for name in ("a", "b"):
        out = tmp_path / (f"{name}.safetensors" if form == "safetensors" else name)
        assert convert.main([str(path), f"--to={form}", f"--out={out}"]) == 0
        path = out
    capsys.readouterr()
    config = config_of(path, **{"data.name": "patterns"})
    say_size(config)
    assert sizes(config) == embedded(path) == SIZES and not capsys.readouterr().out
    out = tmp_path / "c.safetensors"
    assert convert.main([str(path), "--to=safetensors", f"--out={out}", "--size=32"]) == 0
    assert sizes(config_of(out, **{"data.name": "patterns"})) == (32, 0)


def test_a_size_that_is_not_known_is_said(checkpoint, tmp_path, capsys):
    """A checkpoint without a run, and its export, do not state that of ImageNet as theirs."""
    assert convert.main([str(checkpoint), "--to=safetensors", f"--out={tmp_path / 'mine.safetensors'}"]) == 0
    for encoder in (checkpoint, tmp_path / "mine.safetensors"):
        config = config_of(encoder, **{"data.name": "patterns"})
        capsys.readouterr()
        assert sizes(config) == (224, 0) and not capsys.readouterr().out
        say_size(config)
        said = f"images of 224 pixels, because {encoder} names no size; "
        assert capsys.readouterr().out == f"{said}--config.views.size changes it\n"
        assert embedded(encoder) == (224, 256) and capsys.readouterr().out == f"{said}--size changes it\n"
        say_size(changed(config, **{"views.size": 32}))
        assert embedded(encoder, "--size=112") == (112, 128) and not capsys.readouterr().out


@pytest.mark.parametrize("content", ["{", '{"task": "finetune"}'])
def test_a_damaged_config_is_an_error(run, content):
    """Unless the command names what it would name."""
    folder = run(content)
    wanted = "config.json is damaged. Restore a copy of it, or name the images and their size, such as --config.data"
    for values in ({}, {"data.name": "patterns"}, {"views.size": 32}):
        for encoder in (folder, folder / "checkpoints" / "3"):
            with pytest.raises(UserError, match=wanted):
                complete(config_of(encoder, **values))
    assert sizes(config_of(folder, **{"data.name": "patterns", "views.size": 32})) == (32, 0)


def test_a_damaged_config_is_an_error_of_embed(run):
    folder = run("{")
    with pytest.raises(UserError, match=r"config.json is damaged. Restore a copy of it, or give --size=PIXELS\."):
        embedded(folder)
    assert embedded(folder, "--size=112") == (112, 128)


def test_an_encoder_without_a_run_names_no_data(checkpoint, tmp_path):
    with pytest.raises(UserError, match=r"No data set is named, and .* has no config.json of a run.*data.folder="):
        complete(config_of(checkpoint))
    (tmp_path / "report.html").write_text("<html>")
    with pytest.raises(UserError, match="is not a file of weights"):
        complete(config_of(tmp_path / "report.html"))
