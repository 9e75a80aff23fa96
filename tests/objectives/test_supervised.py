"""The supervised baseline: a method without a projector, with labels in its loss."""

import json

import pytest

import bt_jax
from bt_jax.messages import UserError
from bt_jax.objectives import registry
from bt_jax.objectives.supervised import Supervised
from bt_jax.tasks import pretrain
from tests.support.runs import changed, tiny


@pytest.fixture(scope="module")
def config(tiny_arch, one_device, compiled_quickly):
    config = tiny(**{"model.arch": tiny_arch, "evals.every_epochs": 0.0, "stop_after_steps": 2, "log.every_steps": 1})
    with config.unlocked():
        config.objective = {"name": "supervised", **registry.keys("supervised")}
    return config


def test_it_trains_without_a_projector(config, tmp_path, capsys):
    """Its report has no cross-correlation, and its classifier has the classes of the data set."""
    assert list(registry.keys("supervised")) == ["batch_statistics"]
    run = pretrain.run(changed(config, **{"total_epochs": 0.5, "stop_after_steps": 0}), str(tmp_path / "run"))
    assert "  top1 " in capsys.readouterr().out.split("step 2/2")[1]
    parts = {path.name for path in (run / "checkpoints" / "2").iterdir()}
    assert "classifier" in parts and "projector" not in parts and not (run / "correlation").exists()
    summary = json.loads((run / "summary.json").read_text())
    assert 0 <= summary["knn_top1"]["trained"] <= 1
    report = (run / "report.html").read_text()
    assert "Accuracy on training batches" in report and "supervised pretraining" in report
    assert "Barlow Twins" not in report
    assert bt_jax.load_encoder(run)[0].feature_dim > 0


def test_it_needs_labels_and_has_no_projector_to_split(config, tmp_path):
    with pytest.raises(UserError, match="needs labels, but the training images have none"):
        Supervised(classes=0).heads(config.model, 4)
    with pytest.raises(UserError, match="has no projector"):
        pretrain.run(changed(config, **{"model.projector_sharding": "sharded"}), str(tmp_path / "run"))
