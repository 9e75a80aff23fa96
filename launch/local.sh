#!/usr/bin/env bash
# Runs bt_jax.main in several processes on this machine. If one process dies, the others exit too.
#   bash launch/local.sh 2 --config=configs/quickstart.py --workdir=runs/two      2 processes; on GPUs, one GPU each
#   bash launch/local.sh 2x4 --config=... --workdir=...                           2 processes of 4 simulated CPU devices
# Process 0 prints here. Process N writes to WORKDIR-process-N.log, for gs://…/RUN to RUN-process-N.log in this folder.
# SIGTERM, SIGUSR1 and Ctrl-C reach all processes, and the run saves a checkpoint.
# RESTARTS=3 runs the command again, up to three times, if a process died (status 75).
# PYTHON names the interpreter (default .venv/bin/python).
set -euo pipefail
cd "$(dirname "$0")/.."
usage() { sed -n '2,8s/^# //p' "$0" >&2; exit 2; }
[[ ${1:-} =~ ^([1-9][0-9]*)(x([1-9][0-9]*))?$ ]] || usage
processes=${BASH_REMATCH[1]} devices=${BASH_REMATCH[3]:-}
shift
workdir=
for argument in "$@"; do
  case $argument in --workdir=*) workdir=${argument#--workdir=} ;; esac
done
[ -n "$workdir" ] || { echo "launch/local.sh: --workdir is missing. Add --workdir=FOLDER." >&2; exit 2; }
python=${PYTHON:-.venv/bin/python}
if ! command -v "$python" >/dev/null; then
  # shellcheck source=launch/environment.sh
  source launch/environment.sh
  environment .venv ""
  python=.venv/bin/python
fi
if [ -n "$devices" ]; then
  export JAX_PLATFORMS=cpu XLA_FLAGS="${XLA_FLAGS:-} --xla_force_host_platform_device_count=$devices"
fi
logs=$workdir
[[ $workdir != *://* ]] || logs=${workdir##*/} # logs are local files, also if the run folder is in a bucket
mkdir -p "$(dirname "$logs")"

pids=()
signalled=0 interrupted=0 # signalled: by any signal, so no restart; interrupted: by Ctrl-C
# shellcheck disable=SC2317,SC2329 # called by the traps
forward() { # $1: the signal that all processes get
  signalled=1
  for pid in "${pids[@]}"; do kill -s "$1" "$pid" 2>/dev/null || true; done
}
# Background processes of a non-interactive shell ignore Ctrl-C, so they get SIGTERM.
trap 'interrupted=1; forward TERM' INT
trap 'forward TERM' TERM
trap 'forward USR1' USR1

run_all() { # starts all processes, waits for them, and sets `status` to their largest exit status
  local port index prefix=()
  port=$("$python" -c 'import socket; s = socket.socket(); s.bind(("localhost", 0)); print(s.getsockname()[1])')
  pids=() status=0
  for ((index = processes - 1; index >= 0; index--)); do
    local command=("$python" -m bt_jax.main "${@}" --coordinator="localhost:$port" --processes="$processes" --process="$index")
    [ "$processes" -gt 1 ] || command=("$python" -m bt_jax.main "$@")
    prefix=()
    if [ -z "$devices" ] && [ "$processes" -gt 1 ]; then prefix=(env CUDA_VISIBLE_DEVICES="$index"); fi
    if [ "$index" -gt 0 ]; then
      "${prefix[@]}" "${command[@]}" >>"$logs-process-$index.log" 2>&1 &
    else
      "${prefix[@]}" "${command[@]}" &
    fi
    pids+=($!)
  done
  for pid in "${pids[@]}"; do
    local exit_status=0
    wait "$pid" || exit_status=$?
    while kill -0 "$pid" 2>/dev/null; do # a trapped signal interrupted `wait`; the process still runs
      exit_status=0
      wait "$pid" || exit_status=$?
    done
    [ "$exit_status" -le "$status" ] || status=$exit_status
  done
}

for ((restarts = ${RESTARTS:-0}; ; restarts--)); do
  run_all "$@"
  # 75: another process died; 134, 137, 139: this process was aborted, was killed, or crashed.
  case $status in 75 | 134 | 137 | 139) ;; *) break ;; esac
  if [ "$restarts" -le 0 ] || [ "$signalled" = 1 ]; then break; fi
  echo "launch/local.sh: A process exited with status $status. Restarting all; restarts left: $((restarts - 1))." >&2
done
if [ "$status" -ne 0 ] && [ "$processes" -gt 1 ]; then
  echo "launch/local.sh: The run exited with status $status. See also the other logs: $logs-process-*.log." >&2
fi
if [ "$interrupted" = 1 ] && [ "$status" = 143 ]; then status=130; fi
exit "$status"
