#!/bin/bash
# nanochat's speedrun of 2025, depth 20, on 8 H100: text, tokenizer, base, midtraining, SFT, evaluation, report.
# Start it in tmux or screen; the same command continues after any interruption. See docs/long_runs.md.
#   source .venv/bin/activate
#   PRICE=24 WANDB_RUN=speedrun scripts/speedrun_8xh100.sh
# DEVICE_BS: rows on each card (32; SFT 4). SEQ_LEN: context of base and midtraining (2048). NPROC_PER_NODE: cards (8).
# More variables: scripts/stages.sh.
NAME=speedrun_8xh100
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=scripts/stages.sh
source "$ROOT/scripts/stages.sh"
export XLA_CLIENT_MEM_FRACTION=${XLA_CLIENT_MEM_FRACTION:-0.98} # the base run needs 59.9 GiB on each card
SEQ_LEN=${SEQ_LEN:-2048} NPROC_PER_NODE=${NPROC_PER_NODE:-8}
BASE_SET=("--train.micro_batch_size=${DEVICE_BS:-32}" "--model.seq_len=$SEQ_LEN" "--mesh.data=$NPROC_PER_NODE")
MID_SET=("${BASE_SET[@]}")
SFT_SET=("--train.micro_batch_size=${DEVICE_BS:-4}" "--mesh.data=$NPROC_PER_NODE")
begin_pipeline 80
check_2025 "h100x$NPROC_PER_NODE" speedrun_d20 mid_d20_2025 sft_d20_2025
pipeline_2025 speedrun_d20 mid_d20_2025 sft_d20_2025 224
