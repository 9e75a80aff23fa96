"""The results of an evaluation or a fine-tuning: the opening sentence and the table of accuracies."""

import re

from bt_jax.config.arguments import flatten
from bt_jax.report.formats import number, percent, plural, short
from bt_jax.report.page import bar, esc, section, table
from bt_jax.report.runs import Run, flat

KINDS = {"evaluate": "Evaluation of an encoder", "finetune": "A classifier on an encoder"}
UNLABELLED_VIEWS = "views by crop and flip"  # `from_encoder.view_recipe`; the report of pretraining has other views
UNLABELLED = {
    "rank": "effective rank of the features",
    "spectrum_slope": "slope of the spectrum",
    "alignment": "alignment of two views",
    "uniformity": "uniformity of images",
    "dead_dimensions": "dead dimensions",
    "off_diagonal": "mean correlation of two features",
}


def task(run: Run) -> str:
    """The task of the run's config: "evaluate", "finetune" or "pretrain"."""
    return run.config.get("task") if run.config.get("task") in KINDS else "pretrain"


def accuracies(summary: dict) -> list[tuple[str, float, str]]:
    """[(protocol, share, interval in words)] of a summary.json, the headline first."""
    values = {key: number(value) for key, value in flatten(summary).items()}
    if isinstance(ends := summary.get("top1_interval"), list):
        values |= dict(zip(("top1_low", "top1_high"), map(number, ends), strict=False))

    def interval(low, high):
        return f"{percent(values[low])} to {percent(values[high])}" if low in values and high in values else "–"

    rows = []
    if "linear.linear_top1" in values:
        rows.append(("linear probe", values["linear.linear_top1"], interval("linear.linear_low", "linear.linear_high")))
    for key, value in values.items():
        if match := re.fullmatch(r"knn\.knn_top1_k(\d+)_t([\d.]+)", key):
            headline = value == values["knn.knn_top1"] and not any("NN" in row[0] for row in rows)
            words = interval("knn.knn_low", "knn.knn_high") if headline else "–"
            rows.append((f"{match[1]}-NN, temperature {match[2]}", value, words))
    if "knn.knn_top1" in values and not any("NN" in row[0] for row in rows):
        rows.insert(0, ("nearest neighbours", values["knn.knn_top1"], "–"))
    if "svm.svm_map" in values:
        rows.append(("SVMs, mean average precision", values["svm.svm_map"], "–"))
    if "top1" in values:
        rows.append(("top-1", values["top1"], interval("top1_low", "top1_high")))
    if "top5" in values:
        rows.append(("top-5", values["top5"], "–"))
    return [row for row in rows if row[1] is not None]


def results_verdict(run: Run) -> tuple[str, str]:
    """(tone, sentence) with the main accuracy; `verdict` explains the tone."""
    rows, about = accuracies(run.summary), flat(run.config).get("encoder", "the encoder")
    if task(run) == "finetune":
        trained = flat(run.config).get("train", "classifier")
        what = (
            "a linear classifier on the frozen encoder"
            if trained in ("classifier", "head")
            else f"fine-tuning ({trained})"
        )
        many = number(run.summary.get("train_images"))
        what += f" from {plural(round(many), 'image')}" if many else ""
    else:
        what = f"a {rows[0][0]}" if rows else ""
    spectrum = run.summary.get("spectrum")
    if isinstance(spectrum, dict) and "rank" in spectrum and number(spectrum["rank"]) is None:  # by an earlier version
        return "bad", f"The features of {about} are not finite. Its accuracies have no meaning."
    if not rows:
        return "warn", f"summary.json has no accuracy of {about} yet."
    name, value, interval = rows[0]
    uncertainty = f", 95 % interval {interval}" if interval != "–" else ""
    measure = "mean average precision" if "precision" in name else "of the held-out images are classified correctly"
    return "plain", f"{percent(value)} {measure} by {what} on {about}{uncertainty}."


def results_section(run: Run) -> str:
    rows = [[esc(name), bar(value, "trained"), interval] for name, value, interval in accuracies(run.summary)]
    spectrum = run.summary.get("spectrum")
    body = table(["protocol", "accuracy", "95 % interval"], rows) if rows else ""
    if isinstance(spectrum, dict):
        metrics = [
            [esc(words), short(number(spectrum.get(key)))] for key, words in UNLABELLED.items() if key in spectrum
        ]
        body += table([f"metric without labels, {UNLABELLED_VIEWS}", ""], metrics)
    if not body:
        return section("Result", "<p>No table: summary.json has no accuracy.</p>")
    lead = (
        "Accuracies on held-out images. The interval accounts for the random choice of the test images, but not for"
        " the choice of the seed."
    )
    return section("Result", body, lead)
