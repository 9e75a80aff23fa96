"""Eight simulated CPU devices for every test, and where the fixtures and data sets lie."""

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
CHECKED = ["bt_jax.augment", "bt_jax.losses", "bt_jax.metrics", "bt_jax.optim"]
CHECKED += [f"bt_jax.evals.{name}" for name in ("confidence", "correlation", "features", "knn", "pictures")]
CHECKED += [f"bt_jax.evals.{name}" for name in ("probe", "svm")]
jaxtyping.install_import_hook(CHECKED, f"{typechecker.__name__}.checked")  # before any of them is imported

from tests.support import bucket as stand_in
from tests.support.paths import FIXTURES, SHARED


@pytest.fixture
def unchecked():
    """The check of annotations is off, so that a function's own error for a wrong shape is the one raised."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


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


@pytest.fixture(scope="session")
def bucket():
    """gs://bucket/, which is a server of this process: `objects` holds what is in it."""
    with stand_in.running() as server, pytest.MonkeyPatch.context() as patch:
        for name, value in stand_in.environment(server.server_port).items():
            patch.setenv(name, value)
        yield server


@pytest.fixture(scope="session", autouse=True)
def compiled_once(tmp_path_factory):
    """Programs that several tests compile are compiled once, also where workers share the tests."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    jax.config.update("jax_compilation_cache_dir", str(shared / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


# Test files under strict promotion of dtypes, where no operation may mix dtypes unless it says so. Left out are those
# that go through optax's Adam (its bias correction raises a float to an int32 power) or through bfloat16 and float64
# networks (`jnp.promote_types` itself obeys the setting), and those that are not about numbers. Strict promotion of
# ranks is not set: (n, d) - (d,) is meant, all over the batch norm and the loss.
STRICT = {"test_augment", "test_losses", "test_optim", "test_shapes"}


@pytest.fixture(autouse=True)
def strict_dtypes(request):
    with jax.numpy_dtype_promotion("strict" if request.module.__name__ in STRICT else "standard"):
        yield
