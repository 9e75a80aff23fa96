"""The base class of all sections of a config, which refuses impossible values, and the sections that all tasks share.

A section is a dataclass. Each of its fields is a key with its default and its help.

Keys carry their unit (`_epochs`, `_steps`). Pretraining multiplies its learning rates by batch_size / 256; fine-tuning
does not. A default of None is filled in later, as the help of its key says.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from bt_jax.config import arguments
from bt_jax.messages import UserError

SEEDS = 2**32  # of a larger seed JAX silently takes the lower 32 bits


def key(default: Any, help: str) -> Any:
    """A field of a section: its default, and the text that --help shows."""
    return dataclasses.field(default=default, metadata={"help": help})


def _is_numbers(default: Any) -> bool:
    return isinstance(default, tuple) and all(isinstance(each, int | float) for each in default)


@dataclasses.dataclass(frozen=True)
class Section:
    """Keys that belong together. No number is negative or infinite.

    Attributes:
      PATH: their prefix in a config, such as "optim."; for messages.
      CHOICES: key -> its valid values.
      POSITIVE: keys whose numbers must be above 0; the others may be 0.
      FRACTIONS: keys whose numbers are at most 1.
    """

    PATH: ClassVar[str] = ""
    CHOICES: ClassVar[Mapping[str, Iterable[str]]] = {}
    POSITIVE: ClassVar[Iterable[str]] = ()
    FRACTIONS: ClassVar[Iterable[str]] = ()

    def __post_init__(self) -> None:
        for name, valid in self.CHOICES.items():
            arguments.choose(f"config.{self.PATH}{name}", getattr(self, name), valid)
        for field in dataclasses.fields(self):
            self._check_numbers(field)

    def _check_numbers(self, field: dataclasses.Field) -> None:
        path, value = self.PATH + field.name, getattr(self, field.name)
        values = value if isinstance(value, tuple) else [value]
        if any(isinstance(each, str) for each in values) and _is_numbers(field.default):
            given, example = ",".join(map(str, values)), ",".join(map(str, field.default))
            raise UserError(f"config.{path}={given} is not a list of numbers", f"Write e.g. --config.{path}={example}.")
        numbers = [each for each in values if isinstance(each, int | float) and not isinstance(each, bool)]
        a_number = "positive numbers" if isinstance(value, tuple) else "a positive number"
        if not all(map(math.isfinite, numbers)):
            raise UserError(f"config.{path}={value} is not finite", f"Set --config.{path} to a finite number.")
        if field.name in self.POSITIVE and min(numbers, default=1) <= 0:
            raise UserError(f"config.{path}={value} must be positive", f"Set --config.{path} to {a_number}.")
        if field.name in self.FRACTIONS and not all(0 <= number <= 1 for number in numbers):
            raise UserError(f"config.{path}={value} is not between 0 and 1", f"Set --config.{path} to 0 ... 1.")
        if min(numbers, default=0) < 0:
            raise UserError(f"config.{path}={value} must not be negative", f"Set --config.{path} to 0 or more.")


@dataclasses.dataclass(frozen=True)
class Watch(Section):
    """The watchdog, which ends a run that makes no progress."""

    PATH, POSITIVE = "watch.", ("silent_seconds",)

    stuck_seconds: float = key(3600.0, "exit with a diagnosis after this long without a training step; 0: never")
    silent_seconds: float = key(60.0, "exit if another process sends no heartbeat for this long")


@dataclasses.dataclass(frozen=True)
class Data(Section):
    """The images."""

    PATH, POSITIVE, FRACTIONS = "data.", ("canvas",), ("broken_limit",)
    CHOICES: ClassVar = {
        "reader": ("auto", "tensorflow", "pillow"),
        "exif_orientation": ("auto", "apply", "ignore"),
    }

    name: str = key("patterns", '"patterns" (embedded) or the name of a TFDS data set')
    dir: str = key("", 'folder of TFDS data sets; "": $TFDS_DATA_DIR or ~/tensorflow_datasets')
    folder: str = key("", "folder of images, with labels by sub-folder or none; replaces the data set of data.name")
    npz: str = key("", "file that `bt-jax prepare --npz` wrote; needs no TensorFlow")
    broken_limit: float = key(
        0.01, "stop if a larger share of images, and more than 10, is unreadable; 0: at the first"
    )
    train_split: str = key("train", 'split to train on; "train[:90%]" cuts it, "train.mixed[:90%]" cuts every class')
    val_split: str = key("test", 'held-out split; "": none, and no evaluation by labels')
    on_device: bool = key(True, "keep the whole set on the device as uint8; False: stream it from disk")
    reader: str = key("auto", '"tensorflow" or "pillow" for streamed images; "auto": tensorflow if it is installed')
    exif_orientation: str = key(
        "auto",
        '"apply" turns photographs upright, "ignore" does not; "auto": apply to a folder and to what bt-jax prepare'
        " wrote from one",
    )
    canvas: int = key(512, "pixels of the square onto which streamed images are decoded")
    shuffle_buffer: int = key(0, "window of images to shuffle in; 0: a permutation if storage allows it. Streamed only")


@dataclasses.dataclass(frozen=True)
class Log(Section):
    """Metrics."""

    PATH, POSITIVE = "log.", ("every_steps",)

    every_steps: int = key(50, "steps between two lines of metrics; at most this many with data.on_device")
    tensorboard: bool = key(True, "write TensorBoard files too")
    wandb: str = key("", "project of Weights & Biases that gets the metrics too (extra wandb)")
    mlflow: str = key("", 'URI of an MLflow store that gets the metrics too, "sqlite:///mlflow.db" (extra mlflow)')


@dataclasses.dataclass(frozen=True)
class Checkpoint(Section):
    """Checkpoints."""

    PATH, POSITIVE = "checkpoint.", ("keep_last",)

    every_epochs: float = key(10.0, "epochs between two checkpoints; 0: only at the end")
    keep_last: int = key(2, "number of newest checkpoints to keep")
    keep_every_epochs: float = key(0.0, "epochs between checkpoints that are never deleted; 0: none")


@dataclasses.dataclass(frozen=True)
class Evals(Section):
    """Evaluation in every task."""

    PATH, POSITIVE = "evals.", ("batch_size",)

    batch_size: int = key(500, "images at a time, over all devices")
    resize: int = key(0, "resize the shorter side to this, then crop the centre, as for ImageNet; 0: no")
    train_images: int = key(0, "number of training images to extract features from; 0: all")
    val_images: int = key(0, "number of held-out images to evaluate on; 0: all")


@dataclasses.dataclass(frozen=True)
class Run(Section):
    """Keys that every task has."""

    POSITIVE = ("batch_size", "total_epochs", "nonfinite_limit")
    CHOICES: ClassVar = {"platform": ("any", "cpu", "gpu", "tpu")}

    task: str = key("", '"pretrain", "evaluate" or "finetune"; the config file sets it')
    seed: int = key(0, "of initial weights, views and the order of images")
    batch_size: int = key(256, "images in a step, over all devices of all processes")
    total_epochs: float = key(100.0, "passes over the training images; may be a fraction")
    extend_epochs: float = key(0.0, "epochs added to total_epochs; the only change of schedule allowed on resume")
    smoke: bool = key(False, "the config file sets it in its small form, `:smoke`, whose numbers mean nothing")
    stop_after_steps: int = key(0, "stop at this step of the full schedule, to be resumed later; 0: do not")
    nonfinite_limit: int = key(10, "stop when the loss or gradient of this many steps in a row is not finite")
    platform: str = key("any", 'the only platform to run on: "cpu", "gpu" or "tpu"')
    devices: int = key(0, "the only number of devices to run on; 0: any")
    self_check: bool = key(True, "first compare what this machine computes with stored numbers (bt_jax.selfcheck)")
    compile_cache: str = key("auto", 'folder of compiled programs; "auto": the user\'s cache folder, "": none')
    watch: Watch = dataclasses.field(default_factory=Watch)
    data: Data = dataclasses.field(default_factory=Data)
    log: Log = dataclasses.field(default_factory=Log)
    checkpoint: Checkpoint = dataclasses.field(default_factory=Checkpoint)

    def __post_init__(self) -> None:
        if not 0 <= self.seed < SEEDS:
            raise UserError(f"config.seed={self.seed} is not a seed", f"Set --config.seed to one of 0 ... {SEEDS - 1}.")
        super().__post_init__()
