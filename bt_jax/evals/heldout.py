"""What a run is judged by on held-out images: monitors while it trains, and a table at the end.

Training images are the neighbours and train the probe; held-out images are only classified.
"""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from bt_jax.evals import features, knn, probe
from bt_jax.state import TrainState

Batches = Callable[[], Iterable[dict[str, np.ndarray]]]


class HeldOut:
    """kNN and the online probe on held-out images, every so many steps.

    Args:
      embed: of `features.make_embed`.
      train, val: functions that start a pass over labelled batches.
      every_steps: its schedule; 0 is never.
    """

    def __init__(
        self,
        embed: features.Embed,
        train: Batches,
        val: Batches,
        *,
        mesh: Mesh,
        num_classes: int,
        k: int,
        temperature: float,
        every_steps: int,
    ):
        self.embed, self._train, self._val, self._mesh = embed, train, val, mesh
        self._knn = {"k": k, "temperature": temperature, "num_classes": num_classes}
        self.every_steps = every_steps

    def run(self, state: TrainState) -> dict[str, float]:
        """{"val/knn_top1", "val/online_top1"}, fractions."""
        bank, queries = self._features(self.embed, state.encoder())
        logits = queries[0] @ np.asarray(state.params["probe"]["kernel"]) + np.asarray(state.params["probe"]["bias"])
        return {
            "val/knn_top1": knn.top1(*bank, *queries, **self._knn),
            "val/online_top1": float((logits.argmax(axis=1) == queries[1]).mean()),
        }

    def table(self, encoders: dict[str, tuple[features.Embed, Any]]) -> dict[str, dict[str, float]]:
        """{"knn_top1": {name: …}, "linear_top1": {name: …}} for named pairs of embed function and variables."""
        found: dict[str, dict[str, float]] = {"knn_top1": {}, "linear_top1": {}}
        for name, (embed, variables) in encoders.items():
            bank, queries = self._features(embed, variables)
            found["knn_top1"][name] = knn.top1(*bank, *queries, **self._knn)
            found["linear_top1"][name] = probe.top1(*bank, *queries, num_classes=self._knn["num_classes"])
        return found

    def _features(self, embed, variables):
        return tuple(features.extract(embed, variables, start(), self._mesh) for start in (self._train, self._val))


def correlation_picture(cross: jax.Array, limit: int = 128) -> np.ndarray:
    """At most `limit` evenly spaced rows and columns of a (d, d) matrix, float32: enough for a heat map."""
    keep = np.linspace(0, len(cross) - 1, min(limit, len(cross))).astype(np.int64)
    return np.asarray(jnp.asarray(cross, jnp.float32))[np.ix_(keep, keep)]
