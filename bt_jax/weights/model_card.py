"""The model card of an export: a description of the encoder, its use, its training and its evaluation."""

import datetime
from pathlib import Path
from typing import Any

from bt_jax import storage
from bt_jax.objectives import registry
from bt_jax.run_folder import opening
from bt_jax.weights import usage
from bt_jax.weights.export_formats import Source

UNKNOWN = "Not known: the source is not in a pretraining run of bt_jax."


def write(path: Path, source: Source, *, where: Path, form: str, out: Path, licence: str) -> None:
    """Writes Markdown with the front matter that model hubs read.

    Args:
      path: path of the card.
      where: the converted file or checkpoint folder. The card includes config.json and summary.json of its run,
        without the folders of absolute paths.
      form: a key of FORMS; out: the file or folder written in that form.
      licence: licence of the weights; "": a line that asks for it.
    """
    config, summary = map(_without_folders, _run(where))
    method = registry.method_of_run(config)
    model = source.model
    build = model["build"]
    code = "\n".join(usage.CODE[form](source, out.name))
    language = "yaml" if form == "detectron2" else "python"
    sections = [
        _front_matter(licence, method.title if config else ""),
        f"# {build['arch']}{f' pretrained with {method.title}' if config and method.title else ', an image encoder'}",
        f"An image encoder trained by bt_jax{f' ({method.paper})' if method.paper else ''}."
        if config
        else "An image encoder. Its pretraining is not known.",
        f"Licence of these weights: {licence or '**the publisher must state it**'}.",
        "## Use",
        f"```{language}\n{code}\n```",
        f"Images of {source.size} x {source.size} pixels and {build['channels']} channels; of pixels in [0, 1], the"
        f" mean is {_numbers(model['mean'])} and the standard deviation {_numbers(model['std'])}.",
        "## Training and evaluation",
        *(_training(config, summary, where.name) if config else [UNKNOWN]),
        f"Written {datetime.date.today()} from `{_name(where)}` by `bt-jax convert --to={form}`.",
    ]
    path.write_text("\n\n".join(sections) + "\n")


def _front_matter(licence: str, title: str) -> str:
    lines = [f"license: {licence}"] if licence else []
    tags = [title.lower().replace(" ", "-")] if title else []
    return "\n".join(["---", *lines, f"tags: [{', '.join([*tags, 'image-feature-extraction'])}]", "---"])


def _training(config: dict[str, Any], summary: dict[str, Any], step: str) -> list[str]:
    """One line with the accuracies on held-out images, then the JSON files of the run."""
    shares = [
        f"{name} {100 * value:.1f} %"
        for key, name in (("knn_top1", "kNN top-1"), ("linear_top1", "linear probe top-1"))
        if isinstance(scores := summary.get(key), dict) and isinstance(value := scores.get("trained"), float)
    ]
    figures = f"; frozen features, held-out images, one seed: {', '.join(shares)}" if shares else ""
    files = (("config.json", config), ("summary.json", summary))
    return [f"Step {step} of the run described below{figures}."] + [
        f"<details><summary>{name}</summary>\n\n```json\n{storage.to_json(content, indent=2)}\n```\n\n</details>"
        for name, content in files
        if content
    ]


def _without_folders(value: Any) -> Any:
    """The JSON with the last name alone of each absolute path: the publisher's folders are no reader's business."""
    if isinstance(value, dict):
        return {key: _without_folders(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_without_folders(part) for part in value]
    return Path(value).name if isinstance(value, str) and value.startswith("/") else value


def _name(where: Path) -> str:
    """RUN/checkpoints/STEP of a run, the name alone of anything else."""
    return "/".join(where.parts[-3:]) if where.parent.name == "checkpoints" else where.name


def _numbers(values) -> str:
    return ", ".join(f"{value:g}" for value in values)


def _run(where: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Config and summary of the pretraining run of RUN/checkpoints/STEP; {} for each that does not exist.

    The summary is {} unless it was measured at that step.
    """
    config, summary = (opening.read_run_json(where, name) for name in ("config.json", "summary.json"))
    if config.get("task") != "pretrain":
        return {}, {}
    return config, summary if str(summary.get("steps")) == where.name else {}
