#!/usr/bin/env bash
# Handles a Cloud TPU VM slice for one run of bt_jax.main: creates it, runs the program, and copies the run folder here.
#   bash launch/tpu_vm.sh all    NAME --zone=us-west4-a --type=v5litepod-16 -- --config=... --workdir=gs://MINE/RUN
#   bash launch/tpu_vm.sh create NAME --zone=... --type=...     a single command of this list:
#
#   plan     compiles the config for the slice on this machine (bt_jax.plan), to check that it fits; part of `all`
#   create   creates the slice or waits for it in the queue; does nothing if the slice exists
#   install  copies this checkout to all workers and installs it
#   run      starts the program on all workers, or finds it running, and follows worker 0 to the end; restarts it after
#            a preemption, maintenance, a reboot or the death of a process
#   log      prints the last lines of every worker's output
#   fetch    copies the run folder to RUN on this machine; --light leaves out the training state of the checkpoints
#   delete   asks for confirmation, then deletes the slice and its entry in the queue
#   all      plan, create, install, run, fetch; the slice stays and costs money until you delete it
#
# Options: --zone, --type (v5litepod-16, v6e-8, v4-32, …), --project, --spot; --version (of the TPU software; the default
# depends on the type); --queued (a queued resource, for slices that are not available at once); --restarts=20 (the
# largest number of restarts of runs shorter than ten minutes); --yes (delete without confirmation); --dry-run (prints
# every command and runs none).
# Environment: GCLOUD names another gcloud; POLL is the number of seconds between two checks of the slice (30).
set -uo pipefail
cd "$(dirname "$0")/.." || exit 2
gcloud=${GCLOUD:-gcloud} poll=${POLL:-30}
zone='' type='' version='' project='' spot=0 queued=0 restarts=20 yes=0 dry_run=0 light=0

fail() { # $*: cause and fix, in one line
  echo "launch/tpu_vm.sh: $*" >&2
  exit 2
}
report() { echo "launch/tpu_vm.sh: $*" >&2; }

verb=${1:-} name=${2:-}
case $verb in plan | create | install | run | log | fetch | delete | all) ;; *)
  sed -n '2,21s/^# \{0,1\}//p' "$0" >&2
  exit 2
  ;;
esac
[[ $name =~ ^[a-z][a-z0-9-]*$ ]] ||
  fail "The slice name '$name' is not valid. Use lower-case letters, digits and hyphens; begin with a letter."
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
    --dry-run) dry_run=1 ;;
    --) shift && break ;;
    *) fail "Unknown option $1. Write the program's arguments after --; --help lists the options." ;;
  esac
  shift
done
program=("$@")
[ -n "$zone" ] || fail "--zone is missing. Name the zone, e.g. --zone=us-west4-a."
[ "$dry_run" = 1 ] || command -v "$gcloud" >/dev/null ||
  fail "The command $gcloud does not exist. Install the Google Cloud CLI."
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
  [ ${#config[@]} -gt 0 ] || fail "--config is missing. Write it after --, as for bt_jax.main."
  [[ ${program[*]} != *"'"* ]] || fail "A program argument contains a quote ('). Remove the quote."
  [[ $workdir =~ ^(gs://[a-z0-9._-]+/)?[A-Za-z0-9._/-]+$ ]] ||
    fail "--workdir='$workdir' is neither gs://BUCKET/FOLDER nor a plain path. Write --workdir=FOLDER after --."
  in_bucket=0
  [[ $workdir != gs://* ]] || in_bucket=1
}

tpu() { command_line "$gcloud" compute tpus "$@"; }
command_line() {
  if [ "$dry_run" = 1 ]; then
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
state() { describe tpu-vm 'value(state)'; }                        # READY, CREATING, PREEMPTED, …
queue_state() { describe queued-resources 'value(state.state)'; } # WAITING_FOR_RESOURCES, ACTIVE, SUSPENDED, …
describe() { # prints the state: empty if there is no slice (or entry), UNKNOWN if gcloud itself failed
  local output
  if output=$("$gcloud" compute tpus "$1" describe "$name" "${where[@]}" --format="$2" 2>"$errors"); then
    echo "$output"
  elif ! grep -q NOT_FOUND "$errors"; then
    report "gcloud: $(tr '\n' ' ' <"$errors" | cut -c 1-200)"
    echo UNKNOWN
  fi
}

topology() { # prints the topology of the slice type, for bt_jax.plan
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
    report "bt_jax.plan has no topology for --type=$type. Skipping the compilation before the run."
    return
  fi
  # shellcheck source=launch/environment.sh
  source launch/environment.sh
  [ "$dry_run" = 1 ] || environment .venv-plan "[tpu]" || exit
  command_line .venv-plan/bin/python -m bt_jax.plan "${config[@]}" --topology="$slice" ||
    fail "The config does not compile for $slice (message above). Change the config; no slice was created."
}

create() {
  [ -n "$type" ] || fail "--type is missing. Name the slice type, e.g. --type=v5litepod-16."
  case $type in
    v6e-*) version=${version:-v2-alpha-tpuv6e} ;;
    v5p-*) version=${version:-v2-alpha-tpuv5} ;;
    v5litepod-*) version=${version:-v2-alpha-tpuv5-lite} ;;
    *) version=${version:-tpu-ubuntu2204-base} ;;
  esac
  local options=(--accelerator-type="$type") failed=0
  [ "$spot" = 0 ] || options+=(--spot)
  [ "$spot" = 0 ] || [[ $workdir == gs://* ]] ||
    report "A preemption deletes the slice's disks with the run folder. Set --workdir=gs://BUCKET/FOLDER to keep it."
  if [ "$dry_run" = 0 ]; then
    wait_until_settled
    case $slice_state in
      READY) report "$name exists and is ready." && return ;;
      UNKNOWN)
        fail "gcloud cannot read the state of $name (message above). Log in (gcloud auth login), or try again."
        ;;
      STOPPED)
        tpu tpu-vm start "$name" "${where[@]}" ||
          fail "gcloud could not start $name (message above). Run the same command again."
        ;;
      PREEMPTED | TERMINATED | QUEUE_FAILED | QUEUE_SUSPENDED) # its disks are lost
        report "$name is $slice_state. Creating it again."
        remove
        slice_state=''
        ;;
    esac
  fi
  if [ -z "${slice_state:-}" ] && [ "$queued" = 1 ]; then
    tpu queued-resources create "$name" --node-id="$name" "${where[@]}" "${options[@]}" --runtime-version="$version" ||
      failed=1
  elif [ -z "${slice_state:-}" ]; then
    tpu tpu-vm create "$name" "${where[@]}" "${options[@]}" --version="$version" || failed=1
  fi
  [ "$dry_run" = 0 ] || return 0
  # After a preemption or a lost connection, gcloud's exit status is not reliable, so the state of the slice decides.
  wait_until_settled
  case $slice_state in
    READY) ;;
    '')
      [ "$failed" = 0 ] ||
        fail "gcloud did not create $name (message above). Try another --zone or --type, --queued, --spot or a larger quota."
      ;;
    *) fail "$name is $slice_state. Run the same command again to create a new slice." ;;
  esac
}

wait_until_settled() { # sets `slice_state`: the slice's state, or QUEUE_… if its queue entry failed or was suspended
  local checks=0
  while :; do
    slice_state=$(state)
    case $slice_state in
      CREATING | STARTING | RESTARTING | REPAIRING | REIMAGING | STOPPING | DELETING) ;;
      '')
        [ "$queued" = 1 ] || return 0
        slice_state=$(queue_state)
        case $slice_state in
          '') return ;;
          UNKNOWN) return ;;
          FAILED | SUSPENDED) slice_state=QUEUE_$slice_state && return ;;
        esac
        ;;
      *) return ;;
    esac
    checks=$((checks + 1))
    [ $((checks % 10)) != 1 ] || report "Waiting for $name: $slice_state."
    sleep "$poll"
  done
}

install() {
  local archive
  archive=$(mktemp --suffix=.tar.gz)
  # The archive has all files that git does not ignore, with their uncommitted changes.
  git ls-files -z --cached --others --exclude-standard | tar --null --ignore-failed-read -czf "$archive" -T - 2>/dev/null
  tpu tpu-vm scp "$archive" "$name:bt_jax.tar.gz" "${where[@]}" --worker=all ||
    fail "gcloud could not copy the code to $name (message above). Run the same command again."
  rm -f "$archive"
  local steps='set -e; mkdir -p bt_jax && tar -xzf bt_jax.tar.gz -C bt_jax; cd bt_jax'
  # A new machine updates itself first and holds apt's lock during the update.
  # shellcheck disable=SC2016 # expanded on the workers
  steps+='; get() { sudo apt-get -qq -o DPkg::Lock::Timeout=300 update; sudo apt-get -qq -o DPkg::Lock::Timeout=300 install -y "$1"; }'
  # The image's python3 may be older than 3.11. Every release of Ubuntu 22.04 has a package python3.11.
  steps+='; command -v python3.11 >/dev/null || get python3.11-venv'
  # shellcheck disable=SC2016 # expanded on the workers
  steps+='; source launch/environment.sh; PYTHON=python3.11 environment "$HOME/venv" "[tpu,tfds,gcs]"'
  ssh_all "$steps" || fail "The installation failed (message above). Run the same command again to continue it."
}

# On every worker, the program holds run.lock while it runs. run.group has its process group.
# run.status has its exit status once it has exited.
start_command() { # $1: "restart" starts the program also if it has exited before; "keep" does not
  local arguments line='cd ~'
  printf -v arguments ' %q' "${program[@]}"
  line+='; exec 9>>run.lock; flock -w 1 9 || exit 0'
  [ "$1" = restart ] && line+='; rm -f run.status' || line+='; [ ! -e run.status ] || exit 0'
  line+="; setsid nohup bash -c 'echo \$\$ > run.group; . venv/bin/activate; export PYTHONPATH=~/bt_jax; ln -sfn ~/bt_jax/configs configs;"
  line+=" python -m bt_jax.main$arguments; echo \$? > run.status' >> run.log 2>&1 < /dev/null &"
  printf '%s' "$line"
}

# Waits for the end of the program, then prints its exit status, or "vanished" if it left none. Prints nothing if the
# connection is lost.
follow_command='cd ~; tail -n 20 -F run.log >&2 & until [ -e run.status ]; do sleep 2; if flock -n run.lock true; then break; fi; done'
follow_command+='; sleep 2; kill %1; cat run.status 2>/dev/null || echo vanished'

run() {
  needs_program
  local left=$restarts status slice_state began cause tried
  if [ "$dry_run" = 1 ]; then
    ssh_all "$(start_command restart)"
    ssh_one "$follow_command"
    return
  fi
  ssh_all "$(start_command restart)" || report "gcloud could not reach all workers. Checking the slice."
  while :; do
    began=$SECONDS status=''
    while [ -z "$status" ]; do
      # Returns when the program exits or when the connection is lost. A lost connection does not stop the program.
      status=$(ssh_one "$follow_command")
      [[ $status =~ ^([0-9]+|vanished)$ ]] && break
      status='' slice_state=$(state)
      case $slice_state in
        READY | UNKNOWN)
          report "Lost the connection to $name. Connecting again." && sleep "$poll"
          ssh_all "$(start_command keep)" || true # for a host that rebooted in between
          ;;
        *) status=gone ;;
      esac
    done
    case $status in
      0) break ;;
      gone | vanished | 75 | 134 | 137 | 138 | 139 | 143) ;;
      *)
        fail "The program exited with status $status; its last lines are above. Fix the error and try again."
        ;;
    esac
    case $status in
      gone) cause="The slice $name is not available" ;;
      vanished) cause="The program left no exit status" ;;
      *) cause="The program exited with status $status" ;;
    esac
    [ $((SECONDS - began)) -lt 600 ] || left=$restarts
    tried=0 # 1 after an attempt to create the slice again
    while :; do
      [ "$left" -gt 0 ] ||
        fail "$cause, also after $restarts restarts. Read the output: bash launch/tpu_vm.sh log $name ${where[*]}"
      left=$((left - 1))
      slice_state=$(state)
      report "$cause (slice: ${slice_state:-does not exist}). Restarting; restarts left after that: $left."
      if [ "$slice_state" = READY ]; then
        # shellcheck disable=SC2016 # expanded on the workers
        ssh_all 'cd ~; flock -n run.lock true || kill -- "-$(cat run.group)"; flock -w 60 run.lock true' || true
      elif [ -z "$slice_state" ] && [ "$tried" = 0 ] && { [ "$queued" = 0 ] || [ -z "$(queue_state)" ]; }; then
        fail "$name does not exist; someone has deleted it. Run bash launch/tpu_vm.sh all … to create a new slice."
      elif tried=1 && ! (create && install); then
        sleep $((10 * poll)) # no slice is available at the moment
        continue
      fi
      ssh_all "$(start_command restart)" && break
      sleep "$poll"
    done
  done
  report "The run has finished. Its folder: $workdir$([ $in_bucket = 1 ] || echo ' on worker 0')"
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
    command_line "$gcloud" storage rsync --recursive "${skip[@]}" "$workdir" "$here" ||
      fail "gcloud could not copy the run folder (message above). Run fetch again."
    [ "$dry_run" = 1 ] || report "Copied the run folder to $here."
    return
  fi
  [ "$light" = 0 ] || skip=(--exclude=train)
  command_line mkdir -p "$workdir"
  ssh_one "tar -czf $archive ${skip[*]} -C '$workdir' ." ||
    fail "Worker 0 cannot pack the run folder $workdir (message above). Check --workdir."
  tpu tpu-vm scp "$name:$archive" "$workdir/.fetched.tar.gz" "${where[@]}" --worker=0 ||
    fail "gcloud could not copy the run folder (message above). Run fetch again."
  command_line tar -xzf "$workdir/.fetched.tar.gz" -C "$workdir" ||
    fail "tar could not unpack the copy in $workdir (message above). Run fetch again."
  command_line rm "$workdir/.fetched.tar.gz"
  [ "$dry_run" = 1 ] || report "Copied the run folder to $workdir."
}

remove() { # deletes the slice and its entry in the queue
  if [ "$dry_run" = 1 ] || [ -n "$(state)" ]; then
    tpu tpu-vm delete "$name" "${where[@]}" ||
      fail "gcloud could not delete $name (message above). The slice still costs money; run delete again."
  fi
  local entry=$queued
  [ "$dry_run" = 1 ] || entry=$(queue_state)
  case $entry in '' | 0 | UNKNOWN) return ;; esac
  tpu queued-resources delete "$name" "${where[@]}" --force ||
    fail "gcloud could not remove $name from the queue (message above). Run delete again."
}

delete() {
  if [ "$yes" = 0 ] && [ "$dry_run" = 0 ]; then
    local answer=''
    read -r -p "Delete $name in $zone and everything on its disks? [y/N] " answer
    [[ $answer == [yY]* ]] || fail "$name was not deleted. Answer y, or add --yes."
  fi
  remove
}

case $verb in
  all) plan && create && install && run && fetch &&
    report "The slice still costs money. To delete it: bash launch/tpu_vm.sh delete $name --zone=$zone${project:+ --project=$project}" ;;
  *) "$verb" ;;
esac
