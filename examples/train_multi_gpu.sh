#!/usr/bin/env bash
# One run over several processes, one to a GPU; without GPUs they share the CPU.
#
#   examples/train_multi_gpu.sh
#   LAUNCHER=accelerate PROCESSES=4 examples/train_multi_gpu.sh
#   CONFIG=configs/gsm8k.yaml examples/train_multi_gpu.sh quant.method=null
#
# The number of processes is declared, so that a launcher which starts another number is an error and no other run.
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
config="${CONFIG:-$root/configs/metamath_qa.yaml}"
processes="${PROCESSES:-2}"

case "${LAUNCHER:-torchrun}" in
torchrun)
    torchrun --standalone --nproc-per-node "$processes" \
        -m peftlab run "$config" launch.num_processes="$processes" "$@"
    ;;
accelerate)
    accelerate launch --config_file "$root/configs/accelerate_config.yaml" --num_processes "$processes" \
        -m peftlab run "$config" launch.num_processes="$processes" "$@"
    ;;
*)
    echo "error: LAUNCHER is torchrun or accelerate" >&2
    exit 2
    ;;
esac
