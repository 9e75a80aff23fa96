"""Features on disk: those of the encoder, in order, each image once, also after interruption or damage."""

import functools
import importlib.util
import json
import os
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import bt_jax
from bt_jax import augment, messages, models
from bt_jax.augment import recipes
from bt_jax.config import arguments
from bt_jax.data.sources.npz import write_npz
from bt_jax.embed import record, shards
from bt_jax.embed.__main__ import main, parser
from bt_jax.embed.reading import one_size
from bt_jax.run_folder.checkpoints import Checkpoints
from bt_jax.state import TrainState
from bt_jax.train import build
from tests.support.drawn_images import Counted, Listed, encode
from tests.support.runs import tiny

pytestmark = pytest.mark.usefixtures("tiny_arch", "compiled_quickly", "one_device")
SIZE, DIM, COUNT = 20, 64, 23
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory, tiny_arch, compiled_quickly, one_device):
    """A run folder with a checkpoint of a small network, and its config."""
    run = tmp_path_factory.mktemp("run")
    save(run, seed=1)
    (run / "config.json").write_text(json.dumps(arguments.to_dict(tiny())))
    return run


def save(run, *, seed):
    """Step 3 of a run with random weights and statistics, made without a compiler."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        name = path[-1].key
        if name == "kernel":
            value = rng.standard_normal(leaf.shape) / np.sqrt(np.prod(leaf.shape[:-1]))
        else:
            value = rng.uniform(0.5, 1.5, leaf.shape) - (name in ("bias", "mean"))
        return jnp.asarray(value, jnp.float32)

    options = build.backbone_options(tiny().model, 3)
    net = models.build(**options)
    variables = jax.tree_util.tree_map_with_path(draw, jax.eval_shape(net.init, jax.random.key(0)))
    rest = {"kernel": jnp.zeros((2, 2))}
    state = TrainState(
        step=jnp.int32(3),
        params={"backbone": variables["params"], "projector": rest, "probe": rest},
        batch_stats={"backbone": variables["batch_stats"], "projector": rest},
        opt_state=rest,
        bad_steps=jnp.int32(0),
    )
    checkpoints = Checkpoints(run, model={"build": options, "mean": MEAN, "std": STD})
    checkpoints.save(state)
    checkpoints.close()


@pytest.fixture(scope="module", autouse=True)
def programs_once():
    """All encoders of this file have one architecture; their weights are arguments."""
    make, made = shards.features.make_embed, {}

    def once(net, recipe, mesh, *, resize):
        key = (net.arch, str(net.options), recipe, resize)
        if key not in made:
            made[key] = make(net, recipe, mesh, resize=resize)
        return made[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards.features, "make_embed", once)
        yield


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (COUNT, SIZE, SIZE, 3), np.uint8)


@pytest.fixture(scope="module")
def npz(images, tmp_path_factory):
    """A cache file of the images as PNG, with labels 0, 1, 2, 0, ..."""
    path = tmp_path_factory.mktemp("npz") / "cache.npz"
    write_npz(Listed([(encode(image), i % 3) for i, image in enumerate(images)]), path, ["train"])
    return path


@pytest.fixture(scope="module")
def wanted(encoder):
    """Features of images of any size, computed with the library's functions."""
    net, variables = bt_jax.load_encoder(encoder)
    view = jax.jit(augment.evaluation_view, static_argnames=("recipe", "resize"))
    apply = jax.jit(functools.partial(net.apply, train=False))

    def features(images, size=SIZE, resize=None):
        recipe = recipes.Recipe(size, recipes.View(), recipes.View(), MEAN, STD)
        views = [view(jnp.asarray(image)[None], recipe, resize=resize) for image in images]
        views += views[:1] * (COUNT - len(views))  # to compile once
        return np.asarray(apply(variables, jnp.concatenate(views)))[: len(images)]

    return features


def run(encoder, out, *options, status=0):
    assert main([f"--encoder={encoder}", f"--out={out}", "--batch_size=3", *map(str, options)]) == status
    return out


def stored(out, name, split="train"):
    return np.concatenate([np.load(file) for file in sorted((out / split).glob(f"{name}-*"))])


def close(found, wanted):
    # float32, with other batches
    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-4 * np.abs(wanted).max())


def times(out):
    return {path.name: path.stat().st_mtime_ns for path in (out / "train").iterdir()}


def test_every_image_once_in_order(encoder, npz, images, wanted, tmp_path, capsys, monkeypatch):
    """23 images in shards of 10 and batches of 8, the number of devices. Every batch is due for a line here."""
    monkeypatch.setattr(messages, "SECONDS_BETWEEN_LINES", -1)
    out = run(encoder, tmp_path / "out", f"--npz_in={npz}", "--shard=10")
    names = [f"{name}-{i:05d}-of-00003.npy" for name in ("features", "files", "ids", "labels") for i in range(3)]
    assert sorted(path.name for path in (out / "train").iterdir()) == names, "nothing else is left behind"
    shapes = [np.load(file).shape for file in sorted((out / "train").glob("features-*"))]
    assert shapes == [(10, DIM), (10, DIM), (3, DIM)]
    found = {name: stored(out, name) for name in ("features", "ids", "labels", "files")}
    assert [found[name].dtype for name in ("features", "ids", "labels")] == [np.float32, np.int64, np.int32]
    assert found["ids"].tolist() == list(range(COUNT)) and found["labels"].tolist() == [i % 3 for i in range(COUNT)]
    assert found["files"].tolist() == [f"train/{i}" for i in range(COUNT)]
    close(found["features"], wanted(images))
    record = json.loads((out / "embed.json").read_text())
    assert record["settings"]["encoder"] == str(encoder / "checkpoints" / "3")
    assert record["settings"]["dimension"] == DIM and record["settings"]["size"] == SIZE, "the run's"
    assert record["splits"]["train"].pop("images").startswith("npz ")
    assert record["splits"] == {"train": {"start": 0, "stop": COUNT, "shards": 3, "rows": COUNT, "unreadable": 0}}
    assert record["environment"]["versions"]["jax"] == jax.__version__ and record["environment"]["command"]
    assert not (out / "broken.txt").exists()
    said = capsys.readouterr().out
    assert "train: 23 images in 3 shards, 0 unreadable images" in said and "images/s" in said
    for done in (0, 10, 20):
        assert f"embedding train: {done} of 23 images\n" in said


def test_resuming(encoder, npz, tmp_path, capsys):
    """Missing, short and renumbered shards are written again; intact ones are not touched."""
    out = run(encoder, tmp_path / "out", f"--npz_in={npz}", "--shard=5")
    before, features = times(out), stored(out, "features")
    (out / "train" / "features-00001-of-00005.npy").unlink()
    short = out / "train" / "features-00003-of-00005.npy"
    short.write_bytes(short.read_bytes()[:-4])
    np.save(out / "train" / "features-00002-of-00005.npy", np.zeros((5, DIM - 1), np.float32))
    np.save(out / "train" / "ids-00004-of-00005.npy", np.arange(3))
    capsys.readouterr()
    run(encoder, out, f"--npz_in={npz}", "--shard=5")
    changed = {name for name, time in times(out).items() if time != before[name]}
    assert {name[-18:-13] for name in changed} == {"00001", "00002", "00003", "00004"} and len(changed) == 16
    assert "5 shards, 1 of which existed already" in capsys.readouterr().out
    np.testing.assert_array_equal(stored(out, "features"), features)
    before = times(out)
    run(encoder, out, f"--npz_in={npz}", "--shard=5", "--batch_size=4")
    assert times(out) == before and json.loads((out / "embed.json").read_text())["splits"]["train"]["rows"] == COUNT


def test_other_options_are_an_error(encoder, npz, tmp_path, capsys):
    out = run(encoder, tmp_path / "out", f"--npz_in={npz}", "--splits=train[4:12]")
    assert stored(out, "ids").tolist() == list(range(4, 12)), "a slice keeps the ids of the whole"
    before = times(out)
    capsys.readouterr()
    other = tmp_path / "other"
    save(other, seed=2)
    records = [(encode(np.full((20, 20, 3), i, np.uint8)), i % 3) for i in range(COUNT)]
    write_npz(Listed(records), tmp_path / "other.npz", ["train"])
    for begun, options, named in (
        (encoder, ["--size=16"], "size: 20 -> 16"),
        (encoder, ["--shard=4"], "shard: 10000 -> 4"),
        (encoder, ["--splits=train"], "images of train: [4:12] -> [0:23]"),
        (encoder, [f"--npz_in={tmp_path}/other.npz"], f"cache.npz -> {tmp_path}/other.npz"),
        (other, ["--size=20"], f"encoder: {encoder}/checkpoints/3 -> {other}/checkpoints/3"),
    ):
        run(begun, out, f"--npz_in={npz}", "--splits=train[4:12]", *options, status=2)
        said = capsys.readouterr().err
        assert named in said and "was written with other options" in said and said.count("\n") == 1, said
    assert times(out) == before
    whole = npz.read_bytes()
    npz.write_bytes((tmp_path / "other.npz").read_bytes())
    run(encoder, out, f"--npz_in={npz}", "--splits=train[4:12]", status=2)
    assert "(images of train: different images)" in capsys.readouterr().err
    npz.write_bytes(whole)
    run(encoder, encoder, f"--npz_in={npz}", status=2)
    assert "is not empty and holds no embed.json" in capsys.readouterr().err
    (out / "embed.json").write_text("{")
    run(encoder, out, f"--npz_in={npz}", status=2)
    assert "embed.json is damaged" in capsys.readouterr().err


def test_a_moved_encoder_is_the_same(encoder, npz, tmp_path):
    moved = tmp_path / "moved"
    (moved / "checkpoints").mkdir(parents=True)
    (moved / "checkpoints" / "3").symlink_to(encoder / "checkpoints" / "3")
    out = run(encoder, tmp_path / "out", f"--npz_in={npz}", "--splits=train[:3]")
    run(moved / "checkpoints" / "3", out, f"--npz_in={npz}", "--splits=train[:3]", "--size=20", "--resize=0")


def test_moved_images_are_the_same(encoder, npz, tmp_path, capsys):
    """Also in a folder without other changes. Version 0.1.0 recorded only the path."""
    out = run(encoder, tmp_path / "out", f"--npz_in={npz}")
    before = times(out)
    (tmp_path / "moved.npz").symlink_to(npz)
    run(encoder, out, f"--npz_in={tmp_path}/moved.npz")
    assert times(out) == before
    for i in range(3):
        paint(tmp_path / "here" / f"{i}.png", (20, 20), i)
    out = run(encoder, tmp_path / "of_folder", f"--folder={tmp_path}/here/")
    before = times(out)
    (tmp_path / "here").rename(tmp_path / "there")
    run(encoder, out, f"--folder={tmp_path}/there")
    assert times(out) == before
    (tmp_path / "there").rename(tmp_path / "here")
    (tmp_path / "here" / "0.png").rename(tmp_path / "here" / "0x.png")
    run(encoder, out, f"--folder={tmp_path}/here", status=2)
    assert "data: " in capsys.readouterr().err
    (tmp_path / "here" / "0x.png").rename(tmp_path / "here" / "0.png")
    record = json.loads((out / "embed.json").read_text())
    del record["splits"]["train"]["images"]
    (out / "embed.json").write_text(json.dumps(record))
    run(encoder, out, f"--folder={tmp_path}/here", status=2)
    assert "data: " in capsys.readouterr().err


def test_a_mixed_split_of_a_folder(encoder, tmp_path, capsys):
    """It has its own files and ids. Other images in splits of the same names are other data."""
    for i in range(8):
        paint(tmp_path / "here" / "ab"[i // 4] / f"{i}.png", (20, 20), i)
        paint(tmp_path / "other" / "ab"[i // 4] / f"{i}x.png", (20, 20), i)
    out = run(encoder, tmp_path / "out", f"--folder={tmp_path}/here", "--splits=train.mixed[:50%]")
    files, ids = (stored(out, name, "train.mixed").tolist() for name in ("files", "ids"))
    assert files == ["a/0.png", "b/4.png", "a/1.png", "b/5.png"] and ids == [0, 1, 2, 3]
    run(encoder, out, f"--folder={tmp_path}/other", "--splits=train.mixed[:50%]", status=2)
    assert "data: " in capsys.readouterr().err


def test_splits_may_be_added(encoder, tmp_path):
    for split in ("train", "test"):
        for i in range(3):
            paint(tmp_path / "even" / split / f"{i}.png", (20, 20), i)
    out = run(encoder, tmp_path / "out", f"--folder={tmp_path}/even", "--splits=train")
    before = times(out)
    run(encoder, out, f"--folder={tmp_path}/even", "--splits=test")
    assert times(out) == before and stored(out, "ids", "test").tolist() == [0, 1, 2]
    splits = json.loads((out / "embed.json").read_text())["splits"]
    assert {name: split["rows"] for name, split in splits.items()} == {"train": 3, "test": 3}


def paint(path, shape, seed):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = np.kron(np.random.default_rng(seed).integers(0, 256, (4, 5, 3)), np.ones((8, 8, 1)))
    image = image[: shape[0], : shape[1]].astype(np.uint8)
    Image.fromarray(image).save(path)
    return image


@pytest.fixture
def folder(tmp_path):
    """A folder of images of many sizes, without labels in "test": (folder, images of "train")."""
    root = tmp_path / "images"
    painted = [
        paint(root / "train" / f"{'ab'[i // 6]}/{i:02d}.png", ((21, 22), (25, 22), (23, 28))[i % 3], i)
        for i in range(11)
    ]
    for i in range(3):
        paint(root / "test" / f"{i}.png", (20, 20), i)
    return root, painted


def test_a_folder_of_images_of_many_sizes(encoder, folder, wanted, tmp_path):
    pytest.importorskip("tensorflow")
    root, painted = folder
    out = run(encoder, tmp_path / "out", f"--folder={root}", "--canvas=40", "--size=16", "--resize=18", "--shard=8")
    assert stored(out, "files").tolist() == [f"train/{'ab'[i // 6]}/{i:02d}.png" for i in range(11)]
    assert stored(out, "labels").tolist() == [0] * 6 + [1] * 5 and not list((out / "test").glob("labels-*"))
    assert stored(out, "files", "test").tolist() == [f"test/{i}.png" for i in range(3)]
    close(stored(out, "features"), wanted(painted, 16, 18))
    before = times(out)
    (root / "train/b/09.png").rename(root / "train/b/09x.png")
    run(encoder, out, f"--folder={root}", "--canvas=40", "--size=16", "--resize=18", "--shard=8")
    assert {name for name, time in times(out).items() if time != before[name]} == {
        f"{name}-00001-of-00002.npy" for name in ("features", "files", "ids", "labels")
    }, "a file that is called otherwise is another image"


@pytest.mark.parametrize("streamed", [True, False])
def test_unreadable_images_get_no_row(encoder, folder, wanted, tmp_path, capsys, streamed):
    root, painted = folder
    if streamed:
        pytest.importorskip("tensorflow")
    else:
        painted = [paint(root / "train" / f"{'ab'[i // 6]}/{i:02d}.png", (20, 20), i) for i in range(11)]
    bad = root / "train/a/03.png"
    whole = bad.read_bytes()
    bad.write_bytes(whole[:-30])
    (root / "train/b/10.png").write_text("a text")
    options = [f"--folder={root}", "--splits=train", "--shard=3", "--size=16", "--resize=18"]
    run(encoder, tmp_path / "strict", *options, "--broken_limit=0", status=2)
    said = capsys.readouterr().err
    assert "2 of the 11 images" in said and "or allow them with --broken_limit=0.19." in said
    assert said.startswith("embed: ") and said.count("\n") == 1
    listed = (tmp_path / "strict" / "broken.txt").read_text().splitlines()
    assert [line.split("\t")[2] for line in listed] == ["train/a/03.png", "train/b/10.png"]
    out = run(encoder, tmp_path / "out", *options)
    rows = [i for i in range(11) if i not in (3, 10)]
    assert stored(out, "ids").tolist() == rows and stored(out, "labels").tolist() == [int(i >= 6) for i in rows]
    close(stored(out, "features"), wanted([painted[i] for i in rows], 16, 18))
    lines = [line.split("\t") for line in (out / "broken.txt").read_text().splitlines()]
    assert [line[:3] for line in lines] == [["train", "3", "train/a/03.png"], ["train", "10", "train/b/10.png"]]
    assert all(line[3] for line in lines)
    said = capsys.readouterr()
    assert said.err.count("WARNING: ") == 2 and "2 unreadable images" in said.out
    before = times(out)
    run(encoder, out, *options)
    assert times(out) == before, "a shard that lacks them is whole"
    bad.write_bytes(whole)
    (out / "train" / "features-00001-of-00004.npy").unlink()
    run(encoder, out, *options)
    assert stored(out, "ids").tolist() == [i for i in range(11) if i != 10]
    assert (out / "broken.txt").read_text().startswith("train\t10\t")
    assert json.loads((out / "embed.json").read_text())["splits"]["train"]["unreadable"] == 1


def test_a_shard_without_a_readable_image(encoder, npz, tmp_path):
    records = [(b"no image", 0) if i < 4 else (encode(np.full((20, 20, 3), i, np.uint8)), 1) for i in range(8)]
    write_npz(Listed(records), tmp_path / "half.npz", ["train"])
    out = run(encoder, tmp_path / "out", f"--npz_in={tmp_path}/half.npz", "--shard=4", "--broken_limit=0.5")
    assert stored(out, "ids").tolist() == [4, 5, 6, 7]
    before = times(out)
    run(encoder, out, f"--npz_in={tmp_path}/half.npz", "--shard=4", "--broken_limit=0.5")
    assert times(out) == before


def test_pillow_and_tensorflow_give_the_same_features(encoder, npz, images, tmp_path):
    """One image of another size makes TensorFlow read its shard."""
    pytest.importorskip("tensorflow")
    records = [(encode(image), 0) for image in images[:9]] + [(encode(np.zeros((20, 24, 3), np.uint8)), 0)]
    write_npz(Listed(records), tmp_path / "mixed.npz", ["train"])
    mixed = run(encoder, tmp_path / "mixed", f"--npz_in={tmp_path}/mixed.npz", "--canvas=32")
    alone = run(encoder, tmp_path / "alone", f"--npz_in={npz}", "--splits=train[:9]")
    close(stored(mixed, "features")[:9], stored(alone, "features"))


def test_without_tensorflow(encoder, npz, folder, tmp_path, monkeypatch):
    """Pillow streams images of several sizes, with the same features."""
    pytest.importorskip("tensorflow")
    with_it = run(encoder, tmp_path / "with", f"--folder={folder[0]}", "--splits=train")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setitem(sys.modules, "tensorflow", None)  # an import fails
    without = run(encoder, tmp_path / "many", f"--folder={folder[0]}", "--splits=train")  # of several sizes
    close(stored(without, "features"), stored(with_it, "features"))


def test_parquet(encoder, npz, images, wanted, tmp_path):
    pytest.importorskip("pyarrow")
    import pyarrow as pa
    import pyarrow.parquet as pq

    out = run(encoder, tmp_path / "out", f"--npz_in={npz}", "--shard=10", "--format=parquet")
    names = [f"embeddings-{i:05d}-of-00003.parquet" for i in range(3)]
    assert sorted(path.name for path in (out / "train").iterdir()) == names
    table = pq.read_table(out / "train")
    assert table.schema.names == ["id", "file", "label", "feature"]
    assert table.schema.field("feature").type == pa.list_(pa.float32(), DIM)
    assert [table.schema.field(name).type for name in ("id", "file", "label")] == [pa.int64(), pa.string(), pa.int32()]
    assert table["id"].to_pylist() == list(range(COUNT)) and table["label"].to_pylist() == [i % 3 for i in range(COUNT)]
    close(np.array(table["feature"].to_pylist(), np.float32), wanted(images))
    before, damaged = times(out), out / "train" / names[1]
    damaged.write_bytes(damaged.read_bytes()[:-100])
    run(encoder, out, f"--npz_in={npz}", "--shard=10", "--format=parquet")
    assert [name for name, time in times(out).items() if time != before[name]] == [names[1]]
    assert pq.read_table(out / "train").equals(table)


def test_file_names_that_are_not_utf8(encoder, tmp_path):
    pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    paint(tmp_path / "images" / "a\udcff.png", (20, 20), 0)
    (tmp_path / "images" / "b\udcfe.png").write_text("no image")
    options = [f"--folder={tmp_path}/images", "--broken_limit=0.5"]
    out = run(encoder, tmp_path / "npy", *options)
    assert stored(out, "files").tolist() == ["a\udcff.png"] and b"b\xfe.png" in (out / "broken.txt").read_bytes()
    out = run(encoder, tmp_path / "parquet", *options, "--format=parquet")
    assert pq.read_table(out / "train")["file"].to_pylist() == [r"a\udcff.png"]
    before = times(out)
    run(encoder, out, *options, "--format=parquet")
    assert times(out) == before


def test_sizes_of_the_view(encoder, tmp_path):
    """Those of the run, also for one of its checkpoints; scaled; those of ImageNet without a run."""

    def sizes(path, *options):
        return tuple(record.view_sizes(parser().parse_args([f"--encoder={path}", "--out=o", *options])).values())

    assert sizes(encoder) == sizes(encoder / "checkpoints" / "3") == (20, 0, 512)
    assert sizes(encoder, "--size=32") == (32, 0, 512) and sizes(encoder, "--resize=24") == (20, 24, 512)
    (tmp_path / "3").symlink_to(encoder / "checkpoints" / "3")
    assert sizes(tmp_path / "3") == (224, 256, 512)
    assert sizes(tmp_path / "3", "--size=112", "--canvas=99") == (112, 128, 99)
    config = tiny(**{"evals.size": 56, "evals.resize": 64, "data.canvas": 128})
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "checkpoints" / "3").symlink_to(encoder / "checkpoints" / "3")
    (tmp_path / "run" / "config.json").write_text(json.dumps(arguments.to_dict(config)))
    assert sizes(tmp_path / "run") == (56, 64, 128)


@pytest.mark.parametrize(
    "options, said",
    [
        (["--out=x"], "The following arguments are required: --encoder. See --help."),
        (["--encoder=RUN", "--out=x"], "One data set is needed. Give one of --data"),
        (["--encoder=RUN", "--out=x", "--data=patterns", "--folder=x"], "One data set is needed"),
        (["--encoder=x", "--out=x", "--data=patterns"], "There is no file or folder"),
        (["--encoder=RUN", "--out=x", "--npz_in=NPZ", "--splits=tset"], "listed has no split 'tset'"),
        (["--encoder=RUN", "--out=x", "--npz_in=NPZ", "--splits=train[:1],train[1:]"], "names a split twice"),
        (["--encoder=RUN", "--out=x", "--data=patterns", "--size=32", "--resize=16"], "do not fit together"),
        (["--encoder=RUN", "--out=x", "--data=patterns", "--batch_size=0"], "--batch_size=0 is not positive"),
        (["--encoder=RUN", "--out=x", "--data=patterns", "--shard=many"], "invalid int value: 'many'"),
        (["--encoder=RUN", "--out=file/x", "--npz_in=NPZ"], "Cannot write"),
    ],
)
def test_mistakes_give_one_line(encoder, npz, tmp_path, capsys, monkeypatch, options, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    assert main([option.replace("RUN", str(encoder)).replace("NPZ", str(npz)) for option in options]) == 2
    err = capsys.readouterr().err
    assert err.startswith("embed: ") and said in err and err.count("\n") == 1, err
    assert not (tmp_path / "x").exists()


def test_parquet_without_pyarrow(encoder, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    run(encoder, tmp_path / "out", "--data=patterns", "--format=parquet", status=2)
    assert "--format=parquet needs pyarrow. Run pip install" in capsys.readouterr().err


def test_a_full_disk(encoder, npz, tmp_path, capsys, monkeypatch):
    """It gives one line. No partial file remains, and the same command resumes."""
    replace, written = os.replace, []

    def full(partial, path):
        written.append(path.name)
        if len(written) == 7:
            raise OSError(28, "No space left on device")
        replace(partial, path)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        run(encoder, tmp_path / "out", f"--npz_in={npz}", "--shard=10", status=2)
    assert f"Cannot write {tmp_path}/out/train: the disk is full" in capsys.readouterr().err
    assert not [path for path in (tmp_path / "out").rglob("*") if path.name.startswith(".")]
    run(encoder, tmp_path / "out", f"--npz_in={npz}", "--shard=10")
    assert stored(tmp_path / "out", "ids").tolist() == list(range(COUNT))


def test_a_few_images_show_different_sizes():
    source = Counted([(encode(np.zeros((4 + (i == 1), 4, 3), np.uint8)), 0) for i in range(100)])
    assert one_size(source, source.span("train"))[0] is None and max(source.asked) == 15
    assert one_size(source, source.span("train[2:]")) == ((4, 4), "")
