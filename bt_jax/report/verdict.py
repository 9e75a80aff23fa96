"""What the report says of a run: the verdict, the warnings, and the sentence under a matrix."""

import math

import numpy as np

from bt_jax.objectives import registry
from bt_jax.report.formats import number, percent, plural, short
from bt_jax.report.runs import Run, flat, off_diagonal

ROWS = (("trained", "trained encoder"), ("untrained", "the same encoder untrained"), ("raw_pixels", "raw pixels"))
# Below these, or with more dead dimensions, a run counts as collapsed.
LEAST_SPREAD = 0.05
LEAST_RANK = 2
LEAST_RANK_SHARE = 0.05
CLIMB = (
    1.5  # times the first rank: an untrained ResNet-18 has 24 of 512 on CIFAR-10, and to climb from there is no fault
)
MOST_DEAD_SHARE = 0.5


def verdict(run: Run) -> list[tuple[str, str]]:
    """[(tone, sentence)]; the first is the answer in one sentence, the others are warnings. Tone: good, warn or bad."""
    after = f"After {plural(int(run.steps), 'step')}"
    name = f"{knn_name(run)} top-1"
    trained = run.score("knn_top1", "trained")
    if trained is not None:
        rivals = {words: run.score("knn_top1", row) for row, words in ROWS[1:]}
        rivals = {words: value for words, value in rivals.items() if value is not None}
        gaps = " and ".join(points_between(trained, value, words) for words, value in rivals.items())
        learned = all(round(100 * (trained - value)) > 0 for value in rivals.values())
        text = f"{after} the encoder reaches {percent(trained)} {name} on held-out images"
        said = [("good" if learned else "warn", f"{text}, {gaps}." if gaps else f"{text}.")]
    elif (value := run.last("val/knn_top1")) is not None:
        said = [("good", f"{after} the last measured {name} on held-out images is {percent(value)}.")]
    elif (value := run.last("train/loss")) is not None:
        said = [("warn", f"{after} the loss is {short(value)}; how good the features are was not measured.")]
    else:
        said = [("warn", "No finite loss has been logged, so there is nothing to judge yet.")]
    if lost := non_finite(run):
        # Training skips a step that is not finite, so only a loss that ends so is the main news.
        *_, ended = run.series.get("train/loss", {0: 0.0}).values()
        said.insert(*((1, ("warn", lost)) if math.isfinite(ended) else (0, ("bad", lost))))
    collapsed = [("bad", text) for text in collapse(run)]
    # Collapse is the main news, unless the loss is lost or the final table shows that the encoder has learned anyway.
    second = said[0][0] == "bad" or trained is not None and bool(rivals) and learned
    return (said + collapsed if second else collapsed + said) + hints(run)


def collapse(run: Run) -> list[str]:
    """Sentences that say in which way the run has collapsed; none where it has not, or where nothing tells."""
    said = []
    spread = run.last("train/embedding_std")
    if spread is not None and spread < LEAST_SPREAD:
        said.append(
            f"The embedding has collapsed: its spread is {short(spread)}, where 1 is all directions and 0 one point, so"
            " every image looks the same to the encoder."
        )
    rank, dead = run.last("val/rank"), run.last("val/dead_dimensions")
    spectrum = run.pictures.get("spectrum_trained", run.pictures.get("spectrum_untrained"))
    count = 0 if spectrum is None else spectrum.size
    few = rank is not None and rank < LEAST_RANK_SHARE * count and not climbs(run, "val/rank")
    if few or rank is not None and rank < LEAST_RANK:
        out_of = f" of {count:,}" if count else ""
        said.append(
            f"The features have collapsed: they use about {short(rank)}{out_of} dimensions, so images differ in next to"
            " nothing for the encoder."
        )
    if dead is not None and count and dead > MOST_DEAD_SHARE * count:
        said.append(f"Most of the features are dead: {dead:,.0f} of {count:,} dimensions are the same for every image.")
    return said


def climbs(run: Run, metric: str) -> bool:
    """Whether the newest value is well above the first."""
    finite = [value for value in run.series.get(metric, {}).values() if math.isfinite(value)]
    return bool(finite) and finite[-1] >= CLIMB * finite[0]


def points_between(trained: float, other: float, name: str) -> str:
    points = round(100 * (trained - other))
    return (
        f"level with {name}"
        if points == 0
        else f"{plural(abs(points), 'point')} {'above' if points > 0 else 'below'} {name}"
    )


def knn_name(run: Run) -> str:
    """Such as "200-NN", by the key evals.knn_k of the config; "kNN" where it is not known."""
    return f"{k}-NN" if (k := flat(run.config).get("evals.knn_k")) else "kNN"


def non_finite(run: Run) -> str:
    """A sentence about the NaN and infinities among the logged values, or nothing."""
    lost = {
        metric: [step for step, value in points.items() if not math.isfinite(value)]
        for metric, points in run.series.items()
    }
    lost = {metric: steps for metric, steps in lost.items() if steps}
    if not lost:
        return ""
    parts = [
        f"{metric} is not finite (NaN or infinite) at {plural(len(steps), 'logged step')}, first at step"
        f" {steps[0]:,.0f}"
        for metric, steps in lost.items()
    ]
    fix = " Lower the learning rate or lengthen the warm-up." if "train/loss" in lost else ""
    return f"{'; '.join(parts)}.{fix}"


def hints(run: Run) -> list[tuple[str, str]]:
    """Warnings that can be read off the curves."""
    said = []
    for name, metric in registry.of_run(run.config).metrics.items():
        value = run.last(f"train/{name}")
        if metric.warning and value is not None and value < metric.warning[0]:
            said.append(("warn", metric.warning[1].format(value)))
    losses = [value for value in run.series.get("train/loss", {}).values() if math.isfinite(value)]
    if len(losses) > 3 and losses[-1] >= losses[0]:
        said.append(("warn", f"The loss did not fall: {short(losses[0])} at first, {short(losses[-1])} at the end."))
    if not run.summary:
        epoch, total = run.last("epoch"), number(run.config.get("total_epochs"))
        where = f", epoch {epoch:.1f} of {total:g}" if epoch is not None and total else ""
        said.append(
            (
                "warn",
                "The run is still going or was stopped: the final table, summary.json, has not been"
                f" written. Everything here is as of step {run.steps:,.0f}{where}.",
            )
        )
    return said


def in_words(c: np.ndarray) -> str:
    diagonal, off = np.diag(c)[np.isfinite(np.diag(c))], off_diagonal(c)
    lost = int((~np.isfinite(c)).sum())
    if not diagonal.size or not off.size:
        return "Not one finite value on the diagonal or off it."
    typical = np.sqrt((off**2).mean())
    text = f"Mean diagonal {diagonal.mean():.2f}; a typical off-diagonal value (root mean square) {typical:.2f}."
    return text + (f" {plural(lost, 'value')} not finite, in magenta." if lost else "")
