"""The sections that show images: augmented pairs, the map of the embedding, nearest neighbours."""

import numpy as np

from bt_jax.report.formats import plural
from bt_jax.report.images import photograph, sheet
from bt_jax.report.page import esc, section
from bt_jax.report.runs import Run, drawn_from

MAP_PIXELS = 32  # side of a tile of the map in the file
NEIGHBOUR_PIXELS = 48  # the same for nearest neighbours: on a phone a row of seven is shown at that size
MOST_NAMED = 20  # classes; more colours than that cannot be told apart


@drawn_from("originals", "view1", "view2")
def pairs_section(run: Run) -> str:
    views = [
        (name, label)
        for name, label in (("originals", "original"), ("view1", "view 1"), ("view2", "view 2"))
        if name in run.pictures
    ]
    if not {"view1", "view2"} <= {name for name, _ in views}:
        return section("Augmented pairs", "<p>Not drawn: pictures.npz holds no view1 and view2.</p>")
    count = min(32, *(len(run.pictures[name]) for name, _ in views))
    rows = (
        "".join(photograph(run.pictures[name][i], f"{label} of image {i}") for name, label in views)
        for i in range(count)
    )
    cards = "".join(f'<div class="pair">{row}</div>' for row in rows)
    lead = (
        f"What the encoder is shown; left to right: {', '.join(label for _, label in views)}. A person should still"
        " see that both views come from one image, and they should differ in crop and colour. Bad: views that are"
        " equal, or that show nothing."
    )
    return section("Augmented pairs", f'<div class="pairs">{cards}</div>', lead)


# Map ----------------------------------------------------------------------------------------------------------------


@drawn_from("map_xy", "map_images", "map_labels", "class_names")
def map_section(run: Run) -> str:
    """Thumbnails where the features put them; all come from one picture, so that the file stays small."""
    if run.pictures.keys().isdisjoint(("map_xy", "map_images")):
        return ""
    xy, images = run.pictures["map_xy"], run.pictures["map_images"]
    labels = run.pictures.get("map_labels")
    source, columns, rows = sheet(images, MAP_PIXELS)
    classes = 0 if labels is None else max(int(labels.max()) + 1, 0)
    tiles = "".join(
        tile(i, xy[i], columns, rows, *frame(run, -1 if labels is None else int(labels[i]), classes))
        for i in range(len(images))
    )
    lead = (
        "Each picture lies close to those whose features are similar (t-SNE). Good: islands of one kind of thing."
        " Bad: all mixed like salt and pepper, or everything sorted by colour and background alone. Distances between"
        " islands mean nothing."
    )
    if classes > 1:
        lead += " The frame shows the true class, which training never saw."
    # One rule holds the picture: in a style attribute each tile would carry a copy of it.
    style = f"<style>.cloud i{{background-image:url({source});background-size:{100 * columns}% {100 * rows}%}}</style>"
    cloud = f'<div class="cloud" role="img" aria-label="Map of {plural(len(images), "image")}">{tiles}</div>'
    return section("Map of the embedding", f"{style}{cloud}{legend(run, labels, classes)}", lead)


def tile(i: int, xy: np.ndarray, columns: int, rows: int, colour: str, name: str) -> str:
    """One thumbnail. The second axis points up, as in a plot."""
    x, y = (2 + 96 * float(value) for value in (xy[0], 1 - xy[1]))  # tiles at the border lie inside the map
    # A background that is larger than its box is placed by per cent of what sticks out: column c of n by c / (n - 1).
    left, top = (100 * place / max(count - 1, 1) for place, count in ((i % columns, columns), (i // columns, rows)))
    style = f"left:{x:.1f}%;top:{y:.1f}%;background-position:{left:.2f}% {top:.2f}%"
    return f'<i style="{style}{colour}"{name}></i>'


def frame(run: Run, label: int, classes: int) -> tuple[str, str]:
    """What a label adds to a tile: its colour, and its name for the mouse; nothing for -1, no label."""
    if label < 0:
        return "", ""
    return f";--frame:{hue(label, classes)}", f' title="{esc(class_name(run, label))}"'


def legend(run: Run, labels: np.ndarray | None, classes: int) -> str:
    if labels is None or not 1 < classes <= MOST_NAMED:
        return ""
    items = "".join(
        f'<li><i class="swatch thick" style="background:{hue(label, classes)}"></i>{esc(class_name(run, label))}</li>'
        for label in range(classes)
        if (labels == label).any()
    )
    return f'<ul class="legend">{items}</ul>'


def hue(label: int, classes: int) -> str:
    """A colour for light and dark mode: hues go once around the circle, lightness takes turns."""
    return f"hsl({360 * label / max(classes, 1):.0f} 75% {(45, 62)[label % 2]}%)"


def class_name(run: Run, label: int) -> str:
    names = run.pictures.get("class_names", ())
    return str(names[label].item()) if label < len(names) else f"class {label}"


# Neighbours ---------------------------------------------------------------------------------------------------------


@drawn_from("neighbour_images", "neighbour_similarity")
def neighbours_section(run: Run) -> str:
    if run.pictures.keys().isdisjoint(("neighbour_images", "neighbour_similarity")):
        return ""
    images, similarity = run.pictures["neighbour_images"], run.pictures["neighbour_similarity"]
    rows = "".join(neighbour_row(images[q], similarity[q], q) for q in range(len(images)))
    lead = (
        "Left, in a frame: an image. Then those that the encoder finds most like it; below each, how like, where 1"
        " is the same. Good: the same kind of thing in another pose or colour. Bad: only the same colours, or the same"
        " few images in every row. All near 1.00 for unlike images: collapse."
    )
    return section("Nearest neighbours", f'<div class="rows">{rows}</div>', lead)


def neighbour_row(images: np.ndarray, similarity: np.ndarray, q: int) -> str:
    said = ["image", *(f"{value:.2f}".replace("-", "−") if np.isfinite(value) else "–" for value in similarity)]
    labels = [f"image {q}", *(f"neighbour {rank} of image {q}" for rank in range(1, len(images)))]
    cells = "".join(
        f"<div>{photograph(image, label, NEIGHBOUR_PIXELS)}<span>{text}</span></div>"
        for image, label, text in zip(images, labels, said, strict=True)
    )
    return f'<div class="near" style="--columns:{len(images)}">{cells}</div>'
