#!/usr/bin/env bash
# Train in several processes, one for each GPU (or, without any, on the CPU):
#
#   bash tools/dist_train.sh CONFIG PROCESSES [arguments of tools/train.py]
#
# Across machines: NNODES, NODE_RANK, MASTER_ADDR and PORT in the environment.
# VENV names the environment (default .venv of this checkout, else the python
# in use).
set -euo pipefail
if [ $# -lt 2 ]; then
    echo "usage: $0 CONFIG PROCESSES [arguments of tools/train.py]" >&2
    exit 2
fi
exec bash "$(dirname "$0")/dist_run.sh" train.py "$2" "$1" "${@:3}"
