"""Switches off a fusion of XLA that computes wrongly on a CPU, in the releases that have it.

Since jaxlib 0.10.2, XLA's CPU compiler passes sums to YNNPACK ("reduce fusion"), which computes two patterns wrongly:

    sum((E @ broadcast(c)) * E)          reads uninitialised memory: other numbers at each run, 1e225, NaN
    vmap(lambda row: sum((M @ row)**2))  loses rows from 16,385 (float64) or 32,769 (float32) on; 0.10.2 alone
                                         (https://github.com/jax-ml/jax/issues/39103)

`bt_jax.selfcheck` runs both patterns. With arrays of seven and eight dimensions, the same fusion can also crash or hang
a process (https://github.com/jax-ml/jax/issues/39257). A correction is in progress in XNNPACK and XLA
(https://github.com/openxla/xla/pull/49085).

XLA reads XLA_FLAGS when a backend starts, and exits if it finds an unknown flag. Therefore the flag is in the
environment only while a backend starts, and only for a jaxlib in WRONG_REDUCE_FUSION. Child processes do not inherit
it. Flags that a user sets between `import bt_jax` and the first array still apply. A user's setting of this flag is not
changed.
"""

import contextlib
import functools
import importlib.abc
import importlib.util
import os
import sys
import warnings
from collections.abc import Iterator

FLAG = "xla_cpu_experimental_ynn_fusion_type"
# This switches off "reduce", and also the fusion of convolutions, which is correct but slow. With both off, a step
# takes as long as with XLA's default (benchmarks/results/step_cpu.md).
SAFE = "-reduce,-individual_convolution"
_LEFT_ON = "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT"  # the fusion that SAFE leaves on, as a compiler option
# LLVM optimises less. The program of the quickstart's initial weights then compiles in 3.6 s of processor time, not
# 8.4 s. Its results have the same bits; at level 0 they have others.
QUICK = {"xla_backend_optimization_level": 1}

# jaxlib -> upstream report. The self-check has run on every release, with and without the flag.
WRONG_REDUCE_FUSION = {
    "0.10.2": "https://github.com/jax-ml/jax/issues/39103",
    "0.11.0": "https://github.com/jax-ml/jax/issues/39257",
    "0.11.1": "https://github.com/openxla/xla/pull/49085",
    "0.11.2": "https://github.com/openxla/xla/pull/49085",
    "0.12.0": "https://github.com/openxla/xla/pull/49085",
    "0.12.0.1": "https://github.com/openxla/xla/pull/49085",
}

_BRIDGE = "jax._src.xla_bridge"  # the module of JAX that starts backends
_late = False  # whether a backend had started before the import of bt_jax
checked: dict[str, str] = {}  # kind of device -> "passed" or "passed before", the self-check of this process


def install() -> None:
    """Makes the backends of this process start with the flag if its jaxlib needs it. `import bt_jax` calls it.

    It imports nothing. If a backend has started already, the process gets one warning, and `compilers.jit` passes the
    setting as a compiler option.
    """
    global _late
    bridge = sys.modules.get(_BRIDGE)
    if not hasattr(bridge, "_init_backend"):
        if not any(isinstance(finder, _WhenJaxLoads) for finder in sys.meta_path):
            sys.meta_path.insert(0, _WhenJaxLoads())
    elif not bridge.backends_are_initialized():
        _wrap(bridge)
    elif needs_flag() and user_flag() is None:  # the backend may have started with a flag of the user
        _late = True
        warnings.warn(
            f"bt_jax was imported after JAX had started. XLA of jaxlib {jaxlib_version()} computes some sums wrongly"
            f" on a CPU ({WRONG_REDUCE_FUSION[jaxlib_version()]}). Functions of bt_jax are correct. For correct results"
            f" of your own functions, import bt_jax first, or set XLA_FLAGS=--{FLAG}={SAFE}.",
            stacklevel=3,
        )


def jit(function, *, runs_once=False, **options):
    """`jax.jit` for the programs of bt_jax, which are then correct even if a backend started before the import.

    JAX accepts compiler options at the top level alone. A call within another jitted function uses the options of that
    function.

    Args:
      runs_once: on a CPU, compile in less time to a program that may take longer.
    """
    import jax

    plain = jax.jit(function, **options)
    if not (_late or runs_once) or jax.default_backend() != "cpu":
        return plain
    options["compiler_options"] = ({FLAG: _LEFT_ON} if _late else {}) | (QUICK if runs_once else {})
    correct = jax.jit(function, **options)

    @functools.wraps(function)
    def call(*arguments, **named):
        leaves = jax.tree.leaves((arguments, named, jax.numpy.zeros(())))  # within another jit, even zeros are traced
        traced = any(isinstance(leaf, jax.core.Tracer) for leaf in leaves)
        return (plain if traced else correct)(*arguments, **named)

    call.lower = correct.lower
    return call


@functools.cache
def jaxlib_version() -> str:
    """The version of the jaxlib of this process; "" if there is none."""
    try:
        from jaxlib.version import __version__
    except ImportError:
        return ""
    return __version__


def needs_flag() -> bool:
    """Whether the jaxlib of this process is in the table."""
    return jaxlib_version() in WRONG_REDUCE_FUSION


def user_flag() -> str | None:
    """The user's setting of the flag in XLA_FLAGS, such as "--FLAG=reduce"; None if there is none."""
    settings = [word for word in os.environ.get("XLA_FLAGS", "").split() if word.partition("=")[0] == f"--{FLAG}"]
    return settings[-1] if settings else None


def is_safe(flag: str) -> bool:
    """Whether a setting switches off all fusions that compute wrongly.

    These are "reduce", and also "dot" and "eltwise", which are off by default: they too put the product and the sum of
    the first pattern into one fusion.
    """
    kinds = [kind for kind in flag.partition("=")[2].split(",") if kind]
    changes = [kind for kind in kinds if kind[0] in "+-"]  # relative to the default, which has "reduce"
    if changes:
        return "-reduce" in changes and not {"+reduce", "+dot", "+eltwise"} & set(changes)
    return set(kinds) <= {"individual_dot", "individual_convolution"}


def state() -> str:
    """The state of the reduce fusion in this process, in words."""
    if not needs_flag():
        return "not needed"
    if user_flag() is not None:
        return f"set by {user_flag()} in XLA_FLAGS"
    return "off in bt_jax's own programs alone: JAX started before bt_jax" if _late else f"off (--{FLAG}={SAFE})"


class _WhenJaxLoads(importlib.abc.MetaPathFinder):
    """An import hook that wraps the start of backends when any code imports JAX."""

    _searching = False  # True while the other finders search, which call this one again

    def find_spec(self, fullname, path, target=None):
        if fullname != _BRIDGE or self._searching:
            return None
        self._searching = True
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            self._searching = False
        if spec is None or spec.loader is None:
            return None
        load = spec.loader.exec_module

        def load_and_wrap(module):
            load(module)
            sys.meta_path.remove(self)
            _wrap(module)

        spec.loader.exec_module = load_and_wrap
        return spec


def _wrap(bridge) -> None:
    """Makes JAX's private `_init_backend` start backends with the flag. It is the same in all versions of the table."""
    if not needs_flag():
        return
    start = bridge._init_backend

    @functools.wraps(start)
    def start_with_flag(platform: str):
        from jaxlib import _jax

        with _flag_in_environment():
            backend = start(platform)
            _jax.CompileOptions()  # reads XLA_FLAGS, which a backend of another kind may not have read
        return backend

    bridge._init_backend = start_with_flag


@contextlib.contextmanager
def _flag_in_environment() -> Iterator[None]:
    before = os.environ.get("XLA_FLAGS")
    if user_flag() is None:
        os.environ["XLA_FLAGS"] = f"{before or ''} --{FLAG}={SAFE}".strip()
    elif not is_safe(user_flag()):
        _warn_of_flag(user_flag())
    try:
        yield
    finally:
        if before is None:
            os.environ.pop("XLA_FLAGS", None)
        else:
            os.environ["XLA_FLAGS"] = before


@functools.cache  # one warning, also with several backends
def _warn_of_flag(flag: str) -> None:
    warnings.warn(
        f"XLA_FLAGS has {flag}, which bt_jax does not change. XLA of jaxlib {jaxlib_version()} computes some sums"
        f" wrongly on a CPU unless {FLAG} leaves out reduce ({WRONG_REDUCE_FUSION[jaxlib_version()]}).",
        stacklevel=2,
    )
