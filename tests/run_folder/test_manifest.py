"""The manifest of a checkpoint and its parts, by themselves."""

import jax
import numpy as np

from bt_jax.run_folder import checkpoints, manifest
from bt_jax.state import TrainState


def test_every_kind_of_damage_is_said_as_what_it_is(tmp_path):
    (tmp_path / "encoder").mkdir()
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "metadata").write_text("{}")
    file = tmp_path / "encoder" / "arrays"
    file.write_bytes(b"0123456789")
    manifest.write(tmp_path)
    assert manifest.fault(tmp_path) == ""
    file.write_bytes(b"012345678")
    assert manifest.fault(tmp_path) == "encoder/arrays has 9 bytes instead of 10"
    assert manifest.fault(tmp_path, ("model",)) == ""
    file.write_bytes(b"0123456780")
    assert manifest.fault(tmp_path) == "encoder/arrays has other bytes than were written"
    file.unlink()
    assert manifest.fault(tmp_path) == "encoder/arrays is missing"


def test_every_part_of_a_state_comes_back():
    """Each leaf from the checkpoint, none from the state that tells how it is laid out."""
    for names in (("backbone", "projector", "probe"), ("backbone", "classifier")):
        params = {name: {"kernel": np.full(2, i)} for i, name in enumerate(names)}
        stats = {name: {"mean": np.full(2, 10 + i)} for i, name in enumerate(names) if name != "probe"}
        state = TrainState(np.int32(40), params, stats, {"trace": np.full(2, 20)}, np.int32(3))
        like = jax.tree.map(lambda leaf: np.zeros_like(leaf) - 1, state)
        jax.tree.map(np.testing.assert_array_equal, checkpoints._from_items(checkpoints._items(state), like), state)
        assert names[1] in checkpoints._items(state)
