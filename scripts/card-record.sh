#!/usr/bin/env bash
# Everything that results/ has of a graphics card, in one go: the checks, the speed of steps and updates beside
# PyTorch where python3 can import it, and a training with the four optimizers.
#
#     scripts/card-record.sh OUT [STEP...]
#
# OUT is a folder, which has NAME.txt, what each step printed, and its files. A step that has ended well is not taken
# again, so a record that was cut off goes on with the same command. Steps, in their order (all without arguments):
#
#     verify          every operation, every method and determinism against the CPU (about a minute)
#     speed-tf32      training steps of four networks; so do speed-bf16 and speed-f32
#     updates         the optimizers' own work for 100 million and a billion weights
#     training        a comparison on DATA, the files of Fashion-MNIST or CIFAR-10; not taken without it
#
# Variables: SALA_BENCH (target/release/sala-bench), DEVICE (cuda), PYTHON (python3), WORKLOADS, ROUNDS (5), SIZES
# (100M,1G), PRESET (cifar-10), NETWORK (resnet18), DATA, EPOCHS (30), JOBS (4). scripts/cuda-run-env.sh finds CUDA's libraries.
set -uo pipefail

usage() { sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "$0"; }
case "${1:-}" in '' | -h | --help) usage; exit $([ -n "${1:-}" ] && echo 0 || echo 2) ;; esac

out=$1
shift
program=${SALA_BENCH:-target/release/sala-bench}
device=${DEVICE:-cuda}
python=${PYTHON:-python3}
workloads=${WORKLOADS:-resnet18-b128,wrn-28-10,vit-small,bert-base}
rounds=${ROUNDS:-5}
[ $# -gt 0 ] || set -- verify speed-tf32 speed-bf16 speed-f32 updates training
mkdir -p "$out" || exit 1

torch=()
if "$python" -c 'import torch' 2>/dev/null; then torch=(--python "$python"); fi

speed() {
    "$program" speed --device "$device" --precision "$1" --workloads "$workloads" --rounds "$rounds" \
        "${torch[@]}" --out "$out/speed-$1"
}

take() {
    case $1 in
    verify) "$program" verify --device "$device" --out "$out/verify.json" ;;
    speed-tf32 | speed-bf16 | speed-f32) speed "${1#speed-}" ;;
    updates)
        "$program" speed updates --device "$device" --sizes "${SIZES:-100M,1G}" --rounds "$rounds" \
            "${torch[@]}" --out "$out/updates"
        ;;
    training)
        "$program" compare --preset "${PRESET:-cifar-10}" --data-dir "$DATA" --network "${NETWORK:-resnet18}" \
            --optimizers sgd,lookahead,sam,sala --epochs "${EPOCHS:-30}" \
            --device "$device" --precision tf32 --jobs "${JOBS:-4}" --out "$out/training"
        ;;
    *) echo "wanted one of verify, speed-tf32, speed-bf16, speed-f32, updates and training, got $1" && return 2 ;;
    esac
}

failed=()
for step in "$@"; do
    if [ -e "$out/$step.done" ]; then
        echo "$step: taken already"
    elif [ "$step" = training ] && [ -z "${DATA:-}" ]; then
        echo "$step: left out, DATA names no folder"
    elif take "$step" 2>&1 | tee "$out/$step.txt"; then
        : >"$out/$step.done"
    else
        failed+=("$step")
    fi
done
if [ ${#failed[@]} -gt 0 ]; then
    echo "failed: ${failed[*]}" >&2
    exit 1
fi
