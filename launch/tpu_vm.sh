#!/usr/bin/env bash
# A Cloud TPU VM slice, from creating it to fetching the run, for one run of bt_jax.main.
#   bash launch/tpu_vm.sh all    NAME --zone=us-west4-a --type=v5litepod-16 -- --config=... --workdir=gs://MINE/RUN
#   bash launch/tpu_vm.sh create NAME --zone=... --type=...     only that part: create, install, run, log, fetch, delete
#
#   plan     compiles the config for the slice on this machine, to see that it fits (bt_jax.plan); part of `all`
#   create   makes the slice, or waits for it in the queue; not twice
#   install  copies this checkout to all workers and installs it
#   run      starts the program on all workers, or finds it running, and follows worker 0 to the end; started again after
#            a preemption, maintenance, a reboot or a process that died
#   log      the last lines of every worker
#   fetch    copies the run folder here, to RUN, without the checkpoints' optimizer if --light
#   delete   asks first; also what is still in the queue
#   all      plan, create, install, run, fetch; the slice stays, and so do its costs, until it is deleted
#
# Options: --zone, --type (v5litepod-16, v6e-8, v4-32, …), --version (of the TPU software; by the type), --project, --spot,
# --queued (a queued resource, for slices that are not to be had at once), --restarts=20 (of runs shorter than ten minutes),
# --yes (delete without asking), --dry-run (prints every command and runs none).
# GCLOUD names another gcloud, POLL the seconds between two looks (30).
set -uo pipefail
cd "$(dirname "$0")/.." || exit 2
gcloud=${GCLOUD:-gcloud} poll=${POLL:-30}
zone='' type='' version='' project='' spot=0 queued=0 restarts=20 yes=0 dry=0 light=0

fail() { # cause and cure in one line
  echo "launch/tpu_vm.sh: $*" >&2
  exit 2
}
say() { echo "launch/tpu_vm.sh: $*" >&2; }

verb=${1:-} name=${2:-}
case $verb in plan | create | install | run | log | fetch | delete | all) ;; *)
  sed -n '2,24s/^# \{0,1\}//p' "$0" >&2
  exit 2
  ;;
esac
[[ $name =~ ^[a-z][a-z0-9-]*$ ]] || fail "a slice's NAME is of small letters, digits and hyphens, not '$name'. See --help."
shift 2
while [ $# -gt 0 ]; do
  case $1 in
    --zone=*) zone=${1#*=} ;;
    --type=*) type=${1#*=} ;;
    --version=*) version=${1#*=} ;;
    --project=*) project=${1#*=} ;;
    --restarts=*) restarts=${1#*=} ;;
    --spot) spot=1 ;;
    --queued) queued=1 ;;
    --yes) yes=1 ;;
    --light) light=1 ;;
    --dry-run) dry=1 ;;
    --) shift && break ;;
    *) fail "unknown option $1. Arguments of the program come after --; see the head of this file." ;;
  esac
  shift
done
program=("$@")
[ -n "$zone" ] || fail "no --zone is given. Name the zone, e.g. --zone=us-west4-a."
[ "$dry" = 1 ] || command -v "$gcloud" >/dev/null || fail "there is no $gcloud. Install the Google Cloud CLI."
where=(--zone="$zone" --quiet)
[ -z "$project" ] || where+=(--project="$project")

workdir='' config=()
for argument in "${program[@]}"; do
  case $argument in
    --workdir=*) workdir=${argument#--workdir=} ;;
    --config | --config.* | --config=*) config+=("$argument") ;;
  esac
done
needs_program() {
  [ ${#config[@]} -gt 0 ] || fail "no --config is given. Write it after --, as for bt_jax.main."
  [[ ${program[*]} != *"'"* ]] || fail "an argument has a quote (') in it. Write it without."
  [[ $workdir =~ ^(gs://[a-z0-9._-]+/)?[A-Za-z0-9._/-]+$ ]] ||
    fail "--workdir='$workdir' is neither gs://BUCKET/FOLDER nor a plain path. Name the run folder after --."
  in_bucket=0
  [[ $workdir != gs://* ]] || in_bucket=1
}

tpu() { command_line "$gcloud" compute tpus "$@"; }
command_line() {
  if [ "$dry" = 1 ]; then
    local word
    printf '+'
    for word in "$@"; do
      [[ $word =~ ^[A-Za-z0-9_./:=,@%+-]+$ ]] && printf ' %s' "$word" || printf ' %s' "${word@Q}"
    done
    echo
  else
    "$@"
  fi
}
ssh_all() { tpu tpu-vm ssh "$name" "${where[@]}" --worker=all --command="$1"; }
ssh_one() { tpu tpu-vm ssh "$name" "${where[@]}" --worker=0 --command="$1"; }
errors=$(mktemp) && trap 'rm -f "$errors"' EXIT
state() { look tpu-vm 'value(state)'; }                     # READY, CREATING, PREEMPTED, …
queue_state() { look queued-resources 'value(state.state)'; } # WAITING_FOR_RESOURCES, ACTIVE, SUSPENDED, …
look() { # prints the state; nothing: there is none; UNKNOWN: gcloud itself failed
  local told
  if told=$("$gcloud" compute tpus "$1" describe "$name" "${where[@]}" --format="$2" 2>"$errors"); then
    echo "$told"
  elif ! grep -q NOT_FOUND "$errors"; then
    say "gcloud: $(tr '\n' ' ' <"$errors" | cut -c 1-200)"
    echo UNKNOWN
  fi
}

topology() { # of the type, for bt_jax.plan
  case $type in
    v5litepod-4) echo v5e:2x2 ;; v5litepod-8) echo v5e:2x4 ;; v5litepod-16) echo v5e:4x4 ;; v5litepod-32) echo v5e:4x8 ;;
    v5litepod-64) echo v5e:8x8 ;; v5litepod-128) echo v5e:8x16 ;; v5litepod-256) echo v5e:16x16 ;;
    v6e-4) echo v6e:2x2 ;; v6e-8) echo v6e:2x4 ;; v6e-16) echo v6e:4x4 ;; v6e-32) echo v6e:4x8 ;;
    v6e-64) echo v6e:8x8 ;; v6e-128) echo v6e:8x16 ;; v6e-256) echo v6e:16x16 ;;
    v4-8) echo v4:2x2x1 ;; v4-16) echo v4:2x2x2 ;; v4-32) echo v4:2x2x4 ;; v4-64) echo v4:2x4x4 ;; v4-128) echo v4:4x4x4 ;;
    v5p-8) echo v5p:2x2x1 ;; v5p-16) echo v5p:2x2x2 ;; v5p-32) echo v5p:2x2x4 ;; v5p-64) echo v5p:2x4x4 ;;
    v5p-128) echo v5p:4x4x4 ;;
  esac
}

plan() {
  needs_program
  local slice
  slice=$(topology)
  if [ -z "$slice" ]; then
    say "no topology is known for --type=$type; not compiled ahead of time"
    return
  fi
  # shellcheck source=launch/environment.sh
  source launch/environment.sh
  [ "$dry" = 1 ] || environment .venv-plan "[tpu]" || exit
  command_line .venv-plan/bin/python -m bt_jax.plan "${config[@]}" --topology="$slice" ||
    fail "the config cannot be compiled for $slice, see above. Nothing was created."
}

create() {
  [ -n "$type" ] || fail "no --type is given. Name the slice, e.g. --type=v5litepod-16."
  case $type in
    v6e-*) version=${version:-v2-alpha-tpuv6e} ;;
    v5p-*) version=${version:-v2-alpha-tpuv5} ;;
    v5litepod-*) version=${version:-v2-alpha-tpuv5-lite} ;;
    *) version=${version:-tpu-ubuntu2204-base} ;;
  esac
  local options=(--accelerator-type="$type") failed=0
  [ "$spot" = 0 ] || options+=(--spot)
  [ "$spot" = 0 ] || [[ $workdir == gs://* ]] ||
    say "a preempted slice takes its disks with it: give the program --workdir=gs://BUCKET/FOLDER"
  if [ "$dry" = 0 ]; then
    until_settled
    case $at in
      READY) say "$name is there and ready" && return ;;
      UNKNOWN) fail "gcloud does not answer, see above. Log in (gcloud auth login) or give the same command again." ;;
      STOPPED) tpu tpu-vm start "$name" "${where[@]}" || fail "$name could not be started, see above." ;;
      PREEMPTED | TERMINATED | QUEUE_FAILED | QUEUE_SUSPENDED) # nothing is on its disks that could be had again
        say "$name is $at: making it anew"
        remove
        at=''
        ;;
    esac
  fi
  if [ -z "${at:-}" ] && [ "$queued" = 1 ]; then
    tpu queued-resources create "$name" --node-id="$name" "${where[@]}" "${options[@]}" --runtime-version="$version" ||
      failed=1
  elif [ -z "${at:-}" ]; then
    tpu tpu-vm create "$name" "${where[@]}" "${options[@]}" --version="$version" || failed=1
  fi
  [ "$dry" = 0 ] || return 0
  # What gcloud returns when it is preempted or loses the connection on the way is settled by looking.
  until_settled
  case $at in
    READY) ;;
    '') [ "$failed" = 0 ] || fail "$name was not created, see above. Another --zone or --type, --queued, --spot or more quota may do." ;;
    *) fail "$name is $at. Give the same command again to make it anew." ;;
  esac
}

until_settled() { # sets `at`: the state of the slice, or of its place in the queue if that is at an end
  local looks=0
  while :; do
    at=$(state)
    case $at in
      CREATING | STARTING | RESTARTING | REPAIRING | REIMAGING | STOPPING | DELETING) ;;
      '')
        [ "$queued" = 1 ] || return 0
        at=$(queue_state)
        case $at in
          '') return ;;
          UNKNOWN) return ;;
          FAILED | SUSPENDED) at=QUEUE_$at && return ;;
        esac
        ;;
      *) return ;;
    esac
    looks=$((looks + 1))
    [ $((looks % 10)) != 1 ] || say "waiting for $name: $at"
    sleep "$poll"
  done
}

install() {
  local archive
  archive=$(mktemp --suffix=.tar.gz)
  # What git knows, as it lies here, with changes that are not committed.
  git ls-files -z --cached --others --exclude-standard | tar --null --ignore-failed-read -czf "$archive" -T - 2>/dev/null
  tpu tpu-vm scp "$archive" "$name:bt_jax.tar.gz" "${where[@]}" --worker=all || fail "the code cannot be copied, see above."
  rm -f "$archive"
  local steps='set -e; mkdir -p bt_jax && tar -xzf bt_jax.tar.gz -C bt_jax; cd bt_jax'
  # A fresh machine updates itself and holds apt's lock meanwhile.
  # shellcheck disable=SC2016 # expanded on the workers
  steps+='; get() { sudo apt-get -qq -o DPkg::Lock::Timeout=300 update; sudo apt-get -qq -o DPkg::Lock::Timeout=300 install -y "$1"; }'
  # The image's own python3 may be older; python3.11 has been in Ubuntu 22.04 from the start.
  steps+='; command -v python3.11 >/dev/null || get python3.11-venv'
  # shellcheck disable=SC2016 # expanded on the workers
  steps+='; source launch/environment.sh; PYTHON=python3.11 environment "$HOME/venv" "[tpu,tfds,gcs]"'
  ssh_all "$steps" || fail "the installation failed, see above. Give the same command again: it goes on."
}

# On every worker the program holds run.lock while it runs, its process group is in run.group, and its status goes to
# run.status when it ends.
start_line() { # $1: "anew" forgets the status of a program that has ended, "on" leaves it alone
  local arguments line='cd ~'
  printf -v arguments ' %q' "${program[@]}"
  line+='; exec 9>>run.lock; flock -w 1 9 || exit 0'
  [ "$1" = anew ] && line+='; rm -f run.status' || line+='; [ ! -e run.status ] || exit 0'
  line+="; setsid nohup bash -c 'echo \$\$ > run.group; . venv/bin/activate; export PYTHONPATH=~/bt_jax; ln -sfn ~/bt_jax/configs configs;"
  line+=" python -m bt_jax.main$arguments; echo \$? > run.status' >> run.log 2>&1 < /dev/null &"
  printf '%s' "$line"
}

# Prints the status when the program has ended, or "vanished"; nothing where the connection is lost.
follow_line='cd ~; tail -n 20 -F run.log >&2 & until [ -e run.status ]; do sleep 2; if flock -n run.lock true; then break; fi; done'
follow_line+='; sleep 2; kill %1; cat run.status 2>/dev/null || echo vanished'

run() {
  needs_program
  local left=$restarts status at began tried
  if [ "$dry" = 1 ]; then
    ssh_all "$(start_line anew)"
    ssh_one "$follow_line"
    return
  fi
  ssh_all "$(start_line anew)" || say "not all workers could be reached; looking what became of the slice"
  while :; do
    began=$SECONDS status=''
    while [ -z "$status" ]; do
      # Ends when the program does, or when the connection is lost, which changes nothing there.
      status=$(ssh_one "$follow_line")
      [[ $status =~ ^([0-9]+|vanished)$ ]] && break
      status='' at=$(state)
      case $at in
        READY | UNKNOWN)
          say "connection lost; trying again" && sleep "$poll"
          ssh_all "$(start_line on)" || true # a host that was started again meanwhile
          ;;
        *) status=gone ;;
      esac
    done
    case $status in
      0) break ;;
      gone | vanished | 75 | 134 | 137 | 138 | 139 | 143) ;;
      *) fail "the program ended with status $status; its last lines are above. Mend that and give the same command again." ;;
    esac
    [ $((SECONDS - began)) -lt 600 ] || left=$restarts
    tried=0 # to make it anew
    while :; do
      [ "$left" -gt 0 ] || fail "the program ended with status $status, and so it did $restarts times. Read: $0 log $name ${where[*]}"
      left=$((left - 1))
      at=$(state)
      say "the program ended with status $status (slice: ${at:-gone}); starting it again, $left more times"
      if [ "$at" = READY ]; then
        # shellcheck disable=SC2016 # expanded on the workers
        ssh_all 'cd ~; flock -n run.lock true || kill -- "-$(cat run.group)"; flock -w 60 run.lock true' || true
      elif [ -z "$at" ] && [ "$tried" = 0 ] && { [ "$queued" = 0 ] || [ -z "$(queue_state)" ]; }; then
        fail "$name is gone: somebody has deleted it. $0 all … makes it anew."
      elif tried=1 && ! (create && install); then
        sleep $((10 * poll)) # no slice is to be had at the moment
        continue
      fi
      ssh_all "$(start_line anew)" && break
      sleep "$poll"
    done
  done
  say "the run is through: $workdir$([ $in_bucket = 1 ] || echo ' on worker 0')"
}

# shellcheck disable=SC2016 # expanded on the workers
log() { ssh_all 'echo "--- $(hostname): status $(cat run.status 2>/dev/null || echo running)"; tail -n 20 run.log'; }

fetch() {
  needs_program
  local archive=/tmp/bt_jax_run.tar.gz
  local skip=()
  if [ $in_bucket = 1 ]; then
    local here=${workdir#gs://*/}
    [ "$light" = 0 ] || skip=('--exclude=.*/train/.*')
    command_line mkdir -p "$here"
    command_line "$gcloud" storage rsync --recursive "${skip[@]}" "$workdir" "$here" || fail "it could not be copied, see above."
    [ "$dry" = 1 ] || say "fetched to $here"
    return
  fi
  [ "$light" = 0 ] || skip=(--exclude=train)
  command_line mkdir -p "$workdir"
  ssh_one "tar -czf $archive ${skip[*]} -C '$workdir' ." || fail "there is no run folder $workdir on worker 0."
  tpu tpu-vm scp "$name:$archive" "$workdir/.fetched.tar.gz" "${where[@]}" --worker=0 || fail "it could not be copied, see above."
  command_line tar -xzf "$workdir/.fetched.tar.gz" -C "$workdir" || fail "what was fetched cannot be unpacked in $workdir, see above."
  command_line rm "$workdir/.fetched.tar.gz"
  [ "$dry" = 1 ] || say "fetched to $workdir"
}

remove() { # the slice and its place in the queue
  if [ "$dry" = 1 ] || [ -n "$(state)" ]; then
    tpu tpu-vm delete "$name" "${where[@]}" || fail "$name could not be deleted, see above: it costs as before."
  fi
  local place=$queued
  [ "$dry" = 1 ] || place=$(queue_state)
  case $place in '' | 0 | UNKNOWN) return ;; esac
  tpu queued-resources delete "$name" "${where[@]}" --force || fail "$name could not be taken from the queue, see above."
}

delete() {
  if [ "$yes" = 0 ] && [ "$dry" = 0 ]; then
    local answer=''
    read -r -p "Delete $name in $zone with all that is on its disks? [y/N] " answer
    [[ $answer == [yY]* ]] || fail "not deleted. Answer y, or give --yes."
  fi
  remove
}

case $verb in
  all) plan && create && install && run && fetch && say "to end its costs: bash launch/tpu_vm.sh delete $name --zone=$zone${project:+ --project=$project}" ;;
  *) "$verb" ;;
esac
