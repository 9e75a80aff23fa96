"""Every key of the tasks that start from an encoder: evaluation and fine-tuning."""

import dataclasses
from typing import ClassVar

from bt_jax.config.sections import Data, Evals, Run, Section, key


@dataclasses.dataclass(frozen=True)
class EncoderData(Data):
    """The images, by default those of the encoder's run."""

    name: str = key(
        "", '"": the data set of the encoder\'s run, with its folder, splits, canvas and orientation if unset'
    )


@dataclasses.dataclass(frozen=True)
class EncoderViews(Section):
    """The images that the encoder sees."""

    PATH, POSITIVE = "views.", ("std",)

    size: int = key(0, "pixels; 0: as in the encoder's run folder or its export, or 224")
    mean: tuple | None = key(None, "per channel, of pixels in [0, 1]. Default: the encoder's")
    std: tuple | None = key(None, "standard deviation per channel, as mean")


@dataclasses.dataclass(frozen=True)
class FromEncoder(Run):
    """Keys of the tasks that start from an encoder."""

    encoder: str = key("", "a run folder, one of its checkpoints/STEP, or weights that bt-jax convert reads")
    scratch: bool = key(False, "use random weights of the same architecture, as a baseline")
    arch: str = key("", 'refuse an encoder of any other architecture, such as "resnet50"')
    data: EncoderData = dataclasses.field(default_factory=EncoderData)
    views: EncoderViews = dataclasses.field(default_factory=EncoderViews)


@dataclasses.dataclass(frozen=True)
class EvaluateEvals(Evals):
    """Options of the protocols."""

    POSITIVE = (*Evals.POSITIVE, "knn_k", "knn_temperature", "linear_epochs")

    knn_k: tuple = key((200, 20), "numbers of neighbours that vote; the first is the headline")
    knn_temperature: tuple = key((0.1, 0.07), "each k votes with each of them")
    linear_epochs: int = key(30, "epochs of the linear probe")
    spectrum_images: int = key(10_000, "number of images for the label-free metrics; 0: all")


@dataclasses.dataclass(frozen=True)
class Evaluate(FromEncoder):
    """Keys of `task = "evaluate"`: protocols on frozen features."""

    task: str = key("evaluate", "the config file sets it")
    protocols: tuple = key(
        ("knn", "linear", "spectrum"), 'any of "knn", "linear", "spectrum", and "svm" for images with several labels'
    )
    evals: EvaluateEvals = dataclasses.field(default_factory=EvaluateEvals)


@dataclasses.dataclass(frozen=True)
class FinetuneData(EncoderData):
    """The images of fine-tuning."""

    POSITIVE, FRACTIONS = (*EncoderData.POSITIVE, "fraction"), (*EncoderData.FRACTIONS, "fraction")

    fraction: float = key(1.0, "share of the training images, equal for every class, such as 0.01")


@dataclasses.dataclass(frozen=True)
class FinetuneViews(EncoderViews):
    """The one view of fine-tuning: a crop and a flip."""

    FRACTIONS = ("crop_scale", "flip")

    crop_scale: tuple = key((0.08, 1.0), "share of an image's area in a training crop")
    flip: float = key(0.5, "probability")


@dataclasses.dataclass(frozen=True)
class FinetuneModel(Section):
    """The backbone of fine-tuning."""

    PATH, CHOICES = "model.", {"dtype": ("bfloat16", "float32")}

    dtype: str = key("bfloat16", "of the convolutions; parameters, statistics and loss are float32")


@dataclasses.dataclass(frozen=True)
class FinetuneOptim(Section):
    """SGD. The rates are not multiplied by the batch, as in the reference's evaluate.py."""

    PATH, CHOICES = "optim.", {"schedule": ("cosine", "drops")}
    POSITIVE, FRACTIONS = ("drop_factor",), ("momentum",)

    lr_classifier: float = key(0.3, "of the classifier")
    lr_backbone: float = key(0.0, "of the trained parts of the backbone")
    momentum: float = key(0.9, "momentum of SGD")
    nesterov: bool = key(False, "use Nesterov's momentum")
    weight_decay: float = key(1e-6, "on all trained parameters")
    schedule: str = key("cosine", '"cosine": to zero, changed once an epoch; "drops": by drop_factor after drop_epochs')
    drop_epochs: tuple = key((), 'epochs after which "drops" lowers the rate')
    drop_factor: float = key(0.1, "factor of each drop")


@dataclasses.dataclass(frozen=True)
class FinetuneEvals(Evals):
    """Evaluation of fine-tuning."""

    every_epochs: float = key(10.0, "epochs between two evaluations on held-out images; one is always at the end")


@dataclasses.dataclass(frozen=True)
class Finetune(FromEncoder):
    """Keys of `task = "finetune"`: a linear classifier on the encoder, trained alone or with it by gradient descent."""

    CHOICES: ClassVar = Run.CHOICES | {"batch_norm": ("auto", "train", "eval")}

    task: str = key("finetune", "the config file sets it")
    train: str = key(
        "classifier", '"classifier": it alone; "all"; or parts of the backbone too, such as "layer3,layer4"'
    )
    batch_norm: str = key(
        "auto", '"train": statistics of the batch; "eval": running ones; "auto": "train" if train="all", else "eval"'
    )
    data: FinetuneData = dataclasses.field(default_factory=FinetuneData)
    views: FinetuneViews = dataclasses.field(default_factory=FinetuneViews)
    model: FinetuneModel = dataclasses.field(default_factory=FinetuneModel)
    optim: FinetuneOptim = dataclasses.field(default_factory=FinetuneOptim)
    evals: FinetuneEvals = dataclasses.field(default_factory=FinetuneEvals)
