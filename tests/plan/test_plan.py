"""The plan: the counts of a compiled program, and the errors of the command; with libtpu, a real slice."""

import importlib.util
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from bt_jax import sharding
from bt_jax.configs import quickstart
from bt_jax.messages import UserError
from bt_jax.plan import collectives, estimate
from bt_jax.plan.__main__ import table
from tests.support.paths import ROOT

CHIP = estimate.Chip(
    flops_per_second=1e12, memory_bytes=2**30, memory_bytes_per_second=1e11, link_bytes_per_second=1e9, slices=()
)


@pytest.fixture(scope="module")
def mesh():
    return sharding.make_mesh(jax.devices()[:8])


def compiled(mesh, function, out_specs, *shapes):
    split = jax.shard_map(function, mesh=mesh, in_specs=PartitionSpec("data"), out_specs=out_specs, check_vma=False)
    arguments = [
        jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, PartitionSpec("data")))
        for shape in shapes
    ]
    return jax.jit(split).lower(*arguments).compile().as_text()


@pytest.mark.parametrize(
    "function, out, kind, size, sent",
    [
        (lambda x: jax.lax.psum(x, "data"), PartitionSpec(), "all-reduce", 100 * 4, 2 * 350),
        (lambda x: jax.lax.all_gather(x, "data", tiled=True), PartitionSpec(), "all-gather", 800 * 4, 2800),
        (
            lambda x: jax.lax.psum_scatter(jnp.tile(x, 8), "data", tiled=True),
            PartitionSpec("data"),
            "reduce-scatter",
            800 * 4,
            2800,
        ),
    ],
)
def test_collectives_of_known_size(function, out, kind, size, sent, mesh):
    """800 floats on eight devices, 100 on each."""
    counts = collectives.count(compiled(mesh, function, out, (800,)), 8)
    assert counts == {kind: {"count": 1, "bytes": size, "link_bytes": sent}}


def test_collectives_of_a_tpu_program():
    """The text has tuples, groups of some devices, asynchronous starts, and one chain in two fusions."""
    text = """
      %a = (bf16[4,8]{1,0:T(8,128)(2,1)}, f32[16]{0}) all-reduce(%p, %q), replica_groups={{0,1,2,3},{4,5,6,7}}
      %b = (f32[16]{0}, f32[64]{0}) all-gather-start(%p), replica_groups=[2,4]<=[8], dimensions={0}
      %c = f32[64]{0} all-gather-done(%b)
      %d = bf16[128]{0} all-gather(%p.1), channel_id=1, frontend_attributes={chain_id="0"}
      %e = bf16[128]{0} all-gather(%p.2), channel_id=1, frontend_attributes={chain_id="0"}
      %g = ((f32[16]{0}, f32[16]{0}), (f32[32]{0}, f32[32]{0})) all-gather-start(%p, %q), replica_groups={{0,1}}
      %h = (f32[8]{0}, f32[8]{0}, u32[], u32[]) collective-permute-start(%p), source_target_pairs={{0,1}}
      %i = (f32[64]{0}, f32[16]{0}) reduce-scatter-start(%p), replica_groups={{0,1,2,3}}
      %j = f32[8]{0} all-to-all(%p), replica_groups={{0,1}}
      %f = f32[8]{0} fusion(%p.3), calls=%all-reduce.clone
    """
    counts = collectives.count(text, 8)
    assert counts["all-reduce"] == {"count": 1, "bytes": 64 + 64, "link_bytes": 2 * 128 * 3 / 4}
    gathered = 256 * 3 / 4 + 256 * 7 / 8 + 256 / 2
    assert counts["all-gather"] == {"count": 3, "bytes": 256 + 256 + 256, "link_bytes": gathered}
    assert counts["collective-permute"] == {"count": 1, "bytes": 32, "link_bytes": 32}
    assert counts["reduce-scatter"] == {"count": 1, "bytes": 256, "link_bytes": 192}
    assert counts["all-to-all"] == {"count": 1, "bytes": 32, "link_bytes": 16}


def tiny(projector_sharding, arch):
    config = quickstart.get_config("smoke")
    config.model.projector_sharding, config.model.arch = projector_sharding, arch
    return config


@pytest.fixture(scope="module")
def plans(mesh, tiny_arch, compiled_quickly):
    return {kind: estimate.make_plan(tiny(kind, tiny_arch), mesh, CHIP) for kind in ("replicated", "sharded")}


def test_state_bytes_are_those_of_a_shard(plans):
    # The projector 64-64-64-64 has three matrices and two batch norms. With the moments of AdamW, each counts three
    # times. The batch norms also have running statistics. Sharded, a device has an eighth of all. The matrix (64, 1000)
    # of the probe and its momentum are sharded too.
    projector = 3 * (64 * 64 * 3 + 2 * 2 * 64) + 2 * 2 * 64
    probe = 2 * 64 * 1000
    saved = 4 * (projector + probe) * 7 // 8
    assert plans["replicated"]["state_bytes"] - plans["sharded"]["state_bytes"] == saved
    assert plans["replicated"]["batch_bytes"] == 2 * (20 * 20 * 3 + 4 + 4)


def test_peak_has_state_batch_and_temporary_memory(plans):
    for plan in plans.values():
        parts = plan["state_bytes"] + plan["batch_bytes"] + plan["temporary_bytes"]
        assert parts <= plan["peak_bytes"] < 1.1 * parts + 1e5
        assert plan["fits"] and plan["flops"] > 1e6
    assert "all-gather" in plans["sharded"]["collectives"]


def test_times_and_table(plans):
    plan = plans["replicated"]
    np.testing.assert_allclose(plan["seconds"]["arithmetic"], plan["flops"] / 1e12)
    np.testing.assert_allclose(plan["seconds"]["interconnect"], plan["link_bytes"] / 1e9)
    assert plan["seconds"][plan["limit"]] == max(plan["seconds"].values())
    text = table("a slice", plan)
    assert "fits in" in text and "<- limits" in text and "all-reduce" in text
    assert "DOES NOT FIT in" in table("a slice", plan | {"fits": False})
    assert json.loads(json.dumps(plan)) == plan


@pytest.mark.parametrize(
    "name, choices", [("v9:4x4", "v4, v5e, v5p, v6e"), ("v5e:3x3", "16x16"), ("v5e", "16x16"), ("v4:4x4", "4x4x4")]
)
def test_wrong_topologies(name, choices):
    with pytest.raises(UserError, match=choices):
        estimate.topology_mesh(name)


def test_missing_libtpu(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'jax\[tpu\]'"):
        estimate.topology_mesh("v5e:2x2")


def test_a_real_slice():
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("no libtpu: pip install 'jax[tpu]'")
    # libtpu reads its environment once: the command needs its own process.
    command = [
        sys.executable,
        "-m",
        "bt_jax.plan",
        "--config=configs/quickstart.py:smoke",
        "--topology=v5e:2x2",
        "--json",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=os.environ | {"XLA_FLAGS": ""})
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)
    assert plan["chips"] == 4 and plan["fits"] and plan["collectives"]["all-reduce"]["bytes"] > 0


@pytest.mark.parametrize("peak, fits", [(9, True), (10, True), (11, False)])
def test_memory_that_does_not_fit_is_marked(monkeypatch, peak, fits):
    """The longest of the three times is the limit."""
    need = {"peak_bytes": peak, "flops": 6.0, "bytes_accessed": 30.0, "link_bytes": 2.0, "temporary_bytes": 1}
    need |= {"collectives": {}, "collective_bytes": 0}
    monkeypatch.setattr(estimate, "compile_step", lambda config, mesh: (None, {}, {}))
    monkeypatch.setattr(estimate, "measure", lambda compiled, mesh: need)
    chip = estimate.Chip(
        flops_per_second=2.0, memory_bytes=10.0, memory_bytes_per_second=6.0, link_bytes_per_second=0.5, slices=()
    )
    plan = estimate.make_plan(quickstart.get_config(), sharding.make_mesh(), chip)
    assert plan["fits"] == fits and plan["limit"] == "memory" and plan["memory_bytes"] == 10
    assert plan["seconds"] == {"arithmetic": 3, "memory": 5, "interconnect": 4}
    assert ("DOES NOT FIT" in table("a slice", plan)) != fits
