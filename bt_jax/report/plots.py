"""Plots as inline SVG; matplotlib is imported only to draw."""

import io
import math
import re
from typing import NamedTuple

import numpy as np

from bt_jax.report.page import COLOURS, esc
from bt_jax.report.runs import Run

HISTOGRAM = {"before training": 1, "after training": 0}  # index of the colour in CURVE
SPECTRUM = {"untrained": 1, "trained": 0}  # index of the colour in CURVE
NEGLIGIBLE_SHARE = 1e-5  # of the values: outer bins with less are cut off
LOWEST_SHARE = 1e-7  # of the largest variance: the resolution of float32
MAX_POINTS = 300  # of a curve: a screen displays no more, and the file stays small

# Placeholder colours that matplotlib uses nowhere else. CSS variables replace them: plots follow light and dark mode.
INK = {
    "#010100": "currentColor",
    "#010101": "var(--line)",
    "#010102": "var(--bad)",
    **{f"#0102{i:02d}": f"var(--c{i})" for i in range(COLOURS)},
}
TEXT, LINE, BAD, *CURVE = INK
DASHES = ("-", "--", ":", "-.")  # of the curves of a panel with several runs; MARKS in a legend
MARKS = ("— ", "– – ", "· · ", "– · ")
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "bt_jax",
    "font.size": 10,
    "text.color": TEXT,
    "axes.edgecolor": LINE,
    "axes.labelcolor": TEXT,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": TEXT,
    "ytick.labelcolor": TEXT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": LINE,
    "grid.linewidth": 0.5,
    "lines.linewidth": 1.6,
    "axes.unicode_minus": True,
    "figure.constrained_layout.h_pad": 0.02,
    "figure.constrained_layout.w_pad": 0.02,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "axes.axisbelow": True,
    "lines.solid_joinstyle": "round",
    "legend.frameon": False,
}


class Panel(NamedTuple):
    """One plot.

    Attributes:
      curves: (metric, label).
      percent: values are fractions, drawn as percent.
      log: a logarithmic y axis if the values span a large range.
      zero: the y axis starts at 0.
      whole: values are counts.
    """

    title: str
    curves: tuple[tuple[str, str], ...]
    caption: str
    percent: bool = False
    log: bool = False
    zero: bool = False
    whole: bool = False


def draw_panel(axes, panel: Panel, runs: list[Run]) -> None:
    """Draws the curves of the runs.

    With one run, every curve has its own colour. With several, every run has its own colour, and every curve of the
    panel its own dashes.
    """
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator

    scale, drawn = 100 if panel.percent else 1, []
    for i, run in enumerate(runs):
        for j, (metric, _) in enumerate(panel.curves):
            points = run.series.get(metric, {})
            steps, values = downsampled(points)
            colour, dash = (CURVE[i % COLOURS], DASHES[j % len(DASHES)]) if len(runs) > 1 else (CURVE[j % COLOURS], "-")
            axes.plot(steps, scale * values, dash, color=colour, marker="o" if len(steps) < 40 else "", markersize=2.5)
            drawn += [value for value in values if np.isfinite(value)]
            non_finite = [step for step, value in points.items() if not math.isfinite(value)]
            if non_finite:
                axes.axvline(non_finite[0], color=BAD, linestyle=":")
    if len(runs) == 1:
        draw_baselines(axes, runs[0], panel)
    if panel.log and drawn and min(drawn) > 0 and max(drawn) > 20 * min(drawn):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 3) if max(drawn) < 1000 * min(drawn) else (1,)))
    else:
        axes.yaxis.set_major_locator(MaxNLocator(5, integer=panel.whole))
        if panel.zero:
            axes.set_ylim(bottom=0, top=1.1 * scale * max(drawn, default=0) or 1)
        if panel.percent:
            bottom, top = axes.get_ylim()
            axes.set_ylim(max(bottom, 0), min(top, 100))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: tick(v) + (" %" if panel.percent else "")))
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.xaxis.set_major_formatter(FuncFormatter(tick))
    axes.set_xlabel("step")


def draw_baselines(axes, run: Run, panel: Panel) -> None:
    """Dotted lines at the scores of the untrained encoder and of raw pixels, if summary.json has them."""
    name = panel.curves[0][0].removeprefix("val/")
    for row, label in (("untrained", "untrained"), ("raw_pixels", "raw pixels")):
        value = run.score(name, row)
        if value is not None:
            axes.axhline(100 * value, color=TEXT, linestyle=":", linewidth=1)
            axes.annotate(
                label,
                (1, 100 * value),
                xycoords=("axes fraction", "data"),
                xytext=(0, 2),
                textcoords="offset points",
                ha="right",
                fontsize=9,
            )


def draw_histogram(axes, histograms: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
    """Draws {"before training": (counts, edges)}; the x axis ends at the last bin with more than a negligible share."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    reach = 0.0
    for label, (counts, edges) in histograms.items():
        shares, colour = counts / max(counts.sum(), 1), CURVE[HISTOGRAM[label]]
        axes.stairs(shares, edges, color=colour, fill=True, alpha=0.35)
        axes.stairs(shares, edges, color=colour)
        outer = np.maximum(np.abs(edges[:-1]), np.abs(edges[1:]))
        reach = max(reach, *outer[shares > NEGLIGIBLE_SHARE], 0)
    axes.set_xlim(-(reach or 1), reach or 1)
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{tick(100 * v)} %"))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.set_xlabel("off-diagonal correlation")


def draw_spectrum(axes, spectra: dict[str, np.ndarray]) -> None:
    """Draws {"trained": shares of the variance (d,), descending} on logarithmic axes."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    for label, shares in spectra.items():
        ranks = np.unique(np.geomspace(1, len(shares), MAX_POINTS).round().astype(int))
        drawn = shares[ranks - 1]
        axes.plot(ranks, np.where(drawn > 0, drawn, np.nan), color=CURVE[SPECTRUM[label]])
    axes.set_xscale("log")
    axes.set_yscale("log")
    # Lower values are rounding errors of float32.
    highest = max(float(shares.max()) for shares in spectra.values())
    lowest = min(float(shares[shares > 0].min(initial=highest)) for shares in spectra.values())
    axes.set_ylim(max(lowest, LOWEST_SHARE * highest) / 2, 2 * highest)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(numticks=6))
        axis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter(FuncFormatter(tick))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{tick(100 * v)} %"))
    axes.set_xlabel("dimension, strongest first")
    axes.set_ylabel("share of the variance")


def downsampled(points: dict[float, float]) -> tuple[np.ndarray, np.ndarray]:
    """At most MAX_POINTS steps and values: means of the finite values of neighbouring steps; NaN if there are none."""
    steps, values = np.array(list(points)), np.array(list(points.values()))
    values = np.where(np.isfinite(values), values, np.nan)
    if len(steps) <= MAX_POINTS:
        return steps, values
    bins = np.array_split(np.arange(len(steps)), MAX_POINTS)
    mean = [np.nanmean(values[b]) if np.isfinite(values[b]).any() else np.nan for b in bins]
    return np.array([steps[b].mean() for b in bins]), np.array(mean)


def tick(value: float, _=None) -> str:
    """Formats 1200 as "1.2k". Matplotlib passes a position as well, which is ignored."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{unit}"
    return f"{value:.4g}".replace("-", "−")


def svg(draw, label: str, *, width: int = 320, height: int = 190) -> str:
    """The inline SVG that `draw(axes)` draws. The size is in CSS pixels of a phone; the page stretches it."""
    import matplotlib.style
    from matplotlib.figure import Figure

    with matplotlib.style.context(["default", STYLE]):  # "default" undoes the settings of a matplotlibrc
        figure = Figure(figsize=(width / 72, height / 72), layout="constrained")
        draw(figure.add_subplot())
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    # The metadata has the date, which would change the file. The style would apply to the whole page.
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", text, flags=re.DOTALL)
    root = f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{esc(label)}">'
    text = re.sub(r"<svg[^>]*>", root, text, count=1)
    text = re.sub(r"<[^>]*>", lambda tag: re.sub(r"(\d\.\d\d)\d+", r"\1", tag[0]), text)  # 1/100 pixel is enough
    scope = re.sub(r"\W+", "-", label.lower())  # a prefix: matplotlib makes ids unique within a plot only
    text = re.sub(r'\bid="', f'id="{scope}.', text)
    text = text.replace("url(#", f"url(#{scope}.").replace('xlink:href="#', f'href="#{scope}.')
    for placeholder, colour in INK.items():
        text = text.replace(placeholder, colour)
    return re.sub(r"\n\s*", "\n", text)
