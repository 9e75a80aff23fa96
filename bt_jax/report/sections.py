"""The sections of scores, curves and files, in the order of the page."""

import itertools
import math
import shlex

import numpy as np

from bt_jax import storage
from bt_jax.objectives import registry
from bt_jax.report.formats import duration, number, percent, short
from bt_jax.report.page import COLOURS, bar, esc, figure, section, swatch, table
from bt_jax.report.plots import MARKS, Panel, draw_panel, svg
from bt_jax.report.results import KINDS, accuracies, results_verdict, task
from bt_jax.report.runs import Run, flat
from bt_jax.report.verdict import ROWS, knn_name, smoke_sentence, verdict

SCORES = (("knn_top1", "nearest neighbours"), ("linear_top1", "linear probe"))
FILES = {
    "comparison.html": "this run beside others",
    "metrics.jsonl": "every logged step, one JSON object a line",
    "summary.json": "the final scores",
    "config.json": "the resolved config",
    "data.json": "counts, classes and checksums of the images",
    "environment.json": "versions, devices, commit and command",
    "broken.txt": "the unreadable images",
    "pictures.npz": "the arrays behind the pictures",
    "correlation": "the cross-correlation during training",
    "checkpoints": "the weights and the training state",
    "tensorboard": "the same metrics for TensorBoard",
}


def header_section(runs: list[Run]) -> str:
    """The kind and the name of the run, the verdict, warnings and the main figures."""
    run = runs[0]
    kind, pretraining = KINDS.get(task(run)), f"{registry.method_of_run(run.config).title} pretraining".strip()
    smoke = smoke_sentence(run)
    results = [*([("plain", smoke)] if smoke else []), results_verdict(run)] if kind else verdict(run)
    (tone, first), *others = results
    notes = "".join(f'<p class="note {t}">{esc(text)}</p>' for t, text in others)
    against = " compared with " + ", ".join(esc(other.name) for other in runs[1:]) if len(runs) > 1 else ""
    facts = [
        ("steps", f"{run.steps:,.0f}" if run.steps else "–"),
        ("epochs", short(run.last("epoch"))),
        ("time", duration(number(run.summary.get("seconds")))),
        ("pairs per second", short(median(run, "perf/pairs_per_sec"))),
        ("images per second", short(median(run, "perf/images_per_sec"))),
        ("waiting for data", percent(median(run, "perf/data_wait"))),
    ]
    tiles = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in facts if value != "–")
    return (
        f'<header><p class="kind">{kind or pretraining}{against}</p><h1>{esc(run.name)}</h1>'
        f'<p class="verdict {tone}">{esc(first)}</p>{notes}<dl class="facts">{tiles}</dl></header>'
    )


def median(run: Run, metric: str) -> float | None:
    """The median of the finite values of a metric; None if it has none."""
    values = [value for value in run.series.get(metric, {}).values() if math.isfinite(value)]
    return float(np.median(values)) if values else None


def summary_section(run: Run) -> str:
    """The final scores of a pretraining run, with those of the untrained encoder and of raw pixels."""
    scores = [(name, title) for name, title in SCORES if isinstance(run.summary.get(name), dict)]
    if not scores:
        return section("Result", f"<p>{_why_no_table(run)}</p>")
    measured = [(row, label) for row, label in ROWS if any(run.score(name, row) is not None for name, _ in scores)]
    rows = [[label, *(bar(run.score(name, row), row) for name, _ in scores)] for row, label in measured]
    lead = (
        "Top-1 accuracy on held-out images. An encoder that has learned useful features is above the untrained encoder"
        " and above raw pixels."
    )
    if "raw_pixels" not in dict(measured):
        lead += " Raw pixels have no row, because the images are streamed."
    columns = [f"{title} ({esc(knn_name(run))})" if name == "knn_top1" else title for name, title in scores]
    return section("Result", table(["", *columns], rows, "even"), lead)


def _why_no_table(run: Run) -> str:
    if flat(run.config).get("data.val_split") == "":
        return (
            "No table: the run has no held-out split, so that kNN and linear probe are left out. Hold images out with"
            " the argument <code>val=20%</code> of the folder recipe, or with <code>--config.data.train_split</code>"
            " and <code>--config.data.val_split</code>."
        )
    return "No table: summary.json has no kNN and no linear-probe accuracy."


# The keys that choose the images of an evaluation
IMAGES = [f"data.{key}" for key in ("name", "folder", "npz", "train_split", "val_split", "fraction")]


def comparison_section(runs: list[Run]) -> str:
    """The last scores of every run, and the config keys in which the runs differ."""
    has_rank = any(run.last("val/rank") is not None for run in runs)

    def row(i: int, run: Run) -> list[str]:
        return [
            swatch(i) + esc(run.name),
            *_compared_scores(run),
            *([short(run.last("val/rank"))] if has_rank else []),
            short(run.last("train/loss")),
            f"{run.steps:,.0f}",
            duration(number(run.summary.get("seconds"))),
        ]

    rows = [row(i, run) for i, run in enumerate(runs)]
    rank = ["effective rank"] if has_rank else []
    body = table(["run", "kNN top-1", "linear top-1", *rank, "last loss", "steps", "time"], rows)
    configs = [flat(run.config) for run in runs]
    others = [
        run.name
        for run, config in zip(runs, configs, strict=True)
        if any(config.get(key) != configs[0].get(key) for key in IMAGES)
    ]
    if others:
        names = esc(", ".join(others))
        body += f"<p>According to the configs, {names} and {esc(runs[0].name)} have different images."
        body += " Accuracies on different images cannot be compared.</p>"
    if len({registry.method_of_run(run.config) for run in runs}) > 1:
        body += "<p>The runs have different methods. Their losses cannot be compared.</p>"
    keys = [
        key
        for key in dict.fromkeys(k for config in configs for k in config)
        if len({config.get(key) for config in configs}) > 1
    ]
    if keys:
        cells = [[esc(key), *(esc(config.get(key, "–")) for config in configs)] for key in keys]
        columns = ["config key", *(swatch(i) + esc(run.name) for i, run in enumerate(runs))]
        body += table(columns, cells)
    else:
        body += "<p>The configs are equal.</p>"
    return section("Comparison of the runs", body)


def _compared_scores(run: Run) -> list[str]:
    """The accuracies of kNN and of the linear probe, in percent."""
    if task(run) in KINDS:
        rows = accuracies(run.summary)
        knn = next(((value, name.partition(",")[0]) for name, value, _ in rows if "NN" in name), None)
        linear = next((value for name, value, _ in rows if name in ("linear probe", "top-1")), None)
    else:
        value = run.score("knn_top1", "trained")
        value = run.last("val/knn_top1") if value is None else value
        knn, linear = None if value is None else (value, knn_name(run)), run.score("linear_top1", "trained")
        linear = run.last("val/online_top1") if linear is None else linear
    return [f"{percent(knn[0])} ({esc(knn[1])})" if knn else percent(None), percent(linear)]


def curves_section(title: str, panels: tuple[Panel, ...], runs: list[Run], kind: str = "") -> str:
    """Plots of the panels that have data, a legend of the runs, and a sentence with the metrics that have none."""
    drawn, absent = [], []
    for panel in panels:
        known = tuple(curve for curve in panel.curves if any(run.last(curve[0]) is not None for run in runs))
        labels = {label for _, label in known}  # a metric with an older name has the label of the newer one
        absent += [metric for metric, label in panel.curves if label not in labels]
        if known:
            drawn.append(plot(panel._replace(curves=known), runs, small=bool(kind)))
    names = "".join(f"<li>{swatch(i)}{esc(run.name)}</li>" for i, run in enumerate(runs))
    legend = f'<ul class="legend">{names}</ul>' if len(runs) > 1 and drawn else ""
    missing = f'<p class="quiet">Not drawn: metrics.jsonl has no {esc(", ".join(absent))}.</p>' if absent else ""
    return section(title, f'{legend}<div class="plots {kind}">{"".join(drawn)}</div>{missing}')


def plot(panel: Panel, runs: list[Run], *, small: bool) -> str:
    """A figure with the drawing of a panel, its legend and its caption."""
    marks = MARKS if len(runs) > 1 else [swatch(i) for i in range(COLOURS)]
    legend = [mark + label for mark, (_, label) in zip(itertools.cycle(marks), panel.curves, strict=False)]
    size = {"width": 260, "height": 165} if small else {}
    drawing = svg(lambda axes: draw_panel(axes, panel, runs), panel.title, **size)
    return figure(panel.title, drawing, panel.caption, legend if len(legend) > 1 else [])


def details_section(run: Run) -> str:
    """The config, the environment, the files of the run folder, and the commands of run and report."""

    def listing(title: str, tree: dict, name: str) -> str:
        lines = "\n".join(f"{key} = {value}" for key, value in flat(tree).items()) or f"{name} has no entries."
        return f"<details><summary>{title}</summary><pre>{esc(lines)}</pre></details>"

    command = run.environment.get("command")
    command = shlex.join(map(str, command)) if isinstance(command, list) else command
    body = (
        f"<p>The command of this run:</p>{command_box(command)}"
        if command
        else "<p>The command of this run is unknown: environment.json has none.</p>"
    )
    entries = [path for path in sorted(run.path.iterdir()) if not path.name.startswith(".")]
    size = {path: f"{storage.size(path) / 1000:,.1f} kB" if path.is_file() else "folder" for path in entries}
    rows = [
        [f"<code>{esc(path.name)}</code>", size[path], FILES.get(path.name, "")]
        for path in entries
        if path.name != "report.html"
    ]
    body += f"<p>The files in <code>{esc(storage.absolute(run.path))}</code>:</p>"
    body += table(["file", "size", "content"], rows)
    again = shlex.join(["python", "-m", "bt_jax.report", str(run.path)])
    body += f"<p>To write the report of this run again:</p>{command_box(again)}"
    missing = "".join(f'<p class="quiet">{esc(sentence)}</p>' for sentence in run.omissions)
    return section(
        "Config and environment",
        listing("Config", run.config, "config.json") + listing("Environment", run.environment, "environment.json"),
    ) + section("Files and commands", body + missing)


def command_box(command: str) -> str:
    """A command in a box. Lines break between its words, not after the hyphens of an option."""
    words = " ".join(f"<span>{esc(word)}</span>" for word in str(command).split(" "))
    return f'<pre class="words">{words}</pre>'
