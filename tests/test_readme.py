"""README and the pages of docs/: their Python runs as printed, and their files, keys and methods exist."""

import os
import re
import subprocess
import sys

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

import bt_jax
import bt_jax.objectives
from bt_jax import models, sharding
from bt_jax.config import arguments, keys
from bt_jax.data.sources import patterns
from bt_jax.models import resnet
from bt_jax.objectives import registry
from bt_jax.weights import export_formats
from tests.support.paths import ROOT

pytestmark = pytest.mark.usefixtures("compiled_quickly")
BUILD = {"small_images": False, "width": 1 / 16, "channels": 3, "stem_padding": 1}
README = ROOT / "README.md"
OWN_LOOP = ROOT / "docs" / "own_loop.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
LINKING = [*PAGES, ROOT / "launch" / "README.md", ROOT / "CONTRIBUTING.md"]
FOLDERS = "benchmarks|bt_jax|configs|docs|launch|tests"


def name_of(page):
    return page.relative_to(ROOT).as_posix()


def python_of(page):
    """The fenced blocks of Python on a page, from top to bottom."""
    return re.findall(r"^```python\n(.*?)^```", page.read_text(), flags=re.S | re.M)


def targets_of(page):
    """The target of every relative link on a page: {link: file or folder}."""
    links = re.findall(r"\]\(([^)\s]+)\)", page.read_text())
    return {link: (page.parent / link.partition("#")[0]).resolve() for link in links if "://" not in link}


@pytest.fixture(scope="module")
def blocks():
    return python_of(ROOT / "docs" / "encoder.md")


@pytest.fixture(params=["resnet18", "resnet50"])
def run(request, tmp_path, monkeypatch):
    """Changes to a folder with a checkpoint 8000 of a narrow network in runs/mine; returns its random variables."""
    build = {"arch": request.param} | BUILD | {"small_images": request.param == "resnet18"}
    generator = np.random.default_rng(0)

    def draw(path, leaf):
        spread = np.sqrt(2 / np.prod(leaf.shape[:-1])) if path[-1].key == "kernel" else 0.1
        shift = 1 if path[-1].key in ("scale", "var") else 0
        return (shift + spread * generator.standard_normal(leaf.shape)).astype(np.float32)

    shapes = jax.eval_shape(models.build(**build).init, jax.random.key(0))
    variables = jax.tree_util.tree_map_with_path(draw, shapes)
    root = tmp_path / "runs" / "mine" / "checkpoints"
    root.mkdir(parents=True)
    export_formats.write_encoder(
        root / "8000", model={"build": build, "mean": [0.5] * 3, "std": [0.25] * 3}, variables=variables
    )
    monkeypatch.chdir(tmp_path)
    return variables


def test_the_encoder_without_bt_jax(blocks, run):
    (block,) = (block for block in blocks if "def features" in block)
    assert "bt_jax" not in block
    names: dict = {}
    exec(block, names)
    images = np.random.default_rng(1).standard_normal((2, 32, 32, 3)).astype(np.float32)
    net, variables = bt_jax.load_encoder("runs/mine")
    expected = net.apply(variables, images, train=False)
    result = names["features"](names["variables"], images)
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("run", ["resnet18"], indirect=True)
def test_an_encoder_from_eight_devices_loads_on_one(blocks, run, tmp_path):
    """Without a sharding, Orbax restores to the devices that it saved from."""
    (block,) = (block for block in blocks if "def features" in block)
    everywhere = sharding.replicated(sharding.make_mesh())
    folder = tmp_path / "runs" / "mine" / "checkpoints" / "8000" / "encoder"
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder, jax.device_put(run, everywhere), force=True)
    script = f"{block}\nassert jax.device_count() == 1, jax.devices()\nprint(variables['params']['bn1']['scale'][0])"
    environment = os.environ | {"XLA_FLAGS": ""}
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) == run["params"]["bn1"]["scale"][0]


@pytest.mark.parametrize("run", ["resnet18"], indirect=True)
def test_fine_tuning_in_plain_flax(blocks, run):
    (block,) = (block for block in blocks if "optax" in block)
    names: dict = {}
    exec(block, names)
    images = np.random.default_rng(1).standard_normal((16, 16, 16, 3)).astype(np.float32)
    labels = np.arange(16) % 10
    state, losses = (names["params"], names["stats"], names["opt_state"]), []
    for _ in range(20):
        *state, loss = names["step"](*state, images, labels)
        losses.append(float(loss))
    assert losses[-1] < 0.9 * losses[0]


def test_a_training_loop_of_your_own(monkeypatch, tiny_arch):
    """With few images and a network that compiles fast: every weight moves, and the features are those of the net."""
    images = np.random.default_rng(0).integers(0, 256, (100, 32, 32, 3), np.uint8)
    monkeypatch.setattr(patterns, "load", lambda split: (images, None))
    monkeypatch.setitem(resnet.ARCHITECTURES, "resnet18", resnet.ARCHITECTURES[tiny_arch])
    (block,) = python_of(OWN_LOOP)
    names: dict = {}
    exec(block, names)
    assert np.isfinite(names["loss"]) and names["h"].shape == (8, names["net"].feature_dim)
    before = {"net": names["first"], "projector": names["second"]}
    for name, part in before.items():
        for old, new in ((part["params"], names["params"]), (part["batch_stats"], names["stats"])):
            assert not any(jax.tree.leaves(jax.tree.map(np.array_equal, old, new[name])))


@pytest.mark.parametrize("page", [page for page in PAGES if python_of(page) and page != OWN_LOOP], ids=name_of)
@pytest.mark.parametrize("run", ["resnet18"], indirect=True)
def test_python_of_a_page_runs(page, run):
    """Each block sees the names of the blocks above it."""
    names: dict = {}
    for block in python_of(page):
        exec(block, names)


@pytest.mark.parametrize("page", LINKING, ids=name_of)
def test_links_lead_to_files(page):
    targets = targets_of(page)
    assert targets and [link for link, target in targets.items() if not target.exists()] == []


def test_readme_is_short_and_links_to_every_page():
    assert len(README.read_text().splitlines()) <= 130
    assert set(PAGES) - {README} <= set(targets_of(README).values())


@pytest.mark.parametrize("page", LINKING, ids=name_of)
def test_files_that_a_page_names_exist(page):
    named = set(re.findall(rf"(?<![\w./])(?:{FOLDERS})/[\w/]+\.(?:md|npz|py|sbatch|sh|txt|yaml)\b", page.read_text()))
    assert {path for path in named - {"configs/FILE.py"} if not (ROOT / path).exists()} == set()


def test_keys_that_the_pages_name_exist():
    tasks = (keys.pretrain, keys.evaluate, keys.finetune)
    known = {f"{key}." for task in tasks for key in arguments.flatten(arguments.to_dict(task()))}
    known |= {f"objective.{key}." for name in registry.NAMES for key in registry.keys(name)}
    text = "\n".join(page.read_text() for page in LINKING)
    named = set(re.findall(r"\bconfig\.([a-z_][\w.]*\w)", text)) - {"json"}
    assert len(named) > 20
    assert {key for key in named if not any(other.startswith(f"{key}.") for other in known)} == set()


def test_pages_name_every_method_and_every_reference():
    for page in (README, ROOT / "docs" / "methods.md"):
        assert set(re.findall(r"^\| `(\w+)` \|", page.read_text(), flags=re.M)) == set(bt_jax.objectives.NAMES)
    numbers = re.findall(r"^\| \[(\d+)\] \|", (ROOT / "docs" / "references.md").read_text(), flags=re.M)
    assert sorted(map(int, numbers)) == list(range(1, 50))
