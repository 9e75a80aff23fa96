"""A tiny run's config, and the lines of metrics that any run leaves behind."""

import json
from pathlib import Path

from ml_collections import ConfigDict

from bt_jax.configs import quickstart


def tiny(**changes) -> ConfigDict:
    """The quickstart, four steps an epoch for two epochs; dotted keys are overridden."""
    config = quickstart.get_config("smoke")
    config.data.train_split, config.data.val_split = "train[:64]", "test[:40]"
    config.evals.knn_k = 5
    return changed(config, **changes)


def changed(config: ConfigDict, **changes) -> ConfigDict:
    """The same config, in which dotted keys are overridden."""
    with config.unlocked():
        config.update_from_flattened_dict(changes)
    return config


def read_lines(folder: Path) -> list[dict]:
    """Every line of the run's metrics, in order."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def without_speeds(folder: Path) -> list[dict]:
    """Every line of the run's metrics without what differs between two equal runs."""
    return [{name: value for name, value in line.items() if "perf/" not in name} for line in read_lines(folder)]
