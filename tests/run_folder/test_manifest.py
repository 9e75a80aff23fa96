"""The manifest of a checkpoint, and its parts."""

import jax
import numpy as np
import pytest

from bt_jax.messages import UserError
from bt_jax.run_folder import checkpoints, manifest
from bt_jax.state import TrainState


def parts(folder, names=("encoder",)):
    """Writes files with the names that a readable checkpoint of these parts needs."""
    for name in [f"{part}/{file}" for part in names for file in manifest.ARRAYS] + ["model/metadata"]:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("{}")


def test_every_kind_of_damage_has_its_message(tmp_path):
    parts(tmp_path)
    file = tmp_path / "encoder" / "arrays"
    file.write_bytes(b"0123456789")
    manifest.write(tmp_path)
    assert manifest.find_damage(tmp_path) == ""
    file.write_bytes(b"012345678")
    assert manifest.find_damage(tmp_path) == "encoder/arrays has 9 bytes instead of 10"
    assert manifest.find_damage(tmp_path, ("model",)) == ""
    file.write_bytes(b"0123456780")
    assert manifest.find_damage(tmp_path) == "encoder/arrays has a wrong checksum"
    file.unlink()
    assert manifest.find_damage(tmp_path) == "encoder/arrays is missing"
    long = tmp_path / "encoder" / ("0123456789abcdef" * 2)
    file.write_bytes(b"0123456789")
    long.write_bytes(b"0")
    manifest.write(tmp_path)
    long.unlink()
    assert manifest.find_damage(tmp_path) == "encoder/01234567... is missing"


def test_every_part_of_a_state_is_restored():
    """Every leaf comes from the checkpoint, and none from the state that gives the layout."""
    for names in (("backbone", "projector", "probe"), ("backbone", "classifier")):
        params = {name: {"kernel": np.full(2, i)} for i, name in enumerate(names)}
        stats = {name: {"mean": np.full(2, 10 + i)} for i, name in enumerate(names) if name != "probe"}
        state = TrainState(np.int32(40), params, stats, {"trace": np.full(2, 20)}, np.int32(3))
        like = jax.tree.map(lambda leaf: np.zeros_like(leaf) - 1, state)
        jax.tree.map(np.testing.assert_array_equal, checkpoints._from_items(checkpoints._items(state), like), state)
        assert names[1] in checkpoints._items(state)


@pytest.mark.parametrize("name", ["encoder/manifest.ocdbt", "train/_METADATA", "model/metadata"])
def test_a_checkpoint_that_cannot_be_opened_is_damaged(tmp_path, name):
    """Both when it is written, and if an earlier version has written its manifest."""
    parts(tmp_path, ("encoder", "train"))
    manifest.write(tmp_path)
    noted = (tmp_path / manifest.NAME).read_text()
    assert manifest.find_damage(tmp_path) == "" and f'"{name}"' in noted
    (tmp_path / manifest.NAME).write_text(noted.replace(f'"{name}"', f'"{name}.other"'))
    assert manifest.find_damage(tmp_path) == f"{name} is missing, and was never written"
    assert (manifest.find_damage(tmp_path, ("projector",)) == "") and (tmp_path / name).exists()
    (tmp_path / name).rename(tmp_path / f"{name}.other")
    (tmp_path / manifest.NAME).unlink()
    with pytest.raises(UserError, match=f"unreadable checkpoint to .*: it lacks {name}"):
        manifest.write(tmp_path)
    assert not (tmp_path / manifest.NAME).exists()
