"""The config of a tiny run, and the metrics lines of any run."""

import json
from pathlib import Path

from ml_collections import ConfigDict

from bt_jax.configs import quickstart


def tiny(**changes) -> ConfigDict:
    """The quickstart with two epochs of four steps; `changes` overrides dotted keys."""
    config = quickstart.get_config("smoke")
    config.data.train_split, config.data.val_split = "train[:64]", "test[:40]"
    config.evals.knn_k = 5
    return changed(config, **changes)


def changed(config: ConfigDict, **changes) -> ConfigDict:
    """Overrides dotted keys of the config in place; returns it."""
    with config.unlocked():
        config.update_from_flattened_dict(changes)
    return config


def read_lines(folder: Path) -> list[dict]:
    """All lines of the run's metrics.jsonl, in order."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def without_speeds(folder: Path) -> list[dict]:
    """All lines of the run's metrics without the speeds, which differ between two equal runs."""
    return [{name: value for name, value in line.items() if "perf/" not in name} for line in read_lines(folder)]
