"""JAX's environment variables: a run does not depend on them, and an invalid value is one line."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import jax
import pytest

from bt_jax import convert, sharding
from bt_jax.cli import config_program, jax_settings
from bt_jax.embed import __main__ as embed
from bt_jax.messages import UserError
from bt_jax.report import __main__ as report
from bt_jax.run_folder import step_folders
from bt_jax.selfcheck import __main__ as selfcheck
from tests.support.paths import ROOT

OTHERS = {
    "jax_enable_x64": True,
    "jax_disable_jit": True,
    "jax_numpy_rank_promotion": "raise",
    "jax_numpy_dtype_promotion": "strict",
    "jax_default_prng_impl": "rbg",
    "jax_threefry_partitionable": False,
    "jax_random_seed_offset": 5,
    "jax_transfer_guard": "log",
    "jax_debug_key_reuse": True,
    "jax_default_device": "gpu",
}
COMMANDS = {
    "convert": lambda: convert.main(["absent.pth", "--to=torch", "--out=absent"]),
    "embed": lambda: embed.main(["--encoder=absent", "--data=patterns", "--out=absent"]),
    "selfcheck": lambda: selfcheck.main([]),
}


@pytest.fixture
def settings():
    """Restores the settings of this process."""
    before = {name: getattr(jax.config, name) for name in OTHERS}
    yield
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.mark.parametrize("name", OTHERS)
def test_a_run_does_not_depend_on_the_environment(settings, monkeypatch, capsys, name):
    """In another thread, because the context of the tests hides the setting in this one."""
    with ThreadPoolExecutor(1) as thread:
        thread.submit(settled, monkeypatch, capsys, name).result()


def settled(monkeypatch, capsys, name):
    assert OTHERS.keys() == jax_settings.FIXED.keys()
    jax_settings.settle()
    capsys.readouterr()
    monkeypatch.setenv(name.upper(), "as it was given")
    jax_settings.settle()
    assert capsys.readouterr().err == ""  # set to its default
    jax.config.update(name, OTHERS[name])
    jax_settings.settle(keep=name)
    assert getattr(jax.config, name) == OTHERS[name] and capsys.readouterr().err == ""
    jax_settings.settle()
    assert getattr(jax.config, name) == jax_settings.FIXED[name]
    assert f"{name.upper()}=as it was given is ignored" in capsys.readouterr().err


def test_every_command_settles(monkeypatch, capsys):
    def settle(**_):
        raise UserError("Settled", "")

    monkeypatch.setattr(jax_settings, "settle", settle)
    for name, command in COMMANDS.items():
        assert command() == 2 and "Settled" in capsys.readouterr().err, name
    for command in (lambda: report.main(["absent"]), lambda: config_program.run(lambda _: None, "", ["main"])):
        with pytest.raises(UserError, match="Settled"):
            command()


@pytest.mark.parametrize("error", [AssertionError(), RuntimeError("Unable to\ninitialize backend 'cuda'")])
def test_a_missing_platform_gives_one_line(monkeypatch, capsys, error):
    """For each command that computes; a broken plug-in raises an AssertionError without a message."""

    def fail():
        raise error

    monkeypatch.setattr(jax, "devices", fail)
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    for name, command in COMMANDS.items():
        assert command() == 2, name
        said = capsys.readouterr().err
        assert "JAX finds no device for JAX_PLATFORMS=cuda" in said and said.count("\n") == 1, name
        assert "AssertionError" not in said and "pip install 'jax[cuda13]'" in said, name
        assert "Unable to" not in said, name
    monkeypatch.delenv("JAX_PLATFORMS")
    monkeypatch.setenv("JAX_PLATFORM_NAME", "cuda")
    with pytest.raises(UserError, match="for JAX_PLATFORM_NAME=cuda.*unset JAX_PLATFORM_NAME"):
        sharding.all_devices()


@pytest.mark.parametrize(
    "text, shown",
    [
        (
            "Unable to initialize backend 'rocm': Backend 'rocm' is not in the list of known backends: ['cpu', 'tpu'].",
            "",
        ),
        ("Unable to initialize backend 'tpu': libtpu is in use (set JAX_PLATFORMS='' to choose)", ": libtpu is in use"),
    ],
)
def test_a_missing_platform_shows_the_reason_alone(monkeypatch, text, shown):
    """JAX looks for ROCm first where JAX_PLATFORMS=gpu."""

    def fail():
        raise RuntimeError(text)

    monkeypatch.setattr(jax, "devices", fail)
    monkeypatch.setenv("JAX_PLATFORMS", "gpu")
    with pytest.raises(UserError) as caught:
        sharding.all_devices()
    assert caught.value.cause == f"JAX finds no device for JAX_PLATFORMS=gpu{shown}"
    assert caught.value.fix.startswith("Install the extra cuda (pip install 'jax[cuda13]') and its driver")
    monkeypatch.setenv("JAX_PLATFORMS", "gpuu")
    with pytest.raises(UserError) as caught:
        sharding.all_devices()
    assert caught.value.fix == "Unset JAX_PLATFORMS to use the CPU."


def test_checkpoints_are_read_without_a_cpu_backend(monkeypatch):
    """JAX_PLATFORMS=cuda excludes the CPU."""
    found = jax.local_devices()

    def devices(backend=None):
        if backend:
            raise RuntimeError("Unknown backend cpu")
        return found

    monkeypatch.setattr(jax, "local_devices", devices)
    assert step_folders._host_device() == found[0]


@pytest.mark.parametrize("module", ["main", "plan", "convert", "embed", "report", "selfcheck"])
def test_an_invalid_value_gives_one_line(module):
    environment = os.environ | {"JAX_ENABLE_X64": "maybe"}
    run = [sys.executable, "-m", f"bt_jax.{module}"]
    done = subprocess.run(run, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert "bt_jax: JAX cannot be imported: invalid truth value 'maybe'" in done.stderr


def test_a_program_that_imports_the_package_gets_the_exception():
    environment = os.environ | {"JAX_ENABLE_X64": "maybe"}
    run = [sys.executable, "-c", "import bt_jax.convert"]
    done = subprocess.run(run, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 1 and "ValueError: invalid truth value" in done.stderr
