"""Runs the program on images in memory and records its calls, to check which function gets each config key."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np

from bt_jax import models, randomness
from bt_jax.data import device, feeds
from bt_jax.data.sources.base import Source
from bt_jax.data.sources.spans import Arrays
from bt_jax.evals import features, protocols
from bt_jax.run_folder import opening


class Squares(Source):
    """Images whose grey level is their id and whose label is its last digit, in the splits "learn" and "look"."""

    name, splits, num_classes, class_names = "squares", {"learn": 48, "look": 26}, 10, list("0123456789")

    def arrays(self, split, broken=None, *, channels=3):
        span = self.span(split)
        ids = np.arange(span.start, span.stop)
        images = np.broadcast_to(ids[:, None, None, None], (len(ids), 8, 8, channels)).astype(np.uint8)
        return Arrays(images, (ids % 10).astype(np.int32))

    def labels(self, base):
        return self.arrays(base).labels


class Mean(models.Net):
    """A network that is quick to trace: a linear layer on the mean pixel of an image, or on three features."""

    def __init__(self):
        super().__init__("mean", {"dtype": "float32", "widths": [8]}, 8, None, None)

    def init(self, key):
        return {"params": {"layer": {"kernel": jax.random.normal(key, (3, 8))}}, "batch_stats": {"m": jnp.zeros(8)}}

    def apply(self, variables, images, *, train):
        pixels = images.mean((1, 2)) if images.ndim == 4 else images
        h = pixels[:, :3] @ variables["params"]["layer"]["kernel"]
        return (h, variables["batch_stats"]) if train else h


class Calls:
    """A record of the arguments of calls to watched functions."""

    def __init__(self, patch):
        self.of, self._patch = {}, patch

    def watch(self, where, name, result=None):
        """Records the calls of the function `name` of a module. If `result` is given, it replaces the function."""
        function, calls = getattr(where, name), self.of.setdefault(name, [])
        signature = inspect.signature(function)

        def called(*arguments, **options):
            bound = signature.bind(*arguments, **options)
            bound.apply_defaults()
            calls.append(dict(bound.arguments))
            return result(*arguments, **options) if result else function(*arguments, **options)

        self._patch.setattr(where, name, called)

    def all(self, name, argument):
        """The values of an argument in all calls, in order."""
        return [call[argument] for call in self.of[name]]

    def one(self, name, argument):
        """The value of an argument in the only call."""
        (value,) = self.all(name, argument)
        return value


class Enough(Exception):  # noqa: N818  (no error: it ends a call early)
    """Stops a run after everything is built."""


def stop(*arguments, **options):
    raise Enough


def watched(patch):
    """Records the calls that open data and make evaluators; the data are images in memory."""
    calls = Calls(patch)
    calls.watch(feeds, "open_source", lambda *_, **__: Squares())
    calls.watch(feeds, "UnreadableImages")
    calls.watch(device, "eval_batches")
    calls.watch(features, "make_embed")
    calls.watch(protocols, "KNN")
    calls.watch(randomness, "stream")
    calls.watch(opening, "check_same_run", lambda *_, **__: None)
    original = feeds.make_feed

    def make_feed(*arguments):
        """Makes a feed that records its passes over splits."""
        feed = calls.feed = original(*arguments)
        passes_of = feed.passes

        def passes(split, limit):
            calls.of.setdefault("passes", []).append({"split": split, "limit": limit})
            start = passes_of(split, limit)
            next(iter(start()))  # so that the call of `eval_batches` is on record
            return start

        feed.passes = passes
        return feed

    patch.setattr(feeds, "make_feed", make_feed)
    return calls
