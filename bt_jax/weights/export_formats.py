"""Writes an encoder in the formats of other programs: one function per format, (Source, path) -> None.

FORMS has them by name, with the suffix of the file ("": a folder). `usage` has the code that loads each.
"""

import secrets
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from bt_jax import models, storage
from bt_jax.messages import UserError
from bt_jax.models import Net
from bt_jax.models.resnet import architecture
from bt_jax.run_folder import manifest
from bt_jax.weights import key_names, state_dicts
from bt_jax.weights.foreign_files import METADATA


class Source(NamedTuple):
    """An encoder to write, see `foreign_files.Weights`; `size` is the side of its images in pixels."""

    model: dict[str, Any]
    variables: dict[str, Any]
    projector: dict[str, Any] | None
    size: int

    @property
    def net(self) -> Net:
        return models.build(**self.model["build"])

    def state_dict(self) -> dict[str, np.ndarray]:
        """The arrays under torchvision's keys."""
        return state_dicts.to_torch(self.variables, arch=self.model["build"]["arch"])


class Form(NamedTuple):
    write: Callable[[Source, Path], None]
    suffix: str


def write_checkpoint(source: Source, path: Path) -> None:
    """Writes a checkpoint like that of a run, without the training state."""
    write_encoder(path, model=source.model, variables=source.variables, projector=source.projector)


def write_encoder(path: Path, *, model: dict[str, Any], variables: dict[str, Any], projector=None) -> None:
    """Writes a checkpoint of an encoder, and of its projector if there is one, without optimizer state.

    Args:
      path: the folder; must not exist.
      model: see `load.read_model`.
      variables, projector: {"params", "batch_stats"}.
    """
    unfinished = path.absolute().with_name(f".{path.name}.{secrets.token_hex(4)}")
    unfinished.mkdir()  # mkdtemp would make a folder that its owner alone can read
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(unfinished / "encoder", variables)
            if projector:
                checkpointer.save(unfinished / "projector", projector)
        (unfinished / "model").mkdir()
        (unfinished / "model" / "metadata").write_text(storage.to_json(model))
        manifest.write(unfinished)
        unfinished.rename(path)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise


def write_safetensors(source: Source, path: Path) -> None:
    """Writes torchvision's state dict, with metadata from which `load_encoder` builds the network."""
    _save(source.state_dict(), path, source.model)


def write_torch(source: Source, path: Path) -> None:
    """Writes torchvision's state dict with PyTorch."""
    try:
        import torch
    except ImportError:
        raise UserError(
            "Writing a .pth needs PyTorch, which is not installed", "Run pip install torch, or use --to=safetensors."
        ) from None
    torch.save({key: torch.from_numpy(np.array(value)) for key, value in source.state_dict().items()}, path)


def write_timm(source: Source, path: Path) -> None:
    """Writes a folder for timm.create_model("local-dir:PATH"), or for the code of the model card; see `is_plain`."""
    build = source.model["build"]
    path.mkdir()
    cfg = {
        "input_size": [build["channels"], source.size, source.size],
        "mean": list(source.model["mean"]),
        "std": list(source.model["std"]),
        "num_classes": 0,
        "first_conv": "conv1",
        "classifier": "fc",
    }
    args = {"in_chans": build["channels"]} if build["channels"] != 3 else {}
    config = {"architecture": build["arch"], "num_classes": 0, "model_args": args, "pretrained_cfg": cfg}
    _write_json(path / "config.json", config)
    _save(source.state_dict(), path / "model.safetensors", _not_in_the_shapes(source))


def write_hugging_face(source: Source, path: Path) -> None:
    """Writes a folder for transformers.ResNetModel.from_pretrained(PATH), or, with a 3x3 stem, for the card's code."""
    build = source.model["build"]
    block, depths = architecture(build["arch"])
    base = round(64 * build["width"])
    path.mkdir()
    config = {
        "architectures": ["ResNetModel"],
        "model_type": "resnet",
        "num_channels": build["channels"],
        "embedding_size": base,
        "hidden_sizes": [base * block.expansion * 2**stage for stage in range(4)],
        "depths": list(depths),
        "layer_type": "bottleneck" if block.expansion > 1 else "basic",
        "hidden_act": "relu",
        "downsample_in_first_stage": False,
        "downsample_in_bottleneck": False,  # the stride is on the 3x3 convolution
        "dtype": "float32",
    }
    _write_json(path / "config.json", config)
    preprocessor = {
        "image_processor_type": "ConvNextImageProcessor",
        "crop_pct": 0.875,
        "do_resize": True,
        "do_normalize": True,
        "image_mean": list(source.model["mean"]),
        "image_std": list(source.model["std"]),
        "size": {"shortest_edge": source.size},
    }
    _write_json(path / "preprocessor_config.json", preprocessor)
    _save(
        {key_names.to_hugging_face(key): value for key, value in source.state_dict().items()},
        path / "model.safetensors",
        _not_in_the_shapes(source),
    )


def write_detectron2(source: Source, path: Path) -> None:
    """Writes the pickle for MODEL.WEIGHTS: a dict of numpy arrays, like that of tools/convert-torchvision-to-d2.py."""
    import pickle

    build = source.model["build"]
    if not is_plain(build):
        raise UserError(
            f"The {build['arch']} has a 3x3 stem or another width, which detectron2 cannot build",
            "Use --to=torchvision: its model card has the code that builds the network.",
        )
    kept = {key: value for key, value in source.state_dict().items() if not key.endswith(state_dicts.BATCHES)}
    arrays = {key_names.to_detectron2(key): value for key, value in kept.items()}
    with path.open("wb") as file:
        pickle.dump({"model": arrays, "__author__": "bt_jax", "matching_heuristics": True}, file)


def write_stablehlo(source: Source, path: Path) -> None:
    """Writes the program with weights and normalisation: uint8 (n, size, size, c) -> float32 (n, d), any n."""
    net, mean, std = source.net, np.float32(source.model["mean"]), np.float32(source.model["std"])
    variables = jax.tree.map(jnp.asarray, source.variables)

    def features(images):
        return net.apply(variables, (images.astype(jnp.float32) / 255 - mean) / std, train=False)

    (n,) = jax.export.symbolic_shape("n")
    shape = (n, source.size, source.size, source.model["build"]["channels"])
    program = jax.export.export(jax.jit(features), platforms=("cpu", "cuda", "tpu"))
    path.write_bytes(program(jax.ShapeDtypeStruct(shape, jnp.uint8)).serialize())


def is_plain(build: dict[str, Any]) -> bool:
    """Whether the builders of other libraries can make this network."""
    return not build["small_images"] and build["width"] == 1


def _not_in_the_shapes(source: Source) -> dict[str, Any] | None:
    """Metadata for `load_encoder`: the padding of a 3x3 stem, which no shape shows."""
    return source.model if source.model["build"]["small_images"] else None


def _save(arrays: dict[str, np.ndarray], path: Path, model: dict[str, Any] | None = None) -> None:
    from safetensors.numpy import save

    metadata = {"format": "pt"} | ({METADATA: storage.to_json(model)} if model else {})
    # save_file would leave a file that its owner alone can read: it renames a temporary one.
    path.write_bytes(save({key: np.array(value, order="C") for key, value in arrays.items()}, metadata))


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(storage.to_json(content, indent=2) + "\n")


FORMS = {
    "checkpoint": Form(write_checkpoint, ""),
    "safetensors": Form(write_safetensors, ".safetensors"),
    "torchvision": Form(write_safetensors, ".safetensors"),
    "torch": Form(write_torch, ".pth"),
    "timm": Form(write_timm, ""),
    "huggingface": Form(write_hugging_face, ""),
    "detectron2": Form(write_detectron2, ".pkl"),
    "stablehlo": Form(write_stablehlo, ".stablehlo"),
}
