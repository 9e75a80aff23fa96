"""Sources: all ways of reading give the same pixels, labels and ids, and every damage gives one clear line."""

import importlib.util
import os
import subprocess
import sys

import numpy as np
import pytest

from bt_jax import prepare
from bt_jax.data import device
from bt_jax.data.pipeline import eval_batches
from bt_jax.data.sources.broken import UnreadableImages
from bt_jax.data.sources.decode import decode
from bt_jax.data.sources.npz import NpzSource, write_npz
from bt_jax.data.sources.open_source import open_source
from bt_jax.messages import UserError
from tests.support.drawn_images import Listed, encode
from tests.support.tfds_files import write_dataset


def test_npz_round_trip(npz, images):
    source = open_source(None, npz=npz)
    assert (source.name, source.splits, source.num_classes) == ("listed", {"train": 23}, 3)
    assert list(source.class_names) == ["a", "b", "c"]
    arrays = source.arrays("train")
    assert arrays.images.dtype == np.uint8 and arrays.labels.dtype == np.int32
    np.testing.assert_array_equal(arrays.images, images)
    np.testing.assert_array_equal(arrays.labels, np.arange(23) % 3)
    assert [p.name for p in npz.parent.iterdir()] == ["cache.npz"], "a temporary file was left behind"


@pytest.mark.parametrize(
    ("split", "start", "stop"),
    [
        ("train[:20]", 0, 20),
        ("train[20:]", 20, 23),
        ("train[:90%]", 0, 21),
        ("train[-10%:]", 21, 23),
        ("train[5:-3]", 5, 20),
    ],
)
def test_slices_keep_ids_of_the_whole(npz, images, split, start, stop):
    source = open_source(None, npz=npz)
    assert source.span(split) == ("train", start, stop)
    np.testing.assert_array_equal(source.arrays(split).images, images[start:stop])
    assert [label for _, label in source.encoded(split)] == [i % 3 for i in range(start, stop)]


@pytest.mark.parametrize("split", ["test", "train[23:]", "train[:200%]", "train[a:b]", "train[3]"])
def test_wrong_splits(npz, split):
    with pytest.raises(UserError, match="[Ss]plit|more than all"):
        open_source(None, npz=npz).span(split)


def test_unlabelled(images, tmp_path):
    write_npz(Listed([(encode(im), None) for im in images]), tmp_path / "u.npz", ["train"])
    source = open_source(None, npz=tmp_path / "u.npz")
    assert source.num_classes == 0 and source.arrays("train").labels is None
    assert next(source.encoded("train"))[1] is None


def test_grayscale_and_cmyk_become_rgb():
    flat = np.full((8, 8, 3), 90, np.uint8)
    records = [(encode(flat, "JPEG", mode), 0) for mode in ("L", "CMYK", "RGB")] + [(encode(flat, "PNG", "RGBA"), 0)]
    arrays = Listed(records).arrays("train")
    assert arrays.images.shape == (4, 8, 8, 3)
    assert np.abs(arrays.images.astype(int) - 90).max() <= 2


def test_broken_image_is_named(images, tmp_path):
    records = [(encode(im, "JPEG"), 0) for im in images]
    records[17] = (records[17][0][:-40], 0)
    with pytest.raises(UserError, match="listed, split 'train', id 17: "):
        Listed(records).arrays("train")
    with pytest.raises(UserError, match="id 17: "):
        Listed(records).arrays("train[15:]")


def test_broken_images_are_black_without_a_label(images):
    records = [(encode(im, "JPEG"), 1) for im in images]
    records[0], records[17] = (b"text", 1), (records[17][0][:-40], 1)
    source, said = Listed(records), []
    whole, labels = source.arrays("train", UnreadableImages(source, limit=0.01, say=said.append))
    assert [i for i, label in enumerate(labels) if label == -1] == [0, 17] and len(said) == 2
    assert not whole[[0, 17]].any() and np.array_equal(whole[1], decode(records[1][0]))
    masks = [batch["mask"] for batch in device.eval_batches(whole, labels, batch_size=10)]
    assert np.flatnonzero(~np.concatenate(masks)[: len(images)]).tolist() == [0, 17]


def test_images_of_several_sizes_do_not_become_an_array(images):
    records = [(encode(images[0]), 0), (encode(images[1][:5]), 0)]
    with pytest.raises(UserError, match=r"id 0 is 6x8, id 1 is 6x5.*Stream"):
        Listed(records).arrays("train")


def test_damaged_cache_files(npz, tmp_path):
    whole = npz.read_bytes()
    with np.load(npz) as file:
        contents = dict(file)

    def without(**changes):
        np.savez(tmp_path / "bad.npz", **{k: v for k, v in (contents | changes).items() if v is not None})
        return (tmp_path / "bad.npz").read_bytes()

    cases = {
        "cut": whole[: len(whole) // 2],
        "flipped": whole[:600] + bytes([whole[600] ^ 255]) + whole[601:],
        "other format": without(format=np.int64(2)),
        "no offsets": without(**{"train/offsets": None}),
        "offsets past the end": without(**{"train/offsets": contents["train/offsets"] + 1}),
        "labels of another length": without(**{"train/labels": contents["train/labels"][1:]}),
        "pickled names": without(class_names=np.array(["a", None], object)),
    }
    for what, data in cases.items():
        (tmp_path / "bad.npz").write_bytes(data)
        with pytest.raises(UserError, match="bad.npz is not an intact cache file"):
            open_source(None, npz=tmp_path / "bad.npz")
            pytest.fail(f"a damaged file was read: {what}")
    of_others = {"text": b"not a zip file", "empty": b"", "images": without(format=None, images=np.ones(3))}
    for what, data in of_others.items():
        (tmp_path / "bad.npz").write_bytes(data)
        with pytest.raises(UserError, match="bad.npz is not a cache file of bt_jax: it ") as caught:
            open_source(None, npz=tmp_path / "bad.npz")
        assert "pickle" not in str(caught.value) and "--config.data.folder=IMAGES" in caught.value.fix, what
    with pytest.raises(UserError, match="There is no cache file"):
        open_source(None, npz=tmp_path / "none.npz")
    with pytest.raises(UserError, match="'listed', not 'cifar10'"):
        open_source("cifar10", npz=npz)


def test_failed_write_leaves_the_old_file(npz, images, monkeypatch):
    before = npz.read_bytes()

    def full(file, **_):
        file.write(b"half of it") if hasattr(file, "write") else file.write_bytes(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(UserError, match="No space left"):
        write_npz(Listed([(encode(images[0]), 0)]), npz, ["train"])
    assert npz.read_bytes() == before and len(list(npz.parent.iterdir())) == 1


def test_patterns(tmp_path):
    pytest.importorskip("bt_jax.data.sources.patterns")
    source = open_source("patterns")
    arrays = source.arrays("train")
    assert arrays.images.shape == (source.splits["train"], 32, 32, 3) and arrays.images.dtype == np.uint8
    assert source.num_classes == 10 and arrays.labels.max() == 9 and arrays.labels.dtype == np.int32
    write_npz(source, tmp_path / "patterns.npz", ["test"])  # PNG is lossless
    copy = open_source("patterns", npz=tmp_path / "patterns.npz").arrays("test")
    np.testing.assert_array_equal(copy.images, source.arrays("test").images)
    np.testing.assert_array_equal(copy.labels, source.arrays("test").labels)


def test_cache_files_need_no_tensorflow(npz):
    code = (
        "import sys\nsys.modules.update(tensorflow=None, tensorflow_datasets=None, jax=None, torch=None)\n"
        "from bt_jax.data.sources.open_source import open_source\n"
        f"print(open_source(None, npz={str(npz)!r}).arrays('train').images.shape)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "(23, 8, 6, 3)", done.stderr


# prepare -------------------------------------------------------------------------------------------------------------


def test_prepare_checks_a_cache_file(npz, tmp_path, capsys):
    copy = tmp_path / "copy.npz"
    assert prepare.main([f"--npz_in={npz}", f"--npz={copy}"]) == 0
    assert "train: 23 images, all 6x8, 3 of 3 classes, 7 to 8 each, 0 unreadable" in capsys.readouterr().out
    theirs, ours = (list(open_source(None, npz=path).encoded("train")) for path in (npz, copy))
    assert ours == theirs and len(ours) == 23


def test_prepare_replaces_only_a_cache_file_of_the_same_data_set(npz, tmp_path, capsys):
    photograph, archive, other = tmp_path / "a.jpg", tmp_path / "a.npz", tmp_path / "other.npz"
    photograph.write_bytes(b"\xff\xd8 a photograph")
    np.savez(archive, weights=np.zeros(2))
    whole = npz.read_bytes()
    with np.load(npz) as file:
        np.savez(other, **{**file, "name": np.array("others")})
    for path, cause in (
        (photograph, "is not a cache file of bt_jax: it is no .npz file"),
        (archive, "is not a cache file of bt_jax: it has no array 'format', but weights.npy"),
        (other, "is the cache file of another data set, others, not of "),
    ):
        before = path.read_bytes()
        assert prepare.main([f"--npz_in={npz}", f"--npz={path}"]) == 2
        out, error = capsys.readouterr()
        assert error.startswith(f"prepare: {path} exists and {cause}") and len(error.splitlines()) == 1
        assert error.endswith(". Give another --npz, or delete it.\n") and not out
        assert path.read_bytes() == before
    for content in (whole, whole[:-40]):  # the same data set, intact and damaged
        archive.write_bytes(content)
        assert prepare.main([f"--npz_in={npz}", f"--npz={archive}"]) == 0
        assert NpzSource(archive).splits == NpzSource(npz).splits


def test_prepare_lists_unreadable_images(images, tmp_path, capsys):
    """Each with its reason. A few are allowed, as in training."""
    records = [(encode(im), 0) for im in images]
    records[3] = records[20] = (b"\xff\xd8\xff", 0)
    write_npz(Listed(records), tmp_path / "bad.npz", ["train"])
    assert prepare.main([f"--npz_in={tmp_path / 'bad.npz'}"]) == 0
    assert "2 images cannot be read: training replaces them" in capsys.readouterr().out
    records[3] = records[4]
    write_npz(Listed(records), tmp_path / "one.npz", ["train"])
    assert prepare.main([f"--npz_in={tmp_path / 'one.npz'}", f"--npz={tmp_path / 'copy.npz'}"]) == 0
    said = "1 image cannot be read: it is written too, so that ids stay, and training replaces it\n"
    assert said in capsys.readouterr().out
    assert prepare.main([f"--npz_in={tmp_path / 'bad.npz'}", "--broken_limit=0"]) == 2
    said, error = capsys.readouterr()
    assert "2 of the 23 images" in error and "--config.data.broken_limit=0.09" in error and error.count("\n") == 1
    named = [line for line in said.splitlines() if line.startswith("unreadable: ")]
    assert named == [f"unreadable: listed, split 'train', id {i}: cannot identify image file" for i in (3, 20)]


def test_prepare_errors_are_one_line(tmp_path, capsys):
    for arguments in (
        [],
        ["--data=cifar10", f"--data_dir={tmp_path}"],
        ["--data=patterns", "--npz_in=x.npz"],
        ["--dta=patterns"],
    ):
        assert prepare.main(arguments) == 2
        error = capsys.readouterr().err
        assert error.startswith("prepare: ") and len(error.splitlines()) == 1


# TFDS ----------------------------------------------------------------------------------------------------------------


def test_missing_tfds_data_names_the_folder_and_the_command(tmp_path, monkeypatch):
    (tmp_path / "cifar10").mkdir()
    for name in ("cifar10", "cifar10:3.0.2", "no_such_set"):
        with pytest.raises(UserError) as caught:
            open_source(name, data_dir=tmp_path)
        assert str(tmp_path / name.split(":")[0]) in caught.value.cause
        assert f"Replace {tmp_path} by" in caught.value.fix and "tfds build" in caught.value.fix
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "elsewhere"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    with pytest.raises(UserError, match="elsewhere.*Set TFDS_DATA_DIR") as caught:
        open_source("cifar10")
    assert "-data_dir" not in caught.value.fix.replace("tfds build cifar10 --data_dir", ""), "not a flag of training"
    assert "the extra tfds" not in caught.value.cause
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="elsewhere.*, and reading needs the extra tfds, which is missing. Set TFDS"):
        open_source("cifar10")
    with pytest.raises(UserError, match="not a data set"):
        open_source("../cifar10", data_dir=tmp_path)


@pytest.fixture(scope="module")
def cifar(tfds_dir):
    return open_source("cifar10", data_dir=tfds_dir)


def test_cifar10(cifar, tfds_dir):
    assert cifar.splits == {"train": 50000, "test": 10000} and cifar.num_classes == 10
    assert cifar.class_names[3] == "cat"
    assert open_source("cifar10:3.0.2", data_dir=tfds_dir).splits == cifar.splits
    with pytest.raises(UserError, match="it has 3.0.2"):
        open_source("cifar10:1.0.0", data_dir=tfds_dir)


def test_tfds_and_cache_file_give_equal_pixels(cifar, tmp_path):
    class Head(Listed):  # the first test images only, so that the test is fast
        def __init__(self):
            super().__init__(list(cifar.encoded("test[:300]")), class_names=cifar.class_names)

    write_npz(Head(), tmp_path / "c.npz", ["train"])
    ours, theirs = open_source(None, npz=tmp_path / "c.npz").arrays("train"), cifar.arrays("test[:300]")
    np.testing.assert_array_equal(ours.images, theirs.images)
    np.testing.assert_array_equal(ours.labels, theirs.labels)


@pytest.mark.parametrize("split", ["test[:1%]", "test[9990:]", "test[17:23]", "test[-3%:]"])
def test_slices_equal_those_of_tfds(cifar, split):
    import tensorflow_datasets as tfds

    theirs = cifar._builder.as_dataset(split=split, decoders={"image": tfds.decode.SkipDecoding()}).batch(1000)
    theirs = list(next(theirs.as_numpy_iterator())["image"])
    span = cifar.span(split)
    rows = next(cifar.tf_dataset(split).batch(1000).as_numpy_iterator())
    assert list(rows["image"]) == theirs
    assert rows["id"].dtype == np.int64 and list(rows["id"]) == list(range(span.start, span.stop))


def test_random_access_equals_sequential_reading(tfds_dir):
    source = open_source("imagenet2012", data_dir=tfds_dir)
    assert source.splits == {"train": 450, "validation": 50} and source.num_classes == 1000
    records = [(r["image"], int(r["label"])) for r in source.tf_dataset("train").as_numpy_iterator()]
    assert list(source.encoded("train")) == records
    ids = np.random.default_rng(0).permutation(450)[:100]
    assert source.read("train", ids) == [records[i] for i in ids]
    with pytest.raises(UserError, match="differ in size.*Stream"):
        source.arrays("train")


def unreadable(source) -> list[int]:
    return [i for i, (data, _) in enumerate(source.encoded("validation")) if isinstance(data, UserError)]


def test_damaged_tfrecord_is_named(tfds_dir, tmp_path):
    from_folder = tfds_dir / "imagenet2012" / "5.1.0"
    folder = tmp_path / "imagenet2012" / "5.1.0"
    folder.mkdir(parents=True)
    for file in from_folder.iterdir():
        os.symlink(file, folder / file.name)
    target = folder / "imagenet2012-validation.tfrecord-00000-of-00001"
    data = bytearray(target.read_bytes())
    target.unlink()
    target.write_bytes(data[: len(data) - 1000])
    source = open_source("imagenet2012", data_dir=tmp_path)
    assert source.read("validation", [0])
    with pytest.raises(UserError, match="ends before this record"):
        source.read("validation", [49])
    assert unreadable(source) == [49]
    data[12 + 20_000] ^= 1  # within the first image: a decoder may not notice it
    target.write_bytes(data)
    source = open_source("imagenet2012", data_dir=tmp_path)
    with pytest.raises(UserError, match="its checksum differs"):
        source.read("validation", [0])
    assert unreadable(source) == [0]
    target.unlink()
    assert unreadable(open_source("imagenet2012", data_dir=tmp_path)) == list(range(50))
    with pytest.raises(UserError, match="No such file"):
        open_source("imagenet2012", data_dir=tmp_path).read("validation", [0])


def write_multi_label(folder, records, *, lists, label=False, files=2):
    """A TFDS data set "shown" in the form of VOC. `lists` names its lists of classes. A record is an encoded
    image and its classes by list, and with `label` a single one too. 5 classes; `files` of equal length."""
    import tensorflow_datasets as tfds

    classes = tfds.features.ClassLabel(names=["bus", "car", "cat", "cow", "dog"])
    objects = {"label": classes, "is_difficult": np.bool_}
    features = tfds.features.FeaturesDict(
        {"image": tfds.features.Image(), "objects": tfds.features.Sequence(objects)}
        | {key: tfds.features.Sequence(classes) for key in lists}
        | ({"label": classes} if label else {})
    )
    serialized = [
        features.serialize_example(
            features.encode_example({"image": image, "objects": {"label": [], "is_difficult": []}} | shown)
        )
        for image, shown in records
    ]
    return write_dataset(folder, "shown", "test", features, serialized, files=files)


SHOWN = [  # all classes, and the subset that is not difficult
    ([0], [0]),
    ([1, 3], [3]),
    ([4], []),
    ([], []),
    ([0, 1, 2, 3, 4], [0, 4]),
    ([2, 4], [2, 4]),
]
TARGETS = [
    [1, -1, -1, -1, -1],
    [-1, 0, -1, 1, -1],
    [-1, -1, -1, -1, 0],
    [-1, -1, -1, -1, -1],
    [1, 0, 0, 0, 1],
    [-1, -1, 1, -1, 1],
]


@pytest.fixture
def voc(images, tmp_path):
    pytest.importorskip("tensorflow_datasets")
    records = [
        (encode(im), {"labels": both, "labels_no_difficult": easy})
        for im, (both, easy) in zip(images, SHOWN, strict=False)
    ]
    return write_multi_label(tmp_path, records, lists=["labels", "labels_no_difficult"])


def remote(source):
    """The same data set as a source without an index of records."""
    source._local, source._records = False, None
    return source


@pytest.mark.parametrize("road", [lambda source: source, remote])
def test_voc_targets_distinguish_difficult_from_absent(voc, road):
    source = road(open_source("shown", data_dir=voc.parent.parent))
    found = source.targets("test")
    assert found.dtype == np.int8 and found.tolist() == TARGETS
    assert source.num_classes == 5 and list(source.class_names) == ["bus", "car", "cat", "cow", "dog"]


@pytest.mark.parametrize("road", [lambda source: source, remote])
def test_multi_label_images_have_no_label(voc, images, road):
    source = road(open_source("shown", data_dir=voc.parent.parent))
    assert not source.labelled("test") and source.arrays("test").labels is None
    np.testing.assert_array_equal(source.arrays("test[1:]").images, images[1:6])
    assert [label for _, label in source.encoded("test")] == [None] * 6
    (batch,) = eval_batches(source, "test", batch_size=6, canvas=8)
    np.testing.assert_array_equal(batch["image"][:, :8, :6], images[:6])
    assert (batch["label"] == -1).all()


@pytest.mark.parametrize("key", ["labels", "shown"])
def test_one_list_of_classes_marks_none_as_difficult(images, tmp_path, key):
    pytest.importorskip("tensorflow_datasets")
    records = [(encode(im), {key: both}) for im, (both, _) in zip(images, SHOWN, strict=False)]
    write_multi_label(tmp_path, records, lists=[key])
    found = open_source("shown", data_dir=tmp_path).targets("test")
    np.testing.assert_array_equal(found, np.where(np.array(TARGETS) >= 0, 1, -1))


def test_images_of_one_label_have_no_targets(npz, images, cifar, tmp_path):
    assert open_source(None, npz=npz).targets("train") is None
    records = [(encode(im), {"label": 3, "labels": [1, 3]}) for im in images[:6]]
    write_multi_label(tmp_path, records, lists=["labels"], label=True)
    both = open_source("shown", data_dir=tmp_path)
    assert both.targets("test") is None and list(both.arrays("test").labels) == [3] * 6
    assert cifar.targets("test") is None and cifar.labelled("test")


def rewrite(file, records: list[bytes]):
    import tensorflow as tf

    with tf.io.TFRecordWriter(str(file)) as writer:
        for record in records:
            writer.write(record)


@pytest.mark.parametrize("road", [lambda source: source, remote])
def test_targets_of_damaged_records(voc, road):
    import tensorflow as tf

    last, folder = voc / "shown-test.tfrecord-00001-of-00002", voc.parent.parent
    whole, records = last.read_bytes(), list(tf.data.TFRecordDataset(str(last)).as_numpy_iterator())
    image_at = whole.index(b"\x89PNG")
    far = tf.train.Example.FromString(records[1])
    far.features.feature["labels"].int64_list.value.append(5)
    negative = tf.train.Example.FromString(records[1])
    negative.features.feature["labels"].int64_list.value.append(-1)
    cases = {
        "id 4: the record is damaged": [
            [records[0], b"\xff" * 9, records[2]],
            [records[0], b"", records[2]],
            [records[0], far.SerializeToString(), records[2]],
            [records[0], negative.SerializeToString(), records[2]],
        ],
        "ends before this record|holds 5 records": [records[:2]],
        "holds 4 whole records|holds 7 records": [[*records, records[0]]],
    }
    for message, contents in cases.items():
        for content in contents:
            rewrite(last, content)
            with pytest.raises(UserError, match=message):
                road(open_source("shown", data_dir=folder)).targets("test")
    for data in (whole[:-3], whole[:image_at] + b"!" + whole[image_at + 1 :]):  # truncated; with a flipped byte
        last.write_bytes(data)
        with pytest.raises(UserError, match="ends before|checksum differs|is damaged after id [35]"):
            road(open_source("shown", data_dir=folder)).targets("test")
    last.unlink()
    with pytest.raises(UserError, match="No such file|is damaged after id 3"):
        road(open_source("shown", data_dir=folder)).targets("test")


def test_no_network_and_no_accelerator(tfds_dir):
    code = (
        "import socket\n"
        "def refuse(*_, **__): raise AssertionError('the network was asked')\n"
        "socket.socket.connect = socket.getaddrinfo = socket.create_connection = refuse\n"
        "from bt_jax.data.sources.open_source import open_source\nfrom bt_jax.data.sources.tfds import tensorflow\n"
        f"print(open_source('cifar10', data_dir={str(tfds_dir)!r}).arrays('test[:5]').images.shape)\n"
        "print([d.device_type for d in tensorflow().config.get_visible_devices()])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.split("\n")[:2] == ["(5, 32, 32, 3)", "['CPU']"], done.stderr
    assert done.stderr == "", "reading data is silent"
