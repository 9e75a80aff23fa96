"""Frozen features of all images of a split: each image counts once, for any batch size and number of devices."""

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
from bt_jax.messages import Ongoing
from bt_jax.models import Net, Variables

Batch = Mapping[str, jax.Array]
HostBatch = Mapping[str, np.ndarray]
Embed = Callable[[Variables, Batch], jax.Array]


class HasEncoder(Protocol):
    """A state with an encoder to evaluate, such as `TrainState` or `from_encoder.Encoder`."""

    def encoder(self) -> Variables:
        """The encoder's variables, for `Net.apply`."""
        ...


def make_embed(net: Net, recipe: recipes.Recipe, mesh: Mesh, *, resize: int = 0) -> Embed:
    """embed(variables, batch) -> float32 (n, feature_dim): features of the evaluation view, with running statistics."""

    def embed(variables: Variables, batch: Batch) -> jax.Array:
        images = augment.evaluation_view(batch["image"], recipe, sizes=batch.get("size"), resize=resize or None)
        return net.apply(variables, images, train=False)

    return compilers.jit(embed, out_shardings=sharding.replicated(mesh))


def raw_pixels(recipe: recipes.Recipe, mesh: Mesh) -> Embed:
    """An embed function without a network: the normalised pixels of the stored images, flattened.

    The size of the views has no influence.
    """

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
      of: name of the split, for the message of an error.

    Returns:
      Features float32 (n, d), and labels int32 (n,) or None; on the host, the same on every process.

    Raises:
      NotFiniteError: some features are not finite.
    """
    features, labels, images = [], [], 0
    what = f"features of {of}" if of else "features"
    with Ongoing() as ongoing:
        ongoing.update(0, lambda: f"{what}: 0 images")  # the compilation of the first batch may last
        for batch in batches:
            real = batch["mask"]
            inputs = sharding.put_global({name: batch[name] for name in ("image", "size") if name in batch}, mesh)
            features.append(np.asarray(embed(variables, inputs))[real])
            if "label" in batch:
                labels.append(batch["label"][real])
            images += len(features[-1])
            ongoing.update(images, lambda images=images: f"{what}: {images:,} images")
    extracted = np.concatenate(features)
    finite.require(extracted, of)
    return extracted, np.concatenate(labels) if labels else None


def extract_with_thumbnails(
    embed: Embed, variables: Variables, batches: Iterable[HostBatch], mesh: Mesh, *, side: int = 64
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """(features, thumbnails, labels): those of `extract`, and the middle square of every image.

    Returns:
      Thumbnails are uint8 (n, s, s, c). s is `side`, or the shortest side of all images if that is less.
    """
    small: list[np.ndarray] = []

    def with_thumbnails() -> Iterator[HostBatch]:
        for batch in batches:
            sizes = batch["size"] if "size" in batch else [batch["image"].shape[1:3]] * len(batch["image"])
            rows = zip(batch["image"], sizes, batch["mask"], strict=True)
            small.extend(thumbnail(image[:height, :width], side) for image, (height, width), real in rows if real)
            yield batch

    features, labels = extract(embed, variables, with_thumbnails(), mesh)
    shortest = min(len(image) for image in small)
    if any(len(image) != shortest for image in small):
        small = [thumbnail(image, shortest) for image in small]
    return features, np.stack(small), labels
