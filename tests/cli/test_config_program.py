"""Config files of one's own: they import the recipes from any working folder, or one line says what is missing."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bt_jax.cli import config_program
from bt_jax.messages import UserError
from tests.support.paths import ROOT


@pytest.mark.parametrize("module", ["from bt_jax.configs import", "from configs import"])
def test_a_config_of_ones_own_is_read_in_another_folder(tmp_path, module):
    """With the package alone on the path, as an installation has it; recipes had the second name in 0.1.0."""
    site = tmp_path / "site"
    site.mkdir()
    (site / "bt_jax").symlink_to(ROOT / "bt_jax")
    recipe = (Path(ROOT) / "configs" / "pretrain_folder.py").read_text()
    (tmp_path / "mine.py").write_text(recipe.replace("from bt_jax.configs import", module))
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
