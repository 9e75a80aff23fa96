#!/usr/bin/env bash
# Sets up .venv and pretrains on the embedded data set. bt_jax.main gets all arguments of this script.
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
.venv/bin/python -m bt_jax.main --config=configs/quickstart.py --workdir="$run" "$@"
cat <<EOF

Next:
  open $run/report.html
  .venv/bin/python -c 'import bt_jax; net, variables = bt_jax.load_encoder("$run"); print(net.feature_dim, "features")'
  .venv/bin/python -m bt_jax.main --help
  CIFAR-10, ImageNet and your own images: docs/recipes.md
EOF
