"""A command starts itself again with huge pages, once, and no other program does."""

import os
import subprocess
import sys

import pytest

from bt_jax.processes import huge_pages
from tests.support.paths import ROOT

glibc = pytest.mark.skipif(not huge_pages._has_glibc(), reason="the setting is one of glibc")


def printed(tmp_path, *words, tunables=None):
    """What a command has in its environment when it imports absl, and its arguments."""
    (tmp_path / "absl.py").write_text(
        "import os, sys; print(os.environ.get('GLIBC_TUNABLES'), os.getpid()); sys.exit()"
    )
    environment = {name: value for name, value in os.environ.items() if name != huge_pages.VARIABLE}
    environment |= {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"} | (
        {huge_pages.VARIABLE: tunables} if tunables else {}
    )
    process = subprocess.Popen([sys.executable, *words], stdout=subprocess.PIPE, text=True, env=environment)
    text, _ = process.communicate(timeout=30)
    setting, pid = text.rsplit(maxsplit=1)
    assert int(pid) == process.pid  # its id stays, so that signals still reach it
    return setting


@glibc
@pytest.mark.parametrize("words", [("-m", "bt_jax", "pretrain"), ("-m", "bt_jax.main", "--config=x")])
def test_a_command_has_huge_pages(tmp_path, words):
    assert printed(tmp_path, *words) == "glibc.malloc.hugetlb=1"


@glibc
def test_settings_of_the_user_stay(tmp_path):
    words = ("-m", "bt_jax", "pretrain")
    assert printed(tmp_path, *words, tunables="glibc.malloc.hugetlb=0") == "glibc.malloc.hugetlb=0"
    other = "glibc.malloc.arena_max=4"
    assert printed(tmp_path, *words, tunables=other) == f"{other}:glibc.malloc.hugetlb=1"


def test_a_program_that_imports_bt_jax_is_not_started_again(tmp_path):
    assert printed(tmp_path, "-c", "import bt_jax, absl") == "None"


def test_systems_without_glibc(monkeypatch):
    def restarted(*_):
        raise AssertionError("the program was started again")

    monkeypatch.setattr(os, "execv", restarted)
    monkeypatch.delenv(huge_pages.VARIABLE, raising=False)
    for answer in (lambda name: None, lambda name: "musl"):
        monkeypatch.setattr(os, "confstr", answer)
        huge_pages.restart_with_them()

    def unknown(name):
        raise ValueError("unrecognized configuration name")

    monkeypatch.setattr(os, "confstr", unknown)
    huge_pages.restart_with_them()
