"""A method that no file of the package knows: in training, checkpoints, log, report and plan."""

import jax
import numpy as np
import pytest

from bt_jax import sharding
from bt_jax.plan import estimate
from bt_jax.run_folder import step_folders
from bt_jax.tasks import pretrain
from tests.support import new_method
from tests.support.few_steps import drawn, few_steps, not_finite
from tests.support.runs import changed, without_speeds

OPTIM = {"optim.name": "lars", "optim.lr_weights": 0.3, "optim.lr_biases": 1e-3}


def trained(devices, steps, views_of=drawn):
    """The state and the metrics after each step on so many devices, and where the state lies."""
    states, layout = few_steps(new_method.Everything(), devices, steps, views_of, **OPTIM)
    return states[1:], layout


@pytest.fixture(scope="module")
def on_two():
    return trained(2, 4)


def test_it_trains_alike_on_one_device_and_two(on_two):
    """float32, and sums in another order: 1e-5 after four steps."""
    states, layout = on_two
    (alone, _) = trained(1, 4)
    for (one, told), (two, told_too) in zip(alone, states, strict=True):
        np.testing.assert_allclose(told["train/loss"], told_too["train/loss"], rtol=1e-5)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), one.memory, two.memory)
    assert layout.memory["bank"].spec == layout.memory["halves"].spec == jax.sharding.PartitionSpec("data")
    assert layout.memory["queue"].is_fully_replicated
    memory = states[-1][0].memory
    assert (memory["halves"][:16] >= 0).all() and (memory["halves"][16:] == -1).all() and memory["epoch"] == 1
    assert np.abs(memory["bank"][:16]).min(axis=1).max() > 0 and not memory["bank"][16:].any()


def test_its_prototypes_are_frozen_for_an_epoch_and_keep_length_one(on_two):
    states = [state for state, _ in on_two[0]]
    kernels = [state.params["prototypes"]["fc0"]["kernel"] for state in states]
    np.testing.assert_array_equal(kernels[0], kernels[1])  # two steps are an epoch
    assert np.abs(kernels[2] - kernels[1]).max() > 1e-4
    for kernel in kernels:
        np.testing.assert_allclose(np.linalg.norm(kernel, axis=0), 1, rtol=1e-6)


def test_a_step_that_is_not_finite_moves_no_memory(on_two):
    bad = trained(2, 3, lambda number: drawn(number) if number < 2 else not_finite(number))
    (before, _), (after, told) = bad[0][1:]
    assert told["train/bad_steps"] == 1 and int(after.step) == 3
    jax.tree.map(np.testing.assert_array_equal, before.memory, after.memory)
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), on_two[0][1][0].memory, on_two[0][2][0].memory)
    assert moved["queue"] and moved["epoch"] and moved["halves"]  # a finite third step would have moved them


@pytest.fixture(scope="module")
def config(tiny_arch, one_device, compiled_quickly):
    without = {"evals.every_epochs": 0.0, "evals.final": False, "evals.spectrum_images": 0, "data.val_split": ""}
    return changed(new_method.get_config(), **{"model.arch": tiny_arch, **without})


def test_it_is_saved_resumed_and_reported(config, tmp_path, capsys):
    """Stopped in the middle and resumed, every array and number is that of the run that was not."""
    pretrain.run(config, str(tmp_path / "whole"))
    said = capsys.readouterr().out
    pretrain.run(changed(config, stop_after_steps=3), str(tmp_path / "resumed"))
    pretrain.run(changed(config, stop_after_steps=0), str(tmp_path / "resumed"))
    assert without_speeds(tmp_path / "whole") == without_speeds(tmp_path / "resumed")
    for part in ("encoder", "projector", "predictor", "prototypes", "memory", "train"):
        whole, resumed = (
            step_folders.read_part(tmp_path / name / "checkpoints/8" / part) for name in ("whole", "resumed")
        )
        assert jax.tree.leaves(whole)
        jax.tree.map(np.testing.assert_array_equal, whole, resumed)
    assert "agreement" in said.split("step 8/8")[1]
    assert "Agreement of prediction and target" in (tmp_path / "whole" / "report.html").read_text()


def test_it_is_planned(config):
    mesh = sharding.make_mesh(jax.devices()[:2])
    _, state, _ = estimate.compile_step(config, mesh)
    assert state.memory["bank"].shape == (1_282_048, 8)  # ImageNet's images, rounded up to a multiple of 1024
    assert state.memory["bank"].sharding.spec == jax.sharding.PartitionSpec("data")
