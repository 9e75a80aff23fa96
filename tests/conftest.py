"""Eight simulated CPU devices for every test, compiled programs that are kept, and where fixtures and data sets are."""

import functools
import os

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

# Every call of these modules' functions is checked against its annotations, shapes and dtypes among them.
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
jaxtyping.install_import_hook(CHECKED, f"{typechecker.__name__}.checked")  # before any of them is imported

from bt_jax import sharding
from bt_jax.models import resnet
from tests.support import bucket as stand_in
from tests.support import compiled_programs
from tests.support.paths import FIXTURES, SHARED
from tests.support.tiny_net import OneConvolution


def pytest_sessionstart():
    if "PYTEST_XDIST_WORKER" not in os.environ:
        compiled_programs.shrink()


@pytest.fixture
def unchecked():
    """The check of annotations is off, so that a function's own error for a wrong shape is the one raised."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


# Files in the order of the CPU seconds they take; begun last, one of them would keep a single worker busy at the end.
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
    """The longest files first, which workers take in this order; within a file nothing changes."""
    rank = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(rank)))


@pytest.fixture(scope="session")
def fixtures() -> Path:
    """Number fixtures of the reference implementation, in the repository."""
    return FIXTURES


@pytest.fixture(scope="session")
def photographs() -> Path:
    """`augment.npz`: photographs that are not part of the repository."""
    path = Path(os.environ.get("BT_JAX_FIXTURES", SHARED / "fixtures")) / "augment.npz"
    if not path.exists():
        pytest.skip(f"{path} holds photographs and is not part of the repository; set BT_JAX_FIXTURES to its folder")
    return path


@pytest.fixture(scope="session")
def tfds_dir() -> Path:
    """Folder with `cifar10` and `imagenet2012` in TFDS form."""
    path = Path(os.environ.get("TFDS_DATA_DIR", SHARED / "tfds"))
    if not (path / "cifar10").is_dir():
        pytest.skip(f"no TFDS data in {path}; set TFDS_DATA_DIR to a folder that holds cifar10 and imagenet2012")
    return path


@pytest.fixture(scope="session", autouse=True)
def nan_is_not_equal_to_nan():
    """NumPy takes NaN and NaN for close, and so two computations that both went wrong for equal ones."""
    import numpy as np

    with pytest.MonkeyPatch.context() as patch:
        close = functools.partial(np.testing.assert_allclose, equal_nan=False)
        patch.setattr(np.testing, "assert_allclose", close)
        yield


@pytest.fixture(scope="session")
def bucket():
    """gs://bucket/, which is a server of this process: `objects` holds what is in it."""
    with stand_in.running() as server, pytest.MonkeyPatch.context() as patch:
        for name, value in stand_in.environment(server.server_port).items():
            patch.setenv(name, value)
        yield server


@pytest.fixture(scope="session", autouse=True)
def compiled_once():
    """Programs are compiled once: by whichever test, worker and run of the tests needs them first."""
    jax.config.update("jax_compilation_cache_dir", str(compiled_programs.folder()))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)


# Test files under strict promotion of dtypes, where no operation may mix dtypes unless it says so. Left out are those
# that go through optax's Adam (its bias correction raises a float to an int32 power) or through bfloat16 and float64
# networks (`jnp.promote_types` itself obeys the setting), and those that are not about numbers. Strict promotion of
# ranks is not set: (n, d) - (d,) is meant, all over the batch norm and the loss.
STRICT = {"test_views", "test_barlow_twins", "test_optim", "test_shapes"}


@pytest.fixture(autouse=True)
def strict_dtypes(request):
    with jax.numpy_dtype_promotion("strict" if request.module.__name__.rpartition(".")[2] in STRICT else "standard"):
        yield


@pytest.fixture(scope="module")
def compiled_quickly():
    """Without XLA's optimizations, which take more than half of the time to compile.

    For files whose tests compare a run with itself, or look at files and messages. What is compared with numbers from
    elsewhere is compiled as in the program.
    """
    name = "jax_disable_most_optimizations"
    before = jax.config.read(name)
    jax.config.update(name, True)
    yield
    jax.config.update(name, before)


@pytest.fixture(scope="module")
def tiny_arch():
    """An architecture of five convolutions, for `models.build`: it compiles in a fifth of a ResNet-18's time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(resnet.ARCHITECTURES, "tiny", (OneConvolution, (1, 1, 1, 1)))
        yield "tiny"


@pytest.fixture
def resnet10(monkeypatch):
    """A residual architecture with one block a stage, for `models.build`."""
    monkeypatch.setitem(resnet.ARCHITECTURES, "resnet10", (resnet.BasicBlock, (1, 1, 1, 1)))
    return "resnet10"


@pytest.fixture(scope="module")
def one_device():
    """Runs use the first device alone, where nothing is said about several."""
    make = sharding.make_mesh
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharding, "make_mesh", lambda devices=None: make(devices or jax.devices()[:1]))
        yield
