#!/usr/bin/env bash
# A run on a TPU slice of Google Cloud, from this machine: docs/tpu.md. Not run there yet.
#
#   scripts/tpu.sh create     makes the slice (SPOT=1: one that may be taken away, and costs less)
#   scripts/tpu.sh install    this checkout and its packages, on all hosts of it
#   scripts/tpu.sh run ARGS   python -m tarl_jax.main ARGS, on all hosts; the log follows
#   scripts/tpu.sh delete     ends it, and what it costs
set -euo pipefail

NAME=${NAME:-tarl}                          # of the slice
ZONE=${ZONE:-us-west4-a}
TYPE=${TYPE:-v5litepod-8}                   # v5litepod-8: one host, 2x4; v5litepod-16: 4x4, 4 hosts
IMAGE=${IMAGE:-v2-alpha-tpuv5-lite}
SPOT=${SPOT:-}

on_all() {
  gcloud compute tpus tpu-vm ssh "$NAME" --zone="$ZONE" --worker=all --command="$1"
}

case ${1:-} in
  create)
    gcloud compute tpus tpu-vm create "$NAME" --zone="$ZONE" --accelerator-type="$TYPE" \
      --version="$IMAGE" ${SPOT:+--spot}
    ;;
  install)
    cd "$(dirname "$0")/.."
    archive=$(mktemp --suffix=.tar.gz)
    trap 'rm -f "$archive"' EXIT
    git archive --format=tar.gz --output="$archive" HEAD
    gcloud compute tpus tpu-vm scp "$archive" "$NAME:tarl_jax.tar.gz" --zone="$ZONE" --worker=all
    on_all 'mkdir -p tarl_jax && tar xzf tarl_jax.tar.gz -C tarl_jax && cd tarl_jax \
      && python3 -m venv .venv && .venv/bin/pip install -q -e ".[tpu]"'
    ;;
  run)
    shift
    printf -v arguments ' %q' "$@"
    on_all "cd tarl_jax && .venv/bin/python -m tarl_jax.main$arguments"
    ;;
  delete)
    gcloud compute tpus tpu-vm delete "$NAME" --zone="$ZONE" --quiet
    ;;
  *)
    sed -n '2,8s/^# \{0,1\}//p' "$0" >&2
    exit 2
    ;;
esac
