"""Config files of one's own: they import the recipes from any working folder, or one line says what is missing."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bt_jax import storage
from bt_jax.cli import config_program
from bt_jax.messages import UserError
from tests.support.paths import ROOT


def test_recipes_can_be_imported_where_the_package_can(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "path", ["/elsewhere"])
    config_program._make_recipes_importable()
    config_program._make_recipes_importable()
    assert sys.path == ["/elsewhere", str(ROOT)]  # after what the working folder has
    monkeypatch.setattr(sys, "path", ["/elsewhere"])
    monkeypatch.setattr(storage, "__file__", str(tmp_path / "bt_jax" / "storage.py"))  # installed from a wheel
    config_program._make_recipes_importable()
    assert sys.path == ["/elsewhere"]


def test_a_config_of_ones_own_is_read_in_another_folder(tmp_path):
    """With the package alone on the path, as an editable install has it."""
    site = tmp_path / "site"
    site.mkdir()
    (site / "bt_jax").symlink_to(ROOT / "bt_jax")
    (tmp_path / "mine.py").write_text((Path(ROOT) / "configs" / "pretrain_folder.py").read_text())
    done = subprocess.run(
        [sys.executable, "-m", "bt_jax.main", "--config=mine.py:smoke,size=32"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and done.stderr.startswith("bt_jax: No --workdir is given."), done.stderr


@pytest.mark.parametrize(
    "told, cure",
    [
        ("No module named 'configs'", "Start in the repository"),
        ("cannot import name 'x' from 'configs' (/else/configs/__init__.py)", "Start in the repository"),
        ("No module named 'nowhere'", "Install it"),
    ],
)
def test_what_a_config_file_imports_in_vain_is_one_line(monkeypatch, told, cure):
    def fail(argv):
        raise ImportError(told)

    monkeypatch.setattr(config_program.flags, "FLAGS", fail)
    with pytest.raises(UserError, match="imports what is not there: .*") as caught:
        config_program._parse(["main"])
    assert told in str(caught.value) and cure in str(caught.value)
