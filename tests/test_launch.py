"""The launchers: `tpu_vm.sh` with a fake gcloud that can fail, `local.sh`, `slurm.sbatch`, and the JobSet for GKE."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import yaml

from tests.support.paths import ROOT

LAUNCH = ROOT / "launch"
PROGRAM = ("--", "--config=configs/quickstart.py", "--workdir=gs://mine/runs/tpu")
PROGRAM_ON_DISK = (*PROGRAM[:-1], "--workdir=runs/tpu")

# The fake gcloud logs its arguments in the file `calls`. The file `script` lists failures: [part of the arguments, exit
# status, output, state of the slice afterwards]. A call uses up the first entry that matches its arguments. All other
# calls succeed. A command for a worker runs in the folder `worker` if that folder exists.
GCLOUD = """
import json, os, subprocess, sys
here, words = os.environ["HERE"], " ".join(sys.argv[1:])
place = "queue" if "queued-resources" in words else "state"
with open(f"{here}/calls", "a") as file:
    file.write(words + "\\n")
state = open(f"{here}/{place}").read()
script = json.load(open(f"{here}/script"))
for index, (part, status, output, after) in enumerate(script):
    if part in words:
        del script[index]
        json.dump(script, open(f"{here}/script", "w"))
        if after is not None:
            open(f"{here}/state", "w").write(after)
        print(output, file=sys.stderr if status else sys.stdout)
        sys.exit(status)
if " describe " in words:
    if not state:
        print("ERROR: (gcloud) NOT_FOUND: Resource was not found", file=sys.stderr)
        sys.exit(1)
    print(state)
if " create " in words:
    open(f"{here}/state", "w").write("READY")
    open(f"{here}/queue", "w").write("ACTIVE" if place == "queue" else "")
if " start " in words:
    open(f"{here}/state", "w").write("READY")
if " delete " in words:
    open(f"{here}/{place}", "w").write("")
if " ssh " in words and os.path.exists(f"{here}/worker"):
    line = next(word for word in sys.argv if word.startswith("--command=")).removeprefix("--command=")
    path = f"{here}/worker/bin:{os.environ['PATH']}"
    sys.exit(subprocess.run(["bash", "-c", line], env=os.environ | {"HOME": f"{here}/worker", "PATH": path}).returncode)
if "until [ -e" in words:
    print(0)
"""


@pytest.fixture
def tpu_vm(tmp_path):
    """tpu_vm(verb, *arguments, state=…, script=…) -> (exit status, output, calls of gcloud)."""
    gcloud = tmp_path / "gcloud"
    gcloud.write_text(f"#!{sys.executable}\n{GCLOUD}")
    gcloud.chmod(0o755)

    def run(*arguments, state="", queue="", script=(), answer=""):
        (tmp_path / "state").write_text(state)
        (tmp_path / "queue").write_text(queue)
        (tmp_path / "script").write_text(json.dumps(script))
        (tmp_path / "calls").write_text("")
        done = subprocess.run(
            ["bash", str(LAUNCH / "tpu_vm.sh"), *arguments],
            env=os.environ | {"GCLOUD": str(gcloud), "HERE": str(tmp_path), "POLL": "0"},
            capture_output=True,
            text=True,
            input=answer,
            timeout=60,
        )
        calls = [line.removeprefix("compute tpus ") for line in (tmp_path / "calls").read_text().splitlines()]
        return done.returncode, done.stdout + done.stderr, calls

    return run


def verbs(calls):
    """The verbs of the calls, such as ["create", "ssh"], without "describe"."""
    return [call.split()[1] for call in calls if call.split()[1] != "describe"]


SLICE = ("bt-test", "--zone=us-west4-a", "--type=v5litepod-16")


def test_dry_run_prints_every_command_and_calls_nothing(tpu_vm):
    status, output, calls = tpu_vm("all", *SLICE, "--dry-run", *PROGRAM)
    assert status == 0 and calls == []
    lines = [line for line in output.splitlines() if line.startswith("+ ")]
    assert "bt_jax.plan --config=configs/quickstart.py --topology=v5e:4x4" in lines[0]
    assert "--accelerator-type=v5litepod-16 --version=v2-alpha-tpuv5-lite" in lines[1]
    assert any("bt_jax.main" in line and "gs://mine/runs/tpu" in line and "--worker=all" in line for line in lines)
    known = ("bt_jax.plan", "create", "scp", "ssh", "mkdir", "tar", "rm", "storage")
    words = [next(word for word in line.split() if word in known) for line in lines]
    assert words == ["bt_jax.plan", "create", "scp", "ssh", "ssh", "ssh", "mkdir", "storage"]
    assert "[tpu,tfds,gcs]" in lines[3] and not (ROOT / "runs" / "tpu").exists()
    assert lines[-1].endswith("gcloud storage rsync --recursive gs://mine/runs/tpu runs/tpu")
    status, output, _ = tpu_vm("fetch", *SLICE, "--dry-run", "--light", *PROGRAM_ON_DISK)
    lines = [line for line in output.splitlines() if line.startswith("+ ")]
    assert [next(word for word in line.split() if word in known) for line in lines] == [
        "mkdir",
        "ssh",
        "scp",
        "tar",
        "rm",
    ]
    assert "--exclude=train" in lines[1]


def test_nothing_is_created_twice(tpu_vm):
    status, output, calls = tpu_vm("create", *SLICE, state="READY")
    assert status == 0 and verbs(calls) == [] and "exists and is ready" in output
    status, _, calls = tpu_vm("create", *SLICE, state="CREATING", script=[["describe", 0, "CREATING", "READY"]])
    assert status == 0 and verbs(calls) == []
    status, _, calls = tpu_vm("create", *SLICE, state="")
    assert status == 0 and verbs(calls) == ["create"]


def test_a_missing_quota_is_reported_in_one_line(tpu_vm):
    script = [[" create ", 1, "ERROR: RESOURCE_EXHAUSTED: Quota limit 'TPUV5sLitepodPerProject' exceeded", None]]
    status, output, calls = tpu_vm("create", *SLICE, script=script)
    assert status == 2 and "did not create" in output and "Quota limit" in output and verbs(calls) == ["create"]


def test_preemption_during_creation(tpu_vm):
    script = [[" create ", 1, "ERROR: the node was preempted", "PREEMPTED"]]
    status, output, _ = tpu_vm("create", *SLICE, "--spot", script=script)
    assert status == 2 and "PREEMPTED" in output
    status, output, calls = tpu_vm("create", *SLICE, "--spot", state="PREEMPTED")  # the same command again
    assert status == 0 and verbs(calls) == ["delete", "create"] and "--spot" in calls[-2]


def test_lost_connection_during_creation(tpu_vm):
    script = [[" create ", 1, "ERROR: connection reset", "CREATING"], ["describe", 1, "NOT_FOUND", None]]
    status, output, calls = tpu_vm("create", *SLICE, script=[*script, ["describe", 0, "CREATING", "READY"]])
    assert status == 0 and verbs(calls) == ["create"] and "Waiting for bt-test: CREATING" in output


def test_no_slice_is_created_if_gcloud_cannot_read_the_state(tpu_vm):
    status, output, calls = tpu_vm("create", *SLICE, script=[["describe", 1, "ERROR: not logged in", None]])
    assert status == 2 and "cannot read the state" in output and verbs(calls) == []


def test_the_run_continues_after_a_lost_connection(tpu_vm):
    script = [["until [ -e", 255, "", None]]
    status, output, calls = tpu_vm("run", *SLICE, *PROGRAM, state="READY", script=script)
    assert status == 0 and "Lost the connection" in output
    starts = [call for call in calls if "bt_jax.main" in call]
    # The second command does not remove the exit status, so it starts nothing after an exit.
    assert ["rm -f run.status" in start for start in starts] == [True, False]


def test_the_run_resumes_after_a_preemption(tpu_vm):
    script = [["until [ -e", 255, "", "PREEMPTED"]]
    status, output, calls = tpu_vm("run", *SLICE, *PROGRAM, state="READY", script=script)
    assert status == 0, output
    assert verbs(calls) == ["ssh", "ssh", "delete", "create", "scp", "ssh", "ssh", "ssh"]
    starts = [call for call in calls if "-m bt_jax.main" in call]
    assert len(starts) == 2 and starts[0] == starts[1]  # the same command


def test_the_run_waits_until_a_slice_is_available(tpu_vm):
    script = [["until [ -e", 255, "", "PREEMPTED"], [" create ", 1, "ERROR: no more capacity", None]]
    status, output, calls = tpu_vm("run", *SLICE, "--spot", *PROGRAM_ON_DISK, state="READY", script=script)
    assert status == 0 and "did not create" in output and "--workdir=gs://" in output
    assert [verb for verb in verbs(calls) if verb != "ssh"] == ["delete", "create", "create", "scp"]


def test_a_preempted_queued_slice_is_queued_again(tpu_vm):
    script = [["until [ -e", 255, "", ""]]
    options = ("--spot", "--queued")
    status, output, calls = tpu_vm("run", *SLICE, *options, *PROGRAM, state="READY", queue="SUSPENDED", script=script)
    assert status == 0 and "QUEUE_SUSPENDED" in output
    changes = [call.split()[:2] for call in calls if call.split()[1] in ("create", "delete")]
    assert changes == [["queued-resources", "delete"], ["queued-resources", "create"]]


def test_a_deleted_slice_is_not_created_again(tpu_vm):
    status, output, calls = tpu_vm("run", *SLICE, *PROGRAM, state="READY", script=[["until [ -e", 255, "", ""]])
    assert status == 2 and "someone has deleted it" in output and "create" not in verbs(calls)


def test_a_stopped_slice_is_started_with_its_disks(tpu_vm):
    status, _, calls = tpu_vm("create", *SLICE, state="STOPPED")
    assert status == 0 and verbs(calls) == ["start"]


def test_create_waits_for_the_end_of_a_deletion(tpu_vm):
    script = [["describe", 0, "DELETING", None], ["describe", 1, "NOT_FOUND", ""]]
    status, _, calls = tpu_vm("create", *SLICE, state="DELETING", script=script)
    assert status == 0 and verbs(calls) == ["create"]


def test_a_warning_of_gcloud_is_not_a_state(tpu_vm, tmp_path):
    gcloud = tmp_path / "gcloud"
    gcloud.write_text(
        gcloud.read_text().replace("import json", "import sys; print('WARNING: old', file=sys.stderr)\nimport json", 1)
    )
    assert verbs(tpu_vm("create", *SLICE, state="READY")[2]) == []


@pytest.fixture
def worker(tmp_path):
    """A worker's home folder with a fake `python`, which runs the next line of `todo` and logs its arguments in `did`.

    `sleep 10` sleeps for one second there.
    """
    home = tmp_path / "worker"
    for folder in ("bin", "venv/bin", "bt_jax/configs"):
        (home / folder).mkdir(parents=True)
    (home / "venv" / "bin" / "activate").touch()
    programs = {
        "python": 'echo "$@" >> did; todo=$(head -n 1 todo); sed -i 1d todo; eval "${todo:-exit 0}"',
        "sleep": f"exec {shutil.which('sleep')} $(($1 / 10)).$(($1 % 10))",
    }
    for name, body in programs.items():
        (home / "bin" / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
        (home / "bin" / name).chmod(0o755)
    (home / "did").touch()
    return home


@pytest.mark.parametrize(
    "todo, starts, status, message",
    [
        ("sleep 3", 1, 0, "has finished"),
        ("exit 75", 2, 0, "status 75"),
        ("exit 2", 1, 2, "status 2; its last lines"),
        ("kill -9 $PPID", 2, 0, "left no exit status"),  # like a reboot
        ("echo 75 > run.status; sleep 100", 2, 0, "status 75"),  # a leftover process is killed first
    ],
)
def test_commands_on_a_worker(tpu_vm, worker, todo, starts, status, message):
    (worker / "todo").write_text(f"echo at work; {todo}\n")
    got, output, _ = tpu_vm("run", *SLICE, *PROGRAM, state="READY")
    assert got == status and message in output and "at work" in output, output
    started = (worker / "did").read_text().splitlines()
    assert started == ["-m bt_jax.main --config=configs/quickstart.py --workdir=gs://mine/runs/tpu"] * starts


def test_a_running_program_is_not_started_again(tpu_vm, worker):
    (worker / "todo").write_text("sleep 30\n")
    script = [["until [ -e", 255, "", None]] * 3  # three lost connections; the fourth one holds
    status, output, _ = tpu_vm("run", *SLICE, *PROGRAM, state="READY", script=script)
    assert status == 0 and output.count("Lost the connection") == 3
    assert len((worker / "did").read_text().splitlines()) == 1


@pytest.mark.parametrize("exit_status, starts, status", [(75, 3, 0), (143, 3, 0), (2, 1, 2), (1, 1, 2)])
def test_the_exit_status_decides_about_a_restart(tpu_vm, exit_status, starts, status):
    script = [["until [ -e", 0, str(exit_status), None]] * 2
    got, output, calls = tpu_vm("run", *SLICE, *PROGRAM, state="READY", script=script)
    assert got == status and sum("-m bt_jax.main" in call for call in calls) == starts, output


def test_the_number_of_restarts_is_limited(tpu_vm):
    script = [["until [ -e", 0, "75", None]] * 9
    status, output, calls = tpu_vm("run", *SLICE, "--restarts=2", *PROGRAM, state="READY", script=script)
    assert status == 2 and "after 2 restarts" in output and sum("-m bt_jax.main" in call for call in calls) == 3


def test_delete_asks_for_confirmation(tpu_vm):
    status, output, calls = tpu_vm("delete", *SLICE, state="READY", answer="n\n")
    assert status == 2 and verbs(calls) == [] and "not deleted" in output
    assert verbs(tpu_vm("delete", *SLICE, state="READY", answer="y\n")[2]) == ["delete"]
    assert verbs(tpu_vm("delete", *SLICE, "--yes", state="READY")[2]) == ["delete"]
    assert verbs(tpu_vm("delete", *SLICE, "--yes", state="READY", queue="ACTIVE")[2]) == ["delete", "delete"]
    refused = [[" delete ", 1, "ERROR: PERMISSION_DENIED", None]]
    status, output, _ = tpu_vm("delete", *SLICE, "--yes", state="READY", script=refused)
    assert status == 2 and "still costs money" in output


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("create", "Bad_Name"), "lower-case letters"),
        (("create", "a"), "--zone is missing"),
        (("create", "a", "--zone=z"), "--type is missing"),
        (("create", "a", "--zone=z", "--tpye=v"), "Unknown option --tpye=v"),
        (("run", "a", "--zone=z"), "--config is missing"),
        (("run", "a", "--zone=z", "--", "--config=c"), "--workdir"),
    ],
)
def test_a_mistake_is_reported_in_one_line(tpu_vm, arguments, message):
    status, output, calls = tpu_vm(*arguments)
    assert status == 2 and message in output and output.count("\n") == 1 and calls == []


# --------------------------------------------------------------------------------------------------------------- others


@pytest.fixture
def fake_python(tmp_path):
    """A fake interpreter. Its bt_jax.main logs its arguments in `calls` and exits with the next line of `statuses`."""
    path = tmp_path / "python"
    path.write_text(
        f'#!/usr/bin/env bash\nif [ "$1" = -c ]; then exec {sys.executable} "$@"; fi\n'
        f'echo "$@ devices=${{CUDA_VISIBLE_DEVICES-all}} flags=$XLA_FLAGS" >> {tmp_path}/calls\n'
        f"exec 9> {tmp_path}/lock; flock 9\n"
        f"status=$(head -n 1 {tmp_path}/statuses); sed -i 1d {tmp_path}/statuses; exit ${{status:-0}}\n"
    )
    path.chmod(0o755)
    (tmp_path / "statuses").write_text("")
    return path


def local(fake_python, *arguments, **environment):
    command = ["bash", str(LAUNCH / "local.sh"), *arguments]
    environment = os.environ | {"PYTHON": str(fake_python), "XLA_FLAGS": ""} | environment
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    calls = fake_python.with_name("calls")
    return done, calls.read_text().splitlines() if calls.exists() else []


def test_local_processes(fake_python, tmp_path):
    arguments = (f"--workdir={tmp_path / 'runs' / 'two'}", "--config=a b")
    done, calls = local(fake_python, "3", *arguments)
    assert done.returncode == 0 and len(calls) == 3
    assert {f"--process={i} devices={i}" in call for i, call in enumerate(sorted(calls))} == {True}
    assert len({call.split("--coordinator=")[1].split()[0] for call in calls}) == 1
    fake_python.with_name("calls").unlink()
    _, calls = local(fake_python, "2x4", *arguments)
    assert all("device_count=4" in call and "devices=all" in call for call in calls) and len(calls) == 2
    assert local(fake_python, "0")[0].returncode == 2
    assert "--workdir is missing" in local(fake_python, "2")[0].stderr


@pytest.mark.parametrize(
    "statuses, restarts, starts, status", [("75 75", 3, 4, 0), ("75 75", 0, 2, 75), ("2 2", 3, 2, 2)]
)
def test_local_processes_are_restarted(fake_python, tmp_path, statuses, restarts, starts, status):
    fake_python.with_name("statuses").write_text(statuses.replace(" ", "\n") + "\n")
    done, calls = local(fake_python, "2", f"--workdir={tmp_path / 'run'}", RESTARTS=str(restarts))
    assert done.returncode == status and len(calls) == starts


@pytest.mark.parametrize("sent, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGUSR1, 138)])
def test_local_processes_get_the_signal(fake_python, tmp_path, sent, status):
    """They get SIGTERM for Ctrl-C, because background processes of a shell ignore Ctrl-C."""
    lines = fake_python.read_text().splitlines()
    calls = tmp_path / "calls"
    lines[2:] = ["trap 'exit 143' TERM", "trap 'exit 138' USR1", f"echo >> {calls}; while :; do sleep 0.1; done"]
    fake_python.write_text("\n".join(lines) + "\n")
    command = ["bash", str(LAUNCH / "local.sh"), "2", f"--workdir={tmp_path / 'run'}"]
    running = subprocess.Popen(
        command,
        env=os.environ | {"PYTHON": str(fake_python), "RESTARTS": "3"},
        # If the tests run in the background, they ignore Ctrl-C, and a child process inherits that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 30
    while not (calls.exists() and calls.read_text().count("\n") == 2) and time.monotonic() < deadline:
        time.sleep(0.05)
    running.send_signal(sent)
    try:
        assert running.wait(timeout=20) == status and calls.read_text().count("\n") == 2
    finally:
        if running.poll() is None:
            running.terminate()


@pytest.mark.parametrize(
    "exit_status, state, requeued, status",
    [
        (0, "RUNNING", False, 0),
        (138, "RUNNING", True, 0),
        (75, "RUNNING", True, 0),
        (137, "RUNNING", True, 0),
        (143, "COMPLETING", False, 143),  # scancel
        (2, "RUNNING", False, 2),
    ],
)
def test_slurm_queues_the_job_again(fake_python, tmp_path, exit_status, state, requeued, status):
    """With a fake srun and a fake scontrol; `tests/drills/slurm.sh` uses the real ones."""
    for name, body in {
        "srun": f'echo "$@" > {tmp_path}/srun; exit {exit_status}',
        "scontrol": f'[ "$1" = requeue ] && touch {tmp_path}/requeued || echo "JobId=7 JobState={state} Reason=None"',
    }.items():
        (tmp_path / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_SUBMIT_DIR": str(ROOT), "SLURM_JOB_ID": "7"}
    environment |= {"PYTHON": str(fake_python), "SLURM_CPUS_PER_TASK": "3"}
    done = subprocess.run(
        ["bash", str(LAUNCH / "slurm.sbatch"), "--config=c", "--workdir=w"], env=os.environ | environment, timeout=60
    )
    assert done.returncode == status
    assert (tmp_path / "requeued").exists() == requeued
    arguments = (tmp_path / "srun").read_text().split()
    assert arguments[-4:] == ["-m", "bt_jax.main", "--config=c", "--workdir=w"]
    assert "--kill-on-bad-exit=0" in arguments and "--cpus-per-task=3" in arguments


@pytest.fixture
def manifest():
    return yaml.safe_load((LAUNCH / "gke" / "jobset.yaml").read_text())


def test_gke_manifest_describes_one_slice(manifest):
    job = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]
    assert job["parallelism"] == job["completions"] == 16 // 4  # 4x4 chips, four per host
    assert job["template"]["spec"]["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == "4x4"


def test_gke_manifest_is_a_jobset(manifest):
    """The classes of JobSet's API description drop unknown keys. They must drop no key of the manifest."""
    module = "kubeflow_trainer_api.models.jobset_v1alpha2_job_set"
    models = pytest.importorskip(module, reason="pip install kubeflow-trainer-api, which holds JobSet's schema")
    read = json.loads(models.JobsetV1alpha2JobSet.from_dict(manifest).to_json())
    assert _dropped(manifest, read) == []


def _dropped(given, read, path="") -> list[str]:
    """Paths of the values that `given` has and `read` lacks. `read` may have more, such as defaults."""
    if isinstance(given, dict):
        keys = [(key, value, (read or {}).get(key)) for key, value in given.items()]
    elif isinstance(given, list):
        keys = [(str(i), *pair) for i, pair in enumerate(zip(given, read or [None] * len(given), strict=True))]
    else:
        return [] if given == read else [path]
    return [lost for key, one, other in keys for lost in _dropped(one, other, f"{path}/{key}")]


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="shellcheck is not installed")
def test_scripts_are_clean():
    scripts = [str(path.relative_to(ROOT)) for path in sorted([*LAUNCH.glob("*.sh"), *LAUNCH.glob("*.sbatch")])]
    done = subprocess.run(["shellcheck", "-x", *scripts], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and len(scripts) >= 6, done.stdout
