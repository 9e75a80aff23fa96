"""What lies in a run folder, read into memory; what is missing or damaged is left out and said so."""

import functools
import io
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from bt_jax import storage
from bt_jax.config.arguments import flatten
from bt_jax.messages import UserError
from bt_jax.report.formats import number, plural


@dataclass
class Run:
    """What lies in one run folder. `series[metric][step]` is a float; `why` says in words what is missing."""

    path: Path
    name: str
    series: dict[str, dict[float, float]]
    why: list[str] = field(default_factory=list)
    summary: dict = field(default_factory=dict)
    config: dict = field(default_factory=dict)
    environment: dict = field(default_factory=dict)
    pictures: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def steps(self) -> float:
        return max((step for points in self.series.values() for step in points), default=0)

    def last(self, metric: str) -> float | None:
        """Newest finite value of a metric."""
        finite = [step for step, value in self.series.get(metric, {}).items() if math.isfinite(value)]
        return self.series[metric][max(finite)] if finite else None

    def score(self, name: str, row: str) -> float | None:
        """A number of summary.json, such as score("knn_top1", "trained")."""
        scores = self.summary.get(name)
        return number(scores.get(row)) if isinstance(scores, dict) else None


def read_run(folder) -> Run:
    path = storage.parse_path(folder)
    if not storage.is_dir(path):
        raise UserError(f"No run folder {path}", "Name the folder that was given as --workdir")
    if not (path / "metrics.jsonl").is_file():
        raise UserError(f"No metrics.jsonl in {path}", "Name the --workdir of a run that has logged a step")
    series, unreadable = read_metrics(path / "metrics.jsonl")
    run = Run(path, (path if storage.in_bucket(path) else path.resolve()).name, series)
    if unreadable:
        run.why.append(
            f"Skipped {plural(unreadable, 'line')} of metrics.jsonl that could not be read; a run killed"
            " while writing leaves one."
        )
    run.summary = read_json(path / "summary.json", run.why)
    run.config = read_json(path / "config.json", run.why)
    run.environment = read_json(path / "environment.json", run.why)
    run.pictures = read_pictures(path / "pictures.npz", run.why)
    return run


def read_metrics(path: Path) -> tuple[dict, int]:
    """({metric: {step: value}}, number of unreadable lines). A step logged twice, after a resume, keeps the later."""
    series, unreadable = {}, 0
    for line in path.read_bytes().decode(errors="replace").splitlines():
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            step = float(record.pop("step"))
        except (ValueError, TypeError, KeyError, AttributeError):
            unreadable += 1
            continue
        for metric, value in record.items():
            if value is None:  # strict JSON writers put null where the value is NaN
                value = math.nan
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                series.setdefault(metric, {})[step] = float(value)
    return {metric: dict(sorted(points.items())) for metric, points in series.items()}, unreadable


def read_json(path: Path, why: list[str]) -> dict:
    """The object in a file of JSON; {} and a sentence in `why` if it is missing or damaged."""
    try:
        if (found := storage.read_json(path)) is not None:
            return found
        why.append(f"{path.name} cannot be read." if path.exists() else f"There is no {path.name} in the run folder.")
    except ValueError as error:
        why.append(f"{path.name} cannot be read ({error}).")
    return {}


def read_pictures(path: Path, why: list[str]) -> dict[str, np.ndarray]:
    """The arrays of pictures.npz that can be read; evals.pictures says what they hold."""
    if not path.is_file():
        why.append("There is no pictures.npz in the run folder.")
        return {}
    arrays = {}
    try:  # of a damaged file zipfile, zlib and NumPy raise more kinds of errors than their manuals name
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
            for name in file.files:
                try:
                    arrays[name] = file[name]
                except Exception as error:
                    why.append(f"{name} of pictures.npz cannot be read ({error}).")
    except Exception as error:
        why.append(f"pictures.npz cannot be read ({error}).")
    return arrays


def drawn_from(*names: str) -> Callable:
    """Decorates a part of the page, part(run, ...) -> HTML, that is drawn from these arrays of pictures.npz.

    Where that fails, as the arrays are not what a run writes, the part is empty, and `run.why` has a line with the
    arrays and the error.
    """

    def decorate(part: Callable[..., str]) -> Callable[..., str]:
        @functools.wraps(part)
        def guarded(run: Run, *others) -> str:
            try:
                return part(run, *others)
            except Exception as error:  # NumPy, Pillow and matplotlib have many for an array that they cannot take
                found = {name: run.pictures[name] for name in names if name in run.pictures}
                said = ", ".join(f"{name} of shape {a.shape} and type {a.dtype}" for name, a in found.items())
                cause = " ".join(f"{type(error).__name__}: {error}".split())
                run.why.append(f"Not drawn from pictures.npz, {said}: {cause}")
                return ""

        return guarded

    return decorate


def flat(tree: dict) -> dict[str, str]:
    """{"optim.lr_weights": "0.2"}: the dotted keys that --config.KEY=VALUE takes."""
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in flatten(tree).items()}


def off_diagonal(c: np.ndarray) -> np.ndarray:
    values = c[~np.eye(len(c), dtype=bool)].astype(np.float64)
    return values[np.isfinite(values)]
