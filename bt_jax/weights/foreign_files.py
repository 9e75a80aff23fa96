"""Reads weights files of other programs, without executing any code in them.

`.safetensors` files hold arrays alone. `.pth` files are pickles: PyTorch reads them with `weights_only`, which fails on
anything but arrays and plain containers. Bare pickles (`.pkl`) are not read at all.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bt_jax import messages, storage
from bt_jax.augment import recipes
from bt_jax.messages import UserError, line
from bt_jax.weights import prefixes, state_dicts

METADATA = "bt_jax"  # metadata key of our safetensors files: the JSON of a checkpoint's `model`
TORCH_SUFFIXES = (".pth", ".pt", ".ckpt", ".tar", ".bin")
WRAPPERS = ("model", "state_dict")  # keys of the weights in files of training programs, beside optimizer and epoch
IN_FOLDERS = ("model.safetensors", "pytorch_model.bin")  # of Hugging Face and timm


class Weights(NamedTuple):
    """The content of a weights file as variables of bt_jax.

    Attributes:
      model: {"build": arguments of `models.build`, "mean", "std"} and perhaps "evals", see `load.read_model`.
      variables: {"params", "batch_stats"} of the backbone, numpy arrays.
      projector: {"params", "batch_stats"} of the projector, or None.
    """

    model: dict[str, Any]
    variables: dict[str, Any]
    projector: dict[str, Any] | None


def is_foreign(path: str | Path) -> bool:
    """True for a file of weights or a folder with one, False for a checkpoint of bt_jax."""
    try:
        with storage.bucket_errors_as_user_errors():
            path = storage.parse_path(path)
            return path.is_file() or any((path / name).is_file() for name in IN_FOLDERS)
    except (OSError, RuntimeError) as error:  # such as a name that is too long
        raise UserError(f"{str(path)[:80]} is not a path: {line(error, 160)}", "Name a file or a folder.") from None


def read(path: str | Path, *, arch: str = "") -> Weights:
    """Reads torchvision's, timm's, Hugging Face's, the reference's, VICReg's or our own exported weights.

    Args:
      path: a .safetensors or .pth file, or a folder with one of IN_FOLDERS.
      arch: "resnet50", ...; by default the architecture that fits the names of the arrays. The names may have a prefix,
        which a printed line names, and heads may be beside the backbone.

    Raises:
      UserError: the file is damaged, contains code, or does not hold a ResNet of torchvision's shapes.
    """
    path = folder = storage.parse_path(path)
    if storage.in_bucket(path):
        raise UserError(f"{path} is in a bucket, where bt_jax reads checkpoints only", "Copy it to this machine.")
    if path.is_dir():
        path = next(path / name for name in IN_FOLDERS if (path / name).is_file())
    elif path.name in IN_FOLDERS:
        folder = path.parent
    arrays, metadata = _read_safetensors(path) if path.suffix == ".safetensors" else (_read_torch(path), None)
    try:
        backbone, beside = prefixes.find(_flat(_unwrapped(arrays)), arch)
        arch = backbone.arch
        variables = state_dicts.from_torch(backbone.arrays, arch=arch)
    except UserError as error:
        raise UserError(f"{path}: {error.cause}", error.fix) from None
    if backbone.prefix:
        messages.say_once(f"{path}: using the {arch} with the prefix {backbone.prefix}")
    build = state_dicts.build_options(variables, arch)
    if metadata is None:
        model = {"build": build} | _normalisation(folder, build["channels"])
    else:
        model = _checked_model(metadata, build, path)
    return Weights(model, variables, _projector(beside))


def _checked_model(metadata: Any, build: dict[str, Any], path: Path) -> dict[str, Any]:
    """The model of our metadata, after a check that it fits the weights. Weights do not show the stem's padding."""
    try:
        stated = {key: metadata["build"][key] for key in build}
        mean, std = ([float(value) for value in metadata[name]] for name in ("mean", "std"))
        padding = int(stated["stem_padding"])
        agrees = stated | {"stem_padding": build["stem_padding"]} == build and padding >= 0
        agrees = agrees and len(mean) == len(std) == build["channels"]
    except (LookupError, TypeError, ValueError):
        agrees = False
    if not agrees:
        raise UserError(f"The metadata of {path} does not fit its weights", "Download or write the file again.")
    known = {"evals": metadata["evals"]} if "evals" in metadata else {}
    return {"build": stated, "mean": mean, "std": std} | known


def _normalisation(folder: Path, channels: int) -> dict[str, list[float]]:
    """{"mean", "std"} from the JSON of Hugging Face or timm in a folder; without it, those of ImageNet.

    If the number of channels is not three, each gets the mean of ImageNet's three.
    """
    normalisation = {"mean": list(recipes.IMAGENET_MEAN), "std": list(recipes.IMAGENET_STD)}
    if channels != 3:
        normalisation = {name: [sum(values) / 3] * channels for name, values in normalisation.items()}
    for name, inner, prefix in (("preprocessor_config.json", "", "image_"), ("config.json", "pretrained_cfg", "")):
        try:
            content = json.loads((folder / name).read_text())
            content = content[inner] if inner else content
            stated = {key: [float(value) for value in content[prefix + key]] for key in normalisation}
        except (OSError, ValueError, LookupError, TypeError):
            continue
        if all(len(values) == channels for values in stated.values()):
            return stated
    messages.say_once(f"{folder} states no mean and std of its training images, so those of ImageNet are used")
    return normalisation


def _projector(state_dict: Mapping[str, Any]) -> dict[str, Any] | None:
    """The projector, or None if it does not have the reference's form: VICReg's has biases in hidden layers alone."""
    try:
        return state_dicts.projector_from_torch(state_dict)
    except UserError:
        return None


def _unwrapped(arrays: Mapping[str, Any]) -> Mapping[str, Any]:
    inner = next((arrays[name] for name in WRAPPERS if isinstance(arrays.get(name), Mapping)), None)
    return arrays if inner is None else _unwrapped(inner)


def _flat(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """{"student": {"conv1.weight": …}} as {"student.conv1.weight": …}."""
    flat: dict[str, Any] = {}
    for key, value in arrays.items():
        if isinstance(value, Mapping):
            flat |= {f"{key}.{name}": array for name, array in _flat(value).items()}
        else:
            flat[key] = value
    return flat


def read_metadata(path: Path) -> Any:
    """The metadata that bt_jax wrote into a safetensors file; None without them.

    Raises:
      ValueError, OSError: the file is damaged.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            return json.loads((file.metadata() or {}).get(METADATA, "null"))
    except (SafetensorError, RecursionError) as error:
        raise ValueError(line(error)) from None


def _read_safetensors(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any] | None]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            arrays = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict: no iterator
        return arrays, json.loads(metadata[METADATA]) if METADATA in metadata else None
    except (SafetensorError, ValueError, TypeError, OSError, RecursionError) as error:
        raise UserError(
            f"{path} is not an intact safetensors file: {line(error, 160)}", "Download or write it again."
        ) from None


def _read_torch(path: Path) -> dict[str, Any]:
    if path.suffix not in TORCH_SUFFIXES:
        raise UserError(
            f"{path} is not a file of weights that can be read safely",
            f"Name a .safetensors file, or one of {', '.join(TORCH_SUFFIXES)}.",
        )
    try:
        import torch
    except ImportError:
        raise UserError(
            f"Reading {path} needs PyTorch, which is not installed",
            "Run pip install torch, or name a .safetensors file.",
        ) from None
    import pickle

    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} is not a file of weights alone, and bt_jax does not execute its code: {line(error, 160)}",
            "If you trust it, load it in PyTorch yourself and save its state_dict.",
        ) from None
    except Exception as error:  # a truncated or foreign file fails anywhere in torch's readers
        raise UserError(f"{path} cannot be read: {line(error, 160)}", "Download or write it again.") from None
    if not isinstance(content, Mapping):
        raise UserError(f"{path} holds a {type(content).__name__}, not a state dict", "Save model.state_dict().")
    return _numpy(content, torch)


def _numpy(tree: Mapping[str, Any], torch) -> dict[str, Any]:
    """Converts tensors in nested mappings to arrays; other values, such as those of an optimizer, are dropped."""
    arrays: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            arrays[str(key)] = _numpy(value, torch)
        elif isinstance(value, torch.Tensor):
            value = value.detach()
            try:
                arrays[str(key)] = (value.float() if value.dtype == torch.bfloat16 else value).numpy()
            except (RuntimeError, TypeError, NotImplementedError):  # quantized, sparse, without data, ...
                kind = f"{value.dtype}, {value.layout}"
                raise UserError(f"{key} is an array of another kind ({kind})", "Save it as dense float32.") from None
    return arrays
