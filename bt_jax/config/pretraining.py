"""Every key of pretraining."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from bt_jax.augment import recipes
from bt_jax.config.sections import Data, Evals, Run, Section, key
from bt_jax.messages import UserError

_VIEW = {field.name: None for field in dataclasses.fields(recipes.View)}  # unset: as in the recipe


@dataclasses.dataclass(frozen=True)
class PretrainData(Data):
    """The images of pretraining."""

    labels: bool = key(True, "False: leave out the labels, for folders that are no classes; no probe, no kNN")


@dataclasses.dataclass(frozen=True)
class Views(Section):
    """The augmentation."""

    PATH, POSITIVE = "views.", ("size", "std")

    name: str = key("cifar", "a recipe of bt_jax.augment.recipes.RECIPES")
    size: int = key(32, "pixels of a view")
    mean: tuple | None = key(None, "per channel, of pixels in [0, 1]; one number: gray images. Default: the recipe's")
    std: tuple | None = key(None, "standard deviation per channel, as mean")
    view1: Mapping[str, Any] = dataclasses.field(
        default_factory=_VIEW.copy, metadata={"help": "changes to the recipe's first view; fields of recipes.View"}
    )
    view2: Mapping[str, Any] = dataclasses.field(
        default_factory=_VIEW.copy, metadata={"help": "changes to the recipe's second view; fields of recipes.View"}
    )


@dataclasses.dataclass(frozen=True)
class Model(Section):
    """The backbone and the projector."""

    PATH, POSITIVE = "model.", ("width", "projector")
    CHOICES: ClassVar = {"dtype": ("bfloat16", "float32"), "projector_sharding": ("replicated", "sharded")}

    arch: str = key("resnet18", '"resnet18", "resnet50", ...; see bt_jax.models')
    width: float = key(1.0, "factor on every number of channels")
    small_images: bool = key(True, "3x3 stride-1 stem, no max-pool")
    stem_padding: int = key(1, "pixels of padding of the 3x3 stem; solo-learn's recipe has 2")
    zero_init_residual: bool = key(True, "each block starts as its shortcut")
    projector: tuple = key((2048, 2048, 2048), "outputs of each layer; the last is the embedding")
    projector_bias: bool = key(False, "biases in the projector's linear layers")
    projector_sharding: str = key("replicated", '"sharded": the devices share the projector by feature')
    dtype: str = key("bfloat16", "of the convolutions; parameters, statistics and loss are float32")


@dataclasses.dataclass(frozen=True)
class Optim(Section):
    """The optimizer of backbone and heads."""

    PATH, CHOICES = "optim.", {"name": ("lars", "sgd", "adamw", "larc", "adam")}
    POSITIVE, FRACTIONS = ("trust_coefficient", "grad_scale"), ("momentum",)

    name: str = key("lars", '"lars", "sgd", "adamw", "larc" (SGD with trust ratios) or "adam"')
    lr_weights: float = key(0.2, "per 256 images, of kernels")
    lr_biases: float = key(0.0048, "per 256 images, of biases and batch norm")
    weight_decay: float = key(1.5e-6, "of kernels for LARS and AdamW, of all parameters for SGD, LARC and Adam")
    momentum: float = key(0.9, "of LARS, SGD and LARC; AdamW and Adam have optax's constants")
    trust_coefficient: float = key(0.001, "eta of LARS and LARC")
    clip: bool = key(False, "limit the trust ratio of LARS to 1, as solo-learn does for small data sets")
    rate_in_momentum: bool = key(False, "LARS multiplies by the rate before the momentum, as in SimCLR's code")
    warmup_epochs: float = key(10.0, "linear rise of the rates; half a cosine follows")
    by_epoch: bool = key(False, "change the rates at the start of an epoch, not in every step; for MoCo and SimSiam")
    start_factor: float = key(0.0, "rate at the first step, as a factor of the peak")
    end_factor: float = key(0.001, "rate at the last step, as a factor of the peak")
    grad_scale: float = key(1.0, "factor on the gradient; the logged loss does not change")


@dataclasses.dataclass(frozen=True)
class Probe(Section):
    """The online probe: a linear classifier on detached features, trained alongside."""

    PATH, FRACTIONS = "probe.", ("momentum",)

    lr: float = key(0.1, "per 256 images")
    momentum: float = key(0.9, "of its SGD")
    weight_decay: float = key(0.0, "on all its parameters")


@dataclasses.dataclass(frozen=True)
class PretrainEvals(Evals):
    """Evaluation of pretraining."""

    POSITIVE = (*Evals.POSITIVE, "knn_k", "knn_temperature")

    every_epochs: float = key(10.0, "epochs between two evaluations by kNN and the online probe; 0: never")
    size: int = key(0, "pixels of the image that is evaluated; 0: views.size")
    spectrum_images: int = key(2000, "number of images for the label-free metrics (rank, spectrum, ...); 0: skip them")
    knn_k: int = key(200, "number of neighbours that vote")
    knn_temperature: float = key(0.1, "a neighbour of cosine similarity s has the weight exp(s / this)")
    final: bool = key(True, "at the end, evaluate trained and untrained encoder and raw pixels for the report")


@dataclasses.dataclass(frozen=True)
class Pretrain(Run):
    """Keys of `task = "pretrain"`. The values are neutral defaults; recipes are in configs/."""

    task: str = key("pretrain", "the config file sets it")
    tuned_batch_size: int = key(0, "the batch size that the learning rates are for; another one gets a warning. 0: any")
    init_from: str = key("", "initial weights: a run folder, a checkpoint, or a file that bt-jax convert reads")
    data: PretrainData = dataclasses.field(default_factory=PretrainData)
    views: Views = dataclasses.field(default_factory=Views)
    model: Model = dataclasses.field(default_factory=Model)
    objective: Mapping[str, Any] = dataclasses.field(
        default_factory=lambda: {"name": "barlow_twins", "lambd": 0.0051, "form": "auto", "two_passes": True},
        metadata={
            "help": "the method: its name, one of bt_jax.objectives.NAMES, and its options; docs/methods.md",
            "keys": {
                "name": "one of bt_jax.objectives.NAMES; the other keys here are those of barlow_twins",
                "lambd": "weight of the off-diagonal term",
                "form": '"covariance" or "gram": the same number; "auto" takes the cheaper',
                "two_passes": "each view has its own batch statistics, as in the reference; False: both share them",
            },
        },
    )
    optim: Optim = dataclasses.field(default_factory=Optim)
    probe: Probe = dataclasses.field(default_factory=Probe)
    evals: PretrainEvals = dataclasses.field(default_factory=PretrainEvals)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.batch_size == 1:
            raise UserError(
                "config.batch_size=1 leaves batch norm and the loss without statistics",
                "Set --config.batch_size=2 or more.",
            )
