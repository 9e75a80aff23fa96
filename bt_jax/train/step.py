"""The step: a batch of uint8 images in, the updated state out. Pure; whoever calls it jits it.

All randomness is folded from (seed, step, sample id), so nothing random is stored and the number of devices has no say.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from bt_jax import augment, randomness, sharding
from bt_jax.augment import recipes
from bt_jax.models import Net, Tree
from bt_jax.models.split_projector import SplitProjector
from bt_jax.objectives import barlow_twins, functions
from bt_jax.state import Nets, TrainState
from bt_jax.train import optimizer

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]  # float32 scalars
Step = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]
Update = Callable[[TrainState, Sequence[jax.Array], jax.Array | None], tuple[TrainState, Metrics]]


def make_pretrain_step(update: Update, recipe: recipes.Recipe, *, seed: int) -> Step:
    """Puts the views before an update of `make_update`.

    Returns:
      step(state, batch) -> (state, metrics). batch: "image" uint8 (n, h, w, c), "id" int32 (n,), and optionally "label"
      int32 (n,) and "size" int32 (n, 2) for images in a padded canvas.
    """
    views_key = randomness.stream(seed, randomness.VIEWS)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(views_key, state.step)
        views = augment.two_views(key, batch["image"], recipe, ids=batch["id"], sizes=batch.get("size"))
        return update(state, views, batch.get("label"))

    return step


def make_update(
    nets: Nets,
    tx: optax.GradientTransformation,
    *,
    lambd: float,
    form: barlow_twins.Form = "auto",
    two_passes: bool = True,
    rates: dict[str, optax.Schedule] | None = None,
    mesh: Mesh | None = None,
    head: str = "replicated",
) -> Update:
    """Builds update(state, views, labels) -> (state, metrics).

    Args:
      tx: over {"backbone", "projector", "probe"}, see `make_optimizer`.
      two_passes: the views go through the networks one after the other, each normalised by its own batch statistics,
        as in the reference; False concatenates them.
      rates: name -> schedule, shown among the metrics.
      mesh: over whose devices the batch is split; the loss then splits the embeddings by feature.
      head: "sharded" splits the projector as well, over a mesh; the state must lie as `sharding.state_sharding` says.

    Returns:
      The update. views: two float arrays (n, h, w, c); labels: int32 (n,) or None. metrics: float32 scalars under the
      names of the log. A loss or gradient that is not finite changes nothing but the counters.

    Raises:
      ValueError: a sharded head without a mesh.
    """
    projector = _split(nets.projector, mesh) if head == "sharded" else nets.projector

    def forward(net: Net | SplitProjector, params: Tree, stats: Tree, inputs: Sequence[jax.Array]):
        """[view, ...] -> [output, ...] and the new running statistics."""
        if not two_passes:
            out, stats = net.apply({"params": params, "batch_stats": stats}, jnp.concatenate(inputs), train=True)
            return jnp.split(out, len(inputs)), stats
        outs = []
        for x in inputs:
            out, stats = net.apply({"params": params, "batch_stats": stats}, x, train=True)
            outs.append(out)
        return outs, stats

    def loss_fn(
        params: dict[str, Tree], batch_stats: dict[str, Tree], views: Sequence[jax.Array], labels: jax.Array | None
    ):
        h, backbone_stats = forward(nets.backbone, params["backbone"], batch_stats["backbone"], views)
        z, projector_stats = forward(projector, params["projector"], batch_stats["projector"], h)
        if mesh is not None and head == "replicated":
            # Else the compiler splits the last layer by feature as the loss does, and gathers its whole input.
            z = [jax.lax.with_sharding_constraint(each, sharding.batch_sharding(mesh)) for each in z]
        loss, parts = barlow_twins.barlow_twins(*z, lambd=lambd, form=form, mesh=mesh)
        shown = {"loss": loss, **parts, "embedding_std": functions.embedding_std(z[0])}
        total = loss
        if labels is not None:
            kernel = params["probe"]["kernel"]
            if mesh is not None:  # gathered where it is stored in parts: smaller than the features of all devices
                kernel = jax.lax.with_sharding_constraint(kernel, sharding.replicated(mesh))
            logits = jax.lax.stop_gradient(jnp.concatenate(h)) @ kernel + params["probe"]["bias"]
            twice = jnp.concatenate([labels, labels])
            probe_loss = functions.cross_entropy(logits, twice)
            total = total + probe_loss  # no parameter is in both terms
            shown |= {"probe_loss": probe_loss, "probe_top1": functions.top1(logits, twice)}
        return total, (shown, {"backbone": backbone_stats, "projector": projector_stats})

    def update(state: TrainState, views: Sequence[jax.Array], labels: jax.Array | None) -> tuple[TrainState, Metrics]:
        gradient = jax.value_and_grad(loss_fn, has_aux=True)
        (_, (shown, batch_stats)), grads = gradient(state.params, state.batch_stats, views, labels)
        new, norm = optimizer.apply_gradient(state, tx, grads, batch_stats, shown["loss"])
        shown |= {"grad_norm": norm, "bad_steps": new.bad_steps}
        shown |= {name: rate(state.step) for name, rate in (rates or {}).items()}
        return new, {f"train/{name}": jnp.asarray(value, jnp.float32) for name, value in shown.items()}

    return update


def _split(projector: Net, mesh: Mesh | None) -> SplitProjector:
    if mesh is None:
        raise ValueError("A sharded head needs a mesh to be split over")
    return SplitProjector(projector, mesh)
