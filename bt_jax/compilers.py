"""Releases of XLA that compute wrongly on a CPU, and what keeps this process right on them.

From jaxlib 0.10.2 on, XLA's CPU compiler hands sums to YNNPACK ("reduce fusion"), which computes two patterns wrongly:

    sum((E @ broadcast(c)) * E)          reads uninitialised memory: other numbers at each run, 1e225, NaN
    vmap(lambda row: sum((M @ row)**2))  loses rows from 16,385 (float64) or 32,769 (float32) on; 0.10.2 alone
                                         (https://github.com/jax-ml/jax/issues/39103)

`bt_jax.selfcheck` runs both on the machine at hand. The same fusion can also end or hang a process at seven and eight
dimensions (https://github.com/jax-ml/jax/issues/39257). The correction is under way in XNNPACK and XLA
(https://github.com/openxla/xla/pull/49085).

XLA reads XLA_FLAGS when a backend starts, and ends the process if it meets a flag that it does not know. So the flag
stands in the environment only while a backend starts, and only if this process's jaxlib is in the table. No child
process inherits it, flags that a user sets between `import bt_jax` and the first array count, and a user's own setting
of this flag is left alone.
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
# Without "reduce", and without the one for convolutions, which is right but slow: with both off a step takes as long as
# with XLA's default (benchmarks/results/step_cpu.md).
SAFE = "-reduce,-individual_convolution"
_LEFT_ON = "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT"  # what SAFE leaves on, as a compiler option

# jaxlib -> upstream report. Each was run with and without the flag: `python -m bt_jax.selfcheck`.
WRONG_REDUCE_FUSION = {
    "0.10.2": "https://github.com/jax-ml/jax/issues/39103",
    "0.11.0": "https://github.com/jax-ml/jax/issues/39257",
    "0.11.1": "https://github.com/openxla/xla/pull/49085",
    "0.11.2": "https://github.com/openxla/xla/pull/49085",
    "0.12.0": "https://github.com/openxla/xla/pull/49085",
    "0.12.0.1": "https://github.com/openxla/xla/pull/49085",
}

_BRIDGE = "jax._src.xla_bridge"  # the module of jax that starts backends
_late = False  # a backend had started before bt_jax was imported
checked: dict[str, str] = {}  # device kind -> "passed" or "passed before", of this process's self-check


def install() -> None:
    """Arranges that backends of this process start with the flag, if its jaxlib needs it. Called by `import bt_jax`.

    Imports nothing. A process whose backend runs already gets one warning, and `compilers.jit` then passes the setting
    as a compiler option.
    """
    global _late
    bridge = sys.modules.get(_BRIDGE)
    if not hasattr(bridge, "_init_backend"):
        if not any(isinstance(finder, _WhenJaxLoads) for finder in sys.meta_path):
            sys.meta_path.insert(0, _WhenJaxLoads())
    elif not bridge.backends_are_initialized():
        _wrap(bridge)
    elif needs_flag() and user_flag() is None:  # its backend may have read the user's
        _late = True
        warnings.warn(
            f"bt_jax was imported after JAX had started. XLA of jaxlib {jaxlib_version()} computes some sums wrongly"
            f" on a CPU ({WRONG_REDUCE_FUSION[jaxlib_version()]}). Functions that bt_jax compiles are right; for your"
            f" own import bt_jax first, or set XLA_FLAGS=--{FLAG}={SAFE}.",
            stacklevel=3,
        )


def jit(function, **options):
    """`jax.jit` for the programs of bt_jax: right also if a backend had started before bt_jax was imported.

    JAX takes compiler options at the top level alone: a call within another jitted function is compiled as that one is.
    """
    import jax

    plain = jax.jit(function, **options)
    if not _late or jax.default_backend() != "cpu":
        return plain
    options["compiler_options"] = {FLAG: _LEFT_ON}
    right = jax.jit(function, **options)

    @functools.wraps(function)
    def call(*arguments, **named):
        traced = any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves((arguments, named)))
        return (plain if traced else right)(*arguments, **named)

    call.lower = right.lower
    return call


@functools.cache
def jaxlib_version() -> str:
    """The version of the jaxlib that this process has, "" without one."""
    try:
        from jaxlib.version import __version__
    except ImportError:
        return ""
    return __version__


def needs_flag() -> bool:
    """True if this process's jaxlib is in the table."""
    return jaxlib_version() in WRONG_REDUCE_FUSION


def user_flag() -> str | None:
    """The user's own setting of the flag, as it stands in XLA_FLAGS; None if there is none."""
    found = [word for word in os.environ.get("XLA_FLAGS", "").split() if word.partition("=")[0] == f"--{FLAG}"]
    return found[-1] if found else None


def is_safe(flag: str) -> bool:
    """True if a setting leaves on no fusion that computes wrongly.

    Besides "reduce" these are "dot" and "eltwise", which XLA's default leaves off: they too put the product and the sum
    of the first pattern into one fusion.
    """
    kinds = [kind for kind in flag.partition("=")[2].split(",") if kind]
    changes = [kind for kind in kinds if kind[0] in "+-"]  # of the default, which has "reduce"
    if changes:
        return "-reduce" in changes and not {"+reduce", "+dot", "+eltwise"} & set(changes)
    return set(kinds) <= {"individual_dot", "individual_convolution"}


def state() -> str:
    """What bt_jax did about the reduce fusion in this process, for people."""
    if not needs_flag():
        return "not needed"
    if user_flag() is not None:
        return f"left to {user_flag()} in XLA_FLAGS"
    return "off in bt_jax's own programs, JAX had started before" if _late else f"off (--{FLAG}={SAFE})"


class _WhenJaxLoads(importlib.abc.MetaPathFinder):
    """Wraps the start of backends as soon as jax is imported, from wherever it is imported."""

    _asking = False  # the finders behind this one

    def find_spec(self, fullname, path, target=None):
        if fullname != _BRIDGE or self._asking:
            return None
        self._asking = True
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            self._asking = False
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
    """Makes jax's private `_init_backend` (the same in all versions of the table) start backends with the flag."""
    if not needs_flag():
        return
    start = bridge._init_backend

    @functools.wraps(start)
    def start_with_flag(platform: str):
        from jaxlib import _jax

        with _flag_in_environment():
            backend = start(platform)
            _jax.CompileOptions()  # else a backend of another kind could leave XLA_FLAGS unread
        return backend

    bridge._init_backend = start_with_flag


@contextlib.contextmanager
def _flag_in_environment() -> Iterator[None]:
    before = os.environ.get("XLA_FLAGS")
    if user_flag() is None:
        os.environ["XLA_FLAGS"] = f"{before or ''} --{FLAG}={SAFE}".strip()
    elif not is_safe(user_flag()):
        _name(user_flag())
    try:
        yield
    finally:
        if before is None:
            os.environ.pop("XLA_FLAGS", None)
        else:
            os.environ["XLA_FLAGS"] = before


@functools.cache  # once, also with several backends
def _name(flag: str) -> None:
    warnings.warn(
        f"XLA_FLAGS has {flag}, which bt_jax leaves as it is. XLA of jaxlib {jaxlib_version()} computes some sums"
        f" wrongly on a CPU unless {FLAG} leaves out reduce ({WRONG_REDUCE_FUSION[jaxlib_version()]}).",
        stacklevel=2,
    )
