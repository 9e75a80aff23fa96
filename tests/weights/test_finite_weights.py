"""Weights with NaN or infinity: an error in every command and reader."""

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from safetensors.numpy import save_file

import bt_jax
from bt_jax import convert, sharding
from bt_jax.messages import UserError
from bt_jax.weights import export_formats, load
from tests.support import damage


def variables(broken):
    """Weights of an encoder whose bn1 has the value `broken`."""
    found = jax.device_get(damage.random_state(1).encoder())
    scale = np.array(found["params"]["bn1"]["scale"])
    scale[1] = broken
    found["params"]["bn1"]["scale"] = scale
    return found


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_an_error(tmp_path, capsys, broken):
    checkpoint, file = tmp_path / "checkpoint", tmp_path / "weights.safetensors"
    export_formats.write_encoder(checkpoint, model=damage.MODEL, variables=variables(broken))
    arrays = convert.to_torch(variables(broken), arch="resnet18")
    save_file({name: np.array(each) for name, each in arrays.items()}, file)
    for path in (checkpoint, file):
        for name, to in (("", "safetensors"), ("--arch=resnet18", "checkpoint")):
            arguments = [str(path), f"--to={to}", f"--out={tmp_path / 'out'}", *([name] if name else [])]
            assert convert.main(arguments) == 2
            said = capsys.readouterr().err
            assert f"weights of {path} are not finite: 1 of " in said and "such as params/bn1/scale" in said
        for where in (None, NamedSharding(sharding.make_mesh(), PartitionSpec())):
            with pytest.raises(UserError, match="are not finite"):
                bt_jax.load_encoder(path, sharding=where)
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint", "weights.safetensors"}


def test_a_projector_that_is_not_finite_is_an_error(tmp_path):
    projector = {"params": {"fc0": {"kernel": np.full((2, 2), np.nan, np.float32)}}}
    export_formats.write_encoder(tmp_path / "c", model=damage.MODEL, variables=variables(1.0), projector=projector)
    assert load.read(tmp_path / "c").projector is None  # the projector is not read
    with pytest.raises(UserError, match="such as params/fc0/kernel"):
        load.read(tmp_path / "c", projector=True)
