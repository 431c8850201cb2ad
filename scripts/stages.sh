# shellcheck shell=bash
# What the pipelines share; each of them sources this file and calls its functions. See docs/long_runs.md.
#
# A stage is one or more commands. A command that has finished is not run again: its words are kept in
# pipelines/NAME/done. One that was stopped is run again, and continues where the verb can: training from its newest
# checkpoint, downloads from the files that are there, evaluations from the tasks that are finished.
#
# Variables of all pipelines:
#   SMOKE=1            everything in small on a CPU, without network, in minutes
#   WANDB_RUN=NAME     also log to this project of Weights & Biases; dummy, the default: no
#   CONVERSATIONS=FILE your own conversations, JSON lines (identity: 50 that say what the model is)
#   PRICE=DOLLARS      of the machine per hour, for the costs in the report
set -uo pipefail
export PYTHONUNBUFFERED=1

SMOKE=${SMOKE:-} WANDB_RUN=${WANDB_RUN:-dummy} CONVERSATIONS=${CONVERSATIONS:-} PRICE=${PRICE:-}
STATE=pipelines/${NAME:?set by the script that sources this}
LOG=$STATE/log.txt
child=

say() { printf '%s  %s\n' "$(date '+%F %T')" "$*"; }

# Ends the script after a command, so that the same script continues from there.
stop() {
  local code=$1 stage=$2
  case $code in
    75 | 129 | 130 | 143) say "$stage: stopped; run the same command to continue" ;;
    2) say "$stage: failed with exit code 2, bad input; correct it, then run the same command" ;;
    3) say "$stage: diverged; docs/long_runs.md says what to do" ;;
    137) say "$stage: killed (out of memory?); run the same command to continue, or see docs/long_runs.md" ;;
    *) say "$stage: failed with exit code $code; the lines above say why; run the same command to continue" ;;
  esac
  exit "$code"
}

# Runs a command in a process group of its own, so that Ctrl-C reaches it once, from the trap. With SIGTERM, jaxgpt
# finishes its step and saves.
run() {
  local code
  set -m
  "$@" </dev/null &
  child=$!
  set +m
  wait "$child"
  code=$?
  while kill -0 "$child" 2>/dev/null; do # a signal ended the first wait
    wait "$child"
    code=$?
  done
  child=
  return "$code"
}

forward() {
  is_stopped=1
  [ -z "$child" ] || kill -TERM "$child" 2>/dev/null
}

is_done() { [ -f "$STATE/done" ] && grep -qxF -- "$*" "$STATE/done"; }

# Runs a command of the current stage, unless it has finished before.
once() {
  is_done "$@" && return
  is_skipped=
  say "$stage: $*"
  run "$@" || stop $? "$stage"
  [ -z "$is_stopped" ] || stop 130 "$stage"
  printf '%s\n' "$*" >>"$STATE/done"
}

# Begins a stage; what follows until `finish` belongs to it.
begin() {
  stage=$1 began=$(date +%s) is_skipped=1
}

# Ends a stage with its time and figures.
finish() {
  local seconds=$(($(date +%s) - began)) figures=${1:-}
  if [ -n "$is_skipped" ]; then
    say "$stage: done before${figures:+; $figures}"
  else
    say "$stage: done in $((seconds / 3600)) h $((seconds / 60 % 60)) min $((seconds % 60)) s${figures:+; $figures}"
  fi
}

# The figures that a run has logged last, such as "step 973, val_loss 0.85".
last_of() {
  local run=$1 name value figures=
  for name in step train_loss val_loss val_bits_per_byte reward pass_at_1; do
    value=$(grep -o "\"$name\": [-0-9.e]*" "$run/metrics.jsonl" 2>/dev/null | tail -n 1)
    [ -z "$value" ] || figures="$figures${figures:+, }$name $(LC_ALL=C printf '%.6g' "${value##* }")"
  done
  printf '%s' "$figures"
}

# The scores of a run's evaluations, such as "ARC-Easy 0.3561".
scores_of() {
  local run=$1
  "$PYTHON" - "$run" <<'PYTHON'
import sys
from pathlib import Path
from jaxgpt.run.results import read_results
found = {}
for result in read_results(Path(sys.argv[1]))[0]:
    found |= {name: figures.get("score", figures.get("loss")) for name, figures in result.results.items()}
head = [name for name in ("CORE", "ChatCORE") if name in found] or list(found)
print(", ".join(f"{name} {found[name]:.4f}" for name in head))
PYTHON
}

# Where a config's run is: SMOKE has its own place.
run_of() { printf 'runs/%s%s' "${SMOKE:+smoke/}" "$1"; }

# Trains, from a config's beginning or from its newest checkpoint. TRAIN_FLAGS go to every training.
#   train base CONFIG [SETTING ...]
#   train mid|sft|rl CONFIG FROM [SETTING ...]
train() {
  local verb=$1 config=$2 from=
  shift 2
  [ "$verb" != mid ] || verb=sft
  if [ "$verb" = base ]; then verb=train; else from="--from=$1" && shift; fi
  if [ -n "$SMOKE" ]; then set -- --smoke --mesh.platform=cpu; fi
  once "$JAXGPT" "$verb" --config "$config" ${from:+"$from"} "$@" "${TRAIN_FLAGS[@]}" --auto-resume
}

evaluate() {
  local run=$1
  shift
  once "$JAXGPT" evaluate --run "$run" "$@"
}

report() {
  once "$JAXGPT" report "$@" --out "$STATE/report" ${PRICE:+--price "$PRICE"}
}

# --- what is missing is said before the first stage ---

fail() {
  say "error: $*" >&2
  exit 2
}

# begin_pipeline FREE_GB: the log, the programs, the disk and the login. `need_network` and `need_memory` check the rest.
begin_pipeline() {
  local need_gb=$1 free_gb
  [ -z "$SMOKE" ] || need_gb=1
  JAXGPT=${JAXGPT:-$(command -v jaxgpt)} || fail "jaxgpt is not installed here; activate its environment, or see README.md"
  PYTHON=${PYTHON:-$(command -v python || command -v python3)} || fail "there is no python here; activate the environment"
  mkdir -p "$STATE" || fail "$PWD cannot be written; start from another directory"
  exec > >(tee -ia "$LOG") 2>&1
  local tee=$!
  # shellcheck disable=SC2064 # its value now: the script ends when its last line is in the log
  trap "exec >&- 2>&-; wait $tee" EXIT
  is_stopped=
  trap forward INT TERM HUP
  say "$NAME in $PWD${SMOKE:+, in small}; log: $LOG"
  free_gb=$(df -Pk . | awk 'NR == 2 {print int($4 / 1048576)}')
  [ "$free_gb" -ge "$need_gb" ] || fail "$PWD has $free_gb GB free, the pipeline needs $need_gb; free some, or start elsewhere"
  TRAIN_FLAGS=()
  if [ "$WANDB_RUN" != dummy ]; then
    TRAIN_FLAGS+=("--log.wandb_project=$WANDB_RUN")
    "$PYTHON" - "$WANDB_RUN" <<'PYTHON' || fail "WANDB_RUN=$WANDB_RUN cannot be logged to; see above, or leave WANDB_RUN out"
import sys
from jaxgpt.config import LogConfig
from jaxgpt.errors import InputError
from jaxgpt.run.sinks import check_trackers
try:
    check_trackers(LogConfig(wandb_project=sys.argv[1]))
except InputError as error:
    sys.exit(f"error: {error}")
PYTHON
  fi
  if [ -n "$CONVERSATIONS" ] && [ ! -f "$CONVERSATIONS" ]; then
    fail "CONVERSATIONS=$CONVERSATIONS is no file; give JSON lines, or leave it out"
  fi
}

# need_network URL: unless the data is there.
need_network() {
  [ -z "$SMOKE" ] || return 0
  "$PYTHON" - "$1" <<'PYTHON' || fail "$1 cannot be reached, and data is missing here; connect this machine, or copy data/"
import sys, urllib.error, urllib.request
try:
    urllib.request.urlopen(sys.argv[1], timeout=20).close()
except urllib.error.HTTPError:
    pass  # it answers
except OSError as error:
    sys.exit(f"error: {error}")
PYTHON
}

# need_memory DEVICE CONFIG [SETTING ...]: asks jaxgpt plan whether a stage fits the card, and says how fast it can be.
need_memory() {
  local device=$1 config=$2 answer
  shift 2
  [ -z "$SMOKE" ] || return 0
  answer=$(COLUMNS=160 "$JAXGPT" plan --config "$config" --device "$device" --estimate "$@" 2>&1) ||
    fail "$config: $(printf '%s' "$answer" | tail -n 1)"
  say "$config on $device:$(printf '%s\n' "$answer" | grep -E '^ (total|verdict|horizon)' | tr -s ' ' | paste -sd';')"
  printf '%s\n' "$answer" | grep -q '^ verdict *fits' ||
    fail "$config does not fit $device; halve DEVICE_BS, or see docs/long_runs.md"
}

# --- data that several pipelines share ---

# The text and its tokenizer: text SHARDS VOCABULARY. Sets nothing; the configs find both in data/fineweb-edu.
prepare_text() {
  if [ -n "$SMOKE" ]; then
    once "$JAXGPT" prepare smoke --input "$ROOT"/docs/*.md --format text --out data/smoke_text
  else
    once "$JAXGPT" prepare fineweb-edu --shards "$1"
  fi
}

train_tokenizer() {
  if [ -n "$SMOKE" ]; then
    once "$JAXGPT" train_tokenizer --data data/smoke_text --vocab-size 512 --force
  else
    once "$JAXGPT" train_tokenizer --data data/fineweb-edu --vocab-size "$1" --force
  fi
}

# The conversations of nanochat's stages of 2025, with one's own among them.
prepare_conversations() {
  local own=${CONVERSATIONS:-data/identity/train.jsonl}
  [ -n "$CONVERSATIONS" ] || once "$JAXGPT" prepare identity --mixture identity
  [ -z "$SMOKE" ] || return 0
  once "$JAXGPT" prepare mid_2025 --mixture mid_2025 --input "own=$own"
  once "$JAXGPT" prepare sft_2025 --mixture sft_2025 --input "own=$own"
}

# nanochat's bundle of CORE, 162 MB, into data/eval_bundle.
fetch_core() {
  [ -z "$SMOKE" ] || return 0
  once curl --fail --location --silent --show-error --retry 5 --continue-at - --create-dirs --output data/eval_bundle.zip \
    https://karpathy-public.s3.us-west-2.amazonaws.com/eval_bundle.zip
  once "$PYTHON" -m zipfile -e data/eval_bundle.zip data
}

# The whole of nanochat's 2025 pipeline: pipeline_2025 BASE MID SFT SHARDS, with the arrays BASE_SET, MID_SET, SFT_SET.
pipeline_2025() {
  local base=$1 mid=$2 sft=$3 shards=$4 base_run mid_run sft_run
  base_run=$(run_of "$base") mid_run=$(run_of "${MID_RUN:-$mid}") sft_run=$(run_of "${SFT_RUN:-$sft}")
  begin data
  prepare_text "$shards"
  prepare_conversations
  fetch_core
  finish
  begin tokenizer
  train_tokenizer 65536
  finish
  begin base
  train base "$base" "${BASE_SET[@]}"
  finish "$(last_of "$base_run")"
  begin mid
  train mid "$mid" "$base_run" "${MID_SET[@]}"
  finish "$(last_of "$mid_run")"
  begin sft
  train sft "$sft" "$mid_run" "${SFT_SET[@]}"
  finish "$(last_of "$sft_run")"
  begin evaluation
  if [ -n "$SMOKE" ]; then
    evaluate "$base_run"
    evaluate "$sft_run" --tasks sums-test --max-per-task 4 --max-new-tokens 8
  else
    evaluate "$base_run" --core
    evaluate "$mid_run" --tasks all
    evaluate "$sft_run" --tasks all
  fi
  finish "$(scores_of "$base_run"), $(scores_of "$sft_run")"
  begin report
  report "$base_run" "$mid_run" "$sft_run"
  finish "$STATE/report/report.html"
}

# What must be there for it: check_2025 DEVICE BASE MID SFT.
check_2025() {
  need_memory "$1" "$2" "${BASE_SET[@]}"
  need_memory "$1" "$3" "${MID_SET[@]}"
  need_memory "$1" "$4" "${SFT_SET[@]}"
  if ! { [ -d data/fineweb-edu ] && [ -d data/mid_2025 ] && [ -d data/sft_2025 ] && [ -d data/eval_bundle ]; }; then
    need_network "${HF_ENDPOINT:-https://huggingface.co}"
  fi
}
