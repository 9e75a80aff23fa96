"""The model card that goes with every export: what the encoder is, what it was trained on, how well it did."""

import datetime
import importlib.metadata
import json
from pathlib import Path
from typing import Any

from bt_jax.conversion.targets import FORMS, Source, is_plain

UNKNOWN = "not known: the source is not in a run folder of bt_jax"
PACKAGES = ("bt_jax", "jax", "flax", "optax", "orbax-checkpoint")


def write(path: Path, source: Source, *, given: str, form: str, out: Path, licence: str) -> None:
    """Writes Markdown with the front matter that model hubs read.

    Args:
      path: of the card.
      given: what was converted; if it lies in a run folder, config.json and summary.json there are read.
      form: a key of FORMS; out: what was written in that form.
      licence: of the weights, or "" for a line that asks for it.
    """
    run = _run_folder(Path(given).expanduser().absolute())
    config, summary, environment = (_json(run, name) for name in ("config.json", "summary.json", "environment.json"))
    model = source.model
    build = model["build"]
    sections = [
        _front_matter(licence),
        f"# {build['arch']} pretrained with Barlow Twins",
        "An image encoder trained without labels (Zbontar et al., Barlow Twins: Self-Supervised Learning via Redundancy"
        " Reduction, [arXiv 2103.03230](https://arxiv.org/abs/2103.03230))."
        if run
        else "An image encoder, converted from other weights.",
        f"Licence of these weights: {licence or '**to be stated by whoever publishes them**'}.",
        "## Use",
        f"```\n{_usage(form, out, source)}\n```",
        "## Encoder",
        _table(
            {
                "architecture": build["arch"],
                "stem": "3x3, no max-pool" if build["small_images"] else "7x7, stride 2, max-pool",
                "width": f"{build['width']:g}",
                "features": source.net.feature_dim,
                "parameters": f"{_parameters(source.variables):,}",
                "images": f"{source.size} x {source.size} pixels, {build['channels']} channels",
                "mean, std of pixels in [0, 1]": f"{_numbers(model['mean'])}; {_numbers(model['std'])}",
            }
        ),
        "## Training",
        _table(_training(config, summary)) if config else UNKNOWN,
        "## Measured",
        _measured(summary) if summary else "No figures stand beside these weights.",
        "## Versions",
        _table(environment.get("versions") or _versions()),
        f"Written {datetime.date.today()} from `{Path(given).name}` by `python -m bt_jax.convert --to={form}`.",
    ]
    path.write_text("\n\n".join(sections) + "\n")


def _front_matter(licence: str) -> str:
    lines = [f"license: {licence}"] if licence else []
    return "\n".join(["---", *lines, "tags: [barlow-twins, self-supervised, image-feature-extraction]", "---"])


def _usage(form: str, out: Path, source: Source) -> str:
    build = source.model["build"]
    if form in ("safetensors", "torch") and not is_plain(build):
        form = "checkpoint"  # torchvision has no such network, and load_encoder takes the file too
    return FORMS[form].usage.format(
        path=out.name,
        arch=build["arch"],
        depth=build["arch"].removeprefix("resnet"),
        size=source.size,
        channels=build["channels"],
        pixel_mean=[round(255 * value, 3) for value in source.model["mean"]],
        pixel_std=[round(255 * value, 3) for value in source.model["std"]],
    )


def _training(config: dict[str, Any], summary: dict[str, Any]) -> dict[str, Any]:
    data, views, optim = config.get("data", {}), config.get("views", {}), config.get("optim", {})
    return {
        "data": data.get("folder") or data.get("name"),
        "split": data.get("train_split"),
        "epochs": config.get("total_epochs", 0) + (config.get("extend_epochs") or 0),
        "steps": summary.get("steps", "not finished"),
        "batch": config.get("batch_size"),
        "views": f"{views.get('name')}, {views.get('size')} pixels",
        "projector": "-".join(map(str, config.get("model", {}).get("projector", ()))),
        "lambda": config.get("loss", {}).get("lambd"),
        "optimizer": f"{optim.get('name')}, rate {optim.get('lr_weights')} per 256, decay {optim.get('weight_decay')}",
        "began from": config.get("init_from") or "random weights",
        "seed": config.get("seed"),
    }


def _measured(summary: dict[str, Any]) -> str:
    rows = {}
    for key, name in (("knn_top1", "kNN top-1"), ("linear_top1", "linear probe top-1, frozen features")):
        value = summary.get(key, {})
        value = value.get("trained") if isinstance(value, dict) else value
        if value is not None:
            rows[f"{name}, held-out images, one seed"] = f"{100 * value:.1f} %"
    for name, value in summary.get("unlabelled", {}).items():
        rows[f"without labels: {name}"] = f"{value:.3g}"
    return _table(rows) if rows else "No figures stand beside these weights."


def _table(rows: dict[str, Any]) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())])


def _parameters(variables: dict[str, Any]) -> int:
    import jax

    return sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))


def _numbers(values) -> str:
    return ", ".join(f"{value:g}" for value in values)


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _run_folder(path: Path) -> Path | None:
    return next((folder for folder in (path, path.parent.parent) if (folder / "config.json").is_file()), None)


def _json(run: Path | None, name: str) -> dict[str, Any]:
    try:
        return json.loads((run / name).read_text()) if run else {}
    except (OSError, ValueError):
        return {}
