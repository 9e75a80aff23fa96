"""The flag that switches XLA's wrong fusions off: when it is set, when it is not, and that it works."""

import os
import re
import subprocess
import sys
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from bt_jax import compilers
from tests.support.paths import ROOT

FLAG = f"--{compilers.FLAG}="
KNOWN = next(iter(compilers.WRONG_REDUCE_FUSION))
wrong_here = pytest.mark.skipif(not compilers.needs_flag(), reason="this jaxlib is not known to compute wrongly")


@pytest.fixture
def bridge(monkeypatch):
    """A double of JAX's module that starts backends. It records each start with the XLA_FLAGS of that moment."""
    pytest.importorskip("jaxlib._jax")
    compilers._warn_of_flag.cache_clear()
    started = []
    module = SimpleNamespace(
        started=started,
        backends_are_initialized=lambda: False,
        _init_backend=lambda platform: started.append((platform, os.environ.get("XLA_FLAGS"))) or "backend",
    )
    monkeypatch.setitem(sys.modules, compilers._BRIDGE, module)
    monkeypatch.setattr(compilers, "jaxlib_version", lambda: KNOWN)
    monkeypatch.setattr(compilers, "_late", False)
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    return module


@pytest.mark.parametrize("before", [None, "--xla_force_host_platform_device_count=2"])
def test_the_flag_is_set_only_while_a_backend_starts(bridge, monkeypatch, before):
    if before:
        monkeypatch.setenv("XLA_FLAGS", before)
    compilers.install()
    assert os.environ.get("XLA_FLAGS") == before
    assert bridge._init_backend("cpu") == "backend"
    assert bridge.started == [("cpu", f"{before + ' ' if before else ''}{FLAG}{compilers.SAFE}")]
    assert os.environ.get("XLA_FLAGS") == before


def test_the_flag_is_removed_after_a_backend_that_fails_to_start(bridge):
    def fail(platform):
        raise RuntimeError(platform)

    bridge._init_backend = fail
    compilers.install()
    with pytest.raises(RuntimeError):
        bridge._init_backend("cuda")
    assert "XLA_FLAGS" not in os.environ


@pytest.mark.parametrize("version", ["0.9.2", "0.10.1", "0.12.1", "0.12.0.dev20260801", ""])
def test_other_versions_start_without_the_flag(bridge, monkeypatch, version):
    monkeypatch.setattr(compilers, "jaxlib_version", lambda: version)
    start = bridge._init_backend
    compilers.install()
    assert bridge._init_backend is start
    assert compilers.state() == "not needed"


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kinds", ["", "-reduce", "individual_dot"])
def test_a_safe_setting_of_the_user_is_not_changed(bridge, monkeypatch, kinds):
    monkeypatch.setenv("XLA_FLAGS", FLAG + kinds)
    compilers.install()
    bridge._init_backend("cpu")
    assert bridge.started == [("cpu", FLAG + kinds)]


@pytest.mark.parametrize("kinds", ["reduce", "-individual_convolution", "dot", "-reduce,+eltwise"])
def test_a_wrong_setting_of_the_user_is_not_changed_but_gives_a_warning(bridge, monkeypatch, kinds):
    monkeypatch.setenv("XLA_FLAGS", f"--xla_a=1 {FLAG}{kinds} --xla_b=2")
    compilers.install()
    with pytest.warns(UserWarning, match=re.escape(f"XLA_FLAGS has {FLAG}{kinds}")):
        bridge._init_backend("cpu")
    assert bridge.started == [("cpu", f"--xla_a=1 {FLAG}{kinds} --xla_b=2")]


def test_a_backend_that_has_started_already_gives_one_warning(bridge):
    bridge.backends_are_initialized = lambda: True
    with pytest.warns(UserWarning, match="import bt_jax first") as caught:
        compilers.install()
    assert len(caught) == 1
    assert compilers._late
    assert "own programs" in compilers.state()


SUM = """
import jax, jax.numpy as jnp, numpy as np
def is_correct(jit):
    matrix = np.random.RandomState(0).randint(-64, 65, (64, 64)) / 64
    total = jit(lambda e, c: ((e @ jnp.broadcast_to(c, e.shape)) * e).sum())(matrix.astype(np.float32), np.float32(0.5))
    return abs(total - 0.5 * np.square(matrix.sum(1)).sum()) < 0.1
"""
FIRST = f"""
import os, subprocess, sys
import bt_jax
assert not [name for name in sys.modules if name.split(".")[0] in ("jax", "jaxlib")]
inherited = [sys.executable, "-c", "import os; print(os.environ.get('XLA_FLAGS'))"]
assert subprocess.run(inherited, capture_output=True, text=True).stdout == "None\\n"
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"  # a flag of the user, set later
{SUM}
assert jax.device_count() == 2
assert is_correct(jax.jit)
assert subprocess.run(inherited, capture_output=True, text=True).stdout == os.environ["XLA_FLAGS"] + "\\n"
"""
LATE = f"""
{SUM}
print("by jax alone:", is_correct(jax.jit))
import bt_jax
assert is_correct(bt_jax.compilers.jit)
inner = bt_jax.compilers.jit(lambda x: x + 1)
assert bt_jax.compilers.jit(lambda x: inner(x) * 2)(1.0) == 4 and jax.eval_shape(inner, 1.0).shape == ()
"""


def _run(program: str) -> subprocess.CompletedProcess:
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    environment.pop("XLA_FLAGS")
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done


def test_a_function_of_the_user_is_correct_and_no_child_inherits_the_flag():
    _run(FIRST)


@wrong_here
def test_functions_of_bt_jax_are_correct_after_jax_has_started():
    done = _run(LATE)
    assert "by jax alone: False" in done.stdout
    assert done.stderr.count("UserWarning: bt_jax was imported after JAX had started") == 1


def test_a_program_that_runs_once_compiles_with_less_optimisation_to_the_same_bits(monkeypatch):
    """Initial weights: draws, their distribution, a product with a scale."""
    used = []
    monkeypatch.setattr(
        jax, "jit", lambda function, _jit=jax.jit, **options: used.append(options) or _jit(function, **options)
    )

    def weights(key):
        return jax.nn.initializers.variance_scaling(2.0, "fan_out", "normal")(key, (3, 3, 8, 16))

    key = jax.random.key(0)
    quick, plain = compilers.jit(weights, runs_once=True)(key), compilers.jit(weights)(key)
    assert [bool(options.get("compiler_options")) for options in used] == [False, True, False]
    assert (np.asarray(quick) == np.asarray(plain)).all()
    assert jax.eval_shape(lambda: compilers.jit(weights, runs_once=True)(key)).shape == quick.shape
