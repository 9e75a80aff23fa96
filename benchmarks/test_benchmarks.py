"""The benchmarks count bytes correctly, and the code that they compare with ours does the same work."""

import argparse

import jax
import numpy as np
import pytest

from benchmarks import loss, step
from bt_jax.objectives import barlow_twins


def test_bytes_moved_are_those_of_operands_and_results():
    a, b = np.ones((8, 16), np.float32), np.ones((16, 4), np.float32)
    moved = step.bytes_moved(jax.jit(lambda a, b: a @ b).lower(a, b).compile().as_text())
    assert 4 * (8 * 16 + 16 * 4 + 8 * 4) in moved.values()
    assert step.bytes_moved("  %f.1 = (bf16[2,3]{1,0}, s8[5]{0}) fusion(%p, %q), kind=kLoop") == {"f.1": 17}


def test_the_plain_form_is_the_same_loss(capsys):
    z = [jax.random.normal(jax.random.key(view), (12, 20)) for view in (1, 2)]
    np.testing.assert_allclose(
        loss.plain(*z), barlow_twins.barlow_twins(*z)[0], rtol=1e-5
    )  # float32 sums in another order
    line = loss.row(12, 20, [*barlow_twins.FORMS, "plain"], argparse.Namespace(repeats=1, limit_gb=1))
    assert line.startswith("| 12 | 20 | gram") and "not run" not in line
    line = loss.row(12, 20, [*barlow_twins.FORMS, "plain"], argparse.Namespace(repeats=1, limit_gb=0))
    assert "not run" in line


def test_the_pytorch_step_has_our_parameters():
    torch_step = pytest.importorskip("benchmarks.torch_step", reason="PyTorch is not installed")
    from bt_jax import models

    rival = torch_step.BarlowTwins(
        "resnet50", small_images=False, width=0.25, channels=3, projector=(32, 32, 48), lambd=0.005
    )
    backbone = models.build("resnet50", width=0.25)
    projector = models.build_projector(backbone.feature_dim, (32, 32, 48))
    shapes = [jax.eval_shape(net.init, jax.random.key(0))["params"] for net in (backbone, projector)]
    assert sum(p.numel() for p in rival.parameters()) == sum(leaf.size for leaf in jax.tree.leaves(shapes))
