"""The whole program: pretrain, stop, resume, evaluate, report; and one line for every mistake of a user."""

import errno
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bt_jax
from bt_jax import messages, objectives, sharding, storage
from bt_jax.config import arguments
from bt_jax.evals import protocols
from bt_jax.messages import UserError
from bt_jax.objectives.barlow_twins import BarlowTwins
from bt_jax.report.runs import read_run
from bt_jax.run_folder import checkpoints, metrics_log, same_run
from bt_jax.tasks import pretrain
from bt_jax.train import build, epochs, initial_weights, loop
from bt_jax.train import step as train_step
from bt_jax.weights import load
from tests.support import runs
from tests.support.paths import ROOT
from tests.support.runs import read_lines, without_speeds

pytestmark = pytest.mark.usefixtures("tiny_arch", "compiled_quickly", "one_device")


def tiny(**changes):
    """The tiny run with the smallest net."""
    return runs.tiny(**{"model.arch": "tiny"} | changes)


TRACES: list[str] = []  # one entry per trace of the training step
LASTING: list[str] = []  # the lines of work that lasts 15 seconds


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny_arch, compiled_quickly, one_device):
    make = train_step.make_step

    def counted(*arguments, **options):
        step = make(*arguments, **options)

        def traced(state, batch):
            TRACES.append("step")
            return step(state, batch)

        return traced

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_step, "make_step", counted)
        patch.setattr(messages.Heartbeat, "start", lambda self: LASTING.append(self._text(15).removesuffix(", 15 s")))
        return pretrain.run(tiny(), str(tmp_path_factory.mktemp("run") / "whole"))


def test_a_run_writes_all_its_files(finished):
    for name in ("config.json", "environment.json", "metrics.jsonl", "summary.json", "report.html", "tensorboard"):
        assert (finished / name).exists(), name
    lines = read_lines(finished)
    trained = [line for line in lines if "train/loss" in line]
    assert [line["step"] for line in trained] == [2, 4, 6, 8]
    for line in trained:
        np.testing.assert_allclose(
            line["train/loss"], line["train/on_diag"] + 0.0051 * line["train/off_diag"], rtol=1e-5
        )
        assert line["train/lr_weights"] >= 0 and line["perf/pairs_per_sec"] > 0 and 0 <= line["train/probe_top1"] <= 1
    assert [line["step"] for line in lines if "val/knn_top1" in line and "val/rank" in line] == [4, 8]
    summary = json.loads((finished / "summary.json").read_text())
    assert set(summary["knn_top1"]) == set(summary["linear_top1"]) == {"trained", "untrained", "raw_pixels"}
    assert all(0 <= v <= 1 for table in ("knn_top1", "linear_top1") for v in summary[table].values())
    written = {"config.json", "data.json", "environment.json", "summary.json", "metrics.jsonl", "manifest.json"}
    assert runs.strict_json(finished) == written | {"metadata", "_METADATA"}
    environment = json.loads((finished / "environment.json").read_text())
    assert environment["versions"]["jax"] == jax.__version__ and len(environment["devices"]) == 8


def test_the_step_is_compiled_once(finished):
    """Two epochs, two evaluations and two checkpoints: the state keeps its layout through them."""
    assert len(TRACES) == 1


def test_every_part_of_the_run_that_lasts_says_so(finished):
    whose = ["the trained encoder", "the untrained encoder", "raw pixels"]
    evaluators = ["kNN", "online probe", "spectrum", "cross-correlation"]
    expected = [
        "still compiling the initial weights",
        "still compiling",
        *(f"step {step}: evaluating ({title})" for step in (4, 8) for title in evaluators),
        "still evaluating the trained encoder: pictures and label-free metrics",
        *(f"still evaluating {one} by {by}" for one in whose for by in ("kNN", "linear probe")),
        "still writing the report",
    ]
    assert expected == LASTING


def without_evaluators(patch):
    """Runs train and save without evaluation."""
    train = loop.train
    patch.setattr(loop, "train", lambda this, state: train(this._replace(evaluators=[]), state))


@pytest.fixture
def without_report(monkeypatch):
    """Runs end after their last evaluation, without table and pictures."""
    monkeypatch.setattr(pretrain, "_finish", lambda *_: None)


def test_a_resumed_run_is_bit_equal(finished, tmp_path, without_report):
    """All randomness and the order of the data are functions of the step."""
    folder = str(tmp_path / "halves")
    pretrain.run(tiny(stop_after_steps=3), folder)
    assert not (tmp_path / "halves" / "summary.json").exists()
    pretrain.run(tiny(), folder)
    whole, halves = (bt_jax.load_encoder(path)[1] for path in (finished, folder))
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(halves), strict=True):
        np.testing.assert_array_equal(a, b)
    at_three = bt_jax.load_encoder(Path(folder) / "checkpoints" / "4")[1]
    assert any(not np.array_equal(a, b) for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(at_three), strict=True))
    steps = [line["step"] for line in read_lines(Path(folder)) if "train/loss" in line]
    assert steps == sorted(set(steps)) and steps[-1] == 8


def test_a_run_in_a_bucket_is_the_same_run(finished, bucket, monkeypatch):
    """Also if it is stopped and resumed. All files are in the bucket, and none of the run is left on this machine."""
    made, mkdtemp = [], tempfile.mkdtemp
    monkeypatch.setattr(tempfile, "mkdtemp", lambda *args, **named: made.append(mkdtemp(*args, **named)) or made[-1])
    bucket.objects.clear()
    save, told = checkpoints.Checkpoints.save, {}

    def spy(self, state):
        told[int(state.step)] = read_lines(storage.parse_path("gs://bucket/run"))[-1]["step"]
        save(self, state)

    monkeypatch.setattr(checkpoints.Checkpoints, "save", spy)
    pretrain.run(tiny(stop_after_steps=3), "gs://bucket/run")
    folder = pretrain.run(tiny(), "gs://bucket/run")
    assert told == {3: 3, 4: 4, 8: 8}  # a kill during or after the save loses no line
    assert not [path for path in made if "bt_jax-" in path and os.path.exists(path)]
    here, there = (bt_jax.load_encoder(path)[1] for path in (finished, folder))
    for a, b in zip(jax.tree.leaves(here), jax.tree.leaves(there), strict=True):
        np.testing.assert_array_equal(a, b)
    here, there = (without_speeds(path) for path in (finished, folder))
    assert [line for line in there if line["step"] > 4] == [line for line in here if line["step"] > 4]
    assert sorted({line["step"] for line in there}) == [2, 3, 4, 6, 8]
    names = {path.relative_to(finished).parts[0] for path in finished.rglob("*") if path.is_file()}
    assert {name.split("/")[1] for name in bucket.objects} == names
    judged = (json.loads((path / "summary.json").read_text()) for path in (finished, folder))
    assert len({json.dumps(summary | {"seconds": 0}) for summary in judged}) == 1
    assert len(read_run(folder).pictures["c_steps"]) == 3  # of two epochs, and of the stop


def test_a_signal_stops_and_saves_and_the_run_resumes(finished, tmp_path, monkeypatch, without_report):
    """Slurm's SIGUSR1 after the first window: the status has the signal; no line is missing or duplicated."""
    folder, write = tmp_path / "run", metrics_log.RunLog.write

    def hit(self, step, values):
        write(self, step, values)
        os.kill(os.getpid(), signal.SIGUSR1)

    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)]
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as stopped:
        patch.setattr(metrics_log.RunLog, "write", hit)
        pretrain.run(tiny(), str(folder))
    assert stopped.value.code == 128 + signal.SIGUSR1
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)] == before
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["2"]
    pretrain.run(tiny(), str(folder))
    assert without_speeds(folder) == without_speeds(finished)
    same_encoder(folder, finished)


def test_killed_while_it_is_evaluated(finished, tmp_path, monkeypatch, without_report):
    """The step is saved already, so the next start only evaluates."""
    folder = tmp_path / "run"

    def die(self, state):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(protocols.OnlineProbe, "run", die)
        pretrain.run(tiny(), str(folder))
    assert [line["step"] for line in read_lines(folder)] == [2, 4]
    pretrain.run(tiny(), str(folder))
    assert without_speeds(folder) == without_speeds(finished)


def test_killed_in_the_middle_of_a_save(finished, tmp_path, monkeypatch, without_report):
    """The previous save counts, and no line is missing or duplicated."""
    folder, save = tmp_path / "run", checkpoints.Checkpoints.save

    def die(self, state):
        if int(state.step) == 8:
            (folder / "checkpoints" / "8.orbax-checkpoint-tmp" / "encoder").mkdir(parents=True)
            raise KeyboardInterrupt
        save(self, state)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(checkpoints.Checkpoints, "save", die)
        pretrain.run(tiny(), str(folder))
    assert [line["step"] for line in read_lines(folder) if "train/loss" in line] == [2, 4, 6, 8]
    pretrain.run(tiny(), str(folder))
    assert without_speeds(folder) == without_speeds(finished)
    same_encoder(folder, finished)


def test_an_evaluation_is_recognised_by_its_line(tmp_path):
    """Also where the judges of a run tell no numbers: else every start would write the line again."""
    lines = [{"step": 2, "train/loss": 1.0, "perf/data_wait": 0.0}, {"step": 4, "epoch": 1.0}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 6, "v')
    assert [metrics_log.evaluated(tmp_path, step) for step in (2, 4, 6)] == [False, True, False]
    assert not metrics_log.evaluated(tmp_path / "nowhere", 2)


def test_an_extended_schedule(finished, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    pretrain.run(tiny(extend_epochs=1.0), str(folder))
    assert "schedule extended: 2 -> 3 epochs" in capsys.readouterr().out
    lines = [line for line in read_lines(folder) if "train/loss" in line]
    assert [line["step"] for line in lines] == [2, 4, 6, 8, 10, 12]
    rates = [line["train/lr_weights"] for line in lines]
    assert rates[4] > rates[3] > rates[5]  # up to the longer cosine, then down with it
    assert json.loads((folder / "summary.json").read_text())["steps"] == 12
    with pytest.raises(UserError, match="has 3 epochs already, but extend_epochs=0 asks for 2"):
        pretrain.run(tiny(), str(folder))


def test_initial_weights(finished, tmp_path, capsys):
    config = tiny(init_from=str(finished), stop_after_steps=2)
    nets = build.build_nets(config.model, 3, BarlowTwins())
    given = initial_weights.read(config.init_from, nets)
    assert "the encoder and the projector of" in capsys.readouterr().out
    state = initial_weights.initialise(given, build.build_training(*parts(config)).create(jax.random.key(7)))
    jax.tree.map(np.testing.assert_array_equal, state.encoder(), bt_jax.load_encoder(finished)[1])
    projector = {"params": state.params["projector"], "batch_stats": state.batch_stats["projector"]}
    jax.tree.map(np.testing.assert_array_equal, projector, load.load_projector(finished))
    assert int(state.step) == 0 and not any(np.any(leaf) for leaf in jax.tree.leaves(state.opt_state))
    folder = pretrain.run(config, str(tmp_path / "run"))
    assert read_lines(folder)[0]["train/loss"] < 0.9 * read_lines(finished)[0]["train/loss"]
    # A resume does not read them again.
    capsys.readouterr()
    pretrain.run(config, str(folder))
    assert "initial weights" not in capsys.readouterr().out


def test_a_momentum_network_starts_from_the_initial_weights():
    """It is a copy in arrays of its own, which a step may donate."""
    config = tiny()
    objectives.select(config, "moco", {"moco": {"queue": 64}})
    config.model.projector = (8, 4)
    training = build.build_training(*parts(config))
    state, other = (training.create(jax.random.key(seed)) for seed in (7, 8))
    initial = initial_weights.InitialWeights(jax.device_get(other.encoder()), None)
    initialised = initial_weights.initialise(initial, state, functools.partial(training.init_memory, jax.random.key(7)))
    wanted = state.memory | {"target": {"backbone": other.params["backbone"], "projector": state.params["projector"]}}
    jax.tree.map(np.testing.assert_array_equal, initialised.memory, wanted)
    jax.block_until_ready(jax.jit(lambda state: jax.tree.map(jnp.copy, state), donate_argnums=0)(initialised))


def test_initial_weights_of_another_network(finished, capsys):
    config = tiny(**{"model.projector": (32, 32)})
    assert initial_weights.read(str(finished), build.build_nets(config.model, 3, BarlowTwins())).projector is None
    assert "has another shape, so a new one is drawn" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"is a tiny, .* width 0.125, .* not a tiny, .* width 0.25"):
        initial_weights.read(str(finished), build.build_nets(tiny(**{"model.width": 0.25}).model, 3, BarlowTwins()))


def parts(config):
    """Arguments of `build.build_training`."""
    return config, epochs.make_plan(config, 64), build.build_recipe(config.views), 10, sharding.make_mesh()


def same_encoder(a, b):
    jax.tree.map(np.testing.assert_array_equal, *(bt_jax.load_encoder(path)[1] for path in (a, b)))


def test_other_devices_and_projector_sharding_are_the_same_run(finished, tmp_path, monkeypatch, without_report):
    """Started with the projector split over eight devices, finished on one."""
    folder = str(tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(sharding, "make_mesh", functools.partial(sharding.make_mesh, jax.devices()))
        without_evaluators(patch)
        pretrain.run(tiny(**{"model.projector_sharding": "sharded", "stop_after_steps": 3}), folder)
    pretrain.run(tiny(), folder)
    found, wanted = (
        [line["train/loss"] for line in read_lines(Path(path)) if line["step"] in (2, 6, 8) and "train/loss" in line]
        for path in (folder, finished)
    )
    # Adam divides by its own rounding if a gradient is zero: the first window agrees to 1e-6, the last to 1e-3.
    np.testing.assert_allclose(found, wanted, rtol=2e-3)
    np.testing.assert_allclose(found[0], wanted[0], rtol=1e-5)


def test_finished_run_is_not_trained_again(finished):
    before, summary = read_lines(finished), (finished / "summary.json").read_text()
    assert pretrain.run(tiny(), str(finished)) == finished
    assert (finished / "summary.json").read_text() == summary
    assert read_lines(finished) == before


def test_encoder_alone(finished):
    net, variables = bt_jax.load_encoder(finished)
    images = np.random.default_rng(0).standard_normal((3, 20, 20, 3)).astype(np.float32)
    h = net.apply(variables, images, train=False)
    assert h.shape == (3, net.feature_dim) and np.isfinite(h).all() and np.std(h) > 0
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(variables))
    with pytest.raises(UserError, match="There is no checkpoint"):
        bt_jax.load_encoder(finished / "tensorboard")


def test_another_seed_is_another_run(finished, tmp_path, monkeypatch):
    without_evaluators(monkeypatch)
    loss = read_lines(finished)[0]["train/loss"]
    other = read_lines(pretrain.run(tiny(seed=1, stop_after_steps=2), str(tmp_path / "other")))[0]["train/loss"]
    assert other != loss


# -------------------------------------------------------------------------------------------------------- bad input


@pytest.fixture
def eight_devices(monkeypatch):
    monkeypatch.setattr(sharding, "make_mesh", functools.partial(sharding.make_mesh, jax.devices()))


def refused(match, folder, **changes):
    with pytest.raises(UserError, match=match):
        pretrain.run(tiny(**changes), str(folder))


def test_another_config_in_the_folder(finished):
    before = (finished / "config.json").read_text()
    refused(r"another config \(optim.lr_weights: 0.004 -> 0.5\)", finished, **{"optim.lr_weights": 0.5})
    assert (finished / "config.json").read_text() == before
    known = json.loads(before)
    resolved = {f"data.{key}": known["data"][key] for key in ("reader", "exif_orientation")}
    resolved |= {f"views.{key}": tuple(known["views"][key]) for key in ("mean", "std")}
    changed = tiny(**{"log.tensorboard": False}, **resolved)
    assert not same_run.differences(json.loads(before), arguments.to_dict(changed))


def test_batch_that_does_not_divide(tmp_path, eight_devices):
    refused("batch of 12 is not divisible by 8 devices. Set --config.batch_size=16", tmp_path / "run", batch_size=12)
    assert not (tmp_path / "run").exists()  # an error before anything is written


def test_missing_accelerator(tmp_path, eight_devices):
    refused("config.platform='gpu', but JAX runs on 'cpu'", tmp_path / "run", platform="gpu")
    refused("config.devices=4, but JAX has 8 devices", tmp_path / "run", devices=4)


def test_unknown_data_set_and_missing_folder(tmp_path):
    refused("nonesuch", tmp_path / "run", **{"data.name": "nonesuch", "data.dir": str(tmp_path)})
    refused("absent.npz", tmp_path / "run", **{"data.npz": str(tmp_path / "absent.npz")})


def test_data_set_smaller_than_a_batch(tmp_path):
    refused("do not fill one batch of 128", tmp_path / "run", batch_size=128)
    assert not (tmp_path / "run").exists()  # otherwise the fix would be an error for another config


@pytest.mark.parametrize(
    "key, value", [("optim.name", "adagrad"), ("objective.form", "dual"), ("model.arch", "resnet19")]
)
def test_values_that_do_not_exist(key, value, tmp_path):
    refused(value, tmp_path / "run", **{key: value})


def test_workdir_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    refused("cannot be made", tmp_path / "file" / "run")


def test_nonfinite_loss_stops_saves_and_names_the_step(tmp_path):
    changes = {"optim.lr_weights": 1e30, "optim.warmup_epochs": 0.0, "nonfinite_limit": 2, "evals.every_epochs": 0.0}
    refused(r"not finite in \d+ steps in a row before step \d+ \(learning rates: weights", tmp_path / "run", **changes)
    net, variables = bt_jax.load_encoder(tmp_path / "run")
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(variables))


def test_full_disk(tmp_path, monkeypatch):
    """The save fails with a full disk, and earlier files stay."""
    import orbax.checkpoint as ocp

    def no_space(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(ocp.CheckpointManager, "save", no_space)
    refused("The disk is full while writing checkpoint", tmp_path / "run", stop_after_steps=2)
    assert read_lines(tmp_path / "run")[-1]["step"] == 2


def test_disk_that_fills_while_metrics_are_written(tmp_path, monkeypatch):
    from tensorboardX import event_file_writer

    written = event_file_writer.EventsWriter.write_event

    def no_space(self, event):
        if event.step >= 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        written(self, event)

    monkeypatch.setattr(event_file_writer.EventsWriter, "write_event", no_space)
    with pytest.raises(OSError, match="No space left"):  # the program turns it into one line; nothing hangs
        pretrain.run(tiny(), str(tmp_path / "run"))


def command(*arguments):
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    return subprocess.run(
        [sys.executable, "-m", "bt_jax.main", *arguments], cwd=ROOT, capture_output=True, text=True, env=environment
    )


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--config=configs/quickstart.py", "--config.optim.lr_weigths=1"], "Did you mean --config.optim.lr_weights?"),
        (["--config=configs/quickstart.py:smoke,bach=3"], "Unknown config argument 'bach'"),
        (["--config=configs/quickstart.py", "--config.batch_size=many"], "batch_size=many"),
        (["--config=configs/absent.py"], "absent.py"),
        (
            ["--config=configs/quickstart.py", "--config.loss.lambd=1"],
            "has a new name, objective.lambd. Write --config.obj",
        ),
        (["--config=configs/quickstart.py", "--config.views.view1.blurr=1"], "Did you mean --config.views.view1.blur?"),
        (["--config=configs/quickstart.py"], "No --workdir is given"),
    ],
)
def test_wrong_command_line(arguments, said):
    done = command(*arguments)
    assert done.returncode == 2
    assert said in done.stderr and len(done.stderr.strip().splitlines()) == 1, done.stderr
