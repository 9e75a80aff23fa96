"""Run folders of released formats stay readable: every reader loads their encoders, and the runs resume.

`fixtures/run_VERSION.zip` is a run folder written by that version, without pictures and report: the quickstart's smoke
test with a net of 2 to 16 channels, 4 steps. Its environment.json has the command.
"""

import json
import zipfile
from types import SimpleNamespace

import numpy as np
import pytest
from ml_collections import ConfigDict

import bt_jax
from bt_jax.config import arguments, keys
from bt_jax.configs import quickstart
from bt_jax.data import feeds
from bt_jax.embed import record
from bt_jax.run_folder import same_run
from bt_jax.tasks import from_encoder, pretrain
from tests.support.paths import FIXTURES
from tests.support.runs import changed, read_lines

FILES = sorted(FIXTURES.glob("run_*.zip"))
# `record.fingerprint` of all arrays, and sums of the features of one drawn image, float32.
WRITTEN = {"run_0.1.0": ("49647a90d717a8e2", 3.889129)}


@pytest.fixture(params=FILES, ids=lambda path: path.stem)
def run(request, tmp_path):
    """(name, the unpacked run folder)."""
    with zipfile.ZipFile(request.param) as file:
        file.extractall(tmp_path / "run")
    return request.param.stem, tmp_path / "run"


def test_every_released_format_has_a_fixture():
    assert {path.stem for path in FILES} == WRITTEN.keys()


def test_the_encoder_loads(run):
    name, folder = run
    net, variables = bt_jax.load_encoder(folder)
    image = np.random.default_rng(0).standard_normal((1, 20, 20, 3), np.float32)
    features = net.apply(variables, image, train=False)
    weights, total = WRITTEN[name]
    assert record.fingerprint(variables) == weights
    np.testing.assert_allclose(np.abs(features).sum(), total, rtol=1e-4)  # 16 numbers, summed in float32


def test_evaluation_and_embedding_find_data_and_sizes(run):
    _, folder = run
    config = keys.evaluate()
    config.encoder = str(folder)
    completed = from_encoder.complete(config)
    assert (completed.data.name, completed.data.train_split, completed.views.size) == ("patterns", "train[:64]", 20)
    options = SimpleNamespace(encoder=str(folder), canvas=None, size=None, resize=None)
    assert record.view_sizes(options) == {"size": 20, "resize": 0, "canvas": 512}


def command() -> ConfigDict:
    """The config of the command that wrote the runs."""
    return changed(
        quickstart.get_config("smoke"),
        **{"model.width": 0.03125, "model.projector": (4, 4), "data.train_split": "train[:64]"},
        **{"data.val_split": "test[:40]", "evals.knn_k": 5, "evals.spectrum_images": 32, "log.tensorboard": False},
        **{"total_epochs": 1.0, "checkpoint.keep_last": 1, "compile_cache": ""},
    )


def test_the_same_command_is_the_same_run(run):
    _, folder = run
    new = arguments.to_dict(command())
    # As `open_run.open_folder` records them.
    new["data"] |= {"reader": feeds.reader_of(command().data), "exif_orientation": "ignore"}
    new["views"] |= {"mean": [0.5] * 3, "std": [0.2] * 3}
    old, filled = json.loads((folder / "config.json").read_text()), ("views.mean", "views.std")
    assert same_run.differences(old, new, filled=filled) == []
    assert [line.partition(":")[0] for line in same_run.differences(old, new)] == [*filled]
    new["data"]["exif_orientation"] = "apply"
    assert same_run.differences(old, new, filled=filled) == ["data.exif_orientation: ignore -> apply"]
    new["data"] |= {"exif_orientation": "ignore", "labels": False}
    assert same_run.differences(old, new, filled=filled) == ["data.labels: True -> False"]


@pytest.mark.slow
def test_the_run_resumes(run):
    """With one epoch more than before; it stops before the last evaluation."""
    _, folder = run
    before = read_lines(folder)
    pretrain.run(changed(command(), **{"extend_epochs": 1.0, "stop_after_steps": 6, "log.every_steps": 1}), str(folder))
    assert [line["step"] for line in read_lines(folder)[len(before) :] if "train/loss" in line] == [5, 6]
    assert (folder / "checkpoints/6").is_dir()
