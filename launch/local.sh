#!/usr/bin/env bash
# Runs bt_jax.main in several processes on this machine; one that ends takes the others with it.
#   bash launch/local.sh 2 --config=configs/quickstart.py --workdir=runs/two       2 processes; of GPUs one each
#   bash launch/local.sh 2x4 --config=... --workdir=...                            of 4 simulated CPU devices each
# Process 0 talks here, the others to WORKDIR-process-N.log (of gs://…/RUN to RUN-process-N.log here). SIGTERM, SIGUSR1 and Ctrl-C are handed on: the run is saved.
# RESTARTS=3 gives the command again where a process died (status 75), up to three times. PYTHON: .venv's by default.
set -euo pipefail
cd "$(dirname "$0")/.."
usage() { sed -n '2,6s/^# //p' "$0" >&2; exit 2; }
[[ ${1:-} =~ ^([1-9][0-9]*)(x([1-9][0-9]*))?$ ]] || usage
processes=${BASH_REMATCH[1]} devices=${BASH_REMATCH[3]:-}
shift
workdir=
for argument in "$@"; do
  case $argument in --workdir=*) workdir=${argument#--workdir=} ;; esac
done
[ -n "$workdir" ] || { echo "launch/local.sh: no --workdir is given. Name the run folder." >&2; exit 2; }
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
[[ $workdir != *://* ]] || logs=${workdir##*/} # of a run in a bucket they are here
mkdir -p "$(dirname "$logs")"

pids=()
told=0 interrupted=0 # to stop: then nothing is started again; by Ctrl-C
# shellcheck disable=SC2317,SC2329 # called by the traps
hand_on() {
  told=1
  for pid in "${pids[@]}"; do kill -s "$1" "$pid" 2>/dev/null || true; done
}
# A shell that is not interactive starts what it puts into the background with Ctrl-C ignored.
trap 'interrupted=1; hand_on TERM' INT
trap 'hand_on TERM' TERM
trap 'hand_on USR1' USR1

round() { # starts all processes, waits for them, and sets `status` to the largest of their statuses
  local port index one=()
  port=$("$python" -c 'import socket; s = socket.socket(); s.bind(("localhost", 0)); print(s.getsockname()[1])')
  pids=() status=0
  for ((index = processes - 1; index >= 0; index--)); do
    local command=("$python" -m bt_jax.main "${@}" --coordinator="localhost:$port" --processes="$processes" --process="$index")
    [ "$processes" -gt 1 ] || command=("$python" -m bt_jax.main "$@")
    one=()
    if [ -z "$devices" ] && [ "$processes" -gt 1 ]; then one=(env CUDA_VISIBLE_DEVICES="$index"); fi
    if [ "$index" -gt 0 ]; then
      "${one[@]}" "${command[@]}" >>"$logs-process-$index.log" 2>&1 &
    else
      "${one[@]}" "${command[@]}" &
    fi
    pids+=($!)
  done
  for pid in "${pids[@]}"; do
    local got=0
    wait "$pid" || got=$?
    while kill -0 "$pid" 2>/dev/null; do # the wait was broken off by a signal that was handed on
      got=0
      wait "$pid" || got=$?
    done
    [ "$got" -le "$status" ] || status=$got
  done
}

for ((left = ${RESTARTS:-0}; ; left--)); do
  round "$@"
  # 75: another process died; 134, 137, 139: this is how.
  case $status in 75 | 134 | 137 | 139) ;; *) break ;; esac
  if [ "$left" -le 0 ] || [ "$told" = 1 ]; then break; fi
  echo "launch/local.sh: a process ended with status $status; starting all again ($left left)" >&2
done
if [ "$status" -ne 0 ] && [ "$processes" -gt 1 ]; then
  echo "launch/local.sh: status $status; what the others said: $logs-process-*.log" >&2
fi
if [ "$interrupted" = 1 ] && [ "$status" = 143 ]; then status=130; fi
exit "$status"
