"""The origin of the final numbers and pictures: rows of the table, intervals, matrices, frames."""

from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bt_jax import augment
from bt_jax.augment import recipes
from bt_jax.config import keys
from bt_jax.data.sources.base import Source
from bt_jax.evals import confidence, correlation, features, pictures
from bt_jax.objectives import barlow_twins
from bt_jax.report import write
from bt_jax.tasks import evaluate, finetune, pretrain


class State(SimpleNamespace):
    """A state by name, whose encoder has that name too."""

    def encoder(self):
        return self.name


BEFORE, AFTER = State(name="before", step=0), State(name="after", step=40)


@pytest.fixture
def concluded(monkeypatch):
    """What `write.results` is given."""
    found = {}
    monkeypatch.setattr(write, "results", lambda folder, summary, shown: found.update(summary=summary, shown=shown))
    return found


@pytest.fixture
def finish(monkeypatch, tmp_path, concluded):
    """finish(**config) -> (summary and pictures, rows of the table as (features by, encoder)) of a pretraining run."""
    monkeypatch.setattr(pretrain, "_pictures", lambda this, before, after: {"c": (before.name, after.name)})
    extracted = "extract_with_thumbnails"
    monkeypatch.setattr(features, extracted, lambda embed, variables, images, mesh: (embed, variables, None))
    monkeypatch.setattr(pictures, "map_and_neighbours", lambda *images: {"map": images})
    monkeypatch.setattr(features, "raw_pixels", lambda *_: "pixels")
    rows = {}

    def scores(this, compared):
        rows.update({name: (frozen.embed, state.name) for name, (frozen, state) in compared.items()})
        table = dict.fromkeys(compared, 0.5)
        return {"knn_top1": table, "knn_k": 9, "linear_top1": table, "predicted": (np.array([1, 0]), np.array([1, 1]))}

    monkeypatch.setattr(pretrain, "_final_scores", scores)

    def run(**values):
        config = keys.pretrain()
        config.update_from_flattened_dict(values)
        frozen = SimpleNamespace(embed="net", with_embed=lambda embed: SimpleNamespace(embed=embed))
        this = SimpleNamespace(
            training=SimpleNamespace(
                settings=config, folder=tmp_path, started=0.0, feed=SimpleNamespace(passes=lambda *_: list)
            ),
            fresh=lambda: BEFORE,
            frozen=frozen,
            spectrum=SimpleNamespace(measure=lambda state: ({"rank": state.step}, f"spectrum {state.name}")),
            embed="net",
            picture_split="test",
            class_names=["a", "b"],
            mesh=None,
            recipe=None,
            smoke="7 of 9 images",
        )
        rows.clear()
        pretrain._finish(this, AFTER)
        return concluded, dict(rows)

    return run


def test_rows_of_the_table_belong_to_the_encoders_they_name(finish, capsys):
    found, rows = finish()
    assert rows == {"trained": ("net", "after"), "untrained": ("net", "before"), "raw_pixels": ("pixels", "after")}
    summary, shown = found["summary"], found["shown"]
    assert (
        summary["smoke"] == "7 of 9 images"
        and summary["steps"] == 40
        and summary["unlabelled"] == {"rank": 40}
        and "predicted" not in summary
    )
    assert (shown["spectrum_trained"], shown["spectrum_untrained"]) == ("spectrum after", "spectrum before")
    assert shown["map"] == ("net", "after", None) and shown["c"] == ("before", "after")
    np.testing.assert_array_equal(shown["confusion"], [[0, 0], [1, 1]])  # rows are the true classes
    said = capsys.readouterr().out
    assert "same encoder, untrained" in said and " 9-NN   linear probe" in said
    assert "smoke test: 7 of 9 images; it tests the set-up, and its numbers mean nothing" in said
    _, rows = finish(**{"data.on_device": False})
    assert set(rows) == {"trained", "untrained"}  # streamed images are of many sizes
    found, rows = finish(**{"evals.final": False, "evals.spectrum_images": 0})
    assert rows == {} and "knn_top1" not in found["summary"] and "unlabelled" not in found["summary"]


def test_scores_belong_to_their_row(monkeypatch):
    """Intervals too. The mistakes are those of the first row."""
    right = {"trained": np.array([1, 1, 1, 0]), "untrained": np.array([1, 0, 0, 0])}

    class KNN:
        def __init__(self, frozen, **options):
            pass

        def run(self, state):
            return {"val/knn_top1": right[state].mean() / 2, "val/knn_top1_k1": 9.0}

        def ks(self, state):
            return (9, 5)

    class LinearProbe(KNN):
        def fit(self, state):
            return SimpleNamespace(predicted=right[state]), np.ones(4, int)

    monkeypatch.setattr(pretrain.protocols, "KNN", KNN)
    monkeypatch.setattr(pretrain.protocols, "LinearProbe", LinearProbe)
    this = SimpleNamespace(training=SimpleNamespace(settings=keys.pretrain()))
    found = pretrain._final_scores(this, {name: (None, name) for name in right})
    assert found["knn_top1"] == {"trained": 0.375, "untrained": 0.125} and found["knn_k"] == 9
    assert found["linear_top1"] == {"trained": 0.75, "untrained": 0.25}
    assert found["linear_interval"] == {name: confidence.interval(value == 1) for name, value in right.items()}
    assert found["predicted"][0] is right["trained"]


def test_pictures_before_and_after_have_the_right_names(monkeypatch):
    """The views have the original pixels."""
    rng = np.random.default_rng(0)
    matrices = {"before": rng.uniform(-1, 1, (6, 6)), "after": 0.1 * rng.uniform(-1, 1, (6, 6))}
    recipe = recipes.Recipe(4, recipes.View(), recipes.View(), (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    image = rng.integers(0, 256, (20, 4, 4, 3), np.uint8)

    def two_views(key, images, recipe, *, ids, sizes):
        plain = augment.normalise(images.astype(jnp.float32) / 255, recipe)
        return plain, augment.normalise(1 - images.astype(jnp.float32) / 255, recipe)

    monkeypatch.setattr(augment, "two_views", two_views)
    history = {"c_steps": np.array([2])}
    this = SimpleNamespace(
        sample={"image": image, "id": np.arange(20)},
        recipe=recipe,
        training=SimpleNamespace(settings=keys.pretrain()),
        correlation=SimpleNamespace(matrix=lambda state: matrices[state.name], history=lambda: history),
    )
    shown = pretrain._pictures(this, BEFORE, AFTER)
    for name in ("before", "after"):
        np.testing.assert_array_equal(shown[f"c_{name}"], matrices[name])
    assert shown["off_after"].sum() == shown["off_before"].sum() == 30
    middle = len(shown["off_after"]) // 2
    assert shown["off_after"][middle - 5 : middle + 6].sum() == 30 > shown["off_before"][middle - 5 : middle + 6].sum()
    np.testing.assert_allclose(shown["redundant_value"], pictures.redundant_pairs(matrices["after"])["redundant_value"])
    np.testing.assert_allclose(shown["view1"].astype(int), image[:16].astype(int), atol=1)
    np.testing.assert_allclose(shown["view2"].astype(int), 255 - image[:16].astype(int), atol=1)
    np.testing.assert_array_equal(shown["originals"], image[:16])
    assert shown["c_steps"] is history["c_steps"]


def test_the_matrix_of_the_pictures_equals_that_of_the_loss():
    rng = np.random.default_rng(0)
    z1, z2 = (rng.standard_normal((9, 5)).astype(np.float32) for _ in range(2))
    c = jax.jit(barlow_twins.cross_correlation)(z1, z2)
    loss, parts = jax.jit(partial(barlow_twins.barlow_twins, lambd=0.5))(z1, z2)
    np.testing.assert_allclose(np.diag(c).mean(), parts["diag_mean"], rtol=1e-4)
    off = np.square(c[~np.eye(5, dtype=bool)]).sum()
    np.testing.assert_allclose(np.square(1 - np.diag(c)).sum() + 0.5 * off, loss, rtol=1e-4)


def test_the_film_is_in_the_order_of_steps(tmp_path):
    """Not in the order of file names, in which 1000 comes before 200."""
    film = correlation.CrossCorrelation.__new__(correlation.CrossCorrelation)
    film._folder = tmp_path
    assert film.history() == {}
    for step in (1000, 200, 30, 4000):
        np.save(tmp_path / f"{step}.npy", np.full((2, 2), step / 4000, np.float16))
    found = film.history()
    assert found["c_steps"].tolist() == [30, 200, 1000, 4000]
    np.testing.assert_allclose(found["c_over_time"][:, 0, 0], found["c_steps"] / 4000, rtol=1e-3)


def test_the_interval_of_finetuning_leaves_out_images_without_a_label(concluded, tmp_path):
    logits = np.zeros((9, 3))
    logits[np.arange(9), [0, 1, 2, 0, 1, 2, 0, 1, 2]] = 1.0
    labels = np.array([0, 1, 2, 0, 1, 0, -1, -1, -1])
    feed = SimpleNamespace(images=64)
    this = SimpleNamespace(
        accuracy=SimpleNamespace(logits=lambda state: (logits, labels)),
        training=SimpleNamespace(feed=feed, started=0.0, folder=tmp_path),
        class_names=["a", "b", "c"],
        smoke="",
    )
    finetune._finish(this, AFTER)
    summary = concluded["summary"]
    assert summary["top1"] == 5 / 6 and summary["train_images"] == 64 and summary["steps"] == 40
    assert summary["top1_interval"] == list(confidence.interval(np.arange(6) < 5))
    np.testing.assert_array_equal(concluded["shown"]["confusion"], [[2, 0, 1], [0, 2, 0], [0, 0, 1]])


def test_targets_of_slices_belong_to_their_images():
    class Several(Source):
        name, splits, num_classes = "several", {"train": 8, "test": 5}, 2

        def targets(self, base):
            return np.arange(2 * self.splits[base]).reshape(-1, 2).astype(np.int8)

    train, val = evaluate._targets(Several(), ["train[2:5]", "test[-2:]"])
    np.testing.assert_array_equal(train[:, 0], [4, 6, 8])
    np.testing.assert_array_equal(val[:, 0], [6, 8])
