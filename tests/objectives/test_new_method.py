"""A method from outside of the package: in training, checkpoints, log, report and plan."""

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
    """(states and metrics after every step, layout of the state), on a number of devices."""
    states, layout, _ = few_steps(new_method.Everything(), devices, steps, views_of, **OPTIM)
    return states[1:], layout


@pytest.fixture(scope="module")
def on_two():
    return trained(2, 4)


def test_it_trains_alike_on_one_device_and_two(on_two):
    """The order of float32 sums differs: 1e-5 after four steps."""
    states, layout = on_two
    (alone, _) = trained(1, 4)
    for (one, metrics), (two, metrics_of_two) in zip(alone, states, strict=True):
        np.testing.assert_allclose(metrics["train/loss"], metrics_of_two["train/loss"], rtol=1e-5)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), one.memory, two.memory)
    assert layout.memory["bank"].spec == layout.memory["halves"].spec == jax.sharding.PartitionSpec("data")
    assert layout.memory["queue"].is_fully_replicated
    memory = states[-1][0].memory
    assert (memory["halves"][:16] >= 0).all() and (memory["halves"][16:] == -1).all() and memory["epoch"] == 1
    assert np.abs(memory["bank"][:16]).min(axis=1).max() > 0 and not memory["bank"][16:].any()


def test_its_prototypes_are_frozen_for_an_epoch_and_have_length_one(on_two):
    states = [state for state, _ in on_two[0]]
    kernels = [state.params["prototypes"]["fc0"]["kernel"] for state in states]
    np.testing.assert_array_equal(kernels[0], kernels[1])  # an epoch has two steps
    assert np.abs(kernels[2] - kernels[1]).max() > 1e-4
    for kernel in kernels:
        np.testing.assert_allclose(np.linalg.norm(kernel, axis=0), 1, rtol=1e-6)


def test_a_step_that_is_not_finite_does_not_change_the_memory(on_two):
    states, _ = trained(2, 3, lambda number: drawn(number) if number < 2 else not_finite(number))
    (before, _), (after, metrics) = states[1:]
    assert metrics["train/bad_steps"] == 1 and int(after.step) == 3
    jax.tree.map(np.testing.assert_array_equal, before.memory, after.memory)
    changes = jax.tree.map(lambda a, b: bool((a != b).any()), on_two[0][1][0].memory, on_two[0][2][0].memory)
    assert changes["queue"] and changes["epoch"] and changes["halves"]  # a finite third step changes them


@pytest.fixture(scope="module")
def config(tiny_arch, one_device, compiled_quickly):
    without = {"evals.every_epochs": 0.0, "evals.final": False, "evals.spectrum_images": 0, "data.val_split": ""}
    return changed(new_method.get_config(), **{"model.arch": tiny_arch, **without})


def test_it_is_saved_resumed_and_reported(config, tmp_path, capsys):
    """Every array and number of a resumed run equals that of an uninterrupted run."""
    pretrain.run(config, str(tmp_path / "whole"))
    output = capsys.readouterr().out
    pretrain.run(changed(config, stop_after_steps=3), str(tmp_path / "resumed"))
    pretrain.run(changed(config, stop_after_steps=0), str(tmp_path / "resumed"))
    assert without_speeds(tmp_path / "whole") == without_speeds(tmp_path / "resumed")
    for part in ("encoder", "projector", "predictor", "prototypes", "memory", "train"):
        whole, resumed = (
            step_folders.read_part(tmp_path / name / "checkpoints/8" / part) for name in ("whole", "resumed")
        )
        assert jax.tree.leaves(whole)
        jax.tree.map(np.testing.assert_array_equal, whole, resumed)
    assert "agreement" in output.split("step 8/8")[1]
    assert "Agreement of prediction and target" in (tmp_path / "whole" / "report.html").read_text()


def test_the_plan_estimates_it(config):
    mesh = sharding.make_mesh(jax.devices()[:2])
    _, state, _ = estimate.compile_step(config, mesh)
    assert state.memory["bank"].shape == (1_282_048, 8)  # number of ImageNet's images, rounded up by 1024
    assert state.memory["bank"].sharding.spec == jax.sharding.PartitionSpec("data")
