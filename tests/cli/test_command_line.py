"""The command that a message advises: the user's own, with another batch."""

import sys

import pytest

from bt_jax.cli import command_line, config_program
from bt_jax.config import keys
from bt_jax.configs import pretrain_folder, quickstart
from bt_jax.messages import UserError
from bt_jax.tasks import open_run
from bt_jax.train import epochs

RECIPES = config_program.RECIPES


@pytest.mark.parametrize(
    "argv, argument, wanted",
    [
        (
            ["bt-jax pretrain", f"--config={RECIPES}/pretrain_folder.py:val=val,batch=256", "--workdir=a b"],
            True,
            "bt-jax pretrain --config=pretrain_folder:batch=16,val=val '--workdir=a b'",
        ),
        (
            ["/x/bt_jax/main.py", "--config=/mine/mine.py", "--config.batch_size=64", "--workdir=w"],
            False,
            "python -m bt_jax.main --config=/mine/mine.py --workdir=w --config.batch_size=16",
        ),
        (["pytest", "tests"], True, ""),
    ],
)
def test_the_command_with_another_batch(monkeypatch, argv, argument, wanted):
    monkeypatch.setattr(sys, "argv", argv)
    assert command_line.with_batch(16, argument=argument) == wanted


def test_too_few_images_name_the_whole_command(monkeypatch, capsys):
    """Which then gets no other warning. The tests have eight devices."""
    argv = ["bt-jax pretrain", f"--config={RECIPES}/pretrain_folder.py", "--config.data.folder=i", "--workdir=w"]
    monkeypatch.setattr(sys, "argv", argv)
    with pytest.raises(UserError) as error:
        epochs.make_plan(keys.read(pretrain_folder.get_config()), 30)
    command = "bt-jax pretrain --config=pretrain_folder:batch=16 --config.data.folder=i --workdir=w"
    assert error.value.fix == (
        f"Run {command} for a batch of 16 with the recipe's learning rates for that batch, or use more images."
        " For a few hundred images on a CPU, add the argument small to the recipe: pretrain_folder:small."
    )
    with pytest.raises(UserError) as error:
        epochs.make_plan(keys.read(pretrain_folder.get_config("small")), 30)
    assert "pretrain_folder:small" not in error.value.fix
    obeyed = keys.read(pretrain_folder.get_config("batch=16"))
    assert epochs.make_plan(obeyed, 30).steps_per_epoch == 1
    open_run.check_rate(obeyed)
    assert not capsys.readouterr().out
    with pytest.raises(UserError, match=r"nor the smallest batch for 8 devices, which is 8\. Use more images"):
        epochs.make_plan(obeyed, 7)
    monkeypatch.setattr(sys, "argv", ["bt-jax pretrain", f"--config={RECIPES}/quickstart.py", "--workdir=w"])
    with pytest.raises(UserError, match=r"Run bt-jax pretrain --config=quickstart --workdir=w --config\.batch_size=64"):
        epochs.make_plan(keys.read(quickstart.get_config()), 100)
