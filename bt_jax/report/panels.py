"""The plots of logged numbers: which metrics share one, and what the caption says is good and bad."""

from collections.abc import Mapping

from bt_jax.objectives.base import Metric
from bt_jax.report.plots import Panel

LOSS = (
    Panel(
        "Total",
        (("train/loss", "loss"),),
        "Should fall fast, then ever more slowly. Rising or jagged to the end: the learning rate is too high. Flat from"
        " the start: nothing is learned.",
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
FINETUNING = (
    Panel("Loss", (("train/loss", "loss"),), "Should fall. Rising: the learning rate is too high.", log=True),
    Panel(
        "Accuracy",
        (("val/top1", "held-out images"), ("train/top1", "training batches")),
        "Training batches far above held-out images: it learns them by heart.",
        percent=True,
    ),
    Panel(
        "Learning rate of the classifier",
        (("train/lr_classifier", "rate"), ("train/lr_head", "rate")),
        "As the config asks.",
        zero=True,
    ),
    Panel("Learning rate of the encoder", (("train/lr_backbone", "rate"),), "As the config asks.", zero=True),
)
LABEL_FREE = (
    Panel(
        "Effective rank",
        (("val/rank", "dimensions"),),
        "How many dimensions the features really use (RankMe). Higher is better, and it should climb. Near 1: collapse,"
        " all images look the same.",
        zero=True,
    ),
    Panel(
        "Slope of the spectrum",
        (("val/spectrum_slope", "power"),),
        "How fast the dimensions get weaker. About 1 is good. Much more: a few dimensions carry everything.",
        zero=True,
    ),
    Panel(
        "Alignment",
        (("val/alignment", "squared distance"),),
        "Distance between two views of one image. Lower is better, but 0 with a uniformity of 0 is collapse.",
        zero=True,
    ),
    Panel(
        "Uniformity",
        (("val/uniformity", "log of closeness"),),
        "How well different images spread out. Lower is better, −4 at best. At 0 they all lie on one point.",
    ),
    Panel(
        "Dead dimensions",
        (("val/dead_dimensions", "dimensions"),),
        "Dimensions that are the same for every image. Should be 0 or few. Climbing: the features are dying.",
        zero=True,
        whole=True,
    ),
    Panel(
        "Features that repeat each other",
        (("val/off_diagonal", "mean correlation"),),
        "Mean size of the correlation of two features, 0 to 1. Should fall. Near 1: all features say the same.",
        zero=True,
    ),
)
MACHINERY = (
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


def own_panels(metrics: Mapping[str, Metric]) -> tuple[list[Panel], list[Panel]]:
    """Plots of a method's own metrics: the terms of its loss together, and every other metric by itself."""
    terms = {name: metric for name, metric in metrics.items() if metric.term}
    curves = tuple((f"train/{name}", metric.label) for name, metric in terms.items())
    caption = " ".join(metric.caption for metric in terms.values() if metric.caption)
    others = [
        Panel(metric.label, ((f"train/{name}", metric.label),), metric.caption)
        for name, metric in metrics.items()
        if not metric.term
    ]
    if not terms:
        return [], others
    several = len(terms) > 1
    return [Panel("Its terms" if several else curves[0][1], curves, caption, log=several)], others
