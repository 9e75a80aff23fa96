"""The sections on how far features repeat each other: the cross-correlation, and the spectrum of the variance."""

import math

import numpy as np

from bt_jax.data.sources.base import evenly_spaced
from bt_jax.report.formats import number
from bt_jax.report.images import heat_map
from bt_jax.report.page import figure, section, swatch, table
from bt_jax.report.plots import HISTOGRAM, SPECTRUM, draw_histogram, draw_spectrum, svg
from bt_jax.report.runs import Run, drawn_from, off_diagonal
from bt_jax.report.verdict import in_words

MOST_MAPS = 8  # heat maps in the strip over time
MAP_ROWS = 64  # rows and columns of each: it is shown that small
MOST_PAIRS = 12  # redundant pairs in the list
BINS = 61  # of the histogram of a thinned matrix


def correlation_section(run: Run) -> str:
    named = {"before training": run.pictures.get("c_before"), "after training": run.pictures.get("c_after")}
    matrices = {label: c for label, c in named.items() if c is not None}
    title = "Cross-correlation of the two views"
    further = strip_over_time(run) + redundant_list(run)
    if not matrices and not further:
        return section(title, "<p>Not drawn: pictures.npz holds no c_before and no c_after.</p>")
    lead = (
        "Row i, column j: how feature i of one view goes with feature j of the other, over a batch. Training pulls"
        " this matrix towards the identity: a bright diagonal (the views agree) on an empty field (no feature"
        " repeats another). Bad: blocks and stripes that stay, or a pale diagonal."
    )
    maps = "".join(map_figure(run, label, c) for label, c in matrices.items())
    scale = '<div class="scale"><span>−1</span><i></i><span>0</span><i class="up"></i><span>+1</span></div>'
    absent = "".join(f"<p>There is no matrix {label} in pictures.npz.</p>" for label in named if label not in matrices)
    top = f'{scale}<div class="plots three">{maps}{histogram_figure(run, matrices)}</div>'
    return section(title, f"{top}{absent}{further}", lead)


@drawn_from("c_before", "c_after")
def map_figure(run: Run, label: str, c: np.ndarray) -> str:
    return figure(label.capitalize(), f'<img class="map" src="{heat_map(c)}" alt="c {label}">', in_words(c))


@drawn_from("off_edges", "off_before", "off_after", "c_before", "c_after")
def histogram_figure(run: Run, matrices: dict[str, np.ndarray]) -> str:
    """Of every value of the full matrices where they were counted, else of the thinned ones that are drawn."""
    edges = run.pictures.get("off_edges")
    names = {"before training": "off_before", "after training": "off_after"}
    histograms = {label: (run.pictures[name], edges) for label, name in names.items() if name in run.pictures}
    if edges is None or not histograms:
        values = {label: off_diagonal(c) for label, c in matrices.items()}
        reach = max([float(np.abs(v).max()) for v in values.values() if v.size] + [1e-3])
        histograms = {label: np.histogram(v, bins=BINS, range=(-reach, reach)) for label, v in values.items()}
    if not histograms:
        return ""
    return figure(
        "Off-diagonal values",
        svg(lambda axes: draw_histogram(axes, histograms), "Off-diagonal values", width=280, height=250),
        "After training this should be one narrow peak at 0. Wide shoulders: features still repeat each other.",
        [swatch(HISTOGRAM[label]) + label for label in histograms],
    )


@drawn_from("c_steps", "c_over_time")
def strip_over_time(run: Run) -> str:
    """At most MOST_MAPS of the heat maps drawn during training, evenly chosen, first and last among them."""
    if run.pictures.keys().isdisjoint(("c_steps", "c_over_time")):
        return ""
    steps, maps = run.pictures["c_steps"], run.pictures["c_over_time"]
    rows = evenly_spaced(maps.shape[1], MAP_ROWS)
    cells = "".join(
        f'<figure><img class="map" src="{heat_map(maps[i][np.ix_(rows, rows)].astype(np.float32))}"'
        f' alt="c at step {steps[i]}"><figcaption>step {steps[i]:,}</figcaption></figure>'
        for i in evenly_spaced(len(maps), MOST_MAPS)
    )
    caption = "The diagonal should light up and the rest fade. A field that stays coloured: features repeat each other."
    return f'<h3>While it trains</h3><p class="quiet">{caption}</p><div class="strip">{cells}</div>'


@drawn_from("redundant_index", "redundant_value")
def redundant_list(run: Run) -> str:
    if run.pictures.keys().isdisjoint(("redundant_index", "redundant_value")):
        return ""
    index, values = run.pictures["redundant_index"], run.pictures["redundant_value"]
    pairs = list(zip(index.tolist(), values.tolist(), strict=True))[:MOST_PAIRS]
    items = "".join(
        f"<li><b>{i:d} and {j:d}</b>{value_bar(value)}<span>{signed(value)}</span></li>" for (i, j), value in pairs
    )
    caption = (
        "After training. 1 or −1: the two say the same, so one of them is wasted. Small numbers even here at the top:"
        " every feature says something of its own."
    )
    title = "<h3>Features that repeat each other most</h3>"
    return f'{title}<p class="quiet">{caption}</p><ol class="twins">{items}</ol>'


def signed(value: float) -> str:
    return f"{value:.2f}".replace("-", "−") if math.isfinite(value) else "–"


def value_bar(value: float) -> str:
    width = 100 * min(abs(number(value) or 0), 1)
    return f'<span class="bar"><i class="trained" style="width:{width:.0f}%"></i></span>'


# Spectrum -----------------------------------------------------------------------------------------------------------


@drawn_from("spectrum_trained", "spectrum_untrained")
def spectrum_section(run: Run) -> str:
    """The eigenvalues of the covariance of the features as shares of their sum; nothing where there are none."""
    spectra = {}
    for label in SPECTRUM:
        values = run.pictures.get(f"spectrum_{label}", np.zeros(0)).astype(np.float64)
        if values.ndim != 1:  # would be drawn all the same, as several spectra
            raise ValueError(f"spectrum_{label} is not one row of numbers")
        values = np.sort(np.where(np.isfinite(values), np.maximum(values, 0), 0))[::-1]
        if values.sum() > 0:
            spectra[label] = values / values.sum()
    if not spectra:
        known = {"spectrum_trained", "spectrum_untrained"} & set(run.pictures)
        return section("Spectrum", "<p>The features do not vary at all: nothing to draw.</p>") if known else ""
    drawing = figure(
        "Variance of each dimension",
        svg(lambda axes: draw_spectrum(axes, spectra), "Spectrum", height=210),
        "Good: a line that falls slowly and evenly, all the way to the right. Bad: a cliff. The dimensions behind it"
        " have collapsed and carry nothing.",
        [swatch(SPECTRUM[label]) + label for label in spectra],
    )
    shares = (0.5, 0.9, 0.99)
    rows = [
        [f"{label} encoder", *(f"{needed(values, share):,}" for share in shares)] for label, values in spectra.items()
    ]
    count = max(len(values) for values in spectra.values())
    numbers = figure(
        "Dimensions that carry it",
        table(["share of the variance", *(f"{share:.0%}".replace("%", " %") for share in shares)], rows),
        f"How many of the {count:,} dimensions it takes to hold that share. More is better: the features use the room"
        " they have.",
    )
    lead = "The features' variance, split over independent directions, from the strongest to the weakest."
    return section("Spectrum", f'<div class="plots">{drawing}{numbers}</div>', lead)


def needed(shares: np.ndarray, target: float) -> int:
    """How many of the largest shares sum to `target`."""
    return min(int(np.searchsorted(np.cumsum(shares), target - 1e-9)) + 1, len(shares))
