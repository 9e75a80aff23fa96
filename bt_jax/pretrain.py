"""Pretraining: from images to an encoder. `run` prepares, `_train` is the loop, `_finish` judges what came out."""

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from bt_jax import augment, build, checkpoint, log, losses, report, run_folder, sharding, train_step
from bt_jax import config as config_lib
from bt_jax import feed as feed_lib
from bt_jax.data import source as source_lib
from bt_jax.errors import UserError
from bt_jax.evals import features, heldout
from bt_jax.state import Nets, TrainState

PICTURE_IMAGES, PICTURE_PAIRS = 512, 16


class Run(NamedTuple):
    """All that does not change while a run trains."""

    config: ConfigDict
    folder: Path
    mesh: Mesh
    plan: build.Plan
    recipe: augment.Recipe
    nets: Nets
    step: Callable
    feed: feed_lib.Feed
    judge: heldout.HeldOut | None
    checkpoints: checkpoint.Checkpoints
    fresh: Callable[[], TrainState]
    started: float


def run(config: ConfigDict, workdir: str, *, started: float | None = None) -> Path:
    """Trains to the end of the schedule, or goes on from the newest checkpoint in `workdir`.

    Args:
      config: of `bt_jax.config.pretrain`, overridden.
      workdir: the run folder; made if needed.
      started: `time.monotonic()` when the command was given, for the times that are shown.

    Returns:
      The run folder, with metrics.jsonl and checkpoints/, and at the end summary.json and report.html.

    Raises:
      UserError: anything the user can mend.
    """
    this = _prepare(config, workdir, time.monotonic() if started is None else started)
    state = this.fresh()
    newest = this.checkpoints.latest()
    if newest is not None:
        state = this.checkpoints.restore(state, newest)
        log.say(f"going on from step {newest} of {this.plan.total_steps}")
    state = _train(this, state)
    if int(state.step) == this.plan.total_steps and not (this.folder / "summary.json").exists():
        _finish(this, state)
    this.checkpoints.close()
    return this.folder


def _prepare(config: ConfigDict, workdir: str, started: float) -> Run:
    config_lib.check(config)
    mesh = sharding.make_mesh()
    build.check_devices(config, mesh)
    build.check_rate(config)
    sharding.check_batch(config.batch_size, mesh)
    source = source_lib.open_source(
        config.data.name,
        data_dir=config.data.dir or None,
        npz=config.data.npz or None,
        folder=config.data.folder or None,
    )
    broken = source_lib.Broken(source, limit=config.data.broken_limit, say=log.say)
    recipe = build.build_recipe(config)
    feed = feed_lib.make_feed(config, source, mesh, broken, len(recipe.mean))
    plan = build.make_plan(config, feed.images)
    nets, step, _, create = build.build_training(config, plan, recipe, source.num_classes, mesh)
    judge = None
    splits = [split for split in (config.data.train_split, config.data.val_split) if split]
    if len(splits) == 2 and all(source.labelled(source.span(split).base) for split in splits):
        judge = heldout.HeldOut(
            features.make_embed(nets.backbone, build.evaluation_recipe(config), mesh, resize=config.evals.resize),
            feed.train_batches,
            feed.val_batches,
            mesh=mesh,
            num_classes=source.num_classes,
            k=config.evals.knn_k,
            temperature=config.evals.knn_temperature,
            every_steps=plan.steps(config.evals.every_epochs),
        )
    # Only now, when the config is known to make sense: a folder holds one config for good.
    folder = run_folder.open_folder(workdir, config_lib.to_dict(config))
    mine = f"-{jax.process_index()}" if jax.process_count() > 1 else ""
    broken.list_in(folder / f"broken{mine}.txt")
    devices = jax.devices()
    log.say(f"{folder}: {source.name} on {len(devices)} x {devices[0].device_kind}")
    checkpoints = checkpoint.Checkpoints(
        folder,
        model={"build": build.backbone_options(config, len(recipe.mean)), "mean": recipe.mean, "std": recipe.std},
        keep_last=config.checkpoint.keep_last,
        keep_every=plan.steps(config.checkpoint.keep_every_epochs),
    )
    init_key = train_step.stream(config.seed, train_step.INIT)
    return Run(
        config, folder, mesh, plan, recipe, nets, step, feed, judge, checkpoints, lambda: create(init_key), started
    )


# ---------------------------------------------------------------------------------------------------------- the loop


def _train(this: Run, state: TrainState) -> TrainState:
    """Windows of steps to the end of the schedule; the host looks at one while the next runs."""
    config, plan = this.config, this.plan
    at = int(state.step)
    last = min(config.stop_after_steps or plan.total_steps, plan.total_steps)
    if at >= last:
        log.say(f"nothing to train: step {at} of {last} is reached; see {this.folder}")
        return state
    save_every = plan.steps(config.checkpoint.every_epochs)
    judge_every = this.judge.every_steps if this.judge else 0
    written = log.RunLog(this.folder, first_step=at, tensorboard=config.log.tensorboard)
    progress = log.Progress(
        first_step=at, total_steps=last, batch_size=config.batch_size, steps_per_epoch=plan.steps_per_epoch
    )
    advance, waited, close = this.feed.begin(this.step, state)
    interrupted = _Interruption()
    unseen = None  # the newest window's metrics, still on their way from the device
    first = True

    def look(window):
        nonlocal first
        step, shown = window
        values = _means(shown) | progress.measure(step, waited=waited())
        written.write(step, values)
        if first:
            log.say(f"first window of steps done {time.monotonic() - this.started:.0f} s after the start")
            first = False
        log.say(progress.line(step, values))
        _stop_if_bad(this, state, step, values)

    try:
        while at < last and not interrupted:
            steps = min([this.feed.window(at), last - at] + [n - at % n for n in (save_every, judge_every) if n])
            state, shown = advance(state, steps)
            at += steps
            if unseen:
                look(unseen)
            unseen = (at, shown)
            saving = at == last or _due(at, save_every)
            judging = this.judge and (at == last or _due(at, judge_every)) and judge_every
            # On a CPU the steps run while they are dispatched: looking later would time the wrong window.
            if saving or judging or jax.default_backend() == "cpu":
                look(unseen)
                unseen = None
            if judging:
                values = this.judge.run(state)
                written.write(at, values | {"epoch": at / plan.steps_per_epoch})
                log.say("  ".join(f"{name} {100 * value:.1f} %" for name, value in values.items()))
            if saving:
                this.checkpoints.save(state)
            if saving or judging:
                progress.skip()
        if unseen:
            look(unseen)
        if interrupted:
            this.checkpoints.save(state)
    finally:
        close()
        written.close()
        this.checkpoints.wait()
        interrupted.restore()
    interrupted.exit_if_set(f"stopped at step {at} of {last}, saved; the same command goes on from there")
    return state


def _due(at: int, every: int) -> bool:
    return bool(every) and at % every == 0


def _means(shown: list[dict[str, jax.Array]]) -> dict[str, float]:
    """Means over a window; of a count of bad steps the largest."""
    fetched = jax.device_get(shown)
    values = {name: np.concatenate([np.atleast_1d(m[name]) for m in fetched]) for name in fetched[0]}
    return {name: float(v.max() if name == "train/bad_steps" else v.mean()) for name, v in values.items()}


def _stop_if_bad(this: Run, state: TrainState, step: int, values: dict[str, float]) -> None:
    bad, limit = values["train/bad_steps"], this.config.nonfinite_limit
    if bad < limit:
        return
    this.checkpoints.save(state)
    raise UserError(
        f"Loss or gradient not finite in {bad:.0f} steps in a row before step {step}"
        f" (learning rates: weights {values['train/lr_weights']:.3g}, biases {values['train/lr_biases']:.3g})",
        "Those steps changed nothing and the state is saved. Lower --config.optim.lr_weights or lr_biases, or try"
        " --config.model.dtype=float32, in a new --workdir.",
    )


class _Interruption:
    """Notes Ctrl-C and SIGTERM, so that the loop can save; a second Ctrl-C ends at once."""

    def __init__(self):
        self._signal = 0
        self._before = {}
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                self._before[number] = signal.signal(number, self._note)
            except ValueError:  # not in the main thread: somebody else's signals
                return

    def _note(self, number, frame):
        del frame
        self._signal = number
        signal.signal(number, self._before[number])
        log.say(f"{signal.Signals(number).name}: saving after this window of steps")

    def __bool__(self):
        return bool(self._signal)

    def restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def exit_if_set(self, text: str) -> None:
        if self._signal:
            log.say(text)
            raise SystemExit(128 + self._signal)


# ------------------------------------------------------------------------------------------------------------ the end


def _finish(this: Run, state: TrainState) -> None:
    """The table, the pictures and the report of a run that reached its end."""
    before = this.fresh()
    pictures = _pictures(this, before, state)
    summary: dict[str, Any] = {"steps": int(state.step), "seconds": round(time.monotonic() - this.started, 1)}
    if this.judge and this.config.evals.final:
        embed = this.judge.embed
        compared = {"trained": (embed, state.encoder()), "untrained": (embed, before.encoder())}
        if this.config.data.on_device:
            compared["raw_pixels"] = (features.raw_pixels(this.recipe, this.mesh), {})
        summary |= this.judge.table(compared)
        summary["seconds"] = round(time.monotonic() - this.started, 1)
        log.say(_table(summary))
    if jax.process_index() == 0:
        np.savez(this.folder / "pictures.npz", **pictures)
        (this.folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
        log.say(f"report      {report.write(this.folder)}")
    log.say(
        f"checkpoint  {this.folder / 'checkpoints' / str(int(state.step))}\nmetrics     {this.folder / 'metrics.jsonl'}"
    )


def _pictures(this: Run, before: TrainState, after: TrainState) -> dict[str, np.ndarray]:
    """c of some training images before and after, and some of their views as uint8."""
    batch = this.feed.sample(PICTURE_IMAGES)
    ids = jnp.asarray(batch.get("id", np.arange(len(batch["image"]))))
    key = train_step.stream(this.config.seed, train_step.VIEWS)

    def views(images, sizes, ids):
        return augment.two_views(key, images, this.recipe, ids=ids, sizes=sizes)

    @jax.jit
    def cross(state, images, sizes, ids):
        z = []
        for view in views(images, sizes, ids):
            h, _ = this.nets.backbone.apply(state.encoder(), view, train=True)
            variables = {"params": state.params["projector"], "batch_stats": state.batch_stats["projector"]}
            z.append(this.nets.projector.apply(variables, h, train=True)[0])
        return losses.cross_correlation(*z)

    arrays = (batch["image"], batch.get("size"), ids)
    shown = jax.jit(views)(*(None if a is None else a[:PICTURE_PAIRS] for a in arrays))
    mean, std = np.asarray(this.recipe.mean), np.asarray(this.recipe.std)
    view1, view2 = (np.uint8(np.clip(255 * (np.asarray(v) * std + mean), 0, 255)) for v in shown)
    # Padded canvases are left out: an image there is smaller than its frame.
    originals = {} if "size" in batch else {"originals": batch["image"][:PICTURE_PAIRS]}
    return originals | {
        "c_before": heldout.correlation_picture(cross(before, *arrays)),
        "c_after": heldout.correlation_picture(cross(after, *arrays)),
        "view1": view1,
        "view2": view2,
    }


def _table(summary: dict) -> str:
    titles = {"trained": "trained encoder", "untrained": "same encoder, untrained", "raw_pixels": "raw pixels"}
    lines = [f"\n{'top-1 on held-out images':28}{'kNN':>10}{'linear probe':>15}"]
    for name in summary["knn_top1"]:
        knn, linear = 100 * summary["knn_top1"][name], 100 * summary["linear_top1"][name]
        lines.append(f"{titles[name]:28}{knn:8.1f} %{linear:13.1f} %")
    return "\n".join(lines) + "\n"
