#!/bin/bash
# nanochat's speedrun of 2025, depth 20, on one RTX 4090: text, tokenizer, base, midtraining, SFT, evaluation, report.
# Start it in tmux or screen; the same command continues after any interruption. See docs/long_runs.md.
#   source .venv/bin/activate
#   WANDB_RUN=speedrun-4090 scripts/speedrun_rtx4090.sh
# DEVICE_BS: rows on the card (4; SFT 2). SEQ_LEN: context of base and midtraining (1024). NPROC_PER_NODE: cards (1).
# More variables: scripts/stages.sh.
NAME=speedrun_rtx4090
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=scripts/stages.sh
source "$ROOT/scripts/stages.sh"
SEQ_LEN=${SEQ_LEN:-1024} NPROC_PER_NODE=${NPROC_PER_NODE:-1}
BASE_SET=(
  "--train.micro_batch_size=${DEVICE_BS:-4}" "--model.seq_len=$SEQ_LEN" "--mesh.data=$NPROC_PER_NODE"
  --checkpoint.every=500
)
MID_SET=("--train.micro_batch_size=${DEVICE_BS:-4}" "--model.seq_len=$SEQ_LEN" "--mesh.data=$NPROC_PER_NODE")
SFT_SET=("--train.micro_batch_size=${DEVICE_BS:-2}" "--mesh.data=$NPROC_PER_NODE")
begin_pipeline 80
check_2025 "rtx4090x$NPROC_PER_NODE" rtx4090_d20 rtx4090_d20_mid rtx4090_d20_sft
pipeline_2025 rtx4090_d20 rtx4090_d20_mid rtx4090_d20_sft 224
