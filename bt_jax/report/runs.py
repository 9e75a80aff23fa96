"""Reads the files of a run folder into memory, and notes the files that are missing or damaged."""

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

MISSING = "There is no {} in the run folder."


@dataclass
class Run:
    """The content of one run folder.

    Attributes:
      series: series[metric][step] is a float.
      omissions: sentences about missing files, made from MISSING, and about damaged files.
    """

    path: Path
    name: str
    series: dict[str, dict[float, float]]
    omissions: list[str] = field(default_factory=list)
    summary: dict = field(default_factory=dict)
    config: dict = field(default_factory=dict)
    environment: dict = field(default_factory=dict)
    pictures: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def steps(self) -> float:
        """The last logged step."""
        return max((step for points in self.series.values() for step in points), default=0)

    @property
    def damages(self) -> list[str]:
        """The sentences of `omissions` about files that are there but damaged."""
        return [text for text in self.omissions if not text.startswith(MISSING.partition("{")[0])]

    def last(self, metric: str) -> float | None:
        """The newest finite value of a metric."""
        finite = [step for step, value in self.series.get(metric, {}).items() if math.isfinite(value)]
        return self.series[metric][max(finite)] if finite else None

    def score(self, name: str, row: str) -> float | None:
        """A score of summary.json, such as score("knn_top1", "trained")."""
        scores = self.summary.get(name)
        return number(scores.get(row)) if isinstance(scores, dict) else None


def read_run(folder) -> Run:
    """The content of a run folder.

    Raises:
      UserError: there is no folder, or it has no metrics.jsonl.
    """
    path = storage.parse_path(folder)
    if not storage.is_dir(path):
        raise UserError(f"There is no run folder {path}", "Name the --workdir of a run.")
    if not (path / "metrics.jsonl").is_file():
        raise UserError(f"There is no metrics.jsonl in {path}", "Name the --workdir of a run that has logged a step.")
    series, unreadable = read_metrics(path / "metrics.jsonl")
    run = Run(path, (path if storage.in_bucket(path) else path.resolve()).name, series)
    if unreadable:
        run.omissions.append(
            f"Skipped {plural(unreadable, 'unreadable line')} of metrics.jsonl. A run that is killed while it writes"
            " leaves such a line."
        )
    run.summary = read_json(path / "summary.json", run.omissions)
    run.config = read_json(path / "config.json", run.omissions)
    run.environment = read_json(path / "environment.json", run.omissions)
    run.pictures = read_pictures(path / "pictures.npz", run.omissions)
    return run


def read_metrics(path: Path) -> tuple[dict, int]:
    """({metric: {step: value}}, number of unreadable lines). The later of two values for one step counts."""
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
            if value is None:  # strict JSON writers write NaN as null
                value = math.nan
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                series.setdefault(metric, {})[step] = float(value)
    return {metric: dict(sorted(points.items())) for metric, points in series.items()}, unreadable


def read_json(path: Path, omissions: list[str]) -> dict:
    """The object in a JSON file; {} and a sentence in `omissions` if the file is missing or damaged."""
    try:
        if (content := storage.read_json(path)) is not None:
            return content
        omissions.append(f"{path.name} cannot be read." if path.exists() else MISSING.format(path.name))
    except ValueError as error:
        omissions.append(f"{path.name} cannot be read ({error}).")
    return {}


def read_pictures(path: Path, omissions: list[str]) -> dict[str, np.ndarray]:
    """The readable arrays of pictures.npz, which evals.pictures describes; a sentence in `omissions` for the others."""
    if not path.is_file():
        omissions.append(MISSING.format(path.name))
        return {}
    arrays = {}
    try:  # for a damaged file, zipfile, zlib and NumPy raise more errors than their manuals list
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
            for name in file.files:
                try:
                    arrays[name] = file[name]
                except Exception as error:
                    omissions.append(f"{name} of pictures.npz cannot be read ({error}).")
    except Exception as error:
        omissions.append(f"pictures.npz cannot be read ({error}).")
    return arrays


def drawn_from(*names: str) -> Callable:
    """Decorates a part of the page, part(run, ...) -> HTML, that draws the named arrays of pictures.npz.

    If the part raises, because the arrays are not as a run writes them, it becomes empty. A line in `run.omissions`
    names the arrays and the error.
    """

    def decorate(part: Callable[..., str]) -> Callable[..., str]:
        @functools.wraps(part)
        def guarded(run: Run, *others) -> str:
            try:
                return part(run, *others)
            except Exception as error:  # NumPy, Pillow and matplotlib raise many kinds of errors for unsuitable arrays
                arrays = {name: run.pictures[name] for name in names if name in run.pictures}
                shapes = ", ".join(f"{name} of shape {a.shape} and type {a.dtype}" for name, a in arrays.items())
                cause = " ".join(f"{type(error).__name__}: {error}".split())
                run.omissions.append(f"Not drawn from pictures.npz, {shapes}: {cause}")
                return ""

        return guarded

    return decorate


def flat(tree: dict) -> dict[str, str]:
    """A nested dict as {"optim.lr_weights": "0.2"}, with the dotted keys of --config.KEY=VALUE."""
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in flatten(tree).items()}


def off_diagonal(c: np.ndarray) -> np.ndarray:
    """The finite values off the diagonal of (d, d), float64 (n,)."""
    values = c[~np.eye(len(c), dtype=bool)].astype(np.float64)
    return values[np.isfinite(values)]
