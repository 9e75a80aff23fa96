"""The verdict on a run: its opening sentence and its warnings. Also the sentence below a matrix."""

import math

import numpy as np

from bt_jax.objectives import registry
from bt_jax.report.formats import number, percent, plural, short, signed
from bt_jax.report.runs import Run, flat, off_diagonal

ROWS = (("trained", "trained encoder"), ("untrained", "the same encoder untrained"), ("raw_pixels", "raw pixels"))
# Below one of the minima, or above the maximum, a run counts as collapsed.
MIN_SPREAD = 0.05
MIN_RANK = 2
MIN_RANK_SHARE = 0.05  # of the number of features
MAX_DEAD_SHARE = 0.5
# A rank that has grown by this factor may be below MIN_RANK_SHARE, but not below MIN_RANK: an untrained ResNet-18
# starts at 24 of 512 on CIFAR-10.
RISE = 1.5


def verdict(run: Run) -> list[tuple[str, str]]:
    """[(tone, sentence)]: the main result first, then warnings.

    A tone is "good", "plain", "warn" or "bad". It is "good" only if the final scores prove that the encoder has
    learned. The scores of a `:smoke` run prove nothing.
    """
    if smoke := smoke_sentence(run):
        warning = non_finite_warning(run)
        return [("plain", smoke), *([("warn", warning)] if warning else []), *unfinished_warning(run)]
    after = f"After {plural(int(run.steps), 'step')}"
    name = f"{knn_name(run)} top-1"
    trained = run.score("knn_top1", "trained")
    if trained is not None:
        rivals = {words: run.score("knn_top1", row) for row, words in ROWS[1:]}
        rivals = {words: value for words, value in rivals.items() if value is not None}
        gaps = " and ".join(difference_in_points(trained, value, words) for words, value in rivals.items())
        learned = bool(rivals) and all(round(100 * (trained - value)) > 0 for value in rivals.values())
        text = f"{after} the encoder reaches {percent(trained)} {name} on held-out images"
        tone = "good" if learned else "warn" if rivals else "plain"
        sentences = [(tone, f"{text}, {gaps}." if gaps else f"{text}.")]
    elif (value := run.last("val/knn_top1")) is not None:
        sentences = [("plain", f"{after} the last measured {name} on held-out images is {percent(value)}.")]
    elif (value := run.last("train/loss")) is not None:
        sentences = [("warn", f"{after} the loss is {short(value)}. The run has no accuracy of the features.")]
    else:
        sentences = [("warn", "The run has logged no finite loss yet.")]
    if warning := non_finite_warning(run):
        # Training skips steps with such a loss. The warning comes first only if the run ends with one.
        *_, last = run.series.get("train/loss", {0: 0.0}).values()
        sentences.insert(*((1, ("warn", warning)) if math.isfinite(last) else (0, ("bad", warning))))
    collapsed = [("bad", sentence) for sentence in collapse_warnings(run)]
    # A collapse comes first, unless the loss is not finite or the final scores prove that the encoder has learned.
    second = sentences[0][0] in ("bad", "good")
    return (sentences + collapsed if second else collapsed + sentences) + curve_warnings(run)


def collapse_warnings(run: Run) -> list[str]:
    """Sentences about a collapse of the embedding or the features; empty if the metrics have no sign of one."""
    sentences = []
    spread = run.last("train/embedding_std")
    if spread is not None and spread < MIN_SPREAD:
        sentences.append(
            f"The embedding has collapsed: its spread is {short(spread)}. It is 1 if the embeddings spread in all"
            " directions, and 0 if they are one point."
        )
    rank, dead = run.last("val/rank"), run.last("val/dead_dimensions")
    spectrum = run.pictures.get("spectrum_trained", run.pictures.get("spectrum_untrained"))
    count = 0 if spectrum is None else spectrum.size
    few = rank is not None and rank < MIN_RANK_SHARE * count and not is_rising(run, "val/rank")
    if few or rank is not None and rank < MIN_RANK:
        out_of = f" of {count:,}" if count else ""
        sentences.append(
            f"The features have collapsed: they use about {short(rank)}{out_of} dimensions. The encoder hardly"
            " distinguishes images."
        )
    if dead is not None and count and dead > MAX_DEAD_SHARE * count:
        sentences.append(
            f"Most of the features are dead: {dead:,.0f} of {count:,} dimensions are the same for every image."
        )
    return sentences


def is_rising(run: Run, metric: str) -> bool:
    """Whether the newest value is at least RISE times the first."""
    finite = [value for value in run.series.get(metric, {}).values() if math.isfinite(value)]
    return bool(finite) and finite[-1] >= RISE * finite[0]


def difference_in_points(trained: float, other: float, name: str) -> str:
    """A comparison such as "31 points above raw pixels"."""
    points = round(100 * (trained - other))
    return (
        f"level with {name}"
        if points == 0
        else f"{plural(abs(points), 'point')} {'above' if points > 0 else 'below'} {name}"
    )


def knn_name(run: Run) -> str:
    """A name such as "200-NN", from the summary, or from the key evals.knn_k of the config; "kNN" if both have none."""
    k = run.summary.get("knn_k") or flat(run.config).get("evals.knn_k")
    return f"{k}-NN" if k else "kNN"


def non_finite_warning(run: Run) -> str:
    """A sentence about NaN and infinities among the logged values; empty if there are none."""
    non_finite = {
        metric: [step for step, value in points.items() if not math.isfinite(value)]
        for metric, points in run.series.items()
    }
    non_finite = {metric: steps for metric, steps in non_finite.items() if steps}
    if not non_finite:
        return ""
    parts = [
        f"{metric} is not finite (NaN or infinite) at {plural(len(steps), 'logged step')}, first at step"
        f" {steps[0]:,.0f}"
        for metric, steps in non_finite.items()
    ]
    fix = " Lower the learning rate or lengthen the warm-up." if "train/loss" in non_finite else ""
    return f"{'; '.join(parts)}.{fix}"


def curve_warnings(run: Run) -> list[tuple[str, str]]:
    """Warnings about the last metrics of the method, a loss that did not fall, and a run that is not finished."""
    warnings = []
    for name, metric in registry.method_of_run(run.config).metrics.items():
        value = run.last(f"train/{name}")
        if metric.warning and value is not None and value < metric.warning[0]:
            warnings.append(("warn", metric.warning[1].format(value)))
    losses = [value for value in run.series.get("train/loss", {}).values() if math.isfinite(value)]
    if len(losses) > 3 and losses[-1] >= losses[0]:
        warnings.append(
            ("warn", f"The loss did not fall: {short(losses[0])} at first, {short(losses[-1])} at the end.")
        )
    return warnings + unfinished_warning(run)


def unfinished_warning(run: Run) -> list[tuple[str, str]]:
    """A warning that the run is not finished; empty if it is."""
    if run.summary:
        return []
    epoch, total = run.last("epoch"), number(run.config.get("total_epochs"))
    progress = f", epoch {epoch:.1f} of {total:g}" if epoch is not None and total else ""
    text = f"The run is not finished: it has no final scores. This report covers it up to step {run.steps:,.0f}"
    return [("warn", f"{text}{progress}.")]


def smoke_sentence(run: Run) -> str:
    """A sentence that the numbers of a run of the `:smoke` form mean nothing; "" for any other run."""
    if run.config.get("smoke") is not True:
        return ""
    return f"Smoke test: {run.summary.get('smoke') or 'few images'}. It tests the set-up, and its numbers mean nothing."


def describe_matrix(c: np.ndarray) -> str:
    """A sentence with the mean of the diagonal and the typical size of the other values."""
    diagonal, off = np.diag(c)[np.isfinite(np.diag(c))], off_diagonal(c)
    non_finite = int((~np.isfinite(c)).sum())
    if not diagonal.size or not off.size:
        return "The diagonal or the rest of the matrix has no finite value."
    typical = np.sqrt((off**2).mean())
    text = f"Mean diagonal {signed(diagonal.mean())}; a typical off-diagonal value (root mean square) {typical:.2f}."
    return text + (f" Not finite: {plural(non_finite, 'value')}, drawn in magenta." if non_finite else "")
