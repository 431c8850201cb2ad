#!/bin/bash
# Trains on a spot TPU until the run is done: requests the TPU, installs jaxgpt on its hosts, trains, and starts again
# when the TPU is preempted. The run lives in a bucket, so nothing else has to survive. Arguments go to `jaxgpt train`.
#   ZONE=us-east5-b TYPE=v6e-8 RUNTIME=v2-alpha-tpuv6e scripts/tpu_spot.sh \
#       --config nanochat_d12 --data.dir=gs://BUCKET/data/climbmix --run.dir=gs://BUCKET/runs/d12
# Run it from the checkout, where the session outlasts the training (tmux), with gcloud logged in.
set -uo pipefail
: "${ZONE:?set ZONE, such as us-east5-b}" "${TYPE:?set TYPE, such as v6e-8}"
: "${RUNTIME:?set RUNTIME, such as v2-alpha-tpuv6e}"
NAME=${NAME:-jaxgpt}
POLL_S=${POLL_S:-30}
TPUS="gcloud compute tpus"
archive=${TMPDIR:-/tmp}/jaxgpt.tar.gz

# The state of the request, or nothing where there is none.
state() {
  $TPUS queued-resources describe "$NAME" --zone="$ZONE" --format="value(state.state)" 2>/dev/null
}

delete() {
  [ -z "$(state)" ] || $TPUS queued-resources delete "$NAME" --zone="$ZONE" --force --quiet
}

# Requests the TPU and waits for it; fails where the request ends in another state.
request() {
  delete && $TPUS queued-resources create "$NAME" --node-id="$NAME" --zone="$ZONE" \
    --accelerator-type="$TYPE" --runtime-version="$RUNTIME" --spot || return
  while true; do
    case "$(state)" in
      ACTIVE) return 0 ;;
      FAILED | SUSPENDING | SUSPENDED | DELETING | "") return 1 ;;
    esac
    sleep "$POLL_S"
  done
}

on_all_hosts() {
  $TPUS tpu-vm ssh "$NAME" --zone="$ZONE" --worker=all --quiet --command="$1"
}

# Python 3.11, which the TPU's image lacks, comes with uv.
install() {
  git archive --output="$archive" HEAD &&
    $TPUS tpu-vm scp "$archive" "$NAME:" --zone="$ZONE" --worker=all --quiet &&
    on_all_hosts "mkdir -p jaxgpt && cd jaxgpt && tar -xzf ../jaxgpt.tar.gz && pip3 install --user uv &&
      ~/.local/bin/uv venv --clear --python 3.11 && ~/.local/bin/uv pip install '.[tpu,gcs]'"
}

arguments=$(printf " %q" "$@")
while true; do
  if request && install; then
    while [ "$(state)" = ACTIVE ]; do
      on_all_hosts "cd jaxgpt && .venv/bin/jaxgpt train$arguments --auto-resume"
      code=$?
      case "$code" in
        0 | 2 | 3) # done, bad input, diverged: again would change nothing
          delete
          exit "$code"
          ;;
      esac
      sleep "$POLL_S"
    done
  fi
  echo "the TPU is $(state); requesting it again in $POLL_S s" >&2
  sleep "$POLL_S"
done
