"""The run folder: its environment, its fixed config, and the comparison of processes."""

import json
import os
import platform
import re
import subprocess
import sys
from types import SimpleNamespace

import jax
import pytest

from bt_jax import messages, storage
from bt_jax.config import arguments, keys
from bt_jax.messages import UserError
from bt_jax.processes import coordination, join
from bt_jax.report import write
from bt_jax.run_folder import environment, opening, same_data, same_run

# A second copy of the keys that a resumed run may change, with all keys below them.
FREE = (
    "platform",
    "devices",
    "compile_cache",
    "data.dir",
    "data.npz",
    "model.projector_sharding",
    "log",
    "stop_after_steps",
)
FREE += ("extend_epochs", "watch", "self_check", "data.broken_limit", "smoke")


def test_environment_has_command_and_commit(tmp_path, monkeypatch):
    """The original command, and the commit of the code, not of the working folder."""
    monkeypatch.chdir(tmp_path)
    commit = "0123456789abcdef0123456789abcdef01234567"
    asked = []

    def git(command, *, cwd, **options):
        asked.append((command[:2], cwd))
        return subprocess.CompletedProcess(command, 0, f"{commit}-dirty\n", "")

    monkeypatch.setattr(environment, "subprocess", SimpleNamespace(run=git, TimeoutExpired=subprocess.TimeoutExpired))
    monkeypatch.setattr(sys, "orig_argv", ["/usr/bin/python3", "-m", "bt_jax.main", "--config=configs/quickstart.py"])
    opening.open_folder(str(tmp_path / "run"), arguments.to_dict(keys.pretrain()))
    found = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert found["command"][1:] == ["-m", "bt_jax.main", "--config=configs/quickstart.py"]
    assert found["command"][0] == os.path.basename(sys.executable)
    assert found["git_commit"] == f"{commit}-dirty"
    assert asked[0][0] == ["git", "describe"] and str(asked[0][1]) == os.path.dirname(environment.__file__)
    assert found["python"] == platform.python_version() and found["processes"] == 1
    assert found["versions"]["jax"] == jax.__version__ and len(found["devices"]) == len(jax.devices())


def test_a_file_is_no_run_folder(tmp_path):
    """It is refused before a device is used."""
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="The run folder .*file is a file"):
        opening.check_folder(str(tmp_path / "file"), "pretrain")


def another(value):
    """Another value of a key."""
    if isinstance(value, bool):
        return not value
    return [*value, 1] if isinstance(value, list) else f"{value}x" if isinstance(value, str) else (value or 0) + 1


@pytest.mark.parametrize("task", ["pretrain", "evaluate", "finetune"])
def test_a_resumed_run_keeps_its_config(tmp_path, task):
    """All keys, one at a time, except those for paths, devices and intervals."""
    before = arguments.to_dict(getattr(keys, task)())
    for key, value in arguments.flatten(before).items():
        after = json.loads(json.dumps(before))
        place = after
        *outer, last = key.split(".")
        for name in outer:
            place = place[name]
        place[last] = another(value)
        named = [line.partition(":")[0] for line in same_run.differences(before, after)]
        assert named == ([] if f"{key}.".startswith(tuple(f"{free}." for free in FREE)) else [key]), key
    folder = tmp_path / "run"
    opening.open_folder(str(folder), before)
    (folder / "summary.json").write_text("{}")
    for key in ("evals", "checkpoint"):
        after = json.loads(json.dumps(before))
        name, value = next(iter(after[key].items()))
        after[key][name] = another(value)
        with pytest.raises(UserError, match=f"another config .{key}.{name}: "):
            opening.open_folder(str(folder), after)
    assert json.loads((folder / "config.json").read_text()) == before


def refused(tmp_path, before, after):
    folder = tmp_path / "run"
    opening.open_folder(str(folder), before)
    opening.lock.release()
    with pytest.raises(UserError) as caught:
        opening.open_folder(str(folder), after)
    return str(caught.value).replace(f"{folder} ", "RUN ")


def config_of(task="pretrain", **values):
    config = getattr(keys, task)()
    config.update_from_flattened_dict(values)
    return arguments.to_dict(config)


@pytest.mark.parametrize("extended, missing", [(0.0, "3"), (1.0, "3")])
def test_a_longer_run_is_extended(tmp_path, extended, missing):
    before = config_of(total_epochs=2.0, extend_epochs=extended)
    said = refused(tmp_path, before, config_of(total_epochs=5.0))
    assert said.startswith("RUN holds a run of 2 epochs, and total_epochs=5 is another schedule. For a longer run, ")
    assert f"leave total_epochs at 2 and set --config.extend_epochs={missing}. " in said


def test_a_shorter_or_another_run_is_not_extended(tmp_path):
    assert "another config (total_epochs: 2.0 -> 1.0)" in refused(
        tmp_path, config_of(total_epochs=2.0), config_of(total_epochs=1.0)
    )
    said = refused(tmp_path / "more", config_of(total_epochs=2.0, extend_epochs=3.0), config_of(total_epochs=4.0))
    assert "another config (total_epochs: 2.0 -> 4.0)" in said
    said = refused(tmp_path / "other", config_of(total_epochs=2.0), config_of(total_epochs=3.0, seed=1))
    assert "another config (seed: 0 -> 1; total_epochs: 2.0 -> 3.0)" in said


@pytest.mark.parametrize(
    "task, other, said",
    [
        ("pretrain", "evaluate", "RUN holds a pretraining run. Give evaluate a --workdir of its own."),
        ("evaluate", "finetune", "RUN holds an evaluation. Give finetune a --workdir of its own."),
        ("finetune", "pretrain", "RUN holds a fine-tuning run. Give pretrain a --workdir of its own."),
    ],
)
def test_a_folder_of_another_task(tmp_path, task, other, said):
    assert refused(tmp_path, config_of(task), config_of(other)) == said


def test_a_folder_of_another_method(tmp_path):
    after = config_of(seed=1)
    after["objective"] = {"name": "simclr", "temperature": 0.1}
    assert "another config (method: barlow_twins -> simclr)" in refused(tmp_path, config_of(), after)


def test_an_empty_value_is_shown(tmp_path):
    said = refused(tmp_path, config_of(**{"data.folder": "/photos"}), config_of(**{"data.val_split": ""}))
    assert "another config (data.folder: /photos -> ''; data.val_split: test -> '')" in said


def test_few_of_many_differences_are_named(tmp_path):
    values = {f"optim.{name}": 0.5 for name in ("lr_biases", "lr_weights", "end_factor", "momentum", "start_factor")}
    said = refused(tmp_path, config_of(), config_of(seed=1, **values, **{"model.width": 0.5}))
    assert said.count(" -> ") == 5 and "-> 0.5 and 2 more)" in said


def test_a_damaged_config_is_one_file(tmp_path):
    """Without it, the folder keeps its other files."""
    opening.open_folder(str(tmp_path), config_of())
    opening.lock.release()
    file = tmp_path / "config.json"
    file.write_text("{")
    with pytest.raises(UserError, match="config.json is damaged. If you own the folder, delete this one file: the"):
        opening.open_folder(str(tmp_path), config_of())
    file.unlink()
    opening.open_folder(str(tmp_path), config_of())
    assert json.loads(file.read_text()) == config_of()


@pytest.mark.parametrize("task", ["pretrain", "finetune"])
def test_evaluation_may_change_until_the_results_are_written(tmp_path, capsys, task):
    """Weights do not depend on it; what was wrong with it may be why the run ended."""
    config = getattr(keys, task)()
    opening.open_folder(str(tmp_path), arguments.to_dict(config))
    config.evals.val_images = 7
    opening.open_folder(str(tmp_path), arguments.to_dict(config))
    assert "evaluations change from here on: evals.val_images: 0 -> 7;" in capsys.readouterr().out
    (tmp_path / "summary.json").write_text("{}")
    config.evals.val_images = 8
    with pytest.raises(UserError, match=r"another config \(evals.val_images: 7 -> 8\)"):
        opening.open_folder(str(tmp_path), arguments.to_dict(config))


def test_the_folder_of_an_evaluation_without_results_is_free(tmp_path):
    """Also for other images, but not for another task."""
    config, images = keys.evaluate(), {"classes": 2, "splits": {"train": {"images": 3, "digests": {}}}}
    for count in (3, 4):
        images["splits"]["train"]["images"] = config.evals.linear_epochs = count
        now = json.loads(json.dumps(images))
        opening.open_folder(str(tmp_path), arguments.to_dict(config), same_data.Images(now, dict))
        assert json.loads((tmp_path / "data.json").read_text()) == images
    with pytest.raises(UserError, match="holds an evaluation"):
        opening.open_folder(str(tmp_path), arguments.to_dict(keys.pretrain()))
    (tmp_path / "summary.json").write_text("{}")
    config.evals.linear_epochs = 5
    with pytest.raises(UserError, match=r"another config \(evals.linear_epochs: 4 -> 5\)"):
        opening.open_folder(str(tmp_path), arguments.to_dict(config))


def test_renamed_keys_of_a_resumed_run():
    """A run of 0.1.0 has the same values under other names, and no method name. A changed value is still named."""
    new = arguments.to_dict(keys.pretrain())
    old = json.loads(json.dumps(new))
    old["loss"] = {name: old["objective"][name] for name in ("lambd", "form")}
    old["model"] |= {"two_passes": old["objective"]["two_passes"], "head": old["model"].pop("projector_sharding")}
    del old["objective"]
    assert same_run.differences(old, new) == []
    old["loss"]["lambd"] = 0.1
    assert same_run.differences(old, new) == ["objective.lambd: 0.1 -> 0.0051"]
    new["objective"]["name"] = "vicreg"
    assert "objective.name: barlow_twins -> vicreg" in same_run.differences(old, new)


@pytest.mark.parametrize("key, stayed, other", [("loss.gather_dtype", "float32", "bfloat16")])
def test_a_removed_key_of_a_resumed_run(tmp_path, key, stayed, other):
    """An old run resumes if it had the value that the code always uses; otherwise the error has the reason."""
    assert same_run.REMOVED_KEYS[key][0] == stayed
    config = arguments.to_dict(keys.pretrain())
    assert key not in arguments.flatten(config)
    section, name = key.split(".")
    for value in (stayed, other):
        folder = tmp_path / value
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(config | {section: config.get(section, {}) | {name: value}}))
    opening.open_folder(str(tmp_path / stayed), config)
    assert json.loads((tmp_path / stayed / "config.json").read_text()) == config
    reason = re.escape(f"{key}: {other} -> (absent), {same_run.REMOVED_KEYS[key][1]}")
    with pytest.raises(UserError, match=reason):
        opening.open_folder(str(tmp_path / other), config)


def test_processes_compare_config_versions_and_facts(monkeypatch):
    compared = []
    monkeypatch.setattr(join, "check_identical", compared.append)
    config = keys.pretrain()
    opening.check_same_run(config, images=7, steps_per_epoch=3)
    assert compared == []  # a single process
    monkeypatch.setattr(coordination, "is_multi_process", lambda: True)
    opening.check_same_run(config, images=7, steps_per_epoch=3)
    (own,) = compared
    assert (own["images"], own["steps_per_epoch"], own["jax"]) == (7, 3, jax.__version__)
    assert own["python"] == platform.python_version() and own["bt_jax"]
    compared_keys = {key.removeprefix("config.") for key in own if key.startswith("config.")}
    every = arguments.flatten(arguments.to_dict(config)).keys()
    # Every host may have its own copy.
    assert every - compared_keys == {"data.dir", "data.npz", "data.folder", "compile_cache"}


def test_every_process_has_its_own_file(tmp_path, monkeypatch):
    assert opening.per_process_file(tmp_path, "broken.txt") == tmp_path / "broken.txt"
    monkeypatch.setattr(jax, "process_count", lambda: 4)
    monkeypatch.setattr(jax, "process_index", lambda: 3)
    assert opening.per_process_file(tmp_path, "broken.txt") == tmp_path / "broken-3.txt"


def test_a_small_file_is_on_disk_before_it_gets_its_name(tmp_path, monkeypatch):
    """A reader sees the complete old or new file, also after a power failure."""
    path, seen = tmp_path / "summary.json", []
    path.write_text("old")
    monkeypatch.setattr(os, "fsync", lambda file: seen.append((os.fstat(file).st_size, path.read_text())))
    storage.write(path, "the new one")
    assert seen == [(11, "old")] and path.read_text() == "the new one"
    assert [each.name for each in tmp_path.iterdir()] == ["summary.json"]


def test_processes_may_write_one_file_at_once(tmp_path, monkeypatch):
    """Each process writes under another name, and the last one to finish wins."""
    path = tmp_path / "cache.npz"

    def slow(file):
        file.write(b"half of ")
        file.flush()
        with monkeypatch.context() as patch:
            patch.setattr(os, "getpid", lambda: 1)
            storage.write(path, "another's", shared=True)
        assert path.read_text() == "another's"
        file.write(b"it")

    storage.write(path, slow, shared=True)
    assert path.read_text() == "half of it" and list(tmp_path.iterdir()) == [path]


def test_an_old_report_does_not_finish_a_longer_run(tmp_path, monkeypatch):
    """After an extended run is killed while writing its report, the next start finishes it."""
    (tmp_path / "metrics.jsonl").write_text('{"step": 8, "train/loss": 1.0}\n')
    write.results(tmp_path, {"steps": 8}, {})
    assert write.has_results(tmp_path, 8) and not write.has_results(tmp_path, 12)

    def die(folder):
        raise KeyboardInterrupt

    monkeypatch.setattr(write, "report", die)
    with pytest.raises(KeyboardInterrupt):
        write.results(tmp_path, {"steps": 12}, {})
    assert not write.has_results(tmp_path, 12)


def test_every_form_of_a_full_disk_error():
    """Also a quota, and errors wrapped by libraries."""
    import errno

    def within(inner, by_cause):
        try:
            try:
                raise inner
            except Exception as error:
                raise ValueError("cannot write") from (error if by_cause else None)
        except ValueError as error:
            return error

    for number in (errno.ENOSPC, errno.EDQUOT):
        full = OSError(number, "x")
        assert (
            messages.is_disk_full(full)
            and messages.is_disk_full(within(full, True))
            and messages.is_disk_full(within(full, False))
        )
    assert messages.is_disk_full(RuntimeError("RESOURCE: No space left on device"))
    assert not messages.is_disk_full(OSError(errno.EACCES, "x")) and not messages.is_disk_full(None)
    assert not messages.is_disk_full(within(OSError(errno.EACCES, "x"), True))
