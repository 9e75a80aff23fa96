"""Fixtures of all tests: eight simulated CPU devices, a cache of compiled programs, paths of fixtures and data sets."""

import functools
import os
import signal

if (
    signal.getsignal(signal.SIGINT) is signal.SIG_IGN
):  # of a background job; the tests of Ctrl-C could not stop a command
    signal.signal(signal.SIGINT, signal.default_int_handler)
os.environ.setdefault("JAX_PLATFORMS", "cpu")
flag = "--xla_force_host_platform_device_count=8"
if flag not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}".strip()
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from pathlib import Path

import jax
import jaxtyping
import pytest

from tests.support import typechecker

# jaxtyping checks every call of these modules' functions against the annotated types, shapes and dtypes.
CHECKED = [
    "bt_jax.augment.colour",
    "bt_jax.augment.filters",
    "bt_jax.augment.views",
    "bt_jax.optim",
]
CHECKED += [f"bt_jax.evals.{name}" for name in ("confidence", "correlation", "features", "knn", "pictures")]
CHECKED += [f"bt_jax.evals.{name}" for name in ("probe", "svm")]
CHECKED += [f"bt_jax.objectives.{name}" for name in ("align_uniform", "barlow_twins", "byol", "direct_pred", "drlim")]
CHECKED += [f"bt_jax.objectives.{name}" for name in ("functions", "infonce", "moco", "simclr", "simsiam", "vicreg")]
jaxtyping.install_import_hook(CHECKED, f"{typechecker.__name__}.checked")  # before the first import of these modules

from bt_jax import sharding
from bt_jax.models import resnet
from bt_jax.run_folder import lock
from tests.support import bucket as fake_bucket
from tests.support import compiled_programs
from tests.support.paths import FIXTURES, SHARED
from tests.support.tiny_net import OneConvolution


def pytest_sessionstart():
    if "PYTEST_XDIST_WORKER" not in os.environ:
        compiled_programs.shrink()


@pytest.fixture
def unchecked():
    """Switches the check of annotations off, so that a function raises its own error for a wrong shape."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


# The files with the most CPU seconds, in that order. If one of them came last, a single worker would finish alone.
LONGEST = [
    "test_drills",
    "test_pretrain",
    "test_step",
    "test_pipeline",
    "test_configs",
    "test_views",
    "test_new_method",
    "test_models",
    "test_report",
    "test_encoder_tasks",
    "test_evals",
    "test_conversion",
    "test_trajectory",
    "test_barlow_twins",
]


def pytest_collection_modifyitems(items):
    """Sorts the tests: the longest files first, because workers take files in this order. Keeps the order in a file."""
    rank = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(rank)))


@pytest.fixture(scope="session")
def fixtures() -> Path:
    """The folder of numbers from the reference implementation."""
    return FIXTURES


@pytest.fixture(scope="session")
def photographs() -> Path:
    """The path of `augment.npz`, photographs outside the repository."""
    path = Path(os.environ.get("BT_JAX_FIXTURES", SHARED / "fixtures")) / "augment.npz"
    if not path.exists():
        pytest.skip(f"{path} holds photographs and is not part of the repository; set BT_JAX_FIXTURES to its folder")
    return path


@pytest.fixture(scope="session")
def tfds_dir() -> Path:
    """The folder with `cifar10` and `imagenet2012` in TFDS form."""
    path = Path(os.environ.get("TFDS_DATA_DIR", SHARED / "tfds"))
    if not (path / "cifar10").is_dir():
        pytest.skip(f"no TFDS data in {path}; set TFDS_DATA_DIR to a folder that holds cifar10 and imagenet2012")
    return path


@pytest.fixture(scope="session", autouse=True)
def nan_is_not_equal_to_nan():
    """Makes `assert_allclose` fail on NaN. By default, two computations that both give NaN count as equal."""
    import numpy as np

    with pytest.MonkeyPatch.context() as patch:
        close = functools.partial(np.testing.assert_allclose, equal_nan=False)
        patch.setattr(np.testing, "assert_allclose", close)
        yield


@pytest.fixture(scope="session")
def bucket():
    """The server of gs://bucket/, in this process. Its attribute `objects` has the content."""
    with fake_bucket.running() as server, pytest.MonkeyPatch.context() as patch:
        for name, value in fake_bucket.environment(server.server_port).items():
            patch.setenv(name, value)
        yield server


@pytest.fixture(scope="session", autouse=True)
def compiled_once():
    """Caches compiled programs on disk, for all tests, workers and later runs of the tests."""
    jax.config.update("jax_compilation_cache_dir", str(compiled_programs.folder()))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)


# Test files under strict promotion of dtypes, which forbids operations on mixed dtypes. Other files test no numbers, or
# they use code that mixes dtypes: optax's Adam (its bias correction raises a float to an int32 power), bfloat16 and
# float64 networks (`jnp.promote_types` obeys the setting). Strict promotion of ranks is off, because batch norm and
# loss compute (n, d) - (d,) on purpose.
STRICT = {"test_views", "test_barlow_twins", "test_optim", "test_shapes"}


@pytest.fixture(autouse=True)
def strict_dtypes(request):
    with jax.numpy_dtype_promotion("strict" if request.module.__name__.rpartition(".")[2] in STRICT else "standard"):
        yield


@pytest.fixture(autouse=True)
def folders_are_released():
    """Releases the folder that a test has opened without a run; a thread would otherwise renew its lock in a bucket."""
    yield
    lock.release()


@pytest.fixture(scope="module")
def compiled_quickly():
    """Switches XLA's optimizations off, which take more than half of the compilation time.

    Use it for tests that compare a run with itself or check files and messages. Tests that compare with numbers from
    other programs need the optimizations of a real run.
    """
    name = "jax_disable_most_optimizations"
    before = jax.config.read(name)
    jax.config.update(name, True)
    yield
    jax.config.update(name, before)


@pytest.fixture(scope="module")
def tiny_arch():
    """The name of an architecture with five convolutions, which compiles five times as fast as ResNet-18."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(resnet.ARCHITECTURES, "tiny", (OneConvolution, (1, 1, 1, 1)))
        yield "tiny"


@pytest.fixture
def resnet10(monkeypatch):
    """The name of a residual architecture with one block per stage, for `models.build`."""
    monkeypatch.setitem(resnet.ARCHITECTURES, "resnet10", (resnet.BasicBlock, (1, 1, 1, 1)))
    return "resnet10"


@pytest.fixture(scope="module")
def one_device():
    """Makes runs use the first device only, unless they name devices."""
    make = sharding.make_mesh
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharding, "make_mesh", lambda devices=None: make(devices or jax.devices()[:1]))
        yield
