"""Loading an encoder: from a run folder, a checkpoint, or a file of weights of other libraries."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bt_jax import models, storage
from bt_jax.messages import UserError
from bt_jax.run_folder import step_folders
from bt_jax.weights import foreign_files

SIZE = 224  # side of the evaluated images in pixels, without a run: that of ImageNet in the paper's section 3.1


def load_encoder(path: str | Path, *, sharding: jax.sharding.Sharding | None = None):
    """Restores an encoder on any number of devices, without its optimizer.

    Args:
      path: a run folder (its newest intact checkpoint), a checkpoint folder RUN/checkpoints/STEP, a checkpoint from
        `bt_jax.convert`, or weights that `foreign_files.read` reads: .safetensors, .pth, a Hugging Face folder.
      sharding: placement of the variables, e.g. NamedSharding(mesh, PartitionSpec()); by default numpy arrays.

    Returns:
      (net, variables): net.apply(variables, images, train=False) gives features float32 (n, net.feature_dim); images
      float32 (n, h, w, c), normalised by net.mean and net.std, as `bt_jax.preprocess` does. variables: {"params",
      "batch_stats"}.

    Raises:
      UserError: the path does not exist, is no checkpoint of bt_jax, or is damaged; or the weights are not finite.
    """
    weights = read(path, sharding=sharding)
    mean, std = (tuple(weights.model[name]) if name in weights.model else None for name in ("mean", "std"))
    return dataclasses.replace(models.build(**weights.model["build"]), mean=mean, std=std), weights.variables


@storage.bucket_errors_as_user_errors()
def read(
    path: str | Path, *, projector: bool = False, sharding: jax.sharding.Sharding | None = None
) -> foreign_files.Weights:
    """Reads an encoder, its build options and optionally its projector from one checkpoint; see `load_encoder`.

    Args:
      projector: also read the projector, if there is one. It is always numpy arrays.
    """
    if foreign_files.is_foreign(path):
        weights = finite(foreign_files.read(path), path)
        return weights._replace(variables=jax.device_put(weights.variables, sharding)) if sharding else weights
    folder = step_folders.step_folder(path)
    model = step_folders.stored_model(folder)
    shapes = jax.eval_shape(models.build(**model["build"]).init, jax.random.key(0))
    head = step_folders.read_part(folder / "projector") if projector else None
    variables = step_folders.restore(folder / "encoder", shapes, sharding)
    return finite(foreign_files.Weights(model, variables, head), folder)


def finite(weights: foreign_files.Weights, path: str | Path) -> foreign_files.Weights:
    """Returns the weights unchanged.

    Raises:
      UserError: an array of the encoder or the projector holds NaN or infinity; the message names `path`.
    """
    arrays = jax.tree_util.tree_leaves_with_path((weights.variables, weights.projector))
    broken = [keys for keys, array in arrays if not _is_finite(array)]
    if broken:
        first = jax.tree_util.keystr(broken[0][1:], simple=True, separator="/")
        raise UserError(
            f"The weights of {path} are not finite: {len(broken)} of {len(arrays)} arrays hold NaN or infinity, such as"
            f" {first}",
            "Take an earlier checkpoint, or weights of a run that did not diverge.",
        )
    return weights


def _is_finite(array) -> bool:
    return bool((np if isinstance(array, np.ndarray) else jnp).isfinite(array).all())


@storage.bucket_errors_as_user_errors()
def load_projector(path: str | Path) -> dict[str, Any] | None:
    """{"params", "batch_stats"} of numpy arrays of a checkpoint's projector; None if it has none.

    Paths and errors as for `load_encoder`, but NaN and infinity are no error.
    """
    return (
        foreign_files.read(path).projector
        if foreign_files.is_foreign(path)
        else step_folders.read_part(step_folders.step_folder(path) / "projector")
    )


@storage.bucket_errors_as_user_errors()
def read_model(path: str | Path) -> dict[str, Any]:
    """The model entry of an encoder: {"build": arguments of `models.build`, "mean", "std"}, plain JSON types.

    An export that knows its images also has {"evals": {"size", "resize"}}, see `evaluation_size`. Mean and std are per
    channel, of pixels in [0, 1]. Paths and errors as for `load_encoder`, without those of its arrays.
    """
    return (
        foreign_files.read(path).model
        if foreign_files.is_foreign(path)
        else step_folders.stored_model(step_folders.step_folder(path))
    )


def evaluation_size(config: dict[str, Any]) -> tuple[int, int]:
    """(size, resize) in pixels of the evaluated images of a run, from its config.json; or from an export's model entry.

    Returns:
      The side of the centre crop, and the shorter side before it or 0; (0, 0) if the config has neither.
    """
    try:
        evals = config["evals"]
        size, resize = int(evals.get("size") or config["views"]["size"]), int(evals.get("resize", 0))
    except (ValueError, LookupError, TypeError, AttributeError):  # another program's config.json, or a damaged one
        return 0, 0
    return (size, resize) if size > 0 else (0, 0)


def stated_size(path: str | Path) -> tuple[int, int]:
    """`evaluation_size` of an encoder that `bt_jax.convert` wrote; (0, 0) for any other path.

    It neither reads arrays nor starts JAX.
    """
    path = storage.parse_path(path)
    try:
        for file in (path, path / foreign_files.IN_FOLDERS[0]):
            if file.suffix == ".safetensors" and file.is_file():
                return evaluation_size(foreign_files.read_metadata(file) or {})
        return evaluation_size(storage.read_json(path / "model" / "metadata") or {})
    except (OSError, ValueError, RuntimeError):  # damaged, which the reader of the arrays reports
        return 0, 0


def known_size(path: str | Path, run: dict[str, Any]) -> tuple[int, int]:
    """`evaluation_size` of the config of an encoder's run, or `stated_size` if that has none."""
    known = evaluation_size(run)
    return known if known[0] else stated_size(path)


@storage.bucket_errors_as_user_errors()
def weights_path(path: str | Path) -> Path:
    """The file or `step_folder` that `load_encoder` reads for a path."""
    return (
        storage.absolute(storage.parse_path(path)) if foreign_files.is_foreign(path) else step_folders.step_folder(path)
    )
