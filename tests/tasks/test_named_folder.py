"""A folder that the command names for an encoder: which settings of the encoder's run apply to it."""

import json

import pytest

from bt_jax import storage
from bt_jax.config import keys
from bt_jax.configs import pretrain_folder
from bt_jax.tasks import from_encoder
from bt_jax.tasks.from_encoder import complete
from tests.support.drawn_images import Listed, write_images
from tests.support.runs import changed

CUT = "train.mixed[:80%]", "train.mixed[80%:]"


@pytest.fixture
def encoder(tmp_path, monkeypatch):
    """encoder(recipe, **data): a run folder with the config of the folder recipe, on TMP/photos unless data differs."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def write(recipe, **data):
        config = pretrain_folder.get_config(recipe)
        data = {"folder": storage.absolute_text(str(tmp_path / "photos")), "canvas": 48} | data
        changed(config, **{f"data.{key}": value for key, value in data.items()})
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "config.json").write_text(json.dumps(config.to_dict()))
        return str(tmp_path / "run")

    return write


def folder(tmp_path, name, *places):
    write_images(tmp_path / name, *(f"{place}/0.png" for place in places))
    return {"data.folder": str(tmp_path / name)}


def completed(task, encoder, values):
    """(train_split, val_split, on_device, canvas) of a completed config."""
    data = complete(changed(task(), encoder=encoder, **values)).data
    return data.train_split, data.val_split, data.on_device, data.canvas


CLASSES = "a", "b"


@pytest.mark.parametrize("task", [keys.evaluate, keys.finetune])
@pytest.mark.parametrize(
    "recipe, name, places, wanted",
    [
        ("val=20%", "photos", CLASSES, (*CUT, False, 48)),  # the run's own folder, spelt out
        ("val=20%", "photos", ("train/a", "val/a"), (*CUT, False, 48)),
        ("val=20%", "moved", CLASSES, (*CUT, False, 48)),
        ("val=valid", "moved", ("train/a", "valid/a", "test/a"), ("train", "valid", False, 48)),
        ("val=20%", "lab", ("train/a", "val/a"), ("train", "val", False, 512)),
        ("", "lab", ("train/a", "validation/a"), ("train", "validation", False, 512)),
        ("", "moved", CLASSES, ("train", "", False, 48)),
        ("val=val", "lab", ("train/a", "valid/a"), ("train", "valid", False, 512)),  # which lacks the run's split
        ("val=val", "lab", CLASSES, ("train", "test", False, 512)),  # refused, by a message that names the keys
    ],
)
def test_the_run_was_on_a_folder(tmp_path, encoder, task, recipe, name, places, wanted):
    """Its settings apply to a folder that has its splits, unless another folder has a held-out split of its own."""
    assert completed(task, encoder(recipe), folder(tmp_path, name, *places)) == wanted


@pytest.mark.parametrize("held_out", ["val", "valid", "validation", "test"])
def test_the_run_was_on_no_folder(tmp_path, encoder, held_out):
    """The images of a folder differ in size, so they are streamed; the held-out split is the one that is there."""
    run = encoder("", folder="", name="cifar10", on_device=True, train_split="train[:64]")
    lab = folder(tmp_path, "lab", "train/a", f"{held_out}/a")
    assert completed(keys.finetune, run, lab) == ("train", held_out, False, 512)
    (tmp_path / "run" / "config.json").unlink()  # an encoder without a run
    assert completed(keys.finetune, run, lab) == ("train", held_out, False, 512)


def test_splits_of_the_command_are_kept(tmp_path, encoder):
    lab = folder(tmp_path, "lab", "train/a", "val/a", "test/a", "extra/a")
    run = encoder("val=20%")
    assert completed(keys.evaluate, run, lab | {"data.val_split": "extra"})[:2] == ("train", "extra")
    assert completed(keys.evaluate, run, lab | {"data.val_split": "test"})[:2] == ("train", "test")


def test_photographs_of_another_folder_are_upright(tmp_path, encoder):
    """Those of the run keep its orientation."""
    run = encoder("val=20%", exif_orientation="ignore")
    for name, places, orientation in (("moved", CLASSES, "ignore"), ("lab", ("train/a", "val/a"), "auto")):
        config = changed(keys.evaluate(), encoder=run, **folder(tmp_path, name, *places))
        assert complete(config).data.exif_orientation == orientation


def test_a_missing_folder_is_left_to_the_reader(tmp_path, encoder):
    """Its error names the folder."""
    nowhere = {"data.folder": str(tmp_path / "nowhere")}
    assert completed(keys.evaluate, encoder("val=20%"), nowhere)[:2] == ("train", "test")


def test_the_first_line_has_the_splits():
    config = changed(keys.evaluate(), **{"data.name": "x", "data.val_split": "val"})
    assert from_encoder.about_images(keys.read(config), Listed([])) == "listed, split train, held-out split val"
    config.data.val_split = ""
    assert from_encoder.about_images(keys.read(config), Listed([])) == "listed, split train"
