"""Features with NaN or infinity: evaluations fail, and evaluators during training return NaN with a warning."""

from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest

from bt_jax import sharding
from bt_jax.data import device
from bt_jax.data.sources.spans import Span
from bt_jax.embed import shards
from bt_jax.embed.reading import Shard
from bt_jax.evals import accuracy, features, finite, protocols, spectrum


class EncoderState:
    """A state with an encoder and an online probe."""

    params = {"probe": {"kernel": np.ones((4, 3)), "bias": np.zeros(3)}}

    def encoder(self):
        return {}

    def network(self, name):
        return {}


def passes(rows, non_finite):
    """Starts a pass over images that equal their features; a number of them is not finite."""
    x = np.ones((rows, 1, 1, 4), np.float32)
    x[:non_finite, 0, 0, 1] = [np.nan, np.inf, -np.inf][:non_finite]
    return lambda: device.eval_batches(x, np.arange(rows) % 3, batch_size=8)


def embed(variables, batch):
    return batch["image"][:, 0, 0]


@pytest.fixture
def frozen():
    return lambda train, val: protocols.FrozenFeatures(
        embed, passes(9, train), passes(5, val), mesh=sharding.make_mesh(), num_classes=3, names=("train", "test[:5]")
    )


def test_every_protocol_fails(frozen):
    targets = np.ones((9, 2), np.int8), np.ones((5, 2), np.int8)
    for counts, images in (((2, 0), "2 of the 9 images of train"), ((0, 3), "3 of the 5 images of test")):
        for protocol in (
            protocols.KNN(frozen(*counts), ks=(1,)),
            protocols.LinearProbe(frozen(*counts)),
            protocols.SVM(frozen(*counts), *targets),
            protocols.OnlineProbe(frozen(*counts)),
            protocols.KNN(frozen(*counts).with_embed(embed), ks=(1,)),
        ):
            with pytest.raises(finite.NotFiniteError, match=f"The features of {images}.* are not finite. Use"):
                protocol.run(EncoderState())
    with pytest.raises(finite.NotFiniteError, match="3 of the 9 images are not finite"):
        features.extract(embed, {}, passes(9, 3)(), sharding.make_mesh())


@pytest.fixture
def spectrum_of(monkeypatch):
    """spectrum_of(eigenvalues, every_steps) -> (an evaluator with this result, its state)."""

    def make(eigenvalues, every_steps):
        evaluator = object.__new__(spectrum.Spectrum)
        evaluator.every_steps, evaluator._batches = every_steps, lambda: []
        evaluator._accumulate = evaluator._key = evaluator._mesh = evaluator._features = None
        result = dict.fromkeys(spectrum.NAMES, 0.5), np.array(eigenvalues)
        monkeypatch.setattr(spectrum, "measure", lambda *_: result)
        return evaluator, EncoderState()

    return make


def test_the_spectrum_fails(spectrum_of):
    evaluator, state = spectrum_of([1.0, 0.5], 0)
    assert evaluator.run(state) == {f"val/{name}": 0.5 for name in spectrum.NAMES}
    evaluator, state = spectrum_of([np.nan, np.nan], 0)
    with pytest.raises(finite.NotFiniteError, match="are not finite"):
        evaluator.run(state)


def test_logits_that_are_not_finite_have_no_accuracy():
    """No logit is larger than NaN: every image would count as correct."""
    evaluator = object.__new__(accuracy.Accuracy)
    evaluator._mesh, evaluator._val, evaluator.every_steps = sharding.make_mesh(), passes(5, 2), 7
    evaluator._logits = embed
    with pytest.raises(finite.NotFiniteError, match="2 of the 5 images of the held-out split"):
        evaluator.logits(EncoderState())
    assert np.isnan(evaluator.run(EncoderState())["val/top1"])


def test_during_training_the_metrics_are_nan_with_a_warning(frozen, spectrum_of, capsys):
    """The features may be finite again later: the run continues."""
    spectral, spectral_state = spectrum_of([np.nan], 2)
    for evaluator, state, names in (
        (protocols.KNN(frozen(0, 1), ks=(1,), every_steps=2), EncoderState(), ["val/knn_top1"]),
        (protocols.OnlineProbe(frozen(0, 1), every_steps=2), EncoderState(), ["val/online_top1"]),
        (spectral, spectral_state, [f"val/{name}" for name in spectrum.NAMES]),
    ):
        values = evaluator.run(state)
        assert list(values) == names and np.isnan(list(values.values())).all()
        output = capsys.readouterr().err
        assert output.startswith("WARNING: The features") and f"This step has no {', '.join(names)}." in output


def test_a_probe_that_is_not_finite_has_no_accuracy(frozen):
    state = EncoderState()
    state.params = {"probe": {"kernel": np.ones((4, 3)), "bias": np.full(3, np.nan)}}
    with pytest.raises(finite.NotFiniteError):
        protocols.OnlineProbe(frozen(0, 0)).run(state)


def test_no_shard_is_written():
    ((batch),) = passes(5, 2)()
    batch["id"] = np.arange(len(batch["mask"]))
    job = SimpleNamespace(dimension=4, encode=lambda inputs: embed({}, inputs))
    shard = Shard(Span("train", 0, 5), 0, 1)
    with pytest.raises(finite.NotFiniteError, match="2 of the 5 images of shard train/00000-of-00001"):
        shards._rows(job, shard, [(shard, batch, {"image": batch["image"]})], lambda images: nullcontext())
