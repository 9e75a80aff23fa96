#!/usr/bin/env bash
# Runs all benchmarks of one GPU: the step next to PyTorch's, the largest batch, the loss, CIFAR-10 in minutes.
#   python -m bt_jax.prepare --data=cifar10 --npz=cifar10.npz        first, on a machine with TensorFlow; 56 MB
#   bash benchmarks/gpu.sh cifar10.npz OUT [MINUTES]
# OUT gets step.md, fits.md, largest.md, loss.md and fast.md, each with its command and the device, and the raw data.
# After MINUTES the script exits with status 75. The same command resumes it and skips the finished benchmarks.
# PYTHON names the interpreter (default python3). It needs bt_jax's dependencies, JAX for the GPU, and PyTorch.
#   DRY=1 bash benchmarks/gpu.sh cifar10.npz OUT                     tiny networks: a trial on a CPU in 15 minutes
set -euo pipefail
[ $# -ge 2 ] || { sed -n '2,8s/^# \{0,1\}//p' "$0" >&2; exit 2; }
npz=$(realpath "$1") out=$(realpath -m "$2") minutes=${3:-100000}
cd "$(dirname "$0")/.."
[ -e "$npz" ] || { echo "benchmarks/gpu.sh: $npz does not exist. Make it with bt_jax.prepare." >&2; exit 2; }
mkdir -p "$out"
python=${PYTHON:-python3}
export XLA_PYTHON_CLIENT_PREALLOCATE=false # leaves memory for PyTorch
export JAX_COMPILATION_CACHE_DIR="$out/xla"

"$python" -m bt_jax.selfcheck >&2 || exit 2 # saves the time on a machine that computes wrong numbers

seconds_left() { echo $((minutes * 60 - SECONDS)); }
stage() { # NAME COMMAND...: runs the command and writes OUT/NAME.md
  local name=$1 status=0
  shift
  [ ! -e "$out/$name.md" ] || return 0
  [ "$(seconds_left)" -gt 150 ] || { echo "benchmarks/gpu.sh: The time is over before $name. Run the same command again." >&2; exit 75; }
  echo "== $name: $*" >&2
  "$@" | tee "$out/$name.part" || status=$?
  if [ $status = 75 ]; then exit 75; fi
  [ $status = 0 ] || { echo "benchmarks/gpu.sh: $name exited with status $status; its error is above." >&2; return 0; }
  {
    nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader 2>/dev/null || echo "no GPU"
    printf '\n    %s\n\n' "${*//$out/OUT}"
    cat "$out/$name.part"
  } >"$out/$name.md"
  rm "$out/$name.part"
}

if [ -n "${DRY:-}" ]; then
  step=("$python" -m benchmarks.step --config=configs/pretrain_cifar10_r18.py:smoke --config.data.on_device=False --steps=3)
  fits=(--memory_gb=0.5) sizes=(--n=64 '--d=128,256')
  fast=(--seeds=0 '--candidates=adamw 0.002' --search-minutes=0.8 --knn-minutes=1 --online-minutes=1 --trial-epochs=0.1)
  narrow=(-- --config.model.width=0.0625 '--config.model.projector=(64,64)' --config.views.size=12)
  narrow+=(--config.evals.train_images=2000 --config.evals.val_images=500)
else
  # These batches leave memory for PyTorch's step: about 90 MB per image with ResNet-50 at 224 pixels (estimate).
  memory=$(nvidia-smi --query-gpu=memory.total --format=csv,noheader,nounits | head -n 1)
  batch=256
  [ "$memory" -lt 120000 ] || batch=512
  step=("$python" -m benchmarks.step --config=configs/pretrain_imagenet_r50.py --config.batch_size="$batch")
  fits=() sizes=('--n=256,1024,4096' '--d=2048,8192,32768,65536')
  fast=() narrow=()
fi

stage step "${step[@]}" --against=torch --profile="$out/trace" --out="$out/step.json"
stage fits "${step[@]}" --largest "${fits[@]}" --out="$out/fits.json"
if [ -e "$out/fits.json" ]; then
  largest=$("$python" -c "import json, sys; print(json.load(open(sys.argv[1]))['largest_batch'])" "$out/fits.json")
  stage largest "${step[@]}" --config.batch_size="$largest" --out="$out/largest.json"
fi
stage loss "$python" -m benchmarks.loss "${sizes[@]}" --torch
[ "$minutes" = 100000 ] || fast+=(--call-minutes=$(($(seconds_left) / 60)))
stage fast "$python" -m benchmarks.cifar10_fast --npz="$npz" --workdir="$out/fast" "${fast[@]}" "${narrow[@]}"
missing=0
for name in step fits largest loss fast; do
  [ -e "$out/$name.md" ] || { echo "benchmarks/gpu.sh: $name.md is missing." >&2; missing=1; }
done
exit $missing
