"""Paths of run folders: a checkpoint can be read from its path, or the path is an error before the run."""

import os
from pathlib import Path

import pytest

from bt_jax import convert
from bt_jax.config import arguments, keys
from bt_jax.messages import UserError
from bt_jax.run_folder import checkpoint_paths, opening
from tests.support import damage
from tests.support.damage import reopened

LATIN = os.fsdecode(b"caf\xe9")  # from an old archive: not UTF-8


@pytest.mark.parametrize("name", ["a b", "é", "a\nb", "a]b", "~", "a%20b", "a:b|c", "ocdbt.process_0", "1"])
def test_a_checkpoint_under_any_other_name_can_be_read(tmp_path, name):
    folder = tmp_path / name / "run"
    checkpoint_paths.check(folder)
    checkpoints, state = reopened(folder), damage.random_state(1)
    checkpoints.save(state)
    checkpoints.close()
    assert damage.equal(reopened(folder).restore(damage.random_state(2), 1), state)


@pytest.mark.parametrize("name", ["exp[1]", "x*", "x?", r"a\b", LATIN, "gs:", "x" * 4000])
def test_a_path_that_orbax_misreads_is_an_error(tmp_path, name):
    for folder in (tmp_path / name, tmp_path / name / "run"):
        with pytest.raises(UserError, match="No checkpoint can be written to") as caught:
            checkpoint_paths.check(folder)
        str(caught.value).encode()  # printable
    link = tmp_path / "link"
    link.symlink_to(tmp_path / name)
    checkpoint_paths.check(link / "run")


def test_the_first_folder_may_not_have_the_name_of_a_bucket_scheme():
    with pytest.raises(UserError, match="Orbax reads /s3/ as s3://"):
        checkpoint_paths.check(Path("/s3/run"))
    checkpoint_paths.check(Path("/mnt/s3/run"))


@pytest.mark.parametrize("name", [r"a\b", "a**b", LATIN])
def test_an_unreadable_path_gives_one_line(tmp_path, name):
    with pytest.raises(UserError, match="No checkpoint can be read from"):
        checkpoint_paths.check(tmp_path / name, writes=False)


def test_a_checkpoint_copied_to_a_path_with_brackets_can_be_read(tmp_path):
    state = damage.write_run(tmp_path / "run")[1]
    (tmp_path / "run").rename(tmp_path / "run[1]")
    checkpoint_paths.check(tmp_path / "run[1]", writes=False)
    assert damage.equal(reopened(tmp_path / "run[1]").restore(damage.random_state(1), 2), state)


def test_every_command_that_writes_checkpoints_checks_the_path_first(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for task in ("pretrain", "finetune"):
        config = arguments.to_dict(getattr(keys, task)())
        with pytest.raises(UserError, match="No checkpoint can be written to"):
            opening.open_folder("a/x[1]", config)
        with pytest.raises(UserError, match="No checkpoint can be written to"):
            opening.check_folder("x*", task)
    assert opening.check_folder("x[1]", "evaluate") == tmp_path / "x[1]"  # evaluate writes no checkpoint
    assert convert.main(["absent.pth", "--to=checkpoint", "--out=x[1]"]) == 2
    assert "No checkpoint can be written to" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_home_of_an_unknown_user_gives_one_line(capsys):
    with pytest.raises(UserError, match="~nobody-here/run starts with the name of an unknown user"):
        opening.check_folder("~nobody-here/run", "pretrain")
    assert convert.main(["absent.pth", "--to=checkpoint", "--out=~nobody-here/x"]) == 2
    assert "starts with the name of an unknown user" in capsys.readouterr().err
