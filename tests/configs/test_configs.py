"""The configs: every recipe to its last constant, and the small form of each that is not tested elsewhere."""

import dataclasses
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import bt_jax
from bt_jax.augment.recipes import View
from bt_jax.config import arguments
from bt_jax.config import keys as pretrain_keys
from bt_jax.configs import pretrain_cifar10_r18, pretrain_folder, pretrain_imagenet_r50, quickstart
from bt_jax.messages import UserError
from bt_jax.objectives import registry
from bt_jax.run_folder import same_run
from bt_jax.tasks import open_run, pretrain
from bt_jax.train import build
from tests.support.paths import ROOT
from tests.support.runs import read_lines

pytestmark = pytest.mark.usefixtures("tiny_arch", "compiled_quickly", "one_device")


def science(config):
    """What a recipe is: every key that is not about devices, files, monitors or the terminal."""
    flat = arguments.flatten(arguments.to_dict(config))
    chosen = ("batch_size", "total_epochs", "data.name", "views", "model", "objective", "optim")
    return {key: value for key, value in flat.items() if f"{key}.".startswith(tuple(f"{c}." for c in chosen))}


def unset_views():
    fields = {f"views.{view}.{field.name}": None for view in ("view1", "view2") for field in dataclasses.fields(View)}
    return fields | {"views.mean": None, "views.std": None}


PAPER = {
    "batch_size": 2048,
    "total_epochs": 1000.0,
    "data.name": "imagenet2012",
    "views.name": "imagenet",
    "views.size": 224,
    "model.arch": "resnet50",
    "model.width": 1.0,
    "model.small_images": False,
    "model.stem_padding": 1,
    "model.zero_init_residual": True,
    "model.projector": [8192, 8192, 8192],
    "model.projector_bias": False,
    "model.dtype": "bfloat16",
    "objective.two_passes": True,
    "model.projector_sharding": "replicated",
    "objective.lambd": 0.0051,
    "objective.name": "barlow_twins",
    "objective.form": "auto",
    "optim.name": "lars",
    "optim.lr_weights": 0.2,
    "optim.lr_biases": 0.0048,
    "optim.weight_decay": 1.5e-6,
    "optim.momentum": 0.9,
    "optim.trust_coefficient": 0.001,
    "optim.clip": False,
    "optim.rate_in_momentum": False,
    "optim.warmup_epochs": 10.0,
    "optim.by_epoch": False,
    "optim.start_factor": 0.0,
    "optim.end_factor": 0.001,
    "optim.grad_scale": 1 / 32,
}
SOLO = PAPER | {
    "batch_size": 256,
    "data.name": "cifar10",
    "views.name": "cifar",
    "views.size": 32,
    "model.arch": "resnet18",
    "model.small_images": True,
    "model.stem_padding": 2,
    "model.zero_init_residual": False,
    "model.projector": [2048, 2048, 2048],
    "model.projector_bias": True,
    "optim.lr_weights": 0.3,
    "optim.lr_biases": 0.3,
    "optim.weight_decay": 1e-4,
    "optim.trust_coefficient": 0.02,
    "optim.clip": True,
    "optim.start_factor": 1e-4,
    "optim.end_factor": 0.0,
    "optim.grad_scale": 0.1,
}
LIGHTLY = SOLO | {
    "batch_size": 128,
    "total_epochs": 200.0,
    "views.name": "lightly_cifar",
    "model.stem_padding": 1,
    "model.projector": [2048, 2048],
    "model.projector_bias": False,
    "objective.lambd": 5e-3,
    "optim.name": "sgd",
    "optim.lr_weights": 0.12,
    "optim.lr_biases": 0.12,
    "optim.weight_decay": 5e-4,
    "optim.trust_coefficient": 0.001,
    "optim.clip": False,
    "optim.warmup_epochs": 0.0,
    "optim.by_epoch": True,
    "optim.start_factor": 0.0,
    "optim.grad_scale": 1.0,
}


@pytest.mark.parametrize(
    "config, recipe",
    [
        (pretrain_imagenet_r50.get_config(), PAPER),
        (pretrain_cifar10_r18.get_config(), SOLO),
        (pretrain_cifar10_r18.get_config("recipe=lightly"), LIGHTLY),
    ],
    ids=("paper", "solo", "lightly"),
)
def test_recipes_to_the_last_constant(config, recipe):
    """Written down a second time, so that no constant of a recipe changes by accident or with a default."""
    assert science(config) == recipe | unset_views()


def test_the_rate_follows_the_batch():
    config = pretrain_imagenet_r50.get_config("batch=256")
    assert (config.batch_size, config.optim.lr_weights, config.tuned_batch_size) == (256, 0.4, 256)


def test_batch_changed_behind_the_recipe_warns(capsys):
    config = pretrain_imagenet_r50.get_config()
    open_run.check_rate(config)
    assert not capsys.readouterr().err
    config.batch_size = 512
    open_run.check_rate(config)
    assert "tuned for a batch of 2048, not 512" in capsys.readouterr().err


@pytest.mark.parametrize(
    "warmup, extended, warns", [(10.0, 0.0, True), (2.0, 0.0, True), (1.5, 0.0, False), (2.0, 0.5, False)]
)
def test_a_warmup_that_the_run_does_not_outlast_warns(capsys, warmup, extended, warns):
    """Once."""
    config = pretrain_imagenet_r50.get_config("epochs=2")
    config.optim.warmup_epochs, config.extend_epochs = warmup, extended
    open_run.check_warmup(config)
    said = capsys.readouterr().err
    assert said.count("\n") == warns and (f"optim.warmup_epochs={warmup:g}, but the run has 2 epochs" in said) == warns


def test_views_are_set_key_by_key():
    config = pretrain_cifar10_r18.get_config()
    config.views.view2.blur, config.views.view1.crop_scale = 0.5, (0.3, 0.9)
    recipe, plain = build.build_recipe(config.views), build.build_recipe(pretrain_cifar10_r18.get_config().views)
    assert recipe.view2 == dataclasses.replace(plain.view2, blur=0.5)
    assert recipe.view1 == dataclasses.replace(plain.view1, crop_scale=(0.3, 0.9))
    assert same_run.differences(arguments.to_dict(pretrain_cifar10_r18.get_config()), arguments.to_dict(config)) == [
        "views.view1.crop_scale: None -> [0.3, 0.9]",
        "views.view2.blur: None -> 0.5",
    ]


def test_batch_outside_the_authors_table_has_the_rate_of_the_nearest(caplog, capsys):
    """And no warning: an error may have advised that batch."""
    caplog.set_level("WARNING", logger="absl")  # a program that ran before may have made it quieter
    assert [pretrain_imagenet_r50.nearest_rate(batch) for batch in (16, 200, 900, 9999)] == [0.7, 0.4, 0.25, 0.2]
    open_run.check_rate(pretrain_folder.get_config("batch=16"))
    assert not caplog.text and not capsys.readouterr().out


@pytest.mark.parametrize("config", [quickstart, pretrain_cifar10_r18, pretrain_folder, pretrain_imagenet_r50])
def test_one_recipe_for_any_method(config):
    """With recipe=common, its views and optimizer stay, but for the factor on the gradient."""
    name = config.__name__.rpartition(".")[2]
    common = "" if name == "quickstart" else ",recipe=common"
    plain, other = science(config.get_config()), science(config.get_config("method=moco" + common))
    changed = {"model.projector": [2048, 128], "model.projector_bias": True, "optim.grad_scale": 1.0}
    options = {"pretrain_cifar10_r18": {"queue": 4096, "momentum": 0.99, "temperature": 0.1}}
    options["quickstart"] = {"queue": 1024, "momentum": 0.97}
    keys = {"name": "moco", **registry.keys("moco"), **options.get(name, {})}
    kept = {key: value for key, value in plain.items() if not key.startswith("objective.")}
    assert other == kept | changed | {f"objective.{key}": value for key, value in keys.items()}
    assert plain["objective.name"] == "barlow_twins"


# Written down a second time: batch, epochs, optimizer, rate per 256 images, weight decay, epochs of warm-up, projector.
OWN = {
    (pretrain_cifar10_r18, "align_uniform"): (768, 200, "sgd", 0.12, 1e-4, 0, [4096, 4096, 128]),
    (pretrain_cifar10_r18, "byol"): (256, 1000, "lars", 1.0, 1e-5, 10, [4096, 256]),
    (pretrain_cifar10_r18, "direct_pred"): (128, 100, "sgd", 0.06, 4e-4, 0, [512, 128]),
    (pretrain_cifar10_r18, "drlim"): (256, 1000, "lars", 0.3, 1e-4, 10, [2048, 128]),
    (pretrain_cifar10_r18, "moco"): (512, 200, "sgd", 0.03, 5e-4, 0, [2048, 128]),
    (pretrain_cifar10_r18, "simclr"): (512, 1000, "lars", 1.0, 1e-4, 10, [2048, 2048, 128]),
    (pretrain_cifar10_r18, "simsiam"): (512, 800, "sgd", 0.03, 5e-4, 0, [2048, 2048]),
    (pretrain_cifar10_r18, "vicreg"): (256, 1000, "lars", 0.3, 1e-4, 10, [2048, 2048, 2048]),
    (pretrain_imagenet_r50, "byol"): (4096, 1000, "lars", 0.2, 1.5e-6, 10, [4096, 256]),
    (pretrain_imagenet_r50, "infonce"): (2048, 1000, "lars", 0.2, 1.5e-6, 10, [2048, 128]),
    (pretrain_imagenet_r50, "moco"): (256, 200, "sgd", 0.03, 1e-4, 0, [2048, 128]),
    (pretrain_imagenet_r50, "simclr"): (4096, 1000, "lars", 0.3, 1e-6, 10, [2048, 2048, 128]),
    (pretrain_imagenet_r50, "simsiam"): (512, 100, "sgd", 0.05, 1e-4, 0, [2048, 2048, 2048]),
    (pretrain_imagenet_r50, "vicreg"): (2048, 1000, "lars", 0.2, 1e-6, 10, [8192, 8192, 8192]),
    (pretrain_folder, "moco"): (256, 300, "sgd", 0.03, 1e-4, 0, [2048, 128]),
}


@pytest.mark.parametrize("config, method", OWN, ids=lambda each: each if isinstance(each, str) else "")
def test_the_own_recipe_of_a_method(config, method):
    chosen = config.get_config(f"method={method}")
    found, optim = science(chosen), chosen.optim
    rates = (optim.name, optim.lr_weights, optim.weight_decay, optim.warmup_epochs)
    assert (chosen.batch_size, chosen.total_epochs, *rates, found["model.projector"]) == OWN[config, method]
    assert optim.grad_scale == 1.0 and (optim.lr_biases == optim.lr_weights) == (
        method not in ("drlim", "infonce") or config is pretrain_cifar10_r18
    )
    assert (optim.by_epoch, optim.rate_in_momentum) == (method in ("moco", "simsiam"), method == "simclr")
    settings = pretrain_keys.read(chosen)
    registry.build(settings.objective).check_batch(settings.batch_size)


def test_views_and_batch_of_an_own_recipe():
    """Arguments of the user come after those of the method."""
    config = pretrain_cifar10_r18.get_config("method=moco,batch=256,epochs=9")
    assert (config.batch_size, config.total_epochs, config.optim.lr_weights) == (256, 9.0, 0.03)
    views = build.build_recipe(config.views)
    assert views.view1 == views.view2 == View(crop_scale=(0.2, 1.0), saturation=0.4, blur=0.0)
    views = build.build_recipe(pretrain_imagenet_r50.get_config("method=simclr").views)
    strong = {"brightness": 0.8, "contrast": 0.8, "saturation": 0.8, "hue": 0.2}
    assert views.view1 == views.view2 == View(blur=0.5, **strong)
    small = pretrain_folder.get_config("method=simclr,size=32").views
    assert small.view1.blur == small.view2.blur == 0.0 and small.view1.hue == 0.2


def test_the_folder_recipe_for_few_images():
    """The arguments of the user come after it. Other methods keep their projector, where it is no wider."""
    config = pretrain_folder.get_config("small")
    found, optim = science(config), config.optim
    assert (config.batch_size, config.tuned_batch_size, config.total_epochs, config.views.size) == (32, 32, 50, 64)
    assert (config.model.arch, config.model.width, config.model.dtype) == ("resnet18", 0.25, "float32")
    first = science(quickstart.get_config())
    same = ("model.projector", *(f"optim.{name}" for name in ("name", "lr_weights", "lr_biases", "weight_decay")))
    assert [found[key] for key in same] == [first[key] for key in same] and optim.warmup_epochs == 2
    chosen = pretrain_folder.get_config("small,epochs=9,size=96,method=moco")
    assert (chosen.total_epochs, chosen.views.size, chosen.model.small_images) == (9, 96, False)
    assert tuple(chosen.model.projector) == (512, 128) and chosen.batch_size == 32
    for method in ("moco", "simclr", "simsiam"):
        others = science(pretrain_folder.get_config(f"small,method={method}"))
        assert {key for key in found if key.startswith(("views.", "optim.")) and others[key] != found[key]} == set()
    assert pretrain_folder.get_config().model.width == 1.0


def test_a_recipe_is_read_without_jax():
    names = [path.stem for path in (ROOT / "bt_jax" / "configs").glob("*.py") if path.stem != "__init__"]
    lines = [f"from bt_jax.configs import {', '.join(names)}", *(f"{name}.get_config()" for name in names)]
    script = "; ".join(["import sys", *lines, "print('jax' in sys.modules)"])
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "False", done.stdout + done.stderr


def test_unknown_recipe():
    with pytest.raises(UserError, match="recipe='swav'"):
        pretrain_cifar10_r18.get_config("recipe=swav")


@pytest.fixture(params=["tiny", pytest.param("", marks=pytest.mark.slow, id="as_it_is")])
def with_arch(request):
    """with_arch(config): the config with the smallest net, or as it is."""

    def change(config):
        config.model.arch = request.param or config.model.arch
        return config

    return change


def test_cifar_smoke(tfds_dir, tmp_path, with_arch):
    config = with_arch(pretrain_cifar10_r18.get_config("smoke"))
    config.data.dir, config.stop_after_steps = str(tfds_dir), 2
    config.evals.every_epochs = 0.0  # the quickstart's tests are of the monitors
    assert read_lines(pretrain.run(config, str(tmp_path / "run")))[-1]["step"] == 2


def test_own_gray_images_without_labels(tmp_path, monkeypatch, with_arch):
    """A folder of 16-bit PNGs of several sizes, one of them no image: streamed, one channel, unlabelled monitors."""
    pytest.importorskip("tensorflow")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    images, rng = tmp_path / "images" / "scan", np.random.default_rng(0)
    images.mkdir(parents=True)
    for i in range(65):
        Image.fromarray(rng.integers(0, 2**16, (12 + i % 9, 20), np.uint16)).save(images / f"{i:03d}.png")
    (images / "040.png").write_text("no image")
    config = with_arch(pretrain_folder.get_config("smoke,size=16,gray"))
    config.data.folder, config.total_epochs, config.data.broken_limit = str(tmp_path / "images"), 1.0, 0.05
    run = pretrain.run(config, str(tmp_path / "run"))
    last = read_lines(run)[-1]
    assert last["step"] == 4 and "val/knn_top1" not in last and last["val/rank"] >= 1
    (line,) = (run / "broken.txt").read_text().splitlines()
    assert line.startswith(f"{images / '040.png'}: the image cannot be read (cannot identify image file")
    net, variables = bt_jax.load_encoder(run)
    assert variables["params"]["conv1"]["kernel"].shape[2] == 1 and (run / "report.html").exists()


def test_imagenet_smoke_streams(tfds_dir, tmp_path, with_arch):
    config = with_arch(pretrain_imagenet_r50.get_config("smoke"))
    config.data.dir = str(tfds_dir)
    config.total_epochs, config.evals.every_epochs, config.evals.spectrum_images = 0.5, 0.5, 0
    folder = pretrain.run(config, str(tmp_path / "run"))
    assert "val/knn_top1" in read_lines(folder)[-1] and (folder / "report.html").exists()
