"""EXIF orientation: applied once by every decoder, to folders and to what was written from them."""

import io
import json

import numpy as np
import pytest
from PIL import Image, ImageOps, features

from bt_jax import prepare
from bt_jax.config import keys
from bt_jax.data import feeds, pillow_stream, pipeline
from bt_jax.data.sources import decode, orientation
from bt_jax.data.sources.checking import check_images
from bt_jax.data.sources.image_folder import FolderSource
from bt_jax.data.sources.open_source import open_source
from bt_jax.data.sources.selection import concatenated
from bt_jax.embed import record
from bt_jax.embed.reading import one_size
from bt_jax.tasks import from_encoder, open_run
from tests.support.drawn_images import Listed, encode
from tests.support.runs import changed

KINDS = ["JPEG", "PNG", "WEBP", "TIFF"] + ["AVIF"] * features.check("avif")
PIXELS = np.random.default_rng(0).integers(100, 156, (12, 20, 3), np.uint8)


def photograph(number: int, kind: str = "JPEG", pixels: np.ndarray = PIXELS) -> bytes:
    """An encoded image with this EXIF orientation."""
    exif, buffer = Image.Exif(), io.BytesIO()
    exif[orientation.TAG] = number
    Image.fromarray(pixels).save(buffer, kind, exif=exif)
    return buffer.getvalue()


def upright(records) -> Listed:
    source = Listed([(data, 0) for data in records])
    source.upright = True
    return source


def by_pillow(data: bytes) -> np.ndarray:
    """The upright image by Pillow's own function."""
    with Image.open(io.BytesIO(data)) as image:
        image.load()
        return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))


def streamed(reader, source: Listed, canvas: int) -> list[np.ndarray]:
    """The images of a source, read as one batch and cut out of their canvases."""
    (batch,) = reader.eval_batches(source, "train", batch_size=len(source.records), canvas=canvas)
    sizes = zip(batch["image"], batch["size"], strict=True)
    return [image[:height, :width] for image, (height, width) in sizes]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("number", range(1, 9))
def test_pixels_are_those_of_pillow(number, kind):
    data = photograph(number, kind)
    np.testing.assert_array_equal(decode.decode(data, upright=True), by_pillow(data))
    np.testing.assert_array_equal(pillow_stream.fit(data, 20, upright=True), by_pillow(data))
    assert decode.decode(data, 1, upright=True).shape == (*by_pillow(data).shape[:2], 1)
    if kind != "TIFF":  # which Pillow always turns
        np.testing.assert_array_equal(decode.decode(data), decode.decode(photograph(1, kind)))


@pytest.mark.parametrize("reader", [pipeline, pillow_stream])
def test_both_readers_turn_images(reader):
    records = [photograph(number, kind) for kind in KINDS for number in range(1, 9)]
    for data, found in zip(records, streamed(reader, upright(records), 20), strict=True):
        np.testing.assert_array_equal(found, by_pillow(data))
    stored = Listed([(data, 0) for data in records])
    assert [image.shape for image in streamed(reader, stored, 20)][:16] == [PIXELS.shape] * 16


@pytest.mark.parametrize("reader", [pipeline, pillow_stream])
@pytest.mark.parametrize("canvas", [17, 50])
def test_images_over_the_canvas_are_turned_after_they_are_shrunk(reader, canvas):
    """Also when a JPEG is decoded at a fraction of its size; to the pixels of the image that is stored upright."""
    ramp = np.linspace(0, 255, 130 * 97 * 3).reshape(97, 130, 3).astype(np.uint8)
    found = streamed(reader, upright([photograph(number, pixels=ramp) for number in range(1, 9)]), canvas)
    for number, image in enumerate(found, 1):
        wanted = orientation.turned(found[0], number)
        assert image.shape == wanted.shape and max(image.shape) == canvas
        assert np.abs(image.astype(int) - wanted).max() <= 1, number


def test_readers_agree_without_exif_and_with_damaged_exif():
    damaged = photograph(6).replace(b"Exif\0\0MM", b"Exif\0\0XX").replace(b"Exif\0\0II", b"Exif\0\0XX")
    beyond = photograph(9)
    xmp = io.BytesIO()
    Image.fromarray(PIXELS).save(xmp, "JPEG", xmp=b'<x:xmpmeta tiff:Orientation="6">')
    records = [encode(PIXELS, "JPEG"), encode(PIXELS), damaged, beyond, xmp.getvalue()]
    numbers = [1, 1, 1, 1, 6]
    assert orientation.of_all([*records, b"", b"\xff\xd8\xff"]).tolist() == [*numbers, 1, 1]
    wanted = [orientation.turned(decode.decode(data), number) for data, number in zip(records, numbers, strict=True)]
    for reader in (pipeline, pillow_stream):
        for one, other in zip(streamed(reader, upright(records), 20), wanted, strict=True):
            np.testing.assert_array_equal(one, other)
    for data, other in zip(records, wanted, strict=True):
        np.testing.assert_array_equal(decode.decode(data, upright=True), other)


def test_a_jpeg_without_exif_is_not_opened_for_it(monkeypatch):
    monkeypatch.setattr(Image, "open", None)
    assert orientation.of_encoded(encode(PIXELS, "JPEG")) == orientation.of_encoded(encode(PIXELS)) == 1


@pytest.fixture
def photographs(root):
    """A folder of eight photographs, one for each orientation, in a split with two classes."""
    for number in range(1, 9):
        (root / "train" / "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
        (root / "train" / "ab"[number % 2] / f"{number}.jpg").write_bytes(photograph(number))
    return root


def shapes(source) -> dict[str, int]:
    """{"12x20": number of images, ...} as `check_images` finds them."""
    sizes = [f"{h}x{w}" for _, (w, h), _, _ in check_images(source, source.span("train"))]
    return {size: sizes.count(size) for size in sorted(set(sizes))}


BOTH, STORED = {"12x20": 4, "20x12": 4}, {"12x20": 8}


def test_folders_are_turned_unless_the_config_says_otherwise(photographs):
    assert shapes(open_source(None, folder=photographs)) == BOTH
    assert shapes(open_source(None, folder=photographs, exif_orientation="ignore")) == STORED
    assert shapes(concatenated(FolderSource(photographs), "train", name="train")) == BOTH
    assert one_size(FolderSource(photographs), FolderSource(photographs).span("train"))[0] is None


@pytest.mark.parametrize("form", ["npz", "shards"])
@pytest.mark.parametrize("option, found", [("auto", BOTH), ("ignore", STORED)])
def test_written_files_keep_the_bytes_and_say_so(photographs, tmp_path, form, option, found):
    """Turned exactly once: the bytes are those of the folder, and the record of the written file says whether."""
    out = tmp_path / "out.npz" if form == "npz" else tmp_path / "out"
    command = [f"--folder={photographs}", f"--exif_orientation={option}", f"--{form}={out}"]
    assert prepare.main(command) == 0
    where = {"npz": out} if form == "npz" else {"data_dir": tmp_path}
    stored = open_source(None if form == "npz" else "out", **where)
    assert {data for data, _ in stored.encoded("train")} == {photograph(number) for number in range(1, 9)}
    assert shapes(stored) == found
    assert shapes(open_source(None if form == "npz" else "out", **where, exif_orientation="apply")) == BOTH


def test_files_from_before_the_record_are_not_turned(photographs, tmp_path):
    assert prepare.main([f"--folder={photographs}", f"--npz={tmp_path / 'new.npz'}"]) == 0
    with np.load(tmp_path / "new.npz") as file:
        np.savez(tmp_path / "old.npz", **{name: file[name] for name in file.files if name != "upright"})
    assert shapes(open_source(None, npz=tmp_path / "old.npz")) == STORED


def opened(photographs, workdir, value="auto"):
    """`Source.upright` as a run in this folder has it."""
    values = {"data.folder": str(photographs), "data.name": "", "data.val_split": "", "batch_size": 8}
    values |= {"data.on_device": False, "data.exif_orientation": value}
    settings = keys.read(changed(keys.pretrain(), **values))
    return open_run.open_data(settings, str(workdir), open_run.open_machine(settings), 3).source.upright


def test_a_run_keeps_its_orientation(photographs, tmp_path):
    """A run that an older version started resumes with the pixels that it had."""
    assert opened(photographs, tmp_path / "new") and not opened(photographs, tmp_path / "new", "ignore")
    for name, data, kept in (("old", {}, False), ("a", {"exif_orientation": "ignore"}, False)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps({"data": data}))
        assert opened(photographs, tmp_path / name) == kept
        assert opened(photographs, tmp_path / name, "apply")  # which `open_folder` then refuses
    (tmp_path / "a" / "config.json").write_text("{")
    assert opened(photographs, tmp_path / "a")


@pytest.mark.parametrize("data, value", [({}, "ignore"), ({"exif_orientation": "apply"}, "apply")])
def test_an_encoder_is_evaluated_on_the_pixels_of_its_run(tmp_path, data, value):
    run = {"task": "pretrain", "data": {"folder": "photographs"} | data, "views": {"size": 8}, "evals": {}}
    (tmp_path / "config.json").write_text(json.dumps(run))
    config = changed(keys.evaluate(), encoder=str(tmp_path))
    assert from_encoder.complete(config).data.exif_orientation == value
    own = changed(config, **{"data.folder": "others"})
    assert from_encoder.complete(own).data.exif_orientation == "auto"


def test_the_config_key_reaches_the_source(photographs):
    for value in orientation.CHOICES:
        values = {"data.folder": str(photographs), "data.exif_orientation": value}
        source, _ = feeds.open_data(keys.read(changed(keys.pretrain(), **values)).data)
        assert source.upright == (value != "ignore")


def test_headers_are_turned_like_pixels():
    records = [(photograph(number), 0) for number in (5, 6, 7, 8)]
    assert one_size(Listed(records), Listed(records).span("train"))[0] == (12, 20)
    source = upright([data for data, _ in records])
    assert one_size(source, source.span("train"))[0] == source.arrays("train").images.shape[1:3] == (20, 12)


def test_a_folder_of_embeddings_keeps_its_orientation(tmp_path):
    """A folder that an older version started is continued with the pixels that it had."""
    assert record.orientation_of(tmp_path) == "auto"
    for settings, kept in (({}, "ignore"), ({"exif_orientation": "apply"}, "apply")):
        (tmp_path / "embed.json").write_text(json.dumps({"settings": settings, "splits": {}}))
        assert record.orientation_of(tmp_path) == kept
        old = json.loads((tmp_path / "embed.json").read_text())
        assert record._differences(old, {"exif_orientation": kept}, {}) == []
        assert record._differences(old, {"exif_orientation": "none"}, {}) == [f"exif_orientation: {kept} -> none"]
