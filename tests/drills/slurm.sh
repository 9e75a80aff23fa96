#!/usr/bin/env bash
# Tests launch/slurm.sbatch on a SLURM of this one machine, with Debian's packages slurmctld, slurmd and munge.
# The first job is uninterrupted. The second job gets signals, and one of its tasks is killed; the job must queue itself
# again, resume, and give the same run as the first. Two more jobs must not queue themselves again: one with an error in
# its command, and one that scancel ends. Run it as root in a container or VM:
#   apt-get install -y slurmctld slurmd munge && bash tests/drills/slurm.sh
# PYTHON names the interpreter (default .venv/bin/python). All files go below WORK (default: a temporary folder), except
# munge's key.
set -euo pipefail
cd "$(dirname "$0")/../.."
export PYTHON=${PYTHON:-$PWD/.venv/bin/python}
for program in slurmctld slurmd munged; do
  if ! command -v "$program" >/dev/null; then
    echo "tests/drills/slurm.sh: $program is not installed. The first lines of this file have the command." >&2
    exit 2
  fi
done
work=${WORK:-$(mktemp -d)}
mkdir -p "$work/state" "$work/spool" "$work/log"
host=$(hostname -s) cpus=$(nproc)
export SLURM_CONF=$work/slurm.conf

stop() {
  pkill -F "$work/slurmd.pid" 2>/dev/null || true
  pkill -F "$work/slurmctld.pid" 2>/dev/null || true
}
trap stop EXIT

if ! munge -n >/dev/null 2>&1; then
  [ -e /etc/munge/munge.key ] || { dd if=/dev/urandom of=/etc/munge/munge.key bs=1 count=1024 2>/dev/null; }
  mkdir -p /run/munge
  chown -R munge: /etc/munge /run/munge /var/lib/munge /var/log/munge 2>/dev/null || true
  chmod 400 /etc/munge/munge.key && chmod 755 /run/munge
  runuser -u munge -- munged --force
fi
cat >"$SLURM_CONF" <<CONF
ClusterName=one
SlurmctldHost=$host
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=cred_expire=5
StateSaveLocation=$work/state
SlurmdSpoolDir=$work/spool
SlurmctldPidFile=$work/slurmctld.pid
SlurmdPidFile=$work/slurmd.pid
SlurmctldLogFile=$work/log/slurmctld
SlurmdLogFile=$work/log/slurmd
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
JobRequeue=1
ReturnToService=2
SchedulerParameters=sched_interval=2,requeue_delay=1
KillWait=30
MpiDefault=none
NodeName=$host CPUs=$cpus State=UNKNOWN
PartitionName=all Nodes=$host Default=YES MaxTime=INFINITE State=UP
CONF
slurmctld
slurmd
for _ in $(seq 60); do
  sinfo --noheader --format=%T 2>/dev/null | grep -q idle && break
  sleep 1
done
sinfo

export JAX_PLATFORMS=cpu XLA_FLAGS=--xla_force_host_platform_device_count=2
options=(--config=configs/quickstart.py:smoke --config.total_epochs=10.0 --config.evals.final=False
  "--config.data.train_split=train[:64]" --config.evals.every_epochs=2.0 --config.log.every_steps=1)
submit() { # $1: the run folder, then more options; prints the job's number
  local run=$1
  shift
  # The script asks for one GPU per task, but this machine has none. This drill sends USR1 itself.
  sbatch --parsable --gpus-per-task=0 --cpus-per-task=1 --ntasks-per-node="$cpus" --time=60 --output="$work/$run.out" \
    launch/slurm.sbatch --workdir="$work/$run" "${options[@]}" "$@"
}
wait_for() {
  while squeue --noheader --jobs="$1" 2>/dev/null | grep -q .; do sleep 1; done
}
echo "--- uninterrupted, $cpus tasks"
wait_for "$(submit whole)"
tail -n 3 "$work/whole.out"
echo "--- signalled and killed"
job=$(submit victim)
lines() { grep -c step "$work/victim/metrics.jsonl" 2>/dev/null || true; }
for signal in USR1 TERM KILL; do
  before=$(lines)
  while [ "$(lines)" -lt $((${before:-0} + 7)) ] 2>/dev/null || [ -z "$(lines)" ]; do
    squeue --noheader --jobs="$job" 2>/dev/null | grep -q . || break
    sleep 0.2
  done
  if [ "$signal" = KILL ]; then
    echo "kill -9 on one task"
    pkill -9 -n -f "bt_jax.main --workdir=$work/victim"
  else
    echo "scancel --signal=$signal $job"
    scancel --signal="$signal" "$job" || break
  fi
  sleep 3
done
wait_for "$job"
grep -iE 'saves and stops within|stopped and saved at|collective of all processes failed|has ended|queueing|resuming from|step 40/40' "$work/victim.out" | cut -c 1-160 || true
"$PYTHON" - "$work/whole" "$work/victim" <<'PYTHON'
import pathlib, sys
from tests.drills.kills import hashes
whole, victim = (hashes(pathlib.Path(path)) for path in sys.argv[1:])
print("the same arrays, the same lines" if whole == victim else f"NOT the same: {whole} {victim}")
sys.exit(whole != victim)
PYTHON
echo "--- an error in the command"
wait_for "$(submit mistake --config.data.folder=/no-such-folder)"
grep -iE 'no-such-folder|queueing' "$work/mistake.out" | cut -c 1-160
if grep -qi queueing "$work/mistake.out"; then exit 1; fi
echo "--- cancelled"
job=$(submit cancelled)
while [ ! -s "$work/cancelled/metrics.jsonl" ]; do sleep 0.5; done
scancel "$job"
wait_for "$job"
grep -iE 'saves and stops within|stopped and saved at|slurm.sbatch' "$work/cancelled.out" | cut -c 1-160
if grep -qi queueing "$work/cancelled.out"; then exit 1; fi
