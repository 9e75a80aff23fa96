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


def strict_json(folder: Path) -> set[str]:
    """Names of the files of JSON in a folder and below it; fails where one holds NaN or Infinity, which are no JSON."""

    def fail(name):
        raise AssertionError(f"{name} in {file}")

    found = set()
    for file in (path for path in folder.rglob("*") if path.is_file()):
        lines = [file.read_text()] if file.suffix == ".json" or file.name in ("metadata", "_METADATA") else []
        if file.suffix == ".jsonl":
            lines = file.read_text().splitlines()
        for line in lines:
            json.loads(line, parse_constant=fail)
        found |= {file.name} if lines else set()
    return found


def without_speeds(folder: Path) -> list[dict]:
    """All lines of the run's metrics without the speeds, which differ between two equal runs."""
    return [{name: value for name, value in line.items() if "perf/" not in name} for line in read_lines(folder)]
