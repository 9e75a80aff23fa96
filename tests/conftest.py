"""Eight simulated CPU devices for every test, and where the fixtures and data sets lie."""

import functools
import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
flag = "--xla_force_host_platform_device_count=8"
if flag not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}".strip()
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from pathlib import Path

import jax
import pytest

from benchmarks import bucket as stand_in

TESTS = Path(__file__).parent
SHARED = TESTS.parent.parent / "shared"


@pytest.fixture(scope="session")
def fixtures() -> Path:
    """Number fixtures of the reference implementation, in the repository."""
    return TESTS / "fixtures"


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
def compiled_once(tmp_path_factory):
    """Programs that several tests compile are compiled once, also where workers share the tests."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    jax.config.update("jax_compilation_cache_dir", str(shared / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
