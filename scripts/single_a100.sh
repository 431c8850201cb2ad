#!/bin/bash
# nanochat of 2025 on one A100: text, tokenizer, base, midtraining, SFT, evaluation, report. With 40 GB a model of depth
# 12 and context 1024, with 80 GB depth 16 and context 2048.
# Start it in tmux or screen; the same command continues after any interruption. See docs/long_runs.md.
#   source .venv/bin/activate
#   scripts/single_a100.sh
# MEMORY_GB: 40 or 80 (what nvidia-smi says). DEVICE_BS: rows (4, 8). SEQ_LEN: context (1024, 2048).
# More variables: scripts/stages.sh.
NAME=single_a100
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=scripts/stages.sh
source "$ROOT/scripts/stages.sh"
if [ -z "${MEMORY_GB:-}" ]; then
  mib=$(nvidia-smi --query-gpu=memory.total --format=csv,noheader,nounits 2>/dev/null | head -n 1)
  MEMORY_GB=$((${mib:-0} > 60000 ? 80 : 40))
fi
case $MEMORY_GB in
  40) BASE=a100 DEPTH=12 SHARDS=80 ROWS=${DEVICE_BS:-4} SEQ_LEN=${SEQ_LEN:-1024} ;;
  80) BASE=a100_80gb_d16 DEPTH=16 SHARDS=136 ROWS=${DEVICE_BS:-8} SEQ_LEN=${SEQ_LEN:-2048} ;;
  *) echo "error: MEMORY_GB=$MEMORY_GB is not 40 or 80; choose one" >&2 && exit 2 ;;
esac
MID_RUN=${BASE}_mid SFT_RUN=${BASE}_sft
BASE_SET=("--train.micro_batch_size=$ROWS" "--model.seq_len=$SEQ_LEN" --mesh.data=1)
MID_SET=("--model.depth=$DEPTH" "${BASE_SET[@]}" "--run.dir=runs/$MID_RUN")
SFT_SET=("--model.depth=$DEPTH" "--train.micro_batch_size=${DEVICE_BS:-4}" --mesh.data=1 "--run.dir=runs/$SFT_RUN")
if [ -n "$SMOKE" ]; then MID_RUN='' SFT_RUN=''; fi # --smoke has the config's own place
begin_pipeline 60
check_2025 "a100-${MEMORY_GB}gb" "$BASE" mid_d20_2025 sft_d20_2025
pipeline_2025 "$BASE" mid_d20_2025 sft_d20_2025 "$SHARDS"
