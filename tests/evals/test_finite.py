"""Features with NaN or infinity in them: no protocol makes a number of them; while something trains it has none."""

from types import SimpleNamespace

import numpy as np
import pytest

from bt_jax import sharding
from bt_jax.data import device
from bt_jax.data.sources.spans import Span
from bt_jax.embed import shards
from bt_jax.embed.reading import Shard
from bt_jax.evals import accuracy, features, finite, protocols, spectrum


class Alone:
    """A state that is an encoder, with a classifier beside it."""

    params = {"probe": {"kernel": np.ones((4, 3)), "bias": np.zeros(3)}}

    def encoder(self):
        return {}

    def network(self, name):
        return {}


def passes(rows, broken):
    """Starts a pass over images that are their own features; `broken` of them are not finite."""
    x = np.ones((rows, 1, 1, 4), np.float32)
    x[:broken, 0, 0, 1] = [np.nan, np.inf, -np.inf][:broken]
    return lambda: device.eval_batches(x, np.arange(rows) % 3, batch_size=8)


def embed(variables, batch):
    return batch["image"][:, 0, 0]


@pytest.fixture
def frozen():
    return lambda train, val: protocols.FrozenFeatures(
        embed, passes(9, train), passes(5, val), mesh=sharding.make_mesh(), num_classes=3, names=("train", "test[:5]")
    )


def test_no_protocol_makes_a_result_of_them(frozen):
    targets = np.ones((9, 2), np.int8), np.ones((5, 2), np.int8)
    for broken, said in (((2, 0), "2 of the 9 images of train"), ((0, 3), "3 of the 5 images of test")):
        for protocol in (
            protocols.KNN(frozen(*broken), ks=(1,)),
            protocols.LinearProbe(frozen(*broken)),
            protocols.SVM(frozen(*broken), *targets),
            protocols.OnlineProbe(frozen(*broken)),
            protocols.KNN(frozen(*broken).with_embed(embed), ks=(1,)),
        ):
            with pytest.raises(finite.NotFiniteError, match=f"The features of {said}.* are not finite. Take"):
                protocol.run(Alone())
    with pytest.raises(finite.NotFiniteError, match="3 of the 9 images are not finite"):
        features.extract(embed, {}, passes(9, 3)(), sharding.make_mesh())


@pytest.fixture
def spectrum_of(monkeypatch):
    """spectrum_of(eigenvalues, every_steps) -> an evaluator that has measured these, and its state."""

    def made(eigenvalues, every_steps):
        evaluator = object.__new__(spectrum.Spectrum)
        evaluator.every_steps, evaluator._batches = every_steps, lambda: []
        evaluator._accumulate = evaluator._key = evaluator._mesh = evaluator._features = None
        measured = dict.fromkeys(spectrum.NAMES, 0.5), np.array(eigenvalues)
        monkeypatch.setattr(spectrum, "measure", lambda *_: measured)
        return evaluator, Alone()

    return made


def test_the_spectrum_is_none_of_theirs(spectrum_of):
    found, state = spectrum_of([1.0, 0.5], 0)
    assert found.run(state) == {f"val/{name}": 0.5 for name in spectrum.NAMES}
    found, state = spectrum_of([np.nan, np.nan], 0)
    with pytest.raises(finite.NotFiniteError, match="are not finite"):
        found.run(state)


def test_logits_that_are_not_finite_are_no_accuracy():
    """Nothing is larger than NaN: every image would count as right."""
    found = object.__new__(accuracy.Accuracy)
    found._mesh, found._val, found.every_steps = sharding.make_mesh(), passes(5, 2), 7
    found._logits = embed
    with pytest.raises(finite.NotFiniteError, match="2 of the 5 images of the held-out split"):
        found.logits(Alone())
    assert np.isnan(found.run(Alone())["val/top1"])


def test_while_something_trains_there_is_no_number_and_a_warning(frozen, spectrum_of, capsys):
    """It may pass, and the run must be able to continue."""
    spectral, state = spectrum_of([np.nan], 2)
    for evaluator, given, names in (
        (protocols.KNN(frozen(0, 1), ks=(1,), every_steps=2), Alone(), ["val/knn_top1"]),
        (protocols.OnlineProbe(frozen(0, 1), every_steps=2), Alone(), ["val/online_top1"]),
        (spectral, state, [f"val/{name}" for name in spectrum.NAMES]),
    ):
        values = evaluator.run(given)
        assert list(values) == names and np.isnan(list(values.values())).all()
        said = capsys.readouterr().out
        assert said.startswith("WARNING: The features") and f"no {', '.join(names)} of this step" in said


def test_a_probe_that_is_not_finite_has_no_accuracy(frozen):
    state = Alone()
    state.params = {"probe": {"kernel": np.ones((4, 3)), "bias": np.full(3, np.nan)}}
    with pytest.raises(finite.NotFiniteError):
        protocols.OnlineProbe(frozen(0, 0)).run(state)


def test_no_shard_is_written_of_them():
    ((batch),) = passes(5, 2)()
    batch["id"] = np.arange(len(batch["mask"]))
    job = SimpleNamespace(dimension=4, encode=lambda inputs: embed({}, inputs))
    shard = Shard(Span("train", 0, 5), 0, 1)
    with pytest.raises(finite.NotFiniteError, match="2 of the 5 images of shard train/00000-of-00001"):
        shards._rows(job, shard, [(shard, batch, {"image": batch["image"]})], iter(range(5)))
