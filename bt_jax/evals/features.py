"""Frozen features of every image of a set: each image once, whatever the batch and the number of devices."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from bt_jax import augment, compilers, sharding
from bt_jax.augment import recipes
from bt_jax.evals import finite
from bt_jax.evals.pictures import thumbnail
from bt_jax.models import Net, Variables

Batch = Mapping[str, jax.Array]
HostBatch = Mapping[str, np.ndarray]
Embed = Callable[[Variables, Batch], jax.Array]


class Encoded(Protocol):
    """What has an encoder to evaluate: a `TrainState`, a `from_encoder.Encoder`."""

    def encoder(self) -> Variables:
        """The encoder's variables, as `Net.apply` takes them."""
        ...


def make_embed(net: Net, recipe: recipes.Recipe, mesh: Mesh, *, resize: int = 0) -> Embed:
    """embed(variables, batch) -> float32 (n, feature_dim): the evaluation view, by running statistics."""

    def embed(variables: Variables, batch: Batch) -> jax.Array:
        images = augment.evaluation_view(batch["image"], recipe, sizes=batch.get("size"), resize=resize or None)
        return net.apply(variables, images, train=False)

    return compilers.jit(embed, out_shardings=sharding.replicated(mesh))


def raw_pixels(recipe: recipes.Recipe, mesh: Mesh) -> Embed:
    """The same for no net at all: the normalised pixels of the stored images, whatever the views' size, flattened."""

    def embed(variables: Variables, batch: Batch) -> jax.Array:
        del variables
        images = augment.normalise(batch["image"].astype(jnp.float32) / 255, recipe)
        return images.reshape(len(images), -1)

    return compilers.jit(embed, out_shardings=sharding.replicated(mesh))


def extract(
    embed: Embed, variables: Variables, batches: Iterable[HostBatch], mesh: Mesh, *, of: str = ""
) -> tuple[np.ndarray, np.ndarray | None]:
    """Runs `embed` over padded batches and drops the padding.

    Args:
      batches: {"image", "mask", optionally "label" and "size"}, numpy, the same on every process.
      of: the split, for the message of an error.

    Returns:
      features float32 (n, d) and labels int32 (n,), or None without labels; on the host, the same on every process.

    Raises:
      NotFiniteError: some features are not finite.
    """
    features, labels = [], []
    for batch in batches:
        keep = batch["mask"]
        inputs = sharding.put_global({name: batch[name] for name in ("image", "size") if name in batch}, mesh)
        features.append(np.asarray(embed(variables, inputs))[keep])
        if "label" in batch:
            labels.append(batch["label"][keep])
    found = np.concatenate(features)
    finite.require(found, of)
    return found, np.concatenate(labels) if labels else None


def gallery(
    embed: Embed, variables: Variables, batches: Iterable[HostBatch], mesh: Mesh, *, side: int = 64
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Features and labels of `extract`, and between them thumbnails, uint8 (n, side, side, c): the middle square of
    each image; smaller images keep their size where all have one."""
    kept: list[np.ndarray] = []

    def watched() -> Iterator[HostBatch]:
        for batch in batches:
            sizes = batch["size"] if "size" in batch else [batch["image"].shape[1:3]] * len(batch["image"])
            every = zip(batch["image"], sizes, batch["mask"], strict=True)
            kept.extend(thumbnail(image[:height, :width], side) for image, (height, width), real in every if real)
            yield batch

    found, labels = extract(embed, variables, watched(), mesh)
    smallest = min(len(image) for image in kept)
    if any(len(image) != smallest for image in kept):
        kept = [thumbnail(image, smallest) for image in kept]
    return found, np.stack(kept), labels
