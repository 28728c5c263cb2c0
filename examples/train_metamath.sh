#!/usr/bin/env bash
# Mathematics in words: LoRA on Llama 2, MetaMathQA. A GPU's work: about 395 000 rows, three times.
#
#   examples/train_metamath.sh
#   examples/train_metamath.sh model.id=HuggingFaceTB/SmolLM2-135M data.train_rows=1000 train.max_steps=30 train.eval_steps=10
#
# Stop it with Ctrl-C; the same command goes on from the last checkpoint.
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"

python -m peftlab run "$root/configs/metamath_qa.yaml" "$@"
