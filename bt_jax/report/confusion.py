"""The section with the confusion matrix."""

import numpy as np

from bt_jax.report.formats import percent, plural
from bt_jax.report.gallery import MAX_NAMED_CLASSES, class_name
from bt_jax.report.images import heat_map
from bt_jax.report.page import esc, section
from bt_jax.report.runs import Run, drawn_from

MAX_CELLS = 250  # rows and columns of the picture; with more classes, a cell is the sum of several
MAX_MISTAKES = 6  # class pairs in the list of mistakes

TITLE = "Confusion matrix"


@drawn_from("confusion", "class_names")
def confusion_section(run: Run) -> str:
    counts = run.pictures.get("confusion")
    if counts is None:
        return ""
    if not counts.sum():
        return section(TITLE, "<p>Not drawn: no classified image has a label.</p>")
    accuracy = counts.trace() / counts.sum()
    lead = (
        f"Rows are true classes, columns are predicted classes. {percent(accuracy)} of"
        f" {plural(int(counts.sum()), 'image')} are classified correctly and lie on the diagonal. Mistakes between"
        " similar classes, such as cat and dog, are normal. A strong column is a class that is predicted too often."
    )
    if len(counts) <= MAX_NAMED_CLASSES:
        caption = "The numbers are percent of the images of the true class. Less than half a percent is left blank."
        body = heat_table(run, counts) + f'<p class="quiet">{caption}</p>'
    else:
        body = f'<img class="map confusion" src="{heat_map(shade(counts))}" alt="confusion of {len(counts)} classes">'
    return section(TITLE, f'<div class="plots"><div>{body}</div>{frequent_mistakes(run, counts)}</div>', lead)


def shares(counts: np.ndarray) -> np.ndarray:
    """Each count as a share of its row, float64; 0 in rows without images."""
    return counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)


def heat_table(run: Run, counts: np.ndarray) -> str:
    names = [esc(class_name(run, label)) for label in range(len(counts))]
    columns = "".join(f'<th scope="col"><span>{name}</span></th>' for name in names)
    rows = "".join(
        f'<tr><th scope="row">{name}</th>{"".join(cell(value, i == j) for j, value in enumerate(row))}</tr>'
        for i, (name, row) in enumerate(zip(names, shares(counts), strict=True))
    )
    table = f'<table class="heat"><thead><tr><td></td>{columns}</tr></thead><tbody>{rows}</tbody></table>'
    return f'<div class="wide">{table}</div>'


def cell(share: float, correct: bool) -> str:
    """A table cell, blue for correct predictions and orange for mistakes; a share that rounds to 0 leaves it blank."""
    text = f"{100 * share:.0f}" if share >= 0.005 else ""
    colour = "28 126 214" if correct else "232 89 12"
    return f'<td style="background:rgb({colour}/{0.75 * share**0.5:.2f})">{text}</td>' if text else "<td></td>"


def shade(counts: np.ndarray) -> np.ndarray:
    """(m, m) in [0, 1] for `heat_map`, m <= MAX_CELLS: the root of the shares, which keeps small shares visible."""
    edges = np.linspace(0, len(counts), min(MAX_CELLS, len(counts)) + 1).astype(int)[:-1]
    return np.sqrt(shares(np.add.reduceat(np.add.reduceat(counts, edges, axis=0), edges, axis=1)))


def frequent_mistakes(run: Run, counts: np.ndarray) -> str:
    """A list of the most frequent mistakes, in words."""
    mistakes = counts * (1 - np.eye(len(counts), dtype=counts.dtype))
    order = np.argsort(-mistakes, axis=None, kind="stable")[:MAX_MISTAKES]
    pairs = [(i, j) for i, j in zip(*np.unravel_index(order, mistakes.shape), strict=True) if mistakes[i, j]]
    if not pairs:
        return "<p>Every image with a label is classified correctly.</p>"
    rows = "".join(
        f"<li><b>{esc(class_name(run, i))}</b> predicted as <b>{esc(class_name(run, j))}</b>:"
        f" {mistakes[i, j]:,} of {plural(int(counts[i].sum()), 'image')}</li>"
        for i, j in pairs
    )
    return f'<div><h3>Most frequent mistakes</h3><ul class="mistakes">{rows}</ul></div>'
