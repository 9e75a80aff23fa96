"""Writes the report of a run, and the results of a finished run: summary.json, pictures.npz and report.html.

Only `metrics.jsonl` is required. If the input of a section is missing or damaged, a sentence in the report says so.
"""

from functools import partial
from pathlib import Path

import jax
import numpy as np

from bt_jax import messages, storage
from bt_jax.messages import UserError
from bt_jax.objectives import registry
from bt_jax.report.confusion import confusion_section
from bt_jax.report.correlation import correlation_section, spectrum_section
from bt_jax.report.gallery import map_section, neighbours_section, pairs_section
from bt_jax.report.page import document, is_document
from bt_jax.report.panels import ACCURACY, FINETUNING, LABEL_FREE, LOSS, OPTIMIZATION, panels_of_methods
from bt_jax.report.results import results_section, task
from bt_jax.report.runs import Run, read_run
from bt_jax.report.sections import (
    comparison_section,
    curves_section,
    details_section,
    header_section,
    summary_section,
)

PAGE = "report.html"
COMPARISON = "comparison.html"  # another name, so that it never replaces the report of a run


@storage.bucket_errors_as_user_errors()
def report(run_dir, *others, out=None) -> Path:
    """Writes the report of a run and returns its path.

    Args:
      run_dir: run folder; report.sections.FILES lists its files.
      others: further run folders, whose curves are drawn in the same plots.
      out: the file to write; None: RUN_DIR/report.html, or RUN_DIR/comparison.html for several runs.

    Raises:
      UserError: a folder has no metrics, the file cannot be written, `out` exists and is no report, or a comparison
        would replace a run's report.
    """
    runs = [read_run(folder) for folder in (run_dir, *others)]
    if len({run.name for run in runs}) < len(runs):  # a/run and b/run
        for run in runs:
            run.name = str(run.path)
    for run in runs:
        for damage in run.damages:
            messages.say(f"WARNING: {run.name}: {damage}")
    target = storage.parse_path(out) if out else runs[0].path / (COMPARISON if others else PAGE)
    if others and storage.absolute(target) in [storage.absolute(run.path / PAGE) for run in runs]:
        raise UserError(f"{target} is the report of one run", f"Name another file with --out, such as {COMPARISON}.")
    if out:
        _refuse_foreign(target)
    text = page(runs)
    try:
        storage.write(target, text)
    except OSError as error:
        fix = "Make room on that disk, or name another file with --out."
        raise UserError(f"Cannot write {target}: {error.strerror or error}", fix) from error
    return target


def _refuse_foreign(target: Path) -> None:
    """UserError if the file exists and is not a report."""
    ends_so = target.suffix == ".html"
    if target.exists() and not (ends_so and is_document(storage.read(target) or b"")):
        cause = "is not a report of bt_jax" if ends_so else "does not end in .html"
        raise UserError(f"{target} exists and {cause}", "Give another --out, or delete it.")


def results(folder: Path, summary: dict, pictures: dict) -> None:
    """Writes summary.json (of JSON types), pictures.npz (of arrays) and the report; the first process alone writes."""
    if jax.process_index():
        return
    (folder / PAGE).unlink(missing_ok=True)  # written last, and therefore checked by `has_results`
    storage.write(folder / "pictures.npz", partial(np.savez, **pictures))
    storage.write_json(folder / "summary.json", summary)
    messages.say(f"report      {report(folder)}")


def has_results(folder: Path, step: int) -> bool:
    """Whether the results of that step are written. A run that was extended is evaluated again at its new end."""
    try:
        summary = storage.read_json(folder / "summary.json") or {}
    except ValueError:
        return False
    return summary.get("steps") == step and (folder / PAGE).exists()


def page(runs: list[Run]) -> str:
    """The HTML of a report. Header, comparison and curves are of all runs, the other sections of the first."""
    first = runs[0]
    body = {"evaluate": _evaluation, "finetune": _finetuning}.get(task(first), _pretraining)(runs)
    return document(first.name, [part for part in body if part])


def _evaluation(runs: list[Run]) -> list[str]:
    first = runs[0]
    return [
        header_section(runs),
        results_section(first),
        spectrum_section(first),
        map_section(first),
        neighbours_section(first),
        confusion_section(first),
        details_section(first),
    ]


def _finetuning(runs: list[Run]) -> list[str]:
    first = runs[0]
    return [
        header_section(runs),
        results_section(first),
        comparison_section(runs) if len(runs) > 1 else "",
        curves_section("Training", FINETUNING, runs),
        confusion_section(first),
        details_section(first),
    ]


def _pretraining(runs: list[Run]) -> list[str]:
    first = runs[0]
    terms, others = panels_of_methods([registry.method_of_run(run.config) for run in runs])
    return [
        header_section(runs),
        summary_section(first),
        comparison_section(runs) if len(runs) > 1 else "",
        curves_section("Loss", [*LOSS, *terms], runs),
        curves_section("Accuracy of the features", ACCURACY, runs),
        curves_section("Metrics without labels", LABEL_FREE, runs, "small"),
        correlation_section(first),
        spectrum_section(first),
        map_section(first),
        neighbours_section(first),
        confusion_section(first),
        pairs_section(first),
        curves_section("Optimization and speed", [*others, *OPTIMIZATION], runs, "small"),
        details_section(first),
    ]
