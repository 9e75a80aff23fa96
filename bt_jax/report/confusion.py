"""The section of which classes are taken for which."""

import numpy as np

from bt_jax.report.formats import percent, plural
from bt_jax.report.gallery import MOST_NAMED, class_name
from bt_jax.report.images import heat_map
from bt_jax.report.page import esc, section
from bt_jax.report.runs import Run, drawn_from

MOST_CELLS = 250  # rows and columns of the picture; more classes are added together
MOST_SAID = 6  # pairs in words


@drawn_from("confusion", "class_names")
def confusion_section(run: Run) -> str:
    counts = run.pictures.get("confusion")
    if counts is None:
        return ""
    if not counts.sum():
        return section("Confusion", "<p>Not drawn: no image with a label was classified.</p>")
    right = counts.trace() / counts.sum()
    lead = (
        f"Row: the true class; column: what it was taken for. {percent(right)} of {plural(int(counts.sum()), 'image')}"
        " are right and lie on the diagonal. Good: a strong diagonal. Mistakes between like things (cat and dog) are"
        " natural; a full column means that one class swallows the others."
    )
    if len(counts) <= MOST_NAMED:
        body = heat_table(run, counts) + '<p class="quiet">Of 100 images of the row, so many were called that.</p>'
    else:
        body = (
            f'<img class="map confusion" src="{heat_map(strength(counts))}" alt="confusion of {len(counts)} classes">'
        )
    return section("Confusion", f'<div class="plots"><div>{body}</div>{worst(run, counts)}</div>', lead)


def shares(counts: np.ndarray) -> np.ndarray:
    """Of each row's images, float64; 0 in rows without images."""
    return counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)


def heat_table(run: Run, counts: np.ndarray) -> str:
    names = [esc(class_name(run, label)) for label in range(len(counts))]
    head = "".join(f'<th scope="col"><span>{name}</span></th>' for name in names)
    rows = "".join(
        f'<tr><th scope="row">{name}</th>{"".join(cell(value, i == j) for j, value in enumerate(row))}</tr>'
        for i, (name, row) in enumerate(zip(names, shares(counts), strict=True))
    )
    table = f'<table class="heat"><thead><tr><td></td>{head}</tr></thead><tbody>{rows}</tbody></table>'
    return f'<div class="wide">{table}</div>'


def cell(share: float, right: bool) -> str:
    """Blue where right, orange where wrong; what rounds to 0 stays empty, so that the eye finds the rest."""
    text = f"{100 * share:.0f}" if share >= 0.005 else ""
    colour = "28 126 214" if right else "232 89 12"
    return f'<td style="background:rgb({colour}/{0.75 * share**0.5:.2f})">{text}</td>' if text else "<td></td>"


def strength(counts: np.ndarray) -> np.ndarray:
    """(m, m) in [0, 1] for `heat_map`, m at most MOST_CELLS: the root of the shares, so that small ones are seen."""
    edges = np.linspace(0, len(counts), min(MOST_CELLS, len(counts)) + 1).astype(int)[:-1]
    return np.sqrt(shares(np.add.reduceat(np.add.reduceat(counts, edges, axis=0), edges, axis=1)))


def worst(run: Run, counts: np.ndarray) -> str:
    """The most frequent mistakes, in words."""
    wrong = counts * (1 - np.eye(len(counts), dtype=counts.dtype))
    order = np.argsort(-wrong, axis=None, kind="stable")[:MOST_SAID]
    pairs = [(i, j) for i, j in zip(*np.unravel_index(order, wrong.shape), strict=True) if wrong[i, j]]
    if not pairs:
        return "<p>Not one image is taken for another class.</p>"
    rows = "".join(
        f"<li><b>{esc(class_name(run, i))}</b> taken for <b>{esc(class_name(run, j))}</b>:"
        f" {wrong[i, j]:,} of {plural(int(counts[i].sum()), 'image')}</li>"
        for i, j in pairs
    )
    return f'<div><h3>Most frequent mistakes</h3><ul class="mistakes">{rows}</ul></div>'
