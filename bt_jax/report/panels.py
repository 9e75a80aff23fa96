"""The plots of logged metrics: the metrics of each plot, and its caption.

The captions name values that are normal after a few epochs. They are those of the runs of quickstart_cpu.md (7 epochs)
and cifar10_cpu.md (12 epochs) in benchmarks/results, whose encoders are well above raw pixels.
"""

from collections.abc import Mapping, Sequence

from bt_jax.objectives.base import Metric, Objective
from bt_jax.report.plots import Panel

LOSS = (
    Panel(
        "Total",
        (("train/loss", "loss"),),
        "The loss normally falls fast, then ever more slowly. If it rises or jumps until the end, the learning rate may"
        " be too high. If it is flat from the start, the encoder learns nothing.",
        log=True,
    ),
)
ACCURACY = (
    Panel(
        "Nearest neighbours on held-out images",
        (("val/knn_top1", "kNN top-1"),),
        "The accuracy of a vote of the nearest training images. The dotted lines are the untrained encoder and raw"
        " pixels. The curve should rise above both, but in the first epochs it can lie below them.",
        percent=True,
    ),
    Panel(
        "Linear probe",
        (("val/online_top1", "held-out images"), ("train/probe_top1", "training batches")),
        "The accuracy of a linear classifier that trains along with the encoder and never changes it. If training"
        " batches are far above held-out images, the probe overfits.",
        percent=True,
    ),
)
FINETUNING = (
    Panel(
        "Loss",
        (("train/loss", "loss"),),
        "The loss should fall. If it rises, the learning rate may be too high.",
        log=True,
    ),
    Panel(
        "Accuracy",
        (("val/top1", "held-out images"), ("train/top1", "training batches")),
        "If training batches are far above held-out images, the network overfits.",
        percent=True,
    ),
    Panel(
        "Learning rate of the classifier",
        (("train/lr_classifier", "rate"), ("train/lr_head", "rate")),
        "The schedule of the config.",
        zero=True,
    ),
    Panel("Learning rate of the encoder", (("train/lr_backbone", "rate"),), "The schedule of the config.", zero=True),
)
LABEL_FREE = (
    Panel(
        "Effective rank",
        (("val/rank", "dimensions"),),
        "The number of dimensions that the features effectively use (RankMe). Higher is usually better. In short runs"
        " it stays far below the number of features. Near 1, the features have collapsed.",
        zero=True,
    ),
    Panel(
        "Slope of the spectrum",
        (("val/spectrum_slope", "power"),),
        "The power with which the variance falls from one dimension to the next. Good features have a slope of about 1."
        " After 7 to 12 epochs, 1.4 to 1.9 is normal. If it is much larger, a few dimensions carry almost everything.",
        zero=True,
    ),
    Panel(
        "Alignment",
        (("val/alignment", "squared distance"),),
        "The squared distance between the features of two views of one image. Lower is better if the uniformity stays"
        " below 0. If both are 0, the features have collapsed.",
        zero=True,
    ),
    Panel(
        "Uniformity",
        (("val/uniformity", "log of similarity"),),
        "How evenly the features of different images spread over the sphere. Lower is better; −4 is the lowest possible"
        " value. After 7 to 12 epochs, −1.4 to −0.7 is normal. At 0, all images have the same features.",
    ),
    Panel(
        "Dead dimensions",
        (("val/dead_dimensions", "dimensions"),),
        "The number of features that are the same for every image. It should stay near 0.",
        zero=True,
        whole=True,
    ),
    Panel(
        "Correlation of features",
        (("val/off_diagonal", "mean absolute correlation"),),
        "The mean absolute correlation of two features, 0 to 1. It falls slowly: after 7 to 12 epochs, 0.2 to 0.4 is"
        " normal. At 1, all features are the same.",
        zero=True,
    ),
)
OPTIMIZATION = (
    Panel(
        "Spread of the embedding",
        (("train/embedding_std", "standard deviation"),),
        "1 if the embeddings spread in all directions, 0 if every image has the same embedding (collapse). In a short"
        " run it may fall at first: about 0.7 is normal after the 7 epochs of the quickstart.",
        zero=True,
    ),
    Panel(
        "Gradient norm",
        (("train/grad_norm", "norm"),),
        "The norm normally falls. Spikes can precede a loss that diverges.",
        log=True,
    ),
    Panel(
        "Learning rate of weights",
        (("train/lr_weights", "rate"),),
        "The schedule of the config: usually a warm-up, then a cosine.",
    ),
    Panel(
        "Learning rate of biases and norms",
        (("train/lr_biases", "rate"),),
        "The same schedule with another base learning rate.",
    ),
    Panel("Probe loss", (("train/probe_loss", "loss"),), "The loss of the linear probe falls as the features improve."),
    Panel(
        "Throughput",
        (("perf/pairs_per_sec", "pairs per second"),),
        "Training pairs per second, without the time of evaluations. Checkpoints and other programs cause dips.",
        zero=True,
    ),
    Panel(
        "Waiting for data",
        (("perf/data_wait", "share of time"),),
        "The share of time that the step waits for input. If it is far above 0 %, the input limits the speed.",
        percent=True,
        zero=True,
    ),
)


def panels_of_methods(methods: Sequence[type[Objective]]) -> tuple[list[Panel], list[Panel]]:
    """As `method_panels`, for several methods. Methods with the same terms share a plot."""
    terms: dict[tuple, Panel] = {}
    others: dict[str, Panel] = {}
    for method in dict.fromkeys(methods):
        of_terms, of_others = method_panels(method.metrics)
        for panel in of_terms:
            title = f"{panel.title}: {method.title}" if len(set(methods)) > 1 else panel.title
            terms.setdefault(panel.curves, panel._replace(title=title))
        others |= {panel.title: panel for panel in of_others if panel.title not in others}
    return list(terms.values()), list(others.values())


def method_panels(metrics: Mapping[str, Metric]) -> tuple[list[Panel], list[Panel]]:
    """Plots of the metrics of a method: ([one plot of all terms of the loss], [a plot for each other metric])."""
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
    return [Panel("Terms of the loss" if several else curves[0][1], curves, caption, log=several)], others
