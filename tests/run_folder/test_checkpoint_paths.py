"""Paths of run folders: a checkpoint comes back from where it was written, or the path is refused before."""

import os
from pathlib import Path

import pytest

from bt_jax import convert
from bt_jax.config import arguments, keys
from bt_jax.messages import UserError
from bt_jax.run_folder import checkpoint_paths, opening
from tests.support import damage
from tests.support.damage import reopened

LATIN = os.fsdecode(b"caf\xe9")  # of an old archive: not UTF-8


@pytest.mark.parametrize("name", ["a b", "é", "a\nb", "a]b", "~", "a%20b", "a:b|c", "ocdbt.process_0", "1"])
def test_what_is_written_under_any_other_name_comes_back(tmp_path, name):
    folder = tmp_path / name / "run"
    checkpoint_paths.check(folder)
    checkpoints, state = reopened(folder), damage.random_state(1)
    checkpoints.save(state)
    checkpoints.close()
    assert damage.equal(reopened(folder).restore(damage.random_state(2), 1), state)


@pytest.mark.parametrize("name", ["exp[1]", "x*", "x?", r"a\b", LATIN, "gs:", "x" * 4000])
def test_a_path_that_orbax_takes_for_something_else_is_refused(tmp_path, name):
    for folder in (tmp_path / name, tmp_path / name / "run"):
        with pytest.raises(UserError, match="No checkpoint can be kept in") as caught:
            checkpoint_paths.check(folder)
        str(caught.value).encode()  # can be printed
    link = tmp_path / "link"
    link.symlink_to(tmp_path / name)
    checkpoint_paths.check(link / "run")


def test_the_first_folder_may_not_be_called_as_a_bucket():
    with pytest.raises(UserError, match="Orbax takes /s3/ for s3://"):
        checkpoint_paths.check(Path("/s3/run"))
    checkpoint_paths.check(Path("/mnt/s3/run"))


@pytest.mark.parametrize("name", [r"a\b", "a**b", LATIN])
def test_what_cannot_be_read_there_is_said_in_one_line(tmp_path, name):
    with pytest.raises(UserError, match="No checkpoint can be read from"):
        checkpoint_paths.check(tmp_path / name, writes=False)


def test_a_checkpoint_that_was_copied_to_brackets_is_read(tmp_path):
    state = damage.write_run(tmp_path / "run")[1]
    (tmp_path / "run").rename(tmp_path / "run[1]")
    checkpoint_paths.check(tmp_path / "run[1]", writes=False)
    assert damage.equal(reopened(tmp_path / "run[1]").restore(damage.random_state(1), 2), state)


def test_every_command_that_writes_checkpoints_refuses_before_it_makes_anything(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for task in ("pretrain", "finetune"):
        config = arguments.to_dict(getattr(keys, task)())
        with pytest.raises(UserError, match="No checkpoint can be kept in"):
            opening.open_folder("a/x[1]", config)
        with pytest.raises(UserError, match="No checkpoint can be kept in"):
            opening.look("x*", task)
    assert opening.look("x[1]", "evaluate") == tmp_path / "x[1]"  # which writes none
    assert convert.main(["absent.pth", "--to=checkpoint", "--out=x[1]"]) == 2
    assert "No checkpoint can be kept in" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_home_of_nobody_is_one_line(capsys):
    with pytest.raises(UserError, match="~nobody-here/run begins with the home of nobody"):
        opening.look("~nobody-here/run", "pretrain")
    assert convert.main(["absent.pth", "--to=checkpoint", "--out=~nobody-here/x"]) == 2
    assert "begins with the home of nobody" in capsys.readouterr().err
