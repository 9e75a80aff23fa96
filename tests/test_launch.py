"""The launchers: `tpu_vm.sh` against a stand-in for gcloud in its failure modes, `local.sh`, SLURM's script, GKE's."""

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
ON_ITS_DISKS = (*PROGRAM[:-1], "--workdir=runs/tpu")

# Writes its arguments down. A step of $SCRIPT is [what the arguments hold, status, output, state afterwards]; the first
# that fits is used up; whatever is not in the script is done and says nothing. What is told to a worker is done in the
# folder `worker`, if there is one.
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
    """tpu_vm(verb, *arguments, state=…, script=…) -> (status, what was said, calls of gcloud)."""
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
    """["create", "ssh", …] without the looks."""
    return [call.split()[1] for call in calls if call.split()[1] != "describe"]


SLICE = ("bt-test", "--zone=us-west4-a", "--type=v5litepod-16")


def test_dry_run_prints_every_command_and_calls_nothing(tpu_vm):
    status, said, calls = tpu_vm("all", *SLICE, "--dry-run", *PROGRAM)
    assert status == 0 and calls == []
    lines = [line for line in said.splitlines() if line.startswith("+ ")]
    assert "bt_jax.plan --config=configs/quickstart.py --topology=v5e:4x4" in lines[0]
    assert "--accelerator-type=v5litepod-16 --version=v2-alpha-tpuv5-lite" in lines[1]
    assert any("bt_jax.main" in line and "gs://mine/runs/tpu" in line and "--worker=all" in line for line in lines)
    known = ("bt_jax.plan", "create", "scp", "ssh", "mkdir", "tar", "rm", "storage")
    words = [next(word for word in line.split() if word in known) for line in lines]
    assert words == ["bt_jax.plan", "create", "scp", "ssh", "ssh", "ssh", "mkdir", "storage"]
    assert "[tpu,tfds,gcs]" in lines[3] and not (ROOT / "runs" / "tpu").exists()
    assert lines[-1].endswith("gcloud storage rsync --recursive gs://mine/runs/tpu runs/tpu")
    status, said, _ = tpu_vm("fetch", *SLICE, "--dry-run", "--light", *ON_ITS_DISKS)
    lines = [line for line in said.splitlines() if line.startswith("+ ")]
    assert [next(word for word in line.split() if word in known) for line in lines] == [
        "mkdir",
        "ssh",
        "scp",
        "tar",
        "rm",
    ]
    assert "--exclude=train" in lines[1]


def test_nothing_is_created_twice(tpu_vm):
    status, said, calls = tpu_vm("create", *SLICE, state="READY")
    assert status == 0 and verbs(calls) == [] and "is there and ready" in said
    status, _, calls = tpu_vm("create", *SLICE, state="CREATING", script=[["describe", 0, "CREATING", "READY"]])
    assert status == 0 and verbs(calls) == []
    status, _, calls = tpu_vm("create", *SLICE, state="")
    assert status == 0 and verbs(calls) == ["create"]


def test_no_quota_is_said_in_one_line(tpu_vm):
    script = [[" create ", 1, "ERROR: RESOURCE_EXHAUSTED: Quota limit 'TPUV5sLitepodPerProject' exceeded", None]]
    status, said, calls = tpu_vm("create", *SLICE, script=script)
    assert status == 2 and "was not created" in said and "Quota limit" in said and verbs(calls) == ["create"]


def test_preempted_while_it_is_created(tpu_vm):
    script = [[" create ", 1, "ERROR: the node was preempted", "PREEMPTED"]]
    status, said, _ = tpu_vm("create", *SLICE, "--spot", script=script)
    assert status == 2 and "PREEMPTED" in said
    status, said, calls = tpu_vm("create", *SLICE, "--spot", state="PREEMPTED")  # the same command again
    assert status == 0 and verbs(calls) == ["delete", "create"] and "--spot" in calls[-2]


def test_the_connection_is_lost_while_it_is_created(tpu_vm):
    script = [[" create ", 1, "ERROR: connection reset", "CREATING"], ["describe", 1, "NOT_FOUND", None]]
    status, said, calls = tpu_vm("create", *SLICE, script=[*script, ["describe", 0, "CREATING", "READY"]])
    assert status == 0 and verbs(calls) == ["create"] and "waiting for bt-test: CREATING" in said


def test_gcloud_that_does_not_answer_makes_nothing(tpu_vm):
    status, said, calls = tpu_vm("create", *SLICE, script=[["describe", 1, "ERROR: not logged in", None]])
    assert status == 2 and "does not answer" in said and verbs(calls) == []


def test_the_run_goes_on_after_a_lost_connection(tpu_vm):
    script = [["until [ -e", 255, "", None]]
    status, said, calls = tpu_vm("run", *SLICE, *PROGRAM, state="READY", script=script)
    assert status == 0 and "connection lost" in said
    starts = [call for call in calls if "bt_jax.main" in call]
    assert ["rm -f run.status" in start for start in starts] == [True, False]  # the second only if a host was restarted


def test_the_run_goes_on_after_a_preemption(tpu_vm):
    script = [["until [ -e", 255, "", "PREEMPTED"]]
    status, said, calls = tpu_vm("run", *SLICE, *PROGRAM, state="READY", script=script)
    assert status == 0, said
    assert verbs(calls) == ["ssh", "ssh", "delete", "create", "scp", "ssh", "ssh", "ssh"]
    starts = [call for call in calls if "-m bt_jax.main" in call]
    assert len(starts) == 2 and starts[0] == starts[1]  # the same command


def test_the_run_waits_for_a_slice_to_be_had(tpu_vm):
    script = [["until [ -e", 255, "", "PREEMPTED"], [" create ", 1, "ERROR: no more capacity", None]]
    status, said, calls = tpu_vm("run", *SLICE, "--spot", *ON_ITS_DISKS, state="READY", script=script)
    assert status == 0 and "was not created" in said and "--workdir=gs://" in said
    assert [verb for verb in verbs(calls) if verb != "ssh"] == ["delete", "create", "create", "scp"]


def test_a_queued_slice_that_was_preempted_is_queued_again(tpu_vm):
    script = [["until [ -e", 255, "", ""]]
    options = ("--spot", "--queued")
    status, said, calls = tpu_vm("run", *SLICE, *options, *PROGRAM, state="READY", queue="SUSPENDED", script=script)
    assert status == 0 and "QUEUE_SUSPENDED" in said
    made = [call.split()[:2] for call in calls if call.split()[1] in ("create", "delete")]
    assert made == [["queued-resources", "delete"], ["queued-resources", "create"]]


def test_a_slice_that_somebody_deleted_is_not_made_anew(tpu_vm):
    status, said, calls = tpu_vm("run", *SLICE, *PROGRAM, state="READY", script=[["until [ -e", 255, "", ""]])
    assert status == 2 and "somebody has deleted it" in said and "create" not in verbs(calls)


def test_a_stopped_slice_is_started_with_its_disks(tpu_vm):
    status, _, calls = tpu_vm("create", *SLICE, state="STOPPED")
    assert status == 0 and verbs(calls) == ["start"]


def test_a_slice_that_is_being_deleted_is_waited_for(tpu_vm):
    script = [["describe", 0, "DELETING", None], ["describe", 1, "NOT_FOUND", ""]]
    status, _, calls = tpu_vm("create", *SLICE, state="DELETING", script=script)
    assert status == 0 and verbs(calls) == ["create"]


def test_warnings_of_gcloud_are_no_state(tpu_vm, tmp_path):
    gcloud = tmp_path / "gcloud"
    gcloud.write_text(
        gcloud.read_text().replace("import json", "import sys; print('WARNING: old', file=sys.stderr)\nimport json", 1)
    )
    assert verbs(tpu_vm("create", *SLICE, state="READY")[2]) == []


@pytest.fixture
def worker(tmp_path):
    """A worker's home, whose python takes what to do from `todo`, a line each time, and writes down its arguments.

    Its seconds are tenths of ours.
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
    "todo, starts, ends, says",
    [
        ("sleep 3", 1, 0, "through"),
        ("exit 75", 2, 0, "status 75"),
        ("exit 2", 1, 2, "status 2; its last lines"),
        ("kill -9 $PPID", 2, 0, "status vanished"),  # as a reboot does
        ("echo 75 > run.status; sleep 100", 2, 0, "status 75"),  # what is left of it is ended first
    ],
)
def test_what_is_told_to_a_worker_works(tpu_vm, worker, todo, starts, ends, says):
    (worker / "todo").write_text(f"echo at work; {todo}\n")
    status, said, _ = tpu_vm("run", *SLICE, *PROGRAM, state="READY")
    assert status == ends and says in said and "at work" in said, said
    started = (worker / "did").read_text().splitlines()
    assert started == ["-m bt_jax.main --config=configs/quickstart.py --workdir=gs://mine/runs/tpu"] * starts


def test_a_program_that_runs_is_not_started_again(tpu_vm, worker):
    (worker / "todo").write_text("sleep 30\n")
    script = [["until [ -e", 255, "", None]] * 3  # the connection is lost, and its place is taken by the next
    status, said, _ = tpu_vm("run", *SLICE, *PROGRAM, state="READY", script=script)
    assert status == 0 and said.count("connection lost") == 3
    assert len((worker / "did").read_text().splitlines()) == 1


@pytest.mark.parametrize("ended, starts, status", [(75, 3, 0), (143, 3, 0), (2, 1, 2), (1, 1, 2)])
def test_what_is_started_again(tpu_vm, ended, starts, status):
    script = [["until [ -e", 0, str(ended), None]] * 2
    got, said, calls = tpu_vm("run", *SLICE, *PROGRAM, state="READY", script=script)
    assert got == status and sum("-m bt_jax.main" in call for call in calls) == starts, said


def test_it_is_not_started_again_for_ever(tpu_vm):
    script = [["until [ -e", 0, "75", None]] * 9
    status, said, calls = tpu_vm("run", *SLICE, "--restarts=2", *PROGRAM, state="READY", script=script)
    assert status == 2 and "2 times" in said and sum("-m bt_jax.main" in call for call in calls) == 3


def test_deleting_asks(tpu_vm):
    status, said, calls = tpu_vm("delete", *SLICE, state="READY", answer="n\n")
    assert status == 2 and verbs(calls) == [] and "not deleted" in said
    assert verbs(tpu_vm("delete", *SLICE, state="READY", answer="y\n")[2]) == ["delete"]
    assert verbs(tpu_vm("delete", *SLICE, "--yes", state="READY")[2]) == ["delete"]
    assert verbs(tpu_vm("delete", *SLICE, "--yes", state="READY", queue="ACTIVE")[2]) == ["delete", "delete"]
    refused = [[" delete ", 1, "ERROR: PERMISSION_DENIED", None]]
    status, said, _ = tpu_vm("delete", *SLICE, "--yes", state="READY", script=refused)
    assert status == 2 and "costs as before" in said


@pytest.mark.parametrize(
    "arguments, said",
    [
        (("create", "Bad_Name"), "small letters"),
        (("create", "a"), "no --zone"),
        (("create", "a", "--zone=z"), "no --type"),
        (("create", "a", "--zone=z", "--tpye=v"), "unknown option --tpye=v"),
        (("run", "a", "--zone=z"), "no --config"),
        (("run", "a", "--zone=z", "--", "--config=c"), "--workdir"),
    ],
)
def test_mistakes_give_one_line(tpu_vm, arguments, said):
    status, told, calls = tpu_vm(*arguments)
    assert status == 2 and said in told and told.count("\n") == 1 and calls == []


# --------------------------------------------------------------------------------------------------------------- others


@pytest.fixture
def fake_python(tmp_path):
    """An interpreter whose bt_jax.main writes its arguments down and ends with what is next in `statuses`."""
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
    assert "no --workdir" in local(fake_python, "2")[0].stderr


@pytest.mark.parametrize(
    "statuses, restarts, starts, status", [("75 75", 3, 4, 0), ("75 75", 0, 2, 75), ("2 2", 3, 2, 2)]
)
def test_local_processes_are_started_again(fake_python, tmp_path, statuses, restarts, starts, status):
    fake_python.with_name("statuses").write_text(statuses.replace(" ", "\n") + "\n")
    done, calls = local(fake_python, "2", f"--workdir={tmp_path / 'run'}", RESTARTS=str(restarts))
    assert done.returncode == status and len(calls) == starts


@pytest.mark.parametrize("told, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGUSR1, 138)])
def test_local_processes_are_told_to_stop(fake_python, tmp_path, told, status):
    """Ctrl-C reaches them as SIGTERM: a shell has it ignored by what it puts into the background."""
    lines = fake_python.read_text().splitlines()
    calls = tmp_path / "calls"
    lines[2:] = ["trap 'exit 143' TERM", "trap 'exit 138' USR1", f"echo >> {calls}; while :; do sleep 0.1; done"]
    fake_python.write_text("\n".join(lines) + "\n")
    command = ["bash", str(LAUNCH / "local.sh"), "2", f"--workdir={tmp_path / 'run'}"]
    running = subprocess.Popen(
        command,
        env=os.environ | {"PYTHON": str(fake_python), "RESTARTS": "3"},
        # Tests in the background have Ctrl-C ignored, and hand that on.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 30
    while not (calls.exists() and calls.read_text().count("\n") == 2) and time.monotonic() < deadline:
        time.sleep(0.05)
    running.send_signal(told)
    try:
        assert running.wait(timeout=20) == status and calls.read_text().count("\n") == 2
    finally:
        if running.poll() is None:
            running.terminate()


@pytest.mark.parametrize(
    "ended, state, requeued, status",
    [
        (0, "RUNNING", False, 0),
        (138, "RUNNING", True, 0),
        (75, "RUNNING", True, 0),
        (137, "RUNNING", True, 0),
        (143, "COMPLETING", False, 143),  # scancel
        (2, "RUNNING", False, 2),
    ],
)
def test_slurm_queues_the_job_again(fake_python, tmp_path, ended, state, requeued, status):
    """With stand-ins for srun and scontrol; the real ones: `tests/drills/slurm.sh`."""
    for name, body in {
        "srun": f'echo "$@" > {tmp_path}/srun; exit {ended}',
        "scontrol": f'[ "$1" = requeue ] && touch {tmp_path}/asked || echo "JobId=7 JobState={state} Reason=None"',
    }.items():
        (tmp_path / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_SUBMIT_DIR": str(ROOT), "SLURM_JOB_ID": "7"}
    environment |= {"PYTHON": str(fake_python), "SLURM_CPUS_PER_TASK": "3"}
    done = subprocess.run(
        ["bash", str(LAUNCH / "slurm.sbatch"), "--config=c", "--workdir=w"], env=os.environ | environment, timeout=60
    )
    assert done.returncode == status
    assert (tmp_path / "asked").exists() == requeued
    asked = (tmp_path / "srun").read_text().split()
    assert asked[-4:] == ["-m", "bt_jax.main", "--config=c", "--workdir=w"]
    assert "--kill-on-bad-exit=0" in asked and "--cpus-per-task=3" in asked


@pytest.fixture
def manifest():
    return yaml.safe_load((LAUNCH / "gke" / "jobset.yaml").read_text())


def test_gke_manifest_is_of_one_slice(manifest):
    job = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]
    assert job["parallelism"] == job["completions"] == 16 // 4  # 4x4 chips, four a host
    assert job["template"]["spec"]["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == "4x4"


def test_gke_manifest_is_a_jobset(manifest):
    """By the models that the JobSet project's API description gives; a key that they do not know is dropped."""
    module = "kubeflow_trainer_api.models.jobset_v1alpha2_job_set"
    models = pytest.importorskip(module, reason="pip install kubeflow-trainer-api, which holds JobSet's schema")
    read = json.loads(models.JobsetV1alpha2JobSet.from_dict(manifest).to_json())
    assert _dropped(manifest, read) == []


def _dropped(given, read, path="") -> list[str]:
    """What is in the first and not in the second, which may have more: defaults."""
    if isinstance(given, dict):
        keys = [(key, value, (read or {}).get(key)) for key, value in given.items()]
    elif isinstance(given, list):
        keys = [(str(i), *pair) for i, pair in enumerate(zip(given, read or [None] * len(given), strict=True))]
    else:
        return [] if given == read else [path]
    return [each for key, one, other in keys for each in _dropped(one, other, f"{path}/{key}")]


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="shellcheck is not installed")
def test_scripts_are_clean():
    scripts = [str(path.relative_to(ROOT)) for path in sorted([*LAUNCH.glob("*.sh"), *LAUNCH.glob("*.sbatch")])]
    done = subprocess.run(["shellcheck", "-x", *scripts], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and len(scripts) >= 6, done.stdout
