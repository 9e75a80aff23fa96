"""The report of a run: one self-contained HTML file made of what lies in the run folder.

    python -m bt_jax.report RUN              writes RUN/report.html again
    python -m bt_jax.report RUN1 RUN2 ...    the curves of all in one report: that of the first, or --out FILE

Only `metrics.jsonl` must be there. A part whose input is missing or damaged is left out, with a sentence saying why.
"""

import argparse
import os
import sys
from pathlib import Path

from bt_jax.errors import UserError
from bt_jax.reporting.page import document
from bt_jax.reporting.plots import Panel
from bt_jax.reporting.runs import Run, read_run
from bt_jax.reporting.sections import (
    comparison_section,
    correlation_section,
    curves_section,
    details_section,
    head_section,
    pairs_section,
    summary_section,
)

LOSS = (
    Panel(
        "Total",
        (("train/loss", "loss"),),
        "Should fall fast, then ever more slowly. Rising or jagged to the end: the learning rate is too high. Flat from"
        " the start: nothing is learned.",
        log=True,
    ),
    Panel(
        "Its two terms",
        (
            ("train/on_diag", "on-diagonal: the two views disagree"),
            ("train/off_diag", "off-diagonal: features repeat each other"),
        ),
        "The loss is the first plus lambd times the second. Both should fall. If one falls while the other climbs,"
        " lambd weighs them badly.",
        log=True,
    ),
)
QUALITY = (
    Panel(
        "Nearest neighbours on held-out images",
        (("val/knn_top1", "kNN top-1"),),
        "Share of held-out images whose nearest training images name the right class. Should climb well above the"
        " dotted lines; falling late in the run is a warning.",
        percent=True,
    ),
    Panel(
        "Linear probe",
        (("val/online_top1", "held-out images"), ("train/probe_top1", "training batches")),
        "A linear classifier on frozen features; it never changes the encoder. Training far above held-out: the"
        " probe overfits.",
        percent=True,
    ),
)
MACHINERY = (
    Panel(
        "Mean diagonal of c",
        (("train/diag_mean", "mean diagonal"),),
        "How far the two views of an image agree: towards 1. Stuck near 0: the augmentation leaves nothing in common.",
    ),
    Panel(
        "Spread of the embedding",
        (("train/embedding_std", "standard deviation"),),
        "Near 1 when the embeddings spread in all directions. A fall to 0 is collapse: every image gets the same"
        " embedding.",
        zero=True,
    ),
    Panel(
        "Gradient norm",
        (("train/grad_norm", "norm"),),
        "Calm or slowly falling. Spikes come before a loss that blows up.",
        log=True,
    ),
    Panel(
        "Learning rate of weights",
        (("train/lr_weights", "rate"),),
        "As the config asks: usually up during warm-up, then down along a cosine.",
    ),
    Panel("Learning rate of biases and norms", (("train/lr_biases", "rate"),), "The same shape at its own height."),
    Panel("Probe loss", (("train/probe_loss", "loss"),), "Should fall as the features get better."),
    Panel(
        "Throughput",
        (("perf/pairs_per_sec", "pairs per second"),),
        "Should be flat. Dips: evaluation, checkpoints or a busy machine.",
        zero=True,
    ),
    Panel(
        "Waiting for data",
        (("perf/data_wait", "share of time"),),
        "Near 0 %. Much more: the input, not the training, sets the pace.",
        percent=True,
        zero=True,
    ),
)


def write(run_dir, *others, out=None) -> Path:
    """Writes the report of a run and returns its path.

    Args:
      run_dir: run folder; what it may hold is in reporting.sections.FILES.
      others: further run folders, drawn into the same curves.
      out: the file to write; RUN_DIR/report.html if None.
    """
    runs = [read_run(folder) for folder in (run_dir, *others)]
    if len({run.name for run in runs}) < len(runs):  # a/run and b/run
        for run in runs:
            run.name = str(run.path)
    target = Path(out) if out else runs[0].path / "report.html"
    partial = target.with_name(f".{target.name}.partial")
    text = page(runs)
    try:
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, target)
    except OSError as error:
        if partial.parent.is_dir():
            partial.unlink(missing_ok=True)
        cure = "Make room there, or name another file with --out"
        raise UserError(f"Cannot write {target}: {error.strerror}", cure) from error
    return target


def page(runs: list[Run]) -> str:
    first = runs[0]
    body = [
        head_section(runs),
        summary_section(first),
        comparison_section(runs) if len(runs) > 1 else "",
        curves_section("Loss", LOSS, runs),
        curves_section("How good are the features", QUALITY, runs),
        correlation_section(first),
        pairs_section(first),
        curves_section("The machinery", MACHINERY, runs, "small"),
        details_section(first),
    ]
    return document(first.name, body)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bt_jax.report", description="Writes report.html of a run again.")
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folder; several are drawn side by side")
    parser.add_argument("--out", metavar="FILE", help="file to write (default: report.html in the first run folder)")
    args = parser.parse_args(argv)
    try:
        print(write(*args.runs, out=args.out))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
