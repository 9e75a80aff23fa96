"""Converts between PyTorch state dicts and variables of bt_jax, without PyTorch: arrays in, numpy arrays out.

Backbones use torchvision's keys; projectors use the reference's `nn.Sequential` indices (0 Linear, 1 BatchNorm1d, 2
ReLU, 3 Linear, ...). Each format is one table, torch key -> path in the variables, in torch's order. Both directions
use it.
"""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax import nnx

from bt_jax.messages import UserError
from bt_jax.models.resnet import ARCHITECTURES, ResNet, architecture

Path = tuple[str, ...]

# The reference's checkpoint.pth has the keys of a model in DistributedDataParallel ("module.backbone."), solo-learn's
# those of the model alone ("backbone.").
BACKBONE_PREFIXES = ("module.backbone.", "backbone.", "module.", "")
LINEAR = {"weight": "kernel", "bias": "bias"}  # parameters of a linear layer
BATCHES = "num_batches_tracked"  # torch's count of training batches, used only with momentum=None


def from_torch(state_dict: Mapping[str, Any], *, arch: str) -> dict[str, Any]:
    """Converts a torchvision state dict to the variables of a backbone.

    Args:
      state_dict: arrays under torchvision's keys, or under those keys with one of BACKBONE_PREFIXES. `fc.*` is ignored;
        with the prefix "backbone." so is the rest of the model.
      arch: "resnet50", ...

    Returns:
      {"params", "batch_stats"} of numpy arrays, kernels (h, w, in, out); half precision becomes float32.

    Raises:
      UserError: keys are missing or unexpected, or the shapes are not those of this architecture at any width.
    """
    own, fits = _own(state_dict), fitting(state_dict)
    fix = "Pass the model's own state dict, with torchvision's keys."
    if fits:
        fix = f"Pass arch={fits!r}, or --arch={fits} to bt_jax.convert."
    variables = _read(own, _backbone_table(arch), f"a {arch}", fix)
    if variables["params"]["conv1"]["kernel"].ndim != 4:
        raise UserError(f"The shape of conv1.weight is {np.shape(own['conv1.weight'])}, not (out, in, h, w)", fix)
    _check_shapes(variables, arch)
    return variables


def fitting(state_dict: Mapping[str, Any]) -> str | None:
    """The architecture with the keys of a state dict (see `from_torch`), or None."""
    own = _own(state_dict)
    return next((arch for arch in ARCHITECTURES if not any(_differences(own, _backbone_table(arch)))), None)


def distance(state_dict: Mapping[str, Any], arch: str) -> int:
    """Number of keys of an architecture that a torchvision state dict lacks, plus its unexpected keys."""
    return sum(map(len, _differences(state_dict, _backbone_table(arch))))


def nearest(state_dict: Mapping[str, Any]) -> str:
    """The architecture with the smallest `distance`."""
    return min(ARCHITECTURES, key=lambda arch: distance(state_dict, arch))


def build_options(variables: Mapping[str, Any], arch: str) -> dict[str, Any]:
    """Arguments of `models.build` for variables, from their shapes; a 3x3 stem is assumed to pad by 1."""
    size, _, channels, base = variables["params"]["conv1"]["kernel"].shape
    return {"arch": arch, "small_images": size == 3, "width": base / 64, "channels": channels, "stem_padding": 1}


def to_torch(variables: Mapping[str, Any], *, arch: str) -> dict[str, np.ndarray]:
    """Converts a backbone to a state dict in torchvision's order, with `num_batches_tracked` = 0 and without `fc`.

    Raises:
      UserError: the variables are of another architecture.
    """
    return _write(variables, _backbone_table(arch))


def projector_from_torch(state_dict: Mapping[str, Any], *, prefix: str = "projector.") -> dict[str, Any]:
    """Converts the state dict of an `nn.Sequential`, of any depth, with or without biases, to a projector.

    Args:
      state_dict: holds "{prefix}0.weight", ..., optionally after "module."; other keys are ignored.
      prefix: "" if the state dict is that of the projector alone.

    Returns:
      {"params", "batch_stats"} of numpy arrays, kernels (in, out).

    Raises:
      UserError: there is no projector behind the prefix, or some of its keys are missing or unexpected.
    """
    own = below(state_dict, prefix) or below(state_dict, f"module.{prefix}")
    if "0.weight" not in own:
        raise UserError(
            f"The state dict has no {prefix}0.weight; its keys are {some(state_dict)}",
            "Pass prefix=, the part of the keys before the layer numbers.",
        )
    layers = sum(np.ndim(value) == 2 for value in own.values())
    table = _projector_table(layers, bias="0.bias" in own)
    return _read(own, table, f"a projector of {layers} layers", "Pass the whole projector.")


def projector_to_torch(variables: Mapping[str, Any], *, prefix: str = "projector.") -> dict[str, np.ndarray]:
    """Converts a projector, or another head of `models.build_projector`, to the state dict of an `nn.Sequential`.

    Each layer is a Linear, a BatchNorm1d where the head has a batch norm, and a ReLU unless it is the last. A batch
    norm without parameters is one of `affine=False`; one without a bias gets zeros. `num_batches_tracked` is 0.
    """
    params, stats = variables["params"], variables["batch_stats"]
    layers = sum(name.startswith("fc") for name in params)
    table: dict[str, Path | None] = {}
    zeros, number = {}, 0
    for layer in range(layers):
        fc, bn = f"fc{layer}", f"bn{layer}"
        table |= {f"{number}.{name}": ("params", fc, own) for name, own in LINEAR.items() if own in params[fc]}
        number += 1
        if bn in stats:
            trained = params.get(bn, {})
            keys = _batch_norm(str(number), (bn,))
            table |= {key: path for key, path in keys.items() if not path or path[0] != "params" or path[-1] in trained}
            if "scale" in trained and "bias" not in trained:
                zeros[f"{number}.bias"] = np.zeros_like(np.asarray(trained["scale"]))
            number += 1
        number += 1  # the ReLU
    return {prefix + key: value for key, value in (_write(variables, table) | zeros).items()}


def _batch_norm(name: str, path: Path) -> dict[str, Path | None]:
    return {
        f"{name}.weight": ("params", *path, "scale"),
        f"{name}.bias": ("params", *path, "bias"),
        f"{name}.running_mean": ("batch_stats", *path, "mean"),
        f"{name}.running_var": ("batch_stats", *path, "var"),
        f"{name}.{BATCHES}": None,
    }


def _backbone_table(arch: str) -> dict[str, Path | None]:
    """{torchvision key: path in the variables, or None for a count of batches}."""
    block, depths = architecture(arch)
    table: dict[str, Path | None] = {}

    def add(conv_name: str, conv_path: Path, bn_name: str, bn_path: Path) -> None:
        table[f"{conv_name}.weight"] = ("params", *conv_path, "kernel")
        table.update(_batch_norm(bn_name, bn_path))

    add("conv1", ("conv1",), "bn1", ("bn1",))
    for stage, depth in enumerate(depths, 1):
        for index in range(depth):
            name, path = f"layer{stage}.{index}", (f"layer{stage}", f"block{index}")
            for i in range(1, block.convs + 1):
                add(f"{name}.conv{i}", (*path, f"conv{i}"), f"{name}.bn{i}", (*path, f"bn{i}"))
            if index == 0 and (stage > 1 or block.expansion > 1):
                downsample = (*path, "downsample")
                add(f"{name}.downsample.0", (*downsample, "conv"), f"{name}.downsample.1", (*downsample, "bn"))
    return table


def _projector_table(layers: int, *, bias: bool) -> dict[str, Path | None]:
    """{nn.Sequential key: path in the variables}; a hidden layer is three modules: Linear, BatchNorm1d, ReLU."""
    table: dict[str, Path | None] = {}
    for layer in range(layers):
        table[f"{3 * layer}.weight"] = ("params", f"fc{layer}", "kernel")
        if bias:
            table[f"{3 * layer}.bias"] = ("params", f"fc{layer}", "bias")
        if layer < layers - 1:
            table.update(_batch_norm(f"{3 * layer + 1}", (f"bn{layer}",)))
    return table


def _differences(state_dict: Mapping[str, Any], table: Mapping[str, Path | None]) -> tuple[list[str], list[str]]:
    """(missing keys, unexpected keys). Counts of batches may be missing: files from before PyTorch 0.4.1 have none."""
    missing = [key for key, path in table.items() if path and key not in state_dict]
    return missing, [key for key in state_dict if key not in table]


def _read(state_dict: Mapping[str, Any], table: Mapping[str, Path | None], what: str, fix: str) -> dict[str, Any]:
    missing, unexpected = _differences(state_dict, table)
    if missing or unexpected:
        faults = ((missing, "lacks"), (unexpected, "also has"))
        fault = " and ".join(f"{verb} {some(keys)}" for keys, verb in faults if keys)
        raise UserError(f"The state dict is not that of {what}: it {fault}", fix)
    variables: dict[str, Any] = {"params": {}, "batch_stats": {}}
    for key, path in table.items():
        if path:
            node = variables
            for name in path[:-1]:
                node = node.setdefault(name, {})
            node[path[-1]] = _from_torch_layout(np.asarray(state_dict[key]))
    return variables


def _write(variables: Mapping[str, Any], table: Mapping[str, Path | None]) -> dict[str, np.ndarray]:
    paths = {path for path in table.values() if path}
    leaves = jax.tree_util.tree_leaves_with_path(dict(variables))
    arrays = {tuple(key.key for key in keys): leaf for keys, leaf in leaves}
    if arrays.keys() != paths:
        names = ["/".join(path) for path in sorted(arrays.keys() ^ paths)]
        raise UserError(
            f"The variables are of another network: {some(names)} are missing or unexpected",
            "Pass the arch of the network, and its params and batch_stats alone.",
        )
    return {key: _to_torch_layout(np.asarray(arrays[path])) if path else np.int64(0) for key, path in table.items()}


def _from_torch_layout(array: np.ndarray) -> np.ndarray:
    """OIHW -> HWIO, (out, in) -> (in, out); a new array of at least single precision."""
    axes = {4: (2, 3, 1, 0), 2: (1, 0)}.get(array.ndim)
    return np.array(array.transpose(axes), np.promote_types(array.dtype, np.float32), order="C")


def _to_torch_layout(array: np.ndarray) -> np.ndarray:
    axes = {4: (3, 2, 0, 1), 2: (1, 0)}.get(array.ndim)
    return np.array(array.transpose(axes), order="C")


def _check_shapes(variables: dict[str, Any], arch: str) -> None:
    """Checks the shapes: wide_resnet50_2 and resnext50 have the same keys as resnet50, but other shapes."""
    options = build_options(variables, arch)
    module = nnx.eval_shape(lambda: ResNet(**options, rngs=nnx.Rngs(0)))
    expected = {
        "params": nnx.to_pure_dict(nnx.state(module, nnx.Param)),
        "batch_stats": nnx.to_pure_dict(nnx.state(module, nnx.BatchStat)),
    }
    leaves = zip(jax.tree_util.tree_leaves_with_path(expected), jax.tree.leaves(variables), strict=True)
    for (path, leaf), array in leaves:
        if leaf.shape != array.shape:
            raise UserError(
                f"{jax.tree_util.keystr(path, simple=True, separator='/')} has the shape {array.shape}, but a {arch} "
                f"with {round(64 * options['width'])} channels in its stem has {leaf.shape}",
                "Pass weights of a plain ResNet; wide_resnet and resnext models have its keys, but not its shapes.",
            )


def _own(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of the backbone under torchvision's keys, without its classifier."""
    prefix = next((prefix for prefix in BACKBONE_PREFIXES if prefix + "conv1.weight" in state_dict), "")
    return {key: value for key, value in below(state_dict, prefix).items() if not key.startswith("fc.")}


def below(state_dict: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """The entries whose keys have a prefix, which is removed."""
    return {key.removeprefix(prefix): value for key, value in state_dict.items() if key.startswith(prefix)}


def some(keys) -> str:
    """The first three names, and the number of the others."""
    keys = list(keys)
    rest = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
    return ", ".join(keys[:3]) + rest
