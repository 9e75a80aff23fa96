"""The sections of numbers, curves and files, from top to bottom; a part without its input says so in a sentence."""

import math

import numpy as np

from bt_jax import storage
from bt_jax.objectives import registry
from bt_jax.report.formats import duration, number, percent, short
from bt_jax.report.page import COLOURS, bar, esc, figure, section, swatch, table
from bt_jax.report.plots import Panel, draw_panel, svg
from bt_jax.report.results import KINDS, results_verdict, task
from bt_jax.report.runs import Run, flat
from bt_jax.report.verdict import ROWS, knn_name, verdict

SCORES = (("knn_top1", "nearest neighbours"), ("linear_top1", "linear probe"))
FILES = {
    "metrics.jsonl": "every logged step, one JSON object a line",
    "summary.json": "the final table",
    "config.json": "the resolved config",
    "environment.json": "versions, devices, commit and command",
    "pictures.npz": "the arrays behind the pictures",
    "checkpoints": "the trained parameters, to resume from or to load",
    "tensorboard": "the same metrics for TensorBoard",
}


def head_section(runs: list[Run]) -> str:
    run = runs[0]
    kind, pretraining = KINDS.get(task(run)), f"{registry.of_run(run.config).title} pretraining".strip()
    (tone, first), *others = [results_verdict(run)] if kind else verdict(run)
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
    values = [value for value in run.series.get(metric, {}).values() if math.isfinite(value)]
    return float(np.median(values)) if values else None


def summary_section(run: Run) -> str:
    scores = [(name, title) for name, title in SCORES if isinstance(run.summary.get(name), dict)]
    if not scores:
        return section("Result", "<p>No final table: summary.json has no kNN and no linear-probe accuracy.</p>")
    rows = [[label, *(bar(run.score(name, row), row) for name, _ in scores)] for row, label in ROWS]
    lead = (
        "Top-1 accuracy on images never trained on. The trained encoder should be well above both others;"
        " level with them, it has learned nothing of use."
    )
    heads = [f"{title} ({esc(knn_name(run))})" if name == "knn_top1" else title for name, title in scores]
    return section("Result", table(["", *heads], rows, "even"), lead)


def comparison_section(runs: list[Run]) -> str:
    ranked = any(run.last("val/rank") is not None for run in runs)

    def row(i: int, run: Run) -> list[str]:
        knn = [run.score("knn_top1", "trained"), run.last("val/knn_top1")]
        linear = [run.score("linear_top1", "trained"), run.last("val/online_top1")]
        best = [percent(next((value for value in values if value is not None), None)) for values in (knn, linear)]
        return [
            swatch(i) + esc(run.name),
            *best,
            *([short(run.last("val/rank"))] if ranked else []),
            short(run.last("train/loss")),
            f"{run.steps:,.0f}",
            duration(number(run.summary.get("seconds"))),
        ]

    rows = [row(i, run) for i, run in enumerate(runs)]
    rank = ["effective rank"] if ranked else []
    body = table(["run", "kNN top-1", "linear top-1", *rank, "last loss", "steps", "time"], rows)
    configs = [flat(run.config) for run in runs]
    keys = [
        key
        for key in dict.fromkeys(k for config in configs for k in config)
        if len({config.get(key) for config in configs}) > 1
    ]
    if keys:
        cells = [[esc(key), *(esc(config.get(key, "–")) for config in configs)] for key in keys]
        heads = ["differs in the config", *(swatch(i) + esc(run.name) for i, run in enumerate(runs))]
        body += table(heads, cells)
    else:
        body += "<p>The configs hold no difference.</p>"
    return section("Runs side by side", body)


def curves_section(title: str, panels: tuple[Panel, ...], runs: list[Run], kind: str = "") -> str:
    """Plots of the panels that have data, a legend of the runs, and a sentence naming what was not logged."""
    drawn, absent = [], []
    for panel in panels:
        known = tuple(curve for curve in panel.curves if any(run.last(curve[0]) is not None for run in runs))
        absent += [metric for metric, _ in panel.curves if (metric, _) not in known]
        if known:
            drawn.append(plot(panel._replace(curves=known), runs, small=bool(kind)))
    names = "".join(f"<li>{swatch(i)}{esc(run.name)}</li>" for i, run in enumerate(runs))
    legend = f'<ul class="legend">{names}</ul>' if len(runs) > 1 and drawn else ""
    missing = f'<p class="quiet">Not in metrics.jsonl, so not drawn: {esc(", ".join(absent))}.</p>' if absent else ""
    return section(title, f'{legend}<div class="plots {kind}">{"".join(drawn)}</div>{missing}')


def plot(panel: Panel, runs: list[Run], *, small: bool) -> str:
    marks = ("— ", "– – ") if len(runs) > 1 else map(swatch, range(COLOURS))
    legend = [mark + label for mark, (_, label) in zip(marks, panel.curves, strict=False)]
    size = {"width": 260, "height": 165} if small else {}
    drawing = svg(lambda axes: draw_panel(axes, panel, runs), panel.title, **size)
    return figure(panel.title, drawing, panel.caption, legend if len(legend) > 1 else [])


def details_section(run: Run) -> str:
    def listing(title: str, tree: dict, name: str) -> str:
        lines = "\n".join(f"{key} = {value}" for key, value in flat(tree).items()) or f"{name} holds nothing to show."
        return f"<details><summary>{title}</summary><pre>{esc(lines)}</pre></details>"

    command = run.environment.get("command")
    command = " ".join(map(str, command)) if isinstance(command, list) else command
    again = (
        f"<p>The command that made this run:</p><pre>{esc(command)}</pre>"
        if command
        else "<p>The command that made this run is not known: environment.json does not name it.</p>"
    )
    entries = [path for path in sorted(run.path.iterdir()) if not path.name.startswith(".")]
    size = {path: f"{storage.size(path) / 1000:,.1f} kB" if path.is_file() else "folder" for path in entries}
    rows = [
        [f"<code>{esc(path.name)}</code>", size[path], FILES.get(path.name, "")]
        for path in entries
        if path.name != "report.html"
    ]
    again += f"<p>In <code>{esc(storage.absolute(run.path))}</code>:</p>" + table(
        ["file", "size", "what it holds"], rows
    )
    again += f"<p>This report again:</p><pre>python -m bt_jax.report {esc(run.path)}</pre>"
    missing = "".join(f'<p class="quiet">{esc(why)}</p>' for why in run.why)
    return section(
        "Config and environment",
        listing("Config", run.config, "config.json") + listing("Environment", run.environment, "environment.json"),
    ) + section("Files, and how to run it again", again + missing)
