"""Every key of a config with its default.

Keys carry their unit (`_epochs`, `_steps`); learning rates are per 256 images and are multiplied by batch_size / 256.
"""

import dataclasses
import inspect
import math

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from bt_jax.augment import recipes
from bt_jax.config import arguments
from bt_jax.messages import UserError

SEEDS = 2**32  # of a larger seed JAX takes the lower 32 bits alone, without a word


def _run(task: str) -> ConfigDict:
    """Keys that every task has."""
    config = ConfigDict()
    config.task = task  # "pretrain", "evaluate" or "finetune"
    config.seed = 0  # of initial weights, views and the order of images
    config.batch_size = 256  # global: over all devices of all processes
    config.total_epochs = 100.0  # passes over the training images; a fraction counts
    config.extend_epochs = 0.0  # so many more than total_epochs: the one change of schedule that a begun run accepts
    config.stop_after_steps = 0  # > 0: end here, with the schedule of the whole run; the same command goes on
    config.nonfinite_limit = 10  # stop after so many steps in a row whose loss or gradient is not finite
    config.platform = "any"  # "cpu", "gpu", "tpu": refuse to run on anything else
    config.devices = 0  # > 0: refuse to run on any other number of devices
    config.self_check = True  # compare what this machine computes with stored numbers first; see bt_jax.selfcheck
    config.watch = ConfigDict()
    config.watch.stuck_seconds = 3600.0  # without a step: tell why and end; 0: never
    config.watch.silent_seconds = 60.0  # without a sign of life of another process: it is gone, end
    config.compile_cache = "auto"  # folder of compiled programs; "auto": the user's cache folder, "": none

    config.data = ConfigDict()
    config.data.name = "patterns"  # "patterns" (embedded) or a TFDS name
    config.data.dir = ""  # TFDS folder; "": $TFDS_DATA_DIR or ~/tensorflow_datasets
    config.data.folder = ""  # a folder of images instead, labelled by sub-folder or not at all; the name is then free
    config.data.npz = ""  # read this cache, written by `python -m bt_jax.prepare`, and no TensorFlow
    config.data.broken_limit = 0.01  # share of unreadable images up to which a run goes on; they are named and listed
    config.data.train_split = "train"  # a split of the data set
    config.data.val_split = "test"  # "": no held-out images, no monitors
    config.data.on_device = True  # the whole set on the device as uint8; False: streamed by tf.data
    config.data.canvas = 512  # streamed images are decoded onto a square of so many pixels
    config.data.shuffle_buffer = 0  # streamed only: 0: a permutation where storage allows; else a window of images

    config.log = ConfigDict()
    config.log.every_steps = 50  # also the steps a dispatch where the data is on the device
    config.log.tensorboard = True  # also write TensorBoard files

    config.checkpoint = ConfigDict()
    config.checkpoint.every_epochs = 10.0  # 0: only at the end
    config.checkpoint.keep_last = 2  # number of newest checkpoints to keep
    config.checkpoint.keep_every_epochs = 0.0  # > 0: these stay for good
    return config


def pretrain() -> ConfigDict:
    """All keys of `task = "pretrain"`. The values are neutral defaults; recipes live in `configs/`."""
    config = _run("pretrain")
    config.tuned_batch_size = 0  # > 0: the learning rates are for this batch; another one gets a warning
    config.init_from = ""  # weights to begin with: a run folder, a checkpoint, or what bt_jax.convert reads

    config.views = ConfigDict()
    config.views.name = "cifar"  # a recipe of bt_jax.augment.recipes.RECIPES
    config.views.size = 32  # pixels
    config.views.mean = placeholder(tuple)  # per channel, of pixels in [0, 1]; one number: images of one channel
    config.views.std = placeholder(tuple)  # per channel, as mean
    config.views.view1 = _view()  # what differs from the recipe, e.g. --config.views.view1.blur=0.5; see recipes.View
    config.views.view2 = _view()  # the same of the second view

    config.model = ConfigDict()
    config.model.arch = "resnet18"  # "resnet18", "resnet50", ...; see bt_jax.models
    config.model.width = 1.0  # factor on every number of channels
    config.model.small_images = True  # 3x3 stride-1 stem, no max-pool
    config.model.stem_padding = 1  # of the 3x3 stem, in pixels; solo-learn's recipe has 2
    config.model.zero_init_residual = True  # each block begins as its shortcut
    config.model.projector = (2048, 2048, 2048)  # outputs of each layer; the last is the embedding
    config.model.projector_bias = False  # biases in its linear layers
    config.model.projector_sharding = "replicated"  # or "sharded": the projector split over the devices by feature
    config.model.dtype = "bfloat16"  # of the convolutions; parameters, statistics and loss are float32

    config.objective = ConfigDict()  # of Barlow Twins; `objectives.registry.keys` gives those of another method
    config.objective.name = "barlow_twins"  # one of bt_jax.objectives.NAMES
    config.objective.lambd = 0.0051  # weight of the off-diagonal term
    config.objective.form = "auto"  # "covariance", "gram": the same number; "auto" takes the cheaper
    config.objective.two_passes = True  # each view its own batch statistics, as in the reference; False: both at once

    config.optim = ConfigDict()
    config.optim.name = "lars"  # "lars", "sgd", "adamw"
    config.optim.lr_weights = 0.2  # per 256 images
    config.optim.lr_biases = 0.0048  # per 256 images
    config.optim.weight_decay = 1.5e-6  # of LARS and AdamW on kernels alone; of SGD on all parameters
    config.optim.momentum = 0.9  # of LARS and SGD; AdamW has optax's constants
    config.optim.trust_coefficient = 0.001  # eta of LARS
    config.optim.clip = False  # cut the trust ratio of LARS at 1, as solo-learn does for small data sets
    config.optim.warmup_epochs = 10.0  # linear rise of the rates; half a cosine follows
    config.optim.start_factor = 0.0  # rate at the first step, as a factor
    config.optim.end_factor = 0.001  # rate at the last step, as a factor
    config.optim.grad_scale = 1.0  # the gradient is multiplied by it; the loss that is shown is not

    config.probe = ConfigDict()  # linear classifier on detached features, trained alongside
    config.probe.lr = 0.1  # per 256 images
    config.probe.momentum = 0.9  # of its SGD
    config.probe.weight_decay = 0.0  # on all its parameters

    config.evals = ConfigDict()
    config.evals.every_epochs = 10.0  # kNN and the online probe on held-out images; 0: never
    config.evals.batch_size = 500  # global
    config.evals.size = 0  # pixels of the view that is evaluated; 0: views.size
    config.evals.resize = 0  # > 0: shorter side to this, then a centre crop, as for ImageNet
    config.evals.train_images = 0  # so many training images are the neighbours; 0: all
    config.evals.val_images = 0  # so many held-out images are classified; 0: all
    config.evals.spectrum_images = 2000  # so many images tell rank, spectrum, alignment, ... without labels; 0: none
    config.evals.knn_k = 200  # number of neighbours that vote
    config.evals.knn_temperature = 0.1  # a neighbour of cosine similarity s has the weight exp(s / this)
    config.evals.final = True  # at the end: kNN and linear probe of trained, untrained and raw pixels; the report
    return config


def _encoder_task(task: str) -> ConfigDict:
    """Keys of the tasks that start from an encoder."""
    config = _run(task)
    config.encoder = ""  # a run folder, one of its checkpoints/STEP, or weights that bt_jax.convert reads
    config.scratch = False  # its architecture with new weights instead: what it is to be compared with
    config.arch = ""  # refuse an encoder of any other architecture, e.g. "resnet50"
    config.data.name = ""  # "": with the rest of the data and of the views, as in the encoder's run folder

    config.views = ConfigDict()
    config.views.size = 0  # pixels; 0: as in the encoder's run folder, or 224
    config.views.mean = placeholder(tuple)  # per channel, of pixels in [0, 1]; by default what the encoder had
    config.views.std = placeholder(tuple)  # per channel, as mean

    config.evals = ConfigDict()
    config.evals.batch_size = 500  # global
    config.evals.resize = 0  # > 0: shorter side to this, then a centre crop of views.size, as for ImageNet
    config.evals.train_images = 0  # of so many training images the features are taken; 0: all
    config.evals.val_images = 0  # so many held-out images are classified; 0: all
    return config


def evaluate() -> ConfigDict:
    """All keys of `task = "evaluate"`: protocols on frozen features."""
    config = _encoder_task("evaluate")
    config.protocols = ("knn", "linear", "spectrum")  # of these, and "svm" for images with several labels
    config.evals.knn_k = (200, 20)  # the first is the headline
    config.evals.knn_temperature = (0.1, 0.07)  # each k votes with each of them
    config.evals.linear_epochs = 30  # epochs of the linear probe
    config.evals.spectrum_images = 10_000  # 0: all
    return config


def finetune() -> ConfigDict:
    """All keys of `task = "finetune"`: a linear classifier on top, alone or with the encoder, by gradient descent."""
    config = _encoder_task("finetune")
    config.train = "head"  # "all", or parts of the backbone such as "layer4" or "layer3,layer4"
    config.batch_norm = "auto"  # "train": batch statistics; "eval": running ones; "auto": "train" for "all" alone
    config.data.fraction = 1.0  # share of the training images, of each class the same, e.g. 0.01
    config.views.crop_scale = (0.08, 1.0)  # share of an image's area in a training crop
    config.views.flip = 0.5  # probability
    config.model = ConfigDict()
    config.model.dtype = "bfloat16"  # of the convolutions; parameters, statistics and loss are float32

    config.optim = ConfigDict()  # SGD; rates are not scaled by the batch, as in the reference's evaluate.py
    config.optim.lr_head = 0.3  # of the classifier
    config.optim.lr_backbone = 0.0  # of the trained parts of the backbone
    config.optim.momentum = 0.9  # of SGD
    config.optim.nesterov = False  # Nesterov's momentum
    config.optim.weight_decay = 1e-6  # on all trained parameters
    config.optim.schedule = "cosine"  # once an epoch, to zero; "drops": by drop_factor after each of drop_epochs
    config.optim.drop_epochs = ()  # epochs after which "drops" lowers the rate
    config.optim.drop_factor = 0.1  # factor of each drop

    config.evals.every_epochs = 10.0  # held-out accuracy while it trains; at the end always
    return config


def _view() -> ConfigDict:
    """Every field of a view, unset."""
    return ConfigDict({field.name: placeholder(type(field.default)) for field in dataclasses.fields(recipes.View)})


def describe() -> str:
    """Every key with its default and the comment beside it, one a line."""
    lines = []
    source = "".join(map(inspect.getsource, (_run, pretrain, _encoder_task, evaluate, finetune)))
    for line in source.splitlines():
        if line.startswith("def ") and not line.startswith("def _run"):
            name = line.removeprefix("def ").partition("(")[0]
            lines.append(f"\n  {'tasks that start from an encoder' if name == '_encoder_task' else f'task {name}'}:")
        key, equals, rest = line.strip().partition(" = ")
        if equals and key.startswith("config.") and "ConfigDict()" not in rest:
            default, _, comment = rest.partition("  # ")
            if default == "placeholder(tuple)":
                default = "(the recipe's)"
            if default == "_view()":
                key, default = f"{key}.FIELD", "(the recipe's)"
            lines.append(f"  --{key}={default}".ljust(42) + "  " + comment)
    return "\n".join(lines)


def check(config: ConfigDict) -> None:
    """Raises UserError for values no run can have, before anything is compiled."""
    one_of = {
        "platform": ("any", "cpu", "gpu", "tpu"),
        "objective.form": ("auto", "covariance", "gram"),
        "optim.name": ("lars", "sgd", "adamw"),
        "optim.schedule": ("cosine", "drops"),
        "batch_norm": ("auto", "train", "eval"),
        "model.dtype": ("bfloat16", "float32"),
        "model.projector_sharding": ("replicated", "sharded"),
    }
    flat = arguments.flatten(arguments.to_dict(config))
    if flat.get("objective.name") != "barlow_twins":
        del one_of["objective.form"]  # another method may have a key of this name
    for key in one_of.keys() & flat.keys():
        arguments.choose(f"config.{key}", flat[key], one_of[key])
    for key in ("batch_size", "total_epochs", "evals.batch_size", "log.every_steps"):
        if flat[key] <= 0:
            raise UserError(f"config.{key}={flat[key]} must be positive", f"Set --config.{key} to a positive number.")
    for key, value in flat.items():
        numbers = value if isinstance(value, list) else [value]
        if any(isinstance(each, float) and not math.isfinite(each) for each in numbers):
            raise UserError(f"config.{key}={value} is not finite", f"Set --config.{key} to a finite number.")
    if not 0 <= config.seed < SEEDS:
        raise UserError(f"config.seed={config.seed} is no seed", f"Set --config.seed to one of 0 ... {SEEDS - 1}.")
    for key in ("views.size", "evals.knn_k"):
        if config.task == "pretrain" and flat[key] <= 0:
            raise UserError(f"config.{key}={flat[key]} must be positive", f"Set --config.{key} to a positive number.")


def shrink(config: ConfigDict, *, train_split: str, val_split: str) -> ConfigDict:
    """The `:smoke` form of a config: the same program on few images with a narrow net, in seconds on a CPU."""
    config.batch_size, config.tuned_batch_size = 16, 0
    config.total_epochs = 2.0
    config.data.train_split, config.data.val_split = train_split, val_split
    config.model.width = 0.125
    config.model.projector = (64, 64, 64)
    config.model.dtype = "float32"
    config.optim.warmup_epochs = 0.5
    config.evals.every_epochs = 1.0
    config.evals.batch_size = 32
    config.evals.spectrum_images = 64
    config.evals.knn_k = 20
    config.log.every_steps = 2
    config.checkpoint.every_epochs = 1.0
    return config


def shrink_finetune(config: ConfigDict) -> ConfigDict:
    """The `:smoke` form of a config that fine-tunes."""
    config.batch_size, config.total_epochs = 16, 2.0
    config.data.fraction = 0.01
    config.model.dtype = "float32"
    config.evals.every_epochs = 1.0
    config.evals.batch_size = 32
    config.evals.val_images = 64
    return config
