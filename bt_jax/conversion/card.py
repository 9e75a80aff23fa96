"""The model card that goes with every export: what the encoder is, what it was trained on, how well it did."""

import datetime
from pathlib import Path
from typing import Any

from bt_jax import run_folder
from bt_jax.conversion.targets import FORMS, Source, is_plain

UNKNOWN = "not known: the source is not in a run folder of bt_jax"


def write(path: Path, source: Source, *, where: Path, form: str, out: Path, licence: str) -> None:
    """Writes Markdown with the front matter that model hubs read.

    Args:
      path: of the card.
      where: the file or checkpoint folder that was converted; config.json and summary.json of its run are read.
      form: a key of FORMS; out: what was written in that form.
      licence: of the weights, or "" for a line that asks for it.
    """
    config, summary, environment = _run(where)
    model = source.model
    build = model["build"]
    sections = [
        _front_matter(licence),
        f"# {build['arch']}{' pretrained with Barlow Twins' if config else ', an image encoder'}",
        "An image encoder trained without labels (Zbontar et al., Barlow Twins: Self-Supervised Learning via Redundancy"
        " Reduction, [arXiv 2103.03230](https://arxiv.org/abs/2103.03230))."
        if config
        else "Converted from other weights.",
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
        _table(_training(config, where.name)) if config else UNKNOWN,
        "## Measured",
        _measured(summary) or "No figures stand beside these weights.",
        "## Versions",
        _table(_part(environment, "versions") or run_folder.versions()),
        f"Written {datetime.date.today()} from `{where.name}` by `python -m bt_jax.convert --to={form}`.",
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


def _training(config: dict[str, Any], step: str) -> dict[str, Any]:
    data, views, optim = (_part(config, name) for name in ("data", "views", "optim"))
    return {
        "data": data.get("folder") or data.get("name"),
        "split": data.get("train_split"),
        "steps": step,
        "of a schedule of": f"{config.get('total_epochs', 0) + (config.get('extend_epochs') or 0):g} epochs",
        "batch": config.get("batch_size"),
        "views": f"{views.get('name')}, {views.get('size')} pixels",
        "projector": "-".join(map(str, _part(config, "model").get("projector") or ())),
        "lambda": _part(config, "loss").get("lambd"),
        "optimizer": f"{optim.get('name')}, rate {optim.get('lr_weights')} per 256, decay {optim.get('weight_decay')}",
        "began from": config.get("init_from") or "random weights",
        "seed": config.get("seed"),
    }


def _measured(summary: dict[str, Any]) -> str:
    rows = {}
    for key, name in (("knn_top1", "kNN top-1"), ("linear_top1", "linear probe top-1, frozen features")):
        value = _part(summary, key).get("trained")
        if isinstance(value, float):
            rows[f"{name}, held-out images, one seed"] = f"{100 * value:.1f} %"
    for name, value in _part(summary, "unlabelled").items():
        if isinstance(value, (int, float)):
            rows[f"without labels: {name}"] = f"{value:.3g}"
    return _table(rows) if rows else ""


def _part(content: dict[str, Any], key: str) -> dict[str, Any]:
    found = content.get(key)
    return found if isinstance(found, dict) else {}


def _table(rows: dict[str, Any]) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())])


def _parameters(variables: dict[str, Any]) -> int:
    import jax

    return sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))


def _numbers(values) -> str:
    return ", ".join(f"{value:g}" for value in values)


def _run(where: Path) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Config, summary and environment of the pretraining run that RUN/checkpoints/STEP is of; the summary only where it
    was measured at that step. Empty where there is none."""
    names = ("config.json", "summary.json", "environment.json")
    config, summary, environment = (run_folder.of_step(where, name) for name in names)
    if config.get("task") != "pretrain":
        return {}, {}, {}
    return config, summary if str(summary.get("steps")) == where.name else {}, environment
