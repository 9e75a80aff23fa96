#!/usr/bin/env bash
# Sets up .venv and pretrains on the embedded data set. bt-jax pretrain gets all arguments of this script.
#   bash launch/quickstart.sh
#   bash launch/quickstart.sh --config.seed=1 --workdir=runs/seed1
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=launch/environment.sh
source launch/environment.sh
environment .venv ""
run=runs/quickstart
for argument in "$@"; do
  case $argument in --workdir=*) run=${argument#--workdir=} ;; esac
done
.venv/bin/bt-jax pretrain --config=quickstart --workdir="$run" "$@"
cat <<EOF

Next:
  open $run/report.html
  .venv/bin/bt-jax pretrain --config=pretrain_folder:small,val=20% --config.data.folder=IMAGES --workdir=runs/mine
      trains on your own photographs; a few hundred take some minutes on a CPU; docs/recipes.md has the full recipe
  .venv/bin/bt-jax --help
  docs/recipes.md: CIFAR-10, ImageNet, all options
EOF
