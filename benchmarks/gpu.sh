#!/usr/bin/env bash
# All that one GPU settles, in one command: the step beside PyTorch's, the largest batch, the loss, CIFAR-10 in minutes.
#   python -m bt_jax.prepare --data=cifar10 --npz=cifar10.npz        first, on a machine with TensorFlow; 56 MB
#   bash benchmarks/gpu.sh cifar10.npz OUT [MINUTES]
# OUT gets step.md, fits.md, largest.md, loss.md and fast.md, each with its command and the device, and what they were made from.
# After MINUTES it stops with status 75, and the same command goes on; what is there is not done again. PYTHON names the
# interpreter (python3): it needs this package's dependencies, JAX for the GPU, and PyTorch.
#   DRY=1 bash benchmarks/gpu.sh cifar10.npz OUT                     tiny nets, to try it on a CPU in a quarter of an hour
set -euo pipefail
[ $# -ge 2 ] || { sed -n '2,9s/^# \{0,1\}//p' "$0" >&2; exit 2; }
npz=$(realpath "$1") out=$(realpath -m "$2") minutes=${3:-100000}
cd "$(dirname "$0")/.."
[ -e "$npz" ] || { echo "benchmarks/gpu.sh: there is no $npz. Make it with bt_jax.prepare, see the head of this file." >&2; exit 2; }
mkdir -p "$out"
python=${PYTHON:-python3}
export XLA_PYTHON_CLIENT_PREALLOCATE=false # PyTorch needs some of the memory, too
export JAX_COMPILATION_CACHE_DIR="$out/xla"

"$python" -m bt_jax.selfcheck >&2 || exit 2 # before minutes are spent on a machine that computes wrongly

left() { echo $((minutes * 60 - SECONDS)); }
stage() { # NAME COMMAND...: leaves OUT/NAME.md
  local name=$1 status=0
  shift
  [ ! -e "$out/$name.md" ] || return 0
  [ "$(left)" -gt 150 ] || { echo "benchmarks/gpu.sh: time is up before $name; give the same command again" >&2; exit 75; }
  echo "== $name: $*" >&2
  "$@" | tee "$out/$name.part" || status=$?
  if [ $status = 75 ]; then exit 75; fi
  [ $status = 0 ] || { echo "benchmarks/gpu.sh: $name ended with status $status, see above" >&2; return 0; }
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
  # Batches that by estimate leave room for PyTorch's step beside ours: some 90 MB an image of ResNet-50 at 224 pixels.
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
[ "$minutes" = 100000 ] || fast+=(--call-minutes=$(($(left) / 60)))
stage fast "$python" -m benchmarks.cifar10_fast --npz="$npz" --workdir="$out/fast" "${fast[@]}" "${narrow[@]}"
missing=0
for name in step fits largest loss fast; do
  [ -e "$out/$name.md" ] || { echo "benchmarks/gpu.sh: no $name.md" >&2; missing=1; }
done
exit $missing
