"""The report of a run: one self-contained HTML file made of what lies in the run folder.

    python -m bt_jax.report RUN              writes RUN/report.html again
    python -m bt_jax.report RUN1 RUN2 ...    the curves of all in one report: that of the first, or --out FILE

Only `metrics.jsonl` must be there. A part whose input is missing or damaged is left out, with a sentence saying why.
"""

import argparse
import base64
import html
import io
import json
import math
import os
import re
import sys
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bt_jax.errors import UserError


# What is drawn ------------------------------------------------------------------------------------------------------
class Panel(NamedTuple):
    """One plot. curves: (metric, label); percent: values are fractions; log: log y may help; zero: y starts at 0."""

    title: str
    curves: tuple[tuple[str, str], ...]
    caption: str
    percent: bool = False
    log: bool = False
    zero: bool = False


LOSS = (
    Panel("Total", (("train/loss", "loss"),), "Should fall fast, then ever more slowly. Rising or jagged to the end:"
          " the learning rate is too high. Flat from the start: nothing is learned.", log=True),
    Panel("Its two terms", (("train/on_diag", "on-diagonal: the two views disagree"),
                            ("train/off_diag", "off-diagonal: features repeat each other")),
          "The loss is the first plus lambd times the second. Both should fall. If one falls while the other climbs,"
          " lambd weighs them badly.", log=True),
)
QUALITY = (
    Panel("Nearest neighbours on held-out images", (("val/knn_top1", "kNN top-1"),), "Share of held-out images whose"
          " nearest training images name the right class. Should climb well above the dotted lines; falling late in"
          " the run is a warning.", percent=True),
    Panel("Linear probe", (("val/linear_top1", "held-out images"), ("train/probe_top1", "training batches")),
          "A linear classifier on frozen features; it never changes the encoder. Training far above held-out: the"
          " probe overfits.", percent=True),
)
MACHINERY = (
    Panel("Mean diagonal of c", (("train/diag_mean", "mean diagonal"),), "How far the two views of an image agree:"
          " towards 1. Stuck near 0: the augmentation leaves nothing in common."),
    Panel("Spread of the embedding", (("train/embedding_std", "standard deviation"),), "Near 1 when"
          " the embeddings spread in all directions. A fall to 0 is collapse: every image gets the same embedding.",
          zero=True),
    Panel("Gradient norm", (("train/grad_norm", "norm"),), "Calm or slowly falling. Spikes come before a loss that"
          " blows up.", log=True),
    Panel("Learning rate of weights", (("train/lr_weights", "rate"),), "As the config asks: usually up during"
          " warm-up, then down along a cosine."),
    Panel("Learning rate of biases and norms", (("train/lr_biases", "rate"),), "The same shape at its own height."),
    Panel("Probe loss", (("train/probe_loss", "loss"),), "Should fall as the features get better."),
    Panel("Throughput", (("perf/pairs_per_sec", "pairs per second"),), "Should be flat. Dips: evaluation, checkpoints"
          " or a busy machine.", zero=True),
    Panel("Waiting for data", (("perf/data_wait", "share of time"),), "Near 0 %. Much more: the input, not the"
          " training, sets the pace.", percent=True, zero=True),
)
FILES = {
    "metrics.jsonl": "every logged step, one JSON object a line",
    "summary.json": "the final table",
    "config.json": "the resolved config",
    "environment.json": "versions, devices, commit and command",
    "pictures.npz": "the arrays behind the pictures",
    "checkpoints": "the trained parameters, to resume from or to load",
    "tensorboard": "the same metrics for TensorBoard",
}
ROWS = (("trained", "trained encoder"), ("untrained", "the same encoder untrained"), ("raw_pixels", "raw pixels"))
SCORES = (("knn_top1", "nearest neighbours"), ("linear_top1", "linear probe"))
COLOURS = 6  # --c0 ... --c5 in the style sheet
HISTOGRAM = {"before training": 1, "after training": 0}  # colour of each
MOST_POINTS = 300  # a curve with more is averaged down: a screen shows no more, and the file stays small
MOST_PIXELS = 96  # larger pictures are scaled down to this


# Reading a run ------------------------------------------------------------------------------------------------------
@dataclass
class Run:
    """What lies in one run folder. `series[metric][step]` is a float; `why` says in words what is missing."""

    path: Path
    name: str
    series: dict[str, dict[float, float]]
    why: list[str] = field(default_factory=list)
    summary: dict = field(default_factory=dict)
    config: dict = field(default_factory=dict)
    environment: dict = field(default_factory=dict)
    pictures: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def steps(self) -> float:
        return max((step for points in self.series.values() for step in points), default=0)

    def last(self, metric: str) -> float | None:
        """Newest finite value of a metric."""
        finite = [step for step, value in self.series.get(metric, {}).items() if math.isfinite(value)]
        return self.series[metric][max(finite)] if finite else None

    def score(self, name: str, row: str) -> float | None:
        """A number of summary.json, such as score("knn_top1", "trained")."""
        scores = self.summary.get(name)
        return number(scores.get(row)) if isinstance(scores, dict) else None


def read_run(folder) -> Run:
    path = Path(folder)
    if not path.is_dir():
        raise UserError(f"No run folder {path}", "Name the folder that was given as --workdir")
    if not (path / "metrics.jsonl").is_file():
        raise UserError(f"No metrics.jsonl in {path}", "Name the --workdir of a run that has logged a step")
    series, unreadable = read_metrics(path / "metrics.jsonl")
    run = Run(path, path.resolve().name, series)
    if unreadable:
        run.why.append(f"Skipped {plural(unreadable, 'line')} of metrics.jsonl that could not be read; a run killed"
                       " while writing leaves one.")
    run.summary = read_json(path / "summary.json", run.why)
    run.config = read_json(path / "config.json", run.why)
    run.environment = read_json(path / "environment.json", run.why)
    run.pictures = read_pictures(path / "pictures.npz", run.why)
    return run


def read_metrics(path: Path) -> tuple[dict, int]:
    """({metric: {step: value}}, number of unreadable lines). A step logged twice, after a resume, keeps the later."""
    series, unreadable = {}, 0
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            step = float(record.pop("step"))
        except (ValueError, TypeError, KeyError, AttributeError):
            unreadable += 1
            continue
        for metric, value in record.items():
            if value is None:  # strict JSON writers put null where the value is NaN
                value = math.nan
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                series.setdefault(metric, {})[step] = float(value)
    return {metric: dict(sorted(points.items())) for metric, points in series.items()}, unreadable


def read_json(path: Path, why: list[str]) -> dict:
    if not path.is_file():
        why.append(f"There is no {path.name} in the run folder.")
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        why.append(f"{path.name} cannot be read ({error}).")
        return {}
    if not isinstance(value, dict):
        why.append(f"{path.name} holds no JSON object.")
        return {}
    return value


def read_pictures(path: Path, why: list[str]) -> dict[str, np.ndarray]:
    """The arrays of pictures.npz that have the shape they should have."""
    if not path.is_file():
        why.append("There is no pictures.npz in the run folder.")
        return {}
    good = {}
    try:
        with np.load(path, allow_pickle=False) as file:
            for name in file.files:
                array = file[name]
                matrix = name.startswith("c_") and array.ndim == 2 and array.shape[0] == array.shape[1] > 1
                images = array.ndim == 4 and array.shape[-1] == 3 and array.dtype == np.uint8 and array.size
                if matrix and array.dtype.kind == "f" or images:
                    good[name] = array
                else:
                    why.append(f"{name} of pictures.npz has shape {array.shape} and type {array.dtype}: not drawn.")
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        why.append(f"pictures.npz cannot be read ({error}).")
    return good


# Words --------------------------------------------------------------------------------------------------------------
def esc(value) -> str:
    return html.escape(str(value), quote=True)


def number(value) -> float | None:
    """A finite float, or None for anything else."""
    good = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if good else None


def plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f} %"


def short(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def duration(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    minutes, rest = divmod(round(seconds), 60)
    return f"{rest} s" if minutes < 1 else f"{minutes} min {rest} s" if minutes < 60 else (
        f"{minutes // 60:,} h {minutes % 60} min")


def points_between(trained: float, other: float, name: str) -> str:
    points = round(100 * (trained - other))
    return f"level with {name}" if points == 0 else (
        f"{plural(abs(points), 'point')} {'above' if points > 0 else 'below'} {name}")


def verdict(run: Run) -> list[tuple[str, str]]:
    """[(tone, sentence)]; the first is the answer in one sentence, the others are warnings. Tone: good, warn or bad."""
    after = f"After {plural(int(run.steps), 'step')}"
    name = f"{knn_name(run)} top-1"
    trained = run.score("knn_top1", "trained")
    if trained is not None:
        rivals = {words: run.score("knn_top1", row) for row, words in ROWS[1:]}
        rivals = {words: value for words, value in rivals.items() if value is not None}
        gaps = " and ".join(points_between(trained, value, words) for words, value in rivals.items())
        learned = all(round(100 * (trained - value)) > 0 for value in rivals.values())
        text = f"{after} the encoder reaches {percent(trained)} {name} on held-out images"
        said = [("good" if learned else "warn", f"{text}, {gaps}." if gaps else f"{text}.")]
    elif (value := run.last("val/knn_top1")) is not None:
        said = [("good", f"{after} the last measured {name} on held-out images is {percent(value)}.")]
    elif (value := run.last("train/loss")) is not None:
        said = [("warn", f"{after} the loss is {short(value)}; how good the features are was not measured.")]
    else:
        said = [("warn", "No finite loss has been logged, so there is nothing to judge yet.")]
    if lost := non_finite(run):
        # Training skips a step that is not finite, so only a loss that ends so is the main news.
        *_, ended = run.series.get("train/loss", {0: 0.0}).values()
        said.insert(*((1, ("warn", lost)) if math.isfinite(ended) else (0, ("bad", lost))))
    return said + hints(run)


def knn_name(run: Run) -> str:
    """"200-NN", by the key evals.knn_k of the config; "kNN" where it is not known."""
    return f"{k}-NN" if (k := flat(run.config).get("evals.knn_k")) else "kNN"


def non_finite(run: Run) -> str:
    """A sentence about the NaN and infinities among the logged values, or nothing."""
    lost = {metric: [step for step, value in points.items() if not math.isfinite(value)]
            for metric, points in run.series.items()}
    lost = {metric: steps for metric, steps in lost.items() if steps}
    if not lost:
        return ""
    parts = [f"{metric} is not finite (NaN or infinite) at {plural(len(steps), 'logged step')}, first at step"
             f" {steps[0]:,.0f}" for metric, steps in lost.items()]
    cure = " Lower the learning rate or lengthen the warm-up." if "train/loss" in lost else ""
    return f"{'; '.join(parts)}.{cure}"


def hints(run: Run) -> list[tuple[str, str]]:
    """Warnings that can be read off the curves."""
    said = []
    spread = run.last("train/embedding_std")
    if spread is not None and spread < 0.05:
        said.append(("bad", f"The embedding has collapsed: its spread is {short(spread)}, where 1 is all directions and"
                     " 0 one point, so every image looks the same to the encoder."))
    diagonal = run.last("train/diag_mean")
    if diagonal is not None and diagonal < 0.2:
        said.append(("warn", f"The two views of an image hardly agree: the mean diagonal is {diagonal:.2f}, and 1 is"
                     " full agreement."))
    losses = [value for value in run.series.get("train/loss", {}).values() if math.isfinite(value)]
    if len(losses) > 3 and losses[-1] >= losses[0]:
        said.append(("warn", f"The loss did not fall: {short(losses[0])} at first, {short(losses[-1])} at the end."))
    if not run.summary:
        epoch, total = run.last("epoch"), number(run.config.get("total_epochs"))
        where = f", epoch {epoch:.1f} of {total:g}" if epoch is not None and total else ""
        said.append(("warn", "The run is still going or was stopped: the final table, summary.json, has not been"
                     f" written. Everything here is as of step {run.steps:,.0f}{where}."))
    return said


# Plots --------------------------------------------------------------------------------------------------------------
# Stand-ins that no plot uses by itself; they become CSS variables, so that the plots follow light and dark mode.
INK = {"#010100": "currentColor", "#010101": "var(--line)", "#010102": "var(--bad)",
       **{f"#0102{i:02d}": f"var(--c{i})" for i in range(COLOURS)}}
TEXT, LINE, BAD, *CURVE = INK
STYLE = {
    "svg.fonttype": "none", "svg.hashsalt": "bt_jax", "font.size": 10, "text.color": TEXT, "axes.edgecolor": LINE,
    "axes.labelcolor": TEXT, "xtick.color": LINE, "ytick.color": LINE, "xtick.labelcolor": TEXT,
    "ytick.labelcolor": TEXT, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
    "grid.color": LINE, "grid.linewidth": 0.5, "lines.linewidth": 1.6, "axes.unicode_minus": True,
    "figure.constrained_layout.h_pad": 0.02, "figure.constrained_layout.w_pad": 0.02, "xtick.minor.size": 0,
    "ytick.minor.size": 0, "axes.axisbelow": True, "lines.solid_joinstyle": "round", "legend.frameon": False,
}


def svg(draw, label: str, *, width: int = 320, height: int = 190) -> str:
    """Inline SVG of what `draw(axes)` draws. Size in CSS pixels of a phone; the page stretches it."""
    import matplotlib.style
    from matplotlib.figure import Figure

    with matplotlib.style.context(["default", STYLE]):  # "default" first: a matplotlibrc must not change the report
        figure = Figure(figsize=(width / 72, height / 72), layout="constrained")
        draw(figure.add_subplot())
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    # The metadata holds the date, the style is meant for a file of its own and would reach the whole page.
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", text, flags=re.DOTALL)
    root = f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{esc(label)}">'
    text = re.sub(r"<svg[^>]*>", root, text, count=1)
    text = re.sub(r"<[^>]*>", lambda tag: re.sub(r"(\d\.\d\d)\d+", r"\1", tag[0]), text)  # 1/100 pixel is enough
    scope = re.sub(r"\W+", "-", label.lower())  # ids are unique within a plot only
    text = re.sub(r'\bid="', f'id="{scope}.', text)
    text = text.replace("url(#", f"url(#{scope}.").replace('xlink:href="#', f'href="#{scope}.')
    for stand_in, colour in INK.items():
        text = text.replace(stand_in, colour)
    return re.sub(r"\n\s*", "\n", text)


def thinned(points: dict[float, float]) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values, at most MOST_POINTS: means over neighbours; NaN, a gap, where no neighbour is finite."""
    steps, values = np.array(list(points)), np.array(list(points.values()))
    values = np.where(np.isfinite(values), values, np.nan)
    if len(steps) <= MOST_POINTS:
        return steps, values
    bins = np.array_split(np.arange(len(steps)), MOST_POINTS)
    mean = [np.nanmean(values[b]) if np.isfinite(values[b]).any() else np.nan for b in bins]
    return np.array([steps[b].mean() for b in bins]), np.array(mean)


def tick(value: float, _=None) -> str:
    """1200 as "1.2k"; the second argument is what matplotlib passes along."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{unit}"
    return f"{value:.4g}".replace("-", "−")


def draw_panel(axes, panel: Panel, runs: list[Run]) -> None:
    """Colour tells the runs apart, or the curves where there is one run; dashes tell the curves of several runs."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator

    scale, seen = 100 if panel.percent else 1, []
    for i, run in enumerate(runs):
        for j, (metric, _) in enumerate(panel.curves):
            points = run.series.get(metric, {})
            steps, values = thinned(points)
            colour, dash = (CURVE[i % COLOURS], ("-", "--")[j]) if len(runs) > 1 else (CURVE[j], "-")
            axes.plot(steps, scale * values, dash, color=colour, marker="o" if len(steps) < 40 else "", markersize=2.5)
            seen += [value for value in values if np.isfinite(value)]
            lost = [step for step, value in points.items() if not math.isfinite(value)]
            if lost:
                axes.axvline(lost[0], color=BAD, linestyle=":")
    if len(runs) == 1:
        draw_baselines(axes, runs[0], panel)
    if panel.log and seen and min(seen) > 0 and max(seen) > 20 * min(seen):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 3) if max(seen) < 1000 * min(seen) else (1,)))
    else:
        axes.yaxis.set_major_locator(MaxNLocator(5))
        if panel.zero:
            axes.set_ylim(bottom=0, top=1.1 * scale * max(seen, default=0) or 1)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: tick(v) + (" %" if panel.percent else "")))
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.xaxis.set_major_formatter(FuncFormatter(tick))
    axes.set_xlabel("step")


def draw_baselines(axes, run: Run, panel: Panel) -> None:
    name = panel.curves[0][0].removeprefix("val/")
    for row, label in (("untrained", "untrained"), ("raw_pixels", "raw pixels")):
        value = run.score(name, row)
        if value is not None:
            axes.axhline(100 * value, color=TEXT, linestyle=":", linewidth=1)
            axes.annotate(label, (1, 100 * value), xycoords=("axes fraction", "data"), xytext=(0, 2),
                          textcoords="offset points", ha="right", fontsize=9)


def draw_histogram(axes, matrices: dict[str, np.ndarray]) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    values = {label: off_diagonal(c) for label, c in matrices.items()}
    reach = max([float(np.abs(v).max()) for v in values.values() if v.size] + [1e-3])
    for label, v in values.items():
        counts, edges = np.histogram(v, bins=61, range=(-reach, reach))
        colour = CURVE[HISTOGRAM[label]]
        axes.stairs(counts / max(v.size, 1), edges, color=colour, fill=True, alpha=0.35)
        axes.stairs(counts / max(v.size, 1), edges, color=colour)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{tick(100 * v)} %"))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.set_xlabel("off-diagonal correlation")


def off_diagonal(c: np.ndarray) -> np.ndarray:
    values = c[~np.eye(len(c), dtype=bool)].astype(np.float64)
    return values[np.isfinite(values)]


# Pictures -----------------------------------------------------------------------------------------------------------
def png(image, **options) -> str:
    """A Pillow image as a data URI."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True, **options)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def heat_map(c: np.ndarray) -> str:
    """c in [-1, 1]: blue below 0, orange above, clear at 0, so that the page shows through in light and dark mode."""
    from PIL import Image

    levels = np.arange(255) - 127  # index 255 is for what is not finite
    palette = [(28, 126, 214) if level < 0 else (232, 89, 12) for level in levels] + [(224, 49, 200)]
    opacity = bytes([*np.round(np.abs(levels) / 127 * 255).astype(int), 255])
    index = np.where(np.isfinite(c), np.round(np.clip(np.nan_to_num(c), -1, 1) * 127) + 127, 255).astype(np.uint8)
    image = Image.fromarray(index)
    image.putpalette([value for colour in palette for value in colour])
    return png(image, transparency=opacity)


def photograph(pixels: np.ndarray, label: str) -> str:
    from PIL import Image

    image = Image.fromarray(pixels)
    image.thumbnail((MOST_PIXELS, MOST_PIXELS))
    return f'<img src="{png(image)}" alt="{esc(label)}" width="{image.width}" height="{image.height}">'


# The page, from top to bottom ---------------------------------------------------------------------------------------
def head_section(runs: list[Run]) -> str:
    run = runs[0]
    (tone, first), *others = verdict(run)
    notes = "".join(f'<p class="note {t}">{esc(text)}</p>' for t, text in others)
    against = " compared with " + ", ".join(esc(other.name) for other in runs[1:]) if len(runs) > 1 else ""
    facts = [("steps", f"{run.steps:,.0f}"), ("epochs", short(run.last("epoch"))),
             ("time", duration(number(run.summary.get("seconds")))),
             ("pairs per second", short(median(run, "perf/pairs_per_sec"))),
             ("waiting for data", percent(median(run, "perf/data_wait")))]
    tiles = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in facts if value != "–")
    return (f'<header><p class="kind">Barlow Twins pretraining{against}</p><h1>{esc(run.name)}</h1>'
            f'<p class="verdict {tone}">{esc(first)}</p>{notes}<dl class="facts">{tiles}</dl></header>')


def median(run: Run, metric: str) -> float | None:
    values = [value for value in run.series.get(metric, {}).values() if math.isfinite(value)]
    return float(np.median(values)) if values else None


def section(title: str, body: str, lead: str = "") -> str:
    return f"<section><h2>{esc(title)}</h2>{f'<p>{lead}</p>' if lead else ''}{body}</section>"


def table(head: list[str], rows: list[list[str]], kind: str = "") -> str:
    """Cells are HTML already; the first of a row is its name."""
    top = "".join(f'<th scope="col">{cell}</th>' for cell in head)
    body = "".join(f'<tr><th scope="row">{name}</th>' + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"
                   for name, *cells in rows)
    return f'<div class="wide"><table class="{kind}"><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def summary_section(run: Run) -> str:
    scores = [(name, title) for name, title in SCORES if isinstance(run.summary.get(name), dict)]
    if not scores:
        return section("Result", "<p>No final table: summary.json has no kNN and no linear-probe accuracy.</p>")
    rows = [[label, *(bar(run.score(name, row), row) for name, _ in scores)] for row, label in ROWS]
    lead = ("Top-1 accuracy on images never trained on. The trained encoder should be well above both others;"
            " level with them, it has learned nothing of use.")
    heads = [f"{title} ({esc(knn_name(run))})" if name == "knn_top1" else title for name, title in scores]
    return section("Result", table(["", *heads], rows, "even"), lead)


def bar(value: float | None, row: str) -> str:
    if value is None:
        return "–"
    width = 100 * min(max(value, 0), 1)
    return f'{percent(value)}<span class="bar"><i class="{row}" style="width:{width:.1f}%"></i></span>'


def comparison_section(runs: list[Run]) -> str:
    def row(i: int, run: Run) -> list[str]:
        knn = [run.score("knn_top1", "trained"), run.last("val/knn_top1")]
        linear = [run.score("linear_top1", "trained"), run.last("val/linear_top1")]
        best = [percent(next((value for value in values if value is not None), None)) for values in (knn, linear)]
        return [swatch(i) + esc(run.name), *best, short(run.last("train/loss")), f"{run.steps:,.0f}",
                duration(number(run.summary.get("seconds")))]

    rows = [row(i, run) for i, run in enumerate(runs)]
    body = table(["run", "kNN top-1", "linear top-1", "last loss", "steps", "time"], rows)
    configs = [flat(run.config) for run in runs]
    keys = [key for key in dict.fromkeys(k for config in configs for k in config)
            if len({config.get(key) for config in configs}) > 1]
    if keys:
        cells = [[esc(key), *(esc(config.get(key, "–")) for config in configs)] for key in keys]
        heads = ["differs in the config", *(swatch(i) + esc(run.name) for i, run in enumerate(runs))]
        body += table(heads, cells)
    else:
        body += "<p>The configs hold no difference.</p>"
    return section("Runs side by side", body)


def swatch(i: int) -> str:
    return f'<i class="swatch" style="background:var(--c{i % COLOURS})"></i>'


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


def figure(title: str, body: str, caption: str, legend: list[str] = ()) -> str:
    items = "".join(f"<li>{item}</li>" for item in legend)
    below = f'<ul class="legend">{items}</ul>' if legend else ""
    return f"<figure><h3>{title}</h3>{body}{below}<figcaption>{caption}</figcaption></figure>"


def correlation_section(run: Run) -> str:
    named = {"before training": run.pictures.get("c_before"), "after training": run.pictures.get("c_after")}
    matrices = {label: c for label, c in named.items() if c is not None}
    title = "Cross-correlation of the two views"
    if not matrices:
        return section(title, "<p>Not drawn: pictures.npz holds no c_before and no c_after.</p>")
    lead = ("Row i, column j: how feature i of one view goes with feature j of the other, over a batch. Training pulls"
            " this matrix towards the identity: a bright diagonal (the views agree) on an empty field (no feature"
            " repeats another). Bad: blocks and stripes that stay, or a pale diagonal.")
    maps = "".join(figure(label.capitalize(), f'<img class="map" src="{heat_map(c)}" alt="c {label}">', in_words(c))
                   for label, c in matrices.items())
    scale = '<div class="scale"><span>−1</span><i></i><span>0</span><i class="up"></i><span>+1</span></div>'
    drawing = svg(lambda axes: draw_histogram(axes, matrices), "Off-diagonal values", width=280, height=250)
    histogram = figure("Off-diagonal values", drawing, "After training this should be one narrow peak at 0. Wide"
                       " shoulders: features still repeat each other.",
                       [swatch(HISTOGRAM[label]) + label for label in matrices])
    absent = "".join(f"<p>There is no matrix {label} in pictures.npz.</p>" for label in named if label not in matrices)
    return section(title, f'{scale}<div class="plots three">{maps}{histogram}</div>{absent}', lead)


def in_words(c: np.ndarray) -> str:
    diagonal, off = np.diag(c)[np.isfinite(np.diag(c))], off_diagonal(c)
    lost = int((~np.isfinite(c)).sum())
    if not diagonal.size or not off.size:
        return "Not one finite value on the diagonal or off it."
    typical = np.sqrt((off**2).mean())
    text = f"Mean diagonal {diagonal.mean():.2f}; a typical off-diagonal value (root mean square) {typical:.2f}."
    return text + (f" {plural(lost, 'value')} not finite, in magenta." if lost else "")


def pairs_section(run: Run) -> str:
    views = [(name, label) for name, label in (("originals", "original"), ("view1", "view 1"), ("view2", "view 2"))
             if name in run.pictures]
    if not {"view1", "view2"} <= {name for name, _ in views}:
        return section("Augmented pairs", "<p>Not drawn: pictures.npz holds no view1 and view2.</p>")
    count = min(32, *(len(run.pictures[name]) for name, _ in views))
    rows = ("".join(photograph(run.pictures[name][i], f"{label} of image {i}") for name, label in views)
            for i in range(count))
    cards = "".join(f'<div class="pair">{row}</div>' for row in rows)
    lead = (f"What the encoder is shown; left to right: {', '.join(label for _, label in views)}. A person should still"
            " see that both views come from one image, and they should differ in crop and colour. Bad: views that are"
            " equal, or that show nothing.")
    return section("Augmented pairs", f'<div class="pairs">{cards}</div>', lead)


def flat(tree, prefix: str = "") -> dict[str, str]:
    """{"optim.lr_weights": "0.2"}: the dotted keys that --config.KEY=VALUE takes."""
    if isinstance(tree, dict) and tree:
        return {k: v for key, value in tree.items() for k, v in flat(value, f"{prefix}.{key}".lstrip(".")).items()}
    return {prefix: tree if isinstance(tree, str) else json.dumps(tree)} if prefix else {}


def details_section(run: Run) -> str:
    def listing(title: str, tree: dict, name: str) -> str:
        lines = "\n".join(f"{key} = {value}" for key, value in flat(tree).items()) or f"{name} holds nothing to show."
        return f"<details><summary>{title}</summary><pre>{esc(lines)}</pre></details>"

    command = run.environment.get("command")
    command = " ".join(map(str, command)) if isinstance(command, list) else command
    again = f"<p>The command that made this run:</p><pre>{esc(command)}</pre>" if command else (
        "<p>The command that made this run is not known: environment.json does not name it.</p>")
    entries = [path for path in sorted(run.path.iterdir()) if not path.name.startswith(".")]
    size = {path: f"{path.stat().st_size / 1000:,.1f} kB" if path.is_file() else "folder" for path in entries}
    rows = [[f"<code>{esc(path.name)}</code>", size[path], FILES.get(path.name, "")]
            for path in entries if path.name != "report.html"]
    again += f"<p>In <code>{esc(run.path.resolve())}</code>:</p>" + table(["file", "size", "what it holds"], rows)
    again += f"<p>This report again:</p><pre>python -m bt_jax.report {esc(run.path)}</pre>"
    missing = "".join(f'<p class="quiet">{esc(why)}</p>' for why in run.why)
    return (section("Config and environment", listing("Config", run.config, "config.json")
                    + listing("Environment", run.environment, "environment.json"))
            + section("Files, and how to run it again", again + missing))


CSS = """
:root{color-scheme:light dark;--page:#f6f7f9;--card:#fff;--ink:#1d232b;--quiet:#626c79;--line:#d5dae1;--good:#0b7a55;
--warn:#9a5b00;--bad:#c62a2a;--c0:#0b6bcb;--c1:#d9480f;--c2:#0f8a5f;--c3:#8a3ffc;--c4:#a67c00;--c5:#c2255c}
@media(prefers-color-scheme:dark){:root{--page:#12161b;--card:#1a2027;--ink:#e4e8ee;--quiet:#98a3b1;--line:#343d48;
--good:#4fd1a0;--warn:#f0b454;--bad:#ff7b72;--c0:#6cb2ff;--c1:#ff9a5c;--c2:#4ed4a0;--c3:#c9a2ff;--c4:#e6c34a;
--c5:#ff8bb0}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);font:16px/1.5 system-ui,sans-serif;-webkit-text-size-adjust:100%}
@media(max-width:480px){main section{padding:14px}}
main{max-width:1120px;margin:auto;padding:20px 16px 48px}
h1{font-size:1.9rem;line-height:1.15;margin:0 0 .5rem;overflow-wrap:anywhere}
h2{font-size:1.25rem;margin:0 0 .4rem} h3{font-size:1rem;margin:0 0 .3rem} p{margin:.3rem 0 .8rem;max-width:75ch}
.kind{color:var(--quiet);margin:0} .quiet,figcaption{color:var(--quiet);font-size:.875rem}
.verdict{font-size:1.2rem;line-height:1.4;padding-left:14px;border-left:4px solid var(--good)} .note{padding-left:18px}
.verdict.warn{border-color:var(--warn)} .verdict.bad{border-color:var(--bad)}
.note.warn{color:var(--warn)} .note.bad{color:var(--bad)}
.facts{display:flex;flex-wrap:wrap;gap:10px 28px;margin:1rem 0} .facts dt{color:var(--quiet);font-size:.8rem}
.facts dd{margin:0;font-size:1.2rem;font-weight:600;font-variant-numeric:tabular-nums}
section{background:var(--card);border:1px solid var(--line);border-radius:12px;padding:18px;margin:16px 0}
.plots{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,380px),1fr));gap:24px 28px}
.plots.small,.plots.three{grid-template-columns:repeat(auto-fill,minmax(min(100%,280px),1fr))}
figure{margin:0;min-width:0} figcaption{margin-top:.4rem} svg{display:block;width:100%;height:auto;overflow:visible}
svg *{stroke-linejoin:round;stroke-linecap:butt} svg text{font-family:inherit!important}
.map{display:block;width:100%;aspect-ratio:1;image-rendering:pixelated;border:1px solid var(--line)}
.scale{display:flex;align-items:center;gap:6px;max-width:280px;margin:0 0 14px;font-size:.8rem;color:var(--quiet)}
.scale i{flex:1;height:10px;background:linear-gradient(90deg,rgb(28 126 214),rgb(28 126 214/0))}
.scale i.up{background:linear-gradient(270deg,rgb(232 89 12),rgb(232 89 12/0))}
.pairs{display:grid;grid-template-columns:repeat(auto-fill,minmax(120px,1fr));gap:12px}
.pair{display:flex;gap:2px}
.pair img{flex:1;min-width:0;width:0;height:auto;image-rendering:pixelated;border-radius:2px}
.legend{list-style:none;display:flex;flex-wrap:wrap;gap:2px 16px;padding:0;margin:.3rem 0;font-size:.875rem}
.swatch{display:inline-block;width:18px;height:3px;margin-right:6px;vertical-align:middle}
.wide{overflow-x:auto;margin:.4rem 0 1rem} table{border-collapse:collapse;width:100%;font-size:.95rem}
.even{table-layout:fixed}
th,td{text-align:left;padding:7px 14px 7px 0;border-bottom:1px solid var(--line);vertical-align:top}
thead th{color:var(--quiet);font-weight:500;font-size:.85rem}
tbody th{font-weight:500} td{font-variant-numeric:tabular-nums}
.bar{display:block;height:6px;min-width:70px;border-radius:3px;background:var(--line);margin-top:4px}
.bar i{display:block;height:6px;border-radius:3px;background:var(--quiet)} .bar .trained{background:var(--c0)}
pre{background:var(--page);border:1px solid var(--line);border-radius:8px;padding:10px;margin:.3rem 0 1rem;
font-size:.85rem;white-space:pre-wrap;overflow-wrap:anywhere;user-select:all}
code{overflow-wrap:anywhere} summary{cursor:pointer;padding:4px 0}
"""


def page(runs: list[Run]) -> str:
    first = runs[0]
    body = [
        head_section(runs),
        summary_section(first),
        comparison_section(runs) if len(runs) > 1 else "",
        curves_section("Loss", LOSS, runs),
        curves_section("How good are the features", QUALITY, runs),
        correlation_section(first),
        pairs_section(first),
        curves_section("The machinery", MACHINERY, runs, "small"),
        details_section(first),
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport"'
        f' content="width=device-width, initial-scale=1"><title>{esc(first.name)} – Barlow Twins</title>'
        f"<style>{CSS}</style></head>\n"
        f"<body><main>\n{chr(10).join(body)}\n</main></body></html>\n"
    )


def write(run_dir, *others, out=None) -> Path:
    """Writes the report of a run and returns its path.

    Args:
      run_dir: run folder; what it may hold is in FILES.
      others: further run folders, drawn into the same curves.
      out: the file to write; RUN_DIR/report.html if None.
    """
    runs = [read_run(folder) for folder in (run_dir, *others)]
    if len({run.name for run in runs}) < len(runs):  # a/run and b/run
        for run in runs:
            run.name = str(run.path)
    target = Path(out) if out else runs[0].path / "report.html"
    partial = target.with_name(f".{target.name}.partial")
    text = page(runs)
    try:
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, target)
    except OSError as error:
        if partial.parent.is_dir():
            partial.unlink(missing_ok=True)
        cure = "Make room there, or name another file with --out"
        raise UserError(f"Cannot write {target}: {error.strerror}", cure) from error
    return target


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bt_jax.report", description="Writes report.html of a run again.")
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folder; several are drawn side by side")
    parser.add_argument("--out", metavar="FILE", help="file to write (default: report.html in the first run folder)")
    args = parser.parse_args(argv)
    try:
        print(write(*args.runs, out=args.out))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
