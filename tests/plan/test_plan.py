"""The plan: what is counted in a compiled program, and the command's mistakes; with libtpu, a real slice."""

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

CHIP = estimate.Chip(flops=1e12, memory=2**30, memory_bytes=1e11, link_bytes=1e9, slices=())


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
    """800 floats on eight devices, 100 each."""
    found = collectives.count(compiled(mesh, function, out, (800,)), 8)
    assert found == {kind: {"count": 1, "bytes": size, "link_bytes": sent}}


def test_collectives_of_a_tpu_program():
    """Tuples, groups of some devices, asynchronous starts, and a chain that is told of in two fusions."""
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
    found = collectives.count(text, 8)
    assert found["all-reduce"] == {"count": 1, "bytes": 64 + 64, "link_bytes": 2 * 128 * 3 / 4}
    gathered = 256 * 3 / 4 + 256 * 7 / 8 + 256 / 2
    assert found["all-gather"] == {"count": 3, "bytes": 256 + 256 + 256, "link_bytes": gathered}
    assert found["collective-permute"] == {"count": 1, "bytes": 32, "link_bytes": 32}
    assert found["reduce-scatter"] == {"count": 1, "bytes": 256, "link_bytes": 192}
    assert found["all-to-all"] == {"count": 1, "bytes": 32, "link_bytes": 16}


def tiny(head, arch):
    config = quickstart.get_config("smoke")
    config.model.projector_sharding, config.model.arch = head, arch
    return config


@pytest.fixture(scope="module")
def plans(mesh, tiny_arch, compiled_quickly):
    return {head: estimate.make_plan(tiny(head, tiny_arch), mesh, CHIP) for head in ("replicated", "sharded")}


def test_state_is_counted_by_its_shards(plans):
    # Projector 64-64-64-64: three matrices and two batch norms, with moments (AdamW) three of each, and two running
    # statistics; sharded, a device has an eighth. The probe's (64, 1000) matrix and momentum are split too.
    projector = 3 * (64 * 64 * 3 + 2 * 2 * 64) + 2 * 2 * 64
    probe = 2 * 64 * 1000
    saved = 4 * (projector + probe) * 7 // 8
    assert plans["replicated"]["state_bytes"] - plans["sharded"]["state_bytes"] == saved
    assert plans["replicated"]["batch_bytes"] == 2 * (20 * 20 * 3 + 4 + 4)


def test_peak_holds_state_batch_and_scratch(plans):
    for found in plans.values():
        parts = found["state_bytes"] + found["batch_bytes"] + found["temporary_bytes"]
        assert parts <= found["peak_bytes"] < 1.1 * parts + 1e5
        assert found["fits"] and found["flops"] > 1e6
    assert "all-gather" in plans["sharded"]["collectives"]


def test_times_and_words(plans, mesh, monkeypatch):
    found = plans["replicated"]
    np.testing.assert_allclose(found["seconds"]["arithmetic"], found["flops"] / 1e12)
    np.testing.assert_allclose(found["seconds"]["interconnect"], found["link_bytes"] / 1e9)
    assert found["seconds"][found["limit"]] == max(found["seconds"].values())
    words = table("a slice", found)
    assert "fits in" in words and "<- limits" in words and "all-reduce" in words
    assert "DOES NOT FIT in" in table("a slice", found | {"fits": False})
    assert json.loads(json.dumps(found)) == found


@pytest.mark.parametrize(
    "name, said", [("v9:4x4", "v4, v5e, v5p, v6e"), ("v5e:3x3", "16x16"), ("v5e", "16x16"), ("v4:4x4", "4x4x4")]
)
def test_wrong_topologies(name, said):
    with pytest.raises(UserError, match=said):
        estimate.topology_mesh(name)


def test_missing_libtpu(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install -e '.\[tpu\]'"):
        estimate.topology_mesh("v5e:2x2")


def test_a_real_slice():
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("no libtpu: pip install -e '.[tpu]'")
    # In a process of its own: libtpu reads its environment once.
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
    found = json.loads(done.stdout)
    assert found["chips"] == 4 and found["fits"] and found["collectives"]["all-reduce"]["bytes"] > 0


@pytest.mark.parametrize("peak, fits", [(9, True), (10, True), (11, False)])
def test_what_does_not_fit_is_said(monkeypatch, peak, fits):
    """And what takes the longest is what limits."""
    need = {"peak_bytes": peak, "flops": 6.0, "bytes_accessed": 30.0, "link_bytes": 2.0, "temporary_bytes": 1}
    need |= {"collectives": {}, "collective_bytes": 0}
    monkeypatch.setattr(estimate, "compile_step", lambda config, mesh: (None, {}, {}))
    monkeypatch.setattr(estimate, "measure", lambda compiled, mesh: need)
    chip = estimate.Chip(flops=2.0, memory=10.0, memory_bytes=6.0, link_bytes=0.5, slices=())
    found = estimate.make_plan(quickstart.get_config(), sharding.make_mesh(), chip)
    assert found["fits"] == fits and found["limit"] == "memory" and found["memory_bytes"] == 10
    assert found["seconds"] == {"arithmetic": 3, "memory": 5, "interconnect": 4}
    assert ("DOES NOT FIT" in table("a slice", found)) != fits
