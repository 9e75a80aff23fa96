"""The encoder that a task starts from, and the data and views of the run that trained it."""

import os
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from bt_jax import compilers, messages, models, storage
from bt_jax.augment import recipes
from bt_jax.config import keys
from bt_jax.config.encoder_tasks import EncoderViews, FromEncoder
from bt_jax.data.sources import orientation
from bt_jax.data.sources.base import Source
from bt_jax.data.sources.image_folder import FolderSource
from bt_jax.data.sources.selection import MIXED
from bt_jax.messages import UserError
from bt_jax.models import Net
from bt_jax.weights import foreign_files, load

# Keys that apply to another folder too
FOLDER_KEYS = ("train_split", "val_split", "on_device", "canvas", "exif_orientation")
DATA_KEYS = ("name", "dir", "folder", "npz", *FOLDER_KEYS)
TRAINED = ("pretrain", "finetune")  # tasks whose runs have an encoder
HELD_OUT = ("test", "val", "valid", "validation")  # splits of a folder; the first one that it has is held out


class Encoder(NamedTuple):
    """A backbone with its weights, {"params", "batch_stats"}, and the mean and std of its images per channel."""

    net: Net
    variables: dict[str, Any]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def encoder(self) -> dict[str, Any]:
        """The variables. `TrainState` has the same method, so that evaluators accept both classes."""
        return self.variables


def open_encoder(settings: FromEncoder, *, dtype: str = "float32") -> Encoder:
    """The encoder of `settings.encoder`, or with `scratch` its architecture with new weights, drawn by the seed.

    Raises:
      UserError: the encoder is missing, or has another architecture than `settings.arch`.
    """
    model, variables, _ = load.read(settings.encoder)
    arch = model["build"]["arch"]
    if settings.arch and settings.arch != arch:
        raise UserError(f"{settings.encoder} is a {arch}, not a {settings.arch}", f"Set --config.arch={arch}.")
    net = models.build(**model["build"] | {"dtype": jnp.dtype(dtype).name})
    if settings.scratch:
        with messages.during("compiling the initial weights of the encoder"):
            variables = jax.device_get(compilers.jit(net.init, runs_once=True)(jax.random.key(settings.seed)))
    return Encoder(net, variables, *(tuple(getattr(settings.views, name) or model[name]) for name in ("mean", "std")))


def complete(config: ConfigDict) -> ConfigDict:
    """Fills in the settings of data and views that the config leaves open, from the run of the encoder.

    For a folder that the config names, `_known_of_folder` has the settings of data.

    Raises:
      UserError: no encoder is named, or it is missing; or neither the config nor the encoder's run names a data set.
    """
    if not config.encoder:
        raise UserError("No encoder is named", "Set --config.encoder to a run folder or one of its checkpoints.")
    config = ConfigDict(config.to_dict())
    run = _run_config(config)
    known: dict[str, Any] = {}
    if config.data.folder:
        known = _known_of_folder(config.data.folder, run)
    elif not (config.data.name or config.data.npz):
        if run is None:
            load.read_model(config.encoder)  # missing weights, or another kind of file, are the first mistake
            raise UserError(
                f"No data set is named, and {config.encoder} has no config.json of a run, which would name one",
                "Set --config.data.folder=IMAGES, --config.data.npz=FILE or --config.data.name=NAME.",
            )
        known = _known_of_run(run)
    neutral = {"evaluate": keys.evaluate, "finetune": keys.finetune}[config.task]().data
    open_keys = [key for key in DATA_KEYS if key in known and config.data[key] == neutral[key]]
    config.data.update({key: known[key] for key in open_keys})
    if not config.views.size:
        size, resize = load.known_size(config.encoder, run or {})
        config.views.size = size or load.SIZE
        config.evals.resize = config.evals.resize or resize
    return config


def say_size(config: ConfigDict) -> None:
    """Says that the size of the images is a default, if neither the config nor the encoder has one.

    The tasks call it after the checks of the run folder and the images.

    Args:
      config: the config before `complete`.
    """
    if not config.views.size and not load.known_size(config.encoder, _run_config(config) or {})[0]:
        messages.say(
            f"images of {load.SIZE} pixels, because {config.encoder} names no size; --config.views.size changes it"
        )


def _known_of_run(run: dict) -> dict[str, Any]:
    return {"exif_orientation": orientation.IGNORE} | run["data"]  # for runs from before this key


def _known_of_folder(folder: str, run: dict | None) -> dict[str, Any]:
    """The settings of data for a named folder: those of the encoder's run, or streaming and the folder's own splits.

    Those of the run apply if it was on a folder too and the named folder has the splits of the run. There is one
    exception: the named folder is another one and has a held-out split, but the run held out nothing, or a part of its
    training split. Then the held-out split of the named folder is used.
    """
    root = storage.local_path(folder)
    if not root.is_dir():
        return {}  # an error of `feeds.open_data`
    splits = FolderSource(root).splits
    own = next((split for split in HELD_OUT if split in splits), "")
    before = run["data"] if run else {}
    if before.get("folder"):
        train, val = (
            {part.partition("[")[0].strip().removesuffix(MIXED) for part in before[key].split("+") if part}
            for key in ("train_split", "val_split")
        )
        is_the_same = storage.absolute_text(folder) == before["folder"]
        if train | val <= splits.keys() and (is_the_same or not own or not val <= train):
            return {key: value for key, value in _known_of_run(run).items() if key in FOLDER_KEYS}
    return {"on_device": False} | ({"val_split": own} if own else {})


def about_images(settings: FromEncoder, source: Source) -> str:
    """The data set with its splits, for the first line of a task."""
    val = settings.data.val_split
    return f"{source.name}, split {settings.data.train_split}" + (f", held-out split {val}" if val else "")


def _run_config(config: ConfigDict) -> dict | None:
    """config.json of the run whose folder, or checkpoint, is `config.encoder`; None if it is not in a run folder.

    Raises:
      UserError: the file is damaged, and the config lacks the images or their size.
    """
    path = storage.parse_path(config.encoder)
    for folder in (path, storage.absolute(path).parent.parent):
        file = folder / "config.json"
        try:
            found = storage.read_json(file) if os.fspath(folder) != "gs://" else None
            if found is not None and found.get("task") in TRAINED and not isinstance(found.get("data"), dict):
                raise ValueError("it names no data")
        except ValueError:
            named = config.data.folder or config.data.name or config.data.npz
            # Nothing is needed from the file, or it is the config.json of another program.
            if named and config.views.size or foreign_files.is_foreign(config.encoder):
                return None
            load.weights_path(config.encoder)  # missing weights are the first mistake to correct
            raise UserError(
                f"{file} is damaged",
                "Restore a copy of it, or name the images and their size, such as"
                " --config.data.folder=IMAGES --config.views.size=PIXELS.",
            ) from None
        if found is not None:
            return found if found.get("task") in TRAINED else None
    return None


def view_recipe(views: EncoderViews, encoder: Encoder, **view: Any) -> recipes.Recipe:
    """A crop and a flip with torchvision's defaults, as in the reference's evaluate.py; `view` overrides fields."""
    plain = {"jitter": 0.0, "grayscale": 0.0, "blur": 0.0, "interpolation": "bilinear"}
    one = recipes.View(**plain | view)
    return recipes.Recipe(views.size, one, one, encoder.mean, encoder.std)
