"""Short forms of the drills. Two are quick and check what no other test checks; the others are slow."""

import os
import shutil
import subprocess
import sys

import pytest

from tests.drills import damage, elastic, fuzz_input, kills
from tests.support.paths import ROOT


def test_a_run_killed_in_a_save_resumes(capsys, monkeypatch):
    """The program gets SIGKILL in the middle of a save, starts again and finishes."""
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")  # most of a start is compilation
    assert kills.main(["--kills=1", "--seed=1", "--short"]) == 0
    assert "SIGKILL at a save      1" in capsys.readouterr().out


def test_damaged_files_of_every_kind():
    """No crash; every id once; intact images have their own pixels."""
    pytest.importorskip("tensorflow")
    fuzz_input.check(files=300, seed=0)


def drill(name: str, *options: str) -> str:
    """Runs the drill, which must exit with status 0; returns its output."""
    command = [sys.executable, "-m", f"tests.drills.{name}", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    "count, options", [(4, []), (2, ["--input=streamed", "--short"]), (2, ["--bucket", "--short"])]
)
def test_repeated_kills(count, options):
    if "--input=streamed" in options:
        pytest.importorskip("tensorflow")
    last = drill("kills", f"--kills={count}", *options).splitlines()[-1]
    assert last.startswith(f"{count} kills in ") and last.endswith(" equal bit for bit, 0 not")


@pytest.mark.slow
def test_every_damage_to_every_file_of_a_checkpoint(capsys):
    assert damage.main([]) == 0
    table = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [row[0] for row in table[1:4]] == ["truncate", "flip", "delete"] and "previous" in table[0]


@pytest.mark.slow
def test_an_error_in_one_of_several_processes():
    """An exception, after which the same command gives the same run; and an error in the command."""
    assert drill("faults", "--only=an exception,another learning rate").count("\n| an") == 2


@pytest.mark.slow
def test_a_run_resumes_on_other_devices_and_processes(tmp_path):
    first_halves: dict = {}
    for name in ("8 -> 2", "1 of 8 -> 2 processes of 4"):
        result = elastic.difference(name, tmp_path, first_halves)
        # Measured: 3e-7 and 8e-7 for the loss, 2e-6 and 5e-3 for the other metrics. An untrained network multiplies
        # rounding errors by about ten per step.
        assert result.first < 1e-5 and result.largest < 5e-2, (name, result)


@pytest.mark.slow
def test_more_damaged_files():
    pytest.importorskip("tensorflow")
    counts = fuzz_input.check(files=3000, seed=1)
    assert counts["files"] == 3000 and 0 < counts["unreadable"] < counts["damaged"]


@pytest.mark.slow
@pytest.mark.skipif("BT_JAX_SLURM" not in os.environ, reason="starts SLURM as root; set BT_JAX_SLURM=1 in a container")
def test_slurm_on_one_machine(tmp_path):
    if missing := [name for name in ("slurmctld", "slurmd", "munged") if not shutil.which(name)]:
        pytest.skip(f"{', '.join(missing)} not installed")
    environment = os.environ | {"WORK": str(tmp_path), "PYTHON": sys.executable}
    command = ["bash", "tests/drills/slurm.sh"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and "the same arrays, the same lines" in done.stdout, done.stdout + done.stderr
