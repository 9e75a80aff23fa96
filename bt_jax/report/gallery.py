"""The sections with images: augmented pairs, the map of the embedding, nearest neighbours."""

import numpy as np

from bt_jax.report.formats import plural, signed
from bt_jax.report.images import image_tag, sprite_sheet
from bt_jax.report.page import esc, section
from bt_jax.report.runs import Run, drawn_from

MAP_PIXELS = 32  # stored side of a tile of the map
NEIGHBOUR_PIXELS = 48  # stored side of a neighbour: a phone displays a row of seven at that size
MAX_NAMED_CLASSES = 20  # classes with a name in legends and tables; people cannot distinguish more colours


@drawn_from("originals", "view1", "view2")
def pairs_section(run: Run) -> str:
    views = [
        (name, label)
        for name, label in (("originals", "original"), ("view1", "view 1"), ("view2", "view 2"))
        if name in run.pictures
    ]
    if not {"view1", "view2"} <= {name for name, _ in views}:
        return section("Augmented pairs", "<p>Not drawn: pictures.npz has no view1 and view2.</p>")
    count = min(32, *(len(run.pictures[name]) for name, _ in views))
    rows = (
        "".join(image_tag(run.pictures[name][i], f"{label} of image {i}") for name, label in views)
        for i in range(count)
    )
    cards = "".join(f'<div class="pair">{row}</div>' for row in rows)
    lead = (
        f"The inputs of the encoder, from left to right: {', '.join(label for _, label in views)}. Both views should"
        " differ in crop and colour, and a person should recognise that they come from one image. Equal views or empty"
        " views teach the encoder nothing."
    )
    return section("Augmented pairs", f'<div class="pairs">{cards}</div>', lead)


# Map ----------------------------------------------------------------------------------------------------------------


@drawn_from("map_xy", "map_images", "map_labels", "class_names")
def map_section(run: Run) -> str:
    """Thumbnails at the positions of their features. All are cut from one picture, which keeps the file small."""
    if run.pictures.keys().isdisjoint(("map_xy", "map_images")):
        return ""
    xy, images = run.pictures["map_xy"], run.pictures["map_images"]
    labels = run.pictures.get("map_labels")
    source, columns, rows = sprite_sheet(images, MAP_PIXELS)
    classes = 0 if labels is None else max(int(labels.max()) + 1, 0)
    tiles = "".join(
        map_tile(i, xy[i], columns, rows, *frame(run, -1 if labels is None else int(labels[i]), classes))
        for i in range(len(images))
    )
    lead = (
        "Images with similar features lie close together (t-SNE). Groups of one kind of object mean that the features"
        " separate that kind. Groups of one colour or background mean that the features follow colour or background."
        " After short runs, the groups overlap. Distances between groups mean nothing."
    )
    if classes > 1:
        lead += " The colour of a frame is the true class."
    # One CSS rule has the picture. As a style attribute, every tile would have a copy of it.
    style = f"<style>.cloud i{{background-image:url({source});background-size:{100 * columns}% {100 * rows}%}}</style>"
    cloud = f'<div class="cloud" role="img" aria-label="Map of {plural(len(images), "image")}">{tiles}</div>'
    return section("Map of the embedding", f"{style}{cloud}{legend(run, labels, classes)}", lead)


def map_tile(i: int, xy: np.ndarray, columns: int, rows: int, colour: str, name: str) -> str:
    """One thumbnail. The second axis points up, as in a plot."""
    x, y = (2 + 96 * float(value) for value in (xy[0], 1 - xy[1]))  # a margin keeps tiles at the border inside the map
    # For CSS, a background position of 100 % is the last column: column c of n is at c / (n - 1).
    left, top = (100 * place / max(count - 1, 1) for place, count in ((i % columns, columns), (i // columns, rows)))
    style = f"left:{x:.1f}%;top:{y:.1f}%;background-position:{left:.2f}% {top:.2f}%"
    return f'<i style="{style}{colour}"{name}></i>'


def frame(run: Run, label: int, classes: int) -> tuple[str, str]:
    """The colour and the tooltip that a label adds to a tile; empty for -1, no label."""
    if label < 0:
        return "", ""
    return f";--frame:{hue(label, classes)}", f' title="{esc(class_name(run, label))}"'


def legend(run: Run, labels: np.ndarray | None, classes: int) -> str:
    if labels is None or not 1 < classes <= MAX_NAMED_CLASSES:
        return ""
    items = "".join(
        f'<li><i class="swatch thick" style="background:{hue(label, classes)}"></i>{esc(class_name(run, label))}</li>'
        for label in range(classes)
        if (labels == label).any()
    )
    return f'<ul class="legend">{items}</ul>'


def hue(label: int, classes: int) -> str:
    """A colour for light and dark mode. Hues are spread around the circle; two values of lightness alternate."""
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
        "Each row starts with an image in a frame. Its nearest neighbours follow, each with the cosine similarity of"
        " the features. A good encoder finds the same kind of object in another pose or colour. After short runs,"
        " similarities of 0.87 to 1.00 are normal, even between different kinds of objects. Values of 1.00 in all rows,"
        " or the same few images in every row, suggest a collapse: compare the effective rank."
    )
    return section("Nearest neighbours", f'<div class="rows">{rows}</div>', lead)


def neighbour_row(images: np.ndarray, similarity: np.ndarray, q: int) -> str:
    captions = ["image", *map(signed, similarity)]
    labels = [f"image {q}", *(f"neighbour {rank} of image {q}" for rank in range(1, len(images)))]
    cells = "".join(
        f"<div>{image_tag(image, label, NEIGHBOUR_PIXELS)}<span>{caption}</span></div>"
        for image, label, caption in zip(images, labels, captions, strict=True)
    )
    return f'<div class="near" style="--columns:{len(images)}">{cells}</div>'
