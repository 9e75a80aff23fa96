"""A path that begins with ~ lies in the home folder wherever one is given: no shell expands it after --name=."""

from pathlib import Path

import jax
import numpy as np
import pytest

from bt_jax import convert, main, prepare, storage
from bt_jax.cli import config_program
from bt_jax.data.sources import tfds
from bt_jax.data.sources.image_folder import FolderSource
from bt_jax.data.sources.npz import NpzSource, write_npz
from bt_jax.messages import UserError
from bt_jax.report import write
from bt_jax.weights import load
from tests.support.drawn_images import Listed, encode, write_images


@pytest.fixture
def home(tmp_path, monkeypatch):
    """The home folder, while another one is the working folder."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    (tmp_path / "home").mkdir()
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    yield tmp_path / "home"
    assert list((tmp_path / "work").iterdir()) == []


def test_of_storage(home, tmp_path, monkeypatch):
    assert storage.parse_path("~/x") == storage.local_path("~/x") == home / "x" and storage.absolute_text(
        "~/x/"
    ) == str(home / "x")
    assert storage.absolute_text("") == "" and storage.absolute_text("gs://bucket/~/x") == "gs://bucket/~/x"
    assert storage.absolute_text("x") == str(tmp_path / "work" / "x")
    assert storage.user_cache() == home / ".cache" / "bt_jax"
    monkeypatch.setenv("XDG_CACHE_HOME", "~/c")
    assert storage.user_cache() == home / "c" / "bt_jax"
    for function in (storage.parse_path, storage.local_path, storage.absolute_text):
        with pytest.raises(UserError, match="~nobody_of_this_name/x starts with the name of an unknown user"):
            function("~nobody_of_this_name/x")


def test_of_data_sets(home, capsys, monkeypatch):
    write_images(home / "images", "a/1.png", "b/2.png")
    assert prepare.main(["--folder=~/images", "--npz=~/out/x.npz"]) == 0
    assert f"wrote {home}/out/x.npz" in capsys.readouterr().out
    assert prepare.main(["--npz_in=~/out/x.npz"]) == 0
    assert FolderSource("~/images").root == home / "images" and NpzSource("~/out/x.npz").splits == {"train": 2}
    write_npz(Listed([(encode(np.zeros((2, 2, 3), np.uint8)), 0)]), "~/y.npz", ["train"])
    assert (home / "y.npz").exists()
    for given in ({"data_dir": "~/tfds"}, {"data_dir": None}):
        monkeypatch.setenv("TFDS_DATA_DIR", "~/tfds")
        with pytest.raises(UserError, match=f"is not in {home}/tfds/mine"):
            tfds._tfds_folder("mine", given["data_dir"])


def test_of_shards(home, capsys):
    pytest.importorskip("tensorflow_datasets")
    write_images(home / "images", "1.png")
    assert prepare.main(["--folder=~/images", "--shards=~/tfds/mine"]) == 0
    assert (home / "tfds/mine/1.0.0").is_dir() and f"--config.data.dir={home}/tfds" in capsys.readouterr().out


def test_of_configs_and_compiled_programs(home, monkeypatch):
    (home / "mine.py").touch()
    rest = ["--workdir=~/run", "~/y"]
    for flag in ("--config=~/mine.py:smoke", "-config=~/mine.py:smoke"):
        argv = config_program._recipe_first(["main", *rest, flag], "")
        assert argv == ["main", f"--config={home}/mine.py:smoke", *rest]
    set_to = []
    monkeypatch.setattr(jax.config, "update", lambda name, value: set_to.append(value))
    for folder, wanted in (("~/c", "c"), ("auto", ".cache/bt_jax/xla")):
        set_to.clear()
        main._compile_cache(folder)
        assert set_to[0] == str(home / wanted)


def test_of_runs_and_weights(home):
    assert convert._named("~/x", ".pth", {".pth"}) == home / "x.pth"
    for reader in (load.read, load.weights_path, write.report):
        with pytest.raises(UserError, match=f"{home}/run"):
            reader(Path("~/run") if reader is load.read else "~/run")
