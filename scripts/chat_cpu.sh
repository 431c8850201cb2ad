#!/bin/bash
# From text to a model that answers, on a CPU, without network: Python's
# documentation, a tokenizer, base, midtraining, SFT, reinforcement learning on sums, evaluation, report.
# The same command continues after any interruption. See docs/long_runs.md.
#   source .venv/bin/activate
#   scripts/chat_cpu.sh
# CONVERSATIONS=FILE trains on yours too. More variables: scripts/stages.sh.
NAME=chat_cpu
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=scripts/stages.sh
source "$ROOT/scripts/stages.sh"
begin_pipeline 3
base_run=$(run_of nanochat_cpu) mid_run=$(run_of mid_cpu) sft_run=$(run_of sft_cpu) rl_run=$(run_of rl_cpu)
CPU=(--mesh.platform=cpu)

begin data
if [ -n "$SMOKE" ]; then
  prepare_text
else
  once "$JAXGPT" prepare pydocs --format text
fi
if [ -n "$CONVERSATIONS" ]; then
  once "$JAXGPT" prepare chat --mixture own+python:410+identity+sums:40 --input "own=$CONVERSATIONS"
else
  once "$JAXGPT" prepare chat --mixture chat_cpu
fi
once "$JAXGPT" prepare rl_sums --mixture rl_sums
finish

begin tokenizer
if [ -n "$SMOKE" ]; then
  train_tokenizer
else
  once "$JAXGPT" train_tokenizer --data data/pydocs_text --vocab-size 4096 --force
fi
finish

begin base
train base nanochat_cpu "${CPU[@]}"
finish "$(last_of "$base_run")"
begin mid
train mid mid_cpu "$base_run" "${CPU[@]}"
finish "$(last_of "$mid_run")"
begin sft
train sft sft_cpu "$mid_run" "${CPU[@]}"
finish "$(last_of "$sft_run")"
begin rl
train rl rl_cpu "$sft_run" "${CPU[@]}"
finish "$(last_of "$rl_run")"

begin evaluation
evaluate "$base_run" --platform cpu
few=()
[ -z "$SMOKE" ] || few=(--max-per-task 4 --max-new-tokens 8)
for run in "$sft_run" "$rl_run"; do
  evaluate "$run" --tasks sums-test --platform cpu "${few[@]}"
done
finish "SFT: $(scores_of "$sft_run"); RL: $(scores_of "$rl_run")"
begin report
report "$base_run" "$mid_run" "$sft_run" "$rl_run"
finish "$STATE/report/report.html"
