"""The report of synthetic runs: its content, its sentences about missing input, and that it is one valid file."""

import base64
import errno
import io
import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bt_jax.evals import pictures
from bt_jax.messages import UserError
from bt_jax.objectives.barlow_twins import BarlowTwins
from bt_jax.report import panels, write
from bt_jax.report.__main__ import main
from bt_jax.report.confusion import cell
from bt_jax.report.formats import duration, number, percent, plural, short, signed
from bt_jax.report.page import bar
from bt_jax.report.plots import INK, downsampled, draw_panel
from bt_jax.report.results import accuracies, results_verdict
from bt_jax.report.runs import read_run
from bt_jax.report.sections import summary_section
from bt_jax.report.verdict import verdict
from tests.support.paths import ROOT

VOID = {"meta", "img", "br", "link", "input", "hr"}


class Page(HTMLParser):
    """Checks that tags balance and ids are unique; collects the text, the drawings and the addresses."""

    def __init__(self, path: Path):
        super().__init__()
        self.open, self.ids, self.words, self.addresses, self.drawings = [], set(), [], [], []
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.close()
        assert self.open == []
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attributes):
        self.handle_startendtag(tag, attributes)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        values = dict(attributes)
        assert "id" not in values or values["id"] not in self.ids
        self.ids.add(values.get("id"))
        self.addresses += [value for name, value in attributes if name in ("src", "href", "xlink:href")]
        if tag == "svg":
            self.drawings.append(values["aria-label"])

    def handle_endtag(self, tag):
        assert tag == self.open.pop(), self.getpos()

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.words.append(data)


def train_line(step: int, **changes) -> str:
    t = step / 1200
    values = {"step": step, "epoch": step / 40, "train/loss": 200 - 150 * t, "train/on_diag": 100 - 90 * t,
              "train/off_diag": 9000 - 8000 * t, "train/diag_mean": 0.3 + 0.6 * t, "train/embedding_std": 0.8 + 0.1 * t,
              "train/grad_norm": 5 - t, "train/lr_weights": 0.2 * t, "train/lr_biases": 0.0048 * t,
              "train/probe_loss": 2.3 - t, "train/probe_top1": 0.1 + 0.5 * t, "perf/pairs_per_sec": 600 + t,
              "perf/data_wait": 0.02}  # fmt: skip
    return json.dumps(values | changes) + "\n"


def make_run(folder: Path, *, config: dict | None = None, trained: float = 0.781) -> Path:
    """A finished run with every file."""
    folder.mkdir(parents=True)
    with open(folder / "metrics.jsonl", "w") as file:
        for step in range(0, 1201, 100):
            file.write(train_line(step))
            values = {"step": step, "val/knn_top1": 0.4 + step / 4000, "val/online_top1": 0.5, "val/rank": 90.0,
                      "val/spectrum_slope": 1.2, "val/alignment": 0.4, "val/uniformity": -2.5, "val/dead_dimensions": 0,
                      "val/off_diagonal": 0.1}  # fmt: skip
            file.write(json.dumps(values) + "\n")
    knn = {"trained": trained, "untrained": 0.47, "raw_pixels": 0.38}
    linear = {"trained": 0.823, "untrained": 0.55, "raw_pixels": 0.41}
    (folder / "summary.json").write_text(json.dumps({"knn_top1": knn, "linear_top1": linear, "seconds": 171.4}))
    config = {"optim": {"lr_weights": 0.2}, "evals": {"knn_k": 200}, "total_epochs": 60} | (config or {})
    (folder / "config.json").write_text(json.dumps(config))
    environment = {"versions": {"jax": "0.10.2"}, "git_commit": "0a1b2c3", "command": "python -m bt_jax.main --seed 7"}
    (folder / "environment.json").write_text(json.dumps(environment))
    numbers = np.random.default_rng(0)
    c = numbers.uniform(-0.5, 0.5, (2, 16, 16)).astype(np.float32)
    c[1] = 0.01 * c[1] + 0.9 * np.eye(16)
    views = numbers.integers(0, 256, (3, 4, 32, 32, 3)).astype(np.uint8)
    np.savez(folder / "pictures.npz", c_before=c[0], c_after=c[1], view1=views[0], view2=views[1], originals=views[2])
    return folder


def add_pictures(folder: Path, **changes) -> dict[str, np.ndarray]:
    """Adds every other array to pictures.npz; a change to None leaves an array out."""
    numbers = np.random.default_rng(1)
    c = numbers.uniform(-0.5, 0.5, (12, 20, 20))
    images = numbers.integers(0, 256, (40, 32, 32, 3)).astype(np.uint8)
    labels = np.arange(40) % 3
    features = np.eye(3)[labels] + 0.1 * numbers.normal(size=(40, 3))
    arrays = {"c_steps": np.arange(0, 1200, 100), "c_over_time": c.astype(np.float16),
              "spectrum_trained": (np.arange(1, 513) ** -1.0).astype(np.float32),
              "spectrum_untrained": (np.arange(1, 513) ** -3.0).astype(np.float32),
              "class_names": np.array(["cat", "dog & wolf", "<b>ship"]),
              "confusion": np.array([[7, 3, 0], [1, 9, 0], [0, 0, 5]])}  # fmt: skip
    arrays |= pictures.off_diagonal_histograms(c[0], 0.1 * c[1]) | pictures.redundant_pairs(c[0])
    arrays |= pictures.embedding_map(features, images, labels) | pictures.neighbours(features, images)
    with np.load(folder / "pictures.npz") as old:
        arrays = {**old, **arrays, **changes}
    arrays = {name: array for name, array in arrays.items() if array is not None}
    np.savez(folder / "pictures.npz", **arrays)
    return arrays


@pytest.fixture
def run(tmp_path) -> Path:
    return make_run(tmp_path / "quick")


@pytest.mark.parametrize(
    "name, content, cause",
    [
        ("a.jpeg", b"\xff\xd8 a photograph", "does not end in .html"),
        ("page.html", b"<!DOCTYPE html>\n<title>mine</title>", "is not a report of bt_jax"),
    ],
)
def test_out_replaces_only_a_report(run, tmp_path, capsys, name, content, cause):
    out = tmp_path / name
    out.write_bytes(content)
    assert main([str(run), f"--out={out}"]) == 2
    assert capsys.readouterr().err == f"report: {out} exists and {cause}. Give another --out, or delete it.\n"
    assert out.read_bytes() == content


def test_out_is_written_again(run, tmp_path):
    out = write.report(run, out=tmp_path / "mine.html")
    text = out.read_text()
    out.write_text(text.replace("</body>", "an older one</body>"))
    assert write.report(run, out=out).read_text() == text


def test_whole_report(run):
    path = write.report(run)
    page = Page(path)
    assert path == run / "report.html"
    assert ("After 1,200 steps the encoder reaches 78.1 % 200-NN top-1 on held-out images, 31 points above the same"
            " encoder untrained and 40 points above raw pixels.") in page.text  # fmt: skip
    order = ["Result", "Loss", "Accuracy of the features", "Metrics without labels",
             "Cross-correlation of the two views", "Augmented pairs", "Optimization and speed",
             "Config and environment", "Files and commands"]  # fmt: skip
    assert re.findall(r"<h2>(.*?)</h2>", page.source) == order
    terms, others = panels.method_panels(BarlowTwins.metrics)
    everything = [*write.LOSS, *terms, *others, *write.ACCURACY, *write.LABEL_FREE, *write.OPTIMIZATION]
    assert sorted(page.drawings) == sorted([panel.title for panel in everything] + ["Off-diagonal values"])
    for words in ("82.3 %", "2 min 51 s", "optim.lr_weights = 0.2", "versions.jax = 0.10.2", "--seed 7", "raw pixels"):
        assert words in page.text
    assert 'style="width:78.1%"' in page.source  # the bar of the accuracy
    assert 'class="note' not in page.source  # no warning
    assert "Mean diagonal 0.90" in page.text
    assert page.source.count("<img") == 2 + 3 * 4
    assert len(page.source) < 400_000


def test_the_file_is_self_contained(run):
    add_pictures(run)
    page = Page(write.report(run))
    assert all(address.startswith(("data:image/png;base64,", "#")) for address in page.addresses)
    assert (
        re.findall(r"(?:https?:)?//\w", re.sub(r'(src="|url\()data:image/png;base64,[^")]*[")]', "", page.source)) == []
    )
    assert "<script" not in page.source and "@import" not in page.source
    assert "prefers-color-scheme:dark" in page.source and 'name="viewport"' in page.source
    assert not any(placeholder in page.source for placeholder in INK)  # a fixed colour does not follow dark mode
    assert all(a.startswith(("data:image/png;base64,", "#")) for a in re.findall(r"url\(([^)]*)", page.source))
    used = set(re.findall(r"url\(#([^)]*)\)", page.source)) | {a[1:] for a in page.addresses if a[0] == "#"}
    assert used and used <= page.ids


def test_pictures_equal_the_arrays(run):
    page = Page(write.report(run))
    images = [Image.open(io.BytesIO(base64.b64decode(a.split(",")[1]))) for a in page.addresses if a.startswith("data")]
    with np.load(run / "pictures.npz") as arrays:
        assert (np.asarray(images[2]) == arrays["originals"][0]).all()
        assert (np.asarray(images[4]) == arrays["view2"][0]).all()
        blue, opacity = np.asarray(images[0].convert("RGBA"))[..., 2:].transpose(2, 0, 1)
        c = arrays["c_before"]
    assert np.abs(opacity - 255 * np.abs(c)).max() <= 1.5  # clear at 0, opaque at 1: 254 levels over [-1, 1]
    clear = np.abs(c) < 0.01
    assert ((blue == 214) == (c < 0))[~clear].all()


def test_same_input_same_bytes(run):
    add_pictures(run)
    once = write.report(run).read_bytes()
    command = [sys.executable, "-m", "bt_jax.report", str(run)]
    environment = os.environ | {"PYTHONHASHSEED": "3"}
    other_process = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert other_process.returncode == 0, other_process.stderr
    assert other_process.stdout.strip() == str(run / "report.html")
    assert (run / "report.html").read_bytes() == once


# Pictures ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def few_curves(monkeypatch):
    """A page whose only curve is the loss: the other plots take most of the time of a page."""
    monkeypatch.setattr(write, "LOSS", write.LOSS[:1])
    monkeypatch.setattr(write, "panels_of_methods", lambda methods: ([], []))
    for name in ("ACCURACY", "LABEL_FREE", "OPTIMIZATION"):
        monkeypatch.setattr(write, name, [])


def section_of(page: Page, title: str) -> str:
    """The HTML of one section."""
    return page.source.split(f"<h2>{title}</h2>")[1].split("</section>")[0]


def decoded(source: str) -> list[Image.Image]:
    """The embedded images of some HTML."""
    images = re.findall(r"data:image/png;base64,([^\")]*)", source)
    return [Image.open(io.BytesIO(base64.b64decode(data))).convert("RGBA").convert("RGB") for data in images]


def test_every_picture_has_its_section(run):
    add_pictures(run)
    page = Page(write.report(run))
    titles = re.findall(r"<h2>(.*?)</h2>", page.source)
    assert titles[4:10] == ["Cross-correlation of the two views", "Spectrum", "Map of the embedding",
                            "Nearest neighbours", "Confusion matrix", "Augmented pairs"]  # fmt: skip
    assert "Not drawn" not in page.text
    assert len(page.source) < 900_000


def test_matrices_over_time_are_eight_with_first_and_last(run, few_curves):
    add_pictures(run)
    steps = re.findall(
        r"<figcaption>step ([\d,]*)<", section_of(Page(write.report(run)), "Cross-correlation of the two views")
    )
    assert len(steps) == 8 and steps[0] == "0" and steps[-1] == "1,100"


def test_histogram_is_of_the_full_matrices(run, few_curves):
    def outline() -> str:
        return section_of(Page(write.report(run)), "Cross-correlation of the two views").split("Off-diagonal values")[2]

    downsampled_only = outline()
    arrays = add_pictures(run)
    assert (full := outline()) != downsampled_only
    add_pictures(run, off_after=arrays["off_after"][::-1] * np.arange(81))
    assert outline() != full


def test_redundant_pairs_are_listed(run, few_curves):
    arrays = add_pictures(run)
    page = Page(write.report(run))
    (i, j), value = arrays["redundant_index"][0], arrays["redundant_value"][0]
    assert f"{i} and {j} {value:.2f}".replace("-", "−") in page.text


def test_spectrum_counts_dimensions(run, few_curves):
    arrays = add_pictures(run)
    page = Page(write.report(run))
    shares = np.cumsum(arrays["spectrum_trained"] / arrays["spectrum_trained"].sum())
    half, most, all_but = (int((shares < share).sum()) + 1 for share in (0.5, 0.9, 0.99))
    assert f"trained encoder {half} {most} {all_but}" in page.text
    assert "Spectrum" in page.drawings
    add_pictures(run, spectrum_trained=np.zeros(8, np.float32), spectrum_untrained=None)
    assert "the features are the same for every image" in Page(write.report(run)).text


def test_map_tiles_have_their_image(run, few_curves):
    arrays = add_pictures(run)
    source = section_of(Page(write.report(run)), "Map of the embedding")
    (sheet,) = decoded(source)
    tiles = re.findall(r'<i style="left:([\d.]*)%;top:([\d.]*)%;background-position:([\d.]*)% ([\d.]*)%', source)
    assert len(tiles) == 40
    columns, rows = (int(size) // 100 for size in re.search(r"background-size:(\d*)% (\d*)%", source).groups())
    assert sheet.size == (32 * columns, 32 * rows)
    for tile, xy, image in zip(tiles, arrays["map_xy"], arrays["map_images"], strict=True):
        x, y, left, top = map(float, tile)
        np.testing.assert_allclose([x, y], [2 + 96 * xy[0], 98 - 96 * xy[1]], atol=0.06)
        # CSS moves the background to the left by a percentage of its overhang, which is (count - 1) boxes.
        column, row = round(left / 100 * (columns - 1)), round(top / 100 * (rows - 1))
        pixels = np.asarray(sheet)[32 * row : 32 * (row + 1), 32 * column : 32 * (column + 1)].astype(int)
        errors = [np.abs(pixels - other.astype(int)).mean() for other in arrays["map_images"]]
        assert (arrays["map_images"][np.argmin(errors)] == image).all()  # the nearest: a palette changes some pixels
    assert source.count('title="cat"') == 14 and 'title="&lt;b&gt;ship"' in source
    assert len(set(re.findall(r"--frame:(hsl[^\"]*)", source))) == 3


def test_map_without_labels_has_no_frames(run, few_curves):
    add_pictures(run, map_labels=None, class_names=None)
    source = section_of(Page(write.report(run)), "Map of the embedding")
    assert source.count("<i style") == 40
    assert "--frame" not in source and "title=" not in source and "true class" not in source


def test_rows_of_neighbours(run, few_curves):
    arrays = add_pictures(run)
    source = section_of(Page(write.report(run)), "Nearest neighbours")
    images = decoded(source)
    assert len(images) == 10 * 7
    assert (np.asarray(images[7]) == arrays["neighbour_images"][1, 0]).all()
    assert (np.asarray(images[9]) == arrays["neighbour_images"][1, 2]).all()
    similarities = [float(value) for value in re.findall(r"<span>([\d.]+)</span>", source)]
    np.testing.assert_allclose(similarities, arrays["neighbour_similarity"].ravel(), atol=0.0051)


def test_confusion_in_numbers_and_words(run, few_curves):
    add_pictures(run)
    page = Page(write.report(run))
    assert "84.0 % of 25 images are classified correctly" in page.text
    assert re.search(r"cat 70 30 dog & wolf 10 90 <b>ship 100 The numbers", page.text)  # rows true, columns predicted
    assert "cat predicted as dog & wolf : 3 of 10 images dog & wolf predicted as cat : 1 of 10 images" in page.text
    add_pictures(run, confusion=np.diag([3, 4]), class_names=None)
    text = Page(write.report(run)).text
    assert "Every image with a label is classified correctly." in text and "class 1" in text


def test_confusion_of_many_classes_is_a_picture(run, few_curves):
    counts = 20 * np.eye(1000, dtype=np.int64)
    counts[997, 3] = 30
    add_pictures(run, confusion=counts)
    page = Page(write.report(run))
    source = section_of(page, "Confusion matrix")
    (picture,) = decoded(source)
    assert picture.size == (250, 250) and "<td" not in source
    assert "class 997 predicted as class 3 : 30 of 50 images" in page.text


# For each array, some HTML that the page has only with it.
DRAWN_FROM = {"off_edges": 'aria-label="Off-diagonal values"', "redundant_value": "Most redundant pairs",
              "map_xy": "Map of the embedding", "map_images": "Map of the embedding",
              "neighbour_similarity": "Nearest neighbours</h2>", "c_steps": "During training",
              "confusion": "<h2>Confusion", "class_names": "dog &amp; wolf",
              "spectrum_trained": "</i>trained</li>"}  # fmt: skip
OPTIONAL = ("off_edges", "confusion", "class_names", "spectrum_trained")  # no other array needs these


@pytest.mark.parametrize("name", DRAWN_FROM)
@pytest.mark.parametrize("damage", ["absent", "shape", "kind"])
def test_picture_without_its_input_is_left_out(run, name, damage, few_curves):
    """A line names the array, unless it is absent and optional."""
    array = add_pictures(run)[name]
    text = np.full(array.shape, "x") if array.dtype.kind != "U" else np.full((3, 2), "x")
    add_pictures(run, **{name: {"absent": None, "shape": array[None], "kind": text}[damage]})
    page = Page(write.report(run))
    lines = re.findall(r"Not drawn from pictures.npz, [^.]*?" + name, page.text)
    assert bool(lines) == (damage != "absent" or name not in OPTIONAL), page.text[-900:]
    from_matrices = (name, damage) == ("off_edges", "absent")  # the downsampled matrices replace it
    assert DRAWN_FROM[name] not in page.source or from_matrices
    assert "Mean diagonal 0.90" in page.text and "Augmented pairs" in page.text


@pytest.mark.parametrize(("name", "partner"), [("off_after", "off_edges"), ("c_steps", "c_over_time"),
                                               ("map_labels", "map_images"), ("map_xy", "map_images")])  # fmt: skip
def test_arrays_that_do_not_fit_together(run, name, partner, few_curves):
    array = add_pictures(run)[name]
    add_pictures(run, **{name: array[:-1]})
    (line,) = (line for line in Page(write.report(run)).source.split("\n") if "Not drawn from" in line)
    assert f"{name} of shape {array[:-1].shape}" in line and f"{partner} of shape" in line


def test_an_array_that_cannot_be_read_is_named(run, few_curves):
    add_pictures(run)
    data = bytearray((run / "pictures.npz").read_bytes())
    data[data.index(b"map_xy.npy") + 300] ^= 1  # within its numbers: the checksum of the archive differs
    (run / "pictures.npz").write_bytes(data)
    page = Page(write.report(run))
    assert "map_xy of pictures.npz cannot be read (Bad CRC-32" in page.text
    assert "Map of the embedding" not in page.source and "<h2>Confusion" in page.source


def test_cut_off_last_line_and_repeated_step(run, few_curves):
    with open(run / "metrics.jsonl", "a") as file:
        file.write(train_line(1200, **{"train/loss": 41.0}))
        file.write(train_line(1300)[:50])
    text = Page(write.report(run)).text
    assert "Skipped 1 unreadable line of metrics.jsonl" in text and "After 1,200 steps" in text
    assert read_run(run).last("train/loss") == 41.0


def test_unfinished_run_with_metrics_alone(tmp_path):
    lines = ['{"step": 0, "train/loss": 9}', '{"step": 40, "epoch": 2, "train/loss": 7.5}']
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    page = Page(write.report(tmp_path))
    assert "After 40 steps the loss is 7.5. The run has no accuracy of the features." in page.text
    assert "The run is not finished" in page.text and "up to step 40" in page.text
    assert page.drawings == ["Total"]
    for name in ("summary.json", "config.json", "environment.json", "pictures.npz"):
        assert f"There is no {name} in the run folder." in page.text
    for reason in ("Not drawn: pictures.npz has no c_before and no c_after.", "No table: summary.json",
                   "Not drawn: pictures.npz has no view1", "environment.json has none",
                   "Not drawn: metrics.jsonl has no train/on_diag, train/off_diag."):  # fmt: skip
        assert reason in page.text


@pytest.mark.parametrize("damage", [b"", b'{"knn_top1": {"tra', b"[1, 2]"])
def test_damaged_files_are_named_and_skipped(run, damage, capsys, few_curves):
    for name in ("summary.json", "config.json", "environment.json", "pictures.npz"):
        (run / name).write_bytes(damage)
    damaged = read_run(run)
    for name in ("summary.json", "config.json", "environment.json", "pictures.npz"):
        assert re.search(f"{name} cannot be read", " ".join(damaged.omissions)), name
    assert "the last measured kNN top-1 on held-out images is 70.0 %" in verdict(damaged)[0][1]
    (run / "environment.json").unlink()
    write.report(run)
    said = capsys.readouterr().err
    assert f"WARNING: {run.name}: config.json cannot be read" in said and said.count("WARNING") == 3


def test_empty_metrics(tmp_path, few_curves):
    (tmp_path / "metrics.jsonl").write_text("")
    assert "The run has logged no finite loss yet." in Page(write.report(tmp_path)).text


@pytest.mark.parametrize("value", [float("nan"), float("inf"), None])
def test_a_loss_that_ends_non_finite_comes_first(run, value, few_curves):
    with open(run / "metrics.jsonl", "a") as file:
        file.writelines(train_line(step, **{"train/loss": value}) for step in (1300, 1400))
    page = Page(write.report(run))
    warning = "train/loss is not finite (NaN or infinite) at 2 logged steps, first at step 1,300."
    assert f'<p class="verdict bad">{warning}' in page.source
    assert "var(--bad)" in page.source.split('aria-label="Total"')[1].split("</svg>")[0]  # a line at the first step
    assert not re.search(r"\b(nan|inf)\b", page.text)


def test_one_skipped_step_is_a_warning(run, few_curves):
    with open(run / "metrics.jsonl", "a") as file:
        file.write(train_line(650, **{"train/loss": None}) + train_line(1200))
    page = Page(write.report(run))
    warning = "train/loss is not finite (NaN or infinite) at 1 logged step, first at step 650."
    assert '<p class="verdict good">' in page.source and f'<p class="note warn">{warning}' in page.source


@pytest.mark.parametrize(("changes", "warning"), [
    ({"train/embedding_std": 0.001}, "The embedding has collapsed"),
    ({"train/diag_mean": 0.05}, "The two views of an image hardly agree"),
    ({"train/loss": 900.0}, "The loss did not fall: 200 at first, 900 at the end"),
])  # fmt: skip
def test_bad_curves_give_warnings(run, changes, warning):
    assert len(verdict(read_run(run))) == 1
    with open(run / "metrics.jsonl", "a") as file:
        file.write(train_line(1300, **changes))
    assert any(text.startswith(warning) for _, text in verdict(read_run(run)))


SPECTRUM = np.ones(400, np.float32)


@pytest.mark.parametrize(("changes", "warning"), [
    ({"val/rank": 19.0}, "The features have collapsed: they use about 19 of 400 dimensions"),
    ({"val/rank": 21.0}, None),
    ({"val/dead_dimensions": 201}, "Most of the features are dead: 201 of 400 dimensions"),
    ({"val/dead_dimensions": 199}, None),
    ({"train/embedding_std": 0.001}, "The embedding has collapsed"),
])  # fmt: skip
def test_a_collapse_comes_first(run, changes, warning):
    add_pictures(run, spectrum_trained=SPECTRUM)
    (run / "summary.json").unlink()  # final scores could prove that the encoder has learned
    with open(run / "metrics.jsonl", "a") as file:
        file.write(json.dumps({"step": 1200, **changes}) + "\n")
    (tone, first), *_ = verdict(read_run(run))
    assert (tone == "bad" and first.startswith(warning)) if warning else tone == "plain"


def test_collapse_of_a_run_that_has_learned_comes_second(run):
    add_pictures(run, spectrum_trained=SPECTRUM)
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"step": 1200, "val/rank": 3.0}\n')
    (tone, first), second, *_ = verdict(read_run(run))
    assert tone == "good" and first.startswith("After 1,200 steps") and second[0] == "bad"


def test_a_low_rank_that_rises_is_no_collapse(run):
    add_pictures(run, spectrum_trained=SPECTRUM)
    for first, bad in ((14.0, True), (12.0, False)):
        with open(run / "metrics.jsonl", "a") as file:
            file.write(json.dumps({"step": 0, "val/rank": first}) + "\n" + '{"step": 1200, "val/rank": 19.0}\n')
        assert any("collapsed" in text for _, text in verdict(read_run(run))) == bad


def test_rank_without_a_spectrum_has_its_own_limit(run):
    """The number of features is unknown: a rank below 2 is a collapse."""
    for rank, bad in ((1.9, True), (2.1, False)):
        with open(run / "metrics.jsonl", "a") as file:
            file.write(json.dumps({"step": 1200, "val/rank": rank, "val/dead_dimensions": 500}) + "\n")
        sentences = verdict(read_run(run))
        assert (len(sentences) == 2 and "collapsed: they use about 1.9 dimensions" in sentences[1][1]) == bad


@pytest.mark.parametrize("task", ["pretrain", "evaluate"])
def test_the_numbers_of_a_smoke_run_mean_nothing(tmp_path, task, few_curves):
    """A pretraining run has no verdict on its encoder, which learned nothing in a few steps."""
    folder = make_run(tmp_path / "run", trained=0.2, config={"smoke": True, "task": task})
    lines = (folder / "metrics.jsonl").read_text()
    (folder / "metrics.jsonl").write_text(lines + train_line(1300, **{"train/loss": 500.0}))
    summary = json.loads((folder / "summary.json").read_text())
    (folder / "summary.json").write_text(json.dumps(summary | {"smoke": "64 of 127 images"}))
    page = Page(write.report(folder))
    said = "Smoke test: 64 of 127 images. It tests the set-up, and its numbers mean nothing."
    assert page.text.count(said) == 1
    assert "below the same" not in page.text and "did not fall" not in page.text
    (folder / "summary.json").unlink()
    if task == "pretrain":
        said = [text for _, text in verdict(read_run(folder))]
        assert said[0].startswith("Smoke test: few images. ") and "not finished" in said[1]


def test_a_run_of_another_form_is_no_smoke_test(tmp_path, few_curves):
    folder = make_run(tmp_path / "run", config={"smoke": False, "task": "evaluate"})
    assert "Smoke test" not in Page(write.report(folder)).text
    assert not [text for _, text in verdict(read_run(folder)) if "Smoke test" in text]


def test_runs_of_several_methods_are_compared(tmp_path):
    """VICReg has three terms; every method has a plot of its own terms."""
    runs = []
    for name, terms in (("barlow_twins", ()), ("vicreg", ("invariance", "variance", "covariance"))):
        folder = make_run(tmp_path / name, config={"objective": {"name": name}})
        line = json.loads(train_line(1300)) | {f"train/{term}": 0.5 for term in terms}
        if terms:
            del line["train/on_diag"], line["train/off_diag"]
        with open(folder / "metrics.jsonl", "a") as file:
            file.write(json.dumps(line) + "\n")
        runs.append(folder)
    page = Page(write.report(*runs))
    assert "cannot be compared" in page.text and "have other names" not in page.text  # the losses
    assert {"Terms of the loss: Barlow Twins", "Terms of the loss: VICReg"} <= set(page.drawings)
    assert Page(write.report(runs[1], runs[1])).drawings.count("Terms of the loss") == 1


def test_a_comparison_names_different_images(tmp_path, few_curves):
    runs = [make_run(tmp_path / name, config={"data": {"val_split": name}}) for name in ("small", "large")]
    page = Page(write.report(*runs))
    assert "According to the configs, large and small have different images." in page.text
    assert "78.1 % (200-NN)" in page.text and "Their losses" not in page.text
    evaluation = make_run(tmp_path / "evaluation", config={"task": "evaluate", "evals": {"knn_k": [200, 20]}})
    found = {"knn": {"knn_top1": 0.25, "knn_top1_k97_t0.07": 0.25}, "linear": {"linear_top1": 0.435}}
    (evaluation / "summary.json").write_text(json.dumps(found))
    assert "evaluation 25.0 % (97-NN) 43.5 %" in Page(write.report(runs[0], evaluation)).text


def test_scores_without_raw_pixels_say_why(tmp_path):
    run = read_run(make_run(tmp_path / "run"))
    assert "no row" not in summary_section(run)
    del run.summary["knn_top1"]["raw_pixels"], run.summary["linear_top1"]["raw_pixels"]
    found = summary_section(run)
    assert "Raw pixels have no row" in found and "<td>raw pixels" not in found


def test_a_run_without_a_held_out_split_says_how_to_get_one(tmp_path):
    folder = make_run(tmp_path / "run", config={"data": {"val_split": ""}})
    (folder / "summary.json").write_text('{"seconds": 3.0}')
    found = summary_section(read_run(folder))
    assert "has no held-out split" in found and "<code>val=20%</code>" in found


def test_the_header_names_the_number_of_neighbours_that_voted(run):
    data = read_run(run)
    data.summary["knn_k"] = 102
    assert "78.1 % 102-NN top-1" in verdict(data)[0][1]


def test_an_encoder_below_its_rivals_is_a_warning(tmp_path):
    (tone, text), *_ = verdict(read_run(make_run(tmp_path / "run", trained=0.41)))
    assert tone == "warn"
    assert "6 points below the same encoder untrained and 3 points above raw pixels" in text


def test_markup_in_user_strings_stays_text(tmp_path, few_curves):
    script = '<script>alert("1")</script>'
    run = make_run(tmp_path / "<b>run", config={"data": {"name": script, "</pre>": 1}, "evals": {"knn_k": script}})
    (run / "environment.json").write_text(json.dumps({"command": ["python", script]}))
    page = Page(write.report(run, make_run(tmp_path / "<i>other")))
    assert "<script" not in page.source and "<b>" not in page.source and "<i>other" not in page.source
    assert f"data.name = {script}" in page.text and f"python '{script}'" in page.text


def test_the_command_breaks_between_its_words(run, few_curves):
    """It can be copied to a shell, and no line ends after the hyphens of an option."""
    command = ["bt-jax", "pretrain", "--config=quickstart", "--config.data.folder=my images"]
    (run / "environment.json").write_text(json.dumps({"command": command}))
    page = Page(write.report(run))
    assert "bt-jax pretrain --config=quickstart '--config.data.folder=my images'" in page.text
    assert "<span>--config=quickstart</span>" in page.source and ".words span{display:inline-block}" in page.source


def test_every_file_of_a_run_has_a_content(run, few_curves):
    for name in ("data.json", "broken.txt"):
        (run / name).touch()
    (run / "correlation").mkdir()
    assert "<td></td>" not in Page(write.report(run)).source


def test_zero_has_no_sign():
    assert [signed(value) for value in (-0.001, -0.056, 0.5)] == ["0.00", "−0.06", "0.50"]


def test_a_comparison_leaves_the_reports_of_its_runs(tmp_path, run, few_curves):
    """It has a file of its own, and no --out can make it replace a report."""
    other = make_run(tmp_path / "slow")
    (run / "report.html").write_text("old")
    assert write.report(run, other) == run / "comparison.html" and (run / "report.html").read_text() == "old"
    for target in (run / "report.html", other / "report.html"):
        with pytest.raises(UserError, match="is the report of one run"):
            write.report(run, other, out=target)


def test_several_runs_are_compared(tmp_path, run, few_curves):
    other = make_run(tmp_path / "slow", config={"optim": {"lr_weights": 0.7}}, trained=0.64)
    out = tmp_path / "both.html"
    assert main([str(run), str(other), "--out", str(out)]) == 0
    assert not (run / "report.html").exists()
    page = Page(out)
    assert re.search(r"effective rank .* quick 78.1 % \(200-NN\) 82.3 % 90 .* slow 64.0 %", page.text)
    assert "optim.lr_weights 0.2 0.7" in page.text and "evals.knn_k 200 200" not in page.text
    total = page.source.split('aria-label="Total"')[1].split("</svg>")[0]
    assert "var(--c0)" in total and "var(--c1)" in total and "var(--c2)" not in total


def test_runs_of_one_name_go_by_their_paths(tmp_path, few_curves):
    first, second = make_run(tmp_path / "a" / "run"), make_run(tmp_path / "b" / "run")
    text = Page(write.report(first, second)).text
    assert str(first) in text and str(second) in text


def test_large_inputs_stay_a_small_file(run, few_curves):
    with open(run / "metrics.jsonl", "w") as file:
        file.writelines(train_line(step) for step in range(5000))
    views = np.random.default_rng(0).integers(0, 256, (2, 40, 224, 224, 3)).astype(np.uint8)
    np.savez(run / "pictures.npz", view1=views[0], view2=views[1])
    page = Page(write.report(run))
    assert page.source.count("<img") == 2 * 32
    assert len(page.source) < 3_000_000
    assert "There is no matrix" not in page.text and "has no c_before" in page.text
    steps, losses = downsampled(read_run(run).series["train/loss"])
    assert len(steps) == len(losses) == 300
    np.testing.assert_allclose(losses, 200 - 150 * steps / 1200)  # means of points on a line are on the line


def test_arrays_of_another_shape_are_named(run, few_curves):
    c = np.full((4, 4), np.nan, np.float32)
    np.savez(run / "pictures.npz", c_before=np.zeros((3, 5), np.float32), c_after=c, view1=np.zeros((2, 8, 8, 3)))
    text = Page(write.report(run)).text
    assert "Not drawn from pictures.npz, c_before of shape (3, 5) and type float32" in text
    assert "has no view1 and view2" in text and "of the matrix has no finite value" in text


@pytest.mark.parametrize("make", [lambda folder: None, Path.mkdir])
def test_missing_run_is_a_user_error(tmp_path, capsys, make):
    folder = tmp_path / "absent"
    make(folder)
    with pytest.raises(UserError, match="absent"):
        write.report(folder)
    assert main([str(folder)]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1 and "--workdir" in printed.err
    assert printed.err.startswith("report: ") and main([]) == 2
    assert capsys.readouterr().err == "report: The following arguments are required: RUN. See --help.\n"


def test_target_that_cannot_be_written(run, tmp_path, capsys):
    assert main([str(run), "--out", str(tmp_path / "nowhere" / "r.html")]) == 2
    assert "nowhere" in capsys.readouterr().err


def test_full_disk_leaves_the_old_report(run, monkeypatch):
    (run / "report.html").write_text("old")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(UserError, match="No space left"):
        write.report(run)
    assert (run / "report.html").read_text() == "old" and not list(run.glob(".report*"))


def test_bars_stay_within_0_and_100_percent():
    widths = [re.search(r"width:([\d.-]+)%", bar(value, "trained"))[1] for value in (-0.2, 0.25, 1.7)]
    assert widths == ["0.0", "25.0", "100.0"] and bar(None, "trained") == "–"


def test_formats_of_numbers():
    assert [duration(s) for s in (None, 59.4, 61, 3600, 3661, 360_000)] == [
        "–", "59 s", "1 min 1 s", "1 h 0 min", "1 h 1 min", "100 h 0 min"]  # fmt: skip
    assert [short(v) for v in (None, 0.01234, 1234.6)] == ["–", "0.0123", "1,235"] and percent(0.5) == "50.0 %"
    assert plural(1, "step") == "1 step" and plural(1200, "step") == "1,200 steps"
    assert [number(v) for v in (1, "1", True, None, float("nan"))] == [1.0, None, None, None, None]


def test_long_curves_are_means():
    steps, values = downsampled({float(step): float(step % 10) for step in range(3000)})
    assert len(steps) == 300
    np.testing.assert_allclose(values, 4.5)
    np.testing.assert_allclose(steps, 4.5 + 10 * np.arange(300))


def test_level_with_one_rival_is_not_learned(tmp_path):
    """The encoder is above the untrained encoder, but level with raw pixels."""
    folder = make_run(tmp_path / "run", trained=0.5)
    summary = json.loads((folder / "summary.json").read_text())
    for pixels, tone in ((0.5, "warn"), (0.4, "good")):
        summary["knn_top1"]["raw_pixels"] = pixels
        (folder / "summary.json").write_text(json.dumps(summary))
        assert verdict(read_run(folder))[0][0] == tone


def test_an_accuracy_without_a_rival_proves_nothing(run):
    """Neither in the summary nor in the last line of a run that is not finished."""
    summary = json.loads((run / "summary.json").read_text())
    summary["knn_top1"] = {"trained": 0.9}
    (run / "summary.json").write_text(json.dumps(summary))
    assert verdict(read_run(run))[0] == ("plain", "After 1,200 steps the encoder reaches 90.0 % 200-NN top-1 on"
                                         " held-out images.")  # fmt: skip
    (run / "summary.json").unlink()
    assert verdict(read_run(run))[0][0] == "plain"


@pytest.mark.parametrize("panel", [panels.ACCURACY[0], panels.OPTIMIZATION[-1]])
def test_an_axis_of_percent_ends_at_100(run, panel):
    """Also where a curve comes close to it."""
    from matplotlib.figure import Figure

    data = read_run(run)
    data.series[panel.curves[0][0]] = {0: 0.001, 100: 0.999}
    axes = Figure().add_subplot()
    draw_panel(axes, panel, [data])
    assert axes.get_ylim()[0] >= 0 and axes.get_ylim()[1] == 100


def test_intervals_belong_to_their_protocol(run):
    run_files = read_run(run)
    run_files.summary = {
        "linear": {"linear_top1": 0.7, "linear_low": 0.68, "linear_high": 0.72},
        "knn": {"knn_top1": 0.6, "knn_low": 0.58, "knn_high": 0.62, "knn_top1_k200_t0.1": 0.6,
                "knn_top1_k20_t0.1": 0.5},
        "top1": 0.8, "top1_interval": [0.77, 0.83], "top5": 0.9, "svm": {"svm_map": 0.4},
    }  # fmt: skip
    assert accuracies(run_files.summary) == [
        ("linear probe", 0.7, "68.0 % to 72.0 %"),
        ("200-NN, temperature 0.1", 0.6, "58.0 % to 62.0 %"),
        ("20-NN, temperature 0.1", 0.5, "–"),
        ("SVMs, mean average precision", 0.4, "–"),
        ("top-1", 0.8, "77.0 % to 83.0 %"),
        ("top-5", 0.9, "–"),
    ]


@pytest.mark.parametrize("rank", [float("nan"), None])
def test_features_that_are_not_finite_have_no_result(run, rank):
    """Earlier versions evaluated such encoders: every accuracy is at chance."""
    run_files = read_run(run)
    run_files.config = {"task": "evaluate"}
    run_files.summary = {"knn": {"knn_top1": 0.1}, "spectrum": {"rank": 3.0}}
    assert results_verdict(run_files)[0] == "plain"  # an accuracy alone does not prove that the encoder has learned
    run_files.summary["spectrum"]["rank"] = rank
    tone, text = results_verdict(run_files)
    assert tone == "bad" and "are not finite" in text


def test_correct_is_blue_and_wrong_is_orange():
    """A larger share has a stronger colour; a share that rounds to 0 leaves its cell blank."""
    correct, wrong = cell(0.64, True), cell(0.25, False)
    assert "28 126 214/0.60" in correct and ">64<" in correct and "232 89 12/0.38" in wrong and ">25<" in wrong
    assert cell(0.004, False) == "<td></td>"


def test_the_last_value_is_the_newest_finite_one(run):
    run_files = read_run(run)
    run_files.series["val/rank"] = {100.0: 3.0, 200.0: 5.0, 300.0: float("nan")}
    assert run_files.last("val/rank") == 5.0 and run_files.last("val/absent") is None and run_files.steps == 1200
    run_files.series["val/rank"] = {100.0: float("inf")}
    assert run_files.last("val/rank") is None


def test_every_row_of_the_table_has_its_own_scores(run):
    text = " ".join(re.sub(r"<[^>]*>", " ", summary_section(read_run(run))).split())
    rows = ("trained encoder 78.1 % 82.3 %", "the same encoder untrained 47.0 % 55.0 %", "raw pixels 38.0 % 41.0 %")
    assert text.endswith(" ".join(rows)) and "nearest neighbours (200-NN) linear probe" in text
