#!/usr/bin/env bash
# Do two sentences say the same? LoRA on RoBERTa, MRPC of GLUE.
#
#   examples/train_glue.sh
#   examples/train_glue.sh model.id=./my_model train.max_steps=20 --results elsewhere
#
# Settings given here overrule the file. Once more, and the stored result is printed.
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"

python -m peftlab run "$root/configs/glue_mrpc.yaml" "$@"
