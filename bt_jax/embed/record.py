"""embed.json, the record of the settings of a folder of embeddings. A resume with other settings is an error."""

import argparse
import hashlib
from pathlib import Path
from typing import Any

import jax
import numpy as np

from bt_jax import messages, storage
from bt_jax.data.sources import orientation
from bt_jax.data.sources.spans import Span
from bt_jax.embed.shard_files import WriteErrors
from bt_jax.messages import UserError
from bt_jax.run_folder import environment, lock, opening
from bt_jax.weights import load

RESIZE, CANVAS = 256, 512  # for encoders without a run. With load.SIZE, 256 is the paper's evaluation, section 3.1


def view_sizes(options: argparse.Namespace) -> dict[str, int]:
    """{"size", "resize", "canvas"} from the options; defaults come from the encoder, or are those of ImageNet.

    The encoder's run has them, or the metadata of an export. If neither has a size, a printed line says so. A default
    `resize` is scaled with a given `size`; a `resize` of 0 means `size`.

    Raises:
      UserError: the sizes do not fit together, or config.json of the run is damaged and the options have no size.
    """
    fix = "" if options.size is not None else "Restore a copy of it, or give --size=PIXELS."
    config = opening.read_run_json(load.weights_path(options.encoder), "config.json", fix=fix)
    size, resize = load.known_size(options.encoder, config)
    if not size:
        size, resize = load.SIZE, RESIZE
        if options.size is None:
            messages.say(f"images of {size} pixels, because {options.encoder} names no size; --size changes it")
    canvas = options.canvas if options.canvas is not None else config.get("data", {}).get("canvas", CANVAS)
    if options.size is not None:
        size, resize = options.size, round(resize * options.size / size)
    resize = options.resize if options.resize is not None else resize
    if min(size, canvas) < 1 or resize and resize < size:
        raise UserError(
            f"--size={size}, --resize={resize} and --canvas={canvas} do not fit together",
            "Give positive sizes, and a resize that is 0 or at least the size.",
        )
    return {"size": size, "resize": resize, "canvas": canvas}


def fingerprint(variables: dict) -> str:
    """16 hexadecimal digits of all weights and their names."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(variables):
        digest.update(jax.tree_util.keystr(path).encode())
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()[:16]


def open_out(
    out: Path, encoder: str, settings: dict[str, Any], spans: dict[str, Span], digests: dict[str, str]
) -> dict[str, Any]:
    """Makes the folder, or accepts one with the same settings; writes embed.json.

    Args:
      digests: "KIND DIGEST" of the whole splits (`data.sources.base.Source`). Images with equal digests may have moved.

    Returns:
      The content of embed.json, including its earlier splits.

    Raises:
      UserError: the folder has other settings (which are named), other images of a split, or unrelated files, or
        another process writes to it.
    """
    file = out / "embed.json"
    settings |= {"encoder": str(load.weights_path(encoder))}
    splits = {base: {"start": span.start, "stop": span.stop} for base, span in spans.items()}
    splits = {base: split | {"images": digests[base]} for base, split in splits.items()}
    fix = "Give another --out, or the earlier options to resume."
    with WriteErrors(out):
        out.mkdir(parents=True, exist_ok=True)
        lock.hold(out)
        if file.exists():
            old = _read(file)
            different = _differences(old, settings, splits)
            if different:
                raise UserError(f"{out} was written with other options ({'; '.join(different)})", fix)
            splits = old["splits"] | {base: old["splits"].get(base, {}) | span for base, span in splits.items()}
        elif any(not path.name.startswith(".") for path in out.iterdir()):
            raise UserError(f"{out} is not empty and holds no embed.json", "Give another --out.")
        record = {"settings": settings, "splits": splits, "environment": environment.describe()}
        storage.write_json(file, record)
    return record


def orientation_of(out: Path) -> str:
    """How the images of a folder of embeddings were turned, as --exif_orientation; "auto" if it holds none."""
    file = out / "embed.json"
    return _read(file)["settings"].get("exif_orientation", orientation.IGNORE) if file.exists() else "auto"


def _differences(old: dict, settings: dict, splits: dict) -> list[str]:
    """The differences, as "size: 224 -> 32".

    Encoder and images may have moved: a path counts only if the weights or digests differ or a digest is missing.
    """
    before, lines = {"exif_orientation": orientation.IGNORE} | old["settings"], []  # older records have no such key
    common = splits.keys() & old["splits"].keys()
    images = {base: (old["splits"][base].get("images"), splits[base]["images"]) for base in common}
    moved = any(first for first, _ in images.values()) and all(first == now for first, now in images.values())
    for key in sorted(settings.keys() - ({"encoder", "data"} if moved else {"encoder"})):
        if before.get(key) != settings[key]:
            names = ("weights", "encoder") if key == "weights" else (key,)
            lines += [f"{name}: {before.get(name)} -> {settings[name]}" for name in names]
    for base in sorted(common):
        spans = [f"[{split['start']}:{split['stop']}]" for split in (old["splits"][base], splits[base])]
        if spans[0] != spans[1]:
            lines.append(f"images of {base}: {spans[0]} -> {spans[1]}")
        elif _are_others(*images[base]):
            lines.append(f"images of {base}: different images")
    return lines


def _are_others(before: str | None, now: str) -> bool:
    """True if existing shards may hold other images unnoticed.

    Shards of an image folder name their files, and a shard with other files is written again. A digest of None is from
    bt_jax 0.1.0.
    """
    return before is not None and before != now and not before.startswith("folder ")


def _read(file: Path) -> dict[str, Any]:
    try:
        content = storage.read_json(file) or {}
        return {"settings": dict(content["settings"]), "splits": dict(content["splits"])}
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{file} is damaged", "Give another --out.") from None
