"""The comparison of methods: its commands are valid, cells that exist do not run, the table says what is missing."""

import json

import pytest

from benchmarks import method_steps, methods
from bt_jax.objectives import registry


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.setattr(methods, "RESULTS", tmp_path)
    monkeypatch.setattr(methods.subprocess, "run", lambda *args, **options: pytest.fail("a run was started"))
    return tmp_path


def store(method, seed, rate=0.003, knn=0.5):
    other = {"knn": 0.3 + seed / 100 if seed else 0.3, "probe": 0.2}
    found = {"rate": rate, "knn": knn, "probe": knn + 0.1, "cpu_seconds": 400, "untrained": other, "raw_pixels": other}
    methods.Cell(method, rate, seed).file.write_text(json.dumps(found))


def test_every_method_that_needs_no_labels_is_compared():
    assert set(methods.OWN) == set(registry.NAMES) - {"supervised"}


@pytest.mark.parametrize("method", methods.OWN)
def test_the_keys_of_a_run_are_valid(method):
    settings = method_steps.settings_of(method, 128)
    registry.build(settings.objective).check_batch(settings.batch_size)
    assert (settings.total_epochs, settings.seed, settings.data.val_split) == (12.0, 0, "test")


def test_a_cell_that_exists_does_not_run(results, capsys):
    for rate, knn in zip(methods.RATES, (0.31, 0.33, 0.32), strict=True):
        store("byol", None, rate, knn)
    assert methods.chosen("byol") == methods.RATES[1] and methods.chosen("moco") is None
    store("byol", 0, methods.RATES[1])
    assert methods.main(["--methods=byol", "--seeds=0"]) == 0
    assert "| byol | 1 | 50.0 | 60.0 | 0.003 | 400 |" in capsys.readouterr().out


def test_the_table(results):
    for seed, knn in zip(methods.SEEDS, (0.50, 0.52, 0.54), strict=True):
        store("simclr", seed, knn=knn)
    store("moco", 0, knn=0.6)
    lines = methods.table(["simclr", "moco", "byol"]).splitlines()
    assert lines[2].startswith("| moco | 1 | 60.0 ") and lines[4] == "| byol | 0 | not run | not run | | |"
    assert lines[3].startswith("| simclr | 3 | 52.0 ± 5.0 |")  # 4.303 * 2 / sqrt(3)
    assert lines[5].startswith("| untrained | 3 | 31.0 ") and lines[6].startswith("| raw pixels | 1 | 30.0 ")
    assert "- byol, seed 2: `python -m benchmarks.methods --methods=byol --seeds=2`" in lines
    assert not any(line.startswith("- simclr") for line in lines)


def test_an_unknown_method():
    with pytest.raises(SystemExit, match="Unknown method bt. Use barlow_twins, vicreg"):
        methods.main(["--methods=bt"])


def test_steps_of_two_methods(capsys, monkeypatch):
    """The momentum network and the queue are in the state; the first method is the unit."""
    monkeypatch.setitem(methods.SAME, "model.width", 1 / 16)
    monkeypatch.setitem(methods.SAME, "views.size", 8)
    assert method_steps.main(["--methods=simsiam,moco", "--rounds=0", "--steps=1", "--batch=16"]) == 0
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines()[2:4]]
    assert rows[0][1:3] == ["1.00", "1.00"] and rows[1][0] == "| moco" and float(rows[1][1]) > 0
