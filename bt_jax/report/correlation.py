"""The sections about redundant features: the cross-correlation of the two views, and the spectrum of the variance.

The figures in the captions are from two recorded runs: the quickstart, seeds 0 to 2 (546 steps, 7 epochs,
benchmarks/results/quickstart_cpu.md), and CIFAR-10 (9,372 steps, 12 epochs, benchmarks/results/cifar10_cpu.md).
"""

import numpy as np

from bt_jax.data.sources.base import evenly_spaced
from bt_jax.report.formats import number, signed
from bt_jax.report.images import heat_map
from bt_jax.report.page import figure, section, swatch, table
from bt_jax.report.plots import HISTOGRAM, SPECTRUM, draw_histogram, draw_spectrum, svg
from bt_jax.report.runs import Run, drawn_from, off_diagonal
from bt_jax.report.verdict import describe_matrix

MAX_MAPS = 8  # heat maps in the strip over time
MAP_ROWS = 64  # rows and columns of a heat map of the strip, which is displayed small
MAX_PAIRS = 12  # redundant pairs in the list
BINS = 61  # of the histogram of a downsampled matrix


def correlation_section(run: Run) -> str:
    named = {"before training": run.pictures.get("c_before"), "after training": run.pictures.get("c_after")}
    matrices = {label: c for label, c in named.items() if c is not None}
    title = "Cross-correlation of the two views"
    below = strip_over_time(run) + redundant_list(run)
    if not matrices and not below:
        return section(title, "<p>Not drawn: pictures.npz has no c_before and no c_after.</p>")
    lead = (
        "Row i, column j is the correlation of feature i of one view with feature j of the other, over a batch."
        " A bright diagonal means that the two views agree. A colour off the diagonal means that two features are"
        " redundant. The loss of Barlow Twins pulls this matrix towards the identity. After a few epochs, the diagonal"
        " is bright, and pale colours off the diagonal are normal."
    )
    maps = "".join(map_figure(run, label, c) for label, c in matrices.items())
    scale = '<div class="scale"><span>−1</span><i></i><span>0</span><i class="up"></i><span>+1</span></div>'
    absent = "".join(f"<p>There is no matrix {label} in pictures.npz.</p>" for label in named if label not in matrices)
    top = f'{scale}<div class="plots three">{maps}{histogram_figure(run, matrices)}</div>'
    return section(title, f"{top}{absent}{below}", lead)


@drawn_from("c_before", "c_after")
def map_figure(run: Run, label: str, c: np.ndarray) -> str:
    return figure(label.capitalize(), f'<img class="map" src="{heat_map(c)}" alt="c {label}">', describe_matrix(c))


@drawn_from("off_edges", "off_before", "off_after", "c_before", "c_after")
def histogram_figure(run: Run, matrices: dict[str, np.ndarray]) -> str:
    """The histogram of the full matrices if pictures.npz has it; else that of the downsampled matrices."""
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
        "A value far from 0 means that two features are redundant. The peak is narrow before training, because random"
        " features hardly correlate across views. The first epochs widen it, and further epochs narrow it again. In the"
        " quickstart, a typical value is below 0.1 before training and about 0.2 after 7 epochs.",
        [swatch(HISTOGRAM[label]) + label for label in histograms],
    )


@drawn_from("c_steps", "c_over_time")
def strip_over_time(run: Run) -> str:
    """At most MAX_MAPS evenly spaced heat maps of those drawn during training, the first and the last included."""
    if run.pictures.keys().isdisjoint(("c_steps", "c_over_time")):
        return ""
    steps, maps = run.pictures["c_steps"], run.pictures["c_over_time"]
    rows = evenly_spaced(maps.shape[1], MAP_ROWS)
    cells = "".join(
        f'<figure><img class="map" src="{heat_map(maps[i][np.ix_(rows, rows)].astype(np.float32))}"'
        f' alt="c at step {steps[i]}"><figcaption>step {steps[i]:,}</figcaption></figure>'
        for i in evenly_spaced(len(maps), MAX_MAPS)
    )
    caption = (
        "The diagonal brightens within the first epochs. The colours off the diagonal grow at first, then fade slowly."
        " After 12 epochs on CIFAR-10 they are still visible."
    )
    return f'<h3>During training</h3><p class="quiet">{caption}</p><div class="strip">{cells}</div>'


@drawn_from("redundant_index", "redundant_value")
def redundant_list(run: Run) -> str:
    if run.pictures.keys().isdisjoint(("redundant_index", "redundant_value")):
        return ""
    index, values = run.pictures["redundant_index"], run.pictures["redundant_value"]
    pairs = list(zip(index.tolist(), values.tolist(), strict=True))[:MAX_PAIRS]
    items = "".join(
        f"<li><b>{i:d} and {j:d}</b>{value_bar(value)}<span>{signed(value)}</span></li>" for (i, j), value in pairs
    )
    caption = (
        "The pairs with the largest correlation after training. At 1 or −1, one feature of the pair is redundant."
        " After 7 to 12 epochs of the quickstart or of CIFAR-10, the largest values are 0.65 to 0.8."
    )
    title = "<h3>Most redundant pairs of features</h3>"
    return f'{title}<p class="quiet">{caption}</p><ol class="twins">{items}</ol>'


def value_bar(value: float) -> str:
    width = 100 * min(abs(number(value) or 0), 1)
    return f'<span class="bar"><i class="trained" style="width:{width:.0f}%"></i></span>'


# Spectrum -----------------------------------------------------------------------------------------------------------


@drawn_from("spectrum_trained", "spectrum_untrained")
def spectrum_section(run: Run) -> str:
    """The eigenvalues of the features' covariance as shares of their sum; empty if pictures.npz has none."""
    spectra = {}
    for label in SPECTRUM:
        values = run.pictures.get(f"spectrum_{label}", np.zeros(0)).astype(np.float64)
        if values.ndim != 1:  # matplotlib would draw it without an error, as several spectra
            raise ValueError(f"spectrum_{label} is not one row of numbers")
        values = np.sort(np.where(np.isfinite(values), np.maximum(values, 0), 0))[::-1]
        if values.sum() > 0:
            spectra[label] = values / values.sum()
    if not spectra:
        known = {"spectrum_trained", "spectrum_untrained"} & set(run.pictures)
        return section("Spectrum", "<p>Not drawn: the features are the same for every image.</p>") if known else ""
    drawing = figure(
        "Variance of each dimension",
        svg(lambda axes: draw_spectrum(axes, spectra), "Spectrum", height=210),
        "A slowly falling line means that many dimensions carry variance. After a steep drop, the remaining dimensions"
        " carry almost none.",
        [swatch(SPECTRUM[label]) + label for label in spectra],
    )
    shares = (0.5, 0.9, 0.99)
    rows = [
        [f"{label} encoder", *(f"{dimensions_for(values, share):,}" for share in shares)]
        for label, values in spectra.items()
    ]
    count = max(len(values) for values in spectra.values())
    numbers = figure(
        "Dimensions that carry the variance",
        table(["share of the variance", *(f"{share:.0%}".replace("%", " %") for share in shares)], rows),
        f"The number of dimensions, out of {count:,}, that hold each share of the variance. More dimensions mean less"
        " redundancy. After a few epochs, 99 % can need fewer dimensions than in the untrained encoder.",
    )
    lead = "The variance of the features along uncorrelated directions, from the largest to the smallest."
    return section("Spectrum", f'<div class="plots">{drawing}{numbers}</div>', lead)


def dimensions_for(shares: np.ndarray, target: float) -> int:
    """The number of the largest shares that sum to `target`."""
    return min(int(np.searchsorted(np.cumsum(shares), target - 1e-9)) + 1, len(shares))
