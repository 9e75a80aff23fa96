"""The manifest of a checkpoint and its parts, by themselves."""

import jax
import numpy as np
import pytest

from bt_jax.messages import UserError
from bt_jax.run_folder import checkpoints, manifest
from bt_jax.state import TrainState


def parts(folder, names=("encoder",)):
    """Files of the names that a checkpoint of these parts has, by which it counts as readable."""
    for name in [f"{part}/{file}" for part in names for file in manifest.ARRAYS] + ["model/metadata"]:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("{}")


def test_every_kind_of_damage_is_said_as_what_it_is(tmp_path):
    parts(tmp_path)
    file = tmp_path / "encoder" / "arrays"
    file.write_bytes(b"0123456789")
    manifest.write(tmp_path)
    assert manifest.find_damage(tmp_path) == ""
    file.write_bytes(b"012345678")
    assert manifest.find_damage(tmp_path) == "encoder/arrays has 9 bytes instead of 10"
    assert manifest.find_damage(tmp_path, ("model",)) == ""
    file.write_bytes(b"0123456780")
    assert manifest.find_damage(tmp_path) == "encoder/arrays has other bytes than were written"
    file.unlink()
    assert manifest.find_damage(tmp_path) == "encoder/arrays is missing"


def test_every_part_of_a_state_comes_back():
    """Each leaf from the checkpoint, none from the state that tells how it is laid out."""
    for names in (("backbone", "projector", "probe"), ("backbone", "classifier")):
        params = {name: {"kernel": np.full(2, i)} for i, name in enumerate(names)}
        stats = {name: {"mean": np.full(2, 10 + i)} for i, name in enumerate(names) if name != "probe"}
        state = TrainState(np.int32(40), params, stats, {"trace": np.full(2, 20)}, np.int32(3))
        like = jax.tree.map(lambda leaf: np.zeros_like(leaf) - 1, state)
        jax.tree.map(np.testing.assert_array_equal, checkpoints._from_items(checkpoints._items(state), like), state)
        assert names[1] in checkpoints._items(state)


@pytest.mark.parametrize("name", ["encoder/manifest.ocdbt", "train/_METADATA", "model/metadata"])
def test_a_checkpoint_that_lacks_what_opens_it_is_not_whole(tmp_path, name):
    """Neither when it is written nor where an earlier version has written its manifest."""
    parts(tmp_path, ("encoder", "train"))
    manifest.write(tmp_path)
    noted = (tmp_path / manifest.NAME).read_text()
    assert manifest.find_damage(tmp_path) == "" and f'"{name}"' in noted
    (tmp_path / manifest.NAME).write_text(noted.replace(f'"{name}"', f'"{name}.other"'))
    assert manifest.find_damage(tmp_path) == f"{name} is missing, and was when it was written"
    assert (manifest.find_damage(tmp_path, ("projector",)) == "") and (tmp_path / name).exists()
    (tmp_path / name).rename(tmp_path / f"{name}.other")
    (tmp_path / manifest.NAME).unlink()
    with pytest.raises(UserError, match=f"nobody can read: it lacks {name}"):
        manifest.write(tmp_path)
    assert not (tmp_path / manifest.NAME).exists()
