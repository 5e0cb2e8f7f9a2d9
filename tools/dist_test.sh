#!/usr/bin/env bash
# Evaluate in several processes, one for each GPU (or, without any, on the CPU):
#
#   bash tools/dist_test.sh CONFIG CHECKPOINT PROCESSES [arguments of tools/test.py]
#
# Across machines: NNODES, NODE_RANK, MASTER_ADDR and PORT in the environment.
# VENV names the environment (default .venv of this checkout, else the python
# in use).
set -euo pipefail
if [ $# -lt 3 ]; then
    echo "usage: $0 CONFIG CHECKPOINT PROCESSES [arguments of tools/test.py]" >&2
    exit 2
fi
exec bash "$(dirname "$0")/dist_run.sh" test.py "$3" "$1" "$2" "${@:4}"
