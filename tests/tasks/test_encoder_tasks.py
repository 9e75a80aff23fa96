"""Tasks that start from an encoder: full and partial fine-tuning, linear evaluation, evaluation, and mistakes."""

import json
import re
import shutil

import jax
import numpy as np
import pytest

import bt_jax
from bt_jax import augment, models, sharding
from bt_jax.config import keys
from bt_jax.configs import evaluate as evaluate_config
from bt_jax.configs import finetune as finetune_config
from bt_jax.configs import linear, semisupervised, transfer, transfer_voc07
from bt_jax.data.sources import selection
from bt_jax.data.sources.open_source import open_source
from bt_jax.evals import accuracy
from bt_jax.messages import UserError
from bt_jax.tasks import evaluate, finetune, pretrain
from bt_jax.tasks.from_encoder import Encoder, complete, open_encoder, view_recipe
from bt_jax.train import epochs
from bt_jax.weights import load
from tests.support import runs
from tests.support.drawn_images import Listed, encode
from tests.support.runs import changed

pytestmark = pytest.mark.usefixtures("tiny_arch", "compiled_quickly", "one_device")


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory, tiny_arch, compiled_quickly, one_device):
    """The quickstart, stopped after two steps: a run folder with an encoder."""
    config = runs.tiny(**{"model.arch": tiny_arch, "stop_after_steps": 2, "evals.every_epochs": 0.0})
    return str(pretrain.run(config, str(tmp_path_factory.mktemp("run") / "pretrained")))


def tiny(pretrained, get_config=linear.get_config, arg="smoke", **changes):
    """Two epochs of four steps from the pretrained encoder, on its run's images."""
    return changed(
        get_config(arg), **{"encoder": pretrained, "data.fraction": 1.0, "evals.every_epochs": 2.0} | changes
    )


def test_data_options_of_the_command_are_kept(tmp_path):
    """Only missing options come from the encoder's run."""
    run = {"task": "pretrain", "data": {"name": "cifar10", "train_split": "train[:64]", "on_device": True}}
    run |= {"views": {"size": 20}, "evals": {"size": 24, "resize": 0}}
    (tmp_path / "config.json").write_text(json.dumps(run))
    config = complete(tiny(str(tmp_path), **{"data.val_split": "test[:40]", "data.train_split": "train[8:16]"}))
    assert (config.data.name, config.data.train_split, config.data.val_split) == ("cifar10", "train[8:16]", "test[:40]")
    assert complete(tiny(str(tmp_path))).data.train_split == "train[:64]" and config.views.size == 24


# Fine-tuning ---------------------------------------------------------------------------------------------------------


def small_encoder(dtype="float32"):
    net = models.build("tiny", width=0.125, small_images=True, dtype=dtype)
    return Encoder(net, jax.device_get(jax.jit(net.init)(jax.random.key(1))), (0.5,) * 3, (0.25,) * 3)


def built(config, plan, encoder, recipe, train):
    """The fine-tuned network on one device, for five classes."""
    config.train = train
    trained = finetune.trained_parts(train, list(encoder.variables["params"]))
    return finetune.build_training(config, plan, encoder, recipe, 5, sharding.make_mesh(), trained)


@pytest.mark.parametrize("train, batch_norm", [("classifier", "eval"), ("all", "train"), ("layer4", "eval")])
def test_frozen_parts_stay_bit_equal(train, batch_norm):
    encoder = small_encoder()
    config = changed(keys.finetune(), **{"optim.lr_backbone": 0.1, "optim.weight_decay": 0.1, "views.size": 8})
    training = built(config, epochs.Plan(4, 8), encoder, view_recipe(config.views, encoder), train)
    trained = {"classifier": (), "all": tuple(encoder.variables["params"]), "layer4": ("layer4",)}[train]
    state = training.create(jax.random.key(0))
    rng = np.random.default_rng(0)
    batch = {"image": rng.integers(0, 256, (8, 8, 8, 3), np.uint8), "id": np.arange(8), "label": np.arange(8) % 5}
    new, shown = jax.jit(training.step)(state, batch)
    assert shown["train/loss"] > 0 and ("train/lr_backbone" in shown) == (train != "classifier")
    for part, before in encoder.variables["params"].items():
        after = jax.tree.leaves(jax.device_get(new.params["backbone"][part]))
        same = [np.array_equal(a, b) for a, b in zip(jax.tree.leaves(before), after, strict=True)]
        assert all(same) if part not in trained else not all(same), part
    assert not np.array_equal(state.params["classifier"]["kernel"], new.params["classifier"]["kernel"])
    stats = zip(
        *(jax.tree.leaves(x) for x in (encoder.variables["batch_stats"], new.batch_stats["backbone"])), strict=True
    )
    assert all(np.array_equal(a, b) for a, b in stats) == (batch_norm == "eval")


def test_the_classifier_equals_torchs_sgd_on_frozen_features():
    """Three steps in float64, compared with the explicit rule of torch.optim.SGD: decay, momentum, cosine by epoch."""
    encoder = small_encoder("float64")
    options = {"optim.lr_classifier": 0.3, "optim.weight_decay": 0.01, "total_epochs": 3.0, "views.size": 8}
    options |= {"views.crop_scale": (1.0, 1.0), "views.flip": 0.0}
    config = changed(keys.finetune(), **options)
    with jax.enable_x64(True):
        variables = jax.tree.map(lambda x: x.astype(np.float64), encoder.variables)
        encoder = encoder._replace(variables=variables)
        recipe = view_recipe(config.views, encoder, crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0), flip=0.0)
        training = built(config, epochs.Plan(1, 3), encoder, recipe, "classifier")
        step, state = jax.jit(training.step), training.create(jax.random.key(0))
        images = np.random.default_rng(0).integers(0, 256, (8, 8, 8, 3), np.uint8)
        batch = {"image": images, "id": np.arange(8), "label": np.arange(8) % 5}
        view = augment.two_views(jax.random.key(9), images, recipe)[0]  # the whole image, for every random crop
        h = np.asarray(jax.jit(lambda v, x: encoder.net.apply(v, x, train=False))(variables, view), np.float64)
        wanted = {name: np.asarray(value, np.float64) for name, value in state.params["classifier"].items()}
        velocity = {name: 0.0 for name in wanted}
        for epoch in range(3):
            logits = h @ wanted["kernel"] + wanted["bias"]
            p = np.exp(logits - logits.max(axis=1, keepdims=True))
            p = p / p.sum(axis=1, keepdims=True) - np.eye(5)[batch["label"]]
            gradient = {"kernel": h.T @ p / 8, "bias": p.mean(axis=0)}
            rate = 0.3 * 0.5 * (1 + np.cos(np.pi * epoch / 3))
            for name in wanted:
                velocity[name] = 0.9 * velocity[name] + gradient[name] + 0.01 * wanted[name]
                wanted[name] = wanted[name] - rate * velocity[name]
            state, _ = step(state, batch)
        for name in wanted:
            np.testing.assert_allclose(state.params["classifier"][name], wanted[name], rtol=1e-10)


def test_schedules():
    config = linear.get_config()
    cosine = finetune._optimizer(config.optim, epochs.Plan(10, 40))[1]["lr_classifier"]
    found = [float(cosine(step)) for step in (0, 9, 10, 39)]
    np.testing.assert_allclose(found, 0.15 * (1 + np.cos(np.pi * np.array([0, 0, 0.25, 0.75]))), rtol=1e-6)
    config = semisupervised.get_config("percent=10")
    _, rates = finetune._optimizer(config.optim, epochs.Plan(10, 200))
    found = [[float(rates[f"lr_{name}"](step)) for step in (0, 119, 121, 161)] for name in ("classifier", "backbone")]
    np.testing.assert_allclose(found, [[0.5, 0.5, 0.1, 0.02], [0.002, 0.002, 0.0004, 0.00008]], rtol=1e-6)


@pytest.fixture(scope="module")
def linear_run(pretrained, tmp_path_factory):
    return finetune.run(tiny(pretrained), str(tmp_path_factory.mktemp("linear") / "run"))


def test_linear_evaluation_end_to_end(pretrained, linear_run):
    summary = json.loads((linear_run / "summary.json").read_text())
    low, high = summary["top1_interval"]
    assert 0 <= low <= summary["top1"] <= high <= 1 and summary["train_images"] == 64
    page = (linear_run / "report.html").read_text()
    assert f"{100 * summary['top1']:.1f} % of the held-out images" in page and "from 64 images" in page
    assert "Accuracy" in page and "Confusion" in page
    _, before = bt_jax.load_encoder(pretrained)
    _, after = bt_jax.load_encoder(linear_run)
    for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        np.testing.assert_array_equal(a, b)


def test_resumed_fine_tuning_is_bit_equal(pretrained, tmp_path, capsys):
    """It creates no initial state; both say what else lasts."""
    options = {"optim.lr_backbone": 0.01, "train": "all", "evals.every_epochs": 0.0}
    whole = finetune.run(tiny(pretrained, **options), str(tmp_path / "whole"))
    work = ["compiling the initial weights", "compiling the training", "evaluating the classifier", "writing the"]
    said = capsys.readouterr().out
    assert [line for line in work if f"\n{line}" in said] == work
    finetune.run(tiny(pretrained, **options, stop_after_steps=3), str(tmp_path / "halves"))
    capsys.readouterr()
    halves = finetune.run(tiny(pretrained, **options), str(tmp_path / "halves"))
    said = capsys.readouterr().out
    assert [line for line in work if f"\n{line}" in said] == work[1:]
    for a, b in zip(*(jax.tree.leaves(bt_jax.load_encoder(run)[1]) for run in (whole, halves)), strict=True):
        np.testing.assert_array_equal(a, b)
    assert not np.array_equal(
        *(bt_jax.load_encoder(run)[1]["params"]["conv1"]["kernel"] for run in (whole, pretrained))
    )


def test_scratch_has_the_same_architecture_with_new_weights(pretrained, capsys):
    config = complete(tiny(pretrained))
    assert (config.data.name, config.views.size) == ("patterns", 20)
    known = open_encoder(config)
    assert not capsys.readouterr().out
    scratch = open_encoder(changed(config, scratch=True))
    assert capsys.readouterr().out == "compiling the initial weights of the encoder\n"
    assert known.net.options == scratch.net.options and known.mean == scratch.mean
    assert not np.array_equal(
        known.variables["params"]["conv1"]["kernel"], scratch.variables["params"]["conv1"]["kernel"]
    )


# Parts of splits -----------------------------------------------------------------------------------------------------


def test_a_fraction_is_class_balanced():
    labels = np.repeat([0, 1, 2], [100, 50, 3])
    pixel = encode(np.zeros((2, 2, 3), np.uint8))
    source = Listed([(pixel, int(label)) for label in labels])
    part = selection.class_balanced_fraction(source, "train", 0.1, seed=1)
    drawn = part.labels("share")
    assert np.bincount(drawn).tolist() == [10, 5, 1] and part.splits == {"train": 153, "share": 16}
    assert (drawn == np.sort(drawn)).all()  # in the order of ids
    again, other = (selection.class_balanced_fraction(source, "train", 0.1, seed=seed)._ids for seed in (1, 2))
    np.testing.assert_array_equal(again, part._ids)
    assert not np.array_equal(other, part._ids)
    assert part._ids.max() < 153 and selection.class_balanced_fraction(source, "train[100:]", 0.5)._ids.min() >= 100
    for wrong in (0.0, 1.5):
        with pytest.raises(UserError, match="The fraction .* is not valid"):
            selection.class_balanced_fraction(source, "train", wrong)


def test_concatenated_splits_keep_their_order():
    source = open_source("patterns")
    both = selection.concatenated(source, "train[:3]+test[5:7]")
    wanted = source.read("train", range(3)) + source.read("test", [5, 6])
    assert list(both.encoded("joined")) == wanted and both.read("train", [9]) == source.read("train", [9])
    assert both.where("joined", 4) == source.where("test", 6)


# Evaluation ----------------------------------------------------------------------------------------------------------


def test_evaluation_end_to_end(pretrained, tmp_path, capsys):
    config = changed(evaluate_config.get_config("smoke"), encoder=pretrained)
    folder = evaluate.run(config, str(tmp_path / "run"))
    said = capsys.readouterr().out
    assert re.search(r"\n20-NN, temperature 0.1 +[\d.]+ %   [\d.]+ % to [\d.]+ %\n20-NN, temperature 0.07 .* –\n", said)
    for name in ("knn", "linear", "spectrum"):
        assert f"\nevaluating {name}\nevaluated {name} in " in said
    assert (
        re.search(r"\nwithout labels, views by crop and flip\neffective rank of the features +[\d.]+\n", said)
        and "knn_" not in said
    )
    summary = json.loads((folder / "summary.json").read_text())
    assert set(summary) == {"knn", "linear", "spectrum", "seconds", "seconds_each", "smoke"}
    assert summary["smoke"] == "64 of 10000 images" and said.count("smoke test: 64 of 10000 images; it tests the") == 2
    net, _ = bt_jax.load_encoder(pretrained)
    linear = summary["linear"]
    assert 1 <= summary["spectrum"]["rank"] <= net.feature_dim
    assert 0 <= linear["linear_low"] <= linear["linear_top1"] <= linear["linear_high"] <= 1
    assert runs.strict_json(folder) == {"config.json", "data.json", "environment.json"} | {
        "summary.json",
        "metrics.jsonl",
    }
    line = runs.read_lines(folder)[0]
    assert line["val/knn_top1"] == summary["knn"]["knn_top1"] and (folder / "report.html").exists()
    page = (folder / "report.html").read_text()
    assert f"{100 * linear['linear_top1']:.1f} % of the held-out images are classified correctly" in page
    assert "metric without labels, views by crop and flip" in page
    assert "20-NN, temperature 0.07" in page and "effective rank" in page and "Not in metrics.jsonl" not in page


def refused(match, run, config, folder):
    with pytest.raises(UserError, match=match) as caught:
        run(config, str(folder))
    assert "\n" not in str(caught.value)


def test_wrong_input(pretrained, tmp_path):
    def evaluation(**changes):
        return changed(evaluate_config.get_config("smoke"), **{"encoder": pretrained} | changes)

    refused("No encoder is named", evaluate.run, evaluation(encoder="", **{"data.name": "patterns"}), tmp_path)
    refused(
        "There is no checkpoint of bt_jax",
        evaluate.run,
        evaluation(encoder=str(tmp_path), **{"data.name": "patterns"}),
        tmp_path,
    )
    refused("There is no file or folder", evaluate.run, evaluation(encoder=str(tmp_path / "nowhere")), tmp_path)
    for name, said in (
        ("a.safetensors", "is not an intact safetensors file"),
        ("a.html", "is not a file of weights that can be read safely"),
    ):
        (tmp_path / name).touch()  # it comes before the missing data set
        refused(said, evaluate.run, evaluation(encoder=str(tmp_path / name)), tmp_path)
    refused("is a tiny, not a resnet50", evaluate.run, evaluation(arch="resnet50"), tmp_path)
    refused(
        "is empty", evaluate.run, evaluation(**{"data.train_split": "train[5:5]", "data.name": "patterns"}), tmp_path
    )
    refused("one label per image", evaluate.run, evaluation(protocols=("svm",)), tmp_path)
    refused("Choose from", evaluate.run, evaluation(protocols=("knm",)), tmp_path)
    refused("config.train='layer9' is unknown", finetune.run, tiny(pretrained, train="layer9"), tmp_path)

    (tmp_path / "images").mkdir()
    for i in range(20):
        (tmp_path / "images" / f"{i}.png").write_bytes(encode(np.full((20, 20, 3), i, np.uint8)))
    unlabelled = {"data.folder": str(tmp_path / "images"), "data.val_split": "train", "data.train_split": "train"}
    for held_out in ("train", ""):
        unlabelled["data.val_split"] = held_out
        refused("does not have labels in train, and knn needs them", evaluate.run, evaluation(**unlabelled), tmp_path)
        said = "has no labels, which a classifier needs. Sort the images into one sub-folder for each class"
        refused(said, finetune.run, tiny(pretrained, **unlabelled), tmp_path)
    said = r"There is no held-out split, which {} needs. Hold images out with --config.data.train_split='train.mixed"
    none = {"data.name": "patterns", "data.val_split": ""}
    refused(said.format("knn"), evaluate.run, evaluation(**none), tmp_path)
    refused(said.format("a classifier"), finetune.run, tiny(pretrained, **none), tmp_path)


def test_evaluation_without_labels_or_held_out_images(pretrained, tmp_path):
    (tmp_path / "images").mkdir()
    for i in range(20):
        (tmp_path / "images" / f"{i}.png").write_bytes(encode(np.full((20, 20, 3), 12 * i, np.uint8)))
    options = {"encoder": pretrained, "protocols": ("spectrum",), "data.folder": str(tmp_path / "images")}
    folder = evaluate.run(
        changed(evaluate_config.get_config(), **options, **{"data.val_split": ""}), str(tmp_path / "run")
    )
    assert set(json.loads((folder / "summary.json").read_text())) == {"spectrum", "seconds", "seconds_each"}


def test_accuracies():
    logits = np.array([[9.0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5], [5, 4, 3, 2, 1, 0], [0, 0, 0, 0, 0, 9]])
    found = accuracy.accuracies(logits, np.array([0, 0, 4, -1]))
    assert found == {"top1": 1 / 3, "top5": 2 / 3}
    assert set(accuracy.accuracies(logits[:, :5], np.array([0, 0, 4, -1]))) == {"top1"}


def test_constants_of_the_protocols():
    """Sources: the paper's appendices B and C, the reference's evaluate.py, and VISSL's configs."""
    one, semi = linear.get_config(), semisupervised.get_config("percent=1")
    assert (one.total_epochs, one.batch_size, one.train) == (100, 256, "classifier")
    assert (one.optim.lr_classifier, one.optim.weight_decay, one.optim.momentum, one.optim.schedule) == (
        0.3,
        1e-6,
        0.9,
        "cosine",
    )
    assert (semi.total_epochs, semi.train, semi.optim.weight_decay, semi.data.fraction) == (20, "all", 0, 0.01)
    assert (semi.optim.lr_backbone, semi.optim.lr_classifier) == (0.002, 0.5)
    np.testing.assert_allclose(semi.optim.drop_epochs, (12, 16))
    code = semisupervised.get_config("percent=10,protocol=code").optim
    assert (code.lr_backbone, code.lr_classifier, code.schedule) == (0.005, 0.5, "cosine")
    for data, length, drops, vissl in (
        ("places205", 14, (14 / 3, 28 / 3), (4, 8, 12)),
        ("inat18", 84, (28, 56), (24, 48, 72)),
    ):
        paper = transfer.get_config(f"data={data}")
        assert (paper.total_epochs, paper.optim.lr_classifier, paper.optim.weight_decay) == (length, 0.01, 5e-4)
        np.testing.assert_allclose(paper.optim.drop_epochs, drops)
        np.testing.assert_allclose(transfer.get_config(f"data={data},protocol=vissl").optim.drop_epochs, vissl)
    assert transfer_voc07.get_config().protocols == ("svm",)
    assert finetune_config.get_config().train == "all"


def test_the_optimizer_of_frozen_parts_has_no_state():
    """Their momentum would have their size."""
    encoder = small_encoder()
    config = changed(keys.finetune(), **{"views.size": 8})
    state = built(config, epochs.Plan(1, 1), encoder, view_recipe(config.views, encoder), "classifier").create(
        jax.random.key(0)
    )
    kept = sum(leaf.size for leaf in jax.tree.leaves(state.opt_state))
    assert kept < 2 * sum(leaf.size for leaf in jax.tree.leaves(state.params["classifier"])) + 10


def test_the_model_entry_is_read_with_the_weights(pretrained):
    model = load.read_model(pretrained)
    assert model["build"]["arch"] == "tiny" and len(model["mean"]) == len(model["std"]) == 3


def test_view_sizes_from_the_run_of_an_encoder(tmp_path):
    """Size and resize of its evaluation, unless the command sets them; those of ImageNet without a run."""
    run = {"task": "pretrain", "data": {"name": "cifar10"}, "views": {"size": 20}, "evals": {"size": 0, "resize": 23}}
    (tmp_path / "config.json").write_text(json.dumps(run))
    options = {"encoder": str(tmp_path), "data.name": "patterns"}
    plain = changed(keys.evaluate(), **options)
    assert (complete(plain).views.size, complete(plain).evals.resize) == (20, 23)
    own = changed(keys.evaluate(), **options, **{"evals.resize": 40})
    assert (complete(own).views.size, complete(own).evals.resize) == (20, 40)
    own = changed(keys.evaluate(), **options, **{"views.size": 32})
    assert (complete(own).views.size, complete(own).evals.resize) == (32, 0)
    nowhere = changed(keys.evaluate(), **options | {"encoder": str(tmp_path / "x.pth")})
    assert (complete(nowhere).views.size, complete(nowhere).evals.resize) == (224, 0)


def test_both_tasks_say_that_the_size_is_a_default(pretrained, tmp_path, monkeypatch, capsys):
    shutil.copytree(load.weights_path(pretrained), tmp_path / "step")
    monkeypatch.setattr(load, "SIZE", 20)
    options = {"encoder": str(tmp_path / "step"), "data.name": "patterns"}
    said = f"\nimages of 20 pixels, because {tmp_path / 'step'} names no size; --config.views.size changes it\n"
    config = changed(evaluate_config.get_config("smoke"), **options, protocols=("spectrum",))
    evaluate.run(config, str(tmp_path / "evaluated"))
    assert said in capsys.readouterr().out
    finetune.run(tiny(options["encoder"], stop_after_steps=1, **{"data.name": "patterns"}), str(tmp_path / "tuned"))
    assert said in capsys.readouterr().out
