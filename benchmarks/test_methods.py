"""The comparison of methods: its commands are valid, cells that exist do not run, the table says what is missing."""

import ast
import json

import pytest

from benchmarks import methods
from bt_jax.config import keys
from bt_jax.configs import pretrain_cifar10_r18
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
    config = pretrain_cifar10_r18.get_config(f"batch=128,method={method}")
    cell = methods.Cell(method, 0.003, 1)
    for key, value in cell.keys(12.0, 4.0).items():
        value = ast.literal_eval(value) if key.endswith("crop_scale") else value
        config.update_from_flattened_dict({key: value})
    settings = keys.read(config)
    registry.build(settings.objective).check_batch(settings.batch_size)
    assert (settings.total_epochs, settings.seed, settings.data.val_split) == (12.0, 1, "test")


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
