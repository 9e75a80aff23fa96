"""Eight simulated CPU devices for every test, compiled programs that are kept, and where fixtures and data sets are."""

import hashlib
import os
import platform
import shutil
import sys

os.environ.setdefault("JAX_PLATFORMS", "cpu")
flag = "--xla_force_host_platform_device_count=8"
if flag not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}".strip()
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from pathlib import Path

import jax
import pytest
from flax import nnx

from benchmarks import bucket as stand_in
from bt_jax import sharding
from bt_jax.models import resnet
from bt_jax.models.batch_norm import BatchNorm

TESTS = Path(__file__).parent
SHARED = TESTS.parent.parent / "shared"


# Files in the order of the CPU seconds they take; begun last, one of them would keep a single worker busy at the end.
LONGEST = [
    "test_pretrain",
    "test_train_step",
    "test_pipeline",
    "test_configs",
    "test_augment",
    "test_models",
    "test_report",
    "test_encoder_tasks",
    "test_evals",
    "test_convert",
    "test_trajectory",
    "test_losses",
]


def pytest_collection_modifyitems(items):
    """The longest files first, which workers take in this order; within a file nothing changes."""
    rank = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(rank)))


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


@pytest.fixture(scope="session")
def bucket():
    """gs://bucket/, which is a server of this process: `objects` holds what is in it."""
    with stand_in.running() as server, pytest.MonkeyPatch.context() as patch:
        for name, value in stand_in.environment(server.server_port).items():
            patch.setenv(name, value)
        yield server


# --------------------------------------------------------------------------------------------------- compiled programs

CACHE_BYTES = 2 * 2**30  # a whole run leaves some 100 MB


def cache_folder() -> Path:
    """Folder of the programs that tests compile, shared by workers and kept from run to run.

    $BT_JAX_TEST_CACHE, else the user's cache folder; below it one folder for each interpreter, JAX, set of compiler
    flags and kind of processor, so that no program is read that was made for another.
    """
    cpu = Path("/proc/cpuinfo")
    features = (
        sorted({line for line in cpu.read_text().splitlines() if line.startswith("flags")}) if cpu.exists() else []
    )
    made_by = [
        sys.version,
        platform.machine(),
        *features,
        jax.__version__,
        jax.lib.__version__,
        os.environ["XLA_FLAGS"],
    ]
    own = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    base = Path(os.environ.get("BT_JAX_TEST_CACHE") or Path(own) / "bt_jax" / "tests")
    return base / hashlib.sha256("\n".join(made_by).encode()).hexdigest()[:16]


def pytest_sessionstart(session):
    """Empties the cache of a size that nobody would want, before any worker reads it."""
    del session
    base = cache_folder().parent
    if "PYTEST_XDIST_WORKER" not in os.environ and base.is_dir():
        if sum(file.stat().st_size for file in base.glob("*/*-cache")) > CACHE_BYTES:
            for folder in base.iterdir():
                if len(folder.name) == 16 and folder.is_dir():
                    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session", autouse=True)
def compiled_once():
    """Programs are compiled once: by whichever test, worker and run of the tests needs them first."""
    jax.config.update("jax_compilation_cache_dir", str(cache_folder()))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)


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


class OneConvolution(nnx.Module):
    """A block of one convolution, batch norm and ReLU, without a shortcut."""

    expansion = convs = 1

    def __init__(self, in_channels, channels, stride, *, last_scale, dtype, rngs):
        del last_scale
        self.conv1 = resnet.conv(in_channels, channels, 3, stride=stride, padding=1, dtype=dtype, rngs=rngs)
        self.bn1 = BatchNorm(channels)

    def __call__(self, x, *, train):
        return nnx.relu(self.bn1(self.conv1(x), train=train))


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
