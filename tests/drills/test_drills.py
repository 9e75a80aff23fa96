"""Short forms of the drills. Two are quick, and hold what no other test does; the others are slow."""

import os
import shutil
import subprocess
import sys

import pytest

from tests.drills import damage, elastic, fuzz_input, kills
from tests.support.paths import ROOT


def test_killed_while_it_saves_and_started_again(capsys, monkeypatch):
    """The program is killed by signal 9 in the middle of a save, and runs on to its end."""
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")  # a start is mostly compiling
    assert kills.main(["--kills=1", "--seed=1", "--short"]) == 0
    assert "SIGKILL at a save      1" in capsys.readouterr().out


def test_damaged_files_of_every_kind():
    """Nothing crashes, every id comes once, whole images are untouched."""
    pytest.importorskip("tensorflow")
    fuzz_input.check(files=300, seed=0)


def drill(name: str, *options: str) -> str:
    """What the command says, which must end with status 0."""
    command = [sys.executable, "-m", f"tests.drills.{name}", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    "count, options", [(4, []), (2, ["--input=streamed", "--short"]), (2, ["--bucket", "--short"])]
)
def test_killed_again_and_again(count, options):
    if "--input=streamed" in options:
        pytest.importorskip("tensorflow")
    said = drill("kills", f"--kills={count}", *options).splitlines()[-1]
    assert said.startswith(f"{count} kills in ") and said.endswith(" equal bit for bit, 0 not")


@pytest.mark.slow
def test_every_file_of_a_checkpoint_damaged_in_every_way(capsys):
    assert damage.main([]) == 0
    table = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [row[0] for row in table[1:4]] == ["truncate", "flip", "delete"] and "previous" in table[0]


@pytest.mark.slow
def test_several_processes_and_an_error_in_one():
    """An exception, after which the same command gives the same run; and a mistake in the command."""
    assert drill("faults", "--only=an exception,another learning rate").count("\n| an") == 2


@pytest.mark.slow
def test_a_run_goes_on_with_other_devices_and_processes(tmp_path):
    begun: dict = {}
    for name in ("8 -> 2", "1 of 8 -> 2 processes of 4"):
        found = elastic.difference(name, tmp_path, begun)
        # The loss: 3e-7 and 8e-7 were measured. The other numbers: 2e-6 and 5e-3, as an untrained network multiplies
        # rounding by about ten a step.
        assert found.first < 1e-5 and found.largest < 5e-2, (name, found)


@pytest.mark.slow
def test_more_damaged_files():
    pytest.importorskip("tensorflow")
    found = fuzz_input.check(files=3000, seed=1)
    assert found["files"] == 3000 and 0 < found["unreadable"] < found["damaged"]


@pytest.mark.slow
@pytest.mark.skipif("BT_JAX_SLURM" not in os.environ, reason="starts SLURM as root; in a container set BT_JAX_SLURM=1")
def test_a_slurm_of_one_machine(tmp_path):
    if missing := [name for name in ("slurmctld", "slurmd", "munged") if not shutil.which(name)]:
        pytest.skip(f"not installed: {', '.join(missing)}")
    environment = os.environ | {"WORK": str(tmp_path), "PYTHON": sys.executable}
    command = ["bash", "tests/drills/slurm.sh"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and "the same arrays, the same lines" in done.stdout, done.stdout + done.stderr
