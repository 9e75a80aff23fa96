"""The README's Python runs as it is printed, and says what is true."""

import os
import re
import subprocess
import sys

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

import bt_jax
from bt_jax import models, sharding
from bt_jax.weights import export_formats

pytestmark = pytest.mark.usefixtures("compiled_quickly")
BUILD = {"small_images": False, "width": 1 / 16, "channels": 3, "stem_padding": 1}


@pytest.fixture(scope="module")
def blocks(request):
    text = (request.config.rootpath / "README.md").read_text()
    return re.findall(r"```python\n(.*?)```", text, flags=re.S)


@pytest.fixture(params=["resnet18", "resnet50"])
def run(request, tmp_path, monkeypatch):
    """A folder in which runs/mine has a checkpoint 8000, of a narrow network with drawn weights."""
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
        root / "8000", model={"build": build, "mean": [0.5], "std": [0.25]}, variables=variables
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
    found = names["features"](names["variables"], images)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("run", ["resnet18"], indirect=True)
def test_the_encoder_of_eight_devices_is_read_on_one(blocks, run, tmp_path):
    """Orbax wants the devices that it saved from, unless it is told of others."""
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
    (block,) = (block for block in blocks if "load_encoder" in block)
    names: dict = {}
    exec(block, names)
    images = np.random.default_rng(1).standard_normal((16, 16, 16, 3)).astype(np.float32)
    labels = np.arange(16) % 10
    carried, losses = (names["params"], names["stats"], names["opt_state"]), []
    for _ in range(20):
        *carried, loss = names["step"](*carried, images, labels)
        losses.append(float(loss))
    assert losses[-1] < 0.9 * losses[0]
