#!/bin/sh
# The published setting on every GPU of this machine: what is missing is estimated, then trained, and pages are written.
#
#   scripts/paper_scale.sh [ID ...]          all figures and tables where no id is named
#
# It can be stopped and given again: trainings go on where they stood. Settings by environment:
#   OUT       folder for trainings and pages (runs/paper)
#   DATA_DIR  folder of the data sets, where the Hugging Face hub cannot be reached
#   JOBS      trainings at a time (one for each GPU)
set -eu
if command -v nvidia-smi >/dev/null 2>&1; then
    devices=$(nvidia-smi --query-gpu=index --format=csv,noheader | sed 's/^/cuda:/')
else
    echo "No GPU was found (nvidia-smi is not there): the published setting takes weeks on a CPU." >&2
    exit 1
fi
[ "$#" -gt 0 ] || set -- all
set -- "$@" --scale paper --out "${OUT:-runs/paper}" ${DATA_DIR:+--data-dir "$DATA_DIR"} ${JOBS:+--jobs "$JOBS"}
# shellcheck disable=SC2086  # one argument a device
sgdwalk reproduce "$@" --device $devices --dry-run
# shellcheck disable=SC2086
exec sgdwalk reproduce "$@" --device $devices
